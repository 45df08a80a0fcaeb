"""What a transport and a virtio device say to each other.

The transport (`mmio.py`) owns status, negotiation, queue set-up and the interrupt; the device owns what happens to the
buffers. A device never touches registers, a transport never touches buffers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from hw.clock import Timer
from hw.virtio.queue import DeviceQueue


class Transport(Protocol):
    """What a device may ask of its transport."""

    def notify_used(self, queue: int) -> None:
        """Send a used buffer notification for `queue`."""

    def notify_config(self) -> None:
        """The configuration space changed: new generation, configuration change notification."""

    def fail(self, queue: int, reason: str) -> None:
        """The driver broke a rule on `queue`: stop that queue and set DEVICE_NEEDS_RESET (§2.1.2)."""

    def again(self, queue: int) -> None:
        """Call `kick(queue)` once more, a turn later."""

    def after(self, delay: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` in `delay` microseconds."""


class VirtioDevice:
    """A device behind a transport. Subclasses fill in the attributes and override the methods.

    Attributes:
        device_id: §5.
        features: what is offered, a mask of any width.
        queue_sizes: the largest size of each queue; its length is the number of queues.
        queues: the queues that are ready, None for the others.
        counters: what the device did and dropped, with reasons.
        notifications: how often the driver rang each queue's doorbell; counted by the transport.
    """

    device_id = 0

    def __init__(self, features: int, queue_sizes: tuple[int, ...]) -> None:
        self.features = features
        self.queue_sizes = queue_sizes
        self.queues: list[DeviceQueue | None] = [None] * len(queue_sizes)
        self.transport: Transport | None = None
        self.counters: Counter[str] = Counter()
        self.notifications: Counter[int] = Counter()

    def refuses(self, features: int) -> str | None:
        """Why this set of features cannot be accepted, or None. It is a subset of those offered."""
        return None

    def config(self) -> bytes:
        """The configuration space as it is now."""
        return b""

    def start(self, features: int) -> None:
        """DRIVER_OK was set: `features` are negotiated, ready queues may be used."""

    def reset(self) -> None:
        """Forget the driver. No queue may be touched from now on."""
        self.queues = [None] * len(self.queue_sizes)

    def unplug(self) -> None:
        """The machine is going away: let go of what is outside of it."""

    def set_queue(self, index: int, queue: DeviceQueue | None) -> None:
        """Queue `index` became ready, or stopped (None): whatever was taken from it must be forgotten."""
        self.queues[index] = queue

    def kick(self, index: int) -> None:
        """The driver made buffers available on queue `index`, which is ready."""
