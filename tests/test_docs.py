"""The documents say what is so: examples run and print what they show, names exist, links lead somewhere.

A ```python block runs by itself in an empty folder that has `fixtures/` in it; a ```text block right behind it is what
it prints. In a ```console block each `$ vring …` runs through the command's entry point, and the lines below are what
it prints; `$ vring run …` runs in a process of its own. `$ echo $?` is the exit status. `…` stands for any text, and on
a line of its own for any lines. Blocks that need root, a terminal or a built environment say `console no-run`.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from guest.apps import programs
from guest.cmdline import EXAMPLES
from hw.machine import Machine
from hw.wire.cable import cable
from vring import config
from vring.cli import app, main

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("*.md", "docs/*.md", "docs/teaching/*.md", "bench/*.md", "fixtures/*.md")
DOCS = sorted(path for place in PLACES for path in ROOT.glob(place))
ARCHITECTURE = ROOT / "docs" / "architecture.md"
API = ROOT / "docs" / "api.md"
STATUS = ROOT / "docs" / "status.md"


class Block(NamedTuple):
    """A fenced block: where it starts, what stands behind the fence, its text, and the ```text block behind it."""

    path: Path
    line: int
    kind: str
    text: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks_of(path: Path) -> Iterator[Block]:
    found: list[Block] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = re.fullmatch(r"```(.*)", lines[at])
        at += 1
        if fence is None:
            continue
        start = at
        while lines[at] != "```":
            at += 1
        found.append(Block(path, start, fence[1].strip(), "\n".join(lines[start:at]) + "\n", None))
        at += 1
    for block, after in zip(found, [*found[1:], *([None] * bool(found))], strict=True):
        end = block.line + block.text.count("\n") + 1
        joined = after is not None and after.kind == "text" and not "".join(lines[end : after.line - 1]).strip()
        yield block._replace(output=after.text if joined and after is not None else None)


BLOCKS = [block for path in DOCS for block in blocks_of(path)]
PYTHON = [block for block in BLOCKS if block.kind == "python"]
CONSOLE = [block for block in BLOCKS if block.kind == "console"]


def pattern(shown: str) -> str:
    """What a document shows, as a regular expression: `…` is any text, alone on a line any lines."""
    parts = []
    for line in shown.rstrip().splitlines():
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*?".join(re.escape(piece.rstrip()) for piece in line.split("…")) + r"[ ]*\n")
    return "".join(parts) + r"\s*"


def check_output(block: Block, shown: str, said: str) -> None:
    if not re.fullmatch(pattern(shown), said.rstrip() + "\n"):
        raise AssertionError(f"{block} shows\n{shown}\nbut what came is\n{said}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return tmp_path


# -- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_python_example_runs_and_prints_what_is_shown(block: Block) -> None:
    said = io.StringIO()

    with contextlib.redirect_stdout(said):
        exec(compile("\n" * block.line + block.text, str(block.path), "exec"), {"__name__": "__example__"})

    if block.output is not None:
        check_output(block, block.output, said.getvalue())
    else:
        assert not said.getvalue(), f"{block} prints something that is not shown:\n{said.getvalue()}"


def commands(block: Block) -> Iterator[tuple[list[str], str]]:
    """Each command with the output that is shown below it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        while command.endswith("\\"):
            more, _, shown = shown.partition("\n")
            command = command[:-1] + more
        yield shlex.split(command), shown


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("block", CONSOLE, ids=str)
def test_a_command_prints_what_is_shown(block: Block) -> None:
    status: object = None
    for words, shown in commands(block):
        said = io.StringIO()
        if words == ["echo", "$?"]:
            said.write(f"{status}\n")
        elif words[:2] == ["vring", "run"]:  # which would put another program in this one's place
            done = subprocess.run(
                [sys.executable, "-c", "from vring.cli import main; main()", *words[1:]],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            said.write(done.stdout + done.stderr)
            status = done.returncode
        else:
            assert words[0] == "vring", f"{block}: only vring is run here; mark the block `console no-run`"
            with (
                contextlib.redirect_stdout(said),
                contextlib.redirect_stderr(said),
                pytest.raises(SystemExit) as ended,
            ):
                main(words[1:])
            status = ended.value.code
        check_output(block, shown, said.getvalue())


@pytest.mark.parametrize(
    ("shown", "said", "equal"),
    [
        ("a\n", "a\n", True),
        ("a\n", "b\n", False),
        ("time=…\n", "time=0.1 ms\n", True),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nb\nc\n", False),
        ("a (b) [c]\n", "a (b) [c]\n", True),
        ("a\n", "a\nb\n", False),
    ],
)
def test_a_wrong_output_would_be_seen(shown: str, said: str, equal: bool) -> None:
    assert bool(re.fullmatch(pattern(shown), said)) == equal


def test_no_kind_of_block_slips_through() -> None:
    kinds = {block.kind for block in BLOCKS}

    assert kinds <= {"python", "python no-run", "console", "console no-run", "text", "toml"}, kinds
    assert len(PYTHON) > 5
    assert len(CONSOLE) > 2


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "toml"], ids=str)
def test_a_board_example_is_a_board(block: Block) -> None:
    assert config.Board.parse(block.text).guests


# -- names -----------------------------------------------------------------------------------------------------------

PATH = re.compile(r"[\w./-]+/(?:[\w.-]+)?|[\w-]+\.(?:py|md|toml)")
DOTTED = re.compile(r"(?:hw|guest|vring|tests|bench)(?:\.\w+)+")


def exists(name: str) -> bool:
    """Whether `name` is a module, or something in one: `hw.loop`, `hw.loop.Loop.run`."""
    words = name.split(".")
    for split in range(len(words), 0, -1):
        try:
            found: object = importlib.import_module(".".join(words[:split]))
        except ModuleNotFoundError:
            continue
        for word in words[split:]:
            if not hasattr(found, word):
                # An attribute that __init__ sets, which must be the end of the name.
                return isinstance(found, type) and word == words[-1] and sets(found, word)
            found = getattr(found, word)
        return True
    return False


def sets(kind: type, attribute: str) -> bool:
    line = rf"^\s+(?:self\.)?{attribute}(?:: [^=\n]+)?(?: = |$)"
    return re.search(line, inspect.getsource(kind), re.MULTILINE) is not None


def code_names(text: str) -> list[str]:
    """What stands between backquotes, without a call's parentheses."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [re.sub(r"\(.*\)$", "", name) for name in re.findall(r"`([^`\n]+)`", prose)]


def drawn_names(text: str) -> list[str]:
    """Dotted names inside the drawings."""
    return DOTTED.findall("\n".join(re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)))


def missing_names(text: str) -> list[str]:
    missing = []
    for name in [*code_names(text), *drawn_names(text)]:
        if DOTTED.fullmatch(name) and not (ROOT / name).exists():
            if not exists(name):
                missing.append(name)
        elif PATH.fullmatch(name) and not (ROOT / name).exists():
            missing.append(name)
    return missing


def test_b12_the_design_names_what_is_there() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")

    assert missing_names(text) == []
    assert len([name for name in code_names(text) if DOTTED.fullmatch(name)]) > 40


def test_a_name_that_is_not_there_would_be_seen() -> None:
    assert missing_names("`hw.loop.Loop.run()` and `hw/wire/tap.py` and `guest.kernel.Guest.stack`") == []
    assert missing_names("`hw.loop.Loop.walk`") == ["hw.loop.Loop.walk"]
    assert missing_names("`hw/wire/pigeon.py`, `hw.wire.pigeon`") == ["hw/wire/pigeon.py", "hw.wire.pigeon"]
    assert missing_names("```text\nhw.loop.Loop.hop -> guest.kernel\n```") == ["hw.loop.Loop.hop"]


def test_b12_every_file_of_the_house_is_drawn() -> None:
    """The tree in the architecture document has every module of the three packages, and no others."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    tree = re.search(r"```text\n(hw/.*?)```", text, flags=re.DOTALL)
    assert tree is not None
    drawn = set()
    stack: list[tuple[int, str]] = []
    for line in tree[1].splitlines():
        found = re.match(r"( *)((?:[\w.*-]+(?:\.py|/|\.toml) ?)+)", line)
        if found is None:
            continue
        depth = len(found[1])
        while stack and stack[-1][0] >= depth:
            stack.pop()
        above = "".join(name for _, name in stack)
        for name in found[2].split():
            if name.endswith("/"):
                stack.append((depth, name))
            else:
                drawn.add(above + name)
    there = {
        str(path.relative_to(ROOT))
        for package in ("hw", "guest", "vring")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }

    assert {name for name in drawn if name.endswith(".py")} == there


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)

    assert broken == []


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# -- the four documents ----------------------------------------------------------------------------------------------


def test_e48_the_ways_of_packets_are_drawn() -> None:
    """The stages in the drawing are those that a trace has, and the counters in the table those of the code."""
    from vring.trace import flow

    page = (ROOT / "docs" / "packet-flow.md").read_text(encoding="utf-8")
    drawing = page.partition("```text\n")[2].partition("```")[0]
    stages = set(re.findall(r"\b(?:nic|ring|irq|driver|fe|ethernet|ip|udp|socket)\b", str(flow.__doc__)))
    code = "".join(path.read_text() for side in ("hw", "guest") for path in (ROOT / side).rglob("*.py"))
    reasons = re.findall(r"`([rt]x_\w+)`", page)

    assert stages == {"nic", "ring", "irq", "driver", "fe", "ethernet", "ip", "udp", "socket"}
    assert {stage for stage in stages if not re.search(rf"\b{stage}\b", drawing)} == set()
    assert len(reasons) > 10
    # Some are put together of a direction and a reason.
    unknown = [name for name in reasons if not any(part in code for part in (name, f'"{name[3:]}"', f'"{name[11:]}"'))]
    assert unknown == []


@pytest.mark.parametrize("name", ["architecture.md", "packet-flow.md", "api.md", "performance.md"])
def test_e48_four_documents_say_how_it_works_and_are_led_to(name: str) -> None:
    others = [path.read_text(encoding="utf-8") for path in DOCS if path.name != name]

    assert any(re.search(rf"\]\((?:docs/|\.\./)?{re.escape(name)}[)#]", text) for text in others)
    # The figures of performance.md come from `make bench`; tests/test_track.py measures some anew. The architecture's
    # names and drawings are checked above.
    assert name in ("architecture.md", "performance.md") or any(
        block.path.name == name and block.output is not None for block in PYTHON
    )


# -- nothing is left out ---------------------------------------------------------------------------------------------


def quoted(path: Path) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8")))


def test_the_reference_has_every_option_of_the_command() -> None:
    import typer

    command = typer.main.get_command(app)
    options = {
        option
        for sub in command.commands.values()  # type: ignore[attr-defined]
        for parameter in sub.params
        if parameter.param_type_name == "option"
        for option in parameter.opts
    }

    assert {option for option in options if not any(option in name.split() for name in quoted(API))} == set()


def test_the_reference_has_every_key_option_program_and_wire() -> None:
    names = {name.split()[0].split("=")[0].split(":")[0] for name in quoted(API)}
    keys = {*config._BOARD_KEYS, *config._GUEST_KEYS, "model", "wire", "vnet_hdr"}
    wires = set(config.WIRE_KINDS)
    impairments = {"loss", "corrupt", "duplicate", "reorder", "delay", "jitter", "rate", "limit"}
    card = set(card_options())

    assert {*keys, *wires, *impairments, *card, *EXAMPLES, *programs()} - names == set()


def card_options() -> list[str]:
    """The options of a card, as its own error message lists them."""
    from hw.clock import VirtualClock
    from hw.loop import Loop

    loop = Loop(VirtualClock())
    with pytest.raises(ValueError, match="has no option") as error:
        Machine(loop).add_virtio_net(cable(loop)[0], options={"nonsense": 1})
    loop.close()
    return str(error.value).split("it has ")[1].split(", ")


def test_bench_is_described() -> None:
    modules = {path.stem for path in (ROOT / "bench").glob("*.py")} - {"__init__", "__main__"}

    assert {name for name in modules if f"{name}.py" not in (ROOT / "bench" / "README.md").read_text()} == set()


def test_fixtures_are_described() -> None:
    text = (ROOT / "fixtures" / "README.md").read_text()

    assert {path.name for path in (ROOT / "fixtures").rglob("*.*") if f"`{path.name}`" not in text} <= {"README.md"}


# -- what is done ----------------------------------------------------------------------------------------------------

NUMBERS = {
    "P": range(1, 7),
    "A": range(1, 20),
    "B": (*range(1, 9), *range(12, 18)),
    "C": (1, *range(3, 28)),
    "D": (1, 2, 3, 4, 9, 10, 11, 13, 15, 17, 18, 19, 21, 22),
    "E": (*range(1, 12), *range(17, 25), *range(26, 29), *range(30, 38), *range(40, 59)),
    "H": (*range(1, 14), *range(17, 27), *range(29, 66)),
}


def test_every_row_is_there_once() -> None:
    text = STATUS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Z]\d+) \|", text, flags=re.MULTILINE)

    assert sorted(rows) == sorted(f"{letter}{number}" for letter, numbers in NUMBERS.items() for number in numbers)


def test_every_row_names_a_test_that_is_there() -> None:
    wrong = []
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if not re.match(r"\| [A-Z]\d+ \|", line):
            continue
        named = re.findall(r"`(test_\w+)\.py::(\w+)`", line)
        wrong += [line] * (not named)
        for file, name in named:
            path = ROOT / "tests" / f"{file}.py"
            code = path.read_text(encoding="utf-8") if path.exists() else ""
            if not re.search(rf"^(?:def |class )?{name}(?:\(| = )", code, flags=re.MULTILINE):
                wrong.append(f"{file}.py::{name}")

    assert wrong == []


def test_b17_the_references_name_every_source() -> None:
    text = (ROOT / "docs" / "teaching" / "references.md").read_text(encoding="utf-8")
    names = (
        "APUE", "UNP", "Linux Device Drivers", "TCP/IP Illustrated", "The Linux Networking Architecture",
        "Understanding Linux Network Internals", "Pro Git", "busybox", "FINS", "lwIP", "LWIPv6", "LING", "6.S081",
        "RFC 791", "RFC 792", "RFC 793", "RFC 768", "RFC 826", "virtio_disk", "QEMU", "VDE", "View-OS", "Linux kernel",
    )  # fmt: skip

    assert [name for name in names if name not in text] == []
