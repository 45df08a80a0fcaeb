"""Virtio over MMIO, the driver's side: finding devices on the command line, negotiation, queues, configuration.

Promises:
- Nothing that a device answers can hang the driver: every wait is bounded and ends in `TransportError`.
- A device that is gone reads as all ones; that is recognised wherever a register's value decides something
  (`DeviceGone`).
- Control registers are accessed 32 bits wide, configuration fields as wide as they are (virtio 1.4 §4.2.2.2).

Read: virtio 1.4 §3.1.1 (initialisation), §4.2.2 (registers), §4.2.3 (queues, interrupts); `virtio_mmio.device=` is
described in the kernel's command line documentation.

Sections: `MmioSlot` and `parse_slots`, `identify` and `find_devices`, `MmioTransport`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from guest.platform import Mmio, Platform
from hw.abi import virtio as abi
from hw.abi import virtio_mmio as reg

ALL_ONES = 0xFFFFFFFF
RESET_READS = 1000  # how often Status is read for a reset to complete
GENERATION_TRIES = 16  # how often a configuration that changes under the reader is read again

T = TypeVar("T")

_PARAMETER = "virtio_mmio.device"
_NUMBER = r"0[xX][0-9a-fA-F]+|[0-9]+"
_SLOT = re.compile(rf"({_NUMBER})([kKmMgG]?)@({_NUMBER}):([0-9]+)(?::([0-9]+))?")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class TransportError(Exception):
    """The device cannot be used; the text is one line that says why."""


class DeviceGone(TransportError):
    """Registers read as all ones: there is no device."""


@dataclass(frozen=True, slots=True)
class MmioSlot:
    """A place on the bus where a device is announced: `size` bytes of registers at `base`, interrupt line `irq`."""

    size: int
    base: int
    irq: int
    id: int | None = None


def parse_slots(cmdline: str) -> tuple[list[MmioSlot], list[str]]:
    """The devices that `virtio_mmio.device=<size>[KMG]@<base>:<irq>[:<id>]` words announce, in order, and complaints.

    As in Linux, numbers may be decimal, 0x hexadecimal or 0 octal, dashes and underscores in the name are the same,
    line 0 is no interrupt, and words behind `--` are not the kernel's. A word that is no slot, or one whose registers
    overlap an earlier one's, is left out; its complaint is one line.
    """
    slots: list[MmioSlot] = []
    complaints: list[str] = []
    for word in cmdline.split():
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if name.replace("-", "_") != _PARAMETER:
            continue
        match = _SLOT.fullmatch(value)
        if not equals or match is None:
            complaints.append(f"{word}: ignored; it should look like {_PARAMETER}=4K@0xd0000000:5")
            continue
        size_text, unit, base_text, irq, ident = match.groups()
        try:
            size = _number(size_text) * _UNITS[unit.lower()]
            base = _number(base_text)
        except ValueError:
            complaints.append(f"{word}: ignored; 8 and 9 are no octal digits")
            continue
        slot = MmioSlot(size, base, int(irq), None if ident is None else int(ident))
        if slot.irq == 0:
            complaints.append(f"{word}: ignored; 0 is not an interrupt line")
        elif size <= reg.VIRTIO_MMIO_CONFIG or base % 4 or base + size > 1 << 64:
            complaints.append(f"{word}: ignored; no registers fit into {size} bytes at {base:#x}")
        elif any(base < other.base + other.size and other.base < base + size for other in slots):
            complaints.append(f"{word}: ignored; another device has these addresses")
        else:
            slots.append(slot)
    return slots, complaints


def _number(text: str) -> int:
    if text[:2] in ("0x", "0X"):
        return int(text, 16)
    return int(text, 8) if text.startswith("0") else int(text)


def identify(mmio: Mmio, slot: MmioSlot, log: Callable[[str], None]) -> int | None:
    """The device id at `slot`, or None where there is no device that this driver could know (§4.2.2.2, §4.2.3.1.1).

    A wrong magic value or version is logged; device id 0, a placeholder, is not.
    """
    magic = mmio.read(slot.base + reg.VIRTIO_MMIO_MAGIC_VALUE, 4)
    if magic != reg.MAGIC:
        log(f"virtio-mmio: no device at {slot.base:#x} (magic value {magic:#x})")
        return None
    version = mmio.read(slot.base + reg.VIRTIO_MMIO_VERSION, 4)
    if version != reg.VERSION:
        log(f"virtio-mmio: the device at {slot.base:#x} has register layout {version}, not {reg.VERSION}")
        return None
    return mmio.read(slot.base + reg.VIRTIO_MMIO_DEVICE_ID, 4) or None


def find_devices(platform: Platform, ids: Collection[int], log: Callable[[str], None]) -> list[MmioSlot]:
    """Where the command line announces devices with one of `ids`, in its order."""
    slots, complaints = parse_slots(platform.cmdline)
    for complaint in complaints:
        log(f"virtio-mmio: {complaint}")
    return [slot for slot in slots if identify(platform.mmio, slot, log) in ids]


class MmioTransport:
    """The registers of one device, and the steps that the standard makes of them."""

    def __init__(self, mmio: Mmio, slot: MmioSlot) -> None:
        self.slot = slot
        self._base = slot.base
        self._read = mmio.read
        self._write = mmio.write
        self._status = 0

    def read(self, register: int) -> int:
        """A control register."""
        return self._read(self._base + register, 4)

    def write(self, register: int, value: int) -> None:
        """Write a control register."""
        self._write(self._base + register, 4, value)

    # -- status, §2.1 and §3.1.1 ---------------------------------------------------------------------------------

    def status(self) -> int:
        """The device status. Raises DeviceGone."""
        status = self.read(reg.VIRTIO_MMIO_STATUS)
        if status == ALL_ONES:
            raise DeviceGone(f"the device at {self._base:#x} is gone")
        return status

    def add_status(self, bits: int) -> None:
        """Set status bits; those set before stay (§2.1.1)."""
        self._status |= bits
        self.write(reg.VIRTIO_MMIO_STATUS, self._status)

    def reset(self) -> None:
        """Reset the device and wait until it says so. Raises TransportError when it does not, DeviceGone."""
        self._status = 0
        self.write(reg.VIRTIO_MMIO_STATUS, 0)
        for _ in range(RESET_READS):
            if self.status() == 0:
                return
        raise TransportError(f"the device at {self._base:#x} does not reset")

    def negotiate(self, wanted: int, required: int, requires: Mapping[int, tuple[tuple[int, ...], ...]]) -> int:
        """Reset, acknowledge, and agree on features; what was agreed, a mask as wide as `wanted` needs.

        Args:
            wanted: features to take where they are offered.
            required: features without which the device is of no use.
            requires: for each feature the alternatives that it depends on; a feature whose dependencies are not all
                agreed is not taken (§2.2.1).

        Raises TransportError: a required feature is not offered, or the device does not accept what it offered.
        """
        self.reset()
        self.add_status(abi.VIRTIO_CONFIG_S_ACKNOWLEDGE)
        self.add_status(abi.VIRTIO_CONFIG_S_DRIVER)
        words = max(2, -(-(wanted | required).bit_length() // 32))
        offered = 0
        for word in range(words):
            self.write(reg.VIRTIO_MMIO_DEVICE_FEATURES_SEL, word)
            offered |= self.read(reg.VIRTIO_MMIO_DEVICE_FEATURES) << 32 * word
        if offered == (1 << 32 * words) - 1:
            self.status()  # a device may offer everything; one that is gone is found here
        missing = required & ~offered
        if missing:
            bits = ", ".join(str(bit) for bit in range(missing.bit_length()) if missing >> bit & 1)
            raise TransportError(f"the device at {self._base:#x} does not offer feature {bits}")
        features = _with_dependencies(offered & (wanted | required), requires)
        for word in range(words):
            self.write(reg.VIRTIO_MMIO_DRIVER_FEATURES_SEL, word)
            self.write(reg.VIRTIO_MMIO_DRIVER_FEATURES, features >> 32 * word & ALL_ONES)
        self.add_status(abi.VIRTIO_CONFIG_S_FEATURES_OK)
        if not self.status() & abi.VIRTIO_CONFIG_S_FEATURES_OK:
            raise TransportError(f"the device at {self._base:#x} does not accept features {features:#x}")
        return features

    # -- configuration space, §2.5 and §4.2.2 --------------------------------------------------------------------

    def config(self, offset: int, size: int) -> int:
        """One field of the configuration space, `size` bytes wide."""
        return self._read(self._base + reg.VIRTIO_MMIO_CONFIG + offset, size)

    def consistent(self, reader: Callable[[], T]) -> T:
        """What `reader` makes of the configuration, all of it from one generation (§2.5.1).

        Raises TransportError when it changes each time it is read.
        """
        before = self.read(reg.VIRTIO_MMIO_CONFIG_GENERATION)
        for _ in range(GENERATION_TRIES):
            value = reader()
            after = self.read(reg.VIRTIO_MMIO_CONFIG_GENERATION)
            if after == before:
                return value
            before = after
        raise TransportError(f"the configuration of the device at {self._base:#x} changes faster than it can be read")

    # -- queues, §4.2.3.2 ----------------------------------------------------------------------------------------

    def queue_size(self, index: int, wanted: int) -> int:
        """Select queue `index`; the entries to give it: a power of two, at most `wanted`, at most what it can have.

        Raises TransportError when it is in use already or not there.
        """
        self.write(reg.VIRTIO_MMIO_QUEUE_SEL, index)
        if self.read(reg.VIRTIO_MMIO_QUEUE_READY) != 0:
            self.status()
            raise TransportError(f"queue {index} of the device at {self._base:#x} is in use already")
        limit = self.read(reg.VIRTIO_MMIO_QUEUE_NUM_MAX)
        if limit in (0, ALL_ONES):
            raise TransportError(f"the device at {self._base:#x} has no queue {index}")
        return 1 << (min(wanted, limit).bit_length() - 1)

    def enable_queue(self, index: int, size: int, addresses: tuple[int, int, int]) -> None:
        """Tell the device where queue `index` lies, and that it is ready. Raises TransportError when it refuses."""
        self.write(reg.VIRTIO_MMIO_QUEUE_SEL, index)
        self.write(reg.VIRTIO_MMIO_QUEUE_NUM, size)
        registers = (
            reg.VIRTIO_MMIO_QUEUE_DESC_LOW,
            reg.VIRTIO_MMIO_QUEUE_AVAIL_LOW,
            reg.VIRTIO_MMIO_QUEUE_USED_LOW,
        )
        for register, addr in zip(registers, addresses, strict=True):
            self.write(register, addr & ALL_ONES)
            self.write(register + 4, addr >> 32)
        self.write(reg.VIRTIO_MMIO_QUEUE_READY, 1)
        if self.read(reg.VIRTIO_MMIO_QUEUE_READY) != 1:
            raise TransportError(f"the device at {self._base:#x} refuses queue {index} of {size} entries")

    def disable_queue(self, index: int) -> None:
        """Stop using queue `index` (§4.2.2.2), for a device that is not reset."""
        self.write(reg.VIRTIO_MMIO_QUEUE_SEL, index)
        self.write(reg.VIRTIO_MMIO_QUEUE_READY, 0)
        self.read(reg.VIRTIO_MMIO_QUEUE_READY)

    def reset_queue(self, index: int) -> None:
        """Have the device forget queue `index`; only with RING_RESET (§2.6.1, §4.2.2.2).

        Raises TransportError when it does not, DeviceGone.
        """
        self.write(reg.VIRTIO_MMIO_QUEUE_SEL, index)
        self.write(reg.VIRTIO_MMIO_QUEUE_RESET, 1)
        for _ in range(RESET_READS):
            if self.read(reg.VIRTIO_MMIO_QUEUE_RESET) == 0:
                break
        if self.read(reg.VIRTIO_MMIO_QUEUE_RESET) or self.read(reg.VIRTIO_MMIO_QUEUE_READY):
            self.status()
            raise TransportError(f"the device at {self._base:#x} does not reset queue {index}")

    def notify(self, index: int, position: int = 0) -> None:
        """Tell the device that queue `index` has new buffers (§4.2.3.3).

        Args:
            position: with NOTIFICATION_DATA where the ring stands, the wrap counter in bit 15 (§2.9).
        """
        self._write(self._base + reg.VIRTIO_MMIO_QUEUE_NOTIFY, 4, index | position << 16)

    # -- interrupts, §4.2.3.4 ------------------------------------------------------------------------------------

    def interrupt_status(self) -> int:
        """Why the device interrupts: VRING and CONFIG bits, undefined ones left out. Raises DeviceGone."""
        status = self.read(reg.VIRTIO_MMIO_INTERRUPT_STATUS)
        if status == ALL_ONES:
            raise DeviceGone(f"the device at {self._base:#x} is gone")
        return status & (reg.VIRTIO_MMIO_INT_VRING | reg.VIRTIO_MMIO_INT_CONFIG)

    def acknowledge(self, status: int) -> None:
        """Say which interrupts are handled."""
        self.write(reg.VIRTIO_MMIO_INTERRUPT_ACK, status)


def _with_dependencies(features: int, requires: Mapping[int, tuple[tuple[int, ...], ...]]) -> int:
    """`features` without those whose dependencies are not among them."""
    while True:
        kept = features
        for bit, alternatives in requires.items():
            if kept >> bit & 1 and not any(all(kept >> need & 1 for need in group) for group in alternatives):
                kept &= ~(1 << bit)
        if kept == features:
            return features
        features = kept
