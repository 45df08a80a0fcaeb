"""The boot, in two stages, as LING orders them; each step leaves a line in the log.

Stage 1: memory, events, clock, drivers, the IP stack with its loopback, the resolver, and last the front ends, eth0 and
on until the first gap. After it front ends run and there is no network interface. The settings on the command line
(`net.rx_ring=64`, `-ip6`) count from here on; a mistake in it is reported in stage 2, where the guest then halts.
Stage 2: the scheduler starts, and process 1, init, gets the command line (guest/init.py).

The stages are two turns, with the machine's interrupts between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from guest.cmdline import BootOptions, CommandLineError, parse
from guest.dma import PAGE, DmaPool
from guest.drivers.loopback import Loopback
from guest.drivers.registry import probe_devices, standard_grid
from guest.fe import FrontEnd
from guest.init import init
from guest.names import calls_init, resolver_init
from guest.net.address import format_address, format_mac
from guest.net.config import NetConfig
from guest.net.interface import Interface
from guest.net.pbuf import PacketBuffer
from guest.net.stack import Stack
from guest.ol import Outlets
from guest.services import Services
from guest.sys.scheduler import Scheduler

if TYPE_CHECKING:
    from guest.kernel import Guest

EX_CONFIG = 2  # the command line is wrong, or asks for what is not there
KERNEL_IMAGE = 1 << 20  # RAM below this is the kernel's own, as a loader would leave it


def stage1(guest: Guest) -> None:
    """From power-on to running front ends."""
    platform = guest.platform
    log = guest.log.write
    memory = platform.memory
    end = memory.base + memory.size
    pool = DmaPool(memory, min(memory.base + KERNEL_IMAGE, end - PAGE), end)
    log(f"stage 1: memory: {memory.size >> 10} KiB at {memory.base:#x}, {pool.size // PAGE} pages for DMA")
    guest.services = services = Services.of(platform, pool, log)
    log("stage 1: events: interrupts and deferred work")
    log("stage 1: clock: timers run")
    options = _options(guest)
    configure(guest, options)
    guest.grid = standard_grid(guest.config.rx_ring, guest.config.tx_ring)
    guest.devices = probe_devices(services, guest.grid)
    log(f"stage 1: drivers: {len(guest.devices)} network devices")
    software(guest, options)
    log("stage 1: stack: lo is up")
    for index, device in enumerate(guest.devices):
        guest.fes.append(FrontEnd(index, device, log))
        log(f"eth{index}: MAC {format_mac(device.mac)}, MTU {device.mtu}")
    log(f"stage 1: front ends: {len(guest.fes)}")


def software(guest: Guest, options: BootOptions) -> None:
    """What needs no hardware, over the services and the driver grid: stack, resolver, scheduler, system calls."""
    guest.stack = _stack_init(guest, options)
    guest.resolver = resolver_init(guest, options.settings)
    guest.scheduler = Scheduler(guest.services.timers, guest.platform.wake, guest.log.write)
    guest.calls = calls_init(guest)
    guest.outlets = Outlets(guest.fes, guest.scheduler, guest.log.write)


def _options(guest: Guest) -> BootOptions:
    """The command line; none at all where it has a mistake."""
    try:
        return parse(guest.platform.cmdline)
    except CommandLineError:
        return BootOptions()


def configure(guest: Guest, options: BootOptions) -> None:
    """The guest's settings: those it was made with, and over them those of the command line."""
    values = options.settings.values
    if "mtu" in values:
        guest.mtu_limit = values["mtu"]
    guest.config = options.settings.over(guest.config)


def _stack_init(guest: Guest, options: BootOptions) -> Stack:
    """The stack, its loopback carried by the device `lo`, and its events told to the log."""
    config = NetConfig(
        ipv6=options.ip6,
        forwarding=bool(guest.config.forwarding),
        membership=bool(guest.config.membership),
        tcp=guest.config.tcp(),
    )
    stack = Stack(now=guest.platform.now, rng=guest.platform.rng, config=config, log=guest.log.write)
    if options.settings.guard:
        from guest.net.guard import Guard  # noqa: PLC0415 - without rules it is not loaded

        stack.guard = guard = Guard([options.settings.guard])
        guest.log.write(f"stage 1: guard: {len(guard)} rules")
    guest.lo = lo = Loopback(guest.services)
    guest.grid.add_link(lo)
    lo.receiver = stack.loopback.input

    def through_lo(packets: Sequence[PacketBuffer]) -> None:
        lo.transmit(packets)

    def tell(event: str, interface: Interface, detail: object) -> None:
        if event == "conflict" and isinstance(detail, tuple):
            detail = f"{format_address(detail[0])} is claimed by {format_mac(detail[1])}"
        guest.log.write(f"{event}: {interface.name} {detail}")
        if event == "dns":
            guest.resolver.set_servers("routers", stack.dns_servers)

    stack.loopback.link.transmit = through_lo
    stack.loopback.queue = lo
    stack.subscribe(tell)
    return stack


def stage2(guest: Guest) -> None:
    """From running front ends to init."""
    log = guest.log.write
    words = guest.platform.cmdline
    log("stage 2: scheduler")
    log(f"stage 2: command line: {words}")
    try:
        options = parse(words)
    except CommandLineError as error:
        log(f"command line: {error}")
        guest.halt(EX_CONFIG)
        return
    guest.init = process = guest.scheduler.spawn(lambda: init(guest, options), "init")
    guest.scheduler.register("init", process)
    log(f"stage 2: init is process {process.pid}")


STAGES: tuple[Callable[[Guest], None], ...] = (stage1, stage2)


def shut_down(guest: Guest) -> None:
    """The boot backwards, after the processes have been unwound; what does not come back is named in `leaks`."""
    leaks = guest.leaks
    leaks += [f"{outlet} outlived its owner" for outlet in guest.outlets]
    guest.outlets.close()
    guest.calls.fds.close_all()
    for dhcp in guest.dhcp_clients:
        dhcp.close()
    guest.resolver.close()
    leaks += [f"UDP port {end.local[1]} is still bound" for end in guest.stack.udp.ports]
    if guest.ni is not None:
        guest.ni.close()
    for fe in guest.fes:
        fe.close()
    for device in [*guest.devices, guest.lo]:
        device.close()
    pool = guest.services.dma
    if pool.mapped_bytes:
        leaks.append(f"{pool.mapped_bytes} bytes are still mapped for devices")
    if pool.free_bytes != pool.size:
        leaks.append(f"{pool.size - pool.free_bytes} bytes of DMA pages were not freed")
    if len(guest.scheduler):
        leaks.append(f"{len(guest.scheduler)} processes live on")
    for leak in leaks:
        guest.log.write(f"leak: {leak}")
