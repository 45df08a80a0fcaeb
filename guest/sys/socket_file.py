"""Sockets as files: an endpoint of the stack with what only the system calls know of it.

Here are what all sockets have, and those of messages: UDP, ICMP, raw. stream_file.py has those of connections.
"""

from __future__ import annotations

from guest.net.endpoint import Datagram, Endpoint, MessageEndpoint
from guest.net.pbuf import Buffer
from guest.sys.constants import (
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLRDHUP,
    POLLRDNORM,
    POLLWRBAND,
    POLLWRNORM,
    SOCK_DGRAM,
    SOCK_RAW,
)
from guest.sys.fault import fault
from guest.sys.files import File
from guest.sys.sockaddr import Destination

MORE_LIMIT = 0xFFFF  # what MSG_MORE may collect: no datagram is longer


class SocketFile(File):
    """A socket of any kind.

    Args:
        endpoint: of the stack; closed with the file.
        family, type, protocol: as `socket` was called: AF_*, SOCK_*, IPPROTO_*.

    Attributes:
        wants: (level, number) of the options that ask for ancillary data.
        timeout: of calls that block, in microseconds; None is for ever (the standard library's `settimeout`).
        rcvtimeo, sndtimeo: SO_RCVTIMEO, SO_SNDTIMEO in microseconds; 0 is for ever.
        scope: interface index of the local link-local address, 0 for none. peer_scope: of the connected one.
        settings: values of options that are kept and told, and change nothing.
    """

    kind = "socket"
    endpoint: Endpoint

    def __init__(self, endpoint: Endpoint, family: int, type: int, protocol: int) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.family = family
        self.type = type
        self.protocol = protocol
        self.wants: set[tuple[int, int]] = set()
        self.timeout: int | None = None
        self.rcvtimeo = 0
        self.sndtimeo = 0
        self.scope = 0
        self.peer_scope = 0
        self.settings: dict[tuple[int, int], int] = {}
        endpoint.on_ready = self.notify

    def release(self) -> None:
        self.endpoint.on_ready = None
        self.endpoint.close()

    @property
    def raw(self) -> bool:
        """Whether it is a raw socket: no ports."""
        return self.type == SOCK_RAW

    @property
    def ping(self) -> bool:
        """Whether it is an ICMP datagram socket."""
        return self.type == SOCK_DGRAM and self.protocol in (IPPROTO_ICMP, IPPROTO_ICMPV6)

    def found_peer(self, scope: int) -> None:
        """It was connected to an address with this scope."""
        self.peer_scope = scope
        if scope:
            self.scope = scope

    def listen(self, _backlog: int) -> None:
        """Take connections. Raises OSError: EOPNOTSUPP, where the kind knows none."""
        raise fault("EOPNOTSUPP")

    def accept(self) -> SocketFile | None:
        """The next connection, or None when there is none yet. Raises OSError: EOPNOTSUPP, as `listen`."""
        raise fault("EOPNOTSUPP")


class DatagramFile(SocketFile):
    """A socket of messages: UDP, ICMP, raw.

    Attributes:
        corked: what MSG_MORE has collected. corked_to: where it goes.
    """

    endpoint: MessageEndpoint

    def __init__(self, endpoint: MessageEndpoint, family: int, type: int, protocol: int) -> None:
        super().__init__(endpoint, family, type, protocol)
        self.corked: bytearray | None = None
        self.corked_to: Destination | None = None

    def poll(self) -> int:
        """As Linux's datagram_poll."""
        endpoint = self.endpoint
        events = 0
        if endpoint.error or endpoint.errors:
            events |= POLLERR
        if endpoint.shut_read:
            events |= POLLRDHUP
            if endpoint.shut_write:
                events |= POLLHUP
        if endpoint.readable:
            events |= POLLIN | POLLRDNORM
        if endpoint.writable:
            events |= POLLOUT | POLLWRNORM | POLLWRBAND
        return events

    # -- data ----------------------------------------------------------------------------------------------------

    def receive(self, peek: bool) -> Datagram | None:
        """The next datagram, or None. A pending error comes first, and is raised as OSError."""
        number = self.endpoint.take_error()
        if number:
            raise fault(number)
        return self.endpoint.receive(peek)

    def read_into(self, target: memoryview) -> int | None:
        """One datagram, cut off to fit, as read(2) has it."""
        datagram = self.receive(False)
        if datagram is None:
            return 0 if self.endpoint.shut_read and not self.nonblocking else None
        return copy_out(datagram, target)

    def write(self, source: memoryview) -> int | None:
        """One datagram to the connected peer, as write(2) has it."""
        pieces: list[Buffer] = [source] if len(source) else []
        number = self.endpoint.send(pieces)
        if number:
            raise fault(number)
        return len(source)


def pieces_of(datagram: Datagram, size: int) -> list[memoryview]:
    """The first `size` bytes of a payload, in place."""
    kept: list[memoryview] = []
    for view in datagram.payload.views():
        if len(view) >= size:
            kept.append(view[:size])
            break
        kept.append(view)
        size -= len(view)
    return kept


def copy_out(datagram: Datagram, target: memoryview) -> int:
    """Copy a payload into the caller's buffer, as far as that reaches: the one copy of received data; its length."""
    at = 0
    for view in pieces_of(datagram, len(target)):
        end = at + len(view)
        target[at:end] = view
        at = end
    return at
