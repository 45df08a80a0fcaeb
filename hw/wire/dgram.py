"""A wire through datagrams, as QEMU's netdev `dgram` has it: one frame in each, between two sockets.

The sockets lie in the file system or are UDP ports. Neither side connects, so either may come and go: what is sent
while nobody is there is dropped and counted (`tx_dropped_no_peer`).

Read: QEMU's documentation of `-netdev dgram`; `link.py`, `descriptor.py`.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from hw.loop import Loop
from hw.wire.descriptor import DescriptorLink
from hw.wire.endpoint import family_of, parse_address
from hw.wire.link import Views, WireError


class DatagramLink(DescriptorLink):
    """One end of a pair of sockets.

    Args:
        loop: its clock must be real.
        local, remote: a path, or "HOST:PORT" with a numeric host, both of one kind. What comes from elsewhere than
            `remote` is not looked at, where the host tells (UDP).

    Raises WireError for addresses that cannot be, or a local one that cannot be had.
    """

    def __init__(self, loop: Loop, local: str, remote: str) -> None:
        super().__init__(loop, f"dgram:{local}")
        try:
            here, there = parse_address(local), parse_address(remote)
        except ValueError as error:
            raise WireError(f"{self.name}: {error}") from None
        if family_of(here) != family_of(there):
            raise WireError(f"{self.name}: {remote} is another kind of address")
        sock = socket.socket(family_of(here), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._path = ""
        try:
            if isinstance(here, str) and is_left_over(here):
                os.unlink(here)
            sock.bind(here)
            self._path = here if isinstance(here, str) else ""
            if isinstance(there, tuple):
                sock.connect(there)
        except OSError as error:
            sock.close()
            raise WireError(f"{self.name}: cannot be opened: {error.strerror or error}") from None
        self._socket = sock
        if isinstance(there, str):
            self._start(sock.fileno(), lambda views: sock.sendmsg(views, (), 0, there))
        else:
            self._start(sock.fileno(), sock.sendmsg)

    def read_into(self, views: Views) -> int:
        """The next frame, read straight into `views`; see `Link.read_into`."""
        while True:
            try:
                length = self._socket.recvmsg_into(views)[0]
            except BlockingIOError:
                return 0
            except OSError as error:
                self._failed("rx_error", error)
                return 0
            if length:
                return self._received(length)
            self.counters["rx_dropped_empty"] += 1

    def close(self) -> None:
        """Close the socket, and take its path away."""
        super().close()
        self._socket.detach()  # its descriptor is closed already
        if self._path:
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            self._path = ""


def is_left_over(path: str) -> bool:
    """Whether there is a datagram socket that nobody has open any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
