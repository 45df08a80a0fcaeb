"""What people are shown of a ring is what lies in memory: the decoder is a third witness beside driver and device."""

from __future__ import annotations

import io
import random
import struct
from collections import Counter

import pytest
from rich.console import Console, RenderableType

import vring
from guest.dma import DmaPool
from guest.ring.packed import PackedRing
from guest.ring.split import SplitRing
from hw.abi import virtio_mmio, virtio_ring
from hw.abi.virtio import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, features
from hw.memory import AccessHook, GuestMemory
from hw.virtio.packed import PackedQueue
from hw.virtio.split import SplitQueue
from vring.config import Board
from vring.view.counters import counter_table
from vring.view.decode import Descriptor, RingAddresses, SplitRingState, UsedElem, decode_split_ring
from vring.view.decode_packed import Event, PackedDescriptor, decode_packed_ring
from vring.view.names import FieldNames
from vring.view.packed import PackedSnapshot, Place
from vring.view.queues import legends, queue_tables
from vring.view.rings import Marks, QueueSnapshot, ring_tables
from vring.view.snapshot import feature_names, status_names

MIB = 1 << 20


def drawn(what: RenderableType, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, markup=False).print(what)
    return out.getvalue()


# -- the third witness -----------------------------------------------------------------------------------------------


class Pair:
    """Both halves of one queue over one memory, from an index just below the wrap."""

    def __init__(self, size: int, mask: int, start: int) -> None:
        self.memory = GuestMemory(MIB, base=0x10000)
        dma = DmaPool(self.memory.port("driver"), 0x10000, 0x10000 + MIB // 2)
        self.ring: SplitRing[int] = SplitRing(dma, 0, size, mask, indirect_entries=4, start_index=start)
        self.queue = SplitQueue(self.memory, 0, size, *self.ring.addresses, mask, start)

    def dump(self) -> SplitRingState:
        raw = bytes(self.memory.span(self.memory.base, self.memory.size))
        return decode_split_ring(raw, self.ring.addresses, self.ring.size, base=self.memory.base)


@pytest.mark.parametrize("mask", [0, features(VIRTIO_RING_F_EVENT_IDX), features(VIRTIO_RING_F_INDIRECT_DESC)])
@pytest.mark.parametrize("start", [0, 0xFFF0])
def test_a_raw_dump_of_the_memory_decodes_to_what_both_halves_report(mask: int, start: int) -> None:
    pair = Pair(16, mask, start)
    ring, queue = pair.ring, pair.queue
    rng = random.Random(f"{mask}/{start}")
    posted: dict[int, list[tuple[int, int, bool]]] = {}  # by token: the elements of the chain
    taken: list[tuple[int, int]] = []
    serial = 0

    for _ in range(400):
        for _ in range(rng.randrange(4)):
            out = [(0x90000 + rng.randrange(4096), rng.randrange(1, 99)) for _ in range(rng.randrange(3))]
            in_ = [(0xA0000 + rng.randrange(4096), rng.randrange(1, 99)) for _ in range(rng.randrange(1, 3))]
            if ring.add(out, in_, serial):
                posted[serial] = [(*each, False) for each in out] + [(*each, True) for each in in_]
                serial += 1
        ring.publish()
        while (chain := queue.pop()) is not None:
            taken.append((chain.head, chain.writable_length))
        for head, written in taken[: rng.randrange(len(taken) + 1)]:
            queue.push(head, written)
            taken.pop(0)
        queue.flush()
        for token, _ in ring.reap(rng.randrange(20)):
            del posted[token]

        state = pair.dump()
        driver = ring.snapshot()
        returned = (state.used_idx - int(str(driver["last_used"]))) & 0xFFFF
        assert state.avail_idx == driver["avail_idx"]
        assert state.used_idx == queue.next_used
        assert state.pending == queue.in_flight == len(taken)
        assert state.in_flight() == [head for head, _ in taken]
        assert len(posted) == state.pending + returned == driver["in_flight"]
        heads = set(state.in_flight()) | {
            state.used_ring[(state.used_idx - back) % state.size].id for back in range(1, returned + 1)
        }
        assert sorted(heads) == driver["heads"]
        direct = [
            [(entry.addr, entry.len, "WRITE" in entry.flag_names) for entry in map(state.desc.__getitem__, chain)]
            for chain in map(state.chain, sorted(heads))
            if "INDIRECT" not in state.desc[chain[0]].flag_names
        ]
        assert all(chain in posted.values() for chain in direct)
    assert serial > 300


def test_a_device_may_return_chains_out_of_order() -> None:
    pair = Pair(8, 0, 0)
    for at in range(4):
        pair.ring.add([(0x90000 + at, 9)], [], at)
    pair.ring.publish()
    heads = [chain.head for chain in iter(pair.queue.pop, None)]
    pair.queue.push(heads[2], 0)
    pair.queue.push(heads[0], 0)
    pair.queue.flush()

    assert pair.dump().in_flight() == [heads[1], heads[3]]
    assert pair.dump().owners()[:4] == ["driver", "device", "driver", "device"]


def test_decoding_tells_no_hook_and_reads_ram_or_a_dump() -> None:
    pair = Pair(8, 0, 0)
    pair.ring.add([(0x90000, 5)], [], 0)
    pair.ring.publish()
    heard: list[str] = []

    class Hook(AccessHook):
        def loaded(self, who: str, addr: int, size: int, value: int) -> None:
            heard.append(who)

    pair.memory.hook = Hook()
    assert decode_split_ring(pair.memory, pair.ring.addresses, 8) == pair.dump()
    assert heard == []


def test_fields_are_read_where_the_standard_puts_them() -> None:
    dump = bytearray(0x400)
    dump[0x10:0x20] = bytes.fromhex("8877665544332211 04030201 0300 0900")
    dump[0x100:0x10E] = bytes.fromhex("0100 feff 0700 0600 0500 0400 3412")
    dump[0x200:0x226] = bytes.fromhex("0100 fdff 07000000 21000000") + bytes(24) + bytes.fromhex("7856")

    state = decode_split_ring(dump, (0, 0x100, 0x200), 4)

    assert state.desc[1] == Descriptor(0x1122334455667788, 0x01020304, 3, 9)
    assert (state.avail_flags, state.avail_idx, state.avail_ring, state.used_event) == (1, 0xFFFE, (7, 6, 5, 4), 0x1234)
    assert (state.used_flags, state.used_idx, state.used_ring[0]) == (1, 0xFFFD, UsedElem(7, 0x21))
    assert state.avail_event == 0x5678
    assert state.pending == 1


def test_nonsense_decodes_and_ends() -> None:
    rng = random.Random(3)
    for draw in range(200):
        state = decode_split_ring(rng.randbytes(0x400), (0, 0x100, 0x200), 8)
        state.owners()
        snapshot = QueueSnapshot("g", "eth0", "rx", state, Marks(rng.randrange(65536), rng.randrange(65536)))
        if draw % 20 == 0:
            assert "descriptor table" in drawn(ring_tables(snapshot))


@pytest.mark.parametrize(("addresses", "size"), [((0, 64, 128), 0), ((0, 64, 250), 4), ((-16, 64, 128), 4)])
def test_an_area_outside_of_the_dump_is_refused(addresses: tuple[int, int, int], size: int) -> None:
    with pytest.raises(ValueError, match=r"dump|entries"):
        decode_split_ring(bytes(256), addresses, size)


# -- names -----------------------------------------------------------------------------------------------------------


def test_every_byte_of_a_ring_has_a_name() -> None:
    names = FieldNames()
    names.add_split_ring((0x1000, 0x2000, 0x3000), 4, "tx ")

    assert names.name(0x1010, 8) == "tx desc[1].addr"
    assert names.name(0x1018, 8) == "tx desc[1].len+flags+next"
    assert names.name(0x101C, 2) == "tx desc[1].flags"
    assert [names.name(0x2000 + at, 2) for at in range(0, virtio_ring.driver_area_size(4), 2)] == [
        "tx avail.flags", "tx avail.idx", *(f"tx avail.ring[{at}]" for at in range(4)), "tx used_event",
    ]  # fmt: skip
    assert [names.name(0x3000 + at, 2) for at in (0, 2, 4, 8, 12, 36)] == [
        "tx used.flags", "tx used.idx", "tx used.ring[0].id", "tx used.ring[0].len", "tx used.ring[1].id",
        "tx avail_event",
    ]  # fmt: skip
    assert names.name(0x4000, 2) == "0x4000"


def test_registers_configuration_and_buffers_have_names() -> None:
    names = FieldNames()
    names.add_virtio_mmio(0xD0000000)
    names.add_buffer(0x8000, 100, "a frame")

    assert names.name(0xD0000000 + virtio_mmio.VIRTIO_MMIO_QUEUE_NOTIFY, 4) == "QUEUE_NOTIFY"
    assert names.name(0xD0000000 + virtio_mmio.VIRTIO_MMIO_CONFIG, 1) == "config.mac[0]"
    assert names.name(0xD0000000 + virtio_mmio.VIRTIO_MMIO_CONFIG + 10, 2) == "config.mtu"
    assert names.name(0xD0000FFC, 4) == "register 0xffc"
    assert (names.name(0x8000, 12), names.name(0x8002, 1)) == ("a frame", "a frame+2")


# -- tables ----------------------------------------------------------------------------------------------------------


def small_ring(pending: int) -> SplitRingState:
    pair = Pair(8, 0, 0)
    for at in range(3):
        pair.ring.add([(0x90000 + at, 60 + at)], [(0xA0000, 8)], at)
    pair.ring.publish()
    for _ in range(3 - pending):
        chain = pair.queue.pop()
        assert chain is not None
        pair.queue.push(chain.head, 0)
    pair.queue.flush()
    return pair.dump()


def test_the_tables_say_who_owns_what_and_where_the_indices_stand() -> None:
    text = drawn(ring_tables(QueueSnapshot("alice", "eth0", "tx", small_ring(2), Marks(3, 0))))
    lines = text.splitlines()

    assert "alice eth0 tx" in lines[0]
    assert "2 with the device, 1 returned and not yet reaped" in lines[0]
    rows = {line.split()[0]: line for line in lines if line[:1].isdigit()}
    assert "0x90000" in rows["0"]
    assert " NEXT " in rows["0"]
    assert "driver" in rows["0"]
    assert "device" in rows["2"]
    assert "WRITE" in rows["3"]
    assert rows["0"].rstrip().endswith("← reaped")
    assert rows["1"].rstrip().endswith("← idx")
    assert "← idx seen" in rows["3"]
    assert max(map(len, lines)) <= 100


def test_what_has_changed_is_marked() -> None:
    before, after = small_ring(3), small_ring(2)

    text = drawn(ring_tables(QueueSnapshot("a", "eth0", "tx", after), before))

    assert "used.idx 1*" in text
    assert "avail.idx 3 " in text
    assert text.count("driver*") == 2, "both descriptors of the chain changed hands"
    assert "*" not in drawn(ring_tables(QueueSnapshot("a", "eth0", "tx", after), after))


def test_a_long_ring_is_cut_to_what_matters() -> None:
    size = 256
    state = SplitRingState(
        size=size,
        addresses=RingAddresses(0, 0, 0),
        desc=tuple(Descriptor(0x1000 * at + 0x1000, 2048, 2, 0) for at in range(size)),
        avail_flags=0,
        avail_idx=300,
        avail_ring=tuple(range(size)),
        used_event=0,
        used_flags=0,
        used_idx=44,
        used_ring=tuple(UsedElem(at, 60) for at in range(size)),
        avail_event=0,
    )

    text = drawn(ring_tables(QueueSnapshot("g", "eth0", "rx", state, Marks(44, 44))))

    assert len(text.splitlines()) < 20
    assert "⋮" in text
    assert "256 with the device" in text


def test_counters_at_zero_are_left_out_and_silence_is_said() -> None:
    ip = Counter(rx_packets=12345, rx_dropped_ttl=0)
    text = drawn(counter_table("counters of alice", {"ip": ip, "arp": Counter()}))

    assert "12,345" in text
    assert "ttl" not in text
    assert "arp" not in text
    assert "no traffic" in drawn(counter_table("counters of bob", {"ip": Counter(rx=0)}))


def test_bits_have_names() -> None:
    assert feature_names(1 << 5 | 1 << 15 | 1 << 32 | 1 << 29 | 1 << 90) == [
        "MAC", "MRG_RXBUF", "EVENT_IDX", "VERSION_1", "bit 90",
    ]  # fmt: skip
    assert status_names(15) == "ACKNOWLEDGE DRIVER FEATURES_OK DRIVER_OK"
    assert status_names(0) == "reset"


# -- packed rings ----------------------------------------------------------------------------------------------------


class PackedPair:
    """Both halves of a packed queue of four entries, after half a round: one list used, one taken, one waiting."""

    def __init__(self) -> None:
        self.memory = GuestMemory(MIB, base=0x10000)
        dma = DmaPool(self.memory.port("driver"), 0x10000, 0x10000 + MIB // 2)
        self.ring: PackedRing[str] = PackedRing(dma, 0, 4, features(VIRTIO_RING_F_EVENT_IDX))
        self.queue = PackedQueue(self.memory, 0, 4, *self.ring.addresses, features(VIRTIO_RING_F_EVENT_IDX))
        self.ring.add([(0x90000, 12)], [(0x90100, 30)], "used")
        self.ring.post([(0x90200, 7, "taken"), (0x90300, 8, "waits")], True)
        self.ring.publish()
        first, second = self.queue.pop(), self.queue.pop()
        assert first is not None
        assert second is not None
        self.queue.push(first.head, 30)
        self.queue.flush()
        self.queue.enable_kicks()
        self.ring.enable_interrupts()

    def snapshot(self) -> PackedSnapshot:
        raw = bytes(self.memory.span(self.memory.base, self.memory.size))
        state = decode_packed_ring(raw, self.ring.addresses, 4, base=self.memory.base)
        said = self.ring.snapshot()
        return PackedSnapshot(
            "alice", "eth0", "tx", state, Place(self.queue.next_avail, self.queue.avail_wrap),
            Place(self.queue.next_used, self.queue.used_wrap),
            Place(int(str(said["avail_idx"])), said["avail_wrap"] == 1),
            Place(int(str(said["last_used"])), said["used_wrap"] == 1),
        )  # fmt: skip


def test_packed_fields_are_read_where_the_standard_puts_them() -> None:
    """virtio 1.4 §2.8.13, §2.8.14"""
    raw = bytes(16) + struct.pack("<QIHH", 0x1122, 33, 44, 0x8083) + struct.pack("<HHHH", 0x8005, 2, 7, 1)
    state = decode_packed_ring(raw, (0, 32, 36), 2)
    assert state.desc[1] == PackedDescriptor(0x1122, 33, 44, 0x8083)
    assert state.desc[1].flag_names == "NEXT WRITE AVAIL USED"
    assert (state.driver_event, state.device_event) == (Event(5, True, 2), Event(7, False, 1))
    assert (str(state.driver_event), str(state.device_event)) == ("DESC 5/1", "DISABLE")


def test_what_is_available_and_used_is_found_from_a_place_on() -> None:
    snapshot = PackedPair().snapshot()
    state = snapshot.ring
    assert state.lists_from(*snapshot.seen) == [[3]]
    assert [entry.len for entry in state.used_from(0, True, {state.desc[0].id: 2})] == [30]
    assert snapshot.owned_by_device() == {2, 3}


def test_nonsense_in_a_packed_ring_decodes_and_ends() -> None:
    rng = random.Random(3)
    for _ in range(200):
        state = decode_packed_ring(rng.randbytes(16 * 8 + 8), (0, 128, 132), 8)
        assert len(state.lists_from(rng.randrange(8), True)) <= 8
        assert len(state.used_from(rng.randrange(8), False, {each.id: 3 for each in state.desc})) <= 8
    with pytest.raises(ValueError, match="not all in the dump"):
        decode_packed_ring(bytes(100), (0, 96, 100), 4)


def test_the_table_of_a_packed_ring_says_who_owns_what_and_where_both_stand() -> None:
    text = drawn(queue_tables(PackedPair().snapshot()))
    lines = text.splitlines()
    assert "alice eth0 tx  4 entries, packed, 2 with the device" in lines[0]
    assert "driver event DESC 0/1  device event DESC 3/1" in lines[1]
    rows = {line.split()[0]: line.rstrip() for line in lines if line[:1].isdigit()}
    assert "AVAIL USED" in rows["0"]
    assert "driver" in rows["0"]
    assert rows["0"].endswith("← avail/0 reaped/1")
    assert rows["2"].endswith("← used/1")
    assert "device" in rows["3"]
    assert rows["3"].endswith("← seen/1")
    assert max(map(len, lines)) <= 100


def test_every_byte_of_a_packed_ring_has_a_name() -> None:
    names = FieldNames()
    names.add_packed_ring((0x1000, 0x2000, 0x3000), 2, "tx ")
    assert names.name(0x1010, 8) == "tx desc[1].addr"
    assert names.name(0x1008, 8) == "tx desc[0].len+id+flags"
    assert names.name(0x100E, 2) == "tx desc[0].flags"
    assert (names.name(0x2000, 4), names.name(0x3002, 2)) == ("tx driver_event.off_wrap+flags", "tx device_event.flags")


def test_a_machine_shows_its_packed_queues() -> None:
    board = Board.parse('clock = "virtual"\n[[nic]]\npacked = true\nwire = "hub:lan"\n')
    with vring.boot(board) as machine:
        machine.run(seconds=1)
        rx, tx = machine.rings()
    assert isinstance(rx, PackedSnapshot)
    assert (rx.title, tx.title) == ("guest eth0 rx", "guest eth0 tx")
    assert len(rx.owned_by_device()) == 256
    assert "256 with the device" in drawn(queue_tables(rx))
    assert [text.split(":")[0] for text in legends([rx, tx])] == ["avail"], "the words are explained that are shown"
