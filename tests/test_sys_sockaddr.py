"""Socket addresses: the 16-byte struct of the small kernel, the standard library's tuples, and what is no address."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.net.address import V4_PREFIX, parse_address
from guest.sys.constants import AF_INET, AF_INET6
from guest.sys.sockaddr import (
    EAI_ADDRFAMILY,
    EAI_NONAME,
    ResolveError,
    format_v6,
    pack_sockaddr,
    pack_sockaddr_in6,
    parse,
    show,
    unpack_sockaddr,
)


def zone(text: str) -> int:
    return {"eth0": 2, "2": 2}.get(text, 0)


def test_the_sockaddr_has_16_bytes_two_two_four_eight() -> None:
    raw = pack_sockaddr(AF_INET, 7, 0x0A000001)

    assert len(raw) == 16
    assert raw[:2] == b"\2\0", "the family in the machine's order"
    assert raw[2:4] == b"\0\7", "the port in network order"
    assert raw[4:8] == bytes([10, 0, 0, 1])
    assert raw[8:] == bytes(8)
    assert unpack_sockaddr(raw) == (AF_INET, 7, 0x0A000001)


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF))
def test_pack_and_unpack_are_inverse(family: int, port: int, address: int) -> None:
    assert unpack_sockaddr(pack_sockaddr(family, port, address)) == (family, port, address)


def test_a_short_struct_is_refused() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        unpack_sockaddr(bytes(15))


def test_the_v6_struct_carries_flow_and_scope() -> None:
    raw = pack_sockaddr_in6(7, 0xFE80 << 112 | 1, 5, 2)

    assert len(raw) == 28
    assert parse(raw, AF_INET6, zone) == (AF_INET6, 0xFE80 << 112 | 1, 7, 2, 5)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("10.0.0.1", 0x0A000001), ("10.1", 0x0A000001), ("10.0.1", 0x0A000001), ("167772161", 0x0A000001),
        ("0xa.0.0.1", 0x0A000001), ("012.0.0.01", 0x0A000001), ("0xa000001", 0x0A000001), ("", 0),
        ("<broadcast>", 0xFFFFFFFF), ("255.255.255.255", 0xFFFFFFFF), (b"10.0.0.1", 0x0A000001), ("0", 0),
    ],
)  # fmt: skip
def test_ipv4_is_written_as_inet_aton_reads_it(given: Any, address: int) -> None:
    assert parse((given, 7), AF_INET, zone) == (AF_INET, V4_PREFIX | address, 7, 0, 0)
    if given and isinstance(given, str) and "<" not in given:
        assert int.from_bytes(socket.inet_aton(given), "big") == address


@pytest.mark.parametrize("text", ["256.0.0.1", "1.2.3.4.5", "10.0.0.", "1.65536.1", "08.1.1.1", "4294967296", "1.-1"])
def test_what_inet_aton_refuses_is_a_name(text: str) -> None:
    with pytest.raises(OSError, match="illegal IP address"):
        socket.inet_aton(text)
    with pytest.raises(ResolveError) as caught:
        parse((text, 7), AF_INET, zone)
    assert caught.value.errno == EAI_NONAME


@pytest.mark.parametrize(
    ("given", "scope", "flow"),
    [
        (("fe80::1", 7), 0, 0), (("fe80::1%eth0", 7), 2, 0), (("fe80::1%2", 7), 2, 0), (("fe80::1", 7, 5), 0, 5),
        (("fe80::1", 7, 5, 3), 3, 5), (("fe80::1%eth0", 7, 0, 3), 3, 0),
    ],
)  # fmt: skip
def test_ipv6_may_have_flow_and_zone(given: Any, scope: int, flow: int) -> None:
    assert parse(given, AF_INET6, zone) == (AF_INET6, parse_address("fe80::1"), 7, scope, flow)


@pytest.mark.parametrize(
    ("value", "family", "error"),
    [
        ("10.0.0.1", AF_INET, TypeError), (("10.0.0.1",), AF_INET, TypeError), (("10.0.0.1", "7"), AF_INET, TypeError),
        ((5, 7), AF_INET, TypeError), (("10.0.0.1", 1, 2), AF_INET, TypeError),
        (("::1", 1, 2, 3, 4), AF_INET6, TypeError), (("10.0.0.1", 65536), AF_INET, OverflowError),
        (("10.0.0.1", -1), AF_INET, OverflowError), (("::1", 1, 1 << 20), AF_INET6, OverflowError),
    ],
)  # fmt: skip
def test_what_is_no_address_raises_as_the_standard_library(value: Any, family: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse(value, family, zone)
    with socket.socket(family, socket.SOCK_DGRAM) as theirs, pytest.raises(error):
        theirs.bind(value)


@pytest.mark.parametrize(
    ("value", "family", "number"),
    [
        (("::1", 7), AF_INET, EAI_ADDRFAMILY), (("127.0.0.1", 7), AF_INET6, EAI_ADDRFAMILY),
        (("::g", 7), AF_INET6, EAI_NONAME), (("fe80::1%nope", 7), AF_INET6, EAI_NONAME),
    ],
)  # fmt: skip
def test_a_host_of_another_family_is_no_host_here(value: Any, family: int, number: int) -> None:
    with pytest.raises(ResolveError) as caught:
        parse(value, family, zone)
    assert caught.value.errno == number
    with socket.socket(family, socket.SOCK_DGRAM) as theirs, pytest.raises(socket.gaierror) as other:
        theirs.bind(value)
    assert other.value.errno == number


def test_names_are_for_the_resolver() -> None:
    asked = []

    def resolver(name: str, family: int) -> int:
        asked.append((name, family))
        return V4_PREFIX | 5

    assert parse(("peer.example", 7), AF_INET, zone, resolver).address == V4_PREFIX | 5
    assert asked == [("peer.example", AF_INET)]
    with pytest.raises(ResolveError):
        parse(("peer.example", 7), AF_INET, zone)


@given(st.integers(0, (1 << 128) - 1) | st.integers(0, 1 << 40) | st.integers(0, 1 << 32).map(lambda n: n | V4_PREFIX))
def test_ipv6_is_shown_as_inet_ntop_shows_it(address: int) -> None:
    assert format_v6(address) == socket.inet_ntop(socket.AF_INET6, address.to_bytes(16, "big"))


def test_only_addresses_that_need_one_are_shown_with_a_scope() -> None:
    assert show(AF_INET6, parse_address("fe80::1"), 7, 2) == ("fe80::1", 7, 0, 2)
    assert show(AF_INET6, parse_address("ff02::1"), 7, 2) == ("ff02::1", 7, 0, 2)
    assert show(AF_INET6, parse_address("2001:db8::1"), 7, 2) == ("2001:db8::1", 7, 0, 0)
    assert show(AF_INET, V4_PREFIX | 0x0A000001, 7, 2) == ("10.0.0.1", 7)
