"""The path MTU cache: how large a packet may be on its way to a destination. RFC 1191, RFC 8201.

Promises:
- An entry only ever lowers what was known, and is forgotten `time` after it was last lowered, so that a path which has
  become wider is found again (RFC 1191 §6.3, RFC 8201 §4).
- IPv6: less than 1280 is not believed (RFC 8201 §4). IPv4: less than 552 is taken as 552, and such packets go without
  "don't fragment", so that forged errors cannot make us send tiny packets; this is what Linux does (`min_pmtu`). A
  path whose own link has less keeps that.
- Never more than `entries` entries; the oldest goes first.
"""

from __future__ import annotations

from guest.net.address import is_v4

MIN_V4 = 552
MIN_V6 = 1280


class PathMtuCache:
    """Destinations with a narrower path than their first link.

    Args:
        entries: that are kept at most.
        time: for which each is kept, in microseconds.
    """

    def __init__(self, entries: int, time: int) -> None:
        self._limit = entries
        self._time = time
        self._entries: dict[int, tuple[int, int, bool]] = {}  # destination → MTU, until when, locked; oldest first

    def __len__(self) -> int:
        return len(self._entries)

    def lower(self, dst: int, mtu: int, known: int, now: int) -> bool:
        """A router says that `mtu` is the most on the way to `dst`, where `known` was; whether that is news."""
        locked = False
        if is_v4(dst):
            if mtu < MIN_V4:
                locked = True
                mtu = MIN_V4
        elif mtu < MIN_V6:
            return False
        if mtu >= known and not (locked and not self.get(dst, now)[2]):
            return False
        self._entries.pop(dst, None)
        while self._entries and len(self._entries) >= self._limit:
            del self._entries[next(iter(self._entries))]
        self._entries[dst] = (min(mtu, known), now + self._time, locked)
        return True

    def get(self, dst: int, now: int) -> tuple[int, int, bool]:
        """The MTU towards `dst`, until when that holds, and whether packets go without "don't fragment".

        (0, 0, False) where nothing is known.
        """
        entry = self._entries.get(dst)
        if entry is None:
            return 0, 0, False
        if now >= entry[1]:
            del self._entries[dst]
            return 0, 0, False
        return entry
