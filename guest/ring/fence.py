"""A full memory fence, for rings that a device in another process reads and writes.

A driver publishes an index and then reads whether the device wants a notification; it asks for an interrupt and then
takes a second look. A processor may make the later load before the earlier store, and a wake-up would be lost; some
also reorder the stores that fill an entry and the one that shows it (virtio 1.4 §2.7.13.3.1, §2.7.13.4.1, §2.7.14).

Without the C extension there is no fence in Python. Then no device in another process is offered either
(`hw/vhost/front.py` refuses it), and one in the same thread needs none.
"""

from __future__ import annotations

from collections.abc import Callable


def make_fence() -> Callable[[], object]:
    """A call that orders all memory accesses before it against all that come after it."""
    try:
        from guest._native import lib  # noqa: PLC0415  # optional: installing works without a C compiler
    except ImportError:
        return int  # does nothing
    fence: Callable[[], object] = lib.vring_fence
    return fence
