"""The stage of the demo on a Xen card: a domain with one vif on a cable, and a recorder that knows Xen's pages.

Sections: `XenRecorder`, `step_of` (which step an access belongs to), `XenStage`.
"""

from __future__ import annotations

from collections.abc import Callable

from guest.drivers.netfront import NetfrontDriver
from hw.machine import Machine
from hw.memory import Direction, GuestMemory
from hw.wire.link import Link
from hw.xen.hypervisor import Domain, Hypervisor
from vring.demos.recorder import Access, Kind, Recorder, Step, cut
from vring.demos.stage import MEMORY, Stage
from vring.view.decode_xen import decode_grants
from vring.view.names import FieldNames
from vring.view.queues import Snapshot
from vring.view.snapshot import machine_queues
from vring.view.xen_names import XenNames
from vring.view.xen_rings import XenSnapshot

SIDES = {"driver": "front end", "device": "back end", "xen": "Xen"}


class XenRecorder(Recorder):
    """Listens to a domain: ring words, grant entries, event bits, copies and hypercalls by their names."""

    def __init__(
        self, memory: GuestMemory, domain: Domain, names: XenNames, snapshot: Callable[[], Snapshot]
    ) -> None:
        super().__init__(memory, FieldNames(), snapshot)
        self._domain = domain
        self._xen_names = names

    def loaded(self, who: str, addr: int, size: int, value: int) -> None:
        name, say = self._xen_names.name(addr, size, response=who == "driver")
        self._add(Access(who, "load", name, addr, size, value, value, text=say(value)))

    def stored(self, who: str, addr: int, size: int, old: int, new: int) -> None:
        name, say = self._xen_names.name(addr, size, response=who == "device")
        # What was in a slot before was of the other kind, so only the new value has a meaning there.
        message = name.split("[")[0].endswith(("request", "response"))
        text = say(new) if message else f"{say(old)} → {say(new)}"
        self._add(Access(who, "store", name, addr, size, old, new, queue=self._snapshot(), text=text))

    def dma(self, who: str, addr: int, length: int, direction: Direction) -> None:
        page = addr & -4096
        entries = decode_grants(self._memory, self._domain.grant_frames)
        ref = next((entry.ref for entry in entries if entry.address == page), None)
        name = f"{addr:#x}" if ref is None else f"page of gref {ref}"
        data = bytes(self._memory.span(addr, length)) if direction == "to-device" else b""
        text = f"{length} bytes from {addr:#x}" if direction == "to-device" else f"{length} bytes to {addr:#x}"
        self._add(Access(who, "copy", name, addr, length, data=data, text=text))

    def hypercall(self, who: str, name: str, argument: int, result: int) -> None:
        self._add(Access(who, "call", f"EVTCHNOP_{name}", new=argument, text=f"port {argument}, answer {result}"))

    def interrupt(self, line: int, level: bool) -> None:
        kind: Kind = "raise" if level else "lower"
        self._add(Access("xen", kind, f"interrupt line {line}", new=int(level)))


def step_of(access: Access, after: frozenset[str]) -> str:
    """Which step of a frame's way an access belongs to; `after` are the keys of the steps before it."""
    who, kind = access.who, access.kind
    name = access.name.split("[")[0]
    if kind == "note":
        return who
    if kind in ("copy", "call"):
        return "copy" if kind == "copy" else "notify"
    if kind == "lower":
        return "upcall"
    if who == "xen":
        if name == "grant_table":
            return "grant"
        # The level of the line is looked at again before the guest is interrupted, and after it has acknowledged.
        looked = kind == "load" and name == "evtchn_upcall_pending" and (access.new or "upcall" in after)
        return "upcall" if looked else "event"
    if who == "device":
        if kind == "store":
            return "ask" if name == "req_event" else "response"
        return "response" if name == "rsp_event" else "fetch"
    if name.startswith("evtchn"):
        return "upcall"
    if kind == "store" and name == "request":
        return "request"
    if kind == "store" and name == "req_prod":
        return "publish"
    if name == "req_event":
        return "notify"
    return "poll" if "upcall" in after else "prepare"


class XenStage(Stage):
    """A booted domain with one Xen card, and its peer.

    Args:
        seed: decides addresses.
    """

    way = "a shared ring"

    def __init__(self, seed: int) -> None:
        super().__init__(1, seed)

    def _build(self, link: Link, seed: int) -> Machine:
        machine = Machine(self.loop, name="guest", memory_size=MEMORY, seed=seed, xen=Hypervisor(self.loop))
        machine.add_xen_vif(link)
        return machine

    def _rings(self) -> list[XenSnapshot]:
        return [each for each in machine_queues(self.machine, self.guest) if isinstance(each, XenSnapshot)]

    def snapshot(self) -> Snapshot:
        """The watched queue as it is now."""
        return next(each for each in self._rings() if each.queue == self._queue)

    @property
    def netfront(self) -> NetfrontDriver:
        """The guest's driver of the card."""
        (driver,) = self.guest.devices
        if not isinstance(driver, NetfrontDriver):
            raise TypeError(f"the stage has a Xen card, not {driver!r}")
        return driver

    def _recorder(self) -> Recorder:
        domain = self.machine.domain
        assert domain is not None
        names = XenNames()
        for each in self._rings():
            names.add_ring(each.ring.page, each.ring.kind, "" if each.queue == self._queue else f"{each.queue} ")
        names.add_grant_table(domain.grant_frames)
        names.add_shared_info(domain.shared_info)
        return XenRecorder(self.machine.memory, domain, names, self.snapshot)

    def _cut(self, accesses: list[Access]) -> list[Step]:
        return cut(accesses, step_of, "req_prod")
