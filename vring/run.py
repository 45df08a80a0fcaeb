"""`vring run`, in the fresh interpreter: a program of the host's over a guest's sockets.

    vring run --wire tap:t0 --cmdline "-ipaddr 10.9.0.2 -netmask 255.255.255.0" -m http.server 8000

vring/cli.py reads the options and puts a new interpreter in its own place, which calls `main` here. The board boots,
with the host's modules for its wires; then look-alikes take the place of `socket` and `select`, and of every module
that has got hold of those, so that selectors, asyncio, ssl and http follow from them when the program imports them.

Promises:
- The program runs in the main thread, as `__main__`, with its own `sys.argv` and `sys.path`. Its threads work. Signals,
  exit status and tracebacks are as without us.
- The guest boots before the program starts, and with DHCP has its lease. When the program and its threads have ended,
  what its connections still owe is sent before the guest ends.
- `socket` and `select` are the guest's; AF_UNIX sockets and descriptors that were inherited are the host's.

Programs that this one starts are outside: a guest lives in one process. `_socket`, which no program should use, is the
host's.

Sections: `main`, the board, the modules, the program.
"""

from __future__ import annotations

import atexit
import builtins
import importlib
import importlib.util
import io
import json
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from guest.kernel import Guest
    from vring.session import Session

EXIT_FAILURE = 1
EXIT_USAGE = 2
# Modules that parts of a running board import when they are first needed: before the look-alikes are there.
LATER = (
    "dns.flags", "dns.message", "dns.name", "dns.rdatatype", "hw.wire.impair", "hw.wire.packet", "hw.wire.pcap",
    "hw.wire.tap", "pcapng",
)  # fmt: skip
OURS = ("guest", "hw", "vring")
HOSTS = ("socket", "select", "selectors")
SENDFILE_MOST = 1 << 20  # bytes at a time


def main() -> None:
    """Boot what the first argument describes, and become the program that the others name.

    sys.argv is ["-c", options as JSON, "-m" or "", the program, its arguments…].
    """
    options = json.loads(sys.argv[1])
    by_name, name, arguments = sys.argv[2] == "-m", sys.argv[3], sys.argv[4:]
    session, guest = _boot(options)
    _install(session, guest)
    _become(name, arguments, by_name=by_name)


def _complain(text: str, status: int) -> NoReturn:
    print("vring: " + " ".join(text.split()), file=sys.stderr)
    raise SystemExit(status)


# -- the board -------------------------------------------------------------------------------------------------------


def _boot(options: dict[str, Any]) -> tuple[Session, Guest]:
    """A session, and the program's guest in it, which has booted. Ends the program where that cannot be."""
    from hw.wire.link import WireError  # noqa: PLC0415 - the machine loads when the arguments have been read
    from vring.config import ConfigError  # noqa: PLC0415
    from vring.lookalike.ending import finish  # noqa: PLC0415
    from vring.session import boot  # noqa: PLC0415

    try:
        session = boot(
            options["board"], nic=options["nic"], wire=options["wire"], cmdline=options["cmdline"], clock="real",
            seed=options["seed"], pcap=options["pcap"],
        )  # fmt: skip
    except ConfigError as error:
        _complain(str(error), EXIT_USAGE)
    except (WireError, OSError) as error:
        _complain(str(error), EXIT_FAILURE)
    found = [each for each in session.guests if options["guest"] in (None, each.name)]
    if not found:
        session.close()
        names = ", ".join(each.name for each in session.guests)
        _complain(f"there is no guest {options['guest']!r}; the board has {names}", EXIT_USAGE)
    guest = found[0]
    atexit.register(finish, session, guest)  # the first to be registered is the last to be called
    session.run_until(lambda: guest.booted or guest.halted)
    if options["verbose"] or guest.halted:
        print(session.console, file=sys.stderr, end="")
    if guest.halted:
        _complain(f"{guest.name}: the boot failed with status {guest.exit_status}", EXIT_FAILURE)
    return session, guest


# -- the modules -----------------------------------------------------------------------------------------------------


def _install(session: Session, guest: Guest) -> None:
    """Put the look-alikes in place of `socket` and `select`, and make Python forget who knows those."""
    for name in LATER:
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # such as a wire that this host cannot have
    outside = session.outside_of(guest)
    for name in _who_knows([sys.modules[name] for name in HOSTS]):
        del sys.modules[name]
    sys.modules["socket"], sys.modules["select"] = outside.socket, outside.select
    _replace_sendfile(outside.host.recognise, outside.network.calls.send)
    try:
        importlib.import_module("ssl")
    except ImportError:
        return  # a Python without it
    from vring.lookalike.tls import install  # noqa: PLC0415 - it imports what is now in place

    install()


def _who_knows(modules: Sequence[ModuleType]) -> list[str]:
    """The names in sys.modules that have to be imported anew to work without these modules.

    Parts of the board keep what they have, and of others what they have imported. A package of the standard library
    goes as a whole.
    """
    names = {module.__name__ for module in modules} | {"_socket"}

    def knows(module: ModuleType) -> bool:
        return module in modules or any(
            value in modules if isinstance(value, ModuleType) else getattr(value, "__module__", None) in names
            for value in list(vars(module).values())
            if isinstance(value, ModuleType | type) or callable(value)
        )

    found = set()
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        if top in (*OURS, "__main__", "_socket") or not isinstance(module, ModuleType) or not knows(module):
            continue
        whole = top in sys.stdlib_module_names
        found |= {each for each in sys.modules if each == name or (whole and each.partition(".")[0] == top)}
    return sorted(found)


def _replace_sendfile(recognise: Callable[[int], int | None], send: Callable[[int, bytes], int]) -> None:
    """Let `os.sendfile` send through a guest's socket too: its mirror takes no data."""
    real: Any = os.sendfile

    def sendfile(out_fd: int, in_fd: int, offset: int | None, count: int, *rest: Any, **more: Any) -> int:
        fd = recognise(out_fd)
        if fd is None:
            sent: int = real(out_fd, in_fd, offset, count, *rest, **more)
            return sent
        size = min(count, SENDFILE_MOST)
        data = os.read(in_fd, size) if offset is None else os.pread(in_fd, size, offset)
        return send(fd, data) if data else 0

    vars(os)["sendfile"] = sendfile


# -- the program -----------------------------------------------------------------------------------------------------


def _become(name: str, arguments: Sequence[str], *, by_name: bool) -> None:
    """Run the program as the interpreter would have."""
    module = ModuleType("__main__")
    vars(module)["__builtins__"] = builtins
    if "__annotations__" in vars(sys.modules["__main__"]):  # which some versions give every program
        vars(module)["__annotations__"] = {}
    sys.modules["__main__"] = module
    sys.excepthook = _without_us
    first = str(Path.cwd()) if by_name else str(Path(name).resolve().parent)
    if sys.flags.safe_path:
        sys.path.pop(0)
    else:
        sys.path[0] = first
    sys.argv = ["-m" if by_name else name, *arguments]
    if by_name:
        code = _module_code(name, module)
    else:
        code = _container_code(name, module) or _script_code(name, module)
    exec(code, vars(module))


def _script_code(name: str, module: ModuleType) -> Any:
    path = str(Path(name).absolute())
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        text = f"[Errno {error.errno}] {error.strerror}"
        print(f"{sys.executable}: can't open file {path!r}: {text}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None
    loader = SourceFileLoader("__main__", path)
    vars(module).update(__file__=path, __cached__=None, __loader__=loader, __package__=None, __spec__=None)
    return compile(source, path, "exec", dont_inherit=True)


def _container_code(name: str, module: ModuleType) -> Any:
    """The code of `__main__` in a directory or an archive; None for what is neither."""
    finder = pkgutil.get_importer(name)
    if finder is None:
        return None
    sys.path[0] = str(Path(name).absolute())
    spec = finder.find_spec("__main__", None)
    if spec is None:
        print(f"{sys.executable}: can't find '__main__' module in {name!r}", file=sys.stderr)
        raise SystemExit(EXIT_FAILURE)
    return _spec_code(spec, module)


def _module_code(name: str, module: ModuleType) -> Any:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError, AttributeError) as error:
        print(f"{sys.executable}: Error while finding module specification for {name!r} ({error})", file=sys.stderr)
        raise SystemExit(EXIT_FAILURE) from None
    if spec is None:
        print(f"{sys.executable}: No module named {name}", file=sys.stderr)
        raise SystemExit(EXIT_FAILURE)
    if spec.origin is not None:
        sys.argv[0] = spec.origin
    return _spec_code(spec, module)


def _spec_code(spec: ModuleSpec, module: ModuleType) -> Any:
    loader: Any = spec.loader
    code = loader.get_code(spec.name)
    if code is None:
        print(f"{sys.executable}: No code object available for {spec.name}", file=sys.stderr)
        raise SystemExit(EXIT_FAILURE)
    vars(module).update(
        __file__=spec.origin, __cached__=spec.cached, __loader__=loader, __package__=spec.parent, __spec__=spec
    )
    return code


def _without_us(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The interpreter's own hook, told of the program's frames alone."""
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, "<string>"):
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)
