"""ping: ICMP echo requests, and what came back.

A reply counts when its source, sequence number and payload are those of a request; one with another payload is reported
and not counted. Without `-c` it goes on until it is killed, and prints its statistics then too.

Read: RFC 792, ping(8) of iputils, whose output this follows.
"""

from __future__ import annotations

from math import isqrt

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.usage import UsageError, options, seconds, whole
from guest.net.address import AddressError, format_address, is_multicast, is_v4, parse_address
from guest.net.icmp import EchoReply

USAGE = """usage: ping ADDRESS [-c COUNT] [-i SECONDS] [-s SIZE] [-W SECONDS] [-q]
  -c COUNT    stop after so many requests (default: go on for ever)
  -i SECONDS  time between requests (default 1, at least 0.001)
  -s SIZE     bytes of payload (default 56)
  -W SECONDS  how long to wait for replies after the last request (default 1)
  -q          print nothing but the summary"""

SIZE_MAX = 65507  # what is left of an IP packet behind its header and ICMP's
HEADERS = 28
INTERVAL_MIN = 1000  # microseconds; with none between requests, time that only idleness moves would stand still


class _Session:
    """One run."""

    def __init__(self, env: Env, target: int, size: int, quiet: bool) -> None:
        self.env = env
        self.target = target
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
            self.port.send(self.target, sequence, self._payload(sequence))
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
    """0 when at least one reply came, 1 when none did, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "c:i:s:W:q")
        if len(rest) != 1:
            raise UsageError("one address is needed")
        target = parse_address(rest[0])
        if not is_v4(target):
            raise UsageError(f"{rest[0]}: only IPv4 in this version")
        count = whole("-c", chosen["-c"], 1, 1 << 32) if "-c" in chosen else None
        interval = seconds("-i", chosen.get("-i", "1"))
        if interval < INTERVAL_MIN:
            raise UsageError(f"-i {chosen['-i']}: at least 0.001 seconds are needed")
        size = whole("-s", chosen.get("-s", "56"), 0, SIZE_MAX)
        patience = seconds("-W", chosen.get("-W", "1"))
    except (UsageError, AddressError) as error:
        env.print(f"ping: {error}\n{USAGE}")
        return EX_USAGE
    session = _Session(env, target, size, "-q" in chosen)
    address = format_address(target)
    env.print(f"PING {address} ({address}) {size}({size + HEADERS}) bytes of data.")
    start = env.now()
    try:
        session.run(count, interval, patience)
    finally:
        session.port.close()
        session.summary(env.now() - start)
    return 0 if session.received else 1


def _ms(micros: int) -> str:
    """Microseconds as milliseconds with three places."""
    return f"{micros // 1000}.{micros % 1000:03d}"

