"""Captures: a wrapper that writes every frame of a link, in both directions, to a pcapng file.

Promises:
- The link works as without it: frames pass by as the same views, pushed or read from a descriptor.
- A frame is written once it was taken, in the order in which the frames set out: a frame that is sent comes before the
  answer that it causes, also when both bear the same time. One that was not taken is written when it is offered again.
- The file is whole after every call, so that it can be read while the machine runs.
- A disk that is full ends the capture, counted in `PcapFile.counters`, and not the machine.

The virtio header is not written: a frame whose checksum is left to the receiver shows with an unfinished checksum, as
in any capture of an interface with offload. Times are the clock's `wall()`, in microseconds. "outbound" is what the NIC
sends.

Read first: `link.py`; draft-ietf-opsawg-pcapng §4.2, §4.3. Sections: `PcapFile`, `PcapLink`.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from hw.clock import Clock
from hw.wire.link import Frame, Link, Views, frame_bytes
from hw.wire.wrapper import Wrapper

LINKTYPE_ETHERNET = 1
INBOUND, OUTBOUND = 1, 2  # epb_flags, bits 0 and 1


class PcapFile:
    """A pcapng file that several links share, each as an interface of its own.

    Args:
        file: a path, which is overwritten, or a binary file object that stays the caller's.
        clock: its `wall()` is what frames are stamped with.

    Raises OSError when the path cannot be written. Counters: `frames`, `dropped_empty` (no bytes to write),
    `dropped_write_error`, `dropped_closed`.
    """

    def __init__(self, file: str | Path | BinaryIO, clock: Clock) -> None:
        # The writer is loaded by those who capture, and by nobody else.
        from pcapng import FileWriter, blocks  # noqa: PLC0415

        self.counters: Counter[str] = Counter()
        self._clock = clock
        self._owned = isinstance(file, (str, Path))
        self._file: BinaryIO | None = open(file, "wb", buffering=0) if isinstance(file, (str, Path)) else file  # noqa: SIM115
        self._blocks = blocks
        self._pending: list[bytes] = []  # encoded, and not in the file yet
        self._depth = 0
        self._buffer = io.BytesIO()
        self._section = blocks.SectionHeader(options={"shb_userappl": "vring"})
        self._writer = FileWriter(self._buffer, self._section)
        self._collect()
        self._flush()

    def tap(self, link: Link, name: str | None = None) -> PcapLink:
        """`link` with everything that passes written to this file, as the interface `name`."""
        return PcapLink(link, self, name or link.name)

    def add_interface(self, name: str) -> int:
        """Announce an interface; its number, for `begin`."""
        block = self._section.new_member(
            self._blocks.InterfaceDescription, link_type=LINKTYPE_ETHERNET, options={"if_name": name}
        )
        self._encode(block)
        if self._depth == 0:
            self._flush()
        number: int = block.interface_id
        return number

    def begin(self, interface: int, direction: int, frames: Sequence[Frame]) -> int:
        """Encode `frames`, which set out now; a mark for `end`, which must follow."""
        mark = len(self._pending)
        self._depth += 1
        if self._file is None:
            return mark
        wall = self._clock.wall()
        for frame in frames:
            data = frame_bytes(frame)
            if not data:  # the writer refuses it; the slot is there for `end`
                self.counters["dropped_empty"] += 1
                self._pending.append(b"")
                continue
            self._encode(
                self._section.new_member(
                    self._blocks.EnhancedPacket,
                    interface_id=interface,
                    timestamp_high=wall >> 32,
                    timestamp_low=wall & 0xFFFFFFFF,
                    packet_data=data,
                    options={"epb_flags": direction},
                )
            )
        return mark

    def end(self, mark: int, offered: int, taken: int) -> None:
        """Of the `offered` frames since `mark` the first `taken` are to be written."""
        self._depth -= 1
        if self._file is None:
            self.counters["dropped_closed"] += taken
        else:
            self.counters["frames"] += taken
            for slot in range(mark + taken, mark + offered):
                self._pending[slot] = b""
        if self._depth == 0:
            self._flush()

    def _encode(self, block: object) -> None:
        self._writer.write_block(block)
        self._collect()

    def _collect(self) -> None:
        self._pending.append(self._buffer.getvalue())
        self._buffer.seek(0)
        self._buffer.truncate()

    def _flush(self) -> None:
        data = memoryview(b"".join(self._pending))
        frames = len(self._pending)
        self._pending.clear()
        if self._file is None or not data:
            return
        try:
            while data:
                data = data[self._file.write(data) :]
            self._file.flush()
        except OSError:
            self.counters["dropped_write_error"] += frames
            self.close()

    def close(self) -> None:
        """Write nothing more; a file that was opened here is closed."""
        file, self._file = self._file, None
        if file is not None and self._owned:
            file.close()


class PcapLink(Wrapper):
    """`inner` with all that passes written to `file` as the interface `name`. `PcapFile.tap` makes one.

    Closing the link leaves the file open: other links may share it.
    """

    def __init__(self, inner: Link, file: PcapFile, name: str) -> None:
        super().__init__(inner)
        self._capture = file
        self._interface = file.add_interface(name)

    def _record(self, direction: int, frames: Sequence[Frame], pass_on: Callable[[Sequence[Frame]], int]) -> int:
        capture = self._capture
        mark = capture.begin(self._interface, direction, frames)
        taken = 0
        try:
            taken = pass_on(frames)
        finally:
            capture.end(mark, len(frames), taken)
        return taken

    def transmit(self, frames: Sequence[Frame]) -> int:
        """Send frames, and record those that were taken."""
        return self._record(OUTBOUND, frames, self.inner.transmit)

    def receive(self, frames: Sequence[Frame]) -> int:
        """Hand frames to the receiver, and record those that it took."""
        return self._record(INBOUND, frames, super().receive)

    def read_into(self, views: Views) -> int:
        """Read the next frame, and record it; one that is cut off is recorded cut off."""
        length = self.inner.read_into(views)
        if length:
            self._record(INBOUND, [(None, _pieces(views, self.header_size, length))], len)
        return length


def _pieces(views: Views, start: int, end: int) -> Views:
    """Views of the bytes `start` to `end` of what `views` hold together."""
    pieces: Views = []
    at = 0
    for view in views:
        if at >= end:
            break
        pieces.append(memoryview(view)[max(0, start - at) : end - at])
        at += len(view)
    return pieces
