"""Programs that run as guest processes; each is a file with a `main(env, argv) -> int` and its usage text.

Exit statuses are the usual ones: 0 is good, 1 is not, 2 is wrong usage. `--help` as the first word prints the usage and
the examples (`EXAMPLES`, command lines) of any program. A file's first line says in short what the program is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from guest.apps.env import Env, Program

EX_USAGE = 2
EX_NOT_FOUND = 127  # as a shell reports a program that it does not know


def programs() -> dict[str, Program]:
    """The programs that a guest has, by name; a new table each time."""
    return {name: _with_help(module) for name, module in sorted(_modules().items())}


def about(name: str) -> str:
    """A program in one line, without its name. Raises KeyError."""
    first = (_modules()[name].__doc__ or "").partition("\n")[0]
    return first.partition(": ")[2] or first


def manual(name: str) -> str:
    """How a program is used, with examples. Raises KeyError."""
    module = _modules()[name]
    examples = "".join(f"\n  {line}" for line in getattr(module, "EXAMPLES", ()))
    return f"{module.USAGE}{examples and f'{chr(10)}examples:{examples}'}"


def _with_help(module: ModuleType) -> Program:
    def main(env: Env, argv: list[Any]) -> int | None:
        if argv[:1] == ["--help"]:
            env.print(manual(module.__name__.rpartition(".")[2]))
            return 0
        status: int | None = module.main(env, argv)
        return status

    return main


def _modules() -> dict[str, ModuleType]:
    from guest.apps import (  # noqa: PLC0415 - only a guest that boots needs them
        cat,
        dhclient,
        discard,
        echo,
        echoclient,
        ethtool,
        guard,
        halt,
        httpd,
        idle,
        ifconfig,
        ip,
        ls,
        nc,
        nslookup,
        ping,
        sh,
        sniff,
        ss,
        traceroute,
        udpecho,
        wget,
    )

    modules = (
        cat, dhclient, discard, echo, echoclient, ethtool, guard, halt, httpd, idle, ifconfig, ip, ls, nc, nslookup,
        ping, sh, sniff, ss, traceroute, udpecho, wget,
    )  # fmt: skip
    return {module.__name__.rpartition(".")[2]: module for module in modules}
