"""Where front ends find our device: a Unix socket that is listened on, or one that is connected to again and again.

A `DeviceServer` has one device and serves one front end at a time; the next is taken when that has left. So a VM or a
driver may be restarted at will.

Read: docs/interop/vhost-user of QEMU (either side may listen).
"""

from __future__ import annotations

import os
import socket
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hw.clock import Timer
from hw.fence import has_fence
from hw.loop import Loop
from hw.vhost.back import VhostSession
from hw.virtio.device import VirtioDevice
from hw.wire.link import WireError

RETRY_EVERY = 500_000  # microseconds between attempts to reach a front end that listens


class DeviceServer:
    """A device at a socket.

    Args:
        loop: the thread's loop, on the real clock.
        path: the socket. A server makes it, and takes it away at the end; one that nobody listens on is replaced.
        device: what is served.
        client: connect to a front end that listens, instead of listening.
        tell: told in one line of front ends that come and go.

    Attributes:
        session: the front end that is connected, or None.
        counters: of all sessions that ended, and of those that were turned away.

    Raises WireError for a socket that cannot be made, or where memory fences are missing.
    """

    def __init__(
        self,
        loop: Loop,
        path: str | Path,
        device: VirtioDevice,
        *,
        client: bool = False,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not has_fence():
            raise WireError("a driver in another process needs vring's C extension, for its memory fences: "
                            "install vring again with a C compiler there")  # fmt: skip
        self.path = str(path)
        self.device = device
        self.session: VhostSession | None = None
        self.counters: Counter[str] = Counter()
        self._loop = loop
        self._tell = tell
        self._client = client
        self._retry: Timer | None = None
        self._closed = False
        self._listener: socket.socket | None = None
        if client:
            self._connect()
        else:
            self._listen()

    # -- as a server -----------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        left_over = self._is_left_over()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            if left_over:
                os.unlink(self.path)
            listener.bind(self.path)
            listener.listen()
        except OSError as error:
            listener.close()
            raise WireError(f"the socket {self.path} cannot be made: {error.strerror or error}") from None
        listener.setblocking(False)
        self._listener = listener
        self._loop.set_reader(listener.fileno(), lambda: self._accept(listener))

    def _is_left_over(self) -> bool:
        """Whether there is a socket that nobody listens on any more."""
        try:
            if not stat.S_ISSOCK(os.stat(self.path).st_mode):
                return False
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.connect(self.path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        raise WireError(f"the socket {self.path} is in use; another device listens there")

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection = listener.accept()[0]
        except OSError:
            return
        if self.session is not None:
            connection.close()
            self.counters["turned_away"] += 1
            self._tell(f"{self.path}: another front end was turned away; one at a time")
            return
        self._begin(connection)

    # -- as a client -----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._retry = None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(self.path)
        except OSError:
            connection.close()
            self._retry = self._loop.clock.after(RETRY_EVERY, self._connect)
            return
        self._begin(connection)

    # -- sessions --------------------------------------------------------------------------------------------------

    def _begin(self, connection: socket.socket) -> None:
        self.counters["front_ends"] += 1
        self._tell(f"{self.path}: a front end is here")
        self.session = VhostSession(self._loop, connection, self.device, self._gone)

    def _gone(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            self.counters += session.counters
            self._tell(f"{self.path}: the front end left" + (f"; {session.failure}" if session.failure else ""))
        if self._client and not self._closed:
            self._retry = self._loop.clock.after(RETRY_EVERY, self._connect)

    def close(self) -> None:
        """Hang up, and take the socket away. Harmless when closed."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._listener is not None:
            self._loop.forget(self._listener.fileno())
            self._listener.close()
            Path(self.path).unlink(missing_ok=True)
        if self.session is not None:
            self.session.close()
