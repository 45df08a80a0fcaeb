"""A guest that is nothing but a process view: a network stack of its own, descriptors, programs (row D19).

    router = PartialGuest(loop, name="router", rng=random.Random(1), words="net.forwarding=1")
    router.plug(link, "10.0.0.1/24", "fd00::1/64")
    router.spawn("httpd")

There is no machine under it: no RAM, no card, no interrupt, no boot. Programs cannot tell, except that there is no card
to look at. Wires are plugged straight into its stack (vring/direct.py).

Promises:
- It takes its turns in the loop that it was given, on either clock, from the start until it halts or is closed.
- The same `rng`, words and wires give the same run.
- It is a `guest.kernel.Guest` in everything else: what that promises of programs, panics and `close` holds.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from guest.boot import configure, software
from guest.cmdline import parse
from guest.dma import PAGE, DmaPool
from guest.drivers.registry import DriverGrid
from guest.kernel import Guest
from guest.net.address import Prefix, is_v4, parse_address
from guest.net.interface import Interface
from guest.platform import Cells, Format
from guest.services import Services
from hw.loop import Loop
from hw.wire.link import Link
from vring.direct import DirectInterface


class _Nothing:
    """Where a machine has RAM, registers and interrupt lines."""

    base = 0
    size = PAGE

    def span(self, addr: int, length: int) -> memoryview:
        raise RuntimeError(f"a guest without a machine has no RAM: {length} bytes at {addr:#x}")

    def fields(self, addr: int, length: int, fmt: Format) -> Cells:
        raise RuntimeError(f"a guest without a machine has no RAM: {length} bytes at {addr:#x} as {fmt}")

    def on_reopen(self, reopen: Callable[[], None]) -> None:
        """No view was ever handed out."""

    def read(self, addr: int, size: int) -> int:
        raise RuntimeError(f"a guest without a machine has no registers: {size} bytes at {addr:#x}")

    def write(self, addr: int, size: int, value: int) -> None:
        raise RuntimeError(f"a guest without a machine has no registers: {value:#x} to {size} bytes at {addr:#x}")

    def mask(self, line: int) -> None:
        """There are no lines."""

    def unmask(self, line: int) -> None:
        """There are no lines."""


class LoopPlatform:
    """A `guest.platform.Platform` that has the time, chance and turns, and no hardware.

    Attributes:
        cpu: whom `wake` gets a turn.
    """

    def __init__(self, loop: Loop, rng: random.Random, cmdline: str) -> None:
        self._loop = loop
        self.memory = self.mmio = self.irq = _Nothing()
        self.xen = None
        self.rng = rng
        self.cmdline = cmdline
        self.now: Callable[[], int] = loop.clock.now
        self.cpu: Guest | None = None

    def wake(self) -> None:
        """Give the guest a turn."""
        if self.cpu is not None:
            self._loop.kick_cpu(self.cpu)


class PartialGuest(Guest):
    """A guest without a machine.

    Args:
        loop: gives it its turns and the time.
        name: for people; also its host name.
        rng: decides what is random in it.
        words: settings, as on a guest's command line ("net.forwarding=1 net.hosts=peer@10.0.0.1"), and `-ip6`.
        console: told of every line that it logs or prints; None for nobody.

    Raises ValueError for words that cannot be, or that ask for a boot (`-dhcp`, `-ipaddr`, `-s`, …).
    """

    def __init__(
        self,
        loop: Loop,
        *,
        name: str,
        rng: random.Random,
        words: str = "",
        console: Callable[[str], None] | None = None,
    ) -> None:
        options = parse(words)
        if options.start or options.dhcp or options.ipaddr or options.netmask or options.gateway:
            raise ValueError(f"{name}: {words!r} asks for a boot; plug wires in and start programs by calls")
        platform = LoopPlatform(loop, rng, words)
        super().__init__(platform, name=name, console=console)
        pool = DmaPool(platform.memory, 0, PAGE)
        self.services = Services.of(platform, pool, self.log.write)
        self.grid = DriverGrid()
        self._wires: list[DirectInterface] = []
        configure(self, options)
        software(self, options)
        self.stack.wake = platform.wake
        self.stage = 2
        self.booted = True
        platform.cpu = self
        loop.add_cpu(self)

    def plug(
        self, link: Link, *addresses: str, name: str | None = None, mac: bytes | None = None, mtu: int = 1500,
        bare: bool = False, up: bool = True,
    ) -> Interface:  # fmt: skip
        """Plug one end of a wire in; the interface, which is up unless `up` says otherwise.

        Args:
            addresses: its own, each with its network's length: "10.0.0.1/24". They are used at once, unchecked.
            name: eth0, eth1, … if not given.
            mac: 6 bytes; by chance, locally administered, if not given.
            mtu: bytes of the largest IP packet.
            bare: the wire carries IP packets without Ethernet headers, and the interface has no MAC address.

        Raises ValueError: a name that is taken, or an address that cannot be (AddressError); WireError: the end is
        taken.
        """
        if not bare:
            mac = mac or b"\x02" + self.platform.rng.randbytes(5)
        wire = DirectInterface(self.stack, link, name=name or f"eth{len(self._wires)}", mac=mac, mtu=mtu)
        self._wires.append(wire)
        for text in addresses:
            address, _, length = text.partition("/")
            wire.interface.add_address(address, int(length), check=False)
        if self.stack.default is None:
            self.stack.default = wire.interface
        if up:
            wire.interface.set_up()
        return wire.interface

    def route(self, gateway: str, network: str | None = None) -> None:
        """Send what is for `network` ("10.0.0.0/8"; everything, of its family, if not given) by way of `gateway`.

        Raises AddressError.
        """
        if network is None:
            network = "0.0.0.0/0" if is_v4(parse_address(gateway)) else "::/0"
        address, _, length = network.partition("/")
        self.stack.add_route(address, int(length), gateway)

    @property
    def networks(self) -> list[Prefix]:
        """The own addresses with their networks, without the loopback's."""
        return [
            prefix
            for interface in self.stack.interfaces
            if interface is not self.stack.loopback
            for prefix in interface.addresses
        ]

    def close(self) -> None:
        """Unwind the programs and pull the plugs. Harmless when done before."""
        super().close()
        for wire in self._wires:
            wire.close()
        self.stack.wake = None
