"""Queues of every kind, for those who show whatever a board has.

Sections: `Snapshot`, `queue_tables`, `index_line`, `same_entries`, `legends`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from rich.console import RenderableType
from rich.text import Text

from vring.view import packed, rings, xen_rings
from vring.view.decode import SplitRingState
from vring.view.decode_packed import PackedRingState
from vring.view.decode_xen import XenRingState
from vring.view.packed import PackedSnapshot
from vring.view.rings import QueueSnapshot
from vring.view.xen_rings import XenSnapshot

Snapshot: TypeAlias = QueueSnapshot | PackedSnapshot | XenSnapshot
RingState: TypeAlias = SplitRingState | PackedRingState | XenRingState


def queue_tables(snapshot: Snapshot, before: RingState | None = None) -> RenderableType:
    """The queue under its indices, for a console of 100 columns.

    Args:
        before: the same queue earlier; cells that differ are marked.
    """
    if isinstance(snapshot, XenSnapshot):
        return xen_rings.xen_ring_tables(snapshot, before if isinstance(before, XenRingState) else None)
    if isinstance(snapshot, PackedSnapshot):
        return packed.packed_tables(snapshot, before if isinstance(before, PackedRingState) else None)
    return rings.ring_tables(snapshot, before if isinstance(before, SplitRingState) else None)


def index_line(state: RingState, before: RingState | None = None) -> Text:
    """The indices and events on one line; those that differ from `before` are marked."""
    if isinstance(state, XenRingState):
        return xen_rings.index_line(state, before if isinstance(before, XenRingState) else None)
    if isinstance(state, PackedRingState):
        return packed.event_line(state, before if isinstance(before, PackedRingState) else None)
    return rings.index_line(state, before if isinstance(before, SplitRingState) else None)


def same_entries(state: RingState, before: RingState) -> bool:
    """Whether nothing but flags and events differs."""
    if isinstance(state, XenRingState):
        names: tuple[str, ...] = ("req_prod", "rsp_prod", "slots")
    elif isinstance(state, PackedRingState):
        names = ("desc",)
    else:
        names = ("desc", "avail_idx", "avail_ring", "used_idx", "used_ring")
    return all(getattr(state, name) == getattr(before, name) for name in names)


def legends(snapshots: Iterable[Snapshot]) -> list[str]:
    """What the words at the entries mean, for each kind of queue that is among these; virtio's where there is none."""
    texts = {QueueSnapshot: rings.LEGEND, PackedSnapshot: packed.LEGEND, XenSnapshot: xen_rings.LEGEND}
    kinds = {type(snapshot) for snapshot in snapshots} or {QueueSnapshot}
    return [text for kind, text in texts.items() if kind in kinds]
