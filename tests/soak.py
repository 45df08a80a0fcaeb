"""`python -m tests.soak`: guests under mixed load for a long time, while nothing may break (row E54).

    SOAK_SECONDS=600 SOAK_SEED=1 python -m tests.soak

Four guests, two hubs, one virtual clock. On the first hub a wire that loses, repeats and reorders; all that is sent
there must arrive as it was. On the second a port sends mutated frames of the others' traffic all the time; there
answers may be wrong, but whoever gets them must go on. The load pauses now and then until everything has ended; then
each guest must have what it had at first, and the process no more than 5 % more memory than when it was warm: of
Python's blocks, and of RAM besides four of the arenas that they are taken from, which come and go whole.

Ends with status 0 when, all the time, no kernel panicked, no program crashed, no device had to be reset, no byte was
wrong on the first hub and some were right on the second, TCP's invariants held after every segment, and nothing leaked.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from guest.kernel import Guest
from hw.wire.hub import Hub
from hw.wire.impair import ImpairedLink
from tests.guest_board import SECOND, Board
from tests.soak_load import KINDS, Ear, Fuzzer, Load

STEP = 0.02  # seconds of the guests' time between two bursts of nonsense
BURST = 10  # frames of it
ROUNDS = 12  # pauses in the whole run
ROUND_MAX = 30  # seconds
WARM = 2  # rounds until memory counts
GROWTH = 1.05
ARENAS = 4 << 20  # bytes
LINE_EVERY = 10  # seconds between two lines about how it goes, where that is no terminal
PAGE = os.sysconf("SC_PAGE_SIZE")


class Failure(Exception):
    """What must not happen, in one line."""


class Soak:
    """Everything that runs.

    Args:
        seed: of chance; the same one makes the same traffic.
    """

    def __init__(self, seed: int) -> None:
        self.unraisable: list[str] = []  # of finalizers and callbacks
        sys.unraisablehook = lambda what: self.unraisable.append(f"{what.exc_value!r} in {what.object!r}")
        self.board = Board()
        loop = self.board.loop
        quiet, loud = Hub(loop, "quiet"), Hub(loop, "loud")
        bad = ImpairedLink(
            quiet.port("a"), loop, seed, loss=0.01, duplicate=0.01, reorder=0.02, delay_us=200, jitter_us=50
        )
        ear = Ear(ImpairedLink(loud.port("c"), loop, seed + 1, delay_us=200))
        links = {"a": bad, "b": quiet.port("b"), "c": ear, "d": loud.port("d")}
        self.guests: dict[str, Guest] = {}
        for last, (name, link) in enumerate(links.items(), 1):
            words = f"-ipaddr 10.0.0.{last} -netmask 255.255.255.0"
            self.guests[name] = self.board.guest(words, link, name=name, seed=seed + last)
        self.board.settle()
        for last, guest in enumerate(self.guests.values(), 1):
            guest.stack.tcp.config = replace(guest.stack.tcp.config, check=True)
            assert guest.ni is not None
            guest.ni.interface.add_address(f"fd00::{last}", 64)
        self.fuzzer = Fuzzer(loud.port("fuzzer"), ear, seed + 9)
        self.loads = [
            Load(self.guests["a"], self.guests["b"], ("10.0.0.2", "fd00::2"), seed + 5, strict=True),
            Load(self.guests["c"], self.guests["d"], ("10.0.0.4", "fd00::4"), seed + 6, strict=False),
        ]
        for load in self.loads:
            load.start()
        self.board.run(5)
        self.fixed = {name: self._held(guest) for name, guest in self.guests.items()}

    def works(self, seconds: float, said: Progress) -> None:
        """Load for so many seconds of wall time, and then a pause until all of it has ended."""
        before = [load.well for load in self.loads]
        for load in self.loads:
            load.paused = False
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.board.run(STEP)
            self.fuzzer.send(BURST)
            self.check()
            said.line(self)
        for load in self.loads:
            load.paused = True
        for _ in range(600):
            self.board.run(1)
            if not any(load.busy for load in self.loads):
                break
        else:
            raise Failure(f"{[load.busy for load in self.loads]} clients have not ended ten minutes after the load")
        self.board.run(400)  # servers run out of patience, TIME-WAITs and neighbours end
        self.check()
        for load, old in zip(self.loads, before, strict=True):
            if load.well == old:
                raise Failure(f"nothing has ended well towards {load.server.name} in this round: {load.done}")
        for name, guest in self.guests.items():
            held = self._held(guest)
            if held != self.fixed[name]:
                raise Failure(f"guest {name} has {held} and had {self.fixed[name]}")

    def check(self) -> None:
        """Nothing has happened that must not. Raises Failure."""
        for name, guest in self.guests.items():
            if guest.panic is not None or guest.halted:
                raise Failure(f"guest {name} has panicked: {guest.log.lines[-2:]}")
            if guest.scheduler.counters["crashed"]:
                raise Failure(f"a program of guest {name} has crashed: {guest.log.lines[-2:]}")
            if guest.devices[0].counters["device_failed"]:
                raise Failure(f"the card of guest {name} was reset: {guest.log.lines[-2:]}")
        if self.unraisable:
            raise Failure(f"an exception went nowhere: {self.unraisable[0]}")
        for load in self.loads:
            if load.wrong:
                raise Failure(f"towards {load.server.name}: {load.wrong[0]}")

    @staticmethod
    def _held(guest: Guest) -> dict[str, int]:
        tcp = guest.stack.tcp
        return {
            "connections": len(tcp.entries),
            "ports": sum(1 for _ in tcp.ends),
            "descriptors": len(guest.calls.fds),
            "processes": len(guest.scheduler),
            "mapped bytes": guest.services.dma.mapped_bytes,
            "free pages": guest.services.dma.free_bytes,
        }

    def drops(self) -> Counter[str]:
        """What was dropped, by layer and reason, over all guests."""
        total: Counter[str] = Counter()
        for guest in self.guests.values():
            for layer, counters in guest.counters().items():
                total.update({f"{layer} {name}": count for name, count in counters.items() if "dropped" in name})
        return +total

    def segments(self) -> int:
        """How many TCP segments have come in."""
        return sum(guest.stack.tcp.counters["rx_segments"] for guest in self.guests.values())


class Progress:
    """One line that is written anew on a terminal, and now and then elsewhere."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started = time.monotonic()
        self._next = 0.0
        self._terminal = sys.stdout.isatty()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def line(self, soak: Soak) -> None:
        """Say how it goes, if it is time to."""
        if self.elapsed < self._next:
            return
        self._next = self.elapsed + (0.5 if self._terminal else LINE_EVERY)
        moved = sum(load.moved for load in soak.loads) / 1e6
        text = (
            f"{self.elapsed:5.0f} of {self.seconds:.0f} s: guests' time {soak.board.loop.clock.now() / SECOND:.0f} s, "
            f"{soak.segments()} segments, {moved:.0f} MB, {soak.fuzzer.sent} mutated frames, {memory()[0] >> 20} MiB"
        )
        print(f"\r{text}\x1b[K" if self._terminal else text, end="" if self._terminal else "\n", flush=True)


def memory() -> tuple[int, int]:
    """Bytes of RAM that the process has, and blocks that Python has allocated."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * PAGE, sys.getallocatedblocks()


def main() -> int:
    """Run it; 0 when all was well."""
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
    seed = int(os.environ.get("SOAK_SEED", "0")) or int.from_bytes(os.urandom(3), "big")
    print(f"soak: {seconds:.0f} seconds, seed {seed} (SOAK_SECONDS, SOAK_SEED)", flush=True)
    soak = Soak(seed)
    said = Progress(seconds)
    samples: list[tuple[int, int]] = []
    try:
        while said.elapsed < seconds:
            soak.works(min(seconds / ROUNDS, ROUND_MAX), said)
            gc.collect()
            samples.append(memory())
        judge(samples)
        for load in soak.loads:
            print(f"\ntowards {load.server.name}: {dict(load.done.most_common())}", end="")
            if missing := [kind for kind in KINDS if not load.done[kind]]:
                raise Failure(f"towards {load.server.name} no {missing[0]} has ever ended well")
        drops = soak.drops()
        print(f"\ndropped, each with its reason: {dict(drops.most_common())}")
        if len(drops) < 10:
            raise Failure("hardly any reason to drop was met: was there nonsense?")
        soak.board.close()
    except (Failure, AssertionError) as error:
        print(f"\nsoak: FAILED with seed {seed} after {said.elapsed:.0f} s: {error}", flush=True)
        return 1
    print(f"soak: all was well for {said.elapsed:.0f} seconds, {soak.segments()} segments, seed {seed}")
    return 0


def judge(samples: list[tuple[int, int]]) -> None:
    """Memory at rest has not grown since it was warm. Raises Failure."""
    if len(samples) <= WARM:
        raise Failure(f"{len(samples)} rounds are too few to say how memory grows; give it more time")
    slack = (ARENAS, 0)
    for what, values, more in zip(("bytes of RAM", "blocks"), zip(*samples, strict=True), slack, strict=True):
        warm, last = max(values[:WARM]), values[-1]
        print(f"\n{what} at rest: {warm} when warm, {last} at the end ({last / warm - 1:+.1%})", end="")
        if last > warm * GROWTH + more:
            raise Failure(f"{what} have grown: {list(values)}")


if __name__ == "__main__":
    sys.exit(main())
