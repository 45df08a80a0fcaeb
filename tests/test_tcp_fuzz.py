"""Two stacks, and whatever may happen between them (rows E31, E33, H59, H61): a liar on the path, a bad wire, programs
that write, read, shut and close when it suits them. `TcpConfig.check` looks at each connection after every segment.

What is written is a stream in which every byte's place is known. So a lie may carry payload: the bytes of the place
that it claims to be. Whatever comes of lies, what is read must be the beginning of the stream.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from guest.net.pbuf import PacketBuffer
from guest.net.tcp.config import TcpConfig
from tests.tcp_pipe import Pair, Side, Wire
from tests.tcp_wire import WRAP, build, parse, protocol_of
from tests.tcp_world import MS, SECOND

STREAMS = [random.Random(which).randbytes(1 << 20) for which in range(2)]
PATIENT = TcpConfig(retries=15, syn_retries=15, synack_retries=15)


class Talk(Pair):
    """A connection between two programs; each writes its stream.

    Attributes:
        ends: of a and of b. written, read: of each, how many bytes, and which.
        seen: the last packets towards each side, as they were. first: the number of each side's first byte.
    """

    def __init__(self, wire: Wire, **settings: Any) -> None:
        self.seen: tuple[deque[bytes], deque[bytes]] = (deque(maxlen=16), deque(maxlen=16))
        self.first = [0, 0]
        super().__init__(wire, **settings)
        self.ends = self.connect()
        self.written = [0, 0]
        self.read = [bytearray(), bytearray()]
        self.ended = [False, False]
        self.closed = [False, False]
        for end in self.ends:
            end.options.oob_inline = True  # a lie about urgent data takes no byte out of the stream

    def carry(self, at: int, to: Side, raw: bytes) -> None:
        super().carry(at, to, raw)
        if self.wire.corrupt or protocol_of(raw) != 6:
            return
        target = 0 if to is self.a else 1
        self.seen[target].append(raw)
        segment = parse(raw)
        if "S" in segment.flags:
            self.first[1 - target] = segment.seq + 1

    def passes(self, micros: int) -> None:
        """Let time pass."""
        end = self.clock.now + micros
        while True:
            dues = [due for side in (self.a, self.b) if (due := side.stack.poll_at()) is not None]
            if self._flying:
                dues.append(self._flying[0][0])
            if not dues or min(dues) > end:
                break
            due = max(min(dues), self.clock.now)
            self.run(lambda due=due: self.clock.now >= due)
        self.clock.now = end

    def writes(self, which: int, size: int) -> None:
        """A program writes what comes next, as far as there is room."""
        at = self.written[which]
        taken = self.ends[which].write([memoryview(STREAMS[which])[at : at + size]])
        self.written[which] += max(0, taken)

    def reads(self, which: int, size: int) -> None:
        """A program reads what is there; it must be what comes next."""
        area = bytearray(size)
        got = self.ends[which].read_into(memoryview(area))
        if got is None or got < 0:
            return
        self.ended[which] = self.ended[which] or got == 0
        found = self.read[which]
        assert area[:got] == STREAMS[1 - which][len(found) : len(found) + got], "something else than was written"
        found += area[:got]

    def closes(self, which: int) -> None:
        """A program closes, whatever is unread."""
        self.ends[which].close()
        self.closed[which] = True

    def ends_all(self) -> None:
        """Close what is open; then nothing is left after a while."""
        for which in range(2):
            self.closes(which)
        self.wire = Wire()
        self.passes(3600 * SECOND)
        for side in (self.a, self.b):
            assert dict(side.stack.tcp.entries) == {}, "everything ends"
            assert side.stack.poll_at() is None, "no timer is left"


# -- a liar on the path ----------------------------------------------------------------------------------------------

NEAR = st.one_of(st.integers(-3, 3), st.integers(-70_000, 70_000), st.sampled_from([1 << 31, -(1 << 31), 1 << 30]))
LIES = st.fixed_dictionaries(
    {},
    optional={
        "seq": NEAR,
        "ack": NEAR,
        "flags": st.sampled_from([".", "P.", "F.", "R", "R.", "S", "S.", "SF", "U.", "FPU.", "E.", "W.", "EW", ""]),
        "win": st.integers(0, 65535),
        "urg": st.integers(0, 65535),
        "size": st.sampled_from([0, 1, 2, 100, 1400]),
        "ts": st.tuples(NEAR, NEAR),
        "no_ts": st.just(True),
        "sack": st.lists(st.tuples(NEAR, NEAR), max_size=3),
        "raw_options": st.binary(max_size=20),
    },
)


def lie(talk: Talk, raw: bytes, target: int, said: dict[str, Any]) -> bytes:
    """A packet that somebody on the path makes of one that was on its way to `target`."""
    true = parse(raw)
    add = lambda value, more: (value + more) % WRAP  # noqa: E731
    seq = add(true.seq, said.get("seq", 0))
    size = said.get("size", len(true.data))
    place = (seq - talk.first[1 - target]) % WRAP
    data = STREAMS[1 - target][place : place + size]
    made = replace(
        true, seq=seq, ack=add(true.ack, said.get("ack", 0)), flags=said.get("flags", true.flags),
        win=said.get("win", true.win), urg=said.get("urg", true.urg), data=data if len(data) == size else b"",
        raw_options=said.get("raw_options"),
    )  # fmt: skip
    if true.ts is not None:
        more = said.get("ts", (0, 0))
        made = replace(made, ts=None if "no_ts" in said else (add(true.ts[0], more[0]), add(true.ts[1], more[1])))
    if blocks := said.get("sack"):
        edges = tuple((add(true.ack, left), add(true.ack, right)) for left, right in blocks[:3])
        made = replace(made, mss=None, ws=None, sack_ok=False, sack=edges)
    return build(made)


STEPS = st.one_of(
    st.tuples(st.just("lie"), st.integers(0, 1), st.integers(0, 15), LIES),
    st.tuples(st.just("flip"), st.integers(0, 1), st.integers(0, 15), st.integers(0, 20_000)),
    st.tuples(st.just("write"), st.integers(0, 1), st.sampled_from([1, 100, 1448, 5000, 40_000])),
    st.tuples(st.just("read"), st.integers(0, 1), st.sampled_from([1, 1000, 100_000])),
    st.tuples(st.just("pass"), st.sampled_from([1 * MS, 11 * MS, 50 * MS, 400 * MS, 3 * SECOND])),
)


@settings(max_examples=150)
@given(st.sampled_from([4, 6]), st.lists(STEPS, max_size=40))
def test_h59_h61_whatever_a_liar_sends_what_is_read_is_the_beginning_of_what_was_written(
    family: int, steps: list[tuple[Any, ...]]
) -> None:
    talk = Talk(Wire(delay=5 * MS), family=family)
    talk.writes(0, 3000)
    talk.writes(1, 3000)
    talk.passes(7 * MS)
    lied = False
    for kind, *rest in steps:
        if kind == "write":
            talk.writes(*rest)
        elif kind == "read":
            talk.reads(*rest)
        elif kind == "pass":
            talk.passes(*rest)
        else:
            target, which, what = rest
            raw = talk.seen[target][which % len(talk.seen[target])]
            if kind == "lie":
                lied = True
                raw = lie(talk, raw, target, what)
            else:  # one bit, which every checksum notices
                raw = bytearray(raw)
                raw[what // 8 % len(raw)] ^= 1 << what % 8
                raw = bytes(raw)
            side = (talk.a, talk.b)[target]
            side.link.input([PacketBuffer.from_bytes(raw)])

    for _ in range(20):
        talk.passes(200 * MS)
        talk.reads(0, 1 << 20)
        talk.reads(1, 1 << 20)
    if not lied:
        assert [len(talk.read[1 - which]) for which in range(2)] == talk.written, "all has arrived"
    talk.ends_all()


# -- programs of every kind on a bad wire ----------------------------------------------------------------------------

DEEDS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1), st.sampled_from([1, 100, 1448, 5000, 40_000])),
    st.tuples(st.just("read"), st.integers(0, 1), st.sampled_from([1, 1000, 100_000])),
    st.tuples(st.just("pass"), st.sampled_from([1 * MS, 11 * MS, 50 * MS, 400 * MS, 3 * SECOND])),
    st.tuples(st.just("shut"), st.integers(0, 1)),
)
BAD_WIRES = st.builds(
    Wire,
    loss=st.sampled_from([0, 0.05, 0.2]),
    reorder=st.sampled_from([0, 0.2]),
    duplicate=st.sampled_from([0, 0.1]),
    corrupt=st.sampled_from([0, 0.02]),
)


def does(talk: Talk, deed: tuple[Any, ...]) -> None:
    """One of `DEEDS`, where it still can be done."""
    kind, *rest = deed
    if kind == "pass":
        talk.passes(*rest)
    elif not talk.closed[rest[0]]:
        if kind == "shut":
            talk.ends[rest[0]].shutdown(1)
        else:
            {"write": talk.writes, "read": talk.reads, "close": talk.closes}[kind](*rest)


@settings(max_examples=150)
@given(BAD_WIRES, st.integers(1, 1000), st.lists(DEEDS, max_size=30))
def test_e31_whoever_writes_and_reads_when_it_suits_them_all_arrives_in_order(
    wire: Wire, seed: int, deeds: list[tuple[Any, ...]]
) -> None:
    talk = Talk(wire, seed=seed, tcp=PATIENT)
    for deed in deeds:
        does(talk, deed)
    for which in range(2):
        talk.ends[which].shutdown(1)

    def finished() -> bool:
        for which in range(2):
            talk.reads(which, 1 << 20)
        return all(talk.ended)

    talk.run(finished, 3600 * SECOND)

    assert [len(talk.read[1 - which]) for which in range(2)] == talk.written
    talk.ends_all()


@settings(max_examples=150)
@given(
    BAD_WIRES,
    st.integers(1, 1000),
    st.lists(st.one_of(DEEDS, st.tuples(st.just("close"), st.integers(0, 1))), max_size=30),
)
def test_e33_whoever_closes_whenever_what_was_read_was_written_and_nothing_is_left(
    wire: Wire, seed: int, deeds: list[tuple[Any, ...]]
) -> None:
    talk = Talk(wire, seed=seed, tcp=PATIENT)
    for deed in deeds:
        does(talk, deed)
    for _ in range(20):
        for which in range(2):
            if not talk.closed[which]:
                talk.reads(which, 1 << 20)
        talk.passes(SECOND)
    for which in range(2):
        assert len(talk.read[1 - which]) <= talk.written[which]
    talk.ends_all()
