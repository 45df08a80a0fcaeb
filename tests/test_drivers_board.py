"""The virtio-net driver in whole guests on real cards: storms on its interrupt line, and rings of few entries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guest.kernel import Guest
from guest.services import SPURIOUS_LIMIT
from hw.machine import Machine, Option
from hw.wire.hub import Hub
from tests.fakes import frame
from tests.guest_board import RINGS, STATIC, Board


@pytest.fixture(params=RINGS)
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    made = Board(request.param)
    yield made
    made.close()


# -- H36: spurious interrupts -------------------------------------------------------------------------------------


def storms(guest: Guest) -> list[str]:
    return [line.split("masked ")[1] for line in guest.log.lines if "interrupts that nobody wanted" in line]


def test_h36_a_guest_hears_again_after_a_spurious_storm(board: Board) -> None:
    near, peer = board.peer()
    guest = board.boot(STATIC, near)
    board.run(5)
    line = board.machines["guest"].irq.line(5)
    before = guest.fes[0].counters["rx_packets"]

    line.set_level(True)  # high, and the card says that it has nothing
    board.run(0.005)
    line.set_level(False)
    peer.send(frame(1))
    board.run(0.001)
    assert guest.services.irqs.counters["spurious"] == SPURIOUS_LIMIT
    assert guest.fes[0].counters["rx_packets"] == before, "the line is masked"
    assert "irq 5: 1000 interrupts that nobody wanted; masked for 10 ms" in guest.log.text()

    board.run(0.01)
    assert guest.fes[0].counters["rx_packets"] == before + 1, "the frame waited for the line"
    peer.send(frame(2))
    board.run(0.001)
    assert guest.fes[0].counters["rx_packets"] == before + 2
    assert storms(guest) == ["for 10 ms"]


def test_h36_a_line_that_is_stuck_high_holds_up_neither_time_nor_the_guest(board: Board) -> None:
    near, peer = board.peer()
    peer.answers = True
    guest = board.boot(STATIC, near)
    board.run(5)
    ping = guest.spawn("ping", "127.0.0.1", "-c", "10", "-q")
    now = board.loop.clock.now()
    turns = board.loop._turns
    board.machines["guest"].irq.line(5).set_level(True)
    board.loop.run(deadline=now + 60_000_000, until=lambda: board.loop._turns > turns + 100_000)
    assert board.loop.clock.now() == now + 60_000_000
    assert ping.exit_status == 0
    pauses = [10 << doublings for doublings in range(10)] + [10_000] * 5
    assert storms(guest) == [f"for {pause} ms" for pause in pauses]

    board.machines["guest"].irq.line(5).set_level(False)
    board.run(10)
    board.loop.run(until=lambda: not guest.services.irqs._rearms, deadline=board.loop.clock.now() + 10_000_000)
    ping = guest.spawn("ping", "10.0.0.1", "-c", "2")
    board.run(3)
    assert ping.exit_status == 0, "nothing is lost for good"


# -- large frames on small rings ----------------------------------------------------------------------------------


def joined(board: Board, hub: Hub, name: str, address: str, options: dict[str, Option]) -> Guest:
    """A guest on `hub` that has booted, with a card of these options."""
    machine = Machine(board.loop, name=name, cmdline=f"-ipaddr {address} -netmask 255.255.255.0")
    machine.add_virtio_net(hub.port(name), options=options)
    guest = Guest(machine.platform, name=name)
    machine.power_on(guest)
    board.guests.append(guest)
    board.machines[name] = machine
    board.settle(guest)
    return guest


@pytest.mark.parametrize("size", [2, 4, 16])
@pytest.mark.parametrize(
    "switches", [{}, {"indirect_desc": False}, {"mrg_rxbuf": False}], ids=["all", "direct", "whole"]
)
@pytest.mark.parametrize("queue", ["rx_queue_size", "tx_queue_size"])
@pytest.mark.parametrize("mtu", [9000, 65535])
def test_a_ring_of_few_entries_carries_the_largest_frame(
    board: Board, queue: str, size: int, switches: dict[str, Option], mtu: int
) -> None:
    hub = Hub(board.loop, "hub")
    small = joined(board, hub, "a", "10.0.0.1", {"mtu": mtu, queue: size, **switches})
    joined(board, hub, "b", "10.0.0.2", {"mtu": mtu})
    for payload in (8000, 8900, mtu - 28):
        ping = small.spawn("ping", "10.0.0.2", "-c", "3", "-i", "0.1", "-s", str(payload))
        board.run(2)
        assert ping.exit_status == 0, small.log.output
        assert "3 packets transmitted, 3 received, 0% packet loss" in small.log.output[-2]
    assert small.fes[0].device.counters["tx_dropped_ring_full"] == 0
