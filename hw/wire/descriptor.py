"""What wires with a host descriptor have in common: readiness, back-pressure, and what the host's errors mean.

Promises:
- A frame goes out with one system call and no copy, from the views that were handed in.
- When the host has no room, `transmit` takes fewer frames, and the receiver's `writable` is called once there is room.
- An error of the host drops that frame, counted with the reason; none is raised. When the interface is gone the link
  loses carrier and is no longer watched.

The file does no system call but close: `tap.py` and `packet.py` hand in how to send and read.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Sequence

from hw.abi.virtio_net import ZERO_HEADER
from hw.loop import Loop
from hw.wire.finish import finished, is_unfinished
from hw.wire.link import Frame, Link, Views, WireError

_REASONS = {
    errno.EIO: "link_down",  # a TAP whose interface is not up
    errno.ENETDOWN: "link_down",  # the same for a packet socket
    errno.EINVAL: "refused",  # a runt, or a virtio header that does not fit its frame
    errno.EMSGSIZE: "too_long",
    errno.ENOBUFS: "no_buffer",  # the interface's own queue is full
    errno.ENOMEM: "no_buffer",
    errno.ECONNREFUSED: "no_peer",  # a datagram socket that nobody has open
    errno.ENOENT: "no_peer",
    errno.EBADFD: "interface_gone",
    errno.ENODEV: "interface_gone",
    errno.ENXIO: "interface_gone",
}
_DRAIN = 64  # frames thrown away at once while nobody is plugged in


class DescriptorLink(Link):
    """A link to an interface of the host. Subclasses open it, call `_start`, and override `read_into`.

    Args:
        loop: watches the descriptor; its clock must be real, or WireError is raised.
        name: for people, such as "tap:t0".

    Counters: `tx_frames`, `tx_bytes`, `rx_frames`, `rx_bytes` (without virtio header), `tx_blocked` (times that the
    host had no room), `tx_finished` (frames whose checksum or segments were made here, on a link without virtio
    header), `tx_dropped_offload` (frames that this cannot be done to), `tx_dropped_…` and `rx_error_…` by the host's
    reason, `rx_dropped_no_receiver`.
    """

    def __init__(self, loop: Loop, name: str) -> None:
        super().__init__(name)
        if loop.clock.virtual:
            raise WireError(f"{name}: leads outside, where time is real; use --clock real, or --wire hub")
        self._loop = loop
        self._fd = -1
        self._blocked = False
        self._rest: deque[Views] = deque()  # segments of a frame that was taken; copies
        self._scratch = bytearray(64)
        self._send: Callable[[Views], int] = self._closed

    def _start(self, fd: int, send: Callable[[Views], int]) -> None:
        """Watch `fd`, which this link owns from now on; `send` writes one frame, as OSError tells."""
        self._fd = fd
        self._send = send
        self.resume()

    def fileno(self) -> int:
        """The host descriptor, or -1 when closed."""
        return self._fd

    def _closed(self, views: Views) -> int:
        raise OSError(errno.ENODEV, "closed")

    def transmit(self, frames: Sequence[Frame]) -> int:
        """Write frames to the host; fewer when it has no room."""
        if self._blocked:
            return 0
        send = self._send
        with_header = bool(self.header_size)
        taken = sent = size = 0
        for header, views in frames:
            if with_header:
                pieces: Views = [ZERO_HEADER if header is None else header, *views]
            elif header is not None and is_unfinished(header):
                taken += 1
                if self._send_finished((header, views)):
                    continue
                break
            else:
                pieces = views
            try:
                size += send(pieces)
                sent += 1
            except BlockingIOError:
                self._block()
                break
            except OSError as error:
                self._failed("tx_dropped", error)
            taken += 1
        self.counters["tx_frames"] += sent
        self.counters["tx_bytes"] += size - sent * self.header_size
        return taken

    def _block(self) -> None:
        """The host has no room: wait for some."""
        self.counters["tx_blocked"] += 1
        self._blocked = True
        self._loop.set_writer(self._fd, self._on_writable)

    def _send_finished(self, frame: Frame) -> bool:
        """Do what the header of `frame` asks for, and write what comes of it; False when some of it has to wait."""
        made = finished(frame)
        self.counters["tx_finished" if made else "tx_dropped_offload"] += 1
        self._rest += [views for _, views in made]
        return self._send_rest()

    def _send_rest(self) -> bool:
        """Write the segments that wait; whether none is left."""
        rest = self._rest
        while rest:
            try:
                self.counters["tx_bytes"] += self._send(rest[0])
                self.counters["tx_frames"] += 1
            except BlockingIOError:
                self._block()
                return False
            except OSError as error:
                self._failed("tx_dropped", error)
            rest.popleft()
        return True

    def _on_writable(self) -> None:
        self._loop.set_writer(self._fd, None)
        self._blocked = False
        if not self._send_rest():
            return
        if self.receiver is not None:
            self.receiver.writable()

    def _on_readable(self) -> None:
        if self.receiver is not None:
            self.receiver.pull(self)
            return
        for _ in range(_DRAIN):
            if not self.read_into([self._scratch]):
                return
            self.counters["rx_dropped_no_receiver"] += 1

    def _received(self, length: int) -> int:
        """Count a frame that was read; `length` comes back."""
        self.counters["rx_frames"] += 1
        self.counters["rx_bytes"] += length - self.header_size
        return length

    def _failed(self, what: str, error: OSError) -> None:
        """Count what the host refused."""
        reason = _REASONS.get(error.errno or 0, "error")
        self.counters[f"{what}_{reason}"] += 1
        if reason == "interface_gone":
            self._unwatch()
            self.set_carrier(False)

    def pause(self) -> None:
        """Leave frames in the host's queue until `resume`; what that cannot hold the host drops and counts."""
        if self._fd >= 0:
            self._loop.set_reader(self._fd, None)

    def resume(self) -> None:
        """Watch for frames again."""
        if self._fd >= 0 and self.carrier:
            self._loop.set_reader(self._fd, self._on_readable)

    def _unwatch(self) -> None:
        self._loop.set_reader(self._fd, None)
        self._loop.set_writer(self._fd, None)
        self._blocked = False
        self._rest.clear()

    def close(self) -> None:
        """Stop watching and close the descriptor; frames sent from now on are dropped and counted."""
        if self._fd >= 0:
            self._unwatch()
            self._send = self._closed
            fd, self._fd = self._fd, -1
            self.set_carrier(False)
            os.close(fd)


def alternatives() -> str:
    """The wires that need no right, for the one line that says that a right is missing."""
    return "--wire user, to reach the outside, and --wire hub need no right"
