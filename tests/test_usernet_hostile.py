"""A guest that lies, with mutated frames of every kind, and one that floods. Nothing raises or grows, what is lost has
a counter, and the gateway goes on working.

No frame leaves the host: whatever destination a mutation makes up, the gateway is told that it is the loopback's.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Iterator

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6ND_RS, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from guest.net.address import V4_LOOPBACK
from tests.user_world import DNS as NAME_SERVER
from tests.user_world import DNS6, GUEST, GUEST6, HOST, HOST6, Pump, Server, UserWorld, no_descriptor_is_left
from vring.usernet import datagrams, echoes, resolver, streams
from vring.usernet.gateway import GUESTS

MAC, GATEWAY = "52:54:00:12:34:56", "52:55:00:00:02:02"
FRAMES = 1500


def seeds(port: int) -> list[Packet]:
    """One of each kind that a guest sends."""
    ether = Ether(src=MAC, dst=GATEWAY)
    v4, v6 = ether / IP(src=GUEST, dst=HOST), ether / IPv6(src=GUEST6, dst=HOST6)
    far = ether / IP(src=GUEST, dst="198.51.100.1")
    options = [("MSS", 1460), ("WScale", 7), ("Timestamp", (1, 0))]
    query = UDP(sport=5353, dport=53) / DNS(rd=1, qd=DNSQR(qname="there.test"))
    tcp = [TCP(sport=4000, dport=port, flags="S", seq=1, options=options),
           TCP(sport=4001, dport=port, flags="A", seq=2, ack=3) / Raw(b"x" * 700),
           TCP(sport=4002, dport=port, flags="FPA"), TCP(sport=4003, dport=port, flags="R")]  # fmt: skip
    return [
        *(each / segment for each in (v4, v6, far) for segment in tcp),
        *(each / UDP(sport=4000, dport=port) / Raw(b"hello") for each in (v4, v6, far)),
        v4 / ICMP(id=7, seq=1) / Raw(b"p" * 56), far / ICMP(id=7, seq=1) / Raw(b"p" * 56),
        v6 / ICMPv6EchoRequest(id=7, seq=1, data=b"p" * 56),
        ether / IP(src=GUEST, dst=NAME_SERVER) / query, ether / IPv6(src=GUEST6, dst=DNS6) / query,
        Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=MAC, psrc=GUEST, pdst=HOST),
        Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
        / BOOTP(chaddr=bytes.fromhex(MAC.replace(":", ""))) / DHCP(options=[("message-type", "discover"), "end"]),
        Ether(src=MAC, dst="33:33:00:00:00:02") / IPv6(src="fe80::15", dst="ff02::2", hlim=255) / ICMPv6ND_RS(),
    ]  # fmt: skip


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, or the end cut off; with right checksums half of the time, so that it gets further in."""
    changed = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(12, len(changed))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    if rng.random() < 0.1:
        del changed[rng.randrange(14, len(changed)) :]
    if rng.random() < 0.5:
        try:
            packet = Ether(bytes(changed))
            for layer in (IP, TCP, UDP, ICMP):
                if layer in packet:
                    del packet[layer].chksum
            return bytes(packet)
        except Exception:  # scapy cannot build what it has read: then as it is
            return bytes(changed)
    return bytes(changed)


def send(world: UserWorld, packets: Iterable[Packet]) -> None:
    """Let the guest's card send these, ten at a time."""
    frames = [(None, [bytes(packet)]) for packet in packets]
    for start in range(0, len(frames), 10):
        world.net._device.receive(frames[start : start + 10])
        world.loop.turn()
        world.loop._poll(0)


def goes_on(world: UserWorld, server: Server) -> None:
    """A stream through the gateway works, both ways."""
    end = world.dial(HOST, server.port)
    peer = world.wait_for(server.take)
    pump = Pump(end, b"still here")
    peer.write(b"and here", end=True)
    world.need(lambda: pump.turn() and bytes(pump.got) == b"and here", "the gateway does not work any more")


@pytest.mark.parametrize("seed", [1, 2])
def test_d13_mutated_frames_do_no_harm(seed: int) -> None:
    rng = random.Random(seed)
    with no_descriptor_is_left(), UserWorld() as world:
        server = world.server()
        for part in (world.net.streams, world.net.datagrams, world.net.echoes):
            part._outside = lambda _address, _port: (V4_LOOPBACK, server.port)  # type: ignore[union-attr]  # see above
        world.net.resolver._servers = [(V4_LOOPBACK, 1)]
        raw = [bytes(packet) for packet in seeds(server.port)]
        device = world.net._device

        for _ in range(FRAMES // 10):
            device.receive([(None, [mutated(rng.choice(raw), rng)]) for _ in range(10)])
            world.loop.turn()
            world.loop._poll(0)
            assert len(world.net.streams) <= streams.STREAMS
            assert len(world.net.datagrams) <= 2 * datagrams.FLOWS
            assert len(world.net.echoes) <= echoes.FLOWS

        fresh = world.server()
        world.net.streams._outside = lambda _address, _port: (V4_LOOPBACK, fresh.port)
        goes_on(world, fresh)
        assert world.net.counters["tcp_opened"] > 0, "no mutation got through: the test tests nothing"


# -- floods ----------------------------------------------------------------------------------------------------------

FLOOD = 300
ETHER = Ether(src=MAC, dst=GATEWAY)


@pytest.fixture
def world() -> Iterator[UserWorld]:
    with no_descriptor_is_left(), UserWorld() as made:
        yield made


def test_d13_a_flood_of_syns_opens_no_more_streams_than_may_be(
    world: UserWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STREAMS", FLOOD // 3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # from now on nobody is answered there
            syn = [ETHER / IP(src=GUEST, dst=HOST) / TCP(sport=2000 + each, dport=port, seq=1) for each in range(FLOOD)]
            send(world, syn)
            send(world, syn[:10])  # those that are known cost nothing

            assert len(world.net.streams) == FLOOD // 3
            assert world.net.counters["tcp_dropped_full"] == FLOOD - FLOOD // 3, "what was refused is not counted"
    world.need(world.settled, "the flood was never over")
    goes_on(world, world.server())


def test_d13_a_flood_of_datagrams_has_no_more_flows_than_may_be(world: UserWorld) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        udp = [ETHER / IP(src=GUEST, dst=HOST) / UDP(sport=2000 + each, dport=port) for each in range(FLOOD)]
        send(world, udp)

    assert len(world.net.datagrams) == datagrams.FLOWS
    assert world.net.counters["udp_evicted"] == FLOOD - datagrams.FLOWS
    assert world.net.counters["udp_out"] == FLOOD
    goes_on(world, world.server())


def test_d13_a_flood_of_beginnings_of_packets_is_forgotten(world: UserWorld) -> None:
    first = IP(src=GUEST, dst=HOST, flags="MF") / UDP(sport=1, dport=9, len=2000) / Raw(b"x" * 1400)
    for each in range(FLOOD):
        first.id = each
        send(world, [ETHER / first])
    most = world.net.stack.config.reassembly_sets

    assert world.net.stack.ip.counters["rx_dropped_fragment_evicted"] == FLOOD - most, "packets that never end are kept"
    goes_on(world, world.server())


def test_d13_a_flood_of_clients_is_told_nothing_once_the_addresses_are_given_away(world: UserWorld) -> None:
    discover = UDP(sport=68, dport=67) / BOOTP(xid=1) / DHCP(options=[("message-type", "discover"), "end"])
    for each in range(FLOOD):
        discover[BOOTP].chaddr = b"\x02\0\0\0" + each.to_bytes(2, "big")
        send(world, [Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255") / discover])
    server = world.net._dhcp
    assert server is not None

    assert (server.counters["tx_offer"], server.counters["exhausted"]) == (GUESTS, FLOOD - GUESTS)
    assert len(server.pool.active(0)) == GUESTS
    goes_on(world, world.server())


def test_d13_a_flood_of_queries_waits_for_no_more_answers_than_may_be(world: UserWorld) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        world.net.resolver._servers = [(V4_LOOPBACK, silent.getsockname()[1])]
        query = UDP(sport=5353, dport=53) / DNS(rd=1, qd=DNSQR(qname="there.test"))
        send(world, [ETHER / IP(src=GUEST, dst=NAME_SERVER) / query] * FLOOD)

    assert len(world.net.resolver) == resolver.PENDING
    assert world.net.counters["dns_dropped_full"] == FLOOD - resolver.PENDING
    goes_on(world, world.server())


def test_d13_a_guest_that_claims_the_gateways_addresses_does_not_get_them(world: UserWorld) -> None:
    everybody = Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff")
    before = [str(own) for own in world.net.interface.addresses]
    claims = [everybody / ARP(op=op, hwsrc=MAC, psrc=HOST, pdst=target) for op in (1, 2) for target in (HOST, GUEST)]
    claim = ICMPv6ND_NA(tgt=HOST6, R=0, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC)
    claims.append(Ether(src=MAC, dst="33:33:00:00:00:01") / IPv6(src=HOST6, dst="ff02::1", hlim=255) / claim)
    send(world, claims * 20)

    assert [str(own) for own in world.net.interface.addresses] == before
    goes_on(world, world.server())
