"""What a program is given: its process, its guest, and the few calls that it needs of them.

A program is a function `main(env, argv) -> int`: `argv` is its arguments without its name, and the result its exit
status. Programs block only through `env`. Times are microseconds of the guest's clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from guest.sys.scheduler import Process, WaitQueue

if TYPE_CHECKING:
    from guest.kernel import Guest
    from guest.sys.calls import Calls

SECOND = 1_000_000


class Env:
    """The surroundings of one program.

    Attributes:
        guest: the guest that it runs on.
        process: its process, set before it runs.
    """

    __slots__ = ("_happened", "_queue", "guest", "process")

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.process: Process
        self._queue = WaitQueue(guest.scheduler)
        self._happened = False

    @property
    def calls(self) -> Calls:
        """The system calls."""
        return self.guest.calls

    def print(self, text: str = "") -> None:
        """Write a line to the console."""
        self.guest.log.print(text)

    def now(self) -> int:
        """Microseconds since power-on."""
        return self.guest.platform.now()

    def sleep(self, duration: int) -> None:
        """Block for `duration` microseconds; 0 lets the others have a slice first."""
        self.guest.scheduler.sleep(duration)

    def receive(self, timeout: int | None = None) -> object | None:
        """The next message in the program's mailbox; None when `timeout` microseconds have passed."""
        return self.guest.scheduler.receive(timeout)

    def wake(self) -> None:
        """Something happened that `wait` may be waiting for; what a program hands out as a callback."""
        self._happened = True
        self._queue.wake()

    def wait(self, ready: Callable[[], bool] | None = None, timeout: int | None = None) -> bool:
        """Block until `ready()` is true, which is asked again at each `wake`; without `ready`, until the next `wake`
        since the last wait. Whether that came before `timeout` microseconds had passed.
        """
        deadline = None if timeout is None else self.now() + timeout
        while True:
            happened, self._happened = self._happened, False
            if ready() if ready is not None else happened:
                return True
            left = None if deadline is None else deadline - self.now()
            if left is not None and left <= 0:
                return False
            self._queue.wait(left)


Program: TypeAlias = Callable[[Env, list[Any]], int | None]
