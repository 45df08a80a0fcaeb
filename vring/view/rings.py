"""A split virtqueue as tables for people: descriptor table, available ring and used ring, side by side.

The names are those of the standard (virtio 1.4 §2.7). Cyan is the driver, yellow the device; every colour also has a
word or a mark, so that piped output says the same. A cell that changed since the state shown before is marked `*`.

Long rings are cut to the entries around the indices; a row of dots stands for what is left out.

Sections: `Marks`, `QueueSnapshot`, `ring_tables`, `queue_line`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vring.view.decode import SplitRingState

DRIVER = "cyan"
DEVICE = "yellow"
STYLES = {"driver": DRIVER, "device": DEVICE}
WHOLE = 8  # rings up to this size are shown whole
LEGEND = "idx: written next   seen: read so far by the device   reaped: read so far by the driver"


@dataclass(frozen=True, slots=True)
class Marks:
    """What the two halves remember and the ring does not say: None where it is not known.

    Attributes:
        last_avail: how far the device has read the available ring.
        last_used: how far the driver has read the used ring.
    """

    last_avail: int | None = None
    last_used: int | None = None


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """One queue at one moment: whose it is, the ring as its memory shows it, and what the halves remember."""

    guest: str
    device: str
    queue: str
    ring: SplitRingState
    marks: Marks = Marks()

    @property
    def title(self) -> str:
        """Guest, device and queue, such as "alice eth0 rx"."""
        return f"{self.guest} {self.device} {self.queue}"


def cell(value: object, changed: bool, style: str = "") -> Text:
    """A value, marked when it has changed."""
    return Text(f"{value}*" if changed else f"{value}", style=f"bold reverse {style}" if changed else style)


def new_table(title: str, *columns: str) -> Table:
    """An empty table; columns of numbers are aligned to the right."""
    table = Table(
        box=None, title=title, title_justify="left", title_style="bold", header_style="dim", padding=(0, 2, 0, 0)
    )
    for column in columns:
        right = column in ("#", "addr", "len", "next", "head", "id")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    return table


def rows(wanted: Iterable[int], size: int) -> list[int | None]:
    """The entries to show, in order, with None for a gap."""
    if size <= WHOLE:
        return list(range(size))
    rows: list[int | None] = []
    before = -1
    for index in sorted({each % size for each in wanted}):
        if index != before + 1:
            rows.append(None)
        rows.append(index)
        before = index
    if before != size - 1:
        rows.append(None)
    return rows


def _around(state: SplitRingState, *positions: int | None) -> list[int]:
    return [position + near for position in positions if position is not None for near in (-2, -1, 0)]


def _desc_table(state: SplitRingState, before: SplitRingState | None) -> Table:
    table = new_table("descriptor table", "#", "addr", "len", "flags", "next", "owner")
    owners = state.owners()
    old_owners = before.owners() if before is not None else owners
    wanted: list[int] = []
    for head in [*state.in_flight()[:2], *state.in_flight()[-2:]]:
        wanted += state.chain(head)[:3]
    for back in (3, 2, 1):
        wanted += state.chain(state.used_ring[(state.used_idx - back) % state.size].id)[:3]
    for index in rows(wanted, state.size):
        if index is None:
            table.add_row("⋮", "", "", "", "", "")
            continue
        entry = state.desc[index]
        old = before.desc[index] if before is not None else entry
        owner = owners[index]
        empty = entry.addr == 0 and entry.len == 0 and owner == "driver"
        style = "dim" if empty else STYLES[owner]
        table.add_row(
            cell(index, False, style),
            cell(f"{entry.addr:#x}" if entry.addr else "0", entry.addr != old.addr, style),
            cell(entry.len, entry.len != old.len, style),
            cell(entry.flag_names or "-", entry.flags != old.flags, style),
            cell(entry.next, entry.next != old.next, "dim" if not entry.flags & 1 else style),
            cell(owner, owner != old_owners[index], style),
        )
    return table


def _marks(position: int, *named: tuple[str, int | None, str]) -> Text:
    """The names of the indices that stand at this slot."""
    text = Text()
    for name, index, style in named:
        if index is not None and index == position:
            text.append(" " if text else "← ")
            text.append(name, style=style)
    return text


def _avail_table(state: SplitRingState, before: SplitRingState | None, marks: Marks) -> Table:
    table = new_table("available ring", "#", "head", "")
    size = state.size
    old = before or state
    seen = marks.last_avail
    for slot in rows(_around(state, state.avail_idx, state.used_idx if seen is None else seen), size):
        if slot is None:
            table.add_row("⋮", "", "")
            continue
        waiting = (slot - state.used_idx) % size < state.pending
        style = DEVICE if waiting else "dim"
        table.add_row(
            cell(slot, False, style),
            cell(state.avail_ring[slot], state.avail_ring[slot] != old.avail_ring[slot], style),
            _marks(
                slot,
                ("idx", state.avail_idx % size, DRIVER),
                ("seen", None if seen is None else seen % size, DEVICE),
            ),
        )
    return table


def _used_table(state: SplitRingState, before: SplitRingState | None, marks: Marks) -> Table:
    table = new_table("used ring", "#", "id", "len", "")
    size = state.size
    old = before or state
    reaped = marks.last_used
    unread = 0 if reaped is None else (state.used_idx - reaped) & 0xFFFF
    for slot in rows(_around(state, state.used_idx, reaped), size):
        if slot is None:
            table.add_row("⋮", "", "", "")
            continue
        entry, was = state.used_ring[slot], old.used_ring[slot]
        style = DRIVER if reaped is not None and (slot - reaped) % size < unread else "dim"
        table.add_row(
            cell(slot, False, style),
            cell(entry.id, entry.id != was.id, style),
            cell(entry.len, entry.len != was.len, style),
            _marks(
                slot,
                ("idx", state.used_idx % size, DEVICE),
                ("reaped", None if reaped is None else reaped % size, DRIVER),
            ),
        )
    return table


def index_line(state: SplitRingState, before: SplitRingState | None = None) -> Text:
    """The fields beside the rings, on one line; those that differ from `before` are marked."""
    old = before or state
    line = Text()
    for name, value, was, style in (
        ("avail.flags", state.avail_flags, old.avail_flags, DRIVER),
        ("avail.idx", state.avail_idx, old.avail_idx, DRIVER),
        ("used_event", state.used_event, old.used_event, DRIVER),
        ("used.flags", state.used_flags, old.used_flags, DEVICE),
        ("used.idx", state.used_idx, old.used_idx, DEVICE),
        ("avail_event", state.avail_event, old.avail_event, DEVICE),
    ):
        line.append("  " if line else "")
        line.append(f"{name} ", style=style)
        line.append_text(cell(value, value != was))
    return line


def queue_line(snapshot: QueueSnapshot) -> Text:
    """The queue's name, its size, and how many chains are with whom."""
    state = snapshot.ring
    line = Text(snapshot.title, style="bold")
    line.append(f"  {state.size} entries, {state.pending} with the ", style="not bold")
    line.append("device", style=f"not bold {DEVICE}")
    reaped = snapshot.marks.last_used
    if reaped is not None:
        line.append(f", {(state.used_idx - reaped) & 0xFFFF} returned and not yet reaped", style="not bold")
    return line


def ring_tables(snapshot: QueueSnapshot, before: SplitRingState | None = None) -> RenderableType:
    """The queue as three tables side by side under its indices, for a console of 100 columns.

    Args:
        before: the same queue earlier; cells that differ are marked.
    """
    state = snapshot.ring
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_row(
        _desc_table(state, before),
        _avail_table(state, before, snapshot.marks),
        _used_table(state, before, snapshot.marks),
    )
    return Group(queue_line(snapshot), index_line(state, before), grid)
