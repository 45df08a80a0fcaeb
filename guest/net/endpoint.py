"""The endpoint: one communication end below the system calls; and the receive queue of ends of messages (UDP, raw).

An endpoint never blocks and never raises for what a peer or a caller does: calls give 0 or an `errno` number, the same
that Linux gives. Addresses are 128-bit numbers; an endpoint of family 4 has IPv4-mapped ones only, an endpoint of
family 6 that is not `v6only` speaks both families and shows IPv4 peers in their mapped form.

What the system calls have to add: they block; they take a pending error (`take_error`) before they `receive`; at an
empty queue they return end of file when `shut_read` is set; they check families, lengths and types of addresses.

Promises of a `MessageEndpoint`:
- What a queue is charged for the memory that it pins (`queued_bytes`: the bytes, and an estimate of the objects around
  each datagram and each of its pieces) never exceeds `options.rcvbuf`. What would exceed it is dropped, newest first,
  and counted in `drops`.
- A queued packet was asked to `keep` itself, so a reader that sleeps does not starve a driver.

Sections: `SocketOptions`, `Datagram`, `Endpoint`, `MessageEndpoint`.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from guest.net.address import V4_ANY, V6_ANY
from guest.net.pbuf import Buffer, PacketBuffer

if TYPE_CHECKING:
    from guest.net.icmp_error import IcmpError
    from guest.net.interface import Interface

OVERHEAD = 512  # bytes that a queued packet counts on top of the memory it pins: its objects, as Linux's truesize
VIEW_OVERHEAD = 256  # and each of its pieces behind the linear part: the view, and what is around it in its buffer
BUFFER = 212_992  # what Linux starts with (net.core.rmem_default)

SHUT_RD, SHUT_WR, SHUT_RDWR = 0, 1, 2

PMTUDISC_DONT = 0  # never set "don't fragment"
PMTUDISC_WANT = 1  # set it where the packet fits the path, fragment where it does not
PMTUDISC_DO = 2  # always set it; what does not fit is EMSGSIZE
PMTUDISC_PROBE = 3  # likewise, but only the interface's MTU counts


@dataclass(slots=True)
class SocketOptions:
    """What setsockopt sets; written by the system calls, read whenever it matters, with the defaults of Linux.

    Attributes:
        reuse_addr, reuse_port: SO_REUSEADDR, SO_REUSEPORT; count at the time of a bind, on both sides of a conflict.
        broadcast: SO_BROADCAST.
        v6only: IPV6_V6ONLY; not to be changed once bound.
        bind_device: SO_BINDTODEVICE: only packets of this interface, and out of it.
        rcvbuf, sndbuf: bytes, as getsockopt tells them (twice what setsockopt was given). Messages never wait to be
            sent, so that sndbuf is for streams alone. rcvbuf_fixed, sndbuf_fixed: a caller has chosen them, and a
            stream does not tune them.
        keepalive: SO_KEEPALIVE: a stream that says nothing is probed.
        oob_inline: SO_OOBINLINE: urgent data stays in its place in the stream.
        linger: SO_LINGER: microseconds that closing a stream waits for its peer to have everything, 0 to reset it;
            None where it was not asked for.
        ttl: IP_TTL; hop_limit: IPV6_UNICAST_HOPS; None for the stack's default.
        tos: IP_TOS; tclass: IPV6_TCLASS.
        multicast_ttl: IP_MULTICAST_TTL and IPV6_MULTICAST_HOPS.
        multicast_loop: IP_MULTICAST_LOOP, IPV6_MULTICAST_LOOP: members on this host get a copy too.
        multicast_if: IP_MULTICAST_IF, IPV6_MULTICAST_IF; None for the stack's default interface.
        multicast_source: the address of IP_MULTICAST_IF, None if it named none.
        multicast_all: IP_MULTICAST_ALL, IPV6_MULTICAST_ALL: also packets for groups that others on this host joined.
        mtu_discover: IP_MTU_DISCOVER, IPV6_MTU_DISCOVER: one of PMTUDISC_*.
        no_check: SO_NO_CHECK: UDP over IPv4 without checksum.
        recverr: IP_RECVERR, IPV6_RECVERR: every ICMP error is reported and queued, not only the fatal ones.
        recv_pktinfo, recv_ttl, recv_tos, timestamp: which ancillary data recvmsg gives; used by the system calls alone.
        hdrincl: IP_HDRINCL: what is sent starts with an IPv4 header (raw only).
        icmp_filter: ICMP_FILTER: bit n refuses ICMP type n; for ICMPv6 bits 0 to 255 of ICMP6_FILTER (raw only).
        checksum_offset: IPV6_CHECKSUM: where in the payload of a raw IPv6 packet its checksum stands; -1 for none.
    """

    reuse_addr: bool = False
    reuse_port: bool = False
    broadcast: bool = False
    v6only: bool = False
    bind_device: Interface | None = None
    rcvbuf: int = BUFFER
    sndbuf: int = BUFFER
    rcvbuf_fixed: bool = False
    sndbuf_fixed: bool = False
    keepalive: bool = False
    oob_inline: bool = False
    linger: int | None = None
    ttl: int | None = None
    hop_limit: int | None = None
    tos: int = 0
    tclass: int = 0
    multicast_ttl: int = 1
    multicast_loop: bool = True
    multicast_if: Interface | None = None
    multicast_source: int | None = None
    multicast_all: bool = True
    mtu_discover: int = PMTUDISC_WANT
    no_check: bool = False
    recverr: bool = False
    recv_pktinfo: bool = False
    recv_ttl: bool = False
    recv_tos: bool = False
    timestamp: bool = False
    hdrincl: bool = False
    icmp_filter: int = 0
    checksum_offset: int = -1


class Datagram(NamedTuple):
    """What was received.

    Attributes:
        payload: with its transport header pulled; raw IPv4 packets start at their IP header, as on Linux. It may be
            shared with other readers and is not to be written.
        src, src_port, dst, dst_port: of the headers; raw endpoints have no ports (0).
        interface: it came in here. ttl: hops that were left. tos: or traffic class.
        when: time of arrival, microseconds. flow: flow label of IPv6, else 0.
    """

    payload: PacketBuffer
    src: int
    src_port: int
    dst: int
    dst_port: int
    interface: Interface
    ttl: int
    tos: int
    when: int
    flow: int


class Endpoint(ABC):
    """One communication end: names, options, errors and states. What is abstract is the protocol's.

    Args:
        family: 4, or 6.

    Attributes:
        family: see above.
        protocol: IP protocol number.
        local: address and port (0 while unbound); an unbound end has its family's "any" address. A raw end has its
            protocol as port, an ICMP datagram end its identifier, as on Linux.
        remote: of a connected end, else None.
        error: pending errno, 0 for none; see `take_error`.
        errors: with `options.recverr`, the ICMP errors themselves, oldest first (MSG_ERRQUEUE takes from the left).
        on_ready: called after an arrival, an error, a shutdown or a close: whoever waits should look again.
        options: see `SocketOptions`.
        shut_read, shut_write: what was shut down. closed: whether `close` was called.
    """

    protocol = 0

    def __init__(self, family: int) -> None:
        self.family = family
        self.local: tuple[int, int] = (V4_ANY if family == 4 else V6_ANY, 0)
        self.remote: tuple[int, int] | None = None
        self.error = 0
        self.errors: deque[IcmpError] = deque(maxlen=64)
        self.on_ready: Callable[[], None] | None = None
        self.options = SocketOptions()
        self.shut_read = False
        self.shut_write = False
        self.closed = False

    # -- what the protocol does ----------------------------------------------------------------------------------

    @abstractmethod
    def bind(self, addr: int, port: int, interface: Interface | None = None) -> int:
        """Take a local address and port; port 0 takes a free one. `interface` is the zone of a link-local address.

        0, EINVAL (bound already, no zone), EADDRINUSE, EADDRNOTAVAIL or EBADF.
        """

    @abstractmethod
    def connect(self, addr: int, port: int, interface: Interface | None = None) -> int:
        """Fix the remote end: only its packets are received, its errors are reported, and sending needs no address.

        `interface` is the zone of a link-local address. 0, ENETUNREACH, EACCES (a broadcast address without
        `options.broadcast`), EINVAL, EAGAIN (no port free) or EBADF.
        """

    @abstractmethod
    def disconnect(self) -> int:
        """Undo `connect` (connecting to AF_UNSPEC), and the bind that it made."""

    @abstractmethod
    def close(self) -> None:
        """Give up port and all else that it has. Any later call gives EBADF; closing again does nothing."""

    @property
    @abstractmethod
    def readable(self) -> bool:
        """Whether there is something to receive, or the end of it. (An error makes poll say POLLERR, not POLLIN.)"""

    @property
    @abstractmethod
    def writable(self) -> bool:
        """Whether sending would not have to wait."""

    # -- errors and states ---------------------------------------------------------------------------------------

    def take_error(self) -> int:
        """The pending error, which is then no longer pending (SO_ERROR); 0 for none."""
        number, self.error = self.error, 0
        return number

    def fail(self, number: int, error: IcmpError | None = None) -> None:
        """Make `number` the pending error; `error` is queued where `options.recverr` asks for it."""
        if error is not None and self.options.recverr:
            self.errors.append(error)
        self.error = number
        if self.on_ready is not None:
            self.on_ready()

    def shutdown(self, how: int) -> int:
        """SHUT_RD, SHUT_WR or SHUT_RDWR; 0, EINVAL, EBADF, or ENOTCONN, which still shuts down, as on Linux."""
        if self.closed:
            return errno.EBADF
        if how not in (SHUT_RD, SHUT_WR, SHUT_RDWR):
            return errno.EINVAL
        self.shut_read = self.shut_read or how != SHUT_WR
        self.shut_write = self.shut_write or how != SHUT_RD
        if self.on_ready is not None:
            self.on_ready()
        return 0 if self.remote is not None else errno.ENOTCONN


class MessageEndpoint(Endpoint):
    """An end of messages, each with its own addresses: the receive queue, and memberships of multicast groups.

    Attributes:
        drops: packets that were for this end and not queued, since it was opened (SK_MEMINFO_DROPS).
        queued_bytes: what the queue is charged for the memory that it pins.
        groups: (group, interface) of the multicast memberships.
    """

    def __init__(self, family: int) -> None:
        super().__init__(family)
        self.drops = 0
        self.queued_bytes = 0
        self.groups: set[tuple[int, Interface]] = set()
        self._queue: deque[tuple[Datagram, int]] = deque()  # with what each is charged

    # -- what the protocol does ----------------------------------------------------------------------------------

    @abstractmethod
    def send(
        self,
        pieces: Sequence[Buffer],
        to: tuple[int, int] | None = None,
        *,
        src: int | None = None,
        interface: Interface | None = None,
        ttl: int | None = None,
        tos: int | None = None,
    ) -> int:
        """Send one datagram made of `pieces`, which are copied.

        Args:
            pieces: in order; any number, also none.
            to: address and port; None for the connected one.
            src, interface: instead of what routing and options say (IP_PKTINFO, a zone).
            ttl, tos: instead of the options'.

        Returns:
            0 or an errno; a pending error is taken and returned, and nothing sent then.
        """

    @abstractmethod
    def join(self, group: int, interface: Interface | None = None) -> int:
        """Become a member of a multicast group on `interface`; None for the one that routing says.

        0, EINVAL (no group), ENODEV (no such interface) or EADDRINUSE (member already).
        """

    @abstractmethod
    def leave(self, group: int, interface: Interface | None = None) -> int:
        """End a membership; 0, EINVAL, or EADDRNOTAVAIL where there is none."""

    # -- receiving -----------------------------------------------------------------------------------------------

    def receive(self, peek: bool = False) -> Datagram | None:
        """The oldest datagram, taken out unless `peek`; None when there is none. Pending errors are not looked at."""
        queue = self._queue
        if not queue:
            return None
        if peek:
            return queue[0][0]
        datagram, size = queue.popleft()
        self.queued_bytes -= size
        return datagram

    def deliver(self, datagram: Datagram) -> bool:
        """Queue a datagram; False where it would exceed `options.rcvbuf`: it is dropped and counted here.

        Whoever delivers calls `on_ready` once it has counted and traced: a reader may answer at once.
        """
        payload = datagram.payload
        if payload.lease is not None and payload.lease.scarce():
            payload = payload.copy()
            datagram = datagram._replace(payload=payload)
        size = OVERHEAD + payload.end
        for frag in payload.frags:
            size += VIEW_OVERHEAD + len(frag)
        if self.queued_bytes + size > self.options.rcvbuf:
            self.drops += 1
            return False
        self.queued_bytes += size
        self._queue.append((datagram, size))
        return True

    @property
    def readable(self) -> bool:
        return bool(self._queue) or self.shut_read

    @property
    def writable(self) -> bool:
        return True
