"""What `--wire user:…` may say: QEMU's spelling, and one line for each mistake."""

from __future__ import annotations

import random

import pytest

import vring
from guest.net.address import format_address
from hw.clock import RealClock, VirtualClock
from hw.loop import Loop
from hw.wire.link import WireError
from vring.config import Board, ConfigError, WireSpec
from vring.usernet.gateway import UserNet
from vring.usernet.options import Forward, UserOptions


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tcp::8080-:80", "tcp:127.0.0.1:8080-:80"),
        ("::8080-:80", "tcp:127.0.0.1:8080-:80"),
        ("udp::5353-10.0.2.15:53", "udp:127.0.0.1:5353-10.0.2.15:53"),
        ("tcp:0.0.0.0:2222-10.0.2.20:22", "tcp:0.0.0.0:2222-10.0.2.20:22"),
        ("tcp:localhost:0-:80", "tcp:127.0.0.1:0-:80"),
        ("tcp:[::1]:8080-[fec0::15]:80", "tcp:[::1]:8080-[fec0::15]:80"),
        ("unix:/run/my-guest.sock-:80", "unix:/run/my-guest.sock-:80"),
    ],
)
def test_e55_rules_are_read_as_qemu_reads_them(text: str, shown: str) -> None:
    assert str(Forward.parse(text)) == shown
    assert Forward.parse_host_side(text.rpartition("-")[0]).host_side == shown.rpartition("-")[0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tcp::8080", "there is no '-'"),
        ("8080-:80", "'8080' is no host side"),
        ("tcp::8080-80", "the guest's side '80' is not [address]:port"),
        ("tcp::8080-:0", "the guest's port is 1 to 65535, not 0"),
        ("tcp::70000-:80", "there is no port 70000"),
        ("sctp::8080-:80", "'sctp' is none of tcp, udp, unix"),
        ("tcp:10.0.0.300:8080-:80", "'10.0.0.300' is not an IP address"),
        ("tcp:::1:8080-:80", "the host's side '::1:8080' is not [address]:port"),
        ("unix:-:80", "the path of a socket has 1 to 107 bytes"),
        ("tcp::8080-192.0.2.1:80", "192.0.2.1 is not in the guest's network 10.0.2.0/24"),
    ],
)
def test_e55_bad_hostfwd_text_is_one_line_that_says_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        WireSpec.parse(f"user:hostfwd={text}")

    line = str(caught.value)
    assert complaint in line, line
    assert f"hostfwd={text}" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("tftp=/srv", "tftp: there is no TFTP server here"),
        ("smb=/srv", "smb: there is no SMB server here"),
        ("guestfwd=tcp:10.0.2.100:80-cmd:cat", "guestfwd: connections to programs are not made here"),
        ("hostfw=tcp::1-:1", "there is no option 'hostfw'; there are dhcpstart, dns, dnsname, dnssearch, domainname"),
        ("restrict=maybe", "restrict is on or off, not 'maybe'"),
        ("restrict", "'restrict' is not key=value"),
        ("net=10.0.2.0/30", "net: a /30 has no room"),
        ("net=fec0::/64", "net: fec0:: is of the other family"),
        ("ipv6-net=fd00::/48", "ipv6-net: guests make themselves addresses in a /64 only"),
        ("host=10.0.3.2", "host: 10.0.3.2 is no host of 10.0.2.0/24"),
        ("dns=10.0.2.2", "host, dns and dhcpstart are three different addresses"),
        ("ipv4=off,ipv6=off", "ipv4 and ipv6 are both off"),
        ("dnsname=here.test", "write dnsname=NAME=ADDRESS"),
        ("dnsname=here..test=10.0.2.2", "dnsname: 'here..test' is no name"),
        (f"dnsname={'x' * 64}=10.0.2.2", "is no name"),
        ("dnsname=here.test=there", "dnsname: 'there' is not an IP address"),
        ("net=224.0.0.0/24", "net: hosts have no addresses in 224.0.0.0/24"),
        ("net=127.0.0.0/8", "net: hosts have no addresses in 127.0.0.0/8"),
        ("net=0.0.0.0", "net: hosts have no addresses in 0.0.0.0/24"),
        ("ipv6-net=ff02::/64", "ipv6-net: hosts have no addresses in ff02::/64"),
        ("ipv6-prefix=fe80::", "ipv6-prefix: hosts have no addresses in fe80::/64"),
        ("resolver=nowhere", "'nowhere' is not an IP address"),
        ("mtu=100", "mtu: 100 is below 1280"),
        ("loss=200%", "a share is at most 100%"),
    ],
)
def test_d13_what_a_user_wire_does_not_do_it_refuses_by_name(words: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        WireSpec.parse(f"user:{words}")

    assert complaint in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def test_d13_addresses_follow_the_network_unless_they_are_given() -> None:
    words = ("net=192.168.7.0/24", "dhcpstart=192.168.7.50", "ipv6-prefix=fd12::", "ipv6-dns=fd12::53")
    made = UserOptions.parse(words)

    shown = [format_address(each) for each in (made.gateway, made.server, made.first, made.gateway6, made.server6)]
    assert shown == ["192.168.7.2", "192.168.7.3", "192.168.7.50", "fd12::2", "fd12::53"]


def test_d13_in_the_smallest_network_the_guest_has_the_last_address() -> None:
    made = UserOptions.parse(["net=10.0.2.16/28", "hostfwd=tcp::0-:80"])
    loop = Loop(RealClock())
    net = UserNet(loop, made, rng=random.Random(0))

    assert format_address(made.first) == "10.0.2.30", "10.0.2.31 is the broadcast address"
    assert format_address(made.target(made.forwards[0])) == "10.0.2.30"
    net.close()
    loop.close()


@pytest.mark.parametrize(
    "text",
    ["user", "user:hostfwd=tcp::8080-:80,hostfwd=udp::5353-:53,restrict=on", "user:net=10.1.0.0/16,loss=1%,delay=5ms"],
)
def test_d13_a_wire_says_again_what_it_was_told(text: str) -> None:
    wire = WireSpec.parse(text)

    assert str(wire) == text
    assert WireSpec.parse(str(wire)) == wire
    assert WireSpec.parse(text.replace("user:", "user,", 1)) == wire, "QEMU writes a comma there"


def test_d13_a_user_wire_needs_real_time() -> None:
    board = Board.of_words(wires=["user"], cmdline="-dhcp")
    with pytest.raises(ConfigError, match="the wire user leads outside, where time is real"):
        vring.boot(board, clock="virtual")

    loop = Loop(VirtualClock())
    with pytest.raises(WireError, match="leads outside, where time is real"):
        UserNet(loop, rng=random.Random(0))
    loop.close()
