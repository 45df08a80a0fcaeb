"""The virtio-net driver and an honest device, played by hand: bring-up, frames both ways, leases, closing."""

from __future__ import annotations

import pytest

from guest.drivers.virtio_net import WANTED, VirtioNetDriver
from guest.net.device import IFF_RUNNING
from guest.net.pbuf import Offload, PacketBuffer
from hw.abi import virtio as abi
from hw.abi import virtio_mmio as reg
from hw.abi import virtio_net as net
from tests.scripted_device import MAC, OFFERED, RINGS, RX, TX, ScriptedMachine, frame_of, packet_of

MRG = abi.features(net.VIRTIO_NET_F_MRG_RXBUF)
EVENT_IDX = abi.features(abi.VIRTIO_RING_F_EVENT_IDX)
INDIRECT = abi.features(abi.VIRTIO_RING_F_INDIRECT_DESC)


@pytest.fixture(params=RINGS)
def machine(request: pytest.FixtureRequest) -> ScriptedMachine:
    return ScriptedMachine(offered=OFFERED | RINGS[request.param])


# -- bringing up -------------------------------------------------------------------------------------------------


def test_e1_the_driver_comes_up(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    device = machine.device
    assert device.status_writes == [0, 1, 3, 11, 15]
    assert device.driver_features == device.offered
    assert not device.offered & ~WANTED
    assert device.rx.waiting() == 256, "the receive ring is filled"
    assert device.tx.waiting() == 0
    assert device.tx.size == 128
    assert driver.mac == MAC == bytes(device.config[:6])
    assert driver.mtu == 1500
    assert driver.flags & IFF_RUNNING
    assert device.notified == [RX], "one doorbell for the whole batch, after DRIVER_OK"


def test_e1_configuration_fields_are_read_as_wide_as_they_are(machine: ScriptedMachine) -> None:
    sizes: list[tuple[int, int]] = []
    read = machine.device._read

    def spy(offset: int, size: int) -> int:
        if offset >= reg.VIRTIO_MMIO_CONFIG:
            sizes.append((offset - reg.VIRTIO_MMIO_CONFIG, size))
        return read(offset, size)

    machine.device._read = spy  # type: ignore[method-assign]
    machine.driver()
    assert sizes == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2), (10, 2)]


def test_e4_buffers_are_guest_physical_addresses_inside_what_is_mapped(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    device = machine.device
    driver.transmit([packet_of(1514), packet_of(60)])
    for ring, way in ((device.rx, "from-device"), (device.tx, "to-device")):
        while ring.waiting():
            for addr, length, writable in ring.elements(ring.take()):
                assert writable is (way == "from-device")
                assert machine.dma.allows(addr, length, way)  # type: ignore[arg-type]
                assert not machine.dma.allows(addr, length, "to-device" if writable else "from-device")


def test_e5_the_inspector_shows_the_fields_of_net_dev(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    driver.transmit([packet_of(60)])
    shown = driver.snapshot()
    assert (shown["mmio"], shown["mac_addr"]) == (0xD0000000, MAC)
    rx_vq, tx_vq = shown["rx_vq"], shown["tx_vq"]
    assert isinstance(rx_vq, dict)
    assert isinstance(tx_vq, dict)
    assert (rx_vq["index"], rx_vq["in_flight"], tx_vq["index"], tx_vq["in_flight"]) == (RX, 256, TX, 1)
    assert tx_vq["desc"] == machine.device.tx.desc


def test_queues_are_as_small_as_the_device_needs(machine: ScriptedMachine) -> None:
    machine.device.queue_max = {RX: 4, TX: 100}
    driver, inbox = machine.driver()
    assert (machine.device.rx.size, machine.device.tx.size) == (4, 64), "a power of two (2.7)"
    for number in range(20):
        machine.device.receive(frame_of(1000, number))
        machine.settle()
    assert [packet.tobytes() for packet in inbox] == [frame_of(1000, number) for number in range(20)]
    assert driver.counters["rx_packets"] == 20


@pytest.mark.parametrize("missing", [net.VIRTIO_NET_F_MAC, net.VIRTIO_NET_F_STATUS, net.VIRTIO_NET_F_MTU,
                                     net.VIRTIO_NET_F_MRG_RXBUF, abi.VIRTIO_RING_F_INDIRECT_DESC,
                                     abi.VIRTIO_RING_F_EVENT_IDX])
@pytest.mark.parametrize("by", ["device", "driver"])
def test_each_feature_can_be_missing(machine: ScriptedMachine, missing: int, by: str) -> None:
    wanted = WANTED
    if by == "device":
        machine.device.offered &= ~(1 << missing)
    else:
        wanted &= ~(1 << missing)
    driver, inbox = machine.driver(wanted=wanted)
    assert machine.device.driver_features == machine.device.offered & ~(1 << missing)
    machine.device.receive(frame_of(1514))
    machine.settle()
    assert [packet.tobytes() for packet in inbox] == [frame_of(1514)]
    assert driver.transmit([packet_of(1514, 7)]) == 1
    assert machine.device.transmitted() == [frame_of(1514, 7)]
    assert (driver.mac == MAC) is (missing != net.VIRTIO_NET_F_MAC)
    inbox.clear()
    driver.close()
    assert machine.dma.free_bytes == machine.dma.size


def test_without_merging_a_buffer_holds_a_whole_frame(machine: ScriptedMachine) -> None:
    machine.device.set_config(mtu=9000)
    machine.driver(wanted=WANTED & ~MRG)
    [(_, length, _)] = machine.device.rx.elements(machine.device.rx.take())
    assert length >= 12 + 14 + 9000


@pytest.mark.parametrize("entries", [1, 2, 4])
def test_with_merging_all_buffers_together_hold_a_whole_frame(machine: ScriptedMachine, entries: int) -> None:
    machine.device.set_config(mtu=9000)
    machine.device.queue_max = {RX: entries, TX: entries}
    driver, inbox = machine.driver()
    for number in range(20):
        machine.device.receive(frame_of(9018, number))
        machine.settle()
        assert inbox.popleft().tobytes() == frame_of(9018, number)
        assert driver.transmit([packet_of(9014, number)]) == 1
        assert machine.device.transmitted() == [frame_of(9014, number)]


# -- sending -----------------------------------------------------------------------------------------------------


def test_e2_net_send_is_one_chain_with_a_header_and_one_doorbell(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    device = machine.device
    device.notified.clear()
    device.tx.want_kicks()
    assert driver.transmit([packet_of(60, 1), packet_of(1514, 2)]) == 2
    assert device.notified == [TX], "one doorbell a batch"
    head = device.tx.take()
    assert device.read_frame(head) == (bytes(12), frame_of(60, 1))
    [(addr, _, _)] = device.tx.elements(head)
    device.tx.put_used(head, 0)
    assert device.transmitted() == [frame_of(1514, 2)]
    assert driver.counters["tx_packets"] == 2
    assert driver.counters["tx_bytes"] == 1574
    device.notified.clear()
    assert driver.transmit([packet_of(60, 3)]) == 1, "used buffers are freed by the next one"
    assert device.notified == [], "suppressed: avail_event was passed"
    assert driver.tx.ring.in_flight == 1
    assert device.tx.elements(device.tx.take())[0][0] != addr or driver.tx.ring.room == 127


def test_a_packet_in_pieces_goes_out_whole(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    frame = frame_of(1514)
    pieces = [memoryview(frame[at : at + 100]) for at in range(100, 1514, 100)]
    packet = PacketBuffer(memoryview(bytearray(frame[:100])), 0, 100, pieces)
    assert driver.transmit([packet]) == 1
    assert machine.device.transmitted() == [frame]


@pytest.mark.parametrize("wanted", [WANTED, WANTED & ~INDIRECT], ids=["indirect", "direct"])
@pytest.mark.parametrize("length", [2035, 2036, 2037, 4084, 4085, 9014])
def test_a_long_frame_goes_out_in_several_buffers(machine: ScriptedMachine, wanted: int, length: int) -> None:
    machine.device.set_config(mtu=9000)
    driver, _ = machine.driver(wanted=wanted)
    frames = [frame_of(60, 1), frame_of(length, 2), frame_of(61, 3)]
    assert driver.transmit([PacketBuffer.from_bytes(frame) for frame in frames]) == 3
    assert machine.device.transmitted() == frames, "in order"
    driver.transmit([packet_of(60)])
    assert len(driver.tx.pool.free) == 127, "all buffers of the long frame came back"


def test_the_longest_mtu_fits_into_eighteen_buffers(machine: ScriptedMachine) -> None:
    machine.device.set_config(mtu=65535)
    driver, _ = machine.driver()
    assert driver.transmit([packet_of(65549)]) == 1
    head = machine.device.tx.take()
    assert len(machine.device.tx.elements(head)) <= 18
    assert machine.device.read_frame(head)[1] == frame_of(65549)


def test_frames_that_cannot_go_are_dropped_with_their_reason(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    tagged = PacketBuffer.from_bytes(frame_of(12) + b"\x81\x00" + bytes(1518 - 14))
    packets = [packet_of(1515), packet_of(13), packet_of(1514), tagged, packet_of(0)]
    packets.append(packet_of(100))
    packets[-1].offload = Offload(flags=1, csum_start=34, csum_offset=16)
    assert driver.transmit(packets) == 2
    assert [len(frame) for frame in machine.device.transmitted()] == [1514, 1518]
    assert driver.counters["tx_dropped_too_long"] == 1
    assert driver.counters["tx_dropped_short"] == 2
    assert driver.counters["tx_dropped_offload"] == 1


def test_offload_goes_into_the_header_when_it_was_negotiated(machine: ScriptedMachine) -> None:
    offload = abi.features(net.VIRTIO_NET_F_CSUM, net.VIRTIO_NET_F_HOST_TSO4)
    machine.device.offered |= offload
    driver, _ = machine.driver(wanted=WANTED | offload)
    packet = packet_of(200)
    packet.offload = Offload(net.VIRTIO_NET_HDR_F_NEEDS_CSUM, net.VIRTIO_NET_HDR_GSO_TCPV4, 54, 100, 34, 16)
    assert driver.transmit([packet]) == 1
    header, frame = machine.device.read_frame(machine.device.tx.take())
    assert net.NET_HEADER.unpack(header) == (1, 1, 54, 100, 34, 16, 0)
    assert frame == frame_of(200)


def test_a18_a_full_ring_drops_and_blocks_nobody(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    assert driver.transmit([packet_of(60, number) for number in range(200)]) == 128
    assert driver.counters["tx_dropped_ring_full"] == 72
    assert machine.device.transmitted() == [frame_of(60, number) for number in range(128)]
    assert driver.transmit([packet_of(60, number) for number in range(100)]) == 100
    assert driver.counters["tx_packets"] == 228


@pytest.mark.parametrize("wanted", [WANTED, WANTED & ~EVENT_IDX], ids=["event_idx", "flags"])
def test_sent_buffers_interrupt_only_when_the_ring_gets_crowded(machine: ScriptedMachine, wanted: int) -> None:
    driver, _ = machine.driver(wanted=wanted)
    ring = machine.device.tx

    def wants_interrupt() -> bool:
        return ring.interrupts(wanted & EVENT_IDX, within=128)

    driver.transmit([packet_of(60) for _ in range(95)])
    assert not wants_interrupt()
    driver.transmit([packet_of(60)])
    assert wants_interrupt(), "three quarters of 128 are in flight"
    machine.device.transmitted()
    machine.device.interrupt()
    machine.settle()
    assert driver.tx.ring.in_flight == 0, "taken back by the poll"
    assert not wants_interrupt()


@pytest.mark.parametrize("wanted", [WANTED, WANTED & ~EVENT_IDX], ids=["event_idx", "flags"])
def test_buffers_sent_before_the_interrupt_is_asked_for_are_taken_back(machine: ScriptedMachine, wanted: int) -> None:
    driver, _ = machine.driver(wanted=wanted)
    device = machine.device
    write = device.mmio_write

    def eager(offset: int, size: int, value: int) -> None:
        """A device that sends inside the doorbell, and keeps silent as it was told."""
        write(offset, size, value)
        if offset == reg.VIRTIO_MMIO_QUEUE_NOTIFY:
            device.transmitted()

    device.mmio_write = eager  # type: ignore[method-assign]
    device.tx.want_kicks()
    assert driver.transmit([packet_of(60, number) for number in range(100)]) == 100
    assert device.tx.used_idx == 100
    assert driver.tx.ring.in_flight == 0, "no interrupt may come for them"
    assert len(driver.tx.pool.free) == 128


def test_sent_buffers_are_taken_back_without_another_packet(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    driver.transmit([packet_of(60)])
    machine.device.transmitted()
    assert driver.tx.ring.in_flight == 1
    machine.advance(1_000_000)
    assert driver.tx.ring.in_flight == 0
    assert machine.services.timers.next_deadline() is None, "an idle guest is not woken"


# -- receiving ---------------------------------------------------------------------------------------------------


def test_e3_one_interrupt_drains_all_that_was_used(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    device = machine.device
    batches: list[int] = []
    driver.receiver = lambda packets: (batches.append(len(packets)), inbox.extend(packets))[0]
    frames = [frame_of(60 + number, number) for number in range(200)]
    for frame in frames:
        device.receive(frame, interrupt=False)
    device.interrupt()
    machine.settle()
    assert [packet.tobytes() for packet in inbox] == frames
    assert batches == [64, 64, 64, 8], "one delivery a poll"
    assert driver.counters["irqs"] == 1
    assert device.interrupt_status == 0, "acknowledged"
    assert device.rx.waiting() == 256, "refilled"
    assert inbox[0].device is driver


def test_e3_a_spurious_interrupt_is_counted(machine: ScriptedMachine) -> None:
    driver, _ = machine.driver()
    machine.services.irqs.dispatch(5)
    assert driver.counters["irq_spurious"] == 1
    assert machine.services.irqs.counters["spurious"] == 1


@pytest.mark.parametrize("wanted", [WANTED, WANTED & ~EVENT_IDX], ids=["event_idx", "flags"])
def test_interrupts_are_off_while_a_poll_is_due_and_no_wake_up_is_lost(machine: ScriptedMachine, wanted: int) -> None:
    driver, inbox = machine.driver(wanted=wanted)
    device = machine.device

    def silent() -> bool:
        return not device.rx.interrupts(wanted & EVENT_IDX, within=256)

    device.receive(frame_of(60, 1))
    machine.services.irqs.dispatch(5)
    assert silent()

    def one_more(packets: object) -> None:
        inbox.extend(packets)  # type: ignore[arg-type]
        driver.receiver = inbox.extend
        device.receive(frame_of(60, 2), interrupt=False)  # the device is told to keep silent, and does

    driver.receiver = one_more
    machine.settle()
    assert [packet.tobytes() for packet in inbox] == [frame_of(60, 1), frame_of(60, 2)]
    assert not silent()


@pytest.mark.parametrize("length", [1, 13, 14, 60, 255, 256, 1514, 2036])
@pytest.mark.parametrize("wanted", [WANTED, WANTED & ~MRG], ids=["merge", "whole"])
def test_exactly_the_frame_is_shown(machine: ScriptedMachine, length: int, wanted: int) -> None:
    _, inbox = machine.driver(wanted=wanted)
    for number in range(400):  # so that every buffer of the pool has been used before
        machine.device.receive(frame_of(length, number))
        machine.settle()
        assert inbox.pop().tobytes() == frame_of(length, number)
    assert machine.device.rx.waiting() == 256


@pytest.mark.parametrize("length", [2037, 4084, 4085, 9014])
def test_a_frame_merged_from_several_buffers(machine: ScriptedMachine, length: int) -> None:
    machine.device.set_config(mtu=9000)
    driver, inbox = machine.driver()
    for number in range(300):
        machine.device.receive(frame_of(length, number))
        machine.device.receive(frame_of(60, number))
        machine.settle()
        assert inbox.popleft().tobytes() == frame_of(length, number)
        assert inbox.popleft().tobytes() == frame_of(60, number)
    assert len(driver.rx.pool.free) == 128


def test_a_merged_frame_may_be_cut_by_the_budget(machine: ScriptedMachine) -> None:
    machine.device.set_config(mtu=9000)
    driver, inbox = machine.driver()
    for number in range(62):
        machine.device.receive(frame_of(60, number), interrupt=False)
    machine.device.receive(frame_of(9014), interrupt=False)  # buffers 63 to 67
    machine.device.interrupt()
    machine.settle()
    assert len(inbox) == 63
    assert inbox[-1].tobytes() == frame_of(9014)
    assert driver.counters["rx_packets"] == 63


def test_offload_fields_travel_with_the_packet(machine: ScriptedMachine) -> None:
    _, inbox = machine.driver()
    machine.device.receive(frame_of(300), flags=1, csum_start=34, csum_offset=16)
    machine.device.receive(frame_of(60))
    machine.settle()
    assert inbox[0].offload == Offload(flags=1, csum_start=34, csum_offset=16)
    assert inbox[1].offload is None


# -- lending -----------------------------------------------------------------------------------------------------


def test_a_large_frame_is_lent_and_a_small_one_copied(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    machine.device.receive(frame_of(255))
    machine.device.receive(frame_of(256))
    machine.settle()
    assert [packet.lease is not None for packet in inbox] == [False, True]
    assert len(driver.rx.pool.free) == 127, "one buffer is lent"
    inbox.clear()
    assert len(driver.rx.pool.free) == 128


def test_a_clone_keeps_the_buffer_lent(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    machine.device.receive(frame_of(1000))
    machine.settle()
    clone = inbox.pop().clone()
    assert len(driver.rx.pool.free) == 127
    assert clone.tobytes() == frame_of(1000)
    del clone
    assert len(driver.rx.pool.free) == 128


def test_a_reader_that_never_reads_does_not_starve_the_ring(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    for number in range(1000):
        machine.device.receive(frame_of(1000, number))
        machine.settle()
        assert machine.device.rx.waiting() == 256, "the ring is always refilled"
    lent = [packet for packet in inbox if packet.lease is not None]
    assert len(lent) == 128, "as many as the pool is larger than the ring"
    assert [packet.tobytes() for packet in inbox] == [frame_of(1000, number) for number in range(1000)]
    assert driver.rx.scarce()
    assert all(packet.keep() is not packet for packet in lent), "whoever queues now, copies"
    del lent
    inbox.clear()
    assert len(driver.rx.pool.free) == 128


@pytest.mark.parametrize("spare", [0, 1, 2, 3, 4, 5])
def test_a_merged_frame_is_whole_when_few_buffers_or_none_can_be_lent(machine: ScriptedMachine, spare: int) -> None:
    machine.device.set_config(mtu=9000)
    driver, inbox = machine.driver()
    for number in range(128 - spare):
        machine.device.receive(frame_of(1000, number))
        machine.settle()
    held = list(inbox)
    inbox.clear()
    assert len(driver.rx.pool.free) == spare
    for number in range(60):
        machine.device.receive(frame_of(9014, number))
        machine.settle()
        assert machine.device.rx.waiting() == 256, "the ring is always refilled"
    assert [packet.tobytes() for packet in inbox] == [frame_of(9014, number) for number in range(60)]
    assert [packet.tobytes() for packet in held] == [frame_of(1000, number) for number in range(128 - spare)]
    inbox.clear()
    held.clear()
    assert len(driver.rx.pool.free) == 128


def test_below_low_water_a_queued_packet_is_copied(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    for number in range(97):
        machine.device.receive(frame_of(1000, number))
    machine.settle()
    assert len(driver.rx.pool.free) == 31
    assert inbox[0].keep() is not inbox[0]
    inbox.pop()
    assert inbox[0].keep() is inbox[0], "32 buffers are enough"


# -- closing -----------------------------------------------------------------------------------------------------


def test_close_gives_back_all_memory(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    machine.device.receive(frame_of(1000))
    machine.settle()
    inbox.clear()
    driver.transmit([packet_of(60)])
    driver.close()
    driver.close()
    assert machine.device.status == 0, "the device was reset before its memory went"
    assert machine.dma.mapped_bytes == 0
    assert machine.dma.free_bytes == machine.dma.size
    assert machine.is_masked(5)
    assert machine.services.timers.next_deadline() is None
    assert driver.transmit([packet_of(60)]) == 0


def test_a_packet_outlives_its_driver(machine: ScriptedMachine) -> None:
    driver, inbox = machine.driver()
    machine.device.receive(frame_of(1000))
    machine.settle()
    driver.close()
    assert machine.dma.mapped_bytes == 0, "no device reaches it any more"
    assert machine.dma.free_bytes < machine.dma.size, "but its pages are not anybody else's yet"
    assert inbox.pop().tobytes() == frame_of(1000)
    assert machine.dma.free_bytes == machine.dma.size


def test_two_drivers_in_one_process_share_nothing() -> None:
    machine = ScriptedMachine(devices=2)
    other = ScriptedMachine()
    machine.devices[1].set_config(mac=bytes.fromhex("525400abcdef"), mtu=9000)
    first, first_inbox = machine.driver(0)
    second, second_inbox = machine.driver(1)
    third, third_inbox = other.driver(0)
    machine.devices[0].receive(frame_of(300, 1))
    machine.settle()
    assert (len(first_inbox), len(second_inbox), len(third_inbox)) == (1, 0, 0)
    assert first.counters["rx_packets"] == 1
    assert second.counters["rx_packets"] == third.counters["rx_packets"] == 0
    assert (first.mtu, second.mtu) == (1500, 9000)
    machine.devices[0].rx.put_used(9999, 0)
    machine.devices[0].interrupt()
    machine.settle()
    assert first.failed is not None
    for driver, device, world in ((second, machine.devices[1], machine), (third, other.device, other)):
        assert driver.failed is None
        device.receive(frame_of(300, 2))
        world.settle()
        assert driver.transmit([packet_of(60)]) == 1
    assert second_inbox.pop().tobytes() == third_inbox.pop().tobytes() == frame_of(300, 2)


def test_a_driver_says_who_it_is() -> None:
    machine = ScriptedMachine()
    driver, _ = machine.driver()
    assert isinstance(driver, VirtioNetDriver)
    assert driver.name == "virtio@d0000000"
