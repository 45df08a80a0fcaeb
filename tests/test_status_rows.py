"""Rows of docs/status.md that no other file shows."""

from __future__ import annotations

import importlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vring
from guest.net.address import parse_address, to_prefix
from guest.net.pbuf import PacketBuffer
from guest.net.stack import Stack
from guest.services import Timers
from guest.sys.calls import Calls
from guest.sys.constants import AF_INET, AF_INET6, SOCK_DGRAM
from guest.sys.scheduler import Scheduler

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hw", "guest", "vring")
KERNEL_CODE = re.compile(r"<linux/(?:module|kernel|init)\.h>|^obj-m|\binsmod\b|\bmodprobe\b", re.MULTILINE)


def test_b7_nothing_is_built_for_the_kernel() -> None:
    """The C there is includes headers of the C library alone, and nothing loads a module."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".c", ".h")]
    files += [ROOT / "Makefile", ROOT / "setup.py"]
    found = {str(path.relative_to(ROOT)) for path in files if KERNEL_CODE.search(path.read_text(encoding="utf-8"))}

    assert found == set()
    assert KERNEL_CODE.search("#include <linux/module.h>")
    assert KERNEL_CODE.search("all:\nobj-m += ring.o\n")


@pytest.mark.parametrize("side", ["hw", "guest"])
def test_b7_the_extension_includes_the_c_library_alone(side: str) -> None:
    build = importlib.import_module(f"{side}._native_build")
    headers = re.findall(r"#include <(\S+)>", Path(str(build.__file__)).read_text(encoding="utf-8"))

    assert headers
    assert {header for header in headers if not re.fullmatch(r"std\w+\.h|string\.h", header)} == set()


@pytest.mark.parametrize(
    ("family", "address"), [(AF_INET, "127.0.0.1"), (AF_INET6, "::1"), (AF_INET6, "::ffff:127.0.0.1")]
)
def test_a10_udp_over_the_loopback_needs_no_network_options(family: int, address: str) -> None:
    with vring.boot(nic="none", clock="virtual") as machine:
        calls = machine.calls
        server, client = calls.socket(family, SOCK_DGRAM), calls.socket(family, SOCK_DGRAM)
        calls.bind(server, (address, 7))
        calls.sendto(client, b"hello", (address, 7))
        data, peer = calls.recvfrom(server, 100)
        calls.sendto(server, data, peer)

        assert calls.recvfrom(client, 100)[0] == b"hello"
        assert machine.guest.ni is None


# What a library may cost: the time and memory of an import and of a stack that has nothing to do.
COST = """
import json, resource, sys, time
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
import guest, guest.net
middle = time.perf_counter()
import random
from guest.net.stack import Stack
stack = Stack(now=lambda: 0, rng=random.Random(0))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
heavy = sorted({"numpy", "rich", "dns", "typer", "greenlet", "pcapng"} & set(sys.modules))
print(json.dumps([middle - start, grown, heavy]))
"""


def cost() -> tuple[float, int, list[str]]:
    done = subprocess.run([sys.executable, "-c", COST], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, kilobytes, heavy = json.loads(done.stdout)
    return seconds, kilobytes, heavy


def test_d18_an_import_is_quick_and_an_idle_stack_is_small() -> None:
    runs = [cost() for _ in range(3)]

    assert min(seconds for seconds, _, _ in runs) < 0.150
    assert min(kilobytes for _, kilobytes, _ in runs) < 20 << 10
    assert runs[0][2] == [], "what is heavy loads where it is used"


class Host:
    """A stack and its system calls, with no kernel, machine or boot around them; the wire is a list."""

    def __init__(self, number: int, address: str) -> None:
        self.time = 0
        self.out: list[bytes] = []
        rng = random.Random(number)
        self.stack = Stack(now=lambda: self.time, rng=rng)
        self.scheduler = Scheduler(Timers(lambda: self.time), lambda: None, lambda _line: None)
        self.calls = Calls(self.scheduler, self.stack, now=lambda: self.time)
        self.interface = self.stack.add_interface(
            "eth0", bytes([2, 0, 0, 0, 0, number]), 1500,
            lambda packets: self.out.extend(packet.tobytes() for packet in packets),
        )  # fmt: skip
        self.interface.set_up()
        self.interface.insert(to_prefix(address, 64 if ":" in address else 24), check=False)



def shuttle(*hosts: Host) -> None:
    """Carry frames to everybody else until the wire is quiet."""
    while any(host.out for host in hosts):
        for host in hosts:
            frames, host.out = host.out, []
            for other in hosts:
                if other is not host:
                    other.interface.input([PacketBuffer.from_bytes(frame) for frame in frames])
        for host in hosts:
            host.stack.poll()


@pytest.mark.parametrize(
    ("family", "left", "right"), [(AF_INET, "10.0.0.1", "10.0.0.2"), (AF_INET6, "fd00::1", "fd00::2")]
)
def test_d19_a_stack_with_its_calls_is_a_guest_without_a_machine(family: int, left: str, right: str) -> None:
    one, two = Host(1, left), Host(2, right)
    client, server = one.calls.socket(family, SOCK_DGRAM), two.calls.socket(family, SOCK_DGRAM)
    two.calls.bind(server, (right, 7))

    one.calls.sendto(client, b"hello", (right, 7))
    shuttle(one, two)

    data, peer = two.calls.recvfrom(server, 100)
    two.calls.sendto(server, data, peer)
    shuttle(one, two)
    assert one.calls.recv(client, 100) == b"hello"


def test_fifty_stacks_in_one_process_share_nothing() -> None:
    """The same address on all of them, on wires of their own: each hears what was sent to it alone."""
    pairs = [(Host(1, "10.0.0.1"), Host(2, "10.0.0.2")) for _ in range(25)]
    fds = []
    for one, two in pairs:
        fds.append((one.calls.socket(AF_INET, SOCK_DGRAM), two.calls.socket(AF_INET, SOCK_DGRAM)))
        two.calls.bind(fds[-1][1], ("10.0.0.2", 7))
    assert {fd for pair in fds for fd in pair} == {3}

    for number, (one, _) in enumerate(pairs):
        one.calls.sendto(3, str(number).encode(), ("10.0.0.2", 7))
    for one, two in pairs:
        shuttle(one, two)

    assert [two.calls.recv(3, 100) for _, two in pairs] == [str(number).encode() for number in range(25)]
    assert [one.stack.udp.counters["tx_packets"] for one, _ in pairs] == [1] * 25
    pairs[0][0].interface.remove_address("10.0.0.1")
    assert all(one.stack.ip.is_local(parse_address("10.0.0.1")) for one, _ in pairs[1:])
