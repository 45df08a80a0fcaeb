"""A full memory fence, for rings that a driver in another process reads and writes.

A device publishes an index and then reads whether the driver wants an interrupt; it asks for a kick and then takes a
second look. A processor may make the later load before the earlier store, and a wake-up would be lost; some also
reorder the loads that find an entry and read it (virtio 1.4 §2.7.13, §2.7.14, §2.8.22).
"""

from __future__ import annotations

from collections.abc import Callable


def make_fence() -> Callable[[], object]:
    """A call that orders all memory accesses before it against all that come after it.

    Without the C extension it does nothing: then no ring is shared with another process (`has_fence`).
    """
    try:
        from hw._native import lib  # noqa: PLC0415  # optional: installing works without a C compiler
    except ImportError:
        return int
    fence: Callable[[], object] = lib.hw_fence
    return fence


def has_fence() -> bool:
    """Whether `make_fence` makes a real one."""
    return make_fence() is not int
