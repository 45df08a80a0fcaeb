"""The bad wire: every fault by its share and its seed, nothing lost uncounted, and settings read from text."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.clock import MILLISECOND, SECOND, VirtualClock
from hw.loop import Loop
from hw.wire.cable import CableEnd, cable
from hw.wire.impair import ImpairedLink, Impairments, parse_impairments
from hw.wire.link import Frame, Link, Views
from tests.wire_ends import Station, frame, mac

A, B = mac(1), mac(2)
NEEDS_CSUM = bytes([1]) + bytes(11)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def loop(clock: VirtualClock) -> Iterator[Loop]:
    loop = Loop(clock)
    yield loop
    loop.close()


class Bench:
    """near — impaired link — cable — far."""

    def __init__(self, loop: Loop, seed: int | str = 1, **settings: float) -> None:
        self.loop = loop
        a, self.b = cable(loop, backlog_frames=100_000, backlog_bytes=1 << 30)
        self.a: CableEnd = a
        self.link = ImpairedLink(a, loop, seed, **settings)  # type: ignore[arg-type]
        self.near, self.far = Station(self.link), Station(self.b)

    def send(self, *texts: bytes, size: int = 60) -> None:
        frames = [frame(B, A, text, size=size) for text in texts]
        assert self.link.transmit(frames) == len(frames)

    def count(self, number: int) -> None:
        """Send `number` frames, each in a call of its own."""
        for one in range(number):
            self.send(b"%d" % one)


def test_without_faults_the_very_views_pass_within_the_call(loop: Loop) -> None:
    bench = Bench(loop)
    out, back = frame(B, A, b"out"), frame(A, B, b"back")

    bench.link.transmit([out])
    bench.b.transmit([back])

    assert bench.far.seen == [out]
    assert bench.far.seen[0] is out
    assert bench.near.seen[0] is back


def test_loss_takes_its_share_and_counts_it(loop: Loop) -> None:
    bench = Bench(loop, loss=0.1)

    bench.count(5000)

    lost = bench.link.counters["tx_lost"]
    assert lost == 5000 - len(bench.far.got)
    assert 400 < lost < 600


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_of_nothing_and_of_all_are_exact(loop: Loop, share: float) -> None:
    bench = Bench(loop, loss=share)

    bench.count(200)

    assert len(bench.far.got) == (0 if share else 200)


def test_delay_is_exact_and_what_waits_is_a_copy(loop: Loop, clock: VirtualClock) -> None:
    bench = Bench(loop, delay_us=10 * MILLISECOND)
    buffer = bytearray(frame(B, A, b"kept")[1][0])

    bench.link.transmit([(None, [buffer])])
    buffer[:] = b"\xa5" * len(buffer)
    loop.run(deadline=10 * MILLISECOND)
    assert bench.far.got == []

    loop.run()
    assert bench.far.texts() == [b"kept"]
    assert clock.now() == 10 * MILLISECOND


def test_jitter_spreads_the_delay_and_keeps_order(loop: Loop, clock: VirtualClock) -> None:
    bench = Bench(loop, delay_us=1000, jitter_us=500)
    arrived: list[int] = []
    bench.far.on_receive = lambda frames: arrived.extend(clock.now() for _ in frames)
    for number in range(300):
        clock.at(number * 2000, lambda: bench.send(b"x"))

    loop.run()

    delays = [when - number * 2000 for number, when in enumerate(arrived)]
    assert len(delays) == 300
    assert min(delays) >= 500
    assert max(delays) <= 1500
    assert len(set(delays)) > 100, "they differ"

    burst = Bench(loop, delay_us=1000, jitter_us=900)
    burst.count(200)
    loop.run()
    assert [int(text) for text in burst.far.texts()] == list(range(200))


def test_reorder_lets_others_overtake_and_loses_none(loop: Loop, clock: VirtualClock) -> None:
    bench = Bench(loop, reorder=0.2)
    for number in range(500):
        clock.at(number * 100, lambda number=number: bench.send(b"%d" % number))  # type: ignore[misc]

    loop.run()

    order = [int(text) for text in bench.far.texts()]
    assert sorted(order) == list(range(500))
    late = sum(1 for at in range(1, 500) if order[at] < order[at - 1])
    assert late > 30
    assert 60 < bench.link.counters["tx_reordered"] < 140


def test_duplicates_come_twice_with_the_same_bytes(loop: Loop) -> None:
    bench = Bench(loop, duplicate=0.5)

    bench.count(400)

    copies = Counter(bench.far.texts())
    assert set(copies.values()) == {1, 2}
    assert len(copies) == 400
    assert bench.link.counters["tx_duplicated"] == list(copies.values()).count(2)
    assert 150 < bench.link.counters["tx_duplicated"] < 250


def test_corruption_flips_one_bit_of_a_copy(loop: Loop) -> None:
    bench = Bench(loop, corrupt=1.0)
    original = frame(B, A, b"truth", size=100)
    before = bytes(original[1][0])

    for _ in range(50):
        bench.link.transmit([original])

    assert original[1][0] == before, "the sender's bytes stay as they are"
    flips = {int.from_bytes(got, "big") ^ int.from_bytes(before, "big") for got in bench.far.got}
    assert all(flip.bit_count() == 1 for flip in flips)
    assert len(flips) > 30, "at different places"
    assert bench.link.counters["tx_corrupted"] == 50


def test_corruption_that_no_checksum_could_show_is_a_loss(loop: Loop) -> None:
    bench = Bench(loop, corrupt=1.0)

    bench.link.transmit([frame(B, A, header=NEEDS_CSUM), frame(B, A, header=bytes(12))])

    assert len(bench.far.got) == 1
    assert bench.link.counters["tx_dropped_corrupt"] == 1
    assert bench.link.counters["tx_corrupted"] == 1


def test_the_rate_spaces_frames_by_their_length(loop: Loop, clock: VirtualClock) -> None:
    bench = Bench(loop, rate_bps=8_000_000)  # a byte a microsecond
    arrived: list[int] = []
    bench.far.on_receive = lambda frames: arrived.append(clock.now())

    bench.send(b"1", size=1000)
    bench.send(b"2", b"3", size=500)
    loop.run()
    bench.send(b"4", size=100)
    loop.run()

    assert arrived == [1000, 1500, 2000, 2100]


def test_the_queue_is_bounded_and_the_rest_counted(loop: Loop) -> None:
    bench = Bench(loop, delay_us=1000, limit=10)

    bench.count(25)
    loop.run()

    assert [int(text) for text in bench.far.texts()] == list(range(10))
    assert bench.link.counters["tx_dropped_limit"] == 15


def test_the_queue_is_bounded_in_bytes(loop: Loop) -> None:
    bench = Bench(loop, delay_us=1000)

    for _ in range(300):
        bench.send(b"big", size=65_000)
    loop.run()

    assert len(bench.far.got) == (16 << 20) // 65_000
    assert len(bench.far.got) + bench.link.counters["tx_dropped_limit"] == 300


def test_room_in_the_queue_comes_back(loop: Loop) -> None:
    bench = Bench(loop, delay_us=1000)

    for _ in range(3):
        for _ in range(200):
            bench.send(b"big", size=65_000)
        loop.run()

    assert len(bench.far.got) == 600


def test_a_frame_without_delay_stays_behind_one_that_is_just_due(loop: Loop, clock: VirtualClock) -> None:
    def draws(seed: int) -> list[int]:
        rng = random.Random(f"{seed}/tx")
        return [rng.randint(-100, 100) for _ in range(2)]

    seed = next(seed for seed in range(100) if draws(seed)[0] > 0 > draws(seed)[1])
    bench = Bench(loop, seed, jitter_us=100)
    clock.at(draws(seed)[0], lambda: bench.send(b"second"))  # set first, so it goes off first

    bench.send(b"first")
    loop.run()

    assert bench.far.texts() == [b"first", b"second"]


def test_both_directions_have_faults_of_their_own(loop: Loop) -> None:
    bench = Bench(loop, loss=0.5)
    bench.count(200)
    for number in range(200):
        bench.b.transmit([frame(A, B, b"%d" % number)])

    assert bench.near.texts() != bench.far.texts()
    assert bench.link.counters["rx_lost"] == 200 - len(bench.near.got)


def run_with(seed: int | str, **settings: float) -> tuple[list[tuple[int, bytes]], dict[str, int]]:
    clock = VirtualClock()
    loop = Loop(clock)
    bench = Bench(loop, seed, **settings)
    log: list[tuple[int, bytes]] = []
    bench.far.on_receive = lambda frames: log.extend((clock.now(), b"".join(one[1])) for one in frames)
    for number in range(300):
        clock.at(number * 70, lambda number=number: bench.send(b"%d" % number))  # type: ignore[misc]
    loop.run()
    loop.close()
    return log, dict(bench.link.counters)


def test_the_same_seed_is_the_same_wire_and_another_is_not() -> None:
    everything = {
        "loss": 0.1, "corrupt": 0.1, "duplicate": 0.1, "reorder": 0.1, "delay_us": 500, "jitter_us": 300,
        "rate_bps": 10_000_000,
    }  # fmt: skip

    first = run_with("board/eth0", **everything)

    assert run_with("board/eth0", **everything) == first
    assert run_with("board/eth1", **everything) != first
    assert run_with(7, **everything) != first


def test_a_receiver_without_room_gets_the_rest_with_resume(loop: Loop) -> None:
    bench = Bench(loop, limit=3)
    bench.near.room = 1

    bench.b.transmit([frame(A, B, b"%d" % number) for number in range(6)])
    assert bench.near.texts() == [b"0"]

    bench.near.room = None
    bench.link.resume()
    assert bench.near.texts() == [b"0", b"1", b"2", b"3"]
    assert bench.link.counters["rx_dropped_limit"] == 2


def test_pause_keeps_frames_whose_time_has_come(loop: Loop) -> None:
    bench = Bench(loop, delay_us=10)

    bench.link.pause()
    bench.b.transmit([frame(A, B, b"1")])
    loop.run()
    assert bench.near.got == []

    bench.link.resume()
    assert bench.near.texts() == [b"1"]


class SlowLink(Link):
    """A wire that takes only so many, and keeps what it took."""

    def __init__(self, room: int) -> None:
        super().__init__("slow")
        self.room = room
        self.sent: list[bytes] = []

    def transmit(self, frames: object) -> int:
        assert isinstance(frames, list)
        taken = frames[: self.room]
        self.room -= len(taken)
        self.sent += [b"".join(views)[14:].rstrip(b"\0") for _, views in taken]
        return len(taken)


def test_a_full_inner_wire_is_tried_again_when_it_is_writable(loop: Loop) -> None:
    inner = SlowLink(2)
    link = ImpairedLink(inner, loop, 1, limit=4)
    Station(link)

    assert link.transmit([frame(B, A, b"%d" % number) for number in range(8)]) == 8
    inner.room = 3
    link.writable()
    assert inner.sent == [b"0", b"1", b"2", b"3", b"4"]
    inner.room = 3
    link.writable()

    assert inner.sent == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert link.counters["tx_dropped_limit"] == 2


class DescriptorLike(Link):
    """A wire to be read from, with virtio headers."""

    header_size = 12

    def __init__(self, *frames: Frame) -> None:
        super().__init__("descriptor")
        self.frames = list(frames)

    def read_into(self, views: Views) -> int:
        if not self.frames:
            return 0
        header, pieces = self.frames.pop(0)
        data = bytes(header or bytes(12)) + b"".join(pieces)
        memoryview(views[0])[: len(data)] = data
        return len(data)


def test_frames_that_are_read_arrive_with_their_header_and_delay(loop: Loop) -> None:
    inner = DescriptorLike(frame(A, B, b"1", header=bytes(range(12))), frame(A, B, b"2"))
    link = ImpairedLink(inner, loop, 1, delay_us=100)
    near = Station(link)

    assert inner.receiver is link
    assert link.header_size == 0, "nobody reads from this one"
    link.pull(inner)
    assert near.got == []
    loop.run()

    assert near.texts() == [b"1", b"2"]
    assert near.headers == [bytes(range(12)), bytes(12)]


def test_unplugging_and_closing_drop_and_count_what_is_under_way(loop: Loop) -> None:
    bench = Bench(loop, delay_us=100)
    bench.send(b"out")
    bench.b.transmit([frame(A, B, b"in")])

    bench.link.detach()
    assert bench.link.counters["rx_dropped_no_receiver"] == 1
    bench.link.close()
    assert bench.link.counters["tx_dropped_closed"] == 1
    assert loop.next_deadline() is None
    assert bench.far.got == []
    assert bench.a.closed


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "loss": st.floats(0, 1),
            "corrupt": st.floats(0, 1),
            "duplicate": st.floats(0, 1),
            "reorder": st.floats(0, 1),
            "delay_us": st.integers(0, 3000),
            "jitter_us": st.integers(0, 3000),
            "rate_bps": st.integers(0, 10**8),
            "limit": st.integers(1, 30),
        },
    ),
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 5)), max_size=20),
    st.integers(0, 20),
)
def test_every_frame_arrives_or_is_counted(
    settings: dict[str, float], bursts: list[tuple[int, int]], room: int
) -> None:
    clock = VirtualClock()
    loop = Loop(clock)
    bench = Bench(loop, 3, **settings)
    bench.near.room = room
    sent = 0
    for pause, count in bursts:
        loop.run(deadline=clock.now() + pause)
        bench.b.transmit([frame(A, B, b"x")] * count)
        sent += count
    loop.run()
    bench.near.room = None
    bench.link.resume()
    loop.run()

    seen = bench.link.counters
    lost = seen["rx_lost"] + seen["rx_dropped_corrupt"] + seen["rx_dropped_limit"]
    assert len(bench.near.got) == sent + seen["rx_duplicated"] - lost
    loop.close()


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("loss=1%", {"loss": 0.01}),
        ("loss=0.25", {"loss": 0.25}),
        ("delay=10ms,jitter=500us", {"delay_us": 10_000, "jitter_us": 500}),
        ("delay=1.5s", {"delay_us": 1_500_000}),
        ("rate=10mbit, limit=50", {"rate_bps": 10_000_000, "limit": 50}),
        ("corrupt=0%,duplicate=100%,reorder=2.5%", {"corrupt": 0.0, "duplicate": 1.0, "reorder": 0.025}),
    ],
)
def test_settings_are_read_from_text(loop: Loop, text: str, settings: Impairments) -> None:
    read = parse_impairments(text)

    assert read == settings
    ImpairedLink(cable(loop)[0], loop, 1, **read)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "unknown impairment"),
        ("lose=1%", "there are loss, corrupt, duplicate, reorder, delay, jitter, rate, limit"),
        ("loss", "'' is not a share"),
        ("loss=101%", "at most 100%"),
        ("loss=-1%", "not a share"),
        ("loss=1%,loss=2%", "given twice"),
        ("delay=10", "not a time such as 10ms"),
        ("delay=10 ms", "not a time"),
        ("delay=nan", "not a time"),
        ("jitter=1e3ms", "not a time"),
        ("rate=10", "not a rate"),
        ("rate=0bit", "at least 1"),
        ("rate=10mb", "not a rate"),
        ("limit=0", "at least 1"),
        ("limit=2.5", "whole number"),
        ("loss=\u0661%", "not a share"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse_impairments(text)

    assert "\n" not in str(caught.value)


def test_a_second_is_a_second() -> None:
    assert parse_impairments("delay=1s") == {"delay_us": SECOND}
