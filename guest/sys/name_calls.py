"""System calls about names: what a host is called, and what its addresses are.

On Linux these are no system calls: the C library asks servers over sockets. Here the resolver is the kernel's, and
these calls reach it.
"""

from __future__ import annotations

from typing import Protocol

from guest.net.address import AddressError, format_address, parse_address
from guest.sys.core import Core
from guest.sys.fault import fault
from guest.sys.sockaddr import EAI_NONAME, ResolveError

HOST_NAME_MAX = 64  # limits.h


class Names(Protocol):
    """Who knows names.

    Attributes:
        hostname: what this host is called.
    """

    hostname: str

    def addresses(self, name: str, family: int) -> list[int]:
        """The addresses of `name` in a family (AF_*, 0 for both), best first; at least one. Raises ResolveError."""

    def name_of(self, address: int) -> str | None:
        """What `address` is called; None where nobody knows."""


class NameCalls(Core):
    """Calls that ask for names."""

    names: Names | None = None

    def resolve(self, name: str, family: int = 0) -> list[str]:
        """The addresses of `name` in a family (AF_*, 0 for both), best first; at least one. May block.

        Raises ResolveError.
        """
        if self.names is None:
            raise ResolveError(EAI_NONAME, "Name or service not known")
        return [format_address(address) for address in self.names.addresses(name, family)]

    def reverse(self, address: str) -> str | None:
        """What `address` is called; None where nobody knows. May block. Raises OSError: EINVAL."""
        try:
            number = parse_address(address)
        except AddressError:
            raise fault("EINVAL") from None
        return None if self.names is None else self.names.name_of(number)

    def gethostname(self) -> str:
        """What this host is called."""
        return "localhost" if self.names is None else self.names.hostname

    def sethostname(self, name: str) -> None:
        """Call this host `name`. Raises OSError: EPERM, EINVAL (it is longer than 64 characters)."""
        self._need("net_admin")
        if len(name.encode()) > HOST_NAME_MAX or self.names is None:
            raise fault("EINVAL")
        self.names.hostname = name
