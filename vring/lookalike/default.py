"""The guest behind `vring.socket` and `vring.select`, for programs that have no machine of their own.

It boots when it is first needed and lives until the program ends. Its board is the one that the environment variable
VRING_BOARD names, a file or one that ships; without it a guest on a user wire, which reaches what this host reaches.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING

from guest.stdlib.network import Network
from vring.boards import USER_WORDS
from vring.lookalike.ending import finish

if TYPE_CHECKING:
    from vring.lookalike.host import HostSide
    from vring.lookalike.names import Outside
    from vring.session import Session

VARIABLE = "VRING_BOARD"


class DefaultGuest:
    """A session that boots on first use.

    Attributes:
        session: None before that.
    """

    def __init__(self) -> None:
        self.session: Session | None = None
        self._outside: Outside | None = None
        self._lock = threading.RLock()

    def outside(self) -> Outside:
        """Its look-alikes. Raises ConfigError, WireError for a board that cannot be."""
        if self._outside is None:
            with self._lock:
                if self._outside is None:
                    self._boot()
        if self._outside is None:
            raise AssertionError("booting makes it or raises")
        return self._outside

    def _boot(self) -> None:
        from vring.session import boot  # noqa: PLC0415 - the machine loads when it is needed

        board = os.environ.get(VARIABLE)
        session = boot(board) if board else boot(wire="user", cmdline=USER_WORDS)
        try:
            self._outside = session.outside_of(session.guest)
        except BaseException:
            session.close()
            raise
        self.session = session
        atexit.register(finish, session, session.guest)

    def network(self) -> Network:
        """What its sockets are made of."""
        return self.outside().network

    def side(self) -> HostSide | None:
        """The host's side of it; None as long as there can be no socket of it."""
        return None if self._outside is None else self._outside.host


DEFAULT = DefaultGuest()  # one a process, as the standard library's module is
