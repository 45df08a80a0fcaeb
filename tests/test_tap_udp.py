"""A guest's sockets met by the host's own kernel over a TAP: large pings, UDP echo both ways, both families.

All in a namespace of the test's own.
"""

from __future__ import annotations

import random
import re
import signal
import socket
import sys
from collections.abc import Iterator

import pytest

import vring
from guest.sys.constants import AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY, SO_RCVBUF, SOCK_DGRAM, SOL_SOCKET
from tests.netns import Namespace, namespace
from tests.requirements import require_program
from vring.session import Session

pytestmark = pytest.mark.root

GUEST4, HOST4, GUEST6, HOST6 = "10.9.0.2", "10.9.0.1", "fd09::2", "fd09::1"
SIZES = (0, 1, 11, 1472, 1473, 1480, 9000, 65507)
HOST = {4: HOST4, 6: HOST6}
GUEST = {4: GUEST4, 6: GUEST6}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A namespace with a TAP t0, 10.9.0.1/24 and fd09::1/64."""
    with namespace() as made:
        made.run("ip", "tuntap", "add", "dev", "t0", "mode", "tap")
        made.need("sysctl", "-qw", "net.ipv6.conf.t0.disable_ipv6=0")
        made.run("ip", "addr", "add", f"{HOST4}/24", "dev", "t0")
        made.run("ip", "addr", "add", f"{HOST6}/64", "dev", "t0", "nodad")
        made.run("ip", "link", "set", "t0", "up")
        yield made


@pytest.fixture
def guest(host: Namespace) -> Iterator[Session]:
    """A guest on the TAP, with an address of each family and its echo program on port 7."""
    words = f"-ipaddr {GUEST4} -netmask 255.255.255.0 -s udpecho -l 7"
    with host.entered():
        session = vring.boot(wire="tap:t0", cmdline=words)
    with session:
        session.calls.if_add_addr("eth0", GUEST6, 64)
        stack = session.guest.stack
        assert session.run_until(lambda: stack.ip.is_local(int.from_bytes(socket.inet_pton(10, GUEST6), "big")), 20)
        assert session.run_until(lambda: bool(list(stack.udp)), 20)
        yield session


def kernel_socket(host: Namespace, version: int) -> socket.socket:
    with host.entered():
        made = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    made.settimeout(10)
    return made


@pytest.mark.parametrize("version", [4, 6])
def test_b16_the_kernel_has_datagrams_of_every_size_echoed(host: Namespace, guest: Session, version: int) -> None:
    rng = random.Random(version)
    with kernel_socket(host, version) as client:
        client.connect((GUEST[version], 7))
        for size in SIZES:
            data = rng.randbytes(size)
            client.send(data)
            assert client.recv(70_000) == data, f"{size} bytes"
    assert guest.counters()["guest"]["udp"]["rx_delivered"] == len(SIZES)


@pytest.mark.parametrize("version", [4, 6])
def test_b16_the_guest_has_datagrams_of_every_size_echoed_by_the_kernel(
    host: Namespace, guest: Session, version: int
) -> None:
    rng = random.Random(version)
    calls = guest.calls
    fd = calls.socket(AF_INET6, SOCK_DGRAM)
    calls.setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0)
    calls.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, 1 << 20)
    peer = HOST6 if version == 6 else f"::ffff:{HOST4}"
    with kernel_socket(host, version) as server:
        server.bind((HOST[version], 7007))
        for size in SIZES:
            data = rng.randbytes(size)
            calls.sendto(fd, data, (peer, 7007))
            received, sender = server.recvfrom(70_000)
            assert received == data, f"{size} bytes"
            server.sendto(received, sender)
            assert calls.recvfrom(fd, 70_000)[0] == data, f"{size} bytes back"


@pytest.mark.parametrize(
    ("version", "size"), [(4, 0), (4, 1472), (4, 1473), (4, 60_000), (6, 0), (6, 1453), (6, 60_000)]
)
def test_e17_the_kernel_pings_with_payloads_that_must_be_fragmented(
    host: Namespace, guest: Session, version: int, size: int
) -> None:
    require_program("ping")
    words = ["ping", f"-{version}", "-q", "-n", "-c", "50", "-i", "0.01", "-W", "2", "-s", str(size), GUEST[version]]
    done = host.run(*words, check=False)
    assert re.search(r"50 received", done.stdout), done.stdout + done.stderr
    assert not guest.halted


def test_the_kernel_says_that_nobody_listens_and_so_does_the_guest(host: Namespace, guest: Session) -> None:
    calls = guest.calls
    fd = calls.socket(AF_INET6, SOCK_DGRAM)
    calls.connect(fd, (HOST6, 9))
    calls.send(fd, b"x")
    with pytest.raises(ConnectionRefusedError):
        calls.recv(fd, 10)
    for version in (4, 6):
        with kernel_socket(host, version) as client:
            client.connect((GUEST[version], 9))
            client.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                client.recv(10)


def test_the_programs_of_the_command_line_meet_the_kernel(host: Namespace) -> None:
    vring_command = [sys.executable, "-u", "-c", "import sys; from vring.cli import main; sys.exit(main())"]
    with kernel_socket(host, 4) as server:
        server.bind((HOST4, 7007))
        process = host.popen(
            *vring_command, "boot", "--exit-status", "--trace", "--wire", "tap:t0", "--", "-ipaddr", GUEST4,
            "-netmask", "255.255.255.0", "-s", "udpecho", HOST4, "7007", "hello", "-c", "2", "-W", "10",
            stdout=-1, stderr=-2,
        )  # fmt: skip
        try:
            for _ in range(2):
                data, peer = server.recvfrom(100)
                server.sendto(data, peer)
            said = process.communicate(timeout=20)[0]
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
    assert process.returncode == 0, said
    assert "2 sent, 2 echoed" in said
    assert re.search(rf"guest eth0  rx  ip        ::ffff:{HOST4} > ::ffff:{GUEST4} protocol 17", said), said
