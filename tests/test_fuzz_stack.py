"""Mutated frames of every protocol against a host with open sockets, a resolver that waits and a DHCP client.

Whatever comes in: nothing raises, memory stays within what the settings say, and every packet is accounted for at each
layer: delivered, held, or dropped under a reason.
"""

from __future__ import annotations

import random
import struct
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import ICMP, IP, UDP, IPOption_NOP, IPOption_RR, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLQuery2,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptMTU,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from guest.net.address import parse_address
from guest.net.checksum import checksum
from guest.net.config import SECOND, NetConfig
from guest.net.dhcp_service import DhcpService
from guest.net.dns import Resolver
from guest.net.udp import UdpEndpoint
from guest.services import Timers
from tests.net_world import BROADCAST, OUR_IP, OUR_MAC, PEER_IP, PEER_MAC, Host, arp_reply, arp_request, to_us
from tests.net_world6 import (
    ALL_NODES,
    OUR_IP6,
    PEER_IP6,
    PEER_LINK,
    ROUTER,
    advertise,
    answer,
    ask,
    prefix,
    to_group,
    to_us6,
)

IDENT = 7  # of the ICMP datagram sockets
PORT = 4000
GROUPS = "239.1.1.1", "ff02::1:1"
CONFIG = NetConfig(
    arp_entries=8, arp_queue=4, reassembly_bytes=4096, reassembly_sets=6, pmtu_entries=6, echo_queue=3,
    rcvbuf=4096, nd_routers=3, nd_prefixes=3, nd_servers=3, nd_redirects=3, icmp_burst=10, ipv6=True,
)  # fmt: skip


class World:
    """The host, and everything on it that listens."""

    def __init__(self) -> None:
        self.host = host = Host(config=CONFIG)
        host.eth.add_address(OUR_IP6, 64, check=False)
        host.wait(3 * SECOND)
        self.stack = stack = host.stack
        stack.add_route("0.0.0.0", 0, PEER_IP)
        self.timers = Timers(host.clock)
        self.queues: list[UdpEndpoint] = []
        for family, address in ((4, "0.0.0.0"), (6, "::")):
            end = stack.udp.open(family)
            end.options.v6only = True
            assert end.bind(parse_address(address), PORT) == 0
            assert end.join(parse_address(GROUPS[family == 6]), host.eth) == 0
            ping = stack.raw.open_ping(family)
            assert ping.bind(parse_address(address), IDENT + family) == 0
            raw = stack.raw.open(family, 1 if family == 4 else 58)
            self.queues += [end, ping, raw]  # type: ignore[list-item]
        connected = stack.udp.open(4)
        assert connected.connect(parse_address(PEER_IP), 9) == 0
        connected.send([b"x"])
        self.queues.append(connected)
        self.echo = stack.icmp.open_echo()
        self.echo.send(PEER_IP, 1, b"x")
        self.resolver = Resolver(
            now=host.clock, rng=random.Random(2), open_endpoint=stack.udp.open, timers=self.timers,
        )  # fmt: skip
        self.resolver.set_servers("static", [parse_address(PEER_IP), parse_address(PEER_IP6)])
        self.dhcp = DhcpService(stack, host.eth, rng=random.Random(3), timers=self.timers)
        host.meet()
        assert self.dhcp.start() == 0
        self.query = self.resolver.query("www.example.org")
        self.asked = host.take()

    def input(self, frames: list[bytes]) -> None:
        """Frames arrive; afterwards all that they were is accounted for."""
        before, held = self.counts(), self.stack.ip.reassembler.held
        self.host.receive(*frames)
        check_accounts(before, self.counts(), len(frames), self.stack.ip.reassembler.held - held)
        self.check_memory()

    def wait(self, micros: int) -> None:
        """Time passes for the stack and for what runs on the kernel's timers."""
        end = self.host.clock.now + micros
        while (due := self.timers.next_deadline()) is not None and due <= end:
            self.host.wait(max(0, due - self.host.clock.now))
            self.timers.run_due()
        self.host.wait(max(0, end - self.host.clock.now))
        self.check_memory()

    def counts(self) -> dict[str, Counter[str]]:
        return {layer: Counter(counts) for layer, counts in self.stack.counters.items()}

    def check_memory(self) -> None:
        """What the settings limit is within the limit."""
        stack, eth = self.stack, self.host.eth
        reassembler = stack.ip.reassembler
        assert 0 <= reassembler.bytes <= CONFIG.reassembly_bytes
        assert len(reassembler) <= CONFIG.reassembly_sets
        assert eth.neighbours is not None
        assert eth.v6 is not None
        assert len(eth.neighbours) <= CONFIG.arp_entries
        assert all(end.queued_bytes <= CONFIG.rcvbuf for end in self.queues)
        slaac = eth.v6.slaac
        assert len(slaac.routers) <= CONFIG.nd_routers
        assert len(slaac.prefixes) <= CONFIG.nd_prefixes
        assert len(slaac.addresses) <= CONFIG.nd_prefixes
        assert len(slaac.servers) <= CONFIG.nd_servers
        assert len(slaac.redirects) <= CONFIG.nd_redirects
        assert len(stack.ip.path_mtus) <= CONFIG.pmtu_entries
        assert len(list(stack.routes)) <= 40
        assert len(eth.addresses) <= 4 + CONFIG.nd_prefixes
        # one socket more for each question, one for DHCP
        assert len(list(stack.udp)) <= 6
        assert sum(len(batch) for batch in self.host.batches) <= 2000


def dropped(counts: Counter[str]) -> int:
    return sum(count for name, count in counts.items() if name.startswith("rx_dropped"))


def received(counts: Counter[str]) -> int:
    """All that is counted of what came in, by what became of it."""
    return sum(count for name, count in counts.items() if name.startswith("rx_") and name != "rx_packets")


def check_accounts(before: dict[str, Counter[str]], after: dict[str, Counter[str]], frames: int, held: int) -> None:
    """Each layer's accounts balance between two looks at the counters, in which so many frames came in."""
    grew = {layer: after[layer] - before[layer] for layer in after}  # counters never shrink
    ethernet, ip, udp = grew["ethernet"], grew["ip"], grew["udp"]
    assert ethernet["rx_packets"] == frames
    assert frames == dropped(ethernet) + grew["arp"]["rx_packets"] + ip["rx_packets"]
    joined = ip["rx_fragments"] - ip["rx_reassembled"]
    assert ip["rx_packets"] == ip["rx_delivered"] + dropped(ip) + held + joined, ip
    above = grew["icmp"]["rx_packets"] + grew["icmpv6"]["rx_packets"] + grew["igmp"]["rx_packets"]
    assert ip["rx_delivered"] == above + udp["rx_packets"], grew
    assert udp["rx_packets"] == udp["rx_delivered"] + dropped(udp), udp
    for layer in ("arp", "icmp", "icmpv6", "igmp", "nd", "mld"):
        assert grew[layer]["rx_packets"] == received(grew[layer]), (layer, grew[layer])


# -- frames ------------------------------------------------------------------------------------------------------

UNIT = b"0123456789abcdef" * 8
QUOTE4 = IP(src=OUR_IP, dst=PEER_IP) / UDP(sport=PORT, dport=9) / b"x"
QUOTE6 = IPv6(src=OUR_IP6, dst=PEER_IP6) / UDP(sport=PORT, dport=9) / b"x"
LEASE = [
    ("message-type", "offer"), ("server_id", PEER_IP), ("lease_time", 60), ("subnet_mask", "255.255.255.0"),
    ("router", PEER_IP), ("name_server", PEER_IP), "end",
]  # fmt: skip
RECORDS = DNS(
    id=1, qr=1, ra=1, qd=[DNSQR(qname="www.example.org")],
    an=[DNSRR(rrname="www.example.org", rdata="192.0.2.1"), DNSRR(rrname="a.example.org", type="CNAME", rdata="b.org")],
)  # fmt: skip


def broadcast(payload: Packet) -> Packet:
    return Ether(dst=BROADCAST, src=PEER_MAC) / IP(src=PEER_IP, dst="255.255.255.255") / payload


def group4(group: str, payload: Packet, **fields: object) -> Packet:
    last = parse_address(group) & 0x7FFFFF
    mac = (0x01005E000000 | last).to_bytes(6, "big").hex(":")
    return Ether(dst=mac, src=PEER_MAC) / IP(src=PEER_IP, dst=group, **fields) / payload


def igmp(group: str, text: str) -> Packet:
    """A message, written in hexadecimal digits with a checksum of zero."""
    message = bytearray.fromhex(text)
    message[2:4] = checksum([memoryview(message)]).to_bytes(2, "big")
    return group4(group, Raw(bytes(message)), proto=2, ttl=1)


def parts4(size: int, number: int) -> list[Packet]:
    whole = bytes(UDP(sport=9, dport=PORT) / (UNIT * (size // len(UNIT) + 1))[:size])
    return [
        to_us(Raw(whole[at : at + 512]), proto=17, id=number, frag=at // 8, flags=int(at + 512 < len(whole)))
        for at in range(0, len(whole), 512)
    ]


def parts6(size: int, number: int) -> list[Packet]:
    whole = bytes(IPv6(src=PEER_IP6, dst=OUR_IP6) / UDP(sport=9, dport=PORT) / UNIT[:100] / (UNIT * 9)[:size])[40:]
    return [
        to_us6(IPv6ExtHdrFragment(nh=17, id=number, offset=at // 8, m=at + 256 < len(whole)) / whole[at : at + 256])
        for at in range(0, len(whole), 256)
    ]


OPTIONS = [IPOption_NOP(), IPOption_RR(), IPOption_Timestamp()]
HEADERS = (
    IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(optdata=b"ab")])
    / IPv6ExtHdrRouting()
    / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"abcd")])
)
PREFIXES = [prefix(), prefix("2001:db8:2::", valid=60, preferred=30)]

PACKETS: dict[str, list[Packet]] = {
    "arp": [arp_request(), arp_reply(), arp_request("10.0.0.9"), arp_request(OUR_IP), arp_request("0.0.0.0")],
    "ipv4": [
        to_us(UDP(sport=9, dport=PORT) / b"hello"),
        to_us(UDP(sport=9, dport=PORT) / b"hello", options=OPTIONS),
        to_us(UDP(sport=9, dport=1) / b"hello", tos=3, ttl=1),
        to_us(UDP(sport=9, dport=0) / b"hello"),
        to_us(Raw(b"abcdefgh"), proto=99),
        to_us(UDP(sport=9, dport=PORT, chksum=0) / b"hello", dst="192.0.2.1"),
        broadcast(UDP(sport=9, dport=PORT) / b"hello"),
        group4(GROUPS[0], UDP(sport=9, dport=PORT) / b"hello"),
        *parts4(1400, 1),
        *parts4(600, 2),
    ],
    "icmp": [
        to_us(ICMP(type=8, id=1) / UNIT),
        to_us(ICMP(type=0, id=IDENT + 4) / b"x"),
        to_us(ICMP(type=3, code=3) / QUOTE4),
        to_us(ICMP(type=3, code=4, nexthopmtu=600) / QUOTE4),
        to_us(ICMP(type=11) / QUOTE4),
        to_us(ICMP(type=12) / QUOTE4),
        to_us(ICMP(type=5, gw="10.0.0.9") / QUOTE4),
    ],
    "igmp": [
        igmp("224.0.0.1", "1164 0000 00000000"),
        igmp("224.0.0.1", "1164 0000 00000000 020a0000"),
        igmp(GROUPS[0], "1600 0000 ef010101"),
    ],
    "ipv6": [
        to_us6(UDP(sport=9, dport=PORT) / b"hello"),
        to_us6(HEADERS / UDP(sport=9, dport=PORT) / b"hello"),
        to_us6(UDP(sport=9, dport=1) / b"hello", hlim=1),
        to_us6(Raw(b"abcdefgh"), nh=99),
        to_us6(Raw(b""), nh=59),
        to_group(UDP(sport=9, dport=PORT) / b"hello", GROUPS[1], PEER_LINK),
        *parts6(500, 1),
        *parts6(300, 2),
    ],
    "icmpv6": [
        to_us6(ICMPv6EchoRequest(id=1, data=UNIT)),
        to_us6(ICMPv6EchoReply(id=IDENT + 6, data=b"x")),
        to_group(ICMPv6EchoRequest(id=1, data=b"x"), ALL_NODES, PEER_LINK),
        to_us6(ICMPv6DestUnreach(code=4) / QUOTE6),
        to_us6(ICMPv6PacketTooBig(mtu=1300) / QUOTE6),
        to_us6(ICMPv6TimeExceeded() / QUOTE6),
        to_us6(ICMPv6ParamProblem(ptr=6) / QUOTE6),
    ],
    "nd": [
        ask(),
        answer(PEER_IP6),
        answer(OUR_IP6, dst=ALL_NODES),
        to_group(ICMPv6ND_NS(tgt=OUR_IP6), "ff02::1:ff00:1", "::"),
        advertise(*PREFIXES, ICMPv6NDOptMTU(mtu=1400), ICMPv6NDOptRDNSS(dns=[PEER_IP6], lifetime=60)),
        advertise(router="fe80::7", routerlifetime=0),
        to_group(ICMPv6ND_RA(routerlifetime=9) / ICMPv6NDOptSrcLLAddr(lladdr=PEER_MAC), ALL_NODES, "fe80::9"),
        to_us6(ICMPv6ND_Redirect(tgt=PEER_LINK, dst="2001:db8:5::1"), ROUTER, hlim=255),
    ],
    "mld": [
        to_group(IPv6ExtHdrHopByHop(options=[RouterAlert()]) / ICMPv6MLQuery2(mrd=100), ALL_NODES, PEER_LINK, hlim=1),
        to_group(
            IPv6ExtHdrHopByHop(options=[RouterAlert()]) / ICMPv6MLQuery2(mladdr=GROUPS[1]), GROUPS[1], PEER_LINK, hlim=1
        ),
    ],
    "dhcp": [
        broadcast(
            UDP(sport=67, dport=68)
            / BOOTP(op=2, chaddr=bytes.fromhex(OUR_MAC.replace(":", "")) + bytes(10), yiaddr="10.0.0.50")
            / DHCP(options=LEASE)
        ),
    ],
    "dns": [to_us(UDP(sport=53, dport=PORT) / RECORDS)],
}
FRAMES: dict[str, list[bytes]] = {name: [bytes(packet) for packet in packets] for name, packets in PACKETS.items()}


def test_every_frame_is_understood_before_it_is_mutated() -> None:
    world = World()
    for frames in FRAMES.values():
        world.input(list(frames))
    counters = world.counts()
    for layer in ("arp", "icmp", "icmpv6", "igmp", "nd", "mld", "udp"):
        assert counters[layer]["rx_packets"] >= 2, layer
    assert counters["ip"]["rx_reassembled"] == 4
    assert not [name for layer in counters.values() for name in layer if "checksum" in name]


def test_fragments_whose_others_never_come_stay_within_their_memory() -> None:
    world = World()
    for number in range(40):
        world.input([bytes(parts4(1400, number)[0]), bytes(parts4(1400, number)[1]), bytes(parts6(500, number)[0])])
    world.wait(61 * SECOND)
    assert world.stack.ip.reassembler.bytes == 0


# -- mutations ---------------------------------------------------------------------------------------------------


def seal(frame: bytearray) -> None:
    """Make checksums right again where the frame is whole enough, so that mutations get past them."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and len(frame) >= 34:
        size = (frame[14] & 15) * 4
        if size < 20 or len(frame) < 14 + size:
            return
        frame[24:26] = bytes(2)
        frame[24:26] = checksum([memoryview(frame)[14 : 14 + size]]).to_bytes(2, "big")
        end = min(len(frame), 14 + int.from_bytes(frame[16:18], "big"))
        protocol, pseudo = frame[23], bytes(frame[26:34])
        at = 14 + size
        if int.from_bytes(frame[20:22], "big") & 0x3FFF:
            return
    elif kind == b"\x86\xdd" and len(frame) >= 54:
        end = min(len(frame), 54 + int.from_bytes(frame[18:20], "big"))
        protocol, at, pseudo = frame[20], 54, bytes(frame[22:54])
        while protocol in (0, 43, 60) and at + 8 <= end:
            protocol, at = frame[at], at + 8 * (frame[at + 1] + 1)
    else:
        return
    where = {1: 2, 2: 2, 17: 6, 58: 2}.get(protocol)
    if where is None or at + where + 2 > end:
        return
    frame[at + where : at + where + 2] = bytes(2)
    start = b"" if protocol in (1, 2) else pseudo + struct.pack(">IHBB", end - at, 0, 0, protocol)
    value = checksum([memoryview(start), memoryview(frame)[at:end]]) or 0xFFFF
    frame[at + where : at + where + 2] = value.to_bytes(2, "big")


EDGES = st.one_of(st.sampled_from((0, 1, 2, 4, 0x3F, 0x40, 0x7F, 0x80, 0xC2, 0xFE, 0xFF)), st.integers(0, 255))
# (where, of 10,000 parts of the frame; what; a value)
STEPS = st.lists(
    st.tuples(st.integers(0, 9_999), st.sampled_from(("set", "flip", "insert", "delete", "cut", "repeat")), EDGES),
    max_size=5,
)
NAMES = sorted(FRAMES)
MUTANT = st.tuples(
    st.sampled_from(NAMES).flatmap(lambda name: st.sampled_from(FRAMES[name])), STEPS, st.integers(0, 3), st.booleans()
)
# Frames that come in together, and which of some pauses follows them.
BATCH = st.tuples(st.lists(MUTANT, min_size=1, max_size=12), st.integers(0, 3))
BATCHES = st.lists(BATCH, min_size=1, max_size=3)


def mutated(frame: bytes, steps: list[tuple[int, str, int]], skipped: int, sealed: bool) -> bytes:
    """The frame after these steps, most of which leave the Ethernet header alone."""
    made = bytearray(frame)
    first = 14 if skipped else 0
    for place, what, value in steps:
        if len(made) <= first:
            break
        at = first + place * (len(made) - first) // 10_000
        match what:
            case "set":
                made[at] = value
            case "flip":
                made[at] ^= 1 << (value & 7)
            case "insert":
                made[at:at] = bytes([value]) * (value & 15)
            case "delete":
                del made[at : at + (value & 15)]
            case "cut":
                del made[at:]
            case "repeat":
                made += made[at : at + value]
    if sealed:
        seal(made)
    return bytes(made)


@settings(max_examples=500)
@given(batches=BATCHES)
def test_mutated_frames_raise_nothing_and_every_drop_has_a_reason(
    batches: list[tuple[list[tuple[bytes, list[tuple[int, str, int]], int, bool]], int]],
) -> None:
    world = World()
    for mutants, pause in batches:
        world.input([mutated(*mutant) for mutant in mutants])
        world.wait((0, 20_000, SECOND, 70 * SECOND)[pause])
        world.host.take()


# -- replies, which are looked at only where they fit what was asked ---------------------------------------------


def test_mutated_replies_to_the_resolver_and_the_dhcp_client() -> None:
    @settings(max_examples=200)
    @given(steps=STEPS, kind=st.sampled_from(("offer", "ack", "nak")), name=st.sampled_from(("dns", "dhcp")))
    def check(steps: list[tuple[int, str, int]], kind: str, name: str) -> None:
        world = World()
        sent = [Ether(frame) for frame in world.asked]
        question = next(packet for packet in sent if DNS in packet)
        discover = next(packet for packet in sent if BOOTP in packet)
        if name == "dns":
            reply = RECORDS.copy()
            reply.id = question[DNS].id
            frame = to_us(UDP(sport=53, dport=question[UDP].sport) / reply)
        else:
            lease = [("message-type", kind), *LEASE[1:]]
            chaddr = discover[BOOTP].chaddr
            message = BOOTP(op=2, chaddr=chaddr, yiaddr="10.0.0.50", xid=discover[BOOTP].xid) / DHCP(options=lease)
            frame = broadcast(UDP(sport=67, dport=68) / message)
        head = len(frame) - len(bytes(frame[UDP].payload))
        raw = bytes(frame)
        body = mutated(raw[head:], steps, 0, False)
        made = bytearray(bytes(Ether(raw[:34]) / Raw(raw[34:head] + body)))
        made[16:18] = (len(made) - 14).to_bytes(2, "big")
        made[38:40] = (len(made) - 34).to_bytes(2, "big")
        seal(made)
        world.input([bytes(made)])
        own = world.resolver.counters if name == "dns" else world.dhcp.counters
        assert own["rx_messages"] == 1, own
        told = sum(count for key, count in own.items() if key.startswith("rx_") and key != "rx_messages")
        assert told >= 1, own
        if not steps and name == "dns":
            assert world.query.done
        world.wait(70 * SECOND)

    check()
