"""Which receive queue a frame goes to, and the hash that is reported with it.

Read first: virtio 1.4 §5.1.9.4.3 (hash calculation), §5.1.9.5.6 (automatic receive steering), §5.1.9.5.7 (RSS). The
hash is Toeplitz's: for each bit of the input that is set, the 32 bits of the key that begin at that bit, all XORed.

Promises:
- Automatic: a flow's frames come in where the driver last sent one of that flow; a flow that it never sent anything of
  always goes to the same queue, chosen by its addresses and ports.
- RSS: queue and hash are those that the driver's table and key say; a frame that is not hashed goes to the queue for
  such frames.
- Only queues that are in use are ever chosen.

Hash types for IPv6 extension headers are not offered; such headers are skipped (§5.1.9.4.3.4).

Sections: flows, Toeplitz, `Steering`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hw.abi import virtio_net_ctrl as ctrl
from hw.virtio.vectors import gather
from hw.wire.link import Frame, Views

HASH_TYPES = (
    ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv4
    | ctrl.VIRTIO_NET_RSS_HASH_TYPE_TCPv4
    | ctrl.VIRTIO_NET_RSS_HASH_TYPE_UDPv4
    | ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv6
    | ctrl.VIRTIO_NET_RSS_HASH_TYPE_TCPv6
    | ctrl.VIRTIO_NET_RSS_HASH_TYPE_UDPv6
)
KEY_MAX = ctrl.RSS_KEY_SIZE_MIN
TABLE_MAX = ctrl.RSS_TABLE_LENGTH_MIN

_PEEK = 256  # bytes of a frame that are looked at: headers
_FLOWS = 4096  # slots of the table of flows; two flows in one slot share it
_ETHERTYPE = 12
_TAGS = (b"\x81\x00", b"\x88\xa8")
_TCP, _UDP = 6, 17
_EXTENSIONS = (0, 43, 60)  # hop-by-hop options, routing, destination options: each says its length
_EXTENSIONS_MAX = 8


# -- flows ---------------------------------------------------------------------------------------------------------


class Flow(NamedTuple):
    """What a frame's headers say.

    Attributes:
        version: 4 or 6.
        protocol: TCP or UDP where there are ports, else 0.
        source, destination: addresses.
        ports: source and destination port, 4 bytes, or none.
    """

    version: int
    protocol: int
    source: bytes
    destination: bytes
    ports: bytes


def flow_of(head: bytes) -> Flow | None:
    """The flow of a frame that begins with `head`, or None where it is not IP or not whole.

    A fragment has no ports, not even the first one: all of a packet's fragments must go the same way.
    """
    at = _ETHERTYPE
    while head[at : at + 2] in _TAGS:
        at += 4
    kind, packet = head[at : at + 2], head[at + 2 :]
    if kind == b"\x08\x00" and len(packet) >= 20 and packet[0] >> 4 == 4:
        length = packet[0] % 16 * 4
        whole = not int.from_bytes(packet[6:8], "big") & 0x3FFF
        return _flow(4, packet[12:16], packet[16:20], packet[9] if whole else 0, packet[length:])
    if kind == b"\x86\xdd" and len(packet) >= 40 and packet[0] >> 4 == 6:
        protocol, rest = packet[6], packet[40:]
        for _ in range(_EXTENSIONS_MAX):
            if protocol not in _EXTENSIONS or len(rest) < 2:
                break
            protocol, rest = rest[0], rest[8 + 8 * rest[1] :]
        return _flow(6, packet[8:24], packet[24:40], protocol, rest)
    return None


def _flow(version: int, source: bytes, destination: bytes, protocol: int, segment: bytes) -> Flow:
    if protocol not in (_TCP, _UDP) or len(segment) < 4:
        return Flow(version, 0, source, destination, b"")
    return Flow(version, protocol, source, destination, segment[:4])


def _either_way(flow: Flow) -> int:
    """A number that is the same for both directions of a flow."""
    ends = sorted((flow.source + flow.ports[:2], flow.destination + flow.ports[2:]))
    return zlib.crc32(ends[0] + ends[1] + bytes((flow.protocol,)))


# -- Toeplitz ------------------------------------------------------------------------------------------------------


class Toeplitz:
    """The hash under one key, up to 40 bytes, which is as if zeros followed it."""

    def __init__(self, key: bytes) -> None:
        bits = int.from_bytes(key.ljust(KEY_MAX, b"\0"), "big")
        width = 8 * KEY_MAX
        # By position and value of an input byte, what it contributes: one lookup for each byte instead of eight shifts.
        self._tables: list[list[int]] = []
        for at in range(KEY_MAX - 4):
            windows = [bits >> width - 32 - 8 * at - bit & 0xFFFFFFFF for bit in range(8)]
            table = [0] * 256
            for value in range(1, 256):
                low = value & -value
                table[value] = table[value ^ low] ^ windows[8 - low.bit_length()]
            self._tables.append(table)

    def __call__(self, content: bytes) -> int:
        """The hash of up to 36 bytes: two addresses of IPv6 and two ports."""
        found = 0
        for table, byte in zip(self._tables, content, strict=False):
            found ^= table[byte]
        return found


# By version and protocol: the hash types that apply, the first that is enabled counts (§5.1.9.4.3.2, §5.1.9.4.3.3).
_TYPES = {
    (4, _TCP): (ctrl.VIRTIO_NET_RSS_HASH_TYPE_TCPv4, ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv4),
    (4, _UDP): (ctrl.VIRTIO_NET_RSS_HASH_TYPE_UDPv4, ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv4),
    (4, 0): (ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv4,),
    (6, _TCP): (ctrl.VIRTIO_NET_RSS_HASH_TYPE_TCPv6, ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv6),
    (6, _UDP): (ctrl.VIRTIO_NET_RSS_HASH_TYPE_UDPv6, ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv6),
    (6, 0): (ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv6,),
}
_ADDRESSES_ONLY = (ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv4, ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv6)
NOT_HASHED = (0, ctrl.VIRTIO_NET_HASH_REPORT_NONE)


class Rss(NamedTuple):
    """Receive-side scaling as the driver configured it: pairs by hash, and for what is not hashed."""

    table: tuple[int, ...]
    unclassified: int


# -- choice --------------------------------------------------------------------------------------------------------


class Steering:
    """How one card spreads frames.

    Attributes:
        pairs: how many queue pairs are in use, from 1.
        rss: the table, or None while steering is automatic.
        hash_types: those that are hashed.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """One pair, no hash."""
        self.pairs = 1
        self.rss: Rss | None = None
        self.hash_types = 0
        self._hash: Callable[[bytes], int] | None = None
        self._sent_on = bytearray(_FLOWS)  # by flow: 1 + the pair that the driver last used, or 0

    @property
    def looks(self) -> bool:
        """Whether a frame's headers decide where it goes."""
        return self.pairs > 1 or self.rss is not None

    def use_pairs(self, pairs: int) -> None:
        """Steer automatically over the first `pairs` (§5.1.9.5.6)."""
        self.pairs = pairs
        self.rss = None
        self._sent_on = bytearray(_FLOWS)

    def use_rss(self, rss: Rss, pairs: int) -> None:
        """Steer by a table, with `pairs` transmit queues or fewer in use (§5.1.9.5.7)."""
        self.rss = rss
        self.pairs = pairs

    def use_hash(self, types: int, key: bytes) -> None:
        """Hash frames of `types` under `key`; without types nothing is hashed."""
        self.hash_types = types
        self._hash = Toeplitz(key) if types else None

    def hash_of(self, head: bytes) -> tuple[int, int]:
        """Hash and report type of a frame that begins with `head`; `NOT_HASHED` where it is not hashed."""
        flow = flow_of(head) if self._hash is not None else None
        if flow is None or self._hash is None:
            return NOT_HASHED
        for kind in _TYPES[flow.version, flow.protocol]:
            if self.hash_types & kind:
                content = flow.source + flow.destination
                if kind not in _ADDRESSES_ONLY:
                    content += flow.ports
                return self._hash(content), kind.bit_length()
        return NOT_HASHED

    def pair_of(self, head: bytes, hashed: tuple[int, int]) -> int:
        """The pair, from 0, whose receive queue takes a frame that begins with `head`; `hashed` is its `hash_of`."""
        rss = self.rss
        if rss is not None:
            if hashed == NOT_HASHED:
                return rss.unclassified
            return rss.table[hashed[0] & len(rss.table) - 1]
        flow = flow_of(head)
        if flow is None:
            return 0
        number = _either_way(flow)
        sent_on = self._sent_on[number % _FLOWS]
        return sent_on - 1 if 0 < sent_on <= self.pairs else number % self.pairs

    def learn(self, pair: int, frames: Sequence[Frame]) -> None:
        """The driver sent `frames` on transmit queue `pair`."""
        if self.pairs == 1 or self.rss is not None:
            return
        for _, views in frames:
            flow = flow_of(peek(views))
            if flow is not None:
                self._sent_on[_either_way(flow) % _FLOWS] = pair + 1


def peek(views: Views) -> bytes:
    """The beginning of a frame, as much of it as decides where it goes."""
    first = views[0]
    return bytes(first[:_PEEK]) if len(first) >= _PEEK or len(views) == 1 else gather(views, _PEEK)
