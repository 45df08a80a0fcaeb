"""The receive side of a network card: frames from the wire into the buffers that the driver posted on one queue.

Read first: virtio 1.4 §5.1.9.3 (receive buffers), §5.1.9.4 (incoming packets).

Promises:
- A frame is read or copied once, straight into posted buffers. `used.len` is the number of bytes written.
- A frame that cannot be received is dropped and counted, and its buffers kept for the next one.
- Without buffers the caller is told to wait; the driver is asked for a kick, and with the next buffers the wire is told
  to go on.

Sections: buffers, frames that are handed over, frames read from a descriptor.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

from hw.abi import virtio_net as net
from hw.virtio.device import VirtioDevice
from hw.virtio.net_filter import HEAD, ReceiveFilter
from hw.virtio.net_side import Side
from hw.virtio.offload import ETHERNET_HEADER, TO_DRIVER
from hw.virtio.queue import Chain, DeviceQueue, QueueError
from hw.virtio.steering import NOT_HASHED
from hw.virtio.vectors import gather, scatter, split_header
from hw.wire.finish import finished
from hw.wire.link import FRAME_MAX, HEADER_SIZE, Buffer, Frame, Link, Views

PULL_BUDGET = 64  # frames read from a descriptor before others get a turn
_NOT_NEGOTIATED = ("csum_not_negotiated", "gso_not_negotiated")


class Receiving(Side):
    """One receive queue.

    Args:
        card: the device.
        index: the queue's number.
        link: where frames come from.
        admits: which frames are let in.
    """

    way = "rx"

    def __init__(self, card: VirtioDevice, index: int, link: Link, admits: ReceiveFilter) -> None:
        super().__init__(card, index)
        self._link = link
        self._admits = admits
        self._posted: deque[Chain] = deque()  # taken from the queue, not yet filled
        self._paused = False  # the wire holds frames back until buffers are posted
        self._overflow = memoryview(bytearray(FRAME_MAX))  # where the rest of a frame goes that no buffer can hold
        self._wire_header = memoryview(bytearray(HEADER_SIZE))  # the wire's header, when the driver's is longer

    def open(self, queue: DeviceQueue | None) -> None:
        super().open(queue)
        self._posted.clear()

    def let_go(self) -> None:
        """What the wire holds back was for a driver that is gone: let it come now, not to the next one."""
        if self._paused:
            self._paused = False
            self._link.resume()

    # -- buffers -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Buffers were posted: let the wire go on if it was held back."""
        queue = self.queue
        if queue is None:
            return
        try:
            if not self._paused:
                queue.disable_kicks()
            elif queue.available():
                queue.disable_kicks()
                self._paused = False
                self._link.resume()
            # Otherwise the kick announced nothing: the next one is still needed.
        except QueueError as error:
            self.fail(error)

    def wait(self) -> None:
        """Ask for a kick with the next buffers. If some came in the meantime, act as if kicked."""
        self._paused = True
        self._counters["rx_no_buffers"] += 1
        if self.queue is not None and self.queue.enable_kicks():
            self.again()

    def has_buffer(self) -> bool:
        """Whether a frame could be received now, if it is not too long. Raises QueueError."""
        return bool(self._posted) or (self.queue is not None and self.queue.available() > 0)

    def _take(self, queue: DeviceQueue) -> Chain | None:
        """The next posted chain that can hold a header. Smaller ones go back unused."""
        while True:
            chain = self._posted.popleft() if self._posted else queue.pop()
            if chain is None:
                return None
            if not chain.writable:
                raise QueueError("a receive buffer without device-writable descriptors (virtio 1.4 §5.1.9.3)")
            if chain.writable_length >= self.terms.header_length:
                return chain
            self._counters["rx_buffer_too_small"] += 1
            queue.push(chain.head, 0)

    def _gather(self, queue: DeviceQueue, need: int) -> list[Chain]:
        """Posted chains with room for `need` bytes, or for less when no more are there; several only if mergeable."""
        first = self._take(queue)
        if first is None:
            return []
        chains = [first]
        room = first.writable_length
        while room < need and self.terms.mergeable:
            chain = self._take(queue)
            if chain is None:
                break
            chains.append(chain)
            room += chain.writable_length
        return chains

    def _complete(self, queue: DeviceQueue, chains: list[Chain], written: int) -> None:
        """Give filled chains back; `written` bytes, header included, were spread over them in order."""
        length = written - self.terms.header_length
        self._counters["rx_packets"] += 1
        self._counters["rx_bytes"] += length
        self.stats["packets"] += 1
        self.stats["bytes"] += length
        for chain in chains:
            part = min(written, chain.writable_length)
            queue.push(chain.head, part)
            written -= part

    # -- frames that are handed over ---------------------------------------------------------------------------------

    def receive(self, frames: Sequence[Frame]) -> int:
        """Copy frames into posted buffers, and publish them; how many were taken."""
        queue = self.queue
        if queue is None:
            self.drop("no_driver", len(frames))
            return len(frames)
        taken = 0
        before = self.stats["packets"]
        filtered = self._admits.active
        try:
            for frame in frames:
                if filtered and (why := self.refuses(frame[1])):
                    self.drop(why)
                elif not self.receive_one(queue, frame):
                    self.wait()
                    break
                taken += 1
        except QueueError as error:
            self.fail(error)
            self.drop("no_driver", len(frames) - taken)
            return len(frames)
        self.publish(queue, self.stats["packets"] - before)
        return taken

    def refuses(self, views: Views) -> str:
        """Why the filter does not let a frame in, or an empty string."""
        return self._admits.refuses(gather(views, HEAD)) if self._admits.active else ""

    def receive_one(self, queue: DeviceQueue, frame: Frame, hashed: tuple[int, int] = NOT_HASHED) -> bool:
        """Copy one frame into the guest, unpublished; False when it has to wait for buffers. Raises QueueError."""
        header, views = frame
        length = 0
        for view in views:
            length += len(view)
        why = self._refuses_frame(header, length)
        if why in _NOT_NEGOTIATED:
            return self._receive_finished(queue, frame, why, hashed)
        if why:
            self.drop(why)
            return True
        need = self.terms.header_length + length
        chains = self._gather(queue, need)
        if not chains:
            return False
        room = 0
        for chain in chains:
            room += chain.writable_length
        if room < need:
            self._posted.extendleft(reversed(chains))
            # With mergeable buffers more may come, unless all descriptors of the queue are here already.
            if self.terms.mergeable and sum(chain.descriptors for chain in self._posted) < queue.size:
                return False
            self.drop("too_long")
            return True
        source = [self._header(header, len(chains), length, hashed), *views]
        if len(chains) == 1 and len(chains[0].writable) == 1:
            target, at = chains[0].writable[0], 0
            for view in source:
                target[at : at + len(view)] = view
                at += len(view)
        else:
            scatter(source, [view for chain in chains for view in chain.writable])
        self._complete(queue, chains, need)
        return True

    def _receive_finished(self, queue: DeviceQueue, frame: Frame, why: str, hashed: tuple[int, int]) -> bool:
        """A frame that asks for more than the driver negotiated: what it asks for is done here."""
        frames = finished(frame)
        if not frames:
            self.drop(why)
            return True
        for count, part in enumerate(frames):
            if not self.receive_one(queue, part, hashed):
                if not count:
                    return False
                self.drop("no_room", len(frames) - count)
                self.stats["overruns"] += len(frames) - count
                break
        self._counters["rx_finished"] += 1
        return True

    def _refuses_frame(self, header: Buffer | None, length: int) -> str:
        """Why a frame from the wire cannot be given to this driver, or an empty string."""
        if length < ETHERNET_HEADER:
            return "runt"
        if header is None:
            return "too_long" if length > self.terms.frame_max else ""
        if not header[1] and length > self.terms.frame_max:
            return "too_long"
        return TO_DRIVER.refuses(self.terms.offloads, header, length)

    def _header(
        self, header: Buffer | None, num_buffers: int, length: int, hashed: tuple[int, int] = NOT_HASHED
    ) -> bytes:
        """The header as the driver reads it: the wire's with `num_buffers`, as long as negotiated.

        Flags that the driver does not know of are zero, all of them without GUEST_CSUM (§5.1.9.4.1).
        """
        fields = net.ZERO_HEADER if header is None else bytes((header[0] & self.terms.receive_flags,)) + header[1:]
        if header is not None and (fields[0] or fields[1]):
            self._count_offload(fields, length)
        full = fields[: net.NUM_BUFFERS_OFFSET] + struct.pack("<H", num_buffers)
        if self.terms.hash_report:
            full += net.HASH.pack(*hashed, 0)
        return full.ljust(self.terms.header_length, b"\0")

    def _count_offload(self, fields: bytes, length: int) -> None:
        stats = self.stats
        stats["needs_csum"] += fields[0] & net.VIRTIO_NET_HDR_F_NEEDS_CSUM
        stats["csum_valid"] += (fields[0] & net.VIRTIO_NET_HDR_F_DATA_VALID) >> 1
        if fields[1]:
            stats["gso_packets"] += 1
            stats["gso_bytes"] += length

    # -- frames read from a descriptor -------------------------------------------------------------------------------

    def pull(self) -> None:
        """Read frames straight into posted buffers: all there are, as far as buffers and the budget reach."""
        queue = self.queue
        if queue is None:
            return
        before = self.stats["packets"]
        try:
            self._pull(queue)
        except QueueError as error:
            self.fail(error)
            return
        self.publish(queue, self.stats["packets"] - before)

    def _pull(self, queue: DeviceQueue) -> None:
        """Read into a window of posted chains that moves on with each frame. Raises QueueError."""
        terms, link = self.terms, self._link
        need, mergeable = terms.header_length + terms.receive_max, terms.mergeable
        chains: list[Chain] = []
        views: list[memoryview] = []
        room = 0
        for _ in range(PULL_BUDGET):
            while room < need and (mergeable or not chains):
                chain = self._take(queue)
                if chain is None:
                    break
                chains.append(chain)
                views += chain.writable
                room += chain.writable_length
            if not chains:
                link.pause()
                self.wait()
                break
            filled = self._pull_one(queue, chains, views, room)
            if filled < 0:
                break
            for chain in chains[:filled]:
                del views[: len(chain.writable)]
                room -= chain.writable_length
            del chains[:filled]
        self._posted.extendleft(reversed(chains))

    def _pull_one(self, queue: DeviceQueue, chains: list[Chain], views: list[memoryview], room: int) -> int:
        """Read one frame into `views`, `room` bytes of `chains`; how many chains it took, -1 where there is none."""
        link, header_length = self._link, self.terms.header_length
        direct = link.header_size == header_length  # then the wire's header is read into its place, too
        target: Views = [*views] if direct else split_header(views, header_length)[1]
        if link.header_size and not direct:
            target.insert(0, self._wire_header)
        target.append(self._overflow)
        length = link.read_into(target)
        if length == 0:
            return -1
        written = length - link.header_size + header_length
        header = None if not link.header_size else gather(views if direct else [self._wire_header], HEADER_SIZE)
        why = "no_room" if written > room else self._refuses_frame(header, written - header_length)
        if not why and self._admits.active:
            why = self.refuses(split_header(views, header_length)[1])
        if why:
            self.drop(why)
            self.stats["overruns"] += why == "no_room"
            return 0
        filled, covered = 0, 0
        while covered < written:
            covered += chains[filled].writable_length
            filled += 1
        scatter([self._header(header, filled, written - header_length)], views)
        self._complete(queue, chains[:filled], written)
        return filled
