"""A virtio-mmio network device whose every move a test makes by hand, and a machine with nothing else in it.

Written from the standard alone, as the third party between the two halves that the project has: the test is the device.
It reads descriptors and pokes used rings with plain `struct` calls, so that it can be as honest or as hostile as it
likes. Nothing happens by itself except what registers do.
"""

from __future__ import annotations

import random
import struct
from collections import deque
from collections.abc import Callable, Sequence

from guest.dma import DmaPool
from guest.drivers.virtio_mmio import MmioSlot
from guest.drivers.virtio_net import VirtioNetDriver
from guest.net.pbuf import PacketBuffer
from guest.services import Services
from hw.abi import virtio as abi
from hw.abi import virtio_mmio as reg
from hw.abi import virtio_net as net
from hw.abi.virtio_ring import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE
from hw.bus import Bus
from hw.clock import VirtualClock
from hw.memory import GuestMemory
from tests.scripted_packed import HandPackedRing

RX, TX = net.RECEIVEQ1, net.TRANSMITQ1
BASE = 0xD0000000
MAC = bytes.fromhex("525400123456")
ALL_ONES = 0xFFFFFFFF

OFFERED = abi.features(
    abi.VIRTIO_F_VERSION_1, abi.VIRTIO_RING_F_INDIRECT_DESC, abi.VIRTIO_RING_F_EVENT_IDX,
    net.VIRTIO_NET_F_MAC, net.VIRTIO_NET_F_STATUS, net.VIRTIO_NET_F_MTU, net.VIRTIO_NET_F_MRG_RXBUF,
)

PACKED = abi.features(abi.VIRTIO_F_RING_PACKED)
IN_ORDER = abi.features(abi.VIRTIO_F_IN_ORDER)
# What the driver's tests run over.
RINGS = {"split": 0, "packed": PACKED, "split-in-order": IN_ORDER, "packed-in-order": PACKED | IN_ORDER}


class HandRing:
    """The device's hands on one split queue: reads and writes as raw bytes of RAM."""

    def __init__(self, memory: GuestMemory, size: int, desc: int, avail: int, used: int, start: int = 0) -> None:
        self.memory = memory
        self.size = size
        self.desc, self.avail, self.used = desc, avail, used
        self.seen = start & 0xFFFF  # avail entries taken
        self.next_used = start & 0xFFFF

    def _get(self, fmt: str, addr: int) -> tuple[int, ...]:
        return struct.unpack_from("<" + fmt, self.memory.span(addr, struct.calcsize("<" + fmt)))

    def _put(self, fmt: str, addr: int, *values: int) -> None:
        struct.pack_into("<" + fmt, self.memory.span(addr, struct.calcsize("<" + fmt)), 0, *values)

    # -- looking

    @property
    def avail_flags(self) -> int:
        return self._get("H", self.avail)[0]

    @property
    def avail_idx(self) -> int:
        return self._get("H", self.avail + 2)[0]

    @property
    def used_event(self) -> int:
        return self._get("H", self.avail + 4 + 2 * self.size)[0]

    @property
    def used_idx(self) -> int:
        return self._get("H", self.used + 2)[0]

    def waiting(self) -> int:
        return (self.avail_idx - self.seen) & 0xFFFF

    def take(self) -> int:
        """The head of the next available chain."""
        assert self.waiting(), "the driver has made nothing available"
        head = self._get("H", self.avail + 4 + 2 * (self.seen % self.size))[0]
        self.seen = (self.seen + 1) & 0xFFFF
        return head

    def elements(self, head: int) -> list[tuple[int, int, bool]]:
        """The chain as (address, length, device-writable), indirect tables followed."""
        table, limit, found = self.desc, self.size, []
        index = head
        while True:
            addr, length, flags, after = self._get("QIHH", table + 16 * index)
            if flags & VRING_DESC_F_INDIRECT:
                assert not flags & VRING_DESC_F_NEXT, "INDIRECT and NEXT together (2.7.5.3.1)"
                assert table == self.desc, "an indirect table inside an indirect table (2.7.5.3.1)"
                table, limit, index = addr, length // 16, 0
                continue
            found.append((addr, length, bool(flags & VRING_DESC_F_WRITE)))
            if not flags & VRING_DESC_F_NEXT:
                return found
            assert after < limit, "a chain that leaves its table"
            assert len(found) < limit, "a chain that does not end"
            index = after

    def is_indirect(self, head: int) -> bool:
        return bool(self._get("QIHH", self.desc + 16 * head)[2] & VRING_DESC_F_INDIRECT)

    # -- acting

    def put_used(self, head: int, written: int, *, show: bool = True, batch: Sequence[int] = ()) -> None:
        """Write one used element, which with `batch` stands for those buffers before it as well (2.7.9).

        `show` moves used.idx, as an honest device does at the end of a batch.
        """
        self._put("II", self.used + 4 + 8 * (self.next_used % self.size), head, written)
        self.next_used = (self.next_used + 1 + len(batch)) & 0xFFFF
        if show:
            self.show_used()

    def show_used(self, idx: int | None = None) -> None:
        self._put("H", self.used + 2, self.next_used if idx is None else idx & 0xFFFF)

    def set_used_flags(self, flags: int) -> None:
        self._put("H", self.used, flags)

    def set_avail_event(self, idx: int) -> None:
        self._put("H", self.used + 4 + 8 * self.size, idx & 0xFFFF)

    def interrupts(self, event_idx: int, within: int = 1) -> bool:
        """Whether the driver asks for one with one of the next `within` used buffers; `event_idx` was negotiated."""
        if event_idx:
            return (self.used_event - self.used_idx) & 0xFFFF < within
        return self.avail_flags == 0

    @property
    def used_length(self) -> int:
        """Bytes of the device's own area."""
        return 6 + 8 * self.size

    def lie_ahead(self) -> str:
        """Say that more is used than ever was available; what the driver calls that."""
        self.show_used(300)
        return "used.idx is 300 ahead"

    def scribble(self) -> None:
        """Write over all descriptors."""
        self.memory.span(self.desc, 16 * self.size)[:] = b"\xff" * 16 * self.size

    def want_kicks(self) -> None:
        """Ask for a notification of the very next buffer, by both mechanisms."""
        self.set_used_flags(0)
        self.set_avail_event(self.avail_idx)


class ScriptedDevice:
    """The registers of virtio-mmio version 2. `irq(level)` is called when its line changes."""

    def __init__(self, memory: GuestMemory, irq: Callable[[bool], None]) -> None:
        self.memory = memory
        self._irq = irq
        self.device_id = abi.VIRTIO_ID_NET
        self.magic = reg.MAGIC
        self.version = reg.VERSION
        self.offered = OFFERED
        self.config = bytearray(net.VIRTIO_NET_CONFIG.size)
        self.set_config(mac=MAC, status=net.VIRTIO_NET_S_LINK_UP, mtu=1500)
        self.generation = 0
        self.on_config_read: Callable[[], None] | None = None
        self.queue_max = {RX: 256, TX: 128}
        self.accepts_features = True
        self.gone = False  # reads as all ones from now on
        self.stuck = False  # ignores resets
        self.log: list[tuple[str, int, int]] = []  # (op, register, value) of every access
        self.interrupt_status = 0
        self.resets = -1
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.driver_features = 0
        self.selected = {"device": 0, "driver": 0, "queue": 0}
        self.queues: dict[int, HandRing | HandPackedRing] = {}
        self._setup: dict[int, dict[int, int]] = {}
        self.notified: list[int] = []
        self.interrupt_status = 0
        self.resets += 1
        self._irq(False)

    def set_config(self, *, mac: bytes | None = None, status: int | None = None, mtu: int | None = None) -> None:
        """Change the configuration space; the test raises the notification."""
        layout = net.VIRTIO_NET_CONFIG
        if mac is not None:
            self.config[0:6] = mac
        if status is not None:
            struct.pack_into("<H", self.config, layout.offset("status"), status)
        if mtu is not None:
            struct.pack_into("<H", self.config, layout.offset("mtu"), mtu)

    @property
    def status_writes(self) -> list[int]:
        return [value for op, register, value in self.log if op == "write" and register == reg.VIRTIO_MMIO_STATUS]

    @property
    def rx(self) -> HandRing | HandPackedRing:
        return self.queues[RX]

    @property
    def tx(self) -> HandRing | HandPackedRing:
        return self.queues[TX]

    # -- registers

    def mmio_read(self, offset: int, size: int) -> int:
        value = (1 << 8 * size) - 1 if self.gone else self._read(offset, size)
        self.log.append(("read", offset, value))
        return value

    def _read(self, offset: int, size: int) -> int:
        if offset >= reg.VIRTIO_MMIO_CONFIG:
            at = offset - reg.VIRTIO_MMIO_CONFIG
            value = int.from_bytes(self.config[at : at + size], "little")
            if self.on_config_read is not None:
                self.on_config_read()
            return value
        assert (size, offset % 4) == (4, 0), "control registers are accessed as aligned 32-bit words (4.2.2.2)"
        queue = self.selected["queue"]
        fixed = {
            reg.VIRTIO_MMIO_MAGIC_VALUE: self.magic,
            reg.VIRTIO_MMIO_VERSION: self.version,
            reg.VIRTIO_MMIO_DEVICE_ID: self.device_id,
            reg.VIRTIO_MMIO_DEVICE_FEATURES: self.offered >> 32 * self.selected["device"] & ALL_ONES,
            reg.VIRTIO_MMIO_QUEUE_NUM_MAX: self.queue_max.get(queue, 0),
            reg.VIRTIO_MMIO_QUEUE_READY: int(queue in self.queues),
            reg.VIRTIO_MMIO_INTERRUPT_STATUS: self.interrupt_status,
            reg.VIRTIO_MMIO_STATUS: self.status,
            reg.VIRTIO_MMIO_CONFIG_GENERATION: self.generation,
        }
        assert offset in fixed, f"register {offset:#x} cannot be read (4.2.2.2)"
        return fixed[offset]

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("write", offset, value))
        if self.gone:
            return
        assert (size, offset % 4) == (4, 0), "control registers are accessed as aligned 32-bit words (4.2.2.2)"
        queue = self.selected["queue"]
        if offset == reg.VIRTIO_MMIO_STATUS:
            self._write_status(value)
        elif offset == reg.VIRTIO_MMIO_DEVICE_FEATURES_SEL:
            self.selected["device"] = value
        elif offset == reg.VIRTIO_MMIO_DRIVER_FEATURES_SEL:
            self.selected["driver"] = value
        elif offset == reg.VIRTIO_MMIO_DRIVER_FEATURES:
            self.driver_features |= value << 32 * self.selected["driver"]
        elif offset == reg.VIRTIO_MMIO_QUEUE_SEL:
            self.selected["queue"] = value
        elif offset == reg.VIRTIO_MMIO_QUEUE_READY:
            if not value:
                self.queues.pop(queue, None)
                return
            made = self._setup[queue]
            desc, avail, used = (
                made[low] | made[low + 4] << 32
                for low in (
                    reg.VIRTIO_MMIO_QUEUE_DESC_LOW, reg.VIRTIO_MMIO_QUEUE_AVAIL_LOW, reg.VIRTIO_MMIO_QUEUE_USED_LOW,
                )
            )
            assert (desc % 16, avail % 2, used % 4) == (0, 0, 0), "areas have alignments (2.7)"
            packed = self.driver_features >> abi.VIRTIO_F_RING_PACKED & 1
            kind = HandPackedRing if packed else HandRing
            self.queues[queue] = kind(self.memory, made[reg.VIRTIO_MMIO_QUEUE_NUM], desc, avail, used)
        elif offset == reg.VIRTIO_MMIO_QUEUE_NOTIFY:
            assert self.status & abi.VIRTIO_CONFIG_S_DRIVER_OK, "a notification before DRIVER_OK (3.1.1)"
            self.notified.append(value)
        elif offset == reg.VIRTIO_MMIO_INTERRUPT_ACK:
            assert not value & ~3, "undefined bits in InterruptACK (4.2.2.2)"
            self.interrupt_status &= ~value
            self._irq(self.interrupt_status != 0)
        else:
            assert queue not in self.queues, "queue registers are left alone while the queue is ready (4.2.2.2)"
            self._setup.setdefault(queue, {})[offset] = value

    def _write_status(self, value: int) -> None:
        if value == 0:
            if not self.stuck:
                self._reset()
            return
        assert not self.status & ~value, "status bits are not cleared without a reset (2.1.1)"
        if value & abi.VIRTIO_CONFIG_S_FEATURES_OK and not self.accepts_features:
            value &= ~abi.VIRTIO_CONFIG_S_FEATURES_OK
        self.status = value

    def interrupt(self, cause: int = reg.VIRTIO_MMIO_INT_VRING) -> None:
        """Raise the line for `cause`."""
        self.interrupt_status |= cause
        self._irq(True)

    def config_interrupt(self) -> None:
        self.interrupt(reg.VIRTIO_MMIO_INT_CONFIG)

    # -- what an honest device does

    def receive(self, frame: bytes, *, interrupt: bool = True, flags: int = 0, gso_type: int = 0, hdr_len: int = 0,
                gso_size: int = 0, csum_start: int = 0, csum_offset: int = 0, num_buffers: int | None = None,
                show: bool = True) -> list[int]:
        """Hand the driver a frame, over as many buffers as it needs; the heads used."""
        ring, rest, heads, lengths = self.rx, frame, [], []
        views: list[memoryview] = []
        need = len(frame) + 12
        while need > 0:
            head = ring.take()
            heads.append(head)
            room = 0
            for addr, length, writable in ring.elements(head):
                assert writable, "receive buffers are for the device to write"
                views.append(self.memory.span(addr, length))
                room += length
            lengths.append(min(room, need))
            need -= room
        count = len(heads) if num_buffers is None else num_buffers
        header = net.NET_HEADER.pack(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, count)
        rest = header + frame
        for view in views:
            view[: len(rest)] = rest[: len(view)]
            rest = rest[len(view) :]
        for head, length in zip(heads, lengths, strict=True):
            ring.put_used(head, length, show=False)
        if show:
            ring.show_used()
        if interrupt:
            self.interrupt()
        return heads

    def read_frame(self, head: int) -> tuple[bytes, bytes]:
        """A transmitted chain as (header, frame)."""
        raw = b"".join(bytes(self.memory.span(addr, length)) for addr, length, _ in self.tx.elements(head))
        return raw[:12], raw[12:]

    def transmitted(self, *, use: bool = True) -> list[bytes]:
        """All frames that the driver has made available; with `use` they are returned to it as sent."""
        frames: list[bytes] = []
        while TX in self.queues and self.tx.waiting():
            head = self.tx.take()
            assert all(not writable for _, _, writable in self.tx.elements(head)), "transmit buffers are read only"
            frames.append(self.read_frame(head)[1])
            if use:
                self.tx.put_used(head, 0)
        return frames


class ScriptedMachine:
    """RAM, a bus, one interrupt line a device, a clock that the test moves; and a guest's kernel services on top."""

    def __init__(
        self, devices: int = 1, *, memory_size: int = 64 << 20, words: str | None = None, offered: int = OFFERED
    ) -> None:
        self.ram = GuestMemory(memory_size)
        self.clock = VirtualClock()
        self.bus = Bus()
        self._high: set[int] = set()
        self._masked: set[int] = set()
        self.devices: list[ScriptedDevice] = []
        for at in range(devices):
            device = ScriptedDevice(self.ram, lambda level, line=5 + at: self._set(line, level))
            device.offered = offered
            self.bus.map(BASE + at * 0x1000, 0x1000, device)
            self.devices.append(device)
        announced = " ".join(f"virtio_mmio.device=4K@{BASE + at * 0x1000:#x}:{5 + at}" for at in range(devices))
        # the platform, as guest.platform has it
        self.memory = self.ram.port("driver")
        self.mmio = self.bus
        self.irq = self
        self.xen = None
        self.cmdline = announced if words is None else words
        self.rng = random.Random(1)
        self.now = self.clock.now
        # the guest
        self.dma = DmaPool(self.memory, 1 << 20, memory_size)
        self.messages: list[str] = []
        self.services = Services.of(self, self.dma, self.messages.append)

    def wake(self) -> None:
        """Tests take the turns."""

    @property
    def device(self) -> ScriptedDevice:
        return self.devices[0]

    # -- the interrupt controller: level-triggered

    def _set(self, line: int, level: bool) -> None:
        (self._high.add if level else self._high.discard)(line)

    def mask(self, line: int) -> None:
        self._masked.add(line)

    def unmask(self, line: int) -> None:
        self._masked.discard(line)

    def is_masked(self, line: int) -> bool:
        return line in self._masked

    # -- turns

    def turn(self) -> bool:
        """Deliver high lines, run one round of deferred work; whether there was anything."""
        lines = sorted(self._high - self._masked)
        for line in lines:
            self.services.irqs.dispatch(line)
        return self.services.deferred.run() or bool(lines)

    def settle(self, limit: int = 10_000) -> int:
        """Take turns until nothing is left to do; how many. A machine that never gets quiet fails the test."""
        for count in range(limit):
            if not self.turn():
                return count
        raise AssertionError(f"the driver is still busy after {limit} turns")

    def advance(self, microseconds: int) -> None:
        """Let time pass, timer by timer."""
        end = self.clock.now() + microseconds
        while True:
            due = self.services.timers.next_deadline()
            if due is None or due > end:
                break
            self.clock.jump(max(due, self.clock.now()))
            self.services.timers.run_due()
            self.settle()
        self.clock.jump(end)

    def driver(self, at: int = 0, **options: int) -> tuple[VirtioNetDriver, deque[PacketBuffer]]:
        """A driver that has come up on device `at`, and what it delivers."""
        driver = VirtioNetDriver(self.services, MmioSlot(0x1000, BASE + at * 0x1000, 5 + at), **options)
        inbox: deque[PacketBuffer] = deque()
        driver.receiver = inbox.extend
        driver.start()
        return driver, inbox


def frame_of(length: int, seed: int = 0) -> bytes:
    """A recognisable Ethernet frame of `length` bytes."""
    header = MAC + bytes.fromhex("0200000000aa") + b"\x08\x00"
    return (header + random.Random(seed).randbytes(max(0, length - 14)))[:length]


def packet_of(length: int, seed: int = 0) -> PacketBuffer:
    return PacketBuffer.from_bytes(frame_of(length, seed))
