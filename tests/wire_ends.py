"""What the tests of the wires plug in: receivers that keep what they get, and frames that say who they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hw.wire.link import Frame, Link, Receiver, frame_bytes

BROADCAST = b"\xff" * 6


def mac(number: int) -> bytes:
    """A unicast address, locally administered."""
    return bytes((0x02, 0, 0, 0, number >> 8 & 0xFF, number & 0xFF))


def frame(dst: bytes, src: bytes, text: bytes = b"", *, size: int = 60, header: bytes | None = None) -> Frame:
    """An Ethernet frame of the local experimental type, padded to `size`."""
    return header, [(dst + src + b"\x88\xb5" + text).ljust(size, b"\0")]


class Station(Receiver):
    """Takes frames while it has `room`, and keeps copies; views are dead after the call, as on a real wire."""

    def __init__(self, link: Link | None = None, *, room: int | None = None) -> None:
        self.link = link
        self.room = room
        self.got: list[bytes] = []
        self.headers: list[bytes | None] = []
        self.batches: list[int] = []
        self.seen: list[Frame] = []  # the very frames, for tests that ask whether they were copied
        self.carriers: list[bool] = []
        self.writable_calls = 0
        self.inside = 0
        self.deepest = 0
        self.on_receive: Callable[[Sequence[Frame]], object] | None = None
        if link is not None:
            link.attach(self)

    def receive(self, frames: Sequence[Frame]) -> int:
        self.inside += 1
        self.deepest = max(self.deepest, self.inside)
        taken = len(frames) if self.room is None else min(self.room, len(frames))
        if self.room is not None:
            self.room -= taken
        self.batches.append(taken)
        for one in frames[:taken]:
            self.seen.append(one)
            self.got.append(frame_bytes(one))
            self.headers.append(None if one[0] is None else bytes(one[0]))
        if self.on_receive is not None:
            self.on_receive(frames[:taken])
        self.inside -= 1
        return taken

    def writable(self) -> None:
        self.writable_calls += 1

    def carrier_changed(self) -> None:
        assert self.link is not None
        self.carriers.append(self.link.carrier)

    def texts(self) -> list[bytes]:
        """What the frames said, without padding."""
        return [data[14:].rstrip(b"\0") for data in self.got]
