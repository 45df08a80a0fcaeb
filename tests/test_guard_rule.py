"""Rules of the guard as text: what they mean, how they are printed, and what is said of those that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.net.address import V4_PREFIX, Prefix, mask, to_prefix
from guest.net.guard_rule import (
    ACTIONS,
    FORWARD,
    HOOKS,
    ICMP,
    ICMP6,
    IN,
    OUT,
    TCP,
    UDP,
    WORDS,
    GuardError,
    Policy,
    Rule,
    parse_rule,
    parse_rules,
)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("accept in", Rule("accept", "in")),
        ("drop out any", Rule("drop", "out")),
        (
            "drop in tcp from any to 10.0.0.0/24 port 80-90 on eth0",
            Rule("drop", "in", TCP, destination=to_prefix("10.0.0.0", 24), destination_ports=(80, 90), came_by="eth0"),
        ),
        (
            "reject out udp from 2001:db8::1 port 53 to 2001:db8::/32",
            Rule(
                "reject", "out", UDP, source=to_prefix("2001:db8::1", 128), source_ports=(53, 53),
                destination=to_prefix("2001:db8::", 32),
            ),
        ),
        ("reject out tcp to port 25", Rule("reject", "out", TCP, destination_ports=(25, 25))),
        ("accept in icmp type 8", Rule("accept", "in", ICMP, icmp_type=8)),
        ("accept in icmp6 from fe80::/10 type 1", Rule("accept", "in", ICMP6, to_prefix("fe80::", 10), icmp_type=1)),
        ("drop in 47", Rule("drop", "in", 47)),
        ("drop forward on eth0 via eth1", Rule("drop", "forward", came_by="eth0", leaves_by="eth1")),
        ("drop out on eth1", Rule("drop", "out", leaves_by="eth1")),
        ("drop  in\ton   eth0  to 10.0.0.1", Rule("drop", "in", destination=to_prefix("10.0.0.1", 32), came_by="eth0")),
        ("drop in from 10.0.0.77/24", Rule("drop", "in", source=to_prefix("10.0.0.0", 24))),
    ],
)
def test_a_line_of_text_is_a_rule_and_the_rule_prints_as_such_a_line(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("drop in any from any to any", "drop in"),
        ("drop out tcp on eth1 to port 1-1", "drop out tcp to any port 1 on eth1"),
        ("drop forward 6 via b on a from 10.1.2.3/8 port 1-2", "drop forward tcp from 10.0.0.0/8 port 1-2 on a via b"),
        ("accept in icmp6 from ::/0 type 1", "accept in icmp6 type 1 from ::/0"),
        ("accept in from 10.0.0.1/32 to 0.0.0.0/0", "accept in from 10.0.0.1 to 0.0.0.0/0"),
    ],
)
def test_a_rule_prints_in_one_way(text: str, printed: str) -> None:
    assert str(parse_rule(text)) == printed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "an empty rule: an action (accept, drop, reject) is missing at the end"),
        ("block in", "block in: word 1, 'block': an action is one of accept, drop, reject"),
        ("drop", "drop: a hook (in, forward, out) is missing at the end"),
        ("drop input", "word 2, 'input': a hook is one of in, forward, out"),
        ("drop in tpc", "word 3, 'tpc': neither a protocol (any, icmp, igmp, tcp, udp, icmp6) nor one of from, to, "),
        ("drop in 256", "word 3, '256': a protocol is a number from 0 to 255"),
        ("drop in tcp port 80", "word 4, 'port': is none of from, to, type, on, via; ports stand behind from or to"),
        ("drop in port 80", "word 3, 'port': ports stand behind from or to, as in: to any port 80"),
        ("drop in tcp udp", "word 4, 'udp': is none of"),
        ("drop in from", "drop in from: an address is missing at the end"),
        ("drop in from 10.0.0", "word 4, '10.0.0': '10.0.0' is not an IP address"),
        ("drop in from 10.0.0.0/33", "word 4, '10.0.0.0/33': a prefix length is a number from 0 to 32"),
        ("drop in from 10.0.0.0/", "word 4, '10.0.0.0/': a prefix length is a number from 0 to 32"),
        ("drop in from ::/129", "a prefix length is a number from 0 to 128"),
        ("drop in from ::ffff:10.0.0.1", "no packet has such an address; write it with dots"),
        ("drop in from fe80::1%eth0", "an address with a zone cannot be used here"),
        ("drop in tcp to any port", "a port, or two as in 80-90, is missing at the end"),
        ("drop in tcp to any port http", "word 7, 'http': a port is a number from 0 to 65535"),
        ("drop in tcp to any port 65536", "a port is a number from 0 to 65535"),
        ("drop in tcp to any port 90-80", "word 7, '90-80': the range ends before it starts; write: 80-90"),
        ("drop in tcp to any port 80-", "a port is a number from 0 to 65535"),
        ("drop in tcp to any port -1", "a port is a number from 0 to 65535"),
        ("drop in udp to any port ٣", "a port is a number from 0 to 65535"),
        ("drop in icmp to port 80", "drop in icmp to port 80: only tcp and udp have ports"),
        ("drop in to port 80", "drop in to port 80: only tcp and udp have ports"),
        ("drop in udp type 8", "drop in udp type 8: only icmp and icmp6 have a type"),
        ("drop in icmp type echo", "word 5, 'echo': a type is a number from 0 to 255"),
        ("drop in icmp type", "a number is missing at the end"),
        ("drop in from any from any", "word 5, 'from': stands there twice"),
        ("drop in on", "the name of an interface is missing at the end"),
        ("drop in on to 10.0.0.1", "word 4, 'to': is no name of an interface"),
        ("drop in via eth0", "word 3, 'via': only what is forwarded has two interfaces; write: on, with in"),
        ("drop in from 10.0.0.1 to ::1", "10.0.0.1/32 and ::1/128 are of different families"),
        ("drop in icmp from ::1", "icmp and ::1/128 are of different families"),
        ("drop in icmp6 to 10.0.0.0/8", "icmp6 and 10.0.0.0/8 are of different families"),
        ("policy in drop", "policy in drop: is a policy and no rule"),
    ],
)
def test_what_is_no_rule_is_told_in_one_line_that_says_what_and_where(text: str, says: str) -> None:
    with pytest.raises(GuardError) as raised:
        parse_rule(text)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_text_of_several_lines_has_rules_and_policies_in_order() -> None:
    text = "policy in drop; accept in on lo ;; \n accept in icmp6\npolicy out reject"
    assert parse_rules(text) == [
        Policy("in", "drop"), Rule("accept", "in", came_by="lo"), Rule("accept", "in", ICMP6), Policy("out", "reject"),
    ]  # fmt: skip
    assert [str(line) for line in parse_rules(text)] == [
        "policy in drop", "accept in on lo", "accept in icmp6", "policy out reject",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("accept in; drop in on", "line 2: drop in on: the name of an interface is missing at the end"),
        ("accept in\n\ndrop it", "line 3: drop it: word 2, 'it': a hook is one of"),
        ("policy in", "line 1: policy in: an action (accept, drop, reject) is missing at the end"),
        ("policy on drop", "line 1: policy on drop: word 2, 'on': a hook is one of in, forward, out"),
        ("policy in drop tcp", "line 1: policy in drop tcp: word 4, 'tcp': nothing stands behind a policy"),
    ],
)
def test_of_several_lines_the_wrong_one_is_named(text: str, says: str) -> None:
    with pytest.raises(GuardError) as raised:
        parse_rules(text)
    assert str(raised.value).startswith(says)


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "block"}, {"hook": "input"}, {"protocol": 256}, {"protocol": -1}, {"icmp_type": 8},
        {"protocol": ICMP, "icmp_type": 256}, {"protocol": TCP, "source_ports": (2, 1)},
        {"protocol": TCP, "destination_ports": (0, 65536)}, {"protocol": 47, "source_ports": (1, 1)},
        {"hook": OUT, "came_by": "eth0"}, {"hook": IN, "leaves_by": "eth0"},
        {"source": Prefix(1, 128), "destination": Prefix(V4_PREFIX | 1, 128)},
    ],
)  # fmt: skip
def test_a_rule_that_no_packet_can_match_cannot_be_made(fields: dict[str, object]) -> None:
    with pytest.raises(GuardError):
        Rule(**{"action": "drop", "hook": FORWARD} | fields)  # type: ignore[arg-type]


# -- any rule at all -------------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 0xFFFF)
PORTS = st.none() | st.tuples(NUMBERS, NUMBERS).map(lambda pair: (min(pair), max(pair)))
NAMES = st.sampled_from(["", "eth0", "lo", "tun0"])


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Any rule."""
    v4 = draw(st.booleans())
    hook = draw(st.sampled_from(HOOKS))
    protocol = draw(st.sampled_from([None, TCP, UDP, ICMP if v4 else ICMP6, 2, 47, 255]))

    def network() -> Prefix | None:
        if draw(st.booleans()):
            return None
        length = draw(st.integers(96, 128) if v4 else st.integers(0, 128))
        number = draw(st.integers(0, 2**32 - 1)) | V4_PREFIX if v4 else draw(st.integers(2**125, 2**128 - 1))
        return Prefix(number & mask(length), length)

    ports = PORTS if protocol in (TCP, UDP) else st.none()
    return Rule(
        draw(st.sampled_from(ACTIONS)), hook, protocol, network(), draw(ports), network(), draw(ports),
        draw(st.none() | st.integers(0, 255)) if protocol in (ICMP, ICMP6) else None,
        draw(NAMES) if hook != OUT else "", draw(NAMES) if hook != IN else "",
    )  # fmt: skip


@given(rules())
def test_every_rule_reads_back_as_itself(rule: Rule) -> None:
    assert parse_rule(str(rule)) == rule
    assert parse_rules(f"{rule}; policy in drop") == [rule, Policy("in", "drop")]


@given(st.lists(st.sampled_from([*sorted(WORDS), "10.0.0.0/8", "::/0", "80-90", "8", "eth0", ";", "x"]), max_size=9))
def test_any_words_are_rules_or_one_line_that_says_why_not(words: list[str]) -> None:
    try:
        lines = parse_rules(" ".join(words))
    except GuardError as error:
        said = str(error)
    else:
        assert [parse_rules(str(line)) for line in lines] == [[line] for line in lines]
        return
    assert said.startswith("line ")
    assert "\n" not in said
