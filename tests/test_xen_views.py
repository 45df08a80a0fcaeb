"""What people are shown of a domain is what lies in its memory and in the store: rings, grants, ports, keys."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator

import pytest
from rich.console import Console, RenderableType

import vring
from guest.dma import DmaPool
from guest.ring.xen import FrontRing
from guest.sys.constants import AF_INET, SOCK_DGRAM
from hw.abi import xen_netif as nif
from hw.memory import AccessHook, Direction, FieldView, Format, GuestMemory
from hw.xen.ring import BackRing
from vring.config import Board
from vring.session import Session
from vring.trace.flow import Passage
from vring.view.decode_xen import EventBits, GrantEntry, Kind, decode_events, decode_grants, decode_xen_ring
from vring.view.queues import legends, queue_tables, same_entries
from vring.view.rings import Marks
from vring.view.snapshot import negotiated_lines, shared_lines, store_lines
from vring.view.xen_names import XenNames
from vring.view.xen_rings import XenSnapshot, xen_ring_tables

PAGE = 4096
BASE = 0x10000
WRAP = 0xFFFFFFFF


def drawn(what: RenderableType, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, markup=False).print(what)
    return out.getvalue()


# -- the third witness -----------------------------------------------------------------------------------------------


class Mapped:
    """The ring's page as a back end has it."""

    def __init__(self, memory: GuestMemory, addr: int) -> None:
        self.memory, self.addr, self.ref = memory, addr, 9

    def fields(self, fmt: Format) -> FieldView:
        return self.memory.fields(self.addr, PAGE, fmt, "device")

    def span(self, offset: int, length: int, direction: Direction) -> memoryview:
        return self.memory.dma(self.addr + offset, length, direction)

    def on_reopen(self, reopen: object) -> None:
        pass

    def unmap(self) -> None:
        pass


class Pair:
    """Both halves of one ring over one memory."""

    def __init__(self, kind: Kind, start: int) -> None:
        self.kind: Kind = kind
        self.memory = GuestMemory(1 << 20, base=BASE)
        page = DmaPool(self.memory.port("driver"), BASE, BASE + (1 << 20)).alloc(PAGE)
        request, response = (
            (nif.TX_REQUEST.size, nif.TX_RESPONSE.size) if kind == "tx" else (nif.RX_REQUEST.size, nif.RX_RESPONSE.size)
        )
        self.front = FrontRing(self.memory.port("driver"), page, request, response, start_index=start)
        self.back = BackRing(Mapped(self.memory, page), max(request, response), start)

    def dump(self) -> bytes:
        return bytes(self.memory.span(self.memory.base, self.memory.size))


@pytest.mark.parametrize("kind", ["tx", "rx"])
@pytest.mark.parametrize("start", [0, WRAP - 20])
def test_p2_a_raw_dump_of_a_ring_decodes_to_what_both_halves_report(kind: Kind, start: int) -> None:
    pair = Pair(kind, start)
    rng = random.Random(f"{kind}/{start}")
    asked: dict[int, str] = {}  # by slot: what was put there and not answered
    answered: dict[int, str] = {}
    taken: list[int] = []  # slots
    serial = 0
    for _ in range(300):
        for _ in range(rng.randrange(4)):
            serial += 1
            slot = pair.front.next_slot
            if kind == "tx":
                words = serial, serial & 0xFF, serial & 0xFFFF | 60 << 16
                text = f"id {serial & 0xFFFF}, gref {serial}, offset {serial & 0xFF}, size 60"
            else:
                words = serial & 0xFFFF, serial, 0
                text = f"id {serial & 0xFFFF}, gref {serial}"
            if pair.front.put(words):
                asked[slot] = text
                answered.pop(slot, None)
        pair.front.publish()
        while pair.back.available():
            taken.append(pair.back.req_cons & 255)
            pair.back.take()
        for _ in range(rng.randrange(len(taken) + 1)):
            slot = taken.pop(0)
            serial += 1
            pair.back.put(*((serial & 0xFFFF,) if kind == "tx" else (serial & 0xFFFF, 77 << 16)))
            del asked[slot]
            answered[slot] = f"id {serial & 0xFFFF}, " + ("OKAY" if kind == "tx" else "offset 0, 77 bytes")
        pair.back.push()
        pair.front.take(rng.randrange(20))

        state = decode_xen_ring(pair.dump(), pair.front.page, kind, base=BASE)
        report = pair.front.snapshot()
        assert state.req_prod == report["req_prod"] == pair.back.req_cons
        assert state.rsp_prod == pair.back.rsp_prod_pvt
        assert state.pending == len(asked) == (pair.back.req_cons - pair.back.rsp_prod_pvt) & WRAP
        assert {slot: state.request(slot) for slot in range(256) if state.is_request(slot)} == asked
        assert {slot: state.response(slot) for slot in answered} == answered
        assert state.owners().count("device") == len(asked)
    assert serial > 400


def test_decoding_tells_no_hook_and_reads_ram_or_a_dump() -> None:
    pair = Pair("tx", 0)
    pair.front.put((7, 0, 60 << 16))
    pair.front.publish()
    heard: list[str] = []

    class Hook(AccessHook):
        def loaded(self, who: str, addr: int, size: int, value: int) -> None:
            heard.append(who)

        def dma(self, who: str, addr: int, length: int, direction: Direction) -> None:
            heard.append(who)

    pair.memory.hook = Hook()
    page = pair.front.page
    assert decode_xen_ring(pair.memory, page, "tx") == decode_xen_ring(pair.dump(), page, "tx", base=BASE)
    assert heard == []


def test_p2_fields_are_read_where_the_headers_put_them() -> None:
    page = bytearray(PAGE)
    page[:16] = bytes.fromhex("02000000 fdffffff 01000000 04000000")
    page[64:76] = bytes.fromhex("0300feff 0000 0000 0000 0000")  # a response: id 3, dropped
    page[76:88] = bytes.fromhex("2a000000 1000 0500 0700 dc05")  # a request that asks for a checksum, and goes on

    state = decode_xen_ring(page, 0, "tx")

    assert (state.req_prod, state.req_event, state.rsp_prod, state.rsp_event) == (2, 0xFFFFFFFD, 1, 4)
    assert state.size == 256
    assert [state.is_request(slot) for slot in (0, 1, 2)] == [False, True, False]
    assert state.response(0) == "id 3, DROPPED"
    assert state.request(1) == "id 7, gref 42, offset 16, size 1500 csum_blank more_data"


def test_p2_the_same_bits_have_other_names_on_the_receive_ring() -> None:
    page = bytearray(PAGE)
    page[8:12] = bytes.fromhex("02000000")
    page[0:4] = bytes.fromhex("02000000")
    page[64:80] = bytes.fromhex("0000 0000 0900 0010") + bytes.fromhex("0100 b405 0200 0000")

    state = decode_xen_ring(page, 0, "rx")

    assert state.response(0) == "id 0, offset 0, 4096 bytes data_validated extra_info"
    assert state.response(1) == "extra GSO TCPv6, size 1460"


def test_extra_information_is_no_request() -> None:
    pair = Pair("tx", 0)
    gso = struct.unpack("<II", nif.EXTRA_GSO.pack(nif.XEN_NETIF_EXTRA_TYPE_GSO, 0, 1448, 1, 0, 0))
    pair.front.put((42, (nif.NETTXF_extra_info | nif.NETTXF_csum_blank) << 16, 3 | 9000 << 16))
    pair.front.put((*gso, 0))
    pair.front.publish()

    state = decode_xen_ring(pair.memory, pair.front.page, "tx")

    assert state.request(0) == "id 3, gref 42, offset 0, size 9000 csum_blank extra_info"
    assert state.request(1) == "extra GSO TCPv4, size 1448"


def test_nonsense_decodes_and_ends() -> None:
    rng = random.Random(3)
    kinds: tuple[Kind, ...] = ("tx", "rx")
    for draw in range(60):
        kind = kinds[draw % 2]
        state = decode_xen_ring(rng.randbytes(PAGE), 0, kind)
        for slot in range(state.size):
            assert state.request(slot)
            assert state.response(slot)
        snapshot = XenSnapshot("g", "eth0", kind, state, Marks(rng.randrange(1 << 32), rng.randrange(1 << 32)))
        assert "slots" in drawn(xen_ring_tables(snapshot))


@pytest.mark.parametrize("page", [-PAGE, 1, 2 * PAGE])
def test_a_page_outside_of_the_dump_is_refused(page: int) -> None:
    with pytest.raises(ValueError, match="not all in the dump"):
        decode_xen_ring(bytes(PAGE), page, "rx")


def test_grants_and_event_bits_are_read_where_the_headers_put_them() -> None:
    memory = GuestMemory(3 * PAGE)
    memory.span(8 * 9, 8)[:] = bytes.fromhex("0d00 0000 34120000")
    memory.span(PAGE + 8, 8)[:] = bytes.fromhex("0100 0700 01000000")
    info = memory.span(2 * PAGE, PAGE)
    info[0] = 1
    info[8] = 3
    info[2048] = 0b110
    info[2048 + 8] = 1
    info[2560] = 0b100

    first, second = decode_grants(memory, (0, PAGE))

    assert first == GrantEntry(9, 0xD, 0, 0x1234)
    assert (first.address, first.flag_names) == (0x1234000, "permit_access readonly reading")
    assert (second.ref, second.domid, second.flag_names) == (513, 7, "permit_access")
    assert decode_events(memory, 2 * PAGE) == EventBits(1, 3, frozenset({1, 2, 64}), frozenset({2}))


# -- names -----------------------------------------------------------------------------------------------------------


def test_a_word_of_a_slot_is_named_for_who_writes_it() -> None:
    names = XenNames()
    names.add_ring(0x1000, "tx")
    names.add_ring(0x2000, "rx", "rx ")

    def name(addr: int, value: int, *, response: bool = False) -> str:
        found, say = names.name(addr, 4, response=response)
        return f"{found}: {say(value)}"

    indices = [name(0x1000 + at, 7) for at in (0, 4, 8, 12)]
    assert indices == ["req_prod: 7", "req_event: 7", "rsp_prod: 7", "rsp_event: 7"]
    assert name(0x1000 + 64 + 12 * 5, 268) == "request[5].gref: 268"
    assert name(0x1000 + 64 + 12 * 5 + 8, 3 | 60 << 16) == "request[5].id+size: id 3, size 60"
    assert name(0x1000 + 64 + 12 * 5, 3 | 0xFFFE << 16, response=True) == "response[5].id+status: id 3, status DROPPED"
    assert name(0x2000 + 64 + 8 * 5, 5, response=True) == "rx response[5].id+offset: id 5, offset 0"
    assert name(0x2000 + 64 + 8 * 5 + 4, 9) == "rx request[5].gref: 9"
    assert name(0x3000, 1) == "0x3000: 1"


def test_grant_entries_and_event_bits_have_names() -> None:
    names = XenNames()
    names.add_grant_table((0x1000, 0x2000))
    names.add_shared_info(0x3000)

    found, say = names.name(0x2000 + 8 * 3, 8, response=False)
    assert (found, say(0x20200000005)) == ("grant_table[515]", "permit_access readonly to domain 0, frame 0x202")
    assert names.name(0x1004, 4, response=False)[0] == "grant_table[0].frame"
    found, say = names.name(0x3000 + 2048 + 8, 8, response=False)
    assert (found, say(0b101), say(0)) == ("evtchn_pending[1]", "port 64, port 66", "none")
    named = [names.name(0x3000 + at, 8, response=False)[0] for at in (0, 8, 2560)]
    assert named == ["evtchn_upcall_pending", "evtchn_pending_sel", "evtchn_mask[0]"]


# -- tables ----------------------------------------------------------------------------------------------------------


def small_ring(answered: int, put: int = 3) -> XenSnapshot:
    pair = Pair("tx", 0)
    for number in range(put):
        pair.front.put((40 + number, 0, number | 60 << 16))
    pair.front.publish()
    for _ in range(answered):
        pair.back.available()
        pair.back.put(pair.back.take()[2] & 0xFFFF)
    pair.back.push()
    state = decode_xen_ring(pair.memory, pair.front.page, "tx")
    return XenSnapshot("alice", "eth0", "tx", state, Marks(pair.back.req_cons, 0), 9, (2, 5))


def test_the_tables_say_who_owns_what_and_where_the_indices_stand() -> None:
    lines = drawn(queue_tables(small_ring(1))).splitlines()

    assert lines[0].rstrip() == "alice eth0 tx  256 slots, 2 with the back end, 1 answered and not yet read"
    assert lines[1].strip() == f"page {BASE:#x}, granted as gref 9; event channel 2, port 5 of the back end"
    assert lines[2].strip() == "req_prod 3  rsp_event 1  rsp_prod 1  req_event 1"
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line.strip()[:1].isdigit()}
    assert rows["0"] == "response id 0, OKAY ← rsp_cons"
    assert rows["1"] == "request id 1, gref 41, offset 0, size 60 ← req_cons rsp_prod"
    assert rows["3"] == "never used ← req_prod"
    assert max(map(len, lines)) <= 100


def test_what_has_changed_is_marked() -> None:
    before, after = small_ring(0), small_ring(1)

    text = drawn(queue_tables(after, before.ring))

    assert "rsp_prod 1*" in text
    assert "req_prod 3 " in text
    assert "response*" in text
    assert "id 0, OKAY*" in text
    assert text.count("*") == 3
    assert not same_entries(after.ring, before.ring)
    assert "*" not in drawn(queue_tables(after, after.ring))


def test_a_request_that_is_not_shown_yet_is_not_taken_for_a_response() -> None:
    pair = Pair("tx", 0)
    before = decode_xen_ring(pair.memory, pair.front.page, "tx")
    pair.front.put((40, 0, 7 | 60 << 16))
    snapshot = XenSnapshot("a", "eth0", "tx", decode_xen_ring(pair.memory, pair.front.page, "tx"), Marks(0, 0))

    text = drawn(xen_ring_tables(snapshot, before))

    assert "unpublished  id 7, gref 40, offset 0, size 60*" in text
    assert "0 with the back end" in text


def test_the_legend_is_that_of_the_queues_that_are_shown() -> None:
    assert [text.split(":")[0] for text in legends([small_ring(0)])] == ["req_prod"]
    assert [text.split(":")[0] for text in legends([])] == ["idx"]


# -- a board ---------------------------------------------------------------------------------------------------------

PAIR = """
clock = "virtual"
[[guest]]
name = "alice"
ip = "10.0.0.1"
mask = "255.255.255.0"
nic = [{{ model = "xen", wire = "hub:lan"{more} }}]
[[guest]]
name = "bob"
ip = "10.0.0.2"
mask = "255.255.255.0"
nic = [{{ model = "xen", wire = "hub:lan"{more} }}]
"""


@pytest.fixture
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    more = getattr(request, "param", "")
    with vring.boot(Board.parse(PAIR.format(more=more))) as session:
        session.run(seconds=1)
        yield session


@pytest.mark.parametrize("session", ["", ', profile = "ling"'], indirect=True)
def test_p2_the_rings_of_a_board_are_found_through_store_and_grant_table(session: Session) -> None:
    fd = session.calls.socket(AF_INET, SOCK_DGRAM)
    session.calls.sendto(fd, b"hello", ("10.0.0.2", 9))
    session.run(seconds=1)

    rings = {queue.title: queue for queue in session.rings() if isinstance(queue, XenSnapshot)}
    assert list(rings) == ["alice eth0 rx", "alice eth0 tx", "bob eth0 rx", "bob eth0 tx"]
    driver = session.guest.devices[0].snapshot()["queues"][0]  # type: ignore[attr-defined]
    for kind in ("rx", "tx"):
        ring = rings[f"alice eth0 {kind}"]
        report = driver[f"{kind}_ring"]
        assert ring.ring.page == report["page"]
        assert ring.ring.req_prod == report["req_prod"]
        assert ring.marks.last_avail == ring.ring.rsp_prod, "a request is read when it is answered"
        assert ring.marks.last_used == report["rsp_cons"]
        assert ring.ports[0] == driver[f"event-channel-{kind}"]
    assert rings["alice eth0 rx"].ring.pending == 256
    counted = session.counters()["alice"]["vif0 netback"]
    assert rings["alice eth0 tx"].ring.rsp_prod == counted["tx_packets"] > 0


@pytest.mark.parametrize("session", [", queues = 2"], indirect=True)
def test_each_of_several_queues_is_shown(session: Session) -> None:
    assert [queue.queue for queue in session.rings()][:4] == ["rx0", "tx0", "rx1", "tx1"]
    assert len({queue.ring.page for queue in session.rings()[:4] if isinstance(queue, XenSnapshot)}) == 4


def test_cards_store_grants_and_ports_are_shown(session: Session) -> None:
    machine = session.machines[1]
    mac = machine.vifs[0].mac.hex(":")

    cards = drawn(negotiated_lines(machine))
    assert f"eth0  {mac}  vif 0 of domain 2\n        front end Connected, back end Connected" in cards
    (tree,) = map(drawn, store_lines(machine))
    lines = [line.strip() for line in tree.splitlines()]
    assert "/local/domain/2/device/vif" in lines
    assert "/local/domain/0/backend/vif/2" in lines
    ref = session.rings()[2].gref  # type: ignore[union-attr]
    assert f"rx-ring-ref = {ref}" in lines
    assert lines.count("state = 4") == 2
    grants, events = map(drawn, shared_lines(machine))
    assert f"gref {ref:<9}  to domain 0  page " in grants
    assert "256 pages        permit_access\n" in grants
    assert "128 pages        permit_access readonly\n" in grants
    assert "evtchn_upcall_pending 0  evtchn_pending_sel 0x0" in events
    assert "the store" in events
    assert events.count("domain 0 port") == 3


def test_pending_and_masked_ports_are_said(session: Session) -> None:
    machine = session.machines[0]
    assert machine.domain is not None
    info = machine.memory.span(machine.domain.shared_info, PAGE)
    info[2048] |= 1 << 2
    info[2560] |= 1 << 2
    lines = drawn(shared_lines(machine)[1]).splitlines()
    info[2048] &= ~(1 << 2) & 0xFF
    info[2560] &= ~(1 << 2) & 0xFF

    assert [line.split()[-2:] for line in lines if "port 2 " in line] == [["pending", "masked"]]


def test_a_machine_without_xen_has_nothing_of_it() -> None:
    with vring.boot(nic="virtio", clock="virtual") as session:
        assert store_lines(session.machines[0]) == shared_lines(session.machines[0]) == []


# -- the trace -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", ["", ', profile = "ling"'])
def test_c4_a_frame_is_seen_at_every_stage_of_a_xen_card(more: str) -> None:
    told: list[Passage] = []
    with vring.boot(Board.parse(PAIR.format(more=more)), trace=told.append) as session:
        session.run(seconds=3)
        bob = session.calls_of("bob")
        bob.bind(bob.socket(AF_INET, SOCK_DGRAM), ("0.0.0.0", 7))
        fd = session.calls.socket(AF_INET, SOCK_DGRAM)
        session.calls.sendto(fd, b"", ("10.0.0.2", 7))
        session.run(seconds=1)
        told.clear()
        session.calls.sendto(fd, b"hello", ("10.0.0.2", 7))
        session.run(seconds=0.1)
        grefs = {queue.queue: queue for queue in session.rings() if queue.guest == "bob"}

    def stages(guest: str, way: str) -> list[str]:
        found = [one for one in told if (one.guest, one.way, one.interface) == (guest, way, "eth0")]
        return [one.stage for one in found if not (way == "tx" and one.text.startswith("response"))]

    assert stages("alice", "tx") == ["ip", "ethernet", "fe", "driver", "ring", "grant", "nic"]
    assert stages("bob", "rx") == [
        "nic", "grant", "ring", "event", "driver", "fe", "ethernet", "ip", "udp", "socket",
    ]  # fmt: skip
    said = {(one.guest, one.stage): one.text for one in told if one.way == "rx" or one.guest == "alice"}
    assert said["bob", "grant"].endswith(": 47 bytes copied")
    assert said["bob", "ring"].endswith(", offset 0, 47 bytes")
    assert said["bob", "event"] == f"port {grefs['rx'].ports[0]} is pending"  # type: ignore[union-attr]
    assert not any(one.dropped for one in told)


def test_c4_what_a_back_end_drops_is_told() -> None:
    told: list[Passage] = []
    with vring.boot(Board.parse(PAIR.format(more="")), trace=told.append) as session:
        session.run(seconds=1)
        told.clear()
        session.machines[1].vifs[0].device.disconnect()
        session.calls.sendto(session.calls.socket(AF_INET, SOCK_DGRAM), b"x", ("10.0.0.2", 7))
        session.run(seconds=0.1)

    dropped = [(one.guest, one.interface, one.stage, one.text) for one in told if one.dropped]
    assert dropped[0] == ("bob", "eth0", "nic", "rx_dropped_no_driver")
