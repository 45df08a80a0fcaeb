"""Random work on the driver half of either ring against a naive model: a list of what the device holds.

Hypothesis chooses the format, chain shapes, batch sizes, the order in which the device returns chains (in order and in
batches with IN_ORDER) and what it suppresses; split rings start just below the wrap of their indices.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guest.dma import DmaPool
from guest.ring.packed import PackedRing
from guest.ring.ring import Ring
from guest.ring.split import SplitRing
from hw.memory import GuestMemory
from tests.scripted_device import HandRing
from tests.scripted_packed import AT_DESC, DISABLE, ENABLE, HandPackedRing
from tests.test_ring_driver import EVENT_IDX, INDIRECT, passed
from tests.test_ring_halves import ALL, IN_ORDER, PACKED

Shape = list[tuple[int, int]]
shapes = st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 20)), max_size=4)


class RingAgainstModel(RuleBasedStateMachine):
    """The device is a list of heads; the driver's part of the truth is a dict by token."""

    @initialize(
        size=st.sampled_from([1, 2, 4, 16]),
        offered=st.sampled_from(ALL),
        start=st.integers(0xFFF0, 0xFFFF),
    )
    def begin(self, size: int, offered: int, start: int) -> None:
        self.memory = GuestMemory(1 << 16)
        self.dma = DmaPool(self.memory.port("driver"), 4096, 1 << 16)
        self.ring: Ring[int]
        self.device: HandRing | HandPackedRing
        if offered & PACKED:
            self.ring = PackedRing(self.dma, 0, size, offered, indirect_entries=3)
            self.device = HandPackedRing(self.memory, size, *self.ring.addresses)
            start = 0
        else:
            self.ring = SplitRing(self.dma, 0, size, offered, indirect_entries=3, start_index=start)
            self.device = HandRing(self.memory, size, *self.ring.addresses, start=start)
        self.packed, self.in_order = bool(offered & PACKED), bool(offered & IN_ORDER)
        self.made = start  # what notifications count: descriptors of a packed ring, entries of a split one
        self.size = size
        self.event_idx = bool(offered & EVENT_IDX)
        self.indirect = min(3, size) if offered & INDIRECT else 0
        self.serial = 0
        self.added: list[int] = []  # tokens that the device has not been shown
        self.shown: list[int] = []  # tokens in the order in which the device will find them
        self.held: list[tuple[int, int]] = []  # (head, token) with the device
        self.returned: list[tuple[int, int]] = []  # (token, written) on the used ring
        self.chains: dict[int, tuple[Shape, Shape]] = {}
        self.descriptors = 0
        self.kick_from = self.published = start

    def needs(self, token: int) -> int:
        count = sum(map(len, self.chains[token]))
        return 1 if count <= self.indirect else count

    @rule(out=shapes, in_=shapes)
    def add(self, out: Shape, in_: Shape) -> None:
        if not 0 < len(out) + len(in_) <= self.size:
            return
        self.serial += 1
        token = self.serial
        self.chains[token] = (out, in_)
        fits = self.descriptors + self.needs(token) <= self.size
        assert self.ring.add(out, in_, token) is fits, "there is room exactly when descriptors are left"
        if fits:
            self.descriptors += self.needs(token)
            self.made += self.needs(token) if self.packed else 1
            self.added.append(token)

    @rule(lengths=st.lists(st.integers(1, 4096), max_size=6), writable=st.booleans())
    def post(self, lengths: list[int], writable: bool) -> None:
        batch = []
        for length in lengths:
            self.serial += 1
            element = [(self.serial << 12, length)]
            self.chains[self.serial] = ([], element) if writable else (element, [])
            batch.append((self.serial << 12, length, self.serial))
        taken = self.ring.post(batch, writable)
        assert taken == min(len(batch), self.size - self.descriptors)
        self.descriptors += taken
        self.made += taken
        self.added += [token for _, _, token in batch[:taken]]

    @rule()
    def publish(self) -> None:
        assert self.ring.publish() is bool(self.added)
        self.shown += self.added
        self.added = []
        self.published = self.made
        size = self.size if self.packed else 0x8000
        assert self.ring.position == self.made % size | (self.made // size + self.packed) % 2 << 15

    @rule(event=st.integers(0, 20), no_notify=st.booleans())
    def kick(self, event: int, no_notify: bool) -> None:
        old, new = self.kick_from, self.published
        if isinstance(self.device, HandPackedRing):
            flags = AT_DESC if self.event_idx else DISABLE if no_notify else ENABLE
            self.device.ask_kick(flags, old + event % (2 * self.size))
            expected = new - old > event % (2 * self.size) if self.event_idx else new != old and not no_notify
        else:
            self.device.set_avail_event(old + event)
            self.device.set_used_flags(int(no_notify))
            expected = passed(old + event & 0xFFFF, new & 0xFFFF, old & 0xFFFF) if self.event_idx else (
                new != old and not no_notify
            )
        assert self.ring.kick_needed() is expected
        self.kick_from = new

    @precondition(lambda self: self.shown)
    @rule()
    def device_takes(self) -> None:
        head = self.device.take()
        token = self.shown.pop(0)
        out, in_ = self.chains[token]
        expected = [(*element, False) for element in out] + [(*element, True) for element in in_]
        assert self.device.elements(head) == expected, "the chain is not what was added"
        self.held.append((head, token))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def device_returns(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.held) - 1))
        batch: list[tuple[int, int]] = []
        if self.in_order:  # all up to that one, with one entry
            batch, self.held, which = self.held[:which], self.held[which:], 0
        head, token = self.held.pop(which)
        written = data.draw(st.integers(0, self.writable(token)))
        self.device.put_used(head, written, batch=[each for each, _ in batch])
        self.returned += [(each, self.writable(each)) for _, each in batch]
        self.returned.append((token, written))

    def writable(self, token: int) -> int:
        return sum(length for _, length in self.chains[token][1])

    @rule(budget=st.integers(0, 5))
    def reap(self, budget: int) -> None:
        expected, self.returned = self.returned[:budget], self.returned[budget:]
        assert self.ring.reap(budget) == expected
        for token, _ in expected:
            self.descriptors -= self.needs(token)
        if self.in_order:  # a batch frees all of its descriptors when its first token is handed out
            self.descriptors = self.size - self.ring.room

    @rule(after=st.integers(1, 4))
    def enable(self, after: int) -> None:
        already = self.ring.enable_interrupts(after)
        if len(self.returned) >= after:
            assert already is True
        elif not self.returned:
            assert already is False

    @rule()
    def disable(self) -> None:
        self.ring.disable_interrupts()

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "ring"):
            return
        assert self.ring.broken is None, "an honest device is believed"
        assert self.ring.room == self.size - self.descriptors
        with_device = len(self.shown) + len(self.held)
        if self.in_order:
            assert with_device <= self.ring.in_flight <= with_device + len(self.returned)
        else:
            assert self.ring.in_flight == with_device + len(self.returned)
        assert self.device.waiting() == len(self.shown)

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            held = [token for _, token in self.held]
            tokens = self.added + self.shown + held + [token for token, _ in self.returned]
            assert sorted(self.ring.detach()) == sorted(tokens)
            self.ring.close()
            assert self.dma.free_bytes == self.dma.size


RingAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestRingAgainstModel = RingAgainstModel.TestCase
