"""Stateless autoconfiguration of one interface: link-local address, router solicitation, and what routers advertise.

RFC 4861 §6.3, RFC 4862 §5.3 to §5.5, RFC 4191 (router preference), RFC 8106 (name servers).

Promises:
- Prefixes, routers, name servers and redirects are bounded by the configuration; what exceeds that is counted and
  ignored, so the first come stay.
- Everything that was advertised ends with its lifetime. No advertisement cuts the valid lifetime of an address to under
  two hours (RFC 4862 §5.5.3 (e)): nobody can prove that it is a router's.
- An address that turned out to be a duplicate is not tried again until the interface goes up anew.
- The time of the next change is known without a search: `poll_at` costs nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol

from guest.net.address import Prefix, is_multicast, is_unspecified
from guest.net.config import SECOND, NetConfig
from guest.net.nd_wire import (
    ALL_ROUTERS,
    SOURCE_LINK,
    Advertisement,
    PrefixInformation,
    eui64,
    is_link_local,
    link_option,
    router_solicitation,
)
from guest.net.route import ADDRCONF, DYNAMIC

FOREVER = 0xFFFF_FFFF
TWO_HOURS = 7200 * SECOND
LINK_LOCAL = Prefix(0xFE80 << 112, 64)
DEFAULT = Prefix(0, 0)
MIN_MTU = 1280
PREFIX_METRIC = 256  # what an advertisement says gives way to what was set by hand
ROUTER_METRIC = {1: 512, 0: 1024, -1: 2048}


class SlaacOwner(Protocol):
    """What autoconfiguration asks of its interface."""

    @property
    def mtu(self) -> int:
        """Of the link."""

    def owns(self, address: int) -> bool:
        """Whether `address` is one of the interface's own, tentative or not."""

    def may_use(self, address: int) -> bool:
        """Whether it is one and not tentative."""

    def autoconfigure(self, prefix: Prefix, delay: int) -> bool:
        """Add an address that is checked for duplicates after `delay`; False where the stack has it already."""

    def deprecate(self, address: int, deprecated: bool) -> None:
        """An address's preferred lifetime has ended, or begun again."""

    def remove_address(self, address: int) -> bool:
        """Remove an address."""

    def add_route(self, prefix: Prefix, gateway: int | None, metric: int, flags: int) -> None:
        """Add a route out of the interface, its flags as in route.py."""

    def remove_route(self, prefix: Prefix, gateway: int | None, metric: int, flags: int) -> None:
        """Remove it."""

    def server(self, address: int, known: bool) -> None:
        """A name server became known, or is known no longer."""

    def set_mtu6(self, mtu: int) -> None:
        """Bytes of the largest IPv6 packet on this link."""

    def set_hop_limit(self, hops: int) -> None:
        """Hops of packets that do not say; 0 for the stack's default."""


class AutoAddress(NamedTuple):
    """When an address ends, and when it stops being preferred; None for never."""

    valid: int | None
    preferred: int | None


class Router(NamedTuple):
    """A default router: when it ends, and the metric of its route."""

    until: int
    metric: int


class Redirect(NamedTuple):
    """A better first hop to one destination: who said so, whom it names, when it ends."""

    router: int
    gateway: int | None
    until: int


class Autoconfiguration:
    """Autoconfiguration of one interface.

    Args:
        mac: the interface's address.
        now: the time.
        rng: source of delays.
        config: limits and times.
        solicit: sends a message (checksum zero) from the interface's best address to a group.
        owner: the interface.
        counters: where to count.

    Attributes:
        active: started and not stopped, on an interface of a stack with `config.ipv6`.
        addresses, routers, prefixes, servers: what routers advertised, with its ends.
        redirects: by destination.
    """

    def __init__(
        self,
        *,
        mac: bytes,
        now: Callable[[], int],
        rng: random.Random,
        config: NetConfig,
        solicit: Callable[[bytes, int], None],
        owner: SlaacOwner,
        counters: Counter[str],
    ) -> None:
        self.counters = counters
        self.active = False
        self.link_local = eui64(LINK_LOCAL.address, mac)
        self.addresses: dict[int, AutoAddress] = {}
        self.routers: dict[int, Router] = {}
        self.prefixes: dict[Prefix, int | None] = {}
        self.servers: dict[int, int | None] = {}
        self.redirects: dict[int, Redirect] = {}
        self._mac = mac
        self._now = now
        self._rng = rng
        self._config = config
        self._solicit = solicit
        self._owner = owner
        self._refused: set[int] = set()
        self._left = 0  # router solicitations to be sent
        self._solicit_at = 0
        self._due: int | None = None

    # -- the interface's state -----------------------------------------------------------------------------------

    def start(self) -> None:
        """The interface went up: make a link-local address."""
        self.active = True
        self._refused.clear()
        if not self._owner.owns(self.link_local):
            self._autoconfigure(Prefix(self.link_local, 64))
        if self._owner.may_use(self.link_local):
            self.ready(self.link_local)

    def ready(self, address: int) -> None:
        """`address` is assigned: with the link-local one, routers can be asked."""
        if self.active and address == self.link_local:
            self.ask_routers()

    def ask_routers(self) -> None:
        """Solicit routers, as after start (RFC 4861 §6.3.7)."""
        if self.active and self._owner.may_use(self.link_local):
            self._left = self._config.rs_transmits
            self._solicit_at = self._now() + self._delay()
            self._schedule()

    def refuse(self, address: int) -> None:
        """Somebody else has `address`, which is removed already."""
        self._refused.add(address)
        self.addresses.pop(address, None)
        self._schedule()

    def stop(self) -> None:
        """The interface went down: all that routers said is forgotten."""
        self.active = False
        self._left = 0
        for address in list(self.addresses):
            self._end_address(address)
        self._owner.remove_address(self.link_local)
        for router in list(self.routers):
            self.router_gone(router)
        for prefix in list(self.prefixes):
            self._end_prefix(prefix)
        for server in list(self.servers):
            self._end_server(server)
        for destination in list(self.redirects):
            self._end_redirect(destination)
        self._owner.set_hop_limit(0)
        self._owner.set_mtu6(self._owner.mtu)
        self._schedule()

    def on_link(self, address: int) -> bool:
        """Whether a router said that `address` is on this link."""
        return any(prefix.contains(address) for prefix in self.prefixes)

    def _delay(self) -> int:
        most = self._config.nd_delay
        return self._rng.randrange(most) if most > 0 else 0

    def _autoconfigure(self, prefix: Prefix) -> bool:
        return self._owner.autoconfigure(prefix, self._delay())

    # -- advertisements ------------------------------------------------------------------------------------------

    def heard(self, said: Advertisement) -> None:
        """A router has advertised."""
        if not self.active:
            self.counters["ignored_advertisements"] += 1
            return
        now = self._now()
        if said.hop_limit:
            self._owner.set_hop_limit(said.hop_limit)
        if MIN_MTU <= said.mtu <= self._owner.mtu:
            self._owner.set_mtu6(said.mtu)
        elif said.mtu:
            self.counters["ignored_mtu"] += 1
        self._heard_router(said, now)
        for information in said.prefixes:
            self._heard_prefix(information, now)
        for server, seconds in said.servers:
            self._heard_server(server, now, seconds)
        self._schedule()

    def _heard_router(self, said: Advertisement, now: int) -> None:
        router = said.router
        if said.lifetime == 0:
            self.router_gone(router)
            return
        self._left = 0  # there is a router: no need to ask on
        until = now + said.lifetime * SECOND
        base = ROUTER_METRIC[said.preference]
        before = self.routers.get(router)
        if before is not None:
            if base <= before.metric < base + self._config.nd_routers:
                self.routers[router] = before._replace(until=until)
                return
            self.router_gone(router)
        if len(self.routers) >= self._config.nd_routers:
            self.counters["ignored_routers"] += 1
            return
        taken = {other.metric for other in self.routers.values()}
        metric = next(number for number in range(base, base + len(taken) + 1) if number not in taken)
        self.routers[router] = Router(until, metric)
        self._owner.add_route(DEFAULT, router, metric, ADDRCONF)

    def _heard_prefix(self, said: PrefixInformation, now: int) -> None:
        prefix = Prefix(said.prefix, said.length)
        if is_link_local(said.prefix) or is_multicast(said.prefix) or said.length == 0:
            self.counters["ignored_prefixes"] += 1
            return
        if said.on_link:
            self._heard_on_link(prefix, said, now)
        if not said.autonomous:
            return
        if said.length != 64 or said.preferred > said.valid or is_unspecified(said.prefix):
            self.counters["ignored_prefixes"] += 1
            return
        own = eui64(said.prefix, self._mac)
        valid, preferred = _until(now, said.valid), _until(now, said.preferred)
        known = self.addresses.get(own)
        if known is not None:
            valid = _shortened(now, known.valid, valid)
            self.addresses[own] = AutoAddress(valid, preferred)
            self._owner.deprecate(own, preferred is not None and preferred <= now)
        elif said.valid and own not in self._refused and not self._owner.owns(own):
            if len(self.addresses) + len(self._refused) >= self._config.nd_prefixes:
                self.counters["ignored_prefixes"] += 1
            else:
                # Known before it is added: an address that needs no check is assigned at once.
                self.addresses[own] = AutoAddress(valid, preferred)
                if not self._autoconfigure(Prefix(own, 64)):
                    self.addresses.pop(own, None)
                elif preferred is not None and preferred <= now:
                    self._owner.deprecate(own, True)

    def _heard_on_link(self, prefix: Prefix, said: PrefixInformation, now: int) -> None:
        if said.valid == 0:
            self._end_prefix(prefix)
        elif prefix in self.prefixes:
            self.prefixes[prefix] = _until(now, said.valid)
        elif len(self.prefixes) >= self._config.nd_prefixes:
            self.counters["ignored_prefixes"] += 1
        else:
            self.prefixes[prefix] = _until(now, said.valid)
            self._owner.add_route(prefix, None, PREFIX_METRIC, ADDRCONF)

    def _heard_server(self, server: int, now: int, seconds: int) -> None:
        if seconds == 0:
            self._end_server(server)
        elif server in self.servers:
            self.servers[server] = _until(now, seconds)
        elif is_multicast(server) or is_unspecified(server) or len(self.servers) >= self._config.nd_servers:
            self.counters["ignored_servers"] += 1
        else:
            self.servers[server] = _until(now, seconds)
            self._owner.server(server, True)

    def redirected(self, router: int, destination: int, gateway: int | None) -> None:
        """A believed redirect: `gateway` (None: on this link) is the first hop to `destination` for a while."""
        self._end_redirect(destination)
        if len(self.redirects) >= self._config.nd_redirects:
            self._end_redirect(next(iter(self.redirects)))
        self.redirects[destination] = Redirect(router, gateway, self._now() + self._config.nd_redirect_ttl)
        self._owner.add_route(Prefix(destination, 128), gateway, 0, DYNAMIC)
        self._schedule()

    # -- ends ----------------------------------------------------------------------------------------------------

    def router_gone(self, router: int) -> None:
        """`router` is one no longer; what it redirected goes with it."""
        known = self.routers.pop(router, None)
        if known is not None:
            self._owner.remove_route(DEFAULT, router, known.metric, ADDRCONF)
        for destination, redirect in list(self.redirects.items()):
            if router in (redirect.router, redirect.gateway):
                self._end_redirect(destination)

    def _end_prefix(self, prefix: Prefix) -> None:
        if prefix in self.prefixes:
            del self.prefixes[prefix]
            self._owner.remove_route(prefix, None, PREFIX_METRIC, ADDRCONF)

    def _end_address(self, address: int) -> None:
        if self.addresses.pop(address, None) is not None:
            self._owner.remove_address(address)

    def _end_server(self, server: int) -> None:
        if server in self.servers:
            del self.servers[server]
            self._owner.server(server, False)

    def _end_redirect(self, destination: int) -> None:
        redirect = self.redirects.pop(destination, None)
        if redirect is not None:
            self._owner.remove_route(Prefix(destination, 128), redirect.gateway, 0, DYNAMIC)

    # -- time ----------------------------------------------------------------------------------------------------

    def _ends(self) -> list[int]:
        ends: list[int | None] = [router.until for router in self.routers.values()]
        ends += self.prefixes.values()
        ends += self.servers.values()
        ends += [redirect.until for redirect in self.redirects.values()]
        now = self._now()
        for address in self.addresses.values():
            ends.append(address.valid)
            if address.preferred is not None and address.preferred > now:
                ends.append(address.preferred)
        if self._left:
            ends.append(self._solicit_at)
        return [end for end in ends if end is not None]

    def _schedule(self) -> None:
        self._due = min(self._ends(), default=None)

    def poll(self, now: int) -> bool:
        """End what is over, solicit where that is due; whether there was anything."""
        if self._due is None or self._due > now:
            return False
        for router, known in list(self.routers.items()):
            if known.until <= now:
                self.router_gone(router)
        for prefix in [prefix for prefix, until in self.prefixes.items() if until is not None and until <= now]:
            self._end_prefix(prefix)
        for server in [server for server, until in self.servers.items() if until is not None and until <= now]:
            self._end_server(server)
        for destination in [destination for destination, known in self.redirects.items() if known.until <= now]:
            self._end_redirect(destination)
        for address, life in list(self.addresses.items()):
            if life.valid is not None and life.valid <= now:
                self._end_address(address)
            elif life.preferred is not None and life.preferred <= now:
                self._owner.deprecate(address, True)
        if self._left and self._solicit_at <= now:
            self._left -= 1
            self._solicit_at = now + self._config.rs_interval
            self.counters["tx_router_solicitations"] += 1
            self._solicit(router_solicitation(link_option(SOURCE_LINK, self._mac)), ALL_ROUTERS)
        self._schedule()
        return True

    def poll_at(self) -> int | None:
        """When `poll` is due, or None."""
        return self._due


def _until(now: int, seconds: int) -> int | None:
    """When a lifetime ends; None for never."""
    return None if seconds == FOREVER else now + seconds * SECOND


def _shortened(now: int, known: int | None, said: int | None) -> int | None:
    """When an address ends, of which an advertisement says something new (RFC 4862 §5.5.3 (e))."""
    soon = now + TWO_HOURS
    if said is None or said > soon or (known is not None and said > known):
        return said
    return known if known is not None and known <= soon else soon
