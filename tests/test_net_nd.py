"""Neighbour discovery over a whole stack: asking, answering, duplicates, redirects, and what is not believed (H56)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    in6_chksum,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from guest.net.address import MAC_ZERO, format_address, parse_address
from guest.net.config import SECOND
from guest.net.nd_wire import read_options
from tests.net_world import OUR_MAC, PEER_MAC, Clock, Host, fragments, join
from tests.net_world6 import (
    ALL_NODES,
    OUR_IP6,
    OUR_LINK,
    PEER_IP6,
    PEER_LINK,
    ROUTER,
    ROUTER_MAC,
    advertise,
    answer,
    ask,
    group_mac,
    host6,
    meet6,
    solicited,
    to_group,
    to_us6,
)

PEER = bytes.fromhex(PEER_MAC.replace(":", ""))


@pytest.fixture
def host() -> Host:
    """A host with an IPv6 address."""
    return host6()


def cache(host: Host) -> dict[str, bytes | None]:
    """What the neighbour cache knows of IPv6."""
    assert host.eth.neighbours is not None
    return {format_address(address): mac for address, mac, _ in host.eth.neighbours.entries()}


def test_a_solicitation_for_us_is_answered_and_its_sender_learned(host: Host) -> None:
    host.receive(ask())
    (frame,) = host.parsed()
    message = frame[ICMPv6ND_NA]
    assert (frame.dst, frame[IPv6].src, frame[IPv6].dst, frame[IPv6].hlim) == (PEER_MAC, OUR_IP6, PEER_IP6, 255)
    assert (message.R, message.S, message.O, message.tgt) == (0, 1, 1, OUR_IP6)
    assert message[ICMPv6NDOptDstLLAddr].lladdr == OUR_MAC
    assert in6_chksum(58, frame[IPv6], bytes(frame[IPv6].payload)) == 0
    assert cache(host) == {PEER_IP6: PEER}


def test_a_router_says_that_it_is_one(host: Host) -> None:
    host.stack.forwarding = True
    host.take()
    host.receive(ask())
    assert host.parsed()[0][ICMPv6ND_NA].R == 1


def test_a_packet_to_an_unknown_neighbour_asks_in_its_group_and_goes_with_the_answer(host: Host) -> None:
    host.stack.icmp.open_echo().send(PEER_IP6, 1, b"hello")
    (frame,) = host.parsed()
    assert (frame.dst, frame[IPv6].dst, frame[IPv6].hlim) == (group_mac(solicited(PEER_IP6)), solicited(PEER_IP6), 255)
    assert frame[ICMPv6ND_NS].tgt == PEER_IP6
    assert frame[ICMPv6NDOptSrcLLAddr].lladdr == OUR_MAC
    host.receive(answer(PEER_IP6))
    (ping,) = host.parsed()
    assert (ping.dst, ping[ICMPv6EchoRequest].data) == (PEER_MAC, b"hello")


def test_neighbours_are_asked_three_times_and_used_for_five_minutes(host: Host) -> None:
    port = host.stack.icmp.open_echo()
    port.send(PEER_IP6, 1, b"")
    host.wait(10 * SECOND)
    assert [frame[ICMPv6ND_NS].tgt for frame in host.parsed()] == [PEER_IP6] * 3
    meet6(host)
    host.wait(300 * SECOND - 1)
    port.send(PEER_IP6, 2, b"")
    assert ICMPv6EchoRequest in host.parsed()[0]
    host.wait(1)
    port.send(PEER_IP6, 3, b"")
    assert ICMPv6ND_NS in host.parsed()[0]


@pytest.mark.parametrize(
    ("flags", "believed"),
    [({"S": 1, "O": 1}, True), ({"S": 0, "O": 1}, True), ({"S": 1, "O": 0}, False), ({"S": 0, "O": 0}, False)],
)
def test_an_advertisement_replaces_a_known_address_only_with_override(
    host: Host, flags: dict[str, int], believed: bool
) -> None:
    meet6(host)
    host.receive(answer(PEER_IP6, "52:54:00:00:00:55", **flags))
    assert cache(host)[PEER_IP6] == (b"\x52\x54\0\0\0\x55" if believed else PEER)
    assert host.count("nd", "rx_ignored_override") == (0 if believed else 1)


def test_an_advertisement_that_nobody_asked_for_does_not_make_an_entry_younger(host: Host) -> None:
    meet6(host)
    host.wait(299 * SECOND)
    host.receive(answer(PEER_IP6, S=0))
    host.wait(SECOND)
    assert cache(host) == {}
    meet6(host)
    host.wait(299 * SECOND)
    host.receive(answer(PEER_IP6, S=1))
    host.wait(SECOND)
    assert cache(host) == {PEER_IP6: PEER}, "an answer does"


@pytest.mark.parametrize("mac", ["33:33:00:00:00:01", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"])
def test_h56_a_link_address_of_no_host_is_not_learned(host: Host, mac: str) -> None:
    frame = to_group(ICMPv6ND_NS(tgt=OUR_IP6) / ICMPv6NDOptSrcLLAddr(lladdr=mac), solicited(OUR_IP6), PEER_IP6)
    host.receive(frame)
    assert cache(host) == {PEER_IP6: None}, "it is asked for, to be answered"


def test_somebody_elses_check_of_our_address_is_answered_to_all(host: Host) -> None:
    host.receive(to_group(ICMPv6ND_NS(tgt=OUR_IP6), solicited(OUR_IP6), "::"))
    (frame,) = host.parsed()
    assert (frame[IPv6].dst, frame[ICMPv6ND_NA].S, frame[ICMPv6ND_NA].tgt) == (ALL_NODES, 0, OUR_IP6)
    assert host.count("nd", "rx_probes") == 1


def test_a_claim_to_our_address_is_a_conflict_and_is_never_believed(host: Host) -> None:
    events: list[tuple[str, object]] = []
    host.stack.subscribe(lambda event, interface, detail: events.append((event, detail)))
    host.receive(to_group(ICMPv6ND_NA(tgt=OUR_IP6, O=1) / ICMPv6NDOptDstLLAddr(lladdr=PEER_MAC), ALL_NODES, PEER_LINK))
    assert events == [("conflict", (parse_address(OUR_IP6), PEER))]
    assert host.count("nd", "rx_conflicts") == 1
    assert cache(host) == {}


@pytest.mark.parametrize("made_of", ["advertisement", "advertisement, no link address", "solicitation"])
def test_h56_a_claim_that_comes_from_our_very_address_is_a_conflict_too(host: Host, made_of: str) -> None:
    events: list[tuple[str, object]] = []
    host.stack.subscribe(lambda event, interface, detail: events.append((event, detail)))
    claim, mac = {
        "advertisement": (answer(OUR_IP6, dst=ALL_NODES, S=0), PEER),
        "advertisement, no link address": (to_group(ICMPv6ND_NA(tgt=OUR_IP6), ALL_NODES, OUR_IP6), MAC_ZERO),
        "solicitation": (ask(OUR_LINK, src=OUR_IP6), PEER),
    }[made_of]
    host.receive(claim)
    assert events == [("conflict", (parse_address(OUR_IP6), mac))]
    assert host.count("nd", "rx_conflicts") == 1
    assert (host.count("ip", "rx_dropped_source"), cache(host), host.take()) == (1, {}, []), "and nothing else happens"


def test_what_else_comes_from_our_address_is_no_conflict(host: Host) -> None:
    events: list[str] = []
    host.stack.subscribe(lambda event, interface, detail: events.append(event))
    meet6(host)
    broken = bytearray(bytes(answer(OUR_IP6, dst=ALL_NODES, S=0)))
    broken[-1] ^= 1
    host.receive(
        answer(OUR_IP6, OUR_MAC, dst=ALL_NODES, S=0),  # our own one, come back
        ask(PEER_IP6, src=OUR_IP6, mac=OUR_MAC),
        to_group(ICMPv6ND_NS(tgt=PEER_IP6), solicited(OUR_IP6), OUR_IP6),  # does not say whose it is
        hlim(answer(OUR_IP6, dst=ALL_NODES, S=0), 254),  # from behind a router
        broken,
        to_group(ICMPv6ND_NA(tgt=PEER_IP6, O=1) / ICMPv6NDOptDstLLAddr(lladdr=ROUTER_MAC), ALL_NODES, OUR_IP6),
        to_group(ICMPv6EchoRequest(), ALL_NODES, OUR_IP6),
    )
    assert (events, cache(host), host.take()) == ([], {PEER_IP6: PEER}, [])
    assert host.count("ip", "rx_dropped_source") == 6


def test_h56_floods_fill_nothing_or_not_more_than_256(host: Host) -> None:
    for number in range(1000):
        host.receive(answer(f"2001:db8::{number + 16:x}", dst=ALL_NODES, S=0))
    assert cache(host) == {}
    assert host.count("nd", "rx_ignored_unsolicited") == 1000
    assert host.take() == []
    for number in range(1000):
        host.receive(ask(src=f"2001:db8::{number + 16:x}"))
    assert len(cache(host)) == 256


# -- what is not believed --------------------------------------------------------------------------------------------


def with_length(frame: Packet, length: int) -> bytes:
    """The frame, with the length of its first ND option replaced and the checksum right."""
    raw = bytearray(bytes(frame))
    sizes = {133: 8, 134: 16, 135: 24, 136: 24, 137: 40}
    raw[54 + sizes[raw[54]] + 1] = length
    raw[56:58] = b"\0\0"
    raw[56:58] = in6_chksum(58, Ether(bytes(raw))[IPv6], bytes(raw[54:])).to_bytes(2, "big")
    return bytes(raw)


def redirect(dst: str = "2001:db8:8::8", target: str = "fe80::99", src: str = ROUTER) -> Packet:
    """A redirect, with the target's MAC address."""
    link = ICMPv6NDOptDstLLAddr(lladdr="52:54:00:00:00:99")
    return to_us6(ICMPv6ND_Redirect(tgt=target, dst=dst) / link, src, mac=ROUTER_MAC, hlim=255)


def hlim(frame: Packet, value: int) -> Packet:
    """The frame, after `255 - value` routers."""
    frame[IPv6].hlim = value
    return frame


def na(src: str = PEER_IP6, dst: str = ALL_NODES, **fields: object) -> Packet:
    return to_group(ICMPv6ND_NA(**fields) / ICMPv6NDOptDstLLAddr(lladdr=PEER_MAC), dst, src)


H56 = {
    "hop limit": (hlim(ask(), 254), "rx_dropped_hop_limit"),
    "advertisement's hop limit": (hlim(advertise(), 254), "rx_dropped_hop_limit"),
    "option of length 0": (with_length(ask(), 0), "rx_dropped_options"),
    "option past the end": (with_length(ask(), 2), "rx_dropped_options"),
    "half an option": (
        to_group(ICMPv6ND_NS(tgt=OUR_IP6) / Raw(b"\1"), solicited(OUR_IP6), PEER_IP6), "rx_dropped_options",
    ),
    "code": (to_group(ICMPv6ND_NS(tgt=OUR_IP6, code=1), solicited(OUR_IP6), PEER_IP6), "rx_dropped_code"),
    "short": (to_group(Raw(bytes(ICMPv6ND_NS(tgt=OUR_IP6))[:20]), solicited(OUR_IP6), PEER_IP6), "rx_dropped_length"),
    "group as target": (to_group(ICMPv6ND_NS(tgt="ff02::1"), solicited(OUR_IP6), PEER_IP6), "rx_dropped_target"),
    "check with link address": (ask(src="::"), "rx_dropped_source"),
    "check outside the group": (to_us6(ICMPv6ND_NS(tgt=OUR_IP6), "::", ALL_NODES), "rx_dropped_source"),
    "solicited to all": (na(tgt=PEER_IP6, S=1), "rx_dropped_solicited"),
    "router with a global address": (advertise(router=PEER_IP6), "rx_dropped_source"),
    "router's option of length 0": (with_length(advertise(), 0), "rx_dropped_options"),
    "redirect from a global address": (redirect(src=PEER_IP6), "rx_dropped_source"),
    "redirect of a group": (redirect(dst="ff02::5"), "rx_dropped_target"),
    "redirect to a global address": (redirect(target="2001:db8::5"), "rx_dropped_target"),
    "redirect from a non-router": (redirect(src="fe80::77"), "rx_dropped_not_first_hop"),
}  # fmt: skip


@pytest.mark.parametrize("name", H56)
def test_h56_messages_that_are_wrong_change_nothing(host: Host, name: str) -> None:
    frame, counter = H56[name]
    frame = Ether(bytes(frame))
    if name == "short":
        frame[IPv6].nh = 58
    if name == "check outside the group":
        frame.dst, frame[IPv6].hlim = group_mac(ALL_NODES), 255
    if name in ("short", "check outside the group"):
        raw = bytearray(bytes(frame))
        raw[56:58] = b"\0\0"
        raw[56:58] = in6_chksum(58, Ether(bytes(raw))[IPv6], bytes(raw[54:])).to_bytes(2, "big")
        frame = raw
    routes = list(host.stack.routes)
    host.receive(bytes(frame))
    assert host.count("nd", counter) == 1
    assert host.take() == []
    assert (cache(host), list(host.stack.routes)) == ({}, routes)


@given(st.binary(max_size=64))
def test_h56_options_are_walked_to_the_end_or_refused(raw: bytes) -> None:
    options = read_options(raw, 0)
    if options is not None:
        assert b"".join(bytes((kind, len(rest) // 8 + 1)) + rest for kind, rest in options) == raw


@given(st.sets(st.integers(1, 85)))
def test_a_solicitation_in_pieces_is_the_same_solicitation(cuts: set[int]) -> None:
    host = host6()
    host.eth.input([fragments(bytes(ask()), cuts)])
    assert len(host.take()) == 1


# -- duplicate address detection -------------------------------------------------------------------------------------


def test_an_address_is_tentative_for_exactly_a_second_then_it_is_ours(host: Host) -> None:
    host.receive(ask("2001:db8::5"))
    host.eth.add_address("2001:db8::5", 64)
    check = [frame for frame in host.parsed() if ICMPv6ND_NS in frame]
    assert [(f[IPv6].src, f[IPv6].dst, f[IPv6].hlim, f[ICMPv6ND_NS].tgt) for f in check] == [
        ("::", solicited("2001:db8::5"), 255, "2001:db8::5")
    ]
    assert host.eth.describe(parse_address("2001:db8::5")) == "2001:db8::5/64 tentative"
    host.wait(SECOND - 1)
    host.take()
    host.receive(to_us6(ICMPv6EchoRequest(), dst="2001:db8::5"), ask("2001:db8::5"))
    assert host.take() == [], "it is not used yet, nor defended"
    host.wait(1)
    assert host.eth.describe(parse_address("2001:db8::5")) == "2001:db8::5/64"
    host.receive(ask("2001:db8::5"))
    assert host.parsed()[0][ICMPv6ND_NA].tgt == "2001:db8::5"


CLAIMS = {
    "advertisement": (answer("2001:db8::5", dst=ALL_NODES, S=0), PEER),
    "advertisement, no link address": (to_group(ICMPv6ND_NA(tgt="2001:db8::5"), ALL_NODES, "2001:db8::5"), MAC_ZERO),
    "check of its own": (to_group(ICMPv6ND_NS(tgt="2001:db8::5"), solicited("2001:db8::5"), "::"), MAC_ZERO),
}


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("after", [0, SECOND - 1])
def test_d4_a_duplicate_is_refused_with_an_event_and_the_interface_goes_on(host: Host, name: str, after: int) -> None:
    events: list[tuple[str, object]] = []
    host.eth.add_address("2001:db8::5", 64)
    host.stack.subscribe(lambda event, interface, detail: events.append((event, detail)))
    host.wait(after)
    claim, mac = CLAIMS[name]
    host.receive(claim)
    assert events == [
        ("address", "removed 2001:db8::5/64"),
        ("conflict", (parse_address("2001:db8::5"), mac)),
    ]
    host.wait(10 * SECOND)
    host.take()
    assert not host.eth.owns(parse_address("2001:db8::5"))
    host.receive(ask())
    assert len(host.take()) == 1, "the other address is there"


def test_our_own_check_that_comes_back_is_no_duplicate(host: Host) -> None:
    host.eth.add_address("2001:db8::5", 64)
    for frame in host.take():
        host.receive(frame)  # a hub or a wireless network that repeats
    assert host.count("nd", "rx_ignored_own") == 1
    host.wait(SECOND)
    assert host.eth.tentative == set()


def test_d4_two_stacks_cannot_have_the_same_address() -> None:
    clock = Clock()
    ours, peer = host6(clock=clock), host6(PEER_IP6, PEER_MAC, clock=clock, seed=2)
    ours.eth.add_address(PEER_IP6, 64)
    join(ours, peer)
    assert not ours.eth.owns(parse_address(PEER_IP6))
    ours.eth.add_address("2001:db8::5", 64)
    peer.eth.add_address("2001:db8::5", 64)
    join(ours, peer)
    assert [host.eth.owns(parse_address("2001:db8::5")) for host in (ours, peer)] == [False, False], "both at once"


def test_the_number_of_checks_is_a_setting() -> None:
    host = host6(dad_transmits=3)
    host.eth.add_address("2001:db8::5", 64)
    host.wait(3 * SECOND - 1)
    assert len([frame for frame in host.parsed() if ICMPv6ND_NS in frame]) == 3
    assert host.eth.tentative
    host.wait(1)
    assert not host.eth.tentative
    unchecked = host6(dad_transmits=0)
    unchecked.eth.add_address("2001:db8::5", 64)
    assert not unchecked.eth.tentative


def test_addresses_are_checked_again_when_the_interface_comes_back(host: Host) -> None:
    host.eth.set_down()
    assert host.eth.tentative == {parse_address(OUR_IP6)}
    host.eth.set_up()
    host.wait(host.stack.config.nd_delay + SECOND)
    assert host.eth.tentative == set()
    assert OUR_IP6 in [frame[ICMPv6ND_NS].tgt for frame in host.parsed() if ICMPv6ND_NS in frame]


def test_an_address_that_is_removed_is_checked_no_further(host: Host) -> None:
    host.eth.add_address("2001:db8::5", 64)
    host.eth.remove_address("2001:db8::5")
    host.wait(5 * SECOND)
    assert [str(prefix) for prefix in host.eth.addresses] == [f"{OUR_IP6}/64"]


# -- redirects -------------------------------------------------------------------------------------------------------


def test_a_redirect_from_our_first_hop_is_followed_for_a_while(host: Host) -> None:
    meet6(host, ROUTER, ROUTER_MAC)
    host.stack.add_route("::", 0, ROUTER, host.eth)
    port = host.stack.icmp.open_echo()
    host.receive(redirect())
    assert host.count("nd", "rx_redirects") == 1
    for seq, (address, mac) in enumerate((("2001:db8:8::8", "52:54:00:00:00:99"), ("2001:db8:8::9", ROUTER_MAC))):
        port.send(address, seq, b"")
        assert [frame.dst for frame in host.parsed()] == [mac]
    host.wait(host.stack.config.nd_redirect_ttl)
    meet6(host, ROUTER, ROUTER_MAC)
    port.send("2001:db8:8::8", 3, b"")
    assert [frame.dst for frame in host.parsed()] == [ROUTER_MAC]


def test_h55_h56_redirects_are_bounded_and_only_the_current_first_hop_may_send_them(host: Host) -> None:
    host.stack.add_route("::", 0, ROUTER, host.eth)
    routes = len(host.stack.routes)
    for number in range(100):
        host.receive(redirect(f"2001:db8:8::{number + 1:x}"))
    assert len(host.stack.routes) == routes + host.stack.config.nd_redirects
    before = list(host.stack.routes)
    host.receive(redirect("2001:db8:8::64", "fe80::1"))  # is reached by fe80::99 now
    host.receive(redirect(OUR_IP6), redirect(PEER_IP6))
    assert list(host.stack.routes) == before
    host.eth.add_address("fe80::1", 64, check=False)
    host.receive(redirect("2001:db8:8::ff", "fe80::1"))  # is one of our own
    assert len(host.stack.routes) == len(before) + 1, "the link's own"
    assert host.count("nd", "rx_dropped_not_first_hop") == 4


def test_redirects_go_with_the_router_that_sent_them() -> None:
    host = host6(ipv6=True)
    host.receive(advertise(), redirect(), redirect("2001:db8:8::9"))
    assert len([route for route in host.stack.routes if route.prefix.length == 128]) == 3
    host.receive(advertise(routerlifetime=0))
    hosts = [route.prefix.address for route in host.stack.routes if route.prefix.length == 128]
    assert hosts == [parse_address("::1")]


def test_solicitations_of_routers_are_for_routers(host: Host) -> None:
    host.receive(to_us6(ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=PEER_MAC), hlim=255))
    assert host.take() == []
    assert host.count("nd", "rx_ignored_router_solicitation") == 1


def test_without_ipv6_in_the_configuration_routers_are_not_listened_to(host: Host) -> None:
    host.receive(advertise())
    assert ICMPv6ND_RA in Ether(bytes(advertise()))
    assert [prefix for prefix in host.eth.addresses if prefix.address != parse_address(OUR_IP6)] == []
    assert host.count("nd", "ignored_advertisements") == 1
