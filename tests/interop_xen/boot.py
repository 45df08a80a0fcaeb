"""Booting it: QEMU, Xen, domain 0, one script in it; what it wrote and how it ended."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.interop_xen.image import HOME, DebianFiles, dom0_disk

PATIENCE = 300  # seconds for one boot and all that is done in it
# A plain one: with SMAP QEMU takes Xen's return to a paravirtual kernel for supervisor code, and with all that QEMU can
# emulate now and then a program crashes.
CPU = "qemu64"

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/sbin LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu:/lib/x86_64-linux-gnu
export PYTHONHOME=$(cat /etc/python-home) PYTHONPATH={HOME} PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
mkdir -p /run/xen /run/xenstored /run/lock /var/lib/xenstored
ln -s /run /var/run
ln -s /run/lock /var/lock
for module in xen-privcmd xenfs xen-evtchn xen-gntdev; do insmod /lib/modules/$module.ko; done
mount -t xenfs xen /proc/xen
xenstored --pid-file /run/xenstored.pid
xen-init-dom0
echo "@ready $(cut -d' ' -f1 /proc/uptime)"
cd /job
sh -u script
echo "@exit $?"
echo "@over $(cut -d' ' -f1 /proc/uptime)"
poweroff -f
"""


@dataclass(frozen=True)
class Boot:
    """One boot.

    Attributes:
        console: everything.
        said: what lines that start with @ said, first word -> the rest.
    """

    console: str
    said: dict[str, str]

    @property
    def report(self) -> dict[str, object]:
        """The program's report; none is an empty one."""
        found: dict[str, object] = json.loads(self.said.get("report", "{}"))
        return found


def boot(
    qemu: str, files: DebianFiles, python: bytes, script: str, work: Path, extra: Sequence[tuple[str, bytes]] = ()
) -> Boot:
    """Boot, run `script` in domain 0 with the `extra` files, and power off. A boot that takes too long is cut off."""
    disk = work / "disk"
    disk.write_bytes(dom0_disk(files, python, INIT, [("job/script", script.encode()), *extra]))
    (work / "linux").symlink_to(files.kernel)
    xen = "com1=115200,8n1 console=com1 loglvl=error dom0_mem=640M,max:640M dom0_max_vcpus=1"
    command = [
        qemu, "-machine", "q35", "-accel", "tcg", "-cpu", CPU, "-m", "1280",
        "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", str(files.xen), "-append", xen,
        "-initrd", "linux console=hvc0 panic=-1 quiet,disk",
    ]  # fmt: skip
    with (work / "console").open("wb") as console:
        try:
            subprocess.run(
                command, cwd=work, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
                timeout=PATIENCE, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            console.write(f"\n@late QEMU was ended after {PATIENCE} seconds\n".encode())
    disk.unlink()
    text = (work / "console").read_bytes().decode(errors="replace").replace("\r", "")
    lines = [line[1:].partition(" ") for line in text.splitlines() if line.startswith("@")]
    return Boot(text, {word: rest for word, _, rest in lines})
