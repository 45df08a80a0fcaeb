"""A network namespace of a test's own: what happens in it touches nothing outside, and it ends with the test.

It has no name: the kernel removes it, with every interface in it, when the last descriptor and process is gone, also
after a crash. `entered()` moves this thread in and back out; sockets and TAPs that are opened inside stay inside.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.requirements import require, require_program, require_root

CLONE_NEWNET = 0x40000000
_HERE = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class Namespace:
    """A network namespace, held by a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def path(self) -> str:
        """Where other programs find it, to move interfaces into it."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and the processes that it starts, are in the namespace."""
        outside = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call(_libc.setns(self._fd, CLONE_NEWNET), "setns")
            try:
                yield
            finally:
                _call(_libc.setns(outside, CLONE_NEWNET), "setns")
        finally:
            os.close(outside)

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespace to its end; its output is text. Without the program the test is skipped."""
        require_program(command[0])
        with self.entered():
            done = subprocess.run(command, check=False, timeout=timeout, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done

    def need(self, *command: str) -> None:
        """Run a program that asks the kernel for what it may have been built without; then the test is skipped."""
        done = self.run(*command, check=False)
        require(done.returncode == 0, f"needs a kernel that can do: {' '.join(command)}")

    def popen(self, *command: str, **options: object) -> subprocess.Popen[str]:
        """Start a program in the namespace."""
        with self.entered():
            return subprocess.Popen(command, text=True, **options)  # type: ignore[call-overload,no-any-return]


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A new namespace with its loopback up. Interfaces that are made in it have no IPv6, and so say nothing unasked."""
    require_root()
    require_program("ip")
    require(Path("/dev/net/tun").exists(), "needs /dev/net/tun")
    outside = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call(_libc.unshare(CLONE_NEWNET), "unshare")
        try:
            fd = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
            quiet = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
            if quiet.exists():
                quiet.write_text("1")
        finally:
            _call(_libc.setns(outside, CLONE_NEWNET), "setns")
    finally:
        os.close(outside)
    try:
        made = Namespace(fd)
        made.run("ip", "link", "set", "lo", "up")
        yield made
    finally:
        os.close(fd)
