"""UDP echo over a TAP: the whole guest with its echo program, beside a loop that does nothing but send back.

The client is the same for both: a program on the kernel's sockets, which keeps 1 or 32 small datagrams on their way.
Each echo is compared with what was sent; one that is lost is an error. Needs root and iproute2, as bench/tap_ping.py,
whose namespace it uses.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

from bench.harness import Figure, compare
from bench.tap_ping import GUEST, HOST, MAC, namespace, running

PORT = 7
SIZE = 32  # bytes of payload
OUTSTANDING = (1, 32)


def measure(rounds: int, scale: float) -> list[Figure]:
    """Echoes per second with 1 and with 32 datagrams outstanding; more is better."""
    guest = ["-ipaddr", GUEST, "-netmask", "255.255.255.0", "-gateway", HOST, "-s", "udpecho", "-l", str(PORT)]
    program = "import sys; from vring.cli import main; sys.exit(main())"
    boot = [sys.executable, "-u", "-c", program, "boot", "--nic", "virtio", "--wire", "tap:t0", "--", *guest]
    bare = [sys.executable, "-u", "-m", "bench.udp_echo", "serve"]
    figures = []
    with namespace() as inside:
        for outstanding in OUTSTANDING:
            count = int((3000 if outstanding == 1 else 10_000) * scale)

            def echoes(server: list[str], ready: str, outstanding: int = outstanding, count: int = count) -> float:
                words = [sys.executable, "-m", "bench.udp_echo", "ask", str(outstanding), str(count)]
                with running([*inside, *server], ready):
                    done = subprocess.run([*inside, *words], check=True, capture_output=True, text=True)
                return float(done.stdout)

            figure = Figure(
                f"UDP echo over TAP, {outstanding} outstanding", "datagrams/s", "a loop that only sends back",
                note=f"{count} datagrams of {SIZE} bytes",
            )  # fmt: skip
            ours, theirs = partial(echoes, boot, f"udpecho: port {PORT}"), partial(echoes, bare, "ready")
            figures.append(compare(figure, ours, theirs, rounds))
    return figures


def ask(outstanding: int, count: int) -> float:
    """Have `count` datagrams echoed, `outstanding` at a time; how many a second came back."""
    peer = (GUEST, PORT)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(peer)
        client.settimeout(2)
        client.send(b"hello")  # finds the neighbour
        client.recv(100)
        waiting: set[bytes] = set()
        sent = returned = 0
        start = time.perf_counter()
        while returned < count:
            while sent < count and len(waiting) < outstanding:
                data = sent.to_bytes(4, "big") * (SIZE // 4)
                waiting.add(data)
                client.send(data)
                sent += 1
            waiting.remove(client.recv(100))  # KeyError: not what was sent, or a second time
            returned += 1
        return count / (time.perf_counter() - start)


def serve() -> None:
    """The yardstick's process: send back on t0 until SIGTERM."""
    import fcntl  # noqa: PLC0415
    import struct  # noqa: PLC0415

    from bench.yardsticks import echo_datagrams  # noqa: PLC0415
    from hw.abi import if_tun  # noqa: PLC0415

    stop, wake = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(wake, b"x") and None)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, if_tun.TUNSETIFF, struct.pack("16sH22x", b"t0", if_tun.IFF_TAP | if_tun.IFF_NO_PI))
    print("ready", flush=True)
    echo_datagrams(fd, bytes.fromhex(MAC.replace(":", "")), bytes(int(part) for part in GUEST.split(".")), stop)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        print(ask(int(sys.argv[2]), int(sys.argv[3])))
