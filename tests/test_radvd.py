"""Router advertisements: what is said, when, to whom; scapy reads them, and hosts of our own configure themselves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from guest.net.address import AddressError, format_address
from guest.net.radvd import RadvConfig, RouterAdvertiser
from tests.net_world import SECOND, Host
from tests.net_world6 import ALL_NODES, to_group
from tests.server_world import Street

ROUTER_MAC = "52:54:00:00:00:fe"
ROUTER = "fe80::5054:ff:fe00:fe"
GUEST_MAC = "52:54:00:00:00:0a"
GUEST = "fe80::5054:ff:fe00:a"
ALL_ROUTERS = "ff02::2"


class Routed(Street):
    """A router that advertises fec0::/64, and guests that a test adds or plays."""

    def __init__(self, prefix: str | None = "fec0::/64", **settings: object) -> None:
        super().__init__()
        self.router = self.host(ROUTER_MAC, "fec0::2/64")
        self.advertiser = RouterAdvertiser(
            self.router.stack, self.router.eth, prefix, timers=self.timers, **settings  # type: ignore[arg-type]
        )
        self.advertiser.start()

    def told(self) -> Iterator[tuple[float, Packet]]:
        """The advertisements so far."""
        for at, frame in self.heard:
            packet = Ether(frame)
            if ICMPv6ND_RA in packet:
                yield at, packet

    def asks(self, src: str = GUEST, *, hlim: int = 255, mac: bool = True, **fields: int) -> None:
        """A host that the test plays looks for routers."""
        message: Packet = ICMPv6ND_RS(**fields)
        if mac:
            message /= ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC)
        self.router.receive(to_group(message, ALL_ROUTERS, src, GUEST_MAC, hlim))

    def count(self, name: str) -> int:
        return self.router.count("nd", name)


def test_what_an_advertisement_says() -> None:
    street = Routed(dns=["fec0::3"], lifetime=1800, mtu=1400)
    street.run(1)
    [(at, packet)] = street.told()
    assert at <= 0.5
    assert (packet[IPv6].src, packet[IPv6].dst, packet[IPv6].hlim) == (ROUTER, ALL_NODES, 255)
    said = packet[ICMPv6ND_RA]
    assert (said.routerlifetime, said.chlim, said.M, said.O, said.prf) == (1800, 64, 0, 0, 0)
    assert packet[ICMPv6NDOptSrcLLAddr].lladdr == ROUTER_MAC
    assert packet[ICMPv6NDOptMTU].mtu == 1400
    prefix = packet[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("fec0::", 64, 1, 1)
    assert (prefix.validlifetime, prefix.preferredlifetime) == (2_592_000, 604_800)
    assert (packet[ICMPv6NDOptRDNSS].dns, packet[ICMPv6NDOptRDNSS].lifetime) == (["fec0::3"], 1800)


def test_what_is_not_set_is_not_said() -> None:
    street = Routed(None)
    street.run(1)
    [(_, packet)] = street.told()
    assert not any(kind in packet for kind in (ICMPv6NDOptMTU, ICMPv6NDOptPrefixInfo, ICMPv6NDOptRDNSS))
    assert packet[ICMPv6ND_RA].routerlifetime == 1800, "three times the longest interval"


def test_three_at_the_start_within_16_seconds_of_each_other_then_between_the_intervals() -> None:
    street = Routed()
    street.run(6000)
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(street.told())]
    assert all(3 <= gap <= 16 for gap in gaps[:2]), gaps[:2]
    assert all(200 <= gap <= 600 for gap in gaps[2:]), gaps[2:]
    assert len(set(gaps[2:])) > 3, "the times are random"


def test_d14_a_solicitation_is_answered_to_its_host_within_500_ms() -> None:
    street = Routed()
    street.run(100)
    for round_ in range(20):
        street.asks()
        asked = street.at
        street.run(0.5)
        at, packet = list(street.told())[-1]
        assert asked <= at <= asked + 0.5, round_
        assert (packet[IPv6].dst, packet.dst) == (GUEST, GUEST_MAC)
    assert street.count("rx_router_solicitations") == 20


def test_a_host_without_an_address_is_answered_to_all_but_not_twice_in_three_seconds() -> None:
    street = Routed()
    street.run(100)
    for _ in range(50):
        street.asks("::", mac=False)
        street.run(0.2)
    times = [at for at, packet in street.told() if at > 100]
    assert times[0] <= 100.5
    assert all(later - earlier >= 3 for earlier, later in pairwise(times)), times
    assert len(times) >= 3


def test_a_flood_of_hosts_is_answered_to_all() -> None:
    street = Routed()
    street.run(100)
    for host in range(1000):
        street.asks(f"fe80::{host + 1:x}")
    street.run(4)
    said = [packet[IPv6].dst for at, packet in street.told() if at > 100]
    assert len(said) <= 66
    assert ALL_NODES in said


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"hlim": 254}, "rx_dropped_hop_limit"),
        ({"code": 1}, "rx_dropped_code"),
        ({"src": "::"}, "rx_dropped_source"),  # with a link-layer address, which it cannot have
    ],
)
def test_h56_what_no_host_on_this_link_can_have_sent_is_dropped(how: dict[str, object], reason: str) -> None:
    street = Routed()
    street.run(100)
    before = len(list(street.told()))
    street.asks(**how)  # type: ignore[arg-type]
    street.run(1)
    assert len(list(street.told())) == before
    assert street.count(reason) == 1


def test_without_an_advertiser_a_solicitation_is_ignored() -> None:
    street = Routed()
    street.advertiser.close()
    street.run(1)
    before = len(list(street.told()))
    street.router.stack.forwarding = True
    street.asks()
    street.run(10)
    assert len(list(street.told())) == before
    assert street.count("rx_ignored_router_solicitation") == 1


def address_of(host: Host) -> list[str]:
    return [str(prefix) for prefix in host.eth.addresses]


def test_a_host_configures_itself_and_forgets_the_router_that_says_goodbye() -> None:
    street = Routed(dns=["fec0::3"])
    street.run(10)
    guest = street.host(GUEST_MAC, ipv6=True)
    street.run(5)
    assert address_of(guest) == [f"{GUEST}/64", "fec0::5054:ff:fe00:a/64"]
    assert [format_address(server) for server in guest.stack.dns_servers] == ["fec0::3"]
    assert [format_address(route.gateway) for route in guest.stack.routes if route.gateway] == [ROUTER]
    street.run(7 * 24 * 3600)
    assert address_of(guest) == [f"{GUEST}/64", "fec0::5054:ff:fe00:a/64"], "lifetimes are renewed"
    street.advertiser.close()
    street.run(1)
    assert not [route for route in guest.stack.routes if route.gateway], "a lifetime of 0 (RFC 4861 §6.2.5)"
    assert guest.stack.dns_servers == []
    street.advertiser.start()
    street.run(1)
    assert [format_address(route.gateway) for route in guest.stack.routes if route.gateway] == [ROUTER]


def test_an_advertiser_says_that_it_is_a_router_when_it_is_asked_for() -> None:
    street = Routed()
    street.run(10)
    guest = street.host(GUEST_MAC, ipv6=True)
    street.run(5)
    end = guest.stack.udp.open(6)
    end.send([b"x"], (street.router.eth.addresses[0].address, 9))
    street.run(1)
    gateways = [format_address(route.gateway) for route in guest.stack.routes if route.gateway]
    assert gateways == [ROUTER], "a neighbour advertisement without the flag would take it away (RFC 4861 §7.2.5)"


def test_addresses_that_are_still_checked_are_not_used() -> None:
    street = Street()
    router = street.host(ROUTER_MAC, ipv6=True)
    advertiser = RouterAdvertiser(
        router.stack, router.eth, "fec0::/64", timers=street.timers,
        config=RadvConfig(min_interval=4 * SECOND, max_interval=4 * SECOND),
    )  # fmt: skip
    advertiser.start()
    street.run(0.6)
    assert router.count("nd", "tx_dropped_no_link_local") == 1
    street.run(10)
    assert router.count("nd", "tx_routers") >= 1


def test_starting_and_closing_twice_is_harmless() -> None:
    street = Routed()
    street.advertiser.start()
    street.run(1)
    assert len(list(street.told())) == 1
    street.advertiser.close()
    street.advertiser.close()
    street.run(1000)
    assert len(list(street.told())) == 2


@pytest.mark.parametrize("text", ["fec0::", "10.0.0.0/24", "fec0::/129", "x/64"])
def test_a_prefix_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        Routed(text)
