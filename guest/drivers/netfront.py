"""The driver of Xen's network interfaces: one device of the bus, `device/vif/N`.

    event ── poll (deferred, 64 responses a slice) ── ReceiveSide ── deliver
    transmit ── TransmitSide ── event

The states of the two ends (`io/xenbus.h`), as this driver goes through them:

    back end          we                  then
    InitWait          Initialising        connect: rings, pages, channels, keys; Connected
    Connected         Connected           in use; both rings are kicked once
    Closing, Closed   Connected           disconnect; Closed; Initialising again after a pause, if it is still online
    gone, or InitWait, having been        it was restarted: disconnect, and connect to what comes
      Connected before
    elsewhere         any                 the toolstack moved it (our key `backend`): the same

In the profile `plain` the first connection does not wait for InitWait, as LING's does not.

Promises:
- Whatever the back end or the store does, nothing raises out of an event, a poll or `transmit`, and nothing waits for
  ever. A back end that breaks the rules of a ring is disconnected, told so in an error node, and connected to again
  after a pause that doubles each time.
- No wake-up is lost: a poll that stops has asked for an event and looked again.
- A **watchdog** looks every second while transmit pages are in flight.
- What is still mapped by the back end when it is disconnected is quarantined (guest/xen/grants.py).
- `close()` gives back all memory that is not.

Read: Xen's public `io/netif.h`; `hw/abi/xen_bus.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from guest.dma import DmaError
from guest.drivers.flow import flow_hash
from guest.drivers.net_config import is_station, random_station
from guest.drivers.netfront_config import (
    MTU,
    MTU_MAX,
    QUEUES_MAX,
    STALE_KEYS,
    NetfrontOptions,
    Offer,
    connection_keys,
    read_offer,
)
from guest.drivers.netfront_offload import GSO_TYPES
from guest.drivers.netfront_queue import Queue
from guest.drivers.netfront_tx import ETHERNET_HEADER
from guest.net.device import IFF_RUNNING, UNLIMITED, NetDevice
from guest.net.pbuf import PacketBuffer
from guest.services import Timer
from guest.xen.bus import BusDevice
from guest.xen.domain import Domain
from guest.xen.events import EventError
from guest.xen.grants import GrantError
from guest.xen.store import parse_number
from guest.xen.store_ring import StoreError
from hw.abi import xen_bus as abi
from hw.abi.xen_netif import XEN_NETIF_NR_SLOTS_MIN

BUDGET = 64  # responses of one poll, of each queue

SECOND = 1_000_000
RETRY_FIRST = 10_000  # microseconds until a connection is tried again
RETRY_DOUBLINGS = 10
STABLE_AFTER = 10 * SECOND  # a connection that lasted this long starts again with a clean sheet
IDLE_EVENTS_MAX = 1000  # events in a row that announced nothing
CLOSE_WAITS = 16  # looks at a back end that is to let go

_GONE = (abi.XenbusStateUnknown, abi.XenbusStateInitialising, abi.XenbusStateInitWait)
_ENDED = (abi.XenbusStateClosing, abi.XenbusStateClosed)


class NetfrontDriver(NetDevice):
    """One network interface. `start` brings it up; until then nothing is touched.

    Args:
        xen: this domain.
        index: N of `device/vif/N`.
        options: how to drive it.

    Attributes:
        bus: its place on the bus.
        offer: what was agreed on with the back end at the last connection.
        queues: while connected.
        failed: why it is not connected, or None.
    """

    def __init__(self, xen: Domain, index: int, options: NetfrontOptions | None = None) -> None:
        super().__init__(f"vif/{index}", bytes(6))
        self.xen = xen
        self.index = index
        self.options = options or NetfrontOptions()
        self.bus = BusDevice(xen, f"{abi.VIF_DIRECTORY}/{index}", self._changed)
        self.offer: Offer | None = None
        self.queues: list[Queue] = []
        self.failed: str | None = None
        self.max_slots = XEN_NETIF_NR_SLOTS_MIN
        self._services = xen.services
        self._seen = False  # this back end has been Connected since we are
        self._asked = False  # it was asked to start again, and has not moved yet
        self._closed = False
        self._polling = False
        self._attempts = 0
        self._idle_events = 0
        self._connected_at = 0
        self._retry: Timer | None = None
        self._watchdog: Timer | None = None

    # -- bringing up ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Find the back end and, if it is ready, connect. Raises StoreError where no device is described."""
        bus = self.bus
        bus.find_backend()
        self._set_mac(bus.own(abi.MAC))
        mtu = parse_number(bus.own(abi.MTU), MTU)
        # Without packets of several slots a frame has to fit into one page; then Linux, too, keeps to 1500.
        large = self.options.profile == "full" and bus.theirs(abi.FEATURE_SG, 0) == 1
        self.mtu = min(mtu, MTU_MAX if large else MTU) if mtu >= 68 else MTU
        self.gso_max_size = self.mtu + ETHERNET_HEADER
        bus.state = parse_number(bus.own(abi.STATE), abi.XenbusStateUnknown)
        self.xen.devices.append(self)
        if self.options.profile == "plain":
            self._connect()
            bus.watch()
            return
        if bus.state != abi.XenbusStateInitialising:
            bus.switch(abi.XenbusStateInitialising)
        bus.watch()
        self._look()

    def _set_mac(self, text: str) -> None:
        """Use the address in `text`, or a random one where that is none that can be used."""
        try:
            mac = bytes(int(part, 16) for part in text.strip().split(":") if len(part) == 2)
        except ValueError:
            mac = b""
        if len(mac) != 6 or not is_station(mac):
            self.counters["mac_refused"] += 1
            self._log(f"the address {text!r} is not a station's; a random one is used")
            mac = random_station(self._services.platform.rng)
        self.mac = mac

    # -- the two ends --------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Something of the back end's, or where it is, may have changed."""
        if self._closed:
            return
        try:
            self._look()
        except StoreError as error:
            self._store_failed(error)

    def _store_failed(self, error: StoreError) -> None:
        self.counters["store_failed"] += 1
        self._log(str(error))
        if not self.queues:
            self.failed = str(error)
            if self._attempts < RETRY_DOUBLINGS:
                self._plan_retry()

    def _look(self) -> None:
        """Do what the states of the two ends ask for. Raises StoreError."""
        bus = self.bus
        try:
            moved = bus.find_backend()
        except StoreError as error:
            if not error.name:
                raise
            self._disconnect("the device was unplugged")
            return
        if moved:
            self._disconnect("the back end is elsewhere")
            self._attempts, self._asked = 0, False
            self._stop_retry()
            bus.watch()
            bus.switch(abi.XenbusStateInitialising)
        state = bus.backend_state()
        if self.queues:
            self._look_connected(state)
        if not self.queues and self._retry is None:
            self._look_unconnected(state)

    def _look_connected(self, state: int) -> None:
        bus = self.bus
        if state == abi.XenbusStateConnected:
            if not self._seen:
                self._seen = True
                for queue in self.queues:
                    queue.kick()
            self._set_link(bus.theirs(abi.CARRIER, 1) != 0)
        elif state in _ENDED:
            self._disconnect("the back end has closed")
            bus.switch(abi.XenbusStateClosed)
        elif state in _GONE and self._seen:
            self._disconnect("the back end was restarted")
            bus.switch(abi.XenbusStateInitialising)

    def _look_unconnected(self, state: int, paused: bool = False) -> None:
        bus = self.bus
        if state == abi.XenbusStateInitWait:
            self._asked = False
            if bus.state != abi.XenbusStateInitialising:
                bus.switch(abi.XenbusStateInitialising)
            self._connect()
        elif self._asked:
            pass  # what is to come, a watch tells
        elif state == abi.XenbusStateConnected or state in _ENDED:
            # Connected: to an earlier life of ours.
            if paused:
                self._asked = True
                bus.switch(abi.XenbusStateInitialising)
                return
            if bus.state != abi.XenbusStateClosed:
                bus.switch(abi.XenbusStateClosed)
            if state == abi.XenbusStateClosed and bus.theirs(abi.ONLINE, 0) == 1:
                self._plan_retry()

    # -- connection ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Make rings and pages and tell the back end of them; on failure there is nothing of it, and a later try."""
        bus, options = self.bus, self.options
        queues: list[Queue] = []
        try:
            offer = read_offer(bus, options)
            if not offer.rx_copy and options.profile == "full":
                self._refuse(f"{bus.backend} does not copy received packets into our pages")
                return
            for _ in range(offer.queues):
                queues.append(
                    Queue(self.xen, bus.backend_id, options, offer, self.mtu, self.counters, self.on_event)
                )
            self._write_keys(queues)
            bus.switch(abi.XenbusStateConnected)
        except (DmaError, GrantError, EventError, StoreError) as error:
            for queue in queues:
                queue.close(False)
            self.failed = str(error)
            self.counters["connect_failed"] += 1
            self._log(f"cannot connect: {error}")
            if self._attempts < RETRY_DOUBLINGS:
                self._plan_retry()
            return
        self.offer, self.queues = offer, queues
        features = offer.features
        largest = queues[0].tx.gso_max
        self.gso_kinds = frozenset(GSO_TYPES[kind] for kind in features.tx_gso) if largest else frozenset()
        self.gso_max_size = max(largest, self.mtu + ETHERNET_HEADER)
        self.gso_max_segs = 64 if largest else 1
        self._seen = self._polling = False
        self._idle_events = 0
        self.failed = None
        self._connected_at = self._services.platform.now()
        self.counters["connects"] += 1
        self._set_link(True)

    def _write_keys(self, queues: Sequence[Queue]) -> None:
        """Tell the back end of `queues`. Raises StoreError."""
        store, path = self.xen.store, self.bus.path
        keys = list(connection_keys(self.options, [queue.keys for queue in queues]))
        if self.options.profile == "plain":
            for key, value in keys:
                store.write(f"{path}/{key}", value)
            return
        names = {key for key, _ in keys}

        def work(tx: int) -> None:
            present = store.directory(path, tx)
            stale = [*STALE_KEYS, *(abi.queue_key(number) for number in range(QUEUES_MAX))]
            for key in stale:
                if key in present and key not in names:
                    store.remove(f"{path}/{key}", tx)
            for key, value in keys:
                store.write(f"{path}/{key}", value, tx)

        store.transaction(work)

    def _refuse(self, reason: str) -> None:
        """The back end cannot be driven; wait for another."""
        self.failed = reason
        self._log(reason)
        self.bus.error(reason)
        self.bus.switch(abi.XenbusStateClosed)
        self._asked = True

    def _disconnect(self, reason: str, forget: bool = False) -> None:
        """Give up rings, pages and channels; what was in flight is lost."""
        if not self.queues:
            return
        queues, self.queues = self.queues, []
        if self._services.platform.now() - self._connected_at >= STABLE_AFTER:
            self._attempts = 0
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        for queue in queues:
            queue.close(forget)
        self.failed = reason
        self.counters["disconnects"] += 1
        self._log(reason)
        self._set_link(False)
        if self.wants_room is not None and not self._closed:
            self._services.deferred.add(self._tell_room)  # pages that nobody returns announce nothing

    def _fail(self, reason: str) -> None:
        """The back end cannot be believed: disconnect, and try again later."""
        if not self.queues:
            return
        self.counters["device_failed"] += 1
        self._disconnect(reason)
        self._plan_retry()
        self.bus.error(reason)
        try:
            self.bus.switch(abi.XenbusStateClosing)
            self.bus.switch(abi.XenbusStateClosed)
        except StoreError as error:
            self._store_failed(error)

    def _plan_retry(self) -> None:
        if self._retry is not None:
            return
        delay = RETRY_FIRST << min(self._attempts, RETRY_DOUBLINGS)
        self._attempts += 1
        self._retry = self._services.timers.after(delay, self._try_again)

    def _stop_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _try_again(self) -> None:
        self._retry = None
        self._asked = False
        try:
            if not self.queues:
                self._look_unconnected(self.bus.backend_state(), paused=True)
        except StoreError as error:
            self._store_failed(error)

    def _set_link(self, up: bool) -> None:
        if up != bool(self.flags & IFF_RUNNING):
            self.flags ^= IFF_RUNNING
            self._idle_events = 0
            self.counters["link_up" if up else "link_down"] += 1
            if self.link_changed is not None:
                self.link_changed()

    def resume(self) -> None:
        """The domain was suspended and runs again: grants, channels and watches are gone."""
        if self._closed:
            return
        self._disconnect("the domain was resumed", forget=True)
        self._stop_retry()
        self._asked = False
        self.bus.resume()
        try:
            self.bus.find_backend()
            self.bus.watch()
            self.bus.switch(abi.XenbusStateInitialising)
            self._look()
        except StoreError as error:
            self._store_failed(error)

    # -- events and polling --------------------------------------------------------------------------------------

    def on_event(self) -> None:
        """The back end has answered something."""
        self.counters["irqs"] += 1
        if not self.queues:
            return
        self._idle_events += 1
        if self._idle_events > IDLE_EVENTS_MAX:
            self._fail(f"{IDLE_EVENTS_MAX} events in a row announced nothing")
        else:
            self._schedule_poll()

    def _schedule_poll(self) -> None:
        if not self._polling:
            self._polling = True
            self._services.deferred.add(self.poll)

    def poll(self) -> bool:
        """One slice of receiving, of every queue; whether another is due."""
        again = False
        for queue in self.queues:
            rx = queue.rx
            packets, used = rx.collect(BUDGET)
            rx.refill()
            if queue.tx.reclaim() + used:
                self._idle_events = 0
            if packets:
                self.deliver(packets)
                if not self.queues:  # whoever took them closed us
                    break
            again = rx.ring.enable() or again
        self._polling = again = self._sound() and again
        if self.wants_room is not None:
            self._tell_room()
        return again

    def check(self) -> None:
        """Find what no event announced: responses, or a ring that is broken."""
        for queue in self.queues:
            queue.tx.reclaim()
            if queue.rx.ring.pending() and not self._polling:
                self.counters["irq_lost"] += 1
                self._schedule_poll()
        self._tell_room()
        self._sound()

    def _watch(self) -> None:
        """The watchdog: once a second while transmit pages are in flight."""
        self._watchdog = None
        self.check()
        if any(queue.tx.in_flight for queue in self.queues):
            self._watchdog = self._services.timers.after(SECOND, self._watch)

    def _sound(self) -> bool:
        """Whether we are connected and all rings are believed; a broken one is disconnected."""
        for queue in self.queues:
            for ring in (queue.rx.ring, queue.tx.ring):
                if ring.broken is not None:
                    self.counters["ring_broken"] += 1
                    self._fail(f"{ring.name} ring: {ring.broken}")
                    return False
        return bool(self.queues)

    # -- sending -------------------------------------------------------------------------------------------------

    def transmit(self, packets: Sequence[PacketBuffer]) -> int:
        queues = self.queues
        if not queues or not self.flags & IFF_RUNNING:
            self.counters["tx_dropped_link_down" if queues else "tx_dropped_device_down"] += len(packets)
            return 0
        if len(queues) == 1:
            sent = queues[0].tx.send(packets)
        else:
            sent = self._spread(packets)
        if any(queue.tx.ring.broken is not None for queue in queues):
            self._sound()
        elif self._watchdog is None and any(queue.tx.in_flight for queue in queues):
            self._watchdog = self._services.timers.after(SECOND, self._watch)
        if self.wants_room is not None:
            self._services.deferred.add(self._tell_room)  # the pages that were taken back announce nothing any more
        return sent

    def tx_room(self) -> int:
        # A packet goes to the queue of its flow, and whose flow it will be nobody says.
        return min((queue.tx.room() for queue in self.queues), default=UNLIMITED)

    def when_room(self, callback: Callable[[], None]) -> None:
        self.wants_room = callback
        for queue in self.queues:
            queue.tx.watch()
        self._services.deferred.add(self._tell_room)

    def _tell_room(self) -> bool:
        """Call whoever waits for room, if there is some; a slice of deferred work that wants no other."""
        callback = self.wants_room
        if callback is not None and self.tx_room() > 0:
            self.wants_room = None
            callback()
        return False

    def _spread(self, packets: Sequence[PacketBuffer]) -> int:
        """Send each packet through the queue of its flow; packets of one flow keep their order."""
        parts: list[list[PacketBuffer]] = [[] for _ in self.queues]
        for packet in packets:
            parts[flow_hash(packet) % len(parts)].append(packet)
        return sum(queue.tx.send(part) for queue, part in zip(self.queues, parts, strict=True) if part)

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Disconnect and give everything back; harmless when done before."""
        if self._closed:
            return
        self._closed = True
        self._stop_retry()
        if self in self.xen.devices:
            self.xen.devices.remove(self)
        if self.queues:
            self._say_goodbye()
        self.link_changed = None
        self._disconnect("closed")
        self.bus.close()

    def _say_goodbye(self) -> None:
        """Say that we close, and give the back end the time that it takes to let go of our pages."""
        bus = self.bus
        try:
            bus.switch(abi.XenbusStateClosing)
            bus.switch(abi.XenbusStateClosed)
            for _ in range(CLOSE_WAITS):
                if bus.backend_state() not in (abi.XenbusStateConnected, abi.XenbusStateClosing):
                    break
                if not self.xen.store.wait():
                    break
        except StoreError as error:
            self._log(str(error))

    def _log(self, text: str) -> None:
        self._services.log(f"{self.name}: {text}")

    def snapshot(self) -> dict[str, object]:
        """The device for views: where it is, its states, and each queue's rings."""
        return {
            "name": self.name,
            "vif": self.index,
            "backend": self.bus.backend,
            "state": abi.STATE_NAMES.get(self.bus.state, "?"),
            "profile": self.options.profile,
            "mac_addr": self.mac,
            "mtu": self.mtu,
            "queues": [
                {
                    "event-channel-tx": queue.tx_port,
                    "event-channel-rx": queue.rx_port,
                    "rx_ring": queue.rx.ring.snapshot(),
                    "tx_ring": queue.tx.ring.snapshot(),
                    "tx_free_pages": len(queue.tx.free),
                }
                for queue in self.queues
            ],
            "failed": self.failed,
        }


def probe(xen: Domain | None) -> int:
    """1 when this is a domain of Xen's that has a network interface, else 0."""
    if xen is None:
        return 0
    try:
        xen.store.read(f"{abi.VIF_DIRECTORY}/0/{abi.BACKEND_ID}")
    except StoreError as error:
        if error.name != "ENOENT":
            xen.services.log(f"xen-vif: {error}")
        return 0
    return 1


def init(xen: Domain, options: NetfrontOptions) -> list[NetDevice]:
    """Bring up the interfaces, 0 and on until the first that is not there or cannot be read."""
    devices: list[NetDevice] = []
    while True:
        driver = NetfrontDriver(xen, len(devices), options)
        try:
            driver.start()
        except StoreError as error:
            if error.name != "ENOENT":
                xen.services.log(f"xen-vif: {error}")
            driver.close()
            return devices
        devices.append(driver)
