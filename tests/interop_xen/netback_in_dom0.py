"""Run in domain 0: our back end between Linux's xen-netfront, in a domain of its own, and our guest on virtio.

    python3 -m tests.interop_xen.netback_in_dom0 DOMID full|ling QUEUES

The domain `DOMID` has been made and is paused; it is let go once its vif stands in the store. Prints what happens, and
at last one line, `@report` and JSON, with what `real_xen.py` judges. Ends with 1 when something is late.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from guest.kernel import Guest
from hw.abi import xen_bus as bus
from hw.clock import SECOND, RealClock
from hw.loop import Loop
from hw.machine import Machine
from hw.wire.cable import cable
from hw.xen.netback import LING, Profile
from hw.xen.vif import Vif
from tests.interop_xen.back_ports import ControlDomain

PEER = "10.78.0.1"
LINUX = "10.78.0.2"
FLOWS = [f"10.78.1.{number}" for number in range(1, 21)]  # Linux's too: each is a flow, for the queues
MAC = "00:16:3e:11:22:33"
ECHO_PORT, BYE_PORT = 7, 9
SIZES = (0, 56, 1000, 1472)  # bytes of payload
PINGS = 10  # of each address
PATIENCE = 90 * SECOND
BOOT_PATIENCE = 30 * SECOND


class Late(Exception):
    """Something did not happen in time."""


@dataclass
class FrontDomain:
    """A domain as the toolstack knows it."""

    domid: int
    resumed: list[Callable[[], None]] = field(default_factory=list)


class Board:
    """The back end of the domain's vif, a cable, and the guest that Linux talks to."""

    def __init__(self, domid: int, profile: Profile) -> None:
        self.loop = loop = Loop(RealClock())
        self.control = ControlDomain(loop)
        self.domid = domid
        near, self.wire = cable(loop)
        self.machine = Machine(loop, name="peer", seed=1, cmdline=f"-ipaddr {PEER} -netmask 255.255.0.0")
        self.machine.add_virtio_net(near)
        self.guest = Guest(self.machine.platform, console=lambda line: print(f"guest: {line}", flush=True))
        mac = bytes.fromhex(MAC.replace(":", ""))
        self.vif = Vif(self.control, FrontDomain(domid), 0, self.wire, mac=mac, profile=profile)
        self.netback = self.vif.device

    def wait(self, until: Callable[[], bool], what: str, patience: int = PATIENCE) -> None:
        """Take turns until then. Raises Late."""
        if not self.loop.run(until, deadline=self.loop.clock.now() + patience):
            raise Late(what)

    def connected(self, times: int) -> bool:
        """Whether the back end has connected so often."""
        return self.netback.counters["state_Connected"] >= times

    def boot(self) -> None:
        """The guest, then the domain, until its front end has connected and said something."""
        guest = self.guest
        self.machine.power_on(guest)
        self.wait(lambda: guest.booted or guest.halted, "the guest's boot", BOOT_PATIENCE)
        guest.spawn("echo", str(ECHO_PORT))
        subprocess.run(["xl", "unpause", str(self.domid)], check=True)
        self.wait(lambda: self.connected(1), "Linux's front end to connect")
        self.wait(lambda: self.netback.counters["tx_packets"] > 0, "a packet of Linux's")

    def run(self, *words: str) -> int:
        """Run a program of the guest's; its exit status."""
        process = self.guest.spawn(*words)
        self.wait(lambda: not process.alive, f"the end of the guest's {words[0]}")
        return process.exit_status

    def pings(self) -> dict[str, int]:
        """The guest pings all of Linux's addresses: what its own ping counts."""
        total = {"transmitted": 0, "received": 0}
        for number, address in enumerate(FLOWS):
            at = len(self.guest.log.output)
            size = SIZES[number % len(SIZES)]
            self.run("ping", address, "-c", str(PINGS), "-i", "0.02", "-W", "5", "-q", "-s", str(size))
            summary = next(line for line in self.guest.log.output[at:] if "transmitted" in line)
            sent, received = (int(part.split()[0]) for part in summary.split(",")[:2])
            total["transmitted"] += sent
            total["received"] += received
        return total

    def say_bye(self) -> None:
        """Linux waits for a connection when it has done everything; it is made as soon as it can be."""
        end = self.loop.clock.now() + PATIENCE
        while self.run("nc", "-w", "5", "-N", "-m", "bye", LINUX, str(BYE_PORT)):
            if self.loop.clock.now() > end:
                raise Late("Linux to wait for the bye")
            self.loop.run(deadline=self.loop.clock.now() + SECOND // 2)

    def queues(self) -> list[dict[str, int]]:
        """For each queue how many requests of each ring were taken, and how many event channels it has."""
        return [
            {"tx": queue.tx.ring.req_cons, "rx": queue.rx.ring.req_cons, "channels": len(set(queue.ports))}
            for queue in self.netback.queues
        ]

    def leave(self) -> None:
        """Linux unloads its driver, loads it again, pings, unloads it, and is gone."""
        self.wait(lambda: self.netback.counters["state_Closed"] >= 1, "Linux's front end to close")
        self.wait(lambda: self.connected(2), "Linux's front end to connect again")
        self.wait(lambda: self.netback.counters["state_Closed"] >= 2, "Linux's front end to close again")
        self.vif.close()

    def report(self) -> dict[str, object]:
        """What happened."""
        netback, grants = self.netback, self.control.grants
        return {
            "counters": dict(netback.counters),
            "wire": dict(self.wire.counters),
            "error": netback.error,
            "grants": {"mapped": grants.mapped, "maps": grants.maps, "copies": grants.copies},
            "panic": str(self.guest.panic or ""),
        }


def main() -> int:
    """The whole run."""
    domid, profile, queues = sys.argv[1:]
    board = Board(int(domid), LING if profile == "ling" else Profile(queues=int(queues)))
    report: dict[str, object] = {}
    status = 1
    try:
        board.boot()
        report["pings"] = board.pings()
        board.say_bye()
        report["queues"] = board.queues()
        board.leave()
        status = 0
    except Late as late:
        report["late"] = str(late)
        ends = (board.netback.frontend, board.netback.backend)
        report["states"] = [board.control.store.get(f"{path}/{bus.STATE}") for path in ends]
    report.update(board.report())
    print("@report", json.dumps(report), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
