"""The network back end against a scripted front end: packets both ways, extras, queues, events."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from hw.clock import VirtualClock
from hw.loop import Loop
from hw.wire.cable import cable
from hw.xen.control import HashSteering, toeplitz
from hw.xen.hypervisor import Hypervisor
from tests.scripted_frontend import CSUM_BLANK, EXTRA, MORE, NULL, OKAY, Frontend, FrontRing, Guest
from tests.test_hw_mmio import Catcher
from tests.wire_ends import Station

FRAME = bytes(range(60))
UDP = (
    b"\x02\0\0\0\0\2\x02\0\0\0\0\1\x08\0"
    b"\x45\0\0\x24\0\1\0\0\x40\x11\x66\xc6\x0a\0\0\1\x0a\0\0\2"
    b"\x10\0\x20\0\0\x10\x00\x00datagram"
)


def full(room: int) -> Catcher:
    """A wire that takes `room` frames and no more."""
    wire = Catcher()
    wire.room = room
    return wire


def let_go(front: Frontend) -> None:
    """The wire has room again."""
    front.wire.room = 1 << 30
    front.device.writable()


def tcp4(payload: int) -> bytes:
    """An Ethernet frame with IPv4 and TCP headers, and a payload of as many bytes."""
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40 + payload, 1, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    tcp = struct.pack(">HHIIBBHHH", 1000, 2000, 7, 9, 0x50, 0x10, 500, 0xBEEF, 0)
    return b"\x02\0\0\0\0\2\x02\0\0\0\0\1\x08\0" + ip + tcp + bytes(at & 0xFF for at in range(payload))


def gso_extra(size: int, kind: int = 1, more: bool = False) -> bytes:
    return struct.pack("<BBHBBH", 1, int(more), size, kind, 0, 0)


def virtio(flags: int = 0, gso: int = 0, hdr_len: int = 0, size: int = 0, start: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<BBHHHHH", flags, gso, hdr_len, size, start, offset, 0)


# -- transmit ----------------------------------------------------------------------------------------------------


def test_p2_a_frame_leaves_and_its_request_is_answered_with_one_event() -> None:
    front = Frontend().connect()
    assert front.backend_state == 4
    front.guest.events.clear()
    assert front.send(FRAME) == [(100, OKAY)]
    assert front.wire.sent == [FRAME]
    assert front.guest.events == {front.ports[0]: 1}
    assert front.counters == {"tx_packets": 1, "tx_bytes": 60}


def test_p2_a_packet_of_many_slots_is_one_frame() -> None:
    front = Frontend(mtu=65535).connect(feature_sg=1)
    frame = bytes(range(256)) * 40
    assert front.send(frame) == [(100, OKAY), (101, OKAY), (102, OKAY)]
    assert front.wire.sent == [frame]


def test_p2_slots_begin_at_their_offsets() -> None:
    front = Frontend().connect()
    ref = front.guest.grant(front.guest.page(b"x" * 1000 + FRAME))
    front.slot(ref, 1000, MORE, 1, 60)
    front.slot(ref, 1030, 0, 2, 30)
    assert front.transmit() == [(1, OKAY), (2, OKAY)]
    assert front.wire.sent == [FRAME]


def test_p2_a_batch_costs_one_event() -> None:
    front = Frontend().connect()
    front.guest.events.clear()
    ref = front.guest.grant(front.guest.page(FRAME))
    for number in range(200):
        front.slot(ref, 0, 0, number, 60)
    assert front.transmit() == [(number, OKAY) for number in range(200)]
    assert len(front.wire.sent) == 200
    assert sum(front.guest.events.values()) <= 4  # one a batch of 64


def test_p2_responses_make_no_event_that_was_not_asked_for() -> None:
    front = Frontend().connect()
    front.guest.events.clear()
    front.guest.write(front.tx.addr + 12, struct.pack("<I", 200))  # rsp_event far ahead
    ref = front.guest.grant(front.guest.page(FRAME))
    front.slot(ref, 0, 0, 1, 60)
    front.tx.publish()
    front.kick()
    assert front.tx.index(2) == 1
    assert front.guest.events == {}


def test_p2_the_back_end_asks_for_the_next_request_before_it_sleeps() -> None:
    front = Frontend().connect()
    front.send(FRAME)
    assert front.tx.index(1) == front.tx.prod + 1


def test_p2_indices_wrap() -> None:
    front = Frontend()
    front.tx, front.rx = (FrontRing(front.guest, size, 0xFFFFFFFE) for size in (12, 8))
    front.connect()
    for _ in range(4):
        assert front.send(FRAME) == [(100, OKAY)]
        (page,) = front.post()
        front.arrive(FRAME)
        assert [response[3] for response in front.received()] == [60]
        assert front.guest.read(page, 60) == FRAME
    assert (front.tx.index(2), front.rx.index(2)) == (2, 2)


def test_p2_what_the_guest_changes_after_the_kick_is_not_sent() -> None:
    front = Frontend(wire=full(0)).connect()
    page = front.guest.page(FRAME)
    front.slot(front.guest.grant(page), 0, 0, 1, 60)
    assert front.transmit() == []  # the wire is full
    front.guest.write(page, bytes(60))
    let_go(front)
    front.guest.settle()
    assert front.wire.sent == [FRAME]
    assert front.answers() == [(1, OKAY)]


def test_frames_wait_for_a_full_wire_and_their_responses_with_them() -> None:
    front = Frontend(wire=full(2)).connect()
    ref = front.guest.grant(front.guest.page(FRAME))
    for number in range(5):
        front.slot(ref, 0, 0, number, 60)
    assert front.transmit() == [(0, OKAY), (1, OKAY)]
    let_go(front)
    front.guest.settle()
    assert front.answers() == [(2, OKAY), (3, OKAY), (4, OKAY)]
    assert len(front.wire.sent) == 5


# -- checksums and segmentation -----------------------------------------------------------------------------------


def test_p2_a_blank_checksum_becomes_the_wires_offload() -> None:
    front = Frontend(wire=Catcher()).connect()
    assert front.send(UDP, CSUM_BLANK) == [(100, OKAY)]
    assert front.wire.headers == [virtio(1, start=34, offset=6)]


def test_p2_a_large_segment_takes_its_size_from_the_extra_information() -> None:
    front = Frontend(wire=Catcher()).connect(feature_sg=1)
    frame = tcp4(20_000)
    answers = front.send(frame, CSUM_BLANK, [gso_extra(1400)])
    assert [status for _, status in answers] == [OKAY, NULL, OKAY, OKAY, OKAY, OKAY]
    assert front.wire.headers == [virtio(1, 1, 54, 1400, 34, 16)]
    assert front.wire.sent == [frame]


def test_bits_0_and_1_mean_the_opposite_on_the_way_in() -> None:
    front = Frontend().connect()
    front.post(3)
    front.arrive(UDP, header=virtio(1, start=34, offset=6))  # NEEDS_CSUM
    front.arrive(UDP, header=virtio(2))  # DATA_VALID
    front.arrive(UDP)
    assert [flags for _, _, flags, _ in front.received()] == [3, 1, 0]  # blank (bit 1) and validated (bit 0); validated


def test_a_front_end_without_checksum_offload_gets_checksums_that_are_right() -> None:
    front = Frontend().connect(feature_no_csum_offload=1)
    (page,) = front.post()
    pseudo = 0x0A00 + 1 + 0x0A00 + 2 + 17 + 16
    blank = UDP[:40] + pseudo.to_bytes(2, "big") + UDP[42:]
    front.arrive(blank, header=virtio(1, start=34, offset=6))
    assert front.received() == [(0, 0, 0, len(UDP))]
    whole = front.guest.read(page + 34, 16)
    total = pseudo + sum(struct.unpack(f">{len(whole) // 2}H", whole))
    assert total % 65535 == 0, "the sum over the datagram with its pseudo-header"
    assert front.counters["rx_checksums_completed"] == 1


def test_p2_a_large_segment_arrives_with_its_extra_information_in_the_second_slot() -> None:
    front = Frontend(mtu=65535).connect(feature_sg=1, feature_gso_tcpv4=1)
    pages = front.post(4)
    frame = tcp4(9000)
    front.arrive(frame, header=virtio(1, 1, 54, 1400, 34, 16))
    first, extra, second, third = front.rx.responses()
    assert struct.unpack("<HHHh", first) == (0, 0, 3 | MORE | EXTRA, 4096)
    assert extra == struct.pack("<BBHBBH", 1, 0, 1400, 1, 0, 0)
    assert struct.unpack("<HHHh", second) == (2, 0, MORE, 4096)
    assert struct.unpack("<HHHh", third) == (3, 0, 0, len(frame) - 8192)
    assert front.guest.read(pages[0], 4096) + front.guest.read(pages[2], 4096) == frame[:8192]
    assert front.guest.read(pages[3], len(frame) - 8192) == frame[8192:]
    assert front.guest.read(pages[1], 4096) == b"\xa5" * 4096  # the slot of the extra information has no data


@pytest.mark.parametrize(
    ("more", "frame", "header", "reason"),
    [
        ({"feature_sg": 1}, tcp4(9000), virtio(1, 3, 54, 1400, 34, 6), "gso_not_asked"),
        ({"feature_sg": 1}, tcp4(9000), virtio(1, 1, 54, 9001, 34, 16), "gso_not_asked"),
        ({}, bytes(5000), None, "too_long"),
        ({}, bytes(13), None, "runt"),
        ({}, UDP, virtio(1, start=34, offset=30), "csum_outside"),
    ],
)
def test_frames_that_a_front_end_cannot_take_are_counted(
    more: dict[str, object], frame: bytes, header: bytes | None, reason: str
) -> None:
    front = Frontend(mtu=9000).connect(**more)
    front.post(4)
    front.arrive(frame, header=header)
    assert front.received() == []
    assert front.counters == {f"rx_dropped_{reason}": 1}


@pytest.mark.parametrize("more", [{"feature_sg": 1}, {"feature_gso_tcpv4": 1}])
def test_a_large_segment_is_cut_for_a_front_end_that_did_not_ask_for_it(more: dict[str, object]) -> None:
    front = Frontend().connect(**more)
    pages = front.post(8)
    frame = tcp4(7000)
    front.arrive(frame, header=virtio(1, 1, 54, 1400, 34, 16))
    sizes = [size for _, _, flags, size in front.received() if not flags]
    assert sizes == [54 + 1400] * 5, "no flags: their checksums are there"
    assert b"".join(front.guest.read(page + 54, 1400) for page in pages[:5]) == frame[54:]
    assert front.counters == {"rx_segmented": 1, "rx_packets": 5, "rx_bytes": 5 * 1454}


# -- receive -------------------------------------------------------------------------------------------------------


def test_p2_a_frame_arrives_in_the_page_of_its_request() -> None:
    front = Frontend().connect()
    first, second = front.post(2)
    front.guest.events.clear()
    assert front.arrive(FRAME) == 1
    assert front.received() == [(0, 0, 0, 60)]
    assert front.guest.events == {front.ports[0]: 1}
    assert front.guest.read(first, 61) == FRAME + b"\xa5"
    assert front.guest.read(second, 4) == b"\xa5" * 4
    assert front.counters == {"rx_packets": 1, "rx_bytes": 60}


def test_p2_frames_wait_for_buffers_and_come_in_order() -> None:
    front = Frontend().connect()
    front.arrive(*(bytes([number]) * 60 for number in range(3)))
    assert front.received() == []
    assert front.rx.index(1) == 1, "an event is asked for with the first request"
    pages = front.post(3)
    assert [front.guest.read(page, 1)[0] for page in pages] == [0, 1, 2]
    assert front.counters["rx_deferred"] == 3


def test_nobody_connected_means_drops_that_are_counted() -> None:
    front = Frontend()
    assert front.arrive(FRAME) == 1
    assert front.counters == {"rx_dropped_no_driver": 1}


# -- queues, channels, multicast, carrier ---------------------------------------------------------------------------


def test_split_event_channels_tell_each_ring_by_its_own() -> None:
    front = Frontend()
    tx_port, rx_port = (front.guest.xen.evtchn_alloc_unbound(0) for _ in range(2))
    front.connect(event_channel=None, event_channel_tx=tx_port, event_channel_rx=rx_port)
    front.ports = [tx_port, rx_port]
    front.post()
    front.guest.events.clear()
    front.arrive(FRAME)
    assert front.guest.events == {rx_port: 1}
    front.send(FRAME)
    assert front.guest.events == {rx_port: 1, tx_port: 1}


def test_queues_of_one_vif_each_have_rings_and_flows_stay_in_one() -> None:
    front = Frontend(queues=4)
    rings = [(FrontRing(front.guest, 12), FrontRing(front.guest, 8)) for _ in range(3)]
    ports = [front.guest.xen.evtchn_alloc_unbound(0) for _ in range(3)]
    for index, (tx, rx) in enumerate(rings):
        front.guest.put(f"{front.path}/queue-{index}/tx-ring-ref", tx.ref)
        front.guest.put(f"{front.path}/queue-{index}/rx-ring-ref", rx.ref)
        front.guest.put(f"{front.path}/queue-{index}/event-channel", ports[index])
    front.connect(multi_queue_num_queues=3, tx_ring_ref=None, rx_ring_ref=None, event_channel=None)
    assert front.backend_state == 4
    front.ports = ports
    for _, rx in rings:
        front.rx = rx
        front.post(100, kick=False)
    flows = [UDP[:34] + bytes([flow]) + UDP[35:] for flow in range(32)]
    front.arrive(*flows, *flows)
    counts = [rx.index(2) for _, rx in rings]
    assert sum(counts) == 64
    assert all(count and count % 2 == 0 for count in counts), "every queue has some, and both frames of each flow"
    for index, (tx, _) in enumerate(rings):
        front.tx = tx
        ref = front.guest.grant(front.guest.page(FRAME))
        front.slot(ref, 0, 0, index, 60)
        tx.publish()
        front.kick(index)
        assert front.answers() == [(index, OKAY)]


# The verification suite of "Receive Side Scaling" (Microsoft): addresses and ports, the hash of both and of the first.
RSS_KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
RSS = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x51CCC178, 0x323E8FC2),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xC626B0EA, 0xD718262A),
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x40207D3D, 0x2CC18CD5),
    ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0xDDE51BBF, 0x0F0C461C),
]


@pytest.mark.parametrize(("source", "sport", "destination", "dport", "with_ports", "plain"), RSS)
def test_h48_a_flow_goes_to_the_queue_that_the_guests_hash_says(
    source: str, sport: int, destination: str, dport: int, with_ports: int, plain: int
) -> None:
    addresses = b"".join(ipaddress.ip_address(each).packed for each in (source, destination))
    ports = struct.pack(">HH", sport, dport)
    assert toeplitz(RSS_KEY, addresses + ports) == with_ports
    assert toeplitz(RSS_KEY, addresses) == plain

    version = 4 if len(addresses) == 8 else 6
    ip = b"\x45" + bytes(8) + b"\x06" + bytes(2) if version == 4 else b"\x60" + bytes(5) + b"\x06\x40"
    frame = bytes(12) + (b"\x08\0" if version == 4 else b"\x86\xdd") + ip + addresses + ports + bytes(16)
    steering = HashSteering(7)
    assert steering.queue(frame) is None, "the guest has not chosen"
    steering.algorithm, steering.key = 1, RSS_KEY
    steering.types = 1 if version == 4 else 4
    assert steering.queue(frame) == plain % 7
    steering.types |= 2 if version == 4 else 8
    assert steering.queue(frame) == with_ports % 7
    steering.mapping = [6, 5, 4]
    assert steering.queue(frame) == steering.mapping[with_ports % 3]
    steering.types = 4 if version == 4 else 1
    assert steering.queue(frame) is None, "the guest has not chosen for this kind"


def test_multicast_is_filtered_once_asked_for() -> None:
    front = Frontend().connect()
    front.post(16)
    group, other = b"\x33\x33\0\0\0\1", b"\x33\x33\0\0\0\2"
    frames = [target + bytes(54) for target in (group, other, b"\xff" * 6, b"\x02\0\0\0\0\1")]
    front.arrive(*frames)
    assert len(front.received()) == 4, "without a request everything passes"
    front.guest.put(f"{front.path}/request-multicast-control", 1)
    front.guest.settle()
    add = struct.pack("<BB6s", 2, 0, group)
    assert front.send(b"", 0, [add]) == [(100, OKAY), (0, NULL)]
    front.arrive(*frames)
    assert len(front.received()) == 3
    assert front.counters["rx_dropped_multicast"] == 1
    assert front.send(b"", 0, [struct.pack("<BB6s", 3, 0, group)])[0] == (100, OKAY)
    front.arrive(*frames)
    assert len(front.received()) == 2
    assert front.wire.sent == []


def test_the_multicast_filter_is_bounded() -> None:
    front = Frontend().connect()
    answers = [
        front.send(b"", 0, [struct.pack("<BB6s", 2, 0, bytes([0x33, 0x33, 0, 0, 0, number]))])[0][1]
        for number in range(66)
    ]
    assert answers == [OKAY] * 64 + [-1] * 2


def test_carrier_is_told_in_the_store() -> None:
    loop = Loop(VirtualClock())
    near, far = cable(loop)
    front = Frontend(Guest(host=Hypervisor(loop)), near).connect()
    path = front.guest.get(f"{front.path}/backend") + "/carrier"
    assert front.guest.get(path) == "0"
    station = Station(far)
    assert front.guest.get(path) == "1"
    assert front.send(FRAME) == [(100, OKAY)]
    assert station.got == [FRAME]
    far.detach()
    assert front.guest.get(path) == "0"


def test_a_ling_profile_offers_copying_and_nothing_else() -> None:
    front = Frontend(profile="ling")
    back = front.guest.get(f"{front.path}/backend")
    assert front.guest.get(f"{back}/feature-rx-copy") == "1"
    for key in ("feature-sg", "feature-gso-tcpv4", "feature-split-event-channels", "multi-queue-max-queues"):
        assert f"{back}/{key}" not in front.guest.host.xenstore.tree._nodes
    front.connect(feature_no_csum_offload=1)
    assert front.send(FRAME) == [(100, OKAY)]
