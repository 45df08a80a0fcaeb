"""The control queue of a network device, the driver's half: commands go out, answers come back, nobody waits.

Promises:
- A command is handed to the device as soon as there is a buffer for it, in order; `done` is told the result once it is
  there, or None where the device refused, or was reset before it answered.
- Only bytes that the device says it wrote are looked at.
- A device that leaves a command unanswered for `ANSWER_WITHIN` is reported.

Read: virtio 1.4 §5.1.9.5 (control virtqueue).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from guest.dma import DmaPool
from guest.drivers.buffers import BufferPool
from guest.ring.ring import Ring
from guest.services import Timer, Timers
from hw.abi import virtio_net_ctrl as abi

RING_SIZE = 16
SLOTS = 4  # commands that the device has at a time
COMMAND_ROOM = 1024  # bytes of a command: a table of 128 queues and a key need 309
ANSWER_ROOM = 4096  # bytes of an answer: all statistics of eight pairs need 2,241
ANSWER_WITHIN = 5_000_000  # microseconds

Done: TypeAlias = Callable[[bytes | None], None]


class _Command(NamedTuple):
    content: bytes
    result: int  # bytes behind the acknowledgement
    done: Done


class CommandQueue:
    """The control queue's buffers, and the commands on their way.

    Args:
        dma: where buffers come from.
        timers: for the time that an answer may take.
        counters: the device's: `ctrl_commands`, `ctrl_refused`, `ctrl_lost`.
        notify: rings the queue's doorbell.
        silent: called when the device does not answer.

    Raises DmaError when there is no memory.
    """

    ring: Ring[int]

    def __init__(
        self,
        dma: DmaPool,
        timers: Timers,
        counters: Counter[str],
        notify: Callable[[], None],
        silent: Callable[[], None],
    ) -> None:
        self._commands = BufferPool(dma, SLOTS, COMMAND_ROOM, "to-device")
        self._answers = BufferPool(dma, SLOTS, ANSWER_ROOM, "from-device")
        self._timers = timers
        self._counters = counters
        self._notify = notify
        self._silent = silent
        self._waiting: deque[_Command] = deque()
        self._sent: dict[int, _Command] = {}  # by slot
        self._open = False
        self._timer: Timer | None = None

    def open(self, ring: Ring[int]) -> None:
        """Use `ring`."""
        self.ring = ring
        self._open = True
        ring.enable_interrupts()

    def detach(self) -> None:
        """Forget all commands after the device was reset, and close the ring."""
        if not self._open:
            return
        self._open = False
        self._stop_timer()
        for slot in self.ring.detach():
            self._give_back(slot)
        self.ring.close()
        lost = [*self._sent.values(), *self._waiting]
        self._sent.clear()
        self._waiting.clear()
        self._counters["ctrl_lost"] += len(lost)
        for command in lost:
            command.done(None)

    def close(self) -> None:
        """Give the buffers back."""
        self._commands.close()
        self._answers.close()

    def send(self, kind: int, command: int, data: bytes = b"", *, result: int = 0, done: Done | None = None) -> None:
        """Have the device carry out a command, which must fit into `COMMAND_ROOM`.

        Args:
            kind, command: VIRTIO_NET_CTRL_*.
            data: what belongs to it.
            result: bytes of result that the answer has room for, at most `ANSWER_ROOM` less one.
            done: told the result, or None; while the device is being reset at once.
        """
        told = done or (lambda _result: None)
        if not self._open:
            told(None)
            return
        self._waiting.append(_Command(bytes((kind, command)) + data, min(result, ANSWER_ROOM - 1), told))
        self._pump()

    def _pump(self) -> None:
        """Give the device what waits, as far as there are buffers."""
        ring, waiting = self.ring, self._waiting
        while waiting and self._commands.free:
            slot = self._commands.free.pop()
            self._answers.free.remove(slot)
            command = waiting[0]
            self._commands.views[slot][: len(command.content)] = command.content
            out = [(self._commands.addresses[slot], len(command.content))]
            if not ring.add(out, [(self._answers.addresses[slot], 1 + command.result)], slot):
                self._give_back(slot)
                break
            self._sent[slot] = waiting.popleft()
            self._counters["ctrl_commands"] += 1
        if ring.publish() and ring.kick_needed():
            self._notify()
        if self._timer is None and self._sent:
            self._timer = self._timers.after(ANSWER_WITHIN, self._overdue)

    def collect(self) -> int:
        """Take answers back, and tell those who wait for them; how many there were."""
        if not self._open:
            return 0
        reaped = self.ring.reap(SLOTS)
        if not reaped:
            return 0
        self._stop_timer()
        answered: list[tuple[_Command, bytes | None]] = []
        for slot, written in reaped:
            answer = bytes(self._answers.views[slot][:written])
            self._give_back(slot)
            fine = answer[:1] == bytes((abi.VIRTIO_NET_OK,))
            self._counters["ctrl_refused"] += not fine
            answered.append((self._sent.pop(slot), answer[1:] if fine else None))
        self._pump()
        for command, result in answered:
            command.done(result)
        return len(reaped)

    def _give_back(self, slot: int) -> None:
        self._commands.give_back(slot)
        self._answers.give_back(slot)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _overdue(self) -> None:
        self._timer = None
        if not self.collect() and self._sent:
            self._silent()
