"""The virtio-mmio transport, version 2: registers, status, feature negotiation, queue set-up, interrupt.

Read first: virtio 1.4 §4.2.2 (registers), §3.1.1 (the order in which a driver uses them), §2.1 (status), §2.2
(features).

Promises:
- The status field only ever gains bits, but by reset. FEATURES_OK stays clear unless every accepted feature was
  offered, VERSION_1 is among them and the device agrees; DRIVER_OK needs FEATURES_OK.
- A queue becomes ready only with a legal size and legal areas; otherwise QueueReady keeps reading 0.
- A queue is split or packed as negotiated; with RING_RESET it can be reset, and made anew, by itself (§2.6.1).
- No buffer is touched and no notification sent before DRIVER_OK, after a reset, or on a queue that is not ready.
- A doorbell only asks the loop for work, so that a burst of kicks is one piece of work (as with an ioeventfd). With
  `synchronous` the device works inside the register write, for demos.
- Nothing that a driver writes raises; what it does wrong is counted in `counters`.

Sections: `QueueRegisters`, `VirtioMmio`: register reads, register writes, status, queues, notifications.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from hw.abi import virtio_mmio as reg
from hw.abi.virtio import (
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
)
from hw.clock import Timer
from hw.irq import IrqLine
from hw.loop import Loop
from hw.memory import GuestMemory
from hw.virtio import packed, split
from hw.virtio.device import VirtioDevice
from hw.virtio.queue import DeviceQueue

VENDOR_ID = 0x474E5256  # "VRNG"
FEATURE_WORDS = 8  # feature words that can be written: 256 bits, the standard has 128

_DRIVER_BITS = (
    VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED
)
_ALL_ONES = 0xFFFFFFFF

# Which half of which address a register holds.
_ADDRESS_REGISTERS = {
    reg.VIRTIO_MMIO_QUEUE_DESC_LOW: ("desc", 0),
    reg.VIRTIO_MMIO_QUEUE_DESC_HIGH: ("desc", 32),
    reg.VIRTIO_MMIO_QUEUE_AVAIL_LOW: ("driver", 0),
    reg.VIRTIO_MMIO_QUEUE_AVAIL_HIGH: ("driver", 32),
    reg.VIRTIO_MMIO_QUEUE_USED_LOW: ("device", 0),
    reg.VIRTIO_MMIO_QUEUE_USED_HIGH: ("device", 32),
}


class QueueRegisters:
    """What the driver wrote about one queue."""

    __slots__ = ("addresses", "announced", "kicked", "ready", "size")

    def __init__(self) -> None:
        self.kicked = False  # work is asked for and not yet done
        self.clear()

    def clear(self) -> None:
        """Back to the values after a reset."""
        self.size = 0
        self.ready = False
        self.announced = 0  # with NOTIFICATION_DATA: what the last doorbell said of the ring (§2.9)
        self.addresses = {"desc": 0, "driver": 0, "device": 0}


class VirtioMmio:
    """One device slot on the bus.

    Args:
        device: what sits in the slot.
        memory: guest RAM, for the queues.
        line: the slot's interrupt.
        loop: gives it turns, and has the clock.
        synchronous: work inside the register write instead.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        line: IrqLine,
        loop: Loop,
        *,
        synchronous: bool = False,
    ) -> None:
        self.device = device
        self.memory = memory
        self.line = line
        self.synchronous = synchronous
        self.counters: Counter[str] = Counter()
        self.generation = 0
        self.refusal = ""  # why FEATURES_OK stayed clear
        self.failure = ""  # the last rule that the driver broke; a reset does not wipe it out
        self._loop = loop
        self._clear()
        device.transport = self

    def _clear(self) -> None:
        self.status = 0
        self.interrupt_status = 0
        self.features = 0  # accepted by the driver
        self._device_features_sel = 0
        self._driver_features_sel = 0
        self._queue_sel = 0
        self.queue_registers = [QueueRegisters() for _ in self.device.queue_sizes]

    def _has(self, feature: int) -> bool:
        """Whether `feature` is negotiated; before FEATURES_OK nothing is."""
        return bool(self.status & VIRTIO_CONFIG_S_FEATURES_OK and self.features >> feature & 1)

    # -- register reads (§4.2.2) ---------------------------------------------------------------------------------

    def mmio_read(self, offset: int, size: int) -> int:
        """A register, or `size` bytes of configuration space; 0 for what cannot be read."""
        if offset >= reg.VIRTIO_MMIO_CONFIG:
            at = offset - reg.VIRTIO_MMIO_CONFIG
            return int.from_bytes(self.device.config()[at : at + size], "little")
        if size != 4 or offset % 4:
            self.counters["bad_access_width"] += 1
            return 0
        match offset:
            case reg.VIRTIO_MMIO_MAGIC_VALUE:
                return reg.MAGIC
            case reg.VIRTIO_MMIO_VERSION:
                return reg.VERSION
            case reg.VIRTIO_MMIO_DEVICE_ID:
                return self.device.device_id
            case reg.VIRTIO_MMIO_VENDOR_ID:
                return VENDOR_ID
            case reg.VIRTIO_MMIO_DEVICE_FEATURES:
                # A selector past the last word reads 0, and must not cost a shift by 2^37 bits.
                if self._device_features_sel >= FEATURE_WORDS:
                    return 0
                return self.device.features >> 32 * self._device_features_sel & _ALL_ONES
            case reg.VIRTIO_MMIO_QUEUE_NUM_MAX:
                exists = self._queue_sel < len(self.device.queue_sizes)
                return self.device.queue_sizes[self._queue_sel] if exists else 0
            case reg.VIRTIO_MMIO_QUEUE_READY:
                queue = self._selected()
                return int(queue is not None and queue.ready)
            case reg.VIRTIO_MMIO_QUEUE_RESET if self._has(VIRTIO_F_RING_RESET):
                return 0  # a reset is over when the write returns
            case reg.VIRTIO_MMIO_INTERRUPT_STATUS:
                return self.interrupt_status
            case reg.VIRTIO_MMIO_STATUS:
                return self.status
            case reg.VIRTIO_MMIO_SHM_LEN_LOW | reg.VIRTIO_MMIO_SHM_LEN_HIGH:
                return _ALL_ONES  # no shared memory regions
            case reg.VIRTIO_MMIO_SHM_BASE_LOW | reg.VIRTIO_MMIO_SHM_BASE_HIGH:
                return _ALL_ONES
            case reg.VIRTIO_MMIO_CONFIG_GENERATION:
                return self.generation
        self.counters["bad_register_read"] += 1
        return 0

    # -- register writes (§4.2.2) --------------------------------------------------------------------------------

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Write a register. What cannot be written is ignored and counted."""
        if offset >= reg.VIRTIO_MMIO_CONFIG:
            self.counters["config_write_ignored"] += 1
            return
        if size != 4 or offset % 4:
            self.counters["bad_access_width"] += 1
            return
        match offset:
            case reg.VIRTIO_MMIO_QUEUE_NOTIFY:
                self._doorbell(value)
            case reg.VIRTIO_MMIO_INTERRUPT_ACK:
                self.interrupt_status &= ~value
                self.line.set_level(self.interrupt_status != 0)
            case reg.VIRTIO_MMIO_STATUS:
                self._write_status(value)
            case reg.VIRTIO_MMIO_DEVICE_FEATURES_SEL:
                self._device_features_sel = value
            case reg.VIRTIO_MMIO_DRIVER_FEATURES_SEL:
                self._driver_features_sel = value
            case reg.VIRTIO_MMIO_DRIVER_FEATURES:
                self._write_features(value)
            case reg.VIRTIO_MMIO_QUEUE_SEL:
                self._queue_sel = value
            case reg.VIRTIO_MMIO_QUEUE_NUM:
                queue = self._configurable()
                if queue is not None:
                    queue.size = value
            case reg.VIRTIO_MMIO_QUEUE_READY:
                self._write_queue_ready(value)
            case reg.VIRTIO_MMIO_QUEUE_RESET if self._has(VIRTIO_F_RING_RESET):
                if value & 1:
                    self._reset_queue()
            case reg.VIRTIO_MMIO_SHM_SEL:
                pass  # there are no regions to select
            case _ if offset in _ADDRESS_REGISTERS:
                queue = self._configurable()
                if queue is not None:
                    area, shift = _ADDRESS_REGISTERS[offset]
                    queue.addresses[area] = queue.addresses[area] & ~(_ALL_ONES << shift) | value << shift
            case _:
                self.counters["bad_register_write"] += 1

    def _write_features(self, value: int) -> None:
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK:
            self.counters["features_write_too_late"] += 1
            return
        # A word past the last can hold no feature that was offered: one bit there makes FEATURES_OK fail.
        shift = 32 * min(self._driver_features_sel, FEATURE_WORDS)
        self.features = self.features & ~(_ALL_ONES << shift) | value << shift

    # -- status (§2.1, §3.1.1) -----------------------------------------------------------------------------------

    def _write_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        lost = self.status & _DRIVER_BITS & ~value
        if lost:
            self.counters["status_bit_cleared"] += 1  # §2.1.1 forbids it; the bit stays
        gained = value & _DRIVER_BITS & ~self.status
        if gained & VIRTIO_CONFIG_S_FEATURES_OK:
            self.refusal = self._refuses()
            if self.refusal:
                self.counters["features_refused"] += 1
                gained &= ~VIRTIO_CONFIG_S_FEATURES_OK
        if gained & VIRTIO_CONFIG_S_DRIVER_OK and not (self.status | gained) & VIRTIO_CONFIG_S_FEATURES_OK:
            self.counters["driver_ok_too_early"] += 1
            gained &= ~VIRTIO_CONFIG_S_DRIVER_OK
        self.status |= gained
        if gained & VIRTIO_CONFIG_S_DRIVER_OK:
            self.device.start(self.features)

    def _refuses(self) -> str:
        """Why FEATURES_OK must stay clear, or an empty string (§2.2.2)."""
        extra = self.features & ~self.device.features
        if extra:
            return f"the driver accepted feature bit {extra.bit_length() - 1}, which was not offered"
        if not self.features >> VIRTIO_F_VERSION_1 & 1:
            return "the driver did not accept VERSION_1, and this is not a legacy device"
        return self.device.refuses(self.features) or ""

    def reset(self) -> None:
        """Back to the state after power-on; nothing of the old queues is touched any more (§2.4)."""
        self._clear()
        self.device.reset()
        self.line.set_level(False)
        self.refusal = ""

    # -- queues ----------------------------------------------------------------------------------------------------

    def _selected(self) -> QueueRegisters | None:
        if self._queue_sel < len(self.queue_registers):
            return self.queue_registers[self._queue_sel]
        return None

    def _configurable(self) -> QueueRegisters | None:
        """The selected queue if its registers may be written now."""
        queue = self._selected()
        if queue is None or queue.ready:
            self.counters["queue_write_ignored"] += 1
            return None
        return queue

    def _write_queue_ready(self, value: int) -> None:
        queue, index = self._selected(), self._queue_sel
        if queue is None:
            self.counters["queue_write_ignored"] += 1
        elif not value & 1:
            queue.ready = False
            self.device.set_queue(index, None)
        elif not queue.ready:
            why = self._check_queue(queue, index)
            if why:
                self.counters["queue_refused"] += 1
                self.refusal = why
                return
            queue.ready = True
            self.device.set_queue(index, self._make_queue(queue, index))

    def _make_queue(self, queue: QueueRegisters, index: int) -> DeviceQueue:
        kind = packed.PackedQueue if self._has(VIRTIO_F_RING_PACKED) else split.SplitQueue
        areas = queue.addresses
        return kind(
            self.memory, index, queue.size, areas["desc"], areas["driver"], areas["device"], self.features
        )

    def _reset_queue(self) -> None:
        """Forget all about the selected queue; when the write returns nothing of it is touched any more (§2.6.1.1)."""
        if self._selected() is None:
            self.counters["queue_write_ignored"] += 1
            return
        self.counters["queue_resets"] += 1
        self.queue_registers[self._queue_sel].clear()
        self.device.set_queue(self._queue_sel, None)

    def _check_queue(self, queue: QueueRegisters, index: int) -> str | None:
        """Why this queue cannot become ready, or None."""
        if not self.status & VIRTIO_CONFIG_S_FEATURES_OK:
            return f"queue {index} was made ready before FEATURES_OK"
        if self.status & VIRTIO_CONFIG_S_NEEDS_RESET:
            return f"queue {index} was made ready although the device needs a reset"
        if queue.size > self.device.queue_sizes[index]:
            return f"queue {index}: size {queue.size} is above the maximum of {self.device.queue_sizes[index]}"
        areas = queue.addresses
        check = packed.check_areas if self._has(VIRTIO_F_RING_PACKED) else split.check_areas
        return check(self.memory, queue.size, areas["desc"], areas["driver"], areas["device"])

    # -- notifications (§2.3, §4.2.3.3, §4.2.3.4) ------------------------------------------------------------------

    def _doorbell(self, value: int) -> None:
        index = value & 0xFFFF if self._has(VIRTIO_F_NOTIFICATION_DATA) else value
        if (
            not self.status & VIRTIO_CONFIG_S_DRIVER_OK
            or index >= len(self.queue_registers)
            or self.device.queues[index] is None
        ):
            self.counters["kick_ignored"] += 1
            return
        self.counters["kicks"] += 1
        self.device.notifications[index] += 1
        self.queue_registers[index].announced = value >> 16
        if self.synchronous:
            self.device.kick(index)
        else:
            self.again(index)

    def again(self, queue: int) -> None:
        """Let the device work on `queue` in a later turn; several requests are one."""
        registers = self.queue_registers[queue]
        if not registers.kicked:
            registers.kicked = True
            self._loop.call_soon(lambda: self._work(queue))

    def _work(self, index: int) -> None:
        self.queue_registers[index].kicked = False
        if self.device.queues[index] is not None:
            self.device.kick(index)

    def after(self, delay: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` in `delay` microseconds."""
        return self._loop.clock.after(delay, callback)

    def _notify(self, bit: int) -> None:
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK:
            self.interrupt_status |= bit
            self.counters["interrupts"] += 1
            self.line.set_level(True)

    def notify_used(self, queue: int) -> None:
        """Send a used buffer notification; there is one for all queues."""
        self._notify(reg.VIRTIO_MMIO_INT_VRING)

    def notify_config(self) -> None:
        """Send a configuration change notification, under a new generation (§2.5)."""
        self.generation = (self.generation + 1) & _ALL_ONES
        self._notify(reg.VIRTIO_MMIO_INT_CONFIG)

    def fail(self, queue: int, reason: str) -> None:
        """Stop `queue`, set DEVICE_NEEDS_RESET, and tell the driver if it is running (§2.1.2)."""
        self.failure = f"queue {queue}: {reason}"
        self.counters["queue_failed"] += 1
        self.device.set_queue(queue, None)
        self.queue_registers[queue].ready = False
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET
        self.notify_config()
