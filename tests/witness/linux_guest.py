"""A Linux guest in two files, kernel and initial RAM disk, made of Debian's packages without installing any.

The RAM disk holds busybox, the modules that virtio-net on virtio-mmio needs, and `INIT`, which loads them, pings
`PEER`, unloads and loads the driver once more, and powers off. What it finds it says on the console in lines that
start with `@`; `said()` reads them.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.requirements import require, require_program

PEER = "10.77.0.1"
LINUX = "10.77.0.2"
PINGS_BACK = 200  # echo requests that the peer sends of its own accord
STATISTICS = ("rx_packets", "tx_packets", "rx_errors", "tx_errors", "rx_dropped", "tx_dropped")
KERNEL = "linux-image-cloud-amd64"  # Debian's name for its newest kernel of this kind
BUSYBOX = "busybox-static"
DRIVERS = ("virtio_mmio", "virtio_net")
_STEP_SECONDS = 120

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

say() {{ echo "@$*"; }}
try() {{ tag=$1; shift; say "$tag $(ping -q "$@" {PEER} | grep transmitted)"; }}
down() {{ ip link set eth0 down; sleep 0.1; rmmod virtio_net; }}
up() {{ ip addr add {LINUX}/24 dev eth0; ip link set eth0 up; }}
card() {{ cat /sys/class/net/eth0/$1; }}
heard() {{ card statistics/rx_packets; }}

for module in MODULES; do insmod /lib/modules/$module.ko; done
say kernel $(uname -r)
say features $(cat /sys/bus/virtio/devices/virtio0/features)
say status $(cat /sys/bus/virtio/devices/virtio0/status)
say mac $(card address)
say mtu $(card mtu)
up
say carrier $(card carrier)

# The peer pings back after the first echo request. ping's own small socket buffer would fill up with that: wait.
try first -c 1
waited=0
while [ $(heard) -lt {PINGS_BACK} ] && [ $waited -lt 100 ]; do sleep 0.05; waited=$((waited + 1)); done

try small -c 5 -i 0.02
try full -c 5 -i 0.02 -s $(($(card mtu) - 28))
try fragmented -c 3 -i 0.02 -s 60000
try flood -c 300 -A
for file in {" ".join(STATISTICS)}; do say $file $(card statistics/$file); done
awk '/^(Icmp|Ip):/ {{ if (names[$1]) {{ split(names[$1], name); for (i = 2; i <= NF; i++) print "@" name[i], $i }}
                     else names[$1] = $0 }}' /proc/net/snmp

down
insmod /lib/modules/virtio_net.ko
up
try again -c 20 -A
ip link set eth0 down
sleep 0.1
say interrupts $(awk '/virtio0/ {{ print $2 }}' /proc/interrupts)
down
dmesg | grep -E 'virtio|eth0|irq 20|WARNING|BUG|Call Trace'
say done
poweroff -f
"""


def said(console: str) -> dict[str, str]:
    """The lines that `INIT` wrote, first word -> the rest."""
    lines = [line[1:].partition(" ") for line in console.splitlines() if line.startswith("@")]
    return {word: rest for word, _, rest in lines}


class CannotMake(Exception):
    """The guest cannot be made here; the text is one line that says why."""


def guest_files(cache: Path, init: str = INIT, drivers: Sequence[str] = DRIVERS) -> tuple[Path, Path]:
    """Kernel and RAM disk, made in `cache` unless they are there; skips the test where that cannot be done.

    Args:
        init: what the guest runs; MODULES stands for the drivers and what they need, in the order of loading.
        drivers: the modules on the disk, without those that they need.
    """
    recipe = hashlib.sha256(Path(__file__).read_bytes() + init.encode() + repr(drivers).encode()).hexdigest()[:12]
    home = cache / f"linux-{recipe}"
    if not home.exists():
        for program in ("apt-get", "apt-cache", "dpkg", "cpio"):
            require_program(program)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="linux-", dir=cache) as directory:
            work = Path(directory)
            try:
                _make(work, init, drivers)
            except CannotMake as error:
                require(False, f"needs Debian's {KERNEL} and {BUSYBOX}: {error}")
            # Another worker may have been faster; its files are as good.
            try:
                (work / "out").rename(home)
            except OSError:
                if not home.exists():
                    raise
    return home / "vmlinuz", home / "initrd.gz"


def _run(*command: str, cwd: Path, stdin: str = "") -> bytes:
    """What `command` prints. Raises CannotMake when it fails or takes too long."""
    try:
        done = subprocess.run(
            command, cwd=cwd, input=stdin.encode(), capture_output=True, check=False, timeout=_STEP_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CannotMake(f"{command[0]} is not done after {_STEP_SECONDS} s") from None
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines() or [f"ends with {done.returncode}"]
        raise CannotMake(f"{command[0]} says {why[-1]}")
    return done.stdout


def _fetch(work: Path, *options: str) -> None:
    """Put the two packages into `work`, which needs no rights."""
    depends = _run("apt-cache", *options, "depends", "--important", KERNEL, cwd=work).decode()
    kernel = re.search(r"Depends: (linux-image-\S+)", depends)
    if kernel is None:
        raise CannotMake(f"{KERNEL} depends on no kernel")
    _run("apt-get", *options, "-q", "download", kernel[1], BUSYBOX, cwd=work)


def _fetch_afresh(work: Path) -> None:
    """The same with package lists of our own: for a system that has none, or old ones."""
    lists, archives = work / "lists", work / "archives"
    for directory in (lists, archives):
        (directory / "partial").mkdir(parents=True)
    options = ("-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={archives}")
    _run("apt-get", *options, "-q", "update", cwd=work)
    _fetch(work, *options)


def _make(work: Path, script: str, drivers: Sequence[str]) -> None:
    """Fetch and unpack the packages in `work`, and leave the two files in `work/out`."""
    try:
        _fetch(work)
    except CannotMake:
        _fetch_afresh(work)
    for package in sorted(work.glob("*.deb")):
        _run("dpkg", "-x", package.name, "root", cwd=work)

    out, disk = work / "out", work / "disk"
    out.mkdir()
    shutil.copy(next((work / "root" / "boot").glob("vmlinuz-*")), out / "vmlinuz")
    for name in ("bin", "lib/modules", "proc", "sys", "dev"):
        (disk / name).mkdir(parents=True)
    shutil.copy(next((work / "root").glob("**/bin/busybox")), disk / "bin" / "busybox")
    names = _add_modules(work / "root", disk / "lib" / "modules", drivers)
    init = disk / "init"
    init.write_text(script.replace("MODULES", " ".join(names)))
    init.chmod(0o755)
    listing = "\n".join(str(path.relative_to(disk)) for path in sorted(disk.rglob("*")))
    archive = _run("cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0", cwd=disk, stdin=listing)
    (out / "initrd.gz").write_bytes(gzip.compress(archive, 1))


def _add_modules(root: Path, target: Path, drivers: Sequence[str]) -> list[str]:
    """Copy `drivers` and what they depend on; their names in the order in which they can be loaded."""
    found = {path.name.partition(".")[0].replace("-", "_"): path for path in root.glob("**/kernel/**/*.ko*")}
    order: list[str] = []

    def add(name: str) -> None:
        if name in order:
            return
        if name not in found:
            raise CannotMake(f"the kernel has no module {name}")
        module = found[name].read_bytes()
        if found[name].suffix == ".xz":
            module = lzma.decompress(module)
        depends = re.search(rb"\0depends=([^\0]*)\0", module)
        for needed in depends[1].decode().split(",") if depends and depends[1] else ():
            add(needed.replace("-", "_"))
        (target / f"{name}.ko").write_bytes(module)
        order.append(name)

    for name in drivers:
        add(name)
    return order
