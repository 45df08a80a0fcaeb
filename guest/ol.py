"""Raw outlets: whole Ethernet frames between a front end and a program, past the IP stack.

As LING's `vif` ports: `open("eth1")` attaches an outlet to FE/1, the owner gets `(outlet, ("data", frame))` for every
frame received there, and sends with `outlet.send(frame)`.

Promises:
- One outlet at a front end: a second one steals the place, with a log line. A robbed outlet stays its owner's, gets no
  frames, and closing it never touches the thief.
- With `mailbox_limit` N above 0 a frame is dropped and counted while the owner's mailbox holds N messages or more; 0 is
  no limit.
- A failed open leaves nothing behind. Opening an outlet elsewhere detaches it first. The end of its owner closes it.
- Sending before it is open, or more than a frame, closes it: the owner gets `(outlet, ("closed", reason))`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from guest.fe import FrontEnd
from guest.net.pbuf import Buffer, PacketBuffer
from guest.sys.scheduler import Process, Scheduler

Reason = Literal["normal", "bad_arg", "too_long", "stolen", "owner_exit"]

MAILBOX_LIMIT = 1024

_NAME = re.compile(r"eth(0|[1-9][0-9]*)", re.ASCII)


class OutletError(Exception):
    """An outlet cannot be opened or changed. `reason` is "badarg" (the arguments are wrong) or "einval" (there is no
    such front end)."""

    def __init__(self, reason: Literal["badarg", "einval"], text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason


class RawOutlet:
    """One outlet; made by `Outlets`.

    Attributes:
        number: unique in its guest.
        owner: the process that gets the frames.
        fe: the front end it is attached to, or None.
        closed: why it was closed, or None.
        counters: `rx_packets`, `rx_dropped_mailbox_full`, `tx_packets`, `tx_dropped`.
    """

    def __init__(self, number: int, owner: Process, mailbox_limit: int, table: Outlets) -> None:
        self.number = number
        self.owner = owner
        self.mailbox_limit = mailbox_limit
        self.fe: FrontEnd | None = None
        self.closed: Reason | None = None
        self.counters: Counter[str] = Counter()
        self._robbed = False
        self._table = table

    def __repr__(self) -> str:
        return f"outlet#{self.number} of {self.owner.name}[{self.owner.pid}]"

    # -- for the owner -------------------------------------------------------------------------------------------

    def open(self, name: str) -> None:
        """Attach to the front end `name`; from another one it is detached first, from its own only once.

        Raises OutletError, with the outlet as it was.
        """
        if self.closed is not None:
            raise OutletError("badarg", f"{self} is closed")
        fe = self._table.find(name)
        if self.fe is not None and self.fe is not fe:
            self.fe.unbind_ol(self)
        self.fe = fe
        self._robbed = False
        fe.bind_ol(self)

    def send(self, frame: Buffer) -> bool:
        """Send one whole Ethernet frame; False when it was dropped, or when the outlet closed because of it."""
        if self.closed is not None:
            return False
        fe = self.fe
        if not isinstance(frame, bytes | bytearray | memoryview):
            self.close("bad_arg")
        elif fe is None:
            self.close("stolen" if self._robbed else "bad_arg")
        elif len(frame) > fe.frame_max:
            self.close("too_long")
        else:
            taken = fe.transmit([PacketBuffer.from_bytes(frame)], "ol")
            self.counters["tx_packets" if taken else "tx_dropped"] += 1
            return taken == 1
        return False

    def set_mailbox_limit(self, limit: int) -> None:
        """Change the limit; 0 is none. Raises OutletError for a negative one."""
        self.mailbox_limit = _checked(limit)

    def connect(self, owner: Process) -> None:
        """Give the outlet to another process. Raises OutletError when it is closed or that process has ended."""
        if self.closed is not None or not owner.alive:
            raise OutletError("badarg", f"{self} cannot be given to {owner.name}[{owner.pid}]")
        self.owner.on_exit.remove(self._owner_ended)
        self.owner = owner
        owner.on_exit.append(self._owner_ended)

    def close(self, reason: Reason = "normal") -> None:
        """Detach and forget it; harmless when it is closed. For every reason but "normal" the owner is told."""
        if self.closed is not None:
            return
        self.closed = reason
        if self.fe is not None:
            self.fe.unbind_ol(self)
            self.fe = None
        if self._owner_ended in self.owner.on_exit:
            self.owner.on_exit.remove(self._owner_ended)
        self._table.forget(self)
        if reason != "normal" and self.owner.alive:
            self._table.scheduler.send(self.owner, (self, ("closed", reason)))

    # -- for the front end ---------------------------------------------------------------------------------------

    def accepts(self, count: int) -> int:
        """How many of `count` frames the owner's mailbox has room for."""
        if self.mailbox_limit:
            room = max(0, self.mailbox_limit - len(self.owner.mailbox))
            if room < count:
                self.counters["rx_dropped_mailbox_full"] += count - room
                return room
        return count

    def input(self, frames: Sequence[bytes]) -> None:
        """Mail the frames to the owner."""
        send = self._table.scheduler.send
        owner = self.owner
        self.counters["rx_packets"] += len(frames)
        for frame in frames:
            send(owner, (self, ("data", frame)))

    def robbed(self) -> None:
        """Another outlet sits at the front end now."""
        self.fe = None
        self._robbed = True

    def _owner_ended(self, _owner: Process) -> None:
        self.close("owner_exit")


def _checked(limit: int) -> int:
    if limit < 0:
        raise OutletError("badarg", f"a mailbox limit of {limit} is below 0")
    return limit


class Outlets:
    """The outlets of one guest.

    Args:
        fes: the guest's front ends, by index; the list may still grow.
        scheduler: whose processes own the outlets.
        log: writes one line to the log.
    """

    def __init__(self, fes: Sequence[FrontEnd], scheduler: Scheduler, log: Callable[[str], None]) -> None:
        self._fes = fes
        self.scheduler = scheduler
        self._log = log
        self._outlets: dict[int, RawOutlet] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._outlets)

    def __iter__(self) -> Iterator[RawOutlet]:
        return iter(list(self._outlets.values()))

    def make(self, owner: Process, mailbox_limit: int = MAILBOX_LIMIT) -> RawOutlet:
        """An outlet that is not open yet. Raises OutletError when `owner` has ended or the limit is negative."""
        if not owner.alive:
            raise OutletError("badarg", f"{owner.name}[{owner.pid}] has ended and cannot own an outlet")
        outlet = RawOutlet(self._last + 1, owner, _checked(mailbox_limit), self)
        self._last += 1
        self._outlets[outlet.number] = outlet
        owner.on_exit.append(outlet._owner_ended)
        return outlet

    def open(self, name: str, *, owner: Process, mailbox_limit: int = MAILBOX_LIMIT) -> RawOutlet:
        """An outlet of `owner` at the front end `name`. Raises OutletError, and then nothing is left behind."""
        outlet = self.make(owner, mailbox_limit)
        try:
            outlet.open(name)
        except OutletError:
            outlet.close()
            raise
        return outlet

    def find(self, name: str) -> FrontEnd:
        """The front end `name`. Raises OutletError: badarg for another form of name, einval for an unknown one."""
        if not isinstance(name, str) or not (match := _NAME.fullmatch(name)):
            raise OutletError("badarg", f"{name!r} is not the name of a front end, such as eth0")
        digits = match[1]
        # A number of thousands of digits must not even be converted.
        index = int(digits) if len(digits) <= 10 else len(self._fes)
        if index >= len(self._fes):
            raise OutletError("einval", f"there is no {name[:20]}; the guest has {len(self._fes)} front ends")
        return self._fes[index]

    def forget(self, outlet: RawOutlet) -> None:
        """Called by an outlet that closes."""
        self._outlets.pop(outlet.number, None)

    def close(self) -> None:
        """Close every outlet."""
        for outlet in self:
            outlet.close()
