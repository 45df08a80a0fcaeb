"""A rule of the guard: what it asks of a packet, as a value and as one line of text.

    drop in tcp from any to 10.0.0.0/24 port 80-90 on eth0
    reject out tcp to port 25
    accept in icmp6
    drop forward udp from 2001:db8::/32 port 53 on eth0 via eth1

    RULE      ACTION HOOK [PROTOCOL] {CLAUSE}
    ACTION    accept | drop | reject
    HOOK      in (for this host) | forward (through it) | out (from it)
    PROTOCOL  any | tcp | udp | icmp | icmp6 | igmp | 0 to 255
    CLAUSE    from [ADDRESS] [port PORTS] | to [ADDRESS] [port PORTS] | type N | on IF | via IF
    ADDRESS   any | A | A/LENGTH, of either family; ::/0 is all of IPv6 and nothing of IPv4
    PORTS     N | N-N, of tcp and udp
    type      of icmp and icmp6
    on, via   the interface that a packet comes in by, and with `out` leaves by; `via`: what a forwarded one leaves by

Clauses stand in any order, each once. Rules in one text are separated by `;` or lines, and `policy HOOK ACTION` there
says what becomes of packets that no rule matches. `str(rule)` is the rule's text, and reads back as the same rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from guest.net.address import AddressError, Prefix, is_v4, parse_address, to_prefix

ACCEPT, DROP, REJECT = ACTIONS = ("accept", "drop", "reject")
IN, FORWARD, OUT = HOOKS = ("in", "forward", "out")

ICMP, IGMP, TCP, UDP, ICMP6 = 1, 2, 6, 17, 58
PROTOCOLS = {"icmp": ICMP, "igmp": IGMP, "tcp": TCP, "udp": UDP, "icmp6": ICMP6}
NAMES = {number: name for name, number in PROTOCOLS.items()}
CLAUSES = ("from", "to", "type", "on", "via")
WORDS = frozenset((*ACTIONS, *HOOKS, *PROTOCOLS, *CLAUSES, "any", "port", "policy"))

Ports = tuple[int, int]


class GuardError(ValueError):
    """A rule that cannot be; the text is one line."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a packet has to be like, and what becomes of it. Raises GuardError for what no packet can be like.

    Attributes:
        action: one of ACTIONS. hook: one of HOOKS.
        protocol: None for any.
        source, destination: networks, as 128-bit prefixes; None for any, of both families.
        source_ports, destination_ports: first and last; None for any.
        icmp_type: None for any.
        came_by, leaves_by: names of interfaces, "" for any.
    """

    action: str
    hook: str
    protocol: int | None = None
    source: Prefix | None = None
    source_ports: Ports | None = None
    destination: Prefix | None = None
    destination_ports: Ports | None = None
    icmp_type: int | None = None
    came_by: str = ""
    leaves_by: str = ""

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise GuardError(f"the action {self.action!r} is none of {', '.join(ACTIONS)}")
        if self.hook not in HOOKS:
            raise GuardError(f"the hook {self.hook!r} is none of {', '.join(HOOKS)}")
        if self.protocol is not None and not 0 <= self.protocol <= 255:
            raise GuardError(f"protocol {self.protocol} is not within 0 to 255")
        for ports in (self.source_ports, self.destination_ports):
            if ports is not None and not 0 <= ports[0] <= ports[1] <= 0xFFFF:
                raise GuardError(f"ports {ports[0]}-{ports[1]} are not a range within 0 to 65535")
            if ports is not None and self.protocol not in (TCP, UDP):
                raise GuardError("only tcp and udp have ports")
        if self.icmp_type is not None:
            if not 0 <= self.icmp_type <= 255:
                raise GuardError(f"type {self.icmp_type} is not within 0 to 255")
            if self.protocol not in (ICMP, ICMP6):
                raise GuardError("only icmp and icmp6 have a type")
        self._check_families()
        if self.came_by and self.hook == OUT:
            raise GuardError("what this host sends came in by no interface")
        if self.leaves_by and self.hook == IN:
            raise GuardError("what is for this host leaves by no interface")

    def _check_families(self) -> None:
        named = {"icmp": True} if self.protocol == ICMP else {"icmp6": False} if self.protocol == ICMP6 else {}
        named |= {str(prefix): is_v4(prefix.address) for prefix in (self.source, self.destination) if prefix}
        if len(set(named.values())) > 1:
            raise GuardError(f"{' and '.join(named)} are of different families")

    def __str__(self) -> str:
        words = [self.action, self.hook]
        if self.protocol is not None:
            words.append(NAMES.get(self.protocol, str(self.protocol)))
        if self.icmp_type is not None:
            words.append(f"type {self.icmp_type}")
        for name, prefix, ports in (
            ("from", self.source, self.source_ports), ("to", self.destination, self.destination_ports),
        ):  # fmt: skip
            if prefix is not None or ports is not None:
                words += [name, "any" if prefix is None else _prefix_text(prefix)]
            if ports is not None:
                words.append(f"port {ports[0]}" if ports[0] == ports[1] else f"port {ports[0]}-{ports[1]}")
        on, via = (self.leaves_by, "") if self.hook == OUT else (self.came_by, self.leaves_by)
        words += [f"on {on}"] if on else []
        words += [f"via {via}"] if via else []
        return " ".join(words)


class Policy(NamedTuple):
    """What becomes of packets of one hook that no rule matches."""

    hook: str
    action: str

    def __str__(self) -> str:
        return f"policy {self.hook} {self.action}"


class _Words:
    """The words of one line, taken one after the other."""

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        self.words = self.text.split()
        self.at = 0

    @property
    def next(self) -> str:
        """The next word, not taken yet; "" at the end."""
        return self.words[self.at] if self.at < len(self.words) else ""

    def take(self, what: str) -> str:
        """The next word, which is `what`."""
        if not self.next:
            raise GuardError(f"{self.text or 'an empty rule'}: {what} is missing at the end")
        self.at += 1
        return self.words[self.at - 1]

    def wrong(self, why: str) -> GuardError:
        """Of the word that was taken last."""
        return GuardError(f"{self.text}: word {self.at}, {self.words[self.at - 1]!r}: {why}")

    def one_of(self, what: str, known: tuple[str, ...]) -> str:
        word = self.take(f"{what} ({', '.join(known)})")
        if word not in known:
            raise self.wrong(f"{what} is one of {', '.join(known)}")
        return word

    def number(self, what: str, text: str, most: int) -> int:
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else most + 1
        if number > most:
            raise self.wrong(f"{what} is a number from 0 to {most}")
        return number


def parse_rule(text: str) -> Rule:
    """The rule that `text` writes. Raises GuardError: what is wrong, and with which word."""
    line = parse_line(text)
    if isinstance(line, Policy):
        raise GuardError(f"{line}: is a policy and no rule")
    return line


def parse_rules(text: str) -> list[Rule | Policy]:
    """The rules and policies of a text, in order. Raises GuardError, which also names the line."""
    found = []
    for number, line in enumerate(text.replace("\n", ";").split(";"), start=1):
        if line.strip():
            try:
                found.append(parse_line(line))
            except GuardError as error:
                raise GuardError(f"line {number}: {error}") from None
    return found


def parse_line(text: str) -> Rule | Policy:
    """The rule or policy that `text` writes. Raises GuardError."""
    words = _Words(text)
    if words.next == "policy":
        words.take("")
        policy = Policy(words.one_of("a hook", HOOKS), words.one_of("an action", ACTIONS))
        if words.next:
            words.take("")
            raise words.wrong("nothing stands behind a policy")
        return policy
    action = words.one_of("an action", ACTIONS)
    hook = words.one_of("a hook", HOOKS)
    fields: dict[str, object] = {}
    if words.next and words.next not in CLAUSES:
        word = words.take("a protocol")
        if word in PROTOCOLS:
            fields["protocol"] = PROTOCOLS[word]
        elif word.isdecimal():
            fields["protocol"] = words.number("a protocol", word, 255)
        elif word == "port":
            raise words.wrong("ports stand behind from or to, as in: to any port 80")
        elif word != "any":
            raise words.wrong(f"neither a protocol ({', '.join(('any', *PROTOCOLS))}) nor one of {', '.join(CLAUSES)}")
    for name, value in _clauses(words, hook):
        fields[name] = value
    try:
        return Rule(action, hook, **fields)  # type: ignore[arg-type]
    except GuardError as error:
        raise GuardError(f"{words.text}: {error}") from None


def _clauses(words: _Words, hook: str) -> Iterator[tuple[str, object]]:
    """The fields that the clauses set."""
    seen = set()
    while words.next:
        clause = words.take("")
        if clause in seen:
            raise words.wrong("stands there twice")
        if clause not in CLAUSES:
            hint = "; ports stand behind from or to, as in: to any port 80" if clause == "port" else ""
            raise words.wrong(f"is none of {', '.join(CLAUSES)}{hint}")
        seen.add(clause)
        if clause in ("from", "to"):
            name = "source" if clause == "from" else "destination"
            if words.next != "port" and (word := words.take("an address")) != "any":
                yield name, _prefix(words, word)
            if words.next == "port":
                words.take("")
                yield f"{name}_ports", _ports(words)
        elif clause == "type":
            yield "icmp_type", words.number("a type", words.take("a number"), 255)
        else:
            if clause == "via" and hook != FORWARD:
                raise words.wrong(f"only what is forwarded has two interfaces; write: on, with {hook}")
            name = words.take("the name of an interface")
            if name in WORDS:
                raise words.wrong("is no name of an interface")
            yield ("leaves_by" if clause == "via" or hook == OUT else "came_by"), name


def _prefix(words: _Words, word: str) -> Prefix:
    address, slash, length = word.partition("/")
    try:
        number = parse_address(address)
        bits = 32 if is_v4(number) else 128
        prefix = to_prefix(number, words.number("a prefix length", length, bits) if slash else bits)
    except AddressError as error:
        raise words.wrong(str(error)) from None
    if ":" in address and is_v4(number):
        raise words.wrong("no packet has such an address; write it with dots")
    return Prefix(prefix.network, prefix.length)


def _ports(words: _Words) -> Ports:
    first, dash, last = words.take("a port, or two as in 80-90,").partition("-")
    low = words.number("a port", first, 0xFFFF)
    high = words.number("a port", last, 0xFFFF) if dash else low
    if high < low:
        raise words.wrong(f"the range ends before it starts; write: {high}-{low}")
    return low, high


def _prefix_text(prefix: Prefix) -> str:
    """A network; an address alone where it is one host."""
    return str(prefix).removesuffix("/32" if is_v4(prefix.address) else "/128")
