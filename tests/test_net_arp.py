"""Neighbours: asking, waiting, ageing, eviction, answering, conflicts; on a clock that is moved by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from guest.net.address import format_address, parse_address
from guest.net.config import SECOND, NetConfig
from guest.net.neighbour import NeighbourCache
from guest.net.pbuf import Lease, PacketBuffer
from tests.net_world import (
    BROADCAST,
    OUR_IP,
    OUR_MAC,
    PEER_IP,
    PEER_MAC,
    Clock,
    Host,
    arp_reply,
    arp_request,
    fragments,
)

MAC = b"\x52\x54\x00\x00\x00\x02"


class Cache:
    """A neighbour cache with fakes around it, which write down what it did."""

    def __init__(self, **settings: int) -> None:
        self.clock = Clock()
        self.asked: list[int] = []
        self.sent: list[tuple[bytes, bytes]] = []
        self.failed: list[bytes] = []
        self.cache = NeighbourCache(
            now=self.clock,
            config=NetConfig(**settings),
            solicit=self.asked.append,
            send=lambda packet, mac: self.sent.append((packet.tobytes(), mac)),
            failed=lambda packet, _next_hop: self.failed.append(packet.tobytes()),
        )

    def send(self, address: int, content: bytes = b"x") -> None:
        self.cache.output(PacketBuffer.from_bytes(content), address)

    def after(self, micros: int) -> None:
        self.clock.now += micros
        self.cache.poll(self.clock.now)


def test_e8_packets_wait_and_leave_in_order_on_the_reply() -> None:
    world = Cache()
    for content in (b"1", b"2", b"3"):
        world.send(5, content)
    assert world.asked == [5], "one request for all"
    assert world.sent == []
    assert world.cache.learn(5, MAC, create=False) is True
    assert world.sent == [(b"1", MAC), (b"2", MAC), (b"3", MAC)]
    assert world.cache.poll_at() is None, "nothing is asked for any more"


def test_e8_requests_are_retried_a_second_apart_then_it_is_given_up() -> None:
    world = Cache()
    world.send(5)
    start = world.clock.now
    asked_at = []
    while (due := world.cache.poll_at()) is not None:
        asked_at.append(due - start)
        world.clock.now = due - 1
        assert world.cache.poll(world.clock.now) is False, "a microsecond early is too early"
        world.clock.now = due
        assert world.cache.poll(world.clock.now) is True
    assert asked_at == [SECOND, 2 * SECOND, 3 * SECOND]
    assert world.asked == [5, 5, 5]
    assert world.failed == [b"x"], "whoever sent it is told"
    assert world.cache.counters["tx_dropped_unreachable"] == 1
    assert len(world.cache) == 0


def test_after_a_failure_the_next_packet_asks_again() -> None:
    world = Cache()
    world.send(5)
    for _ in range(3):
        world.after(SECOND)
    world.send(5, b"again")
    assert world.asked == [5, 5, 5, 5]


def test_e9_an_entry_is_used_at_299_9_seconds_and_asked_for_again_at_300_1() -> None:
    world = Cache()
    world.cache.learn(5, MAC, create=True)
    world.clock.now += 299_900_000
    world.send(5, b"young")
    assert world.sent == [(b"young", MAC)]
    assert world.asked == []
    world.clock.now += 200_000
    world.send(5, b"old")
    assert world.sent == [(b"young", MAC)], "the aged entry is not used"
    assert world.asked == [5]
    assert world.cache.lookup(5) is None
    world.cache.learn(5, MAC, create=False)
    assert world.sent[-1] == (b"old", MAC)


def test_hearing_of_a_neighbour_makes_its_entry_young() -> None:
    world = Cache()
    world.cache.learn(5, MAC, create=True)
    world.clock.now += 200 * SECOND
    world.cache.learn(5, MAC, create=False)
    world.clock.now += 299 * SECOND
    world.send(5)
    assert world.sent == [(b"x", MAC)]


def test_e8_never_more_than_256_entries_and_the_least_recently_used_goes() -> None:
    world = Cache()
    for address in range(256):
        world.cache.learn(address, MAC, create=True)
    world.send(0)  # used: now 1 is the oldest
    world.cache.learn(1000, MAC, create=True)
    assert len(world.cache) == 256
    assert world.cache.lookup(0) == MAC
    assert world.cache.lookup(1) is None
    assert world.cache.counters["evictions"] == 1


def test_what_waited_for_an_evicted_neighbour_is_counted() -> None:
    world = Cache(arp_entries=2)
    for address in (1, 2, 3):
        world.send(address)
    assert world.cache.counters["tx_dropped_evicted"] == 1
    assert len(world.cache) == 2
    world.after(SECOND)
    assert world.asked == [1, 2, 3, 2, 3], "the evicted one is not asked for any more"


def test_the_waiting_queue_is_bounded_and_keeps_the_latest() -> None:
    world = Cache(arp_queue=2)
    for content in (b"1", b"2", b"3"):
        world.send(5, content)
    world.cache.learn(5, MAC, create=False)
    assert [content for content, _ in world.sent] == [b"2", b"3"]  # RFC 1122 §2.3.2.2
    assert world.cache.counters["tx_dropped_queue_full"] == 1


def test_the_waiting_queue_is_bounded_in_bytes_too() -> None:
    world = Cache(arp_queue_bytes=10)
    for content in (b"1" * 4, b"2" * 3, b"3" * 3, b"4" * 6):
        world.send(5, content)
    assert world.cache.counters["tx_dropped_queue_full"] == 2
    world.send(6, b"5" * 11)
    world.cache.learn(5, MAC, create=False)
    world.cache.learn(6, MAC, create=False)
    assert [content for content, _ in world.sent] == [b"3" * 3, b"4" * 6, b"5" * 11], "the latest, whatever its size"


@pytest.mark.parametrize("mtu", [300, 576, 1500])
def test_the_fragments_of_the_largest_datagram_wait_together(mtu: int) -> None:
    world = Cache()
    sizes = [min(mtu, 20 + left) for left in range(65_515, 0, -(mtu - 20 & ~7))]
    for size in sizes:
        world.send(5, bytes(size))
    world.cache.learn(5, MAC, create=False)
    assert len(world.sent) == len(sizes)


def test_a_waiting_packet_gives_its_memory_back_when_that_is_scarce() -> None:
    world = Cache()
    given_back: list[bool] = []
    packet = PacketBuffer(
        memoryview(bytearray(b"lent")), lease=Lease(lambda: given_back.append(True), scarce=lambda: True)
    )
    world.cache.output(packet, 5)
    del packet
    assert given_back == [True]
    world.cache.learn(5, MAC, create=False)
    assert world.sent == [(b"lent", MAC)]


def test_unknown_neighbours_are_learned_only_if_asked_to() -> None:
    world = Cache()
    assert world.cache.learn(5, MAC, create=False) is False
    assert world.cache.entries() == []
    assert world.cache.learn(5, MAC, create=True) is True
    assert world.cache.entries() == [(5, MAC, world.clock.now + 300 * SECOND)]
    world.clock.now += 300 * SECOND
    assert world.cache.entries() == [], "an aged entry is not listed"


@given(st.lists(st.tuples(st.sampled_from(["send", "learn", "wait"]), st.integers(0, 9)), max_size=60))
def test_every_packet_is_sent_dropped_or_still_waiting(steps: list[tuple[str, int]]) -> None:
    world = Cache(arp_entries=4, arp_queue=3)
    total = 0
    for step, value in steps:
        if step == "send":
            world.send(value)
            total += 1
        elif step == "learn":
            world.cache.learn(value, MAC, create=value % 2 == 0)
        else:
            world.after(value * SECOND // 4)
        assert len(world.cache) <= 4
    world.cache.flush()
    dropped = sum(count for name, count in world.cache.counters.items() if name.startswith("tx_dropped"))
    assert len(world.sent) + dropped == total


# -- ARP itself ------------------------------------------------------------------------------------------------------


def test_a_request_for_us_is_answered_and_its_sender_learned() -> None:
    host = Host()
    host.receive(arp_request())
    (reply,) = host.parsed()
    assert (reply.dst, reply.src, reply.type) == (PEER_MAC, OUR_MAC, 0x0806)
    fields = (reply[ARP].op, reply[ARP].hwsrc, reply[ARP].psrc, reply[ARP].hwdst, reply[ARP].pdst)
    assert fields == (2, OUR_MAC, OUR_IP, PEER_MAC, PEER_IP)
    host.stack.icmp.open_echo().send(PEER_IP, 1, b"")
    (ping,) = host.parsed()
    assert (ping.dst, ping[IP].dst) == (PEER_MAC, PEER_IP), "no request was needed"


def test_a_request_for_somebody_else_is_neither_answered_nor_learned_from() -> None:
    host = Host()
    host.receive(arp_request(target="10.0.0.77"))
    assert host.take() == []
    assert host.count("arp", "rx_ignored_other_target") == 1
    assert host.eth.neighbours is not None
    assert len(host.eth.neighbours) == 0


def test_a_packet_to_an_unknown_neighbour_asks_who_has_it() -> None:
    host = Host()
    host.stack.icmp.open_echo().send(PEER_IP, 1, b"hello")
    (request,) = host.parsed()
    fields = (request[ARP].op, request[ARP].psrc, request[ARP].pdst, request[ARP].hwdst)
    assert (request.dst, fields) == (BROADCAST, (1, OUR_IP, PEER_IP, "00:00:00:00:00:00"))
    host.receive(arp_reply())
    (ping,) = host.parsed()
    assert (ping.dst, bytes(ping[ICMP].payload)) == (PEER_MAC, b"hello")


def test_a_neighbour_on_another_network_is_not_learned_from_its_request() -> None:
    host = Host()
    host.receive(arp_request(sender="192.168.7.7"))
    assert len(host.take()) == 1, "it gets its answer"
    assert host.eth.neighbours is not None
    assert len(host.eth.neighbours) == 0


def test_a_known_neighbour_that_moves_is_followed() -> None:
    host = Host()
    host.meet()
    host.receive(arp_request(mac="52:54:00:00:00:55", target=PEER_IP))  # gratuitous
    host.stack.icmp.open_echo().send(PEER_IP, 1, b"")
    assert host.parsed()[0].dst == "52:54:00:00:00:55"


def test_a_new_address_is_probed_and_announced_twice() -> None:
    host = Host(address=None)
    host.eth.set_up()
    host.eth.add_address("10.0.0.9", 24)
    probe, announcement = host.parsed()
    assert (probe[ARP].psrc, probe[ARP].pdst) == ("0.0.0.0", "10.0.0.9")  # RFC 5227 §2.1.1
    assert (announcement[ARP].op, announcement[ARP].psrc, announcement[ARP].pdst) == (1, "10.0.0.9", "10.0.0.9")
    host.wait(2 * SECOND - 1)
    assert host.take() == []
    host.wait(1)
    assert [frame[ARP].psrc for frame in host.parsed()] == ["10.0.0.9"]
    host.wait(100 * SECOND)
    assert host.take() == []
    assert host.stack.poll_at() is None, "an idle stack wants no turn"


def test_an_address_that_is_gone_is_not_announced_again() -> None:
    host = Host(address=None)
    host.eth.set_up()
    host.eth.add_address("10.0.0.9", 24)
    host.eth.remove_address("10.0.0.9")
    host.take()
    host.wait(10 * SECOND)
    assert host.take() == []


def test_somebody_elses_probe_is_answered() -> None:
    host = Host()
    host.receive(arp_request(sender="0.0.0.0"))
    (reply,) = host.parsed()
    assert (reply[ARP].op, reply[ARP].psrc) == (2, OUR_IP)
    assert host.count("arp", "rx_probes") == 1


@pytest.mark.parametrize("claim", [arp_reply(sender=OUR_IP), arp_request(sender=OUR_IP, target=OUR_IP)])
def test_h51_a_claim_to_our_address_is_a_conflict(claim: Ether) -> None:
    host = Host()
    events: list[tuple[str, object]] = []
    host.stack.subscribe(lambda event, interface, detail: events.append((event, detail)))
    host.receive(claim, claim)
    assert host.count("arp", "rx_conflicts") == 2
    assert events == [("conflict", (parse_address(OUR_IP), MAC))] * 2
    assert [frame[ARP].psrc for frame in host.parsed()] == [OUR_IP], "defended once in ten seconds (RFC 5227 §2.4)"
    host.wait(10 * SECOND)
    host.take()
    host.receive(claim)
    assert len(host.take()) == 1
    assert host.eth.neighbours is not None
    assert host.eth.neighbours.lookup(parse_address(OUR_IP)) is None, "and never believed"


H51 = {
    "hwlen": (Raw(b"\0\1\x08\0\5\4" + bytes(ARP(hwsrc=PEER_MAC, psrc=PEER_IP))[6:]), "rx_dropped_lengths"),
    "plen": (ARP(op=1, plen=16, hwsrc=PEER_MAC, psrc=PEER_IP, pdst=OUR_IP), "rx_dropped_lengths"),
    "hwtype": (ARP(op=1, hwtype=6, hwsrc=PEER_MAC, psrc=PEER_IP, pdst=OUR_IP), "rx_dropped_type"),
    "ptype": (ARP(op=1, ptype=0x86DD, hwsrc=PEER_MAC, psrc=PEER_IP, pdst=OUR_IP, plen=4), "rx_dropped_type"),
    "op": (ARP(op=8, hwsrc=PEER_MAC, psrc=PEER_IP, pdst=OUR_IP), "rx_dropped_operation"),
    "multicast sender": (ARP(op=1, hwsrc="01:00:5e:00:00:01", psrc=PEER_IP, pdst=OUR_IP), "rx_dropped_sender_mac"),
    "zero sender": (ARP(op=1, hwsrc="00:00:00:00:00:00", psrc=PEER_IP, pdst=OUR_IP), "rx_dropped_sender_mac"),
    "reply from 0.0.0.0": (ARP(op=2, hwsrc=PEER_MAC, psrc="0.0.0.0", pdst=OUR_IP), "rx_dropped_sender"),
    "broadcast IP": (ARP(op=1, hwsrc=PEER_MAC, psrc="255.255.255.255", pdst=OUR_IP), "rx_dropped_sender"),
    "group IP": (ARP(op=1, hwsrc=PEER_MAC, psrc="224.0.0.1", pdst=OUR_IP), "rx_dropped_sender"),
    "loopback IP": (ARP(op=1, hwsrc=PEER_MAC, psrc="127.0.0.1", pdst=OUR_IP), "rx_dropped_sender"),
    "our own, looped": (ARP(op=1, hwsrc=OUR_MAC, psrc=OUR_IP, pdst=OUR_IP), "rx_dropped_own"),
}


@pytest.mark.parametrize("name", H51)
def test_h51_malformed_arp_is_dropped_without_an_answer(name: str) -> None:
    packet, reason = H51[name]
    host = Host()
    host.receive(Ether(dst=BROADCAST, src=PEER_MAC, type=0x0806) / packet)
    assert host.take() == []
    assert host.count("arp", reason) == 1
    assert host.eth.neighbours is not None
    assert len(host.eth.neighbours) == 0


@pytest.mark.parametrize("length", [0, 1, 27])
def test_h51_short_arp_is_dropped(length: int) -> None:
    host = Host()
    host.receive(bytes(arp_request())[: 14 + length])
    assert host.take() == []
    assert host.count("arp", "rx_dropped_short") == 1


def test_h51_a_flood_fills_nothing_and_a_flood_of_requests_not_more_than_256() -> None:
    host = Host()
    host.eth.add_address("10.1.0.1", 16)
    host.take()
    assert host.eth.neighbours is not None
    for number in range(2, 1002):
        host.receive(arp_reply(sender=f"10.1.{number >> 8}.{number & 255}"))
    assert len(host.eth.neighbours) == 0, "replies that nobody asked for"
    assert host.count("arp", "rx_ignored_unsolicited") == 1000
    for number in range(2, 1002):
        host.receive(arp_request(sender=f"10.1.{number >> 8}.{number & 255}", target="10.1.0.1"))
    assert len(host.eth.neighbours) == 256
    newest = [format_address(address) for address, _, _ in host.eth.neighbours.entries()]
    assert newest[-1] == "10.1.3.233"


@given(st.sets(st.integers(1, 41)))
def test_arp_in_pieces_is_the_same_arp(cuts: set[int]) -> None:
    host = Host()
    host.eth.input([fragments(bytes(arp_request()), cuts)])
    assert len(host.take()) == 1
