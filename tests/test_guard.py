"""The guard decides: rules in order, hooks, conditions, counters, the trace (rows C27, D11, N8). For both families.

What becomes of a rejected packet's sender is in test_guard_answers.py, rules as text in test_guard_rule.py. The engine
stands on its bench: our host with eth0 and eth1, a transport for protocol 17 that takes everything.
"""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet, Raw

from guest.net.address import Prefix, is_v4, parse_address
from guest.net.guard import Guard, Policy, Rule, parse_rule
from guest.net.pbuf import PacketBuffer
from tests.ip_bench import FAMILIES, V4, V6, Bench, FakeInterface, Family
from tests.net_world import fragments
from tests.test_guard_rule import rules

both = pytest.mark.parametrize("family", FAMILIES)


def guarded(*lines: str, forwarding: bool = False) -> Bench:
    """A bench whose engine asks a guard with these rules."""
    bench = Bench()
    bench.engine.guard = Guard(lines)
    bench.engine.forwarding = forwarding
    return bench


def counted(bench: Bench) -> list[tuple[int, int]]:
    """Packets and bytes of each rule."""
    assert bench.engine.guard is not None
    return [(packets, size) for _, _, packets, size in bench.engine.guard.rules]


def beyond(family: Family) -> str:
    """A host on eth1's network."""
    return "192.168.1.9" if family is V4 else "2001:db8:1::9"


def datagram(family: Family, sport: int = 1000, dport: int = 53, *, dst: str = "", src: str = "") -> Packet:
    """A UDP datagram from our peer, for us unless `dst` says otherwise."""
    header = IP if family is V4 else IPv6
    return header(src=src or family.peer, dst=dst or family.ours) / UDP(sport=sport, dport=dport) / Raw(b"12345678")


def ports(sport: int, dport: int) -> bytes:
    """A datagram's header as we send it."""
    return struct.pack("!HHHH", sport, dport, 8, 0)


# -- which rule decides ----------------------------------------------------------------------------------------------


@both
def test_c27_n8_the_first_rule_that_matches_decides(family: Family) -> None:
    bench = guarded("accept in udp to port 53", "drop in udp", "accept in")
    bench.receive(datagram(family, dport=53))
    bench.receive(datagram(family, dport=54))
    assert [data[2:4] for _, data, _ in bench.got] == [b"\0\x35"], "the one to port 53"
    assert [packets for packets, _ in counted(bench)] == [1, 1, 0], "rules behind the one that decided are not asked"
    assert (bench.drops(), bench.balance()) == ({"rx_dropped_guard": 1}, 0)


@both
@pytest.mark.parametrize("policy", ["accept", "drop", "reject"])
def test_c27_where_no_rule_matches_the_policy_of_the_hook_decides(family: Family, policy: str) -> None:
    bench = guarded(f"policy in {policy}", "drop in udp to port 54", forwarding=True)
    bench.receive(datagram(family))
    assert len(bench.got) == (policy == "accept")
    assert [kind for kind, _, _ in bench.errors] == (["port"] if policy == "reject" else [])
    bench.receive(datagram(family, dst=beyond(family)))
    assert bench.send(family.peer) == 0
    assert (len(bench.eth1.sent), len(bench.eth0.sent)) == (1, 1), "the other hooks have policies of their own"
    assert bench.engine.guard is not None
    size = family.header + 16
    assert bench.engine.guard.policy("in") == (policy, 1, size)
    assert bench.engine.guard.policy("forward") == ("accept", 1, size)
    assert bench.balance() == 0


@both
def test_c27_without_rules_everything_passes(family: Family) -> None:
    bench = guarded()
    bench.receive(datagram(family))
    assert bench.send(family.far) == 0
    assert (len(bench.got), len(bench.eth0.sent), bench.drops()) == (1, 1, {})


# -- hooks -----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("hook", ["in", "forward", "out"])
def test_d11_a_rule_of_one_hook_is_not_asked_at_the_others(family: Family, hook: str) -> None:
    bench = guarded(f"drop {hook} udp", forwarding=True)
    bench.receive(datagram(family))
    bench.receive(datagram(family, dst=beyond(family)))
    failed = bench.send(family.peer, ports(1, 53))
    passed = {"in": len(bench.got), "forward": len(bench.eth1.sent), "out": len(bench.eth0.sent)}
    assert passed == {"in": 1, "forward": 1, "out": 1} | {hook: 0}
    assert failed == (errno.EPERM if hook == "out" else 0), "a call that sends is told"
    assert bench.drops() == {"tx_dropped_guard" if hook == "out" else "rx_dropped_guard": 1}
    assert bench.balance() == 0


@both
def test_d11_what_is_forwarded_does_not_pass_in_and_out(family: Family) -> None:
    bench = guarded("policy in drop", "policy out drop", forwarding=True)
    bench.receive(datagram(family, dst=beyond(family)))
    assert len(bench.eth1.sent) == 1


@both
def test_d11_a_packet_round_the_loopback_passes_out_and_in(family: Family) -> None:
    bench = guarded("accept out udp on lo", "drop in udp on lo")
    assert bench.send(family.ours, ports(1, 2)) == 0
    bench.receive(bench.lo.packets[0], interface=bench.lo)
    assert [packets for packets, _ in counted(bench)] == [1, 1]
    assert bench.got == []


@both
def test_d11_raw_ends_see_no_more_than_transports(family: Family) -> None:
    bench = guarded("drop in udp to port 53")
    seen: list[int] = []

    def raw(packet: PacketBuffer, header: object) -> bool:
        seen.append(len(packet))
        return False

    bench.engine.raw = raw
    bench.receive(datagram(family, dport=53))
    bench.receive(datagram(family, dport=54))
    assert seen == [16]


# -- conditions ------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("dport", "stops"), [(79, False), (80, True), (85, True), (90, True), (91, False)])
def test_c27_port_ranges_have_both_their_ends(family: Family, dport: int, stops: bool) -> None:
    bench = guarded("drop in udp to port 80-90")
    bench.receive(datagram(family, sport=85, dport=dport))
    assert (bench.got == []) is stops
    other = guarded("drop in udp from port 80-90")
    other.receive(datagram(family, sport=dport, dport=85))
    assert (other.got == []) is stops


@pytest.mark.parametrize(
    ("condition", "family", "stops"),
    [
        ("from 10.0.0.2", V4, True), ("from 10.0.0.3", V4, False), ("from 10.0.0.2/31", V4, True),
        ("from 10.0.0.0/31", V4, False), ("from 0.0.0.0/0", V4, True), ("from 0.0.0.0/0", V6, False),
        ("from ::/0", V4, False), ("from ::/0", V6, True), ("from ::/1", V4, False), ("from ::/1", V6, True),
        ("from 2001:db8::2", V6, True), ("from 2001:db8::/64", V6, True), ("from 2001:db8:0:1::/64", V6, False),
        ("to 10.0.0.1", V4, True), ("to 10.0.0.2", V4, False), ("to 2001:db8::1", V6, True), ("to any", V6, True),
        ("from 10.0.0.0/8 to 10.0.0.0/8", V4, True), ("from 10.0.0.0/8 to 11.0.0.0/8", V4, False),
    ],
)  # fmt: skip
def test_c27_addresses_are_compared_by_prefix_and_family(condition: str, family: Family, stops: bool) -> None:
    bench = guarded(f"drop in {condition}")
    bench.receive(datagram(family))
    assert (bench.got == []) is stops


@both
@pytest.mark.parametrize(("protocol", "stops"), [("udp", True), ("17", True), ("tcp", False), ("any", True)])
def test_c27_protocols(family: Family, protocol: str, stops: bool) -> None:
    bench = guarded(f"drop in {protocol}")
    bench.receive(datagram(family))
    assert (bench.got == []) is stops


@both
@pytest.mark.parametrize("kind", [8, 128])
def test_c27_types_of_icmp(family: Family, kind: int) -> None:
    bench = guarded(f"drop in {'icmp' if family is V4 else 'icmp6'} type {kind}")
    taken: list[bytes] = []
    for protocol in (1, 58):
        bench.engine.handlers[protocol] = lambda packet, header: taken.append(packet.tobytes())
    echo = ICMP(type=8) if family is V4 else ICMPv6EchoRequest()
    header = IP if family is V4 else IPv6
    bench.receive(header(src=family.peer, dst=family.ours) / echo)
    assert (taken == []) is (kind == (8 if family is V4 else 128))


@both
def test_c27_interfaces_by_which_packets_come_and_leave(family: Family) -> None:
    bench = guarded(
        "drop in udp to port 1 on eth0", "drop in udp to port 2 on eth1", "drop forward udp to port 3 on eth0 via eth1",
        "drop forward udp to port 4 via eth0", "drop out udp to port 5 on eth0", "drop out udp to port 6 on eth1",
        forwarding=True,
    )
    for port in (1, 2):
        bench.receive(datagram(family, dport=port))
    for port in (3, 4):
        bench.receive(datagram(family, dport=port, dst=beyond(family)))
    results = [bench.send(family.peer, ports(9, port)) for port in (5, 6)]
    assert [packets for packets, _ in counted(bench)] == [1, 0, 1, 0, 1, 0]
    assert (len(bench.got), len(bench.eth1.sent), results) == (1, 1, [errno.EPERM, 0])


# -- what is counted and told ----------------------------------------------------------------------------------------


@both
def test_c27_a_rule_counts_packets_and_bytes_with_their_ip_headers(family: Family) -> None:
    bench = guarded("accept in udp", "drop forward udp", "accept out udp", forwarding=True)
    for _ in range(3):
        bench.receive(datagram(family))
    bench.receive(datagram(family, dst=beyond(family)))
    bench.send(family.peer, bytes(100))
    size = family.header + 16
    assert counted(bench) == [(3, 3 * size), (1, size), (1, family.header + 100)]
    assert bench.engine.guard is not None
    bench.engine.guard.reset_counters()
    assert counted(bench) == [(0, 0)] * 3
    assert bench.engine.guard.policy("in") == ("accept", 0, 0)


@both
def test_c27_the_trace_says_which_rule_dropped_a_packet(family: Family) -> None:
    bench = guarded("accept in udp to port 1", "drop in udp  to   port 53", "policy out drop")
    told: list[tuple[str, str]] = []
    bench.engine.trace = lambda stage, packet, text: told.append((stage, text))
    bench.receive(datagram(family))
    bench.send(family.peer)
    assert [text for stage, text in told if "dropped" in text and stage == "ip"] == [
        "rx_dropped_guard: rule 2: drop in udp to any port 53", "tx_dropped_guard: policy out drop",
    ]  # fmt: skip


def test_c27_rules_are_added_inserted_deleted_and_flushed_by_number() -> None:
    guard = Guard(["drop in tcp", "drop in udp"])
    assert guard.add("accept in icmp") == 3
    assert guard.add(parse_rule("accept in on lo"), 1) == 1
    assert [(number, str(rule)) for number, rule, _, _ in guard.rules] == [
        (1, "accept in on lo"), (2, "drop in tcp"), (3, "drop in udp"), (4, "accept in icmp"),
    ]  # fmt: skip
    assert str(guard.delete(2)) == "drop in tcp"
    assert [str(rule) for _, rule, _, _ in guard.rules] == ["accept in on lo", "drop in udp", "accept in icmp"]
    for number in (0, 5):
        with pytest.raises(IndexError, match=f"there is no rule {number} of 3"):
            guard.add("drop in", number)
    for number in (0, 4):
        with pytest.raises(IndexError, match=f"there is no rule {number} of 3"):
            guard.delete(number)
    guard.set_policy("in", "drop")
    guard.flush()
    assert (len(guard), guard.rules, guard.policy("in")[0]) == (0, [], "drop"), "policies stay"


@both
def test_c27_changes_count_from_the_next_packet_on(family: Family) -> None:
    bench = guarded("drop in udp")
    guard = bench.engine.guard
    assert guard is not None
    bench.receive(datagram(family))
    guard.add("accept in udp", 1)
    bench.receive(datagram(family))
    guard.delete(1)
    bench.receive(datagram(family))
    guard.flush()
    bench.receive(datagram(family))
    assert (len(bench.got), bench.count("rx_dropped_guard")) == (2, 2)


# -- fragments, and packets that end too soon ------------------------------------------------------------------------


@both
def test_d11_for_us_a_packet_is_judged_once_and_whole(family: Family) -> None:
    bench = guarded("drop in udp to port 53")
    data = struct.pack("!HHHH", 1000, 53, 2000, 0) + bytes(1992)
    for piece in reversed(family.split(data, 800)):
        bench.receive(piece)
    assert counted(bench) == [(1, family.header + 2000)]
    assert (bench.got, bench.balance()) == ([], 0)


@both
def test_d11_on_the_way_through_later_fragments_pass_rules_with_ports(family: Family) -> None:
    bench = guarded("drop forward udp to port 53", "accept forward udp", forwarding=True)
    first = family.part(0, struct.pack("!HHHH", 1000, 53, 48, 0) + bytes(16), True, dst=beyond(family))
    later = family.part(24, struct.pack("!HHHH", 1000, 53, 48, 0) + bytes(16), False, dst=beyond(family))
    bench.receive(first)
    bench.receive(later)
    assert [packets for packets, _ in counted(bench)] == [1, 1], "what looks like ports in a later fragment is none"
    assert len(bench.eth1.sent) == 1
    bench.engine.guard = Guard(["drop forward udp"])
    bench.receive(later)
    assert len(bench.eth1.sent) == 1, "a rule without ports stops them too"


@both
@pytest.mark.parametrize("hook", ["in", "forward"])
def test_d11_a_packet_too_short_for_its_ports_goes_no_further_than_a_rule_that_asks_for_them(
    family: Family, hook: str
) -> None:
    bench = guarded(f"accept {hook} udp to 10.9.9.9 port 53", f"accept {hook} udp to port 53", forwarding=True)
    bench.receive(family.packet(b"\0\0\0", dst=beyond(family) if hook == "forward" else ""))
    assert (bench.drops(), bench.balance()) == ({"rx_dropped_guard_short": 1}, 0)
    assert [packets for packets, _ in counted(bench)] == [0, 0]
    assert (bench.got, bench.eth1.sent) == ([], [])


@both
def test_d11_ports_are_found_in_packets_in_pieces(family: Family) -> None:
    raw = bytes(datagram(family))
    for cut in range(family.header, family.header + 6):
        bench = guarded("drop in udp from port 1000 to port 53")
        bench.receive(fragments(raw, [cut]))
        assert bench.got == []


def test_d11_behind_extension_headers_the_transport_is_found() -> None:
    bench = guarded("drop forward udp to port 53", forwarding=True)
    base = IPv6(src=V6.peer, dst=beyond(V6))
    chain = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(addresses=[]) / IPv6ExtHdrDestOpt()
    bench.receive(base / chain / UDP(sport=1, dport=53))
    bench.receive(base / chain / UDP(sport=1, dport=54))
    whole = IPv6ExtHdrFragment(offset=0, m=0, id=1)
    bench.receive(base / whole / UDP(sport=1, dport=53))
    assert ([packets for packets, _ in counted(bench)], len(bench.eth1.sent)) == ([2], 1)


@pytest.mark.parametrize("case", ["too many", "cut"])
def test_d11_a_chain_that_leads_nowhere_goes_no_further_than_a_rule_that_asks_for_a_protocol(case: str) -> None:
    base: Packet = IPv6(src=V6.peer, dst=beyond(V6))
    if case == "too many":
        for _ in range(9):
            base = base / IPv6ExtHdrDestOpt()
        packet = bytes(base / UDP(sport=1, dport=53))
    else:
        packet = bytes(base / IPv6ExtHdrFragment(offset=0, m=1, id=1, nh=60) / Raw(b"\x11\0\0\0"))
    bench = guarded("drop forward to 2001:db8:9::/48", "drop forward udp", forwarding=True)
    bench.receive(packet)
    assert bench.drops() == {"rx_dropped_guard_short": 1}
    other = guarded("drop forward to 2001:db8:9::/48", forwarding=True)
    other.receive(packet)
    assert len(other.eth1.sent) == 1, "nobody asked"


# -- packets that bring their header along ---------------------------------------------------------------------------


@both
def test_d11_a_header_that_a_program_made_is_judged_by_what_it_says(family: Family) -> None:
    bench = guarded("drop out udp from 198.51.100.7 to port 53", "drop out udp from 2001:db8:7::7 to port 53")
    source = "198.51.100.7" if family is V4 else "2001:db8:7::7"

    def send(packet: Packet) -> int:
        return bench.engine.output_with_header(PacketBuffer.from_bytes(bytes(packet)), parse_address(family.peer))

    assert send(datagram(family, src=source, dst=family.peer)) == errno.EPERM
    assert send(datagram(family, src=source, dst=family.peer, dport=54)) == 0
    assert send(datagram(family, src=family.ours, dst=family.peer)) == 0
    assert (len(bench.eth0.sent), bench.drops()) == (2, {"tx_dropped_guard": 1})


def test_d11_one_that_no_engine_could_read_is_not_sent_while_there_is_a_guard() -> None:
    bench = guarded()
    odd = IP(src="224.0.0.1", dst=V4.peer, proto=17) / UDP()
    assert bench.engine.output_with_header(PacketBuffer.from_bytes(bytes(odd)), parse_address(V4.peer)) == errno.EPERM
    assert bench.drops() == {"tx_dropped_guard_short": 1}


# -- a model ---------------------------------------------------------------------------------------------------------


def within(number: int, prefix: Prefix | None) -> bool:
    """Bit by bit."""
    if prefix is None:
        return True
    same = all(number >> bit & 1 == prefix.address >> bit & 1 for bit in range(127, 127 - prefix.length, -1))
    return same and is_v4(number) == is_v4(prefix.address)


def matches(rule: Rule, packet: dict[str, object]) -> bool:
    """Whether a rule matches, by the words of its description."""
    if rule.hook != packet["hook"] or rule.protocol not in (None, packet["protocol"]):
        return False
    if not within(packet["src"], rule.source) or not within(packet["dst"], rule.destination):  # type: ignore[arg-type]
        return False
    if rule.came_by not in ("", packet["came_by"]) or rule.leaves_by not in ("", packet["leaves_by"]):
        return False
    sport, dport = packet["ports"]  # type: ignore[misc]
    for wanted, port in ((rule.source_ports, sport), (rule.destination_ports, dport)):
        if wanted is not None and port not in range(wanted[0], wanted[1] + 1):
            return False
    return rule.icmp_type in (None, sport >> 8)


@st.composite
def packets(draw: st.DrawFn) -> dict[str, object]:
    """A packet at a hook, close to what rules are about."""
    v4 = draw(st.booleans())
    hook = draw(st.sampled_from(["in", "forward", "out"]))
    near = [("10.0.0.1", "10.0.0.9", "10.1.0.0"), ("2001:db8::1", "2001:db8::9", "2001:dead::")][not v4]
    return {
        "hook": hook,
        "protocol": draw(st.sampled_from([6, 17, 1 if v4 else 58, 47])),
        "src": parse_address(draw(st.sampled_from(near))),
        "dst": parse_address(draw(st.sampled_from(near))),
        "ports": draw(st.tuples(*[st.sampled_from([0, 79, 80, 443, 2048, 2049, 65535])] * 2)),
        "came_by": "" if hook == "out" else draw(st.sampled_from(["eth0", "lo"])),
        "leaves_by": "" if hook == "in" else draw(st.sampled_from(["eth0", "lo"])),
    }  # fmt: skip


@st.composite
def near_rules(draw: st.DrawFn) -> Rule:
    """A rule that has a chance to match such packets."""
    v4 = draw(st.booleans())
    protocol = draw(st.sampled_from(["", "tcp", "udp", "icmp" if v4 else "icmp6"]))
    networks = ["", "10.0.0.0/24", "10.0.0.1", "0.0.0.0/0"] if v4 else ["", "2001:db8::/64", "2001:db8::9", "::/0"]
    hook = draw(st.sampled_from(["in", "forward", "out"]))
    words = [draw(st.sampled_from(["accept", "drop", "reject"])), hook, protocol]
    for way in ("from", "to"):
        network = draw(st.sampled_from(networks))
        port = draw(st.sampled_from(["", "port 80", "port 79-80", "port 0-65535"])) * (protocol in ("tcp", "udp"))
        words += [way, network or "any", port] if network or port else []
    words += [draw(st.sampled_from(["", "type 8", "type 0"]))] if protocol.startswith("icmp") else []
    words += [draw(st.sampled_from(["", "on eth0", "on lo"]))]
    words += [draw(st.sampled_from(["", "via eth0"]))] if hook == "forward" else []
    return parse_rule(" ".join(words))


@given(st.lists(near_rules() | rules(), max_size=6), packets(), st.sampled_from(["accept", "drop", "reject"]))
def test_c27_the_verdict_is_that_of_a_naive_model(chain: list[Rule], packet: dict[str, object], policy: str) -> None:
    decided = next((rule.action for rule in chain if matches(rule, packet)), policy)
    bench = Bench()
    hook = str(packet["hook"])
    bench.engine.guard = guard = Guard([*chain, Policy(hook, policy)])
    src, dst, protocol = (int(packet[name]) for name in ("src", "dst", "protocol"))  # type: ignore[call-overload]
    sport, dport = packet["ports"]  # type: ignore[misc]
    codec = bench.engine.codecs[0x0800 if is_v4(src) else 0x86DD]
    buffer = PacketBuffer.from_bytes(struct.pack("!HHI", sport, dport, 0))
    by_name: dict[object, FakeInterface] = {"eth0": bench.eth0, "lo": bench.lo}
    came_by, leaves_by = by_name.get(packet["came_by"]), by_name.get(packet["leaves_by"])
    hop = bench.engine.hop(dst)
    assert hop is not None
    if hook == "out":
        assert leaves_by is not None
        goes_on = guard.output(bench.engine, buffer, hop._replace(interface=leaves_by), src, dst, protocol)
    else:
        assert came_by is not None
        codec.build(
            buffer, src=src, dst=dst, protocol=protocol, ttl=9, tos=0, identification=0, dont_fragment=True
        )
        header = codec.parse(buffer, came_by, False)
        assert not isinstance(header, str)
        if hook == "in":
            buffer.pull(header.size)
            goes_on = guard.input(bench.engine, buffer, header)
        else:
            assert leaves_by is not None
            goes_on = guard.forward(bench.engine, buffer, header, leaves_by)
    assert goes_on is (decided == "accept")
    hits = [number for number, rule in enumerate(chain, start=1) if matches(rule, packet)]
    assert [number for number, _, count, _ in guard.rules if count] == hits[:1]
    assert guard.policy(hook)[1] == (not hits)
    dropped = bench.count("tx_dropped_guard") + bench.count("rx_dropped_guard")
    assert dropped == (decided != "accept")


def test_tcp_is_told_apart_from_udp_with_the_same_ports() -> None:
    bench = guarded("drop in tcp to port 53")
    bench.receive(datagram(V4))
    bench.receive(IP(src=V4.peer, dst=V4.ours) / TCP(sport=1000, dport=53))
    assert (len(bench.got), [packets for packets, _ in counted(bench)]) == (1, [1])
