"""Over and over: closing and connecting again, in every order and from either end, leaves nothing behind.

Both ends are real: the guest's front end and the card's back end, on one hypervisor. After each time a frame goes each
way; after a hundred times the books show what they showed after the first.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator

import pytest

from guest.drivers.netfront import NetfrontDriver
from guest.kernel import Guest
from guest.net.pbuf import PacketBuffer
from hw.abi.xen_bus import XenbusStateConnected
from tests.guest_board import STATIC, Board

CYCLES = 100
FRAME = b"\x02\0\0\0\0\2\x02\0\0\0\0\1\x88\xb5" + bytes(60)


class Pair:
    """A guest of ours with one card, and a peer on its wire."""

    def __init__(self, board: Board) -> None:
        near, self.peer = board.peer()
        self.board = board
        self.guest: Guest = board.boot(STATIC, near)
        self.machine = board.machines["guest"]
        board.run(0.01)
        self.vif = self.machine.vifs[0]
        assert board.host is not None
        assert self.machine.domain is not None
        self.host, self.domain = board.host, self.machine.domain

    @property
    def driver(self) -> NetfrontDriver:
        found = self.guest.devices[0]
        assert isinstance(found, NetfrontDriver)
        return found

    def books(self) -> dict[str, object]:
        """What there is of everything that could pile up."""
        gc.collect()
        domid = self.domain.domid
        guest = self.guest
        assert guest.xen is not None
        return {
            "grants": guest.xen.grants.granted,  # type: ignore[attr-defined]
            "mapped": self.domain.grants.in_use,
            "ports": len(self.host.channels.ports(domid)),
            "ports of domain 0": len(self.host.channels.ports(0)),
            "handlers": len(guest.xen.events._handlers),  # type: ignore[attr-defined]
            "watches": [len(client.watches) for client in self.host.xenstore.clients],
            "watches of the guest": len(guest.xen.store._watches),
            "transactions": sum(len(client.transactions) for client in self.host.xenstore.clients),
            "nodes": sum("/error" not in path for path in self.host.xenstore.tree._nodes),  # the last mistake stays
            "views": len(self.machine.memory._reopeners),
            "devices": len(guest.xen.devices),
            "DMA": guest.services.dma.free_bytes,
            "resumed": len(self.domain.resumed),
            "work": len(self.host._queue),
            "to release": len(self.vif.device._release),
        }

    def assert_works(self, times: str) -> None:
        assert self.vif.device.state == XenbusStateConnected, times
        assert self.driver.queues, f"{times}: {self.driver.failed}"
        peer = self.peer
        peer.frames.clear()
        before = self.driver.counters["rx_packets"]
        assert self.driver.transmit([PacketBuffer.from_bytes(FRAME)]) == 1
        peer.send(FRAME)
        self.board.run(0.01)
        assert peer.frames == [FRAME], times
        assert self.driver.counters["rx_packets"] == before + 1, times


def toolstack(pair: Pair, key: str, value: int) -> None:
    pair.host.store.write(f"{pair.vif.device.backend}/{key}", value)


def suspend(pair: Pair) -> None:
    pair.host.request_shutdown(pair.domain, "suspend")


def restart_back_end(pair: Pair) -> None:
    """Its process ends and another one starts, as when a driver domain crashes."""
    pair.vif.device.stop()
    pair.board.run(0.5)
    pair.vif.device.start()


WAYS: dict[str, Callable[[Pair], object]] = {
    "the back end finds a mistake": lambda pair: pair.vif.device.fail("a test says so"),
    "the back end starts anew": lambda pair: pair.vif.device.restart(),
    "the back end stops and starts": restart_back_end,
    "the front end finds a mistake": lambda pair: pair.driver._fail("a test says so"),
    "the front end says Closing, then Closed": lambda pair: pair.driver.bus.switch(5),
    "the front end says Closed": lambda pair: pair.driver.bus.switch(6),
    "the front end begins anew": lambda pair: pair.driver.bus.switch(1),
    "the domain is suspended": suspend,
    "the toolstack closes the back end": lambda pair: toolstack(pair, "state", 5),
}


@pytest.fixture(params=["xen-ling", "xen-full", "xen-queues"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    board = Board(request.param)
    yield Pair(board)
    board.close()


@pytest.mark.parametrize("way", WAYS)
def test_h47_a_card_comes_back(pair: Pair, way: str) -> None:
    books = pair.books()
    pair.board.run(11)
    WAYS[way](pair)
    pair.board.run(11)
    pair.assert_works(way)
    assert pair.books() == books
    assert pair.driver.counters["connects"] == 2


def test_h47_a_hundred_times_in_any_order_leave_nothing_behind(pair: Pair) -> None:
    books, rng = pair.books(), random.Random("cycles")
    for number in range(CYCLES):
        way = rng.choice(list(WAYS))
        if rng.random() < 0.3:
            for _ in range(50):
                pair.driver.transmit([PacketBuffer.from_bytes(FRAME)])  # frames are under way
        WAYS[way](pair)
        if rng.random() < 0.3:
            pair.board.run(rng.choice([0, 0.001, 0.02]))
            WAYS[rng.choice(list(WAYS))](pair)
        pair.board.run(25)
        pair.assert_works(f"{number}: {way}")
    assert pair.books() == books
    assert pair.driver.counters["pages_quarantined"] > 0, "some were still mapped when the driver let go, and came back"
