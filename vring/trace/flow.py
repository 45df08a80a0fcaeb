"""The way of each frame, stage by stage: who had it, what it saw, and where and why it was dropped.

    rx   nic ─ ring ─ irq ─ driver ─ fe ─ ethernet ─ ip ─ udp ─ socket
    tx   udp ─ ip ─ ethernet ─ fe ─ driver ─ ring ─ nic

On a Xen card `grant` stands beside `ring`, the page that is copied from or to, and `event` is there instead of `irq`.

Promises:
- A board that is not watched pays nothing: all of this is put in from outside, when the board is built and each time a
  guest has come through stage 1 of its boot.
- Every counter of a drop is told at the moment it counts, at the stage that dropped.
- A stage is told before what it causes: the way of a request up to the stage that answers it, then the answer's way.
- Addresses in `ip` and `arp` are those that the engine works with: IPv4 as ::ffff:a.b.c.d.

What a stage is watched by: `nic` a wrapper around the wire, `ring` and `irq` the machine's access hook, `driver` and
`fe` their methods, the stack's stages its own trace.

Sections: `Passage`, `_Watched` (counters that tell), `_TraceLink`, `_Hook`, `_GuestTrace`, `Tracer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from guest.apps.decode import decode
from guest.net.address import format_mac
from guest.net.pbuf import PacketBuffer
from guest.sys.socket_file import DatagramFile
from hw.abi.virtio_net import RECEIVEQ1
from hw.abi.virtio_packed import VRING_PACKED_DESC
from hw.abi.virtio_ring import RING_ENTRIES, USED_ELEM_SIZE
from hw.machine import FIRST_IRQ
from hw.memory import AccessHook, Direction
from hw.virtio.net import VirtioNet
from hw.virtio.packed import PackedQueue
from hw.wire.link import Frame, Link, Views, frame_bytes
from hw.wire.wrapper import Wrapper
from vring.trace.xen import XenEar

if TYPE_CHECKING:
    from guest.fe import FrontEnd, Source
    from guest.kernel import Guest
    from guest.net.device import NetDevice
    from hw.machine import Machine

ID_OFFSET, LENGTH_OFFSET = VRING_PACKED_DESC.offset("id"), VRING_PACKED_DESC.offset("len")
SHOWN = 256  # bytes of a frame that `nic` looks at


class Passage(NamedTuple):
    """A frame at one stage.

    Attributes:
        time: microseconds of the board's clock.
        guest, interface: where; the interface is "" where the stage does not know it.
        way: "rx" or "tx".
        stage: see above, and `arp`, `icmp`, `icmpv6`, … of the stack.
        text: what the stage saw, or the counter of the drop.
        dropped: whether its way ends here.
    """

    time: int
    guest: str
    interface: str
    way: str
    stage: str
    text: str
    dropped: bool = False

    def __str__(self) -> str:
        seconds, micros = divmod(self.time, 1_000_000)
        text = f"dropped: {self.text}" if self.dropped else self.text
        return f"[{seconds:5d}.{micros:06d}] {self.guest} {self.interface:<4}  {self.way}  {self.stage:<8}  {text}"


class _Watched(Counter[str]):
    """A counter that tells of drops. One that is in use becomes one, so that all who count in it are heard."""

    tell: Callable[[str], None]

    @classmethod
    def watch(cls, counter: Counter[str], tell: Callable[[str], None]) -> None:
        """Have `tell(name)` called for each drop that `counter` counts from now on."""
        if not isinstance(counter, cls):
            counter.__class__ = cls
            cast("_Watched", counter).tell = tell

    def __setitem__(self, name: str, value: int) -> None:
        more = value - self.get(name, 0)
        super().__setitem__(name, value)
        if "dropped" in name:
            for _ in range(more):
                self.tell(name)


class _TraceLink(Wrapper):
    """`inner`, with each frame shown at the stage `nic` before it is passed on."""

    def __init__(self, inner: Link, show: Callable[[str, bytes], None]) -> None:
        super().__init__(inner)
        self._show = show

    def transmit(self, frames: Sequence[Frame]) -> int:
        """Send frames."""
        for frame in frames:
            self._show("tx", frame_bytes(frame))
        return self.inner.transmit(frames)

    def receive(self, frames: Sequence[Frame]) -> int:
        """Hand frames to the receiver."""
        for frame in frames:
            self._show("rx", frame_bytes(frame))
        return super().receive(frames)

    def read_into(self, views: Views) -> int:
        """Read the next frame."""
        length = self.inner.read_into(views)
        if length:
            self._show("rx", b"".join(views)[self.header_size : length])
        return length


class _Hook(AccessHook):
    """Hears of the rings and interrupt lines of one machine."""

    def __init__(self, machine: Machine, tell: Callable[..., None]) -> None:
        self._nics = [nic.device for nic in machine.nics if isinstance(nic.device, VirtioNet)]
        self._lines = {FIRST_IRQ + slot: slot for slot in range(len(machine.nics))}
        self._xen = None if machine.domain is None else XenEar(machine, tell)
        self._tell = tell
        self._head = 0

    def stored(self, who: str, addr: int, size: int, old: int, new: int) -> None:
        if self._xen is not None:
            self._xen.stored(who, addr, old, new)
        for slot, nic in enumerate(self._nics):
            for index, queue in enumerate(nic.queues):
                if queue is None or index == nic.control.index:
                    continue
                receiving = index % 2 == RECEIVEQ1
                if isinstance(queue, PackedQueue):
                    self._packed(slot, "rx" if receiving else "tx", who, addr - queue.desc, size, new, queue.size)
                elif who == "device":
                    at = addr - queue.device - RING_ENTRIES
                    if 0 <= at < queue.size * USED_ELEM_SIZE:
                        self._used(slot, "rx" if receiving else "tx", at % USED_ELEM_SIZE, new)
                elif not receiving and 0 <= addr - queue.driver - RING_ENTRIES < 2 * queue.size:
                    self._tell(f"eth{slot}", "tx", "ring", f"available id {new}")

    def _packed(self, slot: int, way: str, who: str, at: int, size: int, new: int, entries: int) -> None:
        """A store into a packed ring: an id, a length, or both with the flags in one cell of 64 bits."""
        offset = at % 16
        if not 0 <= at < 16 * entries:
            return
        if who == "device":
            if offset == ID_OFFSET:
                self._head = new
            elif offset == LENGTH_OFFSET:
                self._tell(f"eth{slot}", way, "ring", f"used id {self._head} len {new}")
        elif way == "tx" and (offset, size) in ((ID_OFFSET, 2), (LENGTH_OFFSET, 8)):
            self._tell(f"eth{slot}", "tx", "ring", f"available id {new if size == 2 else new >> 32 & 0xFFFF}")

    def _used(self, slot: int, way: str, offset: int, new: int) -> None:
        if offset == 0:
            self._head = new
        else:
            self._tell(f"eth{slot}", way, "ring", f"used id {self._head} len {new}")

    def dma(self, who: str, addr: int, length: int, direction: Direction) -> None:
        if self._xen is not None:
            self._xen.copied(who, addr, length)

    def interrupt(self, line: int, level: bool) -> None:
        if level and line in self._lines:
            self._tell(f"eth{self._lines[line]}", "rx", "irq", f"line {line} is high")


class _GuestTrace:
    """The stages inside of one guest."""

    def __init__(self, guest: Guest, tell: Callable[..., None]) -> None:
        self._guest = guest
        self._tell = tell
        self._inside = ""  # the interface whose frames are on their way up
        for fe in guest.fes:
            self._watch_device(fe.device)
            self._watch_front_end(fe)
        self._watch_device(guest.lo)
        guest.stack.trace = self._stack

    def _watch_device(self, device: NetDevice) -> None:
        tell, deliver, transmit = self._tell, device.deliver, device.transmit
        name = device.name

        def delivering(packets: Sequence[PacketBuffer]) -> None:
            for packet in packets:
                tell(name, "rx", "driver", f"{len(packet)} bytes, {'copied' if packet.lease is None else 'lent'}")
            before, self._inside = self._inside, name
            try:
                deliver(packets)
            finally:
                self._inside = before

        def transmitting(packets: Sequence[PacketBuffer]) -> int:
            for packet in packets:
                tell(name, "tx", "driver", f"{len(packet)} bytes")
            return transmit(packets)

        device.deliver = delivering  # type: ignore[method-assign]  # each of these stands before the method
        device.transmit = transmitting  # type: ignore[method-assign]
        _Watched.watch(device.counters, lambda drop: tell(name, drop[:2], "driver", drop, dropped=True))

    def _watch_front_end(self, fe: FrontEnd) -> None:
        tell, transmit = self._tell, fe.transmit

        def receive(packets: Sequence[PacketBuffer]) -> None:
            points = " and ".join(word for word, point in (("ni", fe.ni), ("ol", fe.ol)) if point is not None)
            for _ in packets if points else ():
                tell(fe.name, "rx", "fe", f"to {points}")
            fe.receive(packets)

        def transmitting(packets: Sequence[PacketBuffer], source: Source) -> int:
            for _ in packets:
                tell(fe.name, "tx", "fe", f"from {source}")
            return transmit(packets, source)

        fe.device.receiver = receive
        fe.transmit = transmitting  # type: ignore[method-assign]
        _Watched.watch(fe.counters, lambda drop: tell(fe.name, drop[:2], "fe", drop, dropped=True))

    # -- the stack -----------------------------------------------------------------------------------------------

    def _stack(self, stage: str, packet: PacketBuffer, text: str) -> None:
        way = self._way(stage, packet, text)
        interface = (self._inside or self._device(packet)) if way == "rx" else self._way_out(stage, packet)
        dropped = "_dropped_" in text
        self._tell(interface, way, stage, text.removeprefix(f"{way} "), dropped=dropped)
        if stage == "udp" and text.startswith("port "):
            self._socket(interface, packet, int(text.rpartition(" ")[2]))

    def _way(self, stage: str, packet: PacketBuffer, text: str) -> str:
        if text.startswith(("rx_", "tx_", "rx ", "tx ")):
            return text[:2]
        if stage == "ip":  # on the way up the header has been pulled
            return "tx" if packet.network == packet.data else "rx"
        if stage == "tcp":  # on the way down there is no IP header yet
            return "rx" if packet.network else "tx"
        if stage == "ethernet":
            own = [format_mac(each.mac) for each in self._guest.stack.interfaces if each.mac is not None]
            return "tx" if text.partition(" ")[0] in own else "rx"
        return "rx"

    @staticmethod
    def _device(packet: PacketBuffer) -> str:
        return getattr(packet.device, "name", "")

    def _way_out(self, stage: str, packet: PacketBuffer) -> str:
        """The interface that a packet leaves by."""
        stack, ni = self._guest.stack, self._guest.ni
        if stage == "ip" and packet.network == packet.data and len(packet) >= 40 - 20:
            header = bytes(packet.area[packet.data : packet.data + 40])
            v4 = header[:1] and header[0] >> 4 == 4
            raw = b"\0" * 10 + b"\xff" * 2 + header[16:20] if v4 else header[24:40]
            found = stack.ip.find(int.from_bytes(raw, "big"))
            if found is not None:
                return next((each.name for each in stack.interfaces if each is found[0]), "")
        return "" if ni is None or stage == "tcp" else ni.name

    def _socket(self, interface: str, packet: PacketBuffer, port: int) -> None:
        """A datagram was queued: at which socket."""
        guest = self._guest
        fds = []
        for fd in guest.calls.fds:
            file = guest.calls.fds.file(fd)
            if isinstance(file, DatagramFile) and file.endpoint.local[1] == port and file.endpoint.queued_bytes:
                fds.append(str(fd))
        whose = f"fd {', '.join(fds)}" if fds else f"the kernel's port {port}"
        self._tell(interface, "rx", "socket", f"{whose}: {len(packet)} bytes wait")


class Tracer:
    """Watches a board.

    Args:
        now: the board's clock.
        tell: told of every passage, as it happens.
    """

    def __init__(self, now: Callable[[], int], tell: Callable[[Passage], None]) -> None:
        self._now = now
        self._tell = tell

    def tap(self, link: Link, guest: str, interface: str) -> Link:
        """`link`, to which the NIC that becomes `interface` of `guest` is to be plugged, watched."""

        def show(way: str, frame: bytes) -> None:
            self._tell(Passage(self._now(), guest, interface, way, "nic", decode(frame)))

        def drop(name: str) -> None:
            self._tell(Passage(self._now(), guest, interface, name[:2], "wire", name, True))

        _Watched.watch(link.counters, drop)
        return _TraceLink(link, show)

    def attach(self, machine: Machine, guest: Guest) -> None:
        """Watch `guest`, which has come through stage 1, and the `machine` below it."""
        name = guest.name

        def tell(interface: str, way: str, stage: str, text: str, dropped: bool = False) -> None:
            self._tell(Passage(self._now(), name, interface, way, stage, text, dropped))

        for slot, nic in enumerate(machine.nics):
            self._watch_card(nic.device.counters, f"eth{slot}", tell)
        for slot, vif in enumerate(machine.vifs, len(machine.nics)):  # virtio's cards are found first
            self._watch_card(vif.device.counters, f"eth{slot}", tell)
        machine.set_hook(_Hook(machine, tell))
        _GuestTrace(guest, tell)

    @staticmethod
    def _watch_card(counters: Counter[str], interface: str, tell: Callable[..., None]) -> None:
        _Watched.watch(counters, lambda drop: tell(interface, drop[:2], "nic", drop, dropped=True))
