"""The standard library's `select`, over the host's descriptors and `vring.socket`'s; and `DefaultSelector`."""

from __future__ import annotations

from typing import Any

from vring.lookalike.default import DEFAULT
from vring.lookalike.names import select_names

_NAMES = select_names(__name__, DEFAULT.side)
__all__ = sorted(name for name in _NAMES if not name.startswith("_"))  # noqa: PLE0605 - what there is, is counted


def __getattr__(name: str) -> Any:
    """Every name of the module (PEP 562); see the standard library's."""
    try:
        return _NAMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted(_NAMES)
