"""The host, handed to the look-alikes of one guest: `guest.stdlib.network.Host`.

A number that mirrors a guest's socket is that socket; every other descriptor is the host's own, and so are AF_UNIX and
AF_ALG sockets, which lead to no network.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from vring.home import Home, SessionError
from vring.lookalike.mirror import Mirror, Mirrors

if TYPE_CHECKING:
    from guest.kernel import Guest
    from vring.door import ThreadCalls

FAMILIES = frozenset(
    int(getattr(socket, name)) for name in ("AF_UNIX", "AF_ALG") if hasattr(socket, name)
)
# Functions of the host's module that only count, or read files: they are as good for a guest.
PLAIN = (
    "CMSG_LEN", "CMSG_SPACE", "getprotobyname", "getservbyname", "getservbyport", "htonl", "htons", "inet_aton",
    "inet_ntoa", "inet_ntop", "inet_pton", "ntohl", "ntohs",
)  # fmt: skip
RealSocket: TypeAlias = socket.socket  # in the class below, `socket` is a method
CLASSES = ("AddressFamily", "AddressInfo", "MsgFlag", "SocketKind", "gaierror", "herror")


def host_names() -> dict[str, Any]:
    """Constants, enumerations, exceptions and plain functions of the host's module `socket`."""
    names = {name: value for name, value in vars(socket).items() if name[0].isupper() and isinstance(value, int)}
    return names | {name: getattr(socket, name) for name in (*PLAIN, *CLASSES) if hasattr(socket, name)}


class HostSide:
    """The host beside one guest; see `Host`.

    Args:
        guest: whose sockets get mirrors.
        home: the thread that runs it.
        door: its system calls for other threads.

    Attributes:
        mirrors: see mirror.py.
    """

    families = FAMILIES

    def __init__(self, guest: Guest, home: Home, door: ThreadCalls) -> None:
        self.names: Mapping[str, Any] = host_names()
        self.mirrors: Mirrors = Mirrors(guest, home.rig.loop, door.close_here)
        self._home = home
        self._door = door
        door.after_call = self.mirrors.refresh

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the home thread. Raises OSError: ECANCELED when that has ended."""
        try:
            return self._home.call(function)
        except SessionError as error:
            self._door.hold()
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)) from error

    @property
    def in_home_thread(self) -> bool:
        """Whether this thread runs the machine, and must not wait for it."""
        return self._home.is_here

    # -- mirrors -------------------------------------------------------------------------------------------------

    def mirror(self, fd: int, inheritable: bool) -> int:
        """See `Host`."""
        made: Mirror = self.call(lambda: self.mirrors.make(fd))
        if inheritable:
            os.set_inheritable(made.number, True)
        return made.number

    def recognise(self, number: int) -> int | None:
        """See `Host`."""
        mirror = self.mirrors.find(number)
        return None if mirror is None else mirror.fd

    def close_mirrored(self, fd: int) -> None:
        """See `Host`."""
        self.call(lambda: self.mirrors.close(fd))

    def abandon(self, fd: int) -> None:
        """See `Host`."""
        self._home.post(partial(self._close_quietly, fd))

    def _close_quietly(self, fd: int) -> None:
        try:
            self.mirrors.close(fd)
        except OSError:
            pass  # it was closed by number

    # -- the host's own ------------------------------------------------------------------------------------------

    def set_inheritable(self, number: int, inheritable: bool) -> None:
        """See `Host`."""
        os.set_inheritable(number, inheritable)

    def socket(self, family: int, type: int, proto: int, fileno: int | None) -> RealSocket:
        """See `Host`."""
        return socket.socket(family, type, proto, fileno)

    def socketpair(self, family: int, type: int, proto: int) -> tuple[RealSocket, RealSocket]:
        """See `Host`."""
        return socket.socketpair(family, type, proto)

    def close(self, number: int) -> None:
        """See `Host`."""
        socket.close(number)

    def dup(self, number: int) -> int:
        """See `Host`."""
        return socket.dup(number)
