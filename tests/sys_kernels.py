"""Two kernels with one set of calls: the host's, through the standard library and libc, and ours.

Both take the standard library's arguments; where a test hands in a `sockaddr` as bytes, the host gets exactly these
bytes, through libc. Calls that fail give the errno's name as their result.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import termios
from contextlib import AbstractContextManager
from typing import Any, Protocol

from tests.sys_world import World

_libc = ctypes.CDLL(None, use_errno=True)


class Kernel(Protocol):
    """What the table drives. A socket is whatever `socket` gave."""

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of a call, or the name of its errno or exception."""

    def take(self, sock: Any) -> Any:
        """Accept a connection: its socket, and the peer's address."""

    def close(self) -> None:
        """Close all that is open."""


def outcome(error: Exception) -> str:
    """What a call that failed gives."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return "timed out"
    if isinstance(error, OSError) and error.errno in errno.errorcode:
        return {"ENOTSUP": "EOPNOTSUPP"}.get(errno.errorcode[error.errno], errno.errorcode[error.errno])
    if isinstance(error, OSError):
        return f"resolver: {error.errno}"
    return type(error).__name__


class OurKernel:
    """The guest's calls, with its loopback emptied after each."""

    def __init__(self) -> None:
        self.world = World()
        self.world.calls.block = self.world.block

    def call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self.world.calls, name)(*arguments)
        except (OSError, TypeError, ValueError, OverflowError) as error:
            return outcome(error)
        finally:
            self.world.settle()

    def take(self, fd: int) -> Any:
        """Accept."""
        return self.call("accept", fd)

    def close(self) -> None:
        self.world.close()


class HostKernel:
    """The host's kernel, in a network namespace of the test's own if one is given."""

    def __init__(self, inside: AbstractContextManager[None]) -> None:
        self._inside = inside
        self._inside.__enter__()
        self._sockets: list[socket.socket] = []

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._inside.__exit__(None, None, None)

    def call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self, f"_{name}")(*arguments)
        except (OSError, TypeError, ValueError, OverflowError) as error:
            return outcome(error)

    def _keep(self, sock: socket.socket) -> socket.socket:
        self._sockets.append(sock)
        return sock

    def _socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return self._keep(socket.socket(family, kind, protocol))

    def _raw_address(self, function: Any, sock: socket.socket, *arguments: Any) -> int:
        result: int = function(sock.fileno(), *arguments)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def _bind(self, sock: socket.socket, address: Any) -> None:
        if isinstance(address, bytes):
            self._raw_address(_libc.bind, sock, address, len(address))
        else:
            sock.bind(address)

    def _connect(self, sock: socket.socket, address: Any) -> None:
        if address is None:
            address = bytes(16)
        if isinstance(address, bytes):
            self._raw_address(_libc.connect, sock, address, len(address))
        else:
            sock.connect(address)

    def _send(self, sock: socket.socket, data: bytes, flags: int = 0) -> int:
        return sock.send(data, flags)

    def _sendto(self, sock: socket.socket, data: bytes, address: Any, flags: int = 0) -> int:
        if isinstance(address, bytes):
            return self._raw_address(_libc.sendto, sock, data, len(data), flags, address, len(address))
        return sock.sendto(data, flags, address)

    def _poll(self, fds: list[tuple[socket.socket, int]], timeout: int) -> list[int]:
        poll = select.poll()
        for sock, events in fds:
            poll.register(sock, events)
        return [events for _, events in sorted(poll.poll(timeout / 1000))]

    def _fcntl(self, sock: socket.socket, command: int, argument: int = 0) -> int:
        return fcntl.fcntl(sock, command, argument)

    def _dup(self, sock: socket.socket) -> socket.socket:
        return self._keep(sock.dup())

    def _accept(self, sock: socket.socket) -> Any:
        return sock._accept()  # type: ignore[attr-defined]  # the call as such, without a socket object around it

    def take(self, sock: socket.socket) -> Any:
        """Accept; what never comes is a mistake of the table's, not a test that hangs."""
        timed = any(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))
        patient = os.get_blocking(sock.fileno()) and not timed
        if patient and not self._poll([(sock, select.POLLIN)], 2_000_000):
            raise AssertionError("nobody has connected")
        accepted = self.call("accept", sock)
        if isinstance(accepted, str):
            return accepted
        fd, address = accepted
        return self._keep(socket.socket(fileno=fd)), address

    def _ioctl(self, sock: socket.socket, request: int, argument: int = 0) -> int:
        told = fcntl.ioctl(sock, request, argument.to_bytes(4, "little"))
        return 0 if request == termios.FIONBIO else int.from_bytes(told, "little")

    def _read(self, sock: socket.socket, size: int) -> bytes:
        return os.read(sock.fileno(), size)

    def _write(self, sock: socket.socket, data: bytes) -> int:
        return os.write(sock.fileno(), data)

    def _close(self, sock: socket.socket) -> None:
        if sock.fileno() < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # the standard library keeps silent
        sock.close()

    def _set_timeout(self, sock: socket.socket, timeout: int | None) -> None:
        sock.settimeout(None if timeout is None else timeout / 1_000_000)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda sock, *arguments: getattr(sock, name[1:])(*arguments)
