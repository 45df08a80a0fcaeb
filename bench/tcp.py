"""TCP over a TAP at an MTU of 1500: the whole guest, beside a loop that does the least that TCP asks.

The peer is a program on the kernel's sockets, the same for both. Bulk in either direction, request-response of one
byte, and connections that are opened, used for one byte and closed. Needs root and iproute2, as bench/tap_ping.py,
whose namespace it uses.

The yardstick (`serve`) is a TCP for one connection at a time that trusts everybody: no loss, no timers, no options, no
checks of what comes but its checksum. It shows what Python and a TAP allow.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from bench import pytcp
from bench.harness import Figure, compare
from bench.tap_ping import GUEST, HOST, MAC, namespace, running

if TYPE_CHECKING:
    from guest.apps.env import Env

ECHO, DISCARD, SOURCE = 7, 9, 19
BLOCK = 1 << 16
KINDS: dict[str, tuple[str, str]] = {
    "in": ("TCP bulk into the guest, MTU 1500", "MB/s"),
    "out": ("TCP bulk out of the guest, MTU 1500", "MB/s"),
    "rr": ("TCP request-response, 1 byte", "transactions/s"),
    "connect": ("TCP open, one byte, close", "connections/s"),
}
CARDS = {"plain": ("virtio", "tap:t0"), "offload": ("virtio:offload=on", "tap:t0,vnet_hdr=on")}
OFFLOADED = ("in", "out")  # measured over either card
WORK = {"in": 60_000_000, "out": 60_000_000, "rr": 5000, "connect": 500}


def measure(rounds: int, scale: float) -> list[Figure]:
    """One figure a kind; more is better."""
    ours_words = [sys.executable, "-u", "-m", "bench.tcp", "guest", "plain"]
    bare_words = [sys.executable, "-u", "-m", "bench.tcp", "serve"]
    figures = []
    with namespace() as inside:
        for kind, (name, unit) in KINDS.items():
            amount = max(1, int(WORK[kind] * scale))

            def one(server: list[str], kind: str = kind, amount: int = amount) -> float:
                with running([*inside, *server], "ready"):
                    words = [*inside, sys.executable, "-m", "bench.tcp", "ask", kind, str(amount)]
                    done = subprocess.run(words, check=True, capture_output=True, text=True)
                return float(done.stdout)

            bare = f"{'a loop' if kind != 'connect' else 'the same loop'} that does the least"
            figure = Figure(name, unit, bare, note=f"{amount / 1e6:g} MB" if unit == "MB/s" else f"{amount} of them")
            ours = partial(one, ours_words)
            figures.append(compare(figure, ours, partial(one, bare_words), rounds))
            if kind in OFFLOADED:
                note = f"{4 * amount / 1e6:g} MB"
                figure = Figure(f"{name.removesuffix(', MTU 1500')}, with offload", unit, f"{bare}, without", note=note)
                words = [*ours_words[:-1], "offload"]
                figures.append(
                    compare(figure, partial(one, words, amount=4 * amount), partial(one, bare_words), rounds)
                )
            if not pytcp.missing():
                # Slow enough to be given a tenth of the work.
                words = [sys.executable, "-u", "-m", "bench.pytcp"]
                theirs = partial(one, words, amount=max(1, amount // 10))
                figure = Figure(f"{name}, beside another stack", unit, "pmd-pytcp, a TCP in Python", note=figure.note)
                figures.append(compare(figure, ours, theirs, min(rounds, 3)))
    return figures


# -- the client, on the kernel's sockets -------------------------------------------------------------------------


def ask(kind: str, amount: int) -> float:
    """Do `amount` bytes, transactions or connections; how many (MB) a second."""
    return {"in": _send, "out": _receive, "rr": _transact, "connect": _connect}[kind](amount)


def _dial(port: int) -> socket.socket:
    made = socket.create_connection((GUEST, port), timeout=20)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _send(amount: int) -> float:
    block = memoryview(bytes(BLOCK))
    with _dial(DISCARD) as made:
        start = time.perf_counter()
        for at in range(0, amount, BLOCK):
            made.sendall(block[: min(BLOCK, amount - at)])
        made.shutdown(socket.SHUT_WR)
        made.recv(1)  # the end: all of it has arrived
        return amount / (time.perf_counter() - start) / 1e6


def _receive(amount: int) -> float:
    with _dial(SOURCE) as made:
        start = time.perf_counter()
        left = amount
        while left > 0:
            got = len(made.recv(1 << 18))
            if not got:
                raise RuntimeError("the connection ended early")
            left -= got
        return (amount - left) / (time.perf_counter() - start) / 1e6


def _transact(amount: int) -> float:
    with _dial(ECHO) as made:
        start = time.perf_counter()
        for _ in range(amount):
            made.send(b"x")
            if made.recv(1) != b"x":
                raise RuntimeError("another byte came back")
        return amount / (time.perf_counter() - start)


def _connect(amount: int) -> float:
    start = time.perf_counter()
    for _ in range(amount):
        with _dial(ECHO) as made:
            made.send(b"x")
            if made.recv(1) != b"x":
                raise RuntimeError("another byte came back")
            # Resets, so that the client's ports do not run out in TIME-WAIT.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return amount / (time.perf_counter() - start)


# -- the guest ---------------------------------------------------------------------------------------------------


def guest(card: str, profile: str | None = None) -> None:
    """Boot a guest on t0 that serves all three ports, until SIGTERM; `profile` is where cProfile's figures go."""
    import cProfile  # noqa: PLC0415

    from guest.sys import constants as c  # noqa: PLC0415
    from vring.build import Rig  # noqa: PLC0415
    from vring.config import Board  # noqa: PLC0415

    def serve(port: int, each: Callable[[Env, int], None]) -> Callable[[Env, list[str]], int]:
        def main(env: Env, _argv: list[str]) -> int:
            calls = env.calls
            listening = calls.socket(c.AF_INET, c.SOCK_STREAM)
            calls.bind(listening, ("0.0.0.0", port))
            calls.listen(listening, 64)
            while True:
                fd, _ = calls.accept(listening)
                calls.setsockopt(fd, c.IPPROTO_TCP, c.TCP_NODELAY, 1)
                env.guest.spawn(lambda env, _argv, fd=fd: one(env, fd))

        def one(env: Env, fd: int) -> int:
            try:
                each(env, fd)
            except OSError:
                pass  # the peer has reset it
            env.calls.close(fd)
            return 0

        return main

    def echo(env: Env, fd: int) -> None:
        while data := env.calls.recv(fd, BLOCK):
            env.calls.send(fd, data)

    def discard(env: Env, fd: int) -> None:
        buffer = bytearray(1 << 18)
        while env.calls.recv_into(fd, buffer):
            pass

    def source(env: Env, fd: int) -> None:
        block = bytes(BLOCK)
        while True:
            env.calls.send(fd, block)

    words = f"-ipaddr {GUEST} -netmask 255.255.255.0 -gateway {HOST}"
    rig = Rig(Board.of_words((CARDS[card][0],), (CARDS[card][1],), words))
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        rig.loop.stop()

    signal.signal(signal.SIGTERM, stop)
    rig.power_on()
    booted = rig.guests[0]
    rig.loop.run(until=lambda: booted.booted)
    for port, each in ((ECHO, echo), (DISCARD, discard), (SOURCE, source)):
        booted.spawn(serve(port, each))
    print("ready", flush=True)
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    while not stopped:
        rig.loop.run(until=lambda: stopped)
    if profile:
        profiler.disable()
        profiler.dump_stats(profile)
    rig.close()


# -- where the time goes -----------------------------------------------------------------------------------------

PARTS = (
    ("TAP: read and write", ("posix.readv", "posix.writev", "posix.read", "posix.write", "epoll", "select.")),
    ("the card, hw/virtio", ("/hw/virtio/",)),
    ("the ring's driver half and the driver", ("/guest/ring/", "/guest/drivers/")),
    ("front end, Ethernet, ARP", ("/guest/fe.py", "/guest/ni.py", "ethernet.py", "neighbour.py", "/net/interface.py")),
    ("TCP", ("/guest/net/tcp/",)),
    ("IP", ("/guest/net/ip", "/guest/net/family.py", "/guest/net/hops.py", "/guest/net/stack.py")),
    ("checksums", ("checksum", "inet_sum")),
    ("packet buffers", ("/guest/net/pbuf.py",)),
    ("system calls and programs", ("/guest/sys/", "/bench/tcp.py", "greenlet", "/guest/apps/")),
    ("wires, loop, memory", ("/hw/",)),
)


def where(kind: str, amount: int, card: str = "plain") -> None:
    """Profile the guest while it does `amount` of `kind`; print the share of each part, and its calls for each segment
    of 1448 bytes, transaction or connection.
    """
    import pstats  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    with tempfile.NamedTemporaryFile(suffix=".prof") as file, namespace() as inside:
        with running([*inside, sys.executable, "-u", "-m", "bench.tcp", "guest", card, file.name], "ready"):
            words = [*inside, sys.executable, "-m", "bench.tcp", "ask", kind, str(amount)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
        stats: dict[tuple[str, int, str], tuple[int, int, float, float, object]]
        stats = pstats.Stats(file.name).stats  # type: ignore[attr-defined]
    waits = ("epoll' objects", "select.poll", "sleep")
    busy = {key: row for key, row in stats.items() if not any(word in key[2] for word in waits)}
    whole = sum(row[2] for row in busy.values())
    frames = amount if kind in ("rr", "connect") else max(1, amount // 1448)
    calls = sum(row[1] for row in busy.values()) / frames
    print(f"{float(done.stdout):.0f} {KINDS[kind][1]} under the profiler; {calls:.0f} calls for each of {frames}")
    found: dict[str, list[float]] = {}
    for (file_name, _, function), row in busy.items():
        text = f"{file_name}:{function}"
        part = next((name for name, words in PARTS if any(word in text for word in words)), "Python's own functions")
        sums = found.setdefault(part, [0.0, 0.0])
        sums[0] += row[2]
        sums[1] += row[1]
    for part, (seconds, count) in sorted(found.items(), key=lambda item: -item[1][0]):
        print(f"{seconds / whole:6.1%}  {count / frames:6.1f} calls  {part}")


# -- the yardstick -----------------------------------------------------------------------------------------------


def serve() -> None:
    """The yardstick's process: the least TCP, on t0, until SIGTERM."""
    import fcntl  # noqa: PLC0415

    from bench.least_tcp import LeastTcp  # noqa: PLC0415
    from hw.abi import if_tun  # noqa: PLC0415

    stop, wake = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(wake, b"x") and None)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, if_tun.TUNSETIFF, struct.pack("16sH22x", b"t0", if_tun.IFF_TAP | if_tun.IFF_NO_PI))
    print("ready", flush=True)
    LeastTcp(fd, bytes.fromhex(MAC.replace(":", "")), socket.inet_aton(GUEST), ECHO, SOURCE).run(stop)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["guest", card, *rest]:
            guest(card, *rest)
        case ["where", kind, amount, *rest]:
            where(kind, int(amount), *rest)
        case ["serve"]:
            serve()
        case ["ask", kind, amount]:
            print(ask(kind, int(amount)))
        case _:
            raise SystemExit(
                "python -m bench.tcp guest CARD [PROFILE] | serve | ask KIND AMOUNT | where KIND AMOUNT [CARD]"
            )
