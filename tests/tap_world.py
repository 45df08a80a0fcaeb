"""A guest on TAPs and what meets it there: the kernel's sockets, its ICMP errors, and real servers, in a namespace."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import vring
from guest.net.address import parse_address
from tests.netns import Namespace
from tests.requirements import require_program
from vring.session import Session

GUEST4, HOST4, GUEST6, HOST6 = "10.9.0.2", "10.9.0.1", "fd09::2", "fd09::1"
MAC = "52:54:00:09:00:02"
LINK6 = "fe80::5054:ff:fe09:2"  # EUI-64 of MAC
CARD = f"virtio:mac={MAC}"
STATIC = f"-ipaddr {GUEST4} -netmask 255.255.255.0"
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

IP_RECVERR, IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h
EXTENDED_ERROR = struct.Struct("=IBBBBII")  # linux/errqueue.h: errno, origin, type, code, pad, info, data


def until(ready: Callable[[], object], seconds: float = 15) -> bool:
    """Wait for the world outside; whether it came."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ready():
            return True
        time.sleep(0.02)
    return bool(ready())


def make_tap(host: Namespace, name: str, *addresses: str, mode: str = "tap") -> None:
    """A TAP (or TUN) that stays, up, with IPv6 and these addresses (with prefix lengths), which nobody checks."""
    host.run("ip", "tuntap", "add", "dev", name, "mode", mode)
    host.need("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=0")
    host.run("sysctl", "-qw", f"net.ipv6.conf.{name}.accept_dad=0", f"net.ipv6.conf.{name}.accept_ra=0")
    for address in addresses:
        host.run("ip", "addr", "add", address, "dev", name)
    host.run("ip", "link", "set", name, "up")


def boot(host: Namespace, cmdline: str, *, wires: Sequence[str] = ("tap:t0",), pcap: Path | None = None) -> Session:
    """A guest on TAPs of the namespace, the first card with the address MAC. It may not have booted yet."""
    with host.entered():
        return vring.boot(nic=[CARD, "virtio"][: len(wires)], wire=list(wires), cmdline=cmdline, pcap=pcap)


def has_address(session: Session, address: str, seconds: float = 15) -> bool:
    """Whether the first guest has an address, checked and all, within some seconds."""
    wanted = parse_address(address)
    guest = session.guest
    return session.run_until(lambda: guest.stage > 0 and guest.stack.ip.is_local(wanted), seconds)


def kernel_socket(host: Namespace, version: int) -> socket.socket:
    """A UDP socket of the kernel's with room for the largest datagrams."""
    with host.entered():
        made = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    made.settimeout(10)
    return made


class IcmpError(NamedTuple):
    """What the kernel was told of a datagram: ICMP type and code, and by whom."""

    kind: int
    code: int
    offender: str


def probe(host: Namespace, destination: str, hops: int, port: int = 33434) -> IcmpError:
    """A datagram with so many hops, as traceroute sends them, and the ICMP error that comes back."""
    version = 6 if ":" in destination else 4
    with kernel_socket(host, version) as sock:
        if version == 4:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
        sock.sendto(b"probe", (destination, port))
        found: list[IcmpError] = []

        def answered() -> bool:
            try:
                _, ancillary, _, _ = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
            except OSError:
                return False
            data = next(data for _, kind, data in ancillary if kind in (IP_RECVERR, IPV6_RECVERR))
            _, _, kind, code, _, _, _ = EXTENDED_ERROR.unpack_from(data)
            at = EXTENDED_ERROR.size  # struct sockaddr_in or sockaddr_in6 of the offender
            raw = data[at + 4 : at + 8] if version == 4 else data[at + 8 : at + 24]
            found.append(IcmpError(kind, code, socket.inet_ntop(FAMILY[version], raw)))
            return True

        if not until(answered, 10):
            raise AssertionError(f"nothing came back from {destination} for {hops} hops")
    return found[0]


def pings(host: Namespace, destination: str, size: int, count: int) -> int:
    """How many of the kernel's pings were answered.

    Large ones are sent each once the one before was answered; ping cannot do that where its time stamp has no room.
    """
    require_program("ping")
    pace = ["-A"] if size >= 1000 else ["-i", "0.003"]
    words = ["ping", "-q", "-n", *pace, "-c", str(count), "-W", "5", "-w", "60", "-s", str(size), destination]
    done = host.run(*words, check=False, timeout=90)
    found = re.search(r"(\d+) received", done.stdout)
    assert found, done.stdout + done.stderr
    return int(found[1])


@contextmanager
def serving(host: Namespace, *command: str, log: Path) -> Iterator[Callable[[], str]]:
    """A server that runs in the foreground, ended with SIGTERM; gives what it has written."""
    require_program(command[0])
    with log.open("w") as file:
        process = host.popen(*command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield log.read_text
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def radvd(host: Namespace, where: Path, interface: str = "t0") -> Iterator[Callable[[], str]]:
    """A router daemon that advertises 2001:db8:9::/64, itself as default router, and the name server fd09::53."""
    host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    config = where / "radvd.conf"
    config.write_text(
        f"interface {interface} {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; AdvLinkMTU 1400;\n"
        "  prefix 2001:db8:9::/64 { AdvOnLink on; AdvAutonomous on; };\n"
        "  RDNSS fd09::53 { };\n};\n"
    )
    config.chmod(0o644)
    words = ["radvd", "-n", "-m", "stderr", "-d", "2", "-C", str(config), "-p", str(where / "radvd.pid")]
    with serving(host, *words, log=where / "radvd.log") as said:
        yield said


@contextmanager
def dnsmasq(host: Namespace, where: Path, interface: str = "t0") -> Iterator[Callable[[], str]]:
    """A DHCP and DNS server at HOST4, with leases of which T1 is over in three seconds."""
    words = [
        "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--user=root", "--pid-file", f"--interface={interface}",
        "--bind-interfaces", "--no-resolv", "--no-hosts", "--no-ping", "--log-dhcp", "--log-facility=-",
        f"--dhcp-leasefile={where / 'leases'}", "--dhcp-range=10.9.0.50,10.9.0.60,255.255.255.0,2m",
        "--dhcp-option=option:T1,3", "--dhcp-option=option:T2,60", "--dhcp-authoritative", "--local=/lan/",
        "--domain=test.lan", "--host-record=www.test.lan,192.0.2.1,2001:db8::1",
    ]  # fmt: skip
    with serving(host, *words, log=where / "dnsmasq.log") as said:
        assert until(lambda: "DHCP, IP range" in said()), said()
        yield said
