"""The vhost-user back end: our device for drivers in other processes, such as a VM's or DPDK's.

    driver ── rings and buffers in its RAM, which is mapped here ── queues ── VirtioNet ── wire
    front end (QEMU, DPDK, …) ── Unix socket, eventfds ── VhostSession ─┘

A `VhostSession` is one connection: it takes the place that the registers have on a board (`hw/virtio/mmio.py`), and the
device behind it is the same.

Promises:
- Nothing that a front end says raises. A message that cannot be is refused: with REPLY_ACK the answer says so, and
  where the protocol has no answer the connection is closed. Descriptors that a refused message brought are closed.
- Nothing waits: what is not there yet is read when it comes, a message of `PAYLOAD_MAX` bytes at most.
- A queue is served only while it is started and enabled, with areas that lie in the memory table.
- A queue that was stopped goes on where it was: what had been taken and not given back is taken again.
- A driver that breaks a rule of its ring stops that queue; the error eventfd tells the front end.

Read: the vhost-user protocol as QEMU documents it (docs/interop/vhost-user: message format, ring states, multiple
queues, front-end message types, REPLY_ACK).

Sections: `Vring`, `VhostSession`: reading messages, what each asks for, queues, what the device asks for.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from hw.abi import vhost_user as abi
from hw.abi.virtio import VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET
from hw.clock import Timer
from hw.loop import Loop
from hw.memory import MemoryFault
from hw.vhost.shared import Region, SharedMemory
from hw.virtio import packed, split
from hw.virtio.device import VirtioDevice
from hw.virtio.queue import DeviceQueue

PAYLOAD_MAX = 4096
DESCRIPTORS_MAX = abi.MEMORY_REGIONS_MAX
PROTOCOL = sum(
    1 << bit
    for bit in (
        abi.VHOST_USER_PROTOCOL_F_MQ,
        abi.VHOST_USER_PROTOCOL_F_REPLY_ACK,
        abi.VHOST_USER_PROTOCOL_F_BACKEND_REQ,
        abi.VHOST_USER_PROTOCOL_F_CONFIG,
        abi.VHOST_USER_PROTOCOL_F_RESET_DEVICE,
    )
)
# Features that are the transport's on a board, and that this transport does not have.
WITHOUT = 1 << VIRTIO_F_NOTIFICATION_DATA | 1 << VIRTIO_F_RING_RESET


class Refused(Exception):
    """A message that cannot be carried out; the text says why."""


class Vring:
    """What the front end said of one queue."""

    __slots__ = ("areas", "base", "call", "enabled", "error", "kick", "kicked", "size", "started")

    def __init__(self) -> None:
        self.size = 0
        self.areas: tuple[int, int, int] | None = None  # descriptor, driver, device: addresses in the front end
        self.base = 0
        self.kick = self.call = self.error = -1
        self.started = False  # there is a kick, or word that none will come
        self.enabled = False
        self.kicked = False  # work is asked for and not yet done


class VhostSession:
    """One front end.

    Args:
        loop: the thread's loop, on the real clock.
        connection: the socket; it becomes the session's.
        device: what is served; it must be nobody else's.
        gone: called when the connection is closed, by whichever side.

    Attributes:
        counters: what was said and what was refused, with reasons.
        failure: the last message that was refused, or rule that the driver broke, in words.
        queues_up: how many queues are served now.
    """

    def __init__(
        self, loop: Loop, connection: socket.socket, device: VirtioDevice, gone: Callable[[], None]
    ) -> None:
        self.device = device
        self.counters: Counter[str] = Counter()
        self.failure = ""
        self.features = 0
        self.protocol = 0
        self._has_protocol = False  # the front end took VHOST_USER_F_PROTOCOL_FEATURES
        self._loop = loop
        self._socket = connection
        self._gone = gone
        self._memory: SharedMemory | None = None
        self._vrings = [Vring() for _ in device.queue_sizes]
        self._running = False
        self._backend_request = -1
        self._head = b""
        self._payload = b""
        self._descriptors: list[int] = []
        self._closed = False
        self._handlers = self._table()
        device.transport = self
        connection.setblocking(False)
        loop.set_reader(connection.fileno(), self._readable)

    @property
    def queues_up(self) -> int:
        """How many queues are served now."""
        return sum(queue is not None for queue in self.device.queues)

    def close(self) -> None:
        """Stop all queues, let go of the front end's memory and descriptors, and hang up. Harmless when closed."""
        if self._closed:
            return
        self._closed = True
        self._loop.forget(self._socket.fileno())
        self._stop_all()
        for vring in self._vrings:
            self._drop_kick(vring)
            for fd in (vring.call, vring.error):
                _close(fd)
        _close(self._backend_request)
        self._close_descriptors()
        self._socket.close()
        self._memory = None
        self.device.transport = None
        self._gone()

    # -- reading messages ------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        """Read one message, or as much of it as there is; the loop calls again while there is more."""
        try:
            if len(self._head) < abi.HEADER.size:
                data, descriptors, flags, _ = socket.recv_fds(
                    self._socket, abi.HEADER.size - len(self._head), DESCRIPTORS_MAX + 1, socket.MSG_CMSG_CLOEXEC
                )
                self._descriptors += descriptors
                self._head += data
                if flags & socket.MSG_CTRUNC or len(self._descriptors) > DESCRIPTORS_MAX:
                    self._hang_up("more descriptors than any message has")
                    return
                if not data:
                    self.close()
                    return
                if len(self._head) < abi.HEADER.size:
                    return
            request, flags, length = abi.HEADER.unpack(self._head)
            if length > PAYLOAD_MAX:
                self._hang_up(f"a message of {length} bytes")
                return
            if len(self._payload) < length:
                data = self._socket.recv(length - len(self._payload))
                if not data:
                    self.close()
                    return
                self._payload += data
                if len(self._payload) < length:
                    return
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._hang_up(error.strerror or str(error))
            return
        payload, self._head, self._payload = self._payload, b"", b""
        self._handle(request, flags, payload)

    def _handle(self, request: int, flags: int, payload: bytes) -> None:
        name = abi.REQUEST_NAMES.get(request, f"request {request}")
        self.counters["messages"] += 1
        answer: bytes | None = None
        error = 0
        try:
            if flags & abi.VHOST_USER_VERSION_MASK != abi.VHOST_USER_VERSION or flags & abi.VHOST_USER_REPLY:
                raise Refused(f"flags {flags:#x}")
            handler = self._handlers.get(request)
            if handler is None:
                raise Refused("it is not known here")
            layout, fds, act = handler
            if len(payload) < layout:
                raise Refused(f"{len(payload)} bytes instead of {layout}")
            if len(self._descriptors) > fds:
                raise Refused(f"{len(self._descriptors)} descriptors came with it instead of {fds}")
            answer = act(payload)
        except (Refused, MemoryFault, ValueError, OSError) as why:
            error = 1
            self.counters["refused_" + name.lower().replace(" ", "_")] += 1
            self.failure = f"{name} was refused: {why}"
        self._close_descriptors()
        if self._closed:
            return
        acknowledge = flags & abi.VHOST_USER_NEED_REPLY and self.protocol >> abi.VHOST_USER_PROTOCOL_F_REPLY_ACK & 1
        if answer is None and acknowledge:
            answer = abi.U64.pack(error)
        elif error:
            self._hang_up(self.failure)  # there is no other way to tell
            return
        if answer is not None:
            head = abi.HEADER.pack(request, abi.VHOST_USER_VERSION | abi.VHOST_USER_REPLY, len(answer))
            try:
                self._socket.send(head + answer)
            except OSError as why:
                self._hang_up(why.strerror or str(why))

    def _hang_up(self, why: str) -> None:
        self.failure = why
        self.counters["hung_up"] += 1
        self.close()

    def _close_descriptors(self) -> None:
        for fd in self._descriptors:
            _close(fd)
        self._descriptors.clear()

    # -- what each message asks for --------------------------------------------------------------------------------

    def _table(self) -> dict[int, tuple[int, int, Callable[[bytes], bytes | None]]]:
        """By request: bytes of payload at least, descriptors at most, and what does it; what it returns is answered."""
        u64, state = abi.U64.size, abi.VRING_STATE.size
        return {
            abi.VHOST_USER_GET_FEATURES: (0, 0, self._get_features),
            abi.VHOST_USER_SET_FEATURES: (u64, 0, self._set_features),
            abi.VHOST_USER_SET_OWNER: (0, 0, lambda _: None),
            abi.VHOST_USER_RESET_OWNER: (0, 0, self._reset),
            abi.VHOST_USER_RESET_DEVICE: (0, 0, self._reset),
            abi.VHOST_USER_SET_MEM_TABLE: (abi.MEMORY_HEAD.size, DESCRIPTORS_MAX, self._set_mem_table),
            abi.VHOST_USER_SET_VRING_NUM: (state, 0, self._set_vring_num),
            abi.VHOST_USER_SET_VRING_ADDR: (abi.VRING_ADDR.size, 0, self._set_vring_addr),
            abi.VHOST_USER_SET_VRING_BASE: (state, 0, self._set_vring_base),
            abi.VHOST_USER_GET_VRING_BASE: (state, 0, self._get_vring_base),
            abi.VHOST_USER_SET_VRING_KICK: (u64, 1, self._set_vring_kick),
            abi.VHOST_USER_SET_VRING_CALL: (u64, 1, self._set_vring_call),
            abi.VHOST_USER_SET_VRING_ERR: (u64, 1, self._set_vring_err),
            abi.VHOST_USER_SET_VRING_ENABLE: (state, 0, self._set_vring_enable),
            abi.VHOST_USER_GET_PROTOCOL_FEATURES: (0, 0, lambda _: abi.U64.pack(PROTOCOL)),
            abi.VHOST_USER_SET_PROTOCOL_FEATURES: (u64, 0, self._set_protocol_features),
            abi.VHOST_USER_GET_QUEUE_NUM: (0, 0, lambda _: abi.U64.pack(len(self._vrings) // 2)),
            abi.VHOST_USER_SEND_RARP: (u64, 0, lambda _: None),
            abi.VHOST_USER_SET_BACKEND_REQ_FD: (0, 1, self._set_backend_request),
            abi.VHOST_USER_GET_CONFIG: (abi.CONFIG_HEAD.size, 0, self._get_config),
        }

    @property
    def offered(self) -> int:
        """What GET_FEATURES says."""
        return self.device.features & ~WITHOUT | 1 << abi.VHOST_USER_F_PROTOCOL_FEATURES

    def _get_features(self, _: bytes) -> bytes:
        return abi.U64.pack(self.offered)

    def _set_features(self, payload: bytes) -> None:
        (features,) = abi.U64.unpack_from(payload)
        extra = features & ~self.offered
        if extra:
            raise Refused(f"feature bit {extra.bit_length() - 1} was not offered")
        accepted = features & ~(1 << abi.VHOST_USER_F_PROTOCOL_FEATURES)
        if self._running and accepted != self.features:
            raise Refused("features change while queues are served")
        why = self.device.refuses(accepted)
        if why:
            raise Refused(why)
        self.features = accepted
        self._has_protocol = bool(features >> abi.VHOST_USER_F_PROTOCOL_FEATURES & 1)

    def _set_protocol_features(self, payload: bytes) -> None:
        (features,) = abi.U64.unpack_from(payload)
        extra = features & ~PROTOCOL
        if extra:
            raise Refused(f"protocol feature bit {extra.bit_length() - 1} was not offered")
        self.protocol = features

    def _reset(self, _: bytes) -> None:
        self._stop_all()
        for vring in self._vrings:
            self._drop_kick(vring)
            vring.started = vring.enabled = False
            vring.base = 0

    def _set_mem_table(self, payload: bytes) -> None:
        count, _ = abi.MEMORY_HEAD.unpack_from(payload)
        if not 0 < count <= abi.MEMORY_REGIONS_MAX:
            raise Refused(f"{count} regions")
        if len(payload) < abi.MEMORY_HEAD.size + count * abi.MEMORY_REGION.size:
            raise Refused(f"{len(payload)} bytes are too few for {count} regions")
        if len(self._descriptors) != count:
            raise Refused(f"{count} regions came with {len(self._descriptors)} descriptors")
        at = abi.MEMORY_HEAD.size
        regions = [
            Region(*abi.MEMORY_REGION.unpack_from(payload, at + number * abi.MEMORY_REGION.size))
            for number in range(count)
        ]
        memory = SharedMemory(regions, self._descriptors)
        self._stop_all()  # their views are of the old table
        self._memory = memory
        for index in range(len(self._vrings)):
            self._consider(index)

    def _set_backend_request(self, _: bytes) -> None:
        """A channel for what a back end may ask; ours has nothing to ask, and keeps it open as long as the session."""
        _close(self._backend_request)
        self._backend_request = self._descriptors.pop() if self._descriptors else -1

    def _get_config(self, payload: bytes) -> bytes:
        offset, size, flags = abi.CONFIG_HEAD.unpack_from(payload)
        config = self.device.config()
        if size > len(payload) - abi.CONFIG_HEAD.size or offset > len(config):
            raise Refused(f"{size} bytes at {offset} of the configuration")
        part = config[offset : offset + size].ljust(size, b"\0")
        return abi.CONFIG_HEAD.pack(offset, size, flags) + part

    # -- queues ----------------------------------------------------------------------------------------------------

    def _vring(self, index: int) -> Vring:
        if index >= len(self._vrings):
            raise Refused(f"there is no queue {index}")
        return self._vrings[index]

    def _set_vring_num(self, payload: bytes) -> None:
        index, size = abi.VRING_STATE.unpack_from(payload)
        vring = self._vring(index)
        self._must_be_stopped(index)
        if not 0 < size <= 1 << 15:
            raise Refused(f"queue {index} cannot have {size} entries")
        vring.size = size

    def _set_vring_addr(self, payload: bytes) -> None:
        index, _, desc, device, driver, _ = abi.VRING_ADDR.unpack_from(payload)
        vring = self._vring(index)
        self._stop(index)  # QEMU says it again when a log begins
        vring.areas = (desc, driver, device)
        self._consider(index)

    def _set_vring_base(self, payload: bytes) -> None:
        index, base = abi.VRING_STATE.unpack_from(payload)
        vring = self._vring(index)
        self._must_be_stopped(index)
        vring.base = base

    def _get_vring_base(self, payload: bytes) -> bytes:
        """Stop the queue; nothing of it is touched any more when the answer is read."""
        index, _ = abi.VRING_STATE.unpack_from(payload)
        vring = self._vring(index)
        self._stop(index)
        self._drop_kick(vring)
        vring.started = False
        return abi.VRING_STATE.pack(index, vring.base)

    def _take_descriptor(self, payload: bytes) -> tuple[int, int]:
        """The queue's index, and the descriptor that came along or -1."""
        (word,) = abi.U64.unpack_from(payload)
        if word & abi.VRING_NOFD_MASK:
            return word & abi.VRING_INDEX_MASK, -1
        if not self._descriptors:
            raise Refused("its descriptor is missing")
        return word & abi.VRING_INDEX_MASK, self._descriptors[0]

    def _set_vring_kick(self, payload: bytes) -> None:
        index, fd = self._take_descriptor(payload)
        vring = self._vring(index)
        self._drop_kick(vring)
        if fd >= 0:
            os.set_blocking(fd, False)
            self._loop.set_reader(fd, lambda: self._kicked(index, fd))
            vring.kick = self._descriptors.pop()
        vring.started = True
        self._consider(index)

    def _set_vring_call(self, payload: bytes) -> None:
        index, fd = self._take_descriptor(payload)
        vring = self._vring(index)
        _close(vring.call)
        vring.call = -1
        if fd >= 0:
            os.set_blocking(fd, False)
            vring.call = self._descriptors.pop()
            self.notify_used(index)  # what was used before there was somebody to tell

    def _set_vring_err(self, payload: bytes) -> None:
        index, fd = self._take_descriptor(payload)
        vring = self._vring(index)
        _close(vring.error)
        vring.error = -1
        if fd >= 0:
            os.set_blocking(fd, False)
            vring.error = self._descriptors.pop()

    def _set_vring_enable(self, payload: bytes) -> None:
        index, enable = abi.VRING_STATE.unpack_from(payload)
        vring = self._vring(index)
        vring.enabled = bool(enable)
        if enable:
            self._consider(index)
        else:
            self._stop(index)

    def _must_be_stopped(self, index: int) -> None:
        if self.device.queues[index] is not None:
            raise Refused(f"queue {index} is being served")

    def _consider(self, index: int) -> None:
        """Serve a queue if all is said that has to be."""
        vring = self._vrings[index]
        ready = vring.started and (vring.enabled or not self._has_protocol)
        if not ready or vring.areas is None or self._memory is None or self.device.queues[index] is not None:
            return
        queue = self._make_queue(index, vring, vring.areas, self._memory)
        self.device.set_queue(index, queue)
        if self._running:
            self.again(index)
        else:
            self._running = True
            self.device.start(self.features)

    def _make_queue(
        self, index: int, vring: Vring, areas: tuple[int, int, int], memory: SharedMemory
    ) -> DeviceQueue:
        desc, driver, device = (memory.guest_address(addr) for addr in areas)
        is_packed = self.features >> VIRTIO_F_RING_PACKED & 1
        why = (packed if is_packed else split).check_areas(memory, vring.size, desc, driver, device)
        if why:
            raise Refused(f"queue {index}: {why}")
        kind = packed.PackedQueue if is_packed else split.SplitQueue
        queue = kind(memory, index, vring.size, desc, driver, device, self.features)
        queue.resume(vring.base)
        return queue

    def _stop(self, index: int) -> None:
        """Forget a queue, and remember where it was."""
        queue = self.device.queues[index]
        if queue is not None:
            self._vrings[index].base = queue.base
            self.device.set_queue(index, None)
        if self._running and not any(self.device.queues):
            self._running = False
            self.device.reset()

    def _stop_all(self) -> None:
        for index in range(len(self._vrings)):
            self._stop(index)

    def _drop_kick(self, vring: Vring) -> None:
        if vring.kick >= 0:
            self._loop.forget(vring.kick)
            _close(vring.kick)
            vring.kick = -1

    def _kicked(self, index: int, fd: int) -> None:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return
        except OSError:  # not an eventfd, or at its end: it is watched no longer, and the queue goes on unkicked
            self.counters["kick_unusable"] += 1
            self._drop_kick(self._vrings[index])
            return
        self.counters["kicks"] += 1
        self.device.notifications[index] += 1
        if self.device.queues[index] is not None:
            self.device.kick(index)

    # -- what the device asks for (`hw.virtio.device.Transport`) -----------------------------------------------------

    def again(self, queue: int) -> None:
        """Let the device work on `queue` in a later turn; several requests are one."""
        vring = self._vrings[queue]
        if not vring.kicked:
            vring.kicked = True
            self._loop.call_soon(lambda: self._work(queue))

    def _work(self, index: int) -> None:
        self._vrings[index].kicked = False
        if self.device.queues[index] is not None:
            self.device.kick(index)

    def after(self, delay: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` in `delay` microseconds."""
        return self._loop.clock.after(delay, callback)

    def notify_used(self, queue: int) -> None:
        """Send a used buffer notification for `queue`."""
        self._signal(self._vrings[queue].call, "interrupts")

    def notify_config(self) -> None:
        """The configuration is the front end's own business, which is not asked for news."""
        self.counters["config_changes"] += 1

    def fail(self, queue: int, reason: str) -> None:
        """The driver broke a rule: stop `queue`, and tell the front end."""
        self.failure = f"queue {queue}: {reason}"
        self.counters["queue_failed"] += 1
        vring = self._vrings[queue]
        vring.started = False
        self._stop(queue)
        self._signal(vring.error, "errors_told")

    def _signal(self, fd: int, counter: str) -> None:
        if fd < 0:
            return
        with suppress(OSError):  # a counter at its limit has been told enough; what is no eventfd cannot be told
            os.eventfd_write(fd, 1)
            self.counters[counter] += 1


def _close(fd: int) -> None:
    if fd >= 0:
        with suppress(OSError):
            os.close(fd)
