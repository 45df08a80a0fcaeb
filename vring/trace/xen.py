"""What a trace hears of a domain's Xen cards: messages put into rings, pages copied, ports that become pending.

Promise: it hears what the access hook is told, reads copies of memory, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hw.abi import xen_netif as nif
from hw.abi.xen import XEN_PAGE_SIZE
from hw.abi.xen_event import EVTCHN_WORD_BITS, EVTCHN_WORDS, SHARED_INFO_EVTCHN_PENDING
from hw.abi.xen_ring import SRING_HEADER_SIZE
from vring.view.decode_xen import Kind, decode_grants, decode_xen_ring

if TYPE_CHECKING:
    from hw.machine import Machine
    from hw.xen.hypervisor import Domain, Hypervisor

_SLOT: dict[Kind, int] = {"tx": nif.TX_SLOT_SIZE, "rx": nif.RX_SLOT_SIZE}
# The word that completes a message, by ring and by who writes it: as a request has it, and as a response has it.
_LAST: dict[tuple[Kind, str], int] = {("tx", "driver"): 8, ("tx", "device"): 0, ("rx", "device"): 4}


class XenEar:
    """Listens to one domain.

    Args:
        machine: one that runs on Xen.
        tell: told of interface, way, stage and text.
    """

    def __init__(self, machine: Machine, tell: Callable[..., None]) -> None:
        assert machine.domain is not None
        assert machine.xen is not None
        self._machine = machine
        self._domain: Domain = machine.domain
        self._host: Hypervisor = machine.xen
        self._tell = tell
        self._owners: dict[int, tuple[str, str]] = {}  # by reference: interface and way
        self._refs: dict[int, int] = {}  # by page: the reference

    def _rings(self) -> Iterator[tuple[str, Kind, int]]:
        """Interface, kind and page of every ring that a back end has mapped."""
        for number, vif in enumerate(self._machine.vifs, len(self._machine.nics)):
            for queue in vif.device.queues:
                yield f"eth{number}", "rx", getattr(queue.rx.ring.page, "addr", -1)
                yield f"eth{number}", "tx", getattr(queue.tx.ring.page, "addr", -1)

    def stored(self, who: str, addr: int, old: int, new: int) -> None:
        """A cell was written."""
        page, offset = addr & -XEN_PAGE_SIZE, addr % XEN_PAGE_SIZE
        if page == self._domain.shared_info:
            word, rest = divmod(offset - SHARED_INFO_EVTCHN_PENDING, 8)
            if who == "xen" and 0 <= word < EVTCHN_WORDS and not rest and new & ~old:
                self._pending(EVTCHN_WORD_BITS * word + (new & ~old).bit_length() - 1)
        elif page in self._domain.grant_frames:
            if who == "driver":
                self._refs.clear()
        elif offset >= SRING_HEADER_SIZE:
            for interface, kind, ring in self._rings():
                slot, at = divmod(offset - SRING_HEADER_SIZE, _SLOT[kind])
                if page == ring and _LAST.get((kind, who)) == at:
                    self._message(interface, kind, who, ring, slot)

    def _message(self, interface: str, kind: Kind, who: str, page: int, slot: int) -> None:
        state = decode_xen_ring(self._machine.memory, page, kind)
        text = state.request(slot) if who == "driver" else state.response(slot)
        self._tell(interface, kind, "ring", f"{'request' if who == 'driver' else 'response'} {text}")

    def copied(self, who: str, addr: int, length: int) -> None:
        """Xen is about to copy from or to a page."""
        if who != "xen":
            return
        page = addr & -XEN_PAGE_SIZE
        if page not in self._refs:
            entries = decode_grants(self._machine.memory, self._domain.grant_frames)
            self._refs = {entry.address: entry.ref for entry in entries}
        ref = self._refs.get(page)
        if ref not in self._owners:
            self._find_owners()
        if ref in self._owners:
            interface, way = self._owners[ref]
            self._tell(interface, way, "grant", f"gref {ref}: {length} bytes copied")

    def _find_owners(self) -> None:
        """Whose each reference is: those that stand in the slots of the rings."""
        for interface, kind, page in self._rings():
            for raw in decode_xen_ring(self._machine.memory, page, kind).slots:
                gref = nif.TX_REQUEST.unpack(raw)[0] if kind == "tx" else nif.RX_REQUEST.unpack(raw)[2]
                self._owners[gref] = interface, kind

    def _pending(self, port: int) -> None:
        partner = self._host.channels.partner(self._domain.domid, port)
        for number, vif in enumerate(self._machine.vifs, len(self._machine.nics)):
            for queue in vif.device.queues:
                if partner is not None and partner[1] in queue.ports:
                    split = len(queue.ports) > 1 and partner[1] == queue.ports[0]
                    self._tell(f"eth{number}", "tx" if split else "rx", "event", f"port {port} is pending")
