"""A running board from Python.

    with vring.boot(nic="virtio", wire="hub", cmdline="-ipaddr 10.0.0.1 -netmask 255.255.255.0") as machine:
        machine.run(seconds=1)
        print(machine.log, machine.rings(), machine.counters())

Promises (one thread runs a machine, its home thread):
- On the real clock the home thread is the session's own: it starts at once, builds the board, runs it, and unwinds the
  guest's processes at close. `call` is the door into it; a wait outside is ended by signals as any wait is.
- On the virtual clock the caller's thread is the home thread, and time moves only inside `run` and `run_until`.
- The other methods may be called from any thread on the real clock, and from the home thread only on the virtual one.
- Leaving the `with` block, or `close`, ends everything: processes, wires, captures, thread.

Sections: `boot`, `Session`, `_Home` (the thread and its door).
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from hw.clock import SECOND
from vring.build import Rig
from vring.config import Board, ClockName

if TYPE_CHECKING:
    from guest.kernel import Guest
    from hw.machine import Machine
    from vring.view.rings import QueueSnapshot

T = TypeVar("T")


class SessionError(RuntimeError):
    """The session is closed, or its home thread has died; the cause is attached."""


def boot(
    board: Board | str | Path | None = None,
    *,
    nic: str | Sequence[str] | None = None,
    wire: str | Sequence[str] | None = None,
    cmdline: str | None = None,
    clock: ClockName | None = None,
    seed: int | None = None,
    pcap: str | Path | None = None,
    start: bool = True,
) -> Session:
    """Boot a board: one that is handed in, a TOML file, or one guest described by words as on the command line.

    Args:
        nic, wire: one text or a list; the n-th wire belongs to the n-th NIC ("virtio:mtu=9000", "tap:t0", "hub:lan").
        cmdline: the guest's command line.
        clock, seed: override what the board says ("real" and 0 otherwise).
        pcap: write what passes every NIC to this pcapng file.
        start: power on at once; otherwise `start()` does.

    Raises ConfigError for a board that cannot be, `hw.wire.link.WireError` for a wire that cannot be made.
    """
    nics = [nic] if isinstance(nic, str) else list(nic or [])
    wires = [wire] if isinstance(wire, str) else list(wire or [])
    if board is None:
        board = Board.of_words(nics, wires, cmdline or "")
    else:
        board = board if isinstance(board, Board) else Board.load(board)
        board = board.with_words(nics, wires, cmdline)
    board = replace(
        board, clock=board.clock if clock is None else clock, seed=board.seed if seed is None else seed
    )
    session = Session(board, pcap=pcap)
    if start:
        session.start()
    return session


class Session:
    """A board that is built and may be running. Use it as a context manager, or call `close`."""

    def __init__(self, board: Board, *, pcap: str | Path | None = None) -> None:
        self._lines: list[str] = []
        self._closed = False
        self._home: _Home | None = None
        board.check()
        self.board = board

        def listen(guest: str, line: str) -> None:
            self._lines.append(f"{guest} | {line}" if len(board.guests) > 1 else line)

        def build() -> Rig:
            return Rig(board, pcap=pcap, console=listen)

        if board.clock == "virtual":
            self._rig = build()
        else:
            self._home = _Home(build)
            self._rig = self._home.rig

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what there is -------------------------------------------------------------------------------------------

    @property
    def machines(self) -> list[Machine]:
        """One machine a guest, in the order of the board."""
        return self._rig.machines

    @property
    def guests(self) -> list[Guest]:
        """The guests, in the order of the board. Change them in the home thread only (`call`)."""
        return self._rig.guests

    @property
    def guest(self) -> Guest:
        """The first guest."""
        return self._rig.guests[0]

    @property
    def console(self) -> str:
        """All that the guests have logged and printed, in order; with several guests each line names its guest."""
        return "".join(line + "\n" for line in list(self._lines))

    @property
    def log(self) -> str:
        """The first guest's boot log."""
        return self.guest.log.text()

    @property
    def halted(self) -> bool:
        """Whether every guest that has start programs has halted."""
        return self._rig.done()

    @property
    def exit_status(self) -> int:
        """The largest exit status of the guests."""
        return self._rig.exit_status

    def now(self) -> int:
        """Microseconds of the board's clock."""
        return self._rig.clock.now()

    def rings(self) -> list[QueueSnapshot]:
        """Every queue that is ready, decoded from a copy of its memory."""
        return self.call(self._rig.rings)

    def counters(self) -> dict[str, dict[str, Counter[str]]]:
        """A copy of all counters: guest name → layer → counter."""
        return self.call(self._rig.counters)

    # -- running -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Power the machines on; harmless when they are."""
        self.call(self._rig.power_on)

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the home thread between two turns, and return or raise what it does.

        Raises SessionError when the session is closed or its home thread has died.
        """
        if self._closed:
            raise SessionError("the session is closed")
        return function() if self._home is None else self._home.call(function)

    def run(self, seconds: float | None = None) -> bool:
        """Let the board run until every guest with start programs has halted, or for `seconds` of its clock.

        Returns whether they have halted. On the virtual clock it also returns when nothing can ever happen again.
        """
        return self.run_until(self._rig.done, seconds)

    def run_until(self, predicate: Callable[[], bool], seconds: float | None = None) -> bool:
        """Let the board run until `predicate()` is true, or for `seconds` of its clock; whether it is true.

        The predicate is called in the home thread, once a turn.
        """
        if self._closed:
            raise SessionError("the session is closed")
        if seconds is not None and not math.isfinite(seconds):
            raise ValueError(f"{seconds} seconds never end; leave them out for no limit")
        duration = None if seconds is None else round(seconds * SECOND)
        if self._home is not None:
            return self._home.run_until(predicate, duration)
        deadline = None if duration is None else self.now() + duration
        return self._rig.loop.run(until=predicate, deadline=deadline) or predicate()

    def close(self) -> None:
        """Unwind the guests' processes, close wires and captures, end the home thread. Harmless when closed."""
        if self._closed:
            return
        self._closed = True
        if self._home is not None:
            self._home.close()
        else:
            self._rig.close()


class _Wait:
    """Something asked of the home thread: what it returned or raised, and an event that says so."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.abandoned = False
        self.value: Any = None
        self.error: BaseException | None = None

    def result(self) -> Any:
        self.done.wait()
        if self.error is not None:
            raise self.error
        return self.value


class _Home:
    """The home thread of a session on the real clock, and the door into it.

    A request goes into a deque and the loop is woken; the loop looks at the deque once a turn, in `until`, so no
    lock is held while guests run.
    """

    def __init__(self, build: Callable[[], Rig]) -> None:
        self._requests: deque[Callable[[], None]] = deque()
        self._watches: list[tuple[Callable[[], bool], int | None, _Wait]] = []
        self._open = [_Wait()]  # whoever waits for this thread, told when it ends
        self._closing = False
        self._dead: BaseException | None = None
        self._lock = threading.Lock()
        built = self._open[0]
        # A daemon, so that a session nobody closed does not keep the program from ending.
        self._thread = threading.Thread(target=self._main, args=(build, built), name="vring-home", daemon=True)
        self._thread.start()
        self.rig: Rig = built.result()

    # -- in the home thread --------------------------------------------------------------------------------------

    def _main(self, build: Callable[[], Rig], built: _Wait) -> None:
        try:
            rig = build()
        except BaseException as error:
            built.error = error
            self._dead = error
            built.done.set()
            return
        built.value = rig
        built.done.set()
        try:
            while not self._closing:
                rig.loop.run(until=self._serve)
        except BaseException as error:
            self._dead = error
        with self._lock:  # nobody may wake a loop that is being closed
            self._closing = True
            waits, self._open = self._open, []
        try:
            rig.close()
        except BaseException as error:
            self._dead = self._dead or error
        for wait in waits:
            if not wait.done.is_set():
                wait.error = SessionError("the session ended before the answer came")
                wait.error.__cause__ = self._dead
                wait.done.set()

    def _serve(self) -> bool:
        """Answer requests and look at the watches; whether the thread must end."""
        while self._requests:
            self._requests.popleft()()
        if self._watches:
            now = self.rig.clock.now()
            for watch in list(self._watches):
                predicate, deadline, wait = watch
                if wait.abandoned:
                    self._watches.remove(watch)
                    continue
                try:
                    wait.value = bool(predicate())
                except BaseException as error:
                    wait.error = error
                if wait.value or wait.error is not None or (deadline is not None and now >= deadline):
                    self._watches.remove(watch)
                    wait.done.set()
        return self._closing

    # -- in other threads ----------------------------------------------------------------------------------------

    def _ask(self, request: Callable[[], None], wait: _Wait) -> Any:
        with self._lock:
            if self._closing:
                raise SessionError("the home thread of this session has ended") from self._dead
            self._open.append(wait)
            self._requests.append(request)
            self.rig.loop.wake()
        try:
            return wait.result()
        finally:
            wait.abandoned = True  # a signal may have ended the wait
            with self._lock:
                if wait in self._open:
                    self._open.remove(wait)

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the home thread; what it returns or raises."""
        if threading.current_thread() is self._thread:
            return function()
        wait = _Wait()

        def request() -> None:
            try:
                wait.value = function()
            except BaseException as error:
                wait.error = error
            wait.done.set()

        answer: T = self._ask(request, wait)
        return answer

    def run_until(self, predicate: Callable[[], bool], duration: int | None) -> bool:
        """Wait until `predicate()` is true in the home thread, or for `duration` microseconds; whether it is true."""
        if threading.current_thread() is self._thread:
            raise SessionError("the home thread cannot wait for itself")
        wait = _Wait()

        def request() -> None:
            clock = self.rig.clock
            deadline = None if duration is None else clock.now() + duration
            if deadline is not None:
                clock.at(deadline, lambda: None)  # the loop must look at that time
            self._watches.append((predicate, deadline, wait))

        answer: bool = self._ask(request, wait)
        return answer

    def close(self) -> None:
        """End the thread and wait for it. Raises what it died of."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self.rig.loop.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        if self._dead is not None:
            raise SessionError("the session's home thread died") from self._dead
