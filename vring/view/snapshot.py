"""Takes the state of a machine's queues and cards for the tables.

A queue's ring is decoded from a copy of guest memory; what the two halves remember is asked of each half. Nothing here
is told to a hook, and nothing is changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from hw.abi import virtio, virtio_net
from hw.virtio.packed import PackedQueue
from hw.virtio.split import SplitQueue
from vring.view.decode import decode_split_ring
from vring.view.decode_packed import decode_packed_ring
from vring.view.packed import PackedSnapshot, Place
from vring.view.queues import Snapshot
from vring.view.rings import Marks, QueueSnapshot
from vring.view.xen import event_lines, grant_lines, store_tree, vif_line, vif_queues

if TYPE_CHECKING:
    from guest.kernel import Guest
    from hw.machine import Machine
    from hw.virtio.mmio import VirtioMmio

QUEUE_NAMES = ("rx", "tx")
_FEATURES = {**virtio.FEATURE_NAMES, **virtio_net.FEATURE_NAMES}


def machine_queues(machine: Machine, guest: Guest) -> list[Snapshot]:
    """Every queue that is ready, in the order of the slots; then those of Xen's cards."""
    drivers = _drivers(guest)
    found: list[Snapshot] = []
    for slot, nic in enumerate(machine.nics):
        driver = drivers.get(slot)
        for index, queue in enumerate(nic.device.queues):
            if queue is None:
                continue
            name = QUEUE_NAMES[index] if index < len(QUEUE_NAMES) else f"queue {index}"
            half = driver.get(f"{name}_vq") if driver is not None else None
            areas = (queue.desc, queue.driver, queue.device)
            if isinstance(queue, PackedQueue):
                found.append(
                    PackedSnapshot(
                        guest.name, f"eth{slot}", name, decode_packed_ring(machine.memory, areas, queue.size),
                        Place(queue.next_avail, queue.avail_wrap), Place(queue.next_used, queue.used_wrap),
                        None if half is None else Place(half["avail_idx"], bool(half["avail_wrap"])),
                        None if half is None else Place(half["last_used"], bool(half["used_wrap"])),
                    )
                )  # fmt: skip
            elif isinstance(queue, SplitQueue):
                marks = Marks(queue.next_avail, half["last_used"] if half is not None else None)
                ring = decode_split_ring(machine.memory, areas, queue.size)
                found.append(QueueSnapshot(guest.name, f"eth{slot}", name, ring, marks))
    found += vif_queues(machine, guest)
    return found


def _drivers(guest: Guest) -> dict[int, dict[str, Any]]:
    """What each driver says of itself, by slot."""
    found = {}
    for slot, device in enumerate(guest.devices):
        snapshot = getattr(device, "snapshot", None)
        if snapshot is not None:
            found[slot] = snapshot()
    return found


def feature_names(features: int) -> list[str]:
    """The names of the bits in `features`, lowest first; bits without a name as numbers."""
    return [_FEATURES.get(bit, f"bit {bit}") for bit in range(features.bit_length()) if features >> bit & 1]


def status_names(status: int) -> str:
    """The bits of a device status field as words."""
    return " ".join(name for bit, name in virtio.STATUS_NAMES.items() if status & bit) or "reset"


def negotiated_lines(machine: Machine) -> Text:
    """A few lines for each card: its status, and what was negotiated."""
    text = Text(f"cards of {machine.name}", style="bold")
    for slot, nic in enumerate(machine.nics):
        text.append(f"\n  eth{slot}  {_card(nic)}", style="not bold")
    for handle, vif in enumerate(machine.vifs, len(machine.nics)):
        text.append(f"\n  eth{handle}  {vif_line(vif)}", style="not bold")
    if not machine.nics and not machine.vifs:
        text.append("\n  none", style="not bold dim")
    return text


def store_lines(machine: Machine) -> list[Text]:
    """What the store says of a machine's Xen cards; nothing for a machine that does not run on Xen."""
    if machine.xen is None or machine.domain is None:
        return []
    return [store_tree(machine.xen, machine.domain)]


def shared_lines(machine: Machine) -> list[Text]:
    """What a machine on Xen shares with others beside rings: grants, event channels; nothing for another machine."""
    if machine.xen is None or machine.domain is None:
        return []
    return [grant_lines(machine.domain), event_lines(machine.xen, machine.domain)]


def _card(nic: VirtioMmio) -> str:
    mac = getattr(nic.device, "mac", b"")
    lines = [f"{mac.hex(':')}  {status_names(nic.status)}", "features " + " ".join(feature_names(nic.features))]
    lines += [f"{what}: {why}" for what, why in (("refused", nic.refusal), ("failed", nic.failure)) if why]
    return "\n        ".join(lines)
