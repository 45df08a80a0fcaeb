"""H40 to H49: front ends that break the rules, against the back end. Each line of the list has its tests here.

What is asked every time: nothing raises, every slot that was taken is answered once, no page or channel leaks, other
vifs do not notice, and the vif can be used again (after a bad packet at once, after a broken ring once the front end
begins anew).
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.clock import SECOND
from hw.memory import AccessHook
from hw.xen.net_rx import BACKLOG_AGE, BACKLOG_BYTES, BACKLOG_FRAMES, STALL
from tests.scripted_frontend import CSUM_BLANK, EXTRA, FAILED, MORE, NULL, OKAY, PAGE, Frontend, FrontRing, Guest
from tests.test_xen_netback import FRAME, UDP, gso_extra, tcp4, virtio

GTF_IN_USE = 8 | 16


def two_vifs() -> tuple[Frontend, Frontend]:
    """Two vifs of one guest, both connected."""
    guest = Guest()
    return Frontend(guest).connect(), Frontend(guest).connect()


def assert_closed(front: Frontend, reason: str) -> None:
    """The back end closed this vif, said why, and let go of everything."""
    assert front.backend_state == 6
    assert reason in front.guest.host.store.get(f"/local/domain/0/error/backend/vif/1/{front.vif.handle}/error")
    assert_nothing_held(front)


def assert_nothing_held(front: Frontend) -> None:
    """No page of the front end's is mapped, and its event channels wait for a partner."""
    for ring in (front.tx, front.rx):
        assert not front.guest.entry_flags(ring.ref) & GTF_IN_USE
    for port in front.ports:
        assert front.guest.host.channels.partner(front.guest.xen.domid, port) is None


def assert_works(front: Frontend) -> None:
    """A frame goes out, a frame comes in."""
    sent = len(front.wire.sent)
    assert front.send(FRAME) == [(100, OKAY)]
    assert front.wire.sent[sent:] == [FRAME]
    front.received()
    (page,) = front.post()
    front.arrive(UDP)
    assert [status for _, _, _, status in front.received()] == [len(UDP)]
    assert front.guest.read(page, len(UDP)) == UDP


def assert_works_anew(front: Frontend) -> None:
    """The front end closes, begins anew with fresh rings, and works."""
    front.state(6)
    front.state(1)
    assert front.backend_state == 2
    front.tx, front.rx = FrontRing(front.guest, 12), FrontRing(front.guest, 8)
    front.connect()
    assert front.backend_state == 4
    assert_works(front)


# -- H40: indices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", ["tx", "rx"])
@pytest.mark.parametrize("ahead", [257, 1 << 31, -1, -256])
def test_h40_an_index_that_cannot_be_closes_only_its_own_vif(ring: str, ahead: int) -> None:
    bad, good = two_vifs()
    assert bad.send(FRAME) == [(100, OKAY)]
    if ring == "rx":
        bad.arrive(FRAME)  # something waits, so that the back end looks
    which = getattr(bad, ring)
    which.publish(which.prod + ahead)
    bad.kick()
    assert_closed(bad, "req_prod is")
    assert bad.counters["failures"] == 1
    assert_works(good)
    assert_works_anew(bad)


def test_h40_an_index_that_goes_back_is_seen() -> None:
    front = Frontend(mtu=9000).connect(feature_sg=1)
    front.post(1)
    front.arrive(bytes(9000))  # needs three slots: the one that is there was seen, and stays
    front.rx.publish(front.rx.prod - 1)
    front.kick()
    assert_closed(front, "req_prod is")


def test_h40_the_back_ends_own_indices_are_its_own() -> None:
    front = Frontend().connect()
    for _ in range(3):
        front.guest.write(front.tx.addr + 8, struct.pack("<I", 0xDEAD))  # rsp_prod
        front.send(FRAME)
    assert front.tx.index(2) == 3
    assert len(front.wire.sent) == 3


# -- H41: what one packet can get wrong -----------------------------------------------------------------------------


def bad_packets() -> list[tuple[str, list[bytes], list[int]]]:
    """For each mistake its slots (gref 0 stands for a good page), and which of them are extra information."""

    def slot(size: int, flags: int = 0, offset: int = 0) -> bytes:
        return struct.pack("<IHHHH", 0, offset, flags, 7, size)

    extra = gso_extra(1000).ljust(12, b"\0")
    more_extra = gso_extra(1000, more=True).ljust(12, b"\0")
    return [
        ("crosses_page", [slot(60, 0, 4090)], []),
        ("crosses_page", [slot(60, 0, 0xFFFF)], []),
        ("crosses_page", [slot(5000, MORE), slot(900)], []),
        ("runt", [slot(13)], []),
        ("runt", [slot(0)], []),
        ("runt", [slot(13, MORE), slot(5)], []),
        ("sizes", [slot(60, MORE), slot(61)], []),
        ("sizes", [slot(60, MORE), slot(40, MORE), slot(40)], []),
        ("too_many_slots", [slot(1000, MORE), *[slot(10, MORE)] * 17, slot(10)], []),
        ("unfinished", [slot(60, MORE)], []),
        ("unfinished", [slot(60, EXTRA)], []),
        ("unfinished", [slot(60, EXTRA), more_extra], [1]),
        ("unknown_extra", [slot(60, EXTRA), bytes([9, 0]).ljust(12, b"\0")], [1]),
        ("unknown_extra", [slot(60, EXTRA), bytes([0, 0]).ljust(12, b"\0")], [1]),
        ("repeated_extra", [slot(60, EXTRA), *[more_extra] * 30, extra], list(range(1, 32))),
        ("late_extra", [slot(60, MORE), slot(20, EXTRA)], []),
        ("gso_malformed", [slot(60, EXTRA), gso_extra(0).ljust(12, b"\0")], [1]),
        ("gso_malformed", [slot(60, EXTRA), gso_extra(1000, 2).ljust(12, b"\0")], [1]),
        ("gso_not_offered", [slot(60, EXTRA), gso_extra(1000, 7).ljust(12, b"\0")], [1]),
        ("too_long", [slot(4096, MORE), slot(1000)], []),
        ("csum_nowhere", [slot(60, CSUM_BLANK)], []),
    ]


@pytest.mark.parametrize(("reason", "slots", "extras"), bad_packets())
def test_h41_a_bad_packet_costs_its_own_slots(reason: str, slots: list[bytes], extras: list[int]) -> None:
    front = Frontend(mtu=1500).connect(feature_sg=1)
    content = tcp4(6) if reason == "gso_malformed" else FRAME
    ref = front.guest.grant(front.guest.page(content))
    for slot in slots:
        front.tx.put(slot if slot[:4] != bytes(4) else struct.pack("<I", ref) + slot[4:])
    answers = front.transmit()
    assert len(answers) == len(slots), "every slot that was taken has its response"
    for at, (request_id, status) in enumerate(answers):
        assert (request_id, status) == ((0, NULL) if at in extras else (7, FAILED))
    assert front.wire.sent == []
    assert front.counters == {f"tx_dropped_{reason}": 1}
    assert front.backend_state == 4
    assert_works(front)


def test_h41_several_slots_are_refused_where_none_were_offered() -> None:
    front = Frontend(profile="ling").connect()
    ref = front.guest.grant(front.guest.page(FRAME))
    front.slot(ref, 0, MORE, 1, 60)
    front.slot(ref, 30, 0, 2, 30)
    assert front.transmit() == [(1, FAILED), (2, FAILED)]
    assert front.counters == {"tx_dropped_sg_not_offered": 1}


def test_h41_good_packets_around_a_bad_one_keep_their_order() -> None:
    front = Frontend().connect()
    ref = front.guest.grant(front.guest.page(FRAME))
    for number, size in enumerate((60, 61, 5, 62)):
        front.slot(ref, 0, 0, number, size)
    assert front.transmit() == [(0, OKAY), (1, OKAY), (2, FAILED), (3, OKAY)]
    assert [len(frame) for frame in front.wire.sent] == [60, 61, 62]


# -- H42: odd but legal ------------------------------------------------------------------------------------------------


def test_h42_as_many_tiny_pieces_as_there_may_be_are_a_frame() -> None:
    front = Frontend().connect(feature_sg=1)
    ref = front.guest.grant(front.guest.page(FRAME))
    front.slot(ref, 0, MORE, 0, 60)  # its own: 43 bytes
    for number in range(17):
        front.slot(ref, 43 + number, MORE if number < 16 else 0, number + 1, 1)
    assert [status for _, status in front.transmit()] == [OKAY] * 18
    assert front.wire.sent == [FRAME]


@pytest.mark.parametrize("where", [0, 1, 2])
def test_h42_an_empty_piece_is_passed_over(where: int) -> None:
    front = Frontend().connect(feature_sg=1)
    ref = front.guest.grant(front.guest.page(FRAME))
    sizes = [30, 30]
    sizes.insert(where, 0)
    at = 0
    for number, size in enumerate(sizes):
        front.slot(ref, at, MORE if number < 2 else 0, number, 60 if number == 0 else size)
        at += size
    assert [status for _, status in front.transmit()] == [OKAY] * 3
    assert front.wire.sent == [FRAME]


def test_h42_headers_may_be_cut_anywhere() -> None:
    front = Frontend().connect(feature_sg=1)
    frame = tcp4(100)
    for cut in range(1, 60):
        ref = front.guest.grant(front.guest.page(frame))
        front.slot(ref, 0, MORE | CSUM_BLANK, 1, len(frame))
        front.slot(ref, cut, 0, 2, len(frame) - cut)
        assert front.transmit() == [(1, OKAY), (2, OKAY)]
        assert front.wire.headers[-1] == virtio(1, start=34, offset=16)
    assert front.wire.sent == [frame] * 59


# -- H43: grants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "domid", "frame"),
    [
        (0, 0, 16),  # never granted
        (2, 0, 16),  # for a transfer
        (3, 0, 16),  # transitive
        (1, 5, 16),  # to somebody else
        (1, 0, 1 << 20),  # a page that is not there
        (1, 0, 0xFFFFFFFF),
    ],
)
def test_h43_a_page_that_is_not_granted_is_not_read(flags: int, domid: int, frame: int) -> None:
    front = Frontend().connect()
    ref = front.guest.grant(front.guest.page(FRAME))
    front.guest.entry(ref, flags, domid, frame)
    front.slot(ref, 0, 0, 1, 60)
    assert front.transmit() == [(1, FAILED)]
    assert front.counters == {"tx_dropped_grant": 1}
    assert_works(front)


@pytest.mark.parametrize("ref", [32 * 512, 0xFFFFFFFF])
def test_h43_a_reference_past_the_table_is_refused(ref: int) -> None:
    front = Frontend().connect()
    front.slot(ref, 0, 0, 1, 60)
    assert front.transmit() == [(1, FAILED)]


def test_h43_a_read_only_page_is_not_written() -> None:
    front = Frontend().connect()
    page = front.guest.page()
    front.rx.put(struct.pack("<HHI", 0, 0, front.guest.grant(page, readonly=True)))
    front.rx.publish()
    front.kick()
    front.arrive(FRAME)
    assert front.received() == [(0, 0, 0, FAILED)]
    assert front.guest.read(page, 60) == b"\xa5" * 60
    assert front.counters["rx_dropped_grant"] == 1
    assert_works(front)


def test_h43_of_several_pages_only_the_bad_one_is_an_error() -> None:
    front = Frontend(mtu=9000).connect(feature_sg=1)
    pages = front.post(3)
    front.guest.entry(front.guest._next_ref - 2, 0, 0, 0)  # the second is taken back
    front.arrive(bytes(9000))
    assert [status for _, _, _, status in front.received()] == [4096, FAILED, 808]
    assert front.guest.read(pages[1], 4) == b"\xa5" * 4


def test_h43_one_reference_for_many_slots_is_the_guests_own_affair() -> None:
    front = Frontend().connect()
    page = front.guest.page()
    ref = front.guest.grant(page)
    for number in range(3):
        front.rx.put(struct.pack("<HHI", number, 0, ref))
    front.rx.publish()
    front.kick()
    front.arrive(*(bytes([number]) * 60 for number in range(3)))
    assert [status for _, _, _, status in front.received()] == [60] * 3
    assert front.guest.read(page, 1) == b"\x02"


def test_h43_a_ring_that_is_taken_back_stays_mapped_and_in_use() -> None:
    front = Frontend().connect()
    assert front.guest.entry_flags(front.tx.ref) & GTF_IN_USE == GTF_IN_USE
    front.guest.entry(front.tx.ref, 0, 0, 0)
    assert_works(front)
    front.state(6)
    assert_nothing_held(front)


@pytest.mark.parametrize("key", ["tx_ring_ref", "rx_ring_ref"])
@pytest.mark.parametrize("ref", [0, 5000, 99999])
def test_h43_rings_that_cannot_be_mapped_close_the_vif(key: str, ref: int) -> None:
    front = Frontend().connect(**{key: ref})
    assert_closed(front, "grant")
    assert_works_anew(front)


# -- H45: stale bytes --------------------------------------------------------------------------------------------------


def test_h45_nothing_but_the_frame_reaches_the_guest() -> None:
    front = Frontend().connect()
    front.send(b"secret" * 200)
    front.arrive(FRAME)  # waits in the back end meanwhile
    pages = front.post(2)
    front.arrive(bytes(14))
    for page, length in zip(pages, (60, 14), strict=True):
        assert front.guest.read(page + length, PAGE - length) == b"\xa5" * (PAGE - length)


def test_h45_responses_say_no_more_than_they_have_to() -> None:
    front = Frontend().connect()
    ref = front.guest.grant(front.guest.page(FRAME))
    front.tx.put(struct.pack("<IHHHH", ref, 0, 0, 7, 60))
    front.tx.publish()
    front.kick()
    (raw,) = front.tx.responses()
    assert raw == struct.pack("<Hh", 7, 0) + struct.pack("<IHHHH", ref, 0, 0, 7, 60)[4:], "only four bytes are written"


# -- H46: guests that take nothing -------------------------------------------------------------------------------------


def test_h46_what_waits_is_bounded_in_frames() -> None:
    front = Frontend().connect()
    assert front.arrive(*[FRAME] * (BACKLOG_FRAMES + 10)) == BACKLOG_FRAMES + 10
    assert front.device.queues[0].rx.backlog == BACKLOG_FRAMES
    assert front.counters["rx_dropped_backlog_frames"] == 10


def test_h46_what_waits_is_bounded_in_bytes() -> None:
    front = Frontend(mtu=65535).connect(feature_sg=1)
    count = BACKLOG_BYTES // 60_000
    front.arrive(*[bytes(60_000)] * (count + 5))
    assert front.device.queues[0].rx.backlog == count
    assert front.counters["rx_dropped_backlog_bytes"] == 5


def test_h46_what_waits_is_bounded_in_time() -> None:
    front = Frontend().connect()
    front.arrive(FRAME)
    front.guest.wait(BACKLOG_AGE // 2)
    front.arrive(UDP)
    front.guest.wait(BACKLOG_AGE // 2 + 1)
    assert front.counters["rx_dropped_backlog_age"] == 1
    (page,) = front.post()
    assert front.guest.read(page, len(UDP)) == UDP


def test_h46_one_free_slot_too_few_is_a_stall_too() -> None:
    front = Frontend(mtu=9000).connect(feature_sg=1)
    carrier = front.guest.get(f"{front.path}/backend") + "/carrier"
    front.post(2)
    for _ in range(STALL // (5 * SECOND) + 3):
        front.arrive(bytes(9000))  # needs three slots; two are there, and stay
        front.guest.wait(5 * SECOND)
    assert front.guest.get(carrier) == "0"
    assert front.counters["rx_stalls"] == 1
    assert front.counters["rx_dropped_stalled"] >= 1
    assert front.device.queues[0].rx.backlog == 0
    front.arrive(FRAME)
    assert front.received() == [], "a stalled queue takes nothing, though this frame would have had room"
    front.post(1)
    assert front.guest.get(carrier) == "1"
    front.arrive(bytes(9000))
    assert [status for _, _, _, status in front.received()] == [4096, 4096, 808]


def test_h46_a_guest_that_posts_in_time_is_never_stalled() -> None:
    front = Frontend().connect()
    for _ in range(40):
        front.arrive(FRAME)
        front.guest.wait(5 * SECOND)
        front.post()
    assert front.counters["rx_packets"] == 40
    assert "rx_stalls" not in front.counters


def test_h46_a_stalled_queue_leaves_no_timer_behind() -> None:
    front = Frontend().connect()
    front.arrive(FRAME)
    front.guest.wait(2 * STALL)
    assert front.device.queues[0].rx.is_stalled
    assert front.guest.machine.clock.next_deadline() is None
    front.state(6)
    assert front.guest.machine.clock.next_deadline() is None


# -- H47: xenbus -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"tx_ring_ref": None}, "tx-ring-ref"),
        ({"rx_ring_ref": None}, "rx-ring-ref"),
        ({"event_channel": None}, "event-channel"),
        ({"request_rx_copy": None}, "request-rx-copy"),
        ({"request_rx_copy": 0}, "request-rx-copy"),
        ({"feature_rx_notify": None}, "feature-rx-notify"),
        ({"tx_ring_ref": "garbage"}, "tx-ring-ref"),
        ({"tx_ring_ref": "-1"}, "tx-ring-ref"),
        ({"tx_ring_ref": "9" * 40}, "tx-ring-ref"),
        ({"tx_ring_ref": ""}, "tx-ring-ref"),
        ({"event_channel": "x"}, "event-channel"),
        ({"event_channel": 4000}, "port 4000"),
        ({"event_channel": 1}, "port 1"),  # the store's, which has its partner
        ({"feature_sg": "yes"}, "feature-sg"),
        ({"multi_queue_num_queues": 0}, "0 queues"),
        ({"multi_queue_num_queues": 5}, "5 queues"),
        ({"multi_queue_num_queues": 2}, "queue-0"),
        ({"ctrl_ring_ref": 77}, "grant 77"),
    ],
)
def test_h47_keys_that_are_missing_or_garbage_close_the_vif(keys: dict[str, object], reason: str) -> None:
    good = Frontend(Guest()).connect()
    front = Frontend(good.guest).connect(**keys)
    assert_closed(front, reason)
    assert_works(good)
    for key in keys:
        front.guest.ask(13, f"{front.path}/{key.replace('_', '-')}".encode() + b"\0")
    assert_works_anew(front)


@pytest.mark.parametrize("state", ["x", "9", "-1", "4\0", "", "999999999999"])
def test_h47_a_state_that_is_none_closes_the_vif(state: str) -> None:
    front = Frontend().connect()
    front.state(state)
    assert_closed(front, "state")


@settings(max_examples=60)
@given(states=st.lists(st.integers(0, 8), max_size=12))
def test_h47_states_in_any_order_end_somewhere_and_leak_nothing(states: list[int]) -> None:
    front = Frontend()
    for key, value in front.keys().items():
        front.guest.put(f"{front.path}/{key}", value)
    for state in states:
        front.state(state)
        connected = front.device.state == 4
        assert bool(front.device.queues) == connected
        if not connected:
            assert_nothing_held(front)
    front.state(6)
    assert front.backend_state == 6
    assert_nothing_held(front)
    assert_works_anew(front)


def test_h47_a_state_that_is_removed_is_a_front_end_that_is_gone() -> None:
    front = Frontend().connect()
    front.guest.ask(13, f"{front.path}/state".encode() + b"\0")
    front.guest.settle()
    assert front.backend_state == 6
    assert_nothing_held(front)
    assert_works_anew(front)


def test_h47_closing_and_closed_are_answered_in_kind() -> None:
    front = Frontend().connect()
    front.state(5)
    assert front.backend_state == 5
    front.state(6)
    assert front.backend_state == 6


def test_h47_a_front_end_that_begins_anew_without_closing_is_let_in() -> None:
    front = Frontend().connect()
    front.state(1)
    assert front.backend_state == 2
    assert_nothing_held(front)
    front.tx, front.rx = FrontRing(front.guest, 12), FrontRing(front.guest, 8)
    front.connect()
    assert_works(front)


def test_h47_a_back_end_that_is_unplugged_lets_go() -> None:
    front = Frontend().connect()
    front.vif.unplug()
    front.guest.settle()
    assert front.backend_state == 5
    front.state(6)
    assert front.backend_state == 6
    front.vif.close()
    assert_nothing_held(front)


def test_h47_a_resumed_guest_finds_a_back_end_that_waits() -> None:
    front = Frontend().connect()
    ring = front.guest.entry_flags(front.tx.ref)
    assert ring & GTF_IN_USE
    front.guest.host.request_shutdown(front.guest.xen, "suspend")
    assert front.guest.get("control/shutdown") == "suspend"
    assert front.guest.xen.suspend()
    assert front.guest.entry_flags(front.tx.ref) == 0
    assert front.guest.xen.evtchn_send(front.ports[0]) < 0
    assert front.backend_state == 2
    front.tx, front.rx = FrontRing(front.guest, 12), FrontRing(front.guest, 8)
    front.state(1)
    front.connect()
    assert_works(front)


def test_h47_a_card_that_was_taken_away_does_not_come_back_by_a_resume() -> None:
    front = Frontend().connect()
    front.vif.close()
    assert front.guest.xen.suspend()
    front.guest.settle()
    assert front.backend_state == 6


def test_h47_rings_of_nothing_but_zeros_are_rings() -> None:
    front = Frontend()
    for ring in (front.tx, front.rx):
        front.guest.write(ring.addr, bytes(PAGE))
    front.connect()
    assert front.backend_state == 4


# -- H48: the control ring ---------------------------------------------------------------------------------------------


class Control:
    """A front end with a control ring."""

    def __init__(self) -> None:
        self.front = Frontend(queues=2)
        self.ring = FrontRing(self.front.guest, 16)
        self.port = self.front.guest.xen.evtchn_alloc_unbound(0)
        self.front.connect(ctrl_ring_ref=self.ring.ref, event_channel_ctrl=self.port)

    def ask(self, kind: int, *data: int) -> tuple[int, int]:
        """Status and data of the answer."""
        words = [*data, 0, 0, 0][:3]
        self.ring.put(struct.pack("<HHIII", 3, kind, *words))
        self.ring.publish()
        self.front.guest.xen.evtchn_send(self.port)
        self.front.guest.settle()
        (raw,) = self.ring.responses()
        request_id, answered, status, value = struct.unpack_from("<HHII", raw)
        assert (request_id, answered) == (3, kind)
        return status, value


def test_h48_the_control_ring_sets_a_hash() -> None:
    control = Control()
    guest = control.front.guest
    key = guest.grant(guest.page(bytes(range(40))), readonly=True)
    mapping = guest.grant(guest.page(bytes(16)), readonly=True)
    assert control.ask(1) == (1, 0)  # flags: no algorithm yet
    assert control.ask(7, 1) == (0, 0)
    assert control.ask(1) == (0, 15)
    assert control.ask(2, 3) == (0, 0)
    assert control.ask(3, key, 40) == (0, 0)
    assert control.ask(4) == (0, 128)
    assert control.ask(5, 4) == (0, 0)
    assert control.ask(6, mapping, 4, 0) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (2, (1 << 4,)),  # a hash type that is none
        (3, (8, 41)),  # key too long
        (3, (8, 0xFFFFFFFF)),
        (3, (9999, 40)),  # key in a page that is not granted
        (5, (129,)),
        (5, (0xFFFFFFFF,)),
        (6, (8, 5, 0)),  # more entries than the mapping has
        (6, (8, 1, 4)),
        (6, (8, 0xFFFFFFFF, 5)),
        (6, (8, 4, 0xFFFFFFFE)),  # offset + count wraps
        (6, (9999, 1, 0)),
        (7, (2,)),
        (7, (0xFFFFFFFF,)),
    ],
)
def test_h48_sizes_and_offsets_beyond_the_limits_are_invalid(kind: int, data: tuple[int, ...]) -> None:
    control = Control()
    assert control.ask(7, 1) == (0, 0)
    assert control.ask(5, 4) == (0, 0)
    assert control.ask(kind, *data)[0] == 2
    assert_works(control.front)


def test_h48_a_mapping_names_only_queues_that_there_are() -> None:
    control = Control()
    page = control.front.guest.page(struct.pack("<I", 1))
    assert control.ask(5, 1) == (0, 0)
    assert control.ask(6, control.front.guest.grant(page), 1, 0)[0] == 2


@pytest.mark.parametrize("kind", [0, 8, 9, 10, 11, 0xFFFF])
def test_h48_what_is_not_supported_is_answered_so(kind: int) -> None:
    assert Control().ask(kind, 0, 0, 0) == (1, 0)


def test_h48_a_control_ring_with_an_index_that_cannot_be_closes_the_vif() -> None:
    control = Control()
    control.ring.publish(300)
    control.front.guest.xen.evtchn_send(control.port)
    control.front.guest.settle()
    assert_closed(control.front, "control ring")


# -- H49: a bad packet, then gone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "removed", "destroyed", "ring"])
def test_h49_teardown_in_the_middle_of_work_happens_once(how: str) -> None:
    bad, good = two_vifs()
    ref = bad.guest.grant(bad.guest.page(FRAME))
    bad.wire.room = 1
    for number in range(4):
        bad.slot(ref, 0, 0, number, 60)
    bad.slot(ref, 0, MORE, 9, 60)
    bad.tx.publish()
    bad.guest.xen.evtchn_send(bad.ports[0])
    bad.arrive(*[FRAME] * 5)
    path = f"{bad.path}/state"
    if how == "closed":
        bad.state(6)
    elif how == "removed":
        bad.guest.ask(13, path.encode() + b"\0")
    elif how == "destroyed":
        bad.vif.close()
    else:
        bad.tx.publish(9999)
        bad.kick()
        bad.wire.room = 1 << 30
        bad.device.writable()
    bad.guest.settle()
    bad.device.writable()
    bad.guest.settle()
    assert bad.device.queues == []
    assert_nothing_held(bad)
    assert bad.guest.machine.clock.next_deadline() is None
    assert_works(good)


def test_h49_power_off_gives_everything_back() -> None:
    front, _ = two_vifs()
    front.arrive(FRAME)
    front.guest.machine.power_off()
    host = front.guest.host
    assert host.domains == {}
    assert front.guest.xen.grants.in_use == 0
    assert front.guest.xen.evtchn_send(1) == -3  # ESRCH: no such domain
    assert host.store.list("/local/domain") == ["0"]
    front.guest.machine.power_off()


# -- all of it at once -------------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(data=st.data())
def test_h41_any_bytes_in_the_rings_end_in_answers_or_a_closed_vif(data: st.DataObject) -> None:
    front = Frontend().connect(feature_sg=1, feature_gso_tcpv4=1)
    guest = front.guest
    refs = [guest.grant(guest.page(tcp4(50))), guest.grant(guest.page(), readonly=True), 0, 999_999]
    small = st.sampled_from([0, 1, 13, 14, 60, 104, 4095, 4096, 65535])
    for _ in range(data.draw(st.integers(1, 4))):
        for _ in range(data.draw(st.integers(0, 12))):
            gref = data.draw(st.sampled_from(refs))
            flags = data.draw(st.integers(0, 15))
            front.slot(gref, data.draw(small), flags, data.draw(st.integers(0, 65535)), data.draw(small))
        for _ in range(data.draw(st.integers(0, 4))):
            front.rx.put(struct.pack("<HHI", data.draw(st.integers(0, 65535)), 0, data.draw(st.sampled_from(refs))))
        front.tx.publish()
        front.rx.publish()
        front.kick()
        front.arrive(tcp4(50), header=data.draw(st.binary(min_size=12, max_size=12)))
        front.arrive(tcp4(data.draw(st.integers(0, 9000))), header=virtio(1, 1, 54, 1400, 34, 16))
        front.answers()
        front.received()
    assert front.backend_state == 4
    assert front.tx.index(2) == front.tx.prod, "every request has its response"


class Flip(AccessHook):
    """Writes other bytes over a ring at each access of the back end's."""

    def __init__(self, front: Frontend, data: st.DataObject) -> None:
        self.front, self.data, self.left = front, data, 40

    def before_load(self, who: str, addr: int, size: int) -> None:
        for ring in (self.front.tx, self.front.rx):
            if who == "device" and ring.addr <= addr < ring.addr + PAGE and self.left:
                self.left -= 1
                if self.data.draw(st.booleans()):
                    self.front.guest.write(addr, self.data.draw(st.binary(min_size=size, max_size=size)))


@settings(max_examples=60)
@given(data=st.data())
def test_h40_memory_that_changes_at_every_access_harms_only_its_vif(data: st.DataObject) -> None:
    bad, good = two_vifs()
    ref = bad.guest.grant(bad.guest.page(FRAME))
    for number in range(4):
        bad.slot(ref, 0, 0, number, 60)
    bad.tx.publish()
    bad.guest.machine.set_hook(Flip(bad, data))
    bad.kick()
    bad.arrive(FRAME)
    bad.guest.machine.set_hook(None)
    assert bad.backend_state in (4, 6)
    assert_works(good)
    assert_works_anew(bad)
