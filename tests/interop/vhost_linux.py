"""Linux's virtio_net in QEMU over our card: `vring device` with a user wire, a DHCP lease, pings, and files both ways.

Each test is one boot of a real kernel under QEMU's emulation. `make interop` runs this; the name of the file keeps it
out of `make test`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hw.abi import virtio as abi
from hw.abi import virtio_net as net
from hw.virtio.net import OFFLOADED
from tests.requirements import require, require_program
from tests.witness.linux_guest import guest_files, said

pytestmark = pytest.mark.witness

QEMU = "qemu-system-x86_64"
FILE = 20 << 20  # bytes of each file
PATIENCE = 120  # seconds of one boot

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /tmp
mount -t tmpfs tmp /tmp

say() { echo "@$*"; }
for word in $(cat /proc/cmdline); do case $word in vring.*) eval "${word#vring.}";; esac; done

cat > /lease <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface && ip route add default via $router && echo "@lease $ip $router" > /dev/console
END
chmod +x /lease

for module in MODULES; do insmod /lib/modules/$module.ko; done
say features $(cat /sys/bus/virtio/devices/virtio0/features)
ip link set lo up
ip link set eth0 up
udhcpc -i eth0 -n -q -t 10 -T 1 -s /lease > /dev/null 2>&1 || say late a lease

ping -q -c 200 -A 10.0.2.2 | grep transmitted | sed 's/^/@pings /'
ping -q -c 5 -i 0.05 -s 20000 10.0.2.2 | grep transmitted | sed 's/^/@fragmented /'
say queues $(ls /sys/class/net/eth0/queues)
for round in $(seq $rounds); do
  timeout 8 wget -q -O /tmp/down http://10.0.2.2:$port/file || say late file $round
  say down$round $(sha256sum < /tmp/down)
  head -c 15728640 /dev/urandom | base64 > /tmp/up  # 20 MiB and more of text: wget ends a form at a zero byte
  say up$round $(sha256sum < /tmp/up)
  timeout 8 wget -q -O /tmp/answer --post-file=/tmp/up http://10.0.2.2:$port/file || say late upload $round
  say heard$round $(cat /tmp/answer)
done
dmesg | grep -E 'virtio|eth0|WARNING|BUG|Call Trace'
say done
poweroff -f
"""


@pytest.fixture(scope="module")
def linux(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    require(platform.machine() == "x86_64", "needs an x86-64 machine, for Debian's kernel of its own kind")
    require_program(QEMU)
    cache = getattr(pytestconfig, "cache", None)
    chosen = os.environ.get("VRING_CACHE")
    if chosen is None:
        chosen = cache.mkdir("linux-guest") if cache is not None else tmp_path_factory.mktemp("linux-guest")
    return guest_files(Path(chosen), INIT, ("virtio_pci", "virtio_net"))


class Web:
    """A server of this host: one file down, and of what comes up it tells the hash."""

    def __init__(self) -> None:
        self.file = random.Random(20).randbytes(FILE)
        self.heard: list[str] = []
        self.begun = 0  # files that somebody has begun to fetch
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(FILE))
                self.end_headers()
                web.begun += 1
                with suppress(ConnectionError):
                    self.wfile.write(web.file)

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                digest = hashlib.sha256(self.rfile.read(length)).hexdigest()
                web.heard.append(digest)
                self.send_response(200)
                self.send_header("Content-Length", str(len(digest)))
                self.end_headers()
                self.wfile.write(digest.encode())

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()


class Device:
    """`vring device` as a process."""

    def __init__(self, work: Path, *more: str) -> None:
        self.path = work / "card"
        self._log = work / "device.log"
        command = [sys.executable, "-c", "import sys; from vring.cli import main; sys.exit(main())",
                   "device", "--socket", str(self.path), "--wire", "user", *more]  # fmt: skip
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + 20
        while not self.path.exists():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until, self.said
            time.sleep(0.02)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Boot:
    """QEMU with a Linux guest whose card is at `socket`."""

    def __init__(
        self,
        files: tuple[Path, Path],
        work: Path,
        socket: Path,
        card: str,
        port: int,
        *,
        rounds: int = 1,
        queues: int = 1,
    ) -> None:
        kernel, disk = files
        self._console = work / "console"
        several = "on" if queues > 1 else "off"
        command = [
            require_program(QEMU), "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", str(queues), "-m", "256",
            "-nodefaults",
            "-no-reboot", "-display", "none", "-serial", f"file:{self._console}",
            "-object", "memory-backend-memfd,id=m,size=256M,share=on", "-numa", "node,memdev=m",
            "-chardev", f"socket,id=c,path={socket},reconnect=1",
            "-netdev", f"vhost-user,id=n,chardev=c,queues={queues}",
            "-device", f"virtio-net-pci,netdev=n,vectors=0,mq={several},romfile=,disable-legacy=on{card}",
            "-kernel", str(kernel), "-initrd", str(disk),
            "-append", f"console=ttyS0 quiet panic=-1 vring.port={port} vring.rounds={rounds}",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @property
    def console(self) -> str:
        return self._console.read_text(errors="replace").replace("\r", "") if self._console.exists() else ""

    def wait_for(self, word: str) -> None:
        """Until the guest has said a line that begins with `word`."""
        until = time.monotonic() + PATIENCE
        while f"@{word}" not in self.console:
            assert self.process.poll() is None, self.console
            assert time.monotonic() < until, self.console
            time.sleep(0.05)

    def end(self) -> dict[str, str]:
        """What it said, when it has powered off."""
        try:
            self.process.wait(PATIENCE)
        finally:
            self.kill()
        print(self.console)  # shown when something below fails
        return said(self.console)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


RINGS: dict[str, tuple[str, int]] = {
    "split": (",mrg_rxbuf=off,indirect_desc=off,event_idx=off", 0),
    "split-all": ("", 1 << net.VIRTIO_NET_F_MRG_RXBUF | 1 << abi.VIRTIO_RING_F_EVENT_IDX
                  | 1 << abi.VIRTIO_RING_F_INDIRECT_DESC),
    "packed": (",packed=on,mrg_rxbuf=off,indirect_desc=off,event_idx=off", 1 << abi.VIRTIO_F_RING_PACKED),
    "packed-all": (",packed=on", 1 << abi.VIRTIO_F_RING_PACKED | 1 << net.VIRTIO_NET_F_MRG_RXBUF
                   | 1 << abi.VIRTIO_RING_F_EVENT_IDX | 1 << abi.VIRTIO_RING_F_INDIRECT_DESC),
}  # fmt: skip
ALL = sum(1 << bit for bit in (abi.VIRTIO_F_RING_PACKED, net.VIRTIO_NET_F_MRG_RXBUF, abi.VIRTIO_RING_F_EVENT_IDX,
                               abi.VIRTIO_RING_F_INDIRECT_DESC))  # fmt: skip

MQ = 1 << net.VIRTIO_NET_F_MQ


def check_files(words: dict[str, str], web: Web, rounds: int) -> None:
    assert "late" not in words, f"waited in vain for {words['late']}"
    for number in range(1, rounds + 1):
        assert words[f"down{number}"].split()[0] == hashlib.sha256(web.file).hexdigest()
        assert words[f"up{number}"].split()[0] == words[f"heard{number}"] == web.heard[number - 1]


@pytest.mark.parametrize("ring", RINGS)
def test_linux_gets_a_lease_pings_and_moves_files_both_ways(
    tmp_path: Path, linux: tuple[Path, Path], web: Web, ring: str
) -> None:
    card, expected = RINGS[ring]
    device = Device(tmp_path)
    try:
        words = Boot(linux, tmp_path, device.path, card, web.port).end()
    finally:
        status = device.end()

    assert int(words["features"][::-1], 2) & ALL == expected
    assert words["lease"] == "10.0.2.15 10.0.2.2"
    assert words["pings"].startswith("200 packets transmitted, 200 packets received")
    assert words["fragmented"].startswith("5 packets transmitted, 5 packets received")
    check_files(words, web, 1)
    assert (status, device.said.count("the front end left")) == (0, 1)


@pytest.mark.parametrize("ring", ["split-all", "packed-all"])
def test_linux_leaves_checksums_and_segments_to_the_card(
    tmp_path: Path, linux: tuple[Path, Path], web: Web, ring: str
) -> None:
    card, expected = RINGS[ring]
    device = Device(tmp_path, "--card", "offload=on")
    try:
        words = Boot(linux, tmp_path, device.path, card, web.port).end()
    finally:
        device.end()

    assert int(words["features"][::-1], 2) & (ALL | OFFLOADED) == expected | OFFLOADED
    assert words["pings"].startswith("200 packets transmitted, 200 packets received")
    check_files(words, web, 1)


@pytest.mark.parametrize("ring", ["split-all", "packed-all"])
def test_linux_uses_two_pairs_of_queues(tmp_path: Path, linux: tuple[Path, Path], web: Web, ring: str) -> None:
    card, expected = RINGS[ring]
    device = Device(tmp_path, "--card", "queues=2")
    try:
        words = Boot(linux, tmp_path, device.path, card, web.port, queues=2).end()
    finally:
        device.end()

    assert int(words["features"][::-1], 2) & (ALL | MQ) == expected | MQ
    assert words["queues"] == "rx-0 rx-1 tx-0 tx-1"
    assert words["pings"].startswith("200 packets transmitted, 200 packets received")
    assert words["fragmented"].startswith("5 packets transmitted, 5 packets received")
    check_files(words, web, 1)


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_the_device_goes_in_mid_transfer_and_another_takes_over(
    tmp_path: Path, linux: tuple[Path, Path], web: Web, how: str
) -> None:
    device = Device(tmp_path)
    boot = Boot(linux, tmp_path, device.path, "", web.port, rounds=3)
    try:
        boot.wait_for("heard1")
        until = time.monotonic() + PATIENCE
        while web.begun < 2:
            assert time.monotonic() < until, boot.console
            time.sleep(0.001)
        if how == "killed":
            device.kill()
        else:
            device.end()
        device = Device(tmp_path)
        words = boot.end()
    finally:
        boot.kill()
        device.kill()

    assert words["pings"].startswith("200 packets transmitted, 200 packets received")
    assert words["done"] == "", "the guest survived"
    assert words["late"].startswith("file 2"), "it came whole: nothing was under way when the device went"
    assert words["down3"].split()[0] == hashlib.sha256(web.file).hexdigest(), "files come again"
    assert words["up3"].split()[0] == words["heard3"]
