"""Interfaces with many addresses of both families, interfaces without Ethernet, and events (rows D2, D21, D22)."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6

from guest.net.address import AddressError, format_address, is_v4, parse_address
from guest.net.config import SECOND
from guest.net.device import IFF_NOARP, IFF_POINTOPOINT, IFF_RUNNING, IFF_UP
from guest.net.interface import Interface
from guest.net.pbuf import PacketBuffer
from guest.net.stack import Stack
from tests.net_world import OUR_IP, PEER_IP, PEER_MAC, Clock, Host, echo_request, join
from tests.net_world6 import OUR_IP6, OUR_LINK, PEER_IP6, advertise, answer, ask, group_mac, host6, ping6, prefix

MANY = [f"10.0.0.{number}" for number in range(101, 109)] + [f"2001:db8::{number:x}" for number in range(257, 265)]


def both() -> tuple[Host, Host]:
    """A host with 8 addresses of each family, and a peer with one of each."""
    clock = Clock()
    ours, peer = Host(clock=clock), Host(PEER_IP, PEER_MAC, clock=clock, seed=2)
    for address in MANY:
        ours.eth.add_address(address, 24 if is_v4(parse_address(address)) else 64)
    peer.eth.add_address(PEER_IP6, 64)
    for _ in range(3):
        join(ours, peer)
        for host in (ours, peer):
            host.stack.poll()
        clock.now += SECOND
    ours.stack.poll()
    peer.stack.poll()
    join(ours, peer)
    return ours, peer


def test_d2_eight_addresses_of_each_family_are_all_pingable_and_none_once_deleted() -> None:
    ours, peer = both()
    port = peer.stack.icmp.open_echo()

    def answered() -> set[str]:
        for address in MANY:
            port.send(address, 1, b"there?")
        join(ours, peer)
        found = set()
        while (reply := port.receive()) is not None:
            found.add(reply.src)
        return found

    assert answered() == set(MANY)
    gone = MANY[::2]
    for address in gone:
        assert ours.eth.remove_address(address)
    assert answered() == set(MANY) - set(gone)
    for address in MANY[1::2]:
        ours.eth.remove_address(address)
    assert answered() == set()
    assert [str(prefix) for prefix in ours.eth.addresses] == [f"{OUR_IP}/24"]


@pytest.mark.parametrize(("address", "peer"), [("10.0.0.103", PEER_IP), ("2001:db8::103", PEER_IP6)])
def test_d2_a_socket_bound_to_a_deleted_address_cannot_send(address: str, peer: str) -> None:
    host, _ = both()
    end = host.stack.udp.open(4 if is_v4(parse_address(address)) else 6)
    assert end.bind(parse_address(address), 700) == 0
    assert end.send([b"x"], (parse_address(peer), 9)) == 0
    host.eth.remove_address(address)
    assert end.send([b"x"], (parse_address(peer), 9)) == errno.EADDRNOTAVAIL


def test_d2_the_groups_of_addresses_go_with_them() -> None:
    host = host6()
    host.eth.add_address("2001:db8:5::1", 64)  # the same last 24 bits, so the same group
    mac = bytes.fromhex(group_mac("ff02::1:ff00:1").replace(":", ""))
    groups = host.eth.link.groups  # type: ignore[union-attr]
    host.eth.remove_address(OUR_IP6)
    assert mac in groups
    host.eth.remove_address("2001:db8:5::1")
    assert mac not in groups


@pytest.mark.parametrize(
    ("address", "length"),
    [("::", 0), ("ff02::1", 64), ("::1", 128), (OUR_IP6, 64), ("2001:db8::7", 129), ("fe80::1%eth0", 64)],
)
def test_ipv6_addresses_that_no_host_can_have_are_refused(address: str, length: int) -> None:
    host = host6()
    with pytest.raises(AddressError):
        host.eth.add_address(address, length)
    assert [str(prefix) for prefix in host.eth.addresses] == [f"{OUR_IP6}/64"]


def test_without_ipv6_in_the_configuration_explicit_addresses_work_and_none_is_made() -> None:
    host = host6()
    assert [str(prefix) for prefix in host.eth.addresses] == [f"{OUR_IP6}/64"]
    host.receive(ask(), ping6())
    assert len(host.take()) == 2


def test_the_default_route_of_each_family_is_set_and_replaced_by_itself() -> None:
    host = host6()
    host.eth.add_address(OUR_IP, 24)
    for gateway in ("10.0.0.254", "2001:db8::fe", "2001:db8::fd", "10.0.0.253"):
        host.stack.set_gateway(gateway)
    made = {str(route.prefix): format_address(route.gateway) for route in host.stack.routes if route.gateway}
    assert made == {"0.0.0.0/0": "10.0.0.253", "::/0": "2001:db8::fd"}


# -- without Ethernet ------------------------------------------------------------------------------------------------


class Tun:
    """A stack with a TUN-style interface; what it sends is kept as bytes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.stack = Stack(now=self.clock, rng=random.Random(1))
        self.sent: list[bytes] = []
        self.tun = self.stack.add_interface("tun0", None, 1400, self._output)
        self.tun.add_address("10.8.0.1", 24)
        self.tun.add_address("2001:db8:8::1", 64)
        self.tun.set_up()

    def _output(self, packets: Sequence[PacketBuffer]) -> None:
        self.sent += [packet.tobytes() for packet in packets]


def test_d21_a_tun_interface_carries_bare_packets_of_both_families() -> None:
    world = Tun()
    assert world.tun.flags & (IFF_UP | IFF_RUNNING | IFF_POINTOPOINT | IFF_NOARP) == world.tun.flags & ~0x1000
    assert world.sent == [], "no ARP, no checks, no reports"
    request = IP(src="10.8.0.9", dst="10.8.0.1") / ICMP(type=8, id=1, seq=2) / b"four"
    request6 = IPv6(src="2001:db8:8::9", dst="2001:db8:8::1") / ICMPv6EchoRequest(id=1, seq=2, data=b"six")
    world.tun.input([PacketBuffer.from_bytes(bytes(request)), PacketBuffer.from_bytes(bytes(request6))])
    four, six = world.sent
    assert (IP(four).dst, bytes(IP(four)[ICMP].payload)) == ("10.8.0.9", b"four")
    assert (IPv6(six).dst, IPv6(six).payload.data) == ("2001:db8:8::9", b"six")


def test_d21_a_tun_interface_is_a_wire_loopback_and_own_addresses_are_refused_on_it() -> None:
    world = Tun()
    for src, dst in (("127.0.0.1", "10.8.0.1"), ("10.8.0.1", "10.8.0.1"), ("10.8.0.9", "127.0.0.1")):
        world.tun.input([PacketBuffer.from_bytes(bytes(IP(src=src, dst=dst) / ICMP(type=8)))])
    assert world.sent == []
    world.tun.input([PacketBuffer.from_bytes(b"\x00" * 40), PacketBuffer.from_bytes(b"")])
    assert world.tun.counters["rx_dropped_version"] == 2


def test_d21_discovery_and_memberships_on_a_tun_interface_are_counted_and_ignored() -> None:
    world = Tun()
    message = IPv6(src="2001:db8:8::9", dst="2001:db8:8::1", hlim=255) / ICMPv6ND_NS(tgt="2001:db8:8::1")
    world.tun.input([PacketBuffer.from_bytes(bytes(message))])
    world.stack.ip.join(world.tun, parse_address("239.1.1.1"))
    assert world.sent == []
    assert world.stack.counters["icmpv6"]["rx_ignored_link"] == 1


def test_d21_routes_lead_through_a_tun_interface_without_neighbours() -> None:
    world = Tun()
    world.stack.add_route("0.0.0.0", 0, None, world.tun)
    world.stack.add_route("::", 0, "2001:db8:8::fe", world.tun)
    port = world.stack.icmp.open_echo()
    for seq, address in enumerate(("8.8.8.8", "2001:db8:9::9")):
        port.send(address, seq, b"")
    assert [packet[0] >> 4 for packet in world.sent] == [4, 6]


def test_c17_a_table_of_routes_is_loaded_as_it_is() -> None:
    world = Tun()
    world.stack.load_routes("10.2.3.0  255.255.255.0  10.8.0.254  tun0  5\n2001:db8:9::  48  ::  tun0  7\n")
    assert [(str(route.prefix), route.metric) for route in world.stack.routes if route.metric] == [
        ("10.2.3.0/24", 5), ("2001:db8:9::/48", 7),
    ]  # fmt: skip
    with pytest.raises(AddressError):
        world.stack.load_routes("10.2.3.0  255.255.255.0  10.8.0.254  eth9  5")


# -- events ----------------------------------------------------------------------------------------------------------


def test_d22_who_subscribes_hears_of_addresses_routes_links_servers_and_forwarding() -> None:
    host = host6(ipv6=True, nd_delay=0)
    seen: list[tuple[str, object]] = []

    def hear(event: str, interface: Interface, detail: object) -> None:
        seen.append((event, detail))

    host.stack.subscribe(hear)
    host.receive(advertise(prefix("2001:db8:1::", valid=3, preferred=2), routerlifetime=3))
    host.wait(3 * SECOND)
    host.stack.forwarding = True
    host.stack.forwarding = True
    own = "2001:db8:1:0:5054:ff:fe00:1/64"
    assert seen == [
        ("route", "added ::/0"),
        ("route", "added 2001:db8:1::/64"),
        ("address", f"tentative {own}"),
        ("address", f"added {own}"),
        ("address", f"{own} deprecated dynamic"),
        ("route", "removed ::/0"),
        ("route", "removed 2001:db8:1::/64"),
        ("address", f"removed {own}"),
        ("forwarding", True),
    ]


def test_d22_the_status_callback_tells_of_an_ipv6_address_once_it_may_be_used() -> None:
    host = host6()
    told: list[set[int]] = []
    host.eth.status_callback = lambda interface: told.append(set(interface.tentative))
    host.eth.add_address("2001:db8::5", 64)
    assert told == []
    host.wait(SECOND)
    assert told == [set()]


def test_counters_are_there_for_every_layer() -> None:
    host = host6(ipv6=True)
    host.receive(ask(), ping6(), advertise(), answer(PEER_IP6))
    host.receive(echo_request())
    assert set(host.stack.counters) >= {"ip", "icmp", "icmpv6", "arp", "nd", "igmp", "mld", "udp", "raw", "ethernet"}
    assert host.count("nd", "rx_packets") == 3
    assert host.count("icmpv6", "rx_nd") == 3
    assert host.count("icmpv6", "rx_echo_requests") == 1
    assert host.eth.owns(parse_address(OUR_LINK))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "up", "down", "wait", "duplicate"]), st.integers(0, 7))))
def test_any_order_of_changes_leaves_addresses_groups_and_routes_in_step(steps: list[tuple[str, int]]) -> None:
    host = host6(None)
    eth = host.eth
    for step, number in steps:
        address = f"2001:db8:{number & 1}::{number + 1:x}"
        if step == "add" and not eth.owns(parse_address(address)):
            eth.add_address(address, 64)
        elif step == "remove":
            eth.remove_address(address)
        elif step == "up":
            eth.set_up()
        elif step == "down":
            eth.set_down()
        elif step == "duplicate":
            host.receive(answer(address, dst="ff02::1", S=0))
        else:
            host.wait(number * SECOND // 3)
    own = {each.address for each in eth.addresses}
    assert eth.tentative <= own
    assert {f"ff02::1:ff00:{address & 0xFFFF:x}" for address in own} == {
        f"ff02::1:ff00:{group & 0xFFFF:x}" for group in host.stack.ip.groups.of(eth)
    }
    assert {route.prefix.network for route in host.stack.routes if route.interface is eth} == {
        each.network for each in eth.addresses
    }
    for address in own:
        eth.remove_address(address)
    assert host.stack.ip.groups.of(eth) == []
