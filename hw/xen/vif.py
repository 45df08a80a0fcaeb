"""A vif as the toolstack makes it: the nodes of both ends in the store, and the back end behind them.

Read first: Xen's docs/misc/xenstore-paths.pandoc, `hw/abi/xen_bus.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hw.abi import xen_bus as bus
from hw.abi.xen import DOM0
from hw.loop import Loop
from hw.wire.link import Link
from hw.xen.netback import Netback, Profile
from hw.xen.ports import EventPort, GrantPort
from hw.xen.store_client import StoreAccess

MTU_DEFAULT = 1500


class Host(Protocol):
    """The control domain, where back ends live: `hw.xen.hypervisor.Hypervisor`, or a real one's devices."""

    @property
    def loop(self) -> Loop: ...
    @property
    def store(self) -> StoreAccess: ...
    @property
    def grants(self) -> GrantPort: ...
    @property
    def events(self) -> EventPort: ...

    def schedule(self, callback: Callable[[], None]) -> None:
        """Give `callback` a turn."""


class FrontDomain(Protocol):
    """The domain that an interface is for; it calls what is in `resumed` when it was resumed elsewhere."""

    @property
    def domid(self) -> int: ...
    @property
    def resumed(self) -> list[Callable[[], None]]: ...


class Vif:
    """One network interface of a domain.

    Args:
        host: where the back end lives.
        domain: whose interface.
        handle: its number in the domain, from 0 without a gap.
        link: the end of a wire that its back end is plugged into.
        mac: 6 bytes.
        mtu: the largest IP packet; told to the front end when it is not 1500.
        profile: what the back end offers.

    Attributes:
        device: the back end.
    """

    def __init__(
        self,
        host: Host,
        domain: FrontDomain,
        handle: int,
        link: Link,
        *,
        mac: bytes,
        mtu: int = MTU_DEFAULT,
        profile: Profile | None = None,
    ) -> None:
        self.host = host
        self.domain = domain
        self.handle = handle
        self.mac = mac
        self.device = Netback(
            link,
            domain.domid,
            handle,
            store=host.store,
            grants=host.grants,
            events=host.events,
            clock=host.loop.clock,
            schedule=host.schedule,
            mtu=mtu,
            profile=profile,
        )
        self._write_nodes(mtu)
        self.device.start()
        domain.resumed.append(self.device.restart)

    def _write_nodes(self, mtu: int) -> None:
        """What `xl` writes before the domain runs."""
        store, domid = self.host.store, self.domain.domid
        front, back = self.device.frontend, self.device.backend
        mac = self.mac.hex(":")
        for path, permissions in ((back, ("n0", f"r{domid}")), (front, (f"n{domid}", "r0"))):
            store.mkdir(path)
            store.permit(path, *permissions)
        store.write_all(
            back,
            {bus.FRONTEND: front, bus.FRONTEND_ID: domid, bus.ONLINE: 1, bus.HANDLE: self.handle, bus.MAC: mac},
        )
        store.write_all(
            front, {bus.BACKEND: back, bus.BACKEND_ID: DOM0, bus.HANDLE: self.handle, bus.MAC: mac}
        )
        if mtu != MTU_DEFAULT:
            store.write(f"{front}/{bus.MTU}", mtu)
        store.write(f"{back}/{bus.STATE}", bus.XenbusStateInitialising)
        store.write(f"{front}/{bus.STATE}", bus.XenbusStateInitialising)

    def unplug(self) -> None:
        """Ask the front end to let go, as `xl network-detach` does: the back end closes with it."""
        self.host.store.write(f"{self.device.backend}/{bus.ONLINE}", 0)
        self.host.store.write(f"{self.device.backend}/{bus.STATE}", bus.XenbusStateClosing)

    def close(self) -> None:
        """Take the interface away; harmless when it was."""
        if self.device.restart in self.domain.resumed:
            self.domain.resumed.remove(self.device.restart)
        self.device.stop()
        self.device.link.detach()
