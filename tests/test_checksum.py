"""The Internet checksum: RFC 1071's example, every implementation against a naive one, pieces, updates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

from guest.net import checksum as module
from guest.net.checksum import (
    NATIVE_FROM,
    NUMPY_FROM,
    checksum,
    fallback_sum,
    inet_sum,
    native_sum,
    numpy_sum,
    python_sum,
    sum_views,
    update,
)

NATIVE = native_sum()
RFC_1071 = bytes([0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7])  # RFC 1071 §3


def naive_sum(data: bytes) -> int:
    """Word by word with end-around carry, as RFC 1071 §1 says it."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_rfc_1071_example() -> None:
    assert python_sum(RFC_1071) == 0xDDF2
    assert sum_views([RFC_1071]) == 0xDDF2
    assert checksum([RFC_1071]) == 0x220D


def test_the_best_implementation_is_the_one_in_use() -> None:
    assert (inet_sum is fallback_sum) == (NATIVE is None), "C where it was built, else numpy and Python"


@given(data=st.binary(max_size=4 * NUMPY_FROM))
@example(data=bytes(NUMPY_FROM))
@example(data=b"\xff" * (NUMPY_FROM + 3))
def test_numpy_and_python_agree(data: bytes) -> None:
    assert numpy_sum(data) == fallback_sum(data) == python_sum(data)


IMPLEMENTATIONS: list[Callable[[bytes], int]] = [python_sum] + ([NATIVE] if NATIVE else [])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda f: f.__name__)
@given(st.binary(max_size=300) | st.binary(min_size=1, max_size=4).map(lambda unit: unit * (4 * NATIVE_FROM)))
@example(bytes(2000))
@example(b"\xff" * 2001)
@example(b"\xff\xff" * NATIVE_FROM)
@example((b"\x00" * NATIVE_FROM) + b"\x01")
def test_each_implementation_adds_as_the_rfc_says(implementation: Callable[[bytes], int], data: bytes) -> None:
    assert implementation(data) == naive_sum(data)
    assert implementation(memoryview(bytearray(data))) == naive_sum(data), "of writable views too"


@pytest.mark.skipif(NATIVE is None, reason="the C extension is not built here")
@given(st.binary(min_size=NATIVE_FROM, max_size=70_000), st.integers(0, 3))
def test_c_and_python_agree_at_any_alignment(data: bytes, skip: int) -> None:
    assert NATIVE is not None
    view = memoryview(data)[skip:]
    assert NATIVE(view) == python_sum(view)


@given(st.lists(st.binary(max_size=9) | st.binary(min_size=NATIVE_FROM, max_size=NATIVE_FROM + 3), max_size=8))
@example([b"\x01", b"\x02\x03", b"", b"\x04"])
def test_pieces_of_odd_length_are_one_whole(pieces: list[bytes]) -> None:
    assert sum_views(map(memoryview, pieces)) == naive_sum(b"".join(pieces))


@given(st.binary(min_size=2, max_size=64), st.integers(0, 0xFFFF))
def test_an_initial_sum_counts_like_bytes_in_front(data: bytes, pseudo: int) -> None:
    assert sum_views([data], pseudo) == naive_sum(pseudo.to_bytes(2, "big") + data)


@given(st.binary(max_size=200))
def test_scapy_says_the_same(data: bytes) -> None:
    assert checksum([data]) == scapy_checksum(data)


@given(st.binary(min_size=4, max_size=40).filter(any), st.integers(0, 0xFFFF))
def test_an_update_equals_a_new_checksum(data: bytes, new: int) -> None:
    changed = new.to_bytes(2, "big") + data[2:]
    old = int.from_bytes(data[:2], "big")
    updated = update(checksum([data]), old, new)
    assert naive_sum(changed + (b"\0" if len(changed) % 2 else b"") + updated.to_bytes(2, "big")) in (0, 0xFFFF)
    if any(changed):
        assert updated == checksum([changed])


def test_rfc_1624_example() -> None:
    # RFC 1624 §4: the update of RFC 1141 gave -0 here, equation 3 gives 0
    assert update(0xDD2F, 0x5555, 0x3285) == 0x0000


def test_without_the_extension_python_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "guest._native", None)
    assert module.native_sum() is None
