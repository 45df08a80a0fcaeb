"""Addresses as 128-bit numbers: text, prefixes, classes; and the routing table over them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.net import address as a
from guest.net.address import AddressError, Prefix, parse_address, to_prefix
from guest.net.route import Route, RouteTable


@given(st.integers(0, 2**32 - 1))
def test_ipv4_text_round_trips_as_a_mapped_address(value: int) -> None:
    text = str(ipaddress.IPv4Address(value))
    assert parse_address(text) == 0xFFFF_0000_0000 | value
    assert a.format_address(parse_address(text)) == text
    assert a.format_mapped(parse_address(text)) == f"::ffff:{text}"
    assert parse_address(f"::ffff:{text}") == parse_address(text), "both ways to write it are one address"


@given(st.integers(0, 2**128 - 1).filter(lambda value: value >> 32 != 0xFFFF))
def test_ipv6_text_round_trips(value: int) -> None:
    assert parse_address(a.format_address(value)) == value
    assert a.format_mapped(value) == a.format_address(value)


WRONG = ["", "1", "10.0.0", "10.0.0.256", "10.0.0.1 ", "010.0.0.1", "a.b.c.d", "::g", "fe80::1%eth0"]


@pytest.mark.parametrize("text", WRONG)
def test_wrong_text_is_an_address_error(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


@given(st.integers(0, 2**32 - 1))
def test_classes_are_those_of_the_standard_library(value: int) -> None:
    std = ipaddress.IPv4Address(value)
    ours = a.V4_PREFIX | value
    assert a.is_multicast(ours) == std.is_multicast
    assert a.is_loopback(ours) == std.is_loopback
    assert a.is_unspecified(ours) == std.is_unspecified
    assert a.is_broadcast(ours) == (value == 2**32 - 1)


def test_classes_of_ipv6() -> None:
    assert a.is_multicast(parse_address("ff02::1"))
    assert a.is_loopback(parse_address("::1"))
    assert a.is_unspecified(parse_address("::"))
    assert not a.is_multicast(parse_address("fe80::1"))


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_prefixes_are_those_of_the_standard_library(value: int, length: int) -> None:
    std = ipaddress.ip_interface((value, length)).network
    prefix = to_prefix(a.V4_PREFIX | value, length)
    assert a.format_address(prefix.network) == str(std.network_address)
    assert str(prefix) == f"{ipaddress.IPv4Address(value)}/{length}"
    assert a.netmask_length(str(std.netmask)) == length
    expected = str(std.broadcast_address) if length < 31 else None
    assert (prefix.broadcast and a.format_address(prefix.broadcast)) == expected
    assert prefix.contains(a.V4_PREFIX | int(std.broadcast_address))
    if length:
        assert not prefix.contains(prefix.network ^ 1 << (128 - prefix.length)), "the network next door"


@pytest.mark.parametrize("text", ["255.0.255.0", "0.0.0.255", "255.255.255.1", "mask", "ffff::"])
def test_a_netmask_has_its_ones_in_front(text: str) -> None:
    with pytest.raises(AddressError):
        a.netmask_length(text)


def test_lengths_belong_to_the_family() -> None:
    assert to_prefix("10.0.0.1", 24).length == 120
    assert to_prefix("fe80::1", 64).length == 64
    for length in (-1, 33):
        with pytest.raises(AddressError):
            to_prefix("10.0.0.1", length)
    with pytest.raises(AddressError):
        to_prefix(1 << 128, 8)


def test_mac_text() -> None:
    assert a.parse_mac("52:54:00:12:34:56") == bytes.fromhex("525400123456")
    assert a.format_mac(bytes.fromhex("525400123456")) == "52:54:00:12:34:56"
    for wrong in ("52:54:00:12:34", "52:54:00:12:34:5g", "525400123456", "52:54:00:12:34:056"):
        with pytest.raises(AddressError):
            a.parse_mac(wrong)


def test_groups_have_the_mac_addresses_of_the_rfcs() -> None:
    # RFC 1112 §6.4: the low 23 bits; RFC 2464 §7: the low 32 bits
    assert a.format_mac(a.multicast_mac(parse_address("224.128.1.2"))) == "01:00:5e:00:01:02"
    assert a.format_mac(a.multicast_mac(parse_address("ff02::1:ff00:1"))) == "33:33:ff:00:00:01"


def three_rows() -> RouteTable[str]:
    table: RouteTable[str] = RouteTable()
    table.add(Route(to_prefix("0.0.0.0", 0), parse_address("192.168.1.1"), "eth0", 0))
    table.add(Route(to_prefix("192.168.1.0", 24), None, "eth0", 0))
    table.add(Route(to_prefix("10.0.0.0", 8), parse_address("10.0.0.1"), "tun0", 0))
    return table


@pytest.mark.parametrize(
    ("destination", "interface", "gateway"),
    [("8.8.8.8", "eth0", "192.168.1.1"), ("192.168.1.7", "eth0", None), ("10.2.3.4", "tun0", "10.0.0.1")],
)
def test_longest_prefix_wins(destination: str, interface: str, gateway: str | None) -> None:
    best = three_rows().lookup(parse_address(destination))[0]
    assert best.interface == interface
    assert best.gateway == (None if gateway is None else parse_address(gateway))


def test_then_the_lowest_metric_then_the_first() -> None:
    table = three_rows()
    table.add(Route(to_prefix("10.0.0.0", 8), None, "slow0", 5))
    table.add(Route(to_prefix("10.0.0.0", 8), None, "twin0", 0))
    assert [row.interface for row in table.lookup(parse_address("10.1.1.1"))] == ["tun0", "twin0", "slow0", "eth0"]


def test_ipv6_destinations_do_not_take_the_ipv4_default() -> None:
    assert three_rows().lookup(parse_address("2001:db8::1")) == []


def test_rows_are_checked_and_removed() -> None:
    table = three_rows()
    with pytest.raises(AddressError, match="bits set behind"):
        table.add(Route(to_prefix("10.0.0.1", 8), None, "eth0"))
    with pytest.raises(AddressError, match="already"):
        table.add(Route(to_prefix("10.0.0.0", 8), None, "tun0"))
    row = Route(to_prefix("192.168.1.0", 24), None, "eth0")
    assert table.remove(row) is True
    assert table.remove(row) is False
    assert table.lookup(parse_address("192.168.1.7"))[0].prefix == Prefix(a.V4_PREFIX, 96)
