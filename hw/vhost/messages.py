"""What a front end says to a vhost-user back end, and what it makes of the answers.

A message is a header of 12 bytes (request, flags, length of the payload), the payload, and descriptors beside it. The
front end asks; the back end answers some requests always, and the others where REPLY_ACK was negotiated and the message
says so. Everything here waits, `ANSWER_TIMEOUT` at most, as QEMU does: a register write that starts or stops a queue is
over when it returns.

Read: docs/interop/vhost-user of QEMU (message specification, communication, starting and stopping ring processing).
"""

from __future__ import annotations

import array
import os
import socket

from hw.abi import vhost_user as abi
from hw.abi.virtio import VIRTIO_F_RING_PACKED
from hw.memory import GuestMemory

ANSWER_TIMEOUT = 5.0  # seconds
ANSWER_MAX = 4096  # bytes of payload that an answer can have
# Where the back end is told that guest RAM lies in this process. Only differences count; a value that is no
# guest-physical address shows a back end that takes one kind of address for the other.
USER_BASE = 1 << 40
PACKED_START = 0x8000_8000  # both halves at place 0, both wrap counters 1
WANTED = 1 << abi.VHOST_USER_PROTOCOL_F_REPLY_ACK | 1 << abi.VHOST_USER_PROTOCOL_F_MQ


class BackEndLost(Exception):
    """The back end hung up, did not answer, or answered what makes no sense; the text says which."""


class BackEnd:
    """A connection to a back end, features exchanged.

    Args:
        path: the Unix socket where it listens.

    Attributes:
        alive: until `close`.
        features: what it offers (a mask).
        pairs: how many pairs of queues it serves.

    Raises OSError where nobody listens or the answers do not come.
    """

    def __init__(self, path: str) -> None:
        self.alive = True
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(ANSWER_TIMEOUT)
        self.pairs = 1
        self._protocol = 0
        self._is_protocol = False
        try:
            self._socket.connect(path)
            self.features = self._ask_number(abi.VHOST_USER_GET_FEATURES)
            self._tell(abi.VHOST_USER_SET_OWNER)
            if self.features >> abi.VHOST_USER_F_PROTOCOL_FEATURES & 1:
                self._is_protocol = True
                self._protocol = self._ask_number(abi.VHOST_USER_GET_PROTOCOL_FEATURES) & WANTED
                self._tell(abi.VHOST_USER_SET_PROTOCOL_FEATURES, abi.U64.pack(self._protocol))
                if self._protocol >> abi.VHOST_USER_PROTOCOL_F_MQ & 1:
                    self.pairs = self._ask_number(abi.VHOST_USER_GET_QUEUE_NUM)
        except BackEndLost as error:
            self._socket.close()
            raise OSError(str(error)) from None
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The connection's descriptor; readable is at its end."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up. Harmless when closed."""
        self.alive = False
        self._socket.close()

    # -- what is said ----------------------------------------------------------------------------------------------

    def set_features(self, features: int) -> None:
        """The driver accepted `features` (those that are the back end's)."""
        if self._is_protocol:
            features |= 1 << abi.VHOST_USER_F_PROTOCOL_FEATURES
        self._tell(abi.VHOST_USER_SET_FEATURES, abi.U64.pack(features))

    def set_memory(self, memory: GuestMemory) -> None:
        """Share guest RAM, as one region."""
        region = abi.MEMORY_REGION.pack(memory.base, memory.size, USER_BASE, 0)
        self._tell(abi.VHOST_USER_SET_MEM_TABLE, abi.MEMORY_HEAD.pack(1, 0) + region, [memory.fd])
        self._base = memory.base

    def start_vring(
        self, index: int, size: int, areas: tuple[int, int, int], features: int, kick: int, call: int
    ) -> None:
        """Hand queue `index` over: entries, guest-physical areas (desc, driver, device), eventfds; not enabled yet."""
        desc, driver, device = (addr - self._base + USER_BASE for addr in areas)
        start = PACKED_START if features >> VIRTIO_F_RING_PACKED & 1 else 0
        self._tell(abi.VHOST_USER_SET_VRING_NUM, abi.VRING_STATE.pack(index, size))
        self._tell(abi.VHOST_USER_SET_VRING_BASE, abi.VRING_STATE.pack(index, start))
        self._tell(abi.VHOST_USER_SET_VRING_ADDR, abi.VRING_ADDR.pack(index, 0, desc, device, driver, 0))
        self._tell(abi.VHOST_USER_SET_VRING_CALL, abi.U64.pack(index), [call])
        self._tell(abi.VHOST_USER_SET_VRING_KICK, abi.U64.pack(index), [kick])

    def enable_vring(self, index: int, on: bool) -> None:
        """Let the back end serve queue `index`, or have it leave that be; without protocol features its kick does."""
        if self._is_protocol:
            self._tell(abi.VHOST_USER_SET_VRING_ENABLE, abi.VRING_STATE.pack(index, on))

    def stop_vring(self, index: int) -> None:
        """Take queue `index` back; the back end has let go of it when this returns."""
        self.enable_vring(index, False)
        answer = self._ask(abi.VHOST_USER_GET_VRING_BASE, abi.VRING_STATE.pack(index, 0))
        if len(answer) != abi.VRING_STATE.size or abi.VRING_STATE.unpack(answer)[0] != index:
            raise BackEndLost(f"the back end answered GET_VRING_BASE of queue {index} for another queue")

    # -- how it is said --------------------------------------------------------------------------------------------

    def _tell(self, request: int, payload: bytes = b"", descriptors: list[int] | None = None) -> None:
        """Send a message; with REPLY_ACK wait until the back end has done it."""
        acknowledged = self._protocol >> abi.VHOST_USER_PROTOCOL_F_REPLY_ACK & 1
        flags = abi.VHOST_USER_VERSION | (abi.VHOST_USER_NEED_REPLY if acknowledged else 0)
        self._send(request, flags, payload, descriptors or [])
        if acknowledged:
            result = self._number(request, self._answer(request))
            if result:
                raise BackEndLost(f"the back end refused {abi.REQUEST_NAMES[request]} ({result})")

    def _ask(self, request: int, payload: bytes = b"") -> bytes:
        self._send(request, abi.VHOST_USER_VERSION, payload, [])
        return self._answer(request)

    def _ask_number(self, request: int) -> int:
        return self._number(request, self._ask(request))

    def _number(self, request: int, answer: bytes) -> int:
        if len(answer) != abi.U64.size:
            raise BackEndLost(f"the back end answered {abi.REQUEST_NAMES[request]} with {len(answer)} bytes, not 8")
        number: int = abi.U64.unpack(answer)[0]
        return number

    def _send(self, request: int, flags: int, payload: bytes, descriptors: list[int]) -> None:
        message = abi.HEADER.pack(request, flags, len(payload)) + payload
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            sent = self._socket.sendmsg([message], beside)
            if sent < len(message):
                self._socket.sendall(message[sent:])
        except OSError as error:
            raise BackEndLost(f"{abi.REQUEST_NAMES[request]}: {error.strerror or error}") from None

    def _answer(self, request: int) -> bytes:
        """The payload of the answer to `request`."""
        name = abi.REQUEST_NAMES[request]
        answered, flags, length = abi.HEADER.unpack(self._receive(abi.HEADER.size, name))
        if answered != request or not flags & abi.VHOST_USER_REPLY or length > ANSWER_MAX:
            raise BackEndLost(
                f"the back end answered {name} with request {answered}, flags {flags:#x} and {length} bytes"
            )
        return self._receive(length, name)

    def _receive(self, length: int, name: str) -> bytes:
        """`length` bytes; descriptors that come along are not asked for, and closed."""
        got = b""
        while len(got) < length:
            try:
                data, beside, _, _ = self._socket.recvmsg(length - len(got), socket.CMSG_SPACE(64))
            except TimeoutError:
                raise BackEndLost(f"the back end did not answer {name} within {ANSWER_TIMEOUT:g} seconds") from None
            except OSError as error:
                raise BackEndLost(f"{name}: {error.strerror or error}") from None
            for level, kind, raw in beside:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    for fd in array.array("i", raw[: len(raw) // 4 * 4]):
                        os.close(fd)
            if not data:
                raise BackEndLost(f"the back end hung up while {name} was under way")
            got += data
        return got
