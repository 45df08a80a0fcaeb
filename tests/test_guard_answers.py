"""What senders of rejected packets are told, on a wire and on this host (rows C27, D11), for both families.

Peers are played by scapy, which also reads what is answered.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from guest.net.address import parse_address
from guest.net.family import IpHeader
from guest.net.guard import Guard
from guest.net.pbuf import Offload, PacketBuffer
from guest.net.udp import UdpEndpoint
from tests.net_world import BROADCAST, OUR_IP, OUR_MAC, PEER_IP, PEER_MAC, Host, join
from tests.net_world6 import OUR_IP6, PEER_IP6, host6, meet6
from tests.udp_world import at

SECOND = 1_000_000


@dataclass(frozen=True)
class Family:
    """What differs for a test."""

    number: int
    ours: str
    peer: str
    behind: str  # a host behind eth1, and our address there
    second: str
    header: int
    icmp: str
    protocol: int
    unreachable: tuple[int, int]  # type and code of "port unreachable"
    ip: type[Packet]

    def host(self, *lines: str) -> Host:
        """A host that knows its peer, guarded by these rules."""
        if self.number == 4:
            host = Host()
            host.meet()
        else:
            host = host6()
            meet6(host)
        host.stack.guard = Guard(lines)
        return host

    def router(self, *lines: str) -> tuple[Host, list[bytes]]:
        """The same, forwarding to eth1, whose frames go into the list."""
        host = self.host()
        out: list[bytes] = []
        eth1 = host.stack.add_interface(
            "eth1", b"\x52\x54\0\0\0\x11", 1500, lambda packets: out.extend(packet.tobytes() for packet in packets)
        )
        eth1.add_address(self.second, 24 if self.number == 4 else 64, check=False)
        eth1.set_up()
        host.stack.forwarding = True
        host.wait(3 * SECOND)
        host.stack.guard = Guard(lines)
        host.take()
        out.clear()
        return host, out

    def frame(self, payload: Packet, src: str = "", dst: str = "", mac: str = OUR_MAC, **fields: object) -> bytes:
        """A frame from our peer; its checksums right."""
        header = self.ip(src=src or self.peer, dst=dst or self.ours, **fields)
        return bytes(Ether(dst=mac, src=PEER_MAC) / header / payload)


V4 = Family(4, OUR_IP, PEER_IP, "10.7.0.7", "10.7.0.1", 20, "icmp", 1, (3, 3), IP)
V6 = Family(6, OUR_IP6, PEER_IP6, "2001:db8:7::7", "2001:db8:7::1", 40, "icmpv6", 58, (1, 4), IPv6)

both = pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])


def read_reset(family: Family, frame: bytes) -> TCP:
    """The one TCP segment of a frame, its checksum found right by scapy."""
    packet = Ether(frame)[family.ip]
    segment = packet[TCP]
    again = family.ip(bytes(packet))
    del again[TCP].chksum
    assert family.ip(bytes(again))[TCP].chksum == segment.chksum, "the checksum is wrong"
    return segment


def syn(**fields: object) -> TCP:
    """A segment to port 80."""
    return TCP(**({"sport": 4000, "dport": 80, "seq": 1000, "flags": "S", "window": 8192} | fields))


# -- TCP: a reset ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("segment", "payload", "answer"),
    [
        ({"flags": "S"}, b"", ("RA", 0, 1001)),
        ({"flags": "S"}, b"data", ("RA", 0, 1005)),
        ({"flags": "F"}, b"abc", ("RA", 0, 1004)),
        ({"flags": "A", "ack": 77}, b"", ("R", 77, 0)),
        ({"flags": "PA", "ack": 0xFFFFFFFF}, b"data", ("R", 0xFFFFFFFF, 0)),
        ({"flags": "", "seq": 0xFFFFFFFE}, b"abcd", ("RA", 0, 2)),
        ({"flags": "S", "options": [("MSS", 1460), ("SAckOK", b"")]}, b"", ("RA", 0, 1001)),
    ],
)
def test_c27_a_rejected_segment_is_answered_with_the_reset_of_a_closed_port(
    family: Family, segment: dict[str, object], payload: bytes, answer: tuple[str, int, int]
) -> None:
    host = family.host("reject in tcp to port 80")
    host.receive(family.frame(syn(**segment) / Raw(payload)))
    (frame,) = host.take()
    packet = Ether(frame)[family.ip]
    reset = read_reset(family, frame)
    assert (packet.src, packet.dst, Ether(frame).dst) == (family.ours, family.peer, PEER_MAC)
    assert (reset.sport, reset.dport) == (80, 4000)
    assert (str(reset.flags), reset.seq, reset.ack) == answer
    assert host.stack.counters["guard"] == {"tx_resets": 1}


@both
@pytest.mark.parametrize("case", ["a reset", "a bad checksum", "a cut header", "a long offset", "a broadcast"])
def test_c27_what_is_not_answered(family: Family, case: str) -> None:
    host = family.host("reject in tcp")
    raw = bytearray(family.frame(syn(flags="R" if case == "a reset" else "S")))
    if case == "a bad checksum":
        raw[-1] ^= 1
    elif case == "a cut header":
        raw = bytearray(family.frame(Raw(bytes(19)), **({"proto": 6} if family is V4 else {"nh": 6})))
    elif case == "a long offset":
        raw = bytearray(family.frame(syn(dataofs=6)))
    elif case == "a broadcast":
        group = "10.0.0.255" if family is V4 else "ff02::1"
        raw = bytearray(family.frame(syn(), dst=group, mac=BROADCAST if family is V4 else "33:33:00:00:00:01"))
    host.receive(bytes(raw))
    assert host.take() == []
    assert host.count("ip", "rx_dropped_guard") == 1, "it is dropped all the same"


@both
@pytest.mark.parametrize("flags", [1, 2])
def test_c27_a_checksum_that_the_device_vouches_for_is_not_looked_at(family: Family, flags: int) -> None:
    host = family.host("reject in tcp")
    raw = bytearray(family.frame(syn()))
    raw[-1] ^= 1
    packet = PacketBuffer.from_bytes(raw)
    packet.offload = Offload(flags=flags)
    host.eth.input([packet])
    assert len(host.take()) == 1


@both
@given(st.binary(max_size=60), st.integers(0, 255))
def test_c27_no_segment_makes_the_guard_raise(family: Family, raw: bytes, cut: int) -> None:
    host = family.host("reject in")
    protocol: dict[str, object] = {"proto": 6} if family is V4 else {"nh": 6}
    whole = bytes(syn())[: cut % 21] + raw
    host.receive(family.frame(Raw(whole), **protocol))
    assert host.count("ip", "rx_dropped_guard") == 1
    assert all(str(read_reset(family, frame).flags) in ("R", "RA") for frame in host.take())


# -- everything else: port unreachable -------------------------------------------------------------------------------


def read_error(family: Family, frame: bytes) -> tuple[str, tuple[int, int], bytes]:
    """Who sends an ICMP error, its type and code, and what it quotes."""
    packet = Ether(frame)[family.ip]
    message = packet[ICMP] if family is V4 else packet[ICMPv6DestUnreach]
    return packet.src, (message.type, message.code), bytes(message.payload)


@both
@pytest.mark.parametrize("what", ["udp", "echo", "unknown"])
def test_c27_anything_else_is_answered_with_port_unreachable(family: Family, what: str) -> None:
    host = family.host("reject in")
    echo = ICMP(type=8, id=7, seq=1) if family is V4 else ICMPv6EchoRequest(id=7, seq=1)
    payload = {"udp": UDP(sport=1, dport=2), "echo": echo, "unknown": Raw(b"x" * 30)}[what] / Raw(b"payload")
    fields: dict[str, object] = {"proto" if family is V4 else "nh": 99} if what == "unknown" else {}
    frame = family.frame(payload, **fields)
    host.receive(frame)
    (answer,) = host.take()
    source, kind, quote = read_error(family, answer)
    assert (source, kind) == (family.ours, family.unreachable)
    assert frame[14:].startswith(quote) or quote.startswith(frame[14:]), "it quotes the packet"
    assert host.count(family.icmp, "tx_errors") == 1


@both
def test_c27_errors_are_not_answered_with_errors_and_not_faster_than_others(family: Family) -> None:
    host = family.host("reject in")
    quote = bytes(family.ip(src=family.ours, dst=family.peer) / UDP(sport=1, dport=2) / Raw(bytes(8)))
    error = ICMP(type=3, code=3) if family is V4 else ICMPv6DestUnreach(code=4)
    host.receive(family.frame(error / Raw(quote)))
    assert host.take() == []
    host.receive(*[family.frame(UDP(sport=1, dport=2) / Raw(b"x"))] * 200)
    assert len(host.take()) == 50, "the burst of all ICMP errors"


@both
def test_c27_answers_pass_the_guard_unseen(family: Family) -> None:
    host = family.host("policy in reject", "policy out drop")
    host.receive(family.frame(syn()), family.frame(UDP(sport=1, dport=2)))
    assert len(host.take()) == 2, "a reset and an error"
    assert host.stack.guard is not None
    assert host.stack.guard.policy("out") == ("drop", 0, 0)
    assert host.stack.udp.open(family.number).send([b"x"], at(family.peer, 9)) == errno.EPERM, "nothing else does"


# -- on the way through ----------------------------------------------------------------------------------------------


@both
def test_d11_a_reset_on_the_way_through_comes_from_where_the_segment_was_to_go(family: Family) -> None:
    host, out = family.router("reject forward tcp to port 80 on eth0 via eth1")
    host.receive(family.frame(syn(), dst=family.behind))
    (frame,) = host.take()
    packet = Ether(frame)[family.ip]
    reset = read_reset(family, frame)
    assert (packet.src, packet.dst, reset.sport, reset.ack) == (family.behind, family.peer, 80, 1001)
    assert out == []
    assert host.count("ip", "rx_dropped_guard") == 1


@both
def test_d11_an_error_on_the_way_through_comes_from_the_router(family: Family) -> None:
    host, out = family.router("reject forward udp")
    frame = family.frame(UDP(sport=1, dport=2) / Raw(b"payload"), dst=family.behind)
    host.receive(frame)
    (answer,) = host.take()
    assert read_error(family, answer) == (family.ours, family.unreachable, frame[14:])
    assert out == []


@both
def test_d11_only_the_first_fragment_is_answered_and_none_of_tcp(family: Family) -> None:
    host, out = family.router("reject forward")

    def piece(protocol: int, offset: int, data: bytes) -> bytes:
        if family is V4:
            return family.frame(Raw(data), dst=family.behind, proto=protocol, flags="MF", frag=offset)
        header = IPv6ExtHdrFragment(nh=protocol, offset=offset, m=1, id=9)
        return family.frame(header / Raw(data), dst=family.behind)

    host.receive(piece(17, 2, bytes(16)), piece(6, 0, bytes(syn()) + bytes(4)), piece(6, 3, bytes(24)))
    assert host.take() == []
    host.receive(piece(17, 0, bytes(16)))
    (answer,) = host.take()
    assert read_error(family, answer)[1] == family.unreachable
    assert (out, host.count("ip", "rx_dropped_guard")) == ([], 4)


def test_d11_a_segment_behind_extension_headers_is_answered() -> None:
    host, _ = V6.router("reject forward tcp")
    host.receive(V6.frame(IPv6ExtHdrDestOpt() / syn(), dst=V6.behind))
    (frame,) = host.take()
    assert str(read_reset(V6, frame).flags) == "RA"


def test_d11_a_link_local_sender_is_answered_on_its_link() -> None:
    host = V6.host("reject in tcp")
    host.eth.add_address("fe80::1", 64, check=False)
    meet6(host, "fe80::2", target="fe80::1")
    host.receive(V6.frame(syn(), src="fe80::2", dst="fe80::1"))
    (frame,) = host.take()
    assert (Ether(frame)[IPv6].src, Ether(frame)[IPv6].dst) == ("fe80::1", "fe80::2")


# -- senders on this host --------------------------------------------------------------------------------------------


def connected(host: Host, family: Family, port: int = 53) -> UdpEndpoint:
    end = host.stack.udp.open(family.number)
    assert end.connect(*at(family.peer, port)) == 0
    return end


@both
def test_c27_a_rejected_datagram_of_this_host_is_eperm_and_then_econnrefused(family: Family) -> None:
    """As Linux: the call that sends is refused, and a connected end hears of the error that its own host made."""
    host = family.host("reject out udp to port 53")
    end = connected(host, family)
    other = host.stack.udp.open(family.number)
    assert end.send([b"question"]) == errno.EPERM
    assert other.send([b"question"], at(family.peer, 53)) == errno.EPERM
    assert (end.error, host.stack.poll_at()) == (0, host.clock.now), "not in the middle of the call"
    host.wait(0)
    assert (end.take_error(), other.take_error()) == (errno.ECONNREFUSED, 0)
    assert host.take() == []
    assert host.stack.counters["guard"] == {"told": 2}
    assert host.count("ip", "tx_dropped_guard") == 2


@both
def test_c27_a_dropped_datagram_of_this_host_is_eperm_and_no_more(family: Family) -> None:
    host = family.host("drop out udp to port 53")
    end = connected(host, family)
    assert end.send([b"question"]) == errno.EPERM
    host.wait(SECOND)
    assert (end.error, host.take()) == (0, [])


@both
def test_c27_the_error_that_this_host_made_has_what_was_sent(family: Family) -> None:
    host = family.host("reject out udp to port 53")
    end = connected(host, family)
    end.options.recverr = True
    end.send([b"question"])
    host.wait(0)
    (error,) = end.errors
    assert error.quoted.endswith(b"question")
    assert error.dst == parse_address(family.peer)


@both
def test_c27_a_rejected_ping_of_this_host_fails_and_its_port_hears_why(family: Family) -> None:
    host = family.host("reject out")
    port = (host.stack.icmp if family is V4 else host.stack.icmpv6).open_echo(family.number)
    with pytest.raises(PermissionError):
        port.send(family.peer, 1, b"payload")
    host.wait(0)
    reply = port.receive()
    assert reply is not None
    assert reply.error is not None


@both
def test_c27_on_the_loopback_the_sender_is_told_by_a_rule_of_either_hook(family: Family) -> None:
    for hook in ("in", "out"):
        host = family.host(f"reject {hook} udp to port 53", "policy out drop", "accept out udp on lo")
        end = host.stack.udp.open(family.number)
        assert end.connect(*at("127.0.0.1" if family is V4 else "::1", 53)) == 0
        assert end.send([b"x"]) == (0 if hook == "in" else errno.EPERM)
        host.wait(0)
        assert end.take_error() == errno.ECONNREFUSED, hook


@both
@pytest.mark.parametrize("hook", ["out", "in"])
def test_c27_a_rejected_segment_of_this_host_comes_back_as_a_reset(family: Family, hook: str) -> None:
    """TCP is played here: what it sends, and what its handler gets."""
    host = family.host(f"reject {hook} tcp to port 80")
    got: list[tuple[IpHeader, bytes]] = []
    host.stack.ip.handlers[6] = lambda packet, header: got.append((header, packet.tobytes()))
    ours, there = parse_address(family.ours), parse_address(family.peer if hook == "out" else family.ours)
    whole = family.ip(src=family.ours, dst=family.peer if hook == "out" else family.ours) / syn()
    segment = bytes(family.ip(bytes(whole))[TCP])
    failed = host.stack.ip.output(PacketBuffer.from_bytes(segment), there, 6, src=ours)
    assert failed == (errno.EPERM if hook == "out" else 0)
    assert got == [], "not in the middle of the call"
    host.wait(0)
    ((header, raw),) = got
    assert (header.src, header.dst, header.protocol) == (there, ours, 6)
    back = family.ip(src=whole.dst, dst=whole.src, **{"proto" if family is V4 else "nh": 6})
    reset = read_reset(family, bytes(Ether(dst=OUR_MAC, src=PEER_MAC) / back / raw))
    assert (str(reset.flags), reset.sport, reset.dport, reset.seq, reset.ack) == ("RA", 80, 4000, 0, 1001)


@both
def test_c27_to_a_group_nobody_is_told(family: Family) -> None:
    host = family.host("reject out udp")
    end = host.stack.udp.open(family.number)
    group = "239.1.1.1" if family is V4 else "ff0e::1"
    end.options.recverr = True
    assert end.send([b"x"], at(group, 9), interface=host.eth) == errno.EPERM
    host.wait(0)
    assert (list(end.errors), host.stack.counters["guard"]) == ([], {})


def test_c27_how_many_wait_to_be_told_is_bounded() -> None:
    host = V4.host("reject out udp")
    end = connected(host, V4)
    for _ in range(300):
        end.send([b"x"])
    assert host.count("ip", "tx_dropped_guard_pending") == 44
    host.wait(0)
    assert host.stack.counters["guard"] == {"told": 256}


# -- TCP as it is used -----------------------------------------------------------------------------------------------


def hosts(family: Family) -> tuple[Host, Host]:
    """A client and a server, on one wire and one clock, that know each other."""
    client = family.host()
    make = {"clock": client.clock, "seed": 2}
    server = Host(PEER_IP, PEER_MAC, **make) if family is V4 else host6(PEER_IP6, PEER_MAC, **make)  # type: ignore[arg-type]
    client.stack.guard = None
    assert server.stack.udp.open(family.number).send([b"x"], at(family.ours, 9)) == 0
    join(client, server)
    return client, server


def pass_time(seconds: float, *both: Host) -> None:
    """Let time pass for hosts on one wire."""
    clock = both[0].clock
    end = clock.now + round(seconds * SECOND)
    while True:
        for host in both:
            while (due := host.stack.poll_at()) is not None and due <= clock.now:
                host.stack.poll()
        if join(*both):
            continue
        soon = min((due for host in both if (due := host.stack.poll_at()) is not None), default=end + 1)
        if soon > end:
            clock.now = end
            return
        clock.now = soon


@both
@pytest.mark.parametrize("hook", ["out", "in"])
def test_c27_a_drop_rule_on_port_80_makes_connect_time_out(family: Family, hook: str) -> None:
    client, server = hosts(family)
    listening = server.stack.tcp.open(family.number)
    assert (listening.bind(*at(family.peer, 80)), listening.listen(5)) == (0, 0)
    (client if hook == "out" else server).stack.guard = guard = Guard([f"drop {hook} tcp to port 80"])
    end = client.stack.tcp.open(family.number)
    assert end.connect(*at(family.peer, 80)) == errno.EINPROGRESS
    pass_time(60, client, server)
    assert end.connecting, "it goes on trying"
    pass_time(10, client, server)
    assert (end.connecting, end.take_error()) == (False, errno.ETIMEDOUT)
    assert guard.rules[0].packets == 6, "the first SYN and five retries"
    assert listening.accept() is None


@both
@pytest.mark.parametrize("hook", ["out", "in"])
def test_c27_a_reject_rule_on_port_80_gives_econnrefused(family: Family, hook: str) -> None:
    client, server = hosts(family)
    listening = server.stack.tcp.open(family.number)
    assert (listening.bind(*at(family.peer, 80)), listening.listen(5)) == (0, 0)
    (client if hook == "out" else server).stack.guard = Guard([f"reject {hook} tcp to port 80"])
    end = client.stack.tcp.open(family.number)
    assert end.connect(*at(family.peer, 80)) == errno.EINPROGRESS
    pass_time(0, client, server)
    assert end.take_error() == errno.ECONNREFUSED
    other = client.stack.tcp.open(family.number)
    assert other.connect(*at(family.peer, 81)) == errno.EINPROGRESS
    pass_time(0, client, server)
    assert other.take_error() == errno.ECONNREFUSED, "so nobody can tell it from a port where nobody listens"


@both
def test_c27_a_rule_that_comes_later_resets_who_is_connected(family: Family) -> None:
    client, server = hosts(family)
    listening = server.stack.tcp.open(family.number)
    assert (listening.bind(*at(family.peer, 80)), listening.listen(5)) == (0, 0)
    end = client.stack.tcp.open(family.number)
    end.connect(*at(family.peer, 80))
    pass_time(0, client, server)
    assert end.connected
    server.stack.guard = Guard(["reject in tcp to port 80"])
    assert end.write([b"hello"]) == 5
    pass_time(0, client, server)
    assert end.take_error() == errno.ECONNRESET


# -- the flag --------------------------------------------------------------------------------------------------------


@both
def test_d22_filtering_is_a_flag_of_each_stack_that_keeps_the_rules(family: Family) -> None:
    host, other = family.host("drop in udp"), family.host("drop in udp")
    events: list[tuple[str, object]] = []
    host.stack.subscribe(lambda event, interface, detail: events.append((event, detail)))
    frame = family.frame(UDP(sport=1, dport=2))

    host.stack.filtering = False
    for each in (host, other):
        each.receive(frame)
    assert (len(host.take()), len(other.take())) == (1, 0), "port unreachable, from the one whose guard is off"

    host.stack.filtering = True
    host.stack.filtering = True
    host.receive(frame)
    assert host.take() == []
    assert host.stack.guard is not None
    assert [packets for _, _, packets, _ in host.stack.guard.rules] == [1]
    assert events == [("filtering", False), ("filtering", True)]


def test_d22_a_guard_that_is_set_while_filtering_is_off_waits() -> None:
    host = V4.host()
    host.stack.filtering = False
    host.stack.guard = Guard(["drop in"])
    host.receive(V4.frame(UDP(sport=1, dport=2)))
    assert len(host.take()) == 1
    host.stack.filtering = True
    host.receive(V4.frame(UDP(sport=1, dport=2)))
    assert host.take() == []
    host.stack.guard = None
    host.receive(V4.frame(UDP(sport=1, dport=2)))
    assert len(host.take()) == 1
    assert "guard" not in host.stack.counters
