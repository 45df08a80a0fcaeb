"""One machine in two processes beside the same in one: bulk TCP from a guest to a sink of the host, and back.

The guest is on a user wire. In one process its card and the gateway take turns with it; in two, `vring device` has
them, on the other core, and the rings are shared memory. The host's end is a process of its own in both.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.harness import Figure, compare
from guest.sys import constants as c
from hw.fence import has_fence
from vring.build import Rig
from vring.config import Board

if TYPE_CHECKING:
    from guest.apps.env import Env

BLOCK = 1 << 16
PATIENCE = 20  # seconds
_HOST = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
block = bytearray(1 << 18)
while True:
    peer, _ = listener.accept()
    with peer:
        peer.recv_into(block, 8, socket.MSG_WAITALL)
        send = int.from_bytes(block[:8], "little")
        if send:
            for at in range(0, send, len(block)):
                peer.sendall(memoryview(block)[: min(len(block), send - at)])
        else:
            while peer.recv_into(block):
                pass
"""


def missing() -> str:
    """Why this cannot be measured here, or an empty string."""
    return "" if has_fence() else "needs the C extension"


def measure(rounds: int, scale: float) -> list[Figure]:
    """Streams out of the guest and into it, over split rings and packed ones; more is better."""
    amount = int(40_000_000 * scale)
    figures = []
    with _host() as port:
        for ring in ("split", "packed"):
            for way in ("out of", "into"):
                figure = Figure(
                    f"TCP {way} a guest in two processes, {ring}", "MB/s", "the same in one process",
                    note=f"{amount / 1e6:g} MB over a user wire, MTU 1500",
                )  # fmt: skip
                into = way == "into"
                two, one = _stream(port, amount, ring, into, two=True), _stream(port, amount, ring, into, two=False)
                figures.append(compare(figure, two, one, rounds))
    return figures


@contextmanager
def _host() -> Iterator[int]:
    """A process that takes or sends what it is asked for; its port."""
    with subprocess.Popen([sys.executable, "-c", _HOST], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def _card(two: bool, ring: str) -> Iterator[str]:
    """The guest's NIC as a board has it; with `two` it is served by another process."""
    packed = "packed = true\n" if ring == "packed" else ""
    if not two:
        yield f'model = "virtio"\nwire = "user"\n{packed}'
        return
    with tempfile.TemporaryDirectory() as work:
        path = Path(work, "card")
        command = [sys.executable, "-c", "import sys; from vring.cli import main; sys.exit(main())",
                   "device", "--socket", str(path), "--wire", "user"]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                until = time.monotonic() + PATIENCE
                while not path.is_socket():
                    if process.poll() is not None or time.monotonic() > until:
                        raise RuntimeError("vring device did not come up")
                    time.sleep(0.01)
                yield f'model = "vhost-user"\nsocket = "{path}"\n{packed}'
            finally:
                process.terminate()


def _stream(port: int, amount: int, ring: str, into: bool, *, two: bool) -> Callable[[], float]:
    def one() -> float:
        with _card(two, ring) as card:
            board = f'ip = "10.0.2.15"\nmask = "255.255.255.0"\ngateway = "10.0.2.2"\n[[nic]]\n{card}'
            rig = Rig(Board.parse(board))
            try:
                return _timed(rig, port, amount, into)
            finally:
                rig.close()

    return one


def _timed(rig: Rig, port: int, amount: int, into: bool) -> float:
    """Megabytes per second, from the first byte asked for to the last acknowledged or received."""
    moved = 0
    began = 0.0

    def program(env: Env, _argv: list[str]) -> int:
        nonlocal moved, began
        calls, block = env.calls, memoryview(bytearray(BLOCK))
        fd = calls.socket(c.AF_INET, c.SOCK_STREAM)
        calls.connect(fd, ("10.0.2.2", port))
        began = time.perf_counter()
        calls.send(fd, (amount if into else 0).to_bytes(8, "little"))
        if into:
            while count := calls.recv_into(fd, block):
                moved += count
        else:
            for at in range(0, amount, BLOCK):
                calls.send(fd, block[: min(BLOCK, amount - at)])
            calls.shutdown(fd, socket.SHUT_WR)
            calls.recv_into(fd, block)  # the sink closes when it has read everything
            moved = amount
        calls.close(fd)
        return 0

    rig.power_on()
    guest = rig.guests[0]
    rig.loop.run(until=lambda: guest.booted, deadline=rig.clock.now() + PATIENCE * 1_000_000)
    process = guest.spawn(program)
    rig.loop.run(until=lambda: process.exit_status is not None, deadline=rig.clock.now() + 60_000_000)
    elapsed = time.perf_counter() - began
    if moved != amount:
        raise RuntimeError(f"{moved} of {amount} bytes arrived")
    return moved / elapsed / 1e6
