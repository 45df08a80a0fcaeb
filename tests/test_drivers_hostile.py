"""The virtio-net driver and a device that breaks every rule; the H numbers are those of the list of hostile inputs.

What has to hold each time: nothing raises, the fault is counted, and the driver either goes on or resets the device and
comes up again.
"""

from __future__ import annotations

from collections import deque

import pytest

from guest.drivers.retry import RETRY_MAX
from guest.drivers.virtio_mmio import MmioSlot, TransportError
from guest.drivers.virtio_net import IDLE_IRQ_MAX, WANTED, VirtioNetDriver
from guest.net.device import IFF_RUNNING
from guest.net.pbuf import PacketBuffer
from hw.abi import virtio as abi
from hw.abi import virtio_mmio as reg
from hw.abi import virtio_net as net
from hw.memory import AccessHook
from tests.scripted_device import BASE, MAC, OFFERED, RINGS, RX, TX, ScriptedMachine, frame_of, packet_of

SECOND = 1_000_000
MRG = abi.features(net.VIRTIO_NET_F_MRG_RXBUF)


@pytest.fixture(params=RINGS)
def machine(request: pytest.FixtureRequest) -> ScriptedMachine:
    return ScriptedMachine(offered=OFFERED | RINGS[request.param])


def works(machine: ScriptedMachine, driver: VirtioNetDriver, inbox: deque[PacketBuffer]) -> bool:
    """Whether frames go through both ways."""
    inbox.clear()
    machine.device.transmitted()
    machine.device.receive(frame_of(700, 9))
    machine.settle()
    received = [packet.tobytes() for packet in inbox]
    inbox.clear()
    sent = driver.transmit([packet_of(700, 8)])
    return received == [frame_of(700, 9)] and sent == 1 and machine.device.transmitted() == [frame_of(700, 8)]


def expect_reset(machine: ScriptedMachine, driver: VirtioNetDriver, inbox: deque[PacketBuffer], reason: str) -> None:
    """The device was found out; it is reset, and works again after a pause."""
    assert driver.failed is not None, "the driver still believes the device"
    assert reason in driver.failed
    assert not driver.flags & IFF_RUNNING
    assert driver.transmit([packet_of(60)]) == 0
    assert driver.counters["tx_dropped_device_down"] == 1
    machine.advance(20_000)
    assert driver.failed is None
    assert driver.counters["device_resets"] == 1
    assert len(driver.rx.pool.free) + len(inbox) >= 128, "no buffer was lost"
    assert len(driver.tx.pool.free) == 128
    assert works(machine, driver, inbox)


def found_by_poll(machine: ScriptedMachine) -> None:
    machine.device.interrupt()
    machine.settle()


# -- H31, H32, H33: used rings that lie --------------------------------------------------------------------------


@pytest.mark.parametrize("bogus", [256, 0xFFFFFFFF])
def test_h31_receive_buffer_that_was_never_posted(machine: ScriptedMachine, bogus: int) -> None:
    driver, inbox = machine.driver()
    machine.device.receive(frame_of(300), interrupt=False)
    machine.device.rx.put_used(bogus, 100)
    found_by_poll(machine)
    assert [packet.tobytes() for packet in inbox] == [frame_of(300)], "no callback for the refused entry"
    expect_reset(machine, driver, inbox, "used.id")


def test_h31_receive_buffer_returned_twice(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    [head] = machine.device.receive(frame_of(300), interrupt=False)
    machine.device.rx.put_used(head, 312)
    found_by_poll(machine)
    assert len(inbox) == 1
    expect_reset(machine, driver, inbox, "used.id")


def test_h31_transmit_buffer_returned_twice(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    driver.transmit([packet_of(60, 1), packet_of(60, 2)])
    head = machine.device.tx.take()
    machine.device.tx.put_used(head, 0)
    machine.device.tx.put_used(head, 0)
    assert driver.transmit([packet_of(60, 3)]) == 0, "the packet is dropped, not lost silently"
    assert driver.counters["tx_dropped_broken"] == 1
    expect_reset(machine, driver, inbox, "used.id")


@pytest.mark.parametrize("written", [0, 1, 11, 12])
def test_h32_used_len_below_the_header_shows_nothing(machine: ScriptedMachine, written: int) -> None:
    driver, inbox = machine.driver()
    machine.device.receive(frame_of(1500))
    machine.settle()
    inbox.clear()  # its buffer goes back with the old bytes in it
    for _ in range(400):
        machine.device.rx.put_used(machine.device.rx.take(), written)
        found_by_poll(machine)
    assert not inbox
    assert driver.counters["rx_dropped_short"] == 400
    assert works(machine, driver, inbox)


def test_h32_used_len_above_the_buffer(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    machine.device.rx.put_used(machine.device.rx.take(), 2049)
    found_by_poll(machine)
    assert not inbox
    expect_reset(machine, driver, inbox, "used.len 2049")


def test_h32_stale_bytes_behind_used_len_are_out_of_reach(machine: ScriptedMachine) -> None:
    _, inbox = machine.driver()
    for _ in range(400):
        machine.device.receive(b"S" * 1500)  # secrets in every buffer
        machine.settle()
    inbox.clear()
    for length in (100, 300):
        machine.device.receive(frame_of(length))
        machine.settle()
        packet = inbox.pop()
        assert b"SSS" not in bytes(packet.area), "bytes that the device did not write can be reached"


@pytest.mark.parametrize("queue", [RX, TX])
def test_h33_used_idx_ahead_of_what_is_in_flight(machine: ScriptedMachine, queue: int) -> None:
    driver, inbox = machine.driver()
    driver.transmit([packet_of(60)])
    what = machine.device.queues[queue].lie_ahead()
    found_by_poll(machine)
    expect_reset(machine, driver, inbox, f"queue {queue}: {what}")


# -- H34: merged buffers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 34, 257, 65535])
def test_h34_num_buffers_that_no_frame_can_have(machine: ScriptedMachine, count: int) -> None:
    driver, inbox = machine.driver()
    machine.device.receive(frame_of(300), num_buffers=count)
    machine.settle()
    assert not inbox
    assert driver.counters["rx_dropped_num_buffers"] == 1
    assert works(machine, driver, inbox), "the next frame is a frame again"


def test_h34_second_buffers_that_never_come(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    machine.device.receive(frame_of(2036), num_buffers=3)
    assert machine.settle() < 10, "the wait is bounded"
    assert not inbox
    assert driver.counters["rx_dropped_merge_incomplete"] == 1
    assert len(driver.rx.pool.free) == 128, "the frame's buffers came back"
    assert works(machine, driver, inbox)


def test_h34_an_empty_second_buffer(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    machine.device.receive(frame_of(2036), num_buffers=2, interrupt=False)
    machine.device.rx.put_used(machine.device.rx.take(), 0)
    found_by_poll(machine)
    assert not inbox
    assert driver.counters["rx_dropped_short"] == 1
    assert works(machine, driver, inbox)


def test_h34_without_merging_num_buffers_is_not_looked_at(machine: ScriptedMachine) -> None:
    _, inbox = machine.driver(wanted=WANTED & ~MRG)
    machine.device.receive(frame_of(300), num_buffers=0)
    machine.device.receive(frame_of(301), num_buffers=7)
    machine.settle()
    assert [len(packet) for packet in inbox] == [300, 301]


# -- H35: rewritten descriptors ----------------------------------------------------------------------------------


def test_h35_a_device_that_rewrites_the_descriptor_tables(machine: ScriptedMachine) -> None:
    machine.device.set_config(mtu=9000)
    driver, inbox = machine.driver()
    rx, tx = machine.device.rx, machine.device.tx
    for turn in range(3):
        driver.transmit([packet_of(60, turn), packet_of(9014, turn)])
        assert [len(frame) for frame in machine.device.transmitted()] == [60, 9014]
        taken = [(head, rx.elements(head)) for head in (rx.take() for _ in range(256))]
        for ring in (rx, tx):
            ring.scribble()
        for number, (head, [(addr, _, _)]) in enumerate(taken):
            frame = net.NET_HEADER.pack(0, 0, 0, 0, 0, 0, 1) + frame_of(300, number)
            machine.ram.span(addr, len(frame))[:] = frame
            rx.put_used(head, len(frame))
        found_by_poll(machine)
        assert [packet.tobytes() for packet in inbox] == [frame_of(300, number) for number in range(256)]
        assert rx.waiting() == 256, "every descriptor is in use again"
        inbox.clear()
    assert driver.failed is None
    assert works(machine, driver, inbox)


class FlipAt(AccessHook):
    """Changes what the driver is about to read at its `target`-th load."""

    def __init__(self, machine: ScriptedMachine, target: int, mask: int) -> None:
        self.machine, self.left, self.mask = machine, target, mask

    def before_load(self, who: str, addr: int, size: int) -> None:
        if self.left == 0:
            cell = self.machine.ram.span(addr, size)
            cell[:] = ((int.from_bytes(cell, "little") ^ self.mask) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self.left -= 1


@pytest.mark.parametrize("mask", [1, 0x100, 0xFFFFFFFF])
def test_memory_flipped_at_every_load_of_the_driver(mask: int) -> None:
    target = 0
    while True:
        machine = ScriptedMachine(memory_size=8 << 20)
        driver, inbox = machine.driver(rx_size=8, tx_size=8)
        hook = FlipAt(machine, target, mask)
        machine.ram.hook = hook
        frames = [frame_of(60, 1), frame_of(300, 2), frame_of(2100, 3)]
        for frame in frames:
            machine.device.receive(frame, interrupt=False)
        machine.device.interrupt()
        driver.transmit([packet_of(60), packet_of(61)])
        machine.device.transmitted()
        machine.settle()
        driver.transmit([packet_of(62)])
        machine.ram.hook = None
        shown = [packet.tobytes() for packet in inbox]
        assert len(shown) <= 3, f"load {target}: {shown}"
        if hook.left >= 0:
            assert shown == frames, "nothing was flipped"
        inbox.clear()
        machine.advance(SECOND)
        assert driver.failed is None, f"load {target}: not repaired"
        driver.close()
        assert machine.dma.free_bytes == machine.dma.size, f"load {target}: memory was lost"
        if hook.left >= 0:
            break
        target += 1
    assert target > 15, "every load was to be flipped"


# -- H36: interrupts ---------------------------------------------------------------------------------------------


def test_h36_a_storm_is_budgeted_and_ends_with_a_reset(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    device = machine.device
    write = device.mmio_write

    def deaf(offset: int, size: int, value: int) -> None:
        """Acknowledging does not lower the line."""
        if offset != reg.VIRTIO_MMIO_INTERRUPT_ACK:
            write(offset, size, value)

    device.mmio_write = deaf  # type: ignore[method-assign]
    device.interrupt()
    turns = machine.settle()
    assert turns <= IDLE_IRQ_MAX + 2, "the storm ends"
    assert driver.counters["irqs"] == IDLE_IRQ_MAX + 1
    device.mmio_write = write  # type: ignore[method-assign]
    expect_reset(machine, driver, inbox, "interrupts in a row")


def test_h36_interrupts_with_work_are_no_storm(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    for number in range(IDLE_IRQ_MAX + 50):
        machine.device.receive(frame_of(60, number))
        machine.settle()
    assert len(inbox) == IDLE_IRQ_MAX + 50
    assert driver.failed is None


def test_h36_a_spurious_line_is_masked_by_the_kernel(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    machine._set(5, True)  # high, but the device says it has nothing
    machine.settle()
    assert machine.is_masked(5)
    assert driver.counters["irq_spurious"] == 1000
    assert machine.services.irqs.counters["masked"] == 1


def test_h36_an_interrupt_before_driver_ok(machine: ScriptedMachine) -> None:
    device = machine.device
    driver = VirtioNetDriver(machine.services, MmioSlot(0x1000, BASE, 5))
    write = device.mmio_write

    def early(offset: int, size: int, value: int) -> None:
        if offset == reg.VIRTIO_MMIO_STATUS and value & abi.VIRTIO_CONFIG_S_DRIVER_OK:
            device.interrupt(3)
            machine.services.irqs.dispatch(5)
        write(offset, size, value)

    device.mmio_write = early  # type: ignore[method-assign]
    driver.start()
    assert driver.counters["irq_early"] == 1
    assert len(machine.services.deferred) == 0
    inbox: deque[PacketBuffer] = deque()
    driver.receiver = inbox.extend
    assert works(machine, driver, inbox)


def test_h36_no_interrupts_at_all(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    machine.device.receive(frame_of(300, 1), interrupt=False)
    machine.settle()
    assert not inbox
    driver.check()
    machine.settle()
    assert [packet.tobytes() for packet in inbox] == [frame_of(300, 1)]
    assert driver.counters["irq_lost"] == 1
    driver.transmit([packet_of(60)])  # with something outstanding the watchdog looks by itself
    machine.device.receive(frame_of(300, 2), interrupt=False)
    machine.advance(SECOND)
    assert inbox[-1].tobytes() == frame_of(300, 2)
    assert driver.counters["irq_lost"] == 2


# -- H37: configuration ------------------------------------------------------------------------------------------


def start_fails(machine: ScriptedMachine, reason: str) -> None:
    with pytest.raises(TransportError, match=reason):
        machine.driver()
    assert machine.device.status & abi.VIRTIO_CONFIG_S_FAILED
    assert machine.device.queues == {}
    assert machine.dma.free_bytes == machine.dma.size


@pytest.mark.parametrize("mtu", [0, 67])
def test_h37_an_mtu_below_68_is_refused(machine: ScriptedMachine, mtu: int) -> None:
    machine.device.set_config(mtu=mtu)
    start_fails(machine, f"MTU of {mtu}")


@pytest.mark.parametrize("wanted", [WANTED, WANTED & ~MRG], ids=["merge", "whole"])
@pytest.mark.parametrize("mtu", [68, 65535])
def test_h37_the_smallest_and_the_largest_mtu_work(machine: ScriptedMachine, mtu: int, wanted: int) -> None:
    machine.device.set_config(mtu=mtu)
    driver, inbox = machine.driver(wanted=wanted)
    assert driver.mtu == mtu
    for number in range(100):
        machine.device.receive(frame_of(mtu + 14, number))
        machine.settle()
        assert inbox.pop().tobytes() == frame_of(mtu + 14, number)
    assert driver.transmit([packet_of(mtu + 14), packet_of(mtu + 15)]) == 1


@pytest.mark.parametrize("mac", ["000000000000", "ffffffffffff", "01005e000001"])
def test_h37_an_address_that_is_no_stations_is_replaced(machine: ScriptedMachine, mac: str) -> None:
    machine.device.set_config(mac=bytes.fromhex(mac))
    driver, _ = machine.driver()
    assert driver.counters["mac_refused"] == 1
    assert driver.mac[0] & 3 == 2, "locally administered, and one station's"
    assert driver.mac != bytes.fromhex(mac)


def test_h37_a_configuration_that_changes_while_it_is_read(machine: ScriptedMachine) -> None:
    device = machine.device
    reads = 0
    new = bytes.fromhex("525400ffffff")

    def change() -> None:
        nonlocal reads
        reads += 1
        if reads == 4:  # in the middle of the address
            device.set_config(mac=new)
            device.generation += 1

    device.on_config_read = change
    driver, _ = machine.driver()
    assert driver.mac == new, "half of each would be 52:54:00:12:ff:ff"
    assert driver.mac != MAC


def test_h37_a_configuration_that_never_settles_is_given_up(machine: ScriptedMachine) -> None:
    device = machine.device

    def change() -> None:
        device.generation += 1

    device.on_config_read = change
    start_fails(machine, "changes faster")


def test_h37_link_flaps(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    told: list[bool] = []
    driver.link_changed = lambda: told.append(bool(driver.flags & IFF_RUNNING))
    for status in (0, 0, 1, 0, 1, 1, 3):
        machine.device.set_config(status=status)
        machine.device.config_interrupt()
        machine.settle()
        if status == 0:
            assert driver.transmit([packet_of(60)]) == 0
    assert told == [False, True, False, True], "told of changes only"
    assert driver.counters["tx_dropped_link_down"] == 3
    assert works(machine, driver, inbox)


def test_h37_an_mtu_that_changes_is_not_believed(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    machine.device.set_config(mtu=9000)
    machine.device.rx.put_used(9999, 0)
    found_by_poll(machine)
    machine.advance(60 * SECOND)
    assert driver.failed is not None
    assert "may not change" in driver.failed


# -- H38: headers ------------------------------------------------------------------------------------------------


def test_h38_unknown_flags_are_ignored(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    for flags in (2, 4, 8, 0xFE):
        machine.device.receive(frame_of(300, flags), flags=flags, csum_start=60000)
        machine.settle()
        packet = inbox.pop()
        assert packet.tobytes() == frame_of(300, flags)
        assert packet.offload is not None
        assert (packet.offload.flags, packet.offload.csum_start) == (0, 0), "nothing of it was negotiated"
    assert sum(count for name, count in driver.counters.items() if "dropped" in name) == 0


@pytest.mark.parametrize("gso_type", [1, 2, 3, 4, 5, 0x20, 0x80, 0x81, 0xFF])
def test_h38_segmentation_that_was_not_negotiated(machine: ScriptedMachine, gso_type: int) -> None:
    driver, inbox = machine.driver()
    machine.device.receive(frame_of(300), flags=1, gso_type=gso_type, gso_size=100, csum_start=34, csum_offset=16)
    machine.settle()
    assert not inbox
    assert driver.counters["rx_dropped_gso"] == 1
    assert works(machine, driver, inbox)


def test_h38_segmentation_that_was_negotiated_but_makes_no_sense(machine: ScriptedMachine) -> None:
    offload = abi.features(net.VIRTIO_NET_F_GUEST_CSUM, net.VIRTIO_NET_F_GUEST_TSO4)
    machine.device.offered |= offload
    driver, inbox = machine.driver(wanted=WANTED | offload)
    machine.device.receive(frame_of(300), flags=1, gso_type=1, gso_size=0, csum_start=34, csum_offset=16)
    machine.device.receive(frame_of(300), flags=0, gso_type=1, gso_size=100)
    machine.device.receive(frame_of(300), flags=1, gso_type=4, gso_size=100, csum_start=34, csum_offset=16)
    machine.device.receive(frame_of(301), flags=1, gso_type=1, gso_size=100, csum_start=34, csum_offset=16)
    machine.settle()
    assert [len(packet) for packet in inbox] == [301]
    assert driver.counters["rx_dropped_gso"] == 3


@pytest.mark.parametrize("length", [300, 60])
@pytest.mark.parametrize(
    ("start", "offset", "fits"), [(34, 16, True), (-2, 0, True), (-1, 0, False), (65535, 65535, False)]
)
def test_h38_a_checksum_beyond_the_frame(
    machine: ScriptedMachine, length: int, start: int, offset: int, fits: bool
) -> None:
    driver, inbox = machine.driver()
    start = start if start >= 0 else length + start
    machine.device.receive(frame_of(length), flags=1, csum_start=start, csum_offset=offset)
    machine.settle()
    assert len(inbox) == (1 if fits else 0)
    assert driver.counters["rx_dropped_csum_range"] == (0 if fits else 1)


def test_h38_the_header_of_a_merged_frame_is_checked_against_all_of_it(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    machine.device.receive(frame_of(3000), flags=1, csum_start=2900, csum_offset=98)
    machine.device.receive(frame_of(3000), flags=1, csum_start=2900, csum_offset=99)
    machine.settle()
    assert [len(packet) for packet in inbox] == [3000]
    assert driver.counters["rx_dropped_csum_range"] == 1
    inbox.clear()
    assert len(driver.rx.pool.free) == 128


# -- H39: devices that want a reset, vanish, or never agree ------------------------------------------------------


def test_h39_a_device_that_needs_a_reset(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    machine.device.status |= abi.VIRTIO_CONFIG_S_NEEDS_RESET
    machine.device.config_interrupt()
    machine.settle()
    expect_reset(machine, driver, inbox, "needs a reset")
    assert machine.device.status_writes[-5:] == [0, 1, 3, 11, 15]
    assert any("works again" in line for line in machine.messages)


@pytest.mark.parametrize("found_by", ["interrupt", "watchdog"])
def test_h39_a_device_that_vanishes(machine: ScriptedMachine, found_by: str) -> None:
    driver, inbox = machine.driver()
    driver.transmit([packet_of(60)])
    machine.device.gone = True
    if found_by == "interrupt":
        machine._set(5, True)
        machine.settle()
    else:
        machine.advance(SECOND)
    assert "is gone" in (driver.failed or "")
    machine._set(5, False)
    machine.advance(60 * SECOND)
    assert driver.counters["device_resets"] == RETRY_MAX
    assert "given up" in machine.messages[-1]
    assert machine.services.timers.next_deadline() is None, "nobody tries for ever"
    assert driver.transmit([packet_of(60)]) == 0
    inbox.clear()
    driver.close()
    assert machine.dma.free_bytes == machine.dma.size


def test_h39_a_device_that_comes_back_in_time(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    machine.device.gone = True
    driver.check()
    machine.advance(15_000)
    machine.device.gone = False
    machine.device._reset()
    machine.advance(SECOND)
    assert driver.failed is None
    assert works(machine, driver, inbox)


def test_h39_features_ok_never_set(machine: ScriptedMachine) -> None:
    machine.device.accepts_features = False
    start_fails(machine, "does not accept features")
    assert machine.device.status_writes == [0, 1, 3, 11, 11 | 0x80]


def test_h39_a_device_that_fails_again_and_again_is_given_up(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    for _ in range(RETRY_MAX + 1):
        assert driver.failed is None
        machine.device.status |= abi.VIRTIO_CONFIG_S_NEEDS_RESET
        machine.device.config_interrupt()
        machine.settle()
        machine.advance(SECOND)
    assert driver.failed is not None
    assert driver.counters["device_resets"] == RETRY_MAX
    pauses = [line.split(" in ")[-1] for line in machine.messages if " ms" in line]
    assert pauses == ["10 ms", "20 ms", "40 ms", "80 ms", "160 ms"]


def test_h39_a_device_that_fails_once_in_a_while_is_repaired_for_ever(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    for _ in range(3 * RETRY_MAX):
        machine.device.status |= abi.VIRTIO_CONFIG_S_NEEDS_RESET
        machine.device.config_interrupt()
        machine.settle()
        machine.advance(11 * SECOND)
    assert driver.failed is None
    assert works(machine, driver, inbox)


def test_h39_a_device_that_does_not_reset_keeps_its_memory(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    machine.device.stuck = True
    machine.device.rx.put_used(9999, 0)
    found_by_poll(machine)
    assert "given up" in machine.messages[-1]
    driver.close()
    assert machine.dma.mapped_bytes > 0, "it may still write there"
    assert machine.dma.allows(machine.device.rx.used, machine.device.rx.used_length, "from-device")


def test_h39_a_device_that_vanishes_while_it_comes_up(machine: ScriptedMachine) -> None:
    """At every single register access of a bring-up."""
    machine.driver()[0].close()
    accesses = len(machine.device.log)
    for target in range(2, accesses, 3):
        machine = ScriptedMachine(memory_size=8 << 20)
        device = machine.device
        read, write = device.mmio_read, device.mmio_write

        def vanish(target: int = target, machine: ScriptedMachine = machine) -> None:
            if len(machine.device.log) >= target:
                machine.device.gone = True

        device.mmio_read = lambda offset, size, read=read, vanish=vanish: (vanish(), read(offset, size))[1]  # type: ignore
        device.mmio_write = lambda offset, size, value, write=write, vanish=vanish: (  # type: ignore
            vanish(), write(offset, size, value),
        )[1]
        driver = VirtioNetDriver(machine.services, MmioSlot(0x1000, BASE, 5), rx_size=8, tx_size=8)
        try:
            driver.start()
        except TransportError:
            pass
        machine.settle()
        driver.check()
        machine.advance(60 * SECOND)
        driver.close()
        assert machine.dma.free_bytes == machine.dma.size, f"memory was lost at access {target}"
