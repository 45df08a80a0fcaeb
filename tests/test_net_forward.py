"""Forwarding, path MTUs and the routing table's text, for both families."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import HBHOptUnknown, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.packet import Raw

from guest.net.address import AddressError, Prefix, format_address, parse_address
from guest.net.checksum import checksum
from guest.net.config import SECOND, NetConfig
from guest.net.pbuf import CAST_BROADCAST, Lease
from guest.net.route import Route, RouteTable, parse_table
from tests.ip_bench import FAMILIES, UDP_NUMBER, V4, V6, Bench, FakeInterface, Family, content
from tests.net_world import fragments

both = pytest.mark.parametrize("family", FAMILIES)


def router() -> Bench:
    bench = Bench()
    bench.engine.forwarding = True
    return bench


def beyond(family: Family) -> str:
    """A host on eth1's network."""
    return "192.168.1.9" if family is V4 else "2001:db8:1::9"


# -- forwarding ------------------------------------------------------------------------------------------------------


@both
def test_a_packet_for_somebody_else_goes_on_with_one_hop_less(family: Family) -> None:
    bench = router()
    sent = bytes(family.packet(dst=beyond(family), hops=17))
    bench.receive(sent)
    raw, next_hop, _ = bench.eth1.sent[0]
    packet = IP(raw) if family is V4 else IPv6(raw)
    assert (next_hop, content(raw)[:3]) == (beyond(family), (family.peer, beyond(family), b"payload"))
    assert (packet.ttl if family is V4 else packet.hlim) == 16
    if family is V4:
        assert checksum((raw[:20],)) == 0
        assert raw[:8] == sent[:8], "identification and flags are the sender's"
    bench.receive(family.packet(src=family.far, dst=beyond(family)))
    assert len(bench.eth1.sent) == 2
    bench.receive(family.packet(src=beyond(family), dst=family.far), interface=bench.eth1)
    assert bench.eth0.sent[0][1] == family.gateway
    assert (bench.count("forwarded"), bench.balance()) == (3, 0)


@given(st.integers(2, 255), st.integers(0, 255), st.integers(0, 0xFFFF))
def test_e10_the_checksum_follows_the_ttl(ttl: int, tos: int, ident: int) -> None:
    bench = router()
    bench.receive(IP(src=V4.peer, dst="192.168.1.9", proto=17, ttl=ttl, tos=tos, id=ident) / Raw(b"x"))
    assert checksum((bench.eth1.sent[0][0][:20],)) == 0


@both
def test_e10_the_last_hop_is_told_to_the_sender(family: Family) -> None:
    bench = router()
    for hops in (0, 1):
        bench.receive(family.packet(dst=beyond(family), hops=hops))
    bench.receive(family.packet(hops=1))
    assert bench.drops() == {"rx_dropped_ttl": 2}
    assert [(kind, quoted) for kind, _, quoted in bench.errors] == [
        ("ttl", bytes(family.packet(dst=beyond(family), hops=hops))) for hops in (0, 1)
    ]
    assert len(bench.got) == 1, "for us one hop is enough"


@both
def test_what_leads_nowhere_is_told_to_the_sender(family: Family) -> None:
    bench = router()
    for route in bench.engine.routes:
        if route.gateway is not None:
            bench.engine.routes.remove(route)
    bench.refresh()
    bench.receive(family.packet(dst=family.far))
    assert [(kind, value) for kind, value, _ in bench.errors] == [("no_route", 0)]
    assert bench.drops() == {"rx_dropped_no_route": 1}


@both
def test_the_packet_that_came_in_is_not_written_to_and_stays_lent(family: Family) -> None:
    returned: list[bool] = []
    raw = bytes(family.packet(bytes(600), dst=beyond(family)))
    packet = fragments(raw, {300})
    packet.lease = Lease(lambda: returned.append(True), lambda: False)
    packet.cast = 0
    views = packet.views()
    bench = router()
    bench.engine.input(bench.eth0, 0x0800 if family is V4 else 0x86DD, [packet])
    del packet
    assert b"".join(views) == raw
    assert (len(bench.eth1.packets), returned) == (1, [])
    bench.eth1.packets.clear()
    assert returned == [True]


@both
def test_too_big_for_the_next_link(family: Family) -> None:
    bench = router()
    bench.eth1.mtu = bench.eth1.mtu6 = 1280
    data = bytes(range(250)) * 5
    if family is V4:
        bench.receive(IP(src=V4.peer, dst="192.168.1.9", proto=17, flags="DF") / Raw(data + bytes(50)))
    else:
        bench.receive(V6.packet(data, dst=beyond(V6)))
    assert [(kind, value) for kind, value, _ in bench.errors] == [("too_big", 1280)]
    assert bench.drops() == {"rx_dropped_too_big": 1}
    assert bench.eth1.sent == []


def test_a_router_fragments_ipv4_that_allows_it_even_fragments() -> None:
    bench = router()
    bench.eth1.mtu = 600
    data = bytes(range(256)) * 8
    options = b"\x07\x07\x04\0\0\0\0\x94\x04\0\0\0"  # record route, not copied; router alert, copied
    first = IP(src=V4.peer, dst="192.168.1.9", proto=17, id=4, flags="MF", ttl=9) / Raw(data[:1024])
    packet = bytearray(bytes(first)[:20] + options + bytes(first)[20:])
    packet[0] = 0x48
    packet[2:4] = len(packet).to_bytes(2, "big")
    packet[10:12] = bytes(2)
    packet[10:12] = checksum((packet[:32],)).to_bytes(2, "big")
    bench.receive(bytes(packet))
    bench.receive(IP(src=V4.peer, dst="192.168.1.9", proto=17, id=4, frag=128) / Raw(data[1024:]))
    pieces = [IP(raw) for raw, _, _ in bench.eth1.sent]
    assert [piece.ihl for piece in pieces] == [8, 6, 5, 5], "only the copied option is in every piece"
    assert [(piece.ttl, piece.id) for piece in pieces][:2] == [(8, 4)] * 2
    assert all(checksum((raw[: (raw[0] & 15) * 4],)) == 0 and len(raw) <= 600 for raw, _, _ in bench.eth1.sent)
    receiver = Bench()
    for raw, _, _ in reversed(bench.eth1.sent):
        receiver.receive(readdressed(raw))
    assert receiver.got[0][1] == data
    assert (bench.count("forwarded"), bench.balance()) == (2, 0)


def readdressed(raw: bytes) -> bytes:
    """The packet as if it were for our first address."""
    packet = bytearray(raw)
    size = (packet[0] & 15) * 4
    packet[16:20] = bytes((10, 0, 0, 1))
    packet[10:12] = bytes(2)
    packet[10:12] = checksum((packet[:size],)).to_bytes(2, "big")
    return bytes(packet)


@pytest.mark.parametrize(
    ("src", "dst", "cast", "reason"),
    [
        ("10.0.0.2", "192.168.1.9", CAST_BROADCAST, "rx_dropped_not_for_us"),
        ("10.0.0.2", "239.1.1.1", 0, "rx_dropped_not_for_us"),
        ("10.0.0.2", "127.0.0.1", 0, "rx_dropped_destination"),
        ("127.0.0.1", "192.168.1.9", 0, "rx_dropped_source"),
        ("0.0.0.0", "192.168.1.9", 0, "rx_dropped_link_local"),
        ("169.254.1.1", "192.168.1.9", 0, "rx_dropped_link_local"),
        ("10.0.0.2", "169.254.1.1", 0, "rx_dropped_link_local"),
        ("fe80::9", "2001:db8:1::9", 0, "rx_dropped_link_local"),
        ("2001:db8::9", "fe80::9", 0, "rx_dropped_link_local"),
        ("2001:db8::9", "ff05::9", 2, "rx_dropped_not_for_us"),
        ("::", "2001:db8:1::9", 0, "rx_dropped_link_local"),
    ],
)
def test_what_is_never_forwarded(src: str, dst: str, cast: int, reason: str) -> None:
    bench = router()
    bench.receive((V6 if ":" in dst else V4).packet(src=src, dst=dst), cast=cast)
    assert bench.drops() == {reason: 1}
    assert (bench.errors, bench.eth0.sent, bench.eth1.sent) == ([], [], [])


def test_e18_a_router_drops_source_routes_and_broken_options_and_leaves_ipv6_headers_alone() -> None:
    bench = router()
    for options in (b"\x83\x07\x04\x01\x02\x03\x04\0", b"\x44\x09\x05\0\0\0\0\0"):
        raw = bytearray(bytes(V4.packet(dst="192.168.1.9")))
        raw[20:20] = options
        raw[0] = 0x47
        raw[2:4] = len(raw).to_bytes(2, "big")
        raw[10:12] = bytes(2)
        raw[10:12] = checksum((raw[:28],)).to_bytes(2, "big")
        bench.receive(bytes(raw))
    assert bench.drops() == {"rx_dropped_source_route": 1, "rx_dropped_options": 1}
    assert [(kind, value) for kind, value, _ in bench.errors] == [("parameter", 21)]
    strange = IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0xDE)], nh=UDP_NUMBER)
    packet = bytes(IPv6(src=V6.peer, dst=beyond(V6)) / IPv6ExtHdrHopByHop() / strange / Raw(b"x"))
    bench.receive(packet)
    assert bench.eth1.sent[0][0] == packet[:7] + bytes((packet[7] - 1,)) + packet[8:]


# -- path MTU --------------------------------------------------------------------------------------------------------


@both
def test_a_narrow_path_is_used_as_such_and_forgotten_after_ten_minutes(family: Family) -> None:
    bench = Bench()
    far = parse_address(family.far)
    assert bench.engine.path_mtu(far) == 1500
    assert bench.engine.packet_too_big(far, 1300) is True
    assert bench.engine.packet_too_big(far, 1400) is False, "never raised"
    assert bench.engine.path_mtu(far) == 1300
    assert bench.send(family.far, bytes(1300)) == 0
    assert len(bench.eth0.sent[0][0]) in (1300, 1296)
    assert len(bench.eth0.sent) == 2
    assert bench.send(family.peer, bytes(1300)) == 0
    assert len(bench.eth0.sent) == 3, "other destinations are not touched"
    bench.clock.now += 599 * SECOND
    assert bench.send(family.far, bytes(1300)) == 0
    assert len(bench.eth0.sent) == 5
    bench.clock.now += SECOND
    assert bench.send(family.far, bytes(1300)) == 0
    assert len(bench.eth0.sent) == 6
    assert bench.engine.path_mtu(far) == 1500


@pytest.mark.parametrize(
    ("dst", "told", "expected"),
    [
        ("8.8.8.8", 1499, 1499), ("8.8.8.8", 552, 552), ("8.8.8.8", 551, 552), ("8.8.8.8", 68, 552),
        ("8.8.8.8", 0, 552), ("8.8.8.8", 1500, 1500), ("8.8.8.8", 65535, 1500),
        ("2001:4860::1", 1280, 1280), ("2001:4860::1", 1279, 1500), ("2001:4860::1", 68, 1500),
        ("2001:4860::1", 0, 1500), ("2001:4860::1", 1400, 1400),
    ],
)  # fmt: skip
def test_h55_path_mtus_have_floors(dst: str, told: int, expected: int) -> None:
    bench = Bench()
    assert bench.engine.packet_too_big(parse_address(dst), told) == (expected < 1500)
    assert bench.engine.path_mtu(parse_address(dst)) == expected


def test_below_the_floor_packets_may_be_fragmented_on_their_way() -> None:
    bench = Bench()
    bench.send(V4.far, bytes(100))
    bench.engine.packet_too_big(parse_address(V4.far), 300)
    bench.send(V4.far, bytes(100))
    assert ["DF" in str(IP(raw).flags) for raw, _, _ in bench.eth0.sent] == [True, False]
    bench.eth0.mtu = 400
    bench.refresh()
    assert bench.engine.path_mtu(parse_address(V4.far)) == 400, "a link of less keeps that"


@both
def test_nobody_can_narrow_groups_the_loopback_or_what_leads_nowhere(family: Family) -> None:
    bench = Bench()
    for text in (family.group, family.ours, "0.0.0.0", "255.255.255.255", "10.0.0.255"):
        assert bench.engine.packet_too_big(parse_address(text), 1300) is False
    assert len(bench.engine.path_mtus) == 0


def test_narrow_paths_are_remembered_in_bounds() -> None:
    bench = Bench(config=NetConfig(pmtu_entries=10))
    base = parse_address("172.16.0.0")
    for number in range(100):
        bench.engine.packet_too_big(base + number, 1000)
    assert len(bench.engine.path_mtus) == 10
    assert bench.engine.path_mtu(base) == 1500, "the oldest went"
    assert bench.engine.path_mtu(base + 99) == 1000


# -- the routing table -----------------------------------------------------------------------------------------------

TABLE = """
| Destination | Netmask | Gateway | Interface | Metric |
| :--- | :--- | :--- | :--- | :--- |
| 0.0.0.0 | 0.0.0.0 | 192.168.1.1 | eth0 | 10 |
| 192.168.1.0 | 255.255.255.0 | *On-Link* | eth0 | 1 |
| 10.0.0.0 | 255.0.0.0 | 10.0.0.1 | tun0 | 5 |
"""


@pytest.mark.parametrize(
    ("destination", "interface", "next_hop"),
    [("8.8.8.8", "eth0", "192.168.1.1"), ("192.168.1.7", "eth0", "192.168.1.7"), ("10.2.3.4", "tun0", "10.0.0.1")],
)
def test_c17_the_three_rows_load_as_they_are_and_lead_where_they_should(
    destination: str, interface: str, next_hop: str
) -> None:
    bench = Bench()
    eth0, tun0 = FakeInterface("192.168.1.2/24"), FakeInterface("10.9.9.9/32", bare=True)
    for route in bench.engine.routes:
        bench.engine.routes.remove(route)
    for route in parse_table(TABLE, {"eth0": eth0, "tun0": tun0}):
        bench.engine.routes.add(route)
    bench.interfaces = [bench.lo, eth0, tun0]
    bench.refresh()
    assert bench.send(destination) == 0
    out = eth0 if interface == "eth0" else tun0
    assert [via for _, via, _ in out.sent] == [next_hop]


def test_tables_of_ipv6_and_mixed_ones() -> None:
    text = ":: 0 fe80::1 eth0 1024\n2001:db8:: 32 :: eth0 0\n\n10.0.0.0 8 - eth0 3\n"
    rows = [
        (str(row.prefix), row.gateway and format_address(row.gateway), row.metric)
        for row in parse_table(text, {"eth0": "x"})
    ]
    assert rows == [("::/0", "fe80::1", 1024), ("2001:db8::/32", None, 0), ("10.0.0.0/8", None, 3)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("10.0.0.0 8 - eth0", "line 2: 4 columns"),
        ("10.0.0.0 8 - eth9 1", "line 2: there is no interface 'eth9'"),
        ("10.0.0.0 8 - eth0 low", "line 2: 'low' is no metric"),
        ("10.0.0.0 33 - eth0 1", "prefix length 33"),
        ("10.0.0.0 255.0.255.0 - eth0 1", "not a netmask"),
        ("10.0.0.256 8 - eth0 1", "not an IP address"),
        ("10.0.0.0 8 router eth0 1", "not an IP address"),
    ],
)
def test_a_wrong_table_says_what_is_wrong(line: str, message: str) -> None:
    with pytest.raises(AddressError, match=message):
        parse_table(f"\n{line}", {"eth0": "x"})


ADDRESS = st.one_of(st.integers(0, 2**8).map(lambda low: 0xFFFF_0A00_0000 | low), st.integers(0, 2**9))


@given(
    st.lists(st.tuples(ADDRESS, st.integers(112, 128), st.integers(0, 3)), max_size=30), st.lists(ADDRESS, max_size=9)
)
def test_d3_the_table_finds_what_a_plain_search_finds(rows: list[tuple[int, int, int]], looked_up: list[int]) -> None:
    table: RouteTable[int] = RouteTable()
    kept: list[Route[int]] = []
    for number, (address, length, metric) in enumerate(rows):
        route = Route(Prefix(address >> 128 - length << 128 - length, length), None, number, metric)
        table.add(route)
        kept.append(route)
        if number % 4 == 3:
            gone = kept.pop(len(kept) // 2)
            assert table.remove(gone) is True
            assert table.remove(gone) is False
    for address in looked_up:
        expected = [row for row in kept if row.prefix.contains(address)]
        expected.sort(key=lambda row: (-row.prefix.length, row.metric, row.interface))
        assert table.lookup(address) == expected
    assert len(table) == len(kept) == len(list(table))
