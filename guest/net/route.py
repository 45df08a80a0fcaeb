"""The routing table: longest prefix, then lowest metric, then first come. RFC 1812 §5.2.4.3.

Keyed by 128-bit addresses, so the IPv4 default route is ::ffff:0:0/96. The table is small and is searched from the
longest prefix on; the engine remembers what it found for a destination.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from guest.net.address import AddressError, Prefix

Interface = TypeVar("Interface")


class Route(NamedTuple, Generic[Interface]):
    """A row: packets for `prefix` go out of `interface`, to `gateway` or, where that is None, to their destination."""

    prefix: Prefix
    gateway: int | None
    interface: Interface
    metric: int = 0


class RouteTable(Generic[Interface]):
    """All rows of one stack, best first."""

    def __init__(self) -> None:
        self._rows: list[Route[Interface]] = []

    def __iter__(self) -> Iterator[Route[Interface]]:
        return iter(list(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, route: Route[Interface]) -> None:
        """Add a row. Raises AddressError where the prefix has host bits or is there already with the same metric."""
        prefix = route.prefix
        if prefix.network != prefix.address:
            network = Prefix(prefix.network, prefix.length)
            raise AddressError(f"{prefix} has bits set behind its prefix; the network is {network}")
        for row in self._rows:
            if row.prefix == prefix and row.metric == route.metric and row.interface is route.interface:
                raise AddressError(f"there is a route to {prefix} with metric {route.metric} already")
        self._rows.append(route)
        self._rows.sort(key=lambda row: (-row.prefix.length, row.metric))  # stable: first come stays first

    def remove(self, route: Route[Interface]) -> bool:
        """Remove a row; whether it was there."""
        if route not in self._rows:
            return False
        self._rows.remove(route)
        return True

    def lookup(self, address: int) -> list[Route[Interface]]:
        """The rows that match `address`, best first."""
        return [row for row in self._rows if row.prefix.contains(address)]
