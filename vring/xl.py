"""Domain descriptions as Xen's `xl` reads them, as far as a board has what they name.

    name   = "web"
    memory = 64                                              # MiB
    extra  = "-ipaddr 10.0.0.2 -netmask 255.255.255.0"
    vif    = ['mac=00:16:3e:00:00:01,bridge=xenbr0', 'bridge=xenbr1,mtu=9000']

Each bridge is a hub of that name, each vif a Xen card. Keys that say how a real domain is started (kernel, disks,
consoles) mean nothing here and are passed over; a key that is none of xl's is a mistake.

Promises: whatever is wrong raises `ConfigError`, one line that says where and what is allowed.

Read: the manual pages xl.cfg(5) and xl-network-configuration(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vring.config import ConfigError

SUFFIXES = (".cfg", ".xl")
BRIDGE_DEFAULT = "xenbr0"

_PASSED_OVER = (
    "acpi", "bios", "bootloader", "builder", "console", "consoles", "cpus", "disk", "driver_domain", "kernel",
    "maxmem", "maxvcpus", "nographic", "on_crash", "on_poweroff", "on_reboot", "on_shutdown", "on_soft_reset",
    "on_watchdog", "pae", "pci", "ramdisk", "root", "sdl", "serial", "shadow_memory", "stdvga", "type", "usb", "uuid",
    "vcpus", "vfb", "vga", "videoram", "vnc", "vnclisten",
)  # fmt: skip
_USED = ("name", "memory", "extra", "cmdline", "vif")
_VIF_PASSED_OVER = ("accel", "backend", "devid", "gatewaydev", "ip", "model", "rate", "script", "type", "vifname")
_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r]+|\#[^\n]*) | (?P<end>[\n;]) | (?P<sign>\+=|[=\[\],]) |
        (?P<text>"[^"\n]*"|'[^'\n]*') | (?P<number>-?\d+(?![\w.])) | (?P<name>[A-Za-z_][A-Za-z0-9_]*)""",
    re.VERBOSE,
)

Value = str | int | list[Any]


def read(text: str, where: str) -> dict[str, Any]:
    """The description as the table of a guest, with the keys that a TOML board has. Raises ConfigError."""
    values = _values(text, where)
    for key in values:
        if key not in _PASSED_OVER and key not in _USED:
            raise ConfigError(f"{where}: xl has no key {key!r}; those used here are {', '.join(_USED)}")
    table: dict[str, Any] = {}
    for key in ("name", "extra", "cmdline"):  # xl prefers cmdline to extra
        if key in values:
            if not isinstance(values[key], str):
                raise ConfigError(f"{where}: {key} is text in quotes, not {values[key]!r}")
            table["name" if key == "name" else "cmdline"] = values[key]
    memory = values.get("memory")
    if memory is not None:
        if not isinstance(memory, int):
            raise ConfigError(f"{where}: memory is a number of MiB, not {memory!r}")
        table["memory"] = f"{memory}M"
    vifs = values.get("vif", [])
    if not isinstance(vifs, list):
        raise ConfigError(f"{where}: vif is a list of texts, ['mac=…,bridge=…', …]")
    table["nic"] = [_vif(each, f"{where}: vif {at}") for at, each in enumerate(vifs)]
    return table


def _vif(text: object, where: str) -> dict[str, Any]:
    if not isinstance(text, str):
        raise ConfigError(f"{where}: a vif is text in quotes, not {text!r}")
    nic: dict[str, Any] = {"model": "xen"}
    bridge = BRIDGE_DEFAULT
    for word in filter(None, (word.strip() for word in text.split(","))):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals or not value:
            raise ConfigError(f"{where}: {word!r} is not key=value")
        if key == "bridge":
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", value):
                raise ConfigError(f"{where}: {value!r} is no name of a bridge")
            bridge = value
        elif key == "mac":
            nic["mac"] = value
        elif key == "mtu":
            nic["mtu"] = int(value) if value.isascii() and value.isdigit() else value
        elif key not in _VIF_PASSED_OVER:
            raise ConfigError(f"{where}: a vif has no key {key!r}; those used here are mac, bridge, mtu")
    nic["wire"] = f"hub:{bridge}"
    return nic


# -- syntax: KEY = VALUE, one a line or behind a semicolon; a value is text, a number, or a list of values ------------


def _tokens(text: str, where: str) -> Iterator[tuple[str, str, int]]:
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ConfigError(f"{where}: line {line}: {text[at : at + 10].splitlines()[0]!r} is not understood")
        kind = match.lastgroup or ""
        if kind != "blank":
            yield kind, match[0], line
        line += match[0].count("\n")
        at = match.end()
    yield "end", "\n", line


def _values(text: str, where: str) -> dict[str, Value]:
    values: dict[str, Value] = {}
    tokens = _tokens(text, where)
    for kind, key, line in tokens:
        if kind == "end":
            continue
        here = f"{where}: line {line}"
        sign = next(tokens)[1]
        if kind != "name" or sign not in ("=", "+="):
            raise ConfigError(f"{here}: a line is KEY = VALUE")
        value = _value(next(tokens), tokens, here)
        if sign == "+=":
            old = values.get(key, [])
            if not isinstance(old, list) or not isinstance(value, list):
                raise ConfigError(f"{here}: += adds to a list")
            value = [*old, *value]
        values[key] = value
        if next(tokens)[0] != "end":
            raise ConfigError(f"{here}: there is more behind the value of {key}")
    return values


def _value(token: tuple[str, str, int], tokens: Iterator[tuple[str, str, int]], here: str) -> Value:
    kind, text, _ = token
    if kind == "text":
        return text[1:-1]
    if kind == "number":
        return int(text)
    if text != "[":
        raise ConfigError(f"{here}: a value is text in quotes, a number, or a list, not {text.strip()!r}")
    items: list[Any] = []
    for item in tokens:
        if item[1] == "]":
            return items
        if item[1] in ("\n", ","):
            continue
        items.append(_value(item, tokens, here))
    raise ConfigError(f"{here}: the list has no end")
