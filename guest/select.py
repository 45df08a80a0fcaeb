"""The standard library's `select`, over the guest that the calling program runs in; and `DefaultSelector`.

Sockets of `guest.socket` and descriptors of the guest, adopted ones of the host among them, may stand in one wait.
What needs a guest raises RuntimeError where there is none.
"""

from __future__ import annotations

from typing import Any

from guest.stdlib.current import current
from guest.stdlib.modules import select_names

_NAMES = select_names(__name__, current)
__all__ = sorted(name for name in _NAMES if not name.startswith("_"))  # noqa: PLE0605 - what there is, is counted


def __getattr__(name: str) -> Any:
    """Every name of the module (PEP 562); see the standard library's."""
    try:
        return _NAMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted(_NAMES)
