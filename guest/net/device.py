"""The network device: what every packet-moving thing in the guest looks like from above.

The loopback, the virtio-net and netfront drivers are its instances. A device is told where received packets go
(`receiver`), and offers `transmit`. Both carry batches: a call per packet would cost more than the packet.

Counters are a `Counter`, name → number, with at least `rx_packets`, `rx_bytes`, `tx_packets`, `tx_bytes`; a drop's
name says its reason (`rx_dropped_short`, `tx_dropped_ring_full`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from guest.net.pbuf import PacketBuffer

Sink: TypeAlias = Callable[[Sequence[PacketBuffer]], None]

UNLIMITED = 1 << 30  # room of a device that does not say

IFF_UP = 0x1
IFF_BROADCAST = 0x2
IFF_LOOPBACK = 0x8
IFF_POINTOPOINT = 0x10
IFF_RUNNING = 0x40
IFF_NOARP = 0x80
IFF_PROMISC = 0x100
IFF_MULTICAST = 0x1000

FLAG_NAMES = {
    IFF_UP: "UP",
    IFF_BROADCAST: "BROADCAST",
    IFF_LOOPBACK: "LOOPBACK",
    IFF_POINTOPOINT: "POINTOPOINT",
    IFF_RUNNING: "RUNNING",
    IFF_NOARP: "NOARP",
    IFF_PROMISC: "PROMISC",
    IFF_MULTICAST: "MULTICAST",
}


class NetDevice(ABC):
    """A device that moves whole Ethernet frames.

    Attributes:
        name: "eth0", "lo".
        mac: 6 bytes.
        mtu: bytes of the largest IP packet.
        flags: IFF_* bits.
        gso_max_size: bytes of the largest packet that the device takes when it segments itself; the MTU's frame when it
            does not. `gso_max_segs`: how many segments that may become. `gso_kinds`: what it segments,
            VIRTIO_NET_HDR_GSO_*. `max_slots`: pieces of one packet.
        receiver: where received packets go; None drops and counts them.
        wants_room: called once, and forgotten, when there is room again; see `when_room`.
        announce: called when the neighbours are to be told where this station is.
    """

    gso_max_size = 0
    gso_max_segs = 1
    gso_kinds: frozenset[int] = frozenset()
    max_slots = 18

    def __init__(self, name: str, mac: bytes, mtu: int = 1500, flags: int = IFF_BROADCAST | IFF_MULTICAST) -> None:
        self.name = name
        self.mac = mac
        self.mtu = mtu
        self.flags = flags
        self.receiver: Sink | None = None
        self.counters: Counter[str] = Counter()
        self.link_changed: Callable[[], None] | None = None  # told when `flags` changed by the device's doing
        self.wants_room: Callable[[], None] | None = None
        self.announce: Callable[[], None] | None = None

    @abstractmethod
    def transmit(self, packets: Sequence[PacketBuffer]) -> int:
        """Send packets, first to last; how many were accepted. Those that were not are dropped and counted here."""

    def tx_room(self) -> int:
        """How many frames may follow each other now without overrunning the device; UNLIMITED where it knows no limit.

        What is sent all the same may be dropped. Something is kept back for those who do not ask, such as ARP.
        """
        return UNLIMITED

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when there is room again, in a turn of its own. The last one who asks is called."""
        self.wants_room = callback

    def receive_mode(self, promiscuous: bool, groups: Iterable[bytes]) -> None:  # noqa: B027  # most cannot filter
        """What is wanted beside frames for the own address and broadcasts: everything, or those to these groups."""

    def poll(self) -> bool:
        """Deliver some of what has arrived without waiting for an interrupt; whether more is waiting."""
        return False

    def close(self) -> None:  # noqa: B027  # most have nothing to give back
        """Stop, and give everything back; harmless when done before."""

    def deliver(self, packets: Sequence[PacketBuffer]) -> None:
        """Hand received packets upwards."""
        for packet in packets:
            packet.device = self
        if self.receiver is None:
            self.counters["rx_dropped_no_receiver"] += len(packets)
        else:
            self.receiver(packets)
