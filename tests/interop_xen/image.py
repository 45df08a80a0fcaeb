"""What is booted: Xen, a kernel, and RAM disks for domain 0 and for the domain that xl makes, from Debian's packages.

Nothing is installed: packages are downloaded and unpacked, once, into a cache. Domain 0's RAM disk has the toolstack
and this tree with the Python that runs this, as far as the programs import it. Archives are written here (cpio's
"newc"), so neither cpio nor root is needed.

Sections: `Archive`, Debian's part (`debian_files`), Python's part (`python_files`), the domain's disk (`domain_disk`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
PROGRAMS = ("tests.interop_xen.netfront_in_dom0", "tests.interop_xen.netback_in_dom0")
HOME = "/vring"  # of the tree in domain 0
TOOLS = ("xl", "xenstored", "xenconsoled", "xen-init-dom0", "libxl-save-helper")
DOM0_MODULES = ("xen-privcmd", "xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-netback")
DOMAIN_MODULES = ("xen-netfront",)
_LIBRARIES = re.compile(r"^(libxen\S+|libyajl\d+)$", re.MULTILINE)
_STEP_SECONDS = 300


class CannotMake(Exception):
    """The image cannot be made here; the text is one line that says why."""


# -- archives ------------------------------------------------------------------------------------------------------


class Archive:
    """A RAM disk in the making: cpio's "newc", which the kernel unpacks. Folders come by themselves."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._known: set[str] = {""}

    def add(self, path: str, data: bytes, mode: int = 0o100644) -> None:
        """A file, unless it is there."""
        path = path.strip("/")
        if path not in self._known:
            self.folder(os.path.dirname(path))
            self._known.add(path)
            self._entry(path, data, mode)

    def program(self, path: str, data: bytes) -> None:
        """A file that can be run."""
        self.add(path, data, 0o100755)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self.add(path, target.encode(), 0o120777)

    def folder(self, path: str) -> None:
        """A folder and those above it."""
        path = path.strip("/")
        if path not in self._known:
            self.folder(os.path.dirname(path))
            self._known.add(path)
            self._entry(path, b"", 0o040755)

    def _entry(self, path: str, data: bytes, mode: int) -> None:
        name = path.encode() + b"\0"
        numbers = (len(self._parts), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
        self._parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]

    def finish(self) -> bytes:
        """The archive; several may stand one after the other."""
        self._entry("TRAILER!!!", b"", 0)
        return b"".join(self._parts)


def _run(*command: str, cwd: Path, environment: dict[str, str] | None = None) -> str:
    """What `command` prints. Raises CannotMake when it fails or takes too long."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=False, timeout=_STEP_SECONDS,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
        )  # fmt: skip
    except FileNotFoundError:
        raise CannotMake(f"there is no {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise CannotMake(f"{command[0]} is not done after {_STEP_SECONDS} s") from None
    if done.returncode:
        why = done.stderr.strip().splitlines() or [f"ends with {done.returncode}"]
        raise CannotMake(f"{command[0]} says {why[-1]}")
    return done.stdout


def _add_libraries(archive: Archive, files: Iterable[Path], root: Path | None = None) -> None:
    """Put the shared libraries of `files` where they are found; those below `root` as if it were the root."""
    environment = {"LD_LIBRARY_PATH": str(root / "usr/lib/x86_64-linux-gnu")} if root else None
    names = [str(path) for path in files]
    for line in _run("ldd", *names, cwd=TREE, environment=environment).splitlines():
        if "not found" in line:
            raise CannotMake(f"the library {line.split()[0]} is not here")
        found = re.search(r"(/\S+) \(0x", line)
        if found:
            path = found[1]
            inside = "/" + str(Path(path).relative_to(root)) if root and Path(path).is_relative_to(root) else path
            archive.program(inside, Path(path).read_bytes())


# -- Debian's part -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DebianFiles:
    """What was made of packages.

    Attributes:
        xen, kernel: to be booted.
        dom0: archive with the toolstack, modules and busybox for domain 0.
        busybox: the program. modules: folder of the domain's modules.
        versions: of Xen and Linux, for people.
    """

    home: Path

    @property
    def xen(self) -> Path:
        return self.home / "xen"

    @property
    def kernel(self) -> Path:
        return self.home / "linux"

    @property
    def dom0(self) -> Path:
        return self.home / "dom0.cpio"

    @property
    def busybox(self) -> Path:
        return self.home / "busybox"

    @property
    def modules(self) -> Path:
        return self.home / "modules"

    @property
    def versions(self) -> str:
        return (self.home / "versions").read_text()


def debian_files(cache: Path) -> DebianFiles:
    """The files, made in `cache` unless they are there. Raises CannotMake."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    home = cache / f"xen-{recipe}"
    if not home.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="xen-", dir=cache) as directory:
            work = Path(directory)
            _make(work)
            try:
                (work / "out").rename(home)
            except OSError:  # somebody else was faster; those files are as good
                if not home.exists():
                    raise
    return DebianFiles(home)


def _newest(work: Path, prefix: str, pattern: str) -> str:
    names = [name for name in _run("apt-cache", "pkgnames", prefix, cwd=work).split() if re.fullmatch(pattern, name)]
    if not names:
        raise CannotMake(f"there is no {prefix} in Debian's package lists (apt-get update)")
    return max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def _fetch(work: Path) -> Path:
    """Download and unpack what is needed; where to."""
    hypervisor = _newest(work, "xen-hypervisor-4", r"xen-hypervisor-4\.\d+-amd64")
    utils = _newest(work, "xen-utils-4", r"xen-utils-4\.\d+")
    depends = _run("apt-cache", "depends", "--important", "linux-image-amd64", cwd=work)
    kernel = re.search(r"Depends: (linux-image-\S+)", depends)
    if kernel is None:
        raise CannotMake("linux-image-amd64 depends on no kernel")
    below = _run("apt-cache", "depends", "--recurse", "--important", utils, cwd=work)
    libraries = sorted(set(_LIBRARIES.findall(below)))
    _run("apt-get", "-q", "download", hypervisor, utils, kernel[1], "busybox-static", *libraries, cwd=work)
    for package in sorted(work.glob("*.deb")):
        _run("dpkg", "-x", package.name, "root", cwd=work)
    versions = [re.sub(r"%3a", ":", package.name).split("_")[:2] for package in work.glob("*.deb")]
    wanted = (hypervisor, kernel[1])
    (work / "versions").write_text(", ".join(" ".join(pair) for pair in sorted(versions) if pair[0] in wanted))
    return work / "root"


def _make(work: Path) -> None:
    root = _fetch(work)
    out = work / "out"
    (out / "modules").mkdir(parents=True)
    shutil.copy(work / "versions", out / "versions")
    (out / "xen").write_bytes(gzip.decompress(next((root / "boot").glob("xen-*.gz")).read_bytes()))
    shutil.copy(next((root / "boot").glob("vmlinuz-*")), out / "linux")
    shutil.copy(next(root.glob("**/bin/busybox")), out / "busybox")
    for name in DOMAIN_MODULES:
        (out / "modules" / f"{name}.ko").write_bytes(_module(root, name))

    archive = Archive()
    for name in ("dev", "proc", "sys", "run", "tmp", "etc", "var/lib/xen", "var/log/xen/console"):
        archive.folder(name)
    archive.program("bin/busybox", (out / "busybox").read_bytes())
    for name in DOM0_MODULES:
        archive.add(f"lib/modules/{name}.ko", _module(root, name))
    folder = next(root.glob("usr/lib/xen-*/bin"))
    tools = [folder / name for name in TOOLS]
    for tool in tools:
        archive.program(f"{folder.relative_to(root)}/{tool.name}", tool.read_bytes())
        archive.link(f"usr/sbin/{tool.name}", f"/{folder.relative_to(root)}/{tool.name}")
    archive.add("etc/xen/xl.conf", b"")
    _add_libraries(archive, tools, root)
    (out / "dom0.cpio").write_bytes(archive.finish())


def _module(root: Path, name: str) -> bytes:
    found = next(root.glob(f"lib/modules/*/kernel/**/{name}.ko*"), None)
    if found is None:
        raise CannotMake(f"the kernel has no module {name}")
    data = found.read_bytes()
    return lzma.decompress(data) if found.suffix == ".xz" else data


# -- Python's part ---------------------------------------------------------------------------------------------------

_TRACE = """
import importlib, json, os, pkgutil, sys
import traceback, linecache, encodings.ascii, encodings.latin_1
import guest, hw
names = [each.name for package in (guest, hw)
         for each in pkgutil.walk_packages(package.__path__, package.__name__ + ".") if "_build" not in each.name]
for name in names + sys.argv[1:]:  # all of them, since some are imported late
    importlib.import_module(name)
modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
executable = os.path.realpath(sys.executable)
print(json.dumps({"prefix": sys.base_prefix, "python": executable, "modules": modules}))
"""


def python_files(scratch: Path) -> bytes:
    """An archive with the interpreter that runs this, the modules that `PROGRAMS` import, and the tree."""
    said = _run(sys.executable, "-c", _TRACE, *PROGRAMS, cwd=TREE, environment={"PYTHONPATH": str(TREE)})
    found = json.loads(said.splitlines()[-1])
    prefix, python = Path(found["prefix"]), Path(found["python"])
    archive = Archive()
    shared = [python]
    archive.program(str(python), python.read_bytes())
    archive.link("bin/python3", str(python))
    archive.add("etc/python-home", str(prefix).encode())
    for name, file in sorted(found["modules"].items()):
        path = Path(file) if file else None
        if path is None or name == "__main__" or not path.exists() or _is_ours(path):
            continue
        inside = str(path) if _is_standard(path, prefix) else f"{HOME}/{_place(name, path)}"
        if path.suffix == ".py":
            _add_source(archive, path, inside, scratch)
        else:
            shared.append(path)
            archive.program(inside, path.read_bytes())
    for package in ("hw", "guest", "tests/interop_xen"):
        for path in sorted((TREE / package).rglob("*")):
            inside = f"{HOME}/{path.relative_to(TREE)}"
            if path.suffix == ".py":
                _add_source(archive, path, inside, scratch)
            elif path.suffix == ".so":
                shared.append(path)
                archive.program(inside, path.read_bytes())
    archive.add(f"{HOME}/tests/__init__.py", b"")
    _add_libraries(archive, shared)
    return archive.finish()


def _is_installed(path: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(path.parts))


def _is_ours(path: Path) -> bool:
    """Whether it belongs to the tree, which may have an environment of installed modules in it."""
    return path.is_relative_to(TREE) and not _is_installed(path)


def _is_standard(path: Path, prefix: Path) -> bool:
    return path.is_relative_to(prefix) and not _is_installed(path)


def _place(name: str, path: Path) -> str:
    """Where a module that belongs to no standard library is found from `HOME`."""
    parts = name.split(".")
    return "/".join([*parts, path.name] if path.stem == "__init__" else [*parts[:-1], path.name])


def _add_source(archive: Archive, path: Path, inside: str, scratch: Path) -> None:
    """A module and what the interpreter would make of it: compiling takes long where the CPU is emulated."""
    archive.add(inside, path.read_bytes())
    compiled = scratch / "module.pyc"
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(path), str(compiled), dfile=inside, doraise=True, invalidation_mode=mode)
    place = Path(inside)
    tag = sys.implementation.cache_tag
    archive.add(f"{place.parent}/__pycache__/{place.stem}.{tag}.pyc", compiled.read_bytes())


# -- the RAM disks ---------------------------------------------------------------------------------------------------


def domain_disk(files: DebianFiles, init: str) -> bytes:
    """The RAM disk of a domain that runs `init`, a shell script."""
    archive = Archive()
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        archive.folder(name)
    archive.program("bin/busybox", files.busybox.read_bytes())
    for name in DOMAIN_MODULES:
        archive.add(f"lib/modules/{name}.ko", (files.modules / f"{name}.ko").read_bytes())
    archive.program("init", init.encode())
    return archive.finish()


def dom0_disk(files: DebianFiles, python: bytes, init: str, extra: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """The RAM disk of domain 0, which runs `init`, with further files."""
    archive = Archive()
    archive.program("init", init.encode())
    for path, data in extra:
        archive.add(path, data)
    return files.dom0.read_bytes() + python + archive.finish()
