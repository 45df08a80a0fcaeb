"""The back half of a shared ring: against a naive model, and against the macros of Xen's own headers.

In the second part one page has C's front half and our back half, a second page C's on both sides. The same things
happen on both; the pages must stay equal byte for byte, and every notification decision must be the same.
"""

from __future__ import annotations

import random
import struct
from collections import deque
from collections.abc import Callable
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.memory import Direction, FieldView, Format, GuestMemory
from hw.xen.ring import BackRing, RingError
from tests.requirements import require_header, require_program
from tests.witness.ring_macros import KINDS, Back, Front, compiled

WRAP = 0xFFFFFFFF
STARTS = [0, 1, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFF]


class Page:
    """A page of RAM as a back end gets it."""

    def __init__(self, start: int = 0) -> None:
        self.memory = GuestMemory(4096)
        self.bytes = self.memory.span(0, 4096)
        self.words = self.bytes.cast("I")
        self.words[0] = self.words[2] = start
        self.words[1] = self.words[3] = (start + 1) & WRAP

    def fields(self, fmt: Format) -> FieldView:
        return self.memory.fields(0, 4096, fmt, "device")

    def span(self, offset: int, length: int, direction: Direction) -> memoryview:
        return self.bytes[offset : offset + length]

    def on_reopen(self, reopen: Callable[[], None]) -> None:
        self.memory.on_reopen(reopen)

    def unmap(self) -> None:
        pass


def words_of(message: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(message) // 4}I", message)


# -- rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", STARTS)
def test_p2_requests_come_out_in_order_and_responses_go_into_their_slots(start: int) -> None:
    page = Page(start)
    ring = BackRing(page, 12, start)
    for number in range(600):
        slot = 64 + 12 * ((start + number) % 256)
        page.bytes[slot : slot + 12] = struct.pack("<III", number, 2, 3)
        page.words[0] = (start + number + 1) & WRAP
        assert ring.available() == 1
        assert ring.take() == (number, 2, 3)
        ring.put(number | 7 << 16)
        assert ring.push() == (number == 0), "rsp_event stands behind the first"
        assert page.words[2] == (start + number + 1) & WRAP
        assert page.bytes[slot : slot + 12].tobytes() == struct.pack("<III", number | 7 << 16, 2, 3)


@pytest.mark.parametrize("start", STARTS)
def test_h40_more_requests_than_the_ring_holds_are_refused(start: int) -> None:
    page = Page(start)
    ring = BackRing(page, 12, start)
    page.words[0] = (start + 256) & WRAP
    assert ring.available() == 256
    for _ in range(10):
        ring.take()
    page.words[0] = (start + 257) & WRAP
    with pytest.raises(RingError, match="req_prod is 247 ahead"):
        ring.available()
    for _ in range(10):
        ring.put(0)
    assert ring.available() == 247, "answered, they leave room"


def test_h40_an_index_that_goes_back_is_refused() -> None:
    page = Page()
    ring = BackRing(page, 8)
    page.words[0] = 5
    assert ring.available() == 5
    page.words[0] = 4
    with pytest.raises(RingError):
        ring.available()


def test_an_event_is_asked_for_with_the_request_that_is_lacking() -> None:
    page = Page()
    ring = BackRing(page, 8)
    page.words[0] = 2
    assert not ring.wait_for(5)
    assert page.words[1] == 3, "one more than there are, as Linux asks"
    assert ring.wait_for(2)
    page.words[0] = 5
    assert ring.wait_for(5)


# -- a naive model -------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(data=st.data(), start=st.sampled_from(STARTS), kind=st.sampled_from(["tx", "rx"]))
def test_p2_the_ring_is_two_queues(data: st.DataObject, start: int, kind: str) -> None:
    """Against two deques and a front half of a few lines."""
    request_size, response_size = KINDS[kind]
    slot_size = max(request_size, response_size)
    page = Page(start)
    ring = BackRing(page, slot_size, start)
    asked: deque[tuple[int, ...]] = deque()
    answered: deque[int] = deque()
    prod = cons = start
    unanswered = serial = 0
    for _ in range(data.draw(st.integers(1, 60))):
        what = data.draw(st.sampled_from(["ask", "take", "answer", "push", "fetch"]))
        if what == "ask":
            for _ in range(data.draw(st.integers(0, 256 - (prod - cons & WRAP)))):
                serial += 1
                words = (serial, serial ^ 0x5A5A, ~serial & WRAP)[: slot_size // 4]
                at = 64 + slot_size * (prod % 256)
                page.bytes[at : at + slot_size] = struct.pack(f"<{len(words)}I", *words)
                asked.append(words)
                prod = prod + 1 & WRAP
            page.words[0] = prod
        elif what == "take":
            assert ring.available() == len(asked)
            for _ in range(data.draw(st.integers(0, len(asked)))):
                assert ring.take() == asked.popleft()
                unanswered += 1
        elif what == "answer" and unanswered:
            for _ in range(data.draw(st.integers(0, unanswered))):
                serial += 1
                word = serial << 8
                ring.put(word)
                answered.append(word)
                unanswered -= 1
        elif what == "push":
            ring.push()
        elif what == "fetch":
            while cons != page.words[2]:
                at = 64 + slot_size * (cons % 256)
                assert words_of(page.bytes[at : at + 4].tobytes()) == (answered.popleft(),)
                cons = cons + 1 & WRAP
    ring.push()
    assert (page.words[2] - cons) & WRAP == len(answered)


# -- Xen's own macros ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def macros(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    require_program("gcc")
    require_header("xen/io/netif.h")
    return compiled(tmp_path_factory.mktemp("rings"))


@pytest.mark.witness
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", STARTS)
def test_p2_our_back_half_is_that_of_the_headers(macros: ModuleType, kind: str, start: int) -> None:
    rng = random.Random(f"{kind}/{start}")
    page, reference = Page(start), Page(start)
    fronts = [Front(macros, kind, each.bytes, start) for each in (page, reference)]
    theirs = Back(macros, kind, reference.bytes, start)
    ours = BackRing(page, max(KINDS[kind]), start)
    request_size, response_size = KINDS[kind]
    notified = unanswered = 0
    for step in range(1500):
        what = rng.randrange(6)
        if what == 0:
            for _ in range(rng.choice([1, 2, 40, 300])):
                message = rng.randbytes(request_size)
                if len({front.put(message) for front in fronts}) != 1:
                    pytest.fail("the two front halves differ in how much room they see")
            first, second = (front.push() for front in fronts)
            assert first == second, f"step {step}: an event to the back end"
        elif what == 1:
            for _ in range(min(rng.choice([1, 3, 256]), ours.available())):
                assert ours.take()[: request_size // 4] == words_of(theirs.take() or b"")
                unanswered += 1
        elif what == 2:
            for _ in range(rng.randint(0, unanswered)):
                message = rng.randbytes(response_size)
                ours.put(*words_of(message))
                theirs.put(message)
                unanswered -= 1
            wanted = ours.push()
            assert wanted == theirs.push(), f"step {step}: an event to the front end"
            notified += wanted
        elif what == 3:
            assert ours.final_check() == theirs.final_check(), f"step {step}"
        elif what == 4:
            while (response := fronts[0].take()) is not None:
                assert response == fronts[1].take(), f"step {step}"
        else:
            assert fronts[0].final_check() == fronts[1].final_check(), f"step {step}"
        assert page.bytes == reference.bytes, f"the pages differ at step {step}"
    assert notified > 20
