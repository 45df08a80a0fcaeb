"""System calls that make, name and set sockets, and connect them. socket(2), bind(2), connect(2), listen(2), accept(2),
getsockopt(2), shutdown(2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from guest.net.address import V4_ANY
from guest.net.endpoint import MessageEndpoint
from guest.sys import constants as c
from guest.sys import options
from guest.sys.fault import check, fault
from guest.sys.sockaddr import SIN6_LEN_RFC2133, AddressArgument, SocketAddress, family_of, show
from guest.sys.socket_file import DatagramFile, SocketFile
from guest.sys.stream_calls import StreamCalls
from guest.sys.stream_file import StreamFile

# (AF_*, protocol as the caller gave it) → the socket's file, or an error's name
Opener: TypeAlias = Callable[[int, int], "SocketFile | str"]

TYPE_MASK = 0xF
SOCK_MAX = 11  # types beyond are no types at all
PRIVILEGED_PORTS = 1024  # as Linux has it unless told otherwise
PROTOCOL_MAX = 263  # IPPROTO_MAX


class SocketCalls(StreamCalls):
    """Calls on sockets as such."""

    # -- making them ---------------------------------------------------------------------------------------------

    @property
    def openers(self) -> dict[int, Opener]:
        """What opens each type of socket; a new transport enters here."""
        if not hasattr(self, "_openers"):
            self._openers: dict[int, Opener] = {
                c.SOCK_STREAM: self._open_stream,
                c.SOCK_DGRAM: self._open_datagram,
                c.SOCK_RAW: self._open_raw,
            }
        return self._openers

    def socket(self, family: int = c.AF_INET, type: int = c.SOCK_STREAM, protocol: int = 0) -> int:
        """A descriptor for a new socket; `type` may have SOCK_NONBLOCK and SOCK_CLOEXEC or-ed in.

        Raises OSError: EAFNOSUPPORT, ESOCKTNOSUPPORT, EPROTONOSUPPORT, EINVAL, EMFILE.
        """
        kind = type & TYPE_MASK
        extra = type & ~TYPE_MASK
        if extra & ~(c.SOCK_NONBLOCK | c.SOCK_CLOEXEC) or kind >= SOCK_MAX:
            raise fault("EINVAL")
        if family not in (c.AF_INET, c.AF_INET6):
            raise fault("EAFNOSUPPORT")
        if not 0 <= protocol < PROTOCOL_MAX:
            raise fault("EINVAL")
        opener = self.openers.get(kind)
        if opener is None:
            raise fault("ESOCKTNOSUPPORT")
        file = opener(family, protocol)
        if isinstance(file, str):
            raise fault(file)
        if extra & c.SOCK_NONBLOCK:
            file.flags |= c.O_NONBLOCK
        fd = self.fds.install(file, cloexec=bool(extra & c.SOCK_CLOEXEC))
        self.counters["sockets_opened"] += 1
        return fd

    def _open_stream(self, family: int, protocol: int) -> SocketFile | str:
        if protocol not in (0, c.IPPROTO_TCP):
            return "EPROTONOSUPPORT"
        return StreamFile(self.stack.tcp.open(4 if family == c.AF_INET else 6), family)

    def _open_datagram(self, family: int, protocol: int) -> SocketFile | str:
        stack = self.stack
        version = 4 if family == c.AF_INET else 6
        endpoint: MessageEndpoint
        if protocol in (0, c.IPPROTO_UDP):
            protocol = c.IPPROTO_UDP
            endpoint = stack.udp.open(version)
        elif protocol == (c.IPPROTO_ICMP if version == 4 else c.IPPROTO_ICMPV6):
            endpoint = stack.raw.open_ping(version)
            endpoint.options.reuse_addr = True  # so on Linux, as for raw ones
        else:
            return "EPROTONOSUPPORT"
        return DatagramFile(endpoint, family, c.SOCK_DGRAM, protocol)

    def _open_raw(self, family: int, protocol: int) -> SocketFile | str:
        if not 0 < protocol <= 255:
            return "EPROTONOSUPPORT"
        if not self.capable("net_raw"):
            return "EPERM"
        endpoint = self.stack.raw.open(4 if family == c.AF_INET else 6, protocol)
        endpoint.options.reuse_addr = True
        return DatagramFile(endpoint, family, c.SOCK_RAW, protocol)

    # -- naming them ---------------------------------------------------------------------------------------------

    def bind(self, fd: int, address: AddressArgument) -> None:
        """Give a socket its local address.

        Raises OSError: EINVAL, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EACCES (a port below 1024, without the right).
        """
        file = self._socket(fd)
        if isinstance(address, (bytes, bytearray, memoryview)) and file.family == c.AF_INET6:
            if len(address) < SIN6_LEN_RFC2133:
                raise fault("EINVAL")
        where = self._destination(file, address)
        if where.family != file.family and (where.family, where.address) != (c.AF_UNSPEC, V4_ANY):
            raise fault("EAFNOSUPPORT")
        if file.protocol in (c.IPPROTO_TCP, c.IPPROTO_UDP) and 0 < where.port < PRIVILEGED_PORTS:
            self._need("net_bind_service", "EACCES")
        check(file.endpoint.bind(where.address, where.port, self._scope(where)))
        file.scope = where.scope

    def connect(self, fd: int, address: AddressArgument | None) -> None:
        """Fix a socket's peer; a stream connects to it. None, or a struct of family AF_UNSPEC, takes it away again.

        A stream that must not block gives EINPROGRESS. When poll says POLLOUT the attempt is over; SO_ERROR tells how.
        It goes on after EINTR, TimeoutError (see `set_timeout`) and EINPROGRESS, which is also what SO_SNDTIMEO gives.

        Raises OSError: ENETUNREACH, EACCES (a broadcast address without SO_BROADCAST), EAFNOSUPPORT, EINVAL, EAGAIN;
        of a stream also ECONNREFUSED, ECONNRESET, ETIMEDOUT, EHOSTUNREACH, EADDRNOTAVAIL, EINPROGRESS, EALREADY,
        EISCONN, ECONNABORTED, EINTR.
        """
        file = self._socket(fd)
        raw = isinstance(address, (bytes, bytearray, memoryview))
        if address is None or (raw and family_of(bytes(address)) == c.AF_UNSPEC):  # type: ignore[arg-type]  # raw
            check(file.disconnect() if isinstance(file, StreamFile) else file.endpoint.disconnect())
            file.peer_scope = 0
            return
        where = self._destination(file, address)
        if where.family != file.family and file.endpoint.options.v6only:
            raise fault("EAFNOSUPPORT")
        interface = self._scope(where)
        if isinstance(file, StreamFile):
            self._stream_connect(file, where, interface)
            return
        check(file.endpoint.connect(where.address, where.port, interface))
        file.found_peer(where.scope)

    def listen(self, fd: int, backlog: int = 128) -> None:
        """Let a socket take connections, of which `backlog` may wait for `accept`; again changes that number.

        Raises OSError: EOPNOTSUPP, EINVAL, EADDRINUSE.
        """
        self._socket(fd).listen(backlog)

    def accept(self, fd: int, flags: int = 0) -> tuple[int, SocketAddress]:
        """The next connection: its descriptor, and its peer. `flags`: SOCK_NONBLOCK, SOCK_CLOEXEC.

        Raises OSError: EOPNOTSUPP, EINVAL, EAGAIN, EMFILE, EINTR.
        """
        if flags & ~(c.SOCK_NONBLOCK | c.SOCK_CLOEXEC):
            raise fault("EINVAL")
        file = self._socket(fd)
        if not isinstance(file, StreamFile):
            raise fault("EOPNOTSUPP")
        since = self._now()
        with file:
            self.fds.check_room()  # before a connection is taken that could not be handed out
            while (accepted := file.accept()) is None:
                self._next_sign(file, 0, c.POLLIN, since)
                self.fds.check_room()
        if flags & c.SOCK_NONBLOCK:
            accepted.flags |= c.O_NONBLOCK
        new = self.fds.install(accepted, cloexec=bool(flags & c.SOCK_CLOEXEC))
        self.counters["connections_accepted"] += 1
        return new, show(accepted.family, *(accepted.endpoint.remote or accepted.endpoint.local), accepted.peer_scope)

    def getsockname(self, fd: int) -> SocketAddress:
        """The local address."""
        file = self._socket(fd)
        address, port = file.endpoint.local
        if file.raw:
            port = file.protocol  # Linux shows it where the others have their port
        return show(file.family, address, port, file.scope)

    def getpeername(self, fd: int) -> SocketAddress:
        """The peer's address. Raises OSError: ENOTCONN."""
        file = self._socket(fd)
        remote = file.endpoint.remote
        if remote is None or not remote[1] or (isinstance(file, StreamFile) and not file.named):
            raise fault("ENOTCONN")
        return show(file.family, *remote, file.peer_scope)

    def shutdown(self, fd: int, how: int) -> None:
        """Stop receiving (SHUT_RD), sending (SHUT_WR) or both (SHUT_RDWR); of a stream also listening and connecting.

        Raises OSError: EINVAL; ENOTCONN, and does it still.
        """
        file = self._socket(fd)
        check(file.shutdown(how) if isinstance(file, StreamFile) else file.endpoint.shutdown(how))

    # -- setting them --------------------------------------------------------------------------------------------

    def getsockopt(self, fd: int, level: int, option: int, size: int = 0) -> int | bytes:
        """An option's value: a number, or with `size` up to so many bytes. Raises as `options.get`."""
        return options.get(self._socket(fd), self.stack, level, option, size)

    def setsockopt(self, fd: int, level: int, option: int, value: int | bytes) -> None:
        """Set an option to a number or to bytes. Raises as `options.set_option`."""
        options.set_option(self._socket(fd), self.stack, level, option, value)

    def set_timeout(self, fd: int, timeout: int | None) -> None:
        """Let calls on a socket block for `timeout` microseconds and then raise TimeoutError; None is for ever, and 0
        makes it non-blocking. (The standard library's `settimeout`.)
        """
        file = self._socket(fd)
        if timeout is not None and timeout < 0:
            raise ValueError("Timeout value out of range")
        file.timeout = timeout
        file.flags = file.flags & ~c.O_NONBLOCK | (c.O_NONBLOCK if timeout == 0 else 0)

    def get_timeout(self, fd: int) -> int | None:
        """What `set_timeout` has set; 0 for a socket that is non-blocking by other means."""
        file = self._socket(fd)
        return 0 if file.nonblocking else file.timeout
