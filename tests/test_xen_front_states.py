"""H47 and H49 from the other side: a back end, a toolstack and a store that do what they like with the guest's card.

Whatever came before, a front end that finds an honest back end connects to it and works.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.memory import GuestMemory
from tests.guest_board import Board
from tests.scripted_backend import Front
from tests.test_xen_front_hostile import FRAME, assert_recovers, assert_works

PROFILES = ("plain", "full")


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board("xen-full")
    yield made
    made.close()


@pytest.fixture(params=PROFILES)
def front(request: pytest.FixtureRequest, board: Board) -> Front:
    made = Front(board, f"xen_netfront.profile={request.param}")
    made.backend.attach()
    return made


def assert_connects(front: Front) -> None:
    """An honest back end comes, and is found within the longest pause."""
    front.backend.detach()
    front.backend.state(2)
    front.board.run(15)
    assert front.backend.front_state == "4", front.driver.failed
    front.backend.attach()
    assert_works(front)


def assert_bounded(front: Front) -> None:
    """The guest holds one connection's pages, channels and watches, its kernel's, and two rings that an earlier back
    end has not let go of; no more.
    """
    backend = front.backend
    assert len(backend.granted()) <= 256 + 128 + 2 + 2
    assert len(backend.host.channels.ports(backend.domain.domid)) <= 3
    watches = [len(each.watches) for each in backend.host.xenstore.clients if each.domid == backend.domain.domid]
    assert watches[0] <= 4


# -- states ------------------------------------------------------------------------------------------------------------

STATES = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "x", "", "-1", "99999999999"]
STEPS = st.one_of(
    st.tuples(st.just("state"), st.sampled_from(STATES)),
    st.tuples(st.sampled_from(["attach", "detach", "no state", "moved", "back again", "no backend"]), st.just("")),
    st.tuples(st.just("online"), st.sampled_from(["0", "1", "?"])),
    st.tuples(st.just("wait"), st.sampled_from(["0.1", "1", "20"])),
)


def take(front: Front, what: str, value: str) -> None:
    """One step of somebody's who does not care."""
    backend = front.backend
    if what == "state":
        backend.state(value)
    elif what == "attach" and not backend.rings and front.driver.queues:
        backend.attach()
    elif what == "detach":
        backend.detach()
    elif what == "no state":
        backend.store.remove(f"{backend.back}/state")
    elif what in ("moved", "back again"):
        path = f"{backend.back}9" if what == "moved" else backend.back
        backend.store.write(f"{backend.front}/backend", path)
    elif what == "no backend":
        backend.store.remove(f"{backend.front}/backend")
    elif what == "online":
        backend.store.write(f"{backend.back}/online", value)
    elif what == "wait":
        front.board.run(float(value))
    front.board.run(0.001)


@settings(max_examples=60)
@given(profile=st.sampled_from(PROFILES), steps=st.lists(STEPS, max_size=14))
def test_h47_states_of_the_back_end_in_any_order_end_in_a_connection(
    profile: str, steps: list[tuple[str, str]]
) -> None:
    board = Board("xen-full")
    front = Front(board, f"xen_netfront.profile={profile}")
    for what, value in steps:
        take(front, what, value)
        assert_bounded(front)
    take(front, "back again", "")
    take(front, "online", "1")
    assert_connects(front)
    assert_bounded(front)
    board.close()


@pytest.mark.parametrize("state", ["0", "1", "3", "4", "5", "6", "7", "x", ""])
def test_h47_a_guest_boots_with_a_back_end_in_any_state_and_connects_later(board: Board, state: str) -> None:
    front = Front(board, state=state)
    assert front.guest.booted
    assert front.driver.queues == []
    assert_connects(front)


@pytest.mark.parametrize("state", ["2", "1", "0"])
def test_h47_a_back_end_that_starts_anew_without_closing_is_connected_to(front: Front, state: str) -> None:
    front.backend.detach()
    front.backend.state(state)
    assert front.driver.counters["disconnects"] == 1
    assert_connects(front)
    assert front.driver.counters["connects"] == 2


def test_h47_a_back_end_that_is_moved_is_followed(front: Front) -> None:
    backend = front.backend
    backend.detach()
    moved = backend.back = f"{backend.back}9"
    backend.store.mkdir(moved)
    backend.store.permit(moved, "n0", f"r{backend.domain.domid}")
    backend.store.write_all(moved, {"feature-rx-copy": 1, "online": 1, "state": 2})
    backend.store.write(f"{backend.front}/backend", moved)
    front.board.run(0.1)
    assert front.driver.bus.backend == moved
    backend.attach()
    assert_works(front)


def test_h49_a_card_that_is_unplugged_in_the_middle_of_work_lets_go_of_everything(front: Front) -> None:
    backend = front.backend
    front.send(*[FRAME] * 100)
    backend.received(FRAME)
    backend.detach()
    backend.store.remove(backend.front)
    backend.store.remove(backend.back)
    front.board.run(1)
    assert front.driver.failed == "the device was unplugged"
    assert front.driver.queues == []
    assert backend.granted() == {}
    assert front.send(FRAME) == 0
    assert front.driver.counters["tx_dropped_device_down"] == 1


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", ["0", "-1", "x", "", "4294967295", "99999999999", None])
def test_h47_a_number_of_queues_that_cannot_be_is_as_good_as_none(board: Board, queues: str | None) -> None:
    front = Front(board, multi_queue_max_queues=queues)
    expected = 16 if queues == "4294967295" else 1
    assert len(front.driver.queues) == expected
    if expected == 1:
        front.backend.attach()
        assert_works(front)


@pytest.mark.parametrize("garbage", ["", "x", "2", "-1", "1\0", "\xff"])
def test_h47_features_that_are_no_offer_are_none(board: Board, garbage: str) -> None:
    names = ("sg", "gso_tcpv4", "gso_tcpv6", "ipv6_csum_offload", "split_event_channels")
    front = Front(board, **{f"feature_{name}": garbage for name in names})
    features = front.driver.offer.features if front.driver.offer else None
    assert features
    assert (features.tx_sg, features.tx_gso, features.tx_csum6) == (False, frozenset(), False)
    assert front.driver.queues[0].tx_port == front.driver.queues[0].rx_port
    front.backend.attach()
    assert_works(front)


@pytest.mark.parametrize("offer", [None, "0", "x"])
def test_h47_a_back_end_that_does_not_copy_is_refused_until_it_does(board: Board, offer: str | None) -> None:
    front = Front(board, feature_rx_copy=offer)
    assert "does not copy" in front.backend.complaint
    assert (front.backend.front_state, front.driver.queues) == ("6", [])
    front.backend.state(6)
    front.backend.store.write(f"{front.backend.back}/feature-rx-copy", "1")
    assert_connects(front)


@pytest.mark.parametrize(("key", "value"), [("backend-id", "x"), ("backend-id", "32752"), ("backend", "device")])
def test_h47_a_card_without_a_place_for_its_back_end_is_none(board: Board, key: str, value: str) -> None:
    front = Front(board, front={key: value})
    assert front.guest.booted
    assert front.guest.devices == []
    assert key in front.guest.log.text()


@pytest.mark.parametrize(
    "mac", ["", "x", "02:00:00:00:00", "02:00:00:00:00:zz", "ff:ff:ff:ff:ff:ff", "01:00:00:00:00:01"]
)
def test_h47_an_address_that_is_no_station_s_is_replaced(board: Board, mac: str) -> None:
    front = Front(board, front={"mac": mac})
    assert front.driver.counters["mac_refused"] == 1
    assert front.driver.mac[0] & 3 == 2, "local, not of a group"
    front.backend.attach()
    assert_works(front)


@pytest.mark.parametrize(
    ("mtu", "expected"), [("0", 1500), ("67", 1500), ("x", 1500), ("4294967295", 65521), ("68", 68)]
)
def test_h47_an_mtu_that_cannot_be_is_not_used(board: Board, mtu: str, expected: int) -> None:
    assert Front(board, front={"mtu": mtu}).driver.mtu == expected


# -- events and the store ----------------------------------------------------------------------------------------------


def test_events_that_announce_nothing_end_the_connection(front: Front) -> None:
    for _ in range(1001):
        front.backend.host.events.notify(front.backend.ports["tx"])
        front.board.loop.turn()
    front.board.run(0.001)
    assert_recovers(front, "1000 events in a row announced nothing")


def test_an_event_on_a_port_that_nobody_has_is_counted_once_and_masked(front: Front) -> None:
    domain = front.backend.domain
    for _ in range(3):
        domain.shared.set_pending(2000)
        front.board.run(0.001)
    assert front.guest.xen is not None
    assert front.guest.xen.events.counters["unknown_port"] == 1  # type: ignore[attr-defined]
    assert_works(front)


@pytest.mark.parametrize("index", [2048, 2060], ids=["req_cons", "rsp_prod"])
def test_a_store_whose_indices_cannot_be_is_given_up_and_the_card_goes_on(front: Front, index: int) -> None:
    memory: GuestMemory = front.backend.machine.memory
    domain = front.backend.domain
    memory.span(domain.store_page + index, 4)[:] = b"\x00\x50\x00\x00"
    if index == 2048:
        front.backend.store.write(f"{front.backend.back}/carrier", "1")  # the guest will ask for it
    domain.shared.set_pending(domain.store_port)
    front.board.run(0.1)
    assert_works(front)
    assert "the store cannot be used" in front.guest.log.text()
    front.backend.detach()  # the guest can no longer tell it that it closes
