"""A guest of ours and a Linux guest of QEMU's on one network: through QEMU's sockets, and through a VDE switch.

QEMU's card is QEMU's own here; what is ours is the wire, and the guest at its other end. `make interop` runs this; the
name of the file keeps it out of `make test`.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guest.kernel import Guest
from hw.clock import SECOND, RealClock
from hw.loop import Loop
from hw.machine import Machine
from hw.wire.dgram import DatagramLink
from hw.wire.link import Link
from hw.wire.stream import StreamLink
from hw.wire.vde import VdeLink
from tests.requirements import require, require_program
from tests.witness.linux_guest import guest_files, said

pytestmark = pytest.mark.witness

QEMU = "qemu-system-x86_64"
PATIENCE = 120 * SECOND  # of one boot and all that is done in it
BYTES = 20 << 20
WORDS = "-ipaddr 10.0.0.2 -netmask 255.255.255.0 -s echo -s idle"

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /tmp
mount -t tmpfs tmp /tmp
say() {{ echo "@$*"; }}
for module in MODULES; do insmod /lib/modules/$module.ko; done
ip link set lo up
ip addr add 10.0.0.1/24 dev eth0
ip link set eth0 up
for round in $(seq 50); do ping -q -c 1 -W 1 10.0.0.2 > /dev/null && break; done
say up
ping -q -c 200 -A 10.0.0.2 | grep transmitted | sed 's/^/@pings /'
# Six fragments: a port of a VDE switch has room for ten frames at a time, and drops the others.
ping -q -c 5 -i 0.05 -s 8000 10.0.0.2 | grep transmitted | sed 's/^/@fragmented /'
head -c {BYTES} /dev/urandom > /tmp/file
say sent $(sha256sum < /tmp/file)
say back $(timeout 60 nc 10.0.0.2 7 < /tmp/file | sha256sum)
sleep 1
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


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(RealClock())
    yield loop
    loop.close()


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Path]:
    """A VDE switch, made when it is asked for; the others do without."""
    place = tmp_path / "switch"
    program = require_program("vde_switch")
    process = subprocess.Popen([program, "-s", str(place)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 10
    while not (place / "ctl").exists():
        assert time.monotonic() < until, "the switch did not come up"
        time.sleep(0.01)
    yield place
    process.send_signal(signal.SIGTERM)
    process.wait(10)
    if process.stdin is not None:
        process.stdin.close()


# By name: our end of the wire, and what QEMU is told of its own.
WIRES: dict[str, tuple[Callable[[Loop, Path], Link], str]] = {
    "stream-we-listen": (
        lambda loop, work: StreamLink(loop, str(work / "s"), server=True),
        "stream,id=n,server=off,addr.type=unix,addr.path={work}/s",
    ),
    "stream-qemu-listens": (
        lambda loop, work: StreamLink(loop, str(work / "s")),
        "stream,id=n,server=on,addr.type=unix,addr.path={work}/s",
    ),
    "dgram": (
        lambda loop, work: DatagramLink(loop, str(work / "ours"), str(work / "theirs")),
        "dgram,id=n,local.type=unix,local.path={work}/theirs,remote.type=unix,remote.path={work}/ours",
    ),
    "vde": (lambda loop, work: VdeLink(loop, str(work / "switch")), "vde,id=n,sock={work}/switch"),
}


@pytest.mark.parametrize("wire", WIRES)
def test_a_linux_guest_of_qemus_and_ours_share_a_network(
    loop: Loop, tmp_path: Path, linux: tuple[Path, Path], wire: str, request: pytest.FixtureRequest
) -> None:
    if wire == "vde":
        request.getfixturevalue("switch")
    make, netdev = WIRES[wire]
    machine = Machine(loop, cmdline=WORDS, seed=1)
    link = make(loop, tmp_path)
    machine.add_virtio_net(link)
    guest = Guest(machine.platform, name="ours")
    machine.power_on(guest)
    console = tmp_path / "console"
    kernel, disk = linux
    qemu = subprocess.Popen(
        [
            require_program(QEMU), "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults",
            "-no-reboot", "-display", "none", "-serial", f"file:{console}", "-netdev", netdev.format(work=tmp_path),
            "-device", "virtio-net-pci,netdev=n,vectors=0,romfile=,disable-legacy=on",
            "-kernel", str(kernel), "-initrd", str(disk), "-append", "console=ttyS0 quiet panic=-1 ipv6.disable=1",
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def heard(word: str) -> bool:
        return f"@{word}" in console.read_text(errors="replace") if console.exists() else False

    def wait_for(word: str) -> None:
        end = loop.clock.now() + PATIENCE
        while not heard(word):
            assert qemu.poll() is None or heard(word), console.read_text(errors="replace")
            assert loop.clock.now() < end, console.read_text(errors="replace")
            loop.run(deadline=loop.clock.now() + SECOND // 20)

    try:
        wait_for("fragmented")  # ping's socket on the other side hears of all pings, and has little room
        ping = guest.spawn("ping", "10.0.0.1", "-c", "50", "-i", "0.02", "-q")
        wait_for("done")
    finally:
        qemu.kill()
        qemu.wait()
        guest.close()
        machine.power_off()
        link.close()

    words = said(console.read_text(errors="replace").replace("\r", ""))
    print(words)
    assert words["pings"].startswith("200 packets transmitted, 200 packets received")
    assert words["fragmented"].startswith("5 packets transmitted, 5 packets received")
    assert words["back"] == words["sent"], "twenty megabytes there and back"
    assert ping.exit_status == 0
    assert any("50 packets transmitted, 50 received" in line for line in guest.log.output)
    assert guest.leaks == []
