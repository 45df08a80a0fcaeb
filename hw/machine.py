"""A board: RAM, bus, interrupt controller, network cards, and the socket that a guest is plugged into.

Several machines may share one loop, and so one thread and one clock; they share nothing else.

Sections: `MachinePlatform` (the door that the guest sees), `Machine`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypedDict

from hw.abi import virtio_net as net
from hw.abi.virtio import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from hw.abi.virtio_ring import QUEUE_SIZE_MAX
from hw.bus import Bus
from hw.irq import InterruptController
from hw.loop import Cpu, Loop
from hw.memory import AccessHook, GuestMemory
from hw.virtio.device import VirtioDevice
from hw.virtio.mmio import VirtioMmio
from hw.virtio.net import PAIRS_MAX, VirtioNet
from hw.wire.link import Link
from hw.xen.hypervisor import SPECIAL_BYTES, Domain, Hypervisor
from hw.xen.netback import LING, QUEUES_MAX, Profile
from hw.xen.vif import MTU_DEFAULT, Vif

MIB = 1 << 20
RAM_MAX = 3 << 30
SLOT_BASE = 0xD000_0000  # above the largest RAM
SLOT_SIZE = 0x1000
SLOTS = 64
FIRST_IRQ = 5
XEN_IRQ = FIRST_IRQ + SLOTS
MTU_OF_FRONT_ENDS = 65535  # what a card elsewhere carries is its driver's business
XEN_OUI = b"\x00\x16\x3e"  # what `xl` makes addresses of vifs with

# Options of a virtio card that switch a feature off or on.
_SWITCHES = {
    "mrg_rxbuf": net.VIRTIO_NET_F_MRG_RXBUF,
    "status": net.VIRTIO_NET_F_STATUS,
    "event_idx": VIRTIO_RING_F_EVENT_IDX,
    "indirect_desc": VIRTIO_RING_F_INDIRECT_DESC,
    "packed": VIRTIO_F_RING_PACKED,
    "in_order": VIRTIO_F_IN_ORDER,
    "notification_data": VIRTIO_F_NOTIFICATION_DATA,
    "queue_reset": VIRTIO_F_RING_RESET,
    # Checksums and segmentation left to the other side: of what the driver sends, and of what it receives.
    "csum": net.VIRTIO_NET_F_CSUM,
    "host_tso4": net.VIRTIO_NET_F_HOST_TSO4,
    "host_tso6": net.VIRTIO_NET_F_HOST_TSO6,
    "host_ecn": net.VIRTIO_NET_F_HOST_ECN,
    "guest_csum": net.VIRTIO_NET_F_GUEST_CSUM,
    "guest_tso4": net.VIRTIO_NET_F_GUEST_TSO4,
    "guest_tso6": net.VIRTIO_NET_F_GUEST_TSO6,
    "guest_ecn": net.VIRTIO_NET_F_GUEST_ECN,
    # Those of a card with a control queue.
    "ctrl_rx": net.VIRTIO_NET_F_CTRL_RX,
    "ctrl_rx_extra": net.VIRTIO_NET_F_CTRL_RX_EXTRA,
    "ctrl_vlan": net.VIRTIO_NET_F_CTRL_VLAN,
    "ctrl_mac_addr": net.VIRTIO_NET_F_CTRL_MAC_ADDR,
    "ctrl_guest_offloads": net.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    "guest_announce": net.VIRTIO_NET_F_GUEST_ANNOUNCE,
    "notf_coal": net.VIRTIO_NET_F_NOTF_COAL,
    "vq_notf_coal": net.VIRTIO_NET_F_VQ_NOTF_COAL,
    "device_stats": net.VIRTIO_NET_F_DEVICE_STATS,
    "hash": net.VIRTIO_NET_F_HASH_REPORT,
    "rss": net.VIRTIO_NET_F_RSS,
}
_OFFLOADS = (
    "csum", "host_tso4", "host_tso6", "host_ecn", "guest_csum", "guest_tso4", "guest_tso6", "guest_ecn",
)  # fmt: skip
# Off unless a user says otherwise; the other switches are on.
_OFF = ("packed", "in_order", "notification_data", "hash", "rss", *_OFFLOADS)
_NUMBERS = ("rx_queue_size", "tx_queue_size", "queue_size", "mtu")
_CONTROL = ("ctrl_vq", "queues", "speed", "duplex")  # the control queue and what comes with it
_DUPLEX = {"half": net.DUPLEX_HALF, "full": net.DUPLEX_FULL, "unknown": net.DUPLEX_UNKNOWN}
# Options of a Xen card that switch off something that its back end offers.
_VIF_SWITCHES = ("sg", "gso", "ipv6_csum", "split", "multicast", "control")
_PROFILES = {"full": Profile(), "ling": LING}
_TRUTH = {"on": True, "off": False, "true": True, "false": False, "1": True, "0": False}

Option = str | int | bool


def chance(seed: int | None, purpose: str) -> random.Random:
    """A source of randomness of its own for `purpose`: the same for the same seed, the host's entropy without one."""
    return random.SystemRandom() if seed is None else random.Random(f"{seed}/{purpose}")


class MachinePlatform:
    """The machine as its guest sees it (`guest.platform.Platform`)."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.memory = machine.memory.port("driver", machine.memory_size)
        self.mmio = machine.bus
        self.irq = machine.irq
        self.xen: Domain | None = machine.domain
        self.rng = machine.random("guest")
        self.now: Callable[[], int] = machine.clock.now

    @property
    def cmdline(self) -> str:
        """The kernel command line: one word for each device slot, then what the guest was given."""
        return self._machine.full_cmdline

    def wake(self) -> None:
        """Give the guest a turn."""
        machine = self._machine
        if machine.cpu is not None:
            machine.loop.kick_cpu(machine.cpu)


class Machine:
    """One board.

    Args:
        loop: the thread's loop, which has the clock.
        name: for logs.
        memory_size: bytes of RAM, whole pages, at most 3 GiB; it starts at guest-physical 0.
        cmdline: the guest's command line, without the device announcements.
        seed: with the name, decides MAC addresses and the guest's random numbers. None takes both from the host's
            entropy, so that a peer on a real network cannot know them; no two runs are then the same.
        xen: the hypervisor that the board runs on; a board without one takes no Xen cards. The machine is a domain of
            its own there, with special pages behind its RAM.

    Attributes:
        nics: the virtio cards, in the order of their slots.
        vifs: the Xen cards, in the order of their handles.
        domain: the machine's domain, or None.

    Raises ValueError for a size of RAM that cannot be.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        name: str = "machine",
        memory_size: int = 64 * MIB,
        cmdline: str = "",
        seed: int | None = 0,
        xen: Hypervisor | None = None,
    ) -> None:
        if memory_size > RAM_MAX:
            raise ValueError(f"{memory_size} bytes of RAM are more than the {RAM_MAX} that fit below the devices")
        self.loop = loop
        self.clock = loop.clock
        self.name = name
        self.seed = seed
        self.cmdline = cmdline
        self.memory_size = memory_size
        self.memory = GuestMemory(memory_size + (SPECIAL_BYTES if xen is not None else 0))
        self.bus = Bus()
        self.irq = InterruptController(loop.call_soon)
        self.nics: list[VirtioMmio] = []
        self.xen = xen
        self.domain = None if xen is None else xen.create(name, self.memory, self.irq.line(XEN_IRQ))
        self.vifs: list[Vif] = []
        self.cpu: Cpu | None = None
        self.platform = MachinePlatform(self)

    # -- cards -----------------------------------------------------------------------------------------------------

    def add_virtio_net(
        self, link: Link, *, mac: bytes | None = None, options: Mapping[str, Option] | None = None
    ) -> VirtioMmio:
        """Put a virtio network card into the next slot, plugged into `link`.

        Args:
            mac: 6 bytes; by default made from seed, name and slot, locally administered.
            options: `rx_queue_size` (256), `tx_queue_size` (128), `queue_size` (both), `mtu` (1500, or "off"),
                `mrg_rxbuf`, `status`, `event_idx`, `indirect_desc`, `queue_reset` (on), `packed`, `in_order`,
                `notification_data` (off), `synchronous` (off: work inside the register write); `offload`
                (off; all that follow: `csum`, `host_tso4`, `host_tso6`, `host_ecn`, `guest_csum`, `guest_tso4`,
                `guest_tso6`, `guest_ecn`); `ctrl_vq` (off), and
                with it `queues` (1; pairs of queues, up to 8; more than 1 bring the control queue along), `speed`
                (Mbit/s), `duplex` ("half", "full", "unknown"), `ctrl_rx`, `ctrl_rx_extra`, `ctrl_vlan`,
                `ctrl_mac_addr`, `ctrl_guest_offloads`, `guest_announce`, `notf_coal`, `vq_notf_coal`, `device_stats`
                (on), `hash`, `rss` (off).

        Raises ValueError with one line for an option or value that cannot be, or when all slots are taken.
        """
        given = dict(options or {})
        synchronous, mac = self._common(given, mac)
        control = _control_options(given)
        return self._plug_in(VirtioNet(link, mac=mac, **_card_options(given), **control), synchronous)

    def add_vhost_user(
        self, path: str, *, mac: bytes | None = None, options: Mapping[str, Option] | None = None
    ) -> VirtioMmio:
        """Put a virtio network card into the next slot whose rings the vhost-user back end at `path` serves.

        Args:
            path: the Unix socket where the back end listens.
            mac: 6 bytes; by default made from seed, name and slot, locally administered.
            options: those of `add_virtio_net`, as far as the back end offers what they switch on; `notification_data`
                and `queue_reset` are not among them, and of what comes with a control queue only `queues`.

        Raises ValueError as `add_virtio_net` does, `hw.wire.link.WireError` where no usable back end answers.
        """
        from hw.vhost.front import VhostUserNet  # noqa: PLC0415  (few boards have one; it needs the host's sockets)

        given = dict(options or {})
        synchronous, mac = self._common(given, mac)
        control = _control_options(given)
        device = VhostUserNet(
            self.loop, self.memory, path, mac=mac, pairs=control["pairs"], control=control["control"],
            **_card_options(given),
        )  # fmt: skip
        return self._plug_in(device, synchronous)

    def _common(self, given: dict[str, Option], mac: bytes | None) -> tuple[bool, bytes]:
        """What every virtio card has: whether it works inside the register write, and its address."""
        slot = len(self.nics)
        if slot >= SLOTS:
            raise ValueError(f"all {SLOTS} device slots are taken")
        synchronous = _switch("synchronous", given.pop("synchronous", False))
        return synchronous, b"\x02" + self.random(f"nic{slot}").randbytes(5) if mac is None else mac

    def _plug_in(self, device: VirtioDevice, synchronous: bool) -> VirtioMmio:
        slot = len(self.nics)
        line = self.irq.line(FIRST_IRQ + slot)
        transport = VirtioMmio(device, self.memory, line, self.loop, synchronous=synchronous)
        self.bus.map(SLOT_BASE + slot * SLOT_SIZE, SLOT_SIZE, transport)
        self.nics.append(transport)
        return transport

    def add_xen_vif(
        self, link: Link, *, mac: bytes | None = None, options: Mapping[str, Option] | None = None
    ) -> Vif:
        """Give the machine's domain another network interface, plugged into `link`.

        Args:
            mac: 6 bytes; by default made from seed, name and handle, in the range that is Xen's.
            options: `profile` ("full", or "ling": what a LING guest expects, and the guest is told to be one), `queues`
                (1; how many are offered), `mtu` (1500), and `sg`, `gso`, `ipv6_csum`, `split`, `multicast`,
                `control` (on; each can be withheld).

        Raises ValueError with one line for an option or value that cannot be, or when the board has no hypervisor.
        """
        if self.xen is None or self.domain is None:
            raise ValueError("the machine does not run on Xen, so it takes no Xen cards")
        handle = len(self.vifs)
        profile, mtu = _vif_options(options or {})
        if mac is None:
            mac = XEN_OUI + self.random(f"vif{handle}").randbytes(3)
        vif = Vif(self.xen, self.domain, handle, link, mac=mac, mtu=mtu, profile=profile)
        self.vifs.append(vif)
        return vif

    @property
    def full_cmdline(self) -> str:
        """What the kernel is given: a word for each virtio slot, one where all vifs are LING's; then `cmdline`."""
        words = [
            f"virtio_mmio.device=4K@{SLOT_BASE + slot * SLOT_SIZE:#x}:{FIRST_IRQ + slot}"
            for slot in range(len(self.nics))
        ]
        if self.vifs and all(vif.device.profile == LING for vif in self.vifs):
            words.append("xen_netfront.profile=plain")
        return " ".join([*words, self.cmdline]).strip()

    def random(self, purpose: str) -> random.Random:
        """A source of randomness of its own for `purpose`, the same again for the same seed and name."""
        return chance(self.seed, f"{self.name}/{purpose}")

    # -- power -----------------------------------------------------------------------------------------------------

    def power_on(self, cpu: Cpu) -> None:
        """Plug `cpu` in and give it its first turn. Raises ValueError when there is one already."""
        if self.cpu is not None:
            raise ValueError(f"{self.name} is powered on already")
        self.cpu = cpu
        self.irq.cpu = self._interrupt
        self.loop.add_cpu(cpu)

    def _interrupt(self, line: int) -> None:
        cpu = self.cpu
        if cpu is None or cpu.halted:
            self.irq.cpu = None  # nobody listens any more: a line that stays high must not keep the loop busy
            return
        cpu.interrupt(line)

    def power_off(self) -> None:
        """Reset the devices, which then drop what arrives, and unplug the wires."""
        self.irq.cpu = None
        for nic in self.nics:
            nic.reset()
            nic.device.unplug()
        for vif in self.vifs:
            vif.close()
        if self.xen is not None and self.domain is not None:
            self.xen.destroy(self.domain)

    # -- looking in ------------------------------------------------------------------------------------------------

    def set_hook(self, hook: AccessHook | None) -> None:
        """Tell `hook` of every access to rings, payload, registers and interrupt lines; None stops that."""
        self.memory.hook = hook
        self.bus.hook = hook
        self.irq.hook = hook

    def counters(self) -> dict[str, Counter[str]]:
        """The counters of the wires, cards, transports and the bus, by what they belong to."""
        found: dict[str, Counter[str]] = {}
        for slot, nic in enumerate(self.nics):
            if isinstance(nic.device, VirtioNet):
                found[f"wire {nic.device.link.name}"] = nic.device.link.counters
            found[f"nic{slot} device"] = nic.device.counters
            found[f"nic{slot} virtio-mmio"] = nic.counters
        for handle, vif in enumerate(self.vifs):
            found[f"wire {vif.device.link.name}"] = vif.device.link.counters
            found[f"vif{handle} netback"] = vif.device.counters
        found["machine"] = Counter(interrupts=self.irq.delivered, bus_unmapped=self.bus.unmapped)
        return found


def _switch(name: str, value: Option) -> bool:
    if isinstance(value, bool):
        return value
    found = _TRUTH.get(str(value).lower())
    if found is None:
        raise ValueError(f"{name}={value}: say on or off")
    return found


def _number(name: str, value: Option, low: int, high: int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if not low <= number <= high:
        raise ValueError(f"{name}={value}: a number from {low} to {high} is needed")
    return number


def _vif_options(options: Mapping[str, Option]) -> tuple[Profile, int]:
    """What a Xen back end offers, and its MTU, from the words that a user writes."""
    given = dict(options)
    name = str(given.pop("profile", "full"))
    if name not in _PROFILES:
        raise ValueError(f"profile={name}: say {' or '.join(_PROFILES)}")
    profile = _PROFILES[name]
    mtu = _number("mtu", given.pop("mtu", MTU_DEFAULT), net.MTU_MIN, net.MTU_MAX)
    queues = _number("queues", given.pop("queues", 1), 1, QUEUES_MAX)
    if profile == LING and queues > 1:
        raise ValueError(f"queues={queues}: a LING card has one queue")
    switches: dict[str, bool] = {}
    for option, value in given.items():
        if option in _VIF_SWITCHES:
            switches[option] = _switch(option, value)
        else:
            known = ", ".join(sorted([*_VIF_SWITCHES, "mtu", "profile", "queues"]))
            raise ValueError(f"a Xen card has no option {option!r}; it has {known}")
    return replace(profile, queues=queues, **switches), mtu


def vhost_card(link: Link, rng: random.Random, given: Mapping[str, Option]) -> VirtioNet:
    """A virtio network card for a front end elsewhere, plugged into `link`; `given` are options of `add_virtio_net`.

    What the front end tells its driver by itself is not offered: MAC address, link status, and MTU. Rings of every kind
    are, unless an option says otherwise: whoever drives it has its own word in that. Raises ValueError for an option or
    value that cannot be.
    """
    options = {"packed": True, "in_order": True, "mtu": MTU_OF_FRONT_ENDS, **given}
    mac = str(options.pop("mac", "")).replace(":", "")
    control = _control_options(options)
    control["control"] = False  # it is the front end's
    card = _card_options(options)
    card["withhold"] |= 1 << net.VIRTIO_NET_F_MAC | 1 << net.VIRTIO_NET_F_STATUS | 1 << net.VIRTIO_NET_F_MTU
    return VirtioNet(link, mac=bytes.fromhex(mac) if mac else b"\x02" + rng.randbytes(5), **card, **control)


class CardOptions(TypedDict):
    """Keyword arguments of `VirtioNet`."""

    withhold: int
    mtu: int | None
    queue_sizes: tuple[int, int]


class ControlOptions(TypedDict):
    """Those that come with a control queue."""

    pairs: int
    control: bool
    speed: int
    duplex: int


def _card_options(given: Mapping[str, Option]) -> CardOptions:
    """Keyword arguments of `VirtioNet` from the words that a user writes."""
    withhold = sum(1 << _SWITCHES[name] for name in _OFF)
    sizes = {"rx_queue_size": 256, "tx_queue_size": 128}
    mtu: int | None = 1500
    if "offload" in given:  # all of them, and each may still be said by itself
        every = dict.fromkeys(_OFFLOADS, given["offload"])
        given = {**every, **{name: value for name, value in given.items() if name != "offload"}}
    for name, value in given.items():
        if name in _SWITCHES:
            bit = 1 << _SWITCHES[name]
            withhold = withhold & ~bit if _switch(name, value) else withhold | bit
        elif name == "mtu":
            off = str(value).lower() in ("off", "false")
            mtu = None if off else _number(name, value, net.MTU_MIN, net.MTU_MAX)
        elif name in _NUMBERS:
            size = _number(name, value, 1, QUEUE_SIZE_MAX)
            if size & (size - 1):
                raise ValueError(f"{name}={value}: a queue size is a power of two")
            for which in sizes if name == "queue_size" else (name,):
                sizes[which] = size
        else:
            known = ", ".join(sorted([*_SWITCHES, *_NUMBERS, *_CONTROL, "offload", "synchronous"]))
            raise ValueError(f"a virtio card has no option {name!r}; it has {known}")
    return {"withhold": withhold, "mtu": mtu, "queue_sizes": (sizes["rx_queue_size"], sizes["tx_queue_size"])}


def _control_options(given: dict[str, Option]) -> ControlOptions:
    """The control queue and what comes with it; takes its words out of `given`."""
    pairs = _number("queues", given.pop("queues", 1), 1, PAIRS_MAX)
    control = _switch("ctrl_vq", given.pop("ctrl_vq", pairs > 1))
    if pairs > 1 and not control:
        raise ValueError(f"queues={pairs}: several queues need the control queue, which ctrl_vq=off takes away")
    speed, duplex = given.pop("speed", "unknown"), given.pop("duplex", "unknown")
    if duplex not in _DUPLEX:
        raise ValueError(f"duplex={duplex}: say {' or '.join(_DUPLEX)}")
    return {
        "pairs": pairs,
        "control": control,
        "speed": net.SPEED_UNKNOWN if speed == "unknown" else _number("speed", speed, 0, net.SPEED_MAX),
        "duplex": _DUPLEX[str(duplex)],
    }
