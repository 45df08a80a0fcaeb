"""LING's defects, one test each: on LING's own card the guest's driver and outlets do better.

A `Liar` takes the back end's place at rings that the driver has made, and answers what it likes. What is listed is in
LING's netfe.c (netfe_incoming, netfe_reclaim_tx_buffers, netfe_output), ol_vif.c and netif.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from guest.apps.env import Env
from guest.drivers.netfront import NetfrontDriver
from guest.kernel import Guest
from guest.net.pbuf import PacketBuffer
from guest.ol import OutletError, RawOutlet
from hw.machine import Machine
from tests.guest_board import Board, Peer, arp

PAGE = 4096
WRAP = 0xFFFFFFFF
MORE, EXTRA = 4, 8


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board("xen-ling")
    yield made
    made.close()


def frame(number: int, length: int = 60) -> bytes:
    return (b"\xff" * 6 + b"\x02\0\0\0\0\x09" + b"\x88\xb5" + bytes([number]) * length)[:length]


class Liar:
    """The back end of one card of LING's, from now on: it reads and writes the pages of the rings."""

    def __init__(self, board: Board, machine: Machine, eth: int = 0) -> None:
        self.board = board
        self.memory = machine.memory
        self.xen = board.host
        self.netback = machine.vifs[eth].device
        (queue,) = self.netback.queues
        self.netback.queues = []  # the honest one hears nothing any more
        self.port = queue.ports[0]
        self.rx = getattr(queue.rx.ring.page, "addr", 0)
        self.tx = getattr(queue.tx.ring.page, "addr", 0)
        self.domain = machine.domain
        assert self.rx
        assert self.tx

    def _index(self, page: int, which: int) -> int:
        return int(struct.unpack_from("<I", self.memory.span(page + 4 * which, 4))[0])

    def page_of(self, slot: int) -> memoryview:
        """The page that was posted in a slot of the receive ring."""
        (gref,) = struct.unpack_from("<I", self.memory.span(self.rx + 64 + 8 * slot + 4, 4))
        assert self.domain is not None
        at = self.domain.grant_frames[gref // 512] + 8 * (gref % 512) + 4
        (number,) = struct.unpack_from("<I", self.memory.span(at, 4))
        return self.memory.span(number * PAGE, PAGE)

    def received(
        self, data: bytes, *, offset: int = 0, flags: int = 0, status: int | None = None, id_: int = -1
    ) -> None:
        """Answer the next receive request; `data` lies at `offset` of its page."""
        prod = self._index(self.rx, 2)
        slot = prod % 256
        page = self.page_of(slot)
        page[offset : offset + len(data)] = data
        self._respond(
            self.rx, 8,
            struct.pack("<HHHh", slot if id_ < 0 else id_, offset, flags, len(data) if status is None else status),
        )  # fmt: skip

    def sent(self, *ids: int, status: int = 0) -> None:
        """Answer transmit requests by their ids."""
        for number in ids:
            self._respond(self.tx, 12, struct.pack("<Hh", number, status))

    def requests(self) -> list[tuple[int, ...]]:
        """The transmit requests that were not answered: gref, offset, flags, id, size."""
        places = range(self._index(self.tx, 2), self._index(self.tx, 0))
        return [struct.unpack("<IHHHH", self.memory.span(self.tx + 64 + 12 * (at % 256), 12)) for at in places]

    def _respond(self, page: int, size: int, response: bytes) -> None:
        prod = self._index(page, 2)
        at = page + 64 + size * (prod % 256)
        self.memory.span(at, len(response))[:] = response
        self.memory.span(page + 8, 4)[:] = struct.pack("<I", prod + 1 & WRAP)

    def kick(self) -> None:
        """Send the event, and let the guest do what is due."""
        assert self.xen is not None
        self.xen.events.notify(self.port)
        self.board.run(0.001)


class Setup:
    """A guest without network options, with a card or more of LING's, and outlets on them that keep what comes."""

    def __init__(self, board: Board, cards: int = 1) -> None:
        pairs = [board.peer() for _ in range(cards)]
        self.board = board
        self.peers: list[Peer] = [peer for _, peer in pairs]
        self.guest: Guest = board.boot("", *[link for link, _ in pairs])
        self.machine = board.machines["guest"]
        self.heard: dict[str, list[bytes]] = {}
        board.run(0.01)

    def driver(self, eth: int = 0) -> NetfrontDriver:
        found = self.guest.devices[eth]
        assert isinstance(found, NetfrontDriver)
        return found

    def listen(self, eth: int = 0) -> None:
        """Open an outlet whose frames go to `heard`."""
        name = f"eth{eth}"
        heard = self.heard[name] = []

        def program(env: Env, _argv: list[str]) -> int:
            env.guest.outlets.open(name, owner=env.process)
            while True:
                message = env.receive()
                if isinstance(message, tuple) and message[1][0] == "data":
                    heard.append(message[1][1])

        self.guest.spawn(program)
        self.board.run(0.001)

    def liar(self, eth: int = 0) -> Liar:
        return Liar(self.board, self.machine, eth)

    def send(self, *lengths: int, eth: int = 0) -> int:
        packets = [PacketBuffer.from_bytes(frame(9, length)) for length in lengths]
        return self.guest.fes[eth].transmit(packets, "ol")

    def recovers(self, eth: int = 0) -> None:
        """The driver has disconnected from the liar, said why, connects to an honest back end, and works."""
        driver = self.driver(eth)
        self.board.run(5)
        assert self.machine.vifs[eth].device.queues, "an honest back end again"
        assert driver.queues, driver.failed
        self.peers[eth].frames.clear()
        self.peers[eth].send(frame(77))
        self.send(60, eth=eth)
        self.board.run(0.01)
        assert self.heard[f"eth{eth}"][-1] == frame(77)
        assert self.peers[eth].frames[-1] == frame(9)


@pytest.fixture
def setup(board: Board) -> Setup:
    made = Setup(board)
    made.listen()
    return made


# -- receiving: netfe_incoming ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "reason"), [(-1, "rx_dropped_refused"), (0, "rx_dropped_empty")])
def test_a_status_that_is_no_length_drops_a_frame_where_ling_asserts(setup: Setup, status: int, reason: str) -> None:
    liar = setup.liar()

    liar.received(b"", status=status)
    liar.received(frame(1))
    liar.kick()

    assert setup.heard["eth0"] == [frame(1)]
    assert setup.driver().counters[reason] == 1


def test_extra_information_breaks_the_ring_where_ling_asserts(setup: Setup) -> None:
    liar = setup.liar()

    liar.received(frame(1), flags=EXTRA)
    liar.received(b"\1")
    liar.kick()

    assert setup.heard["eth0"] == []
    assert "not agreed on" in str(setup.driver().failed)
    setup.recovers()


@pytest.mark.parametrize("id_", [256, 0xFFFF, 7])
def test_an_id_is_checked_where_ling_indexes_its_table_with_it(setup: Setup, id_: int) -> None:
    liar = setup.liar()

    liar.received(frame(1), id_=id_)
    liar.kick()

    assert setup.heard["eth0"] == []
    assert f"answered with id {id_}" in str(setup.driver().failed)
    setup.recovers()


def test_the_offset_of_a_response_is_heeded_where_ling_reads_from_the_start(setup: Setup) -> None:
    liar = setup.liar()
    liar.page_of(0)[:60] = frame(66)

    liar.received(frame(1), offset=256)
    liar.kick()

    assert setup.heard["eth0"] == [frame(1)]


def test_a_length_beyond_the_page_is_refused(setup: Setup) -> None:
    liar = setup.liar()

    liar.received(b"", offset=4000, status=200)
    liar.kick()

    assert setup.heard["eth0"] == []
    assert "200 bytes at offset 4000" in str(setup.driver().failed)
    setup.recovers()


def test_fragments_of_two_cards_never_meet_where_ling_has_one_static_buffer(board: Board) -> None:
    setup = Setup(board, cards=2)
    setup.listen(0)
    setup.listen(1)
    one, two = setup.liar(0), setup.liar(1)

    one.received(frame(1, 1000), flags=MORE)
    one.kick()
    two.received(frame(2, 1000), flags=MORE)
    two.kick()
    one.received(frame(3, 1000))
    one.kick()
    two.received(frame(4, 1000))
    two.kick()

    for eth in (0, 1):
        assert setup.heard[f"eth{eth}"] == [], "several slots were not agreed on"
        assert "more than 1 slots" in str(setup.driver(eth).failed)
    setup.recovers(0)
    setup.recovers(1)


def test_fragments_without_end_are_bounded_where_ling_overruns_8192_bytes(setup: Setup) -> None:
    liar = setup.liar()

    for _ in range(5):
        liar.received(frame(1, PAGE), flags=MORE)
    liar.kick()

    assert setup.heard["eth0"] == []
    assert setup.driver().counters["rx_dropped_broken"] == 1
    setup.recovers()


def test_no_response_is_missed_between_the_last_look_and_the_next_event(setup: Setup) -> None:
    liar = setup.liar()
    ring = setup.driver().queues[0].rx.ring
    enable = ring.enable
    late = [frame(2)]

    class Racing:
        """The driver's ring; just before it asks for an event, another frame comes, for which there is none."""

        def __getattr__(self, name: str) -> Any:
            return getattr(ring, name)

        def enable(self, after: int = 1) -> bool:
            while late:
                liar.received(late.pop())
            return enable(after)

    setup.driver().queues[0].rx.ring = Racing()  # type: ignore[assignment]
    liar.received(frame(1))
    liar.kick()

    assert setup.heard["eth0"] == [frame(1), frame(2)]


# -- sending: netfe_output, netfe_reclaim_tx_buffers -----------------------------------------------------------------


def test_a_frame_that_is_too_long_is_dropped_and_counted_where_ling_asserts(setup: Setup) -> None:
    assert setup.send(1515, 4000, 60) == 1
    setup.board.run(0.01)

    assert setup.driver().counters["tx_dropped_too_long"] == 2
    assert setup.peers[0].frames == [frame(9)]


def test_frames_without_a_page_are_dropped_counted_and_the_next_ones_go(setup: Setup) -> None:
    liar = setup.liar()

    assert setup.send(*[60] * 200) == 128
    assert setup.driver().counters["tx_dropped_ring_full"] == 72
    liar.sent(*[id_ for _, _, _, id_, _ in liar.requests()])
    liar.kick()

    assert setup.send(*[60] * 128) == 128


@pytest.mark.parametrize("id_", [128, 0xFFFF])
def test_a_response_to_no_request_frees_nothing_where_ling_trusts_its_id(setup: Setup, id_: int) -> None:
    liar = setup.liar()
    setup.send(60)

    liar.sent(id_)
    liar.kick()
    setup.driver().check()

    assert f"id {id_} is not in flight" in str(setup.driver().failed)
    setup.recovers()


def test_a_second_response_frees_no_page_twice_where_ling_corrupts_its_list(setup: Setup) -> None:
    liar = setup.liar()
    setup.send(60, 60)
    first, second = (id_ for _, _, _, id_, _ in liar.requests())

    liar.sent(first, first)
    liar.kick()
    setup.driver().check()

    assert f"id {first} is not in flight" in str(setup.driver().failed)
    assert first != second
    setup.recovers()


def test_a_page_is_never_two_frames_at_once(setup: Setup) -> None:
    liar = setup.liar()
    in_flight: set[int] = set()
    for round_ in range(50):
        setup.send(*[60] * 7)
        asked = [id_ for _, _, _, id_, _ in liar.requests()]
        assert len(set(asked)) == len(asked), "a page was given out twice"
        assert in_flight <= set(asked)
        answered = asked[: 5 + round_ % 3]
        liar.sent(*answered)
        liar.kick()
        in_flight = set(asked) - set(answered)


# -- outlets: ol_vif.c -----------------------------------------------------------------------------------------------


class Owner:
    """A process that opens outlets when it is asked to."""

    def __init__(self, setup: Setup) -> None:
        self.guest = setup.guest
        self.process = setup.guest.spawn(lambda env, _argv: env.receive())

    def open(self, name: str = "eth0") -> RawOutlet:
        return self.guest.outlets.open(name, owner=self.process)

    def mail(self, outlet: RawOutlet) -> list[object]:
        return [message[1] for message in self.process.mailbox if isinstance(message, tuple) and message[0] is outlet]


@pytest.fixture
def cards(board: Board) -> tuple[Setup, Owner]:
    setup = Setup(board, cards=2)
    return setup, Owner(setup)


def arrive(setup: Setup, eth: int, number: int) -> None:
    setup.peers[eth].send(frame(number))
    setup.board.run(0.01)


def test_closing_the_robbed_outlet_leaves_the_thief_where_ling_detaches_it(cards: tuple[Setup, Owner]) -> None:
    setup, owner = cards
    robbed, thief = owner.open(), owner.open()

    robbed.close()
    setup.guest.fes[0].unbind_ol(robbed)

    assert setup.guest.fes[0].ol is thief
    assert any("stealing control" in line for line in setup.guest.log.text().splitlines())


def test_closing_both_outlets_is_no_error_where_ling_asserts(cards: tuple[Setup, Owner]) -> None:
    setup, owner = cards
    robbed, thief = owner.open(), owner.open()

    robbed.close()
    thief.close()
    arrive(setup, 0, 1)

    assert setup.guest.fes[0].ol is None
    assert setup.guest.fes[0].counters["rx_dropped_disconnected"] == 1


@pytest.mark.parametrize("name", ["eth7", "vif0"])
def test_an_open_that_fails_leaves_nothing_where_ling_leaks_the_port(cards: tuple[Setup, Owner], name: str) -> None:
    setup, owner = cards
    before = len(setup.guest.outlets), len(owner.process.on_exit)

    for _ in range(5):
        with pytest.raises(OutletError):
            owner.open(name)

    assert (len(setup.guest.outlets), len(owner.process.on_exit)) == before


def test_an_outlet_that_moves_leaves_its_first_card_where_ling_uses_it_after_free(cards: tuple[Setup, Owner]) -> None:
    setup, owner = cards
    outlet = owner.open("eth0")

    outlet.open("eth1")
    assert [fe.ol for fe in setup.guest.fes] == [None, outlet]
    outlet.close()
    arrive(setup, 0, 1)
    arrive(setup, 1, 2)

    assert [fe.counters["rx_dropped_disconnected"] for fe in setup.guest.fes] == [1, 1]


# -- boot: netif.c, init.erl -----------------------------------------------------------------------------------------


def test_a_boot_without_a_dhcp_server_goes_on_after_a_timeout_where_ling_waits_for_ever(board: Board) -> None:
    link, _ = board.peer()
    guest = board.guest("-dhcp -dhcp-timeout 5 -s ping -c 1 127.0.0.1", link)

    board.run(4)
    assert "started ping" not in guest.log.text()
    board.run(3)

    assert "started ping" in guest.log.text()


@pytest.mark.parametrize("flag", ["-ipaddr", "-ipaddr 10.0.0.1 10.0.0.2", "-dhcp yes"])
def test_a_flag_with_another_number_of_values_is_said_where_ling_ignores_it(board: Board, flag: str) -> None:
    link, _ = board.peer()
    guest = board.boot(flag, link)

    assert guest.halted
    assert guest.exit_status
    assert flag.split(maxsplit=1)[0] in guest.log.text()


# -- what is as in LING ----------------------------------------------------------------------------------------------


def test_the_keys_are_ling_s_and_nothing_waits_for_the_back_end(board: Board) -> None:
    setup = Setup(board)
    host, domain = board.host, setup.machine.domain
    assert host is not None
    assert domain is not None
    path = f"/local/domain/{domain.domid}/device/vif/0"

    written = [key for key in host.store.list(path) if key not in ("backend", "backend-id", "handle", "mac", "state")]

    assert written == [
        "rx-ring-ref", "tx-ring-ref", "event-channel", "request-rx-copy", "feature-no-csum-offload",
        "feature-rx-notify",
    ]  # fmt: skip
    values = [host.store.read(f"{path}/{key}") for key in (*written[3:], "state")]
    assert values == ["1", "1", "1", "4"]


def test_256_pages_are_granted_for_receiving_once_for_all(board: Board) -> None:
    setup = Setup(board)
    driver = setup.driver()
    rx = driver.queues[0].rx
    refs = list(rx.pages.refs)
    assert (len(refs), rx.ring.in_flight) == (256, 256)

    for number in range(600):
        setup.peers[0].send(frame(number % 256))
        board.run(0.001)

    assert driver.counters["rx_packets"] == 600
    assert rx.pages.refs == refs
    assert rx.ring.in_flight == 256


def test_addresses_are_asked_for_as_in_ling_s_description_of_a_domain(board: Board) -> None:
    link, peer = board.peer()
    guest = board.boot("-ipaddr 10.0.0.2 -netmask 255.255.255.0 -gateway 10.0.0.1", link)
    board.run(1)
    peer.frames.clear()

    peer.send(arp(1, peer.mac, b"\x0a\0\0\1", bytes(6), b"\x0a\0\0\2"))
    board.run(0.1)

    assert guest.ni is not None
    assert arp(2, guest.fes[0].mac, b"\x0a\0\0\2", peer.mac, b"\x0a\0\0\1") in [raw[:42] for raw in peer.frames]
