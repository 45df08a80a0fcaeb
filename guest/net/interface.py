"""The interface: where the stack meets whatever moves its packets, by name, with addresses and a state.

An Ethernet interface takes and gives whole frames; a bare one (the loopback) takes and gives IP packets. What receives
calls `input` with a batch; what sends is the `output` hook, which gets batches. Neither blocks.
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
    AddressError,
    Prefix,
    is_loopback,
    is_multicast,
    is_unspecified,
    multicast_mac,
    to_address,
    to_prefix,
)
from guest.net.arp import Arp
from guest.net.device import IFF_BROADCAST, IFF_LOOPBACK, IFF_MULTICAST, IFF_PROMISC, IFF_RUNNING, IFF_UP
from guest.net.ethernet import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Ethernet
from guest.net.ip import source_address
from guest.net.layer import Layer
from guest.net.neighbour import NeighbourCache
from guest.net.pbuf import CAST_BROADCAST, CAST_HOST, CAST_MULTICAST, PacketBuffer

if TYPE_CHECKING:
    from guest.net.stack import Stack

Output = Callable[[Sequence[PacketBuffer]], None]

MIN_MTU = 68  # RFC 791 §3.2
MAX_MTU = 65536


class BareLink(Layer):
    """A link without a header: the first four bits of a packet say what it is.

    Args:
        transmit: takes IP packets.
        deliver: EtherType → what takes such packets.
    """

    def __init__(self, transmit: Output, deliver: dict[int, Output]) -> None:
        super().__init__("link")
        self.transmit = transmit
        self.handlers = deliver

    def input(self, packets: Sequence[PacketBuffer]) -> None:
        """IP packets arrived."""
        counters = self.counters
        counters["rx_packets"] += len(packets)
        counters["rx_bytes"] += sum(map(len, packets))
        for packet in packets:
            version = packet.area[packet.data] >> 4 if packet.pullup(1) else 0
            packet.protocol = ETH_P_IP if version == 4 else ETH_P_IPV6 if version == 6 else 0
            packet.cast = CAST_HOST
            handler = self.handlers.get(packet.protocol)
            if handler is None:
                self.drop(packet, "rx_dropped_version")
            else:
                handler((packet,))

    def output(self, packet: PacketBuffer) -> None:
        """Send an IP packet."""
        self.counters["tx_packets"] += 1
        self.counters["tx_bytes"] += len(packet)
        self.transmit((packet,))


class Interface:
    """One interface of a stack. Made by `Stack.add_interface`.

    Attributes:
        name, index: "lo" has index 1, the others follow.
        mac: 6 bytes, or None where there is no link header.
        mtu: bytes of the largest IP packet.
        flags: IFF_* bits of device.py.
        addresses: own addresses with their prefixes (`Prefix`), in the order in which they were added.
        counters: packets, bytes and drops of the link layer.
        arp, neighbours: None where there is no link header.
        status_callback: told after the interface went up or down, and after its addresses changed while up.
        bare: whether packets have no link header.
    """

    def __init__(self, stack: Stack, name: str, index: int, mac: bytes | None, mtu: int, output: Output) -> None:
        if not MIN_MTU <= mtu <= MAX_MTU:
            raise ValueError(f"an MTU of {mtu} is not within {MIN_MTU} to {MAX_MTU}")
        if mac is not None and (len(mac) != 6 or mac[0] & 1):
            raise AddressError(f"{mac.hex(':')} is not the address of one host")
        self.stack = stack
        self.name = name
        self.index = index
        self.mac = mac
        self.mtu = mtu
        self.addresses: list[Prefix] = []
        self.status_callback: Callable[[Interface], None] | None = None
        self.bare = mac is None
        self.arp: Arp | None = None
        self.neighbours: NeighbourCache | None = None
        self._ethernet: Ethernet | None = None
        self.link: Ethernet | BareLink
        handlers: dict[int, Output] = {
            ethertype: partial(stack.ip.input, self, ethertype) for ethertype in (ETH_P_IP, ETH_P_IPV6)
        }
        if mac is None:
            self.flags = IFF_LOOPBACK | IFF_RUNNING
            self.link = BareLink(output, handlers)
        else:
            self.flags = IFF_BROADCAST | IFF_MULTICAST | IFF_RUNNING
            self.link = self._ethernet = ethernet = Ethernet(mac, mtu, output)
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
            ethernet.handlers = handlers | {ETH_P_ARP: self.arp.input}
            ethernet.groups.add(multicast_mac(V4_ALL_HOSTS))
        self.counters: Counter[str] = self.link.counters

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
        self._status()

    def set_down(self) -> None:
        """Stop sending and receiving; neighbours are forgotten."""
        if not self.is_up:
            return
        self.flags &= ~IFF_UP
        self._forget_neighbours()
        self.stack.changed("link", self, "down")
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

    def set_promiscuous(self, promiscuous: bool) -> None:
        """Whether frames for other hosts reach packet hooks; IP never takes them."""
        self.flags = self.flags | IFF_PROMISC if promiscuous else self.flags & ~IFF_PROMISC
        if self._ethernet is not None:
            self._ethernet.promiscuous = promiscuous

    def set_mtu(self, mtu: int) -> None:
        """Change the MTU. Raises ValueError outside 68 to 65,536."""
        if not MIN_MTU <= mtu <= MAX_MTU:
            raise ValueError(f"an MTU of {mtu} is not within {MIN_MTU} to {MAX_MTU}")
        self.mtu = mtu
        if self._ethernet is not None:
            self._ethernet.mtu = mtu
        self.stack.changed("link", self, f"mtu {mtu}")

    def add_address(self, address: str | int, prefix_len: int) -> None:
        """Add an own address and the route to its network.

        Args:
            address: text or 128-bit number.
            prefix_len: as its family counts it: 24 for 255.255.255.0.

        Raises:
            AddressError: it is no address for one host, or is in use on this stack.
        """
        prefix = to_prefix(address, prefix_len)
        own = prefix.address
        if is_multicast(own) or is_unspecified(own) or own in (V4_BROADCAST, prefix.broadcast):
            raise AddressError(f"{prefix} is not an address for one host")
        if is_loopback(own) and not self.bare:
            raise AddressError(f"{prefix} belongs to the loopback")
        if any(other.owns(own) for other in self.stack.interfaces):
            raise AddressError(f"{prefix} is in use on this stack already")
        self.addresses.append(prefix)
        self.stack.connect(self, prefix)
        self.stack.changed("address", self, f"added {prefix}")
        if self.is_up:
            self._announce([prefix])
            self._status()

    def remove_address(self, address: str | int) -> bool:
        """Remove an own address, and the route to its network with the last address there; whether it was there."""
        own = to_address(address)
        for prefix in self.addresses:
            if prefix.address == own:
                self.addresses.remove(prefix)
                network = (prefix.network, prefix.length)
                if network not in [(other.network, other.length) for other in self.addresses]:
                    self.stack.disconnect(self, prefix)
                self.stack.changed("address", self, f"removed {prefix}")
                if self.is_up:
                    self._status()
                return True
        return False

    def owns(self, address: int) -> bool:
        """Whether `address` is one of this interface's own."""
        return any(prefix.address == address for prefix in self.addresses)

    def on_link(self, address: int) -> bool:
        """Whether `address` lies in a network of this interface."""
        return any(prefix.contains(address) for prefix in self.addresses)

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
                self.arp.announce(prefix.address)

    def _forget_neighbours(self) -> None:
        if self.neighbours is not None and self.arp is not None:
            self.neighbours.flush()
            self.arp.stop()

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

    def _send_frame(self, packet: PacketBuffer, mac: bytes) -> None:
        if self._ethernet is not None:
            self._ethernet.output(packet, mac, packet.protocol)

    def _solicit(self, address: int) -> None:
        if self.arp is not None:
            self.arp.request(address)

    def _neighbour_failed(self, packet: PacketBuffer, _next_hop: int) -> None:
        self.stack.icmp.neighbour_failed(packet)

    def poll(self, now: int) -> bool:
        """Do what is due; whether anything was."""
        if self.neighbours is None or self.arp is None:
            return False
        worked = self.neighbours.poll(now)
        return self.arp.poll(now) or worked

    def poll_at(self) -> int | None:
        """When `poll` is due, or None."""
        if self.neighbours is None or self.arp is None:
            return None
        due = [when for when in (self.neighbours.poll_at(), self.arp.poll_at()) if when is not None]
        return min(due) if due else None

    def layers(self) -> list[Layer]:
        """The layers that this interface has of its own."""
        return [self.link, *(layer for layer in (self.neighbours, self.arp) if layer is not None)]
