"""The guard: the packet filter of one stack, rules in order, the first that matches decides (rows C27, D11, N8).

A packet meets the guard once at each hook that it passes:

    in        for this host, after reassembly, before raw ends and transports see it
    forward   on its way through, after the route was found and the TTL checked, before it is cut to the MTU
    out       from this host, before it is fragmented; what `forward` passed on does not come here

Promises:
- Rules are asked in order, each of its hook, and the first that matches decides. Where none does the hook's policy
  decides; it is "accept" unless set.
- Each rule and each policy counts the packets that it decided, and their bytes with the IP header. What does not go on
  is dropped by the IP layer as `rx_dropped_guard` or `tx_dropped_guard`; the trace says by which rule.
- The guard has no memory: it sees packets, not connections.
- A rule with ports, or with a type, matches no fragment but the first. At `in` and `out` packets are whole; at
  `forward` the later ones pass such rules by, and are of no use where the first was stopped. Any other rule matches
  them too.
- Who asks for what is not in a packet (ports of a segment of three bytes, a protocol behind more extension headers
  than are walked) has it dropped, as `…_dropped_guard_short`: what cannot be seen cannot be let through.
- A rejected packet is answered as its sender would be by a host where nobody listens: TCP with a reset, all else with
  ICMP "port unreachable" (what is never answered: see `send_error`; of TCP resets, broken segments and fragments). When
  the sender is this host, it is told in the next `poll`: TCP gets the reset, the others the error. A call that sends
  what is dropped or rejected gives EPERM. All this is as Linux does it, but the guard's own answers pass it unseen, so
  that a policy of "drop" does not swallow them.

IPv6 needs neighbour discovery, which is ICMPv6: before a policy of "drop" belongs `accept in icmp6`, and `accept out
icmp6`. ARP is no IP and never comes here.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from guest.net.address import is_multicast, is_unspecified, is_v4
from guest.net.checksum import checksum, sum_views
from guest.net.extensions import upper
from guest.net.family import IpHeader, IpInterface
from guest.net.guard_rule import (
    ACCEPT,
    ACTIONS,
    FORWARD,
    HOOKS,
    IN,
    OUT,
    REJECT,
    TCP,
    GuardError,
    Policy,
    Rule,
    parse_rule,
    parse_rules,
)
from guest.net.pbuf import CAST_HOST, PacketBuffer

if TYPE_CHECKING:
    from guest.net.hops import Hop
    from guest.net.ip import IpEngine

__all__ = ["Guard", "GuardError", "Policy", "Rule", "RuleCount", "parse_rule", "parse_rules"]

PENDING = 256  # own packets whose senders are still to be told
QUOTED = 528  # bytes of such a packet, as many as an ICMP error of 576 bytes has room for
# source and destination port, seq, ack, offset in words and flags, window, checksum, urgent pointer (RFC 9293 §3.1)
SEGMENT = struct.Struct("!HHIIHHHH")
SEGMENT_SIZE = 20
assert SEGMENT.size == SEGMENT_SIZE
FIN, SYN, RST, ACK = 1, 2, 4, 16
CHECKED = 1 | 2  # offload flags: the checksum was found right, or is still to be made (virtio 1.4 §5.1.9.4)


class RuleCount(NamedTuple):
    """A rule with its number, from 1, and the packets and bytes that it decided."""

    number: int
    rule: Rule
    packets: int
    bytes: int


class _Network:
    """A prefix, made ready to be compared."""

    __slots__ = ("shift", "top", "v4")

    def __init__(self, address: int, length: int) -> None:
        self.shift = 128 - length
        self.top = address >> self.shift
        self.v4 = is_v4(address)

    def has(self, address: int) -> bool:
        return address >> self.shift == self.top and (address >> 32 == 0xFFFF) is self.v4


class _Entry:
    """A rule at work."""

    __slots__ = ("bytes", "destination", "first", "needs", "packets", "rule", "source")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.packets = 0
        self.bytes = 0
        self.source = None if rule.source is None else _Network(*rule.source)
        self.destination = None if rule.destination is None else _Network(*rule.destination)
        with_ports = rule.source_ports is not None or rule.destination_ports is not None
        self.needs = 4 if with_ports else 1 if rule.icmp_type is not None else 0  # bytes of the transport's header

    def wants(self, head: bytes) -> bool:
        """Whether ports or type are those of the rule; `head` has `needs` bytes."""
        rule = self.rule
        if rule.icmp_type is not None:
            return head[0] == rule.icmp_type
        if rule.source_ports is not None and not rule.source_ports[0] <= head[0] << 8 | head[1] <= rule.source_ports[1]:
            return False
        ports = rule.destination_ports
        return ports is None or ports[0] <= head[2] << 8 | head[3] <= ports[1]


class _Chain:
    """The rules of one hook, and what becomes of the rest."""

    __slots__ = ("bytes", "entries", "hook", "packets", "policy")

    def __init__(self, hook: str) -> None:
        self.hook = hook
        self.entries: list[_Entry] = []
        self.policy = ACCEPT
        self.packets = 0
        self.bytes = 0


class Guard:
    """Rules and policies of one stack; `Stack.guard` puts them to work.

    Args:
        rules: rules, policies, or texts of either as `parse_rules` takes them, in order.

    Attributes:
        counters: answers: `tx_resets` to others, and how often a sender of this host was `told`.

    Raises GuardError for a text that is no rule.
    """

    def __init__(self, rules: Iterable[Rule | Policy | str] = ()) -> None:
        self.counters: Counter[str] = Counter()
        self._entries: list[_Entry] = []
        self._chains = {hook: _Chain(hook) for hook in HOOKS}
        self._pending: deque[tuple[PacketBuffer, IpHeader]] = deque()
        self._answering = False
        for given in rules:
            for line in parse_rules(given) if isinstance(given, str) else (given,):
                if isinstance(line, Policy):
                    self.set_policy(*line)
                else:
                    self.add(line)

    # -- the rules -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def rules(self) -> list[RuleCount]:
        """All rules in order, with what they counted."""
        return [
            RuleCount(number, entry.rule, entry.packets, entry.bytes)
            for number, entry in enumerate(self._entries, start=1)
        ]

    def add(self, rule: Rule | str, number: int | None = None) -> int:
        """Add a rule as the last, or before the one with this number; its own number.

        Raises GuardError (the text is no rule), IndexError (there is no such number).
        """
        if isinstance(rule, str):
            rule = parse_rule(rule)
        if number is None:
            number = len(self._entries) + 1
        elif not 1 <= number <= len(self._entries) + 1:
            raise IndexError(f"there is no rule {number} of {len(self._entries)}")
        self._entries.insert(number - 1, _Entry(rule))
        self._changed()
        return number

    def delete(self, number: int) -> Rule:
        """Take a rule away; which it was. Raises IndexError."""
        if not 1 <= number <= len(self._entries):
            raise IndexError(f"there is no rule {number} of {len(self._entries)}")
        entry = self._entries.pop(number - 1)
        self._changed()
        return entry.rule

    def flush(self) -> None:
        """Take all rules away; policies stay."""
        self._entries.clear()
        self._changed()

    def policy(self, hook: str) -> tuple[str, int, int]:
        """What becomes of packets that no rule matches, and how many packets and bytes it became of."""
        chain = self._chains[hook]
        return chain.policy, chain.packets, chain.bytes

    def set_policy(self, hook: str, action: str) -> None:
        """Say so. Raises GuardError for what is no hook or action."""
        if hook not in HOOKS or action not in ACTIONS:
            raise GuardError(f"a policy is one of {', '.join(HOOKS)} and one of {', '.join(ACTIONS)}")
        self._chains[hook].policy = action

    def reset_counters(self) -> None:
        """Count anew from 0."""
        self.counters.clear()
        for entry in self._entries:
            entry.packets = entry.bytes = 0
        for chain in self._chains.values():
            chain.packets = chain.bytes = 0

    def _changed(self) -> None:
        for hook, chain in self._chains.items():
            chain.entries = [entry for entry in self._entries if entry.rule.hook == hook]

    # -- the hooks -----------------------------------------------------------------------------------------------

    def input(self, engine: IpEngine, packet: PacketBuffer, header: IpHeader) -> bool:
        """Whether a packet for this host, its IP header pulled, goes on; otherwise it was dropped."""
        size = len(packet) + header.size
        unicast = packet.cast == CAST_HOST
        return self._decide(engine, IN, packet, 0, size, header, header.protocol, header.interface, None, unicast)

    def forward(self, engine: IpEngine, packet: PacketBuffer, header: IpHeader, out: IpInterface) -> bool:
        """The same of a packet at its IP header that is to leave by `out`."""
        return self._decide_whole(engine, FORWARD, packet, header, header.interface, out, True)

    def output(self, engine: IpEngine, packet: PacketBuffer, hop: Hop, src: int, dst: int, protocol: int) -> bool:
        """The same of a packet of this host's that has no IP header yet."""
        if self._answering:
            return True
        out = hop.interface
        header = IpHeader(src, dst, protocol, hop.ttl, 0, hop.codec.header_size, 0, out)
        size = len(packet) + header.size
        return self._decide(engine, OUT, packet, 0, size, header, protocol, None, out, hop.cast == CAST_HOST)

    def output_built(self, engine: IpEngine, packet: PacketBuffer, hop: Hop) -> bool:
        """The same of one that stands at the IP header that its sender made."""
        header = hop.codec.parse(packet, hop.interface, False)
        if isinstance(header, str):
            engine.drop(packet, "tx_dropped_guard_short", header)
            return False
        return self._decide_whole(engine, OUT, packet, header, None, hop.interface, hop.cast == CAST_HOST)

    def _decide_whole(
        self, engine: IpEngine, hook: str, packet: PacketBuffer, header: IpHeader,
        came_by: IpInterface | None, leaves_by: IpInterface | None, unicast: bool,
    ) -> bool:  # fmt: skip
        """`_decide` for a packet that stands at its IP header, and may be a fragment."""
        protocol: int | None = header.protocol
        at, fragment = header.size, header.fragment
        if header.extended and not is_v4(header.dst):
            protocol, at, fragment = upper(packet, header)
            header = header._replace(protocol=header.protocol if protocol is None else protocol, size=at)
            header = header._replace(fragment=fragment)
        packet.network = packet.data
        if fragment > 1:
            at = -1
        return self._decide(engine, hook, packet, at, len(packet), header, protocol, came_by, leaves_by, unicast)

    def _decide(
        self, engine: IpEngine, hook: str, packet: PacketBuffer, at: int, size: int, header: IpHeader,
        protocol: int | None, came_by: IpInterface | None, leaves_by: IpInterface | None, unicast: bool,
    ) -> bool:  # fmt: skip
        """Whether a packet goes on.

        Args:
            at: where its transport's header starts; -1 for a later fragment, which has none.
            size: its bytes with the IP header.
            protocol: None where no walk leads to it.
            unicast: whether it may be answered.
        """
        src = header.src
        dst = header.dst
        chain = self._chains[hook]
        head: bytes | None = None
        for entry in chain.entries:
            rule = entry.rule
            if rule.protocol is not None and rule.protocol != protocol:
                if protocol is None:
                    return self._drop(engine, hook, packet, "_short", self._name(entry))
                continue
            if entry.source is not None and not entry.source.has(src):
                continue
            if entry.destination is not None and not entry.destination.has(dst):
                continue
            if rule.came_by and (came_by is None or came_by.name != rule.came_by):
                continue
            if rule.leaves_by and (leaves_by is None or leaves_by.name != rule.leaves_by):
                continue
            if entry.needs:
                if at < 0:
                    continue
                if head is None:
                    head = packet.peek(at, 4)
                if len(head) < entry.needs:
                    return self._drop(engine, hook, packet, "_short", self._name(entry))
                if not entry.wants(head):
                    continue
            entry.packets += 1
            entry.bytes += size
            action = rule.action
            if action == ACCEPT:
                return True
            self._drop(engine, hook, packet, "", self._name(entry))
            break
        else:
            chain.packets += 1
            chain.bytes += size
            action = chain.policy
            if action == ACCEPT:
                return True
            self._drop(engine, hook, packet, "", str(Policy(hook, action)))
        if action == REJECT and unicast and not is_multicast(dst):
            self._answer(engine, packet, at, header)
        return False

    def _name(self, entry: _Entry) -> str:
        return f"rule {self._entries.index(entry) + 1}: {entry.rule}"

    @staticmethod
    def _drop(engine: IpEngine, hook: str, packet: PacketBuffer, more: str, why: str) -> bool:
        engine.drop(packet, f"{'tx' if hook == OUT else 'rx'}_dropped_guard{more}", why)
        return False

    # -- answers -------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether senders on this host are still to be told; `poll` does."""
        return bool(self._pending)

    def poll(self, engine: IpEngine) -> bool:
        """Tell the senders of this host; whether there were any."""
        waiting = len(self._pending)
        for _ in range(waiting):
            packet, header = self._pending.popleft()
            self.counters["told"] += 1
            if header.protocol != TCP:
                if engine.error is not None:
                    engine.error(packet, header, "refused", 0)
            elif (handler := engine.handlers.get(TCP)) is not None:
                handler(packet, header)
        return waiting > 0

    def _answer(self, engine: IpEngine, packet: PacketBuffer, at: int, header: IpHeader) -> None:
        """Tell the sender of a rejected packet."""
        src = header.src
        if is_unspecified(src) or is_multicast(src):
            return
        own = engine.is_local(src)
        if header.protocol == TCP:
            segment = b"" if header.fragment else reset(packet, at, header, own)
            if not segment:
                return
            if own:
                back = header._replace(src=header.dst, dst=src)
                self._tell(engine, PacketBuffer.from_bytes(segment), back)
            else:
                self._send_reset(engine, segment, header)
        elif own:
            head = packet.peek(at, QUOTED) if at >= 0 else b""
            if len(head) >= 8:
                self._tell(engine, PacketBuffer.from_bytes(head), header)
        elif engine.error is not None:
            self._answering = True
            try:
                engine.error(packet, header, "port", 0)
            finally:
                self._answering = False

    def _tell(self, engine: IpEngine, packet: PacketBuffer, header: IpHeader) -> None:
        """Not now: whoever sends is still in the middle of it."""
        if len(self._pending) >= PENDING:
            engine.drop(packet, "tx_dropped_guard_pending")
            return
        self._pending.append((packet, header))
        if engine.wake is not None:
            engine.wake()

    def _send_reset(self, engine: IpEngine, segment: bytes, header: IpHeader) -> None:
        """As if it came from where the rejected segment was to go, which on the way through is no own address."""
        hop = engine.hop(header.src, header.interface if header.src >> 118 == 0x3FA else None)
        if hop is None or hop.cast != CAST_HOST:
            return
        packet = PacketBuffer.from_bytes(segment)
        hop.codec.build(
            packet, src=header.dst, dst=header.src, protocol=TCP, ttl=hop.ttl, tos=0, identification=0,
            dont_fragment=True,
        )  # fmt: skip
        self.counters["tx_resets"] += 1
        engine.send_built(packet, hop.codec, hop.interface, hop.next_hop)


def reset(packet: PacketBuffer, at: int, header: IpHeader, trusted: bool) -> bytes:
    """The reset that answers a TCP segment (RFC 9293 §3.10.7.1); b"" where none is due.

    Args:
        packet: with the segment from `at` on.
        header: with the addresses that the segment has.
        trusted: do not look at the checksum.
    """
    segment = packet.tobytes()[at:]
    size = len(segment)
    if size < SEGMENT_SIZE:
        return b""
    source, destination, seq, ack, word, *_ = SEGMENT.unpack_from(segment)
    offset = word >> 12 << 2
    if word & RST or not SEGMENT_SIZE <= offset <= size:
        return b""
    addresses = header.src + header.dst + TCP  # of the pseudo-header; 2^16 is 1 modulo 65535
    trusted = trusted or (packet.offload is not None and packet.offload.flags & CHECKED != 0)
    if not trusted and sum_views([memoryview(segment)], (addresses + size) % 0xFFFF) != 0xFFFF:
        return b""
    if word & ACK:
        seq, ack, flags = ack, 0, RST
    else:
        after = seq + size - offset + (word & SYN != 0) + (word & FIN != 0)
        seq, ack, flags = 0, after & 0xFFFF_FFFF, RST | ACK
    answer = bytearray(SEGMENT.pack(destination, source, seq, ack, SEGMENT_SIZE // 4 << 12 | flags, 0, 0, 0))
    answer[16:18] = checksum([memoryview(answer)], (addresses + SEGMENT_SIZE) % 0xFFFF).to_bytes(2, "big")
    return bytes(answer)
