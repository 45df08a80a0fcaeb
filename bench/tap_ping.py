"""Round trips of the kernel's ping over a TAP: the whole guest, beside a loop that does nothing but answer.

Needs root, iproute2 and ping. Everything stays inside a network namespace that is made here and removed again.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bench.harness import Figure, compare

GUEST, HOST = "10.9.0.2", "10.9.0.1"
MAC = "02:00:00:00:00:99"


def missing() -> str | None:
    """Why this cannot be measured here, or None."""
    if os.geteuid() != 0:
        return "needs root for a TAP in a namespace of its own"
    for program in ("ip", "ping"):
        if shutil.which(program) is None:
            return f"needs the program {program}"
    if not os.path.exists("/dev/net/tun"):
        return "needs /dev/net/tun"
    return None


@contextmanager
def namespace() -> Iterator[list[str]]:
    """A namespace with a TAP t0; yields the words that run a program inside."""
    name = f"vring-bench-{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for words in (
            ["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"],
            ["ip", "tuntap", "add", "dev", "t0", "mode", "tap"],
            ["ip", "addr", "add", f"{HOST}/24", "dev", "t0"],
            ["ip", "link", "set", "t0", "up"],
        ):
            subprocess.run([*inside, *words], check=True)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@contextmanager
def running(words: list[str], ready: str) -> Iterator[None]:
    """A program that has printed a line with `ready` in it, ended with SIGTERM."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not any(ready in line for line in process.stdout):
                raise RuntimeError(f"{words[-1]} ended before it was ready")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=10)


def ping(inside: list[str], count: int) -> float:
    """Average round trip in microseconds of `count` pings, 2 ms apart."""
    words = [*inside, "ping", "-q", "-n", "-c", str(count), "-i", "0.002", "-W", "1", GUEST]
    out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    if f"{count} received" not in out:
        raise RuntimeError(f"pings were lost: {out}")
    times = re.search(r"= [\d.]+/([\d.]+)/", out)
    if times is None:
        raise RuntimeError(f"ping said nothing of times: {out}")
    return float(times[1]) * 1000


def measure(rounds: int, scale: float) -> list[Figure]:
    """The average round trip, ours and the bare answer's; less is better."""
    count = int(300 * scale)
    guest = ["-ipaddr", GUEST, "-netmask", "255.255.255.0", "-gateway", HOST]
    program = "import sys; from vring.cli import main; sys.exit(main())"
    boot = [sys.executable, "-u", "-c", program, "boot", "--nic", "virtio", "--wire", "tap:t0", "--", *guest]
    bare = [sys.executable, "-u", "-m", "bench.tap_ping"]
    with namespace() as inside:

        def ours() -> float:
            with running([*inside, *boot], "init running"):
                return ping(inside, count)

        def theirs() -> float:
            with running([*inside, *bare], "ready"):
                return ping(inside, count)

        figure = Figure("ping over TAP, average", "µs", "a loop that only answers", note=f"{count} pings, 2 ms apart")
        return [compare(figure, ours, theirs, rounds)]


def _answer() -> None:
    """The yardstick's process: answer on t0 until SIGTERM."""
    import fcntl  # noqa: PLC0415
    import struct  # noqa: PLC0415

    from bench.yardsticks import answer_pings  # noqa: PLC0415
    from hw.abi import if_tun  # noqa: PLC0415

    stop, wake = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(wake, b"x") and None)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, if_tun.TUNSETIFF, struct.pack("16sH22x", b"t0", if_tun.IFF_TAP | if_tun.IFF_NO_PI))
    print("ready", flush=True)
    answer_pings(fd, bytes.fromhex(MAC.replace(":", "")), bytes(int(part) for part in GUEST.split(".")), stop)


if __name__ == "__main__":
    _answer()
