"""A running board from Python.

    with vring.boot(nic="virtio", wire="hub", cmdline="-ipaddr 10.0.0.1 -netmask 255.255.255.0") as machine:
        machine.run(seconds=1)
        print(machine.log, machine.rings(), machine.counters())

Promises (one thread runs a machine, its home thread):
- On the real clock the home thread is the session's own: it starts at once, builds the board, runs it, and unwinds the
  guest's processes at close. `call` is the door into it; a wait outside is ended by signals as any wait is.
- On the virtual clock the caller's thread is the home thread, and time moves only inside `run` and `run_until`.
- The other methods may be called from any thread on the real clock, and from the home thread only on the virtual one.
- `guest.socket` and `guest.select` are the standard library's modules over that guest, for any thread.
- `calls` are the first guest's system calls, for any thread, and `calls_of` those of the others (vring/door.py).
- Leaving the `with` block, or `close`, ends everything: processes, wires, captures, thread.

Sections: `boot`, `Session`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, TypeVar, cast

from guest.stdlib.modules import guest_module
from guest.stdlib.network import Network
from hw.clock import SECOND
from vring.boards import asked_for
from vring.build import Rig
from vring.config import Board, ClockName, ConfigError
from vring.door import GuestCalls, ThreadCalls, TimeCalls
from vring.home import Home, SessionError
from vring.usernet.options import Forward

if TYPE_CHECKING:
    from guest.kernel import Guest
    from hw.machine import Machine
    from vring.lookalike.names import Outside
    from vring.trace.flow import Passage
    from vring.usernet.gateway import UserNet
    from vring.view.packed import PackedSnapshot
    from vring.view.rings import QueueSnapshot

T = TypeVar("T")


def boot(
    board: Board | str | Path | None = None,
    *,
    nic: str | Sequence[str] | None = None,
    wire: str | Sequence[str] | None = None,
    cmdline: str | None = None,
    clock: ClockName | None = None,
    seed: int | None = None,
    pcap: str | Path | None = None,
    trace: Callable[[Passage], None] | None = None,
    share: str | Path | None = None,
    start: bool = True,
) -> Session:
    """Boot a board: one that is handed in, a TOML file, one that ships, or one guest described by words.

    Args:
        board: a board, a path, or the name of a board that ships, as on the command line; see `boards.asked_for` for
            what boots without one.
        nic, wire: one text or a list; the n-th wire belongs to the n-th NIC ("virtio:mtu=9000", "tap:t0", "hub:lan").
        cmdline: the guest's command line.
        clock, seed: override what the board says (otherwise "real"; for the seed see `Board.chosen_seed`).
        pcap: write what passes every NIC to this pcapng file.
        trace: told of every stage that a frame passes, in the home thread; None costs nothing.
        share: a folder of the host that the guests' programs see (`httpd` serves it, `wget` saves there).
        start: power on at once; otherwise `start()` does.

    Raises ConfigError for a board that cannot be, `hw.wire.link.WireError` for a wire that cannot be made.
    """
    nics = [nic] if isinstance(nic, str) else list(nic or [])
    wires = [wire] if isinstance(wire, str) else list(wire or [])
    board = asked_for(board, nics, wires, cmdline, virtual=clock == "virtual")
    board = replace(
        board, clock=board.clock if clock is None else clock, seed=board.seed if seed is None else seed
    )
    session = Session(board, pcap=pcap, trace=trace, share=share)
    if start:
        session.start()
    return session


class Session:
    """A board that is built and may be running. Use it as a context manager, or call `close`."""

    def __init__(
        self, board: Board, *, pcap: str | Path | None = None, trace: Callable[[Passage], None] | None = None,
        share: str | Path | None = None,
    ) -> None:  # fmt: skip
        self._lines: list[str] = []
        self._closed = False
        self._home: Home | None = None
        board.check()
        self.board = board

        def listen(guest: str, line: str) -> None:
            self._lines.append(f"{guest} | {line}" if len(board.guests) > 1 else line)

        def build() -> Rig:
            return Rig(board, pcap=pcap, console=listen, trace=trace, share=share)

        self._running = False  # on the virtual clock: inside `run`
        self._doors: dict[int, GuestCalls] = {}
        if board.clock == "virtual":
            self._rig = build()
            for guest in self._rig.guests:
                door = self._doors[id(guest)] = TimeCalls(guest, self._rig.loop, lambda: self._running)
                guest.lookalikes = partial(_timed_module, door, self._rig.clock.now)
            return
        self._home = Home(build)
        self._rig = self._home.rig
        doors = [ThreadCalls(guest, self._home) for guest in self._rig.guests]
        self._doors = {id(guest): door for guest, door in zip(self._rig.guests, doors, strict=True)}
        self._outsides: dict[int, Outside] = {}
        for guest in self._rig.guests:
            guest.lookalikes = lambda name, guest=guest: getattr(self.outside_of(guest), name)

        def look() -> None:
            for guest, door in zip(self._rig.guests, doors, strict=True):
                door.after_turn()
                if guest.halted and id(guest) in self._outsides:
                    self._outsides[id(guest)].host.mirrors.end()

        self._home.after_turn = look

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
    def calls(self) -> GuestCalls:
        """The first guest's system calls: sockets for host threads."""
        return self.calls_of(self.guest)

    def calls_of(self, guest: Guest | str) -> GuestCalls:
        """The system calls of a guest, or of the one with this name. Raises KeyError for a name that is not here."""
        for each in self._rig.guests:
            if each is guest or each.name == guest:
                return self._doors[id(each)]
        raise KeyError(f"there is no guest {guest!r}; there are {', '.join(each.name for each in self._rig.guests)}")

    def outside_of(self, guest: Guest) -> Outside:
        """The look-alikes of a guest for threads of the host. Raises SessionError on the virtual clock."""
        home = self._home
        if home is None:
            raise SessionError("on the virtual clock there are no threads and no descriptors of the host")

        def make() -> Outside:
            if id(guest) not in self._outsides:
                from vring.lookalike.names import Outside  # noqa: PLC0415 - few sessions need it

                self._outsides[id(guest)] = Outside(guest, home, cast("ThreadCalls", self._doors[id(guest)]))
            return self._outsides[id(guest)]

        return self.call(make)

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

    def rings(self) -> list[QueueSnapshot | PackedSnapshot]:
        """Every queue that is ready, decoded from a copy of its memory."""
        return self.call(self._rig.rings)

    def counters(self) -> dict[str, dict[str, Counter[str]]]:
        """A copy of all counters: guest name → layer → counter."""
        return self.call(self._rig.counters)

    # -- user wires ------------------------------------------------------------------------------------------------

    @property
    def user_nets(self) -> dict[str, UserNet]:
        """What is behind the user wires, by guest and card. To be changed in the home thread only (`call`)."""
        return self._rig.user_nets

    def hostfwds(self, card: str | None = None) -> list[Forward]:
        """What a user wire forwards to its guest; see `hostfwd_add`."""
        net = self._user_net(card)
        return self.call(lambda: net.forwards.rules)

    def hostfwd_add(self, rule: str, card: str | None = None) -> Forward:
        """Forward from the host to the guest from now on: `tcp::8080-:80`. The rule with the port that it got.

        Args:
            card: of which user wire, such as "guest.eth0"; the first by default.

        Raises ConfigError for a rule that is none or a board without user wire, WireError where the host does not let
        us listen.
        """
        net = self._user_net(card)
        try:
            return self.call(lambda: net.forwards.add(rule))
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def hostfwd_remove(self, rule: str, card: str | None = None) -> bool:
        """Stop a forward, named by its host side: `tcp::8080`; connections go on. Whether there was one.

        Raises ConfigError as `hostfwd_add` does.
        """
        net = self._user_net(card)
        try:
            return self.call(lambda: net.forwards.remove(rule))
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _user_net(self, card: str | None) -> UserNet:
        nets = self._rig.user_nets
        if not nets:
            raise ConfigError("the board has no user wire; give a card one with --wire user")
        if card is None:
            return next(iter(nets.values()))
        if card not in nets:
            raise ConfigError(f"there is no user wire at {card!r}; there are {', '.join(nets)}")
        return nets[card]

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
        self._running = True
        try:
            return self._rig.loop.run(until=predicate, deadline=deadline) or predicate()
        finally:
            self._running = False

    def close(self) -> None:
        """Unwind the guests' processes, close wires and captures, end the home thread. Harmless when closed."""
        if self._closed:
            return
        if self._home is not None:
            self._home.post(self._end_mirrors)
        self._closed = True
        if self._home is not None:
            self._home.close()
        else:
            self._rig.close()

    def _end_mirrors(self) -> None:
        for outside in self._outsides.values():
            outside.host.mirrors.end()


def _timed_module(door: TimeCalls, now: Callable[[], int], name: str) -> ModuleType:
    """A look-alike on the virtual clock, where integers are the guest's descriptors."""
    network = Network(door, now)
    return guest_module(name, lambda: network)
