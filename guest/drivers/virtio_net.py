"""The virtio-net driver: one network device behind virtio-mmio.

    interrupt ── poll (deferred, 64 buffers a slice) ── ReceiveQueue 1 … N ── deliver
    transmit ── TransmitQueue 1 … N, by flow ── doorbell
    settings ── CommandQueue ── doorbell

Promises:
- Whatever the device does, nothing raises out of an interrupt, a poll or `transmit`. A device that breaks the rules,
  asks for a reset (DEVICE_NEEDS_RESET) or is gone is reset and brought up again, when and how often retry.py says.
- Interrupts are off while a poll is due; the poll switches them on with a second look, so no wake-up is lost.
- A **watchdog** looks every second, but only while sent packets are outstanding, so that an idle guest is never woken:
  it takes back what was sent, and finds a lost interrupt or a device that is gone. `check()` is the same on demand.
- `close()` gives back all memory; packets that are still lent keep theirs until they are gone.

Read: virtio 1.4 §3.1.1 (initialisation), §5.1.4 (configuration), §5.1.5 (initialisation of the network device), §5.1.9
(operation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from guest.dma import DmaError
from guest.drivers.flow import flow_hash
from guest.drivers.net_config import NetConfig, is_station, random_station, read_config
from guest.drivers.net_ctrl import ANSWER_WITHIN, RING_SIZE, CommandQueue
from guest.drivers.net_features import REQUIRED, REQUIRES, WANTED
from guest.drivers.net_pair import Pair, make_pair
from guest.drivers.net_rx import ReceiveQueue, entries_that_fit
from guest.drivers.net_settings import PAIRS_WANTED, Capabilities, Settings
from guest.drivers.net_tx import CHAIN_MAX, ETHERNET_HEADER, GSO_KINDS, TransmitQueue
from guest.drivers.retry import Retry
from guest.drivers.virtio_mmio import DeviceGone, MmioSlot, MmioTransport, TransportError, find_devices
from guest.net.device import IFF_RUNNING, UNLIMITED, NetDevice
from guest.net.pbuf import PacketBuffer
from guest.ring.make import make_ring
from guest.ring.ring import Ring
from guest.services import Services, Timer
from hw.abi import virtio as virtio_abi
from hw.abi import virtio_mmio as reg
from hw.abi import virtio_net as abi

DEVICE_IDS = (virtio_abi.VIRTIO_ID_NET,)

RX_RING = 256
TX_RING = 128
BUDGET = 64  # used buffers of one poll
WATCH_EVERY = 1_000_000  # microseconds
IDLE_IRQ_MAX = 1000  # interrupts in a row that announced nothing


class VirtioNetDriver(NetDevice):
    """One virtio-net device. `start` brings it up; until then nothing is touched.

    Args:
        services: the kernel.
        slot: where the device is.
        wanted: features to take where they are offered; VERSION_1 always is.
        rx_size, tx_size: entries of the queues, where the device allows as many.

    Attributes:
        features: what was negotiated.
        pairs: the queues with their buffers; `rx` and `tx` are the first of them.
        settings: what can be set while it runs.
        failed: why the device is down, or None.
    """

    rx: ReceiveQueue
    tx: TransmitQueue

    def __init__(
        self,
        services: Services,
        slot: MmioSlot,
        *,
        wanted: int = WANTED,
        rx_size: int = RX_RING,
        tx_size: int = TX_RING,
    ) -> None:
        super().__init__(f"virtio@{slot.base:x}", bytes(6))
        self.max_slots = CHAIN_MAX
        self.transport = MmioTransport(services.platform.mmio, slot)
        self.features = 0
        self.failed: str | None = None
        self._services = services
        self._slot = slot
        self._wanted = wanted | REQUIRED
        self._sizes = (rx_size, tx_size)
        self.pairs: list[Pair] = []
        self.settings = Settings(services.platform.rng, self._use_pairs)
        self._commands: CommandQueue | None = None
        self._in_use = 1  # pairs that packets are sent on
        self._built = False  # the pairs exist
        self._live = False  # DRIVER_OK, and not failed
        self._closed = False
        self._listening = False
        self._polling = False
        self._random_mac: bytes | None = None
        self._idle_irqs = 0
        self._retry = Retry(services, self._try_again, self._log)
        self._watchdog: Timer | None = None

    # -- bringing up, §3.1.1 and §5.1.5 --------------------------------------------------------------------------

    def start(self) -> None:
        """Reset the device and bring it up. Raises TransportError; the device is then left marked FAILED."""
        try:
            self._bring_up()
        except (TransportError, DmaError) as error:
            if not isinstance(error, DeviceGone):
                for index in range(max(2, 2 * len(self.pairs))):
                    self.transport.disable_queue(index)
                self.transport.add_status(virtio_abi.VIRTIO_CONFIG_S_FAILED)
            self._let_go()
            if not self._retry.worked:
                self._free()
            raise TransportError(str(error)) from error

    def _bring_up(self) -> None:
        transport, services = self.transport, self._services
        self.features = transport.negotiate(self._wanted, REQUIRED, REQUIRES)
        config = transport.consistent(lambda: read_config(transport, self.features))
        self._set_mac(config.mac)
        if not self._built:
            self.mtu = config.mtu
        elif config.mtu != self.mtu:
            # §5.1.4.1 forbids it.
            raise TransportError(f"the device's MTU was {self.mtu} and is {config.mtu} now; it may not change")
        can = self._capabilities(config)
        rings = self._make_rings(can)
        try:
            if not self._built:
                self._build([ring.size for ring in rings[:2]], can)
        except DmaError:
            for ring in rings:
                ring.close()
            raise
        for pair, rx_ring, tx_ring in zip(self.pairs, rings[::2], rings[1::2], strict=False):
            pair.rx.open(rx_ring, self.features)
            pair.tx.open(tx_ring, self.features)
        if self._commands is not None:
            self._commands.open(rings[-1])
        for ring in rings:
            transport.enable_queue(ring.index, ring.size, ring.addresses)
        for pair in self.pairs:
            pair.rx.ring.publish()
            pair.rx.ring.enable_interrupts()
        self._polling = False
        if not self._listening:
            self._listening = True
            services.irqs.request(self._slot.irq, self._interrupt)
        self._idle_irqs = 0
        transport.add_status(virtio_abi.VIRTIO_CONFIG_S_DRIVER_OK)
        self._live = True
        self.failed = None
        self._retry.works()
        for pair in self.pairs:
            if pair.rx.ring.kick_needed():
                self._doorbell(pair.rx.ring)
        self.gso_kinds = frozenset(kind for kind, feature in GSO_KINDS.items() if can.has(feature) and self.tx.gso_max)
        self.gso_max_segs = 64 if self.gso_kinds else 1
        self.settings.apply(self._commands, can, self.mac if self.mac != config.mac else None)
        self._set_link(config.link_up)
        if config.announce:
            self._announce()

    def _capabilities(self, config: NetConfig) -> Capabilities:
        """What the device has, from its features and configuration; the control queue is the last (§5.1.2)."""
        pairs = min(config.max_pairs, PAIRS_WANTED)
        if self._built and pairs != len(self.pairs):
            raise TransportError(f"the device had {len(self.pairs)} queue pairs and has {pairs} now")
        return Capabilities(
            self.features, pairs, abi.control_queue(config.max_pairs), config.speed, config.duplex, config.key_size,
            config.table_size, config.hash_types,
        )  # fmt: skip

    def _make_rings(self, can: Capabilities) -> list[Ring[Any]]:
        """Receive and transmit rings in turn, and where there is one the control ring. Nothing is kept on an error."""
        rx_size, tx_size = self._sizes
        if not self._built:
            rx_size = entries_that_fit(rx_size, self.features, self.mtu)
        rings: list[Ring[Any]] = []
        try:
            for pair in range(can.pairs):
                rings.append(self._make_ring(2 * pair, rx_size, 0))
                rings.append(self._make_ring(2 * pair + 1, tx_size, CHAIN_MAX))
                rx_size, tx_size = rings[0].size, rings[1].size  # all pairs are alike
            if can.has(abi.VIRTIO_NET_F_CTRL_VQ):
                size = self.transport.queue_size(can.control, RING_SIZE)
                rings.append(make_ring(self._services.dma, can.control, size, self.features, indirect_entries=2))
        except (TransportError, DmaError):
            for ring in rings:
                ring.close()
            raise
        return rings

    def _set_mac(self, mac: bytes | None) -> None:
        """Use `mac`, or a random address where the device has none that can be used (§5.1.4.2)."""
        if mac is not None and not is_station(mac):
            self.counters["mac_refused"] += 1
            self._log(f"the address {mac.hex(':')} is not a station's; a random one is used")
            mac = None
        if mac is None:
            if self._random_mac is None:
                self._random_mac = random_station(self._services.platform.rng)
            mac = self._random_mac
        self.mac = mac

    def _make_ring(self, index: int, wanted: int, indirect: int) -> Ring[Any]:
        size = self.transport.queue_size(index, wanted)
        if (self._built or index > abi.TRANSMITQ1) and size != wanted:
            raise TransportError(f"queue {index} of the device has at most {size} entries; {wanted} are needed")
        return make_ring(self._services.dma, index, size, self.features, indirect_entries=indirect)

    def _doorbell(self, ring: Ring[Any]) -> None:
        """Tell the device of new buffers, and with NOTIFICATION_DATA how far they reach (§2.9)."""
        says = self.features >> virtio_abi.VIRTIO_F_NOTIFICATION_DATA & 1
        self.transport.notify(ring.index, ring.position if says else 0)

    def _build(self, sizes: Sequence[int], can: Capabilities) -> None:
        """Make the buffers, for the driver's life. Raises DmaError; nothing is kept then."""
        dma, (rx_size, tx_size) = self._services.dma, sizes
        pairs: list[Pair] = []
        try:
            for _ in range(can.pairs):
                pairs.append(make_pair(dma, (rx_size, tx_size), self.features, self.mtu, self.counters, self._doorbell))
            if can.has(abi.VIRTIO_NET_F_CTRL_VQ):
                self._commands = CommandQueue(dma, self._services.timers, self.counters, self._ring_control, self._mute)
        except DmaError:
            for pair in pairs:
                pair.close()
            raise
        self.pairs = pairs
        self.rx, self.tx = pairs[0]
        self.gso_max_size = max(self.tx.gso_max, self.mtu + ETHERNET_HEADER)
        self._sizes = (rx_size, tx_size)
        self._built = True

    def _use_pairs(self, pairs: int) -> None:
        """Send on so many from now on."""
        self._in_use = pairs

    def _ring_control(self) -> None:
        if self._commands is not None:
            self._doorbell(self._commands.ring)

    def _mute(self) -> None:
        self._fail(f"a control command was not answered in {ANSWER_WITHIN // 1_000_000} s")

    # -- interrupts and polling ----------------------------------------------------------------------------------

    def _interrupt(self) -> bool:
        """The line is high; whether it was this device (§4.2.3.4)."""
        counters = self.counters
        try:
            cause = self.transport.interrupt_status()
            if not cause:
                counters["irq_spurious"] += 1
                return False
            counters["irqs"] += 1
            self.transport.acknowledge(cause)
            if not self._live:
                counters["irq_early"] += 1  # before DRIVER_OK nothing can be due
                return True
            if cause & reg.VIRTIO_MMIO_INT_CONFIG:
                self._config_changed()
        except TransportError as error:
            self._fail(str(error))
            return True
        self._idle_irqs += 1
        if self._idle_irqs > IDLE_IRQ_MAX:
            self._fail(f"{IDLE_IRQ_MAX} interrupts in a row announced nothing")
        elif cause & reg.VIRTIO_MMIO_INT_VRING and self._live:
            self._schedule_poll()
        return True

    def _config_changed(self) -> None:
        """Read again what can change: the link, and whether the device needs a reset (§2.1.2)."""
        self.counters["config_changes"] += 1
        if self.transport.status() & virtio_abi.VIRTIO_CONFIG_S_NEEDS_RESET:
            self._fail("the device needs a reset")
            return
        config = self.transport.consistent(lambda: read_config(self.transport, self.features))
        self._mtu_changed(config.mtu)
        self._set_link(config.link_up)
        self.settings.renew(config.speed, config.duplex)
        if config.announce:
            self._announce()

    def _mtu_changed(self, mtu: int) -> None:
        """A device may not change its MTU (§5.1.4.1); to a smaller one the driver gives way, which harms nobody."""
        if mtu < self.mtu:
            self.counters["mtu_lowered"] += 1
            self._log(f"the device's MTU was {self.mtu} and is {mtu} now")
            self.mtu = mtu
            for pair in self.pairs:
                pair.tx.set_mtu(mtu)
            if self.link_changed is not None:
                self.link_changed()
        elif mtu > self.mtu:
            self.counters["mtu_refused"] += 1

    def _announce(self) -> None:
        """The device wants the neighbours to be told where this station is (§5.1.9.5.4)."""
        self.counters["announcements"] += 1
        if self.announce is not None:
            self.announce()
        self.settings.acknowledge_announce()

    def _set_link(self, up: bool) -> None:
        if up != bool(self.flags & IFF_RUNNING):
            self.flags ^= IFF_RUNNING
            self._idle_irqs = 0
            self.counters["link_up" if up else "link_down"] += 1
            if self.link_changed is not None:
                self.link_changed()

    def _schedule_poll(self) -> None:
        if not self._polling:
            self._polling = True
            for pair in self.pairs:
                pair.rx.ring.disable_interrupts()
            self._services.deferred.add(self.poll)

    def receive_mode(self, promiscuous: bool, groups: Iterable[bytes]) -> None:
        self.settings.receive(promiscuous, groups)

    def poll(self) -> bool:
        """One slice of receiving, of every queue; whether another is due."""
        if not self._live:
            self._polling = False
            return False
        again = self._poll_control()
        for rx, tx in self.pairs:
            packets, used = rx.collect(BUDGET)
            rx.refill()
            if rx.ring.publish() and rx.ring.kick_needed():
                self.counters["rx_kicks"] += 1
                self._doorbell(rx.ring)
            if tx.reclaim() + used:
                self._idle_irqs = 0
            if self.wants_room is not None:
                self._tell_room()
            if packets:
                self.deliver(packets)
            if not self._sound():
                self._polling = False
                return False
            again = again or rx.incomplete
        if again or not self._listen():
            return True
        self._polling = False
        return False

    def _poll_control(self) -> bool:
        """Take the answers to commands; whether more are there already."""
        commands = self._commands
        if commands is None:
            return False
        if commands.collect():
            self._idle_irqs = 0
        return self._live and commands.ring.enable_interrupts()

    def _listen(self) -> bool:
        """Switch the interrupts of all receive queues on; not if one has something already."""
        for pair in self.pairs:
            if pair.rx.ring.enable_interrupts():
                for other in self.pairs:
                    other.rx.ring.disable_interrupts()
                return False
        return True

    def check(self) -> None:
        """Find what no interrupt announced: used buffers, a device that needs a reset or is gone."""
        if not self._live:
            return
        try:
            if self.transport.status() & virtio_abi.VIRTIO_CONFIG_S_NEEDS_RESET:
                self._fail("the device needs a reset")
                return
        except DeviceGone as error:
            self._fail(str(error))
            return
        for pair in self.pairs:
            pair.tx.reclaim()
        self._tell_room()
        if any(pair.rx.ring.pending() for pair in self.pairs) and not self._polling:
            self.counters["irq_lost"] += 1
            self._schedule_poll()
        self._sound()

    def _watch(self) -> None:
        """The watchdog: once a second while sent packets are outstanding."""
        self._watchdog = None
        self.check()
        if self._live and any(pair.tx.ring.in_flight for pair in self.pairs):
            self._watchdog = self._services.timers.after(WATCH_EVERY, self._watch)

    # -- sending -------------------------------------------------------------------------------------------------

    def transmit(self, packets: Sequence[PacketBuffer]) -> int:
        if not self._live or not self.flags & IFF_RUNNING:
            reason = "tx_dropped_link_down" if self._live else "tx_dropped_device_down"
            self.counters[reason] += len(packets)
            return 0
        if self._in_use == 1:
            sent = self.tx.send(packets)
            fine, in_flight = self.tx.ring.broken is None, self.tx.ring.in_flight
        else:
            sent = self._spread(packets)
            rings = [pair.tx.ring for pair in self.pairs]
            fine, in_flight = all(ring.broken is None for ring in rings), sum(ring.in_flight for ring in rings)
        if not fine:
            self._sound()
        elif self._watchdog is None and in_flight:
            self._watchdog = self._services.timers.after(WATCH_EVERY, self._watch)
        if self.wants_room is not None:
            self._services.deferred.add(self._tell_room)  # the buffers that were taken back announce nothing any more
        return sent

    def _spread(self, packets: Sequence[PacketBuffer]) -> int:
        """Send each packet through the queue of its flow; packets of one flow keep their order."""
        parts: list[list[PacketBuffer]] = [[] for _ in range(self._in_use)]
        for packet in packets:
            parts[flow_hash(packet) % len(parts)].append(packet)
        return sum(pair.tx.send(part) for pair, part in zip(self.pairs, parts, strict=False) if part)

    def tx_room(self) -> int:
        if not self._live:
            return UNLIMITED
        if self._in_use == 1:
            return self.tx.room()
        # A packet goes to the queue of its flow, and whose flow it will be nobody says.
        return min(pair.tx.room() for pair in self.pairs[: self._in_use])

    def when_room(self, callback: Callable[[], None]) -> None:
        self.wants_room = callback
        if self._live:
            for pair in self.pairs[: self._in_use]:
                pair.tx.watch()
        self._services.deferred.add(self._tell_room)

    def _tell_room(self) -> bool:
        """Call whoever waits for room, if there is some; a slice of deferred work that wants no other."""
        callback = self.wants_room
        if callback is not None and self.tx_room() > 0:
            self.wants_room = None
            callback()
        return False

    # -- trouble -------------------------------------------------------------------------------------------------

    def _sound(self) -> bool:
        """Whether the device works and both rings are believed; a broken one starts the repair."""
        if self._live:
            for ring in self._rings():
                if ring.broken is not None:
                    self.counters["ring_broken"] += 1
                    self._fail(f"queue {ring.index}: {ring.broken}")
                    break
        return self._live

    def _rings(self) -> list[Ring[Any]]:
        rings = [ring for pair in self.pairs for ring in (pair.rx.ring, pair.tx.ring)]
        return rings if self._commands is None else [*rings, self._commands.ring]

    def _fail(self, reason: str) -> None:
        """The device cannot be believed: take it down, and try again later, a bounded number of times."""
        if not self._live:
            return
        self.failed = reason
        self.counters["device_failed"] += 1
        if self._take_down(f"{reason}; "):
            self._retry.failed(reason)
        self._set_link(False)

    def _take_down(self, why: str) -> bool:
        """Reset the device and take all buffers back. False where it does not obey, and is given up: it may still write
        to its buffers, which stay where they are for ever.
        """
        try:
            self.transport.reset()
        except DeviceGone:
            pass
        except TransportError as error:
            self._live = False
            self._stop_listening()
            self._log(f"{why}{error}; given up, and its memory is kept")
            return False
        self._let_go()
        return True

    def _try_again(self) -> str:
        self.counters["device_resets"] += 1
        try:
            self.start()
        except TransportError as error:
            self.failed = str(error)
            return self.failed
        return ""

    def _let_go(self) -> None:
        """Stop using the device, which has been reset or never ran, and take all buffers back."""
        self._live = False
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        self._stop_listening()
        for pair in self.pairs:
            pair.rx.detach()
            pair.tx.detach()
        if self._commands is not None:
            self._commands.detach()

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._services.irqs.release(self._slot.irq, self._interrupt)

    def close(self) -> None:
        """Reset the device and give everything back; harmless when done before."""
        if self._closed:
            return
        self._closed = True
        self._retry.cancel()
        if self._take_down(""):
            self.flags &= ~IFF_RUNNING
            self._free()

    def _free(self) -> None:
        """Give up the buffers; what is still lent comes back by itself."""
        if self._built:
            self._built = False
            for pair in self.pairs:
                pair.close()
            self.pairs = []
            if self._commands is not None:
                self._commands.close()
                self._commands = None

    def _log(self, text: str) -> None:
        self._services.log(f"{self.name}: {text}")

    def snapshot(self) -> dict[str, object]:
        """The device for views: `mmio` (base address), `rx_vq` and `tx_vq` (each ring's shadows), `mac_addr`, …"""
        built = self._built
        return {
            "name": self.name,
            "mmio": self._slot.base,
            "irq": self._slot.irq,
            "mac_addr": self.mac,
            "mtu": self.mtu,
            "features": self.features,
            "rx_vq": self.rx.ring.snapshot() if built else None,
            "tx_vq": self.tx.ring.snapshot() if built else None,
            "rx_free_buffers": len(self.rx.pool.free) if built else 0,
            "tx_free_buffers": len(self.tx.pool.free) if built else 0,
            "failed": self.failed,
        }


def probe(services: Services) -> int:
    """1 when the command line announces a network device that is there, else 0."""
    return 1 if find_devices(services.platform, DEVICE_IDS, services.log) else 0


def init(services: Services, *, rx_size: int = RX_RING, tx_size: int = TX_RING) -> list[NetDevice]:
    """Bring up the network devices in the order of the command line, until the first that fails.

    `rx_size` and `tx_size` are the entries of each device's queues, where it allows as many.
    """
    devices: list[NetDevice] = []
    for slot in find_devices(services.platform, DEVICE_IDS, _quiet):
        driver = VirtioNetDriver(services, slot, rx_size=rx_size, tx_size=tx_size)
        try:
            driver.start()
        except TransportError as error:
            services.log(f"virtio-net: {error}")
            break
        devices.append(driver)
    return devices


def _quiet(_line: str) -> None:
    """`probe` said already what is wrong with the command line."""
