"""Router advertisements on one interface: what a router tells hosts so that they make themselves addresses.

RFC 4861 §6.2, RFC 4862, RFC 8106 (name servers).

Promises:
- A host that asks from an address is answered itself within `MAX_RA_DELAY`; one that has none yet is answered to all
  hosts, which may be up to `MIN_DELAY` later (§6.2.6).
- All hosts are told at random times between the two intervals, more often at the start (§6.2.4), and never twice
  within `MIN_DELAY`.
- Those who ask are remembered up to `PENDING`; what exceeds that is answered to all.

Advertisements come from a link-local address; an interface that has none is given one. What a host says changes
nothing here but who is answered. Times are microseconds, except where an advertisement has seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guest.net.address import AddressError, Prefix, is_unspecified, is_v4, to_address, to_prefix
from guest.net.config import SECOND
from guest.net.interface import Interface
from guest.net.nd_wire import (
    ALL_NODES,
    ALL_ROUTERS,
    HOP_LIMIT,
    SOURCE_LINK,
    Advertisement,
    PrefixInformation,
    eui64,
    is_link_local,
    link_option,
    router_advertisement,
)
from guest.net.stack import Stack
from guest.net.timer import Cancellable, Timers

MAX_RA_DELAY = SECOND // 2  # MAX_RA_DELAY_TIME
MIN_DELAY = 3 * SECOND  # MIN_DELAY_BETWEEN_RAS
FIRST_INTERVAL = 16 * SECOND  # MAX_INITIAL_RTR_ADVERT_INTERVAL
FIRST_COUNT = 3  # MAX_INITIAL_RTR_ADVERTISEMENTS
PENDING = 64
LINK_LOCAL = 0xFE80 << 112


@dataclass(frozen=True, slots=True)
class RadvConfig:
    """How often, and what besides prefixes. The defaults are RFC 4861 §6.2.1's.

    Attributes:
        min_interval, max_interval: between two advertisements to all.
        hop_limit: that hosts are to use; 0 says nothing.
        valid, preferred: lifetimes of the prefixes' addresses, seconds.
    """

    min_interval: int = 200 * SECOND
    max_interval: int = 600 * SECOND
    hop_limit: int = 64
    valid: int = 2_592_000
    preferred: int = 604_800


class RouterAdvertiser:
    """Advertises on `interface`, from `start` on.

    Args:
        prefix: the network for addresses, with its length, such as "fec0::/64"; None for none.
        timers: where to wait.
        dns: IPv6 addresses of name servers.
        lifetime: how long hosts may use this router as default, seconds; 0 for not at all. Three times the longest
            interval if not given.
        mtu: of the link, where it is to be said.
        config: see `RadvConfig`.

    Attributes:
        prefix, dns, lifetime, mtu: as above; what is changed is said in the next advertisement.

    Counts in the stack's "nd": `tx_routers`, `rx_router_solicitations`, `tx_dropped_no_link_local`.

    Raises:
        ValueError: the interface has no MAC address. AddressError: a text is no address.
    """

    def __init__(
        self,
        stack: Stack,
        interface: Interface,
        prefix: str | Prefix | None,
        *,
        timers: Timers,
        dns: Sequence[str | int] = (),
        lifetime: int | None = None,
        mtu: int | None = None,
        config: RadvConfig | None = None,
    ) -> None:
        if interface.v6 is None or interface.mac is None:
            raise ValueError(f"{interface.name}: router advertisements need an interface with a MAC address")
        self.interface = interface
        self.config = config or RadvConfig()
        self.prefix = _prefix(prefix) if isinstance(prefix, str) else prefix
        self.dns = [to_address(server) for server in dns]
        self.lifetime = 3 * self.config.max_interval // SECOND if lifetime is None else lifetime
        self.mtu = mtu
        self._v6 = interface.v6
        self._mac = interface.mac
        self._stack = stack
        self._timers = timers
        self._running = False
        self._sent = 0  # to all, since the start
        self._last: int | None = None  # when all were told
        self._due = 0  # when all are told next
        self._timer: Cancellable | None = None
        self._pending: dict[int, Cancellable] = {}  # who asked, and when they are answered

    def start(self) -> None:
        """Begin to advertise. Harmless when it does."""
        if self._running:
            return
        self._running = True
        self._sent = 0
        if not any(is_link_local(own.address) for own in self.interface.addresses):
            self.interface.add_address(eui64(LINK_LOCAL, self._mac), 64, check=False)
        self._stack.ip.join(self.interface, ALL_ROUTERS)
        self._v6.nd.advertiser = self
        self._schedule(self._stack.now() + self._stack.rng.randrange(MAX_RA_DELAY))

    def close(self) -> None:
        """Tell hosts that this is a router no longer (§6.2.5), and stop. Harmless when stopped."""
        if not self._running:
            return
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        for timer in self._pending.values():
            timer.cancel()
        self._pending.clear()
        self.lifetime, lifetime = 0, self.lifetime
        self._send(ALL_NODES)
        self.lifetime = lifetime
        self._v6.nd.advertiser = None
        self._stack.ip.leave(self.interface, ALL_ROUTERS)

    # -- when ----------------------------------------------------------------------------------------------------

    def solicited(self, host: int) -> None:
        """A host has asked for an advertisement; `host` is unspecified where it has no address yet."""
        now = self._stack.now()
        when = now + self._stack.rng.randrange(MAX_RA_DELAY)
        if is_unspecified(host) or len(self._pending) >= PENDING:
            if self._last is not None:
                when = max(when, self._last + MIN_DELAY)
            if when < self._due:
                self._schedule(when)
        elif host not in self._pending:
            self._pending[host] = self._timers.at(when, lambda: self._answer(host))

    def _answer(self, host: int) -> None:
        del self._pending[host]
        self._send(host)

    def _schedule(self, when: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = when
        self._timer = self._timers.at(when, self._tell_all)

    def _tell_all(self) -> None:
        now = self._stack.now()
        self._send(ALL_NODES)
        self._last = now
        self._sent += 1
        config = self.config
        wait = config.min_interval
        if config.max_interval > wait:
            wait += self._stack.rng.randrange(config.max_interval - wait)
        if self._sent < FIRST_COUNT:
            wait = min(wait, FIRST_INTERVAL)
        self._schedule(now + max(wait, MIN_DELAY))

    # -- what ----------------------------------------------------------------------------------------------------

    def _send(self, to: int) -> None:
        interface = self.interface
        own = (prefix.address for prefix in interface.addresses if prefix.address not in interface.tentative)
        source = next((address for address in own if is_link_local(address)), None)
        if source is None:
            self._stack.nd_counters["tx_dropped_no_link_local"] += 1
            return
        config = self.config
        prefixes = []
        if self.prefix is not None:
            network, length = self.prefix.network, self.prefix.length
            prefixes.append(PrefixInformation(network, length, True, True, config.valid, config.preferred))
        keep = 3 * config.max_interval // SECOND if self.lifetime else 0  # RFC 8106 §5.1
        said = Advertisement(
            source, config.hop_limit, self.lifetime, 0, self.mtu or 0, prefixes, [(server, keep) for server in self.dns]
        )
        message = router_advertisement(said, link_option(SOURCE_LINK, self._mac))
        self._stack.nd_counters["tx_routers"] += 1
        self._stack.icmpv6.send_message(message, source, to, interface, HOP_LIMIT)


def _prefix(text: str) -> Prefix:
    """The network that `text` writes as ADDRESS/LENGTH. Raises AddressError."""
    address, slash, length = text.partition("/")
    if not slash or not length.isdecimal():
        raise AddressError(f"{text!r} is not written as PREFIX/LENGTH")
    prefix = to_prefix(address, int(length))
    if is_v4(prefix.address):
        raise AddressError(f"{text!r} is no IPv6 prefix")
    return prefix
