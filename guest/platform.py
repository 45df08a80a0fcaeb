"""The only door to hardware: what a guest may ask of whatever it boots on.

`hw.machine` serves this door with the simulated machine; a test can serve it with a real device (QEMU's, through its
qtest socket). A guest holds a `Platform` and nothing else of the outside: RAM by guest-physical address, registers by
physical address, interrupt lines by number, the time, and the command line.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

Format = Literal["B", "H", "I", "Q"]


class Cells(Protocol):
    """RAM as cells of one width: each load and store is a single one."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...
    def __len__(self) -> int: ...


class Memory(Protocol):
    """Guest RAM: `size` bytes from guest-physical address `base`."""

    @property
    def base(self) -> int: ...
    @property
    def size(self) -> int: ...

    def span(self, addr: int, length: int) -> memoryview:
        """Payload bytes at `addr`, writable."""

    def fields(self, addr: int, length: int, fmt: Format) -> Cells:
        """Fields that a device also reads or writes, as cells of format `fmt`."""

    def on_reopen(self, reopen: Callable[[], None]) -> None:
        """Call the bound method `reopen` when views from `fields` must be fetched again."""


class Mmio(Protocol):
    """Device registers, by physical address; `size` is 1, 2, 4 or 8 bytes."""

    def read(self, addr: int, size: int) -> int: ...
    def write(self, addr: int, size: int, value: int) -> None: ...


class Irq(Protocol):
    """The interrupt controller, by line number."""

    def mask(self, line: int) -> None: ...
    def unmask(self, line: int) -> None: ...


class XenPlatform(Protocol):
    """What a guest that runs on Xen has beside the rest: what the domain builder tells it, and the hypercalls.

    Hypercalls take and return numbers; one below 0 is an errno. Nothing of it raises.

    Attributes:
        domid: the guest's domain.
        shared_info: address of the page with the event channels' bitmaps.
        grant_frames: addresses of the pages of the grant table, in order.
        store_page, store_port: the page with the rings of xenstore, and the event channel to it.
        irq: the line that is high while virtual CPU 0 has `evtchn_upcall_pending` set.
    """

    @property
    def domid(self) -> int: ...
    @property
    def shared_info(self) -> int: ...
    @property
    def grant_frames(self) -> Sequence[int]: ...
    @property
    def store_page(self) -> int: ...
    @property
    def store_port(self) -> int: ...
    @property
    def irq(self) -> int: ...

    def evtchn_alloc_unbound(self, remote_domid: int) -> int:
        """A new port that `remote_domid` may bind to."""

    def evtchn_send(self, port: int) -> int:
        """Make the other end's port pending."""

    def evtchn_unmask(self, port: int) -> int:
        """Clear the port's mask bit, and deliver what is pending."""

    def evtchn_close(self, port: int) -> int:
        """Give the port up."""

    def poll(self, port: int) -> bool:
        """Let the other domains work until `port` is pending; False when nothing that they do would make it so."""

    def suspend(self) -> bool:
        """Stop until resumed; False when that was cancelled and nothing has changed.

        After a resume all event channels but the store's are closed, the grant table is empty, and the attributes may
        have other values.
        """


class Platform(Protocol):
    """A machine to boot on.

    Attributes:
        memory, mmio, irq: as above.
        xen: on Xen, what that adds; elsewhere None.
        cmdline: the kernel command line; `virtio_mmio.device=4K@0xd0000000:5` entries announce devices.
        rng: the guest's source of randomness, seeded by the machine.
    """

    @property
    def memory(self) -> Memory: ...
    @property
    def mmio(self) -> Mmio: ...
    @property
    def irq(self) -> Irq: ...
    @property
    def xen(self) -> XenPlatform | None: ...
    @property
    def cmdline(self) -> str: ...
    @property
    def rng(self) -> random.Random: ...

    def now(self) -> int:
        """Microseconds since the machine was switched on."""

    def wake(self) -> None:
        """Ask for a turn: the guest has work to do that no interrupt announces."""
