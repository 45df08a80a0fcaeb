"""H40 to H49 from the other side: back ends that break the rules, against the guest's front end.

What is asked every time: nothing raises, nothing waits for ever, what cannot be believed is counted and told, and an
honest back end that comes later is connected to and works.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.guest_board import Board
from tests.scripted_backend import CSUM_BLANK, EXTRA, MORE, Front
from tests.test_xen_netback import tcp4

FRAME = b"\x02\0\0\0\0\2\x02\0\0\0\0\1\x88\xb5" + bytes(range(60))


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board("xen-full")
    yield made
    made.close()


@pytest.fixture
def front(board: Board) -> Front:
    made = Front(board)
    made.backend.attach()
    return made


def assert_works(front: Front) -> None:
    """A frame goes out, a frame comes in."""
    backend = front.backend
    front.got.clear()
    assert front.send(FRAME) == 1
    gref, offset, flags, id_, size = backend.requests()[-1]
    assert backend.page_of(gref)[offset : offset + size] == FRAME
    assert flags == 0
    backend.sent((id_, 0))
    backend.received(FRAME)
    backend.kick()
    assert front.got == [FRAME], front.driver.failed


def assert_recovers(front: Front, reason: str) -> None:
    """The driver has let go, has said why, and connects to an honest back end."""
    backend = front.backend
    assert reason in backend.complaint
    assert reason in (front.driver.failed or "")
    assert backend.front_state == "6"
    backend.detach()
    backend.state(2)
    front.board.run(15)
    assert backend.front_state == "4", front.driver.failed
    backend.attach()
    assert_works(front)


def test_a_scripted_back_end_can_be_an_honest_one(front: Front) -> None:
    assert_works(front)
    assert front.driver.counters["connects"] == 1


# -- H43: grants -------------------------------------------------------------------------------------------------------


def test_h43_a_page_that_stays_mapped_is_nobody_s_until_it_is_not(front: Front) -> None:
    backend, driver = front.backend, front.driver
    _, gref = backend.posted(0)
    held, frame = backend.host.grants.map(backend.domain.domid, gref), backend.frame_of(gref)
    backend.detach()
    backend.state(6)
    assert driver.counters["pages_quarantined"] == 1
    assert set(backend.granted().values()) == {frame}, "of all pages just that one is still the back end's"

    backend.state(2)
    front.board.run(1)
    backend.attach()
    assert_works(front)
    taken = list(backend.granted().values())
    assert taken.count(frame) == 1, "it is not used again meanwhile"
    assert backend.frame_of(gref) == frame

    held.span(0, 8, "from-device")[:] = b"still me"
    held.unmap()
    front.board.run(130)
    assert frame not in backend.granted().values(), "its grant could be ended"


def test_h43_what_a_back_end_never_lets_go_of_is_told_at_the_end() -> None:
    board = Board("xen-full")
    front = Front(board)
    backend = front.backend.attach()
    backend.host.grants.map(backend.domain.domid, backend.posted(3)[1])
    front.guest.close()
    assert front.guest.leaks == ["1 pages are still granted to other domains", "4096 bytes of DMA pages were not freed"]
    front.guest.leaks.clear()
    board.close()


def test_h43_transmitted_pages_may_only_be_read_and_each_page_is_granted_once(front: Front) -> None:
    backend = front.backend
    front.send(*[FRAME] * 128)
    frames = list(backend.granted().values())
    assert len(frames) == len(set(frames)) == 256 + 128 + 2
    for gref, _, _, _, _ in backend.requests():
        flags, domid, _ = backend.entry(gref)
        assert (flags, domid) == (1 | 4, 0), "permit_access, readonly, to domain 0 alone"


# -- H44: responses ----------------------------------------------------------------------------------------------------

BAD_RESPONSES = {
    "another slot's id": ("answered with id 7", [(FRAME, 0, {"id_": 7})]),
    "an id beyond the ring": ("answered with id 65535", [(FRAME, 0, {"id_": 0xFFFF})]),
    "past the page": ("at offset 4090 of a page", [(b"", 0, {"offset": 4090, "status": 7})]),
    "an offset beyond the page": ("at offset 65535 of a page", [(b"", 0, {"offset": 0xFFFF, "status": 1})]),
    "longer than the page": ("4097 bytes at offset 0", [(b"", 0, {"status": 4097})]),
    "more slots than there may be": ("more than 18 slots", [(b"x", MORE, {})] * 19),
    "empty slots without end": ("more than 18 slots", [(b"", MORE, {"status": 0})] * 19),
    "refused slots without end": ("more than 18 slots", [(b"", MORE, {"status": -1})] * 19),
}


@pytest.mark.parametrize("what", BAD_RESPONSES)
def test_h44_a_response_that_cannot_be_ends_the_connection(front: Front, what: str) -> None:
    reason, responses = BAD_RESPONSES[what]
    for data, flags, more in responses:
        front.backend.received(data, flags, **more)  # type: ignore[arg-type]
    front.backend.kick()
    assert front.got == []
    assert_recovers(front, reason)


@pytest.mark.parametrize(
    ("reason", "extras"),
    [
        ("type 2", [{"kind": 2}]),
        ("type 0", [{"kind": 0}]),
        ("two extra informations", [{"more": True}, {"more": False}]),
        ("two extra informations", [{"more": True}] * 30),
    ],
)
def test_h44_extra_information_that_cannot_be_ends_the_connection(
    front: Front, reason: str, extras: list[dict[str, int]]
) -> None:
    front.backend.received(tcp4(2000), EXTRA | CSUM_BLANK)
    for extra in extras:
        front.backend.extra(**extra)  # type: ignore[arg-type]
    front.backend.kick()
    assert front.got == []
    assert_recovers(front, reason)


@pytest.mark.parametrize(
    ("counter", "frame", "flags", "extra"),
    [
        ("rx_dropped_gso", tcp4(2000), EXTRA, {"size": 0}),
        ("rx_dropped_gso", tcp4(2000), EXTRA, {"gso": 2}),  # version 6, and the packet is of version 4
        ("rx_dropped_gso", tcp4(2000), EXTRA, {"gso": 9}),
        ("rx_dropped_csum_range", FRAME, EXTRA, {}),
        ("rx_dropped_csum_range", FRAME, CSUM_BLANK, None),
        ("rx_dropped_csum_range", FRAME[:14], CSUM_BLANK, None),
        ("rx_dropped_csum_range", tcp4(0)[:50], CSUM_BLANK, None),
        ("rx_dropped_csum_range", tcp4(0)[:20] + b"\x20\0" + tcp4(0)[22:], CSUM_BLANK, None),  # a fragment
        ("rx_dropped_csum_range", tcp4(0)[:14] + b"\x44" + tcp4(0)[15:], CSUM_BLANK, None),  # a header of 16 bytes
        ("rx_dropped_empty", b"", 0, None),
    ],
)
def test_h44_a_frame_that_cannot_be_what_it_says_is_dropped_alone(
    front: Front, counter: str, frame: bytes, flags: int, extra: dict[str, int] | None
) -> None:
    front.backend.received(frame, flags)
    if extra is not None:
        front.backend.extra(**extra)  # type: ignore[arg-type]
    front.backend.kick()
    assert front.got == []
    assert front.driver.counters[counter] == 1
    assert_works(front)


def test_h44_extra_information_where_none_was_agreed_on_ends_the_connection() -> None:
    board = Board("xen-full")
    front = Front(board, "xen_netfront.profile=plain")
    front.backend.attach()
    front.backend.received(FRAME, EXTRA)
    front.backend.extra()
    front.backend.kick()
    assert "not agreed on" in front.backend.complaint
    board.close()


def test_h44_answers_to_extra_information_that_was_never_sent_end_the_connection(front: Front) -> None:
    front.send(FRAME)
    front.backend.respond("tx", struct.pack("<Hh", 0, 1))  # NETIF_RSP_NULL
    front.backend.kick("tx")
    assert_recovers(front, "never sent")


@pytest.mark.parametrize("id_", [128, 0xFFFF])
def test_h44_an_answer_to_no_request_ends_the_connection(front: Front, id_: int) -> None:
    front.send(FRAME)
    front.backend.sent((id_, 0))
    front.backend.kick("tx")
    assert_recovers(front, f"id {id_} is not in flight")


# -- H45: stale bytes --------------------------------------------------------------------------------------------------


def test_h45_granted_pages_show_nothing_that_was_in_memory_before() -> None:
    """All RAM is full of a canary before the guest boots; no page that the back end may read ever has some."""
    board = Board("xen-full")
    canary = b"\xc0\xff\xee\x5e"
    machine = board.machine()
    memory = machine.memory.span(0, machine.memory_size)
    memory[:] = canary * (len(memory) // len(canary))
    front = Front(board, machine=machine)
    backend = front.backend.attach()

    def leaked() -> list[int]:
        return [ref for ref in backend.granted() if canary in backend.page_of(ref).tobytes()]

    assert leaked() == []
    front.send(FRAME, FRAME * 20)
    backend.received(FRAME)
    backend.kick()
    assert leaked() == []
    backend.detach()
    backend.state(6)
    backend.state(2)
    board.run(1)
    backend.attach()
    assert len(backend.granted()) == 256 + 128 + 2
    assert leaked() == []
    board.close()


def test_h45_a_frame_is_the_stack_s_alone_once_it_is_taken(front: Front) -> None:
    """What the back end writes over its page afterwards changes nothing."""
    backend = front.backend
    kept: list[memoryview] = []
    _, gref = backend.posted(0)
    assert front.driver.counters["rx_packets"] == 0
    front.driver.receiver = lambda packets: kept.extend(packet.linear for packet in packets)  # type: ignore[assignment]
    backend.received(FRAME)
    backend.host.events.notify(backend.ports["rx"])
    front.board.run(0.001)
    backend.page_of(gref)[:60] = bytes(60)
    assert [bytes(view) for view in kept] == [FRAME]


# -- H46: a back end that takes nothing --------------------------------------------------------------------------------


def test_h46_what_nobody_takes_is_bounded_dropped_and_counted(front: Front) -> None:
    backend = front.backend
    assert front.send(*[FRAME] * 200) == 128
    assert front.driver.counters["tx_dropped_ring_full"] == 72
    front.board.run(30)
    assert front.driver.queues, "nobody gives up on it"
    backend.sent(*((id_, 0) for _, _, _, id_, _ in backend.requests()))
    backend.kick("tx")
    assert_works(front)
