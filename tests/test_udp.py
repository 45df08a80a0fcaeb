"""UDP over whole stacks: datagrams both ways, what is dropped and why, errors that come back, groups, limits."""

from __future__ import annotations

import errno
import gc
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum as scapy_checksum

from guest.net.address import parse_address
from guest.net.config import NetConfig
from guest.net.endpoint import OVERHEAD, PMTUDISC_DO, PMTUDISC_DONT, VIEW_OVERHEAD
from guest.net.pbuf import HEADROOM, Lease, Offload, PacketBuffer
from guest.net.udp import DATA_VALID, NEEDS_CSUM, UdpEndpoint
from tests.net_world import BROADCAST, OUR_IP, OUR_MAC, PEER_IP, PEER_MAC, Clock, Host, fragments, join, to_us
from tests.udp_world import Alone, at, payloads, received


def on(host: Host, port: int, address: str = "0.0.0.0", **options: object) -> UdpEndpoint:
    """An end of `host`, bound."""
    end = host.stack.udp.open(6 if ":" in address else 4)
    for name, value in options.items():
        setattr(end.options, name, value)
    assert end.bind(*at(address, port)) == 0
    return end


def datagram(payload: bytes = b"hello", sport: int = 2000, dport: int = 1000, **fields: object) -> Packet:
    """A datagram for our host, from the wire."""
    return to_us(UDP(sport=sport, dport=dport) / payload, **fields)


@pytest.fixture
def host() -> Host:
    """A host that knows its peer."""
    ours = Host()
    ours.meet()
    return ours


@pytest.fixture
def two() -> tuple[Host, Host]:
    """Two hosts on one wire, 10.0.0.1 and 10.0.0.2."""
    clock = Clock()
    return Host(clock=clock), Host(PEER_IP, PEER_MAC, clock=clock, seed=2)


# -- both ways -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 7, 8, 64, 1471, 1472])
def test_e51_what_is_sent_is_received_and_scapy_agrees_with_every_field(host: Host, size: int) -> None:
    payload = bytes(number * 7 & 255 for number in range(size))
    end = on(host, 1000)
    assert end.send([payload], at(PEER_IP, 2000), ttl=9, tos=0x10) == 0
    (frame,) = host.parsed()
    ip, udp = frame[IP], frame[UDP]
    assert (ip.src, ip.dst, ip.ttl, ip.tos, ip.flags) == (OUR_IP, PEER_IP, 9, 0x10, "DF")
    assert (udp.sport, udp.dport, udp.len) == (1000, 2000, 8 + size)
    assert bytes(udp.payload)[:size] == payload
    recomputed = IP(bytes(ip)[: 28 + size])
    del recomputed[UDP].chksum
    assert IP(bytes(recomputed))[UDP].chksum == udp.chksum

    host.receive(datagram(payload, ttl=61, tos=4))
    got = received(end)
    assert got.payload.tobytes() == payload
    assert (got.src, got.src_port) == at(PEER_IP, 2000)
    assert (got.dst, got.dst_port) == at(OUR_IP, 1000)
    assert (got.interface, got.ttl, got.tos, got.when, got.flow) == (host.eth, 61, 4, host.clock.now, 0)


@pytest.mark.parametrize("family", [4, 6])
def test_b16_an_echo_server_and_its_client_on_two_hosts(two: tuple[Host, Host], family: int) -> None:
    near, far = two
    address = PEER_IP
    if family == 6:
        near.eth.add_address("2001:db8::1", 64)
        far.eth.add_address("2001:db8::2", 64)
        address = "2001:db8::2"
        for _ in range(4):  # duplicate address detection
            near.wait(1_000_000)
            far.clock.now = near.clock.now
            far.wait(0)
            join(near, far)
    server = on(far, 7, "::" if family == 6 else "0.0.0.0")

    def answer() -> None:
        while (request := server.receive()) is not None:
            assert server.send(request.payload.views(), (request.src, request.src_port)) == 0

    server.on_ready = answer
    client = near.stack.udp.open(family)
    assert client.connect(*at(address, 7)) == 0
    for size in (0, 1, 1000, 1472 if family == 4 else 1452):
        assert client.send([bytes(size)]) == 0
        join(near, far)
        assert payloads(client) == [bytes(size)]


@pytest.mark.parametrize("size", [1473, 9000, 60_000, 65_507])
def test_e26_large_datagrams_travel_in_fragments(two: tuple[Host, Host], size: int) -> None:
    near, far = two
    server = on(far, 7)
    client = on(near, 8)
    payload = bytes(number * 31 >> 3 & 255 for number in range(size))
    assert client.send([payload[:5], payload[5:]], at(PEER_IP, 7)) == 0
    join(near, far)
    got = received(server)
    assert got.payload.tobytes() == payload
    assert client.send([bytes(65_508)], at(PEER_IP, 7)) == errno.EMSGSIZE


def test_c4_a_datagram_is_traced_before_what_its_reader_answers_at_once(host: Host) -> None:
    end = on(host, 1000)

    def answer() -> None:
        if end.receive() is not None:
            assert end.send([b"answer"], at(PEER_IP, 2000)) == 0

    end.on_ready = answer
    stages: list[str] = []
    host.stack.trace = lambda stage, packet, text: stages.append(stage)
    host.receive(datagram())
    assert stages == ["ethernet", "ip", "udp", "ip", "ethernet"]


def test_who_asks_for_no_fragments_gets_none(host: Host) -> None:
    end = on(host, 1000, mtu_discover=PMTUDISC_DO)
    assert end.send([bytes(1473)], at(PEER_IP, 7)) == errno.EMSGSIZE
    assert host.take() == []
    end.options.mtu_discover = PMTUDISC_DONT
    assert end.send([bytes(1472)], at(PEER_IP, 7)) == 0
    assert host.parsed()[0][IP].flags == 0


def test_the_writers_bytes_are_copied_once_and_may_change_at_once(host: Host) -> None:
    end = on(host, 1000)
    pieces = [bytearray(b"to be "), memoryview(bytearray(b"changed"))]
    assert end.send(pieces, at(PEER_IP, 2000)) == 0
    pieces[0][:] = b"######"
    ((packet,),) = host.batches
    assert packet.frags == [], "one linear area"
    assert host.parsed()[0][UDP].load == b"to be changed"


def test_payload_is_received_where_it_lies_and_its_memory_comes_back(host: Host) -> None:
    end = on(host, 1000)
    given_back: list[bool] = []
    area = memoryview(bytearray(bytes(datagram(b"x" * 300))))
    host.eth.input([PacketBuffer(area, lease=Lease(lambda: given_back.append(True), lambda: False))])
    got = received(end)
    assert got.payload.area.obj is area.obj, "nothing was copied"
    gc.collect()
    assert given_back == []
    del got
    gc.collect()
    assert given_back == [True]


def test_memory_of_which_the_lender_is_short_is_not_kept(host: Host) -> None:
    end = on(host, 1000)
    given_back: list[bool] = []
    area = memoryview(bytearray(bytes(datagram(b"x" * 300))))
    host.eth.input([PacketBuffer(area, lease=Lease(lambda: given_back.append(True), lambda: True))])
    gc.collect()
    assert given_back == [True]
    assert payloads(end) == [b"x" * 300]


# -- what is dropped -------------------------------------------------------------------------------------------------


def raw_udp(sport: int, dport: int, length: int, check: int, payload: bytes) -> Packet:
    """A UDP header with any fields."""
    header = b"".join(value.to_bytes(2, "big") for value in (sport, dport, length, check))
    return to_us(Raw(header + payload), proto=17)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_h57_less_than_a_header_is_dropped(host: Host, size: int) -> None:
    host.receive(to_us(Raw(bytes(UDP(sport=1, dport=1000))[:size]), proto=17))
    assert host.count("udp", "rx_dropped_short") == 1
    assert host.take() == []


@pytest.mark.parametrize("length", [0, 7, 14, 65535])
def test_h57_a_length_below_8_or_past_the_packet_is_dropped(host: Host, length: int) -> None:
    end = on(host, 1000)
    host.receive(raw_udp(2000, 1000, length, 0, b"hello"))
    assert host.count("udp", "rx_dropped_length") == 1
    assert end.receive() is None
    assert host.take() == []


def test_h57_what_stands_behind_the_udp_length_is_cut_off(host: Host) -> None:
    end = on(host, 1000)
    host.receive(raw_udp(2000, 1000, 10, 0, b"hello"))
    assert payloads(end) == [b"he"]


def test_h57_port_zero_is_nobodys_but_may_be_a_source(host: Host) -> None:
    end = on(host, 1000)
    host.receive(raw_udp(2000, 0, 13, 0, b"hello"))
    assert host.count("udp", "rx_dropped_port_zero") == 1
    assert host.take() == [], "not even an error"
    host.receive(raw_udp(0, 1000, 13, 0, b"hello"))
    assert received(end).src_port == 0


def test_h57_no_checksum_is_refused_over_ipv6_and_e26_accepted_over_ipv4() -> None:
    host = Host()
    host.meet()
    host.eth.add_address("2001:db8::1", 64)
    host.wait(3_000_000)
    end = on(host, 1000, "::")
    host.take()
    for check, counted in ((0, 1), (None, 1)):
        fields = {} if check is None else {"chksum": check}
        host.receive(
            Ether(dst=OUR_MAC, src=PEER_MAC)
            / IPv6(src="2001:db8::2", dst="2001:db8::1")
            / UDP(sport=2000, dport=1000, **fields)
            / b"six"
        )
        assert host.count("udp", "rx_dropped_no_checksum") == counted
    assert payloads(end) == [b"six"]
    host.receive(to_us(UDP(sport=2000, dport=1000, chksum=0) / b"four"))
    assert payloads(end) == [b"four"]


def test_e26_a_wrong_checksum_is_dropped_unless_the_card_vouches_for_it(host: Host) -> None:
    end = on(host, 1000)
    frame = bytes(to_us(UDP(sport=2000, dport=1000, chksum=0x1234) / b"hello"))
    host.receive(frame)
    assert host.count("udp", "rx_dropped_checksum") == 1
    assert payloads(end) == []
    for flag in (NEEDS_CSUM, DATA_VALID):
        packet = PacketBuffer.from_bytes(frame)
        packet.offload = Offload(flags=flag)
        host.eth.input([packet])
        assert payloads(end) == [b"hello"]


@given(st.binary(max_size=300), st.sets(st.integers(1, 400)))
def test_checksums_are_right_however_a_packet_is_cut(payload: bytes, cuts: set[int]) -> None:
    host = Host()
    host.meet()
    end = on(host, 1000)
    frame = bytearray(bytes(datagram(payload)))
    host.eth.input([fragments(bytes(frame), cuts)])
    assert payloads(end) == [payload]
    frame[-1] ^= 0x40
    host.eth.input([fragments(bytes(frame), cuts)])
    assert payloads(end) == []


def test_e26_a_checksum_that_would_be_zero_is_sent_as_ones(host: Host) -> None:
    end = on(host, 1000)
    assert end.send([bytes(2)], at(PEER_IP, 2000)) == 0
    plain = host.parsed()[0][UDP].chksum
    assert end.send([plain.to_bytes(2, "big")], at(PEER_IP, 2000)) == 0
    assert host.parsed()[0][UDP].chksum == 0xFFFF


def test_e26_the_checksum_can_be_left_out_over_ipv4_alone(two: tuple[Host, Host]) -> None:
    near, far = two
    server = on(far, 7)
    client = on(near, 8, no_check=True)
    assert client.send([b"bare"], at(PEER_IP, 7)) == 0
    join(near, far)
    assert payloads(server) == [b"bare"]
    assert client.send([b"bare"], at(PEER_IP, 7)) == 0
    assert near.parsed()[0][UDP].chksum == 0
    alone = Alone()
    six = alone.bound("::1", 9, no_check=True)
    assert six.send([b"summed"], at("::1", 9)) == 0
    alone.settle()
    assert payloads(six) == [b"summed"], "without a checksum it would have been refused"


# -- whose it is, and errors -----------------------------------------------------------------------------------------


def test_e27_two_sockets_on_different_ports_and_addresses_get_only_theirs(host: Host) -> None:
    host.eth.add_address("10.0.0.9", 24)
    ends = [on(host, 1000, OUR_IP), on(host, 1000, "10.0.0.9"), on(host, 1001), on(host, 1002, "10.0.0.9")]
    for dst in (OUR_IP, "10.0.0.9"):
        for port in (1000, 1001, 1002):
            host.receive(datagram(f"{dst}:{port}".encode(), dport=port, dst=dst))
    assert [payloads(end) for end in ends] == [
        [b"10.0.0.1:1000"],
        [b"10.0.0.9:1000"],
        [b"10.0.0.1:1001", b"10.0.0.9:1001"],
        [b"10.0.0.9:1002"],
    ]
    assert host.count("udp", "rx_dropped_no_port") == 1


def test_an_end_bound_to_an_interface_comes_first_and_hears_nothing_else(host: Host) -> None:
    bound = on(host, 1000, reuse_addr=True, bind_device=host.eth)
    other = on(host, 1000, reuse_addr=True, bind_device=host.stack.loopback)
    anyone = on(host, 1000, reuse_addr=True)
    host.receive(datagram(b"by wire"))
    assert [payloads(end) for end in (bound, other, anyone)] == [[b"by wire"], [], []]
    bound.close()
    host.receive(datagram(b"by wire"))
    assert [payloads(end) for end in (other, anyone)] == [[], [b"by wire"]]


def test_nobodys_datagram_is_answered_with_port_unreachable(host: Host) -> None:
    host.receive(datagram(b"anybody?", sport=2222, dport=3333))
    (error,) = host.parsed()
    assert (error[ICMP].type, error[ICMP].code) == (3, 3)
    assert (error[ICMP].payload.sport, error[ICMP].payload.dport) == (2222, 3333)
    assert scapy_checksum(bytes(error[ICMP])) == 0
    for dst in ("255.255.255.255", "10.0.0.255"):
        host.receive(Ether(dst=BROADCAST, src=PEER_MAC) / IP(src=PEER_IP, dst=dst) / UDP(sport=1, dport=3333))
    assert host.take() == [], "but not when it was for many"
    assert host.count("udp", "rx_dropped_no_port") == 3


def unreachable(frame: Packet, kind: int, code: int, **fields: object) -> Packet:
    """A router's error about a frame of ours."""
    return to_us(ICMP(type=kind, code=code, **fields) / Raw(bytes(frame[IP])[:36]), src="10.0.0.254")


def test_a_connected_end_hears_of_port_unreachable_once(two: tuple[Host, Host]) -> None:
    near, far = two
    client = near.stack.udp.open(4)
    ready: list[int] = []
    client.on_ready = lambda: ready.append(client.error)
    assert client.connect(*at(PEER_IP, 9)) == 0
    assert client.send([b"hello?"]) == 0
    join(near, far)
    assert ready == [errno.ECONNREFUSED]
    assert not client.readable
    assert client.send([b"still?"]) == errno.ECONNREFUSED, "the next call is told, and sends nothing"
    assert near.take() == []
    assert client.take_error() == 0


@pytest.mark.parametrize(
    ("kind", "code", "connected", "recverr", "expected"),
    [
        (3, 0, True, False, 0),
        (3, 1, True, False, 0),
        (3, 1, True, True, errno.EHOSTUNREACH),
        (3, 1, False, True, errno.EHOSTUNREACH),
        (3, 2, True, False, errno.ENOPROTOOPT),
        (3, 3, False, False, 0),
        (3, 3, False, True, errno.ECONNREFUSED),
        (3, 4, True, False, errno.EMSGSIZE),
        (3, 9, True, False, errno.ENETUNREACH),
        (3, 10, True, False, errno.EHOSTUNREACH),
        (3, 13, True, False, errno.EHOSTUNREACH),
        (11, 0, True, False, 0),
        (11, 0, True, True, errno.EHOSTUNREACH),
        (12, 0, True, False, errno.EPROTO),
    ],
)
def test_errors_are_told_to_whom_linux_tells_them(
    host: Host, kind: int, code: int, connected: bool, recverr: bool, expected: int
) -> None:
    end = on(host, 1000, recverr=recverr)
    if connected:
        assert end.connect(*at(PEER_IP, 2000)) == 0
    assert end.send([b"x"], None if connected else at(PEER_IP, 2000)) == 0
    (frame,) = host.parsed()
    host.receive(unreachable(frame, kind, code, **({"nexthopmtu": 1400} if code == 4 else {})))
    assert end.take_error() == expected
    assert [error.code for error in end.errors] == ([code] if recverr else [])


def test_h55_an_error_about_a_datagram_that_nobody_here_sent_changes_nothing(host: Host) -> None:
    end = on(host, 1000)
    assert end.connect(*at(PEER_IP, 2000)) == 0
    assert end.send([b"x"]) == 0
    (frame,) = host.parsed()
    for changed in (frame.copy(), frame.copy()):
        changed[UDP].dport = 2001
        host.receive(unreachable(changed, 3, 3))
    assert end.take_error() == 0


def test_a_connected_end_receives_from_its_peer_alone(host: Host) -> None:
    end = on(host, 1000)
    assert end.connect(*at(PEER_IP, 2000)) == 0
    assert end.local == at(OUR_IP, 1000)
    host.receive(datagram(b"wrong port", sport=2001), datagram(b"wrong host", src="10.0.0.3"), datagram(b"right"))
    assert payloads(end) == [b"right"]
    assert end.disconnect() == 0
    assert end.local == at("0.0.0.0", 1000)
    host.receive(datagram(b"anyone", sport=2001))
    assert payloads(end) == [b"anyone"]


def test_what_cannot_be_sent_gives_linuxs_numbers(host: Host) -> None:
    end = on(host, 1000)
    assert end.send([b"x"], at("9.9.9.9", 1)) == errno.ENETUNREACH
    assert end.send([b"x"], at(PEER_IP, 1), src=parse_address("10.0.0.77")) == errno.EADDRNOTAVAIL
    for broadcast in ("255.255.255.255", "10.0.0.255"):
        assert end.send([b"x"], at(broadcast, 1)) == errno.EACCES
        assert end.connect(*at(broadcast, 1)) == errno.EACCES
    end.options.broadcast = True
    assert end.send([b"x"], at("255.255.255.255", 1)) == 0
    assert end.send([b"x"], at("10.0.0.255", 1)) == 0
    assert [frame.dst for frame in host.parsed()] == [BROADCAST, BROADCAST]
    end.close()
    end.close()
    assert end.send([b"x"], at(PEER_IP, 1)) == errno.EBADF
    assert end.bind(*at("0.0.0.0", 0)) == errno.EBADF
    assert list(host.stack.udp) == []


# -- groups ----------------------------------------------------------------------------------------------------------

GROUP = "239.1.2.3"


def to_group(payload: bytes, group: str = GROUP) -> Packet:
    return (
        Ether(dst="01:00:5e:01:02:03", src=PEER_MAC) / IP(src=PEER_IP, dst=group) / UDP(sport=5, dport=1000) / payload
    )


def test_multicast_is_heard_by_members_as_long_as_they_are_members(host: Host) -> None:
    member = on(host, 1000, reuse_addr=True, multicast_all=False)
    other = on(host, 1000, reuse_addr=True, multicast_all=False)
    host.receive(to_group(b"too early"))
    assert member.join(parse_address(GROUP)) == 0
    assert member.join(parse_address(GROUP)) == errno.EADDRINUSE
    assert member.join(parse_address(PEER_IP)) == errno.EINVAL
    host.receive(to_group(b"now"))
    assert [payloads(end) for end in (member, other)] == [[b"now"], []]
    assert member.leave(parse_address(GROUP)) == 0
    assert member.leave(parse_address(GROUP)) == errno.EADDRNOTAVAIL
    host.receive(to_group(b"too late"))
    assert payloads(member) == []


def test_a_group_datagram_passes_by_those_whom_a_unicast_one_would(host: Host) -> None:
    connected, elsewhere = on(host, 1000, reuse_addr=True), on(host, 1000, reuse_addr=True)
    six, both_families = on(host, 1000, "::", reuse_addr=True, v6only=True), on(host, 1000, "::", reuse_addr=True)
    on_loopback = on(host, 1000, reuse_addr=True, bind_device=host.stack.loopback)
    assert connected.connect(*at(PEER_IP, 5)) == 0
    assert elsewhere.connect(*at(PEER_IP, 6)) == 0
    assert both_families.join(parse_address(GROUP), host.eth) == 0
    ends = (connected, elsewhere, six, both_families, on_loopback)
    host.receive(to_group(b"group"))
    assert [payloads(end) for end in ends] == [[], [], [], [b"group"], []], "nobody is connected from a group's address"
    host.receive(Ether(dst=BROADCAST, src=PEER_MAC) / IP(src=PEER_IP, dst="10.0.0.255") / UDP(sport=5, dport=1000))
    assert [len(payloads(end)) for end in ends] == [0, 0, 0, 1, 0]
    wide = [on(host, 1001, reuse_addr=True) for _ in range(2)]
    for end, port in zip(wide, (5, 6), strict=True):
        host.stack.udp.ports.move(end, end.local[0], at(PEER_IP, port))
    host.receive(Ether(dst=BROADCAST, src=PEER_MAC) / IP(src=PEER_IP, dst="10.0.0.255") / UDP(sport=5, dport=1001))
    assert [len(payloads(end)) for end in wide] == [1, 0], "a connected end hears its peer alone"
    six_group = on(host, 1002, "::", v6only=True)
    host.receive(Ether(dst=BROADCAST, src=PEER_MAC) / IP(src=PEER_IP, dst="10.0.0.255") / UDP(sport=5, dport=1002))
    assert payloads(six_group) == []


def test_link_local_addresses_need_to_say_where() -> None:
    host = Host()
    host.eth.add_address("fe80::1", 64)
    host.wait(3_000_000)
    host.take()
    end = host.stack.udp.open(6)
    assert end.bind(*at("fe80::1", 1000)) == errno.EINVAL
    assert end.bind(*at("fe80::2", 1000), host.eth) == errno.EADDRNOTAVAIL
    assert end.bind(*at("fe80::1", 1000), host.eth) == 0
    assert end.options.bind_device is host.eth
    for other in (host.stack.udp.open(6), host.stack.raw.open(6, 253), host.stack.raw.open_ping(6)):
        assert other.connect(*at("fe80::2", 7)) == errno.EINVAL
        assert other.connect(*at("fe80::2", 7), host.eth) == 0
        assert other.options.bind_device is host.eth
        assert other.disconnect() == 0
        assert other.options.bind_device is None
    host.receive(
        Ether(dst=OUR_MAC, src=PEER_MAC) / IPv6(src="fe80::2", dst="fe80::1") / UDP(sport=5, dport=1000) / b"near"
    )
    assert received(end).interface is host.eth


def test_all_members_share_the_bytes_of_one_datagram(host: Host) -> None:
    ends = [on(host, 1000, reuse_addr=True) for _ in range(3)]
    for end in ends:
        assert end.join(parse_address(GROUP), host.eth) == 0
    host.receive(to_group(b"y" * 300))
    got = [received(end) for end in ends]
    assert [each.payload.tobytes() for each in got] == [b"y" * 300] * 3
    assert len({id(each.payload.area.obj) for each in got}) == 1
    for end in ends:
        end.close()
    host.receive(to_group(b"nobody is left"))
    assert [counter for counter in host.stack.udp.counters if "no_port" in counter] == []


def test_multicast_is_sent_one_hop_far_and_looped_to_members_here(host: Host) -> None:
    member = on(host, 1000)
    assert member.join(parse_address(GROUP)) == 0
    host.wait(5_000_000)  # reports of the membership
    host.take()
    sender = on(host, 2000)
    assert sender.send([b"all"], at(GROUP, 1000)) == 0
    host.wait(0)
    (frame,) = host.parsed()
    assert (frame.dst, frame[IP].dst, frame[IP].ttl) == ("01:00:5e:01:02:03", GROUP, 1)
    assert payloads(member) == [b"all"]
    sender.options.multicast_loop = False
    sender.options.multicast_ttl = 7
    assert sender.send([b"others"], at(GROUP, 1000)) == 0
    host.wait(0)
    assert host.parsed()[0][IP].ttl == 7
    assert payloads(member) == []
    sender.options.multicast_loop = True
    sender.options.multicast_ttl = 0
    assert sender.send([b"at home"], at(GROUP, 1000)) == 0
    host.wait(0)
    assert host.take() == [], "a TTL of 0 stays on this host"
    assert payloads(member) == [b"at home"]


# -- limits ----------------------------------------------------------------------------------------------------------


def test_e28_a_full_buffer_drops_the_newest_and_counts(host: Host) -> None:
    end = on(host, 1000, rcvbuf=10_000)
    for number in range(20):
        host.receive(datagram(number.to_bytes(2, "big") + bytes(498)))
        assert end.queued_bytes <= 10_000
    kept = 20 - end.drops
    assert 0 < kept < 20
    assert host.count("udp", "rx_dropped_rcvbuf") == end.drops
    assert [int.from_bytes(each[:2], "big") for each in payloads(end)] == list(range(kept))
    assert end.queued_bytes == 0
    host.receive(datagram(b"there is room again"))
    assert payloads(end) == [b"there is room again"]


def test_e28_the_memory_that_is_pinned_counts_and_not_what_it_carries(host: Host) -> None:
    end = on(host, 1000)
    frame = bytes(datagram(b"x" * 300))
    area = memoryview(bytearray(frame.ljust(16_384, b"\0")))
    host.eth.input([PacketBuffer(area, 0, len(frame), lease=Lease(lambda: None, lambda: False))])
    assert end.queued_bytes == 16_384 + OVERHEAD
    assert payloads(end) == [b"x" * 300]
    host.eth.input([fragments(frame.ljust(1514, b"\0"), [100, 200])])
    assert end.queued_bytes == len(frame) + OVERHEAD + 2 * VIEW_OVERHEAD, "the pieces together, and what is around them"
    assert payloads(end) == [b"x" * 300]
    host.receive(datagram(b""))
    assert end.queued_bytes > OVERHEAD + HEADROOM, "an empty datagram is not for nothing"


@pytest.mark.parametrize("step", [16, 1480])
def test_e28_what_is_charged_is_about_what_is_pinned_however_it_was_cut(host: Host, step: int) -> None:
    end = on(host, 1000)
    raw = bytes(datagram(bytes(30_000)))
    frames = []
    for number in range(8):
        for offset in range(0, len(raw) - 34, step):
            data = raw[34 + offset : 34 + offset + step]
            more = 0x2000 if offset + step < len(raw) - 34 else 0
            head = bytearray(raw[14:34])
            head[2:8] = struct.pack("!HHH", 20 + len(data), number, offset // 8 | more)
            head[10:12] = b"\0\0"
            head[10:12] = scapy_checksum(bytes(head)).to_bytes(2, "big")
            frames.append(raw[:14] + bytes(head) + data)
    tracemalloc.start()
    for frame in frames:
        host.receive(frame)
    gc.collect()
    ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/guest/net/*")])
    tracemalloc.stop()
    pinned = sum(each.size for each in ours.statistics("filename"))
    assert end.drops > 0, "it is full"
    assert 100_000 < pinned < end.options.rcvbuf * 1.25


def test_rcvbuf_starts_as_configured() -> None:
    host = Host(config=NetConfig(rcvbuf=5_000, sndbuf=6_000))
    assert host.stack.udp.open(4).options.rcvbuf == 5_000
    assert host.stack.raw.open(4, 1).options.sndbuf == 6_000


def test_h63_ports_that_nobody_chose_are_in_range_different_and_unlike_in_other_stacks() -> None:
    drawn = []
    for seed in (1, 1, 2):
        alone = Alone(seed=seed)
        ends = [alone.bound("0.0.0.0", 0) for _ in range(500)]
        drawn.append([end.local[1] for end in ends])
    assert drawn[0] == drawn[1], "the same seed gives the same run"
    assert drawn[0] != drawn[2]
    assert len(set(drawn[0])) == 500
    assert all(32768 <= port <= 60999 for port in drawn[0])
    steps = {later - earlier for earlier, later in zip(drawn[0], drawn[0][1:], strict=False)}
    assert len(steps) > 490, "no step from one to the next comes again and again"
    assert max(drawn[0]) - min(drawn[0]) > 27_000


def test_all_ports_can_be_had_and_then_none() -> None:
    alone = Alone(config=NetConfig(first_port=40_000, last_port=40_099))
    ends = [alone.bound("127.0.0.1", 0) for _ in range(100)]
    assert {end.local[1] for end in ends} == set(range(40_000, 40_100))
    late = alone.udp.open(4)
    assert late.bind(*at("127.0.0.1", 0)) == errno.EADDRINUSE
    assert late.send([b"x"], at("127.0.0.1", 1)) == errno.EAGAIN
    assert late.connect(*at("127.0.0.1", 1)) == errno.EAGAIN
    assert late.bind(*at("127.0.0.2", 0)) == 0, "but another address has ports of its own"
    freed = ends[7].local[1]
    ends[7].close()
    assert alone.bound("127.0.0.1", 0).local[1] == freed, "and what is closed is free"


SEED_FRAMES = [
    bytes(datagram(b"hello" * 20)),
    bytes(datagram(b"")),
    bytes(datagram(b"a" * 40, flags="MF")),
    bytes(to_group(b"hello")),
    bytes(Ether(dst=OUR_MAC, src=PEER_MAC) / IPv6(src="fe80::2", dst="2001:db8::1") / UDP(sport=9, dport=1000) / b"6"),
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(SEED_FRAMES),
            st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=4),
            st.integers(0, 150),
            st.sets(st.integers(1, 150), max_size=4),
        ),
        max_size=40,
    )
)
def test_whatever_comes_in_nothing_is_raised_and_memory_stays_bounded(
    changes: list[tuple[bytes, list[tuple[int, int]], int, set[int]]],
) -> None:
    host = Host()
    host.meet()
    host.eth.add_address("2001:db8::1", 64)
    host.wait(3_000_000)
    end = on(host, 1000, "::", rcvbuf=4_000)
    assert end.join(parse_address(GROUP), host.eth) == 0
    before = host.stack.udp.counters.total()
    for frame, bytes_changed, cut, cuts in changes:
        mutated = bytearray(frame)
        for where, value in bytes_changed:
            mutated[where % len(mutated)] = value
        host.eth.input([fragments(bytes(mutated[: len(mutated) - cut] or mutated), cuts)])
        assert end.queued_bytes <= 4_000
    counters = host.stack.udp.counters
    assert before == 0
    drops = sum(count for name, count in counters.items() if name.startswith("rx_dropped"))
    assert counters["rx_packets"] == counters["rx_delivered"] + drops, "each has its one reason"
