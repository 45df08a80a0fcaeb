"""IPv6: its header, its extension headers, the addresses that a wire must not carry; source address selection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Jumbo,
    PadN,
    RouterAlert,
)
from scapy.packet import Packet, Raw

from guest.net.address import format_address, parse_address
from guest.net.source import label, scope, source_address
from tests.ip_bench import UDP_NUMBER, V6, Bench, FakeInterface
from tests.net_world import fragments


def chain(*headers: Packet, payload: bytes = b"payload!", dst: str = V6.ours, protocol: int = UDP_NUMBER) -> bytes:
    """A packet with these extension headers; the last says what follows."""
    headers[-1].nh = protocol
    packet: Packet = IPv6(src=V6.peer, dst=dst)
    for header in headers:
        packet = packet / header
    return bytes(packet / Raw(payload))


def raw_chain(*parts: tuple[int, bytes], payload: bytes = b"payload!") -> bytes:
    """The same from (number, bytes behind the next-header field)."""
    numbers = [number for number, _ in parts] + [UDP_NUMBER]
    body = b"".join(bytes((following,)) + rest for following, (_, rest) in zip(numbers[1:], parts, strict=True))
    return bytes(IPv6(src=V6.peer, dst=V6.ours, nh=numbers[0]) / Raw(body + payload))


def options(*inner: object) -> IPv6ExtHdrHopByHop:
    return IPv6ExtHdrHopByHop(options=list(inner))


def routing(kind: int, left: int) -> IPv6ExtHdrRouting:
    return IPv6ExtHdrRouting(type=kind, segleft=left, addresses=["2001:db8::9"])


def patched(raw: bytes, at: int, value: int) -> bytes:
    changed = bytearray(raw)
    changed[at] = value
    return bytes(changed)


PAD6 = b"\x00\x01\x04" + bytes(4)  # length 0, PadN of 4

GOOD = {
    "hop-by-hop": (chain(options(RouterAlert(value=0))), 48, 40),
    "destination options": (chain(IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(12))])), 56, 40),
    "hop-by-hop and destination": (chain(options(), IPv6ExtHdrDestOpt()), 56, 48),
    "an unknown option that may be skipped": (chain(options(HBHOptUnknown(otype=0x1E, optdata=b"ab"))), 48, 40),
    "padding of single bytes": (raw_chain((60, bytes(7))), 48, 40),
    "routing with no segments left": (chain(routing(0, 0)), 64, 40),
    "routing of an unknown type with none left": (chain(routing(99, 0)), 64, 40),
    "eight headers": (raw_chain(*[(60, PAD6)] * 8), 104, 96),
    "as long as headers may be": (chain(IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(84))])), 128, 40),
}


@pytest.mark.parametrize("name", GOOD)
def test_extension_headers_are_walked(name: str) -> None:
    raw, size, named_at = GOOD[name]
    bench = Bench()
    bench.receive(raw)
    assert bench.drops() == {}
    header, data, _ = bench.got[0]
    assert (data, header.size, header.protocol, header.named_at) == (b"payload!", size, UDP_NUMBER, named_at)


@pytest.mark.parametrize("name", GOOD)
@given(cuts=st.sets(st.integers(1, 134), max_size=6))
def test_extension_headers_in_pieces_are_the_same(name: str, cuts: set[int]) -> None:
    bench = Bench()
    bench.receive(fragments(GOOD[name][0], cuts))
    assert bench.got[0][1] == b"payload!"


def test_flow_label_and_traffic_class_are_read() -> None:
    bench = Bench()
    bench.receive(IPv6(src=V6.peer, dst=V6.ours, tc=0xB8, fl=0xABCDE, nh=UDP_NUMBER, hlim=3) / Raw(b"x"))
    header = bench.got[0][0]
    assert (header.tos, header.flow, header.ttl) == (0xB8, 0xABCDE, 3)
    bench.send(V6.peer, flow=0x12345, tos=0x60)
    sent = IPv6(bench.eth0.sent[0][0])
    assert (sent.fl, sent.tc, sent.version) == (0x12345, 0x60, 6)


PLAIN = bytes(V6.packet(b"payload!"))

H54 = {
    "version 5": (patched(PLAIN, 0, 0x50), "rx_dropped_version", None),
    "39 bytes": (PLAIN[:39], "rx_dropped_short", None),
    "payload length past the frame": (patched(PLAIN, 5, 9), "rx_dropped_truncated", None),
    "payload length 65535": (patched(patched(PLAIN, 4, 255), 5, 255), "rx_dropped_truncated", None),
    "header past the end": (raw_chain((60, b"\x03" + bytes(6))), "rx_dropped_extension_short", None),
    "header of 2048 bytes": (raw_chain((60, b"\xff" + bytes(6))), "rx_dropped_extension_limit", None),
    "next header behind the end": (raw_chain((60, PAD6), payload=b"")[:44], "rx_dropped_truncated", None),
    "a header cut short": (chain(options(), payload=b"", protocol=60), "rx_dropped_extension_short", None),
    "hop-by-hop in second place": (raw_chain((60, PAD6), (0, PAD6)), "rx_dropped_hop_by_hop", ("protocol", 40)),
    "hop-by-hop twice": (raw_chain((0, PAD6), (0, PAD6)), "rx_dropped_hop_by_hop", ("protocol", 40)),
    "nine headers": (raw_chain(*[(60, PAD6)] * 9), "rx_dropped_extension_limit", None),
    "100 headers": (raw_chain(*[(60, PAD6)] * 100), "rx_dropped_extension_limit", None),
    "a fragment header behind the limit": (
        chain(IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(84))]), IPv6ExtHdrFragment(m=1)),
        "rx_dropped_extension_limit",
        None,
    ),
    "routing type 0": (chain(routing(0, 1)), "rx_dropped_routing_header", ("parameter", 42)),
    "routing type 0 behind another": (chain(options(), routing(0, 9)), "rx_dropped_routing_header", ("parameter", 50)),
    "routing of an unknown type": (chain(routing(77, 1)), "rx_dropped_routing_header", ("parameter", 42)),
    "option past its header": (raw_chain((60, b"\x00\x01\x05" + bytes(4))), "rx_dropped_options", ("parameter", 43)),
    "option without its length": (raw_chain((60, b"\x00\x01\x03\0\0\0\x1e")), "rx_dropped_options", ("parameter", 47)),
    "unknown option 01": (chain(options(HBHOptUnknown(otype=0x5E))), "rx_dropped_unknown_option", None),
    "unknown option 10": (chain(options(HBHOptUnknown(otype=0x9E))), "rx_dropped_unknown_option", ("option", 42)),
    "unknown option 11": (chain(options(HBHOptUnknown(otype=0xDE))), "rx_dropped_unknown_option", ("option", 42)),
    "jumbo": (patched(chain(options(Jumbo(jumboplen=70000))), 5, 0), "rx_dropped_jumbo", ("parameter", 42)),
    "jumbo with a payload length": (chain(options(Jumbo(jumboplen=16))), "rx_dropped_jumbo", ("parameter", 42)),
    "no payload but headers": (patched(chain(options()), 5, 0), "rx_dropped_truncated", None),
    "authentication header": (raw_chain((51, b"\x01" + bytes(10))), "rx_dropped_protocol", ("protocol", 6)),
    "AH behind options": (chain(options(), protocol=51), "rx_dropped_protocol", ("protocol", 40)),
    "no next header": (chain(options(), protocol=59), "rx_dropped_no_next_header", None),
    "source of a group": (V6.packet(src="ff02::5"), "rx_dropped_source", None),
    "source loopback": (V6.packet(src="::1"), "rx_dropped_source", None),
    "source unspecified to one host": (V6.packet(src="::"), "rx_dropped_source", None),
    "source IPv4-mapped": (V6.packet(src="::ffff:10.0.0.2"), "rx_dropped_source", None),
    "destination IPv4-mapped": (V6.packet(dst="::ffff:10.0.0.1"), "rx_dropped_destination", None),
    "destination loopback": (V6.packet(dst="::1"), "rx_dropped_destination", None),
    "destination unspecified": (V6.packet(dst="::"), "rx_dropped_destination", None),
    "destination of scope 0": (V6.packet(dst="ff00::1"), "rx_dropped_destination", None),
    "destination of this interface only": (V6.packet(dst="ff01::1"), "rx_dropped_destination", None),
    "our link-local address of another link": (V6.packet(dst="fe80::2", src="fe80::9"), "rx_dropped_not_for_us", None),
}


@pytest.mark.parametrize("name", H54)
def test_h54_malformed_ipv6_is_dropped_and_told_where_that_is_due(name: str) -> None:
    raw, reason, error = H54[name]
    bench = Bench()
    bench.receive(raw, ethertype=0x86DD)
    assert bench.got == []
    assert bench.drops() == {reason: 1}
    assert [(kind, value) for kind, value, _ in bench.errors] == ([] if error is None else [error])
    assert all(quoted[:40] == bytes(raw)[:40] for _, _, quoted in bench.errors), "the header can be quoted"


@pytest.mark.parametrize(("kind", "told"), [(0x9E, True), (0xDE, False), (0x5E, False)])
def test_an_unknown_option_to_a_group_is_told_only_where_it_says_so(kind: int, told: bool) -> None:
    bench = Bench()
    bench.receive(chain(options(HBHOptUnknown(otype=kind)), dst="ff02::1"), cast=2)
    assert bench.drops() == {"rx_dropped_unknown_option": 1}
    assert bool(bench.errors) == told


def test_a_plain_packet_costs_no_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    codec = bench.engine.codecs[0x86DD]
    monkeypatch.setattr(codec, "extend", None, raising=False)
    bench.receive(PLAIN)
    assert bench.got[0][1] == b"payload!"


def test_groups_that_everybody_is_in_and_a_sender_without_address() -> None:
    bench = Bench()
    bench.receive(V6.packet(src="::", dst="ff02::1"), cast=2)
    bench.receive(V6.packet(dst="ff02::2"), cast=2)
    assert [cast for _, _, cast in bench.got] == [2]
    assert bench.drops() == {"rx_dropped_not_for_us": 1}


@given(st.binary(max_size=160), st.sampled_from([0, 43, 44, 60, 59, 17, 51]), st.sets(st.integers(1, 150), max_size=4))
def test_any_chain_is_delivered_or_counted(rest: bytes, first: int, cuts: set[int]) -> None:
    bench = Bench()
    raw = bytes(IPv6(src=V6.peer, dst=V6.ours, nh=first) / Raw(rest))
    bench.receive(fragments(raw, cuts))
    bench.receive(raw, cast=3)
    assert bench.balance() == 0


HEADER_TAIL = st.tuples(st.sampled_from([0, 43, 44, 60]), st.integers(0, 2), st.binary(min_size=22, max_size=22))


@given(st.lists(HEADER_TAIL, max_size=12), st.binary(max_size=20))
def test_any_well_shaped_chain_is_delivered_or_counted(parts: list[tuple[int, int, bytes]], payload: bytes) -> None:
    shaped = [(kind, bytes((length,)) + rest[: 8 * length + 6]) for kind, length, rest in parts]
    bench = Bench()
    bench.receive(raw_chain(*shaped, payload=payload))
    assert bench.balance() == 0
    assert len(bench.errors) <= 1


# -- source address selection ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "towards", "expected"),
    [
        ("fe80::1/64 2001:db8::1/64", "2001:db8:5::1", "2001:db8::1"),  # rule 2
        ("2001:db8::1/64 fe80::1/64", "fe80::9", "fe80::1"),
        ("2001:db8::1/64 fe80::1/64", "ff02::2", "fe80::1"),
        ("fe80::1/64 2001:db8::1/64", "ff05::2", "2001:db8::1"),
        ("2001:db8::1/64 2001:db8::2/64", "2001:db8::2", "2001:db8::2"),  # rule 1
        ("2001:db8:1::1/64 2001:db8:2::1/64", "2001:db8:2::9", "2001:db8:2::1"),  # rule 8
        ("fd00::1/64 2001:db8::1/64", "2001:4860::1", "2001:db8::1"),  # rule 6
        ("2001:db8::1/64 fd00::1/64", "fd99::1", "fd00::1"),
        ("2001:0:1::1/64 2a00::1/64", "2001:4860::1", "2a00::1"),
        ("2002:c633:6401::1/48 2001:db8::1/64", "2002:c633:6402::1", "2002:c633:6401::1"),
        ("2001:db8:1::1/64 2001:db8:1::2/64", "2001:4860::1", "2001:db8:1::1"),  # first come
        ("fe80::1/64", "2001:4860::1", "fe80::1"),
    ],
)
def test_rfc_6724_chooses(own: str, towards: str, expected: str) -> None:
    interface = FakeInterface(*own.split(), "10.0.0.1/24")
    found = source_address(interface, parse_address(towards))
    assert found is not None
    assert format_address(found) == expected


def test_deprecated_addresses_are_the_last_resort_and_tentative_ones_none() -> None:
    interface = FakeInterface("2001:db8::1/64", "2001:db8::2/64")
    first, second = (prefix.address for prefix in interface.addresses)
    towards = parse_address("2001:db8::9")
    interface.deprecated = {first}
    assert source_address(interface, towards) == second
    interface.tentative = {second}
    assert source_address(interface, towards) == first
    interface.tentative = {first, second}
    assert source_address(interface, towards) is None


def test_scopes_and_labels_are_those_of_the_rfc() -> None:
    addresses = {"fe80::1": (2, 1), "::1": (2, 0), "fec0::1": (5, 11), "fd00::1": (14, 13), "2001:db8::1": (14, 1),
                 "2001::1": (14, 5), "ff02::1": (2, 1), "ff0e::1": (14, 1), "::1.2.3.4": (14, 3)}  # fmt: skip
    assert {text: (scope(parse_address(text)), label(parse_address(text))) for text in addresses} == addresses


def test_the_hop_limit_is_the_advertised_one() -> None:
    bench = Bench()
    bench.eth0.hop_limit = 33
    bench.send(V6.peer)
    bench.send(V6.group)
    bench.send("10.0.0.2")
    assert [IPv6(raw).hlim for raw, _, _ in bench.eth0.sent[:2]] == [33, 1]
    assert bench.eth0.sent[2][0][8] == 64, "IPv4 keeps its own"


def test_a_link_with_less_room_for_ipv6() -> None:
    bench = Bench()
    bench.eth0.mtu6 = 1280
    bench.send(V6.peer, bytes(1300))
    bench.send("10.0.0.2", bytes(1300))
    assert [len(raw) for raw, _, _ in bench.eth0.sent] == [1280, 40 + 8 + 1300 - 1232, 1320]
