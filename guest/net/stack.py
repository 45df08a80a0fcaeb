"""One network stack: its interfaces, engine and ICMP, wired together. Sans-I/O; as many as one likes in one process.

The stack never blocks, never reads a clock and sends nothing by itself: time comes in through `now`, packets through
`Interface.input`, and whoever drives it calls `poll` when `poll_at` says so. `wake`, if set, is called when work has
appeared outside of `input` and `poll` (a packet on the loopback).

Events go to subscribers in the order in which they happened, also when a subscriber causes further ones:
"link" (detail: "up", "down", "running", "no carrier", "mtu …"), "address" ("added …", "removed …"), "route" (likewise),
"conflict" ((address, MAC of the claimant)).
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from guest.net.address import AddressError, Prefix, format_address, is_unspecified, to_address, to_prefix
from guest.net.config import NetConfig
from guest.net.icmp import Icmp
from guest.net.interface import Interface, Output
from guest.net.ip import IpEngine, IpInterface
from guest.net.ipv4 import Ipv4
from guest.net.layer import Layer, Trace
from guest.net.pbuf import PacketBuffer, PacketQueue
from guest.net.route import Route, RouteTable

Subscriber: TypeAlias = Callable[[str, Interface, object], None]


def _silent(_line: str) -> None:
    """The log of a stack that nobody listens to."""


class Stack:
    """A host's network stack. It starts with the loopback interface, up, as 127.0.0.1/8.

    Args:
        now: the time in microseconds.
        rng: source of identifications and identifiers; the same seed gives the same run.
        config: limits and times.
        log: takes lines for the boot log.

    Attributes:
        interfaces: in index order; the first is `loopback`.
        default: the interface for broadcasts and groups, which `net_link_primary` means; None until it is set.
        ip, icmp: the layers above the interfaces.
        wake: see above.
    """

    def __init__(
        self,
        *,
        now: Callable[[], int],
        rng: random.Random,
        config: NetConfig | None = None,
        log: Callable[[str], None] = _silent,
    ) -> None:
        self.now = now
        self.config = config or NetConfig()
        self.log = log
        self.wake: Callable[[], None] | None = None
        self.interfaces: list[Interface] = []
        self.arp_counters: Counter[str] = Counter()
        self._subscribers: list[Subscriber] = []
        self._events: deque[tuple[str, Interface, object]] = deque()
        self._publishing = False
        self._default: Interface | None = None
        self._trace: Trace | None = None
        self._looped = PacketQueue()
        self._next_index = 1
        self.ip = IpEngine([Ipv4()], rng=rng, config=self.config)
        self.icmp = Icmp(self.ip, now=now, rng=rng, config=self.config)
        self.loopback = self.add_interface("lo", None, self.config.loopback_mtu, self._loop, loopback=True)
        self.ip.loopback = self.loopback
        self.loopback.add_address("127.0.0.1", 8)
        self.loopback.set_up()

    # -- interfaces, addresses, routes ---------------------------------------------------------------------------

    def add_interface(
        self, name: str, mac: bytes | None, mtu: int, output: Output, *, loopback: bool = False
    ) -> Interface:
        """Add an interface; it is down and has no address.

        Args:
            name: not in use yet.
            mac: 6 bytes; None with `loopback`.
            mtu: bytes of the largest IP packet.
            output: takes the batches that the interface sends.
            loopback: carry IP packets without link headers.

        Raises:
            ValueError: the name is taken, or a value is out of range.
        """
        if any(interface.name == name for interface in self.interfaces):
            raise ValueError(f"there is an interface {name!r} already")
        if loopback != (mac is None):
            raise ValueError(f"{name!r}: an interface has a MAC address unless it is a loopback")
        interface = Interface(self, name, self._next_index, mac, mtu, output)
        self._next_index += 1
        for layer in interface.layers():
            layer.trace = self._trace
        self.interfaces.append(interface)
        return interface

    def remove_interface(self, interface: Interface) -> None:
        """Take an interface, its addresses and its routes away."""
        interface.set_down()
        for prefix in list(interface.addresses):
            interface.remove_address(prefix.address)
        for route in self.ip.routes:
            if route.interface is interface:
                self.ip.routes.remove(route)
        self.interfaces.remove(interface)
        if self._default is interface:
            self.default = None
        self.changed("link", interface, "removed")

    @property
    def default(self) -> Interface | None:
        """The interface for what the routing table does not decide."""
        return self._default

    @default.setter
    def default(self, interface: Interface | None) -> None:
        self._default = interface
        self.ip.default = interface
        self.ip.refresh(self.interfaces)

    @property
    def routes(self) -> RouteTable[IpInterface]:
        """The routing table, to look at."""
        return self.ip.routes

    def add_route(
        self,
        destination: str | int,
        prefix_len: int,
        gateway: str | int | None = None,
        interface: Interface | None = None,
        metric: int = 0,
    ) -> None:
        """Add a route.

        Args:
            destination, prefix_len: the network, as its family counts prefixes; "0.0.0.0", 0 is the default route.
            gateway: the next hop; None or 0.0.0.0 where the destination is a neighbour itself.
            interface: the way out; found by the gateway if not given.
            metric: the lowest wins among prefixes of the same length.

        Raises:
            AddressError: it cannot be used, or is there already.
        """
        prefix = to_prefix(destination, prefix_len)
        via = None if gateway is None else to_address(gateway)
        if via is not None and is_unspecified(via):
            via = None
        if interface is None:
            interface = next((i for i in self.interfaces if via is not None and i.on_link(via)), None)
            if interface is None:
                where = "no gateway" if via is None else f"gateway {format_address(via)}"
                raise AddressError(f"route to {prefix}: {where} on a network of this host, and no interface given")
        self.ip.routes.add(Route(prefix, via, interface, metric))
        self.changed("route", interface, f"added {prefix}")

    def set_gateway(self, gateway: str | int) -> None:
        """Make `gateway` the default route, in place of the one with metric 0 that there was.

        Where it is on none of our networks it is looked for behind the default interface, as LING does. Raises
        AddressError where there is none.
        """
        via = to_address(gateway)
        anywhere = to_prefix("0.0.0.0", 0)
        interface = next((i for i in self.interfaces if i.on_link(via)), self._default)
        if interface is None:
            raise AddressError(f"gateway {format_address(via)} is not on a network of this host")
        for route in self.ip.routes:
            if route.prefix == anywhere and route.metric == 0:
                self.ip.routes.remove(route)
        self.add_route(anywhere.address, 0, via, interface)

    def remove_route(
        self, destination: str | int, prefix_len: int, interface: Interface | None = None, metric: int | None = None
    ) -> bool:
        """Remove a route; whether it was there."""
        prefix = to_prefix(destination, prefix_len)
        for route in self.ip.routes:
            wanted = route.prefix == prefix and interface in (None, route.interface) and metric in (None, route.metric)
            owner = next((i for i in self.interfaces if i is route.interface), None)
            if wanted and owner is not None:
                self.ip.routes.remove(route)
                self.changed("route", owner, f"removed {prefix}")
                return True
        return False

    def connect(self, interface: Interface, prefix: Prefix) -> None:
        """An address was added to `interface`: its network is reached directly."""
        route: Route[IpInterface] = Route(Prefix(prefix.network, prefix.length), None, interface)
        if route not in list(self.ip.routes):
            self.ip.routes.add(route)

    def disconnect(self, interface: Interface, prefix: Prefix) -> None:
        """The last address of a network was removed from `interface`."""
        self.ip.routes.remove(Route(Prefix(prefix.network, prefix.length), None, interface))

    # -- events and traces ---------------------------------------------------------------------------------------

    def subscribe(self, callback: Subscriber) -> None:
        """Call `callback(event, interface, detail)` for every event from now on."""
        self._subscribers.append(callback)

    def unsubscribe(self, callback: Subscriber) -> None:
        """Stop calling `callback`."""
        if callback in self._subscribers:
            self._subscribers.remove(callback)

    def publish(self, event: str, interface: Interface, detail: object) -> None:
        """Tell the subscribers, after the events that happened before."""
        self._events.append((event, interface, detail))
        if self._publishing:
            return
        self._publishing = True
        try:
            while self._events:
                item = self._events.popleft()
                for subscriber in list(self._subscribers):
                    subscriber(*item)
        finally:
            self._publishing = False

    def changed(self, event: str, interface: Interface, detail: object) -> None:
        """Something that routing depends on has changed: work it in, then tell the subscribers."""
        self.ip.refresh(self.interfaces)
        self.publish(event, interface, detail)

    @property
    def trace(self) -> Trace | None:
        """Sees each packet at each stage: (stage, packet, what the stage saw or why it dropped the packet)."""
        return self._trace

    @trace.setter
    def trace(self, trace: Trace | None) -> None:
        self._trace = trace
        layers: list[Layer] = [self.ip, self.icmp]
        for interface in self.interfaces:
            layers += interface.layers()
        for layer in layers:
            layer.trace = trace

    @property
    def counters(self) -> dict[str, Counter[str]]:
        """Counters by layer; "ethernet" is the sum over the interfaces except the loopback."""
        ethernet: Counter[str] = Counter()
        for interface in self.interfaces:
            if interface is not self.loopback:
                ethernet.update(interface.counters)
        return {
            "ethernet": ethernet,
            "loopback": self.loopback.counters,
            "arp": self.arp_counters,
            "ip": self.ip.counters,
            "icmp": self.icmp.counters,
        }

    # -- work ----------------------------------------------------------------------------------------------------

    def _loop(self, packets: Sequence[PacketBuffer]) -> None:
        """The loopback's wire: a bounded queue, emptied by `poll`."""
        queue = self._looped
        idle = not len(queue)
        for packet in packets:
            if len(queue) >= self.config.loopback_queue:
                self.loopback.link.drop(packet, "tx_dropped_queue_full")
            else:
                queue.add_tail(packet.keep())
        if idle and self.wake is not None:
            self.wake()

    def poll(self) -> bool:
        """Deliver what waits on the loopback and do what is due; whether there was anything."""
        worked = False
        waiting = len(self._looped)
        if waiting:
            worked = True
            packets = [packet for _ in range(waiting) if (packet := self._looped.remove_head()) is not None]
            self.loopback.input(packets)
        now = self.now()
        for interface in self.interfaces:
            worked = interface.poll(now) or worked
        return worked

    def poll_at(self) -> int | None:
        """When `poll` has something to do: now, later, or never (None) unless something comes in."""
        if len(self._looped):
            return self.now()
        due = [when for interface in self.interfaces if (when := interface.poll_at()) is not None]
        return min(due) if due else None
