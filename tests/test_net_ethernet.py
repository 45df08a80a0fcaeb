"""The link layer with a fake below and above: filter, dispatch, counted drops, batches, the check sequence."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import Dot1Q, Ether

from guest.net.ethernet import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Ethernet, frame_check_sequence
from guest.net.pbuf import CAST_BROADCAST, CAST_HOST, CAST_MULTICAST, CAST_OTHER_HOST, Offload, PacketBuffer
from tests.net_world import BROADCAST, OUR_MAC, PEER_MAC, fragments

GROUP = "01:00:5e:00:00:01"
OTHER = "52:54:00:00:00:99"
TYPES = (ETH_P_IP, ETH_P_ARP, ETH_P_IPV6)


class Bench:
    """An Ethernet layer whose handlers write down (EtherType, cast, payload) and whose wire collects batches."""

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []
        self.seen: list[tuple[int, int, bytes]] = []
        self.calls: list[int] = []
        self.layer = Ethernet(
            bytes.fromhex(OUR_MAC.replace(":", "")), 1500, lambda batch: self.sent.append([p.tobytes() for p in batch])
        )
        for ethertype in TYPES:
            self.layer.handlers[ethertype] = self._handle

    def _handle(self, packets: list[PacketBuffer]) -> None:
        self.calls.append(len(packets))
        self.seen += [(packet.protocol, packet.cast, packet.tobytes()) for packet in packets]

    def receive(self, *frames: object) -> None:
        self.layer.input([PacketBuffer.from_bytes(bytes(frame)) for frame in frames])  # type: ignore[call-overload]

    def drops(self) -> dict[str, int]:
        return {name: count for name, count in self.layer.counters.items() if "dropped" in name}


def frame(dst: str = OUR_MAC, src: str = PEER_MAC, kind: int = ETH_P_IP, payload: bytes = b"payload") -> bytes:
    return bytes(Ether(dst=dst, src=src, type=kind)) + payload


@pytest.mark.parametrize("kind", TYPES)
def test_c6_known_ethertypes_reach_their_handler_without_the_header(kind: int) -> None:
    bench = Bench()
    bench.receive(frame(kind=kind))
    assert bench.seen == [(kind, CAST_HOST, b"payload")]
    assert bench.drops() == {}


@pytest.mark.parametrize("kind", [0x0600, 0x88CC, 0x9000, 0xFFFF])
def test_c6_other_ethertypes_are_counted_and_offered_to_packet_hooks_only(kind: int) -> None:
    bench = Bench()
    hooked: list[bytes] = []
    bench.layer.packet_hook = lambda packets: hooked.extend(packet.tobytes() for packet in packets)
    bench.receive(frame(kind=kind))
    assert bench.seen == []
    assert bench.drops() == {"rx_dropped_ethertype": 1}
    assert hooked == [frame(kind=kind)], "the hook sees the whole frame"


def test_c5_frames_for_another_host_are_dropped_and_counted() -> None:
    bench = Bench()
    bench.receive(frame(dst=OTHER))
    assert bench.seen == []
    assert bench.drops() == {"rx_dropped_other_host": 1}


def test_c5_unless_promiscuous() -> None:
    bench = Bench()
    bench.layer.promiscuous = True
    bench.receive(frame(dst=OTHER))
    assert bench.seen == [(ETH_P_IP, CAST_OTHER_HOST, b"payload")]
    assert bench.drops() == {}


def test_broadcast_and_joined_groups_pass() -> None:
    bench = Bench()
    bench.receive(frame(dst=BROADCAST), frame(dst=GROUP))
    bench.layer.groups.add(bytes.fromhex(GROUP.replace(":", "")))
    bench.receive(frame(dst=GROUP))
    assert [cast for _, cast, _ in bench.seen] == [CAST_BROADCAST, CAST_MULTICAST]
    assert bench.drops() == {"rx_dropped_multicast": 1}, "the group was not joined at first"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "rx_dropped_runt"),
        (frame()[:13], "rx_dropped_runt"),
        (frame(kind=0x0026, payload=bytes(38)), "rx_dropped_802_3"),
        (frame(kind=0x05FF), "rx_dropped_802_3"),
        (frame(kind=0x8100, payload=b"\0\x05\x08"), "rx_dropped_vlan_short"),
        (bytes(Ether(dst=OUR_MAC, src=PEER_MAC) / Dot1Q(vlan=5, type=0x0800)), "rx_dropped_vlan"),
        (frame(src=GROUP), "rx_dropped_source"),
        (frame(src=BROADCAST), "rx_dropped_source"),
    ],
)
def test_h50_malformed_frames_are_dropped_and_counted(raw: bytes, reason: str) -> None:
    bench = Bench()
    bench.receive(raw)
    assert bench.seen == []
    assert bench.drops() == {reason: 1}


def test_e7_runts_and_over_long_frames_are_counted_at_the_byte() -> None:
    bench = Bench()
    bench.receive(frame(payload=b""), frame(payload=bytes(1504)), frame(payload=bytes(1505)), bytes(13))
    assert [len(payload) for _, _, payload in bench.seen] == [0, 1504], "1504: the MTU and room for a tag"
    assert bench.drops() == {"rx_dropped_overlong": 1, "rx_dropped_runt": 1}
    assert bench.layer.counters["rx_packets"] == 4
    assert bench.layer.counters["rx_bytes"] == 14 + 1518 + 1519 + 13


def test_a_frame_that_offload_merged_may_be_longer() -> None:
    bench = Bench()
    packet = PacketBuffer.from_bytes(frame(payload=bytes(20_000)))
    packet.offload = Offload(gso_type=1, gso_size=1448)
    bench.layer.input([packet])
    assert [len(payload) for _, _, payload in bench.seen] == [20_000]


@given(st.sets(st.integers(1, 20)))
def test_a_header_in_pieces_is_the_same_header(cuts: set[int]) -> None:
    bench = Bench()
    bench.layer.input([fragments(frame(), cuts)])
    assert bench.seen == [(ETH_P_IP, CAST_HOST, b"payload")]


def test_a_batch_is_handed_on_in_order_in_runs() -> None:
    bench = Bench()
    kinds = [ETH_P_IP, ETH_P_IP, 0x9999, ETH_P_IP, ETH_P_ARP, ETH_P_IP]
    bench.receive(*(frame(kind=kind, payload=bytes([index])) for index, kind in enumerate(kinds)))
    assert [payload for _, _, payload in bench.seen] == [b"\0", b"\1", b"\3", b"\4", b"\5"]
    assert bench.calls == [2, 1, 1, 1]


def test_e7_eth_send_writes_the_header_scapy_reads() -> None:
    bench = Bench()
    bench.layer.output(PacketBuffer.from_bytes(b"hello"), bytes.fromhex("525400000002"), ETH_P_IP)
    parsed = Ether(bench.sent[0][0])
    assert (parsed.dst, parsed.src, parsed.type) == (PEER_MAC, OUR_MAC, ETH_P_IP)
    assert bench.sent[0][0][14:] == b"hello"
    assert (bench.layer.counters["tx_packets"], bench.layer.counters["tx_bytes"]) == (1, 19)


def test_what_a_batch_causes_leaves_in_one_batch() -> None:
    bench = Bench()

    def answer(packets: list[PacketBuffer]) -> None:
        for packet in packets:
            bench.layer.output(packet.copy(), bytes.fromhex("525400000002"), ETH_P_ARP)
            assert bench.sent == [], "nothing leaves while the batch comes in"

    bench.layer.handlers[ETH_P_ARP] = answer
    bench.receive(frame(kind=ETH_P_ARP, payload=b"1"), frame(), frame(kind=ETH_P_ARP, payload=b"2"))
    assert [[raw[14:] for raw in batch] for batch in bench.sent] == [[b"1", b"2"]]


@given(st.binary(min_size=14, max_size=100), st.sets(st.integers(1, 99)))
def test_e6_check_sequence(data: bytes, cuts: set[int]) -> None:
    packet = fragments(data, cuts)
    fcs = frame_check_sequence(packet.views())
    assert fcs == zlib.crc32(data).to_bytes(4, "little")
    assert zlib.crc32(data + fcs) == 0x2144DF1C, "the residue that every good frame has (IEEE 802.3 §3.2.9)"


def test_c4_the_trace_names_the_stage_and_the_reason() -> None:
    bench = Bench()
    seen: list[tuple[str, str]] = []
    bench.layer.trace = lambda stage, packet, text: seen.append((stage, text))
    bench.receive(frame(), frame(dst=OTHER))
    assert seen == [("ethernet", f"{PEER_MAC} > {OUR_MAC} 0x0800"), ("ethernet", "rx_dropped_other_host")]
