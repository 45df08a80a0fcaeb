"""A wire through a stream socket, as QEMU's netdev `stream` (and `socket,listen/connect`) has it.

Each frame is sent behind its length, 32 bits, most significant byte first. One side listens, the other connects; a
client that finds nobody tries again, a server takes the next peer when one has left. Without a peer the link has no
carrier, and what is sent is dropped and counted.

Promises:
- One system call for a batch each way; nothing waits. When the peer does not read, the link takes no more frames.
- A length of 0, or one that no frame can have, ends that connection and is counted: what follows it cannot be found.

Read: QEMU's net/stream.c and its documentation of `-netdev stream`; `link.py`.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Sequence

from hw.clock import Timer
from hw.loop import Loop
from hw.wire.endpoint import Address, family_of, parse_address
from hw.wire.finish import finished, is_unfinished
from hw.wire.link import FRAME_MAX, Frame, Link, Views, WireError

RETRY_EVERY = 500_000  # microseconds between attempts of a client
LENGTH = struct.Struct(">I")
_BUFFER = 1 << 18  # bytes that are read at once; more than the largest frame
_PIECES = 1000  # buffers of one system call (the host takes 1024)


class StreamLink(Link):
    """One end of a stream.

    Args:
        loop: its clock must be real.
        address: a path of the file system, or "HOST:PORT" with a numeric host ("[HOST]:PORT" for IPv6).
        server: listen there instead of connecting.

    Counters: `tx_frames`, `tx_bytes`, `rx_frames`, `rx_bytes`, `connected`, `tx_blocked`, `tx_dropped_no_peer`,
    `tx_dropped_offload`, `tx_dropped_disconnected` (bytes were under way when the peer left), `rx_dropped_no_receiver`,
    `rx_bad_length`.

    Raises WireError for an address that cannot be, or that cannot be listened on.
    """

    carrier = False

    def __init__(self, loop: Loop, address: str, *, server: bool = False) -> None:
        super().__init__(f"stream:{address}{',server' if server else ''}")
        if loop.clock.virtual:
            raise WireError(f"{self.name}: leads outside, where time is real; use --clock real, or --wire hub")
        try:
            self._address: Address = parse_address(address)
        except ValueError as error:
            raise WireError(f"{self.name}: {error}") from None
        self._loop = loop
        self._peer: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._retry: Timer | None = None
        self._closed = False
        self._paused = False
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._from = self._to = 0  # what is in the buffer and not yet delivered
        self._rest = b""  # frames that were taken and not yet written
        if server:
            self._listen()
        else:
            self._connect()

    # -- connecting ------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        address = self._address
        listener = socket.socket(family_of(address), socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            if isinstance(address, str):
                _remove_left_over(address)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
        except OSError as error:
            listener.close()
            raise WireError(f"{self.name}: cannot listen: {error.strerror or error}") from None
        self._listener = listener
        loop = self._loop
        loop.set_reader(listener.fileno(), lambda: self._accept(listener))

    @property
    def port(self) -> int:
        """The TCP port that is listened on, for who asked for port 0."""
        assert self._listener is not None
        return int(self._listener.getsockname()[1])

    def _accept(self, listener: socket.socket) -> None:
        try:
            peer = listener.accept()[0]
        except OSError:
            return
        if self._peer is not None:
            peer.close()
            self.counters["turned_away"] += 1
            return
        peer.setblocking(False)
        self._begin(peer)

    def _connect(self) -> None:
        self._retry = None
        peer = socket.socket(
            family_of(self._address), socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            peer.connect(self._address)
        except BlockingIOError:
            self._loop.set_writer(peer.fileno(), lambda: self._connected(peer))
            self._peer_to_be = peer
        except OSError:
            peer.close()
            self._try_later()
        else:
            self._begin(peer)

    _peer_to_be: socket.socket | None = None

    def _connected(self, peer: socket.socket) -> None:
        """A connection that took its time is there, or not."""
        self._loop.forget(peer.fileno())
        self._peer_to_be = None
        if peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            peer.close()
            self._try_later()
        else:
            self._begin(peer)

    def _try_later(self) -> None:
        if not self._closed and self._listener is None:
            self._retry = self._loop.clock.after(RETRY_EVERY, self._connect)

    def _begin(self, peer: socket.socket) -> None:
        if peer.family != socket.AF_UNIX:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = peer
        self._from = self._to = 0
        self._rest = b""
        self.counters["connected"] += 1
        if not self._paused:
            self._loop.set_reader(peer.fileno(), self._readable)
        self.set_carrier(True)

    def _lost(self) -> None:
        """The peer left, or cannot be understood any more."""
        peer, self._peer = self._peer, None
        if peer is None:
            return
        if self._rest:
            self.counters["tx_dropped_disconnected"] += 1
        self._rest = b""
        self._loop.forget(peer.fileno())
        peer.close()
        self.set_carrier(False)
        self._try_later()
        if self.receiver is not None:
            self.receiver.writable()  # what waits is dropped now, and counted

    # -- sending ---------------------------------------------------------------------------------------------------

    def transmit(self, frames: Sequence[Frame]) -> int:
        """Write frames; none while earlier ones wait."""
        if self._peer is None:
            self.counters["tx_dropped_no_peer"] += len(frames)
            return len(frames)
        if self._rest:
            return 0
        pieces: Views = []
        counters = self.counters
        for frame in frames:
            header = frame[0]
            if header is not None and is_unfinished(header):
                made = finished(frame)
                counters["tx_finished" if made else "tx_dropped_offload"] += 1
            else:
                made = [frame]
            for _, part in made:
                length = sum(map(len, part))
                pieces.append(LENGTH.pack(length))
                pieces += part
                counters["tx_frames"] += 1
                counters["tx_bytes"] += length
        self._write(pieces)
        return len(frames)

    def _write(self, pieces: Views) -> None:
        """Write all pieces, or keep a copy of what the peer has no room for."""
        for at in range(0, len(pieces), _PIECES):
            some = pieces[at : at + _PIECES]
            size = sum(map(len, some))
            sent = self._send(some)
            if self._peer is None:
                return
            if sent < size:
                self._rest = b"".join(pieces[at:])[sent:]
                self.counters["tx_blocked"] += 1
                self._loop.set_writer(self._peer.fileno(), self._writable)
                return

    def _send(self, pieces: Views) -> int:
        """How many bytes the host took."""
        assert self._peer is not None
        try:
            return self._peer.sendmsg(pieces)
        except BlockingIOError:
            return 0
        except OSError:
            self._lost()
            return 0

    def _writable(self) -> None:
        if self._peer is None:
            return
        sent = self._send([self._rest])
        if self._peer is None:
            return
        self._rest = self._rest[sent:]
        if not self._rest:
            self._loop.set_writer(self._peer.fileno(), None)
            if self.receiver is not None:
                self.receiver.writable()

    # -- receiving -------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        """Read what there is, and deliver the frames that are whole."""
        peer = self._peer
        if peer is None:
            return
        if self._from:
            left = self._to - self._from
            self._buffer[:left] = self._buffer[self._from : self._to]
            self._from, self._to = 0, left
        try:
            count = peer.recv_into(self._view[self._to :])
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._lost()
            return
        self._to += count
        self._deliver()

    def _deliver(self) -> None:
        frames: list[Frame] = []
        ends: list[int] = []
        at, end, view = self._from, self._to, self._view
        bad = False
        while end - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(view, at)
            if not 0 < length <= FRAME_MAX:
                bad = True
                break
            if end - at < LENGTH.size + length:
                break
            at += LENGTH.size
            frames.append((None, [view[at : at + length]]))
            at += length
            ends.append(at)
        if frames:
            if self.receiver is None:
                taken = len(frames)
                self.counters["rx_dropped_no_receiver"] += taken
            else:
                taken = self.receiver.receive(frames)
            if taken:
                self.counters["rx_bytes"] += ends[taken - 1] - self._from - taken * LENGTH.size
                self.counters["rx_frames"] += taken
                self._from = ends[taken - 1]
            if taken < len(frames):
                self.pause()
                return
        if bad:
            self.counters["rx_bad_length"] += 1
            self._lost()

    def read_into(self, views: Views) -> int:
        """Frames are handed over; there is nothing to be read."""
        return 0

    def pause(self) -> None:
        """Leave the rest where it is until `resume`."""
        if not self._paused:
            self._paused = True
            if self._peer is not None:
                self._loop.set_reader(self._peer.fileno(), None)

    def resume(self) -> None:
        """Deliver what waits, a turn later, and read on."""
        if self._paused:
            self._paused = False
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._peer is None or self._paused:
            return
        self._deliver()
        if self._peer is not None and not self._paused:
            self._loop.set_reader(self._peer.fileno(), self._readable)

    def close(self) -> None:
        """Hang up and listen no more. Harmless when closed."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._peer_to_be is not None:
            self._loop.forget(self._peer_to_be.fileno())
            self._peer_to_be.close()
        if self._listener is not None:
            self._loop.forget(self._listener.fileno())
            self._listener.close()
            if isinstance(self._address, str):
                _unlink(self._address)
        self.receiver = None
        self._lost()


def _remove_left_over(path: str) -> None:
    """Take away a socket that nobody listens on any more; what is no socket stays. Raises OSError."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except FileNotFoundError:
        return


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
