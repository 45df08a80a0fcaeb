"""The door for host threads: a guest's system calls, for any thread of this process.

    with vring.boot(cmdline="-ipaddr 10.0.0.1 -netmask 255.255.255.0", wire="tap:t0") as machine:
        fd = machine.calls.socket(AF_INET, SOCK_DGRAM)
        machine.calls.sendto(fd, b"hello", ("10.0.0.2", 7))
        data, peer = machine.calls.recvfrom(fd, 2048)  # sleeps in this thread; the machine runs on

Every call of `guest.sys.calls.Calls` is there, with the same arguments, results and errors.

Promises, on the real clock:
- Any number of threads may call at once. A call that may block runs as a guest process of its own in the home thread,
  so it waits as a program's does; the thread that made it sleeps until the home thread wakes it.
- A signal ends the sleep. If its handler raises (KeyboardInterrupt), at whatever moment, the call is taken back in the
  guest before that goes on: what arrives later is for the next call, and a descriptor that the call has made is closed.
  (In CPython, for calls made by Python code; how that is done, and what C code gets instead, is in vring/home.py.)
- `close` (and `dup2` onto another descriptor) ends the calls of other host threads that are under way on that
  descriptor with OSError EBADF. A guest process that is blocked on it goes on, as on Linux, and so does a poll or
  select that has the descriptor among others.
- When the guest halts or the session ends, calls under way end with OSError ECANCELED, and later ones likewise.
- A call made before the guest has booted waits for that, as the guest's own programs do (with -dhcp, for a lease).

On the virtual clock only the thread that made the session may call, and a call that blocks lets virtual time pass; one
that nothing can ever end raises OSError EDEADLK. While something in the guest sets timers for ever (a DHCP client
without a server, say), there is always something left to happen: give such a call a timeout.

Sections: `GuestCalls` (what is common), `ThreadCalls` (real clock), `TimeCalls` (virtual clock).
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

from guest.sys.calls import Calls
from guest.sys.poll_calls import Epoll
from vring.home import Home, SessionError, Wait, this_thread

if TYPE_CHECKING:
    from guest.kernel import Guest
    from guest.sys.poll_calls import PollCalls
    from guest.sys.scheduler import Process
    from hw.loop import Loop

# Calls that never wait, and so need no process.
AT_ONCE = frozenset((
    "adopt", "dup", "epoll_create1", "epoll_ctl", "fcntl", "get_timeout", "gethostname", "getipaddr", "getpeername",
    "getsockname", "getsockopt", "if_addrs", "if_indextoname", "if_nameindex", "if_nametoindex", "listen",
    "poll_subscribe", "poll_unsubscribe", "routes", "set_timeout", "sethostname", "setsockopt", "shutdown", "socket",
))  # fmt: skip
OWN_PROCESS = frozenset(("interrupt", "sigmask"))  # about the calling process, which a host thread is not
CLOSING = frozenset(("close", "close_all", "dup2"))
MAKING = frozenset(("accept", "adopt", "dup", "epoll_create1", "socket"))  # a descriptor, or it and more


def _failed(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _in_order(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments in the order of the call's parameters. Raises TypeError as the call would."""
    if not kwargs:
        return args
    return tuple(signature(getattr(Calls, name)).bind(None, *args, **kwargs).arguments.values())[1:]


class GuestCalls(ABC):
    """The system calls of `guest`, as attributes."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name in OWN_PROCESS or not callable(getattr(Calls, name, None)):
            raise AttributeError(f"there is no system call {name!r}")

        def call(*args: Any, **kwargs: Any) -> Any:  # no `partial`: see vring/home.py about what must not get lost
            return self._call(name, args, kwargs)

        return call

    def epoll(self, flags: int = 0) -> Epoll:
        """A new epoll set, as an object whose methods may be called from where this may be."""
        fd = self.epoll_create1(flags)
        try:
            made = _Epoll(cast("PollCalls", self), fd)
        except BaseException:
            self.close(fd)
            raise
        return made

    @abstractmethod
    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do the call."""


class _Epoll(Epoll):
    """An epoll set whose descriptor is closed through the door."""

    def close(self) -> None:
        """Give the descriptor back; harmless when done before."""
        if not self.closed:
            fd, self._fd = self._fd, -1
            self._calls.close(fd)  # type: ignore[attr-defined]  # it is a GuestCalls, which has every call


class _Job:
    """A call under way as a guest process."""

    def __init__(self, name: str, values: Sequence[Any], wait: Wait) -> None:
        self.name = name
        self.fd = values[0] if values and isinstance(values[0], int) else None  # what it works on
        self.closes = self.fd if name == "close" else None
        if name == "dup2" and len(values) > 1 and values[1] != values[0]:
            self.closes = values[1]
        self.wait = wait
        self.process: Process | None = None
        self.taken_back = False


class ThreadCalls(GuestCalls):
    """The calls of a guest whose machine has a home thread.

    Attributes:
        after_call: told in the home thread on which descriptor a call has worked, before its caller hears of it.
        last: the thread that ends the program, once one does. Calls of any other never come back from then on: threads
            that outlive their program do not run on, and hear of no errors.
    """

    def __init__(self, guest: Guest, home: Home) -> None:
        super().__init__(guest)
        self._home = home
        self.after_call: Callable[[int], None] | None = None
        self.last: int | None = None
        self._jobs: dict[_Job, None] = {}
        self._early: list[Callable[[], None]] = []  # asked for before the guest has booted

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        home = self._home
        if home.is_here:
            return getattr(self._guest.calls, name)(*args, **kwargs)
        wait = Wait()
        job = _Job(name, _in_order(name, args, kwargs), wait)
        try:
            value = home.ask(lambda: self._begin(job, args, kwargs), wait, lambda: self._take_back(job))
        except SessionError as error:
            self.hold()
            raise _failed(errno.ECANCELED) from error
        except OSError:
            self.hold()
            raise
        if self.last is not None:  # asked here, not there: a signal's handler could run as a function begins
            self.hold()
        return value

    def hold(self) -> None:
        """Keep a thread that outlives its program."""
        while self.last not in (None, this_thread()):
            Wait().sleep()

    # -- in the home thread --------------------------------------------------------------------------------------

    def _begin(self, job: _Job, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        guest = self._guest
        if job.taken_back:
            return
        if guest.halted:
            job.wait.answer(error=_failed(errno.ECANCELED))
        elif not guest.booted:
            self._early.append(lambda: self._begin(job, args, kwargs))
        elif job.name in AT_ONCE or job.name in CLOSING:
            self._run(job, args, kwargs)
            if job.name in CLOSING and job.wait.error is None:
                self._closed(job)
        else:
            self._jobs[job] = None
            job.process = guest.scheduler.spawn(lambda: self._run(job, args, kwargs), f"host {job.name}")
            job.process.on_exit.append(lambda _process: self._ended(job))

    def _run(self, job: _Job, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            value = getattr(self._guest.calls, job.name)(*args, **kwargs)
        except Exception as error:
            self._tell(job)
            job.wait.answer(error=error)
        else:
            if job.taken_back:
                self._discard(job, value)
            self._tell(job)
            job.wait.answer(value)

    def _tell(self, job: _Job) -> None:
        if self.after_call is not None and job.fd is not None:
            self.after_call(job.fd)

    def close_here(self, fd: int) -> None:
        """What `close` does, for callers in the home thread. Raises OSError: EBADF."""
        self._guest.calls.close(fd)
        self._closed(_Job("close", (fd,), Wait()))

    def _ended(self, job: _Job) -> None:
        """The process of a call is over; one that was killed has not answered."""
        self._jobs.pop(job, None)
        job.wait.answer(error=_failed(errno.ECANCELED))

    def _closed(self, closing: _Job) -> None:
        """A descriptor was closed: calls of other threads on it are over."""
        for job in list(self._jobs):
            if closing.name == "close_all" or (job.fd is not None and job.fd == closing.closes):
                job.wait.answer(error=_failed(errno.EBADF))
                self._kill(job)

    def _take_back(self, job: _Job) -> None:
        """Whoever made a call does not wait for it any more."""
        job.taken_back = True
        if job.wait.answered:
            self._discard(job, job.wait.value)
        elif job in self._jobs:
            self._kill(job)
        else:
            job.wait.answer(error=_failed(errno.ECANCELED))

    def _discard(self, job: _Job, value: Any) -> None:
        """Nobody will ever know the descriptor that a call made."""
        if job.name in MAKING and value is not None:
            fd = value[0] if isinstance(value, tuple) else value
            if fd in self._guest.calls.fds:
                self._guest.calls.close(fd)

    def _kill(self, job: _Job) -> None:
        if job.process is not None:
            self._guest.scheduler.kill(job.process)

    def after_turn(self) -> None:
        """Once a turn: calls that waited for the boot begin, and those of a guest that has halted end."""
        guest = self._guest
        if self._early and (guest.booted or guest.halted):
            early, self._early = self._early, []
            for begin in early:
                begin()
        if self._jobs and guest.halted:
            for job in list(self._jobs):
                self._kill(job)


class TimeCalls(GuestCalls):
    """The calls of a guest on the virtual clock."""

    def __init__(self, guest: Guest, loop: Loop, running: Callable[[], bool]) -> None:
        super().__init__(guest)
        self._loop = loop
        self._running = running
        self._thread = this_thread()

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guest = self._guest
        if this_thread() != self._thread:
            raise SessionError("on the virtual clock only the thread that made the session may call the guest")
        if not guest.booted:
            self._block(lambda: guest.booted or guest.halted, None)
        if guest.halted:
            raise _failed(errno.ECANCELED)
        guest.calls.block = self._block
        return getattr(guest.calls, name)(*args, **kwargs)

    def _block(self, ready: Callable[[], bool], timeout: int | None) -> bool:
        """Let time pass until `ready()`, or for `timeout` microseconds; whether it is so."""
        if ready():
            return True
        if self._running():
            raise SessionError("a call from inside the running machine cannot let its time pass")
        loop, guest = self._loop, self._guest
        deadline = None if timeout is None else loop.clock.now() + timeout
        loop.run(until=lambda: ready() or guest.halted, deadline=deadline)
        if ready():
            return True
        if guest.halted:
            raise _failed(errno.ECANCELED)
        if deadline is None:
            raise _failed(errno.EDEADLK)  # nothing is left that could happen
        return False
