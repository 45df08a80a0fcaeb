"""What a domain has of Xen, for people: its rings, grants, event channels, and its part of the store.

Rings are found as a back end finds them: the references in the store, the pages in the grant table. Everything is read
from a copy of guest memory and from the store's tree, except what the two halves remember and who is bound to a port.
Nothing is told to a hook, and nothing is changed.

Sections: `vif_queues`, `vif_line`, `store_tree`, `grant_lines`, `event_lines`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from hw.abi import xen_bus as bus
from hw.abi.xen import DOM0
from hw.memory import MemoryFault
from hw.xen.ports import StoreError
from vring.view.decode_xen import GrantEntry, Kind, decode_events, decode_grants, decode_xen_ring
from vring.view.rings import Marks
from vring.view.xen_rings import XenSnapshot

if TYPE_CHECKING:
    from guest.kernel import Guest
    from hw.machine import Machine
    from hw.xen.hypervisor import Domain, Hypervisor
    from hw.xen.store_client import StoreAccess
    from hw.xen.vif import Vif

SHOWN = 64  # characters of a value in the store

# -- rings -----------------------------------------------------------------------------------------------------------


def vif_queues(machine: Machine, guest: Guest) -> list[XenSnapshot]:
    """The rings of every vif that is connected, in the order of the handles; of each queue rx, then tx."""
    if machine.xen is None or machine.domain is None:
        return []
    grants = {entry.ref: entry for entry in decode_grants(machine.memory, machine.domain.grant_frames)}
    drivers = {each["vif"]: each for each in _snapshots(guest) if "vif" in each}
    found = []
    for vif in machine.vifs:
        if vif.device.state == bus.XenbusStateConnected:
            shadows = drivers.get(vif.handle, {}).get("queues", [])
            name = f"eth{len(machine.nics) + vif.handle}"  # virtio's cards are found first
            found += list(_rings(machine, guest.name, name, vif, grants, shadows))
    return found


def _snapshots(guest: Guest) -> Iterator[dict[str, Any]]:
    for device in guest.devices:
        snapshot = getattr(device, "snapshot", None)
        if snapshot is not None:
            yield snapshot()


def _rings(
    machine: Machine, guest: str, name: str, vif: Vif, grants: dict[int, GrantEntry], shadows: list[dict[str, Any]]
) -> Iterator[XenSnapshot]:
    assert machine.xen is not None
    assert machine.domain is not None
    store, front = machine.xen.store, vif.device.frontend
    for number, queue in enumerate(vif.device.queues):
        several = len(vif.device.queues) > 1
        path = f"{front}/{bus.queue_key(number)}" if several else front
        shadow = shadows[number] if number < len(shadows) else {}
        kinds: tuple[tuple[Kind, str, str, int], ...] = (
            ("rx", bus.RX_RING_REF, bus.EVENT_CHANNEL_RX, queue.rx.ring.req_cons),
            ("tx", bus.TX_RING_REF, bus.EVENT_CHANNEL_TX, queue.tx.ring.req_cons),
        )
        for kind, ref_key, port_key, req_cons in kinds:
            gref = _number(store, f"{path}/{ref_key}")
            entry = grants.get(-1 if gref is None else gref)
            if entry is None:
                continue
            port = _number(store, f"{path}/{port_key}")
            port = _number(store, f"{path}/{bus.EVENT_CHANNEL}") if port is None else port
            partner = None if port is None else machine.xen.channels.partner(machine.domain.domid, port)
            half = shadow.get(f"{kind}_ring")
            try:
                ring = decode_xen_ring(machine.memory, entry.address, kind)
            except MemoryFault:
                continue
            yield XenSnapshot(
                guest, name, f"{kind}{number}" if several else kind, ring,
                Marks(req_cons, None if half is None else half["rsp_cons"]),
                gref, (port, None if partner is None else partner[1]),
            )  # fmt: skip


def _number(store: StoreAccess, path: str) -> int | None:
    try:
        return store.number(path)
    except StoreError:
        return None


# -- cards and the store ---------------------------------------------------------------------------------------------


def vif_line(vif: Vif) -> str:
    """A vif in two lines or three: its address, the states of both ends, what went wrong."""
    device = vif.device
    front = _number(device.store, f"{device.frontend}/{bus.STATE}")
    ends = f"front end {_state(front)}, back end {_state(device.state)}"
    error = f"\n        failed: {device.error}" if device.error else ""
    return f"{vif.mac.hex(':')}  vif {vif.handle} of domain {vif.domain.domid}\n        {ends}{error}"


def _state(state: int | None) -> str:
    return bus.STATE_NAMES.get(-1 if state is None else state, "none")


def store_tree(host: Hypervisor, domain: Domain) -> Text:
    """The nodes of a domain's network interfaces: its own part, then that of the back ends."""
    text = Text(f"store, domain {domain.domid} ({domain.name})", style="bold")
    for top in (
        f"{bus.domain_path(domain.domid)}/{bus.VIF_DIRECTORY}",
        f"{bus.domain_path(DOM0)}/backend/vif/{domain.domid}",
        f"{bus.domain_path(domain.domid)}/error",
        f"{bus.domain_path(DOM0)}/error/backend/vif/{domain.domid}",
    ):
        lines = list(_nodes(host.store, top))
        if lines:
            text.append(f"\n  {top}", style="not bold")
            text.append("".join(lines), style="not bold")
    return text


def _nodes(store: StoreAccess, path: str, depth: int = 2) -> Iterator[str]:
    try:
        children = store.list(path)
    except StoreError:
        return
    for name in children:
        value = store.get(f"{path}/{name}")
        shown = value if len(value) <= SHOWN else value[: SHOWN - 1] + "…"
        yield f"\n{'  ' * depth}{name}" + (f" = {shown}" if value else "")
        yield from _nodes(store, f"{path}/{name}", depth + 1)


# -- grants and event channels ---------------------------------------------------------------------------------------


def grant_lines(domain: Domain) -> Text:
    """The entries of a domain's grant table that grant something; runs of neighbours that say the same are one line."""
    text = Text(f"grant table of domain {domain.domid} ({domain.name})", style="bold")
    entries = decode_grants(domain.memory, domain.grant_frames)
    for run in _runs(entries):
        first, last = run[0], run[-1]
        refs = f"{first.ref}" if len(run) == 1 else f"{first.ref}-{last.ref}"
        pages = f"page {first.address:#x}" if len(run) == 1 else f"{len(run)} pages"
        text.append(f"\n  gref {refs:<9}  to domain {first.domid}  {pages:<15}  {first.flag_names}", style="not bold")
    if not entries:
        text.append("\n  nothing is granted", style="not bold dim")
    return text


def _runs(entries: Sequence[GrantEntry]) -> list[list[GrantEntry]]:
    runs: list[list[GrantEntry]] = []
    for entry in entries:
        before = runs[-1][-1] if runs else None
        if before is not None and (entry.ref - 1, entry.flags, entry.domid) == (
            before.ref, before.flags, before.domid
        ):  # fmt: skip
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def event_lines(host: Hypervisor, domain: Domain) -> Text:
    """A domain's ports: who is at the other end, and the bits of each in the shared info page."""
    bits = decode_events(domain.memory, domain.shared_info)
    text = Text(f"event channels of domain {domain.domid} ({domain.name})", style="bold")
    text.append(
        f"\n  evtchn_upcall_pending {bits.upcall_pending}  evtchn_pending_sel {bits.selector:#x}", style="not bold"
    )
    for port in host.channels.ports(domain.domid):
        partner = host.channels.partner(domain.domid, port)
        other = "unbound" if partner is None else f"domain {partner[0]} port {partner[1]}"
        words = [word for word, ports in (("pending", bits.pending), ("masked", bits.masked)) if port in ports]
        what = "the store" if port == domain.store_port else ""
        text.append(f"\n  port {port:<4} {other:<18} {' '.join(words) or '-':<15} {what}".rstrip(), style="not bold")
    return text
