"""The link layer of interfaces without one: the loopback and TUN-style interfaces carry IP packets as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from guest.net.ethernet import ETH_P_IP, ETH_P_IPV6
from guest.net.layer import Layer
from guest.net.pbuf import CAST_HOST, PacketBuffer

Output = Callable[[Sequence[PacketBuffer]], None]


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
