"""What the senders of rejected packets are told by the guard (guard.py).

A reset for TCP, "port unreachable" for everything else, as from a host where nobody listens (RFC 9293 §3.10.7.1,
RFC 792, RFC 4443 §3.1). Resets, broken segments and fragments of TCP are not answered, nor what ICMP never answers
(icmp_base.py). A sender on this host is still in the middle of its call, so it is told in the next `poll`.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from typing import TYPE_CHECKING

from guest.net.address import is_multicast, is_unspecified
from guest.net.checksum import checksum, sum_views
from guest.net.family import IpHeader
from guest.net.guard_rule import TCP
from guest.net.pbuf import CAST_HOST, PacketBuffer

if TYPE_CHECKING:
    from guest.net.ip import IpEngine

PENDING = 256  # packets of this host whose senders are still to be told
QUOTED = 528  # bytes of such a packet, as many as an ICMP error of 576 bytes has room for
LEAST_QUOTED = 8
# source and destination port, seq, ack, offset in words and flags, window, checksum, urgent pointer (RFC 9293 §3.1)
SEGMENT = struct.Struct("!HHIIHHHH")
SEGMENT_SIZE = 20
assert SEGMENT.size == SEGMENT_SIZE
FIN, SYN, RST, ACK = 1, 2, 4, 16
CHECKED = 1 | 2  # offload flags: the checksum is still to be made, or was found right (virtio 1.4 §5.1.9.4)


class Answers:
    """The answers of one guard.

    Args:
        counters: `tx_resets` to others, and how often a sender of this host was `told`.

    Attributes:
        sending: an answer is on its way out, which the guard lets pass.
    """

    def __init__(self, counters: Counter[str]) -> None:
        self.counters = counters
        self.sending = False
        self._pending: deque[tuple[PacketBuffer, IpHeader]] = deque()

    @property
    def pending(self) -> bool:
        """Whether senders on this host are still to be told."""
        return bool(self._pending)

    def poll(self, engine: IpEngine) -> bool:
        """Tell them; whether there were any."""
        waiting = len(self._pending)
        for _ in range(waiting):
            packet, header = self._pending.popleft()
            self.counters["told"] += 1
            if header.protocol != TCP:
                if engine.error is not None:
                    engine.error(packet, header, "refused", 0)
            elif (handler := engine.handlers.get(TCP)) is not None:
                handler(packet, header)
        return waiting > 0

    def answer(self, engine: IpEngine, packet: PacketBuffer, at: int, header: IpHeader) -> None:
        """Tell the sender of a rejected packet.

        Args:
            packet: its IP header stands at `packet.network`, unless it is this host's and has none yet.
            at: where its transport's header starts; -1 for a later fragment.
        """
        src = header.src
        if is_unspecified(src) or is_multicast(src):
            return
        own = engine.is_local(src)
        if header.protocol == TCP:
            segment = b"" if header.fragment else reset(packet, at, header, trusted=own)
            if segment and own:
                back = header._replace(src=header.dst, dst=src)
                self._tell(engine, PacketBuffer.from_bytes(segment), back)
            elif segment:
                self._send_reset(engine, segment, header)
        elif own:
            head = packet.peek(at, QUOTED) if at >= 0 else b""
            if len(head) >= LEAST_QUOTED:
                self._tell(engine, PacketBuffer.from_bytes(head), header)
        elif engine.error is not None:
            self.sending = True
            try:
                engine.error(packet, header, "port", 0)
            finally:
                self.sending = False

    def _tell(self, engine: IpEngine, packet: PacketBuffer, header: IpHeader) -> None:
        if len(self._pending) >= PENDING:
            engine.drop(packet, "tx_dropped_guard_pending")
            return
        packet.network = packet.transport = packet.data
        self._pending.append((packet, header))
        if engine.wake is not None:
            engine.wake()

    def _send_reset(self, engine: IpEngine, segment: bytes, header: IpHeader) -> None:
        """As if it came from where the rejected segment was to go, which on the way through is no own address."""
        hop = engine.hop(header.src, header.interface if header.src >> 118 == 0x3FA else None)
        if hop is None or hop.cast != CAST_HOST:
            return
        packet = PacketBuffer.from_bytes(segment)
        hop.codec.build(
            packet, src=header.dst, dst=header.src, protocol=TCP, ttl=hop.ttl, tos=0, identification=0,
            dont_fragment=True,
        )  # fmt: skip
        self.counters["tx_resets"] += 1
        engine.send_built(packet, hop.codec, hop.interface, hop.next_hop)


def reset(packet: PacketBuffer, at: int, header: IpHeader, *, trusted: bool) -> bytes:
    """The reset that answers a TCP segment (RFC 9293 §3.10.7.1); b"" where none is due.

    Args:
        packet: with the segment from `at` on.
        header: with the addresses that the segment has.
        trusted: do not look at the checksum.
    """
    segment = packet.tobytes()[at:]
    size = len(segment)
    if size < SEGMENT_SIZE:
        return b""
    source, destination, seq, ack, word, *_ = SEGMENT.unpack_from(segment)
    offset = word >> 12 << 2
    if word & RST or not SEGMENT_SIZE <= offset <= size:
        return b""
    addresses = header.src + header.dst + TCP  # of the pseudo-header; 2^16 is 1 modulo 65535
    trusted = trusted or (packet.offload is not None and packet.offload.flags & CHECKED != 0)
    if not trusted and sum_views([memoryview(segment)], (addresses + size) % 0xFFFF) != 0xFFFF:
        return b""
    if word & ACK:
        seq, ack, flags = ack, 0, RST
    else:
        after = seq + size - offset + (word & SYN != 0) + (word & FIN != 0)
        seq, ack, flags = 0, after & 0xFFFF_FFFF, RST | ACK
    answer = bytearray(SEGMENT.pack(destination, source, seq, ack, SEGMENT_SIZE // 4 << 12 | flags, 0, 0, 0))
    answer[16:18] = checksum([memoryview(answer)], (addresses + SEGMENT_SIZE) % 0xFFFF).to_bytes(2, "big")
    return bytes(answer)
