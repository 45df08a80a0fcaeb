"""Shows a recorded demo: numbered steps, each with a sentence, its accesses, and the ring where it changed.

Cyan is the driver, yellow the device, blue Xen; the words say it too, so piped output loses nothing.

Sections: `show`, one step, one access, bytes, keys.
"""

from __future__ import annotations

import sys

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from hw.abi import virtio_ring as ring_abi
from hw.abi.virtio_net import VIRTIO_NET_HDR_V1
from vring.demos.recorder import Access, Step, ring_before
from vring.demos.stage import Recording
from vring.view.decode import Descriptor
from vring.view.queues import index_line, legends, queue_tables, same_entries
from vring.view.rings import DEVICE, DRIVER

SIDE_STYLES = {"driver": DRIVER, "device": DEVICE, "xen": "bright_blue", "wire": "green", "program": "magenta"}
VERBS = {
    "load": "reads", "store": "writes", "read": "reads register", "write": "writes register", "dma": "DMA",
    "raise": "raises", "lower": "lowers", "note": "",
    "call": "calls", "copy": "copies",
}  # fmt: skip
QUIT = ("q", "Q", "\x03", "\x04", "")


def show(recording: Recording, console: Console, *, step: bool = False) -> None:
    """Print the demo; with `step` wait for a key after each step (q ends, anything else goes on)."""
    console.print(Rule(Text(recording.title, style="bold"), align="left"))
    console.print(Text(recording.intro))
    console.print(Text("\n".join(legends([recording.first])), style="dim"))
    console.print(Text("*: changed by this step", style="dim"))
    console.print()
    console.print(Padding(queue_tables(recording.first), (0, 0, 1, 4), expand=False))
    for at, each in enumerate(recording.steps):
        if step and _key(console) in QUIT:
            return
        console.print(_step(recording, at, each))


def _step(recording: Recording, at: int, step: Step) -> RenderableType:
    title, sentence = recording.words.get(step.key, (step.key, ""))
    style = SIDE_STYLES[step.who]
    head = Text(f"{at + 1} ", style="bold")
    head.append(recording.side(step.who), style=f"bold {style}")
    head.append(f": {title}", style="bold")
    parts: list[RenderableType] = [Rule(head, align="left", style="dim"), Text(sentence), Text()]
    parts.append(Padding(_accesses(recording, step), (0, 0, 0, 4), expand=False))
    for access in step.accesses:
        if access.data:
            seen = next((no for no, old in enumerate(recording.steps[:at], 1) if _carries(old, access.data)), None)
            if access.kind in ("note", "copy") and seen is not None:
                parts.append(Text(f"    {len(access.data)} bytes, the same as in step {seen}"))
            else:
                parts.append(Padding(_bytes(access, step, recording), (0, 0, 0, 4), expand=False))
    parts.append(Text())
    if step.queue is not None:
        before = ring_before(recording.steps, at, recording.first.ring)
        if same_entries(step.queue.ring, before):
            if step.queue.ring != before:
                parts += [Padding(index_line(step.queue.ring, before), (0, 0, 0, 4), expand=False), Text()]
        else:
            parts += [Padding(queue_tables(step.queue, before), (0, 0, 0, 4), expand=False), Text()]
    return Group(*parts)


def _carries(step: Step, frame: bytes) -> bool:
    """Whether the step has shown these very bytes."""
    return any(access.kind == "note" and access.data == frame for access in step.accesses)


# -- accesses --------------------------------------------------------------------------------------------------------


def _accesses(recording: Recording, step: Step) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(4):
        table.add_column(no_wrap=True)
    for access in step.accesses:
        style = SIDE_STYLES[access.who]
        raw = ""
        if access.kind == "store":
            raw = access.new.to_bytes(access.size, "little").hex(" ")
        table.add_row(
            Text(f"{recording.side(access.who)} {VERBS[access.kind]}".rstrip(), style=style),
            Text(access.name, style="bold"),
            _value(access),
            Text(raw, style=style),
        )
    return table


def _value(access: Access) -> Text:
    """What was read, or what became what."""
    if access.text:
        return Text(access.text)
    if access.kind in ("note", "raise", "lower"):
        return Text()
    if access.kind == "dma":
        return Text(f"{access.size} bytes at {access.addr:#x}")
    new = _decoded(access.name, access.new)
    if access.kind == "store" and "+" not in access.name:
        return Text(f"{_decoded(access.name, access.old)} → {new}")
    return Text(new)


def _decoded(name: str, value: int) -> str:
    """A field's value for people. A descriptor's second half is length, flags and next in one access."""
    if name.endswith(".len+flags+next"):
        entry = Descriptor(0, value & 0xFFFFFFFF, value >> 32 & 0xFFFF, value >> 48)
        return f"len {entry.len}, flags {entry.flag_names or '0'}, next {entry.next}"
    if name.endswith(".addr"):
        return f"{value:#x}" if value else "0"
    if name == "avail.flags":
        return "NO_INTERRUPT" if value == ring_abi.VRING_AVAIL_F_NO_INTERRUPT else str(value)
    if name == "used.flags":
        return "NO_NOTIFY" if value == ring_abi.VRING_USED_F_NO_NOTIFY else str(value)
    return str(value)


# -- bytes -----------------------------------------------------------------------------------------------------------


def _bytes(access: Access, step: Step, recording: Recording) -> Table:
    """The bytes that moved, cut into virtio header, Ethernet header and payload."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(no_wrap=True)
    data = access.data
    style = SIDE_STYLES[access.who]
    if access.kind == "dma":
        data = data[: _written(access, step, recording)]
        for name, field in VIRTIO_NET_HDR_V1.fields.items():
            raw = data[field.offset : field.offset + field.size]
            table.add_row(f"virtio_net_hdr.{name}", Text(raw.hex(" "), style=style), str(int.from_bytes(raw, "little")))
        data = data[VIRTIO_NET_HDR_V1.size :]
    table.add_row("ethernet.destination", Text(data[:6].hex(" "), style=style), data[:6].hex(":"))
    table.add_row("ethernet.source", Text(data[6:12].hex(" "), style=style), data[6:12].hex(":"))
    kind = int.from_bytes(data[12:14], "big")
    table.add_row("ethernet.type", Text(data[12:14].hex(" "), style=style), f"{kind:#06x}")
    for start in range(14, len(data), 16):
        line = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        table.add_row("payload" if start == 14 else "", Text(line.hex(" "), style=style), text)
    return table


def _written(access: Access, step: Step, recording: Recording) -> int:
    """How many bytes of a DMA moved: all that were read, or as many as the used ring says were written."""
    if not access.name.endswith("(to be written)"):
        return access.size
    later = recording.steps[recording.steps.index(step) :]
    lengths = [
        each.new for one in later for each in one.accesses
        if each.kind == "store" and each.name.startswith("used.ring") and each.name.endswith(".len")
    ]  # fmt: skip
    return lengths[0] if lengths else access.size


# -- keys ------------------------------------------------------------------------------------------------------------


def _key(console: Console) -> str:
    """Wait for a key at a terminal, for a line elsewhere; empty at the end of the input."""
    console.print(Text("  press Enter or space to go on, q to end", style="dim"))
    if not sys.stdin.isatty():
        return sys.stdin.readline()[:1]
    import termios  # noqa: PLC0415  (a terminal is at hand)
    import tty  # noqa: PLC0415

    fd = sys.stdin.fileno()
    saved = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        return sys.stdin.read(1)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)
