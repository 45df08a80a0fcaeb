"""The vhost-user back end: what it answers, when it serves a queue, and what it makes of messages that cannot be (H30).

A front end played by the test talks to a session over a pair of sockets; its RAM is a memfd. Real front ends are in
tests/interop.
"""

from __future__ import annotations

import gc
import os
import random
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.abi import vhost_user as abi
from hw.abi import virtio_net as net
from hw.abi.virtio import VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, features
from hw.clock import SECOND, RealClock
from hw.loop import Loop
from hw.machine import Option, vhost_card
from hw.vhost.back import PAYLOAD_MAX, VhostSession
from hw.vhost.server import DeviceServer
from hw.virtio.net import VirtioNet
from hw.wire.cable import cable
from hw.wire.link import Frame, Link, Receiver, WireError, frame_bytes
from tests.scripted_vhost import descriptors_of_this_process

RAM = 1 << 20
GUEST, USER = 0x10_0000, 0x7000_0000_0000  # where the front end says its RAM is
SIZE = 16
# Of each queue descriptor, driver, device area: offsets in RAM.
AREAS = {index: (0x3000 * index, 0x3000 * index + 0x1000, 0x3000 * index + 0x2000) for index in range(8)}
BUFFERS = 0x20000
ACCEPTED = features(VIRTIO_F_VERSION_1, abi.VHOST_USER_F_PROTOCOL_FEATURES)
REPLY_ACK = 1 << abi.VHOST_USER_PROTOCOL_F_REPLY_ACK


class Wire(Receiver):
    """The far end of the card's cable."""

    def __init__(self, link: Link) -> None:
        self.frames: list[bytes] = []
        self.link = link
        link.attach(self)

    def receive(self, frames: Sequence[Frame]) -> int:
        self.frames += map(frame_bytes, frames)
        return len(frames)


class FrontEnd:
    """A front end, its RAM, and the session that it talks to."""

    def __init__(self, loop: Loop, **options: Option) -> None:
        self.loop = loop
        near, far = cable(loop)
        self.wire = Wire(far)
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(5)
        self.gone = False
        self.session = VhostSession(loop, theirs, vhost_card(near, random.Random(1), options), self._gone)
        self.memfd = os.memfd_create("front-end")
        os.ftruncate(self.memfd, RAM)
        self.kicks = {index: os.eventfd(0, os.EFD_NONBLOCK) for index in AREAS}
        self.calls = {index: os.eventfd(0, os.EFD_NONBLOCK) for index in AREAS}

    def _gone(self) -> None:
        self.gone = True

    def close(self) -> None:
        self.session.close()
        self.socket.close()
        for fd in (self.memfd, *self.kicks.values(), *self.calls.values()):
            os.close(fd)

    # -- talking ---------------------------------------------------------------------------------------------------

    def let_it_work(self) -> None:
        self.loop.run(deadline=self.loop.clock.now() + 2000)

    def raw(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        socket.send_fds(self.socket, [message], list(descriptors))
        self.let_it_work()

    def tell(self, request: int, payload: bytes = b"", descriptors: Sequence[int] = (), flags: int = 1) -> None:
        self.raw(abi.HEADER.pack(request, flags, len(payload)) + payload, descriptors)

    def ask(self, request: int, payload: bytes = b"", descriptors: Sequence[int] = (), flags: int = 1) -> bytes:
        """The payload of the answer."""
        self.tell(request, payload, descriptors, flags)
        answered, said, length = abi.HEADER.unpack(self.socket.recv(abi.HEADER.size))
        assert (answered, said) == (request, abi.VHOST_USER_VERSION | abi.VHOST_USER_REPLY)
        return self.socket.recv(length) if length else b""

    def demand(self, request: int, payload: bytes = b"", descriptors: Sequence[int] = ()) -> int:
        """What the back end says to a request that wants a reply: 0 for done."""
        flags = abi.VHOST_USER_VERSION | abi.VHOST_USER_NEED_REPLY
        number: int = abi.U64.unpack(self.ask(request, payload, descriptors, flags))[0]
        return number

    # -- setting up ------------------------------------------------------------------------------------------------

    def begin(self, accepted: int = ACCEPTED, protocol: int = REPLY_ACK) -> None:
        self.tell(abi.VHOST_USER_SET_OWNER)
        self.tell(abi.VHOST_USER_SET_PROTOCOL_FEATURES, abi.U64.pack(protocol))
        self.tell(abi.VHOST_USER_SET_FEATURES, abi.U64.pack(accepted))

    def share(self) -> None:
        self.tell(abi.VHOST_USER_SET_MEM_TABLE, table((GUEST, RAM, USER, 0)), [self.memfd])

    def start(self, index: int, *, base: int = 0, enable: bool = True) -> None:
        desc, driver, device = (USER + area for area in AREAS[index])
        self.tell(abi.VHOST_USER_SET_VRING_NUM, abi.VRING_STATE.pack(index, SIZE))
        self.tell(abi.VHOST_USER_SET_VRING_BASE, abi.VRING_STATE.pack(index, base))
        self.tell(abi.VHOST_USER_SET_VRING_ADDR, abi.VRING_ADDR.pack(index, 0, desc, device, driver, 0))
        self.tell(abi.VHOST_USER_SET_VRING_CALL, abi.U64.pack(index), [self.calls[index]])
        self.tell(abi.VHOST_USER_SET_VRING_KICK, abi.U64.pack(index), [self.kicks[index]])
        if enable:
            self.tell(abi.VHOST_USER_SET_VRING_ENABLE, abi.VRING_STATE.pack(index, 1))

    def up(self) -> None:
        self.begin()
        self.share()
        for index in (0, 1):
            self.start(index)
        assert self.session.queues_up == 2, self.session.failure

    # -- driving ---------------------------------------------------------------------------------------------------

    def write(self, at: int, data: bytes) -> None:
        os.pwrite(self.memfd, data, at)

    def read(self, at: int, length: int) -> bytes:
        return os.pread(self.memfd, length, at)

    def offer(self, index: int, slot: int, data: bytes, *, writable: bool = False) -> None:
        """Make one buffer available on a split queue, as its `slot`-th, and kick."""
        desc, driver, _ = AREAS[index]
        at = BUFFERS + 0x4000 * index + 0x800 * slot
        self.write(at, data)
        flags = 2 if writable else 0
        self.write(desc + 16 * slot, (GUEST + at).to_bytes(8, "little") + len(data).to_bytes(4, "little")
                   + flags.to_bytes(2, "little") + bytes(2))  # fmt: skip
        self.write(driver + 4 + 2 * (slot % SIZE), slot.to_bytes(2, "little"))
        self.write(driver + 2, (slot + 1).to_bytes(2, "little"))
        os.eventfd_write(self.kicks[index], 1)
        self.let_it_work()

    def used(self, index: int) -> int:
        return int.from_bytes(self.read(AREAS[index][2] + 2, 2), "little")


def table(*regions: tuple[int, int, int, int]) -> bytes:
    packed = (abi.MEMORY_REGION.pack(*region) for region in regions)
    return abi.MEMORY_HEAD.pack(len(regions), 0) + b"".join(packed)


FRAME = bytes.fromhex("ffffffffffff02000000000188b5") + bytes(50)
HEADER = bytes(12)


@pytest.fixture(autouse=True)
def _tidy() -> None:
    """What earlier tests left to the garbage collector must not go while descriptors are counted."""
    gc.collect()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(RealClock())
    yield loop
    loop.close()


@pytest.fixture
def front(loop: Loop) -> Iterator[FrontEnd]:
    front = FrontEnd(loop)
    yield front
    front.close()


# -- what is served ----------------------------------------------------------------------------------------------------


def test_what_the_front_end_tells_its_driver_by_itself_is_not_offered(front: FrontEnd) -> None:
    (offered,) = abi.U64.unpack(front.ask(abi.VHOST_USER_GET_FEATURES))

    own = features(net.VIRTIO_NET_F_MAC, net.VIRTIO_NET_F_STATUS, net.VIRTIO_NET_F_MTU)
    assert not offered & own
    assert offered & ACCEPTED == ACCEPTED
    assert offered >> VIRTIO_F_RING_PACKED & 1
    assert abi.U64.unpack(front.ask(abi.VHOST_USER_GET_QUEUE_NUM)) == (1,)


def test_a_frame_goes_out_and_one_comes_in(front: FrontEnd) -> None:
    front.up()

    front.offer(1, 0, HEADER + FRAME)
    assert front.wire.frames == [FRAME]
    assert front.used(1) == 1
    assert os.eventfd_read(front.calls[1]) >= 1

    front.offer(0, 0, bytes(1600), writable=True)
    front.wire.link.transmit([(None, [FRAME])])
    front.let_it_work()
    assert front.used(0) == 1
    assert front.read(BUFFERS + len(HEADER), len(FRAME)) == FRAME
    assert os.eventfd_read(front.calls[0]) >= 1


@pytest.mark.parametrize("missing", ["memory", "kick", "enable"])
def test_a_queue_is_not_served_before_all_is_said(front: FrontEnd, missing: str) -> None:
    front.begin()
    if missing != "memory":
        front.share()
    if missing != "kick":
        front.start(1, enable=missing != "enable")
    front.offer(1, 0, HEADER + FRAME)

    assert front.wire.frames == []
    assert front.session.queues_up == 0


def test_without_protocol_features_a_kick_is_enough(front: FrontEnd) -> None:
    front.begin(accepted=features(VIRTIO_F_VERSION_1))
    front.share()
    front.start(1, enable=False)

    front.offer(1, 0, HEADER + FRAME)

    assert front.wire.frames == [FRAME]


def test_a_stopped_queue_goes_on_where_it_was_and_sends_nothing_twice(front: FrontEnd) -> None:
    front.up()
    front.offer(1, 0, HEADER + FRAME)
    front.offer(0, 0, bytes(1600), writable=True)  # taken by the card as soon as a frame wants it, not before

    assert front.ask(abi.VHOST_USER_GET_VRING_BASE, abi.VRING_STATE.pack(1, 0)) == abi.VRING_STATE.pack(1, 1)
    assert front.ask(abi.VHOST_USER_GET_VRING_BASE, abi.VRING_STATE.pack(0, 0)) == abi.VRING_STATE.pack(0, 0)
    front.offer(1, 1, HEADER + FRAME[::-1])
    assert front.wire.frames == [FRAME], "the queue is stopped"

    front.start(1, base=1)
    assert front.wire.frames == [FRAME, FRAME[::-1]], "what came meanwhile, and nothing else"


def test_a_new_memory_table_while_queues_are_served_is_where_they_are_from_then_on(front: FrontEnd) -> None:
    front.up()
    front.offer(1, 0, HEADER + FRAME)

    front.share()

    front.offer(1, 1, HEADER + FRAME[::-1])
    assert front.wire.frames == [FRAME, FRAME[::-1]]


def test_a_reset_stops_all(front: FrontEnd) -> None:
    front.up()
    assert front.demand(abi.VHOST_USER_RESET_OWNER) == 0
    front.offer(1, 0, HEADER + FRAME)

    assert (front.session.queues_up, front.wire.frames) == (0, [])


def test_as_many_pairs_are_steered_over_as_are_enabled(loop: Loop) -> None:
    front = FrontEnd(loop, queues=4)
    assert front.ask(abi.VHOST_USER_GET_QUEUE_NUM) == abi.U64.pack(4)
    (features,) = abi.U64.unpack(front.ask(abi.VHOST_USER_GET_FEATURES))
    assert features >> net.VIRTIO_NET_F_MQ & 1
    assert not features >> net.VIRTIO_NET_F_CTRL_VQ & 1, "the control queue is the front end's"
    front.begin(ACCEPTED | 1 << net.VIRTIO_NET_F_MQ, REPLY_ACK | 1 << abi.VHOST_USER_PROTOCOL_F_MQ)
    front.share()
    card = front.session.device
    assert isinstance(card, VirtioNet)
    for index in range(6):
        front.start(index)
        assert card.steering.pairs == max(1, -(-(index + 1) // 2)), front.session.failure
    front.tell(abi.VHOST_USER_SET_VRING_ENABLE, abi.VRING_STATE.pack(4, 0))
    assert card.steering.pairs == 2
    front.close()


def test_the_configuration_can_be_read(front: FrontEnd) -> None:
    head = abi.CONFIG_HEAD.pack(0, 6, 0)
    answer = front.ask(abi.VHOST_USER_GET_CONFIG, head + bytes(6))

    assert answer == head + front.session.device.config()[:6]


def test_a_driver_that_breaks_a_rule_stops_its_queue_and_is_told(front: FrontEnd) -> None:
    front.up()
    error = os.eventfd(0, os.EFD_NONBLOCK)
    front.tell(abi.VHOST_USER_SET_VRING_ERR, abi.U64.pack(1), [error])

    front.write(AREAS[1][1] + 2, (SIZE + 1).to_bytes(2, "little"))  # H1: avail.idx ahead by more than there is
    os.eventfd_write(front.kicks[1], 1)
    front.let_it_work()

    assert front.session.failure.startswith("queue 1: avail.idx is 17 ahead")
    assert front.session.queues_up == 1
    assert os.eventfd_read(error) == 1
    os.close(error)


# -- messages that cannot be (H30) -------------------------------------------------------------------------------------

BEGIN_AGAIN = abi.VHOST_USER_GET_FEATURES
WRAP = (1 << 64) - 0x1000


@pytest.mark.parametrize(
    ("request_", "payload", "descriptors", "complaint"),
    [
        (77, b"", 0, "it is not known here"),
        (abi.VHOST_USER_SET_MEM_TABLE, table((GUEST, RAM, USER, 0)), 0, "came with 0 descriptors"),
        (abi.VHOST_USER_SET_MEM_TABLE, table((GUEST, RAM, USER, 0)), 2, "came with 2 descriptors"),
        (abi.VHOST_USER_SET_MEM_TABLE, table((WRAP, RAM, USER, 0)), 1, "wraps"),
        (abi.VHOST_USER_SET_MEM_TABLE, table((GUEST, RAM, WRAP, 0)), 1, "wraps"),
        (abi.VHOST_USER_SET_MEM_TABLE, table((GUEST, RAM, USER, WRAP)), 1, "of a descriptor of"),
        (abi.VHOST_USER_SET_MEM_TABLE, table((GUEST, 2 * RAM, USER, 0)), 1, "of a descriptor of"),
        (abi.VHOST_USER_SET_MEM_TABLE, table((GUEST, 0, USER, 0)), 1, "has no bytes"),
        (abi.VHOST_USER_SET_MEM_TABLE, table(*[(GUEST, RAM, USER, 0)] * 2), 2, "overlaps"),
        (abi.VHOST_USER_SET_MEM_TABLE, abi.MEMORY_HEAD.pack(8, 0), 1, "too few for 8 regions"),
        (abi.VHOST_USER_SET_MEM_TABLE, abi.MEMORY_HEAD.pack(1 << 31, 0), 1, "2147483648 regions"),
        (abi.VHOST_USER_SET_FEATURES, b"1234", 0, "4 bytes instead of 8"),
        (abi.VHOST_USER_SET_FEATURES, abi.U64.pack(1 << 63), 0, "feature bit 63 was not offered"),
        (abi.VHOST_USER_SET_PROTOCOL_FEATURES, abi.U64.pack(1 << 40), 0, "protocol feature bit 40"),
        (abi.VHOST_USER_SET_VRING_NUM, abi.VRING_STATE.pack(0, 0), 0, "cannot have 0 entries"),
        (abi.VHOST_USER_SET_VRING_NUM, abi.VRING_STATE.pack(0, 1 << 20), 0, "cannot have 1048576 entries"),
        (abi.VHOST_USER_SET_VRING_NUM, abi.VRING_STATE.pack(2, 16), 0, "there is no queue 2"),
        (abi.VHOST_USER_SET_VRING_KICK, abi.U64.pack(0), 0, "its descriptor is missing"),
        (abi.VHOST_USER_SET_VRING_CALL, abi.U64.pack(9), 1, "there is no queue 9"),
        (abi.VHOST_USER_SET_VRING_NUM, abi.VRING_STATE.pack(0, 16), 3, "3 descriptors came with it instead of 0"),
        (abi.VHOST_USER_GET_VRING_BASE, abi.VRING_STATE.pack(7, 0), 0, "there is no queue 7"),
        (abi.VHOST_USER_GET_CONFIG, abi.CONFIG_HEAD.pack(0, 4000, 0), 0, "4000 bytes at 0"),
    ],
)
def test_h30_a_message_that_cannot_be_is_refused_and_the_session_goes_on(
    front: FrontEnd, request_: int, payload: bytes, descriptors: int, complaint: str
) -> None:
    front.begin()
    before = descriptors_of_this_process()

    refused = front.demand(request_, payload, [front.memfd] * descriptors)

    assert refused == 1
    assert complaint in front.session.failure
    assert descriptors_of_this_process() == before, "what came with it was closed"
    assert len(front.ask(BEGIN_AGAIN)) == abi.U64.size


def test_h30_without_replies_the_connection_ends(front: FrontEnd) -> None:
    front.begin(protocol=0)
    front.tell(abi.VHOST_USER_SET_MEM_TABLE, table((GUEST, RAM, USER, 0)))

    assert front.gone
    assert front.session.failure == "SET_MEM_TABLE was refused: 1 regions came with 0 descriptors"


@pytest.mark.parametrize(("base", "size"), [(0x1000, SIZE), (0, 32768)], ids=["unaligned", "past the end"])
def test_h30_areas_outside_the_table_are_refused(front: FrontEnd, base: int, size: int) -> None:
    front.begin()
    front.share()
    front.start(1, enable=False)
    front.demand(abi.VHOST_USER_SET_VRING_NUM, abi.VRING_STATE.pack(1, size))
    wild = (USER + RAM + base, USER, USER) if base else (USER, USER, USER)
    assert front.demand(abi.VHOST_USER_SET_VRING_ADDR, abi.VRING_ADDR.pack(1, 0, *wild, 0)) in (0, 1)

    assert front.demand(abi.VHOST_USER_SET_VRING_ENABLE, abi.VRING_STATE.pack(1, 1)) == 1
    assert front.session.queues_up == 0


def test_h30_a_queue_that_is_served_keeps_its_size_and_features(front: FrontEnd) -> None:
    front.up()
    assert front.demand(abi.VHOST_USER_SET_VRING_NUM, abi.VRING_STATE.pack(1, 8)) == 1
    assert front.demand(abi.VHOST_USER_SET_VRING_BASE, abi.VRING_STATE.pack(1, 8)) == 1
    changed = ACCEPTED | 1 << VIRTIO_F_RING_PACKED
    assert front.demand(abi.VHOST_USER_SET_FEATURES, abi.U64.pack(changed)) == 1

    front.offer(1, 0, HEADER + FRAME)
    assert front.wire.frames == [FRAME]


@pytest.mark.parametrize("length", [PAYLOAD_MAX + 1, 0xFFFFFFFF])
def test_h30_a_huge_payload_ends_the_connection(front: FrontEnd, length: int) -> None:
    front.raw(abi.HEADER.pack(abi.VHOST_USER_SET_MEM_TABLE, 1, length))

    assert front.gone
    assert front.session.failure == f"a message of {length} bytes"


def test_h30_more_descriptors_than_any_message_has_end_the_connection(front: FrontEnd) -> None:
    before = descriptors_of_this_process()
    front.raw(abi.HEADER.pack(abi.VHOST_USER_SET_OWNER, 1, 0), [front.memfd] * 30)

    assert front.gone
    assert descriptors_of_this_process() < before


def test_h30_a_kick_that_is_no_eventfd_is_watched_no_longer(front: FrontEnd) -> None:
    front.up()
    ours, theirs = socket.socketpair()
    front.tell(abi.VHOST_USER_SET_VRING_KICK, abi.U64.pack(1), [theirs.fileno()])
    ours.send(b"x")
    front.let_it_work()

    assert front.session.counters["kick_unusable"] == 1
    ours.close()
    theirs.close()


def test_a_message_may_come_byte_by_byte(front: FrontEnd) -> None:
    for byte in abi.HEADER.pack(abi.VHOST_USER_SET_FEATURES, 1, 8) + abi.U64.pack(ACCEPTED):
        front.raw(bytes([byte]))

    assert front.session.features == features(VIRTIO_F_VERSION_1)


REQUESTS = st.sampled_from([*abi.REQUEST_NAMES, 0, 6, 7, 26, 99, 0xFFFFFFFF])
NUMBERS = st.sampled_from([0, 1, 2, 3, SIZE, 255, 256, 257, 0x8000, RAM, GUEST, USER, WRAP, (1 << 64) - 1])
PAYLOADS = st.one_of(
    st.binary(max_size=80),
    st.lists(NUMBERS, max_size=10).map(lambda numbers: b"".join(map(abi.U64.pack, numbers))),
    st.tuples(st.integers(0, 3), st.integers(0, 1 << 16)).map(lambda pair: abi.VRING_STATE.pack(*pair)),
    st.just(table((GUEST, RAM, USER, 0))),
)
MESSAGES = st.tuples(REQUESTS, st.sampled_from([1, 9, 0, 5, 0xFFFFFFFF]), PAYLOADS, st.integers(0, 3))


@given(is_up=st.booleans(), messages=st.lists(MESSAGES, max_size=12))
def test_h30_whatever_is_said_nothing_raises_and_no_descriptor_is_left(
    is_up: bool, messages: list[tuple[int, int, bytes, int]]
) -> None:
    before = descriptors_of_this_process()
    loop = Loop(RealClock())
    front = FrontEnd(loop)
    if is_up:
        front.up()
    for request, flags, payload, descriptors in messages:
        if front.gone:
            break
        fds = [front.memfd, front.kicks[0], front.calls[0]][:descriptors]
        socket.send_fds(front.socket, [abi.HEADER.pack(request, flags, len(payload)) + payload], fds)
        loop.run(deadline=loop.clock.now() + 200)
    front.close()
    loop.close()
    assert descriptors_of_this_process() == before


# -- the socket --------------------------------------------------------------------------------------------------------


def connected(server: DeviceServer, loop: Loop) -> socket.socket:
    front = socket.socket(socket.AF_UNIX)
    front.connect(server.path)
    loop.run(deadline=loop.clock.now() + 2000)
    return front


def test_one_front_end_at_a_time_and_the_next_when_it_left(loop: Loop, tmp_path: Path) -> None:
    said: list[str] = []
    near, _ = cable(loop)
    server = DeviceServer(loop, tmp_path / "s", vhost_card(near, random.Random(1), {}), tell=said.append)

    with connected(server, loop), connected(server, loop) as second:
        assert second.recv(1) == b"", "it was turned away"
    loop.run(deadline=loop.clock.now() + 2000)
    with connected(server, loop):
        assert server.counters["front_ends"] == 2
    server.close()

    events = [line.partition(": ")[2] for line in said]
    here, left, away = "a front end is here", "the front end left", "another front end was turned away; one at a time"
    assert events == [here, away, left, here, left]
    assert not (tmp_path / "s").exists()


def test_a_socket_that_nobody_listens_on_is_replaced_and_one_in_use_is_not(loop: Loop, tmp_path: Path) -> None:
    near, _ = cable(loop)
    card = vhost_card(near, random.Random(1), {})
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(tmp_path / "s"))
    server = DeviceServer(loop, tmp_path / "s", card)

    with pytest.raises(WireError, match="another device listens there"):
        DeviceServer(loop, tmp_path / "s", card)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WireError, match="cannot be made: Address already in use"):
        DeviceServer(loop, tmp_path / "file", card)
    server.close()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_client_tries_until_somebody_listens(loop: Loop, tmp_path: Path) -> None:
    near, _ = cable(loop)
    server = DeviceServer(loop, tmp_path / "s", vhost_card(near, random.Random(1), {}), client=True)
    assert server.session is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        assert loop.run(lambda: server.session is not None, deadline=loop.clock.now() + 5 * SECOND)
    server.close()
