"""The DHCP client, as a dialogue with a server of scapy's messages: states, exact times, and what it refuses."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.net.address import format_address, parse_address
from guest.net.dhcp import DhcpConfig
from tests.dhcp_world import MAC, OFFERED, SECOND, SERVER, START, Dialogue, nak, reply

EXACT = DhcpConfig(jitter=0)
REQUEST_ALL = "request 0.0.0.0 > all"
RENEW = f"request {OFFERED} > {SERVER}"
REBIND = f"request {OFFERED} > all"


# -- from nothing to an address ------------------------------------------------------------------------------------


def test_from_discover_to_bound() -> None:
    talk = Dialogue(hostname="guest")
    assert talk.start() == ["discover 0.0.0.0 > all"]
    assert int(talk.sent["flags"]) == 0x8000, "answer by broadcast: we have no address"
    assert talk.sent["chaddr"] == MAC
    assert talk.sent["client_id"] == b"\1" + MAC
    assert talk.sent["hostname"] == b"guest"
    assert len(talk.raw) >= 300
    wanted = list(talk.sent["param_req_list"])
    assert {1, 3, 6, 15, 26, 51, 58, 59, 119, 121} <= set(wanted)
    assert wanted.index(121) < wanted.index(3), "RFC 3442"
    assert "requested_addr" not in talk.sent
    xid = talk.xid

    assert talk.hears(reply("offer", xid)) == [REQUEST_ALL]
    assert talk.state == "requesting"
    assert (talk.sent["requested_addr"], talk.sent["server_id"], talk.xid) == (OFFERED, SERVER, xid)
    assert talk.sent["ciaddr"] == "0.0.0.0"
    assert int(talk.sent["flags"]) == 0x8000

    assert talk.hears(reply("ack", xid)) == [f"probe {OFFERED}"]
    assert not talk.client.bound, "it is not used before it was checked"
    assert talk.next() == [f"probe {OFFERED}"]
    assert talk.next() == [f"probe {OFFERED}"]
    assert talk.next() == [f"use {OFFERED}/24"]
    assert talk.at == 0.6
    lease = talk.client.lease
    assert lease is not None
    assert [format_address(one) for one in lease.routers + lease.dns] == ["10.0.0.1", "10.0.0.3"]


def test_discover_is_repeated_at_4_8_16_32_64_64_seconds_each_within_one() -> None:
    talk = Dialogue()
    talk.start()
    sent = [0.0]
    secs = [talk.sent["secs"]]
    for _ in range(7):
        assert talk.next() == ["discover 0.0.0.0 > all"]
        sent.append(talk.at)
        secs.append(talk.sent["secs"])
    gaps = [after - before for before, after in pairwise(sent)]
    for gap, nominal in zip(gaps, [4, 8, 16, 32, 64, 64, 64], strict=True):
        assert abs(gap - nominal) <= 1
    assert any(gap != round(gap) for gap in gaps), "there is jitter"
    assert secs == [int(at) for at in sent]


def test_a_server_that_comes_late_is_heard() -> None:
    talk = Dialogue()
    talk.start()
    talk.until(1000)
    assert talk.hears(reply("offer", talk.xid)) == [REQUEST_ALL]
    assert talk.sent["secs"] > 900, "the request says the same as the discover"


def test_an_unanswered_request_is_repeated_four_times_then_it_looks_for_another_server() -> None:
    talk = Dialogue(config=EXACT)
    talk.start()
    talk.hears(reply("offer", talk.xid))
    first = talk.xid
    assert talk.until(28) == [REQUEST_ALL] * 3
    assert talk.until(59.9) == []
    assert talk.until(60) == ["discover 0.0.0.0 > all"]
    assert talk.xid != first


def test_the_first_offer_is_taken_and_others_ignored() -> None:
    talk = Dialogue()
    talk.start()
    talk.hears(reply("offer", talk.xid))
    assert talk.hears(reply("offer", talk.xid, server="10.0.0.9", yiaddr="10.0.0.99")) == []
    assert talk.client.counters["rx_ignored_state"] == 1
    assert talk.hears(reply("ack", talk.xid, server="10.0.0.9", yiaddr="10.0.0.99")) == []
    assert talk.client.counters["rx_dropped_other_server"] == 1
    assert talk.hears(reply("ack", talk.xid)) == [f"probe {OFFERED}"]


def test_a_refusal_starts_over_later_and_later() -> None:
    talk = Dialogue(config=EXACT)
    talk.start()
    waits = []
    for _ in range(8):
        talk.hears(reply("offer", talk.xid))
        before = talk.now
        assert talk.hears(nak(talk.xid)) == []
        assert talk.state == "init"
        assert talk.next() == ["discover 0.0.0.0 > all"]
        waits.append((talk.now - before) // SECOND)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 64]
    talk.hears(reply("offer", talk.xid))
    talk.hears(reply("ack", talk.xid))
    talk.until(talk.at + 1800)
    before = talk.now
    talk.hears(nak(talk.xid))
    talk.next()
    assert talk.now - before == SECOND, "a lease in between makes it patient again"


def test_a_refusal_by_another_server_is_nothing_to_us() -> None:
    talk = Dialogue()
    talk.start()
    talk.hears(reply("offer", talk.xid))
    assert talk.hears(nak(talk.xid, "10.0.0.9")) == []
    assert talk.state == "requesting"


# -- an address that somebody has ----------------------------------------------------------------------------------


def test_an_address_in_use_is_declined_and_not_used() -> None:
    talk = Dialogue(config=EXACT)
    talk.start()
    talk.hears(reply("offer", talk.xid))
    talk.hears(reply("ack", talk.xid))
    talk.client.conflict(talk.now)
    assert talk.happened() == ["decline 0.0.0.0 > all"]
    assert (talk.sent["requested_addr"], talk.sent["server_id"]) == (OFFERED, SERVER)
    assert talk.sent["ciaddr"] == "0.0.0.0"
    assert "param_req_list" not in talk.sent, "RFC 2131 table 5"
    assert talk.until(9.9) == []
    assert talk.until(10) == ["discover 0.0.0.0 > all"]


def test_our_address_is_defended_once_and_given_up_at_the_second_claim_within_ten_seconds() -> None:
    talk = Dialogue()
    talk.bind()
    for seconds in (20, 40):
        talk.until(seconds)
        talk.client.conflict(talk.now)
        assert talk.happened() == []
    talk.until(49.9)
    talk.client.conflict(talk.now)
    assert talk.happened() == [f"drop {OFFERED}", "decline 0.0.0.0 > all"]
    assert not talk.client.bound


# -- renewing ------------------------------------------------------------------------------------------------------


def test_renewal_at_t1_rebinding_at_t2_and_the_end_are_exact() -> None:
    talk = Dialogue(config=EXACT)
    talk.bind(lease=3600)
    lease = talk.client.lease
    assert lease is not None
    assert lease.start == START, "it counts from the request, not from the answer"
    assert talk.until(1799.999999) == []
    assert talk.until(1800) == [RENEW]
    assert talk.sent["ciaddr"] == OFFERED
    assert "requested_addr" not in talk.sent
    assert "server_id" not in talk.sent
    assert talk.sent["flags"] in (0, ""), "we have an address: no broadcast is needed"
    # half of what is left until T2 (3150), then half again, never under 60 s
    sent = []
    while talk.client.state.value == "renewing":
        did = talk.next()
        sent.append((talk.at, did))
    assert [at for at, _ in sent] == [2475, 2812.5, 2981.25, 3065.625, 3125.625, 3150]
    assert sent[-1][1] == [REBIND]
    assert talk.state == "rebinding"
    assert talk.until(3599.999999) == [REBIND] * 3  # 3375, 3487.5, 3547.5
    assert talk.client.bound
    assert talk.until(3600) == [f"drop {OFFERED}", "discover 0.0.0.0 > all"]
    assert talk.log[-1] == f"the lease of {OFFERED} is over"


def test_a_lease_counts_from_the_first_of_several_requests() -> None:
    talk = Dialogue(config=EXACT)
    talk.start()
    talk.hears(reply("offer", talk.xid))
    assert talk.until(12) == [REQUEST_ALL] * 2
    talk.hears(reply("ack", talk.xid))
    talk.until(13)
    assert talk.client.lease is not None
    assert talk.client.lease.start == START


def test_a_renewed_lease_counts_from_its_request() -> None:
    talk = Dialogue(config=EXACT)
    talk.bind(lease=3600)
    talk.until(1800)
    talk.now += 7 * SECOND
    assert talk.hears(reply("ack", talk.xid)) == [f"use {OFFERED}/24"]
    lease = talk.client.lease
    assert lease is not None
    assert lease.expires == START + 5400 * SECOND
    assert talk.until(3599) == []
    assert talk.until(3600) == [RENEW]


def test_another_server_may_extend_the_lease_while_rebinding() -> None:
    talk = Dialogue(config=EXACT)
    talk.bind(lease=3600)
    talk.until(3150)
    assert talk.hears(reply("ack", talk.xid, server="10.0.0.9")) == [f"use {OFFERED}/24"]
    assert talk.until(3150 + 1800) == [f"request {OFFERED} > 10.0.0.9"]


def test_a_renewal_with_another_address_is_checked_anew() -> None:
    talk = Dialogue(config=EXACT)
    talk.bind(lease=3600)
    talk.until(1800)
    assert talk.hears(reply("ack", talk.xid, yiaddr="10.0.0.77")) == [f"drop {OFFERED}", "probe 10.0.0.77"]
    assert talk.until(1801)[-1] == "use 10.0.0.77/24"


def test_a_refused_renewal_gives_the_address_up_at_once() -> None:
    talk = Dialogue(config=EXACT)
    talk.bind()
    talk.until(1800)
    assert talk.hears(nak(talk.xid)) == [f"drop {OFFERED}"]
    assert talk.until(1801) == ["discover 0.0.0.0 > all"]


def test_t1_and_t2_of_the_server_count() -> None:
    talk = Dialogue(config=EXACT)
    talk.bind(("renewal_time", 100), ("rebinding_time", 200), lease=3600)
    assert talk.until(100) == [RENEW]
    assert talk.until(199) == [RENEW]  # 160: at least a minute
    assert talk.until(200) == [REBIND]


@pytest.mark.parametrize(("t1", "t2"), [(0, 0), (4000, 5000), (200, 100), (100, 3600), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_t1_and_t2_that_do_not_lie_in_order_within_the_lease_are_not_believed(t1: int, t2: int) -> None:
    talk = Dialogue(config=EXACT)
    talk.bind(("renewal_time", t1), ("rebinding_time", t2), lease=3600)
    lease = talk.client.lease
    assert lease is not None
    assert lease.renew_at is not None
    assert lease.rebind_at is not None
    assert lease.expires is not None
    assert START < lease.renew_at < lease.rebind_at < lease.expires


def test_release_tells_the_server_and_ends() -> None:
    talk = Dialogue()
    talk.bind()
    talk.client.stop(talk.now)
    assert talk.happened() == [f"release {OFFERED} > {SERVER}", f"drop {OFFERED}"]
    assert (talk.sent["ciaddr"], talk.sent["server_id"]) == (OFFERED, SERVER)
    assert talk.client.poll_at() is None
    talk.client.start(talk.now)
    assert talk.happened() == ["discover 0.0.0.0 > all"]


def test_after_the_link_was_away_the_address_is_confirmed() -> None:
    talk = Dialogue(config=EXACT)
    talk.bind()
    talk.until(100)
    talk.client.link_up(talk.now)
    assert talk.happened() == [REQUEST_ALL]
    assert talk.sent["requested_addr"] == OFFERED
    assert "server_id" not in talk.sent, "RFC 2131 §4.3.2: INIT-REBOOT"
    assert talk.hears(reply("ack", talk.xid)) == [f"use {OFFERED}/24"]
    talk.client.link_up(talk.now)
    talk.happened()
    assert talk.hears(nak(talk.xid)) == [f"drop {OFFERED}"], "another network's server"


def test_after_the_link_was_away_silence_keeps_the_lease_to_its_end() -> None:
    talk = Dialogue(config=EXACT)
    talk.bind(lease=3600)
    talk.until(1700)
    talk.client.link_up(talk.now)
    talk.happened()
    assert talk.until(1712) == [REQUEST_ALL]
    assert talk.state == "bound"
    assert talk.until(1800) == [RENEW]
    talk.until(3595)
    talk.client.link_up(talk.now)
    talk.happened()
    assert talk.until(3600) == [REQUEST_ALL, f"drop {OFFERED}", "discover 0.0.0.0 > all"]


# -- H63: what cannot be guessed -----------------------------------------------------------------------------------


def test_h63_transaction_ids_are_spread_and_follow_from_the_seed() -> None:
    def ids(seed: int) -> list[int]:
        talk = Dialogue(seed, config=EXACT)
        talk.start()
        found = []
        for _ in range(50):
            found.append(talk.xid)
            talk.hears(reply("offer", talk.xid))
            talk.hears(nak(talk.xid))
            talk.next()
        return found

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
    assert len(set(ids(1))) == 50
    assert all(a + 1 != b for a, b in pairwise(ids(1)))
    assert max(ids(1)) > 1 << 31 > min(ids(1))


@pytest.mark.parametrize(
    ("message", "counted"),
    [
        (lambda xid: reply("offer", xid ^ 1), "rx_dropped_xid"),
        (lambda xid: reply("offer", xid, mac=b"\x52\x54\0\0\0\2"), "rx_dropped_other_host"),
        (lambda xid: reply("offer", xid).replace(b"\x02\x01\x06\x00", b"\x01\x01\x06\x00", 1), "rx_dropped_op"),
        (lambda xid: reply("offer", xid).replace(b"\x02\x01\x06\x00", b"\x02\x06\x06\x00", 1), "rx_dropped_hardware"),
        (lambda xid: reply(99, xid), "rx_dropped_type"),
        (lambda xid: reply("ack", xid), "rx_ignored_state"),
        (nak, "rx_ignored_state"),
    ],
)
def test_h63_what_is_not_for_us_now_is_counted_and_changes_nothing(message: object, counted: str) -> None:
    talk = Dialogue()
    talk.start()
    assert talk.hears(message(talk.xid)) == []  # type: ignore[operator]
    assert talk.client.counters[counted] == 1
    assert talk.hears(reply("offer", talk.xid)) == [REQUEST_ALL]


# -- H65: hostile servers ------------------------------------------------------------------------------------------


def cut_end(raw: bytes) -> bytes:
    """The message without its END option."""
    return raw.rstrip(b"\0").removesuffix(b"\xff")


@pytest.mark.parametrize(
    ("make", "counted"),
    [
        (lambda xid: cut_end(reply("offer", xid)) + b"\x0c\x20abc", "option_length"),
        (lambda xid: cut_end(reply("offer", xid)) + b"\x0c", "option_length"),
        (lambda xid: cut_end(reply("offer", xid)) + b"\x0c\x03ab", "option_length"),
        (lambda xid: cut_end(reply("offer", xid)), "no_end"),
        (lambda xid: reply("offer", xid).replace(b"\x63\x82\x53\x63", b"\x63\x82\x53\x64"), "magic"),
        (lambda xid: reply("offer", xid)[:239], "short"),
        (lambda xid: reply("offer", xid) + bytes(9000), "long"),
        (lambda xid: b"", "short"),
        (lambda xid: reply("offer", xid, server=None), "no_server"),
        (lambda xid: reply("offer", xid, server="0.0.0.0"), "no_server"),
        (lambda xid: reply("offer", xid, server="255.255.255.255"), "no_server"),
        (lambda xid: reply("offer", xid, lease=None), "no_lease_time"),
        (lambda xid: reply("offer", xid, lease=0), "no_lease_time"),
        (lambda xid: reply("offer", xid, yiaddr="0.0.0.0"), "address"),
        (lambda xid: reply("offer", xid, yiaddr="255.255.255.255"), "address"),
        (lambda xid: reply("offer", xid, yiaddr="10.0.0.255"), "address"),
        (lambda xid: reply("offer", xid, yiaddr="10.0.0.0"), "address"),
        (lambda xid: reply("offer", xid, yiaddr="127.0.0.1"), "address"),
        (lambda xid: reply("offer", xid, yiaddr="224.0.0.1"), "address"),
        (lambda xid: reply("offer", xid, usual=(("subnet_mask", "255.0.255.0"),)), "netmask"),
        (lambda xid: reply("offer", xid, usual=(("subnet_mask", "0.0.0.0"),)), "netmask"),
        (lambda xid: reply("offer", xid, (52, b"\x07")), "overload"),
    ],
)  # fmt: skip
def test_h65_an_offer_that_cannot_be_used_is_dropped_with_its_reason(make: object, counted: str) -> None:
    talk = Dialogue()
    talk.start()
    assert talk.hears(make(talk.xid)) == []  # type: ignore[operator]
    assert talk.client.counters[f"rx_dropped_{counted}"] == 1
    assert talk.hears(reply("offer", talk.xid)) == [REQUEST_ALL], "an honest server is still heard"


def test_h65_the_same_checks_hold_for_an_ack() -> None:
    talk = Dialogue()
    talk.start()
    talk.hears(reply("offer", talk.xid))
    assert talk.hears(reply("ack", talk.xid, yiaddr="0.0.0.0")) == []
    assert talk.hears(reply("ack", talk.xid, lease=0)) == []
    assert talk.state == "requesting"


def test_h65_an_infinite_lease_is_never_renewed() -> None:
    talk = Dialogue()
    talk.bind(lease=0xFFFFFFFF)
    lease = talk.client.lease
    assert lease is not None
    assert (lease.seconds, lease.expires) == (None, None)
    assert talk.client.poll_at() is None


def test_h65_a_lease_of_one_second_counts_as_ten_and_the_longest_does_not_overflow() -> None:
    talk = Dialogue(config=EXACT)
    talk.bind(lease=1)
    assert talk.until(4.9) == []
    assert talk.until(5) == [RENEW]
    talk = Dialogue()
    talk.bind(lease=0xFFFFFFFE)
    assert talk.client.lease is not None
    assert talk.client.lease.expires == START + 0xFFFFFFFE * SECOND


def test_h65_of_many_name_servers_the_first_eight_hosts_are_kept() -> None:
    talk = Dialogue()
    many = ["0.0.0.0", "255.255.255.255", "127.0.0.1", "10.0.0.3", "10.0.0.3", *(f"10.1.0.{n}" for n in range(1, 51))]
    talk.bind(usual=(("subnet_mask", "255.255.255.0"), ("name_server", *many)))
    lease = talk.client.lease
    assert lease is not None
    assert [format_address(one) for one in lease.dns] == ["10.0.0.3", *(f"10.1.0.{n}" for n in range(1, 8))]


def test_h65_lists_of_a_wrong_length_are_passed_over() -> None:
    talk = Dialogue()
    talk.bind((6, b"\x0a\0\0"), (3, b"\x0a\0\0\1\x0a"), (26, b"\1"), usual=(("subnet_mask", "255.255.255.0"),))
    lease = talk.client.lease
    assert lease is not None
    assert (lease.dns, lease.routers, lease.mtu) == ((), (), None)


def test_a_small_mtu_is_raised_to_the_least_that_is_accepted() -> None:
    talk = Dialogue()
    talk.bind((26, (68).to_bytes(2, "big")))
    assert talk.client.lease is not None
    assert talk.client.lease.mtu == 576


def test_without_a_netmask_the_address_class_says_it() -> None:
    talk = Dialogue()
    talk.bind(usual=())
    assert talk.client.lease is not None
    assert talk.client.lease.length == 8


def test_classless_routes_replace_the_router() -> None:
    talk = Dialogue()
    talk.bind((121, bytes([24, 10, 1, 2, 10, 0, 0, 7, 0, 10, 0, 0, 8, 32, 10, 0, 0, 9, 0, 0, 0, 0])))
    lease = talk.client.lease
    assert lease is not None
    assert lease.routers == ()
    shown = [(format_address(row.network), row.length, format_address(row.router)) for row in lease.routes]
    assert shown == [("10.1.2.0", 24, "10.0.0.7"), ("0.0.0.0", 0, "10.0.0.8"), ("10.0.0.9", 32, "0.0.0.0")]


@pytest.mark.parametrize("raw", [b"\x21\x0a", bytes([33, 1, 2, 3, 4, 5, 1, 2, 3, 4]), b"\x18\x0a\1\2\x0a\0\0", b"\0"])
def test_h65_wrong_classless_routes_are_counted_and_the_router_counts(raw: bytes) -> None:
    talk = Dialogue()
    talk.bind((121, raw))
    assert talk.client.lease is not None
    assert talk.client.lease.routers == (parse_address(SERVER),)
    assert talk.client.counters["rx_ignored_routes"] >= 1


@settings(max_examples=100, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99))
def test_h65_no_message_raises_whatever_was_done_to_it(data: st.DataObject, seed: int) -> None:
    rng = random.Random(seed)
    talk = Dialogue(seed)
    talk.start()
    for _ in range(6):
        kind = data.draw(st.sampled_from(["offer", "ack", "nak"]))
        raw = bytearray(reply(kind, talk.xid, (119, b"\3abc\0\xc0\0"), (121, b"\x18\x0a\1\2\x0a\0\0\1"), (52, b"\3")))
        for _ in range(data.draw(st.integers(0, 6))):
            raw[rng.randrange(data.draw(st.sampled_from([28, len(raw)])), len(raw) + 1) - 1] = rng.randrange(256)
        talk.hears(bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw))
        if data.draw(st.booleans()) and talk.client.poll_at() is not None:
            talk.next()
    assert talk.client.counters["rx_messages"] == 6


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=700))
def test_h65_noise_is_dropped_and_counted(raw: bytes) -> None:
    talk = Dialogue()
    talk.start()
    assert talk.hears(raw) == []
    assert sum(count for name, count in talk.client.counters.items() if name.startswith("rx_dropped")) == 1
