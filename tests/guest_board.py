"""Boards for tests of the whole guest: machines on one virtual clock, hubs, cables, and a peer played by the test.

A board has one model of card, unless a guest is given another.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from guest.kernel import Guest
from hw.abi.xen_bus import BACKEND_ID, XenbusStateClosed
from hw.clock import VirtualClock
from hw.loop import Loop
from hw.machine import Machine, Option
from hw.wire.cable import cable
from hw.wire.link import Frame, Link, Receiver, frame_bytes
from hw.xen.hypervisor import Hypervisor

SECOND = 1_000_000
STATIC = "-ipaddr 10.0.0.2 -netmask 255.255.255.0 -gateway 10.0.0.1"


# Models of cards, with the options that each is made with. What all have to do alike is tested over `CARDS`, what all
# rings of virtio's have to over `RINGS`; frames of several flows keep their order only on cards that have one queue.
OPTIONS: dict[str, dict[str, Option]] = {
    "virtio": {},
    "virtio-packed": {"packed": True},
    "virtio-in-order": {"in_order": True, "notification_data": True},
    "virtio-packed-in-order": {"packed": True, "in_order": True, "notification_data": True, "event_idx": False},
    "virtio-controlled": {"ctrl_vq": True, "hash": True},
    "virtio-queues": {"queues": 4},
    "virtio-rss": {"queues": 3, "rss": True, "hash": True, "packed": True},
    "virtio-offload": {"offload": True},
    "virtio-packed-offload": {"offload": True, "packed": True, "ctrl_vq": True},
    "xen-ling": {"profile": "ling"},
    "xen-full": {},
    "xen-queues": {"queues": 2},
}
CARDS = ("virtio", "virtio-packed", "xen-ling", "xen-full")
QUEUES = ("virtio-queues", "virtio-rss", "xen-queues")
VIRTIO = tuple(name for name in OPTIONS if name.startswith("virtio"))
RINGS = tuple(name for name in VIRTIO if name not in QUEUES)


class Board:
    """A loop and what is on it; `close` unwinds the guests and checks that nothing is left."""

    def __init__(self, card: str = "virtio") -> None:
        self.loop = Loop(VirtualClock())
        self.card = card
        self.host: Hypervisor | None = None  # that the machines run on which have Xen cards
        self.guests: list[Guest] = []
        self.machines: dict[str, Machine] = {}

    def machine(
        self, cmdline: str = "", *links: Link, name: str = "guest", seed: int = 0, card: str = "", **more: Any
    ) -> Machine:
        """A machine with a card on each link: the board's model, or `card`."""
        model = card or self.card
        if model not in VIRTIO and self.host is None:
            self.host = Hypervisor(self.loop)
        host = None if model in VIRTIO else self.host
        machine = Machine(self.loop, name=name, cmdline=cmdline, seed=seed, xen=host, **more)
        for link in links:
            add: Callable[..., object] = machine.add_virtio_net if model in VIRTIO else machine.add_xen_vif
            add(link, options=OPTIONS[model])
        self.machines[name] = machine
        return machine

    def guest(self, cmdline: str = "", *links: Link, name: str = "guest", seed: int = 0, card: str = "") -> Guest:
        """A machine with a card on each link, and a guest plugged into it that has not run yet."""
        machine = self.machine(cmdline, *links, name=name, seed=seed, card=card)
        guest = Guest(machine.platform, name=name)
        machine.power_on(guest)
        self.guests.append(guest)
        return guest

    def peer(self) -> tuple[Link, Peer]:
        """A cable with a peer at its other end."""
        near, far = cable(self.loop)
        return near, Peer(far)

    def run(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.loop.run(deadline=self.loop.clock.now() + round(seconds * SECOND))

    def settle(self, *guests: Guest) -> None:
        """Run until these guests (all of them) have booted or halted."""
        chosen = guests or tuple(self.guests)
        self.loop.run(until=lambda: all(guest.booted or guest.halted for guest in chosen), deadline=60 * SECOND)

    def boot(self, cmdline: str = "", *links: Link, name: str = "guest", seed: int = 0, card: str = "") -> Guest:
        """A guest that has booted or halted."""
        guest = self.guest(cmdline, *links, name=name, seed=seed, card=card)
        self.settle(guest)
        return guest

    def close(self) -> None:
        for guest in self.guests:
            guest.close()
        for machine in self.machines.values():
            machine.power_off()
        self.loop.close()
        for guest in self.guests:
            assert guest.leaks == [], guest.log.text()
            assert guest.panic is None, guest.log.text()


def macs(machine: Machine) -> list[bytes]:
    """The addresses of a machine's cards, in the order in which a guest finds them."""
    return [nic.device.mac for nic in machine.nics] + [vif.mac for vif in machine.vifs]  # type: ignore[attr-defined]


def posted(guest: Guest, eth: int = 0) -> tuple[int, int]:
    """How many receive buffers a card of the guest has posted, and how many it could."""
    driver: Any = guest.devices[eth]
    queues = driver.queues if hasattr(driver, "queues") else driver.pairs
    rings = [queue.rx.ring for queue in queues]
    return sum(ring.in_flight for ring in rings), sum(ring.size for ring in rings)


def wire_of(machine: Machine, eth: int = 0) -> Link:
    """What a card is plugged into."""
    device: Any = machine.nics[eth].device if machine.nics else machine.vifs[eth].device
    return device.link  # type: ignore[no-any-return]


def is_reset(machine: Machine, eth: int = 0) -> bool:
    """Whether the device behind a card is as it was before a driver came."""
    if machine.nics:
        return machine.nics[eth].status == 0
    device = machine.vifs[eth].device
    return not device.queues and device.state == XenbusStateClosed


def spoil(machine: Machine, eth: int) -> None:
    """Make a card one that no driver can bring up."""
    if machine.vifs:
        vif = machine.vifs[eth]
        vif.host.store.remove(f"{vif.device.frontend}/{BACKEND_ID}")
        return
    transport = machine.nics[eth]
    read = transport.mmio_read

    def never_features_ok(offset: int, size: int) -> int:
        value = read(offset, size)
        return value & ~8 if offset == 0x70 else value

    transport.mmio_read = never_features_ok  # type: ignore[method-assign]


class Peer(Receiver):
    """A host made of a few bytes: it records frames, and answers ARP and echo requests if told to."""

    mac = b"\x02\xaa\x00\x00\x00\x01"

    def __init__(self, link: Link) -> None:
        self.link = link
        link.attach(self)
        self.frames: list[bytes] = []
        self.answers = False
        self.flip_payload = False  # answer pings with another payload than was sent

    def receive(self, frames: Sequence[Frame]) -> int:
        for one in frames:
            raw = frame_bytes(one)
            self.frames.append(raw)
            if self.answers and (reply := self.answer(raw)) is not None:
                self.send(reply)
        return len(frames)

    def send(self, *frames: bytes) -> None:
        """Put frames on the wire, in one batch."""
        self.link.transmit([(None, [raw]) for raw in frames])

    def answer(self, raw: bytes) -> bytes | None:
        """What a host would answer."""
        kind = raw[12:14]
        if kind == b"\x08\x06" and raw[20:22] == b"\0\x01" and raw[28:32] not in (bytes(4), raw[38:42]):
            return arp(2, self.mac, raw[38:42], raw[22:28], raw[28:32])
        if kind == b"\x08\x00" and raw[23] == 1 and raw[34] == 8:
            payload = raw[42:]
            if self.flip_payload:
                payload = bytes(byte ^ 1 for byte in payload)
            return echo(0, self.mac, raw[6:12], raw[30:34], raw[26:30], raw[38:40], raw[40:42], payload)
        return None


def arp(operation: int, mac: bytes, sender: bytes, target_mac: bytes, target: bytes) -> bytes:
    """An ARP frame for IPv4 over Ethernet (RFC 826)."""
    to = b"\xff" * 6 if operation == 1 else target_mac
    fixed = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return to + mac + b"\x08\x06" + fixed + mac + sender + target_mac + target


def echo(
    kind: int, mac: bytes, to: bytes, source: bytes, target: bytes, ident: bytes, sequence: bytes, payload: bytes
) -> bytes:
    """An ICMP echo frame: `kind` 8 asks, 0 answers (RFC 792)."""
    message = bytes([kind, 0]) + b"\0\0" + ident + sequence + payload
    message = message[:2] + internet_sum(message) + message[4:]
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(message), 1, 0, 64, 1, 0, source, target)
    header = header[:10] + internet_sum(header) + header[12:]
    return to + mac + b"\x08\x00" + header + message


def internet_sum(raw: bytes) -> bytes:
    """RFC 1071, the slow and plain way."""
    total = sum(struct.unpack(f"!{(len(raw) + 1) // 2}H", raw + b"\0" * (len(raw) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (total ^ 0xFFFF).to_bytes(2, "big")
