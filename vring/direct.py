"""A wire straight under an interface of a stack: a host on the network without card, rings, driver or kernel.

    loop = Loop(VirtualClock())
    near, far = cable(loop)
    stack = direct_stack(loop, rng=random.Random(1))
    eth = DirectInterface(stack, near, mac=bytes.fromhex("020000000001"))
    eth.interface.add_address("10.0.0.1", 24)
    eth.interface.set_up()

Promises:
- A received frame is copied once, into memory of its own, within the wire's call; a sent one goes to the wire as the
  very views of its packet.
- The wire's carrier is the interface's.
- Frames that are read from a descriptor are read straight into that memory, and go up in one batch.
- Segments of a stream that come in one batch go up as one packet, unless the stack is a router's.
- What a full wire does not take waits here, bounded, in order; who asks (`Interface.room`) is held off meanwhile.
- A stack of `direct_stack` gets its turns in the loop, on either clock, until `StackTurns.stop`.

Read first: `hw/wire/link.py`, `guest/net/device.py`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

from guest.net.config import NetConfig
from guest.net.device import (
    IFF_BROADCAST,
    IFF_MULTICAST,
    IFF_NOARP,
    IFF_POINTOPOINT,
    IFF_RUNNING,
    UNLIMITED,
    NetDevice,
)
from guest.net.gro import join
from guest.net.gso import Cutter
from guest.net.interface import Interface
from guest.net.pbuf import Offload, PacketBuffer
from guest.net.stack import Stack
from hw.abi.virtio_net import NET_HEADER, VIRTIO_NET_F_GUEST_TSO4, ZERO_HEADER
from hw.loop import Loop
from hw.wire.link import FRAME_MAX, Frame, Link, Receiver, frame_length

WAITING = 256  # packets that wait for a full wire, at most
PULLED = 64  # frames read from a descriptor before others get a turn
PULLED_BYTES = 1 << 19
ETHERNET = 18  # bytes of an Ethernet header, with a tag
LARGE = 65535


class DirectInterface(NetDevice, Receiver):
    """An interface of `stack` whose frames leave and come by `link`. It is down and has no address yet.

    Args:
        stack: that gets the interface.
        link: one end of a wire.
        name: of the interface.
        mac: 6 bytes; None where the link carries IP packets without Ethernet headers (a TUN).
        mtu: bytes of the largest IP packet.
        large: the wire takes TCP packets of up to 64 KB with the header that says how they are to be cut. Without it
            they are cut here, until the other end says that it takes them: either way TCP and IP do their work once for
            all that they send at a time.

    Attributes:
        interface: the stack's side.
        link: the wire's end.
        counters: `rx_packets`, `rx_bytes`, `tx_packets`, `tx_bytes`, `tx_waited` and `tx_dropped_queue_full` (packets
            that found the wire full), `tx_dropped_offload` (packets that cannot be cut as they say).

    Raises:
        ValueError: the name is taken, or a value is out of range.
        WireError: something is plugged into the link already.
    """

    def __init__(
        self, stack: Stack, link: Link, *, name: str = "eth0", mac: bytes | None, mtu: int = 1500, large: bool = False
    ) -> None:
        flags = IFF_MULTICAST | (IFF_POINTOPOINT | IFF_NOARP if mac is None else IFF_BROADCAST)
        NetDevice.__init__(self, name, mac or bytes(6), mtu, flags)
        self.link = link
        self._stack = stack
        self._waiting: deque[PacketBuffer] = deque()
        self._full = False
        self.interface: Interface = stack.add_interface(name, mac, mtu, self._output)
        self.interface.queue = self
        self._bare = mac is None
        self.interface.gso_max_size = LARGE
        self._large = self._always_large = large
        self._cutter = Cutter()
        self._scratch = bytearray(link.header_size + FRAME_MAX if link.header_size else 0)
        self.receiver = self.interface.input
        try:
            link.attach(self)
        except BaseException:
            stack.remove_interface(self.interface)
            raise
        self.carrier_changed()

    def peer_takes(self, features: int) -> None:
        """The card at the other end takes large packets of IPv4, or does no longer."""
        self._large = self._always_large or bool(features >> VIRTIO_NET_F_GUEST_TSO4 & 1)

    # -- from the wire -------------------------------------------------------------------------------------------

    def receive(self, frames: Sequence[Frame]) -> int:
        """Take all frames."""
        packets = []
        size = 0
        for header, views in frames:
            area = bytearray(views[0]) if len(views) == 1 else bytearray().join(views)
            size += len(area)
            packet = PacketBuffer(memoryview(area))
            if header is not None and (header[0] or header[1]):
                packet.offload = Offload(*NET_HEADER.unpack_from(header)[:6])
            packets.append(packet)
        self._deliver(packets, size)
        return len(packets)

    def _deliver(self, packets: list[PacketBuffer], size: int) -> None:
        self.counters["rx_packets"] += len(packets)
        self.counters["rx_bytes"] += size
        # A router hands on what it was sent, frame by frame; and `join` reads Ethernet headers.
        self.deliver(packets if self._stack.forwarding or self._bare else join(packets, self.counters))

    def pull(self, link: Link) -> None:
        """Read what is there, up to `PULLED` frames."""
        if link.header_size:
            self._pull_with_header(link)
            return
        room = self.mtu + ETHERNET
        packets = []
        size = 0
        for _ in range(PULLED):
            area = bytearray(room)
            length = link.read_into([area])
            if not length:
                break
            size += length
            packets.append(PacketBuffer(memoryview(area), 0, length))
        if packets:
            self._deliver(packets, size)

    def _pull_with_header(self, link: Link) -> None:
        """The same where frames may be large, and say so: what is small should not hold much memory."""
        scratch = memoryview(self._scratch)
        start = link.header_size
        packets = []
        size = 0
        for _ in range(PULLED):
            length = link.read_into([scratch])
            if not length:
                break
            packet = PacketBuffer(memoryview(bytearray(scratch[start:length])))
            if scratch[0] or scratch[1]:
                packet.offload = Offload(*NET_HEADER.unpack_from(scratch)[:6])
            size += length - start
            packets.append(packet)
            if size > PULLED_BYTES:
                break
        if packets:
            self._deliver(packets, size)

    def carrier_changed(self) -> None:
        """Somebody was plugged in or out at the far end."""
        up = self.link.carrier
        self.flags = self.flags | IFF_RUNNING if up else self.flags & ~IFF_RUNNING
        self.interface.set_carrier(up)

    def writable(self) -> None:
        """The wire has room again."""
        self._full = False
        waiting = self._waiting
        if waiting:
            self._send([waiting.popleft() for _ in range(len(waiting))])
        if not self._full and (callback := self.wants_room) is not None:
            self.wants_room = None
            callback()

    # -- to the wire ---------------------------------------------------------------------------------------------

    def _output(self, packets: Sequence[PacketBuffer]) -> None:
        self.transmit(packets)

    def transmit(self, packets: Sequence[PacketBuffer]) -> int:
        """Send packets, first to last; how many were sent or kept."""
        return self._wait(packets) if self._full else self._send(packets)

    def _send(self, packets: Sequence[PacketBuffer]) -> int:
        frames: list[Frame] = []
        size = 0
        for packet in packets:
            offload = packet.offload
            if offload is not None and offload.gso_type and not self._large:
                return self._send_cut(packets)
            views = packet.views()
            header = None if offload is None else NET_HEADER.pack(*offload, 0).ljust(len(ZERO_HEADER), b"\0")
            size += len(packet)
            frames.append((header, views))  # type: ignore[arg-type]  # a list of memoryviews is one of buffers
        taken = sent = self.link.transmit(frames)
        if taken < len(packets):
            self._full = True
            rest = packets[taken:]
            size -= sum(map(len, rest))
            taken += self._wait(rest)
        self.counters["tx_packets"] += sent
        self.counters["tx_bytes"] += size
        return taken

    def _send_cut(self, packets: Sequence[PacketBuffer]) -> int:
        """Send packets of which some are to be cut; how many were sent or kept."""
        for index, packet in enumerate(packets):
            size = len(packet)
            frames: list[Frame]
            if packet.offload is not None and packet.offload.gso_type:
                try:
                    frames = [(None, [segment]) for segment in self._cutter.cut(packet)]
                except ValueError:  # it came from elsewhere, with a header that makes no sense
                    self.counters["tx_dropped_offload"] += 1
                    continue
                size += (len(frames) - 1) * packet.offload.hdr_len  # the first has the packet's own headers
            else:
                frames = [(None, packet.views())]  # type: ignore[list-item]  # a list of memoryviews is one of buffers
            taken = self.link.transmit(frames)
            self.counters["tx_packets"] += taken
            if taken < len(frames):
                self.counters["tx_bytes"] += sum(map(frame_length, frames[:taken]))
                self._full = True
                rest = [PacketBuffer(memoryview(bytearray().join(views))) for _, views in frames[taken:]]
                return index + 1 + self._wait([*rest, *packets[index + 1 :]]) - len(rest)
            self.counters["tx_bytes"] += size
        return len(packets)

    def _wait(self, packets: Sequence[PacketBuffer]) -> int:
        """Keep packets until the wire has room."""
        room = max(0, WAITING - len(self._waiting))
        kept = [packet.keep() for packet in packets[:room]]
        self._waiting.extend(kept)
        self.counters["tx_waited"] += len(kept)
        if len(kept) < len(packets):
            self.counters["tx_dropped_queue_full"] += len(packets) - len(kept)
        return len(kept)

    def tx_room(self) -> int:
        return 0 if self._full else UNLIMITED

    def close(self) -> None:
        """Set the interface down and pull the plug; what waits is dropped."""
        self.interface.set_down()
        self.receiver = None
        self._waiting.clear()
        if self.link.receiver is self:
            self.link.detach()


class StackTurns:
    """Gives a stack its turns in a loop: a `hw.loop.Cpu` that is nothing but a stack.

    Args:
        stack: no other loop or kernel may drive it.
        loop: its clock is the stack's.
    """

    def __init__(self, stack: Stack, loop: Loop) -> None:
        self.stack = stack
        self.halted = False
        stack.wake = lambda: loop.kick_cpu(self)
        loop.add_cpu(self)

    def interrupt(self, line: int) -> None:
        """There are no interrupt lines here."""

    def run(self) -> bool:
        """Do what is due now; whether more is waiting."""
        due = self.stack.poll_at()
        if due is None or due > self.stack.now():
            return False
        self.stack.poll()
        return True

    def next_deadline(self) -> int | None:
        """When there is something to do, or None."""
        return None if self.halted else self.stack.poll_at()

    def stop(self) -> None:
        """Take no more turns."""
        self.halted = True
        self.stack.wake = None


def direct_stack(
    loop: Loop, *, rng: random.Random, config: NetConfig | None = None, log: Callable[[str], None] = lambda _line: None
) -> Stack:
    """A stack on the loop's clock that takes its turns there; `rng` decides what is random in it."""
    stack = Stack(now=loop.clock.now, rng=rng, config=config, log=log)
    StackTurns(stack, loop)
    return stack
