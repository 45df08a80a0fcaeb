"""From a board to a running thing: loop, machines, guests, hubs, wires, captures.

Promises:
- Everything that can be wrong is checked before a wire is opened; a wire that fails closes those opened before it.
- A `Rig` belongs to the thread that made it: guest processes run there and nowhere else.
- `close` leaves nothing behind: processes unwound, devices reset, wires and captures closed.

Sections: `check_guests`, `Rig`: building, running, looking in, closing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from guest.apps import programs
from guest.cmdline import BootOptions, CommandLineError, parse
from guest.kernel import Guest
from hw.clock import RealClock, VirtualClock
from hw.host_files import HostFiles
from hw.loop import Loop
from hw.machine import Machine, chance
from hw.wire.cable import cable
from hw.wire.hub import Hub
from hw.wire.link import Link
from hw.xen.hypervisor import Hypervisor
from vring.config import Board, ConfigError, GuestSpec, NicSpec, WireSpec

if TYPE_CHECKING:
    import random

    from guest.net.interface import Interface
    from hw.wire.pcap import PcapFile
    from vring.partial import PartialGuest
    from vring.share import HostFolder
    from vring.simnet.net import SimNet
    from vring.trace.flow import Passage, Tracer
    from vring.usernet.gateway import UserNet
    from vring.view.queues import Snapshot


def check_guests(board: Board) -> list[BootOptions]:
    """What each guest's command line says. Raises ConfigError for a mistake in one, or a program that is not there."""
    known = programs()
    options = []
    for guest in board.guests:
        try:
            options.append(parse(guest.words))
        except CommandLineError as error:
            raise ConfigError(f"{board.where(guest)}: command line: {error}") from None
        for program in options[-1].start:
            if program.name not in known:
                raise ConfigError(
                    f"{board.where(guest)}: command line: there is no program {program.name!r}; programs are "
                    f"{', '.join(sorted(known))}"
                )
    return options


def _after_stage1(guest: Guest, then: Callable[[], None]) -> None:
    """Call `then` right after the first turn of `guest` that got through stage 1."""
    run = guest.run

    def turn() -> bool:
        more = run()
        if guest.stage >= 1:
            del guest.run  # the method shows again
            then()
        return more

    guest.run = turn  # type: ignore[method-assign]


class Rig:
    """A board, built.

    Args:
        board: what to build.
        pcap: write what passes every NIC to this pcapng file.
        console: told of every line that a guest logs or prints; with several guests the line names its guest.
        trace: told of every stage that a frame passes; None costs nothing.
        share: a folder of the host that the guests' programs see; None for one in memory for each.

    Attributes:
        loop, clock, machines, guests, hubs: what was built; hubs by name. Partial guests have no machine.
        user_nets: what is behind the user wires, by guest and card, such as "guest.eth0".
        sims: the simulated outsides, by how their wires are written: "sim", "sim:loss=1%".

    Raises ConfigError for a board that cannot be, `hw.wire.link.WireError` for a wire that cannot be made.
    """

    def __init__(
        self,
        board: Board,
        *,
        pcap: str | Path | None = None,
        console: Callable[[str, str], None] | None = None,
        trace: Callable[[Passage], None] | None = None,
        share: str | Path | None = None,
    ) -> None:
        board.check()
        options = check_guests(board)
        self.board = board
        self.clock = VirtualClock() if board.clock == "virtual" else RealClock()
        self.loop = Loop(self.clock)
        self.machines: list[Machine] = []
        self.guests: list[Guest] = []
        self._booting: list[tuple[Machine, Guest]] = []
        self.hubs: dict[str, Hub] = {}
        self.user_nets: dict[str, UserNet] = {}
        self.sims: dict[str, SimNet] = {}
        self._console = console
        self._links: list[Link] = []
        self._capture: PcapFile | None = None
        self._folder: HostFolder | None = None
        self._trace = None if trace is None else self._open_trace(trace)
        # One host for all guests of the board that have Xen cards, so that they are domains 1, 2, …
        uses_xen = any(nic.model == "xen" for guest in board.guests for nic in guest.nics)
        self._xen = Hypervisor(self.loop) if uses_xen else None
        self._starters: list[Guest] = []
        self._powered = False
        self._closed = False
        try:
            if pcap is not None:
                self._capture = self._open_capture(pcap)
            if share is not None:
                self._folder = self._open_folder(share)
            for spec, said in zip(board.guests, options, strict=True):
                guest = self._add_partial(spec) if spec.partial else self._add_guest(spec, console)
                if said.start:
                    self._starters.append(guest)
        except BaseException:
            self.close()
            raise

    # -- building ------------------------------------------------------------------------------------------------

    def _open_capture(self, path: str | Path) -> PcapFile:
        from hw.wire.pcap import PcapFile  # noqa: PLC0415  (loads the pcapng writer)

        try:
            return PcapFile(path, self.clock)
        except OSError as error:
            raise ConfigError(f"the capture file {path} cannot be written: {error.strerror}") from None

    def _open_folder(self, path: str | Path) -> HostFolder:
        from vring.share import HostFolder  # noqa: PLC0415  (few boards are given one)

        try:
            return HostFolder(path)
        except OSError as error:
            raise ConfigError(f"the folder {path} cannot be shared: {error.strerror}") from None

    def _open_trace(self, tell: Callable[[Passage], None]) -> Tracer:
        from vring.trace.flow import Tracer  # noqa: PLC0415  (few boots are watched)

        return Tracer(self.clock.now, tell)

    def _add_guest(self, spec: GuestSpec, console: Callable[[str, str], None] | None) -> Guest:
        machine = Machine(
            self.loop,
            name=spec.name,
            memory_size=spec.memory,
            cmdline=spec.words,
            seed=self.board.chosen_seed,
            xen=self._xen if any(nic.model == "xen" for nic in spec.nics) else None,
        )
        self.machines.append(machine)
        # A guest finds its Xen cards last, and so its interfaces are numbered.
        found = sorted(range(len(spec.nics)), key=lambda slot: spec.nics[slot].model == "xen")
        for number, slot in enumerate(found):
            self._add_nic(machine, spec.nics[slot], f"{spec.name}.eth{number}", self.board.where(spec, slot))
        write = None if console is None else lambda line: console(spec.name, line)
        guest = Guest(machine.platform, name=spec.name, console=write)
        self.guests.append(guest)
        self._booting.append((machine, guest))
        if self._folder is not None:
            guest.files = self._folder
        _after_stage1(guest, lambda: self._stage1_done(machine, guest))
        return guest

    def _add_partial(self, spec: GuestSpec) -> Guest:
        """A guest without a machine, with its wires plugged in."""
        from vring.partial import PartialGuest  # noqa: PLC0415  (few boards have one)

        console = self._console
        write = None if console is None else lambda line: console(spec.name, line)
        try:
            rng = self.random(f"partial guest {spec.name}")
            guest = PartialGuest(self.loop, name=spec.name, rng=rng, words=spec.words, console=write)
            self.guests.append(guest)
            guest.calls.host = HostFiles(self.loop)
            for slot, nic in enumerate(spec.nics):
                addresses = str(nic.options.get("address", "")).split()
                self.plug(guest, f"eth{slot}", nic.wire, *addresses, mac=nic.mac, mtu=int(nic.options.get("mtu", 1500)))
            if spec.gateway:
                guest.route(spec.gateway)
        except ValueError as error:
            raise ConfigError(f"{self.board.where(spec)}: {error}") from None
        return guest

    def random(self, purpose: str) -> random.Random:
        """A source of randomness for what belongs to no machine; the last machine's seed and name decide it."""
        return self.machines[-1].random(purpose) if self.machines else chance(self.board.chosen_seed, purpose)

    def plug(
        self, guest: PartialGuest, name: str, wire: WireSpec, *addresses: str, mac: bytes | None = None,
        mtu: int = 1500, up: bool = True,
    ) -> Interface:  # fmt: skip
        """Plug a wire into a guest without a machine, as its interface `name`; see `vring.partial.PartialGuest.plug`.

        Raises WireError, and ValueError as `PartialGuest.plug` does.
        """
        link = self.open_wire(wire, f"{guest.name}.{name}")
        return guest.plug(link, *addresses, name=name, mac=mac, mtu=mtu, bare=wire.kind == "tun", up=up)

    def _stage1_done(self, machine: Machine, guest: Guest) -> None:
        """The guest has its drivers and its stack, and no traffic yet."""
        guest.calls.host = HostFiles(self.loop)
        if self._trace is not None:
            self._trace.attach(machine, guest)

    def _add_nic(self, machine: Machine, nic: NicSpec, name: str, where: str) -> None:
        link = self.open_wire(nic.wire, name)
        options = {key: value for key, value in nic.options.items() if key != "mac"}
        try:
            if nic.model == "xen":
                machine.add_xen_vif(link, mac=nic.mac, options=options)
            elif nic.model == "vhost-user":
                machine.add_vhost_user(str(options.pop("socket")), mac=nic.mac, options=options)
            else:
                machine.add_virtio_net(link, mac=nic.mac, options=options)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None

    def open_wire(self, wire: WireSpec, name: str) -> Link:
        """The end of the wire that the NIC is plugged into, wrapped as the board says."""
        link = self._open(wire, name)
        self._links.append(link)
        if wire.impairments:
            from hw.wire.impair import ImpairedLink, parse_impairments  # noqa: PLC0415  (few boards need it)

            seed = f"{self.board.chosen_seed or 0}/{name}"
            link = ImpairedLink(link, self.loop, seed, **parse_impairments(wire.impairments))
            self._links[-1] = link  # it closes the one inside
        if wire.kind == "tun":
            return link  # what looks at frames would take its packets for some
        if self._capture is not None:
            link = self._links[-1] = self._capture.tap(link, name)
        if self._trace is not None:
            link = self._links[-1] = self._trace.tap(link, *name.split("."))
        return link

    def _open(self, wire: WireSpec, name: str) -> Link:
        if wire.kind == "hub":
            hub = self.hubs.get(wire.name)
            if hub is None:
                hub = self.hubs[wire.name] = Hub(self.loop, wire.name)
            return hub.port(name)
        if wire.kind in ("tap", "tun"):
            from hw.wire.tap import TapLink  # noqa: PLC0415  (Linux only)

            return TapLink(self.loop, wire.name, vnet_hdr=wire.vnet_hdr, tun=wire.kind == "tun")
        if wire.kind == "packet":
            from hw.wire.packet import PacketLink  # noqa: PLC0415  (Linux only)

            return PacketLink(self.loop, wire.name)
        if wire.kind == "user":
            return self._add_user_net(wire, name)
        if wire.kind == "stream":
            from hw.wire.stream import StreamLink  # noqa: PLC0415  (few boards have one; the same below)

            return StreamLink(self.loop, wire.name, server="server" in wire.options)
        if wire.kind == "dgram":
            from hw.wire.dgram import DatagramLink  # noqa: PLC0415

            return DatagramLink(self.loop, wire.name, wire.options[0].partition("=")[2])
        if wire.kind == "vde":
            from hw.wire.vde import VdeLink  # noqa: PLC0415

            return VdeLink(self.loop, wire.name)
        if wire.kind == "sim":
            return self._sim(wire).port(name)
        link = cable(self.loop)[0]
        link.name = f"none at {name}"
        return link

    def _add_user_net(self, wire: WireSpec, name: str) -> Link:
        from vring.usernet.gateway import UserNet  # noqa: PLC0415  (loads servers and the host's sockets)
        from vring.usernet.options import UserOptions  # noqa: PLC0415

        rng = self.random(f"user wire {name}")
        guest = name.partition(".")[0]

        def complain(line: str) -> None:
            if self._console is not None:
                self._console(guest, line)

        net = UserNet(self.loop, UserOptions.parse(wire.options), name=f"user at {name}", rng=rng, complain=complain)
        self.user_nets[name] = net
        return net.link

    def _sim(self, wire: WireSpec) -> SimNet:
        """The outside of a sim wire; those with the same options share one."""
        sim = self.sims.get(str(wire))
        if sim is None:
            from vring.simnet.net import SimNet  # noqa: PLC0415  (loads servers)
            from vring.simnet.options import SimOptions  # noqa: PLC0415

            options = SimOptions.parse(wire.options)
            sim = self.sims[str(wire)] = SimNet(self.loop, options, rng=self.random)
        return sim

    # -- running -------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Give every guest its first turn; harmless when they have had it."""
        if not self._powered:
            self._powered = True
            for machine, guest in self._booting:
                machine.power_on(guest)

    def done(self) -> bool:
        """Whether every guest that has start programs has halted; without such guests, whether all that boot have."""
        return all(guest.halted for guest in self._starters or [guest for _, guest in self._booting])

    @property
    def has_programs(self) -> bool:
        """Whether any guest has start programs, so that the board ends by itself."""
        return bool(self._starters)

    @property
    def exit_status(self) -> int:
        """The largest exit status of the guests."""
        return max(guest.exit_status for guest in self.guests)

    @property
    def boot_status(self) -> int:
        """The largest exit status of the guests whose boot failed or whose kernel panicked; 0 when all booted."""
        failed = [guest.exit_status for guest in self.guests if guest.halted and (guest.panic or not guest.booted)]
        return max(failed, default=0)

    # -- looking in ----------------------------------------------------------------------------------------------

    def rings(self) -> list[Snapshot]:
        """Every queue that is ready, decoded from a copy of its memory."""
        from vring.view.snapshot import machine_queues  # noqa: PLC0415  (the views load on first use)

        return [
            queue
            for machine, guest in self._booting
            for queue in machine_queues(machine, guest)
        ]

    def counters(self) -> dict[str, dict[str, Counter[str]]]:
        """A copy of all counters: guest name → layer → counter, from the wire upwards; then those of the hubs."""
        found: dict[str, dict[str, Counter[str]]] = {}
        machines = {guest.name: machine for machine, guest in self._booting}
        for guest in self.guests:
            below = machines[guest.name].counters() if guest.name in machines else {}
            layers = {**below, **guest.counters()}
            found[guest.name] = {layer: Counter(counter) for layer, counter in layers.items()}
        if self.hubs:
            found["hubs"] = {name: Counter(hub.counters) for name, hub in self.hubs.items()}
        if self.user_nets:
            found["user wires"] = {name: Counter(net.counters) for name, net in self.user_nets.items()}
        for name, sim in self.sims.items():
            found[name] = sim.counters()
        return found

    # -- closing -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Unwind the guests' processes, reset the devices, close wires and captures. Harmless when closed.

        Everything is closed even if something raises; that is raised at the end.
        """
        if self._closed:
            return
        self._closed = True
        with ExitStack() as last:  # what is pushed last goes first
            last.callback(self.loop.close)
            if self._capture is not None:
                last.callback(self._capture.close)
            if self._folder is not None:
                last.callback(self._folder.close)
            for hub in self.hubs.values():
                last.callback(hub.close)
            for net in self.user_nets.values():
                last.callback(net.close)
            for sim in self.sims.values():
                last.callback(sim.close)
            for link in self._links:
                last.callback(link.close)
            for machine in self.machines:
                last.callback(machine.power_off)
            for guest in reversed(self.guests):
                last.callback(guest.close)
