"""The front half of a shared ring: against a naive model, and against the macros of Xen's own headers.

In the second part one page has our front half and C's back half, a second page C's on both sides. The same things
happen on both; the pages must stay equal byte for byte, and every notification decision must be the same.
"""

from __future__ import annotations

import random
import struct
from collections import deque
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.ring.xen import FrontRing
from hw.memory import GuestMemory
from tests.requirements import require_header, require_program
from tests.witness.ring_macros import KINDS, Back, Front, compiled

WRAP = 0xFFFFFFFF
STARTS = [0, 1, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFF]


class Page:
    """A page of zeros in a guest's RAM."""

    def __init__(self) -> None:
        self.memory = GuestMemory(4096)
        self.bytes = self.memory.span(0, 4096)
        self.words = self.bytes.cast("I")

    def ring(self, kind: str, start: int) -> FrontRing:
        return FrontRing(self.memory.port("driver"), 0, *KINDS[kind], start_index=start)


def words_of(message: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(message) // 4}I", message)


@pytest.mark.parametrize("start", STARTS)
def test_p2_a_fresh_ring_has_both_producers_at_its_start_and_both_events_behind(start: int) -> None:
    page = Page()
    ring = page.ring("tx", start)

    assert list(page.words[:4]) == [start, start + 1 & WRAP, start, start + 1 & WRAP]
    assert (ring.size, ring.room, ring.in_flight, ring.pending()) == (256, 256, 0, False)


@pytest.mark.parametrize("start", STARTS)
def test_p2_requests_are_seen_once_they_are_published_and_full_is_full(start: int) -> None:
    page = Page()
    ring = page.ring("rx", start)

    assert all(ring.put((number, number)) for number in range(256))
    assert page.words[0] == start, "nothing is shown before it is published"
    assert not ring.put((256, 256))
    assert ring.publish()
    assert page.words[0] == (start + 256) & WRAP
    assert not ring.publish(), "nothing new, nobody to tell"


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("ahead", [4, 257, 0x80000000, WRAP])
def test_h40_more_responses_than_requests_break_the_ring(start: int, ahead: int) -> None:
    page = Page()
    ring = page.ring("tx", start)
    for number in range(3):
        ring.put((number, 0, 0))
    ring.publish()

    page.words[2] = (start + ahead) & WRAP

    assert ring.take(256) == []
    assert "rsp_prod" in (ring.broken or "")
    assert not ring.put((9, 0, 0))
    assert not ring.publish()
    assert not ring.pending()
    assert not ring.enable()


def test_h40_responses_that_are_taken_back_break_the_ring() -> None:
    page = Page()
    ring = page.ring("tx", 0)
    for number in range(3):
        ring.put((number, 0, 0))
    ring.publish()
    page.words[2] = 2
    assert len(ring.take(256)) == 2

    page.words[2] = 1

    assert ring.take(256) == []
    assert ring.broken


def test_h40_the_front_ends_own_indices_are_its_own() -> None:
    page = Page()
    ring = page.ring("tx", 0)
    ring.put((1, 0, 0))
    ring.publish()
    page.words[0] = 77
    page.words[3] = 99

    ring.put((2, 0, 0))
    ring.publish()

    assert page.words[0] == 2
    assert ring.in_flight == 2


def test_an_event_is_asked_for_only_while_it_can_still_come() -> None:
    page = Page()
    ring = page.ring("tx", 0)
    for number in range(4):
        ring.put((number, 0, 0))
    ring.publish()

    assert not ring.enable(2)
    assert page.words[3] == 2
    page.words[2] = 2
    assert ring.enable(2), "it is there already"


@settings(max_examples=60, deadline=None)
@given(data=st.data(), start=st.sampled_from(STARTS), kind=st.sampled_from(sorted(KINDS)))
def test_p2_the_ring_is_two_queues(data: st.DataObject, start: int, kind: str) -> None:
    page = Page()
    ring = page.ring(kind, start)
    request_words, response_words = (size // 4 for size in KINDS[kind])
    stride = max(KINDS[kind])
    hidden: deque[tuple[int, ...]] = deque()
    shown: deque[tuple[int, ...]] = deque()
    answers: deque[tuple[int, ...]] = deque()
    cons = prod = start
    serial = 0
    for _ in range(data.draw(st.integers(1, 60))):
        what = data.draw(st.sampled_from(["put", "publish", "serve", "take"]))
        if what == "put":
            for _ in range(data.draw(st.integers(0, 200))):
                serial += 1
                words = tuple((serial * 3 + word) & WRAP for word in range(request_words))
                fits = len(hidden) + len(shown) + len(answers) < 256
                assert ring.put(words) == fits
                if fits:
                    hidden.append(words)
        elif what == "publish":
            ring.publish()
            shown.extend(hidden)
            hidden.clear()
            assert page.words[0] == (cons + len(shown)) & WRAP
        elif what == "serve":
            for _ in range(data.draw(st.integers(0, len(shown)))):
                at = 64 + stride * (cons % 256)
                assert words_of(bytes(page.bytes[at : at + 4 * request_words])) == shown.popleft()
                cons = cons + 1 & WRAP
                serial += 1
                answer = tuple((serial * 5 + word) & WRAP for word in range(response_words))
                at = 64 + stride * (prod % 256)
                page.bytes[at : at + 4 * response_words] = struct.pack(f"<{response_words}I", *answer)
                prod = prod + 1 & WRAP
                answers.append(answer)
            page.words[2] = prod
        else:
            for slot, answer in ring.take(data.draw(st.integers(0, 300))):
                assert slot == (prod - len(answers)) % 256
                assert answer == answers.popleft()
        assert ring.room == 256 - len(hidden) - len(shown) - len(answers)
        assert ring.in_flight == len(shown) + len(answers)
        assert ring.pending() == bool(answers)
    assert ring.broken is None


# -- Xen's own macros ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def macros(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    require_program("gcc")
    require_header("xen/io/netif.h")
    return compiled(tmp_path_factory.mktemp("rings"))


@pytest.mark.witness
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", STARTS)
def test_p2_our_front_half_is_that_of_the_headers(macros: ModuleType, kind: str, start: int) -> None:
    rng = random.Random(f"{kind}/{start}")
    page, reference = Page(), Page()
    ours = page.ring(kind, start)
    reference.bytes[:16] = page.bytes[:16]
    theirs = Front(macros, kind, reference.bytes, start)
    backs = [Back(macros, kind, each.bytes, start) for each in (page, reference)]
    request_size, response_size = KINDS[kind]
    notified = unanswered = 0
    for step in range(1500):
        what = rng.randrange(6)
        if what == 0:
            for _ in range(rng.choice([1, 2, 40, 300])):
                message = rng.randbytes(request_size)
                assert ours.put(words_of(message)) == theirs.put(message), f"step {step}: room"
            wanted = ours.publish()
            assert wanted == theirs.push(), f"step {step}: an event to the back end"
            notified += wanted
        elif what == 1:
            while (request := backs[0].take()) is not None:
                assert request == backs[1].take(), f"step {step}"
                unanswered += 1
        elif what == 2:
            for _ in range(rng.randint(0, unanswered)):
                message = rng.randbytes(response_size)
                for back in backs:
                    back.put(message)
                unanswered -= 1
            first, second = (back.push() for back in backs)
            assert first == second, f"step {step}: an event to the front end"
        elif what == 3:
            assert backs[0].final_check() == backs[1].final_check(), f"step {step}"
        elif what == 4:
            for _, words in ours.take(rng.choice([1, 5, 256])):
                assert words == words_of(theirs.take() or b""), f"step {step}"
        elif not ours.pending():  # C's looks first, and asks only when there is nothing
            assert ours.enable() == theirs.final_check(), f"step {step}"
        assert page.bytes == reference.bytes, f"the pages differ at step {step}"
    assert notified > 20
