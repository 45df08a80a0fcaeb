"""A host that runs Xen: its domains, the hypercalls of each, and the control domain where the store lives.

Promises:
- A guest's mistakes come back to it as errnos below 0; no hypercall raises.
- A domain is given its special pages (shared info, grant table, store ring) in RAM behind its usable memory, the store
  connected, before its first turn.
- `poll` runs the other domains' work and never the caller's: handlers that it calls may raise interrupt lines, which
  are delivered by the loop.

Sections: `Domain` (what a guest is told and may call), `Hypervisor`.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from functools import partial

from hw.abi import xen_bus as bus
from hw.abi import xen_grant as g
from hw.abi.xen import DOM0, XEN_PAGE_SIZE
from hw.abi.xen_event import EVTCHN_2L_NR_CHANNELS
from hw.irq import IrqLine
from hw.loop import Loop
from hw.memory import GuestMemory
from hw.xen.events import EventChannels, SharedInfo
from hw.xen.grants import DomainGrants, GrantTable
from hw.xen.ports import EventError
from hw.xen.store_client import LocalStore, StoreAccess
from hw.xen.store_ring import StoreRing
from hw.xen.xenstore import Store

GRANT_FRAMES = 32  # pages of the grant table of each domain
SPECIAL_PAGES = GRANT_FRAMES + 2  # and shared info, and the store's ring
SPECIAL_BYTES = SPECIAL_PAGES * XEN_PAGE_SIZE


class DomainEvents:
    """Event channels of a domain without RAM (`hw.xen.ports.EventPort`)."""

    def __init__(self, channels: EventChannels, domid: int) -> None:
        self._channels = channels
        self._domid = domid

    def bind(self, domid: int, remote_port: int, handler: Callable[[], None]) -> int:
        port = self._channels.bind_interdomain(self._domid, domid, remote_port, handler)
        if port < 0:
            raise EventError(f"port {remote_port} of domain {domid}: {errno.errorcode.get(-port, port)}")
        return port

    def notify(self, port: int) -> None:
        self._channels.send(self._domid, port)

    def unbind(self, port: int) -> None:
        self._channels.close(self._domid, port)


class Domain:
    """A guest's domain, which is also the door that the guest sees (`guest.platform.XenPlatform`).

    Attributes: as there, all addresses guest-physical; and
        name: for people.
        memory: its RAM; the last SPECIAL_BYTES of it are the special pages.
    """

    def __init__(self, host: Hypervisor, domid: int, name: str, memory: GuestMemory, line: IrqLine) -> None:
        self._host = host
        self.domid = domid
        self.name = name
        self.memory = memory
        self.irq = line.number
        special = memory.end - SPECIAL_BYTES
        self.grant_frames = tuple(special + at * XEN_PAGE_SIZE for at in range(GRANT_FRAMES))
        self.shared_info = special + GRANT_FRAMES * XEN_PAGE_SIZE
        self.store_page = self.shared_info + XEN_PAGE_SIZE
        self.store_port = 0
        self.shared = SharedInfo(memory, self.shared_info, line)
        self.grants = GrantTable(memory, self.grant_frames)
        self.resumed: list[Callable[[], None]] = []  # called after `suspend`

    # -- hypercalls ------------------------------------------------------------------------------------------------

    def _call(self, name: str, argument: int, work: Callable[[EventChannels], int]) -> int:
        result = work(self._host.channels) if self.domid in self._host.domains else -errno.ESRCH
        hook = self.memory.hook
        if hook is not None:
            hook.hypercall("driver", name, argument, result)
        return result

    def evtchn_alloc_unbound(self, remote_domid: int) -> int:
        """A new port that `remote_domid` may bind to."""
        return self._call("alloc_unbound", remote_domid, lambda them: them.alloc_unbound(self.domid, remote_domid))

    def evtchn_bind_interdomain(self, remote_domid: int, remote_port: int) -> int:
        """A new port, joined to one that another domain keeps for this one."""
        return self._call(
            "bind_interdomain", remote_port, lambda them: them.bind_interdomain(self.domid, remote_domid, remote_port)
        )

    def evtchn_send(self, port: int) -> int:
        """Make the other end's port pending."""
        return self._call("send", port, lambda them: them.send(self.domid, port))

    def evtchn_unmask(self, port: int) -> int:
        """Clear the port's mask bit, and deliver what is pending."""
        return self._call("unmask", port, lambda them: them.unmask(self.domid, port))

    def evtchn_close(self, port: int) -> int:
        """Give the port up."""
        return self._call("close", port, lambda them: them.close(self.domid, port))

    def poll(self, port: int) -> bool:
        """Let the control domain work until `port` is pending; False when it has nothing more to do."""
        if not 0 < port < EVTCHN_2L_NR_CHANNELS:
            return False
        while not self.shared.is_pending(port):
            if not self._host.work():
                return False
        return True

    def suspend(self) -> bool:
        """Stop and be resumed on the spot, as after a migration: channels, grants and watches are gone.

        The connection to the store goes on with the same page and port.
        """
        if self.domid not in self._host.domains:
            return False
        self._host.channels.reset(self.domid, keep=self.store_port)
        self._host.xenstore.forget(self.domid)
        for at, addr in enumerate(self.grant_frames):
            kept = g.GNTTAB_NR_RESERVED_ENTRIES * g.GRANT_ENTRY_SIZE if at == 0 else 0
            self.memory.span(addr + kept, XEN_PAGE_SIZE - kept)[:] = bytes(XEN_PAGE_SIZE - kept)
        for resumed in self.resumed:
            resumed()
        return True


class Hypervisor:
    """Xen on one host.

    Args:
        loop: gives the control domain its turns.

    Attributes:
        grants, events, store: the control domain's own doors (`hw.xen.ports`), for back ends and the toolstack.
        channels, xenstore: what is behind them.
        domains: the guests' domains by number.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._queue: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self._tables: dict[int, GrantTable] = {}
        self.channels = EventChannels(self.schedule)
        self.channels.add_domain(DOM0, None)
        self.xenstore = Store()
        self.grants = DomainGrants(DOM0, self._tables)
        self.events = DomainEvents(self.channels, DOM0)
        self.store = StoreAccess(LocalStore(self.xenstore, self.schedule))
        self.domains: dict[int, Domain] = {}
        self._rings: dict[int, StoreRing] = {}
        self._next_domid = 1
        self.store.write("/local/domain/0/domid", 0)

    # -- the control domain's turns ----------------------------------------------------------------------------------

    def schedule(self, callback: Callable[[], None]) -> None:
        """Call `callback` as work of the control domain: in its next turn, or inside a guest's `poll`."""
        self._queue.append(callback)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        for _ in range(len(self._queue)):
            self.work()
        if self._queue and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def work(self) -> bool:
        """Do one piece of the control domain's work; whether there was one."""
        if not self._queue:
            return False
        self._queue.popleft()()
        return True

    # -- domains -------------------------------------------------------------------------------------------------------

    def create(self, name: str, memory: GuestMemory, line: IrqLine) -> Domain:
        """A new domain on `memory`, whose last SPECIAL_BYTES become its special pages."""
        domid = self._next_domid
        self._next_domid += 1
        domain = Domain(self, domid, name, memory, line)
        self.domains[domid] = domain
        self._tables[domid] = domain.grants
        self.channels.add_domain(domid, domain.shared)
        self._introduce(domain)
        return domain

    def _introduce(self, domain: Domain) -> None:
        """What the toolstack does for a new domain: its part of the store, and its connection to it."""
        path = bus.domain_path(domain.domid)
        store = self.store
        store.mkdir(path)
        store.permit(path, "n0", f"r{domain.domid}")
        store.write_all(path, {"name": domain.name, "domid": domain.domid})
        for key in ("control", "control/shutdown", "data", "device", "error"):
            store.mkdir(f"{path}/{key}")
        store.permit(f"{path}/device", "n0", f"r{domain.domid}")
        for key in ("control/shutdown", "data", "error"):
            store.permit(f"{path}/{key}", f"n{domain.domid}")
        entry = (g.GTF_permit_access, DOM0, domain.store_page // XEN_PAGE_SIZE)
        at = domain.grant_frames[0] + g.GNTTAB_RESERVED_XENSTORE * g.GRANT_ENTRY_SIZE
        domain.memory.span(at, g.GRANT_ENTRY_SIZE)[:] = g.GRANT_ENTRY.pack(*entry)
        domain.store_port = self.channels.alloc_unbound(domain.domid, DOM0)
        page = self.grants.map(domain.domid, g.GNTTAB_RESERVED_XENSTORE)
        port = self.channels.bind_interdomain(
            DOM0, domain.domid, domain.store_port, partial(self._serve_store, domain.domid)
        )
        ring = StoreRing(
            self.xenstore, domain.domid, page, lambda: self.events.notify(port), self.schedule
        )
        self._rings[domain.domid] = ring
        store.write_all(f"{path}/store", {"port": domain.store_port, "ring-ref": g.GNTTAB_RESERVED_XENSTORE})
        self.xenstore.introduce(domain.domid)

    def _serve_store(self, domid: int) -> None:
        ring = self._rings.get(domid)
        if ring is not None:
            ring.process()

    def destroy(self, domain: Domain) -> None:
        """Take a domain away; harmless when it is gone. Its back ends must have been closed before."""
        if self.domains.pop(domain.domid, None) is None:
            return
        self._rings.pop(domain.domid).close()
        self.channels.remove_domain(domain.domid)
        del self._tables[domain.domid]
        self.xenstore.release(domain.domid)
        self.store.remove(bus.domain_path(domain.domid))

    def request_shutdown(self, domain: Domain, reason: str) -> None:
        """Ask the guest, as `xl shutdown` does: "poweroff", "reboot", "suspend"."""
        self.store.write(f"{bus.domain_path(domain.domid)}/control/shutdown", reason)
