"""Random work on the driver half of the split ring against a naive model: a list of what the device holds.

Hypothesis chooses chain shapes, batch sizes, the order in which the device returns chains and what it suppresses; the
rings start just below the wrap of their indices.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guest.dma import DmaPool
from guest.ring.split import SplitRing
from hw.memory import GuestMemory
from tests.scripted_device import HandRing
from tests.test_ring_driver import EVENT_IDX, INDIRECT, passed

Shape = list[tuple[int, int]]
shapes = st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 20)), max_size=4)


class RingAgainstModel(RuleBasedStateMachine):
    """The device is a list of heads; the driver's part of the truth is a dict by token."""

    @initialize(
        size=st.sampled_from([1, 2, 4, 16]),
        offered=st.sampled_from([0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT]),
        start=st.integers(0xFFF0, 0xFFFF),
    )
    def begin(self, size: int, offered: int, start: int) -> None:
        self.memory = GuestMemory(1 << 16)
        self.dma = DmaPool(self.memory.port("driver"), 4096, 1 << 16)
        self.ring: SplitRing[int] = SplitRing(self.dma, 0, size, offered, indirect_entries=3, start_index=start)
        self.device = HandRing(self.memory, size, *self.ring.addresses, start=start)
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
        self.kick_from = start

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
        self.added += [token for _, _, token in batch[:taken]]

    @rule()
    def publish(self) -> None:
        assert self.ring.publish() is bool(self.added)
        self.shown += self.added
        self.added = []

    @rule(event=st.integers(0, 20), no_notify=st.booleans())
    def kick(self, event: int, no_notify: bool) -> None:
        self.device.set_avail_event(self.kick_from + event)
        self.device.set_used_flags(int(no_notify))
        new = self.device.avail_idx
        if self.event_idx:
            expected = passed((self.kick_from + event) & 0xFFFF, new, self.kick_from)
        else:
            expected = new != self.kick_from and not no_notify
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
        head, token = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        written = data.draw(st.integers(0, sum(length for _, length in self.chains[token][1])))
        self.device.put_used(head, written)
        self.returned.append((token, written))

    @rule(budget=st.integers(0, 5))
    def reap(self, budget: int) -> None:
        expected, self.returned = self.returned[:budget], self.returned[budget:]
        assert self.ring.reap(budget) == expected
        for token, _ in expected:
            self.descriptors -= self.needs(token)

    @rule(after=st.integers(1, 4))
    def enable(self, after: int) -> None:
        assert self.ring.enable_interrupts(after) is (len(self.returned) >= after)

    @rule()
    def disable(self) -> None:
        self.ring.disable_interrupts()

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "ring"):
            return
        assert self.ring.broken is None, "an honest device is believed"
        assert self.ring.room == self.size - self.descriptors
        assert self.ring.in_flight == len(self.shown) + len(self.held) + len(self.returned)
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
