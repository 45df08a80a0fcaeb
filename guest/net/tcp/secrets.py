"""Numbers that nobody outside can foresee: initial sequence numbers, timestamp offsets, SYN cookies.

RFC 6528 §3: a sequence number is a clock of 4 µs plus a keyed hash of the connection's ends, so that it is unlike any
other connection's, yet grows for one pair of ends. The hash's other half shifts the timestamp clock (RFC 7323 §7.1).

A SYN cookie is a sequence number that says what the SYN said: 5 bits of a clock of 64 s, 3 bits that name an MSS, and
24 bits of a keyed hash over all that and the connection's ends (RFC 4987 §3.6). What else the SYN had goes into the six
lowest bits of our timestamp, if the peer has timestamps: window scale, SACK, ECN.

The hash is BLAKE2 with a key that is drawn from the stack's random source.
"""

from __future__ import annotations

import random
import struct
from hashlib import blake2b
from typing import NamedTuple

from guest.net.tcp.segment import MASK

KEY = struct.Struct("!16s16sHH")
PERIOD = 64_000_000  # microseconds that a cookie's clock ticks in
PERIODS = 2  # a cookie is good for this and the last one
COOKIE_MSS = (216, 536, 1220, 1300, 1440, 1460, 4312, 8960)
NO_SCALE = 15

Ends = tuple[int, int, int, int]  # local address and port, remote address and port


class Cookie(NamedTuple):
    """What a cookie kept of a SYN."""

    mss: int
    scale: int | None
    sack: bool
    ecn: bool


class Secrets:
    """The keys of one stack.

    Args:
        rng: where the key comes from.
    """

    def __init__(self, rng: random.Random) -> None:
        self._key = rng.randbytes(32)

    def _hash(self, ends: Ends, purpose: bytes, extra: int = 0) -> int:
        local, local_port, remote, remote_port = ends
        packed = KEY.pack(local.to_bytes(16, "big"), remote.to_bytes(16, "big"), local_port, remote_port)
        text = packed + extra.to_bytes(12, "big")
        return int.from_bytes(blake2b(text, key=self._key, person=purpose, digest_size=8).digest(), "big")

    def sequence(self, ends: Ends, now: int) -> tuple[int, int]:
        """An initial sequence number, and the offset of the connection's timestamps."""
        both = self._hash(ends, b"isn")
        return (now // 4 + both) & MASK, both >> 32

    def port(self, ends: Ends, attempt: int) -> int:
        """A number to pick a port by (RFC 6056 §3.3.3); the local port in `ends` is 0."""
        return self._hash(ends, b"port", attempt)

    def flow(self, ends: Ends) -> int:
        """A number to choose one of several listening ends by."""
        return self._hash(ends, b"flow")

    # -- cookies -------------------------------------------------------------------------------------------------

    def cookie(self, ends: Ends, irs: int, mss: int, now: int) -> int:
        """The initial sequence number that answers a SYN without remembering it."""
        index = max(at for at, size in enumerate(COOKIE_MSS) if size <= mss or at == 0)
        return self._cookie(ends, irs, now // PERIOD & 31, index)

    def _cookie(self, ends: Ends, irs: int, clock: int, index: int) -> int:
        digest = self._hash(ends, b"cookie", (irs & MASK) << 8 | clock << 3 | index)
        return clock << 27 | index << 24 | digest & 0xFF_FFFF

    def check_cookie(self, ends: Ends, irs: int, cookie: int, stamp: int | None, now: int) -> Cookie | None:
        """What the SYN said, if `cookie` answered one; `stamp` is our timestamp as the peer echoes it."""
        clock, index = cookie >> 27, cookie >> 24 & 7
        if (now // PERIOD - clock) & 31 >= PERIODS or self._cookie(ends, irs, clock, index) != cookie:
            return None
        if stamp is None:
            return Cookie(COOKIE_MSS[index], None, False, False)
        scale = stamp & 15
        return Cookie(COOKIE_MSS[index], None if scale == NO_SCALE else scale, bool(stamp & 16), bool(stamp & 32))

    @staticmethod
    def cookie_stamp(stamp: int, scale: int | None, sack: bool, ecn: bool) -> int:
        """Our timestamp with the SYN's options in its lowest bits; not later than `stamp`."""
        bits = (NO_SCALE if scale is None else scale) | sack << 4 | ecn << 5
        marked = stamp & ~63 | bits
        return marked if marked <= stamp else (marked - 64) & MASK
