"""Who may import whom, checked on the syntax tree of every file.

The machine and its guest share the data sheet, `hw.abi`, and nothing else: each is a witness against the other. Inside
each of them lower layers do not know higher ones. Time, chance, threads and the host's sockets come in at a few doors
and are handed in everywhere else, so that a run can be repeated.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hw", "guest", "vring")


@dataclass(frozen=True)
class Rule:
    """Modules under `where`, but not under `but`, import nothing under `never`, except what is under `save`."""

    text: str
    where: tuple[str, ...]
    never: tuple[str, ...]
    but: tuple[str, ...] = ()
    save: tuple[str, ...] = ()


# From low to high; a layer imports nothing above itself. Modules in one row may know each other.
HW_LAYERS = (
    ("hw.abi",),
    ("hw.memory", "hw.clock", "hw.fence", "hw._native", "hw._native_build"),
    ("hw.bus", "hw.irq", "hw.loop", "hw.host_files"),
    ("hw.wire",),
    ("hw.virtio", "hw.xen"),
    ("hw.vhost",),
    ("hw.machine",),
)
GUEST_LAYERS = (
    ("guest.platform", "guest._native", "guest._native_build"),
    ("guest.dma",),
    ("guest.services", "guest.log", "guest.files"),
    ("guest.ring", "guest.xen"),
    ("guest.net",),
    ("guest.drivers",),
    ("guest.fe",),
    ("guest.ni", "guest.ol", "guest.sys"),
    ("guest.stdlib", "guest.socket", "guest.select"),
    ("guest.config",),
    ("guest.cmdline", "guest.names", "guest.init", "guest.boot", "guest.kernel", "guest.apps", "guest.classic",
     "guest.terminal"),
)

# The host's own clocks, threads and wires. hw's doors to them are the real clock, the loop that waits, and the wires
# that end outside; vring's stand before host threads, signals and terminals.
WORLD = (
    "_thread", "asyncio", "concurrent", "multiprocessing", "secrets", "select", "selectors", "signal", "socket",
    "socketserver", "ssl", "subprocess", "threading", "time", "uuid",
)  # fmt: skip
DOORS = (
    "hw.clock", "hw.loop", "hw.host_files", "hw.vhost", "hw.wire.dgram", "hw.wire.endpoint", "hw.wire.packet",
    "hw.wire.stream", "hw.wire.tap", "hw.wire.vde", "vring.cli", "vring.home",
    "vring.lookalike", "vring.prompt", "vring.run", "vring.tour", "vring.usernet",
)  # fmt: skip


def above(layers: tuple[tuple[str, ...], ...]) -> Iterator[Rule]:
    """One rule a row: nothing of the rows above it."""
    for row, names in enumerate(layers[:-1]):
        higher = tuple(name for names in layers[row + 1 :] for name in names)
        yield Rule(f"{', '.join(names)} must not know what lies above", where=names, never=higher)


RULES = [
    Rule("the guest knows of the machine only its data sheet", where=("guest",), never=("hw",), save=("hw.abi",)),
    Rule("the machine does not know the guest", where=("hw",), never=("guest",)),
    Rule("the workbench is imported by neither side", where=("hw", "guest"), never=("vring",)),
    Rule("the data sheet needs nothing", where=("hw.abi",), never=PACKAGES, save=("hw.abi",)),
    Rule(
        "the stack knows no driver, ring, DMA, platform or kernel",
        where=("guest.net",),
        never=("guest", "hw"),
        save=("guest.net", "guest._native", "hw.abi.virtio_net"),
    ),
    Rule("a front end knows no ring", where=("guest.fe",), never=("guest.ring", "guest.drivers", "guest.dma", "hw")),
    Rule("a ring knows no network", where=("guest.ring",), never=("guest.net", "hw.abi.virtio_net")),
    *above(HW_LAYERS),
    *above(GUEST_LAYERS),
    Rule("the world outside is handed in", where=PACKAGES, never=WORLD, but=DOORS),
    Rule("screens belong to the workbench", where=("hw", "guest"), never=("rich", "typer")),
    Rule("guest processes belong to the guest's scheduler", where=PACKAGES, never=("greenlet",), but=("guest.sys",)),
]


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether the dotted `name` is one of `prefixes` or lies in one of them."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def module_name(path: Path) -> str:
    """`guest/net/ip.py` is `guest.net.ip`; a package's `__init__.py` is the package."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: str, source: str, *, is_package: bool = False) -> list[tuple[int, str]]:
    """All that `source` imports, as line and full dotted name, wherever the import stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                up = here[: len(here) - node.level + (1 if is_package else 0)]
                base = ".".join([*up, base] if base else up)
            # `from hw import machine` imports hw.machine: count the longer name, which says more.
            found += [(node.lineno, base if alias.name == "*" else f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                found.append((node.lineno, node.args[0].value))
    return found


def broken(rule: Rule, module: str, source: str, *, is_package: bool = False) -> list[str]:
    """The imports in `source` that break `rule`, each as a line for people."""
    if not under(module, rule.where) or under(module, rule.but):
        return []
    return [
        f"{module}:{line} imports {name}: {rule.text}"
        for line, name in imports(module, source, is_package=is_package)
        if under(name, rule.never) and not under(name, rule.save)
    ]


def module_state(module: str, source: str) -> list[str]:
    """Uses of chance that nobody seeded: anything of `random` but the class `Random`.

    One place may ask the host for entropy: the machine, for a board without a seed on the real clock.
    """
    wrong = [
        f"{module}:{line} imports {name}"
        for line, name in imports(module, source)
        if name.startswith("random.") and name != "random.Random"
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            allowed = {"Random", "SystemRandom"} if module == "hw.machine" else {"Random"}
            if node.value.id == "random" and node.attr not in allowed:
                wrong.append(f"{module}:{node.lineno} uses random.{node.attr}")
            if node.value.id == "os" and node.attr in {"urandom", "getrandom"}:
                wrong.append(f"{module}:{node.lineno} uses os.{node.attr}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"random.Random", "Random"} and not node.args:
            wrong.append(f"{module}:{node.lineno} makes a Random without a seed")
    return wrong


def sources() -> list[Path]:
    return sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_the_tree_keeps_every_rule() -> None:
    files = sources()
    assert len(files) > len(PACKAGES), "nothing was read: the rule would pass on an empty tree"

    found = [
        wrong
        for path in files
        for rule in RULES
        for wrong in broken(
            rule, module_name(path), (ROOT / path).read_text(), is_package=path.name == "__init__.py"
        )
    ]

    assert found == []


def test_chance_is_seeded_everywhere() -> None:
    found = [wrong for path in sources() for wrong in module_state(module_name(path), (ROOT / path).read_text())]

    assert found == []


def test_every_module_has_a_layer() -> None:
    placed = tuple(name for layers in (HW_LAYERS, GUEST_LAYERS) for names in layers for name in names)

    homeless = [
        module_name(path)
        for path in sources()
        if path.parts[0] != "vring" and len(path.parts) > 1 and not under(module_name(path), placed)
    ]

    assert set(homeless) <= {"hw", "guest"}, "say in HW_LAYERS or GUEST_LAYERS how high it lies"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("guest.drivers.virtio_net", "import hw.virtio.net"),
        ("guest.kernel", "from hw import machine"),
        ("hw.machine", "from guest.platform import Platform"),
        ("hw.machine", "def late():\n    from guest import kernel"),
        ("hw.loop", "import vring"),
        ("guest.boot", "if TYPE_CHECKING:\n    from vring.session import Session"),
        ("hw.abi.virtio", "from hw.memory import GuestMemory"),
        ("guest.net.ip", "from guest.ring.split import SplitRing"),
        ("guest.net.ip", "from guest.platform import Platform"),
        ("guest.net.ip", "from guest import dma"),
        ("guest.net.ip", "from ..drivers import registry"),
        ("guest.net", "from .stack import Stack\nfrom ..kernel import Guest"),
        ("guest.net.ip", "from hw.abi.virtio_ring import VRING_DESC_F_NEXT"),
        ("guest.fe", "from guest.drivers.virtio_net import VirtioNetDriver"),
        ("guest.fe", "from .ring import split"),
        ("guest.ring.split", "from guest.net.pbuf import PacketBuffer"),
        ("guest.dma", "from guest.services import Timers"),
        ("guest.services", "from guest import kernel"),
        ("guest.drivers.loopback", "from guest.fe import FrontEnd"),
        ("guest.sys.scheduler", "import importlib\nimportlib.import_module('guest.apps.ping')"),
        ("hw.memory", "import hw.bus"),
        ("hw.wire.hub", "from hw.virtio.net import VirtioNet"),
        ("hw.virtio.mmio", "from hw.machine import Machine"),
        ("guest.net.stack", "import time"),
        ("guest.net.stack", "from time import monotonic_ns"),
        ("hw.wire.impair", "import threading"),
        ("guest.apps.ping", "import socket, select"),
        ("guest.boot", "from rich.console import Console"),
        ("guest.kernel", "import greenlet"),
    ],
)
def test_a_bad_import_is_seen(module: str, source: str) -> None:
    is_package = module == "guest.net"

    assert any(broken(rule, module, source, is_package=is_package) for rule in RULES), f"not seen: {source}"


def test_each_rule_can_fail() -> None:
    for rule in RULES:
        bad = next(name for name in rule.never if not under(name, rule.save))
        module = next(name for name in rule.where if not under(name, rule.but))

        assert broken(rule, f"{module}.bad", f"import {bad}.thing"), f"nothing breaks the rule: {rule.text}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("guest.drivers.virtio_mmio", "from hw.abi import virtio_mmio"),
        ("guest.net.checksum", "from guest import _native"),
        ("guest.net.ip", "from . import icmp\nfrom .pbuf import PacketBuffer"),
        ("hw.clock", "import time"),
        ("hw.wire.tap", "import fcntl, socket"),
        ("vring.home", "import threading\nfrom hw.machine import Machine\nfrom guest.kernel import Guest"),
        ("guest.net.timestamps", "from guest.net import time"),
    ],
)
def test_a_good_import_is_let_through(module: str, source: str) -> None:
    assert [wrong for rule in RULES for wrong in broken(rule, module, source)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import random\nx = random.randrange(6)",
        "from random import choice",
        "import random\nrng = random.Random()",
        "import random\nrandom.seed(1)",
        "import random\nrng = random.SystemRandom()",
        "import os\nkey = os.urandom(8)",
    ],
)
def test_unseeded_chance_is_seen(source: str) -> None:
    assert module_state("guest.bad", source), f"not seen: {source}"


def test_a_seeded_source_is_let_through() -> None:
    source = "import random\ndef make(seed: int) -> random.Random: return random.Random(seed)"

    assert module_state("hw.good", source) == []
