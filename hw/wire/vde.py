"""A wire into a port of a VDE switch (`vde_switch`), which VMs and other stacks share.

The switch has a control socket, `ctl` in its folder. A client connects, names a datagram socket of its own, and is told
the switch's for its port; frames go between the two, one in each datagram. The port is ours for as long as the
connection to `ctl` is open.

Read: the switch's request of version 3, as vdeplug and QEMU's netdev `vde` send it; `link.py`, `descriptor.py`.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import tempfile

from hw.loop import Loop
from hw.wire.descriptor import DescriptorLink
from hw.wire.endpoint import parse_place
from hw.wire.link import Views, WireError

# struct request_v3: magic, version, type and port, the client's socket (sockaddr_un), and a description behind it.
_REQUEST = struct.Struct("<III")
_SOCKADDR = struct.Struct("<H108s")
_MAGIC = 0xFEEDFACE
_VERSION = 3
_NEW_CONTROL = 0  # the type; the port stands from bit 8 up, 0 for any that is free
_TIMEOUT = 5.0  # seconds that the switch has to answer


class VdeLink(DescriptorLink):
    """A port of the switch at `place`.

    Args:
        loop: its clock must be real.
        place: the switch's folder, and the number of a port in brackets if it matters: "/run/vde.ctl[3]".

    Raises WireError where there is no switch, or it has no such port.
    """

    def __init__(self, loop: Loop, place: str) -> None:
        super().__init__(loop, f"vde:{place}")
        try:
            folder, port = parse_place(place)
        except ValueError as error:
            raise WireError(f"{self.name}: {error}") from None
        self._folder = tempfile.mkdtemp(prefix="vde")
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            there = self._ask(folder, port, os.path.join(self._folder, "port"))
        except OSError as error:
            self._control.close()
            self._socket.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise WireError(
                f"{self.name}: no VDE switch answers there: {error.strerror or error}; "
                f"start one with: vde_switch -s {folder} -daemon"
            ) from None
        self._control.setblocking(False)
        loop.set_reader(self._control.fileno(), self._switch_said)
        sock = self._socket
        self._start(sock.fileno(), lambda views: sock.sendmsg(views, (), 0, there))

    def _ask(self, folder: str, port: int, ours: str) -> str:
        """The switch's socket for our port. Raises OSError."""
        self._socket.bind(ours)
        control = self._control
        control.settimeout(_TIMEOUT)
        control.connect(os.path.join(folder, "ctl"))
        description = f"vring {os.getpid()}".encode()
        control.sendall(
            _REQUEST.pack(_MAGIC, _VERSION, _NEW_CONTROL | port << 8)
            + _SOCKADDR.pack(socket.AF_UNIX, ours.encode()) + description + b"\0"
        )  # fmt: skip
        answer = b""
        while len(answer) < _SOCKADDR.size:
            part = control.recv(_SOCKADDR.size - len(answer))
            if not part:
                raise OSError(f"it hung up; does port {port} exist, and is it free?")
            answer += part
        family, path = _SOCKADDR.unpack(answer)
        if family != socket.AF_UNIX or not path.strip(b"\0"):
            raise OSError("its answer is no address of a socket")
        return os.fsdecode(path.partition(b"\0")[0])

    def _switch_said(self) -> None:
        """The switch ends the connection when it ends, and says nothing else."""
        try:
            said = self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self._loop.forget(self._control.fileno())
            self.counters["switch_gone"] += 1
            self.set_carrier(False)

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
        """Leave the port."""
        if self._fd < 0:
            return
        super().close()
        self._socket.detach()  # its descriptor is closed already
        self._loop.forget(self._control.fileno())
        self._control.close()
        shutil.rmtree(self._folder, ignore_errors=True)
