"""Resets: RFC 9293 §3.5.2 and §3.5.3, RFC 5961 (blind attacks, row H59). A reset is never answered."""

from __future__ import annotations

import pytest

from guest.net.tcp.config import TcpConfig
from tests.tcp_world import SECOND, World
from tests.test_tcp_data import body


def test_rfc5961_3_2_a_reset_with_the_very_number_ends_the_connection() -> None:
    peer, end = World().established()

    peer.sends("R", seq=1)

    end.is_in("CLOSED")
    peer.expects_nothing(during=100 * SECOND)
    end.reads_fail("ECONNRESET")
    end.reads_end()
    end.writes_fail("EPIPE")


@pytest.mark.parametrize("seq", [2, 1000, 65535])
def test_h59_a_reset_elsewhere_in_the_window_is_challenged(seq: int) -> None:
    """RFC 5961 §3.2: the peer, if it was the peer, then knows the number."""
    peer, end = World().established()

    peer.sends("R", seq=seq)

    peer.expects(".", seq=1, ack=1)
    end.is_in("ESTABLISHED")
    peer.sends("R", seq=1)
    end.is_in("CLOSED")


@pytest.mark.parametrize("seq", [0, -1000, 65537, 1 << 30])
def test_h59_a_reset_outside_of_the_window_is_ignored(seq: int) -> None:
    peer, end = World().established()

    peer.sends("R", seq=seq)

    peer.expects_nothing(during=SECOND)
    end.is_in("ESTABLISHED")


@pytest.mark.parametrize("seq", [0, 1, 5000, 100_000])
def test_h59_a_syn_on_a_connection_is_challenged(seq: int) -> None:
    """RFC 5961 §4.2: wherever it is."""
    peer, end = World().established()

    peer.sends("S", seq=seq)

    peer.expects(".", seq=1, ack=1)
    end.is_in("ESTABLISHED")


def test_rfc5961_4_2_a_peer_that_rebooted_gets_through() -> None:
    """It answers the challenge with a reset, and its next SYN opens a connection."""
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S")
    peer.expects("S.")
    peer.sends(".")
    old = server.accepts()
    peer.sends("S", seq=500_000)
    peer.expects(".", seq=1, ack=1)

    peer.sends("R", seq=1)
    old.is_in("CLOSED")
    again = world.peer(80)
    again.sends("S")

    again.expects("S.", seq=0, ack=1)


@pytest.mark.parametrize("ack", [-70_000, 2, 1 << 30])
def test_h59_data_with_an_acknowledgement_out_of_range_is_not_taken(ack: int) -> None:
    """RFC 5961 §5.2: SND.UNA - MAX.SND.WND <= SEG.ACK <= SND.NXT."""
    peer, end = World().established()

    peer.sends("P.", ack=ack, data=b"blind")

    peer.expects(".", seq=1, ack=1)
    end.reads_nothing()


def test_rfc5961_5_2_a_somewhat_older_acknowledgement_is_good_enough() -> None:
    peer, end = World().established()
    end.writes(b"abc")
    peer.expects("P.")
    peer.sends(".")

    peer.sends("P.", ack=2, data=b"late")

    end.reads(b"late")


def test_h59_challenges_are_limited() -> None:
    """RFC 5961 §7."""
    world = World(tcp=TcpConfig(challenge_rate=10))
    peer, end = world.established()
    for _ in range(50):
        peer.sends("S", seq=1)

    answers = len(peer.drains())
    assert 5 <= answers <= 20, answers
    world.passes(2 * SECOND)
    peer.sends("S", seq=1)

    peer.expects(".", seq=1, ack=1)
    end.is_in("ESTABLISHED")


def test_rfc9293_3_10_7_4_after_a_reset_what_came_before_can_still_be_read() -> None:
    """As on Linux the error comes behind the bytes."""
    peer, end = World().established()
    peer.sends("P.", data=b"before")

    peer.sends("R")

    end.reads(b"before")
    end.reads_fail("ECONNRESET")
    end.reads_end()


def test_rfc9293_3_10_7_4_a_reset_in_close_wait() -> None:
    peer, end = World().established()
    peer.sends("F.")
    peer.expects(".", ack=2)
    end.reads_end()

    peer.sends("R", seq=2)

    end.is_in("CLOSED")
    end.writes_fail("EPIPE")


@pytest.mark.parametrize("state", ["FIN_WAIT_1", "FIN_WAIT_2", "CLOSING", "LAST_ACK"])
def test_rfc9293_3_10_7_4_a_reset_while_closing(state: str) -> None:
    world = World()
    peer, end = world.established()
    if state == "LAST_ACK":
        peer.sends("F.")
        peer.expects(".")
    end.shuts()
    peer.expects("F.")
    if state == "FIN_WAIT_2":
        peer.sends(".")
    if state == "CLOSING":
        peer.sends("F.", ack=1)
        peer.expects(".")
    end.is_in(state)

    peer.sends("R")

    end.is_in("CLOSED")
    peer.expects_nothing(during=100 * SECOND)


@pytest.mark.parametrize("flags", ["R", "R.", "SR", "FR.", "FSRPU."])
@pytest.mark.parametrize("port", [80, 81], ids=["somebody listens", "nobody listens"])
def test_h59_a_reset_is_never_answered(flags: str, port: int) -> None:
    world = World()
    world.listens(80)
    peer = world.peer(port)

    peer.sends(flags, seq=0, ack=1 if "." in flags else None, data=b"x")

    peer.expects_nothing(during=SECOND)


def test_rfc9293_3_5_2_a_reset_takes_its_number_from_the_acknowledgement() -> None:
    """Group 1: no connection."""
    peer = World().peer(9)
    peer.irs = 0

    peer.sends("P.", seq=10, ack=4711, data=b"x")

    peer.expects("R", seq=4711)


def test_rfc9293_3_5_2_or_acknowledges_what_came() -> None:
    peer = World().peer(9)

    peer.sends("FP", seq=10, data=b"abc")

    peer.expects("R.", seq=0, ack=14)


def test_rfc9293_3_10_7_2_an_acknowledgement_for_a_listening_end_is_reset() -> None:
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.irs = 0

    peer.sends(".", seq=1, ack=99)

    peer.expects("R", seq=99)
    server.is_in("LISTEN")


def test_rfc9293_3_10_7_2_anything_else_for_a_listening_end_is_dropped() -> None:
    world = World()
    world.listens(80)
    peer = world.peer(80)

    peer.sends("F", seq=1)
    peer.sends("P", seq=1, data=b"x")

    peer.expects_nothing(during=SECOND)


def test_rfc9293_3_5_3_a_disconnect_resets() -> None:
    """connect(AF_UNSPEC)."""
    peer, end = World().established()
    end.writes(body(10))
    peer.expects("P.")

    assert end.end.disconnect() == 0

    peer.expects("R.", seq=11)


def test_d16_unreachable_ends_who_is_still_knocking() -> None:
    """RFC 5461 §4; the port's error is ECONNREFUSED, a host's EHOSTUNREACH."""
    for family, kind, code, name in ((4, 3, 3, "ECONNREFUSED"), (4, 3, 1, "EHOSTUNREACH"), (6, 1, 4, "ECONNREFUSED")):
        world = World(family)
        program, peer = world.connects()
        syn = peer.expects("S")

        world.icmp(kind, code, syn.packet)

        program.connects(7, expect=name)


def test_d16_unreachable_does_not_end_a_connection() -> None:
    """RFC 1122 §4.2.3.9, RFC 5461 §2: a soft error, told when the connection fails by itself."""
    world = World()
    peer, end = world.established()
    end.writes(b"x")
    segment = peer.expects("P.")

    world.icmp(3, 1, segment.packet[:28])
    end.is_in("ESTABLISHED")
    peer.expects("P.", within=(0, end.rto))
    world.passes(100 * SECOND)

    end.is_in("CLOSED")
    end.reads_fail("EHOSTUNREACH")


def test_h55_an_error_that_quotes_a_foreign_number_is_ignored() -> None:
    """RFC 5927 §4.1."""
    world = World()
    program, peer = world.connects()
    syn = peer.expects("S")
    wrong = bytearray(syn.packet)
    wrong[24:28] = bytes(4)

    world.icmp(3, 3, bytes(wrong))

    program.is_in("SYN_SENT")
