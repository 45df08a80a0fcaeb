"""A guest on a TAP, met by the host's own kernel: ping, large pings, arping. All in a namespace of the test's own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.netns import Namespace, namespace
from tests.requirements import require_program

pytestmark = pytest.mark.root

ROOT = Path(__file__).parent.parent
VRING = [sys.executable, "-u", "-c", "import sys; from vring.cli import main; sys.exit(main())"]
STATIC = ["-ipaddr", "10.9.0.2", "-netmask", "255.255.255.0", "-gateway", "10.9.0.1"]


@contextmanager
def booted(host: Namespace, *options: str, guest: list[str] = STATIC) -> Iterator[subprocess.Popen[str]]:
    """`vring boot …` in the namespace, once it says that init runs; ended with SIGTERM."""
    process = host.popen(
        *VRING, "boot", *options, "--", *guest, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        said = []
        for line in process.stdout or ():
            said.append(line)
            if "init running" in line:
                break
        else:
            raise AssertionError("the guest did not boot:\n" + "".join(said))
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A namespace with a persistent TAP t0, 10.9.0.1/24."""
    with namespace() as made:
        made.run("ip", "tuntap", "add", "dev", "t0", "mode", "tap")
        made.run("ip", "addr", "add", "10.9.0.1/24", "dev", "t0")
        made.run("ip", "link", "set", "t0", "up")
        yield made


def received(host: Namespace, *words: str) -> int:
    """How many replies the kernel's ping got."""
    require_program("ping")
    done = host.run("ping", "-q", "-n", *words, "10.9.0.2", check=False)
    found = re.search(r"(\d+) received", done.stdout)
    assert found, done.stdout + done.stderr
    return int(found[1])


@pytest.mark.parametrize("wire", ["tap:t0", "tap:t0,vnet_hdr=on"])
def test_p5_the_kernel_pings_the_guest_100_of_100(host: Namespace, wire: str) -> None:
    with booted(host, "--nic", "virtio", "--wire", wire) as guest:
        assert received(host, "-c", "100", "-i", "0.01") == 100
        assert received(host, "-c", "20", "-i", "0.01", "-s", "1472") == 20
        assert received(host, "-c", "20", "-i", "0.01", "-s", "0") == 20
        guest.send_signal(signal.SIGTERM)
        said = guest.communicate(timeout=20)[0]
        assert guest.returncode == 0, said
        assert "rx_packets" in said  # the counters at the end


def test_pings_in_fragments_are_answered(host: Namespace) -> None:
    with booted(host, "--nic", "virtio", "--wire", "tap:t0") as guest:
        assert received(host, "-c", "20", "-i", "0.01", "-s", "60000") == 20
        guest.send_signal(signal.SIGTERM)
        said = guest.communicate(timeout=20)[0]
        assert "rx_reassembled=20" in said


def test_arping_finds_the_guest(host: Namespace) -> None:
    require_program("arping")
    with booted(host, "--nic", "virtio:queue_size=64", "--wire", "tap:t0"):
        # A TAP that was just opened may lose what the kernel sends first, until its carrier has been noticed.
        host.run("ping", "-q", "-n", "-c", "1", "-w", "20", "10.9.0.2")
        done = host.run("arping", "-c", "5", "-w", "20", "-I", "t0", "10.9.0.2", check=False)
        assert "Received 5 response" in done.stdout, done.stdout


def test_the_guest_pings_the_kernel_and_its_status_is_the_commands(host: Namespace) -> None:
    words = ["boot", "--nic", "virtio", "--wire", "tap:t0", "--exit-status", "--"]
    good = host.run(*VRING, *words, *STATIC, "-s", "ping", "10.9.0.1", "-c", "5", "-i", "0.01", check=False)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "5 received" in good.stdout
    nobody = host.run(*VRING, *words, *STATIC, "-s", "ping", "10.9.0.77", "-c", "1", "-W", "0.2", check=False)
    assert nobody.returncode == 1, nobody.stdout + nobody.stderr


def test_a_tap_made_by_the_guest_is_gone_after_it(host: Namespace) -> None:
    with booted(host, "--nic", "virtio", "--wire", "tap:own0"):
        assert host.run("ip", "link", "show", "own0", check=False).returncode == 0
    assert host.run("ip", "link", "show", "own0", check=False).returncode != 0


def test_two_cards_on_two_taps_carry_their_own_traffic(host: Namespace) -> None:
    """eth0 has the address; eth1 is for outlets, so the host's ARP there stays unanswered and is counted."""
    host.run("ip", "tuntap", "add", "dev", "t1", "mode", "tap")
    host.run("ip", "addr", "add", "10.8.0.1/24", "dev", "t1")
    host.run("ip", "link", "set", "t1", "up")
    with booted(host, "--nic", "virtio", "--wire", "tap:t0", "--nic", "virtio", "--wire", "tap:t1") as guest:
        assert received(host, "-c", "10", "-i", "0.01") == 10
        silent = host.run("ping", "-q", "-c", "1", "-W", "0.3", "10.8.0.2", check=False)
        assert "0 received" in silent.stdout
        guest.send_signal(signal.SIGTERM)
        assert "eth1" in guest.communicate(timeout=20)[0]
