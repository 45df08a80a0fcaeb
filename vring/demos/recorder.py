"""Records every access of a machine, in order, and cuts the record into steps that a person can follow.

Promises:
- Nothing is left out: each load, store, DMA, register access and change of an interrupt line is in exactly one step.
- After each store the ring is decoded from a copy of its memory, so a step can show it as it was then.

Sections: `Access`, `Recorder` (the hook), `Step` and `cut`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from hw.memory import AccessHook, Direction, GuestMemory
from vring.view.names import FieldNames
from vring.view.queues import RingState, Snapshot
from vring.view.rings import QueueSnapshot

Kind = Literal["load", "store", "dma", "read", "write", "raise", "lower", "note", "call", "copy"]


@dataclass(slots=True)
class Access:
    """One access.

    Attributes:
        who: "driver", "device", "xen", "wire" or "program".
        kind: load and store are of memory, read and write of registers, raise and lower of an interrupt line, calls
            are of the hypervisor, which also makes copies.
        name: the field, register or buffer.
        addr, size: guest-physical address and bytes; 0 where there is none.
        old, new: the value before a store, and the value loaded, stored, read or written.
        data: for DMA and notes, the bytes that moved.
        queue: the queue after it, for stores.
        text: the value in words, where it is not the plain number.
    """

    who: str
    kind: Kind
    name: str
    addr: int = 0
    size: int = 0
    old: int = 0
    new: int = 0
    data: bytes = b""
    queue: Snapshot | None = None
    text: str = ""


class Recorder(AccessHook):
    """Listens to a machine.

    Args:
        memory: its RAM, for the bytes that DMA moved.
        names: what lies where.
        snapshot: the queue that is watched, as it is now.
    """

    def __init__(self, memory: GuestMemory, names: FieldNames, snapshot: Callable[[], Snapshot]) -> None:
        self.accesses: list[Access] = []
        self._memory = memory
        self._names = names
        self._snapshot = snapshot
        self._open: Access | None = None  # a DMA into memory whose bytes are not there yet

    def note(self, who: str, text: str, data: bytes = b"") -> None:
        """Something that happened outside of the machine."""
        self._add(Access(who, "note", text, data=data))

    def _add(self, access: Access) -> None:
        if self._open is not None:
            self._open.data = bytes(self._memory.span(self._open.addr, self._open.size))
            self._open = None
        self.accesses.append(access)

    def loaded(self, who: str, addr: int, size: int, value: int) -> None:
        self._add(Access(who, "load", self._names.name(addr, size), addr, size, value, value))

    def stored(self, who: str, addr: int, size: int, old: int, new: int) -> None:
        self._add(Access(who, "store", self._names.name(addr, size), addr, size, old, new, queue=self._snapshot()))

    def dma(self, who: str, addr: int, length: int, direction: Direction) -> None:
        access = Access(who, "dma", self._buffer(addr), addr, length)
        self._add(access)
        if direction == "to-device":
            access.data = bytes(self._memory.span(addr, length))
        else:
            access.name += " (to be written)"
            self._open = access

    def _buffer(self, addr: int) -> str:
        queue = self._snapshot()
        for index, entry in enumerate(queue.ring.desc if isinstance(queue, QueueSnapshot) else ()):
            if entry.addr == addr:
                return f"buffer of desc[{index}]"
        return self._names.name(addr, 1)

    def register(self, who: str, op: str, addr: int, size: int, value: int) -> None:
        name = self._names.name(addr, size)
        self._add(Access(who, "read" if op == "read" else "write", name, addr, size, value, value))

    def interrupt(self, line: int, level: bool) -> None:
        self._add(Access("device", "raise" if level else "lower", f"interrupt line {line}", new=int(level)))


@dataclass(slots=True)
class Step:
    """What happened in one go: a `key` that says what it is, and its accesses in order."""

    key: str
    accesses: list[Access] = field(default_factory=list)

    @property
    def who(self) -> str:
        """Which side did it."""
        return self.accesses[0].who

    @property
    def queue(self) -> Snapshot | None:
        """The queue at the end of the step, None when the step stored nothing in it."""
        queues = [access.queue for access in self.accesses if access.queue is not None]
        return queues[-1] if queues else None


def key_of(access: Access, after: frozenset[str]) -> str:
    """Which step of a frame's way an access belongs to; `after` are the keys of the steps before it.

    The driver's looks at used rings, and its words on when to interrupt, are "prepare" before the interrupt, "poll"
    after it, and "rest" once the driver has posted anew.
    """
    who, kind, name = access.who, access.kind, access.name
    if kind == "note":
        return who
    if kind == "dma":
        return "dma"
    if kind in ("read", "write"):
        return "doorbell" if name == "QUEUE_NOTIFY" else "acknowledge"
    if kind == "raise":
        return "interrupt"
    if kind == "lower":
        return "acknowledge"
    field_name = name.split(".")[0].split("[")[0]
    if who == "driver":
        if kind == "store" and field_name in ("desc", "avail") and name != "avail.flags":
            return "describe" if field_name == "desc" else "offer"
        if name in ("used.flags", "avail_event"):
            return "doorbell"
        if "acknowledge" not in after:
            return "prepare"
        return "rest" if "refilled" in after else "poll"
    if kind == "store":
        return "return" if field_name == "used" and name != "used.flags" else "ask"
    return "interrupt" if name in ("avail.flags", "used_event") else "fetch"


def cut(
    accesses: list[Access], key: Callable[[Access, frozenset[str]], str] = key_of, index: str = "avail.idx"
) -> list[Step]:
    """The record as steps. A mere look at the index that the driver moves joins the step beside it.

    Args:
        key: says which step an access belongs to.
        index: the name of that index.
    """
    steps: list[Step] = []
    after: set[str] = set()
    for access in accesses:
        found = key(access, frozenset(after))
        after.add(found)
        if found == "offer" and "acknowledge" in after:
            after.add("refilled")
        if not steps or steps[-1].key != found:
            steps.append(Step(found))
        steps[-1].accesses.append(access)
    joined: list[Step] = []
    carried: list[Access] = []  # looks that belong to the step that follows
    for at, step in enumerate(steps):
        step.accesses[:0] = carried
        carried = []
        looks = all(access.kind == "load" and access.name == index for access in step.accesses)
        if step.key == "fetch" and looks and at + 1 < len(steps) and steps[at + 1].key == "ask":
            carried = step.accesses
        elif (step.key == "fetch" and looks and joined) or (joined and joined[-1].key == step.key):
            joined[-1].accesses += step.accesses
        else:
            joined.append(step)
    return joined


def ring_before(steps: list[Step], at: int, first: RingState) -> RingState:
    """The ring as it was before step `at`; `first` is what it was before the record."""
    for step in reversed(steps[:at]):
        if step.queue is not None:
            return step.queue.ring
    return first
