"""The hub: learns where everybody is, floods what it does not know, and never sends anything back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.clock import SECOND, VirtualClock
from hw.loop import Loop
from hw.wire.hub import Hub
from tests.wire_ends import BROADCAST, Station, frame, mac

A, B, C, NOBODY = mac(1), mac(2), mac(3), mac(99)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def loop(clock: VirtualClock) -> Iterator[Loop]:
    loop = Loop(clock)
    yield loop
    loop.close()


@pytest.fixture
def hub(loop: Loop) -> Hub:
    return Hub(loop, "lan")


def plug(hub: Hub, *names: str) -> list[Station]:
    """A station at a new port for each name."""
    return [Station(hub.port(name)) for name in names]


def say(station: Station, *frames: object) -> None:
    assert station.link is not None
    assert station.link.transmit(list(frames)) == len(frames), "a hub takes every frame"  # type: ignore[arg-type]


def test_unknown_and_group_destinations_go_to_all_others(hub: Hub) -> None:
    a, b, c = plug(hub, "a", "b", "c")

    say(a, frame(NOBODY, A, b"who?"), frame(BROADCAST, A, b"all"), frame(b"\x01\0\x5e\0\0\1", A, b"group"))

    assert b.texts() == c.texts() == [b"who?", b"all", b"group"]
    assert a.got == []


def test_a_known_destination_gets_it_alone(hub: Hub) -> None:
    a, b, c = plug(hub, "a", "b", "c")
    say(b, frame(BROADCAST, B))
    c.got.clear()

    say(a, frame(B, A, b"for you"))

    assert b.texts() == [b"for you"]
    assert c.got == []


def test_the_very_views_and_the_virtio_header_pass(hub: Hub) -> None:
    a, b = plug(hub, "a", "b")
    super_frame = frame(B, A, size=60_000, header=bytes(range(12)))

    say(a, super_frame)

    assert b.seen[0] is super_frame


def test_frames_for_the_port_they_came_from_are_dropped_and_counted(hub: Hub) -> None:
    a, b = plug(hub, "a", "b")
    say(a, frame(BROADCAST, A), frame(BROADCAST, C))  # A and C sit behind one port
    b.got.clear()

    say(a, frame(C, A))

    assert b.got == []
    assert a.link is not None
    assert a.link.counters["tx_dropped_same_port"] == 1


def test_alone_on_the_hub_is_counted(hub: Hub) -> None:
    (a,) = plug(hub, "a")
    hub.port("empty")

    say(a, frame(BROADCAST, A), frame(B, A))

    assert a.link is not None
    assert a.link.counters["tx_dropped_no_peer"] == 2


@pytest.mark.parametrize("pieces", [[b""], [], [b"\2" * 13], [b"\2" * 6, b"\2" * 7]])
def test_runts_are_dropped_and_counted_and_their_neighbours_pass(hub: Hub, pieces: list[bytes]) -> None:
    a, b = plug(hub, "a", "b")

    say(a, frame(B, A, b"1"), (None, list(pieces)), frame(B, A, b"2"))

    assert b.texts() == [b"1", b"2"]
    assert a.link is not None
    assert a.link.counters["tx_dropped_runt"] == 1


def test_a_frame_in_small_pieces_is_switched(hub: Hub) -> None:
    a, b, c = plug(hub, "a", "b", "c")
    say(b, frame(BROADCAST, B))
    c.got.clear()
    whole = frame(B, A, b"pieces")[1][0]

    say(a, (None, [memoryview(whole)[at : at + 3] for at in range(0, len(whole), 3)]))

    assert b.texts() == [b"pieces"]
    assert c.got == []


@pytest.mark.parametrize("source", [BROADCAST, b"\x01\0\0\0\0\1", bytes(6)])
def test_a_group_or_zero_source_is_not_learnt(hub: Hub, source: bytes) -> None:
    a, _ = plug(hub, "a", "b")

    say(a, frame(BROADCAST, source))

    assert hub.addresses() == {}


def test_an_address_that_moves_is_followed_at_once(hub: Hub) -> None:
    a, b, c = plug(hub, "a", "b", "c")
    say(b, frame(BROADCAST, B))
    say(c, frame(BROADCAST, B))
    b.got.clear()
    c.got.clear()

    say(a, frame(B, A, b"there"))

    assert c.texts() == [b"there"]
    assert b.got == []
    assert hub.counters["moved"] == 1


def test_an_address_is_forgotten_after_its_age_and_not_before(hub: Hub, clock: VirtualClock) -> None:
    a, b, c = plug(hub, "a", "b", "c")
    say(b, frame(BROADCAST, B))
    c.got.clear()

    clock.jump(300 * SECOND)
    say(a, frame(B, A, b"known"))
    clock.jump(300 * SECOND + 1)
    say(a, frame(B, A, b"forgotten"))

    assert b.texts() == [b"known", b"forgotten"]
    assert c.texts() == [b"forgotten"]
    assert hub.counters["aged"] == 1


def test_being_heard_again_keeps_an_address(hub: Hub, clock: VirtualClock) -> None:
    _, b = plug(hub, "a", "b")
    say(b, frame(BROADCAST, B))
    clock.jump(200 * SECOND)
    say(b, frame(BROADCAST, B))
    clock.jump(400 * SECOND)

    assert hub.addresses() == {B: "lan.b"}


def test_the_table_is_bounded_and_the_longest_unheard_goes(loop: Loop) -> None:
    hub = Hub(loop, table_size=2)
    a, _ = plug(hub, "a", "b")

    say(a, frame(BROADCAST, A), frame(BROADCAST, B), frame(BROADCAST, A), frame(BROADCAST, C))

    assert set(hub.addresses()) == {A, C}
    assert hub.counters["evicted"] == 1


def test_ten_thousand_forged_sources_do_not_grow_the_table(hub: Hub) -> None:
    a, _ = plug(hub, "a", "b")

    say(a, *(frame(BROADCAST, mac(number)) for number in range(10_000)))

    assert len(hub.addresses()) == 1024


def test_unplugging_makes_the_hub_forget_who_sat_there(hub: Hub) -> None:
    a, b, c = plug(hub, "a", "b", "c")
    say(b, frame(BROADCAST, B))
    c.got.clear()
    assert b.link is not None
    b.link.detach()

    say(a, frame(B, A, b"gone?"))

    assert c.texts() == [b"gone?"], "an unknown destination is flooded"
    assert hub.addresses() == {A: "lan.a"}


def test_who_is_plugged_in_later_hears_what_is_for_all(hub: Hub) -> None:
    a, b = plug(hub, "a", "b")
    say(a, frame(BROADCAST, A, b"early"))

    (c,) = plug(hub, "c")
    say(a, frame(BROADCAST, A, b"late"))

    assert b.texts() == [b"early", b"late"]
    assert c.texts() == [b"late"]


def test_a_closed_port_leaves_the_hub(hub: Hub) -> None:
    a, b = plug(hub, "a", "b")
    assert b.link is not None
    b.link.close()

    say(a, frame(BROADCAST, A))

    assert [port.name for port in hub.ports] == ["lan.a"]
    assert b.got == []
    hub.close()
    assert hub.ports == []


def test_neighbours_for_the_same_port_come_as_one_batch(hub: Hub) -> None:
    a, b, c = plug(hub, "a", "b", "c")
    say(b, frame(BROADCAST, B))
    say(c, frame(BROADCAST, C))
    b.batches.clear()

    say(a, *[frame(B, A)] * 3, frame(B, NOBODY), *[frame(C, A)] * 2, frame(B, A))

    assert b.batches == [4, 1]
    assert c.batches[-1] == 2


def test_a_slow_port_does_not_hold_up_the_others(hub: Hub) -> None:
    a, b, c = plug(hub, "a", "b", "c")
    b.room = 0

    say(a, *(frame(BROADCAST, A, b"%d" % number) for number in range(3)))
    assert c.texts() == [b"0", b"1", b"2"]

    b.room = None
    assert b.link is not None
    b.link.resume()
    assert b.texts() == [b"0", b"1", b"2"]


def test_a_loop_of_two_hubs_takes_turns_and_no_stack(loop: Loop) -> None:
    one, two = Hub(loop, "one"), Hub(loop, "two")
    ends = [(Station(one.port(str(at))), Station(two.port(str(at)))) for at in range(2)]
    for left, right in ends:
        assert left.link is not None
        assert right.link is not None
        left.on_receive = lambda frames, link=right.link: link.transmit(frames)  # type: ignore[misc]
        right.on_receive = lambda frames, link=left.link: link.transmit(frames)  # type: ignore[misc]
    (a,) = plug(one, "a")

    say(a, frame(BROADCAST, A))
    loop.run(until=lambda: len(ends[0][0].got) > 1000)

    assert len(ends[0][0].got) > 1000, "the storm goes on"
    assert max(station.deepest for pair in ends for station in pair) == 1


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), max_size=6), max_size=30),
    st.lists(st.integers(0, 5), min_size=4, max_size=4),
)
def test_each_frame_goes_to_one_or_all_others_in_order_or_is_counted(
    bursts: list[list[tuple[int, int, bool]]], rooms: list[int]
) -> None:
    loop = Loop(VirtualClock())
    hub = Hub(loop, backlog_frames=10)
    stations = plug(hub, "0", "1", "2", "3")
    for station, room in zip(stations, rooms, strict=True):
        station.room = room
    sent: dict[bytes, int] = {}
    for sender, burst in enumerate(bursts):
        source = sender % 4
        frames = []
        for to, size, group in burst:
            text = b"%d" % len(sent)
            sent[text] = source
            frames.append(frame(BROADCAST if group else mac(to), mac(source), text, size=14 + len(text) + size))
        say(stations[source], *frames)
    for station in stations:
        station.room = None
        assert station.link is not None
        station.link.resume()
    loop.run()

    arrived = dict.fromkeys(sent, 0)
    for number, station in enumerate(stations):
        texts = station.texts()
        for text in texts:
            assert sent[text] != number, "never back to the sender"
            arrived[text] += 1
        for source in range(4):
            mine = [int(text) for text in texts if sent[text] == source]
            assert mine == sorted(set(mine)), "in order of their source, none twice"
    lost = sum(station.link.counters["rx_dropped_backlog_frames"] for station in stations if station.link)
    same = sum(station.link.counters["tx_dropped_same_port"] for station in stations if station.link)
    missing = sum(1 for count in arrived.values() if count == 0)
    assert set(arrived.values()) <= {0, 1, 2, 3}
    assert missing <= lost + same
    if not lost:
        assert missing == same
    loop.close()
