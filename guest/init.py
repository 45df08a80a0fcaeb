"""Process 1 and the boot process: network set-up, the messages between them, and the programs to start.

    boot                        init
     │ setup(): status callback ─→ "netif_up", with -dhcp once there is a lease
     │ blocked                     │
     │ ←─────────── "start_em" ────┘
     │ starts the programs, ends
     └─→ "init running"            │ waits for the programs to end

Promises:
- `setup` is called exactly when the command line has a network option; without one nothing waits.
- No program starts before `netif_up` has reached init, when the guest is networked; with `-dhcp` that is after the
  server's ACK, however long it takes, unless `-dhcp-timeout` says how long to wait. Then the boot goes on without an
  address, and the client goes on looking for one.
- When all programs of the command line have ended, the guest halts with the status of the last one that stands there.
  Without programs it runs for ever.
- Who waits for a DHCP server in vain is told so, and what can be done.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from guest.apps import EX_NOT_FOUND
from guest.cmdline import BootOptions
from guest.fe import FrontEnd
from guest.names import start_dhcp
from guest.net.address import AddressError, netmask_length
from guest.net.config import SECOND
from guest.net.interface import Interface
from guest.ni import NetworkInterface
from guest.sys.scheduler import Process

if TYPE_CHECKING:
    from guest.kernel import Guest

EX_CONFIG = 2  # what the command line asks for cannot be had
DRAIN_SLICES = 64
PATIENCE = 10 * SECOND  # of who waits for a DHCP server, until it is said
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
            case "dhcp_timeout":  # sent once, and only while the boot waits
                log("init: no address yet; the programs start without")
                released = True
                scheduler.send(boot, "start_em")
            case ("started", int(count)):
                running = count
            case ("ended", str(name), int(ended), bool(last)):
                log(f"init: {name} ended with status {ended}")
                status = ended if last else status
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
            _start(guest, init_process, program.name, program.args, program is options.start[-1])
    guest.booted = True
    guest.log.write("init running")
    return 0


def _start(guest: Guest, init_process: Process, name: str, args: tuple[str, ...], last: bool) -> None:
    if name not in guest.programs:
        guest.log.write(f"boot: there is no program {name}; there are {', '.join(sorted(guest.programs))}")
        guest.scheduler.send(init_process, ("ended", name, EX_NOT_FOUND, last))
        return
    process = guest.spawn(name, *args)
    guest.log.write(f"boot: started {name}[{process.pid}]")
    process.on_exit.append(
        lambda ended: _report(guest, init_process, f"{name}[{ended.pid}]", ended.exit_status or 0, last)
    )


def _report(guest: Guest, init_process: Process, name: str, status: int, last: bool) -> None:
    guest.scheduler.send(init_process, ("ended", name, status, last))


def setup(guest: Guest, options: BootOptions) -> bool:
    """Make the network interface at FE/0: add it, set its status callback, make it the default; then start DHCP, or
    give it its address and set it up.

    Returns False when there is no front end (the options are ignored, with a line in the log) or when an option cannot
    be used (the guest halts).
    """
    log = guest.log.write
    if not guest.fes:
        log("setup: no network card was found; the network options are ignored")
        return False
    address, netmask, gateway = _static(guest, options)
    interface = _add_interface(guest)
    try:
        if address != ANY:
            interface.add_address(address, netmask_length(netmask))
    except AddressError as error:
        log(f"setup: {error}")
        guest.halt(EX_CONFIG)
        return False
    what = "address by DHCP" if options.dhcp else f"address {address}, netmask {netmask}, gateway {gateway}"
    log(f"setup: interface {interface.name} added at FE/0, {what}")
    interface.status_callback = Status(guest, options.dhcp)
    log(f"setup: status callback of {interface.name} set")
    guest.stack.default = interface
    if ANY not in (gateway, address) and netmask == ANY:
        log("setup: with that netmask every address is a neighbour; the gateway is not used")
    elif gateway != ANY:
        guest.stack.add_route(ANY, 0, gateway, interface)
    log(f"setup: {interface.name} is the default interface")
    if options.dhcp:
        return _start_dhcp(guest, interface, options.dhcp_timeout)
    log(f"setup: setting {interface.name} up")
    interface.set_up()
    return True


def plug_in(guest: Guest) -> Interface:
    """The network interface at FE/0, made now where the boot had no option that asked for it: down, without address.

    Raises OSError: ENODEV without a card.
    """
    if guest.ni is not None:
        return guest.ni.interface
    if not guest.fes:
        raise OSError(errno.ENODEV, "there is no network card")
    guest.stack.default = interface = _add_interface(guest)
    guest.log.write(f"interface {interface.name} added at FE/0")
    return interface


def _add_interface(guest: Guest) -> Interface:
    fe = guest.fes[0]
    _drain(guest, fe)
    guest.ni = NetworkInterface(fe, guest.stack)
    interface = guest.ni.interface
    if guest.mtu_limit is not None and guest.mtu_limit < interface.mtu:
        interface.set_mtu(guest.mtu_limit)
    return interface


def _static(guest: Guest, options: BootOptions) -> tuple[str, str, str]:
    """Address, netmask and gateway as the command line has them; none of them with -dhcp, which wins."""
    given = (("-ipaddr", options.ipaddr), ("-netmask", options.netmask), ("-gateway", options.gateway))
    for option, value in given:
        if options.dhcp and value is not None:
            guest.log.write(f"setup: {option} {value} is ignored: -dhcp wins")
        elif not options.dhcp and value is None:
            guest.log.write(f"setup: no {option}, it is {ANY}")
    if options.dhcp:
        return ANY, ANY, ANY
    return options.ipaddr or ANY, options.netmask or ANY, options.gateway or ANY


def _start_dhcp(guest: Guest, interface: Interface, timeout: int | None) -> bool:
    """Set the interface up and look for a server; the status callback tells init when there is a lease."""
    log = guest.log.write
    log(f"setup: starting DHCP on {interface.name}")
    interface.set_up()
    error = start_dhcp(guest, interface)
    if error:
        log(f"setup: DHCP cannot be started: {os.strerror(error)}")
        guest.halt(EX_CONFIG)
        return False
    guest.services.timers.after(timeout or PATIENCE, lambda: _late(guest, interface, timeout))
    return True


def _late(guest: Guest, interface: Interface, timeout: int | None) -> None:
    """The time for DHCP is up, or without a limit it is time to say what is going on."""
    process = guest.scheduler.whereis("init")
    if not guest.booted and (guest.dhcp is None or not guest.dhcp.bound) and process is not None:
        waited = f"dhcp: {interface.name}: no lease after {(timeout or PATIENCE) / SECOND:g} s; still looking"
        if timeout is None:
            hint = "is there a DHCP server on the wire? -dhcp-timeout S goes on without, -ipaddr needs none"
            guest.log.write(f"{waited}: {hint}")
            return
        guest.log.write(waited)
        guest.scheduler.send(process, "dhcp_timeout")


def _drain(guest: Guest, fe: FrontEnd) -> None:
    """Let what has arrived so far pass the front end, so that it cannot reach an interface that is made now."""
    poll = fe.device.poll
    for _ in range(DRAIN_SLICES):
        if not poll():
            return
    guest.services.deferred.add(poll)


class Status:
    """The status callback: mails `netif_up` to the process registered as init, once each time the interface comes up.

    Args:
        guest: whose interface it is.
        dhcp: it is up only while there is a lease.
    """

    def __init__(self, guest: Guest, dhcp: bool) -> None:
        self._guest = guest
        self._dhcp = dhcp
        self._told = False

    def __call__(self, interface: Interface) -> None:
        """The interface went up or down, or its addresses changed."""
        guest = self._guest
        leased = not self._dhcp or (guest.dhcp is not None and guest.dhcp.bound)
        ready = interface.is_up and leased
        if ready == self._told:
            return
        self._told = ready
        if not ready:
            guest.log.write(f"status: {interface.name} is down" + (", without a lease" if interface.is_up else ""))
            return
        process = guest.scheduler.whereis("init")
        if process is not None:
            guest.log.write(f"status: {interface.name} is up, netif_up to init")
            guest.scheduler.send(process, "netif_up")
