"""The IP engine alone, with a fake interface below and a fake transport above; packets built and read by scapy."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, IPOption_LSRR, IPOption_RR, IPOption_SSRR, IPOption_Timestamp
from scapy.packet import Raw

from guest.net.address import V4_ANY, V4_PREFIX, Prefix, format_address, parse_address, to_prefix
from guest.net.checksum import python_sum
from guest.net.config import NetConfig
from guest.net.family import IpHeader
from guest.net.ip import IpEngine, source_address
from guest.net.ipv4 import Ipv4
from guest.net.pbuf import CAST_BROADCAST, CAST_HOST, CAST_MULTICAST, CAST_OTHER_HOST, PacketBuffer
from guest.net.route import Route
from tests.net_world import OUR_IP, PEER_IP, fragments

UDP_NUMBER = 17


class FakeInterface:
    """Below the engine: writes down what it is to send."""

    def __init__(self, *addresses: str, mtu: int = 1500, bare: bool = False) -> None:
        self.addresses: list[Prefix] = []
        for text in addresses:
            address, _, length = text.partition("/")
            self.addresses.append(to_prefix(address, int(length)))
        self.mtu = mtu
        self.bare = bare
        self.is_up = True
        self.sent: list[tuple[bytes, str, int]] = []

    def send(self, packet: PacketBuffer, next_hop: int, cast: int) -> None:
        self.sent.append((packet.tobytes(), format_address(next_hop), cast))


class Bench:
    """An engine with eth0 (10.0.0.1/24), eth1 (192.168.1.1/24), a loopback, and a transport that writes down."""

    def __init__(self, seed: int = 3) -> None:
        self.engine = IpEngine([Ipv4()], rng=random.Random(seed), config=NetConfig())
        self.eth0 = FakeInterface("10.0.0.1/24")
        self.eth1 = FakeInterface("192.168.1.1/24", "192.168.1.2/24")
        self.lo = FakeInterface("127.0.0.1/8", mtu=65536, bare=True)
        self.interfaces: Sequence[FakeInterface] = (self.lo, self.eth0, self.eth1)
        self.engine.loopback = self.lo
        self.engine.default = self.eth0
        for interface in self.interfaces:
            for prefix in interface.addresses[:1]:
                self.engine.routes.add(Route(Prefix(prefix.network, prefix.length), None, interface))
        self.engine.routes.add(Route(to_prefix("0.0.0.0", 0), parse_address("10.0.0.254"), self.eth0))
        self.engine.refresh(self.interfaces)
        self.got: list[tuple[IpHeader, bytes, int]] = []
        self.engine.handlers[UDP_NUMBER] = lambda packet, header: self.got.append(
            (header, packet.tobytes(), packet.cast)
        )

    def receive(self, raw: object, interface: FakeInterface | None = None, cast: int = CAST_HOST) -> None:
        packet = raw if isinstance(raw, PacketBuffer) else PacketBuffer.from_bytes(bytes(raw))  # type: ignore[call-overload]
        packet.cast = cast
        self.engine.input(interface or self.eth0, 0x0800, [packet])

    def drops(self) -> dict[str, int]:
        return {name: count for name, count in self.engine.counters.items() if "dropped" in name}

    def send(self, dst: str, content: bytes = b"payload", **options: object) -> int:
        return self.engine.output(PacketBuffer.from_bytes(content), parse_address(dst), UDP_NUMBER, **options)  # type: ignore[arg-type]


def ip(payload: bytes = b"payload", src: str = PEER_IP, dst: str = OUR_IP, **fields: object) -> IP:
    return IP(src=src, dst=dst, proto=UDP_NUMBER, **fields) / Raw(payload)


def resum(raw: bytes) -> bytes:
    """The packet with its header checksum put right."""
    size = max(20, (raw[0] & 15) * 4)
    packet = bytearray(raw)
    packet[10:12] = b"\0\0"
    total = sum(int.from_bytes(packet[at : at + 2], "big") for at in range(0, min(size, len(packet)), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
    return bytes(packet)


def changed(at: int, value: int) -> bytes:
    """A good packet with one byte changed and the checksum right."""
    raw = bytearray(bytes(ip()))
    raw[at] = value
    return resum(bytes(raw))


def with_options(options: bytes) -> bytes:
    """A good packet with these options, a multiple of four bytes."""
    assert len(options) % 4 == 0, "a test's mistake"
    raw = bytes(ip())
    header = bytes([0x45 + len(options) // 4]) + raw[1:2] + (len(raw) + len(options)).to_bytes(2, "big") + raw[4:20]
    return resum(header + options + raw[20:])


# -- input -----------------------------------------------------------------------------------------------------------


def test_a_good_packet_reaches_its_transport() -> None:
    bench = Bench()
    bench.receive(ip(tos=0x10, ttl=17))
    header, content, cast = bench.got[0]
    assert (format_address(header.src), format_address(header.dst)) == (PEER_IP, OUR_IP)
    assert (header.protocol, header.ttl, header.tos, header.size, header.fragment) == (17, 17, 0x10, 20, 0)
    assert (content, cast) == (b"payload", CAST_HOST)
    assert bench.engine.counters == {"rx_packets": 1, "rx_delivered": 1}


def test_ethernet_padding_is_trimmed() -> None:
    bench = Bench()
    bench.receive(bytes(ip(b"ab")) + bytes(24))
    assert bench.got[0][1] == b"ab"


@given(st.sets(st.integers(1, 26)))
def test_a_packet_in_pieces_is_the_same_packet(cuts: set[int]) -> None:
    bench = Bench()
    bench.receive(fragments(bytes(ip()), cuts))
    assert bench.got[0][1] == b"payload"


def test_c7_a_bad_header_checksum_is_dropped_and_counted() -> None:
    bench = Bench()
    bench.receive(ip(chksum=0x1234))
    assert bench.got == []
    assert bench.drops() == {"rx_dropped_checksum": 1}


@given(st.integers(0, 19), st.integers(1, 255))
def test_c7_no_single_changed_byte_of_the_header_gets_past(at: int, flip: int) -> None:
    bench = Bench()
    raw = bytearray(bytes(ip()))
    raw[at] ^= flip
    bench.receive(bytes(raw))
    assert bench.got == []
    assert sum(bench.drops().values()) == 1


H52 = {
    "version 5": (changed(0, 0x55), "rx_dropped_version"),
    "version 6 in an IPv4 frame": (changed(0, 0x65), "rx_dropped_version"),
    "IHL below 5": (changed(0, 0x44), "rx_dropped_header_length"),
    "IHL past the end": (changed(0, 0x4F), "rx_dropped_header_length"),
    "total length below IHL": (changed(3, 19), "rx_dropped_total_length"),
    "total length past the frame": (changed(3, 28), "rx_dropped_truncated"),
    "19 bytes": (bytes(ip())[:19], "rx_dropped_short"),
    "nothing": (b"", "rx_dropped_short"),
    "source 255.255.255.255": (ip(src="255.255.255.255"), "rx_dropped_source"),
    "source directed broadcast": (ip(src="10.0.0.255"), "rx_dropped_source"),
    "source of a group": (ip(src="224.0.0.5"), "rx_dropped_source"),
    "source class E": (ip(src="240.0.0.1"), "rx_dropped_source"),
    "source loopback": (ip(src="127.0.0.1"), "rx_dropped_source"),
    "source elsewhere in 127/8": (ip(src="127.9.9.9"), "rx_dropped_source"),
    "source 0.0.0.0 to one host": (ip(src="0.0.0.0"), "rx_dropped_source"),
    "source 0.1.2.3": (ip(src="0.1.2.3"), "rx_dropped_source"),
    "source another own address": (ip(src="192.168.1.1"), "rx_dropped_source"),
    "destination loopback": (ip(dst="127.0.0.1"), "rx_dropped_destination"),
    "land": (ip(src=OUR_IP), "rx_dropped_land"),
}


@pytest.mark.parametrize("name", H52)
def test_h52_malformed_ipv4_is_dropped_and_counted(name: str) -> None:
    raw, reason = H52[name]
    bench = Bench()
    bench.receive(raw)
    assert bench.got == []
    assert bench.drops() == {reason: 1}
    assert [interface.sent for interface in bench.interfaces] == [[], [], []], "nothing is answered"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (bytes(IPOption_LSRR(routers=["1.2.3.4"])) + b"\0", "rx_dropped_source_route"),
        (bytes(IPOption_SSRR(routers=["1.2.3.4"])) + b"\0", "rx_dropped_source_route"),
        (b"\x01\x01\x01\x83", "rx_dropped_source_route"),
        (b"\x44\x00\x00\x00", "rx_dropped_options"),
        (b"\x44\x01\x00\x00", "rx_dropped_options"),
        (b"\x44\x05\x00\x00", "rx_dropped_options"),
        (b"\x01\x01\x01\x44", "rx_dropped_options"),
    ],
)
def test_source_routed_and_malformed_options_are_dropped(options: bytes, reason: str) -> None:
    bench = Bench()
    bench.receive(with_options(options))
    assert bench.got == []
    assert bench.drops() == {reason: 1}


@pytest.mark.parametrize(
    "options",
    [bytes(IPOption_RR(routers=["0.0.0.0"])) + b"\0", bytes(IPOption_Timestamp()), b"\x01\x00\xff\xff", b"\x01" * 40],
)
def test_other_options_are_skipped(options: bytes) -> None:
    bench = Bench()
    bench.receive(with_options(options))
    assert bench.got[0][1] == b"payload"
    assert bench.got[0][0].size > 20


@pytest.mark.parametrize("fields", [{"flags": "MF"}, {"frag": 1}, {"frag": 8191, "flags": "MF"}])
def test_fragments_are_counted(fields: dict[str, object]) -> None:
    bench = Bench()
    bench.receive(ip(**fields))
    assert bench.drops() == {"rx_dropped_fragment": 1}


@pytest.mark.parametrize(
    ("dst", "frame_cast", "expected"),
    [
        ("255.255.255.255", CAST_BROADCAST, CAST_BROADCAST),
        ("10.0.0.255", CAST_BROADCAST, CAST_BROADCAST),
        ("224.0.0.1", CAST_MULTICAST, CAST_MULTICAST),
        ("192.168.1.2", CAST_HOST, CAST_HOST),
    ],
)
def test_broadcasts_groups_and_all_own_addresses_are_for_us(dst: str, frame_cast: int, expected: int) -> None:
    bench = Bench()
    bench.receive(ip(dst=dst), cast=frame_cast)
    assert [cast for _, _, cast in bench.got] == [expected]


def test_a_host_without_address_may_broadcast() -> None:
    bench = Bench()
    bench.receive(ip(src="0.0.0.0", dst="255.255.255.255"), cast=CAST_BROADCAST)
    assert bench.got[0][0].src == V4_ANY


def test_nothing_is_forwarded() -> None:
    bench = Bench()
    bench.receive(ip(dst="8.8.8.8"))
    bench.receive(ip(dst="10.7.7.255"), cast=CAST_BROADCAST)
    assert bench.drops() == {"rx_dropped_forwarding_off": 1, "rx_dropped_not_for_us": 1}
    assert bench.eth0.sent == []


def test_frames_for_other_hosts_and_unicast_in_broadcast_frames_stop_here() -> None:
    bench = Bench()
    bench.receive(ip(), cast=CAST_OTHER_HOST)
    bench.receive(ip(), cast=CAST_BROADCAST)
    assert bench.got == []
    assert bench.drops() == {"rx_dropped_other_host": 1, "rx_dropped_broadcast_frame": 1}


def test_the_loopback_carries_the_addresses_that_a_wire_must_not() -> None:
    bench = Bench()
    bench.receive(ip(src="127.0.0.1", dst="127.1.2.3"), interface=bench.lo)
    bench.receive(ip(src=OUR_IP, dst=OUR_IP), interface=bench.lo)
    assert len(bench.got) == 2
    assert bench.drops() == {}


def test_an_unknown_protocol_is_counted_and_reported() -> None:
    bench = Bench()
    reported: list[tuple[int, bytes]] = []
    bench.engine.unreachable = lambda packet, header: reported.append(
        (header.protocol, bytes(packet.area[packet.network : packet.data]))
    )
    raw = bytes(IP(src=PEER_IP, dst=OUR_IP, proto=99) / Raw(b"payload"))
    bench.receive(raw)
    assert bench.drops() == {"rx_dropped_protocol": 1}
    assert reported == [(99, raw[:20])], "with the header still to be quoted"


def test_a_family_without_a_codec_is_counted() -> None:
    bench = Bench()
    bench.engine.input(bench.eth0, 0x86DD, [PacketBuffer.from_bytes(bytes(40))])
    assert bench.drops() == {"rx_dropped_family": 1}


@given(st.binary(max_size=80), st.booleans(), st.integers(0, 3))
def test_any_bytes_are_delivered_or_counted(raw: bytes, right: bool, cast: int) -> None:
    bench = Bench()
    if right and len(raw) >= 20:
        raw = resum(bytes([0x45 | raw[0] & 3]) + raw[1:2] + len(raw).to_bytes(2, "big") + raw[4:])
    bench.receive(raw, cast=cast)
    assert len(bench.got) + sum(bench.drops().values()) == 1


# -- output ----------------------------------------------------------------------------------------------------------


def test_e10_scapy_reads_the_header_that_was_built() -> None:
    bench = Bench()
    assert bench.send("10.0.0.9", b"hello", tos=0x20, ttl=9) == 0
    raw, next_hop, cast = bench.eth0.sent[0]
    packet = IP(raw)
    assert (packet.src, packet.dst, packet.proto, packet.ttl, packet.tos) == (OUR_IP, "10.0.0.9", 17, 9, 0x20)
    assert (packet.len, packet.ihl, packet.version, str(packet.flags), packet.frag) == (25, 5, 4, "DF", 0)
    assert packet.chksum == IP(resum(raw)).chksum
    assert raw[20:] == b"hello"
    assert (next_hop, cast) == ("10.0.0.9", CAST_HOST)


BYTE = st.integers(0, 255)


@given(st.integers(0x0A000002, 0x0A0000FE), BYTE, BYTE, st.binary(max_size=1480), st.booleans())
def test_e10_every_header_sums_up(dst: int, tos: int, ttl: int, content: bytes, df: bool) -> None:
    bench = Bench()
    packet = PacketBuffer.from_bytes(content)
    bench.engine.output(packet, V4_PREFIX | dst, UDP_NUMBER, tos=tos, ttl=ttl, dont_fragment=df)
    raw = bench.eth0.sent[0][0]
    assert raw == resum(raw)
    assert raw[20:] == content


def test_e10_every_carry_is_folded_into_the_checksum() -> None:
    packet = PacketBuffer.allocate(0)
    for identification in range(0x10000):
        Ipv4().build(
            packet, src=0xFFFF_FFFE, dst=0xEFFF_FFFF, protocol=255, ttl=255, tos=0, identification=identification,
            dont_fragment=True,
        )  # fmt: skip
        assert python_sum(packet.linear) == 0xFFFF, f"identification {identification:#x}"
        packet.pull(20)


def test_the_source_is_the_address_on_the_next_hops_network() -> None:
    interface = FakeInterface("10.0.0.1/24", "10.9.0.1/16", "10.0.0.2/24")
    expected = {"10.9.3.3": "10.9.0.1", "10.0.0.9": "10.0.0.1", "8.8.8.8": "10.0.0.1"}
    for next_hop, source in expected.items():
        assert source_address(interface, parse_address(next_hop)) == parse_address(source)
    assert source_address(interface, parse_address("fe80::1")) is None, "of the other family there is none"


@pytest.mark.parametrize(
    ("dst", "interface", "next_hop", "src", "cast"),
    [
        ("10.0.0.9", "eth0", "10.0.0.9", "10.0.0.1", CAST_HOST),
        ("192.168.1.9", "eth1", "192.168.1.9", "192.168.1.1", CAST_HOST),
        ("8.8.8.8", "eth0", "10.0.0.254", "10.0.0.1", CAST_HOST),
        ("192.168.1.1", "lo", "192.168.1.1", "192.168.1.1", CAST_HOST),
        ("127.0.0.1", "lo", "127.0.0.1", "127.0.0.1", CAST_HOST),
        ("10.0.0.255", "eth0", "10.0.0.255", "10.0.0.1", CAST_BROADCAST),
        ("255.255.255.255", "eth0", "255.255.255.255", "10.0.0.1", CAST_BROADCAST),
        ("224.0.0.251", "eth0", "224.0.0.251", "10.0.0.1", CAST_MULTICAST),
    ],
)
def test_where_a_destination_leads(dst: str, interface: str, next_hop: str, src: str, cast: int) -> None:
    bench = Bench()
    assert bench.send(dst) == 0
    raw, via, way = getattr(bench, interface).sent[0]
    assert (via, way, IP(raw).src) == (next_hop, cast, src)
    assert IP(raw).ttl == (1 if cast == CAST_MULTICAST else 64), "groups stay on the link (RFC 1112 §6.1)"


def test_an_interface_can_be_chosen() -> None:
    bench = Bench()
    assert bench.send("255.255.255.255", interface=bench.eth1) == 0
    assert IP(bench.eth1.sent[0][0]).src == "192.168.1.1"
    bench.eth1.addresses.clear()
    bench.engine.refresh(bench.interfaces)
    assert bench.send("255.255.255.255", interface=bench.eth1) == 0
    assert IP(bench.eth1.sent[1][0]).src == "0.0.0.0", "a host that has no address yet"


def test_what_cannot_be_sent_has_an_errno_and_a_counter() -> None:
    bench = Bench()
    assert bench.send("0.0.0.0") == errno.ENETUNREACH
    assert bench.send("2001:db8::1") == errno.ENETUNREACH
    assert bench.send("10.0.0.9", src=parse_address("10.0.0.8")) == errno.EADDRNOTAVAIL
    assert bench.send("10.0.0.9", src=parse_address("127.0.0.1")) == errno.EADDRNOTAVAIL, "loopback on a wire"
    assert bench.send("10.0.0.9", bytes(1481)) == errno.EMSGSIZE
    assert bench.send("10.0.0.9", bytes(1480)) == 0
    assert bench.send("127.0.0.1", bytes(65516)) == errno.EMSGSIZE, "an IP packet ends at 65535 bytes"
    assert bench.drops() == {"tx_dropped_no_route": 2, "tx_dropped_source": 2, "tx_dropped_too_big": 2}


def test_an_own_address_of_another_interface_may_be_the_source() -> None:
    bench = Bench()
    assert bench.send("10.0.0.9", src=parse_address("192.168.1.2")) == 0
    assert IP(bench.eth0.sent[0][0]).src == "192.168.1.2"


def test_a_change_is_seen_by_the_next_packet() -> None:
    bench = Bench()
    assert bench.send("192.168.1.9") == 0
    bench.eth1.is_up = False
    bench.engine.refresh(bench.interfaces)
    assert bench.send("192.168.1.9") == 0
    assert bench.eth0.sent[0][1] == "10.0.0.254", "the default route takes over"
    bench.eth0.is_up = False
    bench.engine.refresh(bench.interfaces)
    assert bench.send("192.168.1.9") == errno.ENETUNREACH


def idents(seed: int, destinations: Sequence[str]) -> list[int]:
    bench = Bench(seed)
    for dst in destinations:
        bench.send(dst)
    return [IP(raw).id for raw, _, _ in bench.eth0.sent]


def test_identifications_differ_by_destination_and_seed_and_come_again_with_the_seed() -> None:
    destinations = ["10.0.0.5", "10.0.0.6"] * 50
    first = idents(1, destinations)
    assert first == idents(1, destinations)
    assert first != idents(2, destinations)
    to_one, to_other = first[0::2], first[1::2]
    steps = {b - a & 0xFFFF for a, b in pairwise(to_one)}
    assert steps <= set(range(1, 9)), "no identification comes again soon"
    assert len(steps) > 1, "and the step tells nothing"
    assert set(to_one).isdisjoint(to_other)


def test_a_whole_network_of_destinations_is_not_remembered_for_ever() -> None:
    bench = Bench()
    for number in range(5000):
        bench.engine.hop(parse_address("172.16.0.0") + number)
    assert len(bench.engine._hops) <= 1024
