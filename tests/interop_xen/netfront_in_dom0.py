"""Run in domain 0: our guest on our front end, with Linux's xen-netback and domain 0's own IP stack at the other end.

    python3 -m tests.interop_xen.netfront_in_dom0 full|plain QUEUES

Prints what happens, and at last one line, `@report` and JSON, with what `real_xen.py` judges. Ends with 1 when
something is late.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from guest.drivers.netfront import NetfrontDriver
from guest.kernel import Guest
from hw.abi import xen_bus as bus
from hw.abi.xen import DOM0
from hw.clock import SECOND, RealClock
from hw.loop import Loop
from hw.xen.store_client import StoreAccess
from tests.interop_xen.back_ports import DeviceStore
from tests.interop_xen.front_ports import DomainPlatform, GrantedRam, RealDomain

GUEST, HOST = "10.79.0.2", "10.79.0.1"
HOSTS = [f"10.79.1.{number}" for number in range(1, 21)]  # domain 0's too: each is a flow, for the queues
MAC = "00:16:3e:44:55:66"
RAM_PAGES = 2048
PATIENCE = 60 * SECOND
BOOT_PATIENCE = 30 * SECOND
SETTLING = 10 * SECOND
SIZES = (0, 56, 1472, 4000)  # bytes of payload
PINGS = 10  # of each address
STREAM_BYTES = 300_000
FRONT, BACK = bus.frontend_path(DOM0, 0), bus.backend_path(DOM0, DOM0, 0)


class Late(Exception):
    """Something did not happen in time."""


class Board:
    """The guest, and domain 0 as its toolstack and its peer."""

    def __init__(self, words: list[str]) -> None:
        self.loop = loop = Loop(RealClock())
        self.toolstack = StoreAccess(DeviceStore(loop))
        self.back_state = bus.XenbusStateUnknown
        self.books: tuple[dict[str, int], dict[str, int]] = {}, {}
        self.ram = GrantedRam(RAM_PAGES)
        cmdline = " ".join([*words, "-ipaddr", GUEST, "-netmask", "255.255.0.0"])
        self.platform = DomainPlatform(loop, self.ram, cmdline)
        self.guest = Guest(
            self.platform,
            console=lambda line: print(f"guest: {line}", flush=True),
            find_domain=lambda services: RealDomain(services, loop, self.ram),
        )

    def wait(self, until: Callable[[], bool], what: str, patience: int = PATIENCE) -> None:
        """Take turns until then. Raises Late."""
        if not self.loop.run(until, deadline=self.loop.clock.now() + patience):
            raise Late(what)

    def plug(self) -> None:
        """What the toolstack writes for a vif of domain 0 whose back end is in domain 0."""
        store = self.toolstack
        common = {bus.HANDLE: 0, bus.MAC: MAC, bus.STATE: bus.XenbusStateInitialising}
        store.write_all(FRONT, {bus.BACKEND: BACK, bus.BACKEND_ID: DOM0, **common})
        # No script is there to put the interface into a bridge; Linux waits to hear that one has done so.
        words = {"script": "", "hotplug-status": "connected"}
        store.write_all(BACK, {bus.FRONTEND: FRONT, bus.FRONTEND_ID: DOM0, bus.ONLINE: 1, **words, **common})
        store.watch(f"{BACK}/{bus.STATE}", self._moved)
        self.wait(lambda: self.back_state == bus.XenbusStateInitWait, "InitWait of Linux's back end")

    def _moved(self, path: str) -> None:
        self.back_state = self.toolstack.number(path, bus.XenbusStateUnknown)

    def boot(self) -> None:
        """Switch the guest on, until both ends are connected, and give domain 0 its address."""
        guest = self.guest
        self.platform.cpu = guest
        self.loop.add_cpu(guest)
        self.wait(lambda: guest.booted or guest.halted, "the guest's boot", BOOT_PATIENCE)
        self.wait(lambda: self.back_state == bus.XenbusStateConnected, "Linux's back end to connect")
        for command in (
            "ip link set lo up",
            f"ip addr add {HOST}/16 dev vif0.0",
            "ip link set vif0.0 up",
            "ip route add local 10.79.1.0/24 dev lo",
        ):
            subprocess.run(command.split(), check=True)

    def run(self, *command: str, stdin: Path | None = None, stdout: Path | None = None) -> str:
        """Run a program of domain 0 while the guest goes on; what it printed."""
        source = stdin.open("rb") if stdin else None
        target = stdout.open("wb") if stdout else subprocess.PIPE
        process = subprocess.Popen(command, stdin=source, stdout=target)
        death = os.pidfd_open(process.pid)
        self.loop.set_reader(death, lambda: None)  # ends a sleep of the loop, which then looks
        try:
            self.wait(lambda: process.poll() is not None, f"the end of {command[0]}")
        except Late:
            process.kill()
            raise
        finally:
            self.loop.set_reader(death, None)
            os.close(death)
        return process.stdout.read().decode() if process.stdout else ""

    def pings(self) -> dict[str, int]:
        """The guest pings domain 0: what its own ping says, by what it counts."""
        total = {"transmitted": 0, "received": 0}
        for number, host in enumerate(HOSTS):
            at = len(self.guest.log.output)
            size = SIZES[number % len(SIZES)]
            words = ["-c", str(PINGS), "-i", "0.02", "-W", "5", "-q", "-s", str(size)]
            process = self.guest.spawn("ping", host, *words)
            self.wait(lambda process=process: not process.alive, "the end of the guest's ping")
            summary = next(line for line in self.guest.log.output[at:] if "transmitted" in line)
            sent, received = (int(part.split()[0]) for part in summary.split(",")[:2])
            total["transmitted"] += sent
            total["received"] += received
        return total

    def pinged(self) -> str:
        """Domain 0 pings the guest: what busybox says."""
        said = self.run("ping", "-q", "-A", "-c", "200", "-s", "1000", GUEST)
        return next(line for line in said.splitlines() if "transmitted" in line)

    def stream(self) -> bool:
        """Domain 0 sends a stream to the guest's echo server; whether the same comes back."""
        sent, back = Path("/tmp/sent"), Path("/tmp/back")
        sent.write_bytes(self.platform.rng.randbytes(STREAM_BYTES))
        self.guest.spawn("echo", "7")
        self.run("nc", GUEST, "7", stdin=sent, stdout=back)
        return sent.read_bytes() == back.read_bytes()

    @property
    def device(self) -> NetfrontDriver:
        """Our front end."""
        device = self.guest.devices[0]
        assert isinstance(device, NetfrontDriver)
        return device

    def interface(self) -> dict[str, int]:
        """What domain 0's end of the vif counts."""
        return {path.name: int(path.read_text()) for path in Path("/sys/class/net/vif0.0/statistics").iterdir()}

    def is_quiet(self) -> bool:
        """Whether both ends count the same, and every request has its response; keeps what they count in `books`."""
        counters, interface = self.books = dict(self.device.counters), self.interface()
        ours = counters.get("tx_packets"), counters.get("rx_packets")
        same = ours == (interface["rx_packets"], interface["tx_packets"])
        return same and not any(queue.tx.in_flight for queue in self.device.queues)

    def settle(self) -> None:
        """Wait until nothing is under way, but not for long: what is missing then is missing."""
        end = self.loop.clock.now() + SETTLING
        while not self.is_quiet() and self.loop.clock.now() < end:
            self.loop.run(deadline=self.loop.clock.now() + SECOND // 20)

    def report(self) -> dict[str, object]:
        """What happened."""
        device = self.device
        keys = ("feature-sg", "feature-gso-tcpv4", "feature-rx-copy", "multi-queue-max-queues")
        channels = self.guest.xen.events.counts
        return {
            "queues": [
                {
                    "channels": len({queue.tx_port, queue.rx_port}),
                    "rx events": channels[queue.rx_port],
                    "tx": queue.tx.ring.snapshot(),
                    "rx": queue.rx.ring.snapshot(),
                }
                for queue in device.queues
            ],
            "offer": {key: self.toolstack.get(f"{BACK}/{key}") for key in keys},
            "front keys": sorted(self.toolstack.list(FRONT)),
            "counters": self.books[0],
            "interface": self.books[1],
        }

    def close(self) -> dict[str, object]:
        """Let go: Linux's back end has to close, and the guest to have everything back."""
        self.guest.close()
        return {
            "leaks": self.guest.leaks,
            "panic": str(self.guest.panic or ""),
            "granted": self.ram.granted,
            "backend state": bus.STATE_NAMES[self.toolstack.number(f"{BACK}/{bus.STATE}", 0)],
        }


def main() -> int:
    """The whole run."""
    profile, queues = sys.argv[1:]
    board = Board([f"xen_netfront.profile={profile}", f"xen_netfront.queues={queues}"])
    report: dict[str, object] = {}
    status = 1
    try:
        board.plug()
        board.boot()
        report["pings"] = board.pings()
        report["pinged"] = board.pinged()
        report["stream"] = board.stream()
        board.settle()
        report.update(board.report())
        report.update(board.close())
        status = 0
    except Late as late:
        report["late"] = str(late)
        report["states"] = [board.toolstack.get(f"{path}/{bus.STATE}") for path in (FRONT, BACK)]
    print("@report", json.dumps(report), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
