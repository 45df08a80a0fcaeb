"""A packed virtqueue as a table for people: its one ring, and what both event structures ask for.

The names are those of the standard (virtio 1.4 §2.8); colours and cuts are those of rings.py. Each entry shows its
marks as they lie in memory; the places of both halves, which memory does not say, are marked beside it with their wrap
counters, as `avail/1`.

Sections: `LEGEND`, `Place`, `PackedSnapshot`, `event_line`, `packed_tables`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from vring.view.decode_packed import PackedRingState
from vring.view.rings import DEVICE, DRIVER, STYLES, cell, new_table, rows

LEGEND = (
    "avail: made available next   seen: looked at next by the device\n"
    "used: given back next   reaped: looked at next by the driver   /1: the wrap counter there"
)


class Place(NamedTuple):
    """A place of the ring and the wrap counter there."""

    at: int
    wrap: bool


@dataclass(frozen=True, slots=True)
class PackedSnapshot:
    """One queue at one moment: whose it is, the ring as its memory shows it, and where the halves stand.

    Attributes:
        seen: where the device looks for the next available descriptor. used: where it writes the next used one.
        avail: where the driver writes the next available descriptor, reaped: where it looks for the next used one;
            None where it is not known.
    """

    guest: str
    device: str
    queue: str
    ring: PackedRingState
    seen: Place
    used: Place
    avail: Place | None = None
    reaped: Place | None = None

    @property
    def title(self) -> str:
        """Guest, device and queue, such as "alice eth0 rx"."""
        return f"{self.guest} {self.device} {self.queue}"

    def owned_by_device(self) -> set[int]:
        """The entries that were made available and not yet used: from `used` to `seen`, and what is available there."""
        state = self.ring
        owned: set[int] = set()
        at, wrap = self.used
        while (at, wrap) != self.seen and len(owned) < state.size:
            owned.add(at)
            at, wrap = state.step(at, wrap, 1)
        for entries in state.lists_from(*self.seen):
            owned.update(entries)
        return owned


def event_line(state: PackedRingState, before: PackedRingState | None = None) -> Text:
    """What both event structures ask for, on one line; what differs from `before` is marked."""
    old = before or state
    line = Text()
    line.append("driver event ", style=DRIVER)
    line.append_text(cell(state.driver_event, state.driver_event != old.driver_event))
    line.append("  device event ", style=DEVICE)
    line.append_text(cell(state.device_event, state.device_event != old.device_event))
    return line


def packed_tables(snapshot: PackedSnapshot, before: PackedRingState | None = None) -> RenderableType:
    """The queue as a table under its event structures; cells that differ from `before` are marked `*`."""
    state, old = snapshot.ring, before or snapshot.ring
    owned = snapshot.owned_by_device()
    line = Text(snapshot.title, style="bold")
    line.append(f"  {state.size} entries, packed, {len(owned)} with the ", style="not bold")
    line.append("device", style=f"not bold {DEVICE}")
    shown = new_table("descriptor ring", "#", "addr", "len", "id", "flags", "owner", "")
    places = [place for place in (snapshot.seen, snapshot.used, snapshot.avail, snapshot.reaped) if place is not None]
    for at in rows([place.at + near for place in places for near in (-2, -1, 0)], state.size):
        if at is None:
            shown.add_row("⋮", "", "", "", "", "", "")
            continue
        entry, was = state.desc[at], old.desc[at]
        owner = "device" if at in owned else "driver"
        style = STYLES[owner] if any(entry) else "dim"
        shown.add_row(
            cell(at, False, style),
            cell(f"{entry.addr:#x}" if entry.addr else "0", entry.addr != was.addr, style),
            cell(entry.len, entry.len != was.len, style),
            cell(entry.id, entry.id != was.id, style),
            cell(entry.flag_names or "-", entry.flags != was.flags, style),
            cell(owner, False, style),
            _here(snapshot, at),
        )
    return Group(line, event_line(state, before), shown)


def _here(snapshot: PackedSnapshot, at: int) -> Text:
    """The names of the places that are this entry."""
    text = Text()
    for name, place, style in (
        ("avail", snapshot.avail, DRIVER),
        ("seen", snapshot.seen, DEVICE),
        ("used", snapshot.used, DEVICE),
        ("reaped", snapshot.reaped, DRIVER),
    ):
        if place is not None and place.at == at:
            text.append(" " if text else "← ")
            text.append(f"{name}/{int(place.wrap)}", style=style)
    return text
