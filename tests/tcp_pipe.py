"""Two stacks on one bad wire, on the virtual clock: what is written on one side must come out on the other.

The wire is the tests' own: it loses, delays, reorders, duplicates and corrupts whole packets by a seed, each direction
from a source of its own, and lets them through at a rate if it has one.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from guest.net.interface import Interface
from guest.net.pbuf import PacketBuffer
from guest.net.tcp.config import TcpConfig
from tests.net_world import Clock
from tests.tcp_world import ADDRESSES, MS, SECOND, make_stack, number

CHUNK = 1 << 16


@dataclass(frozen=True)
class Wire:
    """What happens to packets, each way.

    Attributes:
        loss, reorder, duplicate, corrupt: shares of the packets. A reordered one comes `held` microseconds later; in a
            corrupt one a bit is flipped.
        delay: microseconds. rate: bytes a second, or None; what would wait longer than `queue` bytes is lost.
    """

    loss: float = 0
    reorder: float = 0
    duplicate: float = 0
    corrupt: float = 0
    delay: int = 10 * MS
    held: int = 5 * MS
    rate: int | None = None
    queue: int = 1 << 18


BAD = Wire(loss=0.10, reorder=0.05, duplicate=0.02, corrupt=0.01)  # row E31


class Side:
    """One of the two stacks."""

    def __init__(self, pair: Pair, index: int, tcp: TcpConfig | None, seed: int, mtu: int, **settings: Any) -> None:
        self.pair = pair
        self.stack = make_stack(pair.clock, seed, tcp, **settings)
        self.link: Interface = self.stack.add_interface("tun0", None, mtu, self._sends)
        self.stack.default = self.link
        self.address = ADDRESSES[pair.family][index]
        self.link.add_address(self.address, 24 if pair.family == 4 else 64)
        self.rng = random.Random(seed * 2 + 1)
        self.other: Side = self
        self.free_at = 0
        self.counts: Counter[str] = Counter()

    def _sends(self, packets: Sequence[PacketBuffer]) -> None:
        pair, wire, rng = self.pair, self.pair.wire, self.rng
        now = pair.clock.now
        for packet in packets:
            self.counts["sent"] += 1
            raw = packet.tobytes()
            if wire.loss and rng.random() < wire.loss:
                self.counts["lost"] += 1
                continue
            if wire.corrupt and rng.random() < wire.corrupt:
                self.counts["corrupt"] += 1
                spoiled = bytearray(raw)
                spoiled[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
                raw = bytes(spoiled)
            at = now + wire.delay
            if wire.rate is not None:
                if (self.free_at - now) * wire.rate > wire.queue * SECOND:
                    self.counts["queue full"] += 1
                    continue
                self.free_at = max(self.free_at, now) + len(raw) * SECOND // wire.rate
                at = self.free_at + wire.delay
            if wire.reorder and rng.random() < wire.reorder:
                self.counts["reordered"] += 1
                at += wire.held
            pair.carry(at, self.other, raw)
            if wire.duplicate and rng.random() < wire.duplicate:
                self.counts["duplicated"] += 1
                pair.carry(at, self.other, raw)


class Pair:
    """Two stacks, a and b, and the wire between them.

    Args:
        wire: see `Wire`. seed: of everything. tcp: settings of both, or of each.
    """

    def __init__(
        self, wire: Wire | None = None, *, seed: int = 1, family: int = 4, mtu: int = 1500,
        tcp: TcpConfig | tuple[TcpConfig, TcpConfig] | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self.clock = Clock()
        self.started = self.clock.now
        self.wire = wire or Wire()
        self.family = family
        self._flying: list[tuple[int, int, Side, bytes]] = []
        self._order = 0
        configs = tcp if isinstance(tcp, tuple) else (tcp, tcp)
        self.a, self.b = (Side(self, i, configs[i], seed * 2 + i, mtu, **settings) for i in range(2))
        self.a.other, self.b.other = self.b, self.a
        for side in (self.a, self.b):
            side.link.set_up()

    @property
    def now(self) -> int:
        """Microseconds since it began."""
        return self.clock.now - self.started

    def carry(self, at: int, to: Side, raw: bytes) -> None:
        """A packet is on its way."""
        self._order += 1
        heapq.heappush(self._flying, (at, self._order, to, raw))

    def run(self, until: Callable[[], bool], limit: int = 3600 * SECOND, *, every: int | None = None) -> None:
        """Let time pass until `until` says so, which is asked whenever something happened, and `every` so often.

        An AssertionError where it does not say so within `limit`.
        """
        end = self.clock.now + limit
        flying = self._flying
        stacks = (self.a.stack, self.b.stack)
        turns = 0
        while True:
            now = self.clock.now
            while flying and flying[0][0] <= now:
                _, _, to, raw = heapq.heappop(flying)
                to.link.input([PacketBuffer.from_bytes(raw)])
            for stack in stacks:
                due = stack.poll_at()
                if due is not None and due <= now:
                    stack.poll()
            if until():
                return
            dues = [due for stack in stacks if (due := stack.poll_at()) is not None]
            if flying:
                dues.append(flying[0][0])
            if every is not None:
                dues.append(now + every)
            assert dues, "nothing will ever happen again"
            due = min(dues)
            assert due <= end, f"not done after {limit / SECOND} s"
            turns = 0 if due > now else turns + 1
            assert turns < 1000, "time stands still"
            self.clock.now = max(due, now)

    def connect(self, port: int = 80) -> tuple[Any, Any]:
        """A connection from a to b: the ends of both."""
        any_address = number("0.0.0.0" if self.family == 4 else "::")
        server = self.b.stack.tcp.open(self.family)
        assert server.bind(any_address, port) == 0
        assert server.listen(5) == 0
        client = self.a.stack.tcp.open(self.family)
        client.connect(number(self.b.address), port)
        accepted: list[Any] = []

        def taken() -> bool:
            if not accepted and server.readable:
                end = server.accept()
                if end is not None:
                    accepted.append(end)
            return bool(accepted) and client.connected

        self.run(taken)
        server.close()
        return client, accepted[0]


class Transfer:
    """Bytes that go from one end to the other, as fast as they are taken; closes the writer at the end.

    Attributes:
        received: what came out. ended: whether the reader saw the end of the stream.
        pace: bytes that the reader takes at a time.
    """

    def __init__(self, writer: Any, reader: Any, data: bytes, *, pace: int = CHUNK) -> None:
        self.writer = writer
        self.reader = reader
        self.left = memoryview(data)
        self.received = bytearray()
        self.ended = False
        self.shut = False
        self._area = memoryview(bytearray(pace))

    def step(self) -> bool:
        """Write and read what can be; whether all is done."""
        assert not self.writer.error, f"the writer's end failed: errno {self.writer.error}"
        while self.left:
            taken = self.writer.write([self.left[:CHUNK]])
            assert taken >= 0, f"write: errno {-taken}"
            if not taken:
                break
            self.left = self.left[taken:]
        if not self.left and not self.shut:
            self.shut = True
            self.writer.shutdown(1)
        while not self.ended:
            got = self.reader.read_into(self._area)
            if got is None:
                break
            assert got >= 0, f"read: errno {-got}"
            self.received += self._area[:got]
            self.ended = got == 0
        return self.ended


def exchange(pair: Pair, there: bytes, back: bytes, *, limit: int = 3600 * SECOND) -> tuple[Any, Any]:
    """Connect, send `there` from a to b and `back` the other way at the same time, and check that all arrives."""
    client, server = pair.connect()
    ways = (Transfer(client, server, there), Transfer(server, client, back))
    pair.run(lambda: not sum(not way.step() for way in ways), limit)
    assert bytes(ways[0].received) == there, "what b read is not what a wrote"
    assert bytes(ways[1].received) == back, "what a read is not what b wrote"
    return client, server
