"""Streams between a guest on a TAP and the kernel: connections in both roles, and what both ends say of them.

    with tcp_host() as host, tcp_guest(host) as session:
        wire = Streams(host, session)
        with wire.connected("guest listens", 6) as link:
            link.calls.send(link.fd, b"hello")      # the guest's end, a system call
            link.sock.recv(5)                       # the kernel's end, a socket

The test's thread is the user of both ends; what has to happen at the same time is a `Job`, a process of the guest.
"""

from __future__ import annotations

import hashlib
import random
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import vring
from guest.apps.env import Env
from guest.net.tcp.endpoint import TcpEndpoint
from guest.sys import constants as c
from guest.sys.calls import Calls
from tests.netns import Namespace, namespace
from tests.tap_world import FAMILY, GUEST4, GUEST6, HOST4, HOST6, MAC, has_address, make_tap
from vring.session import Session

T = TypeVar("T")

CONNECTS, LISTENS = "guest connects", "guest listens"
ROLES = (CONNECTS, LISTENS)
GUEST = {4: GUEST4, 6: GUEST6}
HOST = {4: HOST4, 6: HOST6}
GUEST_FAMILY = {4: c.AF_INET, 6: c.AF_INET6}
PATIENCE = 30.0  # seconds that anything may take before the test fails
BLOCK = 1 << 16

# linux/tcp.h: struct tcp_info, and bits of tcpi_options
_INFO = struct.Struct("=8B24I")
STAMPS, SACK, WSCALE, ECN, ECN_SEEN = 1, 2, 4, 8, 16
_NEWER = {"delivered_ce": 196, "snd_wnd": 228}  # where fields that came later are, each a u32
STATES = ("", "ESTABLISHED", "SYN_SENT", "SYN_RECEIVED", "FIN_WAIT_1", "FIN_WAIT_2", "TIME_WAIT", "CLOSED",
          "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING")  # fmt: skip


class Info(NamedTuple):
    """What TCP_INFO says of an end, of either kernel; sizes in bytes, times in microseconds."""

    state: str
    probes: int
    options: int
    snd_wscale: int
    rcv_wscale: int
    snd_mss: int
    rcv_mss: int
    last_ack_recv: int  # milliseconds ago
    pmtu: int
    advmss: int
    total_retrans: int

    @classmethod
    def of(cls, raw: bytes) -> Info:
        state, _, _, probes, _, options, scales, _, *words = _INFO.unpack_from(raw)
        chosen = [words[at] for at in (2, 3, 12, 13, 19, 23)]
        return cls(STATES[state], probes, options, scales & 15, scales >> 4, *chosen)


def kernel_info(sock: socket.socket) -> Info:
    """Of the kernel's end."""
    return Info.of(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104))


def kernel_figure(sock: socket.socket, name: str) -> int:
    """A field of the kernel's tcp_info that came later (see `_NEWER`)."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int.from_bytes(raw[_NEWER[name] : _NEWER[name] + 4], sys.byteorder)


def kernel_counters(host: Namespace) -> dict[str, int]:
    """What the namespace's TCP has counted (/proc/net/netstat and /proc/net/snmp), by name."""
    found: dict[str, int] = {}
    with host.entered():
        files = [Path(f"/proc/thread-self/net/{name}").read_text() for name in ("netstat", "snmp")]
    lines = "".join(files).splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        kind, *words = names.split()
        if kind in ("TcpExt:", "Tcp:"):
            found.update(zip(words, map(int, values.split()[1:]), strict=True))
    return found


class Job(Generic[T]):
    """Work of the guest's, as a process of its own while the test goes on."""

    def __init__(self, session: Session, work: Callable[[Calls], T]) -> None:
        self._session = session
        self._outcome: list[T] = []
        self._error: list[BaseException] = []

        def main(env: Env, _argv: list[str]) -> int:
            try:
                self._outcome.append(work(env.calls))
            except Exception as error:
                self._error.append(error)
            return 0

        self._process = session.call(lambda: session.guest.spawn(main))

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._process.alive

    def result(self) -> T:
        """What the work gave, or raised."""
        if not self._session.run_until(lambda: self.done, PATIENCE):
            raise AssertionError("the guest's process has not ended")
        if self._error:
            raise self._error[0]
        return self._outcome[0]


class Link(NamedTuple):
    """A connection: its end in the kernel, and its end in the guest."""

    sock: socket.socket
    fd: int
    calls: Any  # of the guest
    session: Session

    def job(self, work: Callable[[Calls], T]) -> Job[T]:
        """The guest works on its end while the test goes on."""
        return Job(self.session, work)

    @property
    def guest_info(self) -> Info:
        """What TCP_INFO says in the guest."""
        return Info.of(self.calls.getsockopt(self.fd, c.IPPROTO_TCP, c.TCP_INFO, 104))

    def ask(self, question: Callable[[TcpEndpoint], T]) -> T:
        """Something of the guest's endpoint itself."""
        guest = self.session.guest
        return self.session.call(lambda: question(guest.calls.fds.file(self.fd).endpoint))  # type: ignore[attr-defined]


class Streams:
    """The two kernels and the wire between them; `addresses` are those of the host, by version."""

    def __init__(self, host: Namespace, session: Session, addresses: dict[int, str] = HOST) -> None:
        self.host = host
        self.session = session
        self.addresses = addresses

    def socket(self, version: int = 4) -> socket.socket:
        """A stream socket of the kernel's."""
        with self.host.entered():
            made = socket.socket(FAMILY[version], socket.SOCK_STREAM)
        made.settimeout(PATIENCE)
        return made

    @contextmanager
    def connected(
        self, role: str = CONNECTS, version: int = 4, *,
        kernel: Callable[[socket.socket], object] = lambda _sock: None,
        guest: Callable[[Any, int], object] = lambda _calls, _fd: None,
    ) -> Iterator[Link]:  # fmt: skip
        """A connection in which the guest has the `role`; `kernel` and `guest` set options on both sockets before."""
        calls = self.session.calls
        fd = calls.socket(GUEST_FAMILY[version])
        mine = self.socket(version)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kernel(mine)
        guest(calls, fd)
        if role == CONNECTS:
            mine.bind((self.addresses[version], 0))
            mine.listen(1)
            calls.connect(fd, mine.getsockname()[:2])
            sock, _ = mine.accept()
            sock.settimeout(PATIENCE)
            mine.close()
        else:
            calls.bind(fd, (GUEST[version], 0))
            calls.listen(fd, 1)
            mine.connect(calls.getsockname(fd)[:2])
            sock = mine
            listening, (fd, _) = fd, calls.accept(fd)
            calls.close(listening)
        try:
            yield Link(sock, fd, calls, self.session)
        finally:
            sock.close()
            try:
                calls.close(fd)
            except OSError:
                pass  # the test has closed it


@contextmanager
def tcp_host(mtu: int = 1500) -> Iterator[Namespace]:
    """A namespace with a TAP t0 that has an address of each family."""
    with namespace() as host:
        make_tap(host, "t0", f"{HOST4}/24", f"{HOST6}/64")
        if mtu != 1500:
            host.run("ip", "link", "set", "t0", "mtu", str(mtu))
        yield host


@contextmanager
def tcp_guest(
    host: Namespace,
    wire: str = "tap:t0",
    *,
    card: str = "virtio",
    words: str = "",
    mtu: int = 1500,
    pcap: Path | None = None,
) -> Iterator[Session]:
    """A guest on the TAP with an address of each family; its TCP checks its invariants after every segment."""
    cmdline = f"-ipaddr {GUEST4} -netmask 255.255.255.0 {words}"
    with host.entered():
        nic = f"{card}{',' if ':' in card else ':'}mac={MAC},mtu={mtu}"
        session = vring.boot(nic=nic, wire=wire, cmdline=cmdline, pcap=pcap)
    with session:
        assert has_address(session, GUEST4)
        session.calls.if_add_addr("eth0", GUEST6, 64)
        assert has_address(session, GUEST6)
        set_tcp(session, check=True)
        yield session


def set_tcp(session: Session, **values: object) -> None:
    """Change settings of the guest's TCP (`TcpConfig`), for connections to come."""
    tcp = session.guest.stack.tcp

    def change() -> None:
        tcp.config = replace(tcp.config, **values)  # type: ignore[arg-type]

    session.call(change)


# -- streams of bytes ------------------------------------------------------------------------------------------------


def stream(seed: int, size: int) -> bytes:
    """Bytes that no other seed has."""
    return random.Random(seed).randbytes(size)


def digest(data: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(data).hexdigest()


def kernel_reads(sock: socket.socket) -> bytes:
    """All up to the end of the stream."""
    found = bytearray()
    while data := sock.recv(1 << 18):
        found += data
    return bytes(found)


def kernel_exchanges(sock: socket.socket, data: bytes) -> bytes:
    """Send `data` and say that nothing follows, while all that comes is read."""
    found = bytearray()
    left = memoryview(data)
    sock.setblocking(False)
    ended = False
    while left or not ended:
        readable, writable, _ = select.select([] if ended else [sock], [sock] if left else [], [], PATIENCE)
        assert readable or writable, "nothing moves"
        if writable:
            left = left[sock.send(left[: 1 << 18]) :]
            if not left:
                sock.shutdown(socket.SHUT_WR)
        if readable:
            block = sock.recv(1 << 18)
            found += block
            ended = not block
    return bytes(found)


def guest_reads(calls: Any, fd: int) -> bytes:
    """The same, as a job."""
    found = bytearray()
    while data := calls.recv(fd, 1 << 18):
        found += data
    return bytes(found)


def guest_writes(calls: Any, fd: int, data: bytes) -> None:
    """Send all and say that nothing follows, as a job."""
    for at in range(0, len(data), BLOCK):
        calls.send(fd, data[at : at + BLOCK])
    calls.shutdown(fd, c.SHUT_WR)
