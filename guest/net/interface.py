"""The interface: where the stack meets whatever moves its packets, by name, with addresses and a state.

An Ethernet interface takes and gives whole frames; a bare one (the loopback, a TUN-style interface) takes and gives IP
packets. What receives calls `input` with a batch; what sends is the `output` hook, which gets batches. Neither blocks.

An IPv6 address of an Ethernet interface is tentative until it was found that nobody else has it (interface6.py does
that): it stands in `addresses` and in `tentative`, and nothing is sent from it or received for it. When somebody has
it, it is removed, and the event "conflict" says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from guest.net.address import (
    MAC_BROADCAST,
    V4_ALL_HOSTS,
    V4_BROADCAST,
    V6_ALL_NODES,
    AddressError,
    Prefix,
    is_loopback,
    is_multicast,
    is_unspecified,
    is_v4,
    multicast_mac,
    to_address,
    to_prefix,
)
from guest.net.arp import Arp
from guest.net.bare import BareLink, Output
from guest.net.device import (
    IFF_BROADCAST,
    IFF_LOOPBACK,
    IFF_MULTICAST,
    IFF_NOARP,
    IFF_POINTOPOINT,
    IFF_PROMISC,
    IFF_RUNNING,
    IFF_UP,
    UNLIMITED,
    NetDevice,
)
from guest.net.ethernet import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Ethernet
from guest.net.interface6 import Interface6
from guest.net.layer import Layer
from guest.net.neighbour import NeighbourCache
from guest.net.pbuf import CAST_BROADCAST, CAST_HOST, CAST_MULTICAST, PacketBuffer
from guest.net.source import source_address

if TYPE_CHECKING:
    from guest.net.igmp import Igmp
    from guest.net.stack import Stack

__all__ = ["Interface", "Output"]

MIN_MTU = 68  # RFC 791 §3.2
MAX_MTU = 65536
ALWAYS = frozenset((multicast_mac(V4_ALL_HOSTS), multicast_mac(V6_ALL_NODES)))  # groups that nobody has to join


class Interface:
    """One interface of a stack. Made by `Stack.add_interface`.

    Attributes:
        name, index: "lo" has index 1, the others follow.
        mac: 6 bytes, or None where there is no link header.
        mtu: bytes of the largest IP packet. mtu6: the same for IPv6, which a router may have lowered.
        hop_limit: of IPv6 packets that do not say, where a router advertised one, else 0.
        flags: IFF_* bits of device.py.
        addresses: own addresses with their prefixes (`Prefix`), in the order in which they were added.
        tentative, deprecated: those of them that are being checked, and that new conversations should not start from.
        counters: packets, bytes and drops of the link layer.
        arp, neighbours, igmp, v6: None where there is no link header, `igmp` also where `NetConfig.membership` is off.
            `v6` has nd, slaac and mld.
        status_callback: told after the interface went up or down, and after its addresses changed while up.
        bare: whether packets have no link header.
    """

    def __init__(
        self, stack: Stack, name: str, index: int, mac: bytes | None, mtu: int, output: Output, *, loopback: bool
    ) -> None:
        if not MIN_MTU <= mtu <= MAX_MTU:
            raise ValueError(f"an MTU of {mtu} is not within {MIN_MTU} to {MAX_MTU}")
        if mac is not None and (len(mac) != 6 or mac[0] & 1):
            raise AddressError(f"{mac.hex(':')} is not the address of one host")
        self.stack = stack
        self.name = name
        self.index = index
        self.mac = mac
        self.mtu = self.mtu6 = self._device_mtu = mtu
        self.hop_limit = 0
        self.gso_max_size = self.gso_max_size6 = 0
        self.queue: NetDevice | None = None
        self.addresses: list[Prefix] = []
        self.tentative: set[int] = set()
        self.deprecated: set[int] = set()
        self.status_callback: Callable[[Interface], None] | None = None
        self.filter_changed: Callable[[], None] | None = None
        self.bare = mac is None
        self.arp: Arp | None = None
        self.neighbours: NeighbourCache | None = None
        self.igmp: Igmp | None = None
        self.v6: Interface6 | None = None
        self.link: Ethernet | BareLink
        self._ethernet: Ethernet | None = None
        self._group_macs: Counter[bytes] = Counter()
        self._off_link: set[int] = set()  # own addresses whose prefix says nothing about who is on this link
        handlers: dict[int, Output] = {
            ethertype: partial(stack.ip.input, self, ethertype) for ethertype in (ETH_P_IP, ETH_P_IPV6)
        }
        if mac is None:
            self.flags = IFF_RUNNING | (IFF_LOOPBACK if loopback else IFF_POINTOPOINT | IFF_NOARP | IFF_MULTICAST)
            self.link = BareLink(output, handlers)
        else:
            self.flags = IFF_BROADCAST | IFF_MULTICAST | IFF_RUNNING
            self.link = self._ethernet = ethernet = Ethernet(mac, mtu, output)
            self._add_layers(ethernet, mac)
            ethernet.handlers.update(handlers)
        self.counters: Counter[str] = self.link.counters

    def _add_layers(self, ethernet: Ethernet, mac: bytes) -> None:
        """What an Ethernet interface has above its link."""
        stack = self.stack
        self.neighbours = NeighbourCache(
            now=stack.now,
            config=stack.config,
            solicit=self._solicit,
            send=self._send_frame,
            failed=self._neighbour_failed,
            counters=stack.arp_counters,
        )
        self.arp = Arp(
            mac=mac,
            now=stack.now,
            config=stack.config,
            cache=self.neighbours,
            output=ethernet.output,
            owner=self,
            counters=stack.arp_counters,
        )
        if stack.config.membership:
            from guest.net.igmp import Igmp  # noqa: PLC0415 - switched off, it is not loaded

            self.igmp = Igmp(
                now=stack.now,
                rng=stack.rng,
                config=stack.config,
                mtu=lambda: self.mtu,
                output=self._send_igmp,
                counters=stack.igmp_counters,
            )
        self.v6 = Interface6(self, mac, self.neighbours)
        ethernet.handlers[ETH_P_ARP] = self.arp.input
        ethernet.groups |= ALWAYS

    def __repr__(self) -> str:
        return f"<Interface {self.name} {', '.join(map(str, self.addresses)) or 'without address'}>"

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Whether it was set up."""
        return bool(self.flags & IFF_UP)

    def set_up(self) -> None:
        """Start to send and receive, and tell the network which addresses are here."""
        if self.is_up:
            return
        self.flags |= IFF_UP
        self.stack.changed("link", self, "up")
        self._announce(self.addresses)
        if self.igmp is not None:
            self.igmp.start()
        if self.v6 is not None:
            self.v6.start()
        self._status()

    def set_down(self) -> None:
        """Stop sending and receiving; neighbours are forgotten, and addresses that routers gave."""
        if not self.is_up:
            return
        self.flags &= ~IFF_UP
        self._forget_neighbours()
        if self.igmp is not None:
            self.igmp.stop()
        self.stack.changed("link", self, "down")
        if self.v6 is not None:
            self.v6.stop()
        self._status()

    def set_carrier(self, running: bool) -> None:
        """The link itself came or went (a cable, a carrier)."""
        if running == bool(self.flags & IFF_RUNNING):
            return
        self.flags ^= IFF_RUNNING
        if not running:
            self._forget_neighbours()
        self.stack.changed("link", self, "running" if running else "no carrier")
        if running and self.is_up:
            self._announce(self.addresses)
            if self.igmp is not None:
                self.igmp.start()
            if self.v6 is not None:
                self.v6.link_back()

    def set_promiscuous(self, promiscuous: bool) -> None:
        """Whether frames for other hosts reach packet hooks; IP never takes them."""
        self.flags = self.flags | IFF_PROMISC if promiscuous else self.flags & ~IFF_PROMISC
        if self._ethernet is not None:
            self._ethernet.promiscuous = promiscuous
            self._filter()

    def set_mtu(self, mtu: int) -> None:
        """Change the MTU, for both families. Raises ValueError outside 68 to 65,536.

        What is sent gets no larger than that. What is received may still be as large as the interface began with, for
        that is what its device takes in: a lease or an administrator says nothing about what the others have.
        """
        if not MIN_MTU <= mtu <= MAX_MTU:
            raise ValueError(f"an MTU of {mtu} is not within {MIN_MTU} to {MAX_MTU}")
        self.mtu = self.mtu6 = mtu
        if self._ethernet is not None:
            self._ethernet.mtu = max(mtu, self._device_mtu)
        self.stack.changed("link", self, f"mtu {mtu}")

    # -- addresses -----------------------------------------------------------------------------------------------

    def add_address(self, address: str | int, prefix_len: int, *, check: bool = True) -> None:
        """Add an own address and the route to its network.

        Args:
            address: text or 128-bit number.
            prefix_len: as its family counts it: 24 for 255.255.255.0.
            check: find out first whether somebody else has an IPv6 address. Without, it may be used at once.

        Raises:
            AddressError: it is no address for one host, or is in use on this stack.
        """
        self.insert(to_prefix(address, prefix_len), check=check)

    def insert(self, prefix: Prefix, *, check: bool = True, connected: bool = True, delay: int = 0) -> None:
        """Add an own address: `add_address` for who has a prefix. Raises AddressError.

        Args:
            check: as above; it starts after `delay` microseconds.
            connected: its network is on this link.
        """
        own = prefix.address
        if is_multicast(own) or is_unspecified(own) or own in (V4_BROADCAST, prefix.broadcast):
            raise AddressError(f"{prefix} is not an address for one host")
        if is_loopback(own) and not self.flags & IFF_LOOPBACK:
            raise AddressError(f"{prefix} belongs to the loopback")
        if any(other.owns(own) for other in self.stack.interfaces):
            raise AddressError(f"{prefix} is in use on this stack already")
        v6 = None if is_v4(own) else self.v6
        self.addresses.append(prefix)
        if v6 is not None and check and self.stack.config.dad_transmits > 0:
            self.tentative.add(own)
        if connected:
            self.stack.connect(self, prefix)
        else:
            self._off_link.add(own)
        if own in self.tentative:
            self.stack.changed("address", self, f"tentative {prefix}")
        else:
            self.address_ready(own)
        if v6 is not None:
            v6.added(own, delay)

    def address_ready(self, address: int) -> None:
        """An own address may be used from now on."""
        prefix = self._prefix(address)
        if prefix is None:
            return
        self.stack.changed("address", self, f"added {prefix}")
        if self.is_up:
            self._announce([prefix])
            self._status()

    def remove_address(self, address: str | int) -> bool:
        """Remove an own address, and the route to its network with the last address there; whether it was there."""
        own = to_address(address)
        prefix = self._prefix(own)
        if prefix is None:
            return False
        self.addresses.remove(prefix)
        connected = own not in self._off_link
        for marks in (self.tentative, self.deprecated, self._off_link):
            marks.discard(own)
        network = (prefix.network, prefix.length)
        others = [other for other in self.addresses if other.address not in self._off_link]
        if connected and network not in [(other.network, other.length) for other in others]:
            self.stack.disconnect(self, prefix)
        if self.v6 is not None and not is_v4(own):
            self.v6.removed(own)
        self.stack.changed("address", self, f"removed {prefix}")
        if self.is_up:
            self._status()
        return True

    def _prefix(self, address: int) -> Prefix | None:
        return next((prefix for prefix in self.addresses if prefix.address == address), None)

    def describe(self, address: int) -> str:
        """An own address as text: with its prefix length, and "tentative", "deprecated" or "dynamic" where it is."""
        words = [str(self._prefix(address))]
        words += [word for word, marks in self._marks() if address in marks]
        return " ".join(words)

    def _marks(self) -> list[tuple[str, set[int]]]:
        slaac = None if self.v6 is None else self.v6.slaac
        dynamic = set() if slaac is None else set(slaac.addresses)
        return [("tentative", self.tentative), ("deprecated", self.deprecated), ("dynamic", dynamic)]

    def owns(self, address: int) -> bool:
        """Whether `address` is one of this interface's own, tentative or not."""
        return any(prefix.address == address for prefix in self.addresses)

    def on_link(self, address: int) -> bool:
        """Whether `address` lies in a network of this interface."""
        off = self._off_link
        if any(prefix.contains(address) and prefix.address not in off for prefix in self.addresses):
            return True
        return self.v6 is not None and self.v6.slaac is not None and self.v6.slaac.on_link(address)

    def source_for(self, address: int) -> int | None:
        """Which own address to use towards `address`."""
        return source_address(self, address)

    def conflict(self, address: int, mac: bytes) -> None:
        """Somebody else claims our `address`."""
        self.stack.publish("conflict", self, (address, mac))

    def _status(self) -> None:
        if self.status_callback is not None:
            self.status_callback(self)

    def _announce(self, prefixes: Sequence[Prefix]) -> None:
        if self.arp is not None:
            for prefix in prefixes:
                if is_v4(prefix.address):
                    self.arp.announce(prefix.address)

    def announce(self) -> None:
        """Tell the neighbours of both families where this station is, as after it was moved."""
        if self.is_up:
            self._announce(self.addresses)
            if self.v6 is not None:
                self.v6.announce()

    def _forget_neighbours(self) -> None:
        if self.neighbours is not None and self.arp is not None:
            self.neighbours.flush()
            self.arp.stop()

    # -- groups --------------------------------------------------------------------------------------------------

    def group_changed(self, group: int, joined: bool) -> None:
        """The engine receives packets to `group` here from now on, or no longer."""
        if self._ethernet is None:
            return
        mac = multicast_mac(group)  # several groups share one
        self._group_macs[mac] += 1 if joined else -1
        self._group_macs = +self._group_macs
        if joined:
            self._ethernet.groups.add(mac)
        elif mac not in self._group_macs and mac not in ALWAYS:
            self._ethernet.groups.discard(mac)
        self._filter()
        membership = self.igmp if is_v4(group) else self.v6.mld if self.v6 is not None else None
        if membership is not None:
            (membership.join if joined else membership.leave)(group)

    @property
    def group_macs(self) -> frozenset[bytes]:
        """The Ethernet addresses of the groups that are received here."""
        return frozenset() if self._ethernet is None else frozenset(self._ethernet.groups)

    def _filter(self) -> None:
        if self.filter_changed is not None:
            self.filter_changed()

    def _send_igmp(self, message: bytes, group: int) -> None:
        igmp = self.igmp
        if igmp is not None:
            packet = PacketBuffer.from_bytes(message)
            self.stack.ip.output(
                packet, group, igmp.protocol, ttl=1, tos=igmp.tos, interface=self, router_alert=True
            )

    # -- packets -------------------------------------------------------------------------------------------------

    def input(self, packets: Sequence[PacketBuffer]) -> None:
        """Packets arrived: whole Ethernet frames, or IP packets where `bare`."""
        if self.flags & IFF_UP:
            self.link.input(packets)
            return
        self.counters["rx_packets"] += len(packets)
        for packet in packets:
            self.link.drop(packet, "rx_dropped_down")

    def send(self, packet: PacketBuffer, next_hop: int, cast: int) -> None:
        """Send an IP packet, `packet.protocol` its EtherType, to a neighbour or to all."""
        ethernet = self._ethernet
        if not self.flags & IFF_UP:
            self.link.drop(packet, "tx_dropped_down")
        elif isinstance(self.link, BareLink):
            self.link.output(packet)
        elif ethernet is None or self.neighbours is None:
            raise AssertionError("an Ethernet interface without its layers")
        elif cast == CAST_HOST:
            self.neighbours.output(packet, next_hop)
        elif cast == CAST_MULTICAST:
            ethernet.output(packet, multicast_mac(next_hop), packet.protocol)
        elif cast == CAST_BROADCAST:
            ethernet.output(packet, MAC_BROADCAST, packet.protocol)

    def room(self) -> int:
        """How many packets may follow each other now without overrunning the device."""
        queue = self.queue
        if queue is None:
            return UNLIMITED
        return queue.tx_room() - (0 if self._ethernet is None else self._ethernet.held)

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when there is room again; the last one who asks is called."""
        if self.queue is not None:
            self.queue.when_room(callback)

    def hold(self) -> None:
        """Hold back what is sent from now on, until as many calls of `release`: it goes to the device in one batch."""
        if self._ethernet is not None:
            self._ethernet.hold()

    def release(self) -> None:
        """See `hold`."""
        if self._ethernet is not None:
            self._ethernet.release()

    def _send_frame(self, packet: PacketBuffer, mac: bytes) -> None:
        if self._ethernet is not None:
            self._ethernet.output(packet, mac, packet.protocol)

    def _solicit(self, address: int) -> None:
        if is_v4(address):
            if self.arp is not None:
                self.arp.request(address)
        elif self.v6 is not None:
            self.v6.nd.request(address)

    def _neighbour_failed(self, packet: PacketBuffer, _next_hop: int) -> None:
        self.stack.neighbour_failed(self, packet)

    def poll(self, now: int) -> bool:
        """Do what is due; whether anything was."""
        if self.neighbours is None or self.arp is None or self.v6 is None:
            return False
        worked = self.neighbours.poll(now)
        worked = self.arp.poll(now) or worked
        if self.igmp is not None:
            worked = self.igmp.poll(now) or worked
        return self.v6.poll(now) or worked

    def poll_at(self) -> int | None:
        """When `poll` is due, or None."""
        v6 = self.v6
        if self.neighbours is None or self.arp is None or v6 is None:
            return None
        soonest: int | None = None
        for timed in (self.neighbours, self.arp, self.igmp, v6.nd, v6.slaac, v6.mld):
            due = None if timed is None else timed.poll_at()
            if due is not None and (soonest is None or due < soonest):
                soonest = due
        return soonest

    def layers(self) -> list[Layer]:
        """The layers that this interface has of its own."""
        own: list[Layer] = [self.link]
        own += [layer for layer in (self.neighbours, self.arp, self.igmp) if layer is not None]
        return own if self.v6 is None else own + self.v6.layers()
