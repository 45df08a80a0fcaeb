"""A guest's socket with the methods of the standard library's low-level socket type.

The look-alike `socket` class stands on one of these, or on a real socket of the host, and sees no difference.
Timeouts are the standard library's: seconds, None for ever, 0 for non-blocking.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from guest.net.pbuf import Buffer
from guest.sys import constants as c
from guest.sys.ancillary import Item
from guest.sys.sockaddr import AddressArgument, ResolveError, SocketAddress

if TYPE_CHECKING:
    from guest.stdlib.network import Network

TIMEOUT_MAX = 2**63 / 1e9  # seconds, as the standard library counts them


def microseconds(value: Any) -> int | None:
    """A timeout in seconds as one of the system calls'; rounded up, so that a short one is not none.

    Raises TypeError, ValueError as the standard library.
    """
    if value is None:
        return None
    if not isinstance(value, (int, float)) and not hasattr(value, "__index__"):
        raise TypeError(f"'{type(value).__name__}' object cannot be interpreted as an integer")
    seconds = value if isinstance(value, float) else float(int(value))
    if math.isnan(seconds):
        raise ValueError("Invalid value NaN (not a number)")
    if seconds < 0:
        raise ValueError("Timeout value out of range")
    if seconds >= TIMEOUT_MAX:
        raise OverflowError("timestamp too large to convert to C _PyTime_t")
    return math.ceil(seconds * 1_000_000)


class GuestSocket:
    """A descriptor of a guest.

    Args:
        net: whose it is.
        fd: the guest's descriptor, which this object owns; -1 once it is closed or detached.
        family, type, proto: as `socket` was called.

    Attributes:
        timeout: in seconds.
        mirror: the descriptor of the host that mirrors it, once somebody has asked for that.
    """

    __slots__ = ("_calls", "_net", "family", "fd", "mirror", "proto", "timeout", "type")

    def __init__(self, net: Network, fd: int, family: int, type: int, proto: int) -> None:
        self._net = net
        self._calls = net.calls
        self.fd = fd
        self.family = family
        self.type = type
        self.proto = proto
        self.timeout: float | None = None
        self.mirror: int | None = None

    # -- descriptors ---------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor for programs: the guest's, or with a host its mirror."""
        if self.fd < 0:
            return -1
        host = self._net.host
        if host is None:
            return self.fd
        if self.mirror is None:
            self.mirror = host.mirror(self.fd, self._inheritable())
        return self.mirror

    def _inheritable(self) -> bool:
        return not self._calls.fcntl(self.fd, c.F_GETFD) & c.FD_CLOEXEC

    def close(self) -> None:
        """Give the descriptor back; harmless when done before. A network that has ended is no error."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        try:
            if self.mirror is not None and self._net.host is not None:
                self._net.host.close_mirrored(fd)
            else:
                self._calls.close(fd)
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise

    def detach(self) -> int:
        """Let go of the descriptor, which stays open: whose it is now must close it."""
        number = self.fileno()
        self.fd = -1
        return number

    def dup(self) -> GuestSocket:
        """Another object and descriptor for the same socket."""
        fd = self._calls.fcntl(self.fd, c.F_DUPFD_CLOEXEC, 0)
        made = GuestSocket(self._net, fd, self.family, self.type, self.proto)
        made.timeout = self.timeout
        return made

    def get_inheritable(self) -> bool:
        """Whether programs that are executed get the descriptor."""
        return self._inheritable()

    def set_inheritable(self, inheritable: bool) -> None:
        """Say so."""
        self._calls.fcntl(self.fd, c.F_SETFD, 0 if inheritable else c.FD_CLOEXEC)
        if self.mirror is not None and self._net.host is not None:
            self._net.host.set_inheritable(self.mirror, bool(inheritable))

    # -- timeouts ------------------------------------------------------------------------------------------------

    def settimeout(self, value: float | None) -> None:
        """See the standard library."""
        limit = microseconds(value)
        self._calls.set_timeout(self.fd, limit)
        self.timeout = None if value is None else float(value)

    def gettimeout(self) -> float | None:
        """See the standard library."""
        return self.timeout

    def setblocking(self, flag: bool) -> None:
        """See the standard library."""
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        """See the standard library."""
        return self.timeout != 0.0

    # -- naming --------------------------------------------------------------------------------------------------

    def bind(self, address: AddressArgument) -> None:
        """See the standard library."""
        try:
            self._calls.bind(self.fd, address)
        except ResolveError as error:
            raise self._net.name_fault(error) from None

    def connect(self, address: AddressArgument) -> None:
        """See the standard library."""
        try:
            self._calls.connect(self.fd, address)
        except ResolveError as error:
            raise self._net.name_fault(error) from None

    def connect_ex(self, address: AddressArgument) -> int:
        """See the standard library: the error's number, 0 for none; a name that is not known raises still."""
        try:
            self._calls.connect(self.fd, address)
        except ResolveError as error:
            raise self._net.name_fault(error) from None
        except TimeoutError as error:
            return error.errno or errno.EAGAIN  # of the socket's own timeout it has none
        except OSError as error:
            return error.errno or 0
        return 0

    def listen(self, backlog: int = 128) -> None:
        """See the standard library."""
        self._calls.listen(self.fd, max(0, backlog))

    def accept(self) -> tuple[GuestSocket, SocketAddress]:
        """The next connection: its socket, blocking or with the default timeout, and its peer."""
        fd, address = self._calls.accept(self.fd, c.SOCK_CLOEXEC)
        made = GuestSocket(self._net, fd, self.family, self.type, self.proto)
        if self._net.default_timeout is not None:
            made.settimeout(self._net.default_timeout)
        return made, address

    def getsockname(self) -> SocketAddress:
        """See the standard library."""
        address: SocketAddress = self._calls.getsockname(self.fd)
        return address

    def getpeername(self) -> SocketAddress:
        """See the standard library."""
        address: SocketAddress = self._calls.getpeername(self.fd)
        return address

    def shutdown(self, how: int) -> None:
        """See the standard library."""
        self._calls.shutdown(self.fd, how)

    # -- options -------------------------------------------------------------------------------------------------

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int | bytes:
        """See the standard library."""
        if buflen < 0 or buflen > 1024:
            raise OSError("getsockopt buflen out of range")
        value: int | bytes = self._calls.getsockopt(self.fd, level, option, buflen)
        return value

    def setsockopt(self, level: int, option: int, value: int | Buffer | None, optlen: int | None = None) -> None:
        """See the standard library."""
        if value is None:
            if optlen is None:
                raise TypeError("setsockopt() requires an integer or a bytes-like object, or None and a length")
            value = bytes(optlen)
        elif optlen is not None:
            raise TypeError(f"socket option should be NoneType, not {type(value).__name__}")
        self._calls.setsockopt(self.fd, level, option, value if isinstance(value, int) else bytes(value))

    # -- sending -------------------------------------------------------------------------------------------------

    def send(self, data: Buffer, flags: int = 0) -> int:
        """See the standard library."""
        sent: int = self._calls.send(self.fd, data, flags)
        return sent

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """See the standard library; the timeout is for all of it."""
        with memoryview(data) as view, view.cast("B") as left:
            self._send_all(left, flags)

    def _send_all(self, view: memoryview, flags: int) -> None:
        net, timeout = self._net, self.timeout
        deadline = None if not timeout else net.now() + (microseconds(timeout) or 0)
        at = self._calls.send(self.fd, view, flags)
        if at >= len(view):
            return
        try:
            while at < len(view):
                if deadline is not None:
                    left = deadline - net.now()
                    if left <= 0:
                        raise TimeoutError("timed out")
                    self._calls.set_timeout(self.fd, left)
                with view[at:] as rest:
                    at += self._calls.send(self.fd, rest, flags)
        finally:
            if deadline is not None:
                self._calls.set_timeout(self.fd, microseconds(timeout))

    def sendto(self, data: Buffer, *arguments: Any) -> int:
        """See the standard library: `sendto(data, address)`, `sendto(data, flags, address)`."""
        if not 1 <= len(arguments) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({1 + len(arguments)} given)")
        address = arguments[-1]
        flags = arguments[0] if len(arguments) == 2 else 0
        try:
            sent: int = self._calls.sendto(self.fd, data, address, flags)
        except ResolveError as error:
            raise self._net.name_fault(error) from None
        return sent

    def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        address: AddressArgument | None = None,
    ) -> int:
        """See the standard library."""
        try:
            sent: int = self._calls.sendmsg(self.fd, buffers, ancdata, flags, address)
        except ResolveError as error:
            raise self._net.name_fault(error) from None
        return sent

    # -- receiving -----------------------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """See the standard library."""
        data: bytes = self._calls.recv(self.fd, bufsize, flags)
        return data

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        """See the standard library."""
        got: int = self._calls.recv_into(self.fd, buffer, nbytes, flags)
        return got

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, SocketAddress | None]:
        """See the standard library."""
        got: tuple[bytes, SocketAddress | None] = self._calls.recvfrom(self.fd, bufsize, flags)
        return got

    def recvfrom_into(
        self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, SocketAddress | None]:
        """See the standard library."""
        got: tuple[int, SocketAddress | None] = self._calls.recvfrom_into(self.fd, buffer, nbytes, flags)
        return got

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[Item], int, SocketAddress | None]:
        """See the standard library."""
        got: tuple[bytes, list[Item], int, SocketAddress | None] = self._calls.recvmsg(
            self.fd, bufsize, ancbufsize, flags
        )
        return got

    def recvmsg_into(
        self, buffers: Iterable[bytearray | memoryview], ancbufsize: int = 0, flags: int = 0
    ) -> tuple[int, list[Item], int, SocketAddress | None]:
        """See the standard library."""
        got: tuple[int, list[Item], int, SocketAddress | None] = self._calls.recvmsg_into(
            self.fd, buffers, ancbufsize, flags
        )
        return got
