"""Autoconfiguration: link-local addresses, router solicitations, and what scapy's advertisements do (D4, H56).

`nd_delay=0` takes the random delays out, so times are exact; one test leaves them in.
"""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptMTU,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.packet import Packet

from guest.net.address import format_address, parse_address
from guest.net.config import SECOND, NetConfig
from guest.net.nd_wire import eui64
from guest.net.pbuf import PacketBuffer
from tests.net_world import OUR_MAC, PEER_MAC, Clock, Host, join
from tests.net_world6 import (
    ALL_NODES,
    OUR_LINK,
    PEER_LINK,
    ROUTER,
    ROUTER_MAC,
    advertise,
    answer,
    host6,
    ping6,
    prefix,
    solicited,
    to_group,
)

AUTO = "2001:db8:1:0:5054:ff:fe00:1"
HOUR = 3600 * SECOND


def auto(**settings: object) -> Host:
    """A host that listens to routers and has its link-local address; without random delays."""
    return host6(None, ipv6=True, **({"nd_delay": 0} | settings))


def own(host: Host) -> list[str]:
    """The addresses of the interface with what is said of them."""
    return [host.eth.describe(prefix.address) for prefix in host.eth.addresses]


def routes(host: Host) -> list[str]:
    """The routes that routers made: prefix, gateway, metric."""
    return [
        f"{route.prefix} {format_address(route.gateway) if route.gateway else 'on link'} {route.metric}"
        for route in host.stack.routes
        if route.metric
    ]


def test_the_interface_identifier_is_the_mac_with_its_universal_bit_flipped() -> None:
    # RFC 4291 appendix A
    made = eui64(parse_address("2001:db8::"), b"\x34\x56\x78\x9a\xbc\xde")
    assert format_address(made) == "2001:db8::3656:78ff:fe9a:bcde"


def test_d4_the_link_local_address_is_made_checked_and_used_to_ask_for_routers() -> None:
    host = Host(None, config=NetConfig(ipv6=True, nd_delay=0))
    start = host.clock.now
    host.eth.set_up()
    assert own(host) == [f"{OUR_LINK}/64 tentative"]
    host.wait(SECOND - 1)
    first = host.parsed()
    assert [frame[ICMPv6ND_NS].tgt for frame in first if ICMPv6ND_NS in frame] == [OUR_LINK]
    assert not any(ICMPv6ND_RS in frame for frame in first)
    host.wait(1)
    assert own(host) == [f"{OUR_LINK}/64"]
    asked: list[int] = []
    for _ in range(30):
        asked += [host.clock.now - start for frame in host.parsed() if ICMPv6ND_RS in frame and check_rs(frame)]
        host.wait(SECOND)
    assert asked == [SECOND, 5 * SECOND, 9 * SECOND], "three, four seconds apart"


def check_rs(frame: Packet) -> bool:
    """A solicitation of routers as it must be."""
    assert (frame[IPv6].src, frame[IPv6].dst, frame[IPv6].hlim) == (OUR_LINK, "ff02::2", 255)
    assert frame[ICMPv6NDOptSrcLLAddr].lladdr == OUR_MAC
    return True


def test_d4_an_advertised_prefix_is_an_address_one_second_later() -> None:
    host = auto()
    host.receive(advertise(prefix()))
    assert own(host) == [f"{OUR_LINK}/64", f"{AUTO}/64 tentative dynamic"]
    assert [frame[ICMPv6ND_NS].tgt for frame in host.parsed() if ICMPv6ND_NS in frame] == [AUTO]
    host.wait(SECOND - 1)
    assert "tentative" in own(host)[1]
    host.wait(1)
    assert own(host) == [f"{OUR_LINK}/64", f"{AUTO}/64 dynamic"]
    host.receive(ping6(src="2001:db8:9::9", dst=AUTO))
    (reply,) = host.parsed()
    assert (reply.dst, reply[IPv6].src) == (ROUTER_MAC, AUTO), "answered by way of the router, whose MAC it said"


@pytest.mark.parametrize("seed", range(5))
def test_d4_with_its_random_delays_the_address_is_usable_within_two_seconds(seed: int) -> None:
    host = host6(None, ipv6=True, seed=seed)
    host.receive(advertise(prefix()))
    host.wait(2 * SECOND)
    assert own(host)[1] == f"{AUTO}/64 dynamic"


def test_without_checks_routers_are_asked_at_once() -> None:
    host = Host(None, config=NetConfig(ipv6=True, nd_delay=0, dad_transmits=0))
    host.eth.set_up()
    host.wait(0)
    assert any(ICMPv6ND_RS in frame and check_rs(frame) for frame in host.parsed())


def test_routers_are_asked_no_more_once_one_was_heard() -> None:
    host = auto()
    host.receive(advertise(routerlifetime=0))
    host.wait(4 * SECOND)
    assert any(ICMPv6ND_RS in frame for frame in host.parsed()), "that was no default router"
    host.receive(advertise())
    host.wait(100 * SECOND)
    assert not any(ICMPv6ND_RS in frame for frame in host.parsed())


def test_d4_a_duplicate_link_local_address_ends_autoconfiguration_and_nothing_else() -> None:
    host = Host(config=NetConfig(ipv6=True, nd_delay=0))
    events: list[object] = []
    host.stack.subscribe(lambda event, interface, detail: events.append((event, detail)))
    host.receive(answer(OUR_LINK, dst=ALL_NODES, S=0))
    assert ("conflict", (parse_address(OUR_LINK), b"\x52\x54\0\0\0\2")) in events
    host.wait(60 * SECOND)
    assert own(host) == ["10.0.0.1/24"]
    assert not any(ICMPv6ND_RS in frame for frame in host.parsed())
    assert host.eth.is_up


def test_d4_a_duplicate_prefix_address_is_refused_and_not_tried_again() -> None:
    host = auto()
    host.receive(advertise(prefix()))
    host.receive(to_group(ICMPv6ND_NS(tgt=AUTO), solicited(AUTO), "::"))
    host.receive(advertise(prefix()), advertise(prefix("2001:db8:2::")))
    host.wait(2 * SECOND)
    assert own(host) == [f"{OUR_LINK}/64", "2001:db8:2:0:5054:ff:fe00:1/64 dynamic"]
    assert host.count("nd", "duplicates") == 1


def test_two_stacks_with_link_local_addresses_ping_each_other() -> None:
    clock = Clock()
    ours = host6(None, clock=clock, ipv6=True)
    peer = host6(None, PEER_MAC, clock=clock, seed=2, ipv6=True)
    port = ours.stack.icmp.open_echo()
    port.send(PEER_LINK, 1, b"hello")
    join(ours, peer)
    reply = port.receive()
    assert reply is not None
    assert (reply.src, reply.payload) == (PEER_LINK, b"hello")


# -- routes and routers ----------------------------------------------------------------------------------------------


def test_routers_are_default_routes_by_their_preference_until_they_end() -> None:
    host = auto()
    host.receive(advertise(prf=0, routerlifetime=100), advertise(prf=1, routerlifetime=50, router="fe80::a"))
    assert routes(host) == ["::/0 fe80::a 512", f"::/0 {ROUTER} 1024"]
    host.wait(50 * SECOND - 1)
    assert len(routes(host)) == 2
    host.wait(1)
    assert routes(host) == [f"::/0 {ROUTER} 1024"]
    host.receive(advertise(prf=3, routerlifetime=100))
    assert routes(host) == [f"::/0 {ROUTER} 2048"]
    host.receive(advertise(routerlifetime=0))
    assert routes(host) == []


def test_a_router_that_says_it_is_none_any_more_is_dropped() -> None:
    host = auto()
    host.receive(advertise())
    host.receive(answer(ROUTER, ROUTER_MAC, OUR_LINK, R=1))
    assert len(routes(host)) == 1
    assert host.eth.neighbours is not None
    host.eth.neighbours.flush()
    host.receive(answer(ROUTER, ROUTER_MAC, OUR_LINK, R=0, S=0))
    assert len(routes(host)) == 1, "RFC 4861 §7.2.5: who is not in the cache is not heard"
    host.receive(advertise())
    host.receive(answer(ROUTER, ROUTER_MAC, OUR_LINK, R=0))
    assert routes(host) == []


def test_a_prefix_is_on_link_or_for_addresses_or_both() -> None:
    host = auto()
    host.receive(
        advertise(
            prefix("2001:db8:1::", A=0),
            prefix("2001:db8:2::", L=0),
            prefix("2001:db8:3::", prefixlen=48),
            routerlifetime=0,
        )
    )
    host.wait(2 * SECOND)
    assert routes(host) == ["2001:db8:1::/64 on link 256", "2001:db8:3::/48 on link 256"]
    assert own(host)[1:] == ["2001:db8:2:0:5054:ff:fe00:1/64 dynamic"], "only a /64 makes an address"
    host.receive(advertise(prefix("2001:db8:1::", A=0, valid=0, preferred=0), routerlifetime=0))
    assert routes(host) == ["2001:db8:3::/48 on link 256"]
    host.take()
    host.stack.add_route("::", 0, "fe80::f", host.eth)
    host.stack.icmp.open_echo().send("2001:db8:2::7", 1, b"")
    asked = [frame[ICMPv6ND_NS].tgt for frame in host.parsed()]
    assert asked == ["fe80::f"], "an address alone puts nobody on the link"


@pytest.mark.parametrize(
    "option",
    [
        prefix("fe80::"), prefix("ff05::"), prefix("::", prefixlen=0), prefix(valid=10, preferred=20, L=0),
        prefix(prefixlen=129), prefix(valid=0, preferred=0), prefix("::", L=0),
    ],
)  # fmt: skip
def test_h56_prefixes_that_make_no_sense_are_ignored(option: Packet) -> None:
    host = auto()
    host.receive(advertise(option, routerlifetime=0))
    host.wait(2 * SECOND)
    assert (own(host), routes(host)) == ([f"{OUR_LINK}/64"], [])


def test_h56_a_thousand_prefixes_routers_and_servers_stay_within_their_caps() -> None:
    host = auto()
    for number in range(1000):
        servers = ICMPv6NDOptRDNSS(dns=[f"2001:db8::{number + 1:x}"], lifetime=9999)
        host.receive(advertise(prefix(f"2001:db8:{number + 1:x}::"), servers, router=f"fe80::{number + 1:x}"))
    config = host.stack.config
    host.wait(2 * SECOND)
    assert len(own(host)) == 1 + config.nd_prefixes
    assert len(routes(host)) == config.nd_prefixes + config.nd_routers
    assert len(host.stack.dns_servers) == config.nd_servers
    assert host.count("nd", "ignored_routers") == 1000 - config.nd_routers
    assert host.eth.neighbours is not None
    assert len(host.eth.neighbours) <= 256
    host.wait(86400 * SECOND)
    assert own(host) == [f"{OUR_LINK}/64"]
    assert (routes(host), host.stack.dns_servers) == ([], [])
    assert host.stack.poll_at() is None, "an idle stack wants no turn"


# -- lifetimes -------------------------------------------------------------------------------------------------------


def test_an_address_is_deprecated_then_gone_at_its_lifetimes() -> None:
    host = auto()
    host.receive(advertise(prefix(valid=100, preferred=40), prefix("2001:db8:2::")))
    host.wait(40 * SECOND - 1)
    assert own(host)[1] == f"{AUTO}/64 dynamic"
    assert host.stack.ip.hop(parse_address("2001:db8:1::9")).src == parse_address(AUTO)  # type: ignore[union-attr]
    host.wait(1)
    assert own(host)[1] == f"{AUTO}/64 deprecated dynamic"
    source = host.stack.ip.hop(parse_address("2001:db8:1::9")).src  # type: ignore[union-attr]
    assert format_address(source) == "2001:db8:2:0:5054:ff:fe00:1", "a preferred one is taken"
    host.wait(60 * SECOND - 1)
    assert len(own(host)) == 3
    host.wait(1)
    assert len(own(host)) == 2


# valid lifetime known, minutes gone by, valid lifetime said → what is left in seconds (RFC 4862 §5.5.3 (e))
TWO_HOURS = {
    "longer": (3600, 0, 5000, 5000),
    "more than two hours": (86400, 0, 7201, 7201),
    "less than what is left, which is long": (86400, 0, 60, 7200),
    "less than what is left, which is short": (3600, 10, 60, 3000),
    "nothing": (86400, 0, 0, 7200),
    "nothing, soon after over": (100, 0, 0, 100),
    "less than for ever": (0xFFFFFFFF, 0, 60, 7200),
}


@pytest.mark.parametrize("name", TWO_HOURS)
def test_d4_an_advertisement_cannot_cut_an_address_to_under_two_hours(name: str) -> None:
    known, minutes, said, left = TWO_HOURS[name]
    host = auto()
    host.receive(advertise(prefix(valid=known, preferred=0, L=0)))
    host.wait(minutes * 60 * SECOND)
    host.receive(advertise(prefix(valid=said, preferred=0, L=0)))
    host.wait(left * SECOND - 1)
    assert len(own(host)) == 2
    host.wait(1)
    assert len(own(host)) == 1


def test_lifetimes_for_ever_do_not_end() -> None:
    host = auto()
    host.receive(advertise(prefix(valid=0xFFFFFFFF, preferred=0xFFFFFFFF), routerlifetime=0))
    host.wait(1000 * 24 * HOUR)
    assert own(host)[1] == f"{AUTO}/64 dynamic"


# -- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mtu", "used"), [(1280, 1280), (1400, 1400), (1500, 1500), (1279, 1500), (1501, 1500), (9, 1500)]
)
def test_an_advertised_mtu_counts_within_bounds_and_for_ipv6_alone(mtu: int, used: int) -> None:
    host = auto()
    host.receive(advertise(prefix(), ICMPv6NDOptMTU(mtu=mtu)))
    host.wait(2 * SECOND)
    assert (host.eth.mtu, host.eth.mtu6) == (1500, used)
    host.stack.icmp.open_echo().send("2001:db8:9::9", 1, bytes(1500))
    frames = [frame for frame in host.parsed() if frame[IPv6].nh == 44]
    assert max(frame[IPv6].plen + 40 for frame in frames) in range(used - 7, used + 1)


def test_an_advertised_hop_limit_is_used_and_forgotten_with_the_link() -> None:
    host = auto()
    host.receive(advertise(prefix(), chlim=9))
    host.wait(2 * SECOND)
    host.take()
    port = host.stack.icmp.open_echo()
    port.send("2001:db8:9::9", 1, b"")
    assert [frame[IPv6].hlim for frame in host.parsed() if ICMPv6EchoRequest in frame] == [9]
    host.receive(advertise(chlim=0))
    assert host.eth.hop_limit == 9, "0 says nothing"
    host.eth.set_down()
    assert host.eth.hop_limit == 0


def test_name_servers_are_recorded_with_their_lifetime_and_events() -> None:
    host = auto()
    seen: list[object] = []
    host.stack.subscribe(lambda event, interface, detail: seen.append(detail) if event == "dns" else None)
    host.receive(advertise(ICMPv6NDOptRDNSS(dns=["2001:db8::53", "fe80::53"], lifetime=100)))
    assert host.stack.dns_servers == [parse_address("2001:db8::53"), parse_address("fe80::53")]
    host.receive(advertise(ICMPv6NDOptRDNSS(dns=["fe80::53"], lifetime=0)))
    host.wait(100 * SECOND - 1)
    assert host.stack.dns_servers == [parse_address("2001:db8::53")]
    host.wait(1)
    assert host.stack.dns_servers == []
    assert seen == ["added 2001:db8::53", "added fe80::53", "removed fe80::53", "removed 2001:db8::53"]


def test_all_that_routers_said_goes_with_the_interface() -> None:
    host = auto()
    host.receive(advertise(prefix(), ICMPv6NDOptMTU(mtu=1400), ICMPv6NDOptRDNSS(dns=["2001:db8::53"], lifetime=100)))
    host.wait(2 * SECOND)
    host.eth.set_down()
    assert (own(host), routes(host), host.stack.dns_servers, host.eth.mtu6) == ([], [], [], 1500)
    assert host.stack.poll_at() is None
    host.eth.set_up()
    host.wait(3 * SECOND)
    assert own(host) == [f"{OUR_LINK}/64"], "and a new start is made"


def test_routers_are_asked_anew_when_the_link_comes_back() -> None:
    host = auto()
    host.receive(advertise())
    host.eth.set_carrier(False)
    host.wait(SECOND)
    host.take()
    host.eth.set_carrier(True)
    host.wait(1)
    assert any(ICMPv6ND_RS in frame for frame in host.parsed())


def test_routers_are_not_asked_while_the_link_local_address_is_checked() -> None:
    host = Host(None, config=NetConfig(ipv6=True, nd_delay=0))
    host.eth.set_up()
    host.eth.set_carrier(False)
    host.eth.set_carrier(True)
    host.wait(SECOND - 1)
    assert not any(ICMPv6ND_RS in frame for frame in host.parsed())
    host.wait(1)
    assert any(ICMPv6ND_RS in frame and check_rs(frame) for frame in host.parsed())


def test_a_name_server_that_is_known_on_two_interfaces_stays_until_neither_knows_it() -> None:
    host = auto()
    second = host.stack.add_interface("eth1", b"\x52\x54\0\0\0\x11", 1500, lambda packets: None)
    second.set_up()
    host.wait(2 * SECOND)
    for interface, seconds in ((host.eth, 100), (second, 200)):
        frame = advertise(ICMPv6NDOptRDNSS(dns=["2001:db8::53"], lifetime=seconds))
        interface.input([PacketBuffer.from_bytes(bytes(frame))])
    assert host.stack.dns_servers == [parse_address("2001:db8::53")]
    host.wait(199 * SECOND)
    assert host.stack.dns_servers == [parse_address("2001:db8::53")]
    host.wait(SECOND)
    assert host.stack.dns_servers == []


def test_the_route_to_a_network_goes_with_the_address_set_by_hand_not_with_the_advertised_one() -> None:
    host = auto()
    host.receive(advertise(prefix(L=0)))
    host.eth.add_address("2001:db8:1::77", 64)
    host.wait(2 * SECOND)
    network = parse_address("2001:db8:1::")
    assert network in [route.prefix.address for route in host.stack.routes]
    host.eth.remove_address("2001:db8:1::77")
    assert network not in [route.prefix.address for route in host.stack.routes]


def test_a_router_does_not_listen_to_routers() -> None:
    host = auto()
    host.stack.forwarding = True
    host.receive(advertise(prefix()))
    host.wait(2 * SECOND)
    assert own(host) == [f"{OUR_LINK}/64"]
    assert host.count("nd", "rx_ignored_router") == 1


def test_the_same_seed_gives_the_same_start() -> None:
    def start(seed: int) -> list[tuple[int, bytes]]:
        host = Host(None, seed=seed, config=NetConfig(ipv6=True))
        host.eth.set_up()
        frames = []
        while (due := host.stack.poll_at()) is not None:
            host.clock.now = due
            host.stack.poll()
            frames += [(due, frame) for frame in host.take()]
        return frames

    assert start(1) == start(1)
    assert [due for due, _ in start(1)] != [due for due, _ in start(2)]


def test_an_address_set_by_hand_is_not_made_again() -> None:
    host = Host(None, config=NetConfig(ipv6=True, nd_delay=0))
    host.eth.add_address(OUR_LINK, 64)
    host.eth.add_address(AUTO, 64)
    host.eth.set_up()
    host.wait(SECOND - 1)
    assert not any(ICMPv6ND_RS in frame for frame in host.parsed()), "it is not asked from an address that is checked"
    host.wait(1)
    assert any(ICMPv6ND_RS in frame and check_rs(frame) for frame in host.parsed())
    host.receive(advertise(prefix(valid=100, preferred=50)))
    host.wait(200 * SECOND)
    assert own(host) == [f"{OUR_LINK}/64", f"{AUTO}/64"]
    assert not any(ICMPv6ND_NA in frame for frame in host.parsed())
