"""Who sits at the two ends of QEMU's device: the bare driver or the whole guest on one side, a peer on the wire.

Sections: `Peer` and `ScapyHost` on the wire, `BareDriver` and `WholeGuest` in the machine.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from guest.dma import DmaPool
from guest.drivers.virtio_net import WANTED, VirtioNetDriver
from guest.kernel import Guest
from guest.net.pbuf import PacketBuffer
from guest.services import Services
from hw.clock import MILLISECOND, SECOND
from hw.wire.link import Frame, Link, Receiver, frame_bytes
from tests.witness.qtest_machine import Qemu

PATIENCE = 20 * SECOND
LOOK_AGAIN = 5 * MILLISECOND


class Peer(Receiver):
    """Keeps what comes out of the wire in `frames`, and puts frames in as fast as it takes them."""

    def __init__(self, wire: Link) -> None:
        self.frames: list[bytes] = []
        self._wire = wire
        self._backlog: deque[bytes] = deque()
        wire.attach(self)

    def receive(self, frames: Sequence[Frame]) -> int:
        self.frames += map(frame_bytes, frames)
        return len(frames)

    def send(self, frames: Sequence[bytes]) -> None:
        self._backlog += frames
        self.writable()

    def writable(self) -> None:
        while self._backlog and self._wire.transmit([(None, [self._backlog[0]])]):
            self._backlog.popleft()


class ScapyHost(Receiver):
    """A host whose packets scapy makes and reads; it answers ARP and pings.

    Attributes:
        answered: how many requests it answered, "arp" and "echo".
        neighbours: MAC addresses by IP address, as answers to its own questions gave them.
        replies: the echo replies that it got, (sequence number, payload).
    """

    def __init__(self, wire: Link, mac: str, address: str) -> None:
        self.mac, self.address = mac, address
        self.answered: Counter[str] = Counter()
        self.neighbours: dict[str, str] = {}
        self.replies: list[tuple[int, bytes]] = []
        self._wire = wire
        wire.attach(self)

    def receive(self, frames: Sequence[Frame]) -> int:
        for frame in frames:
            packet = Ether(frame_bytes(frame))
            if ARP in packet:
                self._arp(packet[ARP])
            elif ICMP in packet and packet[IP].dst == self.address:
                self._icmp(packet)
        return len(frames)

    def _arp(self, arp: ARP) -> None:
        if arp.op == 2 and arp.pdst == self.address:
            self.neighbours[arp.psrc] = arp.hwsrc
        elif arp.op == 1 and arp.pdst == self.address and arp.psrc != self.address:
            self.answered["arp"] += 1
            self._send(arp.hwsrc, ARP(op=2, hwsrc=self.mac, psrc=self.address, hwdst=arp.hwsrc, pdst=arp.psrc))

    def _icmp(self, packet: Ether) -> None:
        icmp = packet[ICMP]
        payload = bytes(icmp.payload)[: packet[IP].len - 28]  # what follows is the padding of a short frame
        right = bytes(IP(src=packet[IP].src, dst=packet[IP].dst, id=packet[IP].id, ttl=packet[IP].ttl,
                         flags=packet[IP].flags, tos=packet[IP].tos) / ICMP(type=icmp.type, id=icmp.id, seq=icmp.seq)
                      / payload)  # fmt: skip
        assert bytes(packet[IP])[: len(right)] == right, "scapy would have written that packet differently"
        if icmp.type == 0:
            self.replies.append((icmp.seq, payload))
        elif icmp.type == 8:
            self.answered["echo"] += 1
            answer = IP(src=self.address, dst=packet[IP].src) / ICMP(type=0, id=icmp.id, seq=icmp.seq) / payload
            self._send(packet[Ether].src, answer)

    def ask(self, address: str) -> None:
        """Ask who has `address`."""
        self._send("ff:ff:ff:ff:ff:ff", ARP(op=1, hwsrc=self.mac, psrc=self.address, pdst=address))

    def ping(self, address: str, sequence: int, payload: bytes) -> None:
        """Send an echo request to a neighbour."""
        request = IP(src=self.address, dst=address) / ICMP(type=8, id=77, seq=sequence) / payload
        self._send(self.neighbours[address], request)

    def _send(self, to: str, packet: Packet) -> None:
        self._wire.transmit([(None, [bytes(Ether(src=self.mac, dst=to) / packet)])])


class Side:
    """What both have in common.

    Attributes:
        qemu: the machine.
        driver: the driver of its device.
        services: the kernel that the driver has.
    """

    qemu: Qemu
    driver: VirtioNetDriver
    services: Services

    def wait(self, until: Callable[[], bool], what: str) -> None:
        """Go on until then. AssertionError when it takes too long."""
        loop = self.qemu.loop
        end = loop.clock.now() + PATIENCE
        # What QEMU writes into RAM ends no wait of the loop, so it is looked at every now and then.
        while not loop.run(until, deadline=loop.clock.now() + LOOK_AGAIN):
            assert loop.clock.now() < end, f"waited in vain for {what}"

    @property
    def interrupts(self) -> int:
        """How often the device raised its line."""
        return self.qemu.mmio.messages["raise", self.qemu.slot.irq]


class BareDriver(Side):
    """A guest that is its driver, plugged into QEMU as the CPU: interrupts and the work they put off, nothing else.

    No timer fires unless `timers` is set, so the driver's watchdog cannot help a frame that no interrupt announced.

    Attributes:
        received: the frames that the driver delivered, as bytes, in order.
    """

    halted = False

    def __init__(self, qemu: Qemu, *, wanted: int = WANTED) -> None:
        self.qemu = qemu
        self.timers = False
        self.log: list[str] = []
        memory = qemu.memory
        platform = qemu.platform()
        # The first megabyte has holes on this board; the guest leaves it alone.
        self.dma = DmaPool(platform.memory, 1 << 20, memory.size)
        self.services = Services.of(platform, self.dma, self.log.append)
        self.driver = VirtioNetDriver(self.services, qemu.slot, wanted=wanted)
        self.driver.receiver = self._deliver
        self.received: list[bytes] = []
        self.peer = Peer(qemu.wire)
        qemu.power_on(self)

    def _deliver(self, packets: Sequence[PacketBuffer]) -> None:
        self.received += [packet.tobytes() for packet in packets]

    # -- as a CPU --------------------------------------------------------------------------------------------------

    def interrupt(self, line: int) -> None:
        self.services.irqs.dispatch(line)

    def run(self) -> bool:
        if self.timers:
            self.services.timers.run_due()
        self.services.deferred.run()
        return len(self.services.deferred) > 0

    def next_deadline(self) -> int | None:
        return self.services.timers.next_deadline() if self.timers else None

    # -- what a test says ------------------------------------------------------------------------------------------

    def transmit(self, frames: Sequence[bytes]) -> None:
        """Send `frames` through the driver."""
        assert self.driver.transmit([PacketBuffer.from_bytes(frame) for frame in frames]) == len(frames)

    def send(self, frames: Sequence[bytes]) -> None:
        """Send `frames` through the driver, and see them on the wire unchanged."""
        peer = self.peer
        peer.frames.clear()
        self.transmit(frames)
        self.wait(lambda: len(peer.frames) >= len(frames), "frames on the wire")
        assert peer.frames == list(frames), "what left is not what was sent"

    def receive(self, frames: Sequence[bytes]) -> None:
        """Put `frames` on the wire, and see the driver deliver them unchanged."""
        self.received.clear()
        self.peer.send(frames)
        self.wait(lambda: len(self.received) >= len(frames), "frames from the driver")
        assert self.received == list(frames), "what arrived is not what was put on the wire"


class WholeGuest(Side):
    """The guest, plugged into QEMU as the CPU, for use with `with`: at the end it is closed and has left nothing."""

    def __init__(self, qemu: Qemu, words: str) -> None:
        self.qemu = qemu
        self.guest = Guest(qemu.platform(words))

    def boot(self) -> None:
        """Switch it on, and wait until it runs."""
        guest = self.guest
        self.qemu.power_on(guest)
        self.wait(lambda: guest.booted or guest.halted, "the boot")
        assert guest.booted, guest.log.text()
        assert isinstance(guest.devices[0], VirtioNetDriver)
        self.driver, self.services = guest.devices[0], guest.services

    def ping(self, *words: str) -> int | None:
        """Run the guest's ping with `words` to its end; its exit status."""
        process = self.guest.spawn("ping", *words)
        self.wait(lambda: not process.alive, "the end of ping")
        return process.exit_status

    def __enter__(self) -> WholeGuest:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.guest.close()
        if error is None:
            assert (self.guest.panic, self.guest.leaks) == (None, []), self.guest.log.text()
