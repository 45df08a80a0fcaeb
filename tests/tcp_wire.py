"""TCP segments as the tests write and read them: in IP packets, made and taken apart by code of the tests' own.

Reading is strict: a wrong checksum, length or option that the stack under test sends is an AssertionError.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from ipaddress import ip_address

LETTERS = "FSRP.UEW"  # bits 0 to 7 of the flags; "." is ACK, E and W are ECE and CWR (RFC 3168)
ECN = ("", "ECT1", "ECT0", "CE")
WRAP = 1 << 32


def bits(flags: str) -> int:
    """Flags as a number. "S." is SYN and ACK."""
    assert set(flags) <= set(LETTERS), flags
    return sum(1 << LETTERS.index(letter) for letter in set(flags))


def letters(number: int) -> str:
    """Flags as tcpdump writes them."""
    return "".join(letter for letter in "SFRPUEW." if number & bits(letter)) or "none"


def checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@dataclass(frozen=True)
class Segment:
    """One segment. Numbers are as on the wire, or relative to the initial ones where a `Peer` shows it.

    Attributes:
        mss, ws, sack_ok, ts, sack: options; None, False or empty where they are not there.
        raw_options: instead of them, as they are.
        ecn: "", "ECT0", "ECT1" or "CE" in the IP header. df: "don't fragment". ttl: or hop limit.
        time: when it was sent, microseconds.
        packet: the whole IP packet.
    """

    flags: str
    seq: int = 0
    ack: int = 0
    win: int = 65535
    data: bytes = b""
    urg: int = 0
    mss: int | None = None
    ws: int | None = None
    sack_ok: bool = False
    ts: tuple[int, int] | None = None
    sack: tuple[tuple[int, int], ...] = ()
    raw_options: bytes | None = None
    src: str = ""
    dst: str = ""
    sport: int = 0
    dport: int = 0
    ecn: str = ""
    ttl: int = 64
    df: bool = True
    time: int = 0
    packet: bytes = b""

    @property
    def end(self) -> int:
        """The sequence number behind it; SYN and FIN take one each."""
        return self.seq + len(self.data) + ("S" in self.flags) + ("F" in self.flags)

    def __str__(self) -> str:
        words = [f"{self.time / 1e6:.6f} [{self.flags}] seq {self.seq}"]
        if self.data:
            words[0] += f":{self.seq + len(self.data)}"
        if "." in self.flags:
            words.append(f"ack {self.ack}")
        words.append(f"win {self.win}")
        if self.urg or "U" in self.flags:
            words.append(f"urg {self.urg}")
        words += [f"{name} {value}" for name, value in (("mss", self.mss), ("ws", self.ws)) if value is not None]
        if self.sack_ok:
            words.append("sackOK")
        if self.ts is not None:
            words.append(f"ts {self.ts[0]}/{self.ts[1]}")
        words += [f"sack {left}:{right}" for left, right in self.sack]
        if self.ecn:
            words.append(self.ecn)
        if self.data:
            words.append(f"length {len(self.data)}")
        return ", ".join(words)


def options(segment: Segment) -> bytes:
    """The options of a segment, each padded to whole words by itself."""
    if segment.raw_options is not None:
        return segment.raw_options
    out = b""
    if segment.mss is not None:
        out += struct.pack("!BBH", 2, 4, segment.mss)
    if segment.ws is not None:
        out += struct.pack("!BBBB", 1, 3, 3, segment.ws)
    if segment.sack_ok:
        out += b"\1\1\4\2"
    if segment.ts is not None:
        out += struct.pack("!BBBBII", 1, 1, 8, 10, segment.ts[0] % WRAP, segment.ts[1] % WRAP)
    if segment.sack:
        edges = [edge % WRAP for block in segment.sack for edge in block]
        out += struct.pack(f"!BBBB{len(edges)}I", 1, 1, 5, 2 + 4 * len(edges), *edges)
    return out


def pseudo(src: bytes, dst: bytes, size: int) -> bytes:
    """The pseudo-header of either family."""
    return src + dst + (struct.pack("!BBH", 0, 6, size) if len(src) == 4 else struct.pack("!II", size, 6))


def build(segment: Segment, *, spoil: bool = False, offset: int | None = None) -> bytes:
    """The segment in an IP packet.

    Args:
        spoil: make its checksum wrong. offset: the data offset in words, instead of the right one.
    """
    src, dst = ip_address(segment.src).packed, ip_address(segment.dst).packed
    extra = options(segment)
    extra += b"\0" * (-len(extra) % 4)
    words = 5 + len(extra) // 4 if offset is None else offset
    head = struct.pack(
        "!HHIIHHHH",
        segment.sport, segment.dport, segment.seq % WRAP, segment.ack % WRAP, words << 12 | bits(segment.flags),
        segment.win, 0, segment.urg,
    )  # fmt: skip
    body = head + extra + segment.data
    check = checksum(pseudo(src, dst, len(body)) + body)
    body = body[:16] + struct.pack("!H", check ^ (0x5555 if spoil else 0)) + body[18:]
    return ip_packet(src, dst, 6, body, segment)


def ip_packet(src: bytes, dst: bytes, protocol: int, body: bytes, fields: Segment | None = None) -> bytes:
    """`body` behind an IP header of the addresses' family; `fields` has its ecn, ttl and df."""
    fields = fields or Segment("")
    ecn = ECN.index(fields.ecn)
    if len(src) == 16:
        return struct.pack("!IHBB", 6 << 28 | ecn << 20, len(body), protocol, fields.ttl) + src + dst + body
    flags = 0x4000 if fields.df else 0
    head = struct.pack("!BBHHHBBH", 0x45, ecn, 20 + len(body), 1, flags, fields.ttl, protocol, 0) + src + dst
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def protocol_of(packet: bytes) -> int:
    """The protocol of an IP packet, or the first header behind IPv6's."""
    return packet[9] if packet[0] >> 4 == 4 else packet[6]


def parse(packet: bytes, time: int = 0) -> Segment:
    """What the stack sent, checked."""
    if packet[0] >> 4 == 4:
        assert packet[0] == 0x45, "an IPv4 header without options"
        assert checksum(packet[:20]) == 0, "IPv4 header checksum"
        assert int.from_bytes(packet[2:4], "big") == len(packet), "IPv4 total length"
        assert not int.from_bytes(packet[6:8], "big") & 0x3FFF, "a fragment: the segment was larger than the link takes"
        src, dst, body = packet[12:16], packet[16:20], packet[20:]
        ecn, ttl, df = packet[1] & 3, packet[8], bool(packet[6] & 0x40)
    else:
        assert int.from_bytes(packet[4:6], "big") == len(packet) - 40, "IPv6 payload length"
        src, dst, body = packet[8:24], packet[24:40], packet[40:]
        ecn, ttl, df = packet[1] >> 4 & 3, packet[7], True
    assert protocol_of(packet) == 6, "not TCP"
    assert checksum(pseudo(src, dst, len(body)) + body) == 0, "TCP checksum"
    assert body[16:18] != b"\xff\xff", "the other way to write a checksum of zero, which no host writes"
    sport, dport, seq, ack, word, win, _, urg = struct.unpack_from("!HHIIHHHH", body)
    assert word & 0x0F00 == 0, "reserved bits"
    size = word >> 12 << 2
    assert 20 <= size <= len(body), "data offset"
    segment = Segment(
        letters(word & 0xFF), seq, ack, win, body[size:], urg, src=str(ip_address(src)), dst=str(ip_address(dst)),
        sport=sport, dport=dport, ecn=ECN[ecn], ttl=ttl, df=df, time=time, packet=packet,
    )  # fmt: skip
    return replace(segment, **read_options(body[20:size]))  # type: ignore[arg-type]


def read_options(raw: bytes) -> dict[str, object]:
    """The options as fields of `Segment`; each at most once, with the right length, and none unknown."""
    found: dict[str, object] = {}
    at = 0
    while at < len(raw):
        kind = raw[at]
        if kind == 0:
            assert not any(raw[at:]), "padding behind the end of options"
            break
        if kind == 1:
            at += 1
            continue
        size = raw[at + 1]
        value = raw[at + 2 : at + size]
        assert size == len(value) + 2, "an option goes past the end"
        name, wanted = {2: ("mss", 4), 3: ("ws", 3), 4: ("sack_ok", 2), 5: ("sack", size), 8: ("ts", 10)}[kind]
        assert size == wanted, f"length of {name}"
        assert name not in found, f"{name} twice"
        if kind == 5:
            edges = struct.unpack(f"!{len(value) // 4}I", value)
            found[name] = tuple(zip(edges[::2], edges[1::2], strict=True))
        elif kind == 8:
            found[name] = struct.unpack("!II", value)
        else:
            found[name] = True if kind == 4 else int.from_bytes(value, "big")
        at += size
    return found
