"""The counters of every layer as one compact table a guest; counters at zero are left out.

The layers are shown in the order in which a frame meets them. Drops and errors stand out.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

ALARMING = ("drop", "error", "bad", "broken", "spurious", "unmapped", "refused", "lost", "timeout")


def counter_table(title: str, layers: Mapping[str, Mapping[str, int]]) -> RenderableType:
    """One row a layer: its name, then its counters, as many to a line as fit. Silent layers are left out.

    A line breaks only between counters, and none is ever cut off: a name that cannot be read helps nobody.
    """
    table = Table(
        box=None, title=title, title_justify="left", title_style="bold", show_header=False, padding=(0, 2, 0, 0)
    )
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for layer, counters in layers.items():
        shown = Text()
        for name, value in counters.items():
            if not value:
                continue
            if shown:
                shown.append("   ")
            alarming = any(word in name for word in ALARMING)
            shown.append(name, style="red" if alarming else "dim")
            shown.append(f"={value:,}", style="red" if alarming else "")
        if shown:
            table.add_row(layer, shown)
    return table if table.row_count else Group(Text(title, style="bold"), Text("  no traffic", style="dim"))
