"""guard: show and change the rules of the packet filter; guest/net/guard.py says what they do.

Changes go through the system calls; what the kernel refuses is one line with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.usage import UsageError, options, whole
from guest.sys.netconfig import StackFlags

USAGE = """usage: guard [COMMAND]
  guard [list]                rules, policies, and the packets and bytes that each decided
  guard add RULE              behind the others; the first rule that matches a packet decides
  guard insert NUMBER RULE    before the rule with this number
  guard delete NUMBER
  guard flush                 delete all rules; policies stay
  guard policy HOOK ACTION    what becomes of packets that no rule matches
  guard on|off                off: everything passes, and the rules stay
  RULE: ACTION HOOK [PROTOCOL] [from ADDRESS [port P[-P]]] [to ADDRESS [port P[-P]]] [type N] [on IF] [via IF]
  ACTION: accept, drop, reject (answers)   HOOK: in, forward, out
  PROTOCOL: any, tcp, udp, icmp, icmp6, igmp, a number   ADDRESS: any, A, A/LENGTH
examples:
  guard add drop in tcp to 10.0.0.0/24 port 80-90 on eth0
  guard add reject out udp to any port 53
  guard insert 1 accept in icmp6
  guard policy in drop"""

MOST = 1 << 16  # as a number of a rule


class _NoRule(Exception):
    """The words are no rule; the text is one line."""


class _Guard:
    """One run."""

    def __init__(self, env: Env) -> None:
        self.env = env
        self.calls = env.calls

    def run(self, words: Sequence[str]) -> None:
        """Do what the words say. Raises UsageError, _NoRule, OSError."""
        command, rest = (words[0], words[1:]) if words else ("list", [])
        if command == "add":
            self.calls.guard_add(_checked(rest))
        elif command == "insert":
            if not rest:
                raise UsageError("guard insert needs NUMBER RULE")
            number = whole("number", rest[0], 1, MOST)
            self.calls.guard_add(_checked(rest[1:]), number)
        elif command == "delete" and len(rest) == 1:
            self.calls.guard_del(whole("number", rest[0], 1, MOST))
        elif command == "policy" and len(rest) == 2:
            _checked(words, policy=True)
            self.calls.guard_policy(*rest)
        elif command in ("list", "flush", "on", "off") and not rest:
            self.simple(command)
        elif command in ("list", "flush", "on", "off", "delete", "policy"):
            raise UsageError(f"guard {command}: wrong number of arguments")
        else:
            raise UsageError(f"what is {command}?")

    def simple(self, command: str) -> None:
        """A command without arguments."""
        if command == "list":
            self.show()
        elif command == "flush":
            self.calls.guard_flush()
        else:
            flags = self.calls.stack_flags_get() & ~StackFlags.FILTER
            self.calls.stack_flags_set(flags | (StackFlags.FILTER if command == "on" else 0))

    def show(self) -> None:
        """Rules and policies with what they counted."""
        on = bool(self.calls.stack_flags_get() & StackFlags.FILTER)
        self.env.print(f"the guard is {'on' if on else 'off: everything passes'}")
        lines = [(str(number), str(rule), packets, size) for number, rule, packets, size in self.calls.guard_rules()]
        for hook, (action, packets, size) in self.calls.guard_policies().items():
            lines.append(("", f"policy {hook} {action}", packets, size))
        wide = max(len(text) for _, text, _, _ in lines)
        for number, text, packets, size in lines:
            self.env.print(f"{number:>3}  {text:<{wide}}  {packets} packets  {size} bytes")


def main(env: Env, argv: list[str]) -> int:
    """0, 1 when the guest refuses, 2 for wrong usage or what is no rule."""
    try:
        _, rest = options(argv, "")
        _Guard(env).run(rest)
    except UsageError as error:
        env.print(f"guard: {error}\n{USAGE}")
        return EX_USAGE
    except _NoRule as error:
        env.print(f"guard: {error}")
        return EX_USAGE
    except OSError as failed:
        env.print(f"guard: {' '.join(rest)}: {failed.strerror}")
        return 1
    return 0


def _checked(words: Sequence[str], *, policy: bool = False) -> str:
    """The words of a rule, or of the command "policy", as one line. Raises _NoRule: what is wrong with it."""
    from guest.net.guard_rule import GuardError, parse_line, parse_rule  # noqa: PLC0415 - who never filters does not load it

    parse = parse_line if policy else parse_rule
    try:
        return str(parse(" ".join(words)))
    except GuardError as error:
        raise _NoRule(str(error)) from None
