"""A guest on a TAP and a real server, dnsmasq: lease, renewal, release, names. In a namespace of the test's own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vring
from guest.apps.env import Env
from guest.net.address import format_address, parse_address
from guest.net.dns import Query, ResolveError
from tests.netns import Namespace, namespace
from tests.requirements import require_program

pytestmark = pytest.mark.root

HOST = "10.9.0.1"


class Dnsmasq:
    """The server, and what it logs."""

    def __init__(self, host: Namespace, where: Path) -> None:
        self.leases = where / "leases"
        self.log = where / "log"
        self.process = host.popen(
            require_program("dnsmasq"), "--no-daemon", "--conf-file=/dev/null", "--user=root", "--pid-file",
            "--interface=t0", "--bind-interfaces", "--no-resolv", "--no-hosts", "--no-ping", "--log-dhcp",
            f"--log-facility={self.log}", f"--dhcp-leasefile={self.leases}",
            "--dhcp-range=10.9.0.50,10.9.0.60,255.255.255.0,2m", "--dhcp-option=option:T1,3",
            "--dhcp-option=option:T2,60",
            "--dhcp-option=option:mtu,1400", "--dhcp-option=option:domain-search,test.lan,other.lan",
            "--dhcp-authoritative", "--local=/lan/", "--domain=test.lan",
            "--host-record=www.test.lan,192.0.2.1,2001:db8::1", "--host-record=four.test.lan,192.0.2.4",
            "--cname=alias.test.lan,www.test.lan", "--address=/wild.lan/192.0.2.9",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def count(self, words: str) -> int:
        return self.text().count(words)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def host() -> Iterator[Namespace]:
    with namespace() as made:
        made.run("ip", "tuntap", "add", "dev", "t0", "mode", "tap")
        made.run("ip", "addr", "add", f"{HOST}/24", "dev", "t0")
        made.run("ip", "link", "set", "t0", "up")
        yield made


@pytest.fixture
def server(host: Namespace, tmp_path: Path) -> Iterator[Dnsmasq]:
    made = Dnsmasq(host, tmp_path)
    try:
        assert until(lambda: "DHCP, IP range" in made.text()), made.text()
        yield made
    finally:
        made.close()


def until(ready: Callable[[], bool], seconds: float = 15) -> bool:
    """Wait for the world outside; whether it came."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ready():
            return True
        time.sleep(0.02)
    return ready()


@pytest.fixture
def session(host: Namespace, server: Dnsmasq) -> Iterator[vring.Session]:
    """A guest with -dhcp on the TAP, booted."""
    with host.entered():
        made = vring.boot(wire="tap:t0", cmdline="-dhcp -s idle")
    with made:
        assert made.run_until(lambda: made.guest.booted, 15), made.log + server.text()
        yield made


def run(session: vring.Session, program: Callable[[Env], list[object]]) -> list[object]:
    """What a program in the guest found out."""
    found: list[object] = []

    def main(env: Env, argv: list[str]) -> int:
        found.extend(program(env))
        return 0

    process = session.call(lambda: session.guest.spawn(main))
    assert session.run_until(lambda: not process.alive, 20)
    assert process.exit_status == 0, session.log
    return found


def test_a_lease_its_renewal_and_its_release(host: Namespace, server: Dnsmasq, session: vring.Session) -> None:
    dhcp = session.guest.dhcp
    assert dhcp is not None
    lease = dhcp.lease
    assert lease is not None
    own = format_address(lease.address)
    assert 50 <= int(own.rpartition(".")[2]) <= 60
    assert (lease.length, lease.seconds, lease.mtu) == (24, 120, 1400)
    assert [format_address(one) for one in (lease.server, *lease.routers, *lease.dns)] == [HOST] * 3
    assert lease.search == ("test.lan", "other.lan")
    assert own in server.leases.read_text()
    assert "guest" in server.leases.read_text(), "the host name"
    if host.run("ping", "-c", "3", "-i", "0.05", "-q", own, check=False).returncode:
        raise AssertionError("the kernel cannot ping the leased address")

    acks = server.count("DHCPACK")
    assert until(lambda: server.count("DHCPACK") > acks, 7), "T1 is three seconds"
    assert session.run_until(lambda: dhcp.lease is not None and dhcp.lease.start > lease.start, 5)
    renewed = dhcp.lease
    assert renewed is not None
    assert renewed.start - lease.start == pytest.approx(3_000_000, abs=500_000)
    assert renewed.address == lease.address
    assert session.log.count("init: netif_up") == 1
    assert server.count("DHCPDISCOVER") == 1

    session.call(dhcp.release)
    assert until(lambda: server.count("DHCPRELEASE") == 1), server.text()
    assert until(lambda: own not in server.leases.read_text())


def test_an_address_that_the_host_holds_is_declined(host: Namespace, server: Dnsmasq) -> None:
    for last in range(50, 61):  # the whole range: which one dnsmasq picks follows from the MAC
        host.run("ip", "addr", "add", f"10.9.0.{last}/32", "dev", "t0")
    with host.entered():
        made = vring.boot(wire="tap:t0", cmdline="-dhcp")
    with made:
        assert until(lambda: server.count("DHCPDECLINE") >= 1), made.log + server.text()
        assert "is in use by" in made.log
        assert made.guest.booted is False


def test_names_from_dnsmasq(session: vring.Session) -> None:
    def program(env: Env) -> list[object]:
        resolver = env.guest.resolver

        def resolve(name: str, family: int = 0) -> object:
            try:
                return [format_address(one) for one in resolver.resolve(env, name, family)]
            except ResolveError as error:
                return error.error

        pending: Query = resolver.reverse(parse_address("192.0.2.4"), lambda _query: env.wake())
        env.wait(lambda: pending.done)
        assert pending.answer is not None
        return [
            resolve("www.test.lan"), resolve("www.test.lan", 4), resolve("www.test.lan", 6), resolve("www"),
            resolve("alias.test.lan", 4), resolve("x.wild.lan", 4), resolve("four.test.lan", 6),
            resolve("nosuch.test.lan"), resolve("localhost", 4), *pending.answer.names,
        ]  # fmt: skip

    both = ["192.0.2.1", "2001:db8::1"]
    found = run(session, program)
    assert [sorted(one) if isinstance(one, list) else one for one in found] == [
        both, ["192.0.2.1"], ["2001:db8::1"], both, ["192.0.2.1"], ["192.0.2.9"], "NODATA", "NXDOMAIN",
        ["127.0.0.1"], "four.test.lan",
    ]  # fmt: skip
    counters = session.counters()["guest"]["dns"]
    assert not [name for name in counters if "dropped" in name or "timeout" in name], counters
    first = found[0]
    assert isinstance(first, list)
    assert first[0] == "192.0.2.1", "IPv6 leads nowhere here, so its address comes last"


def test_a_server_that_is_gone_is_a_refusal_at_once(server: Dnsmasq, session: vring.Session) -> None:
    server.close()

    def program(env: Env) -> list[object]:
        start = env.now()
        try:
            env.guest.resolver.resolve(env, "www.test.lan", 4)
        except ResolveError as error:
            return [error.error, env.now() - start]
        return []

    error, took = run(session, program)
    assert error == "UNREACHABLE"
    assert isinstance(took, int)
    assert took < 1_000_000, "port unreachable ends each try"
