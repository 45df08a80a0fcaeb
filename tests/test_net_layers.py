"""Each layer can be imported alone: a module of the stack imports only what lies below it, and runs without the rest.

The fakes below and above each layer are in the layers' own tests; here is the order that makes them possible.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import guest.net

ROOT = Path(guest.net.__file__).parent

# From the bottom up; a module may import those before it.
ORDER = [
    "pbuf", "device", "tcp.config", "config", "address", "checksum", "layer", "ethernet", "gro", "gso", "neighbour",
    "arp", "family", "route", "groups", "pmtu", "source", "hops", "fragment", "extensions", "guard_rule",
    "guard_answer", "guard",
    "ipv4", "ipv6", "reassembly", "forward", "ip", "timer", "bare", "endpoint", "icmp_error", "icmp_errno", "addressed",
    "datagram", "membership",
    "igmp", "nd_wire", "mld", "nd", "slaac", "interface6", "interface", "echo", "icmp_base", "icmp", "icmpv6",
    "ping_end", "raw", "ports", "udp", "tcp.segment", "tcp.state", "tcp.timers", "tcp.congestion", "tcp.rtt",
    "tcp.buffers", "tcp.scoreboard", "tcp.secrets", "tcp.settings", "tcp.tcb", "tcp.sender", "tcp.loss", "tcp.receiver",
    "tcp.connection", "tcp.listener", "tcp.timewait", "tcp.ports", "tcp.endpoint", "tcp.layer", "stack",
    "dhcp_wire", "dhcp_lease", "dhcp", "dhcp_service", "dns_wire", "dns_exchange", "dns_stream", "hosts", "dns",
    "dhcp_pool", "dhcp_server", "dns_server", "dns_forward", "radvd",
]  # fmt: skip
OUTSIDE = {"guest._native", "hw.abi.virtio_net"}  # the optional C, and the data sheet


def modules() -> list[Path]:
    """The files of the stack."""
    return [path for path in ROOT.rglob("*.py") if path.stem != "__init__"]


def name_of(path: Path) -> str:
    """`guest/net/tcp/layer.py` is `tcp.layer`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """What the module imports when it runs; imports for type checkers alone do not count."""
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "guest.net":
            names |= {f"guest.net.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        pending += ast.iter_child_nodes(node)
    return names


def test_the_order_names_every_module() -> None:
    assert sorted(ORDER) == sorted(name_of(path) for path in modules())


@pytest.mark.parametrize("module", ORDER)
def test_c1_a_layer_imports_only_what_lies_below(module: str) -> None:
    below = {f"guest.net.{name}" for name in ORDER[: ORDER.index(module)]}
    names = imported(ROOT / f"{module.replace('.', '/')}.py")
    ours = {name for name in names if name.split(".")[0] in ("guest", "hw", "vring")}
    assert ours <= below | OUTSIDE


def test_c1_the_stack_touches_no_clock_thread_or_socket_of_the_host() -> None:
    forbidden = {"time", "threading", "socket", "select", "os.path", "asyncio"}
    assert {name_of(path): imported(path) & forbidden for path in modules()} == {
        name_of(path): set() for path in modules()
    }


@pytest.mark.parametrize("module", ["ethernet", "neighbour", "ip"])
def test_c1_a_layer_runs_without_those_above(module: str) -> None:
    above = [f"guest.net.{name}" for name in ORDER[ORDER.index(module) + 1 :]]
    script = f"import sys, guest.net.{module}; print([name for name in {above!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
