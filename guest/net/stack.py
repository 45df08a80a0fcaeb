"""One network stack: its interfaces, engine and ICMP, wired together. Sans-I/O; as many as one likes in one process.

The stack never blocks, never reads a clock and sends nothing by itself: time comes in through `now`, packets through
`Interface.input`, and whoever drives it calls `poll` when `poll_at` says so. `wake`, if set, is called when work has
appeared outside of `input` and `poll` (a packet on the loopback).

Events go to subscribers in the order in which they happened, also when a subscriber causes further ones:
"link"      "up", "down", "running", "no carrier", "removed", "mtu …", "mtu6 …"
"address"   "tentative …" (an IPv6 address that is being checked), "added …" (it may be used), "removed …",
            "… deprecated", or the address alone when it is no longer deprecated
"route"     "added …", "removed …"
"conflict"  (address, MAC of whoever has it; zeros where it did not say)
"dns"       "added …", "removed …": name servers that routers advertise
"forwarding", "filtering"   True, False; of the loopback
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from guest.net import nd_wire
from guest.net.address import AddressError, Prefix, format_address, is_unspecified, is_v4, to_address, to_prefix
from guest.net.config import NetConfig
from guest.net.family import IpHeader
from guest.net.icmp import Icmp
from guest.net.icmpv6 import PROTOCOL as ICMPV6
from guest.net.icmpv6 import Icmpv6
from guest.net.interface import Interface, Output
from guest.net.ip import IpEngine, IpInterface
from guest.net.ipv4 import Ipv4
from guest.net.ipv6 import Ipv6
from guest.net.layer import Layer, Trace
from guest.net.pbuf import CAST_HOST, PacketBuffer, PacketQueue
from guest.net.raw import Raw
from guest.net.route import Route, RouteTable, parse_table
from guest.net.tcp.endpoint import PROTOCOL as TCP
from guest.net.tcp.layer import Tcp
from guest.net.udp import Udp

if TYPE_CHECKING:
    from guest.net.guard import Guard

UDP = 17

Subscriber: TypeAlias = Callable[[str, Interface, object], None]


def _silent(_line: str) -> None:
    """The log of a stack that nobody listens to."""


class Stack:
    """A host's network stack. It starts with the loopback interface, up, as 127.0.0.1/8 and ::1/128.

    Args:
        now: the time in microseconds.
        rng: source of identifications and identifiers; the same seed gives the same run.
        config: limits and times.
        log: takes lines for the boot log.

    Attributes:
        interfaces: in index order; the first is `loopback`.
        default: the interface for broadcasts and groups, which `net_link_primary` means; None until it is set.
        ip, icmp, icmpv6, udp, tcp, raw: the layers above the interfaces.
        dns_servers: that routers advertise, the first heard first.
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
        self.rng = rng
        self.config = config or NetConfig()
        self.log = log
        self.wake: Callable[[], None] | None = None
        self.interfaces: list[Interface] = []
        self.dns_servers: list[int] = []
        self.arp_counters: Counter[str] = Counter()
        self.nd_counters: Counter[str] = Counter()
        self.igmp_counters: Counter[str] = Counter()
        self.mld_counters: Counter[str] = Counter()
        self._subscribers: list[Subscriber] = []
        self._events: deque[tuple[str, Interface, object]] = deque()
        self._publishing = False
        self._guard: Guard | None = None
        self._filtering = True
        self._default: Interface | None = None
        self._trace: Trace | None = None
        self._looped = PacketQueue()
        self._next_index = 1
        self.ip = IpEngine([Ipv4(), Ipv6()], rng=rng, config=self.config, now=now)
        self.icmp = Icmp(self.ip, now=now, rng=rng, config=self.config)
        self.icmpv6 = Icmpv6(self.ip, self.icmp, now=now, config=self.config)
        self.udp = Udp(self.ip, now=now, rng=rng, config=self.config)
        self.tcp = Tcp(self.ip, now=now, rng=rng, net=self.config)
        self.raw = Raw(self.ip, now=now, config=self.config, echo=self.icmp.echo)
        self._wire()
        self.ip.forwarding = self.config.forwarding
        self.loopback = self.add_interface("lo", None, self.config.loopback_mtu, self._loop, loopback=True)
        self.ip.loopback = self.loopback
        self.loopback.add_address("127.0.0.1", 8)
        self.loopback.add_address("::1", 128)
        self.loopback.set_up()

    def _wire(self) -> None:
        """Tell the engine and ICMP whom they have to call."""
        self.ip.error = self._error
        self.ip.impostor = self._impostor
        self.ip.wake = self._wake
        self.ip.membership_changed = self._membership_changed
        self.icmp.error_handlers[UDP] = self.udp.icmp_error
        self.icmp.error_handlers[TCP] = self.tcp.icmp_error
        self.icmp.raw = self.icmpv6.raw = self.raw
        for kind in nd_wire.SMALLEST:
            self.icmpv6.handlers[kind] = self._nd
        if self.config.membership:
            from guest.net import igmp, mld  # noqa: PLC0415 - switched off, they are not loaded

            self.ip.handlers[igmp.PROTOCOL] = self._igmp
            for kind in (mld.QUERY, mld.V1_REPORT, mld.V1_DONE, mld.V2_REPORT):
                self.icmpv6.handlers[kind] = self._mld

    def _wake(self) -> None:
        if self.wake is not None:
            self.wake()

    def _error(self, packet: PacketBuffer, header: IpHeader, kind: str, value: int) -> None:
        (self.icmp if is_v4(header.dst) else self.icmpv6).report(packet, header, kind, value)

    def _impostor(self, packet: PacketBuffer, header: IpHeader) -> None:
        """A packet from a wire has an own address as its source: somebody else may have that address."""
        interface = header.interface
        if header.protocol == ICMPV6 and isinstance(interface, Interface) and interface.v6 is not None:
            packet.pull(header.size)
            if self.icmpv6.is_whole(packet, header):
                interface.v6.nd.claimed(packet, header)

    def _membership_changed(self, interface: IpInterface, group: int, joined: bool) -> None:
        if isinstance(interface, Interface):
            interface.group_changed(group, joined)

    def _igmp(self, packet: PacketBuffer, header: IpHeader) -> None:
        interface = header.interface
        if isinstance(interface, Interface) and interface.igmp is not None:
            interface.igmp.input(packet, header)
        else:
            self.igmp_counters["rx_ignored_link"] += 1

    def _nd(self, packet: PacketBuffer, header: IpHeader) -> str:
        interface = header.interface
        if not isinstance(interface, Interface) or interface.v6 is None:
            return "rx_ignored_link"
        interface.v6.nd.input(packet, header)
        return "rx_nd"

    def _mld(self, packet: PacketBuffer, header: IpHeader) -> str:
        interface = header.interface
        if not isinstance(interface, Interface) or interface.v6 is None or interface.v6.mld is None:
            return "rx_ignored_link"
        interface.v6.mld.input(packet, header)
        return "rx_mld"

    def neighbour_failed(self, interface: Interface, packet: PacketBuffer) -> None:
        """A packet, starting at its IP header, was dropped because its next hop on `interface` did not answer."""
        codec = self.ip.codecs.get(packet.protocol)
        packet.network = packet.data
        packet.cast = CAST_HOST
        header = None if codec is None else codec.parse(packet, interface, False)
        if isinstance(header, IpHeader):
            (self.icmp if is_v4(header.dst) else self.icmpv6).neighbour_failed(packet, header)

    @property
    def forwarding(self) -> bool:
        """Whether packets for others are passed on. A router listens to no other router (RFC 4861 §6.2.1)."""
        return self.ip.forwarding

    @forwarding.setter
    def forwarding(self, forwarding: bool) -> None:
        if forwarding == self.ip.forwarding:
            return
        self.ip.forwarding = forwarding
        for interface in self.interfaces:
            if interface.v6 is not None:
                interface.v6.set_router(forwarding)
        self.changed("forwarding", self.loopback, forwarding)

    @property
    def guard(self) -> Guard | None:
        """The packet filter (guard.py); None, as at the start, lets everything through and costs nothing."""
        return self._guard

    @guard.setter
    def guard(self, guard: Guard | None) -> None:
        self._guard = guard
        self.ip.guard = guard if self._filtering else None

    @property
    def filtering(self) -> bool:
        """Whether the guard is asked. Its rules and what they counted stay while it is not."""
        return self._filtering

    @filtering.setter
    def filtering(self, filtering: bool) -> None:
        if filtering == self._filtering:
            return
        self._filtering = filtering
        self.guard = self._guard
        self.publish("filtering", self.loopback, filtering)

    def server_known(self, interface: Interface, address: int, known: bool) -> None:
        """A router on `interface` advertises a name server, or does no longer."""
        elsewhere = any(
            other.v6 is not None and other.v6.slaac is not None and address in other.v6.slaac.servers
            for other in self.interfaces
            if other is not interface
        )
        if elsewhere:
            return
        if known:
            self.dns_servers.append(address)
        elif address in self.dns_servers:
            self.dns_servers.remove(address)
        self.publish("dns", interface, f"{'added' if known else 'removed'} {format_address(address)}")

    # -- interfaces, addresses, routes ---------------------------------------------------------------------------

    def add_interface(
        self, name: str, mac: bytes | None, mtu: int, output: Output, *, loopback: bool = False
    ) -> Interface:
        """Add an interface; it is down and has no address.

        Args:
            name: not in use yet.
            mac: 6 bytes; None where packets have no link header, as with a TUN device.
            mtu: bytes of the largest IP packet.
            output: takes the batches that the interface sends.
            loopback: it is the host's own; without a MAC address.

        Raises:
            ValueError: the name is taken, or a value is out of range.
        """
        if any(interface.name == name for interface in self.interfaces):
            raise ValueError(f"there is an interface {name!r} already")
        if loopback and mac is not None:
            raise ValueError(f"{name!r}: a loopback has no MAC address")
        interface = Interface(self, name, self._next_index, mac, mtu, output, loopback=loopback)
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
            destination, prefix_len: the network, as its family counts prefixes; "0.0.0.0", 0 or "::", 0 for the default
                route.
            gateway: the next hop; None, 0.0.0.0 or :: where the destination is a neighbour itself.
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
        """Make `gateway` the default route of its family, in place of the one with metric 0 that there was.

        Where it is on none of our networks it is looked for behind the default interface, as LING does. Raises
        AddressError where there is none.
        """
        via = to_address(gateway)
        anywhere = to_prefix("0.0.0.0" if is_v4(via) else "::", 0)
        interface = next((i for i in self.interfaces if i.on_link(via)), self._default)
        if interface is None:
            raise AddressError(f"gateway {format_address(via)} is not on a network of this host")
        for route in self.ip.routes:
            if route.prefix == anywhere and route.metric == 0:
                self.ip.routes.remove(route)
        self.add_route(anywhere.address, 0, via, interface)

    def load_routes(self, table: str) -> None:
        """Add the routes of a table of text, see `parse_table`. Raises AddressError, after those that come before."""
        for row in parse_table(table, {interface.name: interface for interface in self.interfaces}):
            self.ip.routes.add(Route(row.prefix, row.gateway, row.interface, row.metric))
            self.changed("route", row.interface, f"added {row.prefix}")

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
        layers: list[Layer] = [self.ip, self.icmp, self.icmpv6, self.udp, self.tcp, self.raw]
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
            "nd": self.nd_counters,
            "ip": self.ip.counters,
            "icmp": self.icmp.counters,
            "icmpv6": self.icmpv6.counters,
            "igmp": self.igmp_counters,
            "mld": self.mld_counters,
            "udp": self.udp.counters,
            "tcp": self.tcp.counters,
            "raw": self.raw.counters,
            **({} if self._guard is None else {"guard": self._guard.counters}),
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
        worked = self.ip.poll(now) or worked
        worked = self.tcp.poll(now) or worked
        for interface in list(self.interfaces):
            worked = interface.poll(now) or worked
        return worked

    def poll_at(self) -> int | None:
        """When `poll` has something to do: now, later, or never (None) unless something comes in."""
        if len(self._looped):
            return self.now()
        soonest = self.ip.poll_at()
        due = self.tcp.poll_at()
        if due is not None and (soonest is None or due < soonest):
            soonest = due
        for interface in self.interfaces:
            due = interface.poll_at()
            if due is not None and (soonest is None or due < soonest):
                soonest = due
        return soonest
