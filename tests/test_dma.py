"""Pages for devices: allocation, mapping with a direction, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.dma import PAGE, DmaError, DmaPool
from hw.memory import GuestMemory

PAGES = 16


@pytest.fixture
def pool() -> DmaPool:
    return DmaPool(GuestMemory(PAGES * PAGE + PAGE).port("driver"), PAGE, PAGES * PAGE + PAGE)


def test_pages_are_zeroed_even_when_they_were_used_before(pool: DmaPool) -> None:
    addr = pool.alloc(100)
    pool.memory.span(addr, PAGE)[:] = b"\xa5" * PAGE
    pool.free(addr)
    assert pool.alloc(PAGE) == addr
    assert bytes(pool.memory.span(addr, PAGE)) == bytes(PAGE)


def test_a_full_pool_says_so(pool: DmaPool) -> None:
    first = pool.alloc(8 * PAGE)
    pool.alloc(4 * PAGE + 1)
    assert pool.free_bytes == 3 * PAGE
    with pytest.raises(DmaError, match="no 4 free pages in a row; 3 pages"):
        pool.alloc(4 * PAGE)
    pool.free(first)
    assert pool.alloc(8 * PAGE) == first


@pytest.mark.parametrize("length", [0, -1])
def test_nothing_cannot_be_allocated(pool: DmaPool, length: int) -> None:
    with pytest.raises(DmaError, match="no "):
        pool.alloc(length)


@pytest.mark.parametrize(("start", "end"), [(1, PAGE), (0, PAGE + 1), (PAGE, PAGE)])
def test_a_pool_is_made_of_whole_pages(start: int, end: int) -> None:
    with pytest.raises(DmaError, match="whole pages"):
        DmaPool(GuestMemory(2 * PAGE).port("driver"), start, end)


def test_only_what_was_allocated_can_be_freed_and_only_once(pool: DmaPool) -> None:
    addr = pool.alloc(2 * PAGE)
    with pytest.raises(DmaError, match="not allocated"):
        pool.free(addr + PAGE)
    pool.free(addr)
    with pytest.raises(DmaError, match="not allocated"):
        pool.free(addr)


def test_what_is_mapped_is_not_freed(pool: DmaPool) -> None:
    addr = pool.alloc(2 * PAGE)
    pool.map(addr + PAGE + 100, 50, "from-device")
    with pytest.raises(DmaError, match="is mapped for a device"):
        pool.free(addr)
    pool.unmap(addr + PAGE + 100, 50, "from-device")
    pool.free(addr)
    assert pool.free_bytes == pool.size


def test_a_device_may_reach_what_is_mapped_in_its_direction(pool: DmaPool) -> None:
    addr = pool.alloc(PAGE)
    assert not pool.allows(addr, 1, "to-device")
    pool.map(addr, 100, "to-device")
    pool.map(addr + 200, 100, "both")
    assert pool.mapped_bytes == 200
    assert pool.allows(addr, 100, "to-device")
    assert pool.allows(addr + 99, 1, "to-device")
    assert not pool.allows(addr + 99, 2, "to-device")
    assert not pool.allows(addr, 1, "from-device")
    assert pool.allows(addr + 200, 1, "to-device")
    assert pool.allows(addr + 200, 1, "from-device")
    pool.unmap(addr, 100, "to-device")
    assert not pool.allows(addr, 1, "to-device")


def test_a_mapping_ends_as_it_began(pool: DmaPool) -> None:
    addr = pool.map(pool.alloc(PAGE), 100, "to-device")
    with pytest.raises(DmaError, match="mapped already"):
        pool.map(addr, 10, "to-device")
    for wrong in ((addr, 99, "to-device"), (addr, 100, "both"), (addr + 1, 100, "to-device")):
        with pytest.raises(DmaError, match="is not what was mapped"):
            pool.unmap(*wrong)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5 * PAGE)), max_size=40))
def test_the_pool_is_what_a_set_of_pages_would_be(steps: list[tuple[bool, int]]) -> None:
    pool = DmaPool(GuestMemory(PAGES * PAGE).port("driver"), 0, PAGES * PAGE)
    taken: dict[int, set[int]] = {}
    for take, amount in steps:
        if take:
            need = -(-amount // PAGE)
            free = set(range(PAGES)) - set().union(*taken.values())
            fit = [at for at in range(PAGES - need + 1) if set(range(at, at + need)) <= free]
            if fit:
                assert pool.alloc(amount) == fit[0] * PAGE, "first fit"
                taken[fit[0]] = set(range(fit[0], fit[0] + need))
            else:
                with pytest.raises(DmaError):
                    pool.alloc(amount)
        elif taken:
            at = sorted(taken)[amount % len(taken)]
            pool.free(at * PAGE)
            del taken[at]
        assert pool.free_bytes == PAGE * (PAGES - sum(map(len, taken.values())))
