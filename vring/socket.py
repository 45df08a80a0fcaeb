"""The standard library's `socket`, over a guest that boots when it is first needed.

    from vring import socket

    with socket.create_connection(("127.0.0.1", 7)) as sock:
        sock.sendall(b"hello")

Everything that the standard library's module has is here. Integers are descriptors of the host: `fileno()` gives one
that any wait of the host works on, AF_UNIX sockets are the host's own. The guest's board is what VRING_BOARD names, one
guest on a user wire by default; vring/lookalike/default.py has it.
"""

from __future__ import annotations

from typing import Any

from vring.lookalike.default import DEFAULT
from vring.lookalike.names import socket_names

_NAMES = socket_names(__name__, DEFAULT.network)
__all__ = sorted(name for name in _NAMES if not name.startswith("_"))  # noqa: PLE0605 - what there is, is counted


def __getattr__(name: str) -> Any:
    """Every name of the module (PEP 562); see the standard library's."""
    try:
        return _NAMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted(_NAMES)
