"""Urgent data (rows D15, H60): RFC 9293 §3.8.5 as RFC 6093 tells how it is used: one byte, out of band, and the pointer
stands behind it.
"""

from __future__ import annotations

import pytest

from tests.tcp_world import Program, World
from tests.test_tcp_data import body


def oob(end: Program, peek: bool = False) -> int | bytes:
    """What read_oob gives."""
    area = bytearray(1)
    got = end.end.read_oob(memoryview(area), peek=peek)
    return bytes(area) if got == 1 else int(got)


# -- sending -----------------------------------------------------------------------------------------------------------


def test_d15_the_last_byte_of_an_urgent_write_is_pointed_at() -> None:
    peer, end = World().established()

    end.writes(b"abc", oob=True)

    peer.expects("PU.", seq=1, data=b"abc", urg=3)


def test_d15_urgent_data_does_not_wait_for_an_acknowledgement() -> None:
    peer, end = World().established()
    end.writes(b"a")
    peer.expects("P.", data=b"a")

    end.writes(b"!", oob=True)

    peer.expects("PU.", data=b"!", urg=1)


def test_d15_the_pointer_is_in_every_segment_until_it_was_passed() -> None:
    peer, end = World().established()

    end.writes(body(2000) + b"!", oob=True)
    peer.expects("U.", seq=1, length=1460, urg=2001)
    peer.expects("PU.", seq=1461, length=541, urg=541)
    peer.sends(".")
    end.writes(b"calm")

    peer.expects("P.", data=b"calm", urg=0)


def test_d15_the_pointer_comes_again_with_the_data() -> None:
    peer, end = World().established()
    end.writes(b"abc", oob=True)
    peer.expects("PU.", urg=3)

    peer.expects("PU.", seq=1, urg=3, after=end.rto)


def test_d15_urgent_data_further_away_than_the_pointer_reaches() -> None:
    """RFC 6093 leaves no way to say it; the pointer is as far as it goes, as Linux's is."""
    peer, end = World().established(win=20_000)
    end.writes(body(60_000))
    peer.drains()
    end.end.options.sndbuf = 400_000
    end.end.options.sndbuf_fixed = True
    end.writes(body(20_000) + b"!", oob=True)
    while end.end.unacked:
        peer.sends(".")
        for segment in peer.drains():
            assert ("U" in segment.flags, segment.urg) == (True, min(80_002 - segment.seq, 65535))


# -- receiving ---------------------------------------------------------------------------------------------------------


def test_d15_the_urgent_byte_is_read_beside_the_others() -> None:
    peer, end = World().established()

    peer.sends("PU.", data=b"abcde", urg=3)

    assert end.end.urgent, "poll says POLLPRI"
    end.reads(b"ab")
    assert end.end.at_mark
    assert oob(end, peek=True) == b"c"
    assert oob(end) == b"c"
    assert oob(end) == -22, "EINVAL: it was read"
    end.reads(b"de")
    assert not end.end.urgent


def test_d15_a_read_stops_before_the_mark() -> None:
    peer, end = World().established()
    peer.sends("PU.", data=b"abcde", urg=4)

    assert not end.end.at_mark
    end.reads(b"abc")
    assert end.end.at_mark

    end.reads(b"e")
    assert not end.end.at_mark


def test_d15_an_urgent_byte_may_be_kept_in_line() -> None:
    """SO_OOBINLINE."""
    peer, end = World().established()
    end.end.options.oob_inline = True

    peer.sends("PU.", data=b"abcde", urg=3)

    end.reads(b"ab")
    assert end.end.at_mark
    assert oob(end) == -22
    end.reads(b"cde")


def test_d15_an_urgent_byte_that_is_announced_has_not_come_yet() -> None:
    peer, end = World().established()
    peer.sends("PU.", data=b"ab", urg=5)

    assert oob(end) == -11, "EAGAIN"
    end.reads(b"ab")
    peer.sends("P.", data=b"cde")

    assert oob(end) == b"e"
    end.reads(b"cd")


def test_d15_without_urgent_data_there_is_none() -> None:
    peer, end = World().established()
    peer.sends("P.", data=b"calm")

    assert not end.end.urgent
    assert not end.end.at_mark
    assert oob(end) == -22


def test_d15_a_later_urgent_byte_replaces_the_first() -> None:
    """As on Linux the first becomes an ordinary byte."""
    peer, end = World().established()
    peer.sends("PU.", data=b"ab", urg=2)
    peer.sends("PU.", data=b"cd", urg=2)

    assert oob(end) == b"d"
    end.reads(b"abc")


@pytest.mark.parametrize(("pointer", "size"), [(0, 3), (0, 0), (65535, 3), (4, 3), (65535, 0), (1, 0)])
def test_h60_a_pointer_to_nowhere_does_no_harm(pointer: int, size: int) -> None:
    world = World()
    peer, end = world.established()

    peer.sends("PU.", data=body(size), urg=pointer)
    end.read(100)
    oob(end)
    peer.drains()
    for _ in range(3):
        peer.sends("P.", data=body(100))
        peer.drains()
        end.read(1000)
        end.read(1000)
        oob(end)

    end.is_in("ESTABLISHED")
    assert end.end.unread <= 1


@pytest.mark.parametrize("pointer", range(8))
def test_h60_wherever_the_pointer_is_every_byte_is_read_once(pointer: int) -> None:
    peer, end = World().established()
    data = b"abcdef"
    peer.sends("PU.", data=data, urg=pointer)

    beside = oob(end)
    got = b""
    while isinstance(piece := end.read(10), bytes):
        got += piece

    at = max(pointer - 1, 0)
    if at < len(data):
        assert beside == data[at : at + 1]
        assert got == data[:at] + data[at + 1 :]
    else:
        assert got == data


def test_h60_urgent_flags_without_an_end_do_not_stop_the_stream() -> None:
    """URG in every segment, always pointing further on."""
    peer, end = World().established()

    got = b""
    for _ in range(50):
        peer.sends("PU.", data=b"0123456789", urg=60_000)
        peer.drains()
        piece = end.read(100)
        assert isinstance(piece, bytes)
        got += piece

    assert got == b"0123456789" * 50
