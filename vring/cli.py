"""The command `vring`.

    vring boot [BOARD] [--nic …]… [--wire …]… [options] [-- GUEST COMMAND LINE]
    vring run [--nic …]… [--wire …]… [options] SCRIPT|-m MODULE [ARGUMENTS]
    vring boards
    vring device --socket PATH --wire WIRE [options]
    vring demo [tx|rx|xen] [--step]
    vring tour

Promises:
- What follows the first `--` belongs to the guest and is not looked at by the option parser here. For `vring run` that
  is the program and its arguments.
- Exit status: 0 done (a signal and the end of the time included), 1 a failure while running, such as a wire that cannot
  be made, 2 a mistake in what was asked for. Mistakes and failures are one line on stderr: `vring: …`.
- With `--exit-status` the status of the guest's last program instead of 0 (with several guests the largest of theirs),
  and 124 when they were cut off.
- On a terminal a board without programs ends in a prompt, which is the shell of its first guest (vring/prompt.py).
- rich and the machine itself load only when a command needs them.

Sections: `main`, `boot`, `run`, `boards`, `device`, `demo`, `tour`, running a board.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vring import __version__
from vring.boards import DEFAULT, USER_WORDS, asked_for, shipped, summary
from vring.config import CLOCKS, Board, ConfigError, join_words
from vring.launch import become, named, split

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from vring.build import Rig

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_CUT_OFF = 124  # as timeout(1) has it
EXIT_INTERRUPTED = 130  # Ctrl-C outside of a boot, as shells have it
WIDTH_PIPED = 100

app = typer.Typer(
    name="vring",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Paravirtual network hardware and the guest that boots on it.",
)


class _Failure(Exception):
    """Ends the command with a status and one line on stderr."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


# -- the entry -------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (that of the process by default). Always ends with SystemExit."""
    words = list(sys.argv[1:] if argv is None else argv)
    guest_words: list[str] | None = None
    if words[:1] == ["run"]:
        words[1:], guest_words = split(words[1:], _valued_options("run"))
    elif "--" in words:
        at = words.index("--")
        words, guest_words = words[:at], words[at + 1 :]
    try:
        status = app(args=words or ["--help"], prog_name="vring", standalone_mode=False, obj=guest_words)
    except (typer.Abort, KeyboardInterrupt):
        status = EXIT_INTERRUPTED
    except (ConfigError, _Failure) as error:
        status = error.status if isinstance(error, _Failure) else EXIT_USAGE
        _complain(str(error))
    except Exception as error:
        # What the option parser raises has a text and a status of its own.
        if not hasattr(error, "format_message"):
            raise
        text = error.format_message()
        if text:
            _complain(f"{text} (see vring --help)")
        status = getattr(error, "exit_code", EXIT_USAGE)
    raise SystemExit(status if isinstance(status, int) else 0)


def _complain(text: str) -> None:
    print("vring: " + " ".join(text.split()), file=sys.stderr)


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415  (loads on first use)

    # Piped output has no width of its own; tables are made for this one.
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, markup=False, width=WIDTH_PIPED if piped else None)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vring {__version__}")
        raise typer.Exit


def _no_guest_words(context: typer.Context) -> None:
    if context.obj is not None:
        raise ConfigError(f"vring {context.info_name} boots no guest, so nothing may follow --")


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Paravirtual network hardware and the guest that boots on it."""


# -- boot ------------------------------------------------------------------------------------------------------------

_BOOT_HELP = """Boot a board and run it until its guests' programs have ended, the time is up, or Ctrl-C.

\b
Examples:
  vring boot
  vring boot two-guests
  vring boot --wire hub -- -ipaddr 10.0.0.1 -netmask 255.255.255.0 -s ping 127.0.0.1 -c 3
  vring boot --nic virtio:mtu=9000 --wire tap:t0 -- -ipaddr 10.9.0.2 -netmask 255.255.255.0
  vring boot --wire user:hostfwd=tcp::8080-:80 -- -dhcp -s ping 10.0.2.2 -c 3
  vring boot --wire sim:loss=2% -- -dhcp -s ping 8.8.8.8 -c 3 -s wget http://example.com
  vring boot --wire user --share . -- -dhcp -s httpd -s sh
  vring boot my-board.toml --wire hub:lan,loss=5%,delay=10ms --clock virtual --for 60 --rings

\b
NICs: virtio, with mtu=N, mac=M, rx_queue_size=N, tx_queue_size=N, event_idx=off, packed=on, in_order=on, …;
  xen, with profile=full|ling, queues=N, mtu=N, mac=M, sg=off, gso=off, split=off, …; or none.
Wires: none, hub[:NAME], tap:NAME[,vnet_hdr=on], packet:INTERFACE, user[:OPTIONS], sim[:OPTIONS],
stream:ADDRESS[,server], dgram:ADDRESS,remote=ADDRESS, vde:PATH[PORT]; and impairments:
  loss=1% delay=10ms jitter=2ms reorder=1% duplicate=1% corrupt=1% rate=10mbit
What follows -- is the guest's command line:
  -ipaddr A -netmask M -gateway G, or -dhcp, and -s PROGRAM ARGUMENTS… for each program to start.
Without programs, and with -s sh, a terminal ends in the guest's shell: type help there.
"""


@app.command("boot", help=_BOOT_HELP, short_help="Boot a board and run it.")
def _boot(
    context: typer.Context,
    board: Annotated[
        str | None,
        typer.Argument(
            metavar="BOARD", help=f"A TOML file, an xl description (.cfg), or one that ships; else {DEFAULT}."
        ),
    ] = None,
    nic: Annotated[
        list[str] | None, typer.Option(metavar="MODEL[:KEY=VALUE,…]", help="Add a NIC: virtio, xen, none. Repeatable.")
    ] = None,
    wire: Annotated[list[str] | None, typer.Option(metavar="WIRE", help="Plug in the n-th NIC. Repeatable.")] = None,
    pcap: Annotated[Path | None, typer.Option(metavar="FILE", help="Capture what passes every NIC (pcapng).")] = None,
    clock: Annotated[str | None, typer.Option(metavar="real|virtual", help="The clock; real by default.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="For all that is random; by default 0 if the clock is virtual, else entropy."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", help="Stop after this much of the board's time.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is built and negotiated.")] = False,
    rings: Annotated[
        bool, typer.Option("--rings", help="Show the rings at the end; of Xen also grants and event channels.")
    ] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Show each frame's way, stage by stage, and why it was dropped.")
    ] = False,
    share: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A folder of the host that the guests' programs see.")
    ] = None,
    exit_status: Annotated[
        bool, typer.Option("--exit-status", help="Exit as the last program did; 124 when it was cut off.")
    ] = False,
) -> int:
    words = context.obj
    cmdline = None if words is None else join_words(words)
    described = asked_for(board, nic or (), wire or (), cmdline, virtual=clock == "virtual")
    if clock is not None:
        if clock not in CLOCKS:
            raise ConfigError(f"--clock is {' or '.join(CLOCKS)}, not {clock!r}")
        described = replace(described, clock="virtual" if clock == "virtual" else "real")
    if seed is not None:
        described = replace(described, seed=seed)
    if seconds is not None:
        if not 0 < seconds < math.inf:
            raise ConfigError(f"--for is a finite number of seconds above 0, not {seconds:g}")
        described = replace(described, run=seconds)
    return run_board(
        described, pcap=pcap, share=share, verbose=verbose, rings=rings, trace=trace, exit_status=exit_status
    )


# -- run -------------------------------------------------------------------------------------------------------------

_RUN_HELP = """Run a Python program, unchanged, over the sockets of a guest, which boots first.

\b
Examples:
  vring run client.py
  vring run --wire user:hostfwd=tcp::8000-:8000 --cmdline -dhcp -m http.server 8000
  vring run --board my-board.toml --guest bob server.py 8080

Without a board, NIC or wire the guest is on a user wire: what this host reaches it reaches, and this host's own
loopback is 10.0.2.2. What follows the program is its own.
"""


def _valued_options(command: str) -> list[str]:
    """The options of a command that have a value in the next word."""
    params = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]  # it is a group
    return [name for param in params if not getattr(param, "is_flag", True) for name in param.opts]


@app.command(
    "run",
    help=_RUN_HELP,
    short_help="Run a Python program over the sockets of a guest.",
    options_metavar="[OPTIONS] SCRIPT|-m MODULE [ARGUMENTS]",
)
def _run(
    context: typer.Context,
    board: Annotated[
        str | None, typer.Option(metavar="BOARD", help="A TOML file, or the name of a board that ships.")
    ] = None,
    guest: Annotated[str | None, typer.Option(metavar="NAME", help="Which guest of it; the first by default.")] = None,
    nic: Annotated[
        list[str] | None, typer.Option(metavar="MODEL[:KEY=VALUE,…]", help="Add a NIC: virtio, xen, none. Repeatable.")
    ] = None,
    wire: Annotated[list[str] | None, typer.Option(metavar="WIRE", help="Plug in the n-th NIC. Repeatable.")] = None,
    cmdline: Annotated[str | None, typer.Option(metavar="WORDS", help="The guest's command line.")] = None,
    pcap: Annotated[Path | None, typer.Option(metavar="FILE", help="Capture what passes every NIC (pcapng).")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="For all that is random in the board.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the guest's boot.")] = False,
) -> None:
    try:
        by_name, name, arguments = named(context.obj or [])
    except ValueError as error:
        raise ConfigError(f"run: {error}") from None
    wires = list(wire or [])
    if board is None and not nic and not wire:
        wires, cmdline = ["user"], f"{USER_WORDS} {cmdline or ''}"
    options = {
        "board": board, "guest": guest, "nic": list(nic or []), "wire": wires, "cmdline": cmdline, "seed": seed,
        "pcap": None if pcap is None else str(pcap), "verbose": verbose,
    }  # fmt: skip
    become(options, by_name, name, arguments)


@app.command("boards", help="List the boards that ship.")
def _boards(context: typer.Context) -> None:
    _no_guest_words(context)
    found = shipped()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        print(f"{name:<{width}}  {summary(path)}")


_DEVICE_HELP = """Serve a network card to drivers in other processes, over vhost-user, until interrupted.

The card is vring's; its driver is a VM's (QEMU's netdev vhost-user), DPDK's virtio-user, or another vring's guest
(--nic vhost-user:PATH). It may come, go and come back. The n-th socket's card is on the n-th wire.

\b
Examples:
  vring device --socket /tmp/card --wire user
  vring device --socket /tmp/a --wire hub:lan --socket /tmp/b --wire hub:lan
  vring device --socket /tmp/card --wire tap:t0 --card packed=off,queue_size=1024
  vring device --client --socket /tmp/qemu --wire user

\b
To drive it (shared memory is what the card reaches the driver's RAM by):
  qemu-system-x86_64 -m 512 -object memory-backend-memfd,id=m,size=512M,share=on -numa node,memdev=m \\
    -chardev socket,id=c,path=/tmp/card,reconnect=1 -netdev vhost-user,id=n,chardev=c \\
    -device virtio-net-pci,netdev=n,disable-legacy=on,vectors=0 ...
  vring boot --nic vhost-user:/tmp/card -- -dhcp -s ping -c 3 10.0.2.2
"""


@app.command(
    "device",
    help=_DEVICE_HELP,
    short_help="Serve a network card to a VM's driver, or DPDK's.",
    options_metavar="--socket PATH --wire WIRE [OPTIONS]",
)
def _device(
    context: typer.Context,
    sockets: Annotated[
        list[str], typer.Option("--socket", metavar="PATH", help="Where front ends find the card. Repeatable.")
    ],
    wires: Annotated[
        list[str], typer.Option("--wire", metavar="WIRE", help="What the n-th card is plugged into. Repeatable.")
    ],
    card: Annotated[
        str, typer.Option(metavar="KEY=VALUE,…", help="What the cards offer, as options of --nic virtio.")
    ] = "",
    client: Annotated[
        bool, typer.Option("--client", help="Connect to front ends that listen, instead of listening.")
    ] = False,
    pcap: Annotated[Path | None, typer.Option(metavar="FILE", help="Capture what passes the cards (pcapng).")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="For all that is random.")] = None,
) -> int:
    _no_guest_words(context)
    from hw.wire.link import WireError  # noqa: PLC0415  (loads the machine)
    from vring.config import NicSpec  # noqa: PLC0415
    from vring.device import Devices  # noqa: PLC0415

    options = NicSpec.parse(f"virtio:{card}" if card else "virtio").options
    devices: Devices | None = None
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        if devices is not None:
            devices.stop()

    def tell(line: str) -> None:
        print(line, flush=True)

    with _signals(stop):
        try:
            devices = Devices(sockets, wires, options=options, client=client, pcap=pcap, seed=seed, tell=tell)
        except (WireError, OSError) as error:
            raise _Failure(str(error), EXIT_FAILURE) from None
        for path in sockets:
            tell(f"{path}: waiting for {'a front end that listens' if client else 'a front end'}")
        try:
            if not stopped:
                devices.run()
        finally:
            devices.close()
    return 0


@app.command(
    "demo",
    help="Follow one frame through the rings, access by access: vring demo tx, rx or xen.",
    short_help="Follow one frame through the rings.",
)
def _demo(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[tx|rx|xen]", help="Without it they are listed.")] = None,
    step: Annotated[bool, typer.Option("--step", help="Wait for a key after each step (q ends).")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Decides addresses and contents.")] = 0,
) -> int:
    _no_guest_words(context)
    from vring.demos import DEMOS, play  # noqa: PLC0415  (loads the machine)

    if name is None:
        for each, title in DEMOS.items():
            print(f"{each}  {title}")
        return 0
    if name not in DEMOS:
        raise ConfigError(f"there is no demo {name!r}; demos are {', '.join(DEMOS)}")
    play(name, _console(), seed=seed, step=step)
    return 0


@app.command("tour", help="See a guest at work, step by step, without any rights. Exits 0 if all went well.")
def _tour(
    context: typer.Context,
    seed: Annotated[int | None, typer.Option(metavar="N", help="For all that is random in the board.")] = None,
) -> int:
    _no_guest_words(context)
    from hw.wire.link import WireError  # noqa: PLC0415  (loads the machine)
    from vring.tour import tour  # noqa: PLC0415

    try:
        return tour(_console(), seed=seed)
    except (WireError, OSError) as error:
        raise _Failure(str(error), EXIT_FAILURE) from None


# -- running a board -------------------------------------------------------------------------------------------------


@contextmanager
def _signals(stop: Any) -> Iterator[None]:
    """SIGINT and SIGTERM call `stop` meanwhile."""
    before = {each: signal.signal(each, lambda *_: stop()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def run_board(
    board: Board,
    *,
    pcap: Path | None = None,
    share: Path | None = None,
    verbose: bool = False,
    rings: bool = False,
    trace: bool = False,
    exit_status: bool = False,
) -> int:
    """Build `board`, run it, print what it does, and return the exit status. Raises ConfigError."""
    from hw.wire.link import WireError  # noqa: PLC0415  (the machine loads when a board runs)
    from vring.build import Rig  # noqa: PLC0415
    from vring.prompt import Dialogue, is_terminal, with_shell  # noqa: PLC0415
    from vring.view.boot import LinePrinter, PassagePrinter, board_lines  # noqa: PLC0415

    console = _console()
    typed = is_terminal()
    board, at = with_shell(board, typed)
    if verbose:
        console.print(board_lines(board))
    stopped = False
    rig: Rig | None = None

    def stop() -> None:
        nonlocal stopped
        stopped = True
        if rig is not None:
            rig.loop.stop()

    def build(say: Callable[[str, str], None]) -> Rig:
        return Rig(board, pcap=pcap, console=say, trace=PassagePrinter(console) if trace else None, share=share)

    # From here on a signal is a request to stop, also while wires are made and unmade: a TAP must not be left behind.
    with _signals(stop):
        printer = LinePrinter(console, [guest.name for guest in board.guests])
        talk = None
        try:
            if at is None:
                rig = build(printer)
            else:
                talk = Dialogue(build, at=at, typed=typed, board=board, printer=printer)
                rig = talk.rig
        except (WireError, OSError) as error:
            raise _Failure(str(error), EXIT_FAILURE) from None
        running = rig

        def see() -> tuple[bool, RenderableType]:
            ended = running.clock.now()
            return running.done(), _report(
                running, ended=ended, stopped=stopped, verbose=verbose, rings=rings, brief=talk is not None and typed
            )

        try:
            if talk is not None:
                stopped = talk.run(stopped)
                finished, report = talk.call(see)
            else:
                running.power_on()
                deadline = None if board.run is None else round(board.run * 1_000_000)
                running.loop.run(until=lambda: stopped or running.done(), deadline=deadline)
                finished, report = see()
        except WireError as error:
            raise _Failure(str(error), EXIT_FAILURE) from None
        finally:
            (running if talk is None else talk).close()  # programs that are cut off have their last words here
        console.print(report)
    for guest in rig.guests:
        if guest.halted and guest.exit_status and not stopped and not guest.booted:
            _complain(f"{guest.name}: the boot failed with status {guest.exit_status}; the guest's log says why")
        for leak in guest.leaks:
            _complain(f"{guest.name}: not given back: {leak}")
    if not exit_status:
        return rig.boot_status
    cut_off = rig.has_programs and not finished
    return rig.exit_status or (EXIT_CUT_OFF if cut_off else 0)


def _report(
    rig: Rig, *, ended: int, stopped: bool, verbose: bool, rings: bool, brief: bool = False
) -> RenderableType:
    """What there is to see of a board that stopped at the time `ended`, taken down before anything is closed; `brief`
    for who has seen enough, at a prompt.
    """
    from rich.console import Group  # noqa: PLC0415  (loads on first use)
    from rich.text import Text  # noqa: PLC0415

    from vring.view.counters import counter_table  # noqa: PLC0415
    from vring.view.queues import legends, queue_tables  # noqa: PLC0415
    from vring.view.snapshot import negotiated_lines, shared_lines, store_lines  # noqa: PLC0415

    parts: list[RenderableType] = []
    if stopped or not rig.done():
        over = rig.board.run is not None and ended >= rig.board.run * 1_000_000
        why = "stopped by a signal" if stopped else "the time is up" if over else "nothing can happen any more"
        parts.append(Text(f"vring: {why} after {ended / 1_000_000:.3f} s", style="dim"))
    if brief and not (verbose or rings):
        return Group(*parts)
    parts.append(Text())
    if verbose:
        for machine in rig.machines:
            parts += [part for lines in (negotiated_lines(machine), *store_lines(machine)) for part in (lines, Text())]
    if rings:
        queues = rig.rings()
        parts += [part for queue in queues for part in (queue_tables(queue), Text())]
        parts += [Text("\n".join(legends(queues)), style="dim"), Text()]
        parts += [part for machine in rig.machines for lines in shared_lines(machine) for part in (lines, Text())]
    for name, layers in rig.counters().items():
        parts += [counter_table(f"counters of {name}", layers), Text()]
    return Group(*parts)
