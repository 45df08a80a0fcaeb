"""ping: ICMP echo requests of both families, and what came back.

A reply counts when its source, sequence number and payload are those of a request; one with another payload is reported
and not counted. Without `-c` it goes on until it is killed, and prints its statistics then too.

Read: RFC 792, RFC 4443 §4, ping(8) of iputils, whose output this follows.
"""

from __future__ import annotations

from math import isqrt

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.usage import UsageError, no_answer, options, seconds, whole
from guest.net.address import AddressError, format_address, is_multicast, is_v4, parse_address
from guest.net.dns import ResolveError
from guest.net.icmp import EchoReply
from guest.net.interface import Interface

USAGE = """usage: ping HOST [-4 | -6] [-c COUNT] [-i SECONDS] [-s SIZE] [-W SECONDS] [-q]
  -4, -6      which address of HOST, where it is a name
  -c COUNT    stop after so many requests (default: go on for ever)
  -i SECONDS  time between requests (default 1, at least 0.001)
  -s SIZE     bytes of payload (default 56)
  -W SECONDS  how long to wait for replies after the last request (default 1)
  -q          print nothing but the summary"""

# What is left of an IP packet behind its header and ICMP's; an IPv6 packet's length does not count its header.
SIZE_MAX = {4: 65507, 6: 65527}
HEADERS = {4: 28, 6: 48}
INTERVAL_MIN = 1000  # microseconds; with none between requests, time that only idleness moves would stand still


class _Session:
    """One run."""

    def __init__(self, env: Env, target: int, interface: Interface | None, size: int, quiet: bool) -> None:
        self.env = env
        self.target = target
        self.interface = interface
        self._address = format_address(target)
        self.size = size
        self.quiet = quiet
        self.port = env.guest.stack.icmp.open_echo()
        self.port.on_ready = env.wake
        self._pattern = bytes(range(256)) * (size // 256 + 2)
        self._sent: dict[int, int] = {}  # sequence number → when; 16 bits, so it is bounded
        self._answered: set[int] = set()
        self.transmitted = self.received = self.duplicates = self.corrupted = self.errors = 0
        self._least = self._most = self._sum = self._squares = 0

    def _payload(self, sequence: int) -> bytes:
        """The bytes of a request, which differ from those of its neighbours."""
        start = sequence & 0xFF
        return self._pattern[start : start + self.size]

    def run(self, count: int | None, interval: int, patience: int) -> None:
        """Send `count` requests and wait for their replies; times in microseconds."""
        due = self.env.now()
        while True:
            self._send()
            if self.transmitted == count:
                break
            due = max(due + interval, self.env.now())
            self._collect(due)
        self._collect(self.env.now() + patience, last=True)

    def _send(self) -> None:
        self.transmitted += 1
        sequence = self.transmitted & 0xFFFF
        self._sent[sequence] = self.env.now()
        self._answered.discard(sequence)
        try:
            self.port.send(self.target, sequence, self._payload(sequence), interface=self.interface)
        except OSError as error:
            self.errors += 1
            self._say(f"ping: icmp_seq={sequence}: {error.strerror}")

    def _collect(self, until: int, last: bool = False) -> None:
        """Take replies until then, after the `last` request only until every one is answered."""
        env = self.env
        env.sleep(0)
        while True:
            while (reply := self.port.receive()) is not None:
                self._take(reply)
            left = until - env.now()
            if left <= 0 or (last and self.received + self.errors >= self.transmitted):
                return
            env.wait(timeout=left)

    def _take(self, reply: EchoReply) -> None:
        sequence = reply.seq
        if reply.error:
            self.errors += 1
            self._say(f"From {reply.src} icmp_seq={sequence} {reply.error}")
            return
        sent = self._sent.get(sequence)
        if sent is None or (reply.src != self._address and not is_multicast(self.target)):
            return
        length = len(reply.payload) + 8
        if reply.payload != self._payload(sequence):
            self.corrupted += 1
            self._say(f"{length} bytes from {reply.src}: icmp_seq={sequence} payload differs")
            return
        took = reply.when - sent
        again = sequence in self._answered
        if again:
            self.duplicates += 1
        else:
            self._answered.add(sequence)
            self._least = took if not self.received else min(self._least, took)
            self._most = max(self._most, took)
            self._sum += took
            self._squares += took * took
            self.received += 1
        text = f"{length} bytes from {reply.src}: icmp_seq={sequence} ttl={reply.ttl} time={_ms(took)} ms"
        self._say(text + " (DUP!)" if again else text)

    def _say(self, text: str) -> None:
        if not self.quiet:
            self.env.print(text)

    def summary(self, elapsed: int) -> None:
        """The statistics, as ping prints them."""
        extra = "".join(
            f", +{count} {name}"
            for count, name in (
                (self.duplicates, "duplicates"), (self.corrupted, "corrupted"), (self.errors, "errors")
            )
            if count
        )
        lost = 100 * (self.transmitted - self.received) // max(1, self.transmitted)
        self.env.print(f"\n--- {self._address} ping statistics ---")
        self.env.print(
            f"{self.transmitted} packets transmitted, {self.received} received{extra}, {lost}% packet loss, "
            f"time {elapsed // 1000}ms"
        )
        if self.received:
            mean = self._sum // self.received
            deviation = isqrt(max(0, self._squares // self.received - mean * mean))
            figures = "/".join(_ms(value) for value in (self._least, mean, self._most, deviation))
            self.env.print(f"rtt min/avg/max/mdev = {figures} ms")


def main(env: Env, argv: list[str]) -> int:
    """0 when at least one reply came, 1 when none did, 2 for wrong usage and names that nobody knows."""
    try:
        chosen, rest = options(argv, "c:i:s:W:q46")
        if len(rest) != 1:
            raise UsageError("one host is needed")
        count = whole("-c", chosen["-c"], 1, 1 << 32) if "-c" in chosen else None
        interval = seconds("-i", chosen.get("-i", "1"))
        if interval < INTERVAL_MIN:
            raise UsageError(f"-i {chosen['-i']}: at least 0.001 seconds are needed")
        size = whole("-s", chosen.get("-s", "56"), 0, SIZE_MAX[6])
        patience = seconds("-W", chosen.get("-W", "1"))
        target, interface = _target(env, rest[0], 6 if "-6" in chosen else 4 if "-4" in chosen else 0)
        family = 4 if is_v4(target) else 6
        if size > SIZE_MAX[family]:
            raise UsageError(f"-s {size}: a number from 0 to {SIZE_MAX[family]} is needed")
    except ResolveError as error:
        env.print(f"ping: {rest[0]}: {no_answer(error.error)}")
        return EX_USAGE
    except (UsageError, AddressError) as error:
        env.print(f"ping: {error}\n{USAGE}")
        return EX_USAGE
    session = _Session(env, target, interface, size, "-q" in chosen)
    env.print(f"PING {rest[0]} ({format_address(target)}) {size}({size + HEADERS[family]}) bytes of data.")
    start = env.now()
    try:
        session.run(count, interval, patience)
    finally:
        session.port.close()
        session.summary(env.now() - start)
    return 0 if session.received else 1


def _target(env: Env, host: str, family: int) -> tuple[int, Interface | None]:
    """The address of a host, and the interface that a zone names. Raises UsageError, AddressError, ResolveError."""
    text, percent, zone = host.partition("%")
    if percent:
        for interface in env.guest.stack.interfaces:
            if interface.name == zone:
                return parse_address(text), interface
        raise UsageError(f"{host}: there is no interface {zone!r}")
    return env.guest.resolver.resolve(env, host, family)[0], None


def _ms(micros: int) -> str:
    """Microseconds as milliseconds with three places."""
    return f"{micros // 1000}.{micros % 1000:03d}"
