"""TCP of one stack: whose a segment is, and how one leaves. RFC 9293 over both families.

Promises:
- Every segment that comes in is handed to a connection, a listening end or a connection in TIME-WAIT, answered with a
  reset, or counted under one `rx_dropped_…`. Nothing is ever answered to a reset, a broadcast or a group.
- Whose it is costs one look-up, however many connections there are; their timers cost O(log n) where they change.
- A batch of segments is answered at its end: one acknowledgement and one wake-up for each connection that it touched.
- Payload is not copied on its way in or out; buffers.py has the two copies.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from guest.net.checksum import inet_sum, sum_views
from guest.net.config import NetConfig
from guest.net.device import UNLIMITED
from guest.net.family import IpHeader, IpInterface
from guest.net.icmp_errno import meaning
from guest.net.ip import IpEngine
from guest.net.layer import Layer
from guest.net.pbuf import CAST_HOST, HEADROOM, Offload, PacketBuffer
from guest.net.tcp.connection import Connection
from guest.net.tcp.endpoint import PROTOCOL, TcpEndpoint
from guest.net.tcp.listener import Request
from guest.net.tcp.ports import TcpPorts
from guest.net.tcp.secrets import Secrets
from guest.net.tcp.segment import (
    ACK,
    FIN,
    HEADER,
    HEADER_SIZE,
    MASK,
    RST,
    SYN,
    flag_names,
    parse_options,
    unwrap,
)
from guest.net.tcp.state import Event, State
from guest.net.tcp.tcb import Ends, Segment, Tcb
from guest.net.tcp.timers import TimerQueue
from guest.net.tcp.timewait import TimeWait, WaitLine
from hw.abi.virtio_net import VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM
from hw.abi.virtio_net import VIRTIO_NET_HDR_GSO_TCPV4 as GSO_TCPV4
from hw.abi.virtio_net import VIRTIO_NET_HDR_GSO_TCPV6 as GSO_TCPV6

if TYPE_CHECKING:
    from guest.net.icmp_error import IcmpError

Entry: TypeAlias = Connection | Request | TimeWait

SUMMED = VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID  # the device vouches for the sum
CHECKSUM_AT = 16  # in the header
CE = 3  # ECN field of a packet that met congestion (RFC 3168 §5)
ECT = 2
V4_HEADERS = 40  # IP and TCP, without options
V6_HEADERS = 60
QUOTED = struct.Struct("!HHI")
ONE_SECOND = 1_000_000


class Tcp(Layer):
    """TCP of one stack.

    Args:
        ip: the engine below.
        now: the time.
        rng: source of the keys from which sequence numbers and ports follow.
        net: limits and times; `net.tcp` are TCP's own.

    Attributes:
        config: `net.tcp`.
        entries: connections, half-open ones and those in TIME-WAIT, by their ends.
        ports: who has which port.
        waits: connections in TIME-WAIT.
        secrets: sequence numbers that cannot be foreseen.
        unclaimed: asked about a SYN that is for no end: whether it takes it. For proxies, who may let a `Listener` of
            theirs answer it later. Arguments as of `Listener.arrives`, with the IP header in place of the interface.
    """

    def __init__(self, ip: IpEngine, *, now: Callable[[], int], rng: random.Random, net: NetConfig) -> None:
        super().__init__("tcp")
        self.ip = ip
        self.net = net
        self.config = net.tcp
        self.now = now
        self.secrets = Secrets(rng)
        self.entries: dict[Ends, Entry] = {}
        self.waits = WaitLine()
        self.ports = TcpPorts(self.secrets, self.waits, net.first_port, net.last_port)
        self._timers = TimerQueue()
        self._touched: dict[Connection, None] = {}
        self._stalled: dict[IpInterface, dict[Connection, None]] = {}  # those that wait for an interface
        self._challenges = 0
        self._challenge_second = -1
        self.unclaimed: Callable[[Ends, Segment, IpHeader, int, int | None], bool] | None = None
        ip.handlers[PROTOCOL] = self.input
        ip.batch_done = self._batch_done

    def open(self, family: int) -> TcpEndpoint:
        """A new end of family 4 or 6."""
        return TcpEndpoint(self, family)

    @property
    def ends(self) -> Iterator[TcpEndpoint]:
        """All ends that have a port, by port."""
        return iter(self.ports)

    @property
    def connections(self) -> Iterator[Connection]:
        """All connections, those that nobody holds any more included."""
        return (entry for entry in list(self.entries.values()) if isinstance(entry, Connection))

    @property
    def half_open(self) -> int:
        """Connections that have sent SYN,ACK and wait."""
        return sum(isinstance(entry, Request) for entry in self.entries.values())

    @property
    def time_waits(self) -> int:
        """How many connections are in TIME-WAIT."""
        return len(self.waits)

    # -- input ---------------------------------------------------------------------------------------------------

    def input(self, packet: PacketBuffer, header: IpHeader) -> None:
        """A packet of IP's: an `IpEngine` handler."""
        counters = self.counters
        counters["rx_segments"] += 1
        if packet.tail - packet.data < HEADER_SIZE and not packet.pullup(HEADER_SIZE):
            self.drop(packet, "rx_dropped_short")
            return
        src_port, dst_port, seq, ack, word, window, _, urgent = HEADER.unpack_from(packet.area, packet.data)
        size = word >> 12 << 2
        length = len(packet) - size
        if size < HEADER_SIZE or length < 0 or not packet.pullup(size):
            self.drop(packet, "rx_dropped_header_length")
            return
        src, dst = header.src, header.dst
        offload = packet.offload
        if offload is None or not offload.flags & SUMMED:
            if packet.frags:
                total = sum_views(packet.views())
            else:
                total = inet_sum(packet.area[packet.data : packet.tail])
            # 2^16 is 1 modulo 65535, so whole addresses may be added, of either family.
            if (total + src + dst + PROTOCOL + size + length) % 0xFFFF:
                self.drop(packet, "rx_dropped_checksum")
                return
        if packet.cast != CAST_HOST:
            self.drop(packet, "rx_dropped_cast")
            return
        flags = word & 0xFF
        at = packet.data + HEADER_SIZE
        options = parse_options(packet.area, at, at + size - HEADER_SIZE)
        packet.data += size
        segment = Segment(seq, ack, flags, window, urgent, options, packet, length, header.tos & 3 == CE)
        if self.trace is not None:
            self.trace(self.stage, packet, f"{src_port} > {dst_port} {flag_names(flags)} {length} bytes")
        ends = (dst, dst_port, src, src_port)
        entry = self.entries.get(ends)
        if isinstance(entry, Connection):
            self._touched[entry] = None
            entry.arrives(segment, self.now())
        else:
            self._other(entry, ends, segment, header)

    def _other(self, entry: Entry | None, ends: Ends, segment: Segment, header: IpHeader) -> None:
        """A segment that belongs to no connection yet, or no longer."""
        now = self.now()
        above = None
        interface = header.interface if ends[2] >> 118 == 0x3FA else None  # a link-local peer
        if isinstance(entry, Request):
            entry.arrives(segment, now)
            return
        if isinstance(entry, TimeWait):
            if not entry.arrives(segment, now):
                return
            above = entry.snd_nxt + 0x1_0001  # beyond any window of the old one (RFC 9293 §3.6.1, RFC 6191)
            self._drop_wait(entry)
        end = self.ports.listening.find(ends[2], ends[3], ends[0], ends[1], header.interface)
        if end is not None and end.listener is not None:
            end.listener.arrives(ends, segment, interface, now, above)
            return
        if self.unclaimed is not None and segment.flags & (SYN | ACK | RST) == SYN:
            if self.unclaimed(ends, segment, header, now, above):
                self.counters["rx_diverted"] += 1
                return
        self.drop(segment.packet, "rx_dropped_no_port")
        self.reset(ends, segment, interface)

    def _batch_done(self) -> None:
        """The packets of a batch are all in: answer them."""
        while self._touched:
            touched, self._touched = self._touched, {}
            now = self.now()
            for connection in touched:
                connection.flush(now)

    def touched(self, connection: Connection) -> None:
        """Flush a connection at the end of this batch."""
        self._touched[connection] = None

    def icmp_error(self, error: IcmpError) -> bool:
        """Whether an ICMP error was about a segment that is on its way; then its connection was told."""
        if len(error.quoted) < QUOTED.size:
            return False
        src_port, dst_port, seq = QUOTED.unpack_from(error.quoted)
        connection = self.entries.get((error.src, src_port, error.dst, dst_port))
        if not isinstance(connection, Connection):
            return False
        at = unwrap(connection.snd_una, seq)
        if not connection.snd_una <= at < connection.snd_nxt:  # RFC 5927 §4.1
            self.counters["rx_icmp_ignored"] += 1
            return False
        now = self.now()
        if error.too_big:
            if self.ip.packet_too_big(error.dst, error.mtu):
                connection.path_narrowed(now)
        else:
            connection.unreachable(meaning(error)[0], now)
        connection.flush(now)
        return True

    # -- output --------------------------------------------------------------------------------------------------

    def emit(
        self, tcb: Tcb, seq: int, flags: int, window: int, urgent: int, options: bytes,
        views: Sequence[memoryview], length: int, ect: bool,
    ) -> None:  # fmt: skip
        """Send a segment of a connection."""
        size = HEADER_SIZE + len(options)
        ack = tcb.rcv_nxt & MASK if flags & ACK else 0
        word = size << 10 | flags
        seq &= MASK
        area = memoryview(bytearray(HEADROOM + size))
        _, src_port, dst, dst_port = ends = tcb.ends
        packet = PacketBuffer(area, HEADROOM, None, list(views))
        total = tcb.pseudo + size + length
        if length > tcb.mss and flags & SYN == 0:
            # Of the pseudo-header alone: the interface completes it, for each segment that it makes of this packet.
            check = (total - src_port - dst_port) % 0xFFFF
            packet.offload = self._segmentation(tcb, size)
        else:
            total += seq + ack + word + window + urgent
            if options:
                total += int.from_bytes(options, "big")
            if length:
                total += inet_sum(views[0]) if len(views) == 1 else sum_views(views)
            check = -total % 0xFFFF
        HEADER.pack_into(area, HEADROOM, src_port, dst_port, seq, ack, word, window, check, urgent)
        if options:
            area[HEADROOM + HEADER_SIZE :] = options
        self.counters["tx_segments"] += 1
        if self.trace is not None:
            self.trace(self.stage, packet, f"{src_port} > {dst_port} {flag_names(flags)} {length} bytes")
        choices = tcb.holder.options
        tos = choices.tos if tcb.v4 else choices.tclass
        failed = self.ip.output(
            packet,
            dst,
            PROTOCOL,
            src=ends[0],
            ttl=choices.ttl if tcb.v4 else choices.hop_limit,
            tos=tos & ~3 | ECT if ect else tos,
            interface=tcb.interface,
        )
        if failed:
            self.counters["tx_failed"] += 1

    def _segmentation(self, tcb: Tcb, size: int) -> Offload:
        """What an interface must know to cut a packet into segments (virtio 1.4 §5.1.9.2)."""
        hop = self.ip.hop(tcb.ends[2], tcb.interface)
        start = (0 if hop is None or hop.interface.bare else 14) + (20 if tcb.v4 else 40)
        kind = GSO_TCPV4 if tcb.v4 else GSO_TCPV6
        return Offload(VIRTIO_NET_HDR_F_NEEDS_CSUM, kind, start + size, tcb.mss, start, CHECKSUM_AT)

    def reply(
        self, ends: Ends, seq: int, ack: int, flags: int, window: int, options: bytes, interface: IpInterface | None
    ) -> None:
        """Send a segment without payload that belongs to no connection."""
        local, src_port, dst, dst_port = ends
        size = HEADER_SIZE + len(options)
        area = memoryview(bytearray(HEADROOM + size))
        ack = ack & MASK if flags & ACK else 0
        seq &= MASK
        word = size << 10 | flags
        total = local + dst + PROTOCOL + size + src_port + dst_port + seq + ack + word + window
        check = -(total + int.from_bytes(options, "big")) % 0xFFFF
        HEADER.pack_into(area, HEADROOM, src_port, dst_port, seq, ack, word, window, check, 0)
        area[HEADROOM + HEADER_SIZE :] = options
        packet = PacketBuffer(area, HEADROOM)
        self.counters["tx_segments"] += 1
        if self.trace is not None:
            self.trace(self.stage, packet, f"{src_port} > {dst_port} {flag_names(flags)} 0 bytes")
        if self.ip.output(packet, dst, PROTOCOL, src=local, interface=interface):
            self.counters["tx_failed"] += 1

    def reset(self, ends: Ends, segment: Segment, interface: IpInterface | None) -> None:
        """Answer a segment that nobody wants (RFC 9293 §3.5.2); never a reset."""
        flags = segment.flags
        if flags & RST:
            return
        self.counters["tx_resets"] += 1
        if flags & ACK:
            self.reply(ends, segment.ack, 0, RST, 0, b"", interface)
        else:
            taken = segment.length + bool(flags & SYN) + bool(flags & FIN)
            self.reply(ends, 0, segment.seq + taken, RST | ACK, 0, b"", interface)

    # -- what connections ask for --------------------------------------------------------------------------------

    def room(self, tcb: Tcb) -> int:
        """Bytes of options and payload that one packet of a connection takes."""
        return self.room_of(tcb.ends, tcb.interface)

    def room_of(self, ends: Ends, interface: IpInterface | None) -> int:
        """The same towards a peer."""
        hop = self.ip.hop(ends[2], interface)
        headers = V4_HEADERS if ends[2] >> 32 == 0xFFFF else V6_HEADERS
        mtu = 576 if hop is None else min(hop.mtu, 0xFFFF if headers == V4_HEADERS else 0xFFFF + 40)
        return max(mtu - headers, 28)

    def burst(self, tcb: Tcb) -> int:
        """Bytes of payload and options of the largest packet that the interface cuts itself; 0 where it does not."""
        hop = self.ip.hop(tcb.ends[2], tcb.interface)
        if hop is None:
            return 0
        most = hop.interface.gso_max_size if tcb.v4 else hop.interface.gso_max_size6
        return most - (V4_HEADERS if tcb.v4 else V6_HEADERS) if most else 0

    def tx_room(self, tcb: Tcb) -> int:
        """How many packets the interface takes now."""
        hop = self.ip.hop(tcb.ends[2], tcb.interface)
        return UNLIMITED if hop is None else hop.interface.room()

    def hold(self, tcb: Tcb) -> IpInterface | None:
        """Let what is sent from now on leave in one batch, with the `release` of the interface."""
        hop = self.ip.hop(tcb.ends[2], tcb.interface)
        if hop is None:
            return None
        hop.interface.hold()
        return hop.interface

    def wait_for_room(self, tcb: Tcb) -> None:
        """Flush a connection, and all others that wait for the same, once its interface has room."""
        hop = self.ip.hop(tcb.ends[2], tcb.interface)
        if hop is None or not isinstance(tcb, Connection):
            return
        interface = hop.interface
        waiting = self._stalled.setdefault(interface, {})
        self.counters["tx_stalls"] += 1
        waiting[tcb] = None
        if len(waiting) == 1:
            interface.when_room(lambda: self._room_again(interface))

    def _room_again(self, interface: IpInterface) -> None:
        now = self.now()
        interface.hold()
        try:
            for connection in self._stalled.pop(interface, {}):
                connection.flush(now)
        finally:
            interface.release()

    def arm(self, tcb: Tcb) -> None:
        """A connection's deadline has changed."""
        self._timers.arm(tcb)  # type: ignore[arg-type]  # every Tcb is a Connection

    def arm_request(self, request: Request) -> None:
        """A request's deadline has changed."""
        self._timers.arm(request)

    def disarm_request(self, request: Request) -> None:
        """A request is over."""
        self._timers.forget(request)

    def challenge(self, now: int) -> bool:
        """Whether one more challenge ACK may be sent in this second (RFC 5961 §7)."""
        second = now // ONE_SECOND
        if second != self._challenge_second:
            self._challenge_second = second
            self._challenges = 0
        self._challenges += 1
        return self._challenges <= self.config.challenge_rate

    def connect(self, end: TcpEndpoint, ends: Ends, interface: IpInterface | None) -> Connection:
        """Open a connection between `ends`, which are free."""
        now = self.now()
        iss, offset = self.secrets.sequence(ends, now)
        old = self.entries.get(ends)
        if isinstance(old, TimeWait):
            iss = old.snd_nxt + 0x1_0001 & MASK
            self._drop_wait(old)
        connection = Connection(self, ends, iss, offset, now)
        end.attach(connection, interface)
        self.entries[ends] = connection
        self.counters["opened"] += 1
        connection.open(now)
        connection.flush(now)
        return connection

    def free(self, ends: Ends) -> bool:
        """Whether a connection between `ends` may be opened."""
        entry = self.entries.get(ends)
        return entry is None or (isinstance(entry, TimeWait) and entry.reusable(self.now()))

    def gone(self, tcb: Tcb) -> None:
        """A connection has ended."""
        if self.entries.get(tcb.ends) is tcb:
            del self.entries[tcb.ends]
        self._timers.forget(tcb)  # type: ignore[arg-type]  # every Tcb is a Connection
        if tcb.holder.closed:
            self.ports.release(tcb.holder)
        self.counters["closed"] += 1

    def wait(self, tcb: Tcb, now: int) -> None:
        """A connection is in TIME-WAIT."""
        if len(self.waits) >= self.config.time_waits:
            oldest = self.waits.oldest()
            if oldest is not None:
                self._drop_wait(oldest)
                self.counters["time_wait_overflow"] += 1
        self._timers.forget(tcb)  # type: ignore[arg-type]  # every Tcb is a Connection
        wait = TimeWait(self, tcb, tcb.holder.options.reuse_addr, now)
        self.entries[tcb.ends] = wait
        self.waits.add(wait)
        self.ports.waits(tcb.ends[1], 1)
        if tcb.holder.closed:
            self.ports.release(tcb.holder)
        self.counters["closed"] += 1

    def _drop_wait(self, wait: TimeWait) -> None:
        if self.entries.get(wait.ends) is wait:
            del self.entries[wait.ends]
        self.waits.discard(wait)
        self.ports.waits(wait.ends[1], -1)
        connection = wait.connection
        if connection is not None and connection.end is not None:
            connection.event(Event.TIMEOUT)
            connection.end.changed()

    # -- time ----------------------------------------------------------------------------------------------------

    def poll(self, now: int) -> bool:
        """Do what is due; whether anything was."""
        worked = self._timers.run_due(now)
        while (wait := self.waits.oldest()) is not None and wait.expires <= now:
            self._drop_wait(wait)
            worked = True
        if self._touched:
            self._batch_done()
        return worked

    def poll_at(self) -> int | None:
        """When `poll` is due, or None."""
        due = self._timers.next_deadline()
        wait = self.waits.oldest()
        if wait is not None and (due is None or wait.expires < due):
            return wait.expires
        return due

    # -- inspection ----------------------------------------------------------------------------------------------

    def states(self) -> dict[State, int]:
        """How many there are in each state."""
        found: dict[State, int] = {}
        listening = (State.LISTEN for end in self.ports if end.listening)
        others = (
            entry.state if isinstance(entry, Connection) else State.TIME_WAIT if isinstance(entry, TimeWait) else
            State.SYN_RECEIVED for entry in self.entries.values()
        )  # fmt: skip
        for state in chain(listening, others):
            found[state] = found.get(state, 0) + 1
        return found
