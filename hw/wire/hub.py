"""A hub that learns: a switch in memory with any number of ports.

Promises:
- A frame never goes back to the port that it came from.
- Each frame is delivered to the port where its destination was last seen as a source; to all other ports when that is
  unknown or a group; or it is counted with the reason.
- Consecutive frames for the same ports are handed over as one batch; frames of one source stay in order.
- The table of addresses is bounded: the address seen longest ago makes room, and each is forgotten `max_age` after it
  was last seen. Group addresses and the zero address are never learnt.
- The virtio header goes along: ports of one process may exchange super-frames and unfinished checksums.

Read first: `link.py`, and `MemoryLink` in `cable.py` for delivery, backlog and the guard against re-entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hw.clock import SECOND
from hw.loop import Loop
from hw.wire.cable import BACKLOG_BYTES, BACKLOG_FRAMES, MemoryLink
from hw.wire.link import Frame, Receiver, frame_bytes

ETHERNET_HEADER = 14
TABLE_SIZE = 1024
MAX_AGE = 300 * SECOND
_ZERO = bytes(6)


class HubPort(MemoryLink):
    """A port; its link is for whoever plugs in. Counts `tx_dropped_runt`, `tx_dropped_same_port` (the destination sits
    behind this very port) and `tx_dropped_no_peer` (no other port has anybody)."""

    def __init__(self, hub: Hub, loop: Loop, name: str, backlog_frames: int, backlog_bytes: int) -> None:
        super().__init__(loop, name, backlog_frames=backlog_frames, backlog_bytes=backlog_bytes)
        self._hub = hub

    def _send(self, frames: Sequence[Frame]) -> None:
        self._hub.forward(self, frames)

    def attach(self, receiver: Receiver) -> None:
        """Plug `receiver` in. Raises WireError when the port is taken."""
        super().attach(receiver)
        self._hub.changed(self)

    def detach(self) -> None:
        """Pull the plug; the hub forgets the addresses behind this port."""
        super().detach()
        self._hub.changed(self)


class Hub:
    """A learning switch.

    Args:
        loop: whose clock ages addresses.
        name: ports are named `NAME.PORT`.
        table_size: addresses at most.
        max_age: microseconds after which an address that was not seen as a source is forgotten.
        backlog_frames, backlog_bytes: kept by each port for a receiver that has no room.

    Counters: `learned`, `moved` (an address appeared behind another port), `evicted` (no room in the table), `aged`.
    """

    def __init__(
        self,
        loop: Loop,
        name: str = "hub",
        *,
        table_size: int = TABLE_SIZE,
        max_age: int = MAX_AGE,
        backlog_frames: int = BACKLOG_FRAMES,
        backlog_bytes: int = BACKLOG_BYTES,
    ) -> None:
        self.name = name
        self.counters: Counter[str] = Counter()
        self._ports: list[HubPort] = []
        self._floods: dict[HubPort, tuple[HubPort, ...]] = {}  # port → the others that somebody is plugged into
        self._table: dict[bytes, tuple[HubPort, int]] = {}  # address → port, when last seen; longest ago first
        self._loop = loop
        self._table_size = table_size
        self._max_age = max_age
        self._backlog = backlog_frames, backlog_bytes

    def port(self, name: str) -> HubPort:
        """A new port."""
        port = HubPort(self, self._loop, f"{self.name}.{name}", *self._backlog)
        self._ports.append(port)
        return port

    @property
    def ports(self) -> list[HubPort]:
        """The ports that are not closed."""
        return list(self._ports)

    def addresses(self) -> dict[bytes, str]:
        """Each address that is known now, with the name of its port."""
        oldest = self._loop.clock.now() - self._max_age
        return {address: port.name for address, (port, seen) in self._table.items() if seen >= oldest}

    def changed(self, port: HubPort) -> None:
        """Somebody was plugged into or out of `port`; called by the port."""
        self._floods.clear()
        if port.receiver is None:
            self._table = {address: entry for address, entry in self._table.items() if entry[0] is not port}
        if port.closed and port in self._ports:
            self._ports.remove(port)

    def close(self) -> None:
        """Close every port."""
        for port in self.ports:
            port.close()

    def forward(self, source: HubPort, frames: Sequence[Frame]) -> None:
        """Take frames from the port `source` to where they belong."""
        known = b""  # the two addresses of the frame before, which most frames share
        targets: tuple[HubPort, ...] = ()
        start = 0
        for at, (_, views) in enumerate(frames):
            head = views[0] if views and len(views[0]) >= ETHERNET_HEADER else frame_bytes(frames[at])
            if len(head) < ETHERNET_HEADER:
                self._hand_over(source, targets, frames[start:at])
                start = at + 1
                source.counters["tx_dropped_runt"] += 1
                continue
            addresses = bytes(head[:12])
            if addresses == known:
                continue
            known = addresses
            self._learn(addresses[6:], source)
            to = self._targets(addresses[:6], source)
            if to != targets:
                self._hand_over(source, targets, frames[start:at])
                start, targets = at, to
        self._hand_over(source, targets, frames[start:] if start else frames)

    def _learn(self, address: bytes, port: HubPort) -> None:
        if address[0] & 1 or address == _ZERO:
            return
        table = self._table
        entry = table.pop(address, None)
        if entry is None:
            self.counters["learned"] += 1
            if len(table) >= self._table_size:
                del table[next(iter(table))]
                self.counters["evicted"] += 1
        elif entry[0] is not port:
            self.counters["moved"] += 1
        table[address] = port, self._loop.clock.now()

    def _targets(self, address: bytes, source: HubPort) -> tuple[HubPort, ...]:
        """Where a frame for `address` goes: one port (`source` itself when it is there already), or all others."""
        entry = self._table.get(address)
        if entry is not None:
            if entry[1] >= self._loop.clock.now() - self._max_age:
                return (entry[0],)
            del self._table[address]
            self.counters["aged"] += 1
        others = self._floods.get(source)
        if others is None:
            others = tuple(port for port in self._ports if port is not source and port.receiver is not None)
            self._floods[source] = others
        return others

    def _hand_over(self, source: HubPort, targets: tuple[HubPort, ...], frames: Sequence[Frame]) -> None:
        if not frames:
            return
        if not targets:
            source.counters["tx_dropped_no_peer"] += len(frames)
        elif targets[0] is source:
            source.counters["tx_dropped_same_port"] += len(frames)
        else:
            for port in targets:
                port.deliver(frames)
