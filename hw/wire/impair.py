"""A bad wire: a wrapper that loses, delays, reorders, duplicates and corrupts frames, both ways, by a seed.

Promises:
- The same seed, settings, frames and times give the same faults. Each direction draws from a source of its own.
- Every frame is delivered or counted, and every fault is counted: `tx_lost`, `tx_corrupted`, `tx_duplicated`,
  `tx_reordered`, `tx_dropped_limit`, `tx_dropped_corrupt` (see below), and the same with `rx_`.
- What waits is bounded, in frames by `limit` and in bytes by `LIMIT_BYTES`. The wire never says that it is full: it
  drops, as networks do.
- Frames that meet no fault and no delay pass within the call, uncopied.

What each setting does, in this order for each frame:
- `loss`: it is gone.
- `corrupt`: one bit is flipped. When the frame's checksum is still to be made, or was declared good, nobody could ever
  notice: then it is dropped, as by a NIC that sees a bad FCS.
- `duplicate`: it is sent twice.
- `rate_bps`: it leaves when the frames before it have left at this rate.
- `delay_us`, `jitter_us`: it arrives that much later, plus or minus at most the jitter; order is kept.
- `reorder`: it is held back by `max(delay + jitter, REORDER_HOLD)` more, and those behind it overtake.

Read first: `link.py`. Sections: reading the settings from text, `_Direction`, `ImpairedLink`.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TypedDict

from hw.abi.virtio_net import VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM
from hw.clock import MILLISECOND, SECOND, Timer
from hw.loop import Loop
from hw.wire.link import Frame, Link, Receiver, Views, frame_length, keep
from hw.wire.wrapper import Wrapper

LIMIT = 1000
LIMIT_BYTES = 16 << 20
REORDER_HOLD = MILLISECOND
_BATCH = 64
_NO_CHECKSUM = VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID

# -- settings from text ----------------------------------------------------------------------------------------------


class Impairments(TypedDict, total=False):
    """The keyword arguments of `ImpairedLink`."""

    loss: float
    corrupt: float
    duplicate: float
    reorder: float
    delay_us: int
    jitter_us: int
    rate_bps: int
    limit: int


_SHARE = {"": 1.0, "%": 0.01}
_TIME = {"us": 1, "ms": 1_000, "s": 1_000_000}
_RATE = {"bit": 1, "kbit": 1_000, "mbit": 1_000_000, "gbit": 1_000_000_000}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)([a-z%]*)", re.ASCII)


# What `parse_impairments` knows.
KEYS = ("loss", "corrupt", "duplicate", "reorder", "delay", "jitter", "rate", "limit")


def parse_impairments(text: str) -> Impairments:
    """Read `loss=1%,delay=10ms,jitter=2ms,reorder=1%,duplicate=0.5%,corrupt=0.1%,rate=10mbit,limit=100`.

    Shares are per cent or fractions, times have the unit us, ms or s, rates bit, kbit, mbit or gbit (a second). Raises
    ValueError with one line for anything else.
    """
    settings: Impairments = {}
    for word in text.split(","):
        key, _, value = word.strip().partition("=")
        if key in ("loss", "corrupt", "duplicate", "reorder"):
            name, number = key, _read(word, value, _SHARE, "a share such as 1% or 0.01")
            if number > 1:
                raise ValueError(f"{word}: a share is at most 100%")
        elif key in ("delay", "jitter"):
            name, number = f"{key}_us", round(_read(word, value, _TIME, "a time such as 10ms, 500us or 1s"))
        elif key == "rate":
            name, number = "rate_bps", round(_read(word, value, _RATE, "a rate such as 10mbit, 64kbit or 1gbit"))
        elif key == "limit":
            name, number = "limit", _read(word, value, {"": 1}, "a number of frames")
            if number != int(number):
                raise ValueError(f"{word}: a number of frames is a whole number")
            number = int(number)
        else:
            raise ValueError(f"{word!r}: unknown impairment; there are {', '.join(KEYS)}")
        if name in settings:
            raise ValueError(f"{word}: {key} is given twice")
        if name in ("rate_bps", "limit") and number < 1:
            raise ValueError(f"{word}: {key} must be at least 1")
        settings[name] = number  # type: ignore[literal-required]
    return settings


def _read(word: str, value: str, units: dict[str, float] | dict[str, int], what: str) -> float:
    match = _NUMBER.fullmatch(value)
    if match is None or match[2] not in units:
        raise ValueError(f"{word}: {value!r} is not {what}")
    return float(match[1]) * units[match[2]]


# -- one direction ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Settings:
    loss: float
    corrupt: float
    duplicate: float
    reorder: float
    delay_us: int
    jitter_us: int
    rate_bps: int
    limit: int


class _Direction:
    """Frames on their way one way: what is held until its time, and what the far end has no room for yet."""

    def __init__(
        self,
        loop: Loop,
        rng: Random,
        settings: _Settings,
        counters: Counter[str],
        prefix: str,
        send: Callable[[Sequence[Frame]], int],
    ) -> None:
        self._loop = loop
        self._clock = loop.clock
        self._rng = rng
        self._settings = settings
        self._counters = counters
        self._prefix = prefix
        self._send = send
        self._held: list[tuple[int, int, Frame]] = []  # a heap: due time, serial number, frame
        self._refused: deque[Frame] = deque()  # due, but the far end has no room
        self._bytes = 0  # of both
        self._serial = 0
        self._timer: Timer | None = None
        self._free_at = 0  # when the rate allows the next frame to leave
        self._last_due = 0
        self._sending = False
        self.paused = False

    def push(self, frames: Sequence[Frame]) -> None:
        """Frames set out."""
        settings, counters, prefix = self._settings, self._counters, self._prefix
        chance = self._rng.random
        now = self._clock.now()
        straight: list[Frame] = []
        for frame in frames:
            one = frame
            if settings.loss and chance() < settings.loss:
                counters[prefix + "lost"] += 1
                continue
            if settings.corrupt and chance() < settings.corrupt:
                corrupted = self._corrupt(frame)
                if corrupted is None:
                    counters[prefix + "dropped_corrupt"] += 1
                    continue
                counters[prefix + "corrupted"] += 1
                one = corrupted
            copies = 1
            if settings.duplicate and chance() < settings.duplicate:
                counters[prefix + "duplicated"] += 1
                copies = 2
            for _ in range(copies):
                if not self._room(one):
                    counters[prefix + "dropped_limit"] += 1
                    continue
                due = self._due(now, one)
                # One whose time has come may stand in the heap still, its timer about to go off: stay behind it.
                if due > now or (self._held and self._held[0][0] <= now):
                    self._hold(due, keep(one))
                else:
                    straight.append(one)
        if straight:
            self._forward(straight, kept=False)

    def _corrupt(self, frame: Frame) -> Frame | None:
        header, views = frame
        data = bytearray().join(views)
        if not data or (header is not None and (header[0] & _NO_CHECKSUM or header[1])):
            return None
        bit = self._rng.randrange(8 * len(data))
        data[bit >> 3] ^= 1 << (bit & 7)
        return header, [data]

    def _room(self, frame: Frame) -> bool:
        waiting = len(self._held) + len(self._refused)
        return waiting < self._settings.limit and self._bytes + frame_length(frame) <= LIMIT_BYTES

    def _due(self, now: int, frame: Frame) -> int:
        """When the frame arrives."""
        settings = self._settings
        due = now
        if settings.rate_bps:
            micros = -(-frame_length(frame) * 8 * SECOND // settings.rate_bps)
            due = self._free_at = max(now, self._free_at) + micros
        due += settings.delay_us
        if settings.jitter_us:
            due = max(now, due + self._rng.randint(-settings.jitter_us, settings.jitter_us))
        if settings.reorder and self._rng.random() < settings.reorder:
            self._counters[self._prefix + "reordered"] += 1
            return due + max(settings.delay_us + settings.jitter_us, REORDER_HOLD)
        self._last_due = max(due, self._last_due)
        return self._last_due

    def _hold(self, due: int, frame: Frame) -> None:
        self._serial += 1
        self._bytes += frame_length(frame)
        heapq.heappush(self._held, (due, self._serial, frame))
        self._arm()

    def _arm(self) -> None:
        """Have the timer go off when the next frame is due."""
        due = self._held[0][0] if self._held else None
        if self._timer is not None:
            if self._timer.when == due:
                return
            self._timer.cancel()
        self._timer = None if due is None else self._clock.at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._clock.now()
        held = self._held
        batch = []
        while held and held[0][0] <= now:
            batch.append(heapq.heappop(held)[2])
        self._arm()
        self._forward(batch, kept=True)

    def _forward(self, frames: Sequence[Frame], *, kept: bool) -> None:
        """Send frames whose time has come; `kept` says that they are our copies, and counted in `_bytes`."""
        taken = 0
        if self._sending:  # the far end sent something before it had taken what it was offered
            self._loop.call_soon(self._drain)
        elif not (self.paused or self._refused):
            taken = self._offer(frames)
        if kept:
            self._bytes -= sum(map(frame_length, frames[:taken]))
            self._refused.extend(frames[taken:])
            return
        for frame in frames[taken:]:
            if self._room(frame):
                self._bytes += frame_length(frame)
                self._refused.append(keep(frame))
            else:
                self._counters[self._prefix + "dropped_limit"] += 1

    def _offer(self, frames: Sequence[Frame]) -> int:
        self._sending = True
        try:
            return self._send(frames)
        finally:
            self._sending = False

    def again(self) -> None:
        """The far end has room: send what it refused."""
        self.paused = False
        self._drain()

    def _drain(self) -> None:
        refused = self._refused
        while refused and not self._sending and not self.paused:
            batch = list(islice(refused, _BATCH))
            taken = self._offer(batch)
            for _ in range(taken):
                self._bytes -= frame_length(refused.popleft())
            if taken < len(batch):
                return

    def forget(self, why: str) -> None:
        """Drop everything that is under way, counted as `dropped_` and `why`."""
        self.paused = False
        self._counters[f"{self._prefix}dropped_{why}"] += len(self._held) + len(self._refused)
        self._held.clear()
        self._refused.clear()
        self._bytes = 0
        self._arm()


# -- the link --------------------------------------------------------------------------------------------------------


class ImpairedLink(Wrapper):
    """`inner` with faults; see the file's head for what each setting does.

    Args:
        inner: the wire; frames that it reads from a descriptor are handed to the receiver with `receive`.
        loop: whose clock delays frames.
        seed: a number or a text; links that are to differ need different ones.
        loss, corrupt, duplicate, reorder: shares from 0 to 1.
        delay_us, jitter_us: microseconds.
        rate_bps: bits of frame a second, 0 for no bound.
        limit: frames that may wait in each direction.
    """

    def __init__(
        self,
        inner: Link,
        loop: Loop,
        seed: int | str,
        *,
        loss: float = 0.0,
        corrupt: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        delay_us: int = 0,
        jitter_us: int = 0,
        rate_bps: int = 0,
        limit: int = LIMIT,
    ) -> None:
        super().__init__(inner)
        self.header_size = 0  # frames are never read from here
        settings = _Settings(loss, corrupt, duplicate, reorder, delay_us, jitter_us, rate_bps, limit)
        self._tx = _Direction(loop, Random(f"{seed}/tx"), settings, self.counters, "tx_", inner.transmit)
        self._rx = _Direction(loop, Random(f"{seed}/rx"), settings, self.counters, "rx_", super().receive)

    def transmit(self, frames: Sequence[Frame]) -> int:
        """Let frames set out; all of them are taken."""
        self._tx.push(frames)
        return len(frames)

    def receive(self, frames: Sequence[Frame]) -> int:
        """Frames of the inner link set out for the receiver."""
        self._rx.push(frames)
        return len(frames)

    def pull(self, link: Link) -> None:
        """Read the inner link's frames; they reach the receiver when their time has come."""
        Receiver.pull(self, link)

    def writable(self) -> None:
        """The inner link takes frames again."""
        self._tx.again()

    def pause(self) -> None:
        """Keep frames, up to the limit, until `resume`."""
        self._rx.paused = True

    def resume(self) -> None:
        """The receiver has room again."""
        self._rx.again()

    def read_into(self, views: Views) -> int:
        """Nothing is ever there: frames come with `receive`."""
        return 0

    def detach(self) -> None:
        """Pull the plug; frames that are under way to the receiver are dropped and counted."""
        super().detach()
        self._rx.forget("no_receiver")

    def close(self) -> None:
        """Drop what is under way, and close the inner link."""
        self._tx.forget("closed")
        self._rx.forget("closed")
        super().close()
