"""Puts the look-alikes together: the names of a module `socket` and of a module `select`, for a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from guest.stdlib import constants, numbers
from guest.stdlib.files import SocketIO
from guest.stdlib.functions import GLOBAL_DEFAULT_TIMEOUT, SocketFunctions
from guest.stdlib.names import NameFunctions
from guest.stdlib.network import Network, gaierror, herror
from guest.stdlib.selectors import Selector
from guest.stdlib.sockets import socket_class
from guest.stdlib.waiting import select_functions

PLAIN = (
    numbers.htons, numbers.ntohs, numbers.htonl, numbers.ntohl, numbers.inet_aton, numbers.inet_ntoa,
    numbers.inet_pton, numbers.inet_ntop, numbers.CMSG_LEN, numbers.CMSG_SPACE,
)  # fmt: skip


def socket_names(
    module: str, network: Callable[[], Network], given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that a module `socket` has.

    Args:
        module: its name, for the names of classes.
        network: asked at each use.
        given: what takes the place of the guest's own constants, enumerations, exceptions and plain functions.
    """
    names: dict[str, Any] = constants.socket_names()
    names |= {each.__name__: each for each in PLAIN}
    names |= {"gaierror": gaierror, "herror": herror, **(given or {})}
    names |= {"error": OSError, "timeout": TimeoutError, "SocketIO": SocketIO}
    names["_GLOBAL_DEFAULT_TIMEOUT"] = GLOBAL_DEFAULT_TIMEOUT
    socket = socket_class(module, network, names["AddressFamily"], names["SocketKind"])
    names |= {"socket": socket, "SocketType": socket}
    tables = {name: value for name, value in (given or {}).items() if name.startswith(("getserv", "getproto"))}
    resolving = NameFunctions(network, names, tables)
    names |= _public(resolving)
    names |= _public(SocketFunctions(network, socket, resolving))
    return names


def select_names(module: str, network: Callable[[], Network]) -> dict[str, Any]:
    """Everything that a module `select` has over the guest's own descriptors, and `DefaultSelector`."""
    names: dict[str, Any] = constants.select_names()
    names |= select_functions(module, network)
    names |= {"error": OSError, "DefaultSelector": selector_class(module, names["epoll"])}
    return names


def selector_class(module: str, epoll: Any) -> type[Selector]:
    """A class with the methods of the standard library's selectors over this class `epoll`."""
    made: type[Selector] = type("DefaultSelector", (Selector,), {"__module__": module, "_epoll": epoll})
    return made


def guest_module(name: str, network: Callable[[], Network]) -> ModuleType:
    """The module `socket` or `select` over one guest."""
    names = socket_names(name, network) if name == "socket" else select_names(name, network)
    return make_module(name, names, f"The standard library's {name} over a guest.")


def make_module(name: str, names: Mapping[str, Any], doc: str) -> ModuleType:
    """A module of this name with these names in it."""
    module = ModuleType(name, doc)
    module.__dict__.update(names)
    module.__dict__["__all__"] = sorted(each for each in names if not each.startswith("_"))
    return module


def _public(holder: object) -> dict[str, Any]:
    """The methods and values of `holder` that are for programs."""
    return {name: getattr(holder, name) for name in dir(holder) if not name.startswith("_")}
