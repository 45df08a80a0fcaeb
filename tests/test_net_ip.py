"""The IP engine alone, with a fake interface below and a fake transport above; packets built and read by scapy.

What both families have in common is tested for both; the rest of IPv6 is in test_net_ipv6.py.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import (
    IP,
    IPOption_LSRR,
    IPOption_Router_Alert,
    IPOption_RR,
    IPOption_SSRR,
    IPOption_Timestamp,
)
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop
from scapy.packet import Raw

from guest.net.address import V4_ANY, V4_PREFIX, V6_ANY, Prefix, format_address, parse_address, to_prefix
from guest.net.checksum import python_sum
from guest.net.ip import source_address
from guest.net.ipv4 import Ipv4
from guest.net.pbuf import CAST_BROADCAST, CAST_HOST, CAST_MULTICAST, CAST_OTHER_HOST, PacketBuffer
from guest.net.route import REJECT, Route
from tests.ip_bench import FAMILIES, UDP_NUMBER, V4, Bench, FakeInterface, Family, content
from tests.net_world import OUR_IP, PEER_IP, fragments


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
    bench.receive(raw, ethertype=0x0800)
    assert bench.got == []
    assert bench.drops() == {reason: 1}
    assert bench.errors == [], "and nobody is told"
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
def test_e18_source_routed_and_malformed_options_are_dropped(options: bytes, reason: str) -> None:
    bench = Bench()
    bench.receive(with_options(options))
    assert bench.got == []
    assert bench.drops() == {reason: 1}
    pointers = [value for kind, value, _ in bench.errors if kind == "parameter"]
    assert pointers == (
        [] if reason == "rx_dropped_source_route" else [20 + options.index(0x44) + (options[-1] != 0x44)]
    )


@pytest.mark.parametrize(
    "options",
    [bytes(IPOption_RR(routers=["0.0.0.0"])) + b"\0", bytes(IPOption_Timestamp()), b"\x01\x00\xff\xff", b"\x01" * 40],
)
def test_e18_other_options_are_skipped(options: bytes) -> None:
    bench = Bench()
    bench.receive(with_options(options))
    assert bench.got[0][1] == b"payload"
    assert bench.got[0][0].size > 20


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
    raw = bytes(IP(src=PEER_IP, dst=OUR_IP, proto=99) / Raw(b"payload"))
    bench.receive(raw)
    assert bench.drops() == {"rx_dropped_protocol": 1}
    assert bench.errors == [("protocol", 9, raw)], "with the header still to be quoted"


def test_a_family_without_a_codec_is_counted() -> None:
    bench = Bench()
    bench.engine.input(bench.eth0, 0x0806, [PacketBuffer.from_bytes(bytes(40))])
    assert bench.drops() == {"rx_dropped_family": 1}


@given(st.binary(max_size=80), st.booleans(), st.integers(0, 3))
def test_any_bytes_are_delivered_or_counted(raw: bytes, right: bool, cast: int) -> None:
    bench = Bench()
    if right and len(raw) >= 20:
        raw = resum(bytes([0x45 | raw[0] & 3]) + raw[1:2] + len(raw).to_bytes(2, "big") + raw[4:])
    bench.receive(raw, cast=cast, ethertype=0x0800)
    assert bench.balance() == 0


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
    bench.eth0.addresses = bench.eth0.addresses[:1]
    bench.refresh()
    assert bench.send("2001:db9::1") == errno.ENETUNREACH, "without a source of that family"
    assert bench.send("10.0.0.9", src=parse_address("10.0.0.8")) == errno.EADDRNOTAVAIL
    assert bench.send("10.0.0.9", src=parse_address("127.0.0.1")) == errno.EADDRNOTAVAIL, "loopback on a wire"
    assert bench.send("10.0.0.9", bytes(1481), dont_fragment=True) == errno.EMSGSIZE
    assert bench.send("10.0.0.9", bytes(1480), dont_fragment=True) == 0
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


def idents(seed: int, destinations: Sequence[str], dont_fragment: bool = False) -> list[int]:
    bench = Bench(seed)
    for dst in destinations:
        bench.send(dst, dont_fragment=dont_fragment)
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


def test_identifications_that_mean_nothing_draw_nothing_at_random() -> None:
    atomic = idents(1, ["10.0.0.5"] * 50, dont_fragment=True)
    assert {b - a & 0xFFFF for a, b in pairwise(atomic)} == {1}, "RFC 6864 §4.1"
    bench = Bench()
    state = bench.engine._rng.getstate()
    bench.send("2001:db8::5")
    bench.send("10.0.0.5")
    bench.send("2001:db8::5", bytes(2000))
    assert bench.engine._rng.getstate() == state, "IPv6 and what says DF"
    bench.send("10.0.0.5", dont_fragment=False)
    assert bench.engine._rng.getstate() != state


def test_a_whole_network_of_destinations_is_not_remembered_for_ever() -> None:
    bench = Bench()
    for number in range(5000):
        bench.engine.hop(parse_address("172.16.0.0") + number)
    assert len(bench.engine._hops) <= 1024


# -- both families ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_d1_both_families_are_delivered_and_traced_alike(family: Family) -> None:
    bench = Bench()
    lines: list[str] = []
    bench.engine.trace = lambda stage, packet, text: lines.append(f"{stage}: {text}")
    bench.receive(family.packet(hops=9))
    header, data, cast = bench.got[0]
    assert (format_address(header.src), format_address(header.dst)) == (family.peer, family.ours)
    assert (header.protocol, header.ttl, header.size, header.fragment) == (17, 9, family.header, 0)
    assert (header.interface, header.extended, data, cast) == (bench.eth0, False, b"payload", CAST_HOST)
    mapped = "::ffff:" if family is V4 else ""
    assert lines == [f"ip: {mapped}{family.peer} > {mapped}{family.ours} protocol 17"]


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_trimmed_and_a_short_frame_dropped(family: Family) -> None:
    bench = Bench()
    bench.receive(bytes(family.packet(b"ab")) + bytes(24))
    assert bench.got[0][1] == b"ab"
    bench.receive(bytes(family.packet(b"ab"))[:-1])
    assert bench.drops() == {"rx_dropped_truncated": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_protocol_is_reported_with_the_field_that_names_it(family: Family) -> None:
    bench = Bench()
    raw = bytearray(bytes(family.packet()))
    at = 9 if family is V4 else 6
    raw[at] = 99
    bench.receive(resum(bytes(raw)) if family is V4 else bytes(raw))
    assert [(kind, value) for kind, value, _ in bench.errors] == [("protocol", at)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_raw_listener_sees_the_packet_first_and_settles_unknown_protocols(family: Family) -> None:
    bench = Bench()
    seen: list[tuple[bytes, int]] = []

    def raw(packet: PacketBuffer, header: object) -> bool:
        seen.append((packet.tobytes(), len(bench.got)))
        return True

    bench.engine.raw = raw
    bench.receive(family.packet())
    bench.engine.handlers.clear()
    bench.receive(family.packet())
    assert seen == [(b"payload", 0), (b"payload", 1)]
    assert (bench.errors, bench.count("rx_delivered")) == ([], 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("own", ["land", "spoofed"])
def test_own_sources_from_a_wire_are_dropped(family: Family, own: str) -> None:
    bench = Bench()
    other = "192.168.1.1" if family is V4 else "2001:db8:1::1"
    bench.receive(family.packet(src=family.ours if own == "land" else other))
    assert bench.drops() == {"rx_dropped_land" if own == "land" else "rx_dropped_source": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_group_is_received_from_the_first_join_to_the_last_leave(family: Family) -> None:
    bench = Bench()
    events: list[tuple[object, str, bool]] = []
    bench.engine.membership_changed = lambda interface, group, joined: events.append(
        (interface, format_address(group), joined)
    )
    group = parse_address(family.group)

    def arrives() -> bool:
        before = len(bench.got)
        bench.receive(family.packet(dst=family.group), cast=CAST_MULTICAST)
        return len(bench.got) > before

    assert not arrives()
    bench.engine.join(bench.eth1, group)
    assert not arrives(), "only where it was joined"
    bench.engine.join(bench.eth0, group)
    bench.engine.join(bench.eth0, group)
    assert arrives()
    assert bench.got[-1][2] == CAST_MULTICAST
    assert bench.engine.leave(bench.eth0, group)
    assert arrives(), "one still wants it"
    assert bench.engine.leave(bench.eth0, group)
    assert not bench.engine.leave(bench.eth0, group)
    assert not arrives()
    eth0, eth1 = bench.eth0, bench.eth1
    assert events == [(eth1, family.group, True), (eth0, family.group, True), (eth0, family.group, False)]
    bench.interfaces = [bench.lo, bench.eth0]
    bench.refresh()
    assert bench.engine.groups.of(eth1) == [], "gone with its interface"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_sent_to_an_own_group_is_looped_when_asked_for(family: Family) -> None:
    bench = Bench()
    woken: list[bool] = []
    bench.engine.wake = lambda: woken.append(True)
    assert bench.send(family.group, loop=True) == 0
    assert bench.engine.poll_at() is None, "not a member"
    bench.engine.join(bench.eth0, parse_address(family.group))
    assert bench.send(family.group) == 0
    assert bench.engine.poll_at() is None, "not asked for"
    assert bench.send(family.group, bytes(3000), loop=True) == 0
    assert (bench.got, woken) == ([], [True]), "not from within the call"
    bench.wait(0)
    header, data, cast = bench.got[0]
    assert (header.interface, data, cast) == (bench.eth0, bytes(3000), CAST_MULTICAST)
    assert format_address(header.src) == (family.ours if family is V4 else "2001:db8::1")
    assert bench.engine.poll_at() is None


def test_an_own_broadcast_is_looped_as_well() -> None:
    bench = Bench()
    bench.send("10.0.0.255", loop=True)
    bench.send("10.0.0.9", loop=True)
    bench.wait(0)
    assert [cast for _, _, cast in bench.got] == [CAST_BROADCAST]


@pytest.mark.parametrize("family", FAMILIES)
def test_e10_the_header_is_what_was_asked_for(family: Family) -> None:
    bench = Bench()
    assert bench.send(family.peer, b"hello", tos=0x28, ttl=9) == 0
    raw, next_hop, cast = bench.eth0.sent[0]
    assert (next_hop, cast, content(raw)[:3]) == (family.peer, CAST_HOST, (family.ours, family.peer, b"hello"))
    packet = IP(raw) if family is V4 else IPv6(raw)
    hops, kind = (packet.ttl, packet.tos) if family is V4 else (packet.hlim, packet.tc)
    assert (hops, kind, packet.version) == (9, 0x28, 4 if family is V4 else 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_e11_routes_by_prefix_and_metric_and_gateways(family: Family) -> None:
    bench = Bench()
    bench.send(family.far)
    assert (bench.eth0.sent[-1][1], content(bench.eth0.sent[-1][0])[0]) == (family.gateway, family.ours)
    network = to_prefix(family.far, 16)
    routes = bench.engine.routes
    routes.add(Route(Prefix(network.network, network.length), None, bench.eth1, 5))
    bench.refresh()
    bench.send(family.far)
    assert bench.eth1.sent[-1][1] == family.far, "the longer prefix"
    routes.add(Route(Prefix(network.network, network.length), parse_address(family.gateway), bench.eth0, 4))
    bench.refresh()
    bench.send(family.far)
    assert bench.eth0.sent[-1][1] == family.gateway, "the lower metric"
    routes.add(Route(Prefix(parse_address(family.far), 128), None, bench.eth0, 0, REJECT))
    bench.refresh()
    assert bench.send(family.far) == errno.ENETUNREACH


@pytest.mark.parametrize("family", FAMILIES)
def test_from_no_address_only_to_all(family: Family) -> None:
    bench = Bench()
    nobody = V4_ANY if family is V4 else V6_ANY
    assert bench.send(family.peer, src=nobody) == errno.EADDRNOTAVAIL
    assert bench.send(family.group, src=nobody) == 0
    assert content(bench.eth0.sent[0][0])[0] == format_address(nobody)
    assert bench.send(family.group, src=V6_ANY if family is V4 else V4_ANY) == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tentative_address_is_nobodys(family: Family) -> None:
    bench = Bench()
    bench.eth0.tentative = {prefix.address for prefix in bench.eth0.addresses}
    bench.refresh()
    bench.receive(family.packet())
    assert bench.drops() == {"rx_dropped_forwarding_off": 1}
    assert bench.send(family.peer) == errno.ENETUNREACH
    assert bench.send(family.group) == 0, "but it may ask, from nobody"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_router_alert_is_where_scapy_finds_it(family: Family) -> None:
    bench = Bench()
    assert bench.send(family.group, b"report", router_alert=True) == 0
    raw = bench.eth0.sent[0][0]
    if family is V4:
        packet = IP(raw)
        assert isinstance(packet.options[0], IPOption_Router_Alert)
        assert (packet.proto, raw[packet.ihl * 4 :]) == (17, b"report")
        assert raw == resum(raw)
    else:
        options = IPv6(raw)[IPv6ExtHdrHopByHop]
        assert (options.options[0].otype, options.options[0].value, options.nh) == (5, 0, 17)
        assert raw[48:] == b"report"
    other = Bench()
    other.eth0.addresses.clear()
    other.eth0.addresses.append(to_prefix(family.peer, 24))
    other.refresh()
    other.engine.join(other.eth0, parse_address(family.group))
    other.receive(raw, cast=CAST_MULTICAST)
    assert other.got[0][1] == b"report", "our own reader takes it"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_program_may_bring_its_header_along(family: Family) -> None:
    bench = Bench()
    empty = "0.0.0.0" if family is V4 else "::"
    raw = bytearray(bytes(family.packet(src=empty, dst=family.peer)))
    if family is V4:
        raw[2:6] = bytes(4)
        raw[10:12] = b"\x12\x34"
    else:
        raw[4:6] = bytes(2)
    destination = parse_address(family.peer)
    assert bench.engine.output_with_header(PacketBuffer.from_bytes(raw), destination) == 0
    sent = bench.eth0.sent[0][0]
    assert content(sent)[:3] == (family.ours, family.peer, b"payload")
    if family is V4:
        assert sent == resum(sent)
        assert IP(sent).id, "an identification of its own"
    send = bench.engine.output_with_header
    assert send(PacketBuffer.from_bytes(bytes(1501)), destination) == errno.EMSGSIZE
    assert send(PacketBuffer.from_bytes(bytes(19)), destination) == errno.EINVAL
    assert send(PacketBuffer.from_bytes(b"\x02" + bytes(59)), destination) == errno.EINVAL


@given(st.sampled_from(FAMILIES), st.integers(0, 59), st.integers(1, 255), st.booleans())
def test_a_changed_byte_never_raises_and_is_accounted_for(family: Family, at: int, flip: int, sum_up: bool) -> None:
    bench = Bench()
    bench.engine.forwarding = True
    raw = bytearray(bytes(family.packet(bytes(40))))
    raw[at] ^= flip
    bench.receive(
        resum(bytes(raw)) if family is V4 and sum_up else bytes(raw), ethertype=0x0800 if family is V4 else 0x86DD
    )
    assert bench.balance() == 0
