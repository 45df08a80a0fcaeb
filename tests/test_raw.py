"""Raw ends and ICMP datagram ends over whole stacks, and beside the kernel of this machine."""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum as scapy_checksum

from guest.net.address import parse_address
from guest.net.ping_end import PingEndpoint
from guest.net.raw import RawEndpoint
from tests.net_world import OUR_IP, OUR_MAC, PEER_IP, PEER_MAC, Host, echo_request, fragments, to_us
from tests.udp_world import Alone, at, payloads, received

ANY4, LO4, LO6 = "0.0.0.0", "127.0.0.1", "::1"
EXPERIMENT = 253  # a protocol for experiments (RFC 3692)


@pytest.fixture
def host() -> Host:
    """A host that knows its peer."""
    ours = Host()
    ours.meet()
    return ours


def raw(host: Host | Alone, protocol: int, family: int = 4) -> RawEndpoint:
    return host.stack.raw.open(family, protocol)


# -- receiving -------------------------------------------------------------------------------------------------------


def test_a_raw_end_sees_pings_with_their_ip_header_and_they_are_answered_nevertheless(host: Host) -> None:
    ends = [raw(host, 1), raw(host, 1), raw(host, 17)]
    request = echo_request(b"x" * 300, tos=8)
    host.receive(request)
    (reply,) = host.parsed()
    assert reply[ICMP].type == 0
    whole = bytes(request[IP])
    got = [received(end) for end in ends[:2]]
    assert [each.payload.tobytes() for each in got] == [whole, whole]
    assert got[0].payload.area.obj is got[1].payload.area.obj, "one copy of the bytes serves both"
    assert (got[0].src, got[0].src_port, got[0].tos, got[0].interface) == (parse_address(PEER_IP), 0, 8, host.eth)
    assert payloads(ends[2]) == []


def test_udp_reaches_its_socket_and_the_raw_end(host: Host) -> None:
    end = raw(host, 17)
    socket_end = host.stack.udp.open(4)
    assert socket_end.bind(*at(ANY4, 1000)) == 0
    packet = to_us(UDP(sport=5, dport=1000) / b"both")
    host.receive(packet)
    assert payloads(socket_end) == [b"both"]
    assert payloads(end) == [bytes(packet[IP])]


def test_a_protocol_that_a_raw_end_takes_is_not_unknown_as_long_as_it_is_open(host: Host) -> None:
    end = raw(host, EXPERIMENT)
    host.receive(to_us(Raw(b"known"), proto=EXPERIMENT))
    assert host.take() == []
    assert payloads(end)[0][20:] == b"known"
    end.close()
    end.close()
    host.receive(to_us(Raw(b"unknown"), proto=EXPERIMENT))
    (error,) = host.parsed()
    assert (error[ICMP].type, error[ICMP].code) == (3, 2)
    assert host.stack.ip.raw is None, "and the engine asks no more"


def test_addresses_of_bind_and_connect_choose(host: Host) -> None:
    host.eth.add_address("10.0.0.9", 24)
    bound, connected = raw(host, EXPERIMENT), raw(host, EXPERIMENT)
    assert bound.bind(*at("10.0.0.9", 0)) == 0
    assert connected.connect(*at(PEER_IP, 0)) == 0
    assert connected.local == (parse_address(OUR_IP), EXPERIMENT)
    host.receive(to_us(Raw(b"one"), proto=EXPERIMENT, dst="10.0.0.9"))
    host.receive(to_us(Raw(b"two"), proto=EXPERIMENT))
    host.receive(to_us(Raw(b"three"), proto=EXPERIMENT, src="10.0.0.3"))
    assert [each[20:] for each in payloads(bound)] == [b"one"]
    assert [each[20:] for each in payloads(connected)] == [b"two"]


def test_the_icmp_filter_keeps_types_out(host: Host) -> None:
    end = raw(host, 1)
    end.options.icmp_filter = ~(1 << 0) & 0xFFFFFFFF  # echo replies alone
    host.receive(echo_request(), to_us(ICMP(type=0, id=1, seq=1) / b"reply"))
    (packet,) = payloads(end)
    assert packet[20] == 0


def test_e28_a_raw_end_holds_no_more_than_its_rcvbuf(host: Host) -> None:
    end = raw(host, 1)
    end.options.rcvbuf = 5_000
    for _ in range(30):
        host.receive(echo_request())
        assert end.queued_bytes <= 5_000
    assert end.drops == host.count("raw", "rx_dropped_rcvbuf") > 0


# -- sending ---------------------------------------------------------------------------------------------------------


def test_what_is_sent_gets_a_header_and_fragments_where_it_must(host: Host) -> None:
    end = raw(host, EXPERIMENT)
    assert end.send([b"a", b"bc"], at(PEER_IP, 0), ttl=3) == 0
    (frame,) = host.parsed()
    assert (frame[IP].proto, frame[IP].ttl, frame[IP].src) == (EXPERIMENT, 3, OUR_IP)
    assert bytes(frame[IP].payload)[:3] == b"abc"
    assert end.send([bytes(4000)], at(PEER_IP, 0)) == 0
    assert len(host.take()) == 3
    assert end.send([bytes(65_516)], at(PEER_IP, 0)) == errno.EMSGSIZE
    assert end.send([b"x"]) == errno.EDESTADDRREQ
    assert end.send([b"x"], at("9.9.9.9", 0)) == errno.ENETUNREACH
    assert end.send([b"x"], at("10.0.0.255", 0)) == errno.EACCES


def test_a_header_that_is_brought_along_is_sent_with_length_and_checksum_filled_in(host: Host) -> None:
    end = raw(host, 255)
    assert end.options.hdrincl
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 7, 0, 0x1234, 0, 55, EXPERIMENT, 0, bytes(4), bytes([10, 0, 0, 2]))
    assert end.send([header, b"own header"], at(PEER_IP, 0)) == 0
    (frame,) = host.parsed()
    ip = frame[IP]
    assert (ip.tos, ip.id, ip.ttl, ip.proto, ip.src, ip.len) == (7, 0x1234, 55, EXPERIMENT, OUR_IP, 30)
    assert scapy_checksum(bytes(ip)[:20]) == 0
    assert end.send([b"short"], at(PEER_IP, 0)) == errno.EINVAL
    assert end.send([header, bytes(1481)], at(PEER_IP, 0)) == errno.EMSGSIZE


def test_a_connected_raw_end_hears_of_errors_and_whoever_was_there_still_does(host: Host) -> None:
    udp = host.stack.udp.open(4)
    assert udp.connect(*at(PEER_IP, 9)) == 0
    end = raw(host, 17)
    assert end.connect(*at(PEER_IP, 0)) == 0
    assert udp.send([b"x"]) == 0
    (frame,) = host.parsed()
    error = to_us(ICMP(type=3, code=3) / Raw(bytes(frame[IP])[:28]))
    host.receive(error)
    assert (end.take_error(), udp.take_error()) == (errno.ECONNREFUSED, errno.ECONNREFUSED)
    end.close()
    host.receive(error)
    assert (end.take_error(), udp.take_error()) == (0, errno.ECONNREFUSED)


def wire6(host: Host, payload: Packet, **fields: object) -> Packet:
    return Ether(dst=OUR_MAC, src=PEER_MAC) / IPv6(src="2001:db8::2", dst="2001:db8::1", **fields) / payload


@pytest.fixture
def six() -> Host:
    """A host with an IPv6 address."""
    ours = Host()
    ours.eth.add_address("2001:db8::1", 64)
    ours.wait(3_000_000)
    ours.take()
    return ours


def test_a_raw_ipv6_end_gets_no_header_and_no_ipv4(six: Host) -> None:
    end = raw(six, 58, 6)
    request = wire6(six, ICMPv6EchoRequest(id=1, seq=2, data=b"six"), tc=5, hlim=33)
    six.receive(request, echo_request())
    got = received(end)
    assert got.payload.tobytes() == bytes(request[ICMPv6EchoRequest])
    assert (got.ttl, got.tos) == (33, 5)
    spoiled = bytearray(bytes(request))
    spoiled[-1] ^= 1
    six.receive(bytes(spoiled))
    assert end.receive() is None, "a wrong checksum is not shown to an ICMPv6 end"
    assert six.count("raw", "rx_dropped_checksum") == 1
    end.options.icmp_filter = 1 << 128
    six.receive(request)
    assert end.receive() is None


def test_the_checksum_of_icmpv6_is_filled_in_and_others_on_request() -> None:
    alone = Alone()
    end = alone.stack.raw.open(6, 58)
    assert end.send([struct.pack("!BBHHH", 128, 0, 0, 9, 1), b"odd"], at(LO6, 0)) == 0
    alone.settle()
    request, reply = payloads(end)
    assert (request[0], reply[0]) == (128, 129)
    again = IPv6(src=LO6, dst=LO6) / ICMPv6EchoRequest(id=9, seq=1, data=b"odd")
    assert request == bytes(again)[40:]
    other = alone.stack.raw.open(6, EXPERIMENT)
    other.options.checksum_offset = 2
    assert other.send([b"ab\0\0cd"], at(LO6, 0)) == 0
    alone.settle()
    (summed,) = payloads(other)
    assert summed[2:4] != b"\0\0"
    assert (summed[:2], summed[4:]) == (b"ab", b"cd")
    assert other.send([b"abc"], at(LO6, 0)) == errno.EINVAL, "no room for it"
    assert other.send([b"abcd"], at(LO6, 17)) == errno.EINVAL, "a port is a protocol here, and this is another one"
    assert other.send([b"abcd"], at("::ffff:127.0.0.1", 0)) == errno.ENETUNREACH


# -- ICMP datagram ends ----------------------------------------------------------------------------------------------


def ping(host: Host | Alone, family: int = 4) -> PingEndpoint:
    return host.stack.raw.open_ping(family)


def request_bytes(family: int, seq: int = 1, data: bytes = b"data", kind: int | None = None, code: int = 0) -> bytes:
    return struct.pack("!BBHHH", kind or (8 if family == 4 else 128), code, 0xBAD, 0xBAD, seq) + data


def test_e20_a_ping_end_sends_under_its_identifier_and_gets_the_reply(host: Host) -> None:
    end, other = ping(host), ping(host)
    assert other.bind(*at(ANY4, 4321)) == 0
    assert end.bind(*at(ANY4, 4321)) == errno.EADDRINUSE
    assert end.send([request_bytes(4, seq=7)], at(PEER_IP, 0)) == 0
    (frame,) = host.parsed()
    assert scapy_checksum(bytes(frame[ICMP])) == 0
    assert (frame[ICMP].id, frame[ICMP].seq, frame[ICMP].load) == (end.local[1], 7, b"data")
    host.receive(to_us(ICMP(type=0, id=end.local[1], seq=7) / b"data", ttl=60))
    got = received(end)
    assert got.payload.tobytes()[8:] == b"data"
    assert (got.payload.tobytes()[0], got.ttl, got.src) == (0, 60, parse_address(PEER_IP))
    assert other.receive() is None
    end.close()
    host.receive(to_us(ICMP(type=0, id=frame[ICMP].id, seq=7)))
    assert host.count("icmp", "rx_ignored_no_port") == 1


@pytest.mark.parametrize("family", [4, 6])
def test_e20_ping_ends_of_both_families(family: int) -> None:
    alone = Alone()
    end = ping(alone, family)
    target = LO4 if family == 4 else LO6
    for size in (0, 1, 56, 60_000):
        assert end.send([request_bytes(family, data=bytes(size))], at(target, 0)) == 0
        alone.settle()
        reply = received(end).payload.tobytes()
        assert reply[0] == (0 if family == 4 else 129)
        assert reply[8:] == bytes(size)
    for bad in (b"", request_bytes(family)[:7], request_bytes(family, kind=13), request_bytes(family, code=1)):
        assert end.send([bad], at(target, 0)) == errno.EINVAL
    assert end.send([request_bytes(family)]) == errno.EDESTADDRREQ
    assert end.connect(*at(target, 0)) == 0
    assert end.send([request_bytes(family)]) == 0


def test_a_ping_end_hears_of_errors_about_its_requests(host: Host) -> None:
    end = ping(host)
    assert end.connect(*at(PEER_IP, 0)) == 0
    assert end.send([request_bytes(4)]) == 0
    (frame,) = host.parsed()
    host.receive(to_us(ICMP(type=3, code=10) / Raw(bytes(frame[IP])[:28]), src="10.0.0.254"))
    assert end.send([request_bytes(4)]) == errno.EHOSTUNREACH
    assert end.send([request_bytes(4)]) == 0


def test_the_kernels_raw_socket_sees_the_same_bytes() -> None:
    """The same echo request round the loopback of this machine and of ours: both raw sockets see request and reply."""
    message = struct.pack("!BBHHH", 8, 0, 0, 0x7A7A, 1) + b"side by side"
    message = message[:2] + scapy_checksum(message).to_bytes(2, "big") + message[4:]
    try:
        kernel = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except PermissionError:
        pytest.skip("raw sockets of this machine are for root")
    alone = Alone()
    end = alone.stack.raw.open(4, 1)
    with kernel:
        kernel.settimeout(5)
        kernel.bind(("127.0.0.1", 0))
        assert kernel.getsockname() == ("127.0.0.1", end.local[1])
        kernel.sendto(message, ("127.0.0.1", 0))
        theirs: list[bytes] = []
        while len(theirs) < 2:
            packet = kernel.recv(2000)
            if packet[24:26] == b"\x7a\x7a":
                theirs.append(packet)
    assert end.send([message], at("127.0.0.1", 0)) == 0
    alone.settle()
    ours = payloads(end)

    def comparable(packet: bytes) -> bytes:
        return packet[:4] + packet[8:10] + packet[12:]  # without identification, DF and the checksum over them

    assert [comparable(packet) for packet in ours] == [comparable(packet) for packet in theirs]


@given(st.lists(st.tuples(st.integers(14, 90), st.integers(0, 255)), max_size=5), st.sets(st.integers(1, 90)))
def test_whatever_comes_in_nothing_is_raised(changed: list[tuple[int, int]], cuts: set[int]) -> None:
    host = Host()
    host.meet()
    ends = [raw(host, protocol, family) for protocol in (1, 17, 58, EXPERIMENT) for family in (4, 6)]
    frame = bytearray(bytes(echo_request(b"x" * 40)))
    for where, value in changed:
        frame[where % len(frame)] = value
    host.eth.input([fragments(bytes(frame), cuts)])
    assert sum(len(payloads(end)) for end in ends) <= 1
