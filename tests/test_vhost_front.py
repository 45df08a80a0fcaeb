"""The vhost-user front end: what it asks of a back end, in which order, and what becomes of one that lies or leaves."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hw.vhost.messages
from guest.kernel import Guest
from guest.net.device import IFF_RUNNING
from hw.abi import vhost_user as abi
from hw.abi import virtio_net as net
from hw.abi.virtio import VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX
from hw.clock import SECOND, RealClock
from hw.loop import Loop
from hw.machine import Machine, Option
from hw.vhost.messages import USER_BASE
from hw.wire.link import WireError
from tests.scripted_vhost import FEATURES, Lie, ScriptedBackEnd, descriptors_of_this_process
from vring.config import Board, ConfigError, GuestSpec, NicSpec

PATIENCE = 10 * SECOND
RAM_DESCRIPTORS = 2  # a memfd, and the mapping's own


@pytest.fixture(autouse=True)
def _tidy() -> None:
    """What earlier tests left to the garbage collector must not go while descriptors are counted."""
    gc.collect()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(RealClock())
    yield loop
    loop.close()


class Side:
    """A guest with one card, which the back end at `path` serves."""

    def __init__(self, loop: Loop, path: Path, **options: Option) -> None:
        self.loop = loop
        self.machine = Machine(loop, seed=1)
        self.slot = self.machine.add_vhost_user(str(path), options=options)
        self.card = self.slot.device
        self.guest = Guest(self.machine.platform)
        self.machine.power_on(self.guest)
        self.wait(lambda: self.guest.booted, "the guest to boot")

    @property
    def driver_is_up(self) -> bool:
        return bool(self.guest.devices[0].flags & IFF_RUNNING)

    def wait(self, until: Callable[[], bool], what: str) -> None:
        assert self.loop.run(until, deadline=self.loop.clock.now() + PATIENCE), f"waited in vain for {what}"

    def close(self) -> None:
        self.guest.close()
        self.machine.power_off()


def names(heard: list[tuple[str, bytes]]) -> list[str]:
    return [name for name, _ in heard]


QUEUE_UP = ["SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_CALL", "SET_VRING_KICK", "SET_VRING_ENABLE"]
QUEUE_DOWN = ["SET_VRING_ENABLE", "GET_VRING_BASE"]


def test_the_back_end_is_told_what_it_needs_in_order(loop: Loop, tmp_path: Path) -> None:
    with ScriptedBackEnd(tmp_path / "s") as back:
        side = Side(loop, tmp_path / "s")
        side.close()

    (heard,) = back.heard
    assert names(heard) == [
        *["GET_FEATURES", "SET_OWNER", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES"],
        *["SET_FEATURES", "SET_MEM_TABLE", *QUEUE_UP, *QUEUE_UP],
        *QUEUE_DOWN * 2,
    ]
    said = dict(heard)
    (accepted,) = abi.U64.unpack(said["SET_FEATURES"])
    wanted = (VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, abi.VHOST_USER_F_PROTOCOL_FEATURES)
    assert accepted == sum(1 << bit for bit in wanted), "MAC, STATUS and MTU are the front end's own"
    assert abi.MEMORY_REGION.unpack(said["SET_MEM_TABLE"][8:]) == (0, side.machine.memory_size, USER_BASE, 0)
    assert {name: back.descriptors[name] for name in ("SET_MEM_TABLE", "SET_VRING_CALL", "SET_VRING_KICK")} == {
        "SET_MEM_TABLE": 1, "SET_VRING_CALL": 1, "SET_VRING_KICK": 1,
    }  # fmt: skip


def test_queues_are_where_the_driver_put_them(loop: Loop, tmp_path: Path) -> None:
    with ScriptedBackEnd(tmp_path / "s") as back:
        side = Side(loop, tmp_path / "s", queue_size=64)
        placed = [side.slot.queue_registers[index].addresses for index in (0, 1)]
        side.close()

    told = [abi.VRING_ADDR.unpack(payload) for name, payload in back.heard[0] if name == "SET_VRING_ADDR"]
    assert told == [
        (index, 0, *(USER_BASE + areas[which] for which in ("desc", "device", "driver")), 0)
        for index, areas in enumerate(placed)
    ]
    assert [p for name, p in back.heard[0] if name == "SET_VRING_NUM"] == [abi.VRING_STATE.pack(i, 64) for i in (0, 1)]


@pytest.mark.parametrize(("packed", "base"), [(False, 0), (True, 0x80008000)])
def test_a_ring_starts_at_its_beginning_with_wrap_counters_of_one(
    loop: Loop, tmp_path: Path, packed: bool, base: int
) -> None:
    with ScriptedBackEnd(tmp_path / "s") as back:
        side = Side(loop, tmp_path / "s", packed=packed)
        negotiated = side.slot.features >> VIRTIO_F_RING_PACKED & 1
        side.close()

    assert negotiated == packed
    bases = [payload for name, payload in back.heard[0] if name == "SET_VRING_BASE"]
    assert bases == [abi.VRING_STATE.pack(index, base) for index in (0, 1)]


def test_without_protocol_features_rings_are_enabled_by_their_kick(loop: Loop, tmp_path: Path) -> None:
    plain = FEATURES & ~(1 << abi.VHOST_USER_F_PROTOCOL_FEATURES)
    with ScriptedBackEnd(tmp_path / "s", offers=plain) as back:
        side = Side(loop, tmp_path / "s")
        side.close()

    assert not {"GET_PROTOCOL_FEATURES", "SET_VRING_ENABLE"} & set(names(back.heard[0]))


MQ = 1 << abi.VHOST_USER_PROTOCOL_F_MQ | 1 << abi.VHOST_USER_PROTOCOL_F_REPLY_ACK


def test_several_pairs_are_handed_over_and_enabled_as_the_driver_says(loop: Loop, tmp_path: Path) -> None:
    offers = FEATURES | 1 << net.VIRTIO_NET_F_MQ
    with ScriptedBackEnd(tmp_path / "s", offers=offers, protocol=MQ, pairs=4) as back:
        side = Side(loop, tmp_path / "s", queues=3)
        settings = side.guest.devices[0].settings
        assert settings is not None
        side.wait(lambda: settings.pairs == 3, "three pairs")
        settings.set_pairs(1)
        side.wait(lambda: settings.pairs == 1, "one pair")
        heard = list(back.heard[0])
        side.close()

    enabled = [abi.VRING_STATE.unpack(payload) for name, payload in heard if name == "SET_VRING_ENABLE"]
    first, three, one = enabled[:2], enabled[2:8], enabled[8:]
    assert first == [(0, 1), (1, 1)], "until the driver says more, one pair"
    assert three == [(index, 1) for index in range(6)]
    assert one == [(index, int(index < 2)) for index in range(6)]
    assert names(heard).count("SET_VRING_KICK") == 6, "the control queue stays here"


def test_h30_a_back_end_that_leaves_while_pairs_are_enabled_is_only_lost(loop: Loop, tmp_path: Path) -> None:
    offers = FEATURES | 1 << net.VIRTIO_NET_F_MQ
    with ScriptedBackEnd(tmp_path / "s", offers=offers, protocol=MQ, pairs=4) as back:
        side = Side(loop, tmp_path / "s", queues=3)
        settings = side.guest.devices[0].settings
        side.wait(lambda: settings.pairs == 3, "three pairs")
        back._lies[abi.VHOST_USER_SET_VRING_ENABLE] = lambda _answer: None
        settings.set_pairs(1)
        side.wait(lambda: side.card.counters["back_end_lost"] == 1, "the loss")
        side.close()


@pytest.mark.parametrize(("offers", "pairs"), [(FEATURES | 1 << net.VIRTIO_NET_F_MQ, 2), (FEATURES, 8)])
def test_a_back_end_with_too_few_pairs_is_refused(loop: Loop, tmp_path: Path, offers: int, pairs: int) -> None:
    with (
        ScriptedBackEnd(tmp_path / "s", offers=offers, protocol=MQ, pairs=pairs),
        pytest.raises(WireError, match="pairs of queues; 3 are asked for"),
    ):
        Machine(loop).add_vhost_user(str(tmp_path / "s"), options={"queues": 3})


def test_a_doorbell_is_an_eventfd_and_so_is_an_interrupt(loop: Loop, tmp_path: Path) -> None:
    with ScriptedBackEnd(tmp_path / "s") as back:
        side = Side(loop, tmp_path / "s")
        driver = side.guest.devices[0]
        before = driver.counters["irqs"]
        assert os.eventfd_read(back.kicks[0]) >= 1, "the posted receive buffers were announced"

        os.eventfd_write(back.calls[0], 1)

        side.wait(lambda: driver.counters["irqs"] > before, "the interrupt")
        side.close()


def test_a_back_end_that_leaves_takes_the_link_down_and_one_that_comes_is_started_anew(
    loop: Loop, tmp_path: Path
) -> None:
    with ScriptedBackEnd(tmp_path / "s") as back:
        side = Side(loop, tmp_path / "s")
        assert side.driver_is_up

        back.hang_up()
        side.wait(lambda: not side.driver_is_up, "the link to go down")
        side.wait(lambda: side.driver_is_up, "the link to come up")

        assert side.card.counters["back_end_lost"] == side.card.counters["back_end_found"] == 1
        assert side.guest.devices[0].counters["device_failed"] == 1, "the driver was asked to begin anew"
        assert names(back.heard[1])[4:] == ["SET_FEATURES", "SET_MEM_TABLE", *QUEUE_UP, *QUEUE_UP]
        side.close()


def test_a_back_end_that_offers_less_than_before_is_not_used(loop: Loop, tmp_path: Path) -> None:
    back = ScriptedBackEnd(tmp_path / "s")
    side = Side(loop, tmp_path / "s")
    back.close()
    with ScriptedBackEnd(tmp_path / "s", offers=FEATURES & ~(1 << VIRTIO_RING_F_EVENT_IDX)):
        side.wait(lambda: side.card.counters["back_end_refused"] >= 1, "the front end to see what it offers")
        assert not side.driver_is_up
        side.close()


def message(request: int, payload: bytes, flags: int = abi.VHOST_USER_VERSION | abi.VHOST_USER_REPLY) -> bytes:
    return abi.HEADER.pack(request, flags, len(payload)) + payload


LIES: dict[str, tuple[Lie, str]] = {
    "hangs up": (lambda honest: None, "hung up while GET_FEATURES"),
    "half an answer": (lambda honest: message(abi.VHOST_USER_GET_FEATURES, b"1234"), "with 4 bytes, not 8"),
    "another request": (lambda honest: message(abi.VHOST_USER_SET_OWNER, bytes(8)), "with request 3"),
    "no reply flag": (lambda honest: message(abi.VHOST_USER_GET_FEATURES, bytes(8), 1), "flags 0x1"),
    "a huge answer": (lambda honest: honest[:8] + b"\xff\xff\xff\x7f", "2147483647 bytes"),
}


@pytest.mark.parametrize("lie", LIES)
def test_h30_an_answer_that_makes_no_sense_is_one_line(loop: Loop, tmp_path: Path, lie: str) -> None:
    tell, complaint = LIES[lie]
    before = descriptors_of_this_process()
    machine = Machine(loop)
    lies = {abi.VHOST_USER_GET_FEATURES: tell}
    with ScriptedBackEnd(tmp_path / "s", lies=lies), pytest.raises(WireError, match=complaint):
        machine.add_vhost_user(str(tmp_path / "s"))
    assert descriptors_of_this_process() == before + RAM_DESCRIPTORS


@pytest.mark.parametrize("request_", [abi.VHOST_USER_SET_MEM_TABLE, abi.VHOST_USER_SET_VRING_ADDR])
def test_a_back_end_that_refuses_what_it_needs_is_left_alone(loop: Loop, tmp_path: Path, request_: int) -> None:
    refuse: Lie = lambda honest: message(request_, abi.U64.pack(1))  # noqa: E731
    with ScriptedBackEnd(tmp_path / "s", lies={request_: refuse}):
        side = Side(loop, tmp_path / "s")
        side.wait(lambda: not side.driver_is_up, "the link to go down")
        assert f"refused {abi.REQUEST_NAMES[request_]}" in side.card.lost_because  # type: ignore[attr-defined]
        side.close()


def test_a_silent_back_end_is_waited_for_only_so_long(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hw.vhost.messages, "ANSWER_TIMEOUT", 0.05)
    silent: dict[int, Lie] = {abi.VHOST_USER_GET_FEATURES: lambda honest: b""}
    complaint = r"did not answer GET_FEATURES within 0\.05 seconds"
    with ScriptedBackEnd(tmp_path / "s", lies=silent), pytest.raises(WireError, match=complaint):
        Machine(loop).add_vhost_user(str(tmp_path / "s"))


def test_nobody_there_says_how_to_start_somebody(loop: Loop, tmp_path: Path) -> None:
    with pytest.raises(WireError, match=r"no vhost-user back end answers at .*vring device --socket"):
        Machine(loop).add_vhost_user(str(tmp_path / "nobody"))


@pytest.mark.parametrize(
    ("text", "wire", "complaint"),
    [
        ("vhost-user", "none", "say where its back end listens"),
        ("vhost-user:mtu=9000", "none", "say where its back end listens"),
        ("vhost-user:/run/s", "hub:x", "its back end has the wire"),
    ],
)
def test_words_that_cannot_be(text: str, wire: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        NicSpec.parse(text, wire)


def test_words_name_the_socket_first() -> None:
    nic = NicSpec.parse("vhost-user:/run/s,packed=on,mac=02:00:00:00:00:01")
    assert (nic.options["socket"], nic.options["packed"]) == ("/run/s", True)


def test_time_is_real_behind_a_back_end() -> None:
    board = Board((GuestSpec(nics=(NicSpec.parse("vhost-user:/run/s"),)),), clock="virtual")
    with pytest.raises(ConfigError, match="use the clock 'real'"):
        board.check()


