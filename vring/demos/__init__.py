"""Demos: one frame's way through the rings, access by access, with the side that made each.

`DEMOS` names them; `play` runs one on a console. Everything is recorded on the virtual clock first and shown
afterwards, so the same seed shows the same demo, byte for byte.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

DEMOS = {
    "tx": "the guest sends a frame: descriptor, available ring, doorbell, DMA, used ring, interrupt",
    "rx": "a frame arrives for the guest: posted buffer, DMA, used ring, interrupt, refill",
    "xen": "the guest sends a frame on a Xen card: request, grant, copy, response, event",
}


def play(name: str, console: Console, *, seed: int = 0, step: bool = False) -> None:
    """Show the demo `name` on `console`; with `step` wait for a key after each. Raises KeyError for another name."""
    from vring.demos.show import show  # noqa: PLC0415  (rich loads on first use)

    if name not in DEMOS:
        raise KeyError(name)
    show(import_module(f"vring.demos.{name}").record(seed), console, step=step)
