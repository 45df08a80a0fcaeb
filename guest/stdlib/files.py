"""What `makefile` gives: a socket as an io stream."""

from __future__ import annotations

import errno
import io
from typing import Any

BLOCKING = (errno.EAGAIN, errno.EWOULDBLOCK)


class SocketIO(io.RawIOBase):
    """A socket as an unbuffered stream. Closing it leaves the socket open, unless the socket was closed before."""

    def __init__(self, sock: Any, mode: str) -> None:
        if mode not in ("r", "w", "rw", "rb", "wb", "rwb"):
            raise ValueError(f"invalid mode: {mode!r}")
        super().__init__()
        self._sock: Any = sock
        self._mode = mode if "b" in mode else mode + "b"
        self._late = False  # a read has timed out: what came in part of it is lost

    @property
    def mode(self) -> str:
        """As it was made with, with the b that it always has."""
        return self._mode

    @property
    def name(self) -> int:
        """The descriptor; -1 when it is closed."""
        return -1 if self.closed else self.fileno()

    def _open(self) -> Any:
        """The socket. Raises ValueError when it is closed."""
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return self._sock

    def _can(self, what: bool) -> bool:
        if self.closed:
            raise ValueError("I/O operation on closed socket.")  # the standard library's two say it in two ways
        return what

    def readable(self) -> bool:
        return self._can("r" in self._mode)

    def writable(self) -> bool:
        return self._can("w" in self._mode)

    def seekable(self) -> bool:
        return self._can(False)

    def fileno(self) -> int:
        number: int = self._open().fileno()
        return number

    def readinto(self, buffer: Any) -> int | None:
        """Read what is there; how many bytes, 0 at the end, None when a socket that must not block would."""
        sock = self._open()
        if "r" not in self._mode:
            raise io.UnsupportedOperation("not readable")
        if self._late:
            raise OSError("cannot read from timed out object")
        try:
            got: int = sock.recv_into(buffer)
        except TimeoutError:
            self._late = True
            raise
        except OSError as error:
            if error.errno in BLOCKING:
                return None
            raise
        return got

    def write(self, data: Any) -> int | None:
        """Send; how many bytes were taken, None when a socket that must not block would."""
        sock = self._open()
        if "w" not in self._mode:
            raise io.UnsupportedOperation("not writable")
        try:
            sent: int = sock.send(data)
        except OSError as error:
            if error.errno in BLOCKING:
                return None
            raise
        return sent

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        sock, self._sock = self._sock, None
        sock._decref_socketios()


SocketIO.__module__ = "socket"
SocketIO.__qualname__ = "SocketIO"


def stream(
    sock: Any, mode: str, buffering: int | None, encoding: str | None, errors: str | None, newline: str | None
) -> Any:
    """The stream that `open` would give for a file of this mode; text unless "b" is in it. Raises ValueError."""
    if not set(mode) <= {"r", "w", "b"}:
        raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
    writing = "w" in mode
    reading = "r" in mode or not writing
    size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
    if not size and "b" not in mode:
        raise ValueError("unbuffered streams must be binary")
    raw = SocketIO(sock, ("r" if reading else "") + ("w" if writing else ""))
    sock._io_refs += 1
    if not size:
        return raw
    buffered: Any
    if reading and writing:
        buffered = io.BufferedRWPair(raw, raw, size)
    else:
        buffered = io.BufferedReader(raw, size) if reading else io.BufferedWriter(raw, size)
    if "b" in mode:
        return buffered
    text: Any = io.TextIOWrapper(buffered, encoding, errors, newline)
    text.mode = mode
    return text
