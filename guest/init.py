"""Process 1 and the boot process: network set-up, the messages between them, and the programs to start.

    boot                        init
     │ setup(): status callback ─→ "netif_up"
     │ blocked                     │
     │ ←─────────── "start_em" ────┘
     │ starts the programs, ends
     └─→ "init running"            │ waits for the programs to end

Promises:
- `setup` is called exactly when the command line has a network option; without one nothing waits.
- No program starts before `netif_up` has reached init, when the guest is networked.
- When all programs of the command line have ended, the guest halts with the status of the last one that ended with
  another than 0. Without programs it runs for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.apps import EX_NOT_FOUND
from guest.cmdline import BootOptions
from guest.fe import FrontEnd
from guest.net.address import AddressError, netmask_length
from guest.net.device import IFF_UP
from guest.net.interface import Interface
from guest.ni import NetworkInterface
from guest.sys.scheduler import Process

if TYPE_CHECKING:
    from guest.kernel import Guest

EX_CONFIG = 2  # what the command line asks for cannot be had
DRAIN_SLICES = 64
ANY = "0.0.0.0"


def init(guest: Guest, options: BootOptions) -> int:
    """Process 1: passes `netif_up` on, and sees the programs end."""
    scheduler = guest.scheduler
    log = guest.log.write
    boot = scheduler.spawn(lambda: boot_process(guest, options), "boot")
    released = False
    running = 0
    status = 0
    while True:
        match scheduler.receive():
            case "netif_up":
                log("init: netif_up")
                if not released:
                    released = True
                    scheduler.send(boot, "start_em")
            case ("started", int(count)):
                running = count
            case ("ended", str(name), int(ended)):
                log(f"init: {name} ended with status {ended}")
                status = ended or status
                running -= 1
                if running == 0:
                    guest.halt(status)


def boot_process(guest: Guest, options: BootOptions) -> int:
    """Sets up the network, waits to be released, starts the programs."""
    scheduler = guest.scheduler
    if options.networked and setup(guest, options):
        scheduler.receive(match=lambda message: message == "start_em")
        guest.log.write("boot: start_em")
    if guest.halted:
        return EX_CONFIG
    init_process = scheduler.whereis("init")
    if init_process is not None and options.start:
        scheduler.send(init_process, ("started", len(options.start)))
        for program in options.start:
            _start(guest, init_process, program.name, program.args)
    guest.booted = True
    guest.log.write("init running")
    return 0


def _start(guest: Guest, init_process: Process, name: str, args: tuple[str, ...]) -> None:
    if name not in guest.programs:
        guest.log.write(f"boot: there is no program {name}; there are {', '.join(sorted(guest.programs))}")
        guest.scheduler.send(init_process, ("ended", name, EX_NOT_FOUND))
        return
    process = guest.spawn(name, *args)
    guest.log.write(f"boot: started {name}[{process.pid}]")
    process.on_exit.append(
        lambda ended: _report(guest, init_process, f"{name}[{ended.pid}]", ended.exit_status or 0)
    )


def _report(guest: Guest, init_process: Process, name: str, status: int) -> None:
    guest.scheduler.send(init_process, ("ended", name, status))


def setup(guest: Guest, options: BootOptions) -> bool:
    """Make the network interface at FE/0: add it, set its status callback, make it the default, set it up.

    Returns False when there is no front end (the options are ignored, with a line in the log) or when something is
    asked for that this version has not (the guest halts).
    """
    log = guest.log.write
    if not guest.fes:
        log("setup: no network card was found; the network options are ignored")
        return False
    for wanted, what in ((options.dhcp, "-dhcp: the DHCP client"), (options.ip6, "-ip6: IPv6")):
        if wanted:
            log(f"setup: {what} is not available in this version")
            guest.halt(EX_CONFIG)
            return False
    fe = guest.fes[0]
    for option, value in (("-ipaddr", options.ipaddr), ("-netmask", options.netmask), ("-gateway", options.gateway)):
        if value is None:
            log(f"setup: no {option}, it is {ANY}")
    address, netmask, gateway = options.ipaddr or ANY, options.netmask or ANY, options.gateway or ANY
    _drain(guest, fe)
    guest.ni = NetworkInterface(fe, guest.stack)
    interface = guest.ni.interface
    try:
        if address != ANY:
            interface.add_address(address, netmask_length(netmask))
    except AddressError as error:
        log(f"setup: {error}")
        guest.halt(EX_CONFIG)
        return False
    log(f"setup: interface {interface.name} added at FE/0, address {address}, netmask {netmask}, gateway {gateway}")
    interface.status_callback = lambda changed: _status(guest, changed)
    log(f"setup: status callback of {interface.name} set")
    guest.stack.default = interface
    if options.gateway and options.ipaddr and netmask == ANY:
        log("setup: with that netmask every address is a neighbour; the gateway is not used")
    elif gateway != ANY:
        guest.stack.add_route(ANY, 0, gateway, interface)
    log(f"setup: {interface.name} is the default interface")
    log(f"setup: setting {interface.name} up")
    interface.set_up()
    return True


def _drain(guest: Guest, fe: FrontEnd) -> None:
    """Let what has arrived so far pass the front end, so that it cannot reach an interface that is made now."""
    poll = fe.device.poll
    for _ in range(DRAIN_SLICES):
        if not poll():
            return
    guest.services.deferred.add(poll)


def _status(guest: Guest, interface: Interface) -> None:
    """The status callback: mails `netif_up` to the process registered as init."""
    if not interface.flags & IFF_UP:
        guest.log.write(f"status: {interface.name} is down")
        return
    process = guest.scheduler.whereis("init")
    if process is not None:
        guest.log.write(f"status: {interface.name} is up, netif_up to init")
        guest.scheduler.send(process, "netif_up")
