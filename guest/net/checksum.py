"""The Internet checksum (RFC 1071), and its update when one field changes (RFC 1624).

Sums are 16-bit ones'-complement sums in network order, not inverted; a checksum is an inverted sum. A sum is 0 only
for data that is all zero; everything else that is a multiple of 65535 sums to 0xFFFF, as adding with end-around carry
does.

Three implementations give the same numbers: C, in `guest._native` where it was built; numpy, where it was not, for
pieces so long that it pays (64 KB: 8 µs against 110); and plain Python, which is the fastest for a header. `inet_sum`
is the best there is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

NATIVE_FROM = 64  # bytes from which the call into C pays
NUMPY_FROM = 2048  # bytes from which numpy pays where there is no C


def python_sum(data: Buffer) -> int:
    """The sum of `data`, in plain Python; an odd last byte is padded with zero (RFC 1071 §1)."""
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    # 2^16 is 1 modulo 65535, so the remainder is the folded sum; only zero has two representations.
    return value % 65535 or (65535 if value else 0)


def numpy_sum(data: Buffer) -> int:
    """The sum of `data`, by numpy for all but its last bytes; loads numpy on first use."""
    import numpy  # noqa: PLC0415  # heavy, and needed only without the C extension

    count = len(data) // 4
    # Ones'-complement sums do not care for byte order until the end (RFC 1071 §2(B)), so words are added as they lie.
    total = int(numpy.frombuffer(data, "<u4", count).sum(dtype="u8"))
    folded = total % 65535 or (65535 if total else 0)
    value = ((folded & 0xFF) << 8 | folded >> 8) + python_sum(data[4 * count :])
    return (value & 0xFFFF) + (value >> 16)


def fallback_sum(data: Buffer) -> int:
    """The sum of `data` without the C extension."""
    return python_sum(data) if len(data) < NUMPY_FROM else numpy_sum(data)


def native_sum() -> Callable[[Buffer], int] | None:
    """The sum in C, or None where the extension was not built."""
    try:
        from guest._native import ffi, lib  # noqa: PLC0415  # optional: installing works without a C compiler
    except ImportError:
        return None
    from_buffer = ffi.from_buffer
    summed = lib.vring_inet_sum

    def inet_sum_native(data: Buffer) -> int:
        size = len(data)
        if size < NATIVE_FROM:
            return python_sum(data)
        result: int = summed(from_buffer("uint8_t[]", data), size)
        return result

    return inet_sum_native


inet_sum: Callable[[Buffer], int] = native_sum() or fallback_sum


def sum_views(views: Iterable[Buffer], initial: int = 0) -> int:
    """The sum over pieces that follow each other, of any lengths, plus `initial` (a sum, such as a pseudo-header's)."""
    total = initial
    odd = False
    for view in views:
        part = inet_sum(view)
        if odd:  # the piece starts in the low half of a word (RFC 1071 §2(B))
            part = (part & 0xFF) << 8 | part >> 8
        total += part
        if len(view) & 1:
            odd = not odd
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(views: Iterable[Buffer], initial: int = 0) -> int:
    """The checksum over pieces that follow each other."""
    return ~sum_views(views, initial) & 0xFFFF


def update(check: int, old: int, new: int) -> int:
    """The checksum after a 16-bit word that it covers changed from `old` to `new` (RFC 1624 equation 3)."""
    total = (~check & 0xFFFF) + (~old & 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
