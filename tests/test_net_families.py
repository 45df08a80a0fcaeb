"""Echo and errors, the same tests for both families (rows D1, E20 to E23, H55); peers are played by scapy.

What only one family has is in test_net_icmp.py and at the end of this file.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
    in6_chksum,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum as scapy_checksum

from guest.net.address import format_address, parse_address
from guest.net.config import SECOND, NetConfig
from guest.net.family import IpHeader
from guest.net.pbuf import PacketBuffer
from tests.net_world import OUR_IP, OUR_MAC, PEER_IP, PEER_MAC, Clock, Host, fragments, join
from tests.net_world6 import OUR_IP6, PEER_IP6, host6, meet6, payloads, ping6, to_group, to_us6


@dataclass(frozen=True)
class Family:
    """What differs for a test."""

    number: int
    layer: str  # the counters' name
    ours: str
    peer: str
    router: str
    far: str
    header: int  # bytes of the IP header
    protocol: int
    echo: tuple[int, int]  # types of request and reply
    least: int  # bytes that a link must carry
    most: int  # bytes of an error's whole packet
    ip: type[Packet]

    def host(self, clock: Clock | None = None, **settings: object) -> Host:
        """A host that knows its peer and reaches everybody by a router that it knows."""
        if self.number == 4:
            host = Host(clock=clock, config=NetConfig(**settings))  # type: ignore[arg-type]
            host.meet()
            host.meet(self.router, "52:54:00:00:00:fe")
        else:
            host = host6(clock=clock, **settings)
            meet6(host)
            meet6(host, self.router, "52:54:00:00:00:fe")
        host.stack.set_gateway(self.router)
        return host

    def pair(self) -> tuple[Host, Host]:
        """Two hosts with one clock."""
        clock = Clock()
        if self.number == 4:
            return Host(clock=clock), Host(PEER_IP, PEER_MAC, clock=clock, seed=2)
        return host6(clock=clock), host6(PEER_IP6, PEER_MAC, clock=clock, seed=2)

    def packet(self, payload: Packet, src: str | None = None, dst: str | None = None, **fields: object) -> Packet:
        """An IP packet for our host."""
        if self.number == 6:
            names = {"ttl": "hlim", "proto": "nh", "tos": "tc"}
            fields = {names.get(name, name): value for name, value in fields.items()}
        header = self.ip(src=src or self.peer, dst=dst or self.ours, **fields)
        return Ether(dst=OUR_MAC, src=PEER_MAC) / header / payload

    def icmp(self, kind: int, code: int, word: int, body: bytes, src: str | None = None, **fields: object) -> Packet:
        """An ICMP message of any type for our host, its checksum right."""
        raw = bytes((kind, code, 0, 0)) + word.to_bytes(4, "big") + body
        frame = self.packet(Raw(raw), src, proto=self.protocol, **fields)
        check = scapy_checksum(raw) if self.number == 4 else in6_chksum(58, frame[IPv6], raw)
        frame[Raw].load = raw[:2] + check.to_bytes(2, "big") + raw[4:]
        return frame

    def request(self, payload: bytes = b"abcdefgh", ident: int = 7, seq: int = 1, **fields: object) -> Packet:
        """A ping for our host."""
        return self.icmp(self.echo[0], 0, ident << 16 | seq, payload, **fields)  # type: ignore[arg-type]

    def read(self, frame: bytes) -> tuple[int, int, int, bytes]:
        """Type, code, second word and body of an ICMP message, its checksum checked by scapy."""
        packet = Ether(frame)[self.ip]
        raw = bytes(packet.payload)[: (packet.len - 20) if self.number == 4 else packet.plen]
        whole = scapy_checksum(raw) if self.number == 4 else in6_chksum(58, packet, raw)
        assert whole == 0, "the checksum is wrong"
        return raw[0], raw[1], int.from_bytes(raw[4:8], "big"), raw[8:]


V4 = Family(4, "icmp", OUR_IP, PEER_IP, "10.0.0.254", "8.8.8.8", 20, 1, (8, 0), 68, 576, IP)
V6 = Family(6, "icmpv6", OUR_IP6, PEER_IP6, "2001:db8::fe", "2001:db8:8::8", 40, 58, (128, 129), 1280, 1280, IPv6)


@pytest.fixture(params=[V4, V6], ids=["v4", "v6"])
def family(request: pytest.FixtureRequest) -> Family:
    """Either family."""
    chosen: Family = request.param
    return chosen


# -- echo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 56, 255, 256, 257, 1400])
def test_e20_a_request_is_answered_with_the_same_payload(family: Family, size: int) -> None:
    host = family.host()
    payload = bytes(number * 7 & 255 for number in range(size))
    host.receive(family.request(payload, ident=0xBEEF, seq=0xFFFF, tos=0x10))
    (frame,) = host.take()
    reply = Ether(frame)[family.ip]
    assert family.read(frame) == (family.echo[1], 0, 0xBEEFFFFF, payload)
    assert (reply.src, reply.dst) == (family.ours, family.peer)
    assert (reply.ttl, reply.tos) == (64, 0x10) if family.number == 4 else (reply.hlim, reply.tc) == (64, 0x10)


@given(st.binary(max_size=600), st.integers(0, 0xFFFFFFFF), st.sets(st.integers(1, 660)), st.sampled_from([V4, V6]))
def test_e20_every_reply_sums_up_however_the_request_was_cut(
    payload: bytes, word: int, cuts: set[int], family: Family
) -> None:
    host = family.host()
    host.eth.input([fragments(bytes(family.request(payload, word >> 16, word & 0xFFFF)), cuts)])
    assert family.read(host.take()[0]) == (family.echo[1], 0, word, payload)


def test_e20_a_thousand_pings_between_two_stacks_come_back_whole(family: Family) -> None:
    ours, peer = family.pair()
    port = ours.stack.icmp.open_echo(family.number)
    sent = payloads(20, 1000, 1400)
    got = []
    for seq, payload in enumerate(sent):
        port.send(family.peer, seq, payload)
        join(ours, peer)
        while (reply := port.receive()) is not None:
            got.append((reply.src, reply.seq, reply.payload, reply.error))
    assert got == [(family.peer, seq, payload, None) for seq, payload in enumerate(sent)]


@pytest.mark.parametrize("size", [1500, 9000, 60_000])
def test_e17_pings_larger_than_the_link_go_and_come_in_fragments(family: Family, size: int) -> None:
    ours, peer = family.pair()
    port = ours.stack.icmp.open_echo()
    payload = (bytes(range(256)) * 256)[:size]
    port.send(family.peer, 1, payload)
    assert join(ours, peer) > 2 * (size // 1500)
    reply = port.receive()
    assert reply is not None
    assert (reply.error, reply.payload) == (None, payload)


def test_one_port_speaks_both_families_unless_it_is_for_one() -> None:
    host = Host()
    host.eth.add_address(OUR_IP6, 64, check=False)
    port = host.stack.icmp.open_echo()
    for address in ("127.0.0.1", "::1", OUR_IP, OUR_IP6):
        port.send(address, 1, b"x")
        while host.stack.poll_at() == host.clock.now:
            host.stack.poll()
        reply = port.receive()
        assert reply is not None
        assert reply.src == address
    with pytest.raises(OSError) as caught:
        host.stack.icmpv6.open_echo(6).send("127.0.0.1", 1, b"")
    assert caught.value.errno == errno.EAFNOSUPPORT


def test_e23_bad_checksums_are_dropped_and_counted(family: Family) -> None:
    host = family.host()
    frame = bytearray(bytes(family.request()))
    frame[14 + family.header + 2] ^= 1
    host.receive(bytes(frame))
    assert host.take() == []
    assert host.count(family.layer, "rx_dropped_checksum") == 1


@pytest.mark.parametrize("length", [0, 1, 7])
def test_h55_messages_shorter_than_8_bytes_are_dropped(family: Family, length: int) -> None:
    host = family.host()
    host.receive(family.packet(Raw(bytes((family.echo[0], 0, 0, 0, 0, 0, 0))[:length]), proto=family.protocol))
    assert host.take() == []
    assert host.count(family.layer, "rx_dropped_short") == 1


# -- errors that are received ----------------------------------------------------------------------------------------

TOO_BIG = {4: (3, 4), 6: (2, 0)}
UNREACHABLE = {4: (3, 1), 6: (1, 3)}


def sent_request(host: Host, family: Family, payload: bytes = b"hello") -> tuple[object, bytes]:
    """An echo port and the IP packet that it sent to a far host."""
    port = host.stack.icmp.open_echo()
    port.send(family.far, 5, payload)
    (frame,) = host.take()
    return port, frame[14:]


def test_errors_reach_the_port_whose_request_they_quote(family: Family) -> None:
    host = family.host()
    port, request = sent_request(host, family)
    host.receive(family.icmp(*UNREACHABLE[family.number], 0, request[: family.header + 8], src=family.router))
    reply = port.receive()  # type: ignore[attr-defined]
    text = "Destination Host Unreachable" if family.number == 4 else "Destination unreachable: Address unreachable"
    assert (reply.src, reply.seq, reply.error) == (family.router, 5, text)
    assert host.take() == [], "nothing is sent about an error"


def spoiled(family: Family) -> dict[str, tuple[Callable[[bytes], bytes], str]]:
    """Ways to quote what we did not send."""
    size = family.header
    at = 15 if family.number == 4 else 23  # the last byte of the source
    return {
        "nothing": (lambda raw: b"", "rx_dropped_quote_short"),
        "half a header": (lambda raw: raw[: size - 1], "rx_dropped_quote_short"),
        "7 bytes of payload": (lambda raw: raw[: size + 7], "rx_dropped_quote_short"),
        "another version": (lambda raw: b"\x55" + raw[1:], "rx_dropped_quote_short"),
        "another source": (lambda raw: raw[:at] + b"\x77" + raw[at + 1 :], "rx_dropped_quote_foreign"),
        "another identifier": (
            lambda raw: raw[: size + 4] + bytes([raw[size + 4] ^ 1]) + raw[size + 5 :],
            "rx_ignored_no_port",
        ),
        "a reply": (lambda raw: raw[:size] + bytes([family.echo[1]]) + raw[size + 1 :], "rx_ignored_no_port"),
    }


@pytest.mark.parametrize("name", spoiled(V4))
def test_h55_errors_about_short_or_foreign_packets_are_not_believed(family: Family, name: str) -> None:
    host = family.host()
    port, request = sent_request(host, family)
    spoil, counter = spoiled(family)[name]
    host.receive(family.icmp(*UNREACHABLE[family.number], 0, spoil(request)))
    assert port.receive() is None  # type: ignore[attr-defined]
    assert host.count(family.layer, counter) == 1


@pytest.mark.parametrize("below", [1, 1000])
def test_h55_an_mtu_below_the_floor_is_not_believed(family: Family, below: int) -> None:
    host = family.host()
    port, request = sent_request(host, family)
    host.receive(family.icmp(*TOO_BIG[family.number], max(0, family.least - below), request))
    assert port.receive() is None  # type: ignore[attr-defined]
    assert host.count(family.layer, "rx_dropped_mtu") == 1
    assert host.stack.ip.path_mtu(parse_address(family.far)) == 1500


def test_h55_a_path_mtu_is_learned_from_whoever_quotes_our_packet_and_from_nobody_else(family: Family) -> None:
    host = family.host()
    port, request = sent_request(host, family, bytes(1400))
    far = parse_address(family.far)
    foreign = spoiled(family)["another identifier"][0](request)
    host.receive(family.icmp(*TOO_BIG[family.number], 1300, foreign[:500]))
    assert host.stack.ip.path_mtu(far) == 1500
    host.receive(family.icmp(*TOO_BIG[family.number], 1300, request[:500], src=family.router))
    assert host.stack.ip.path_mtu(far) == 1300
    reply = port.receive()  # type: ignore[attr-defined]
    assert "1300" in reply.error
    port.send(family.far, 6, bytes(1400))  # type: ignore[attr-defined]
    assert all(len(frame) <= 1314 for frame in host.take()), "what follows goes in fragments"


def test_the_path_of_our_echo_replies_is_learned_too(family: Family) -> None:
    host = family.host()
    host.receive(family.request(bytes(1400), src=family.far))
    (reply,) = host.take()
    host.receive(family.icmp(*TOO_BIG[family.number], 1300, reply[14:500], src=family.router))
    assert host.stack.ip.path_mtu(parse_address(family.far)) == 1300


def test_h55_an_echo_reply_that_was_never_sent_lowers_nothing(family: Family) -> None:
    host = family.host()
    host.receive(family.request(bytes(1400), src=family.far, seq=5))
    (reply,) = host.take()
    never = reply[14:500]
    at = family.header + 7
    for quote in (
        never[:at] + b"\x06" + never[at + 1 :],  # another number
        never[: at - 3] + b"\x70" + never[at - 2 :],  # another identifier
        never[: family.header - 1] + b"\x77" + never[family.header :],  # another peer
    ):
        raw = host.stack.raw.open(family.number, family.protocol)  # it hears of all errors; that proves nothing
        host.receive(family.icmp(*TOO_BIG[family.number], 1300, quote, src=family.peer))
        raw.close()
        host.receive(family.icmp(*TOO_BIG[family.number], 1300, quote, src=family.peer))
        assert len(host.stack.ip.path_mtus) == 0
    assert host.count(family.layer, "rx_ignored_no_port") == 3


def test_h55_replies_are_remembered_as_far_as_they_are_large_and_256_at_most(family: Family) -> None:
    host = family.host()
    replies = []
    for seq, size in enumerate([1400] * 2 + [503] * 300 + [504] * 255):
        host.receive(family.request(bytes(size), src=family.far, seq=seq))
        replies.append(host.take()[0][14:500])
    host.receive(family.icmp(*TOO_BIG[family.number], 1300, replies[0], src=family.router))
    assert len(host.stack.ip.path_mtus) == 0
    host.receive(family.icmp(*TOO_BIG[family.number], 1300, replies[1], src=family.router))
    assert host.stack.ip.path_mtu(parse_address(family.far)) == 1300


def test_h55_a_quote_of_a_protocol_that_nobody_handles_lowers_nothing(family: Family) -> None:
    host = family.host()
    quote = bytes(family.packet(Raw(bytes(100)), family.ours, family.far, proto=253))[14:]
    host.receive(family.icmp(*TOO_BIG[family.number], 1300, quote, src=family.peer))
    assert len(host.stack.ip.path_mtus) == 0
    assert host.count(family.layer, "rx_ignored_no_port") == 1


def test_h55_a_raw_end_hears_of_every_error_but_that_proves_nothing(family: Family) -> None:
    host = family.host()
    _, request = sent_request(host, family, bytes(1400))
    foreign = spoiled(family)["another identifier"][0](request)
    raw = host.stack.raw.open(family.number, family.protocol)
    raw.options.recverr = True
    host.receive(family.icmp(*TOO_BIG[family.number], 1300, foreign[:500], src=family.router))
    assert [error.mtu for error in raw.errors] == [1300]
    assert len(host.stack.ip.path_mtus) == 0, "no packet was sent under that identifier"
    host.receive(family.icmp(*TOO_BIG[family.number], 1300, request[:500], src=family.router))
    assert host.stack.ip.path_mtu(parse_address(family.far)) == 1300


@pytest.mark.parametrize("own_header", [False, True])
def test_h55_what_a_raw_end_has_sent_is_remembered_though_it_is_closed(family: Family, own_header: bool) -> None:
    host = family.host()
    message = bytes((13, 0)) + b"raw end's" + bytes(1400)
    if own_header:
        message = bytes(family.packet(Raw(message), family.ours, family.far, proto=family.protocol))[14:]
    raw = host.stack.raw.open(family.number, 255 if own_header else family.protocol)
    assert raw.send([message], (parse_address(family.far), 0)) == 0
    (frame,) = host.take()
    quote = frame[14:500]
    at = family.header + 5
    for never in (quote[:at] + b"?" + quote[at + 1 :], quote[: family.header - 1] + b"?" + quote[family.header :]):
        host.receive(family.icmp(*TOO_BIG[family.number], 1300, never, src=family.router))
    assert len(host.stack.ip.path_mtus) == 0
    raw.close()
    host.receive(family.icmp(*TOO_BIG[family.number], 1300, quote, src=family.router))
    assert host.stack.ip.path_mtu(parse_address(family.far)) == 1300


def test_h55_packets_of_raw_ends_are_remembered_as_far_as_they_are_large_and_256_at_most(family: Family) -> None:
    host = family.host()
    raw = host.stack.raw.open(family.number, 253)
    quotes = []
    for number, size in enumerate([1400] * 2 + [503] * 300 + [504] * 255):
        assert raw.send([number.to_bytes(8, "big"), bytes(size)], (parse_address(family.far), 0)) == 0
        quotes.append(host.take()[0][14:500])
    for forgotten in (quotes[0], quotes[2]):
        host.receive(family.icmp(*TOO_BIG[family.number], 1300, forgotten, src=family.router))
    assert len(host.stack.ip.path_mtus) == 0
    host.receive(family.icmp(*TOO_BIG[family.number], 1300, quotes[1], src=family.router))
    assert host.stack.ip.path_mtu(parse_address(family.far)) == 1300


def test_a_neighbour_that_does_not_answer_is_an_error_at_the_port(family: Family) -> None:
    host = family.host()
    port = host.stack.icmp.open_echo()
    silent = family.ours[:-1] + "77"
    port.send(silent, 1, b"a")
    host.wait(3 * SECOND - 1)
    assert port.receive() is None
    host.wait(1)
    reply = port.receive()
    assert reply is not None
    assert reply.src == family.ours
    assert reply.error in ("Destination Host Unreachable", "Destination unreachable: Address unreachable")


# -- errors that are sent --------------------------------------------------------------------------------------------

# kind → (type, code) in IPv4 and IPv6, and the second word for a value of 1300
KINDS = {
    "no_route": ((3, 0, 0), (1, 0, 1300)),
    "host": ((3, 1, 0), (1, 3, 1300)),
    "protocol": ((3, 2, 0), (4, 1, 1300)),
    "port": ((3, 3, 0), (1, 4, 1300)),
    "too_big": ((3, 4, 1300), (2, 0, 1300)),
    "admin": ((3, 13, 0), (1, 1, 1300)),
    "ttl": ((11, 0, 0), (3, 0, 1300)),
    "reassembly": ((11, 1, 0), (3, 1, 1300)),
    "parameter": ((12, 0, (1300 & 255) << 24), (4, 0, 1300)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_e21_e22_every_kind_of_error_has_its_type_and_code(family: Family, kind: str) -> None:
    host = family.host()
    host.stack.ip.handlers[99] = partial(complain, host, kind)
    request = family.packet(Raw(bytes(50)), proto=99)
    host.receive(request)
    (frame,) = host.take()
    expected = KINDS[kind][family.number == 6]
    assert family.read(frame) == (*expected, bytes(request[family.ip]))
    assert (Ether(frame)[family.ip].src, Ether(frame)[family.ip].dst) == (family.ours, family.peer)


def test_e21_an_error_quotes_as_much_as_its_family_allows(family: Family) -> None:
    host = family.host()
    request = family.packet(Raw(bytes(1400)), proto=99)
    host.eth.input([fragments(bytes(request), {33, 40, 700})])
    (frame,) = host.take()
    assert len(frame) == 14 + family.most
    assert family.read(frame)[3] == bytes(request[family.ip])[: family.most - family.header - 8]


def test_e21_udp_to_a_port_that_nobody_has_is_port_unreachable(family: Family) -> None:
    host = family.host()
    host.receive(family.packet(UDP(sport=5, dport=9) / b"hello"))
    assert family.read(host.take()[0])[:2] == ((3, 3) if family.number == 4 else (1, 4))


def test_e21_no_error_about_an_error_a_later_fragment_or_nobody(family: Family) -> None:
    host = family.host()
    told: list[bool] = []
    icmp = host.stack.icmp if family.number == 4 else host.stack.icmpv6
    answer = KINDS["port"][family.number == 6]
    host.stack.ip.handlers[family.protocol] = lambda packet, header: told.append(
        icmp.send_error(packet, header, *answer)
    )
    for kind in (3, 11) if family.number == 4 else (1, 2, 3, 4, 100, 137):
        host.receive(family.icmp(kind, 0, 0, bytes(60)))
    assert not any(told)
    host.stack.ip.handlers[99] = lambda packet, header: told.append(
        icmp.send_error(packet, header._replace(fragment=2), *answer)
    )
    host.receive(family.packet(Raw(bytes(50)), proto=99))
    assert not any(told)
    assert host.take() == []
    host.receive(family.request())
    assert told[-1] is True, "a request is no error"


def test_e21_errors_are_rate_limited_and_the_bucket_does_not_overflow(family: Family) -> None:
    host = family.host()
    frame = bytes(family.packet(Raw(bytes(30)), proto=99))
    host.receive(*[frame] * 200)
    assert len(host.take()) == 50, "the burst"
    assert host.count(family.layer, "tx_dropped_rate_limited") == 150
    host.wait(10_000)
    host.receive(*[frame] * 20)
    assert len(host.take()) == 10, "a thousand a second"
    host.wait(60 * SECOND)
    host.take()
    host.receive(*[frame] * 60)
    assert len(host.take()) == 50


# -- a router --------------------------------------------------------------------------------------------------------


def router_between(family: Family) -> tuple[Host, list[bytes]]:
    """Our host as a router with a second interface, whose frames go into the list."""
    host = family.host()
    out: list[bytes] = []
    second = host.stack.add_interface(
        "eth1", b"\x52\x54\0\0\0\x11", 1400, lambda packets: out.extend(packet.tobytes() for packet in packets)
    )
    if family.number == 4:
        second.add_address("10.7.0.1", 24)
    else:
        second.add_address("2001:db8:7::1", 64, check=False)
    second.set_up()
    host.stack.forwarding = True
    host.wait(SECOND * 3)
    host.take()
    out.clear()
    return host, out


def inner(family: Family) -> str:
    """A host behind the second interface that does not exist."""
    return "10.7.0.7" if family.number == 4 else "2001:db8:7::7"


def test_d22_forwarding_is_a_switch_of_each_stack(family: Family) -> None:
    host, out = router_between(family)
    host.stack.forwarding = False
    host.take()  # it leaves the group of the routers
    out.clear()
    frame = family.packet(UDP(dport=9), dst=inner(family))
    host.receive(frame)
    assert (host.take(), out) == ([], [])
    host.stack.forwarding = True
    out.clear()
    host.receive(frame)
    assert len(out) == 1, "it asks for the next hop"


@pytest.mark.parametrize("case", ["hops", "no route", "too big", "host"])
def test_e21_e22_a_router_says_why_a_packet_went_no_further(family: Family, case: str) -> None:
    host, _ = router_between(family)
    if case == "no route":
        host.stack.remove_route("0.0.0.0" if family.number == 4 else "::", 0)
    flags: dict[str, object] = {"flags": "DF"} if family.number == 4 else {}
    dst = family.far if case == "no route" else inner(family)
    size = 1420 if case == "too big" else 20
    frame = family.packet(UDP(dport=9) / bytes(size), dst=dst, ttl=1 if case == "hops" else 9, **flags)
    host.receive(frame)
    if case == "host":
        assert host.take() == []
        host.wait(3 * SECOND)
    expected = {
        "hops": ((11, 0), (3, 0)), "no route": ((3, 0), (1, 0)), "too big": ((3, 4), (2, 0)), "host": ((3, 1), (1, 3)),
    }[case][family.number == 6]  # fmt: skip
    (message,) = host.take()
    kind, code, word, quote = family.read(message)
    assert (kind, code) == expected
    assert word == (1400 if case == "too big" else 0)
    assert format_address(parse_address(Ether(message)[family.ip].dst)) == family.peer
    assert quote[-20:] == bytes(20)


# -- what only ICMPv6 has --------------------------------------------------------------------------------------------


def quote_of(host: Host, size: int = 0) -> tuple[object, bytes]:
    """An echo port of ours and its request to the peer."""
    port = host.stack.icmp.open_echo()
    port.send(PEER_IP6, 5, bytes(size))
    return port, host.take()[0][14:]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (ICMPv6DestUnreach(code=0), "Destination unreachable: No route"),
        (ICMPv6DestUnreach(code=1), "Destination unreachable: Administratively prohibited"),
        (ICMPv6DestUnreach(code=9), "Destination unreachable: Unknown code 9"),
        (ICMPv6PacketTooBig(mtu=1280), "Packet too big: mtu=1280"),
        (ICMPv6TimeExceeded(code=0), "Time exceeded: Hop limit"),
        (ICMPv6TimeExceeded(code=1), "Time exceeded: Defragmentation failure"),
        (ICMPv6ParamProblem(code=1, ptr=6), "Parameter problem: Unknown header"),
    ],
)
def test_icmpv6_errors_have_words(message: Packet, text: str) -> None:
    host = V6.host()
    port, request = quote_of(host)
    host.receive(to_us6(message / Raw(request)))
    assert port.receive().error == text  # type: ignore[attr-defined]


def test_a_quote_with_extension_headers_is_read_through_them() -> None:
    host = V6.host()
    port, request = quote_of(host)
    fragment = bytes(IPv6ExtHdrFragment(nh=58, offset=0, m=1, id=9))
    quote = request[:6] + b"\x2c" + request[7:40] + fragment + request[40:]
    host.receive(to_us6(ICMPv6TimeExceeded() / Raw(quote)))
    assert port.receive() is not None  # type: ignore[attr-defined]
    later = quote[:42] + b"\x00\x08" + quote[44:]
    host.receive(to_us6(ICMPv6TimeExceeded() / Raw(later)))
    assert host.count("icmpv6", "rx_dropped_quote_foreign") == 1


def test_a_ping_to_a_group_is_answered_from_an_address_of_one_host() -> None:
    host = V6.host()
    ping = to_group(ICMPv6EchoRequest(data=b"x"), "ff02::1", PEER_IP6)
    host.receive(ping)
    (reply,) = host.parsed()
    assert (reply[IPv6].src, reply[IPv6].dst, reply[ICMPv6EchoReply].data) == (OUR_IP6, PEER_IP6, b"x")
    assert in6_chksum(58, reply[IPv6], bytes(reply[IPv6].payload)) == 0
    quiet = V6.host(icmpv6_echo_multicast=False)
    quiet.receive(ping)
    assert quiet.take() == []


def complain(host: Host, kind: str, packet: PacketBuffer, header: IpHeader) -> None:
    """A transport that refuses everything."""
    assert host.stack.ip.error is not None
    host.stack.ip.error(packet, header, kind, 1300)


def test_errors_about_groups_are_sent_only_where_the_rfc_says_so() -> None:
    host = V6.host()
    host.stack.ip.join(host.eth, parse_address("ff02::77"))
    host.take()
    for kind, count in (("port", 0), ("protocol", 0), ("too_big", 1), ("option", 1)):
        host.stack.ip.handlers[99] = partial(complain, host, kind)
        frame = to_group(Raw(b"x"), "ff02::77", PEER_IP6)
        frame[IPv6].nh = 99
        host.receive(frame)
        assert len(host.take()) == count, kind


def test_link_local_pings_are_answered_out_of_the_interface_they_came_in_by() -> None:
    host = host6(ipv6=True)
    other: list[bytes] = []
    second = host.stack.add_interface("eth1", b"\x52\x54\0\0\0\x11", 1500, lambda packets: other.extend([b"x"]))
    second.set_up()
    host.wait(3 * SECOND)
    host.take()
    other.clear()
    host.receive(ping6(src="fe80::2", dst="fe80::5054:ff:fe00:1"))
    assert len(host.take()) == 1
    assert other == []


def test_an_unknown_icmpv6_type_is_counted() -> None:
    host = V6.host()
    host.receive(V6.icmp(200, 0, 0, b""))
    assert host.take() == []
    assert host.count("icmpv6", "rx_dropped_type") == 1


def test_d1_an_ipv4_packet_shows_as_its_mapped_form_in_the_trace_and_ipv6_as_it_is(family: Family) -> None:
    host = family.host()
    lines: list[str] = []
    host.stack.trace = lambda stage, packet, text: lines.append(f"{stage}: {text}")
    host.receive(family.request())
    mapped = "::ffff:" if family.number == 4 else ""
    assert f"ip: {mapped}{family.peer} > {mapped}{family.ours} protocol {family.protocol}" in lines
