"""The stack as a whole: two hosts on a wire, the loopback, interfaces and their events, and any bytes at all."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from guest.net.address import AddressError, format_address
from guest.net.config import SECOND
from guest.net.device import IFF_LOOPBACK, IFF_RUNNING, IFF_UP
from guest.net.icmp import EchoPort
from guest.net.interface import Interface
from guest.net.pbuf import Offload, PacketBuffer
from guest.net.stack import Stack
from tests.net_world import (
    OUR_IP,
    PEER_IP,
    PEER_MAC,
    Clock,
    Host,
    arp_reply,
    arp_request,
    echo_request,
    fragments,
    join,
)


def pair() -> tuple[Host, Host]:
    """Two hosts with one clock."""
    clock = Clock()
    return Host(clock=clock), Host(PEER_IP, PEER_MAC, clock=clock, seed=2)


def replies(port: EchoPort) -> list[tuple[str, int, bytes]]:
    """What has come back."""
    found = []
    while (reply := port.receive()) is not None:
        assert reply.error is None
        found.append((reply.src, reply.seq, reply.payload))
    return found


def test_e20_a_thousand_pings_between_two_stacks_come_back_whole() -> None:
    ours, peer = pair()
    port = ours.stack.icmp.open_echo()
    rng = random.Random(20)
    payloads = [rng.randbytes(rng.randrange(1473)) for _ in range(1000)]
    got = []
    for seq, payload in enumerate(payloads):
        port.send(PEER_IP, seq, payload)
        join(ours, peer)
        got += replies(port)
    assert got == [(PEER_IP, seq, payload) for seq, payload in enumerate(payloads)]
    assert peer.count("icmp", "tx_echo_replies") == 1000


def test_a_burst_before_the_neighbour_is_known_is_kept() -> None:
    ours, peer = pair()
    port = ours.stack.icmp.open_echo()
    for seq in range(20):
        port.send(PEER_IP, seq, b"burst")
    join(ours, peer)
    assert [seq for _, seq, _ in replies(port)] == list(range(20))


def test_a_batch_of_pings_is_answered_in_one_batch() -> None:
    host = Host()
    host.meet()
    host.receive(*(echo_request(seq=seq) for seq in range(32)))
    assert [len(batch) for batch in host.batches] == [32]


def test_the_same_seed_gives_the_same_bytes() -> None:
    def run(seed: int) -> list[bytes]:
        host = Host(seed=seed)
        host.meet()
        port = host.stack.icmp.open_echo()
        for seq in range(10):
            port.send(PEER_IP, seq, b"payload")
        return host.take()

    assert run(5) == run(5)
    assert run(5) != run(6)


# -- loopback --------------------------------------------------------------------------------------------------------


def test_the_loopback_is_there_from_the_start() -> None:
    stack = Stack(now=Clock(), rng=random.Random(1))
    (lo,) = stack.interfaces
    assert (lo.name, lo.index, lo.mac, lo.mtu) == ("lo", 1, None, 65536)
    assert lo.flags == IFF_UP | IFF_RUNNING | IFF_LOOPBACK
    assert [str(prefix) for prefix in lo.addresses] == ["127.0.0.1/8", "::1/128"]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.2.1", OUR_IP])
def test_own_addresses_are_reached_without_a_wire(address: str) -> None:
    host = Host()
    port = host.stack.icmp.open_echo()
    payload = bytes(30_000)
    port.send(address, 1, payload)
    assert host.stack.poll_at() == host.clock.now, "the stack says that it has work"
    while host.stack.poll_at() == host.clock.now:
        assert host.stack.poll() is True
    assert replies(port) == [(address, 1, payload)]
    assert host.take() == []


def test_the_loopback_wakes_once_and_is_bounded() -> None:
    host = Host()
    woken: list[int] = []
    host.stack.wake = lambda: woken.append(1)
    port = host.stack.icmp.open_echo()
    for seq in range(1030):
        port.send("127.0.0.1", seq, b"")
    assert woken == [1]
    assert host.stack.loopback.counters["tx_dropped_queue_full"] == 6


def test_bare_packets_of_no_known_version_are_counted() -> None:
    host = Host()
    lo = host.stack.loopback
    lo.input([PacketBuffer.from_bytes(b""), PacketBuffer.from_bytes(b"\x55" * 40)])
    assert lo.counters["rx_dropped_version"] == 2


# -- interfaces, addresses, routes, events ---------------------------------------------------------------------------


def test_b14_events_come_in_the_order_in_which_things_happened() -> None:
    host = Host(address=None)
    seen: list[tuple[str, str, object]] = []

    def first(event: str, interface: Interface, detail: object) -> None:
        seen.append((event, interface.name, detail))
        if (event, detail) == ("link", "up"):
            interface.add_address("10.0.0.5", 24)  # causes further events

    late: list[object] = []
    host.stack.subscribe(first)
    host.stack.subscribe(lambda _event, _interface, detail: late.append(detail))
    host.eth.add_address(OUR_IP, 24)
    host.eth.set_up()
    host.stack.add_route("0.0.0.0", 0, "10.0.0.254")
    host.eth.set_carrier(False)
    host.eth.remove_address("10.0.0.5")
    host.eth.set_down()
    assert seen == [
        ("address", "eth0", "added 10.0.0.1/24"),
        ("link", "eth0", "up"),
        ("address", "eth0", "added 10.0.0.5/24"),
        ("route", "eth0", "added 0.0.0.0/0"),
        ("link", "eth0", "no carrier"),
        ("address", "eth0", "removed 10.0.0.5/24"),
        ("link", "eth0", "down"),
    ]
    assert late == [detail for _, _, detail in seen], "each subscriber sees the same order"
    host.stack.unsubscribe(first)
    host.eth.set_up()
    assert len(seen) == 7


def test_the_status_callback_fires_once_inside_set_up() -> None:
    host = Host(address=None)
    states: list[bool] = []
    host.eth.status_callback = lambda interface: states.append(interface.is_up)
    host.eth.add_address(OUR_IP, 24)
    assert states == [], "an interface that is down has nothing to say"
    host.eth.set_up()
    host.eth.set_up()
    assert states == [True]
    host.eth.add_address("10.0.0.5", 24)
    assert states == [True, True]
    host.eth.set_down()
    assert states == [True, True, False]


def test_an_interface_that_is_down_neither_takes_nor_gives() -> None:
    host = Host()
    host.meet()
    host.eth.set_down()
    host.receive(echo_request())
    assert host.take() == []
    assert host.eth.counters["rx_dropped_down"] == 1
    with pytest.raises(OSError, match="unreachable"):
        host.stack.icmp.open_echo().send(PEER_IP, 1, b"")


def test_packets_that_wait_for_a_neighbour_are_dropped_when_the_link_goes() -> None:
    host = Host()
    host.stack.icmp.open_echo().send(PEER_IP, 1, b"")
    host.eth.set_carrier(False)
    assert host.count("arp", "tx_dropped_flushed") == 1
    host.take()
    host.eth.set_carrier(True)
    assert len(host.take()) == 2, "back again, the address is probed and announced"


@pytest.mark.parametrize(
    ("address", "length"),
    [
        ("0.0.0.0", 0), ("224.0.0.1", 4), ("255.255.255.255", 32), ("10.0.0.255", 24), ("127.0.0.2", 8), (OUR_IP, 24),
        ("nonsense", 8),
    ],
)
def test_addresses_that_no_host_can_have_are_refused(address: str, length: int) -> None:
    host = Host()
    before = list(host.eth.addresses)
    with pytest.raises(AddressError):
        host.eth.add_address(address, length)
    assert host.eth.addresses == before


def test_several_addresses_are_all_answered_and_removal_ends_it() -> None:
    host = Host()
    host.meet()
    host.eth.add_address("10.0.0.50", 24)
    host.eth.add_address("10.9.0.1", 16)
    host.take()
    for address in (OUR_IP, "10.0.0.50", "10.9.0.1"):
        host.receive(echo_request(dst=address))
        assert [frame[IP].src for frame in host.parsed()] == [address]
    assert host.eth.remove_address("10.0.0.50") is True
    assert host.eth.remove_address("10.0.0.50") is False
    host.receive(echo_request(dst="10.0.0.50"))
    assert host.take() == []
    host.receive(echo_request())
    assert len(host.take()) == 1, "the network is still reached by the other address there"
    host.eth.remove_address(OUR_IP)
    assert [str(route.prefix) for route in host.stack.routes] == ["::1/128", "10.9.0.0/16", "127.0.0.0/8"]


def test_the_gateway_is_the_default_route_and_can_be_replaced() -> None:
    host = Host()
    host.meet("10.0.0.254", "52:54:00:00:00:fe")
    host.stack.set_gateway("10.0.0.253")
    host.stack.set_gateway("10.0.0.254")
    host.stack.icmp.open_echo().send("8.8.8.8", 1, b"")
    (frame,) = host.parsed()
    assert (frame.dst, frame[IP].dst) == ("52:54:00:00:00:fe", "8.8.8.8")
    assert len(list(host.stack.routes)) == 4
    with pytest.raises(AddressError):
        Stack(now=host.clock, rng=random.Random(1)).set_gateway("10.0.0.254")


def test_routes_are_added_and_removed() -> None:
    host = Host()
    host.stack.add_route("172.16.0.0", 12, "10.0.0.7", metric=3)
    route = next(route for route in host.stack.routes if route.metric == 3)
    assert (str(route.prefix), route.interface) == ("172.16.0.0/12", host.eth)
    assert route.gateway is not None
    assert format_address(route.gateway) == "10.0.0.7"
    with pytest.raises(AddressError):
        host.stack.add_route("172.16.0.0", 12, "192.168.0.1")
    with pytest.raises(AddressError):
        host.stack.add_route("172.16.0.0", 12)
    assert host.stack.remove_route("172.16.0.0", 12) is True
    assert host.stack.remove_route("172.16.0.0", 12) is False


def test_interfaces_have_names_of_their_own_and_can_be_removed() -> None:
    host = Host()
    stack = host.stack
    for name, mac, mtu in (("eth0", bytes(5) + b"\2", 1500), ("eth1", b"\1" + bytes(5), 1500), ("eth1", bytes(6), 67)):
        with pytest.raises(ValueError):
            stack.add_interface(name, mac, mtu, print)
    with pytest.raises(ValueError):
        stack.add_interface("eth1", bytes(6), 1500, print, loopback=True)
    stack.set_gateway("10.0.0.254")
    stack.remove_interface(host.eth)
    assert [interface.name for interface in stack.interfaces] == ["lo"]
    assert [str(route.prefix) for route in stack.routes] == ["::1/128", "127.0.0.0/8"]
    assert stack.default is None
    assert stack.poll_at() is None


def test_the_mtu_can_be_changed() -> None:
    host = Host()
    host.meet()
    host.eth.set_mtu(600)
    host.stack.icmp.open_echo().send(PEER_IP, 1, bytes(573))
    assert [len(frame) - 14 for frame in host.take()] == [596, 25], "two fragments"
    for mtu in (67, 65537):
        with pytest.raises(ValueError):
            host.eth.set_mtu(mtu)


def test_e7_a_lowered_mtu_bounds_what_is_sent_not_what_the_device_takes_in() -> None:
    host = Host()
    host.meet()
    for lowered in (600, 2000, 1500):
        host.eth.set_mtu(lowered)
        most = max(lowered, 1500)  # with the IP header; 4 more bytes are room for a tag
        host.receive(echo_request(bytes(most - 28)))
        assert max(len(frame) - 14 for frame in host.take()) <= lowered
        assert host.eth.counters["rx_dropped_overlong"] == 0
        host.receive(echo_request(bytes(most + 5 - 28)))
        assert host.take() == []
        assert host.eth.counters.pop("rx_dropped_overlong") == 1


def test_promiscuous_frames_reach_hooks_but_not_ip() -> None:
    host = Host()
    host.eth.set_promiscuous(True)
    host.receive(Ether(dst="52:54:00:00:00:99", src=PEER_MAC) / IP(src=PEER_IP, dst=OUR_IP) / ICMP(type=8))
    assert host.take() == []
    assert host.count("ip", "rx_dropped_other_host") == 1
    host.eth.set_promiscuous(False)
    host.receive(Ether(dst="52:54:00:00:00:99", src=PEER_MAC) / IP(src=PEER_IP, dst=OUR_IP) / ICMP(type=8))
    assert host.eth.counters["rx_dropped_other_host"] == 1


def test_c4_the_trace_shows_every_stage_with_mapped_addresses() -> None:
    host = Host()
    host.meet()
    lines: list[str] = []
    host.stack.trace = lambda stage, packet, text: lines.append(f"{stage}: {text}")
    host.receive(echo_request())
    assert lines == [
        "ethernet: 52:54:00:00:00:02 > 52:54:00:00:00:01 0x0800",
        "ip: ::ffff:10.0.0.2 > ::ffff:10.0.0.1 protocol 1",
        "icmp: type 8 code 0",
        "ip: ::ffff:10.0.0.1 > ::ffff:10.0.0.2 protocol 1",
        "ethernet: 52:54:00:00:00:01 > 52:54:00:00:00:02 0x0800",
    ]
    lines.clear()
    host.receive(echo_request(dst="10.0.0.9"))
    assert lines[-1] == "ip: rx_dropped_forwarding_off"
    host.stack.trace = None
    lines.clear()
    host.receive(echo_request())
    assert lines == []


# -- any bytes -------------------------------------------------------------------------------------------------------


def accounts(host: Host) -> dict[str, tuple[int, int]]:
    """For each layer: what came in, and what was handed on, used or dropped. The two must be equal."""
    layers = host.stack.counters

    def dropped(layer: str) -> int:
        return sum(count for name, count in layers[layer].items() if name.startswith("rx_dropped"))

    def named(layer: str, *names: str) -> int:
        ignored = sum(count for name, count in layers[layer].items() if name.startswith("rx_ignored"))
        return ignored + sum(layers[layer][name] for name in names)

    arp, ip, icmp = layers["arp"]["rx_packets"], layers["ip"]["rx_packets"], layers["icmp"]["rx_packets"]
    made = layers["ip"]["rx_reassembled"]  # of fragments, and then handed on like others
    return {
        "ethernet": (layers["ethernet"]["rx_packets"], arp + ip + dropped("ethernet")),
        "arp": (arp, named("arp", "rx_requests", "rx_replies", "rx_probes", "rx_conflicts") + dropped("arp")),
        "ip": (ip + made, named("ip", "rx_delivered", "rx_fragments", "forwarded") + dropped("ip")),
        "icmp": (icmp, named("icmp", "rx_echo_requests", "rx_echo_replies", "rx_errors") + dropped("icmp")),
    }


def test_the_accounts_would_notice_a_lost_frame() -> None:
    host = Host()
    host.receive(arp_request(), echo_request())
    host.stack.ip.counters["rx_packets"] += 1
    assert [layer for layer, (came, went) in accounts(host).items() if came != went] == ["ethernet", "ip"]


QUOTE = IP(src=OUR_IP, dst=PEER_IP) / ICMP(type=8, id=1, seq=1)
SEEDS = [
    bytes(frame)
    for frame in (
        arp_request(),
        arp_reply(),
        echo_request(bytes(40)),
        echo_request(dst="10.0.0.255"),
        Ether(dst="52:54:00:00:00:01", src=PEER_MAC) / IP(src=PEER_IP, dst=OUR_IP) / UDP() / Raw(bytes(20)),
        Ether(dst="52:54:00:00:00:01", src=PEER_MAC) / IP(src=PEER_IP, dst=OUR_IP) / ICMP(type=3, code=4) / QUOTE,
        Ether(dst="52:54:00:00:00:01", src=PEER_MAC) / IP(src=PEER_IP, dst=OUR_IP) / ICMP(type=0, id=1),
        Ether(dst="52:54:00:00:00:01", src=PEER_MAC, type=0x86DD) / Raw(bytes([0x60]) + bytes(60)),
    )
]


def set_right(raw: bytearray) -> None:
    """Make the IPv4 and ICMP checksums right again, so that the layers behind them are reached."""
    if len(raw) < 34 or raw[12:14] != b"\x08\0":
        return
    packet = IP(bytes(raw[14:]))
    size = max(20, packet.ihl * 4)

    def put(at: int, start: int, end: int) -> None:
        raw[at : at + 2] = b"\0\0"
        total = sum(int.from_bytes(raw[i : min(i + 2, end)].ljust(2, b"\0"), "big") for i in range(start, end, 2))
        raw[at : at + 2] = (65535 - (total % 65535 or 65535 if total else 0)).to_bytes(2, "big")

    put(24, 14, min(14 + size, len(raw)))
    end = min(14 + packet.len, len(raw))
    if raw[23] == 1 and end >= 14 + size + 8:
        put(14 + size + 2, 14 + size, end)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[bytes, set[int], bool]:
    """A good frame with bytes changed, cut off or appended; where it is cut into pieces; whether merged by offload."""
    raw = bytearray(draw(st.sampled_from(SEEDS)))
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)):
        raw[at] = value
    if draw(st.booleans()):
        set_right(raw)
    if draw(st.booleans()):
        del raw[draw(st.integers(0, len(raw))) :]
    raw += draw(st.binary(max_size=20))
    return bytes(raw), draw(st.sets(st.integers(1, 90), max_size=6)), draw(st.booleans())


@settings(max_examples=400)
@given(st.lists(mutated() | st.tuples(st.binary(max_size=120), st.just(set()), st.just(False)), max_size=8))
def test_any_frame_is_delivered_or_counted_and_raises_nothing(batch: list[tuple[bytes, set[int], bool]]) -> None:
    host = Host()
    host.stack.icmp.open_echo()
    packets = []
    for raw, cuts, merged in batch:
        packet = fragments(raw, cuts) if raw else PacketBuffer.from_bytes(raw)
        packet.offload = Offload(flags=1, gso_type=1, csum_start=34, csum_offset=16) if merged else None
        packets.append(packet)
    host.eth.input(packets)
    host.wait(65 * SECOND)  # until fragments are given up
    for layer, (came, went) in accounts(host).items():
        assert came == went, f"{layer} lost count"
    assert host.count("ethernet", "rx_packets") == len(batch)
    assert len(host.take()) <= 3 * len(batch) + 6, "no more answers than questions, with requests for neighbours"
