"""The user wire beside slirp4netns at an MTU of 1500: megabytes a second between a guest and the host's loopback.

Two kinds of guest. The host's own kernel, in a namespace whose TAP leads to one or the other: so the two gateways are
compared alone; once frame by frame, as theirs works, and once with the TAP's virtio header, by which the kernel takes
and gives segments of up to 64 KB that nobody has to cut. And a whole guest of ours behind its own user wire, which is
what users of `vring boot` get; with the usual MTU, and with one of 64 KB.

Everything happens in two namespaces that are made here and removed again: the inner one is the kernel's guest, the
outer one is the host, where both gateways run and the server listens on the loopback. Needs root, iproute2 and
slirp4netns.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bench.harness import Figure, compare
from bench.tap_ping import missing as missing_tap
from bench.tap_ping import running

if TYPE_CHECKING:
    from guest.apps.env import Env

HOST, GUEST = "10.0.2.2", "10.0.2.15"
SINK, SOURCE = 9009, 9019
BLOCK = 1 << 16
WORK = 200_000_000
JUMBO = 65520
CLONE_NEWNET = 0x40000000
YARDSTICK = "slirp4netns, for the kernel as guest"
DIRECTIONS = {"out": "guest to host", "in": "host to guest"}


def missing() -> str | None:
    """Why this cannot be measured here, or None."""
    if (why := missing_tap()) is not None:
        return why
    return None if shutil.which("slirp4netns") else "needs the program slirp4netns"


def measure(rounds: int, scale: float) -> list[Figure]:
    """A figure for each guest and direction; more is better."""
    amount = max(1, int(WORK * scale))
    figures = []
    with namespaces() as (outer, inner):
        inside_outer, inside_inner = (["ip", "netns", "exec", name] for name in (outer, inner))
        slirp = [*inside_outer, sys.executable, "-u", "-m", "bench.usernet", "slirp4netns", inner]
        ours = [*inside_outer, sys.executable, "-u", "-m", "bench.usernet", "gateway", inner]

        def kernel(gateway: list[str], direction: str) -> float:
            with running(gateway, "ready"):
                words = [*inside_inner, sys.executable, "-m", "bench.usernet", "ask", direction, str(amount)]
                return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

        def guest(direction: str, mtu: int) -> float:
            words = [*inside_outer, sys.executable, "-m", "bench.usernet", "guest", direction, str(amount), str(mtu)]
            return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

        with running([*inside_outer, sys.executable, "-u", "-m", "bench.usernet", "server"], "ready"):
            for direction, name in DIRECTIONS.items():
                theirs = partial(kernel, slirp, direction)
                note = f"{amount / 1e6:g} MB"
                for text, mine in (
                    ("the kernel as guest, MTU 1500", partial(kernel, ours, direction)),
                    ("the kernel as guest, MTU 1500, large segments", partial(kernel, [*ours, "large"], direction)),
                    ("a whole guest, MTU 1500", partial(guest, direction, 1500)),
                    (f"a whole guest, MTU {JUMBO}", partial(guest, direction, JUMBO)),
                ):
                    figure = Figure(f"user wire, {name}: {text}", "MB/s", YARDSTICK, note=note)
                    figures.append(compare(figure, mine, theirs, rounds))
    return figures


@contextmanager
def namespaces() -> Iterator[tuple[str, str]]:
    """The names of the outer and the inner namespace."""
    names = [f"vring-bench-{kind}-{os.getpid()}" for kind in ("outer", "inner")]
    made = []
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            made.append(name)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield names[0], names[1]
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=True)


def _ending() -> threading.Event:
    """Set by SIGTERM."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    return ended


# -- the host and the kernel's guest -----------------------------------------------------------------------------


def server() -> None:
    """On the outer loopback: one port takes everything, the other gives for ever."""
    ended = _ending()

    def take(sock: socket.socket) -> None:
        while sock.recv(1 << 20):
            pass

    def give(sock: socket.socket) -> None:
        block = bytes(1 << 20)
        while True:
            sock.sendall(block)

    def serve(port: int, each: Callable[[socket.socket], None]) -> None:
        listening = socket.create_server(("127.0.0.1", port))

        def one(sock: socket.socket) -> None:
            try:
                with sock:
                    each(sock)
            except OSError:
                pass  # the client has gone

        while True:
            threading.Thread(target=one, args=(listening.accept()[0],), daemon=True).start()

    for port, each in ((SINK, take), (SOURCE, give)):
        threading.Thread(target=serve, args=(port, each), daemon=True).start()
    print("ready", flush=True)
    ended.wait()


def ask(direction: str, amount: int) -> float:
    """From the inner namespace: move `amount` bytes; MB/s."""
    end = time.monotonic() + 10
    while True:
        try:
            made = socket.create_connection((HOST, SINK if direction == "out" else SOURCE), timeout=20)
            break
        except OSError:
            if time.monotonic() > end:
                raise
    with made:
        start = time.perf_counter()
        if direction == "out":
            block = memoryview(bytes(BLOCK))
            for at in range(0, amount, BLOCK):
                made.sendall(block[: min(BLOCK, amount - at)])
            made.shutdown(socket.SHUT_WR)
            if made.recv(1):
                raise RuntimeError("something came back")
        else:
            left = amount
            while left > 0:
                got = len(made.recv(1 << 18))
                if not got:
                    raise RuntimeError("the connection ended early")
                left -= got
        return amount / (time.perf_counter() - start) / 1e6


# -- the gateways ------------------------------------------------------------------------------------------------


def slirp4netns(inner: str) -> None:
    """Their gateway, until SIGTERM."""
    ended = _ending()
    read, write = os.pipe()
    words = ["slirp4netns", "--configure", "--mtu=1500", "--netns-type=path", "--ready-fd", str(write)]
    with subprocess.Popen(
        [*words, f"/run/netns/{inner}", "tap0"], pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        os.close(write)
        if os.read(read, 1) != b"1":
            raise RuntimeError("slirp4netns did not start")
        print("ready", flush=True)
        ended.wait()
        process.terminate()


def _enter(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def gateway(inner: str, kind: str = "", profile: str = "") -> None:
    """Ours on a TAP of the inner namespace, until SIGTERM; its sockets are the outer one's."""
    import cProfile  # noqa: PLC0415
    import fcntl  # noqa: PLC0415
    import random  # noqa: PLC0415

    from hw.abi import if_tun  # noqa: PLC0415
    from hw.clock import RealClock  # noqa: PLC0415
    from hw.loop import Loop  # noqa: PLC0415
    from hw.wire.tap import TapLink  # noqa: PLC0415
    from vring.usernet.gateway import UserNet  # noqa: PLC0415

    here = f"/proc/{os.getpid()}/ns/net"
    with open(here, "rb") as outside:
        _enter(f"/run/netns/{inner}")
        loop = Loop(RealClock())
        link = TapLink(loop, "t0", vnet_hdr=kind == "large")
        for words in (("addr", "add", f"{GUEST}/24", "dev", "t0"), ("link", "set", "t0", "up"),
                      ("route", "add", "default", "via", HOST)):  # fmt: skip
            subprocess.run(["ip", *words], check=True)
        _enter(f"/proc/self/fd/{outside.fileno()}")
    if kind == "large":
        fcntl.ioctl(link.fileno(), if_tun.TUNSETOFFLOAD, if_tun.TUN_F_CSUM | if_tun.TUN_F_TSO4 | if_tun.TUN_F_TSO6)
    net = UserNet(loop, rng=random.Random(0), wire=link, large=kind == "large")
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        loop.stop()

    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    while not stopped:
        loop.run(until=lambda: stopped)
    if profile:
        profiler.disable()
        profiler.dump_stats(profile)
    net.close()
    link.close()


def guest(direction: str, amount: int, mtu: int = 1500, profile: str = "") -> float:
    """A whole guest behind a user wire moves `amount` bytes; MB/s."""
    import cProfile  # noqa: PLC0415

    from guest.sys import constants as c  # noqa: PLC0415
    from vring.build import Rig  # noqa: PLC0415
    from vring.config import Board  # noqa: PLC0415

    words = f"-ipaddr {GUEST} -netmask 255.255.255.0 -gateway {HOST}"
    rig = Rig(Board.of_words((f"virtio:mtu={mtu}",), (f"user:mtu={mtu}",), words))
    rig.power_on()
    booted = rig.guests[0]
    rig.loop.run(until=lambda: booted.booted)
    rates: list[float] = []

    def out(env: Env, _argv: list[str]) -> int:
        calls = env.calls
        fd = calls.socket(c.AF_INET, c.SOCK_STREAM)
        calls.connect(fd, (HOST, SINK))
        block = memoryview(bytes(BLOCK))
        start = time.perf_counter()
        left = amount
        while left > 0:
            left -= calls.send(fd, block[: min(BLOCK, left)])
        calls.shutdown(fd, c.SHUT_WR)
        calls.recv(fd, 1)
        rates.append(amount / (time.perf_counter() - start) / 1e6)
        return 0

    def into(env: Env, _argv: list[str]) -> int:
        calls = env.calls
        fd = calls.socket(c.AF_INET, c.SOCK_STREAM)
        calls.connect(fd, (HOST, SOURCE))
        buffer = bytearray(1 << 18)
        start = time.perf_counter()
        left = amount
        while left > 0:
            left -= calls.recv_into(fd, buffer)
        rates.append((amount - left) / (time.perf_counter() - start) / 1e6)
        return 0

    booted.spawn(out if direction == "out" else into)
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    rig.loop.run(until=lambda: bool(rates))
    if profile:
        profiler.disable()
        profiler.dump_stats(profile)
    rig.close()
    return rates[0]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["server"]:
            server()
        case ["ask", direction, amount]:
            print(ask(direction, int(amount)))
        case ["slirp4netns", inner]:
            slirp4netns(inner)
        case ["gateway", inner, *rest]:
            gateway(inner, *rest)
        case ["guest", direction, amount, mtu, *rest]:
            print(guest(direction, int(amount), int(mtu), *rest))
        case _:
            raise SystemExit("python -m bench.usernet server | ask out|in BYTES | guest out|in BYTES MTU [PROFILE] | …")
