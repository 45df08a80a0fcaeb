"""The states of a connection and every way from one to another: RFC 9293 §3.3.2, figure 5.

This table is the only place that says which state follows; `Connection.event` walks it. What is not in it cannot
happen: to ask for it is a mistake of ours and raises.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """The eleven states; their names are the RFC's."""

    CLOSED = "CLOSED"
    LISTEN = "LISTEN"
    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"


class Event(Enum):
    """What makes a connection change its state."""

    PASSIVE_OPEN = auto()
    ACTIVE_OPEN = auto()
    SYN = auto()  # received, without an acknowledgement of ours
    SYN_ACKED = auto()  # our SYN is acknowledged, and we have the peer's
    CLOSE = auto()  # the user sends nothing more
    FIN = auto()  # received
    FIN_ACKED = auto()  # ours
    TIMEOUT = auto()  # 2 MSL are over
    ABORT = auto()  # a reset in either direction, or given up


S, E = State, Event

NEXT: dict[tuple[State, Event], State] = {
    (S.CLOSED, E.PASSIVE_OPEN): S.LISTEN,
    (S.CLOSED, E.ACTIVE_OPEN): S.SYN_SENT,
    (S.LISTEN, E.ACTIVE_OPEN): S.SYN_SENT,
    (S.LISTEN, E.SYN): S.SYN_RECEIVED,
    (S.LISTEN, E.CLOSE): S.CLOSED,
    (S.SYN_SENT, E.SYN): S.SYN_RECEIVED,
    (S.SYN_SENT, E.SYN_ACKED): S.ESTABLISHED,
    (S.SYN_SENT, E.CLOSE): S.CLOSED,
    (S.SYN_RECEIVED, E.SYN_ACKED): S.ESTABLISHED,
    (S.SYN_RECEIVED, E.CLOSE): S.FIN_WAIT_1,
    (S.ESTABLISHED, E.CLOSE): S.FIN_WAIT_1,
    (S.ESTABLISHED, E.FIN): S.CLOSE_WAIT,
    (S.FIN_WAIT_1, E.FIN_ACKED): S.FIN_WAIT_2,
    (S.FIN_WAIT_1, E.FIN): S.CLOSING,
    (S.FIN_WAIT_2, E.FIN): S.TIME_WAIT,
    (S.CLOSE_WAIT, E.CLOSE): S.LAST_ACK,
    (S.CLOSING, E.FIN_ACKED): S.TIME_WAIT,
    (S.LAST_ACK, E.FIN_ACKED): S.CLOSED,
    (S.TIME_WAIT, E.TIMEOUT): S.CLOSED,
    **{(state, E.ABORT): S.CLOSED for state in State},
}

# In these the user may still send; in these something may still come.
MAY_SEND = frozenset((S.SYN_SENT, S.SYN_RECEIVED, S.ESTABLISHED, S.CLOSE_WAIT))
MAY_RECEIVE = frozenset((S.ESTABLISHED, S.FIN_WAIT_1, S.FIN_WAIT_2))
# Both ends have seen each other's SYN.
SYNCHRONIZED = frozenset(State) - {S.CLOSED, S.LISTEN, S.SYN_SENT, S.SYN_RECEIVED}


class ImpossibleEvent(AssertionError):
    """The table has no such way: a mistake in this stack, never something that a peer can cause."""


def after(state: State, event: Event) -> State:
    """The state that follows. Raises ImpossibleEvent."""
    following = NEXT.get((state, event))
    if following is None:
        raise ImpossibleEvent(f"{event.name} in {state.value}")
    return following
