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
  ICMP "port unreachable" (guard_answer.py). When the sender is this host, the next `poll` tells it. A call that sends
  what is dropped or rejected gives EPERM. All this is as Linux does it, but the guard's own answers pass it unseen, so
  that a policy of "drop" does not swallow them.

IPv6 needs neighbour discovery, which is ICMPv6: before a policy of "drop" belongs `accept in icmp6`, and `accept out
icmp6`. ARP is no IP and never comes here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from guest.net.address import is_multicast, is_v4
from guest.net.extensions import upper
from guest.net.family import IpHeader, IpInterface
from guest.net.guard_answer import Answers
from guest.net.guard_rule import (
    ACCEPT,
    ACTIONS,
    FORWARD,
    HOOKS,
    IN,
    OUT,
    REJECT,
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
        counters: of answers, see `Answers`.

    Raises GuardError for a text that is no rule.
    """

    def __init__(self, rules: Iterable[Rule | Policy | str] = ()) -> None:
        self.counters: Counter[str] = Counter()
        self._entries: list[_Entry] = []
        self._chains = {hook: _Chain(hook) for hook in HOOKS}
        self._answers = Answers(self.counters)
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
        if self._answers.sending:
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

    @property
    def pending(self) -> bool:
        """Whether `poll` has something to do."""
        return self._answers.pending

    def poll(self, engine: IpEngine) -> bool:
        """Tell senders on this host that their packets were rejected; whether there were any."""
        return self._answers.poll(engine)

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
            self._answers.answer(engine, packet, at, header)
        return False

    def _name(self, entry: _Entry) -> str:
        return f"rule {self._entries.index(entry) + 1}: {entry.rule}"

    @staticmethod
    def _drop(engine: IpEngine, hook: str, packet: PacketBuffer, more: str, why: str) -> bool:
        engine.drop(packet, f"{'tx' if hook == OUT else 'rx'}_dropped_guard{more}", why)
        return False
