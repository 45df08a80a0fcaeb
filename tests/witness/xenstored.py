"""The C xenstored of Xen as a witness: fetched with apt-get, unpacked, run on a plain Linux behind `fake_xen.c`.

Domain 0 talks to it through its socket, as a toolstack does; other domains through ring pages that this file and the
daemon both map, as their kernels do.
"""

from __future__ import annotations

import mmap
import os
import platform
import re
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from tests.requirements import require, require_program

HERE = Path(__file__).parent
PATIENCE = 10.0  # seconds
_LIBRARIES = (
    "libxenmisc4", "libxenstore", "libxencall", "libxenevtchn", "libxengnttab", "libxenforeignmemory",
    "libxendevicemodel", "libxentoolcore", "libxentoollog", "libxenhypfs", "libyajl",
)  # fmt: skip


def unpacked(cache: Path) -> Path:
    """The folder with Debian's xenstored and its libraries, made in `cache` once; skips where that cannot be done."""
    require(platform.machine() == "x86_64", "needs an x86-64 machine, for Debian's xenstored")
    home = cache / "xenstored-1"
    if not home.exists():
        for program in ("apt-get", "apt-cache", "dpkg"):
            require_program(program)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="xenstored-", dir=cache) as directory:
            work = Path(directory)
            names = _run("apt-cache", "pkgnames", "xen-utils-4", cwd=work).split()
            utils = max((each for each in names if re.fullmatch(r"xen-utils-4\.\d+", each)), default="")
            require(utils, "needs Debian's xen-utils in the package lists")
            depends = _run("apt-cache", "depends", "--recurse", "--important", utils, cwd=work)
            libraries = sorted({each for each in re.findall(r"^(\S+)$", depends, re.M) if each.startswith(_LIBRARIES)})
            _run("apt-get", "-q", "download", utils, *libraries, cwd=work)
            for package in sorted(work.glob("*.deb")):
                _run("dpkg", "-x", package.name, "root", cwd=work)
            try:
                (work / "root").rename(home)
            except OSError:  # another worker was faster
                if not home.exists():
                    raise
    return home


def _run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    require(done.returncode == 0, f"needs Debian's xen-utils: {command[0]} says {done.stderr.strip()[-200:]}")
    return done.stdout


def built_shim(folder: Path) -> Path:
    """`fake_xen.c`, compiled into `folder`."""
    shim = folder / "fake_xen.so"
    subprocess.run([require_program("gcc"), "-w", "-shared", "-fPIC", "-o", shim, HERE / "fake_xen.c"], check=True)
    return shim


class Socket:
    """Domain 0's connection."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        try:
            self.socket.connect(os.fspath(path))
        except OSError:
            self.socket.close()
            raise

    def send(self, message: bytes) -> None:
        self.socket.sendall(message)

    def receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            data += self.socket.recv(length - len(data))
        return data

    def close(self) -> None:
        self.socket.close()


class RingPage:
    """A domain's connection: its ring page, shared with the daemon."""

    def __init__(self, folder: Path, domid: int) -> None:
        self.folder, self.domid = folder, domid
        path = folder / f"page-{domid}"
        path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            self.page = memoryview(mmap.mmap(file.fileno(), 4096))
        self.words = self.page.cast("I")

    def _kick(self) -> None:
        fd = os.open(self.folder / "events", os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, struct.pack("<I", 1000 + self.domid))
        os.close(fd)

    def send(self, message: bytes) -> None:
        end = time.monotonic() + PATIENCE
        for byte in message:
            while self.words[513] - self.words[512] & 0xFFFFFFFF >= 1024:
                self._kick()
                time.sleep(0.0002)
                assert time.monotonic() < end, "xenstored does not take what was written"
            self.page[self.words[513] % 1024] = byte
            self.words[513] = self.words[513] + 1 & 0xFFFFFFFF
        self._kick()

    def receive(self, length: int) -> bytes:
        data = b""
        end = time.monotonic() + PATIENCE
        while len(data) < length:
            if self.words[514] == self.words[515]:
                assert time.monotonic() < end, "xenstored does not answer"
                time.sleep(0.0002)
                continue
            data += self.page[1024 + self.words[514] % 1024 :][:1]
            self.words[514] = self.words[514] + 1 & 0xFFFFFFFF
            if self.words[514] == self.words[515]:
                self._kick()
        return data

    def close(self) -> None:
        self.words.release()
        self.page.release()


class Xenstored:
    """A running daemon. Domain 0 is connected; `domain` introduces others."""

    def __init__(self, files: Path, shim: Path, folder: Path) -> None:
        for name in ("run", "lib"):
            (folder / name).mkdir()
        os.mkfifo(folder / "events")
        self.folder = folder
        path = folder / "run" / "socket"
        environment = {
            **os.environ,
            "LD_PRELOAD": str(shim),
            "FAKE_XEN_DIR": str(folder),
            "XENSTORED_RUNDIR": str(folder / "run"),
            "XENSTORED_ROOTDIR": str(folder / "lib"),
            "XENSTORED_PATH": str(path),
            "LD_LIBRARY_PATH": str(next(files.glob("usr/lib/*/libxenstore.so.4")).parent),
        }
        daemon = next(files.glob("usr/lib/xen-*/bin/xenstored"))
        self.process = subprocess.Popen([daemon, "-N", "-I", "--pid-file", folder / "run" / "pid"], env=environment)
        end = time.monotonic() + PATIENCE
        while True:  # the socket is there a moment before somebody listens
            try:
                self.zero = Socket(path)
            except (FileNotFoundError, ConnectionRefusedError):
                assert self.process.poll() is None, "xenstored ended"
                assert time.monotonic() < end, "xenstored does not come up"
                time.sleep(0.002)
            else:
                break
        self._domains: list[RingPage] = []

    def domain(self, domid: int) -> RingPage:
        """A domain that the daemon is told of; its connection."""
        ring = RingPage(self.folder, domid)
        self._domains.append(ring)
        payload = f"{domid}\0{1}\0{5}\0".encode()
        self.zero.send(struct.pack("<IIII", 8, 0, 0, len(payload)) + payload)
        _, _, _, length = struct.unpack("<IIII", self.zero.receive(16))
        assert self.zero.receive(length) == b"OK\0"
        return ring

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.zero.close()
        for ring in self._domains:
            ring.close()
