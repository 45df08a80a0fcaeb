"""The packet buffer against a plain model of bytes: its bounds, its sharing, its lease, and the queue of packets."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from guest.net.pbuf import HEADROOM, Lease, PacketBuffer, PacketError, PacketQueue
from tests.fakes import FakeDevice

SIZES = st.integers(-2, 40)


class PacketModel(RuleBasedStateMachine):
    """A packet beside what it should hold: the bytes before its data (headroom), linear bytes, fragments."""

    @initialize(
        headroom=st.integers(0, 30), linear=st.binary(max_size=30), tailroom=st.integers(0, 30),
        frags=st.lists(st.binary(max_size=12), max_size=4),
    )
    def start(self, headroom: int, linear: bytes, tailroom: int, frags: list[bytes]) -> None:
        area = bytearray(b"\xa5" * headroom + linear + b"\x5a" * tailroom)
        views = [memoryview(bytearray(frag)) for frag in frags]
        self.packet = PacketBuffer(memoryview(area), headroom, headroom + len(linear), views)
        self.before = headroom
        self.linear = bytearray(linear)
        self.frags = b"".join(frags)
        self.after = tailroom
        self.has_frags = bool(frags)

    def refused(self, method: str, count: int) -> None:
        state = (self.packet.data, self.packet.tail, self.packet.tobytes())
        with pytest.raises(PacketError):
            getattr(self.packet, method)(count)
        assert (self.packet.data, self.packet.tail, self.packet.tobytes()) == state, f"{method} changed the packet"

    @rule(count=SIZES, fill=st.integers(0, 255))
    def push(self, count: int, fill: int) -> None:
        if not 0 <= count <= self.before:
            self.refused("push", count)
            return
        new = self.packet.push(count)
        new[:] = bytes([fill]) * count
        self.linear[:0] = bytes([fill]) * count
        self.before -= count

    @rule(count=SIZES)
    def pull(self, count: int) -> None:
        if not 0 <= count <= len(self.linear):
            self.refused("pull", count)
            return
        self.packet.pull(count)
        del self.linear[:count]
        self.before += count

    @rule(count=SIZES, fill=st.integers(0, 255))
    def put(self, count: int, fill: int) -> None:
        if self.packet.frags or not 0 <= count <= self.after:
            self.refused("put", count)
            return
        self.packet.put(count)[:] = bytes([fill]) * count
        self.linear += bytes([fill]) * count
        self.after -= count

    @rule(length=SIZES)
    def trim(self, length: int) -> None:
        if not 0 <= length <= len(self.linear) + len(self.frags):
            self.refused("trim", length)
            return
        self.packet.trim(length)
        kept = bytes(self.linear + self.frags)[:length]
        if length <= len(self.linear):
            self.after += len(self.linear) - length
        self.linear, self.frags = bytearray(kept[: len(self.linear)]), kept[len(self.linear) :]

    @rule(count=st.integers(0, 40))
    def pullup(self, count: int) -> None:
        possible = count <= len(self.linear) + len(self.frags)
        assert self.packet.pullup(count) is possible, "pullup says whether the bytes are there"
        if possible and count > len(self.linear):
            moved = count - len(self.linear)
            self.linear += self.frags[:moved]
            self.frags = self.frags[moved:]
            self.before, self.after = HEADROOM, 0

    @rule(count=SIZES)
    def reserve(self, count: int) -> None:
        if len(self.linear) + len(self.frags) or not 0 <= count <= self.after:
            self.refused("reserve", count)
            return
        self.packet.reserve(count)
        self.before += count
        self.after -= count

    @rule()
    def go_on_with_a_copy(self) -> None:
        copy = self.packet.copy()
        for view in self.packet.views():
            view[:] = b"\xee" * len(view)  # the copy must not see this
        self.packet = copy
        self.linear, self.frags = bytearray(bytes(self.linear) + self.frags), b""
        self.before, self.after = HEADROOM, 0

    @rule()
    def go_on_with_a_clone(self) -> None:
        original, self.packet = self.packet, self.packet.clone()
        if len(self.linear):
            original.linear[0] ^= 0xFF  # the clone sees this
            self.linear[0] ^= 0xFF
            original.pull(1)  # and not this

    @invariant()
    def equal(self) -> None:
        packet = self.packet
        assert packet.tobytes() == bytes(self.linear) + self.frags, "content"
        assert len(packet) == len(self.linear) + len(self.frags), "length"
        assert bytes(packet.linear) == bytes(self.linear), "linear part"
        assert packet.headroom == self.before, "headroom"
        assert packet.tailroom == (0 if packet.frags else self.after), "tailroom"
        assert all(len(view) for view in packet.views()), "no piece of the views is empty"


TestPacketModel = PacketModel.TestCase
TestPacketModel.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize(("data", "tail"), [(-1, 0), (3, 2), (0, 9), (9, 9)])
def test_ends_out_of_order_are_refused(data: int, tail: int) -> None:
    with pytest.raises(PacketError):
        PacketBuffer(memoryview(bytearray(8)), data, tail)


def test_pulled_headers_survive_a_pullup_and_a_copy() -> None:
    packet = PacketBuffer(memoryview(bytearray(b"..HEADpay")), 2, 9, [memoryview(b"load")])
    packet.network = packet.data
    packet.pull(4)
    copy = packet.copy()
    assert bytes(copy.area[copy.network : copy.data]) == b"HEAD", "the copy has the header that was pulled"
    assert packet.pullup(7) is True
    assert bytes(packet.area[packet.network : packet.data]) == b"HEAD", "and so has the pulled-up packet"
    assert packet.tobytes() == b"payload"


def test_a_copy_without_room_for_pulled_headers_still_has_the_content() -> None:
    packet = PacketBuffer.from_bytes(b"0123456789")
    packet.pull(4)
    assert packet.copy(headroom=0).tobytes() == b"456789"


def test_a_lease_is_given_back_once_when_the_last_packet_is_gone() -> None:
    returned: list[str] = []
    packet = PacketBuffer(memoryview(bytearray(64)), lease=Lease(lambda: returned.append("back"), lambda: False))
    clone = packet.clone()
    kept = clone.keep()
    assert kept is clone, "while there is plenty, a queue holds the lent memory itself"
    del packet
    gc.collect()
    assert returned == [], "a clone still refers to the memory"
    del clone, kept
    gc.collect()
    assert returned == ["back"]


def test_keep_copies_when_the_lender_is_short() -> None:
    returned: list[str] = []
    area = memoryview(bytearray(b"frame"))
    packet = PacketBuffer(area, lease=Lease(lambda: returned.append("back"), lambda: True))
    packet.cast, packet.protocol = 2, 0x800
    kept = packet.keep()
    area[:] = b"other"
    assert kept.tobytes() == b"frame", "the copy has memory of its own"
    assert kept.lease is None
    assert (kept.cast, kept.protocol) == (2, 0x800), "what is known of the packet goes along"
    del packet
    gc.collect()
    assert returned == ["back"], "and the buffer goes back"


def test_a_pulled_up_packet_keeps_its_lease() -> None:
    returned: list[str] = []
    lease = Lease(lambda: returned.append("back"), lambda: False)
    packet = PacketBuffer(memoryview(bytearray(4)), frags=[memoryview(bytearray(8))], lease=lease)
    del lease
    packet.pullup(6)
    gc.collect()
    assert returned == [], "the rest of the fragment is still lent"


STEPS = st.sampled_from(["add_tail", "add_head", "remove_head", "remove_tail", "purge"])


@given(st.lists(st.tuples(STEPS, st.binary())))
def test_the_queue_is_a_list_of_packets(steps: list[tuple[str, bytes]]) -> None:
    queue = PacketQueue()
    model: list[bytes] = []
    for step, content in steps:
        if step == "add_tail":
            queue.add_tail(PacketBuffer.from_bytes(content))
            model.append(content)
        elif step == "add_head":
            queue.add_head(PacketBuffer.from_bytes(content))
            model.insert(0, content)
        elif step == "purge":
            assert queue.purge() == len(model)
            model.clear()
        else:
            packet = getattr(queue, step)()
            expected = model.pop(0 if step == "remove_head" else -1) if model else None
            assert (packet if packet is None else packet.tobytes()) == expected
        assert [packet.tobytes() for packet in queue] == model
        assert (len(queue), queue.bytes) == (len(model), sum(map(len, model)))


def test_a_device_delivers_to_its_receiver_or_counts() -> None:
    device = FakeDevice()
    device.deliver([PacketBuffer.from_bytes(b"a"), PacketBuffer.from_bytes(b"b")])
    assert device.counters["rx_dropped_no_receiver"] == 2
    seen: list[bytes] = []
    device.receiver = lambda packets: seen.extend(packet.tobytes() for packet in packets)
    packet = PacketBuffer.from_bytes(b"c")
    device.deliver([packet])
    assert seen == [b"c"]
    assert packet.device is device
