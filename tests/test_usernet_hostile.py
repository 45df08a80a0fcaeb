"""A guest that lies: mutated frames of every kind into the gateway. Nothing raises or grows, and it goes on working.

No frame leaves the host: whatever destination a mutation makes up, the gateway is told that it is the loopback's.
"""

from __future__ import annotations

import random

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_RS, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from guest.net.address import V4_LOOPBACK
from tests.user_world import DNS as NAME_SERVER
from tests.user_world import DNS6, GUEST, GUEST6, HOST, HOST6, Pump, UserWorld, no_descriptor_is_left
from vring.usernet import datagrams, echoes, streams

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
        end = world.dial(HOST, fresh.port)
        peer = world.wait_for(fresh.take)
        pump = Pump(end, b"still here")
        peer.write(b"and here", end=True)
        world.need(lambda: pump.turn() and bytes(pump.got) == b"and here", "the gateway does not work any more")
        assert world.net.counters["tcp_opened"] > 0, "no mutation got through: the test tests nothing"
