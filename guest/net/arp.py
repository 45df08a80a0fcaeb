"""ARP: asks for and learns IPv4 neighbours, answers for own addresses, watches for conflicts.

RFC 826, RFC 1122 §2.3.2, RFC 5227.

A packet teaches the cache about its sender if the sender is known already, or if it asks for one of our addresses and
lives on a network of ours; so a flood of unsolicited packets fills nothing. Own addresses are never learned: whoever
claims one is a conflict, counted, reported, and answered with an announcement at most every ten seconds
(RFC 5227 §2.4 (b)).

Every packet that comes in is counted once more: under `rx_requests`, `rx_replies`, `rx_probes`, `rx_conflicts`,
`rx_ignored_…` or `rx_dropped_…`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from guest.net.address import (
    MAC_BROADCAST,
    MAC_ZERO,
    V4_ANY,
    V4_BITS,
    V4_PREFIX,
    format_mapped,
)
from guest.net.config import SECOND, NetConfig
from guest.net.ethernet import ETH_P_ARP, ETH_P_IP
from guest.net.layer import Layer
from guest.net.neighbour import NeighbourCache
from guest.net.pbuf import PacketBuffer

# hardware, protocol, their address lengths, operation, sender MAC, sender IP, target MAC, target IP
PACKET = struct.Struct("!HHBBH6sI6sI")
PACKET_SIZE = 28
assert PACKET.size == PACKET_SIZE

ARPHRD_ETHER = 1
REQUEST = 1
REPLY = 2
ANNOUNCE_INTERVAL = 2 * SECOND
DEFEND_INTERVAL = 10 * SECOND


class ArpOwner(Protocol):
    """What ARP asks of its interface."""

    def owns(self, address: int) -> bool:
        """Whether `address` is one of the interface's own."""

    def on_link(self, address: int) -> bool:
        """Whether `address` lies in a network of the interface."""

    def source_for(self, address: int) -> int | None:
        """Which own address to use towards `address`."""

    def conflict(self, address: int, mac: bytes) -> None:
        """`mac` claims our `address`."""


class Arp(Layer):
    """ARP on one interface.

    Args:
        mac: the interface's address.
        now: the time.
        config: limits and times.
        cache: what learns.
        output: sends a packet to a MAC address with an EtherType.
        owner: the interface.
        counters: where to count.
    """

    def __init__(
        self,
        *,
        mac: bytes,
        now: Callable[[], int],
        config: NetConfig,
        cache: NeighbourCache,
        output: Callable[[PacketBuffer, bytes, int], None],
        owner: ArpOwner,
        counters: Counter[str] | None = None,
    ) -> None:
        super().__init__("arp", counters)
        self._mac = mac
        self._now = now
        self._config = config
        self._cache = cache
        self._output = output
        self._owner = owner
        self._announcements: list[tuple[int, int, int]] = []  # when, address, how many are left
        self._defended: dict[int, int] = {}  # own address → when it was last defended

    def input(self, packets: Sequence[PacketBuffer]) -> None:
        """ARP packets arrived, without their Ethernet headers."""
        self.counters["rx_packets"] += len(packets)
        for packet in packets:
            self.settle(packet, self._receive(packet))

    def _receive(self, packet: PacketBuffer) -> str:
        if not packet.pullup(PACKET_SIZE):
            return "rx_dropped_short"
        hardware, protocol, hlen, plen, operation, mac, sender, _, target = PACKET.unpack_from(packet.area, packet.data)
        if hardware != ARPHRD_ETHER or protocol != ETH_P_IP:
            return "rx_dropped_type"
        if hlen != 6 or plen != 4:
            return "rx_dropped_lengths"
        if operation not in (REQUEST, REPLY):
            return "rx_dropped_operation"
        if mac[0] & 1 or mac == MAC_ZERO:
            return "rx_dropped_sender_mac"
        owner = self._owner
        sender |= V4_PREFIX
        target |= V4_PREFIX
        self._show("rx", packet, operation, sender, target)
        for_us = owner.owns(target)
        if sender == V4_ANY:  # a probe (RFC 5227 §1.1): whoever sends it has no address yet
            if operation != REQUEST:
                return "rx_dropped_sender"
            if for_us and mac != self._mac:
                self._send(REPLY, target, mac, sender, mac)
            return "rx_probes"
        top = sender >> 24 & 0xFF
        if top >= 224 or top in (0, 127):
            return "rx_dropped_sender"
        if owner.owns(sender):
            if mac == self._mac:
                return "rx_dropped_own"
            self._defend(sender)
            owner.conflict(sender, mac)
            return "rx_conflicts"
        asked = for_us and operation == REQUEST
        known = self._cache.learn(sender, mac, create=asked and owner.on_link(sender))
        if operation == REPLY:
            return "rx_replies" if known else "rx_ignored_unsolicited"
        if not asked:
            return "rx_ignored_other_target"
        self._send(REPLY, target, mac, sender, mac)
        return "rx_requests"

    def request(self, address: int) -> None:
        """Ask who has `address`."""
        source = self._owner.source_for(address)
        self._send(REQUEST, V4_ANY if source is None else source, MAC_ZERO, address, MAC_BROADCAST)

    def announce(self, address: int) -> None:
        """`address` is ours from now on: probe for somebody who has it, and tell the others (RFC 5227 §2.1, §2.3)."""
        self._send(REQUEST, V4_ANY, MAC_ZERO, address, MAC_BROADCAST)
        self._announce(address, self._config.arp_announcements)

    def _announce(self, address: int, count: int) -> None:
        if count <= 0:
            return
        self._send(REQUEST, address, MAC_ZERO, address, MAC_BROADCAST)
        if count > 1:
            self._announcements.append((self._now() + ANNOUNCE_INTERVAL, address, count - 1))

    def poll(self, now: int) -> bool:
        """Send the announcements that are due; whether any was."""
        if not self._announcements or self._announcements[0][0] > now:
            return False
        due = [item for item in self._announcements if item[0] <= now]
        self._announcements = self._announcements[len(due) :]
        for _, address, count in due:
            if self._owner.owns(address):
                self._announce(address, count)
        return True

    def poll_at(self) -> int | None:
        """When `poll` is due, or None."""
        return self._announcements[0][0] if self._announcements else None

    def stop(self) -> None:
        """Forget announcements that are to come."""
        self._announcements.clear()

    def _defend(self, address: int) -> None:
        now = self._now()
        last = self._defended.get(address)
        if last is None or now - last >= DEFEND_INTERVAL:
            self._defended[address] = now
            self._send(REQUEST, address, MAC_ZERO, address, MAC_BROADCAST)

    def _send(self, operation: int, sender: int, target_mac: bytes, target: int, destination: bytes) -> None:
        packet = PacketBuffer.allocate(PACKET_SIZE)
        packet.put(PACKET_SIZE)
        PACKET.pack_into(
            packet.area, packet.data, ARPHRD_ETHER, ETH_P_IP, 6, 4, operation,
            self._mac, sender & V4_BITS, target_mac, target & V4_BITS,
        )  # fmt: skip
        self.counters["tx_requests" if operation == REQUEST else "tx_replies"] += 1
        self._show("tx", packet, operation, sender, target)
        self._output(packet, destination, ETH_P_ARP)

    def _show(self, way: str, packet: PacketBuffer, operation: int, sender: int, target: int) -> None:
        if self.trace is not None:
            name = "request" if operation == REQUEST else "reply"
            self.trace(self.stage, packet, f"{way} {name} {format_mapped(sender)} > {format_mapped(target)}")
