"""Raw outlets: opening, stealing, sending, closing. The tests named after a defect show one that LING has."""

from __future__ import annotations

import pytest

from guest.ol import OutletError, RawOutlet
from tests.fakes import frame
from tests.test_fe import Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()


def notices(bench: Bench, outlet: RawOutlet) -> list[object]:
    """What the owner was told of `outlet` other than frames."""
    messages = [message for message in bench.owner.mailbox if isinstance(message, tuple) and message[0] is outlet]
    return [content for _, content in messages if content[0] != "data"]


def test_an_outlet_receives_and_sends_whole_frames_on_its_front_end(bench: Bench) -> None:
    outlet = bench.outlet("eth1")
    bench.devices[1].arrive(frame(1))
    bench.devices[0].arrive(frame(2))
    assert list(bench.owner.mailbox) == [(outlet, ("data", frame(1)))]
    assert outlet.send(frame(3)) is True
    assert bench.devices[1].sent == [frame(3)]
    assert bench.devices[0].sent == []


@pytest.mark.parametrize("name", ["vif0", "eth", "eth-1", "eth01", "eth1x", "", "ETH0", "eth１", "eth0\n"])
def test_a_name_of_another_form_is_badarg(bench: Bench, name: str) -> None:
    with pytest.raises(OutletError) as raised:
        bench.outlet(name)
    assert raised.value.reason == "badarg"


@pytest.mark.parametrize("name", ["eth2", "eth4294967295", "eth4294967296", "eth" + "9" * 5000])
def test_an_unknown_index_is_einval(bench: Bench, name: str) -> None:
    with pytest.raises(OutletError) as raised:
        bench.outlet(name)
    assert raised.value.reason == "einval"
    assert len(str(raised.value)) < 200


def test_a_negative_mailbox_limit_is_badarg(bench: Bench) -> None:
    with pytest.raises(OutletError) as raised:
        bench.outlets.open("eth0", owner=bench.owner, mailbox_limit=-1)
    assert raised.value.reason == "badarg"
    assert len(bench.outlets) == 0
    outlet = bench.outlet()
    with pytest.raises(OutletError):
        outlet.set_mailbox_limit(-1)


def test_a_mailbox_limit_of_zero_is_none(bench: Bench) -> None:
    outlet = bench.outlet()
    outlet.set_mailbox_limit(0)
    for number in range(3000):
        bench.device.arrive(frame(number))
    assert outlet.counters["rx_packets"] == 3000
    assert outlet.counters["rx_dropped_mailbox_full"] == 0


def test_the_limit_counts_every_message_in_the_mailbox(bench: Bench) -> None:
    outlet = bench.outlet()
    outlet.set_mailbox_limit(3)
    for _ in range(2):
        bench.kernel.scheduler.send(bench.owner, "something else")
    bench.device.arrive(frame(1), frame(2))
    assert bench.mail(outlet) == [frame(1)]
    assert outlet.counters["rx_dropped_mailbox_full"] == 1


def test_a_second_open_steals_with_a_log_line(bench: Bench) -> None:
    first, second = bench.outlet(), bench.outlet()
    bench.device.arrive(frame(1))
    assert bench.mail(first) == []
    assert bench.mail(second) == [frame(1)]
    assert bench.kernel.lines == [
        "eth0: outlet#2 of process[1] is stealing control from outlet#1 of process[1]"
    ]


def test_defect_closing_the_robbed_outlet_does_not_detach_the_thief(bench: Bench) -> None:
    robbed, thief = bench.outlet(), bench.outlet()
    robbed.close()
    bench.fe.unbind_ol(robbed)
    bench.device.arrive(frame(1))
    assert bench.mail(thief) == [frame(1)]
    assert thief.closed is None


def test_defect_closing_both_in_either_order_is_no_error(bench: Bench) -> None:
    for first_closed in (0, 1):
        pair = (bench.outlet(), bench.outlet())
        pair[first_closed].close()
        pair[1 - first_closed].close()
        assert bench.fe.ol is None
        assert len(bench.outlets) == 0
    bench.device.arrive(frame(1))
    assert bench.fe.counters["rx_dropped_disconnected"] == 1


@pytest.mark.parametrize("name", ["eth7", "tap0"])
def test_defect_a_failed_open_leaks_nothing(bench: Bench, name: str) -> None:
    sitting = bench.outlet()
    callbacks = len(bench.owner.on_exit)
    for _ in range(10):
        with pytest.raises(OutletError):
            bench.outlet(name)
    assert list(bench.outlets) == [sitting]
    assert len(bench.owner.on_exit) == callbacks
    assert bench.fe.ol is sitting
    assert len(bench.owner.mailbox) == 0, "the error was raised; nothing is mailed"


def test_defect_reopening_elsewhere_detaches_from_the_first_front_end(bench: Bench) -> None:
    outlet = bench.outlet("eth0")
    outlet.open("eth1")
    assert bench.fes[0].ol is None
    outlet.close()
    bench.devices[0].arrive(frame(1))
    bench.devices[1].arrive(frame(2))
    assert bench.mail(outlet) == []
    assert [fe.counters["rx_dropped_disconnected"] for fe in bench.fes] == [1, 1]


def test_a_failed_reopen_leaves_the_outlet_where_it_was(bench: Bench) -> None:
    outlet = bench.outlet("eth0")
    with pytest.raises(OutletError):
        outlet.open("eth9")
    bench.device.arrive(frame(1))
    assert bench.mail(outlet) == [frame(1)]


def test_reopening_on_the_same_front_end_changes_nothing(bench: Bench) -> None:
    outlet = bench.outlet()
    outlet.open("eth0")
    bench.device.arrive(frame(1))
    assert bench.mail(outlet) == [frame(1)], "once"
    assert bench.kernel.lines == [], "it robs nobody"


def test_a_robbed_outlet_can_steal_back(bench: Bench) -> None:
    first, second = bench.outlet(), bench.outlet()
    first.open("eth0")
    bench.device.arrive(frame(1))
    assert bench.mail(first) == [frame(1)]
    assert bench.mail(second) == []


@pytest.mark.parametrize("bad", ["text", 5, None])
def test_sending_what_is_not_bytes_closes_with_bad_arg(bench: Bench, bad: object) -> None:
    outlet = bench.outlet()
    assert outlet.send(bad) is False  # type: ignore[arg-type]
    assert outlet.closed == "bad_arg"
    assert notices(bench, outlet) == [("closed", "bad_arg")]


def test_sending_before_open_closes_with_bad_arg(bench: Bench) -> None:
    outlet = bench.outlets.make(bench.owner)
    assert outlet.send(frame(1)) is False
    assert outlet.closed == "bad_arg"
    assert notices(bench, outlet) == [("closed", "bad_arg")]
    assert len(bench.outlets) == 0


def test_sending_too_much_closes_with_too_long(bench: Bench) -> None:
    outlet = bench.outlet()
    assert outlet.send(bytes(1518)) is True
    assert outlet.send(bytes(1519)) is False
    assert outlet.closed == "too_long"
    assert notices(bench, outlet) == [("closed", "too_long")]
    assert bench.fe.ol is None
    assert outlet.send(frame(1)) is False
    assert [len(sent) for sent in bench.device.sent] == [1518]


def test_sending_through_a_robbed_outlet_closes_it_as_stolen(bench: Bench) -> None:
    robbed, thief = bench.outlet(), bench.outlet()
    assert robbed.send(frame(1)) is False
    assert robbed.closed == "stolen"
    assert bench.fe.ol is thief


def test_connect_moves_the_frames_and_the_responsibility(bench: Bench) -> None:
    outlet = bench.outlet()
    heir = bench.process()
    outlet.connect(heir)
    bench.device.arrive(frame(1))
    assert list(heir.mailbox) == [(outlet, ("data", frame(1)))]
    assert len(bench.owner.mailbox) == 0
    bench.kernel.scheduler.kill(bench.owner)
    assert outlet.closed is None, "its former owner may end"
    bench.kernel.scheduler.kill(heir)
    assert outlet.closed == "owner_exit"
    assert bench.fe.ol is None


def test_connect_to_an_ended_process_changes_nothing(bench: Bench) -> None:
    outlet = bench.outlet()
    ended = bench.process()
    bench.kernel.scheduler.kill(ended)
    with pytest.raises(OutletError):
        outlet.connect(ended)
    assert outlet.owner is bench.owner
    with pytest.raises(OutletError):
        bench.outlets.open("eth0", owner=ended)


def test_the_end_of_the_owner_closes_all_its_outlets(bench: Bench) -> None:
    outlets = [bench.outlet("eth0"), bench.outlet("eth1"), bench.outlet("eth1")]
    bench.kernel.scheduler.send(bench.owner, "end")
    bench.kernel.settle()
    assert [outlet.closed for outlet in outlets] == ["owner_exit"] * 3
    assert len(bench.outlets) == 0
    assert [fe.ol for fe in bench.fes] == [None, None]


def test_a_closed_outlet_cannot_be_opened_again(bench: Bench) -> None:
    outlet = bench.outlet()
    outlet.close()
    outlet.close()
    with pytest.raises(OutletError):
        outlet.open("eth0")
    assert notices(bench, outlet) == [], "an orderly close is not announced"
    assert bench.fe.ol is None
