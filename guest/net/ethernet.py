"""Ethernet II: header, address filter, dispatch by EtherType. RFC 894, RFC 1122 §2.3.3, IEEE 802.3 §3.2.

Promises:
- Every frame that comes in is handed to exactly one handler or counted under one `rx_dropped_…`.
- Frames of a batch keep their order; a handler gets runs of frames with the same EtherType.
- Frames that go out while a batch comes in leave in one batch of their own.
- No padding: virtio-net carries frames of any length from 14 bytes on. Received padding is IP's to trim.

A frame check sequence is not on the virtio wire; `frame_check_sequence` serves captures and inspectors.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from guest.net.address import MAC_BROADCAST
from guest.net.layer import Layer
from guest.net.pbuf import CAST_BROADCAST, CAST_HOST, CAST_MULTICAST, CAST_OTHER_HOST, PacketBuffer

Handler: TypeAlias = Callable[[Sequence[PacketBuffer]], None]

HEADER = struct.Struct("!6s6sH")  # destination, source, EtherType
HEADER_SIZE = 14
assert HEADER.size == HEADER_SIZE
VLAN_SIZE = 4

ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806
ETH_P_VLAN = 0x8100
ETH_P_IPV6 = 0x86DD
FIRST_TYPE = 0x0600  # smaller numbers are an IEEE 802.3 length


def frame_check_sequence(views: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """The 4 bytes that follow a frame on a real wire (IEEE 802.3 §3.2.9)."""
    crc = 0
    for view in views:
        crc = zlib.crc32(view, crc)
    return crc.to_bytes(4, "little")


class Ethernet(Layer):
    """The link layer of one interface.

    Args:
        mac: the interface's address, 6 bytes.
        mtu: bytes of the largest IP packet that is taken in; longer frames are dropped, unless offload merged them.
        transmit: takes whole frames.

    Attributes:
        handlers: EtherType → what takes such frames, with the header pulled.
        groups: multicast addresses that are listened to.
        promiscuous: let frames for other hosts pass, with `cast` saying so.
        packet_hook: sees every whole frame that passed the filter, known EtherType or not; it clones what it keeps.
    """

    def __init__(self, mac: bytes, mtu: int, transmit: Handler) -> None:
        super().__init__("ethernet")
        self.mac = mac
        self.mtu = mtu
        self.transmit = transmit
        self.handlers: dict[int, Handler] = {}
        self.groups: set[bytes] = set()
        self.promiscuous = False
        self.packet_hook: Handler | None = None
        self._outgoing: list[PacketBuffer] = []
        self._holds = 0

    def input(self, packets: Sequence[PacketBuffer]) -> None:
        """Whole frames arrived."""
        counters = self.counters
        trace = self.trace
        mac = self.mac
        longest = self.mtu + HEADER_SIZE + VLAN_SIZE
        unpack = HEADER.unpack_from
        passed: list[PacketBuffer] = []
        total = 0
        for packet in packets:
            size = len(packet)
            total += size
            if size < HEADER_SIZE:
                self.drop(packet, "rx_dropped_runt")
                continue
            if size > longest and not (packet.offload and packet.offload.gso_type):
                self.drop(packet, "rx_dropped_overlong")
                continue
            packet.pullup(HEADER_SIZE)
            destination, source, packet.protocol = unpack(packet.area, packet.data)
            if source[0] & 1:
                self.drop(packet, "rx_dropped_source")
                continue
            if destination == mac:
                packet.cast = CAST_HOST
            elif destination == MAC_BROADCAST:
                packet.cast = CAST_BROADCAST
            elif destination[0] & 1:
                if destination not in self.groups and not self.promiscuous:
                    self.drop(packet, "rx_dropped_multicast")
                    continue
                packet.cast = CAST_MULTICAST
            elif self.promiscuous:
                packet.cast = CAST_OTHER_HOST
            else:
                self.drop(packet, "rx_dropped_other_host")
                continue
            if trace is not None:
                trace(self.stage, packet, f"{source.hex(':')} > {destination.hex(':')} {packet.protocol:#06x}")
            passed.append(packet)
        counters["rx_packets"] += len(packets)
        counters["rx_bytes"] += total
        if not passed:
            return
        if self.packet_hook is not None:
            self.packet_hook(passed)
        self.hold()
        try:
            self._dispatch(passed)
        finally:
            self.release()

    def _dispatch(self, packets: Sequence[PacketBuffer]) -> None:
        run: list[PacketBuffer] = []
        running = 0
        handler: Handler | None = None
        for packet in packets:
            if packet.protocol != running:
                if run and handler is not None:
                    handler(run)
                running = packet.protocol
                handler = self.handlers.get(running)
                run = []
            if handler is None:
                self.drop(packet, self._unknown(packet))
                continue
            packet.data += HEADER_SIZE
            run.append(packet)
        if run and handler is not None:
            handler(run)

    @staticmethod
    def _unknown(packet: PacketBuffer) -> str:
        """Why a frame has no handler."""
        if packet.protocol < FIRST_TYPE:
            return "rx_dropped_802_3"
        if packet.protocol == ETH_P_VLAN:
            return "rx_dropped_vlan_short" if len(packet) < HEADER_SIZE + VLAN_SIZE else "rx_dropped_vlan"
        return "rx_dropped_ethertype"

    def output(self, packet: PacketBuffer, destination: bytes, ethertype: int) -> None:
        """Send a packet; its headroom takes the header."""
        packet.push(HEADER_SIZE)
        HEADER.pack_into(packet.area, packet.data, destination, self.mac, ethertype)
        packet.protocol = ethertype
        if self.trace is not None:
            self.trace(self.stage, packet, f"{self.mac.hex(':')} > {destination.hex(':')} {ethertype:#06x}")
        self._outgoing.append(packet)
        if not self._holds:
            self.flush()

    @property
    def held(self) -> int:
        """Frames that are held back."""
        return len(self._outgoing)

    def hold(self) -> None:
        """Hold back what is sent from now on, until as many calls of `release`: it goes down in one batch."""
        self._holds += 1

    def release(self) -> None:
        """See `hold`."""
        self._holds -= 1
        if not self._holds:
            self.flush()

    def flush(self) -> None:
        """Hand down what was held back."""
        packets = self._outgoing
        if packets:
            self._outgoing = []
            self.counters["tx_packets"] += len(packets)
            self.counters["tx_bytes"] += sum(map(len, packets))
            self.transmit(packets)
