"""A Xen ring as a table for people: its slots around the indices, and what lies in each.

The names are those of Xen's `io/ring.h` and `io/netif.h`. Cyan is the front end, yellow the back end; marks and words
are as in `rings.py`.

Sections: `XenSnapshot`, `xen_ring_tables`, `index_line`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vring.view.decode_xen import XenRingState
from vring.view.rings import DEVICE, DRIVER, Marks, cell, marked, new_table, rows

LEGEND = (
    "req_prod: next request   req_cons: requests read so far by the back end\n"
    "rsp_prod: next response   rsp_cons: responses read so far by the front end"
)
_WRAP = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class XenSnapshot:
    """One ring at one moment: whose it is, what its page shows, and what the halves remember.

    Attributes:
        marks: `last_avail` is the back end's req_cons, `last_used` the front end's rsp_cons.
        gref: the reference by which the back end was given the page.
        ports: the event channel, in the guest and in the back end's domain; None where it is not bound.
    """

    guest: str
    device: str
    queue: str
    ring: XenRingState
    marks: Marks = Marks()  # noqa: RUF009  (immutable)
    gref: int | None = None
    ports: tuple[int | None, int | None] = (None, None)

    @property
    def title(self) -> str:
        """Guest, device and queue, such as "alice eth0 rx"."""
        return f"{self.guest} {self.device} {self.queue}"


def index_line(state: XenRingState, before: XenRingState | None = None) -> Text:
    """The four indices on one line; those that differ from `before` are marked."""
    old = before or state
    line = Text()
    for name, value, was, style in (
        ("req_prod", state.req_prod, old.req_prod, DRIVER),
        ("rsp_event", state.rsp_event, old.rsp_event, DRIVER),
        ("rsp_prod", state.rsp_prod, old.rsp_prod, DEVICE),
        ("req_event", state.req_event, old.req_event, DEVICE),
    ):
        line.append("  " if line else "")
        line.append(f"{name} ", style=style)
        line.append_text(cell(value, value != was))
    return line


def _title(snapshot: XenSnapshot) -> Text:
    """The ring's name, its size, how much of it is with whom, and how the two ends found it."""
    state = snapshot.ring
    line = Text(snapshot.title, style="bold")
    rest = Text(f"  {state.size} slots, {state.pending} with the ")
    rest.append("back end", style=DEVICE)
    if snapshot.marks.last_used is not None:
        rest.append(f", {(state.rsp_prod - snapshot.marks.last_used) & _WRAP} answered and not yet read")
    line.append_text(rest)
    line.stylize("not bold", len(snapshot.title))
    return line


def _wiring(snapshot: XenSnapshot) -> Text:
    front, back = snapshot.ports
    text = f"page {snapshot.ring.page:#x}"
    if snapshot.gref is not None:
        text += f", granted as gref {snapshot.gref}"
    if front is not None:
        text += f"; event channel {front}" + (f", port {back} of the back end" if back is not None else ", not bound")
    return Text(text, style="dim")


def _slots(state: XenRingState, before: XenRingState | None, marks: Marks) -> Table:
    """The slots around the indices: whose each is, and what it says."""
    shown = new_table("slots", "#", "", "message", "")
    old = before or state
    size = state.size
    places = (state.req_prod, state.rsp_prod, marks.last_avail, marks.last_used)
    wanted = [place + near for place in places if place is not None for near in (-2, -1, 0)]
    unread = 0 if marks.last_used is None else (state.rsp_prod - marks.last_used) & _WRAP
    for slot in rows(wanted, size):
        if slot is None:
            shown.add_row("⋮", "", "", "")
            continue
        asked = state.is_request(slot)
        raw = state.slots[slot]
        # What changed in a slot while no response was published is a request that req_prod does not show yet.
        hidden = not asked and raw != old.slots[slot] and state.rsp_prod == old.rsp_prod
        used = asked or any(raw)
        fresh = (state.rsp_prod - 1 - slot) % size < unread
        style = DEVICE if asked else DRIVER if fresh else "dim"
        kind = "unpublished" if hidden else "request" if asked else "response" if used else ""
        text = (state.request(slot) if asked or hidden else state.response(slot)) if used else "never used"
        shown.add_row(
            cell(slot, False, style),
            cell(kind, asked != old.is_request(slot), style),
            cell(text, raw != old.slots[slot], style),
            marked(
                slot,
                ("req_prod", state.req_prod % size, DRIVER),
                ("req_cons", None if marks.last_avail is None else marks.last_avail % size, DEVICE),
                ("rsp_prod", state.rsp_prod % size, DEVICE),
                ("rsp_cons", None if marks.last_used is None else marks.last_used % size, DRIVER),
            ),
        )
    return shown


def xen_ring_tables(snapshot: XenSnapshot, before: XenRingState | None = None) -> RenderableType:
    """The ring under its indices, for a console of 100 columns.

    Args:
        before: the same ring earlier; cells that differ are marked.
    """
    state = snapshot.ring
    slots = _slots(state, before, snapshot.marks)
    return Group(_title(snapshot), _wiring(snapshot), index_line(state, before), slots)
