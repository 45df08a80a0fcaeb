"""The routing table: longest prefix, then lowest metric, then first come. RFC 1812 §5.2.4.3.

Keyed by 128-bit addresses, so the IPv4 default route is ::ffff:0:0/96. A lookup asks one dictionary for each prefix
length in use, from the longest on; the engine remembers what it found for a destination.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

from guest.net.address import AddressError, Prefix, is_unspecified, is_v4, netmask_length, parse_address, to_prefix

Interface = TypeVar("Interface")

# Bits of `Route.flags`; the numbers are those of net/route.h and linux/ipv6_route.h.
REJECT = 0x0200  # packets have no way out
DYNAMIC = 0x0010  # made by a message from the network
ADDRCONF = 0x4_0000  # learned from a router advertisement


class Route(NamedTuple, Generic[Interface]):
    """A row: packets for `prefix` go out of `interface`, to `gateway` or, where that is None, to their destination."""

    prefix: Prefix
    gateway: int | None
    interface: Interface
    metric: int = 0
    flags: int = 0


class RouteTable(Generic[Interface]):
    """All rows of one stack, best first: the longest prefixes first, the families mixed."""

    def __init__(self) -> None:
        # prefix length → network → its rows by metric; the lengths stand in descending order
        self._lengths: dict[int, dict[int, list[Route[Interface]]]] = {}

    def __iter__(self) -> Iterator[Route[Interface]]:
        rows = [row for networks in self._lengths.values() for group in networks.values() for row in group]
        rows.sort(key=lambda row: (-row.prefix.length, row.metric))
        return iter(rows)

    def __len__(self) -> int:
        return sum(len(group) for networks in self._lengths.values() for group in networks.values())

    def add(self, route: Route[Interface]) -> None:
        """Add a row.

        Raises AddressError where the prefix has host bits, the gateway is of the other family, or the interface has a
        route to this prefix with the same metric already.
        """
        prefix = route.prefix
        if prefix.network != prefix.address:
            network = Prefix(prefix.network, prefix.length)
            raise AddressError(f"{prefix} has bits set behind its prefix; the network is {network}")
        if route.gateway is not None and is_v4(route.gateway) != is_v4(prefix.address):
            raise AddressError(f"the gateway of the route to {prefix} is of the other family")
        rows = self._lengths.get(prefix.length, {}).get(prefix.address, [])
        for row in rows:
            if row.metric == route.metric and row.interface is route.interface:
                raise AddressError(f"there is a route to {prefix} with metric {route.metric} already")
        networks = self._lengths.setdefault(prefix.length, {})
        networks.setdefault(prefix.address, []).append(route)
        networks[prefix.address].sort(key=lambda row: row.metric)  # stable: first come stays first
        self._lengths = dict(sorted(self._lengths.items(), reverse=True))

    def remove(self, route: Route[Interface]) -> bool:
        """Remove a row; whether it was there."""
        networks = self._lengths.get(route.prefix.length, {})
        rows = networks.get(route.prefix.address, [])
        if route not in rows:
            return False
        rows.remove(route)
        if not rows:
            del networks[route.prefix.address]
            if not networks:
                del self._lengths[route.prefix.length]
        return True

    def lookup(self, address: int) -> list[Route[Interface]]:
        """The rows that match `address`, best first."""
        found: list[Route[Interface]] = []
        for length, networks in self._lengths.items():
            rows = networks.get(address >> 128 - length << 128 - length)
            if rows:
                found += rows
        return found


def parse_table(text: str, interfaces: Mapping[str, Interface]) -> list[Route[Interface]]:
    """Routes from a table of text: destination, netmask, gateway, interface, metric in each line.

    Columns stand between blanks or vertical bars. The netmask may be a prefix length; a gateway of 0.0.0.0, `::`, `-`
    or `On-Link` means that there is none. Lines whose first column has no digit (empty ones, headings, rules) are
    passed over.

    Raises:
        AddressError: a line has other columns, or something in it cannot be used; the text says where.
    """
    routes: list[Route[Interface]] = []
    for number, line in enumerate(text.splitlines(), 1):
        columns = line.replace("|", " ").split()
        if not columns or (columns[0] != "::" and not any(mark.isdigit() for mark in columns[0])):
            continue
        if len(columns) != 5:
            raise AddressError(f"route in line {number}: {len(columns)} columns, not 5")
        destination, netmask, gateway, name, metric = columns
        length = int(netmask) if netmask.isdecimal() else netmask_length(netmask)
        if name not in interfaces:
            raise AddressError(f"route in line {number}: there is no interface {name!r}")
        if not metric.isdecimal():
            raise AddressError(f"route in line {number}: {metric!r} is no metric")
        via: int | None = None
        if gateway.strip("*").lower() not in ("on-link", "-"):
            via = parse_address(gateway)
        routes.append(
            Route(
                to_prefix(destination, length),
                None if via is None or is_unspecified(via) else via,
                interfaces[name],
                int(metric),
            )
        )
    return routes
