"""The modules `socket` and `select` for threads of the host: what is in them, and those of one guest."""

from __future__ import annotations

import select
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from guest.stdlib import modules
from guest.stdlib.network import Network
from vring.lookalike import polling
from vring.lookalike.host import HostSide, host_names

if TYPE_CHECKING:
    from guest.kernel import Guest
    from vring.door import ThreadCalls
    from vring.home import Home

DOC = "The standard library's {} over the guest {}."


def socket_names(module: str, network: Callable[[], Network]) -> dict[str, Any]:
    """Everything that a module `socket` has, with the host's own constants and exceptions."""
    return modules.socket_names(module, network, host_names())


def select_names(module: str, side: Callable[[], polling.Side | None]) -> dict[str, Any]:
    """Everything that a module `select` has, and `DefaultSelector`."""
    names = {name: value for name, value in vars(select).items() if name[0].isupper() and isinstance(value, int)}
    names |= polling.select_functions(module, side)
    return names | {"error": OSError, "DefaultSelector": modules.selector_class(module, names["epoll"])}


class Outside:
    """One guest's look-alikes for threads of the host. To be made in the home thread.

    Attributes:
        host: the host's side. network: what sockets are made of.
        socket, select: the modules.
    """

    def __init__(self, guest: Guest, home: Home, door: ThreadCalls) -> None:
        self.host = HostSide(guest, home, door)
        self.network = Network(door, home.rig.clock.now, self.host)
        self.socket = self._module("socket", socket_names("socket", lambda: self.network), guest)
        self.select = self._module("select", select_names("select", lambda: self.host), guest)

    @staticmethod
    def _module(name: str, names: dict[str, Any], guest: Guest) -> ModuleType:
        return modules.make_module(name, names, DOC.format(name, guest.name))
