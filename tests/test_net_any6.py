"""Any IPv6, ICMPv6, ND, MLD and IGMP bytes at all: nothing is raised, all is counted, everything stays bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import (
    ICMPv6MLQuery,
    ICMPv6MLQuery2,
    ICMPv6MLReport,
    ICMPv6ND_RS,
    ICMPv6NDOptMTU,
    ICMPv6NDOptRDNSS,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
    in6_chksum,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import checksum as scapy_checksum

from guest.net.config import SECOND
from guest.net.pbuf import PacketBuffer
from tests.net_world import OUR_IP, PEER_IP, PEER_MAC, Host, fragments
from tests.net_world6 import (
    ALL_NODES,
    OUR_IP6,
    PEER_IP6,
    PEER_LINK,
    ROUTER,
    advertise,
    answer,
    ask,
    host6,
    ping6,
    prefix,
    to_group,
    to_us6,
)
from tests.test_net_nd import redirect

QUOTE = bytes(IPv6(src=OUR_IP6, dst=PEER_IP6, nh=58) / Raw(b"\x80\0\0\0\0\1\0\1payload"))
ALERT = IPv6ExtHdrHopByHop(options=[RouterAlert()])
IGMP_QUERY = (
    Ether(dst="01:00:5e:00:00:01", src=PEER_MAC)
    / IP(src=PEER_IP, dst="224.0.0.1", ttl=1, proto=2)
    / Raw(b"\x11\x64\xee\x9b\0\0\0\0")
)
SEEDS = [
    bytes(frame)
    for frame in (
        ask(),
        answer(PEER_IP6),
        answer("2001:db8::5", dst=ALL_NODES, S=0),
        advertise(prefix(), ICMPv6NDOptMTU(mtu=1400), ICMPv6NDOptRDNSS(dns=["2001:db8::53"], lifetime=100)),
        advertise(*(prefix(f"2001:db8:{number:x}::") for number in range(64, 94))),
        redirect(),
        to_us6(ICMPv6ND_RS(), hlim=255),
        ping6(bytes(40)),
        to_us6(ICMPv6PacketTooBig(mtu=1300) / Raw(QUOTE)),
        to_group(ALERT / ICMPv6MLQuery2(mrd=10), ALL_NODES, PEER_LINK, hlim=1),
        to_group(ICMPv6MLQuery(mrd=10), ALL_NODES, PEER_LINK, hlim=1),
        to_group(ICMPv6MLReport(mladdr="ff05::5"), "ff05::5", PEER_LINK, hlim=1),
        IGMP_QUERY,
        to_us6(Raw(bytes(30)), nh=17),
    )
]
LAYERS = {
    "arp": ("rx_requests", "rx_replies", "rx_probes", "rx_conflicts"),
    "nd": ("rx_solicitations", "rx_advertisements", "rx_routers", "rx_redirects", "rx_probes", "rx_duplicates",
           "rx_conflicts"),
    "icmp": ("rx_echo_requests", "rx_echo_replies", "rx_errors"),
    "icmpv6": ("rx_echo_requests", "rx_echo_replies", "rx_errors", "rx_nd", "rx_mld"),
    "igmp": ("rx_queries", "rx_reports"),
    "mld": ("rx_queries", "rx_reports"),
    "udp": ("rx_delivered",),
}  # fmt: skip


def busy() -> Host:
    """A host that has something of everything that messages could change."""
    host = host6(ipv6=True)
    host.eth.add_address(OUR_IP, 24)
    host.stack.ip.join(host.eth, 0xFF05 << 112 | 5)
    host.eth.add_address("2001:db8::5", 64)
    host.receive(advertise(prefix("2001:db8:77::")))
    host.stack.icmp.open_echo()
    host.take()
    return host


def set_right(raw: bytearray) -> None:
    """Make the checksum of an ICMPv6 or IGMP message right again, so that what is behind it is reached."""
    try:
        if raw[12:14] == b"\x86\xdd":
            at = 62 if raw[20] == 0 else 54
            raw[at + 2 : at + 4] = b"\0\0"
            raw[18:20] = (len(raw) - 54).to_bytes(2, "big")
            raw[at + 2 : at + 4] = in6_chksum(58, IPv6(bytes(raw[14:])), bytes(raw[at:])).to_bytes(2, "big")
        elif raw[23] == 2:
            raw[36:38] = b"\0\0"
            raw[36:38] = scapy_checksum(bytes(raw[34:])).to_bytes(2, "big")
    except (IndexError, ValueError):
        return  # too spoiled for that


@st.composite
def mutated(draw: st.DrawFn) -> tuple[bytes, set[int]]:
    """A good frame with bytes changed, cut off or appended; where it is cut into pieces."""
    raw = bytearray(draw(st.sampled_from(SEEDS)))
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)):
        raw[at] = value
    if draw(st.booleans()):
        del raw[draw(st.integers(0, len(raw))) :]
    raw += draw(st.binary(max_size=20))
    if draw(st.integers(0, 3)) and len(raw) > 70:
        set_right(raw)
    return bytes(raw), draw(st.sets(st.integers(1, 130), max_size=6))


def lost(host: Host) -> list[str]:
    """Layers in which what came in is not what was used, ignored or dropped."""
    found = []
    for layer, names in LAYERS.items():
        counters = host.stack.counters[layer]
        went = sum(
            count for name, count in counters.items() if name in names or name.startswith(("rx_dropped", "rx_ignored"))
        )
        if counters["rx_packets"] != went:
            found.append(f"{layer}: {counters}")
    return found


@settings(max_examples=300)
@given(st.lists(mutated() | st.tuples(st.binary(max_size=120), st.just(set())), max_size=8))
def test_any_frame_is_used_or_counted_and_raises_nothing(batch: list[tuple[bytes, set[int]]]) -> None:
    host = busy()
    before = dict(host.stack.counters["ethernet"])
    host.eth.input([fragments(raw, cuts) if raw else PacketBuffer.from_bytes(raw) for raw, cuts in batch])
    host.wait(65 * SECOND)
    assert lost(host) == []
    assert host.count("ethernet", "rx_packets") == before["rx_packets"] + len(batch)
    config = host.stack.config
    assert host.eth.neighbours is not None
    assert len(host.eth.neighbours) <= config.arp_entries
    assert len(host.eth.addresses) <= 4 + config.nd_prefixes
    most = config.nd_prefixes + config.nd_routers + config.nd_redirects
    assert len(host.stack.routes) <= 6 + most
    assert host.eth.owns(int.from_bytes(b"\0" * 10 + b"\xff\xff\x0a\0\0\1", "big")), "IPv4 goes on"
    assert len(host.take()) <= 40 * (1 + len(batch))


def test_the_seeds_are_understood_before_they_are_spoiled() -> None:
    host = busy()
    for seed in SEEDS:
        host.receive(seed)
    host.wait(20 * SECOND)
    dropped = {
        f"{layer} {name}"
        for layer in LAYERS
        for name in host.stack.counters[layer]
        if name.startswith("rx_dropped") and layer != "udp"
    }
    assert dropped == set()
    assert lost(host) == []


@pytest.mark.parametrize("layer", LAYERS)
def test_the_accounts_would_notice_a_lost_message(layer: str) -> None:
    host = busy()
    host.stack.counters[layer]["rx_packets"] += 1
    assert [line.split(":")[0] for line in lost(host)] == [layer]


def test_twenty_minutes_of_advertisements_leaves_nothing_behind() -> None:
    host = busy()
    for number in range(1200):
        host.receive(advertise(prefix(f"2001:db8:{number:x}::", valid=2, preferred=1), router=ROUTER, routerlifetime=2))
        host.wait(SECOND)
        host.batches.clear()
    host.wait(86400 * SECOND * 30)
    assert [prefix.address for prefix in host.eth.addresses if prefix.address in host.eth.tentative] == []
    assert len(host.eth.addresses) == 4
