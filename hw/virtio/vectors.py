"""Frames in pieces: cutting, gathering and scattering lists of views.

A frame or a buffer is a list of views, in order. Cutting one copies at most a header that lies in
several pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

from hw.wire.link import Buffer, Views


def split_header(views: Sequence[memoryview], length: int) -> tuple[Buffer, Views]:
    """The first `length` bytes of `views` and views of the rest; a header in one piece is not copied."""
    first = views[0]
    if len(first) > length:
        return first[:length], [first[length:], *views[1:]]
    if len(first) == length:
        return first, list(views[1:])
    header = gather(views, length)
    rest: Views = []
    skip = length
    for view in views:
        if skip >= len(view):
            skip -= len(view)
        else:
            rest.append(view[skip:])
            skip = 0
    return header, rest


def gather(views: Sequence[Buffer], length: int) -> bytes:
    """A copy of the first `length` bytes of `views`."""
    out = b""
    for view in views:
        out += view[: length - len(out)]
        if len(out) >= length:
            break
    return out


def scatter(source: Sequence[Buffer], target: Sequence[memoryview]) -> None:
    """Copy `source` into `target`, piece by piece; `target` must be at least as long."""
    pieces = iter(target)
    room: memoryview = next(pieces)
    for view in source:
        at = 0
        while at < len(view):
            while not room:
                room = next(pieces)
            count = min(len(room), len(view) - at)
            room[:count] = view[at : at + count]
            room = room[count:]
            at += count
