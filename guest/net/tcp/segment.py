"""A TCP segment on the wire: RFC 9293 §3.1, RFC 7323 §2.2 and §3.2, RFC 2018 §2 and §3.

Sequence numbers are 32 bits on the wire and count without end in this stack: `unwrap` gives the number that a wire
value means near another one, `& MASK` takes it back. These two are the only places where they wrap; everything between
compares plain integers.

Options are read to the end or to the first that cannot be walked (RFC 9293 §3.2); one whose length is not its kind's is
passed over. Values are as they came; what is believed of them is decided where they are used.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

FIN = 0x01
SYN = 0x02
RST = 0x04
PSH = 0x08
ACK = 0x10
URG = 0x20
ECE = 0x40
CWR = 0x80

MASK = 0xFFFF_FFFF
HALF = 0x8000_0000

# source port, destination port, sequence number, acknowledgement, data offset and flags, window, checksum, urgent
HEADER = struct.Struct("!HHIIHHHH")
HEADER_SIZE = 20
assert HEADER.size == HEADER_SIZE
# The same with the timestamp option behind two bytes of padding, as most segments have it (RFC 7323 appendix A).
HEADER_TS = struct.Struct("!HHIIHHHHIII")
HEADER_TS_SIZE = 32
assert HEADER_TS.size == HEADER_TS_SIZE
TIMESTAMPS = struct.Struct("!III")
TS_WORD = 0x0101_080A  # two NOPs, kind, length

OPTION_END = 0
OPTION_NOP = 1
OPTION_MSS = 2
OPTION_WINDOW_SCALE = 3
OPTION_SACK_PERMITTED = 4
OPTION_SACK = 5
OPTION_TIMESTAMPS = 8
MAX_SCALE = 14  # RFC 7323 §2.3
MAX_OPTIONS = 40


def unwrap(near: int, wire: int) -> int:
    """The number that is `wire` modulo 2^32 and lies within 2^31 of `near`."""
    return near + ((wire - near + HALF) & MASK) - HALF


class Options(NamedTuple):
    """The options of a segment; None, or False, for one that is not there.

    Attributes:
        mss: bytes. scale: shift of the window; more than 14 counts as 14.
        sack_permitted: of a SYN. sacks: (left, right) wire numbers of each block.
        ts_val, ts_ecr: timestamps.
    """

    mss: int | None = None
    scale: int | None = None
    sack_permitted: bool = False
    ts_val: int | None = None
    ts_ecr: int = 0
    sacks: tuple[tuple[int, int], ...] = ()


NO_OPTIONS = Options()


def parse_options(area: memoryview, at: int, end: int) -> Options:
    """The options that stand in `area` from `at` to `end`."""
    if at == end:
        return NO_OPTIONS
    if end - at == 12:
        word, ts_val, ts_ecr = TIMESTAMPS.unpack_from(area, at)
        if word == TS_WORD:
            return Options(None, None, False, ts_val, ts_ecr)
    mss = scale = ts_val = None
    permitted = False
    ts_ecr = 0
    sacks: tuple[tuple[int, int], ...] = ()
    while at < end:
        kind = area[at]
        if kind == OPTION_END:
            break
        if kind == OPTION_NOP:
            at += 1
            continue
        size = area[at + 1] if at + 1 < end else 0
        if size < 2 or at + size > end:
            break
        if kind == OPTION_MSS and size == 4:
            mss = area[at + 2] << 8 | area[at + 3]
        elif kind == OPTION_WINDOW_SCALE and size == 3:
            scale = min(area[at + 2], MAX_SCALE)
        elif kind == OPTION_SACK_PERMITTED and size == 2:
            permitted = True
        elif kind == OPTION_TIMESTAMPS and size == 10:
            ts_val, ts_ecr = struct.unpack_from("!II", area, at + 2)
        elif kind == OPTION_SACK and size >= 10 and (size - 2) % 8 == 0:
            edges = struct.unpack_from(f"!{(size - 2) // 4}I", area, at + 2)
            sacks = tuple(zip(edges[::2], edges[1::2], strict=True))
        at += size
    return Options(mss, scale, permitted, ts_val, ts_ecr, sacks)


def syn_options(mss: int, scale: int | None, sack: bool, stamps: tuple[int, int] | None) -> bytes:
    """The options of a SYN, padded to whole words."""
    options = struct.pack("!BBH", OPTION_MSS, 4, mss)
    if stamps is not None:
        head = (OPTION_SACK_PERMITTED, 2) if sack else (OPTION_NOP, OPTION_NOP)
        options += bytes(head) + struct.pack("!BBII", OPTION_TIMESTAMPS, 10, *stamps)
    elif sack:
        options += bytes((OPTION_NOP, OPTION_NOP, OPTION_SACK_PERMITTED, 2))
    if scale is not None:
        options += bytes((OPTION_NOP, OPTION_WINDOW_SCALE, 3, scale))
    return options


def options_of(stamps: tuple[int, int] | None, sacks: Sequence[tuple[int, int]]) -> bytes:
    """The options of any other segment: timestamps, and as many SACK blocks as fit, the first ones."""
    options = b"" if stamps is None else TIMESTAMPS.pack(TS_WORD, *stamps)
    room = (MAX_OPTIONS - len(options) - 4) // 8
    if sacks:
        edges = [edge & MASK for block in sacks[:room] for edge in block]
        options += struct.pack(f"!4B{len(edges)}I", OPTION_NOP, OPTION_NOP, OPTION_SACK, 2 + 4 * len(edges), *edges)
    return options


def flag_names(flags: int) -> str:
    """Flags as tcpdump writes them: "S.", "P.", "F.", "R", "."."""
    letters = ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (URG, "U"), (ECE, "E"), (CWR, "W"), (ACK, "."))
    return "".join(letter for bit, letter in letters if flags & bit) or "none"
