"""Row E32: every arrow of RFC 9293 figure 5 is walked once, each test an arrow (or two that cannot be parted).

CLOSED > LISTEN, SYN-SENT          LISTEN > SYN-SENT, SYN-RECEIVED, CLOSED
SYN-SENT > ESTABLISHED, SYN-RECEIVED, CLOSED
SYN-RECEIVED > ESTABLISHED, FIN-WAIT-1, LISTEN
ESTABLISHED > FIN-WAIT-1, CLOSE-WAIT
FIN-WAIT-1 > FIN-WAIT-2, CLOSING, TIME-WAIT          FIN-WAIT-2 > TIME-WAIT          CLOSING > TIME-WAIT
CLOSE-WAIT > LAST-ACK > CLOSED          TIME-WAIT > CLOSED
"""

from __future__ import annotations

import pytest

from guest.net.tcp.state import NEXT, Event, ImpossibleEvent, State, after
from tests.tcp_world import SECOND, World


def test_e32_closed_to_listen_and_back() -> None:
    world = World()
    program = world.opens()
    program.is_in("CLOSED")

    server = world.listens(80)
    server.is_in("LISTEN")
    server.closes()

    server.is_in("CLOSED")
    world.peer(80).sends("S")
    assert [segment.flags for segment in world.peers[world.them, 40_000, 80].drains()] == ["R."], "nobody listens"


def test_e32_closed_to_syn_sent_to_established() -> None:
    program, peer = World().connects()
    program.is_in("SYN_SENT")
    peer.expects("S", seq=0)

    peer.sends("S.")

    program.is_in("ESTABLISHED")
    peer.expects(".", seq=1, ack=1)


def test_e32_syn_sent_to_closed() -> None:
    program, peer = World().connects()
    peer.expects("S")

    program.closes()

    program.is_in("CLOSED")
    peer.expects_nothing(during=300 * SECOND)


def test_e32_listen_to_syn_received_to_established() -> None:
    """The connection is a block of its own; the end that listens goes on listening."""
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S")
    peer.expects("S.", seq=0, ack=1)
    server.is_in("LISTEN")
    server.accepts_none()

    peer.sends(".")

    server.accepts().is_in("ESTABLISHED")
    server.is_in("LISTEN")


def test_e32_syn_received_to_listen_by_a_reset() -> None:
    """RFC 9293 §3.10.7.4, second: the connection is forgotten, the program of the passive open hears nothing."""
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S")
    peer.expects("S.")

    peer.sends("R")

    peer.expects_nothing(during=100 * SECOND)
    server.accepts_none()
    server.is_in("LISTEN")


def test_e32_syn_sent_to_syn_received_to_established() -> None:
    """Simultaneous open, RFC 9293 figure 7."""
    program, peer = World().connects()
    peer.expects("S", seq=0)

    peer.sends("S", seq=0)
    program.is_in("SYN_RECEIVED")
    peer.expects("S.", seq=0, ack=1)
    peer.sends("S.", seq=0)

    program.is_in("ESTABLISHED")


def test_e32_syn_received_to_fin_wait_1() -> None:
    """A close in SYN-RECEIVED sends the FIN once there is a connection (RFC 9293 §3.10.4)."""
    program, peer = World().connects()
    peer.expects("S")
    peer.sends("S", seq=0)
    peer.expects("S.", seq=0, ack=1)

    program.shuts()

    program.is_in("FIN_WAIT_1")
    peer.sends("S.", seq=0, ack=1)
    peer.expects("F.", seq=1, ack=1)


def test_e32_established_to_fin_wait_1_to_fin_wait_2_to_time_wait_to_closed() -> None:
    """An orderly close that we begin, RFC 9293 figure 12."""
    world = World()
    peer, program = world.established()

    program.shuts()
    program.is_in("FIN_WAIT_1")
    peer.expects("F.", seq=1, ack=1)
    peer.sends(".")
    program.is_in("FIN_WAIT_2")
    peer.sends("F.")
    peer.expects(".", seq=2, ack=2)
    program.is_in("TIME_WAIT")
    world.passes(60 * SECOND - 1)
    program.is_in("TIME_WAIT")
    world.passes(1)

    program.is_in("CLOSED")
    assert world.stack.tcp.time_waits == 0


def test_e32_established_to_close_wait_to_last_ack_to_closed() -> None:
    """The same seen from the other end."""
    peer, program = World().established()

    peer.sends("F.")
    peer.expects(".", ack=2)
    program.is_in("CLOSE_WAIT")
    program.reads_end()
    program.shuts()
    peer.expects("F.", seq=1, ack=2)
    program.is_in("LAST_ACK")
    peer.sends(".")

    program.is_in("CLOSED")


def test_e32_fin_wait_1_to_closing_to_time_wait() -> None:
    """Simultaneous close, RFC 9293 figure 13."""
    peer, program = World().established()
    program.shuts()
    peer.expects("F.", seq=1, ack=1)

    peer.sends("F.", ack=1)
    program.is_in("CLOSING")
    peer.expects(".", seq=2, ack=2)
    peer.sends(".", ack=2)

    program.is_in("TIME_WAIT")


def test_e32_fin_wait_1_to_time_wait() -> None:
    """A FIN that acknowledges ours."""
    peer, program = World().established()
    program.shuts()
    peer.expects("F.", seq=1, ack=1)

    peer.sends("F.", ack=2)

    peer.expects(".", seq=2, ack=2)
    program.is_in("TIME_WAIT")


def test_a_listening_end_that_connects_is_told_so() -> None:
    """LISTEN > SYN-SENT of figure 5 needs a passive open that may turn active; sockets do not have that."""
    world = World()
    server = world.listens(80)

    server.connects(7, expect="EISCONN")

    server.is_in("LISTEN")


@pytest.mark.parametrize("state", [state for state in State if state is not State.CLOSED])
def test_h59_a_reset_in_its_place_ends_every_state(state: State) -> None:
    assert after(state, Event.ABORT) is State.CLOSED


def test_the_table_has_no_other_way() -> None:
    """What figure 5 does not have cannot happen; it names the mistake."""
    with pytest.raises(ImpossibleEvent, match="FIN in LISTEN"):
        after(State.LISTEN, Event.FIN)
    assert {to for (_, event), to in NEXT.items() if event is not Event.ABORT} == set(State)
