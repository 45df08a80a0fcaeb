"""DPDK's testpmd as a process: no huge pages, no PCI devices, two cores, its ports on Unix sockets."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from hw.loop import Loop

PATIENCE = 30.0  # seconds
READY = "testpmd>"


class Pmd:
    """testpmd with virtual devices, forwarding from the start.

    Args:
        program: the path of dpdk-testpmd.
        work: a folder of its own.
        devices: what `--vdev` is given, one each.
        mode: how it forwards: "io" gives each frame back as it came, "icmpecho" answers ARP and pings.
        more: further arguments of testpmd itself.
        serve: a loop that runs meanwhile, where this process is what testpmd talks to as it starts.
    """

    def __init__(
        self,
        program: str,
        work: Path,
        *devices: str,
        mode: str = "io",
        more: Sequence[str] = (),
        serve: Loop | None = None,
    ) -> None:
        self._log = work / "testpmd.log"
        prefix = f"vring{os.getpid()}{time.monotonic_ns()}"
        cores = sorted(os.sched_getaffinity(0))[:2]
        command = [
            program, "--no-pci", "--no-huge", "-m", "256", "-l", ",".join(map(str, cores)), "--file-prefix", prefix,
            *(f"--vdev={device}" for device in devices),
            "--", "-i", "--auto-start", "--no-flush-rx", f"--forward-mode={mode}", "--port-topology=loop",
            "--total-num-mbufs=4096", *more,
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + PATIENCE
        while READY not in self.said:
            if self.process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise AssertionError(f"testpmd did not come up:\n{self.said}")
            if serve is None:
                time.sleep(0.02)
            else:
                serve.run(deadline=serve.clock.now() + 20_000)

    @property
    def said(self) -> str:
        """All that it printed."""
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Pmd:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        if error is not None:
            print(self.said)  # shown with the failure

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


def version(program: str) -> str:
    """Such as "DPDK 22.11.11"."""
    said = subprocess.run([program, "-v", "--no-huge", "-m", "8"], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=PATIENCE)  # fmt: skip
    _, _, rest = (said.stdout + said.stderr).partition("RTE Version: '")
    return rest.partition("'")[0]
