"""The loopback device: what is sent comes back.

Promises:
- Nothing is delivered inside `transmit`: packets wait in a bounded queue for a slice of deferred work, so a stack that
  answers itself never recurses, and never holds up other devices.
- A packet that finds the queue full is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from guest.net.device import IFF_LOOPBACK, IFF_RUNNING, IFF_UP, NetDevice
from guest.net.pbuf import PacketBuffer, PacketQueue
from guest.services import Services

LOOPBACK_MTU = 65536
QUEUE_LIMIT = 1000  # packets
BUDGET = 64  # packets of one slice


class Loopback(NetDevice):
    """The device `lo`; its packets are bare IP packets.

    Args:
        services: for deferred delivery.
        limit: packets that may wait.
    """

    def __init__(self, services: Services, limit: int = QUEUE_LIMIT) -> None:
        super().__init__("lo", bytes(6), LOOPBACK_MTU, IFF_UP | IFF_LOOPBACK | IFF_RUNNING)
        self.gso_max_size = LOOPBACK_MTU
        self._deferred = services.deferred
        self._limit = limit
        self._queue = PacketQueue()
        self._scheduled = False

    def transmit(self, packets: Sequence[PacketBuffer]) -> int:
        queue, limit = self._queue, self._limit
        taken = taken_bytes = 0
        for packet in packets:
            if len(packet) > self.mtu:
                self.counters["tx_dropped_too_long"] += 1
                continue
            if len(queue) >= limit:
                self.counters["tx_dropped_queue_full"] += 1
                continue
            kept = packet.keep()
            # The receiver pulls headers; the sender's own ends stay where they are.
            queue.add_tail(packet.clone() if kept is packet else kept)
            taken += 1
            taken_bytes += len(packet)
        self.counters["tx_packets"] += taken
        self.counters["tx_bytes"] += taken_bytes
        if taken and not self._scheduled:
            self._scheduled = True
            self._deferred.add(self._deliver_some)
        return taken

    def _deliver_some(self) -> bool:
        """One slice: deliver what waits now, up to the budget; whether more is waiting."""
        packets: list[PacketBuffer] = []
        size = 0
        for _ in range(BUDGET):
            packet = self._queue.remove_head()
            if packet is None:
                break
            packets.append(packet)
            size += len(packet)
        self.counters["rx_packets"] += len(packets)
        self.counters["rx_bytes"] += size
        if packets:
            self.deliver(packets)
        self._scheduled = len(self._queue) > 0
        callback = self.wants_room
        if callback is not None and self.tx_room() > 0:
            self.wants_room = None
            callback()
        return self._scheduled

    def tx_room(self) -> int:
        return max(0, self._limit - self._limit // 16 - len(self._queue))

    def close(self) -> None:
        """Drop what waits."""
        self.counters["rx_dropped_closed"] += self._queue.purge()
