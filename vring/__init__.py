"""The workbench: puts machines of `hw` and guests of `guest` together, runs them and shows them.

    import vring

    with vring.boot(nic="virtio", wire="hub", cmdline="-ipaddr 10.0.0.1 -netmask 255.255.255.0") as machine:
        print(machine.guest.log.text())

`import vring` costs next to nothing: `boot`, `Session`, `Stack`, `Board` and `ConfigError` load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vring.config import Board, ConfigError
    from vring.session import Session, boot
    from vring.stack import Stack

__version__ = "0.1.0"

__all__ = ["Board", "ConfigError", "Session", "Stack", "__version__", "boot"]

_HOMES = {
    "Board": "vring.config", "ConfigError": "vring.config", "Session": "vring.session", "Stack": "vring.stack",
    "boot": "vring.session",
}  # fmt: skip


def __getattr__(name: str) -> object:
    """Load what is asked for from the module it lives in (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vring' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  (that is the point)

    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
