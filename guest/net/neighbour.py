"""The neighbour cache: which MAC address a next hop has, and the packets that wait to learn it.

It is keyed by 128-bit address and knows no protocol: ARP (arp.py) asks and learns for IPv4, neighbour discovery plugs
into the same cache. RFC 826, RFC 1122 §2.3.2.

Promises:
- Never more than `arp_entries` entries; the least recently used one goes first, and what waited for it is counted.
- An entry is used for exactly `arp_ttl` after its neighbour was last heard of, then asked for again.
- `arp_retries` requests, `arp_interval` apart; then what waited is dropped, counted, and reported through `failed`.
- At most `arp_queue` packets of `arp_queue_bytes` together wait for one neighbour; the oldest give way (RFC 1122
  §2.3.2.2: keep the latest, which is kept whatever its size).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from guest.net.config import NetConfig
from guest.net.layer import Layer
from guest.net.pbuf import PacketBuffer, PacketQueue


class Neighbour:
    """One entry. Without a `mac` it is being asked for.

    Attributes:
        mac: 6 bytes, or None.
        expires: when the MAC may no longer be used.
        tries: requests sent. due: when the next one, or the end, is due.
        waiting: packets for it.
    """

    __slots__ = ("due", "expires", "mac", "tries", "waiting")

    def __init__(self) -> None:
        self.mac: bytes | None = None
        self.expires = 0
        self.tries = 0
        self.due = 0
        self.waiting: PacketQueue | None = None


class NeighbourCache(Layer):
    """The neighbours of one interface.

    Args:
        now: the time.
        config: limits and times.
        solicit: sends one request for an address.
        send: sends a packet to a MAC address.
        failed: told of each packet whose next hop did not answer, with the next hop.
        counters: where to count.
    """

    def __init__(
        self,
        *,
        now: Callable[[], int],
        config: NetConfig,
        solicit: Callable[[int], None],
        send: Callable[[PacketBuffer, bytes], None],
        failed: Callable[[PacketBuffer, int], None],
        counters: Counter[str] | None = None,
    ) -> None:
        super().__init__("neighbour", counters)
        self._now = now
        self._config = config
        self._solicit = solicit
        self._send = send
        self._failed = failed
        self._entries: OrderedDict[int, Neighbour] = OrderedDict()  # least recently used first
        self._asking: dict[int, Neighbour] = {}  # in the order in which they are due: the interval is the same for all

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, address: int) -> bool:
        """Whether there is an entry for `address`, be it asked for, in use or aged."""
        return address in self._entries

    def entries(self) -> list[tuple[int, bytes | None, int]]:
        """Address, MAC (None while asking) and expiry of each entry that has not aged out."""
        now = self._now()
        return [
            (address, entry.mac, entry.expires)
            for address, entry in self._entries.items()
            if entry.mac is None or now < entry.expires
        ]

    def lookup(self, address: int) -> bytes | None:
        """The MAC address that may be used for `address` now, or None."""
        entry = self._entries.get(address)
        return entry.mac if entry is not None and self._now() < entry.expires else None

    def output(self, packet: PacketBuffer, address: int) -> None:
        """Send `packet` to the neighbour `address`, at once or when it has answered."""
        entry = self._entries.get(address)
        if entry is None:
            entry = self._insert(address)
        else:
            self._entries.move_to_end(address)
            if entry.mac is not None:
                if self._now() < entry.expires:
                    self._send(packet, entry.mac)
                    return
                entry.mac = None
        if entry.waiting is None:
            entry.waiting = PacketQueue()
        self._make_room(entry.waiting, len(packet))
        entry.waiting.add_tail(packet.keep())
        if address not in self._asking:
            entry.tries = 0
            self._ask(address, entry)

    def learn(self, address: int, mac: bytes, create: bool) -> bool:
        """`address` was heard from `mac`; whether the cache has it now. `create` makes an entry where there is none."""
        entry = self._entries.get(address)
        if entry is None:
            if not create:
                return False
            entry = self._insert(address)
        entry.mac = mac
        entry.expires = self._now() + self._config.arp_ttl
        self._asking.pop(address, None)
        waiting, entry.waiting = entry.waiting, None
        if waiting is not None:
            for packet in waiting:
                self._send(packet, mac)
        return True

    def poll(self, now: int) -> bool:
        """Ask again, or give up, where that is due; whether anything was."""
        worked = False
        while self._asking:
            address, entry = next(iter(self._asking.items()))
            if entry.due > now:
                break
            worked = True
            if entry.tries < self._config.arp_retries:
                self._ask(address, entry)
            else:
                self.counters["failures"] += 1
                self._remove(address, "tx_dropped_unreachable", report=True)
        return worked

    def poll_at(self) -> int | None:
        """When `poll` is due, or None."""
        for entry in self._asking.values():
            return entry.due
        return None

    def flush(self) -> None:
        """Forget everything; what waited is dropped."""
        for address in list(self._entries):
            self._remove(address, "tx_dropped_flushed")

    def _make_room(self, waiting: PacketQueue, size: int) -> None:
        config = self._config
        while len(waiting) >= config.arp_queue or waiting.bytes + size > config.arp_queue_bytes:
            oldest = waiting.remove_head()
            if oldest is None:
                return
            self.drop(oldest, "tx_dropped_queue_full")

    def _insert(self, address: int) -> Neighbour:
        entries = self._entries
        while len(entries) >= self._config.arp_entries:
            self.counters["evictions"] += 1
            self._remove(next(iter(entries)), "tx_dropped_evicted")
        entry = entries[address] = Neighbour()
        return entry

    def _ask(self, address: int, entry: Neighbour) -> None:
        entry.tries += 1
        entry.due = self._now() + self._config.arp_interval
        self._asking.pop(address, None)
        self._asking[address] = entry
        self._solicit(address)

    def _remove(self, address: int, reason: str, report: bool = False) -> None:
        entry = self._entries.pop(address)
        self._asking.pop(address, None)
        for packet in entry.waiting or ():
            self.drop(packet, reason)
            if report:
                self._failed(packet, address)
