"""The guard of a guest: system calls, the program `guard`, and the word on the command line (rows C27, D11, D22)."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from guest.cmdline import CommandLineError, parse
from guest.kernel import Guest
from guest.sys.constants import AF_INET, AF_INET6, SOCK_DGRAM
from guest.sys.netconfig import StackFlags
from hw.wire.hub import Hub
from tests.guest_board import STATIC, Board
from tests.sys_world import World


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


# -- system calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "home"), [(AF_INET, "127.0.0.1"), (AF_INET6, "::1")])
def test_c27_a_rule_that_a_call_adds_counts_at_once(world: World, family: int, home: str) -> None:
    calls = world.calls
    fd = calls.socket(family, SOCK_DGRAM)
    assert calls.guard_add("reject out udp to port 53") == 1
    assert calls.guard_add("accept out udp to port 54", 1) == 1
    calls.connect(fd, (home, 53))
    with pytest.raises(PermissionError):
        calls.send(fd, b"x")
    world.settle()
    with pytest.raises(ConnectionRefusedError):
        calls.send(fd, b"x")
    calls.connect(fd, (home, 54))
    assert calls.send(fd, b"x") == 1
    counted = [(number, str(rule), packets) for number, rule, packets, _ in calls.guard_rules()]
    assert counted == [(1, "accept out udp to any port 54", 1), (2, "reject out udp to any port 53", 1)]
    calls.guard_del(2)
    calls.connect(fd, (home, 53))
    assert calls.send(fd, b"x") == 1


def test_c27_policies_and_flush(world: World) -> None:
    calls = world.calls
    assert calls.guard_policies() == dict.fromkeys(("in", "forward", "out"), ("accept", 0, 0))
    assert (calls.guard_rules(), world.stack.guard) == ([], None), "to look makes none"
    calls.guard_flush()
    assert world.stack.guard is None
    calls.guard_policy("out", "drop")
    fd = calls.socket(AF_INET, SOCK_DGRAM)
    with pytest.raises(PermissionError):
        calls.sendto(fd, b"12", ("127.0.0.1", 9))
    assert calls.guard_policies()["out"] == ("drop", 1, 30)
    calls.guard_add("drop out")
    calls.guard_flush()
    assert calls.guard_rules() == []
    assert calls.guard_policies()["out"][0] == "drop", "policies stay"


def test_c27_what_the_calls_refuse(world: World) -> None:
    calls = world.calls
    calls.guard_add("drop in tcp")
    for refused, number in (
        (lambda: calls.guard_add("drop"), errno.EINVAL),
        (lambda: calls.guard_add("drop in", 3), errno.ENOENT),
        (lambda: calls.guard_del(2), errno.ENOENT),
        (lambda: calls.guard_del(0), errno.ENOENT),
        (lambda: calls.guard_policy("input", "drop"), errno.EINVAL),
        (lambda: calls.guard_policy("in", "deny"), errno.EINVAL),
        (lambda: calls.stack_flags_set(4), errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught:
            refused()
        assert caught.value.errno == number
    assert [str(rule) for _, rule, _, _ in calls.guard_rules()] == ["drop in tcp"]


def test_d22_the_flags_of_a_stack_are_read_and_set_together(world: World) -> None:
    calls = world.calls
    assert calls.stack_flags_get() == StackFlags.FILTER
    calls.guard_policy("out", "drop")
    fd = calls.socket(AF_INET, SOCK_DGRAM)
    calls.stack_flags_set(StackFlags.FORWARDING)
    assert (world.stack.forwarding, world.stack.filtering) == (True, False)
    assert calls.sendto(fd, b"x", ("127.0.0.1", 9)) == 1
    calls.stack_flags_set(StackFlags.FILTER)
    assert calls.stack_flags_get() == StackFlags.FILTER
    with pytest.raises(PermissionError):
        calls.sendto(fd, b"x", ("127.0.0.1", 9))


def test_d22_who_may_not_configure_may_not_change_the_guard_but_look_at_it(world: World) -> None:
    calls = world.calls
    calls.guard_add("drop in tcp")
    asked: list[str] = []

    def nobody(capability: str) -> bool:
        asked.append(capability)
        return False

    calls.capable = nobody
    for refused in (
        lambda: calls.guard_add("accept in"),
        lambda: calls.guard_del(1),
        calls.guard_flush,
        lambda: calls.guard_policy("in", "drop"),
        lambda: calls.stack_flags_set(0),
    ):
        with pytest.raises(PermissionError) as caught:
            refused()
        assert caught.value.errno == errno.EPERM
    assert asked == ["net_admin"] * 5
    assert [str(rule) for _, rule, _, _ in calls.guard_rules()] == ["drop in tcp"]
    assert (calls.guard_policies()["in"][0], calls.stack_flags_get()) == ("accept", StackFlags.FILTER)
    assert len(asked) == 5


# -- the program -----------------------------------------------------------------------------------------------------


class Lan:
    """Two guests on a hub; programs run on ours."""

    def __init__(self, words: str = "") -> None:
        self.board = Board()
        hub = Hub(self.board.loop, "lan")
        self.ours = self.board.guest(f"{words} {STATIC}", hub.port("a"), name="ours")
        self.peer = self.board.guest("-ipaddr 10.0.0.3 -netmask 255.255.255.0", hub.port("b"), name="peer")
        self.board.settle()

    def run(self, line: str, guest: Guest | None = None) -> tuple[int | None, list[str]]:
        """The exit status of a program, and what it printed."""
        guest = guest or self.ours
        name, *words = line.split()
        guest.log.output.clear()
        process = guest.spawn(name, *words)
        self.board.run(20)
        return process.exit_status, list(guest.log.output)


@pytest.fixture
def lan() -> Iterator[Lan]:
    made = Lan()
    yield made
    made.board.close()


def test_c27_the_program_adds_lists_and_deletes_rules(lan: Lan) -> None:
    assert lan.run("guard") == (0, [
        "the guard is on", "     policy in accept       0 packets  0 bytes",
        "     policy forward accept  0 packets  0 bytes", "     policy out accept      0 packets  0 bytes",
    ])  # fmt: skip
    assert lan.run("guard add drop in icmp type 8 on eth0") == (0, [])
    assert lan.run("guard insert 1 accept in icmp from 10.0.0.4") == (0, [])
    assert lan.run("guard policy forward drop") == (0, [])
    assert lan.run("ping 10.0.0.2 -c 2 -q", lan.peer)[0] == 1
    assert lan.run("guard list") == (0, [
        "the guard is on",
        "  1  accept in icmp from 10.0.0.4  0 packets  0 bytes",
        "  2  drop in icmp type 8 on eth0   2 packets  168 bytes",
        "     policy in accept              0 packets  0 bytes",
        "     policy forward drop           0 packets  0 bytes",
        "     policy out accept             0 packets  0 bytes",
    ])  # fmt: skip
    assert lan.run("guard delete 2") == (0, [])
    assert lan.run("ping 10.0.0.2 -c 1 -q", lan.peer)[0] == 0
    assert lan.run("guard flush") == (0, [])
    assert [line for line in lan.run("guard")[1] if "policy" not in line] == ["the guard is on"]


def test_d22_the_program_switches_the_guard_off_and_on_and_the_rules_stay(lan: Lan) -> None:
    lan.run("guard add reject in icmp")
    assert lan.run("guard off") == (0, [])
    assert lan.run("ping 10.0.0.2 -c 1 -q", lan.peer)[0] == 0
    assert lan.run("guard")[1][0] == "the guard is off: everything passes"
    assert lan.run("guard on") == (0, [])
    status, output = lan.run("ping 10.0.0.2 -c 1", lan.peer)
    assert status == 1
    assert any("Destination Port Unreachable" in line for line in output), output
    assert [line for line in lan.ours.log.lines if "filtering" in line][-1].endswith("filtering: lo True")


def test_c27_ping_says_that_it_may_not_send(lan: Lan) -> None:
    lan.run("guard add drop out icmp")
    status, output = lan.run("ping 10.0.0.3 -c 1 -q")
    assert status == 1
    assert "1 packets transmitted, 0 received, +1 errors" in output[-1]


@pytest.mark.parametrize(
    ("line", "status", "says", "usage"),
    [
        ("guard add drop in tcp port 80", 2, "guard: drop in tcp port 80: word 4, 'port': is none of", False),
        ("guard add", 2, "guard: an empty rule: an action (accept, drop, reject) is missing at the end", False),
        ("guard add policy in drop", 2, "guard: policy in drop: is a policy and no rule", False),
        ("guard insert 1", 2, "guard: an empty rule", False),
        ("guard insert drop in", 2, "guard: number drop: a number from 1 to", True),
        ("guard insert", 2, "guard: guard insert needs NUMBER RULE", True),
        ("guard insert 3 drop in", 1, "guard: insert 3 drop in: No such file or directory", False),
        ("guard delete 1", 1, "guard: delete 1: No such file or directory", False),
        ("guard delete 0", 2, "guard: number 0: a number from 1 to", True),
        ("guard delete", 2, "guard: guard delete: wrong number of arguments", True),
        ("guard policy in", 2, "guard: guard policy: wrong number of arguments", True),
        ("guard policy in deny", 2, "guard: policy in deny: word 3, 'deny': an action is one of accept", False),
        ("guard list all", 2, "guard: guard list: wrong number of arguments", True),
        ("guard open", 2, "guard: what is open?", True),
        ("guard -x", 2, "guard: option -x not recognized", True),
    ],
)
def test_c27_what_the_program_does_not_do_is_one_line_and_a_status(
    lan: Lan, line: str, status: int, says: str, usage: bool
) -> None:
    got, output = lan.run(line)
    assert got == status
    assert output[0].startswith(says)
    assert ("usage: guard [COMMAND]" in output, len(output) > 1) == (usage, usage)
    assert lan.ours.stack.guard is None or len(lan.ours.stack.guard) == 0


def test_c27_each_example_of_the_usage_is_a_rule_that_works(lan: Lan) -> None:
    output = lan.run("guard help")[1]
    examples = [line.strip() for line in output[output.index("examples:") + 1 :]]
    assert [lan.run(line) for line in examples] == [(0, [])] * 4
    assert [str(rule) for _, rule, _, _ in lan.ours.calls.guard_rules()] == [
        "accept in icmp6", "drop in tcp to 10.0.0.0/24 port 80-90 on eth0", "reject out udp to any port 53",
    ]  # fmt: skip


# -- the command line ------------------------------------------------------------------------------------------------


def test_c27_rules_on_the_command_line_hold_from_the_boot_on() -> None:
    lan = Lan("net.guard='policy in drop; accept in udp; accept in icmp from 10.0.0.9'")
    assert "stage 1: guard: 2 rules" in "\n".join(lan.ours.log.lines)
    assert lan.run("ping 10.0.0.2 -c 1 -q", lan.peer)[0] == 1
    assert lan.ours.calls.guard_policies()["in"][:2] == ("drop", 1)
    lan.board.close()


def test_c27_without_rules_there_is_no_guard() -> None:
    board = Board()
    assert board.boot("net.guard=''").stack.guard is None
    board.close()


def test_a_wrong_rule_on_the_command_line_is_one_line() -> None:
    with pytest.raises(CommandLineError) as raised:
        parse("net.guard='accept in; drop it'")
    assert str(raised.value) == (
        "net.guard: line 2: drop it: word 2, 'it': a hook is one of in, forward, out; "
        'write: net.guard="drop in tcp to port 80"'
    )


@pytest.mark.parametrize("words", ["", "net.forwarding=0", "net.forwarding=1"])
def test_d22_forwarding_is_a_word_on_the_command_line(words: str) -> None:
    board = Board()
    assert board.boot(words).stack.forwarding is words.endswith("1")
    board.close()
