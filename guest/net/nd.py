"""Neighbour discovery on one interface: asks for and learns IPv6 neighbours, answers for own addresses, checks new ones
for duplicates, and takes redirects.

RFC 4861 §7, §8; RFC 4862 §5.4 (duplicate address detection); RFC 7527 (own solicitations that come back).

It fills the same cache as ARP, by the same rules: whoever asks for one of our addresses is learned, an advertisement
changes only what is known or asked for, so a flood of unsolicited ones fills nothing. Own addresses are never learned.

Every message that comes in is counted once more: under `rx_solicitations`, `rx_advertisements`, `rx_routers`,
`rx_router_solicitations`, `rx_redirects`, `rx_probes`, `rx_duplicates`, `rx_conflicts`, `rx_ignored_…` or
`rx_dropped_…`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

from guest.net.address import MAC_ZERO, V6_ANY, format_mapped, is_unspecified
from guest.net.config import NetConfig
from guest.net.family import IpHeader
from guest.net.layer import Layer
from guest.net.nd_wire import (
    ALL_NODES,
    FLAG_OVERRIDE,
    FLAG_ROUTER,
    FLAG_SOLICITED,
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    NONCE,
    REDIRECT,
    ROUTER_ADVERTISEMENT,
    ROUTER_SOLICITATION,
    SOURCE_LINK,
    TARGET_LINK,
    Advertisement,
    NdMessage,
    advertisement,
    link_option,
    parse,
    read_advertisement,
    solicitation,
    solicited_node,
)
from guest.net.neighbour import NeighbourCache
from guest.net.pbuf import PacketBuffer

NONCE_SIZE = 6


class NdOwner(Protocol):
    """What neighbour discovery asks of its interface."""

    @property
    def tentative(self) -> Collection[int]:
        """Own addresses that are still checked."""

    def owns(self, address: int) -> bool:
        """Whether `address` is one of the interface's own."""

    def source_for(self, address: int) -> int | None:
        """Which own address to use towards `address`."""

    def assigned(self, address: int) -> None:
        """Nobody else has `address`."""

    def duplicate(self, address: int, mac: bytes) -> None:
        """`mac` has `address`, which was to become ours; zeros if it did not say who it is."""

    def conflict(self, address: int, mac: bytes) -> None:
        """`mac` claims our `address`."""

    def router_heard(self, heard: Advertisement) -> None:
        """A router has advertised."""

    def router_gone(self, router: int) -> None:
        """`router` says that it is a router no longer."""

    def redirected(self, router: int, destination: int, target: int) -> bool:
        """`router` says that `target` is the better way to `destination`; whether that is believed."""

    @property
    def is_router(self) -> bool:
        """Whether it is a router: it forwards packets, or advertises."""


class Advertiser(Protocol):
    """What advertises this host as a router."""

    def solicited(self, host: int) -> None:
        """A host has asked for an advertisement, from an unspecified address where it has none yet."""


class Check(NamedTuple):
    """An address that is checked: when the next solicitation (or the end) is due, how many are still to be sent."""

    due: int
    left: int
    nonce: bytes


class NeighbourDiscovery(Layer):
    """Neighbour discovery on one interface.

    Args:
        mac: the interface's address.
        now: the time.
        rng: source of delays and nonces.
        config: limits and times.
        cache: what learns.
        output: sends a message (checksum still zero) from an address, to an address.
        owner: the interface.
        counters: where to count.

    Attributes:
        advertiser: is told of hosts that look for routers; None where nothing is advertised.
    """

    def __init__(
        self,
        *,
        mac: bytes,
        now: Callable[[], int],
        rng: random.Random,
        config: NetConfig,
        cache: NeighbourCache,
        output: Callable[[bytes, int, int], None],
        owner: NdOwner,
        counters: Counter[str] | None = None,
    ) -> None:
        super().__init__("nd", counters)
        self._mac = mac
        self._now = now
        self._rng = rng
        self._config = config
        self._cache = cache
        self._output = output
        self._owner = owner
        self.advertiser: Advertiser | None = None
        self._checks: dict[int, Check] = {}
        self._handlers: dict[int, Callable[[NdMessage, IpHeader], str]] = {
            NEIGHBOUR_SOLICITATION: self._solicited,
            NEIGHBOUR_ADVERTISEMENT: self._advertised,
            ROUTER_ADVERTISEMENT: self._router,
            ROUTER_SOLICITATION: self._router_solicited,
            REDIRECT: self._redirect,
        }

    def input(self, packet: PacketBuffer, header: IpHeader) -> None:
        """A message arrived; its ICMPv6 checksum is right."""
        self.counters["rx_packets"] += 1
        message = parse(packet, header)
        self.settle(packet, message if isinstance(message, str) else self._receive(packet, message, header))

    def _receive(self, packet: PacketBuffer, message: NdMessage, header: IpHeader) -> str:
        handler = self._handlers[message.kind]
        if self.trace is not None:
            self.trace(self.stage, packet, f"type {message.kind} about {format_mapped(message.target)}")
        return handler(message, header)

    def claimed(self, packet: PacketBuffer, header: IpHeader) -> None:
        """A message that went no further because its source is an own address; its checksum is right.

        It teaches nothing, but whoever advertises an own address, or asks from one, has it too (RFC 4862 §5.4.4).
        """
        message = parse(packet, header)
        result = message if isinstance(message, str) else self._claim(message, header)
        if result in ("rx_conflicts", "rx_duplicates"):
            self.counters["rx_packets"] += 1
            self.settle(packet, result)

    # -- messages ------------------------------------------------------------------------------------------------

    def _solicited(self, message: NdMessage, header: IpHeader) -> str:
        owner, target, src = self._owner, message.target, header.src
        if target in owner.tentative:
            check = self._checks.get(target)
            if check is not None and (NONCE, check.nonce) in message.options:
                return "rx_ignored_own"  # it came back (RFC 7527 §4.2)
            if not is_unspecified(src):
                return "rx_ignored_tentative"  # RFC 4862 §5.4.3: it asks, it does not claim
            self._fail(target, MAC_ZERO)
            return "rx_duplicates"
        if not owner.owns(target):
            return "rx_ignored_other_target"
        if owner.owns(src):
            return "rx_dropped_own"
        flags = FLAG_ROUTER if owner.is_router else 0
        if is_unspecified(src):  # somebody checks whether the address is free: it is not
            self._advertise(target, target, ALL_NODES, flags | FLAG_OVERRIDE)
            return "rx_probes"
        mac = message.link_address(SOURCE_LINK)
        if mac is not None:
            self._cache.learn(src, mac, create=True)
        self._advertise(target, target, src, flags | FLAG_SOLICITED | FLAG_OVERRIDE)
        return "rx_solicitations"

    def _advertised(self, message: NdMessage, header: IpHeader) -> str:
        owner, target = self._owner, message.target
        mac = message.link_address(TARGET_LINK)
        if target in owner.tentative:
            self._fail(target, mac or MAC_ZERO)
            return "rx_duplicates"
        if owner.owns(target):
            if mac == self._mac:
                return "rx_dropped_own"
            owner.conflict(target, mac or MAC_ZERO)
            return "rx_conflicts"
        known = self._cache.lookup(target)
        if mac is None:
            if known is None:
                return "rx_ignored_no_link_address"
            mac = known
        elif known is not None and mac != known and not message.flags & FLAG_OVERRIDE:
            return "rx_ignored_override"  # RFC 4861 §7.2.5: it may not replace what is known
        if target not in self._cache:
            return "rx_ignored_unsolicited"  # RFC 4861 §7.2.5: it changes nothing, the list of routers included
        if not message.flags & FLAG_ROUTER:
            owner.router_gone(target)
        if known == mac and not message.flags & FLAG_SOLICITED:
            return "rx_advertisements"  # nothing new, and no proof that we can reach it
        self._cache.learn(target, mac, create=False)
        return "rx_advertisements"

    def _router(self, message: NdMessage, header: IpHeader) -> str:
        if self._owner.is_router:
            return "rx_ignored_router"
        mac = message.link_address(SOURCE_LINK)
        if mac is not None:
            self._cache.learn(header.src, mac, create=True)
        self._owner.router_heard(read_advertisement(message, header.src))
        return "rx_routers"

    def _router_solicited(self, message: NdMessage, header: IpHeader) -> str:
        if self.advertiser is None:
            return "rx_ignored_router_solicitation"
        mac = message.link_address(SOURCE_LINK)
        if mac is not None:
            self._cache.learn(header.src, mac, create=True)
        self.advertiser.solicited(header.src)
        return "rx_router_solicitations"

    def _redirect(self, message: NdMessage, header: IpHeader) -> str:
        if self._owner.is_router:
            return "rx_ignored_redirect"
        if not self._owner.redirected(header.src, message.destination, message.target):
            return "rx_dropped_not_first_hop"
        mac = message.link_address(TARGET_LINK)
        if mac is not None:
            self._cache.learn(message.target, mac, create=True)
        return "rx_redirects"

    def _claim(self, message: NdMessage, header: IpHeader) -> str:
        """What a message from an own address means; only conflicts and duplicates do."""
        owner = self._owner
        if message.kind == NEIGHBOUR_ADVERTISEMENT and owner.owns(message.target):
            return self._advertised(message, header)
        mac = message.link_address(SOURCE_LINK)
        if message.kind == NEIGHBOUR_SOLICITATION and owner.owns(header.src) and mac not in (None, self._mac):
            owner.conflict(header.src, mac or MAC_ZERO)
            return "rx_conflicts"
        return "rx_dropped_own"

    # -- asking and telling --------------------------------------------------------------------------------------

    def request(self, address: int) -> None:
        """Ask who has `address`."""
        source = self._owner.source_for(address)
        if source is None:
            self.counters["tx_dropped_no_source"] += 1
            return
        self._solicit(address, source, link_option(SOURCE_LINK, self._mac))

    def _solicit(self, target: int, source: int, options: bytes) -> None:
        self.counters["tx_solicitations"] += 1
        self._output(solicitation(target, options), source, solicited_node(target))

    def _advertise(self, target: int, source: int, to: int, flags: int) -> None:
        self.counters["tx_advertisements"] += 1
        self._output(advertisement(target, flags, self._mac), source, to)

    def announce(self, address: int) -> None:
        """Tell all nodes where an own address is (RFC 4861 §7.2.6)."""
        flags = FLAG_ROUTER if self._owner.is_router else 0
        self._advertise(address, address, ALL_NODES, flags | FLAG_OVERRIDE)

    # -- duplicate address detection -----------------------------------------------------------------------------

    def check(self, address: int, delay: int = 0) -> None:
        """Find out whether somebody has the tentative `address`; starts after `delay` microseconds.

        The owner hears `assigned` one interval after the last solicitation, or `duplicate`.
        """
        left = self._config.dad_transmits
        nonce = self._rng.randbytes(NONCE_SIZE)
        self._checks[address] = Check(self._now() + delay, left, nonce)
        if delay == 0:
            self._step(address)

    def cancel(self, address: int) -> None:
        """Stop checking `address`."""
        self._checks.pop(address, None)

    def stop(self) -> None:
        """Stop all checks."""
        self._checks.clear()

    def _step(self, address: int) -> None:
        check = self._checks[address]
        if check.left <= 0:
            del self._checks[address]
            self._owner.assigned(address)
            return
        self._checks[address] = Check(self._now() + self._config.nd_interval, check.left - 1, check.nonce)
        self.counters["tx_probes"] += 1
        self._output(solicitation(address, bytes((NONCE, 1)) + check.nonce), V6_ANY, solicited_node(address))

    def _fail(self, address: int, mac: bytes) -> None:
        self._checks.pop(address, None)
        self._owner.duplicate(address, mac)

    def poll(self, now: int) -> bool:
        """Take the checks that are due a step further; whether there was any."""
        due = [address for address, check in self._checks.items() if check.due <= now]
        for address in due:
            if address in self._checks:
                self._step(address)
        return bool(due)

    def poll_at(self) -> int | None:
        """When `poll` is due, or None."""
        return min((check.due for check in self._checks.values()), default=None)
