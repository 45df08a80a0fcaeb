"""The functions of a module `socket` that make sockets, and those that work on descriptors."""

from __future__ import annotations

import array
from collections.abc import Callable, Iterable
from typing import Any

from guest.stdlib.low import microseconds
from guest.stdlib.names import NameFunctions
from guest.stdlib.network import Network
from guest.sys import constants as c

SCM_RIGHTS = 1
LOCAL = {c.AF_INET: "127.0.0.1", c.AF_INET6: "::1"}
GLOBAL_DEFAULT_TIMEOUT: Any = object()  # "the timeout was not said", where None is one


class SocketFunctions:
    """The functions, for one network.

    Args:
        network: whose sockets.
        socket: the class.
        names: for `create_connection`.
    """

    def __init__(self, network: Callable[[], Network], socket: Any, names: NameFunctions) -> None:
        self._network = network
        self._socket = socket
        self._names = names

    # -- connections ---------------------------------------------------------------------------------------------

    def create_connection(
        self,
        address: tuple[str | None, int | str],
        timeout: float | None = GLOBAL_DEFAULT_TIMEOUT,
        source_address: tuple[str, int] | None = None,
        *,
        all_errors: bool = False,
    ) -> Any:
        """A stream that is connected to (host, port): each address of the host is tried.

        Raises the last try's OSError, or with `all_errors` an ExceptionGroup of all.
        """
        host, port = address
        errors: list[OSError] = []
        for family, kind, proto, _, where in self._names.getaddrinfo(host, port, 0, c.SOCK_STREAM):
            sock = None
            try:
                sock = self._socket(family, kind, proto)
                if timeout is not GLOBAL_DEFAULT_TIMEOUT:
                    sock.settimeout(timeout)
                if source_address:
                    sock.bind(source_address)
                sock.connect(where)
            except OSError as error:
                errors.append(error)
                if sock is not None:
                    sock.close()
            else:
                errors.clear()  # they refer to frames, which refer to them
                return sock
        try:
            if not errors:
                raise OSError("getaddrinfo returns an empty list")
            if all_errors:
                raise ExceptionGroup("create_connection failed", errors)
            raise errors[-1]
        finally:
            errors.clear()

    def create_server(
        self,
        address: tuple[str, int],
        *,
        family: int = c.AF_INET,
        backlog: int | None = None,
        reuse_port: bool = False,
        dualstack_ipv6: bool = False,
    ) -> Any:
        """A stream that listens at (host, port). With `dualstack_ipv6` it takes connections of both families.

        Raises OSError, ValueError.
        """
        if dualstack_ipv6 and family != c.AF_INET6:
            raise ValueError("dualstack_ipv6 requires AF_INET6 family")
        sock = self._socket(family, c.SOCK_STREAM)
        try:
            sock.setsockopt(c.SOL_SOCKET, c.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(c.SOL_SOCKET, c.SO_REUSEPORT, 1)
            if family == c.AF_INET6:
                sock.setsockopt(c.IPPROTO_IPV6, c.IPV6_V6ONLY, 0 if dualstack_ipv6 else 1)
            try:
                sock.bind(address)
            except OSError as error:
                text = f"{error.strerror} (while attempting to bind on address {address!r})"
                raise OSError(error.errno, text) from None
            sock.listen(*(() if backlog is None else (backlog,)))
        except OSError:
            sock.close()
            raise
        return sock

    def has_dualstack_ipv6(self) -> bool:
        """Whether one socket can take connections of both families."""
        try:
            with self._socket(c.AF_INET6, c.SOCK_STREAM) as sock:
                sock.setsockopt(c.IPPROTO_IPV6, c.IPV6_V6ONLY, 0)
        except OSError:
            return False
        return True

    def socketpair(self, family: int | None = None, type: int = c.SOCK_STREAM, proto: int = 0) -> tuple[Any, Any]:
        """Two sockets that are connected to each other: of the host where there is one, else streams over the loopback.

        Raises OSError, ValueError.
        """
        host = self._network().host
        if host is not None and (family is None or family in host.families):
            first, second = host.socketpair(1 if family is None else family, type, proto)  # AF_UNIX
            return self._socket._of(first), self._socket._of(second)
        family = c.AF_INET if family is None else family
        if family not in LOCAL:
            raise ValueError("Only AF_INET and AF_INET6 socket address families are supported")
        if type != c.SOCK_STREAM:
            raise ValueError("Only SOCK_STREAM socket type is supported")
        with self._socket(family, type, proto) as listening:
            listening.bind((LOCAL[family], 0))
            listening.listen(1)
            where = listening.getsockname()[:2]
            first = self._socket(family, type, proto)
            try:
                first.setblocking(False)
                try:
                    first.connect(where)
                except BlockingIOError:
                    pass
                first.setblocking(True)
                second, _ = listening.accept()
            except BaseException:
                first.close()
                raise
        return first, second

    # -- descriptors ---------------------------------------------------------------------------------------------

    def fromfd(self, fd: int, family: int, type: int, proto: int = 0) -> Any:
        """A socket for a duplicate of a descriptor. Raises OSError."""
        return self._socket(family, type, proto, fileno=self.dup(fd))

    def dup(self, fd: int, /) -> int:
        """Another descriptor for the same socket. Raises OSError."""
        return self._network().dup(fd)

    def close(self, fd: int, /) -> None:
        """Close a descriptor. Raises OSError."""
        self._network().close(fd)

    def send_fds(
        self, sock: Any, buffers: Iterable[Any], fds: Iterable[int], flags: int = 0, address: Any = None
    ) -> int:
        """Send descriptors of the host through an AF_UNIX socket. Raises OSError."""
        sent: int = sock.sendmsg(buffers, [(c.SOL_SOCKET, SCM_RIGHTS, array.array("i", fds))])
        return sent

    def recv_fds(self, sock: Any, bufsize: int, maxfds: int, flags: int = 0) -> tuple[bytes, list[int], int, Any]:
        """Data, descriptors, flags and address from an AF_UNIX socket. Raises OSError."""
        numbers = array.array("i")
        room = 16 + maxfds * numbers.itemsize  # CMSG_LEN
        data, ancillary, told, address = sock.recvmsg(bufsize, room)
        for level, kind, raw in ancillary:
            if (level, kind) == (c.SOL_SOCKET, SCM_RIGHTS):
                numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
        return data, list(numbers), told, address

    # -- timeouts ------------------------------------------------------------------------------------------------

    def getdefaulttimeout(self) -> float | None:
        """Of new sockets, in seconds; None is for ever."""
        return self._network().default_timeout

    def setdefaulttimeout(self, timeout: float | None, /) -> None:
        """Set it. Raises TypeError, ValueError."""
        microseconds(timeout)
        self._network().default_timeout = None if timeout is None else float(timeout)
