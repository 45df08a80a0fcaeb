"""DHCP messages: what scapy writes is read, what is written scapy reads, and lengths come before values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from guest.net import dhcp_wire as wire
from guest.net.address import format_address, parse_address
from tests.dhcp_world import MAC, reply


def options(raw: bytes, *, sname: bytes = b"", file: bytes = b"") -> wire.Message:
    """A message with these option bytes."""
    head = bytearray(reply("offer", 7)[: wire.HEADER_SIZE])
    head[wire.SNAME] = sname.ljust(64, b"\0")
    head[wire.FILE] = file.ljust(128, b"\0")
    return wire.parse(bytes(head) + raw)


def test_fields_of_a_message_that_scapy_wrote() -> None:
    message = wire.parse(reply("offer", 0xDEADBEEF, siaddr="10.0.0.9", giaddr="10.0.0.8", ciaddr="10.0.0.7", secs=3))
    assert (message.op, message.xid, message.secs, message.chaddr) == (2, 0xDEADBEEF, 3, MAC)
    shown = [format_address(one) for one in (message.ciaddr, message.yiaddr, message.siaddr, message.giaddr)]
    assert shown == ["10.0.0.7", "10.0.0.50", "10.0.0.9", "10.0.0.8"]
    assert message.kind == wire.OFFER
    assert message.number(wire.LEASE_TIME, 4) == 3600
    assert message.address(wire.SERVER_ID) == parse_address("10.0.0.1")
    assert message.addresses(wire.DNS_SERVERS) == [parse_address("10.0.0.3")]


def test_scapy_reads_what_is_built() -> None:
    table = {wire.MESSAGE_TYPE: b"\1", wire.REQUESTED_ADDRESS: b"\x0a\0\0\x32", wire.HOST_NAME: b"guest"}
    message = wire.Message(1, 0x01020304, MAC, 9, wire.BROADCAST, parse_address("10.0.0.2"), options=table)
    seen = BOOTP(wire.build(message))
    assert (seen.op, seen.htype, seen.hlen, seen.xid, seen.secs, seen.flags.value) == (1, 1, 6, 0x01020304, 9, 0x8000)
    assert (seen.ciaddr, bytes(seen.chaddr)[:6]) == ("10.0.0.2", MAC)
    named = [("message-type", 1), ("requested_addr", "10.0.0.50"), ("hostname", b"guest")]
    assert [one for one in seen[DHCP].options if isinstance(one, tuple)] == named
    assert wire.parse(wire.build(message)) == message


def test_options_may_lie_in_file_and_sname_and_go_on_there() -> None:
    sname = b"\x0c\x01f\x01\x04\xff\xff\xff\0\xff"
    message = options(b"\x34\x01\x03\x0c\x03abc\xff", file=b"\x0c\x02de\x0f\x01x\xff\x0c\x01?", sname=sname)
    assert message.options == {12: b"abcdef", 15: b"x", 1: b"\xff\xff\xff\0"}


def test_file_and_sname_are_no_options_without_overload() -> None:
    assert options(b"\x0c\x03abc\xff", file=b"\x0c\x02de\xff").options == {12: b"abc"}
    assert options(b"\x34\x01\x02\xff", file=b"\x0c\x02de\xff", sname=b"\x0c\x01f\xff").options == {12: b"f"}


@pytest.mark.parametrize(("sname", "reason"), [(b"\x0c\x40", "option_length"), (b"\x0c\x01f", "no_end")])
def test_h65_options_in_sname_end_there(sname: bytes, reason: str) -> None:
    with pytest.raises(wire.DhcpError) as raised:
        options(b"\x34\x01\x02\xff", sname=sname)
    assert raised.value.reason == reason


def test_long_options_are_split_and_joined() -> None:
    value = bytes(range(256)) * 3
    message = wire.Message(1, 1, MAC, options={43: value})
    raw = wire.build(message)
    assert raw.count(b"\x2b\xff") >= 3
    assert wire.parse(raw).options[43] == value


@pytest.mark.parametrize("at", range(240))
def test_a_message_cut_anywhere_in_its_header_is_short(at: int) -> None:
    with pytest.raises(wire.DhcpError, match="short"):
        wire.parse(reply("offer", 7)[:at])


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"guest", "guest"), (b"a.b-c_d\0\0", "a.b-c_d"), (b"", None), (b"a b", None), (b"x\n", None),
        ("é".encode(), None), (b"a" * 254, None), (b"\0", None),
    ],
)  # fmt: skip
def test_h65_names_are_plain(raw: bytes, text: str | None) -> None:
    assert wire.Message(2, 1, MAC, options={12: raw}).text(12) == text


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (b"\3eng\5apple\3com\0\x09marketing\xc0\x04", ["eng.apple.com", "marketing.apple.com"]),  # RFC 3397 §2's
        (b"\xc0\0", None), (b"\3abc\xc0\0", None), (b"\3abc\xc0\x20", None), (b"\x40abc", None), (b"\3ab", None),
        (b"\xc0", None), (b"", None), (b"\0", []),
    ],
)  # fmt: skip
def test_h64_h65_the_search_list_follows_pointers_backwards_only(raw: bytes, names: list[str] | None) -> None:
    assert wire.Message(2, 1, MAC, options={119: raw}).search_list() == names


def test_bits_behind_the_prefix_of_a_classless_route_are_ignored() -> None:
    message = wire.Message(2, 1, MAC, options={121: bytes([20, 10, 1, 255, 10, 0, 0, 1])})
    rows = message.routes()
    assert rows is not None
    assert (format_address(rows[0].network), rows[0].length) == ("10.1.240.0", 20)


@given(st.binary(max_size=400))
def test_h65_any_options_are_read_or_refused(raw: bytes) -> None:
    try:
        message = options(raw)
    except wire.DhcpError as refused:
        reason = refused.reason
    else:
        reason = ""
    assert reason in ("", "option_length", "no_end", "overload")
    if reason:
        return
    assert sum(map(len, message.options.values())) <= len(raw)
    for option in (1, 3, 12, 50, 51, 53):
        message.text(option), message.addresses(option), message.number(option, 4), message.kind
    message.routes(), message.search_list()
