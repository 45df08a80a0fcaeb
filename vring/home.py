"""The home thread of a session on the real clock, and the way into it.

A request goes into a deque and the loop is woken through its eventfd; the loop looks at the deque once a turn, in
`until`, so no lock is held while guests run. Whoever asked sleeps on a lock until the home thread releases it. A signal
ends that sleep as it ends any other; nothing of the machine ever runs in the thread that asked, so a signal handler
that raises cannot leave the machine half-way. (An Event would not do: its own lock is taken in Python code, and a
handler that raises there leaves it taken, with the home thread waiting for it.)

An answer may be something that must not get lost, such as a new descriptor. CPython runs signal handlers where a
function in Python begins, where a call of one in C has returned, and where a loop goes round, and nowhere else (3.11 to
3.13). So an answer is either with `Home.ask` while a handler runs, and taken back if that raises, or it passes no such
place until it is in the hands of the Python code that made the call. (Code in C that calls us, such as `map` or a
`partial`, returns through one, and an answer can be lost there just as what `os.dup` returns can be.) And to ask for
taking back is the first call that is made after a handler has raised: another one can put it off to the next turn of
the loop, but not prevent it.

Sections: `Wait` (one request), `Home`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from vring.build import Rig

T = TypeVar("T")

CANCEL_TIME = 5.0  # seconds that a request which was given up may take to end


class SessionError(RuntimeError):
    """The session is closed, or its home thread has died; the cause is attached."""


def this_thread() -> int:
    """Which thread this is."""
    return threading.get_ident()


class Wait:
    """Something asked of the home thread: what it returned or raised, and a sleep until then.

    Only the home thread answers, and one thread sleeps.
    """

    def __init__(self) -> None:
        self.answered = False
        self.abandoned = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.among: dict[Wait, None] | None = None  # those who wait for the home thread
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def answer(self, value: object = None, error: BaseException | None = None) -> None:
        """Wake whoever waits; only the first answer counts."""
        if not self.answered:
            self.value = value
            self.error = error
            self.answered = True
            if self.among is not None:
                self.among.pop(self, None)
            self._asleep.release()

    def sleep(self, timeout: float = -1) -> None:
        """Sleep until there is an answer, or for `timeout` seconds. Raises what a signal handler raises meanwhile."""
        if not self.answered:
            self._asleep.acquire(timeout=timeout)

    def result(self) -> Any:
        """What the answer was, or raise it."""
        if self.error is not None:
            raise self.error
        return self.value


class Home:
    """The thread that runs a rig.

    Args:
        build: makes the rig; it is called in the thread.

    Attributes:
        rig: what it made.
        after_turn: called in the home thread after each turn of the loop.
    """

    def __init__(self, build: Callable[[], Rig]) -> None:
        self.after_turn: Callable[[], None] | None = None
        self._requests: deque[Callable[[], None]] = deque()
        self._watches: list[tuple[Callable[[], bool], int | None, Wait]] = []
        built = Wait()
        self._open: dict[Wait, None] = {built: None}  # whoever waits for this thread, told when it ends
        built.among = self._open
        self._closing = False
        self._process = os.getpid()
        self._dead: BaseException | None = None
        self._lock = threading.RLock()  # a signal handler may come in while its own thread holds it
        # A daemon, so that a session nobody closed does not keep the program from ending.
        self._thread = threading.Thread(target=self._main, args=(build, built), name="vring-home", daemon=True)
        self._thread.start()
        built.sleep()
        self.rig: Rig = built.result()

    # -- in the home thread --------------------------------------------------------------------------------------

    def _main(self, build: Callable[[], Rig], built: Wait) -> None:
        try:
            rig = build()
        except BaseException as error:
            self._dead = error
            built.answer(error=error)
            return
        built.answer(rig)
        try:
            while not self._closing:
                rig.loop.run(until=self._serve)
        except BaseException as error:
            self._dead = error
        with self._lock:  # nobody may wake a loop that is being closed
            self._closing = True
            waits = list(self._open)
        try:
            rig.close()
        except BaseException as error:
            self._dead = self._dead or error
        for wait in waits:
            ended = SessionError("the session ended before the answer came")
            ended.__cause__ = self._dead
            wait.answer(error=ended)

    def _serve(self) -> bool:
        """Answer requests and look at the watches; whether the thread must end."""
        while self._requests:
            self._requests.popleft()()
        if self.after_turn is not None:
            self.after_turn()
        if self._watches:
            now = self.rig.clock.now()
            for watch in list(self._watches):
                predicate, deadline, wait = watch
                if wait.abandoned:
                    self._watches.remove(watch)
                    continue
                true = False
                try:
                    true = bool(predicate())
                except BaseException as error:
                    wait.answer(error=error)
                if true or (deadline is not None and now >= deadline):
                    wait.answer(true)
                if wait.answered:
                    self._watches.remove(watch)
        return self._closing

    # -- in other threads ----------------------------------------------------------------------------------------

    @property
    def is_here(self) -> bool:
        """Whether this is the home thread."""
        return threading.current_thread() is self._thread

    @property
    def ended(self) -> bool:
        """Whether the thread has ended, or is about to."""
        return self._closing or self._dead is not None

    def ask(self, request: Callable[[], None], wait: Wait, cancel: Callable[[], None] | None = None) -> Any:
        """Have the home thread call `request`, and sleep until somebody answers `wait`; what the answer is.

        When a signal handler raises in here, `cancel` is called in the home thread, also if the answer has come and
        now reaches nobody; what was raised goes on after that. Raises SessionError when the home thread has ended.
        """
        undone = Wait()

        def undo() -> None:
            if cancel is not None:
                cancel()
            wait.abandoned = True
            wait.answer()
            undone.answer()

        try:
            with self._lock:
                if self._closing:
                    raise SessionError("the home thread of this session has ended") from self._dead
                if os.getpid() != self._process:
                    raise SessionError("this process was forked from the one that has the home thread of this session")
                self._open[wait] = None
                wait.among = self._open
                self._requests.append(request)
                self.rig.loop.wake()
            wait.sleep()
        except BaseException:
            self._requests.append(undo)  # first of all: until a call has returned, no further handler runs
            if self._wake() and cancel is not None:
                undone.sleep(CANCEL_TIME)
            raise
        # From here on nothing is called and nothing loops: see the top.
        if wait.error is not None:
            raise wait.error
        return wait.value

    def _wake(self) -> bool:
        """Have the home thread look at the requests; False when it has ended, and nobody will."""
        with self._lock:
            if not self._closing:
                self.rig.loop.wake()
            return not self._closing

    def post(self, request: Callable[[], None]) -> None:
        """Have the home thread call `request` some time, unless it ends before; the garbage collector may call this."""
        if os.getpid() == self._process:
            self._requests.append(request)
            self._wake()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the home thread; what it returns or raises."""
        if self.is_here:
            return function()
        wait = Wait()

        def request() -> None:
            try:
                wait.answer(function())
            except BaseException as error:
                wait.answer(error=error)

        answer: T = self.ask(request, wait)
        return answer

    def run_until(self, predicate: Callable[[], bool], duration: int | None) -> bool:
        """Wait until `predicate()` is true in the home thread, or for `duration` microseconds; whether it is true."""
        if self.is_here:
            raise SessionError("the home thread cannot wait for itself")
        wait = Wait()

        def request() -> None:
            clock = self.rig.clock
            deadline = None if duration is None else clock.now() + duration
            if deadline is not None:
                clock.at(deadline, lambda: None)  # the loop must look at that time
            self._watches.append((predicate, deadline, wait))

        answer: bool = self.ask(request, wait)
        return answer

    def close(self) -> None:
        """End the thread and wait for it. Raises what it died of. In a forked process there is nothing to end."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if not self._closing:
                self._closing = True
                self.rig.loop.stop()
        if not self.is_here:
            self._thread.join()
        if self._dead is not None:
            raise SessionError("the session's home thread died") from self._dead
