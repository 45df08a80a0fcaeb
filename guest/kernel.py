"""The guest's kernel: what the machine sees as its CPU, and what everything in the guest hangs off.

    platform ── Guest ─┬─ services   timers, deferred work, interrupts, DMA pages
                       ├─ devices    what the drivers found, in probe order
                       ├─ fes        front ends eth0, eth1, …        ── ni, outlets
                       ├─ stack      the IP stack, with the loopback ── resolver, dhcp
                       └─ scheduler  init and the programs

Promises:
- There is no state outside the object: any number of guests live in one Python process.
- The first turn is stage 1 of the boot, the second stage 2 (guest/boot.py); from then on a turn is: due timers,
  deferred work, the stack's timers, and one slice for each ready process.
- An exception in the kernel is a panic: it is logged, kept in `panic`, and halts this guest with status 70. None
  reaches the machine.
- `close` unwinds programs, outlets, the interface and the drivers, and names in `leaks` what did not come back.

Only the thread in which the guest booted may use it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

from guest import boot
from guest.apps import programs
from guest.apps.env import Env, Program
from guest.config import GuestConfig
from guest.drivers.loopback import Loopback
from guest.drivers.registry import DriverGrid
from guest.fe import FrontEnd
from guest.files import Folder, RamFolder
from guest.log import BootLog, describe
from guest.net.device import NetDevice
from guest.net.dns import Resolver
from guest.net.stack import Stack
from guest.ni import NetworkInterface
from guest.ol import Outlets
from guest.platform import Platform
from guest.services import Services
from guest.stdlib.current import CURRENT
from guest.sys.calls import Calls
from guest.sys.scheduler import EX_SOFTWARE, Process, Scheduler

if TYPE_CHECKING:
    from guest.net.dhcp_service import DhcpService
    from guest.stdlib.network import Network
    from guest.terminal import Terminal


class Guest:
    """A guest that boots on `platform`; a `hw.loop.Cpu`.

    Args:
        platform: the machine.
        name: for people.
        console: told of every line of the log and of the programs' output; None for nobody.
        config: rings, MTU and TCP's values; `net.…` words on the command line go over it.

    Attributes:
        stage: stages of the boot that are over: 0, 1 or 2.
        booted: whether init is running.
        halted, exit_status: set by `halt`.
        log: the boot log (`lines`) and what programs printed (`output`).
        programs: what `-s` and `spawn` find by name; more may be added.
        files: the folder that programs see; in memory unless the workbench puts another in its place.
        terminal: what a shell without arguments reads, where there is one.
        config: what the guest runs with, from stage 1 on including the command line's.
        mtu_limit: the MTU that eth0 may have at most, where one was given.
        hostname: the name, or what the DHCP server calls it.
        services, grid, lo, stack, resolver, scheduler, calls, outlets: made by stage 1, as are the following.
        devices: the network devices that the drivers found.
        fes: the front ends, by index.
        ni: the network interface at FE/0, once `setup` has made it.
        dhcp_clients: one for each interface that looks for its address; see `dhcp`.
        calls: the system calls.
        lookalikes: makes `socket` and `select` for callers that are no guest processes; None for the guest's own.
        init: process 1.
        panic: the exception that killed the kernel, if one did.
        leaks: what `close` found not given back, one line each.
    """

    services: Services
    grid: DriverGrid
    lo: Loopback
    stack: Stack
    resolver: Resolver
    scheduler: Scheduler
    calls: Calls
    outlets: Outlets

    def __init__(
        self,
        platform: Platform,
        *,
        name: str = "guest",
        console: Callable[[str], None] | None = None,
        config: GuestConfig | None = None,
    ) -> None:
        self.platform = platform
        self.name = name
        self.hostname = name
        self.config = config or GuestConfig()
        self.mtu_limit = None if config is None else config.mtu
        self.log = BootLog(platform.now, console)
        self.programs: dict[str, Program] = programs()
        self.files: Folder = RamFolder(platform.now)
        self.terminal: Terminal | None = None
        self.devices: list[NetDevice] = []
        self.fes: list[FrontEnd] = []
        self.ni: NetworkInterface | None = None
        self.dhcp_clients: list[DhcpService] = []
        self.init: Process | None = None
        self.stage = 0
        self.booted = False
        self.halted = False
        self.exit_status = 0
        self.panic: Exception | None = None
        self.leaks: list[str] = []
        self.lookalikes: Callable[[str], ModuleType] | None = None
        self._closed = False

    # -- the machine's side --------------------------------------------------------------------------------------

    def interrupt(self, line: int) -> None:
        """An interrupt line is high."""
        if self.halted or self.stage == 0:
            self.platform.irq.mask(line)  # nobody will lower it
            return
        try:
            self.services.irqs.dispatch(line)
        except Exception as error:
            self._panic(error)

    def run(self) -> bool:
        """Do what is due now; whether more is waiting."""
        if self.halted:
            return False
        try:
            if self.stage < 2:
                boot.STAGES[self.stage](self)
                self.stage += 1
                return not self.halted
            services = self.services
            services.timers.run_due()
            services.deferred.run()
            due = self.stack.poll_at()
            if due is not None and due <= self.platform.now():
                self.stack.poll()
            more = self.scheduler.run()
        except Exception as error:
            self._panic(error)
            return False
        return not self.halted and (more or len(services.deferred) > 0)

    def next_deadline(self) -> int | None:
        """When `run` has work again without being woken, or None."""
        if self.halted or self.stage < 2:
            return None
        if self.scheduler.runnable or len(self.services.deferred):
            return self.platform.now()
        timer = self.services.timers.next_deadline()
        stack = self.stack.poll_at()
        if timer is None or stack is None:
            return stack if timer is None else timer
        return min(timer, stack)

    @property
    def dhcp(self) -> DhcpService | None:
        """The DHCP client of eth0, or None where it has none."""
        own = None if self.ni is None else self.ni.interface
        return next((client for client in self.dhcp_clients if client.interface is own), None)

    # -- running programs ----------------------------------------------------------------------------------------

    def spawn(self, program: Program | str, *args: Any) -> Process:
        """Start `program`, a function `main(env, argv)` or a name in `programs`, with `args` as its argv.

        Raises KeyError for an unknown name, RuntimeError before stage 2, after the guest has halted, and in any thread
        but the guest's.
        """
        if self.stage < 1:
            raise RuntimeError(f"{self.name} has not booted yet")
        if isinstance(program, str):
            name, main = program, self.programs[program]
        else:
            name, main = getattr(program, "__name__", "program"), program
        env = Env(self)

        def run() -> int | None:
            CURRENT.set(lambda: self.network)
            return main(env, list(args))

        process = self.scheduler.spawn(run, name)
        env.process = process
        return process

    @cached_property
    def network(self) -> Network:
        """What guest.socket and guest.select stand on in this guest's processes."""
        from guest.stdlib.network import Network  # noqa: PLC0415 - only programs that use the look-alikes need it

        return Network(self.calls, self.platform.now)

    @cached_property
    def socket(self) -> Any:
        """The standard library's module `socket` over this guest, for whoever may call it."""
        return self._lookalike("socket")

    @cached_property
    def select(self) -> Any:
        """The standard library's module `select` over this guest, likewise."""
        return self._lookalike("select")

    def _lookalike(self, name: str) -> Any:
        from guest.stdlib.modules import guest_module  # noqa: PLC0415 - likewise

        return guest_module(name, lambda: self.network) if self.lookalikes is None else self.lookalikes(name)

    def halt(self, status: int = 0) -> None:
        """Stop for good; what runs now ends its slice. The first call's status counts."""
        if self.halted:
            return
        self.halted = True
        self.exit_status = status
        self.log.write(f"halted with status {status}")
        if self.stage >= 1:
            self.scheduler.stop()

    def counters(self) -> dict[str, Counter[str]]:
        """What every layer counted, by layer, from the bottom up."""
        layers: dict[str, Counter[str]] = {}
        if self.stage == 0:
            return layers
        layers["irq"] = self.services.irqs.counters
        for fe in self.fes:
            layers[f"{fe.name} driver"] = fe.device.counters
            layers[f"{fe.name} front end"] = fe.counters
        layers["lo driver"] = self.lo.counters
        layers.update(self.stack.counters)
        for client in self.dhcp_clients:
            layers[f"{client.interface.name} dhcp"] = client.counters
        layers["dns"] = self.resolver.counters
        for outlet in self.outlets:
            layers[f"outlet {outlet.number}"] = outlet.counters
        layers["calls"] = self.calls.counters
        layers["scheduler"] = self.scheduler.counters
        return layers

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Unwind everything; harmless when done before. Raises RuntimeError in another thread or inside a process."""
        if self._closed:
            return
        if self.stage >= 1:
            self.scheduler.close()
        self._closed = True
        self.halted = True
        if self.stage >= 1:
            boot.shut_down(self)
        else:
            for device in self.devices:  # stage 1 has failed half-way
                device.close()

    def _panic(self, error: Exception) -> None:
        self.panic = error
        self.log.write(f"panic: {describe(error)}")
        self.halt(EX_SOFTWARE)
