"""How the data calls work on streams: waiting for room and for data, and which flags do what. send(2), recv(2), tcp(7).

Each byte is copied once each way by the endpoint: out of the writer's memory, and into the reader's.

A call that finds nothing to do waits for the endpoint's next sign that something has changed; so nothing is missed and
nobody spins. What a call has moved before it had to stop (time, a signal, an error behind the data) is its result, and
the reason is for the next call.

A socket with `set_timeout` is non-blocking underneath, as in the standard library: `send` and `recv` wait once and then
do what they can; MSG_WAITALL has no patience there.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from guest.sys import constants as c
from guest.sys.ancillary import Item
from guest.sys.core import Core
from guest.sys.fault import check, fault
from guest.sys.sockaddr import Destination, SocketAddress
from guest.sys.stream_file import OPENING, UNDER_WAY, StreamFile

if TYPE_CHECKING:
    from guest.net.interface import Interface

SCRATCH = 65536  # what MSG_TRUNC throws away at a time


class StreamCalls(Core):
    """What the calls of the other classes do on streams."""

    def _next_sign(self, file: StreamFile, flags: int, events: int, since: int, *, receiving: bool = True) -> None:
        """Wait until something has happened to `file`. Raises as `_pause`."""
        seen = file.serial
        self._pause(file, flags, events, lambda: file.serial != seen, since, receiving=receiving)

    # -- connecting ----------------------------------------------------------------------------------------------

    def _stream_connect(self, file: StreamFile, where: Destination, interface: Interface | None) -> None:
        """Connect, and wait for that if the socket may block. Raises as `SocketCalls.connect`."""
        endpoint = file.endpoint
        first = number = file.connect(where.address, where.port, interface)
        if number in (0, errno.EINPROGRESS):
            file.found_peer(where.scope)
        timed = file.timeout is not None  # then the standard library waits for an attempt that began, and asks SO_ERROR
        if file.nonblocking or number not in (UNDER_WAY[:1] if timed else UNDER_WAY):
            check(number)
            return
        since = self._now()
        with file:
            try:
                while endpoint.connecting if timed else number in UNDER_WAY:
                    self._next_sign(file, 0, c.POLLOUT, since, receiving=False)
                    if not timed:
                        number = file.connect(where.address, where.port, interface)
            except BlockingIOError:  # SO_SNDTIMEO has passed
                check(first)
        check(endpoint.take_error() if timed else number)

    # -- sending -------------------------------------------------------------------------------------------------

    def _stream_send(self, file: StreamFile, pieces: Sequence[memoryview], flags: int = 0) -> int:
        """Send all of `pieces`, waiting for room; how many bytes were taken. Raises as `DataCalls.sendmsg`."""
        oob, more = bool(flags & c.MSG_OOB), bool(flags & c.MSG_MORE)
        left = sum(map(len, pieces))
        done = 0
        since: int | None = None
        with file:
            while True:
                try:
                    taken = file.send(pieces, oob=oob, more=more)
                    done += taken
                    left -= taken
                    if left == 0 and (done or file.endpoint.state not in OPENING):
                        break
                    if done and file.timeout is not None:
                        break
                    pieces = _behind(pieces, taken)
                    since = self._now() if since is None else since
                    self._next_sign(file, flags, c.POLLOUT, since, receiving=False)
                except OSError:
                    if not done:
                        raise
                    break
        self.counters["tx_copied_bytes"] += done
        return done

    # -- receiving -----------------------------------------------------------------------------------------------

    def _stream_read(self, file: StreamFile, size: int, flags: int) -> bytes:
        """Up to `size` bytes of the stream. Raises as `DataCalls.recvmsg`."""
        if flags & (c.MSG_OOB | c.MSG_TRUNC | c.MSG_WAITALL) or file.rcvlowat > 1 or not size:
            target = bytearray(size)
            done = self._stream_into(file, [memoryview(target)], flags)
            return bytes(memoryview(target)[:done])
        peek = bool(flags & c.MSG_PEEK)
        data = file.take(size, peek)
        if data is None:
            since = self._now()
            with file:
                while (data := file.take(size, peek)) is None:
                    self._next_sign(file, flags, c.POLLIN, since)
        self.counters["rx_copied_bytes"] += len(data)
        return data

    def _stream_into(self, file: StreamFile, views: Sequence[memoryview], flags: int) -> int:
        """Fill `views` from the stream; how many bytes. Raises as `DataCalls.recvmsg`."""
        if flags & c.MSG_OOB:
            return self._urgent(file, views, flags)
        size = sum(map(len, views))
        if flags & c.MSG_TRUNC:  # thrown away, and the caller's memory left alone
            scratch = memoryview(bytearray(min(size, SCRATCH)))
            views = [scratch] * (size // SCRATCH) + [scratch[: size % SCRATCH]]
        endpoint = file.endpoint
        peek = bool(flags & c.MSG_PEEK)
        once = file.timeout is not None
        enough = size if flags & c.MSG_WAITALL and not once else max(1, min(file.rcvlowat, size))
        since: int | None = None
        place = at = done = 0
        with file:
            while True:
                while place < len(views) and at == len(views[place]) and done < size:
                    place, at = place + 1, 0
                if done and (done == size or endpoint.error or endpoint.at_mark):
                    break
                target = views[place][at:] if views else memoryview(b"")
                copied = file.receive(target, peek=peek, offset=done if peek else 0)
                if copied:
                    done += copied
                    at += copied
                    if done >= enough and copied < len(target):
                        break
                elif copied == 0 or done >= enough or (done and once):
                    break
                else:
                    since = self._now() if since is None else since
                    try:
                        self._next_sign(file, flags, c.POLLIN, since)
                    except OSError:
                        if not done:
                            raise
                        break
        if not flags & c.MSG_TRUNC:
            self.counters["rx_copied_bytes"] += done
        return done

    def _urgent(self, file: StreamFile, views: Sequence[memoryview], flags: int) -> int:
        """The urgent byte, which is never waited for. Raises OSError: EINVAL (there is none), EAGAIN, ENOTCONN."""
        target = next((view for view in views if len(view)), None)
        into = memoryview(bytearray(1)) if target is None or flags & c.MSG_TRUNC else target
        got = file.endpoint.read_oob(into, peek=bool(flags & c.MSG_PEEK))
        if got < 0:
            raise fault(-got)
        self.counters["rx_copied_bytes"] += got if into is target else 0
        return 0 if target is None else got

    def _stream_message(
        self, file: StreamFile, views: Sequence[memoryview], flags: int
    ) -> tuple[int, list[Item], int, SocketAddress | None]:
        """What recvmsg gives of a stream: neither address nor ancillary data."""
        done = self._stream_into(file, views, flags)
        told = 0
        if flags & c.MSG_OOB:
            told = c.MSG_OOB if done else 0 if any(map(len, views)) else c.MSG_OOB | c.MSG_TRUNC
        return done, [], told, None


def _behind(pieces: Sequence[memoryview], size: int) -> Sequence[memoryview]:
    """What is left of `pieces` behind the first `size` bytes."""
    if not size:
        return pieces
    left = []
    for piece in pieces:
        if size < len(piece):
            left.append(piece[size:])
        size = max(0, size - len(piece))
    return left
