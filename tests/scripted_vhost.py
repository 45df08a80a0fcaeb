"""A vhost-user back end that a test plays: it answers as told, and writes down what it was asked.

The front end waits for its answers, so the back end talks in a thread of its own. It serves no queue: real ones do that
in tests/interop/vhost_front.py.
"""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from hw.abi import vhost_user as abi
from hw.abi.virtio import VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, features

FEATURES = features(
    VIRTIO_F_VERSION_1, VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX, abi.VHOST_USER_F_PROTOCOL_FEATURES
)
Answer = bytes | None  # the payload of an answer, or the whole message where a test lies; None hangs up
Lie = Callable[[bytes], Answer]


class ScriptedBackEnd:
    """Listens at `path` until `close`; one connection at a time.

    Args:
        offers: what GET_FEATURES is answered with.
        protocol: what GET_PROTOCOL_FEATURES is answered with.
        pairs: what GET_QUEUE_NUM is.
        lies: by request: makes of the honest answer, a whole message, what is sent in its place; None hangs up.

    Attributes:
        heard: the requests of each connection, by name, with their payloads.
        descriptors: how many came with each request, by name.
        kicks, calls: the eventfds of the queues.
    """

    def __init__(
        self,
        path: Path,
        *,
        offers: int = FEATURES,
        protocol: int = 1 << abi.VHOST_USER_PROTOCOL_F_REPLY_ACK,
        pairs: int = 1,
        lies: Mapping[int, Lie] | None = None,
    ) -> None:
        self.path = str(path)
        self.heard: list[list[tuple[str, bytes]]] = []
        self.descriptors: dict[str, int] = {}
        self.kicks: dict[int, int] = {}
        self.calls: dict[int, int] = {}
        self._answers = {abi.VHOST_USER_GET_FEATURES: offers, abi.VHOST_USER_GET_PROTOCOL_FEATURES: protocol,
                         abi.VHOST_USER_GET_QUEUE_NUM: pairs}  # fmt: skip
        self._lies = dict(lies or {})
        self._open: list[int] = []
        self._peer: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> ScriptedBackEnd:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up, and listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        self._thread.join(5)
        self._listener.close()
        for fd in self._open:
            os.close(fd)
        self._open.clear()
        Path(self.path).unlink(missing_ok=True)

    def hang_up(self) -> None:
        """End the connection that there is."""
        if self._peer is not None:
            with suppress(OSError):  # the other side was first
                self._peer.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while True:
            try:
                self._peer = self._listener.accept()[0]
            except OSError:
                return
            self.heard.append([])
            with self._peer:
                try:
                    while self._one(self._peer):
                        pass
                except OSError:
                    pass

    def _one(self, peer: socket.socket) -> bool:
        head, fds, _, _ = socket.recv_fds(peer, abi.HEADER.size, 8)
        self._open += fds
        if len(head) < abi.HEADER.size:
            return False
        request, flags, length = abi.HEADER.unpack(head)
        payload = peer.recv(length, socket.MSG_WAITALL) if length else b""
        name = abi.REQUEST_NAMES[request]
        self.heard[-1].append((name, payload))
        self.descriptors[name] = len(fds)
        if request == abi.VHOST_USER_SET_VRING_KICK:
            self.kicks[payload[0]] = fds[0]
        elif request == abi.VHOST_USER_SET_VRING_CALL:
            self.calls[payload[0]] = fds[0]
        answer = self._answer(request, payload, bool(flags & abi.VHOST_USER_NEED_REPLY))
        if answer is None:
            return True
        honest = abi.HEADER.pack(request, abi.VHOST_USER_VERSION | abi.VHOST_USER_REPLY, len(answer)) + answer
        said = self._lies[request](honest) if request in self._lies else honest
        if said is None:
            return False
        peer.sendall(said)
        return True

    def _answer(self, request: int, payload: bytes, wanted: bool) -> bytes | None:
        if request in self._answers:
            return abi.U64.pack(self._answers[request])
        if request == abi.VHOST_USER_GET_VRING_BASE:
            return payload[:4] + bytes(4)
        return abi.U64.pack(0) if wanted else None


def descriptors_of_this_process() -> int:
    """How many descriptors are open."""
    return len(array.array("i", [int(name) for name in os.listdir("/proc/self/fd")]))
