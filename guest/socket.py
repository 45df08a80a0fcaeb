"""The standard library's `socket`, over the guest that the calling program runs in.

    from guest import socket

    def main(env, argv):
        with socket.create_connection(("10.0.0.2", 7)) as sock:
            sock.sendall(b"hello")
            env.print(sock.recv(100).decode())

A guest process carries its guest, and blocks as it does in any system call: the others run on. Constants and functions
that only count are there everywhere; what needs a guest raises RuntimeError where there is none. Integers are
descriptors of the guest, the same that `env.calls` takes. For threads of the host there are `machine.guest.socket` and
`vring.socket`.
"""

from __future__ import annotations

from typing import Any

from guest.stdlib.current import current
from guest.stdlib.modules import socket_names

_NAMES = socket_names(__name__, current)
__all__ = sorted(name for name in _NAMES if not name.startswith("_"))  # noqa: PLE0605 - what there is, is counted


def __getattr__(name: str) -> Any:
    """Every name of the module (PEP 562); see the standard library's."""
    try:
        return _NAMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted(_NAMES)
