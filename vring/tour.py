"""`vring tour`: a guest at work, step by step, for a user without any rights. `make boot` takes it.

    this process                                        the guest
    http.server on 127.0.0.1:P  ←── user wire ──── wget http://web.tour:P/numbers.bin
    http.client to 127.0.0.1:Q  ─── user wire ──→  httpd on port 80

Promises:
- Only the host's loopback is used; both ports are any that are free. What is written is in a folder that goes again.
- Each step says what it did and whether that is what should have come of it: contents are compared, not lengths.
- A step that fails ends the tour with status 1, after what the guest has said. No step waits for ever.

Sections: `tour`, the steps, the host's half.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from guest.net.address import is_v4
from vring.boards import DEFAULT, asked_for
from vring.session import Session, boot
from vring.view.boot import LinePrinter

if TYPE_CHECKING:
    from guest.sys.scheduler import Process

PATIENCE = 20.0  # seconds that a step may take, on a machine however slow
BYTES = 4 << 20
NAME = "web.tour"  # the name server of the wire knows it as the gateway
DOWNLOAD = "numbers.bin"
PAGE = "page.html"
PAGE_TEXT = "<h1>It works</h1>\n<p>This page was served by a guest, through its own TCP, rings and driver.</p>\n"


class TourError(Exception):
    """A step did not do what it should have; the text says which, and how that showed."""


def tour(console: Console, *, seed: int | None = None) -> int:
    """Take the tour on `console`; the exit status. Raises `hw.wire.link.WireError` for a host without loopback."""
    with TemporaryDirectory(prefix="vring-tour-") as outside, TemporaryDirectory(prefix="vring-tour-") as inside:
        data = random.Random(seed).randbytes(BYTES)
        Path(outside, DOWNLOAD).write_bytes(data)
        Path(inside, PAGE).write_text(PAGE_TEXT, encoding="utf-8")
        with _host_server(outside) as port:
            board = asked_for(DEFAULT, (), (f"user:hostfwd=tcp::0-:80,dnsname={NAME}=10.0.2.2",), "-dhcp")
            with boot(board, share=inside, seed=seed) as session:
                try:
                    _Tour(console, session, port, Path(inside), data).take()
                except TourError as error:
                    console.print(Text(f"✗ {error}", style="bold red"))
                    return 1
    return 0


class _Tour:
    """The steps, and where they stand."""

    def __init__(self, console: Console, session: Session, port: int, folder: Path, data: bytes) -> None:
        self._console = console
        self._session = session
        self._port = port
        self._folder = folder
        self._data = data
        self._lines = LinePrinter(console, [session.guest.name])
        self._shown = 0
        self._step = 0
        self._began = time.monotonic()

    def take(self) -> None:
        """All steps. Raises TourError."""
        self.boot()
        self.look_up()
        self.ping()
        self.fetch()
        self.serve()
        self.look_back()

    # -- the steps -----------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Power on, and wait for the lease."""
        self._title("A guest boots, and takes an address from the DHCP server of its wire", "host$ vring boot")
        guest = self._session.guest
        self._wait(lambda: guest.halted or bool(self._leased()), "no lease came")
        lease = self._leased()
        if guest.halted or not lease:
            self._fail("the guest halted before it had an address")
        self._good(f"address {lease}, and no right of the host's was needed")

    def look_up(self) -> None:
        """A name."""
        command = f"nslookup {NAME}"
        self._title("It resolves a name", f"guest$ {command}")
        said = self._run(command)
        if "10.0.2.2" not in said:
            self._fail(f"{NAME} is not 10.0.2.2")
        self._good(f"{NAME} is where this host's loopback is seen from the guest")

    def ping(self) -> None:
        """The gateway."""
        command = "ping 10.0.2.2 -c 4 -i 0.2"
        self._title("It pings the gateway", f"guest$ {command}")
        said = self._run(command)
        if " 0% packet loss" not in said:
            self._fail("answers are missing")
        self._good("4 of 4 came back")

    def fetch(self) -> None:
        """A file from the host."""
        command = f"wget http://{NAME}:{self._port}/{DOWNLOAD}"
        self._title("It fetches a file from a web server on this host's loopback", f"guest$ {command}")
        began = time.monotonic()
        self._run(command)
        seconds = time.monotonic() - began
        there = self._folder / DOWNLOAD
        got = there.read_bytes() if there.exists() else b""
        if got != self._data:
            self._fail(f"{DOWNLOAD} has {len(got):,} bytes and is not what was served")
        rate = len(got) / 1e6 / seconds
        self._good(f"{len(got):,} bytes in {seconds:.2f} s ({rate:.0f} MB/s), SHA-256 {_digest(got)} at both ends")

    def serve(self) -> None:
        """A page for the host."""
        command = "httpd 80"
        port = self._session.hostfwds()[0].port
        asked = f"host$ GET http://127.0.0.1:{port}/{PAGE}"
        self._title("It serves a page, which this host fetches through a forward", f"guest$ {command}", asked)
        self._start(command)
        with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as client:
            client.request("GET", f"/{PAGE}")
            answer = client.getresponse()
            page = answer.read().decode()
            heading = f"HTTP {answer.status} {answer.reason}, {answer.headers['Server']}"
        self._flush()
        self._console.print(Text(heading))
        for line in page.splitlines():
            self._console.print(Text.assemble(("│ ", "dim"), line), soft_wrap=True)
        if page != PAGE_TEXT:
            self._fail("the page is not what the guest has")
        self._good("the page is the one in the guest's folder")

    def look_back(self) -> None:
        """What was counted meanwhile."""
        self._title("What passed on the way")
        counters = self._session.counters()[self._session.guest.name]
        table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
        for name in ("from the guest's memory to the wire", "from the wire to the guest's memory"):
            table.add_column(name)
        device, driver, mmio = (_of(counters, layer) for layer in (" device", " driver", " virtio-mmio"))
        for row in (
            (f"{device['tx_packets']:,} packets", f"{device['rx_packets']:,} packets"),
            (f"{device['tx_bytes']:,} bytes", f"{device['rx_bytes']:,} bytes"),
            (f"{mmio['kicks']:,} doorbells rung", f"{driver['irqs']:,} interrupts raised"),
        ):
            table.add_row(*row)
        self._console.print(table)
        spent = time.monotonic() - self._began
        self._good(f"all of it in {spent:.1f} s")

    # -- the guest -----------------------------------------------------------------------------------------------

    def _leased(self) -> str:
        """The guest's address, empty while it has none."""
        ni = self._session.guest.ni
        addresses = ni.interface.addresses if ni is not None else []
        return next((str(each) for each in addresses if is_v4(each.address)), "")

    def _start(self, command: str) -> Process:
        program, *words = command.split()
        return self._session.call(lambda: self._session.guest.spawn(program, *words))

    def _run(self, command: str) -> str:
        """Run a program to its end; what it said. Raises TourError where it fails."""
        before = len(self._session.console)
        process = self._start(command)
        self._wait(lambda: not process.alive, f"{command} has no end")
        if process.exit_status:
            self._fail(f"{command} ended with status {process.exit_status}")
        return self._session.console[before:]

    def _wait(self, predicate: Callable[[], bool], otherwise: str) -> None:
        came = self._session.run_until(predicate, seconds=PATIENCE)
        self._flush()
        if not came:
            self._fail(f"{otherwise} within {PATIENCE:.0f} s")

    # -- what is shown -------------------------------------------------------------------------------------------

    def _title(self, text: str, *commands: str) -> None:
        self._step += 1
        gap = "\n" if self._step > 1 else ""
        self._console.print(Text.assemble(gap, (f"{self._step} ", "bold cyan"), (text, "bold")), soft_wrap=True)
        for command in commands:
            self._console.print(Text(command, style="cyan"), soft_wrap=True)

    def _flush(self) -> None:
        """Show the guest's lines that have come."""
        text = self._session.console
        for line in text[self._shown :].splitlines():
            self._lines(self._session.guest.name, line)
        self._shown = len(text)

    def _good(self, text: str) -> None:
        self._console.print(Text.assemble(("✓ ", "bold green"), text))

    def _fail(self, text: str) -> NoReturn:
        self._flush()
        raise TourError(text)


def _of(counters: dict[str, Counter[str]], layer: str) -> Counter[str]:
    """Those of the card's `layer`, "eth0 device" or such; empty without it."""
    return next((each for name, each in counters.items() if name.endswith(layer)), Counter())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12] + "…"


# -- the host's half -------------------------------------------------------------------------------------------------


class _Quiet(SimpleHTTPRequestHandler):
    """The standard library's file server, without its log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _host_server(folder: str) -> Iterator[int]:
    """Serve `folder` on a free port of the loopback meanwhile; the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="tour web server")
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
