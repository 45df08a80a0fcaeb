"""The IPv6 side of an Ethernet interface: neighbour discovery, autoconfiguration and MLD, and what they ask of it.

RFC 4861, RFC 4862, RFC 3810. The interface itself is in interface.py.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from guest.net.address import V6_ANY, AddressError, Prefix, is_v4
from guest.net.layer import Layer
from guest.net.nd import NeighbourDiscovery
from guest.net.nd_wire import ALL_ROUTERS, HOP_LIMIT, Advertisement, is_link_local, solicited_node
from guest.net.neighbour import NeighbourCache
from guest.net.route import Route
from guest.net.source import source_address

if TYPE_CHECKING:
    from guest.net.interface import Interface
    from guest.net.mld import Mld
    from guest.net.slaac import Autoconfiguration


class Interface6:
    """The IPv6 side of `interface`.

    Attributes:
        nd: neighbour discovery.
        slaac: autoconfiguration; None until it is started, or a router's redirect is to be remembered.
        mld: None where `NetConfig.membership` is off.
    """

    def __init__(self, interface: Interface, mac: bytes, cache: NeighbourCache) -> None:
        stack = interface.stack
        self.interface = interface
        self._stack = stack
        self._mac = mac
        self._in_router_group = False
        self.slaac: Autoconfiguration | None = None
        self.mld: Mld | None = None
        self.nd = NeighbourDiscovery(
            mac=mac,
            now=stack.now,
            rng=stack.rng,
            config=stack.config,
            cache=cache,
            output=self._send_nd,
            owner=self,
            counters=stack.nd_counters,
        )
        if stack.config.membership:
            from guest.net.mld import Mld  # noqa: PLC0415 - switched off, it is not loaded

            self.mld = Mld(
                now=stack.now,
                rng=stack.rng,
                config=stack.config,
                mtu=lambda: interface.mtu6,
                output=self._send_mld,
                counters=stack.mld_counters,
            )

    def _autoconfiguration(self) -> Autoconfiguration:
        """`slaac`, made when it is needed first."""
        if self.slaac is None:
            from guest.net.slaac import Autoconfiguration  # noqa: PLC0415 - hosts with addresses of their own never need it

            stack = self._stack
            self.slaac = Autoconfiguration(
                mac=self._mac,
                now=stack.now,
                rng=stack.rng,
                config=stack.config,
                solicit=lambda message, group: self._send_nd(message, self._source(group), group),
                owner=self,
                counters=stack.nd_counters,
            )
        return self.slaac

    def _source(self, towards: int) -> int:
        return source_address(self.interface, towards) or V6_ANY

    def _send_nd(self, message: bytes, src: int, dst: int) -> None:
        self._stack.icmpv6.send_message(message, src, dst, self.interface, HOP_LIMIT)

    def _send_mld(self, message: bytes, dst: int) -> None:
        src = self._source(dst)
        src = src if src >> 118 == 0x3FA else V6_ANY  # RFC 3810 §5.2.13
        self._stack.icmpv6.send_message(message, src, dst, self.interface, 1, router_alert=True)

    def layers(self) -> list[Layer]:
        """Its layers."""
        return [self.nd] if self.mld is None else [self.nd, self.mld]

    # -- the interface's state -----------------------------------------------------------------------------------

    def start(self) -> None:
        """The interface went up: addresses that were set by hand are checked, others are looked for."""
        if self.mld is not None:
            self.mld.start()
        self.set_router(self._stack.forwarding)
        delay = self._stack.config.nd_delay
        for prefix in list(self.interface.addresses):
            if prefix.address in self.interface.tentative:
                self.nd.check(prefix.address, self._stack.rng.randrange(delay) if delay > 0 else 0)
        if self._stack.config.ipv6:
            self._autoconfiguration().start()

    def stop(self) -> None:
        """The interface went down: what was set by hand is to be checked again."""
        self.nd.stop()
        if self.slaac is not None:
            self.slaac.stop()
        if self.mld is not None:
            self.mld.stop()
        interface = self.interface
        if self._stack.config.dad_transmits:
            interface.tentative |= {prefix.address for prefix in interface.addresses if not is_v4(prefix.address)}
            self._stack.ip.refresh(self._stack.interfaces)

    def link_back(self) -> None:
        """The link was gone and is back, maybe at another network: ask routers, report memberships."""
        if self.mld is not None:
            self.mld.start()
        if self.slaac is not None:
            self.slaac.ask_routers()

    def announce(self) -> None:
        """Tell all neighbours of every address that is in use (RFC 4861 §7.2.6)."""
        for prefix in self.interface.addresses:
            if not is_v4(prefix.address) and prefix.address not in self.interface.tentative:
                self.nd.announce(prefix.address)

    def set_router(self, router: bool) -> None:
        """Whether this host forwards."""
        if router != self._in_router_group:
            self._in_router_group = router
            if router:
                self._stack.ip.join(self.interface, ALL_ROUTERS)
            else:
                self._stack.ip.leave(self.interface, ALL_ROUTERS)

    def added(self, address: int, delay: int = 0) -> None:
        """`address` was added: listen for those who ask for it and, while it is tentative, ask whether it is free."""
        self._stack.ip.join(self.interface, solicited_node(address))
        if address in self.interface.tentative and self.interface.is_up:
            self.nd.check(address, delay)

    def removed(self, address: int) -> None:
        """`address` was removed."""
        self.nd.cancel(address)
        if self.slaac is not None:
            self.slaac.addresses.pop(address, None)
        self._stack.ip.leave(self.interface, solicited_node(address))

    def poll(self, now: int) -> bool:
        """Do what is due; whether anything was."""
        worked = self.nd.poll(now)
        if self.slaac is not None:
            worked = self.slaac.poll(now) or worked
        return (self.mld is not None and self.mld.poll(now)) or worked

    # -- what neighbour discovery asks ---------------------------------------------------------------------------

    @property
    def tentative(self) -> Collection[int]:
        return self.interface.tentative

    @property
    def is_router(self) -> bool:
        return self._stack.forwarding or self.nd.advertiser is not None

    def owns(self, address: int) -> bool:
        return self.interface.owns(address)

    def source_for(self, address: int) -> int | None:
        return source_address(self.interface, address)

    def assigned(self, address: int) -> None:
        self.interface.tentative.discard(address)
        self.interface.address_ready(address)
        if self.slaac is not None:
            self.slaac.ready(address)

    def duplicate(self, address: int, mac: bytes) -> None:
        self._stack.nd_counters["duplicates"] += 1
        self.interface.remove_address(address)
        if self.slaac is not None:
            self.slaac.refuse(address)
        self._stack.publish("conflict", self.interface, (address, mac))

    def conflict(self, address: int, mac: bytes) -> None:
        self.interface.conflict(address, mac)

    def router_heard(self, heard: Advertisement) -> None:
        if self.slaac is not None:
            self.slaac.heard(heard)
        else:
            self._stack.nd_counters["ignored_advertisements"] += 1

    def router_gone(self, router: int) -> None:
        if self.slaac is not None and router in self.slaac.routers:
            self.slaac.router_gone(router)

    def redirected(self, router: int, destination: int, target: int) -> bool:
        found = self._stack.ip.find(destination)
        if found is None or found[0] is not self.interface or found[1] != router or destination == router:
            return False
        if self._stack.ip.is_local(target):
            return False
        self._autoconfiguration().redirected(router, destination, None if target == destination else target)
        return True

    # -- what autoconfiguration asks -----------------------------------------------------------------------------

    @property
    def mtu(self) -> int:
        return self.interface.mtu

    def set_mtu6(self, mtu: int) -> None:
        if mtu != self.interface.mtu6:
            self.interface.mtu6 = mtu
            self._stack.changed("link", self.interface, f"mtu6 {mtu}")

    def set_hop_limit(self, hops: int) -> None:
        if hops != self.interface.hop_limit:
            self.interface.hop_limit = hops
            self._stack.ip.refresh(self._stack.interfaces)

    def may_use(self, address: int) -> bool:
        return self.interface.owns(address) and address not in self.interface.tentative

    def autoconfigure(self, prefix: Prefix, delay: int) -> bool:
        try:
            self.interface.insert(prefix, connected=is_link_local(prefix.address), delay=delay)
        except AddressError:
            return False
        return True

    def deprecate(self, address: int, deprecated: bool) -> None:
        marked = self.interface.deprecated
        if deprecated == (address in marked) or not self.interface.owns(address):
            return
        marked ^= {address}
        self._stack.changed("address", self.interface, self.interface.describe(address))

    def remove_address(self, address: int) -> bool:
        return self.interface.remove_address(address)

    def add_route(self, prefix: Prefix, gateway: int | None, metric: int, flags: int) -> None:
        try:
            self._stack.ip.routes.add(Route(prefix, gateway, self.interface, metric, flags))
        except AddressError:
            self._stack.nd_counters["ignored_routes"] += 1  # there is one that was set by hand
            return
        self._stack.changed("route", self.interface, f"added {prefix}")

    def remove_route(self, prefix: Prefix, gateway: int | None, metric: int, flags: int) -> None:
        if self._stack.ip.routes.remove(Route(prefix, gateway, self.interface, metric, flags)):
            self._stack.changed("route", self.interface, f"removed {prefix}")

    def server(self, address: int, known: bool) -> None:
        self._stack.server_known(self.interface, address, known)
