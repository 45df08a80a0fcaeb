"""Cutting a packet into fragments: RFC 791 §3.2, RFC 8200 §4.5. The pieces share the packet's bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MAX_VIEWS = 8  # of one piece; a piece of more is copied together, since a driver has only so many descriptors


def slices(views: Sequence[memoryview], room: int) -> Iterator[tuple[int, bool, list[memoryview]]]:
    """Cut a packet's content into pieces of `room` bytes, the last maybe shorter.

    Args:
        views: the content.
        room: a positive multiple of 8.

    Yields: each piece's offset, whether more follow, its views.
    """
    total = sum(map(len, views))
    offset = 0
    index = 0
    start = 0  # in views[index]
    while offset < total:
        rest = min(room, total - offset)
        end = offset + rest
        piece: list[memoryview] = []
        while rest:
            view = views[index]
            part = view[start : start + rest]
            piece.append(part)
            rest -= len(part)
            start += len(part)
            if start == len(view):
                index += 1
                start = 0
        if len(piece) > MAX_VIEWS:
            piece = [memoryview(b"".join(piece))]
        yield offset, end < total, piece
        offset = end
