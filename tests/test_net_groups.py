"""Multicast memberships told to routers: IGMP and MLD, the same tests for both; queriers are played by scapy.

IGMP's messages are written and read byte for byte as RFC 3376 §4 draws them.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import (
    ICMPv6MLDone,
    ICMPv6MLQuery,
    ICMPv6MLQuery2,
    ICMPv6MLReport,
    ICMPv6MLReport2,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
    in6_chksum,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum as scapy_checksum

from guest.net.address import format_address, multicast_mac, parse_address
from guest.net.config import SECOND
from guest.net.membership import response_time
from tests.net_world import OUR_IP, PEER_IP, PEER_MAC, Host
from tests.net_world6 import OUR_LINK, PEER_LINK, group_mac, host6

IS_EXCLUDE, TO_INCLUDE, TO_EXCLUDE = 2, 3, 4


def igmp(kind: int, code: int, group: str, rest: bytes = b"") -> Packet:
    """An IGMP message, its checksum right."""
    body = (parse_address(group) & 0xFFFF_FFFF).to_bytes(4, "big") + rest
    check = scapy_checksum(bytes((kind, code, 0, 0)) + body)
    return Raw(bytes((kind, code)) + check.to_bytes(2, "big") + body)


@dataclass(frozen=True)
class Family:
    """What differs for a test."""

    number: int
    layer: str
    group: str
    other: str
    all_hosts: str
    all_routers: str
    src: str  # of queries

    def host(self) -> Host:
        """A host that is up and has nothing left to report."""
        host = Host() if self.number == 4 else host6(None, ipv6=True)
        host.wait(60 * SECOND)
        host.take()
        return host

    def mac(self, group: str) -> str:
        """The Ethernet address of a group."""
        return multicast_mac(parse_address(group)).hex(":")

    def query(self, group: str | None = None, tenths: int = 100, sources: int = 0, **header: int) -> Packet:
        """A query of the newer version."""
        to = group or self.all_hosts
        frame = Ether(src=PEER_MAC, dst=self.mac(to))
        if self.number == 4:
            message = igmp(0x11, tenths, group or "0.0.0.0", bytes((2, 125)) + sources.to_bytes(2, "big"))
            return frame / IP(src=self.src, dst=to, proto=2, **({"ttl": 1} | header)) / message
        alert = IPv6ExtHdrHopByHop(options=[RouterAlert()])
        body = ICMPv6MLQuery2(mladdr=group or "::", mrd=tenths * 100, sources_number=sources, sources=[])
        return frame / IPv6(src=self.src, dst=to, **({"hlim": 1} | header)) / alert / body

    def old_query(self, group: str | None = None, tenths: int = 100) -> Packet:
        """A query of the older version."""
        to = group or self.all_hosts
        frame = Ether(src=PEER_MAC, dst=self.mac(to))
        if self.number == 4:
            return frame / IP(src=self.src, dst=to, ttl=1, proto=2) / igmp(0x11, tenths, group or "0.0.0.0")
        return frame / IPv6(src=self.src, dst=to, hlim=1) / ICMPv6MLQuery(mladdr=group or "::", mrd=tenths * 100)

    def old_report(self, group: str) -> Packet:
        """Another member's report in the older version."""
        frame = Ether(src=PEER_MAC, dst=self.mac(group))
        if self.number == 4:
            return frame / IP(src=self.src, dst=group, ttl=1, proto=2) / igmp(0x16, 0, group)
        return frame / IPv6(src=self.src, dst=group, hlim=1) / ICMPv6MLReport(mladdr=group)

    def reports(self, host: Host) -> list[tuple[int, str]]:
        """Records that the host has sent since, each packet checked: type and group; type 0 for another message."""
        found: list[tuple[int, str]] = []
        for frame in host.parsed():
            found += self._records4(frame) if self.number == 4 else self._records6(frame)
        return found

    def _records4(self, frame: Packet) -> list[tuple[int, str]]:
        packet = frame[IP]
        assert (packet.ttl, packet.tos, packet.src) == (1, 0xC0, OUR_IP)
        assert bytes(packet)[20:24] == b"\x94\x04\0\0", "the router alert option"
        assert scapy_checksum(bytes(packet)[24:]) == 0
        assert frame.dst == self.mac(packet.dst)
        raw = bytes(packet)[24:]
        if raw[0] == 0x22:
            assert packet.dst == "224.0.0.22"
            assert int.from_bytes(raw[6:8], "big") * 8 + 8 == len(raw)
            records = [raw[at : at + 8] for at in range(8, len(raw), 8)]
            assert all(record[1:4] == bytes(3) for record in records), "no auxiliary data, no sources"
            return [(record[0], ".".join(map(str, record[4:]))) for record in records]
        group = format_address(0xFFFF << 32 | int.from_bytes(raw[4:8], "big"))
        assert packet.dst == (group if raw[0] == 0x16 else self.all_routers)
        return [(-raw[0], group)]

    def _records6(self, frame: Packet) -> list[tuple[int, str]]:
        packet = frame[IPv6]
        assert packet.hlim == 1
        assert bytes(packet)[40:48] == b"\x3a\0\x05\x02\0\0\x01\0", "hop-by-hop options with the router alert"
        assert in6_chksum(58, packet, bytes(packet)[48:]) == 0
        assert frame.dst == group_mac(packet.dst)
        assert packet.src == OUR_LINK
        if ICMPv6MLReport2 in packet:
            assert packet.dst == "ff02::16"
            raw = bytes(packet)[48:]
            assert int.from_bytes(raw[6:8], "big") * 20 + 8 == len(raw)
            records = [raw[at : at + 20] for at in range(8, len(raw), 20)]
            assert all(record[1:4] == bytes(3) for record in records), "no auxiliary data, no sources"
            return [(record[0], format_address(int.from_bytes(record[4:], "big"))) for record in records]
        if ICMPv6MLDone in packet:
            assert packet.dst == self.all_routers
            return [(-0x17, packet[ICMPv6MLDone].mladdr)]
        assert packet.dst == packet[ICMPv6MLReport].mladdr
        return [(-0x16, packet[ICMPv6MLReport].mladdr)]

    def join(self, host: Host, *groups: str) -> None:
        """Let the host be in groups, with all reports sent."""
        for group in groups:
            host.stack.ip.join(host.eth, parse_address(group))
        host.wait(20 * SECOND)
        host.take()

    def own(self) -> list[str]:
        """Groups that it is in anyway and reports: those of its solicited nodes."""
        return [] if self.number == 4 else ["ff02::1:ff00:1"]


V4 = Family(4, "igmp", "239.1.2.3", "239.9.9.9", "224.0.0.1", "224.0.0.2", PEER_IP)
V6 = Family(6, "mld", "ff05::1:3", "ff08::9", "ff02::1", "ff02::2", PEER_LINK)


@pytest.fixture(params=[V4, V6], ids=["igmp", "mld"])
def family(request: pytest.FixtureRequest) -> Family:
    """Either family."""
    chosen: Family = request.param
    return chosen


def test_a_join_is_reported_at_once_and_again_within_a_second(family: Family) -> None:
    host = family.host()
    group = parse_address(family.group)
    host.stack.ip.join(host.eth, group)
    host.stack.ip.join(host.eth, group)
    assert family.reports(host) == [(TO_EXCLUDE, family.group)]
    host.wait(SECOND)
    assert family.reports(host) == [(TO_EXCLUDE, family.group)]
    host.wait(100 * SECOND)
    assert family.reports(host) == []
    host.stack.ip.leave(host.eth, group)
    assert family.reports(host) == [], "one is still in it"
    host.stack.ip.leave(host.eth, group)
    assert family.reports(host) == [(TO_INCLUDE, family.group)]
    host.wait(SECOND)
    assert family.reports(host) == [(TO_INCLUDE, family.group)]


def test_a_leave_right_after_the_join_is_what_is_repeated(family: Family) -> None:
    host = family.host()
    host.stack.ip.join(host.eth, parse_address(family.group))
    host.stack.ip.leave(host.eth, parse_address(family.group))
    host.wait(10 * SECOND)
    assert [kind for kind, _ in family.reports(host)] == [TO_EXCLUDE, TO_INCLUDE, TO_INCLUDE]


def test_frames_to_a_group_pass_the_filter_while_somebody_is_in_it(family: Family) -> None:
    host = family.host()
    mac = multicast_mac(parse_address(family.group))
    host.stack.ip.join(host.eth, parse_address(family.group))
    twin = "239.129.2.3" if family.number == 4 else "ff08::1:3"  # the same Ethernet address
    host.stack.ip.join(host.eth, parse_address(twin))
    groups = host.eth.link.groups  # type: ignore[union-attr]
    host.stack.ip.leave(host.eth, parse_address(family.group))
    assert mac in groups
    host.stack.ip.leave(host.eth, parse_address(twin))
    assert mac not in groups
    assert multicast_mac(parse_address(family.all_hosts)) in groups


def test_a_query_is_answered_within_its_time_with_all_groups_in_one_report(family: Family) -> None:
    host = family.host()
    family.join(host, family.group, family.other)
    host.receive(family.query(tenths=50))
    assert host.take() == []
    host.wait(5 * SECOND)
    assert sorted(family.reports(host)) == sorted(
        (IS_EXCLUDE, group) for group in [family.group, family.other, *family.own()]
    )
    assert host.count(family.layer, "rx_queries") == 1


def test_a_query_for_one_group_is_answered_for_that_one(family: Family) -> None:
    host = family.host()
    family.join(host, family.group, family.other)
    host.receive(family.query(family.group, tenths=10))
    host.wait(SECOND)
    assert family.reports(host) == [(IS_EXCLUDE, family.group)]
    before = host.count(family.layer, "rx_ignored_not_member")
    family_other = "239.1.2.4" if family.number == 4 else "ff05::1:4"
    frame = family.query(family_other)
    frame.dst = family.mac(family.all_hosts)
    if family.number == 4:
        frame[IP].dst = family.all_hosts
    else:
        frame[IPv6].dst = family.all_hosts
    host.receive(frame)
    host.wait(20 * SECOND)
    assert family.reports(host) == []
    assert host.count(family.layer, "rx_ignored_not_member") == before + 1


def test_many_queries_are_one_answer(family: Family) -> None:
    host = family.host()
    family.join(host, family.group)
    for _ in range(100):
        host.receive(family.query())
    host.wait(10 * SECOND)
    assert len(family.reports(host)) == 1 + len(family.own())


def test_a_later_query_does_not_put_an_answer_off(family: Family) -> None:
    host = family.host()
    family.join(host, family.group)
    host.receive(family.query(tenths=10), *[family.query(tenths=127)] * 20, family.query(family.group, tenths=127))
    host.wait(SECOND)
    assert len(family.reports(host)) == 1 + len(family.own())
    host.wait(20 * SECOND)
    assert family.reports(host) == []


def test_the_older_version_is_spoken_while_its_querier_is_about(family: Family) -> None:
    host = family.host()
    family.join(host, family.group)
    host.receive(family.old_query(tenths=20))
    host.wait(2 * SECOND)
    assert sorted(family.reports(host)) == sorted((-0x16, group) for group in [family.group, *family.own()])
    host.stack.ip.leave(host.eth, parse_address(family.group))
    assert family.reports(host) == [(-0x17, family.group)]
    host.stack.ip.join(host.eth, parse_address(family.other))
    host.wait(10 * SECOND)
    assert family.reports(host) == [(-0x16, family.other)] * 2
    host.wait(260 * SECOND)
    host.stack.ip.join(host.eth, parse_address(family.group))
    assert family.reports(host) == [(TO_EXCLUDE, family.group)], "back to the newer one"


def test_another_members_report_makes_ours_needless_in_the_older_version(family: Family) -> None:
    host = family.host()
    family.join(host, family.group)
    host.receive(family.old_query(family.group, tenths=100), family.old_report(family.group))
    host.wait(20 * SECOND)
    assert family.reports(host) == []
    assert host.count(family.layer, "rx_reports") == 1


def test_reports_larger_than_the_link_are_split(family: Family) -> None:
    host = family.host()
    for number in range(400):
        group = f"239.2.{number >> 8}.{number & 255}" if family.number == 4 else f"ff05::2:{number + 1:x}"
        host.stack.ip.join(host.eth, parse_address(group))
    host.wait(20 * SECOND)
    host.take()
    host.receive(family.query(tenths=10))
    host.wait(SECOND)
    frames = host.take()
    assert len(frames) > 1
    assert all(len(frame) <= 1514 for frame in frames)
    host.receive(family.query(tenths=10))
    host.wait(SECOND)
    assert len(family.reports(host)) == 400 + len(family.own())


def spoil(family: Family, name: str) -> tuple[bytes, str]:
    """A query that is not to be believed, and its counter."""
    at = 14 + (20 if family.number == 4 else 48)  # where the message starts
    if name == "hops":
        return bytes(family.query(**{"ttl" if family.number == 4 else "hlim": 2})), (
            "rx_dropped_ttl" if family.number == 4 else "rx_dropped_hop_limit"
        )
    if name == "sources":
        return bytes(family.query(sources=5)), "rx_dropped_sources"
    raw = bytearray(bytes(family.query()))
    if name == "length":
        raw = raw[:-2]
        if family.number == 4:
            raw[16:18] = (len(raw) - 14).to_bytes(2, "big")
            raw[24:26] = b"\0\0"
            raw[24:26] = scapy_checksum(bytes(raw[14:34])).to_bytes(2, "big")
        else:
            raw[18:20] = (len(raw) - 54).to_bytes(2, "big")
    raw[at + 2 : at + 4] = b"\0\0"
    if family.number == 4:
        raw[at + 4 : at + 8] = b"\x0a\0\0\1" if name == "group" else bytes(4)
        check = scapy_checksum(bytes(raw[at:]))
    else:
        raw[at + 8] = 0x20 if name == "group" else 0
        check = in6_chksum(58, Ether(bytes(raw))[IPv6], bytes(raw[at:]))
    raw[at + 2 : at + 4] = check.to_bytes(2, "big")
    return bytes(raw), f"rx_dropped_{name}"


@pytest.mark.parametrize("name", ["hops", "sources", "length", "group"])
def test_h56_queries_that_are_wrong_are_dropped(family: Family, name: str) -> None:
    host = family.host()
    family.join(host, family.group)
    frame, counter = spoil(family, name)
    host.receive(frame)
    host.wait(20 * SECOND)
    assert host.take() == []
    assert host.count(family.layer, counter) == 1


def test_memberships_are_reported_anew_when_the_interface_comes_back(family: Family) -> None:
    host = family.host()
    family.join(host, family.group)
    host.eth.set_down()
    host.stack.ip.join(host.eth, parse_address(family.other))
    host.take()
    host.eth.set_up()
    host.wait(10 * SECOND)
    frames = [Ether(frame) for frame in host.take()]
    text = b"".join(bytes(frame) for frame in frames)
    for group in (family.group, family.other):
        number = parse_address(group)
        assert (number.to_bytes(16, "big") if family.number == 6 else number.to_bytes(16, "big")[12:]) in text


def test_groups_of_this_host_alone_are_not_reported() -> None:
    host = V6.host()
    for group in ("ff01::5", "ff02::1"):
        host.stack.ip.join(host.eth, parse_address(group))
    assert host.take() == []
    other = V4.host()
    other.stack.ip.join(other.eth, parse_address("224.0.0.1"))
    assert other.take() == []


def test_h56_a_query_from_a_global_address_is_dropped() -> None:
    host = V6.host()
    V6.join(host, V6.group)
    frame = V6.query()
    frame[IPv6].src = "2001:db8::2"
    host.receive(frame)
    host.wait(20 * SECOND)
    assert host.take() == []
    assert host.count("mld", "rx_dropped_source") == 1


def test_mld_speaks_from_a_link_local_address_or_from_nobody() -> None:
    host = host6()
    host.stack.ip.join(host.eth, parse_address("ff05::5"))
    assert [frame[IPv6].src for frame in host.parsed()] == ["::"], "it has a global address only"


def test_before_it_has_an_address_a_host_reports_from_nobody() -> None:
    host = host6(None)
    host.stack.ip.join(host.eth, parse_address("ff05::5"))
    host.stack.ip.join(host.eth, parse_address("239.1.1.1"))
    mld, igmp = host.parsed()
    assert (mld[IPv6].src, igmp[IP].src) == ("::", "0.0.0.0")


@pytest.mark.parametrize(
    ("code", "bits", "value"),
    [
        (0, 8, 0), (127, 8, 127), (128, 8, 128), (255, 8, 31744), (32767, 16, 32767), (32768, 16, 32768),
        (65535, 16, 8387584),
    ],
)  # fmt: skip
def test_response_codes_are_read_as_small_floating_point_numbers(code: int, bits: int, value: int) -> None:
    assert response_time(code, bits) == value


def test_the_filter_takes_no_other_groups() -> None:
    host = V4.host()
    host.receive(Ether(src=PEER_MAC, dst="01:00:5e:01:02:03") / IP(src=PEER_IP, dst="239.1.2.3") / b"x")
    assert host.count("ethernet", "rx_dropped_multicast") == 1
