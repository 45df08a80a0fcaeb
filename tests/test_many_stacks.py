"""Many stacks in one process share nothing; and the package is light: quick to import, small when idle."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path

import pytest

from guest.net.stack import Stack
from tests.net_world import Host, join
from tests.udp_world import Alone, at, payloads

ROOT = Path(__file__).parent.parent
PORTS = (7, 53, 5353)
HEAVY = {
    "numpy", "rich", "typer", "scapy", "pcapng", "dns", "pytest", "asyncio", "ssl", "urllib", "http", "email",
    "hw", "vring",
}  # fmt: skip
LOOPBACKS = {4: "127.0.0.1", 6: "::1"}


def pair(number: int) -> tuple[Host, Host]:
    """Two hosts on a wire of their own, with the addresses that all pairs have."""
    macs = "52:54:00:00:00:01", "52:54:00:00:00:02"
    first, second = (Host(f"10.0.0.{last}", mac, seed=number) for last, mac in enumerate(macs, 1))
    return first, second


def test_fifty_stacks_bind_the_same_ports_and_hear_only_their_own_datagrams() -> None:
    hosts = [Alone(seed=number) for number in range(50)]
    ends = {(host, port): host.bound("::", port) for host in hosts for port in PORTS}
    for number, host in enumerate(hosts):
        for version, address in LOOPBACKS.items():
            client = host.udp.open(version)
            for port in PORTS:
                assert client.send([f"{number} {version} {port}".encode()], at(address, port)) == 0
        host.settle()
    for number, host in enumerate(hosts):
        for port in PORTS:
            assert payloads(ends[host, port]) == [f"{number} {version} {port}".encode() for version in LOOPBACKS]
        assert host.stack.counters["udp"]["rx_delivered"] == len(PORTS) * len(LOOPBACKS)


@pytest.mark.parametrize("count", [2, 50])
def test_pairs_with_the_same_addresses_do_not_meet(count: int) -> None:
    pairs = [pair(number) for number in range(count)]
    for number, (first, second) in enumerate(pairs):
        end = second.stack.udp.open(4)
        assert end.bind(*at("10.0.0.2", 7)) == 0
        for _ in range(number + 1):
            assert first.stack.udp.open(4).send([b"%d" % number], at("10.0.0.2", 7)) == 0
        join(first, second)
        assert payloads(end) == [b"%d" % number] * (number + 1)
    for number, (first, second) in enumerate(pairs):
        assert second.count("udp", "rx_delivered") == number + 1
        assert first.count("udp", "rx_packets") == 0
        assert first.stack.interfaces[1].neighbours is not second.stack.interfaces[1].neighbours


def test_what_one_stack_does_leaves_the_counters_tables_and_numbers_of_another_alone() -> None:
    busy, idle = Host(seed=1), Host(seed=1)
    before = {layer: Counter(counts) for layer, counts in idle.stack.counters.items()}
    routes = list(idle.stack.routes)
    busy.meet()
    busy.stack.add_route("192.0.2.0", 24, "10.0.0.2")
    busy.stack.forwarding = True
    busy.eth.add_address("2001:db8::1", 64)
    busy.stack.icmp.open_echo().send("10.0.0.2", 1, b"x")
    assert busy.stack.udp.open(4).bind(*at("10.0.0.1", 7)) == 0
    assert idle.stack.counters == before
    assert list(idle.stack.routes) == routes
    assert not idle.stack.forwarding
    assert not list(idle.stack.udp)
    assert idle.stack.udp.open(4).bind(*at("10.0.0.1", 7)) == 0


def test_a_stack_that_nobody_holds_is_gone_with_all_that_it_had() -> None:
    def used() -> list[weakref.ref[Stack]]:
        found = []
        for number in range(50):
            first, second = pair(number)
            end = second.stack.udp.open(4)
            end.bind(*at("10.0.0.2", 7))
            first.stack.udp.open(4).send([b"x"], at("10.0.0.2", 7))
            join(first, second)
            found += [weakref.ref(first.stack), weakref.ref(second.stack)]
        return found

    stacks = used()
    gc.collect()
    assert [one for one in stacks if one() is not None] == []


# -- light -------------------------------------------------------------------------------------------------------


def python(code: str, **more: str) -> str:
    """What a fresh interpreter prints; `more` is set in its environment."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60,
        env={**os.environ, **more},
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("name", "limit"),
    [("guest", 0.150), ("guest.net", 0.150), ("guest.net.stack", 0.150), ("guest.kernel", 0.250)],  # all that boots
)
def test_d18_import_takes_less_than_150_ms(name: str, limit: float, tmp_path: Path) -> None:
    # As for a user who imports it again: compiled files are kept, wherever this environment would have them.
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    code = f"from time import process_time as t; s = t(); import {name}; print(t() - s)"
    took = min(float(python(code, **kept)) for _ in range(5))  # of the process: what else runs here does not count
    assert took < limit, f"{took * 1000:.0f} ms"


@pytest.mark.parametrize("name", ["guest", "guest.net", "guest.net.stack", "guest.kernel"])
def test_d18_import_loads_nothing_heavy(name: str) -> None:
    # What an editable installation loads before the first import is not ours.
    before = "import sys; before = set(sys.modules)"
    loaded = python(f"{before}; import {name}; print(*{{one.partition('.')[0] for one in set(sys.modules) - before}})")
    allowed = {"hw"} if name in ("guest.kernel", "guest.net.stack") else set()  # hw.abi: the numbers of the data sheet
    assert set(loaded.split()) & HEAVY <= allowed


def test_d18_an_idle_stack_adds_less_than_20_mb() -> None:
    code = """
import random, re
from pathlib import Path
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = resident()
from guest.net.stack import Stack
stacks = [Stack(now=lambda: 0, rng=random.Random(1))]
one = resident()
stacks += [Stack(now=lambda: 0, rng=random.Random(number)) for number in range(49)]
print(one - before, (resident() - one) / 49)
"""
    first, more = (float(word) for word in python(code).split())
    assert first < 20_000, f"{first:.0f} KiB"
    assert more < 1_000, f"{more:.0f} KiB for each further one"
