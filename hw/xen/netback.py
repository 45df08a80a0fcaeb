"""The network back end: moves frames between a wire and the rings of one vif.

Promises:
- What it offers and what the front end has asked for decides everything; both are read when the front end connects.
- A frame is copied once each way (grant copies), never mapped: the guest can change nothing that was checked.
- A front end that breaks a rule of its rings closes its own vif, with a text in the error node; other vifs do not
  notice. One bad packet costs only itself.
- `disconnect` gives everything back exactly once: pages, event channels, frames that wait.

Read first: Xen's public `io/netif.h`, `hw/xen/net_tx.py`, `hw/xen/net_rx.py`.

Sections: `Profile`, `Netback`: what it offers, attaching, the wire, transmit, receive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from hw.abi import xen_bus as bus
from hw.abi import xen_netif as nif
from hw.abi.xen import DOM0
from hw.clock import Clock
from hw.wire.link import FRAME_MAX, HEADER_SIZE, Frame, Link, Receiver
from hw.xen.control import ControlRing, HashSteering
from hw.xen.net_rx import RxQueue
from hw.xen.net_tx import TxQueue
from hw.xen.offload import ETHERNET_HEADER, flow_hash
from hw.xen.ports import EventPort, GrantPort, StoreError
from hw.xen.ring import BackRing, RingError
from hw.xen.store_client import StoreAccess
from hw.xen.wishes import Wishes
from hw.xen.xenbus import XenbusBackend

VLAN_TAG = 4
PULL_BUDGET = 64
SCRATCH_BYTES = 3 * (HEADER_SIZE + FRAME_MAX)
QUEUES_MAX = 16


@dataclass(frozen=True, slots=True)
class Profile:
    """What a back end offers. The default is all of it; `LING` is what a LING guest expects to find."""

    sg: bool = True
    gso: bool = True
    ipv6_csum: bool = True
    split: bool = True
    multicast: bool = True
    control: bool = True
    queues: int = 4

    def keys(self) -> dict[str, str | int]:
        """The same as keys in the store."""
        keys: dict[str, str | int] = {bus.FEATURE_RX_COPY: 1, bus.FEATURE_RX_FLIP: 0}
        for offered, names in (
            (self.sg, (bus.FEATURE_SG,)),
            (self.gso, (bus.FEATURE_GSO_TCPV4, bus.FEATURE_GSO_TCPV6)),
            (self.ipv6_csum, (bus.FEATURE_IPV6_CSUM_OFFLOAD,)),
            (self.split, (bus.FEATURE_SPLIT_EVENT_CHANNELS,)),
            (self.multicast, (bus.FEATURE_MULTICAST_CONTROL, bus.FEATURE_DYNAMIC_MULTICAST_CONTROL)),
            (self.control, (bus.FEATURE_CTRL_RING,)),
        ):
            keys.update(dict.fromkeys(names, 1) if offered else {})
        if self.queues > 1:
            keys[bus.MULTI_QUEUE_MAX_QUEUES] = self.queues
        return keys


LING = Profile(sg=False, gso=False, ipv6_csum=False, split=False, multicast=False, control=False, queues=1)


@dataclass(slots=True)
class _Queue:
    """One pair of rings and its event channels, one or two."""

    tx: TxQueue
    rx: RxQueue
    ports: list[int]


class Netback(XenbusBackend, Receiver):
    """The back end of vif `handle` of domain `domid`, plugged into `link`.

    Args:
        link: one end of a wire.
        store, grants, events: the doors of the back end's own domain.
        clock: for frames that wait.
        schedule: gives the back end another turn.
        mtu: the largest IP packet.
        profile: what is offered.
    """

    def __init__(
        self,
        link: Link,
        domid: int,
        handle: int,
        *,
        store: StoreAccess,
        grants: GrantPort,
        events: EventPort,
        clock: Clock,
        schedule: Callable[[Callable[[], None]], None],
        mtu: int = 1500,
        profile: Profile | None = None,
    ) -> None:
        super().__init__(
            store,
            bus.frontend_path(domid, handle),
            bus.backend_path(DOM0, domid, handle),
            bus.backend_error_path(DOM0, domid, handle),
        )
        self.link = link
        self.domid = domid
        self.handle = handle
        self.mtu = mtu
        self.profile = profile or Profile()
        self.frame_max = mtu + ETHERNET_HEADER + VLAN_TAG
        self.sg_offered = self.profile.sg
        self.gso_offered = frozenset(
            (nif.XEN_NETIF_GSO_TYPE_TCPV4, nif.XEN_NETIF_GSO_TYPE_TCPV6) if self.profile.gso else ()
        )
        self.queues: list[_Queue] = []
        self._grants = grants
        self._events = events
        self._clock = clock
        self._schedule = schedule
        self._wishes: Wishes | None = None
        self._release: list[Callable[[], None]] = []
        self._steering = HashSteering(1)
        self._control: ControlRing | None = None
        self._again: set[int] = set()  # transmit queues that have a turn coming
        self._paused = False
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._carrier: bool | None = None
        link.attach(self)

    def count(self, name: str, amount: int = 1) -> None:
        """Count something that a queue did or dropped."""
        if amount:
            self.counters[name] += amount

    # -- what it offers ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Offer the features, and begin to wait for a front end."""
        self.store.write_all(self.backend, self.profile.keys())
        self._tell_carrier()
        super().start()

    def _tell_carrier(self) -> None:
        up = self.link.carrier and not (self.queues and all(queue.rx.is_stalled for queue in self.queues))
        if up != self._carrier:
            self._carrier = up
            self.store.write(f"{self.backend}/{bus.CARRIER}", int(up))

    def carrier_changed(self) -> None:
        """Somebody was plugged in or out at the far end of the wire."""
        self._tell_carrier()

    def stalled(self) -> None:
        """A receive queue stalled or recovered."""
        self._tell_carrier()

    # -- attaching (XenbusBackend) -----------------------------------------------------------------------------------

    def connect(self) -> None:
        """Read the front end's keys, map its rings, bind its event channels."""
        front, number = self.frontend, self.store.number
        if not number(f"{front}/{bus.REQUEST_RX_COPY}", 0):
            raise StoreError("EOPNOTSUPP", f"{bus.REQUEST_RX_COPY} is not 1, and flipping pages is not offered")
        if not number(f"{front}/{bus.FEATURE_RX_NOTIFY}", 0):
            raise StoreError("EOPNOTSUPP", f"{bus.FEATURE_RX_NOTIFY} is not 1")
        queues = number(f"{front}/{bus.MULTI_QUEUE_NUM_QUEUES}", 1)
        if not 1 <= queues <= self.profile.queues:
            raise StoreError("EINVAL", f"{queues} queues where up to {self.profile.queues} are offered")
        self._wishes = Wishes(self.store, front, self.frame_max, self.counters)
        self._steering = HashSteering(queues)
        for index in range(queues):
            self._attach_queue(front if queues == 1 else f"{front}/{bus.queue_key(index)}", index)
        if self.profile.control:
            self._attach_control()
        if self.profile.multicast:
            path = f"{front}/{bus.REQUEST_MULTICAST_CONTROL}"
            token = self.store.watch(path, self._multicast_asked)
            self._release.append(partial(self.store.unwatch, path, token))
        for index in range(queues):
            self._schedule(partial(self._kicked, index))

    def _attach_ring(self, path: str, slot_size: int) -> BackRing:
        ref = self.store.number(path)
        page = self._grants.map(self.domid, ref)
        self._release.append(page.unmap)
        # The front end has initialised the ring; one that was in use before goes on where its responses ended.
        ring = BackRing(page, slot_size, page.fields("I")[2])
        ring.available()
        return ring

    def _bind(self, port: int, handler: Callable[[], None]) -> int:
        local = self._events.bind(self.domid, port, handler)
        self._release.append(partial(self._events.unbind, local))
        return local

    def _attach_queue(self, path: str, index: int) -> None:
        number = self.store.number
        tx_ring = self._attach_ring(f"{path}/{bus.TX_RING_REF}", nif.TX_SLOT_SIZE)
        rx_ring = self._attach_ring(f"{path}/{bus.RX_RING_REF}", nif.RX_SLOT_SIZE)
        try:
            tx_port = number(f"{path}/{bus.EVENT_CHANNEL_TX}")
            rx_port = number(f"{path}/{bus.EVENT_CHANNEL_RX}")
        except StoreError:
            tx_port = rx_port = number(f"{path}/{bus.EVENT_CHANNEL}")
        if tx_port == rx_port:
            ports = [self._bind(tx_port, partial(self._kicked, index))]
        else:
            ports = [
                self._bind(tx_port, partial(self._kicked_tx, index)),
                self._bind(rx_port, partial(self._kicked_rx, index)),
            ]
        tx = TxQueue(self, tx_ring, self._grants, self.domid, partial(self._events.notify, ports[0]))
        rx = RxQueue(self, rx_ring, self._grants, self.domid, partial(self._events.notify, ports[-1]), self._clock)
        self._release.append(rx.close)
        self.queues.append(_Queue(tx, rx, ports))

    def _attach_control(self) -> None:
        path = f"{self.frontend}/{bus.CTRL_RING_REF}"
        if not self.store.get(path):
            return
        ring = self._attach_ring(path, nif.CTRL_SLOT_SIZE)
        port = self.store.number(f"{self.frontend}/{bus.EVENT_CHANNEL_CTRL}")
        local = self._bind(port, self._kicked_control)
        notify = partial(self._events.notify, local)
        self._control = ControlRing(ring, self._steering, self._grants, self.domid, notify)

    def disconnect(self) -> None:
        """Give back pages and channels, drop what waits, forget the filter."""
        self.count("tx_dropped_closed", sum(queue.tx.stalled for queue in self.queues))
        self.queues = []
        self._control = None
        self._again.clear()
        self._wishes = None
        while self._release:
            self._release.pop()()
        if self._paused:
            self._paused = False
            self.link.resume()
        self._tell_carrier()

    # -- events --------------------------------------------------------------------------------------------------------

    def _kicked(self, index: int) -> None:
        self._kicked_tx(index)
        self._kicked_rx(index)

    def _kicked_tx(self, index: int) -> None:
        """The guest has frames to send, or this queue has another turn."""
        self._again.discard(index)
        if index >= len(self.queues):
            return
        try:
            if self.queues[index].tx.process() and index not in self._again:
                self._again.add(index)
                self._schedule(partial(self._kicked_tx, index))
        except RingError as error:
            self.fail(f"transmit ring {index}: {error}")

    def _kicked_rx(self, index: int) -> None:
        """The guest has posted buffers."""
        if index >= len(self.queues):
            return
        try:
            self.queues[index].rx.process()
        except RingError as error:
            self.fail(f"receive ring {index}: {error}")
            return
        if self._paused and not any(queue.rx.backlog for queue in self.queues):
            self._paused = False
            self.link.resume()

    def _kicked_control(self) -> None:
        if self._control is not None:
            try:
                if self._control.process():
                    self._schedule(self._kicked_control)
            except RingError as error:
                self.fail(f"control ring: {error}")

    # -- transmit ---------------------------------------------------------------------------------------------------

    def send(self, frames: list[Frame]) -> int:
        """Hand frames to the wire; how many it took."""
        return self.link.transmit(frames)

    def writable(self) -> None:
        """The wire has room again."""
        for index, queue in enumerate(self.queues):
            if queue.tx.stalled:
                queue.tx.resume()
                self._kicked_tx(index)

    def multicast(self, address: bytes, add: bool) -> bool:
        """Change the multicast filter; False when it is full or not offered."""
        return self.profile.multicast and self._wishes is not None and self._wishes.multicast(address, add)

    def _multicast_asked(self, path: str) -> None:
        try:
            asked = bool(self.store.number(path, 0))
        except StoreError:
            asked = False
        if self._wishes is not None:
            self._wishes.filtering = asked

    # -- receive -------------------------------------------------------------------------------------------------------

    def receive(self, frames: Sequence[Frame]) -> int:
        """Spread frames over the queues. All are taken: what has no room waits in its queue, within bounds."""
        wishes = self._wishes
        if wishes is None or not self.queues:
            self.count("rx_dropped_no_driver", len(frames))
            return len(frames)
        fit = [ready for frame in frames for ready in wishes.fit(frame)]
        spread: dict[int, list[Frame]] = {0: fit}
        if len(self.queues) > 1:
            spread = {}
            for ready in fit:
                spread.setdefault(self._queue_for(ready), []).append(ready)
        for index, batch in spread.items():
            if index >= len(self.queues):
                break
            try:
                self.queues[index].rx.offer(batch)
            except RingError as error:
                self.fail(f"receive ring {index}: {error}")
        return len(frames)

    def pull(self, link: Link) -> None:
        """Read frames from a wire with a descriptor, no more than each queue has room for, or one that then waits."""
        try:
            budget = min([PULL_BUDGET, *(queue.rx.posted for queue in self.queues)])
        except RingError as error:
            self.fail(f"receive ring: {error}")
            budget = PULL_BUDGET
        frames: list[Frame] = []
        at, start = 0, link.header_size
        while len(frames) < max(1, budget) and at + HEADER_SIZE + FRAME_MAX <= len(self._scratch):
            length = link.read_into([self._scratch[at:]])
            if not length:
                break
            header = self._scratch[at : at + start] if start else None
            frames.append((header, [self._scratch[at + start : at + length]]))
            at += length
        if frames:
            self.receive(frames)
        if any(queue.rx.backlog for queue in self.queues):
            self._paused = True
            link.pause()

    def _queue_for(self, frame: Frame) -> int:
        first = frame[1][0]
        chosen = self._steering.queue(first)
        return flow_hash(first) % len(self.queues) if chosen is None else chosen
