"""DHCP leases: what an offer or acknowledgement grants, once it was found to make sense. RFC 2131 §4.4, RFC 2132.

Promises:
- A lease that is read has an address and a server that can be hosts, a netmask in which the address is neither the
  network nor its broadcast address, and times in order: start < T1 < T2 < end.
- What else a server says is bounded (`most` of each), and what makes no sense of it is as if it had not been said.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from guest.net import dhcp_wire as wire
from guest.net.address import AddressError, Prefix, format_address, netmask_length
from guest.net.config import SECOND
from guest.net.dhcp_wire import ClasslessRoute, DhcpError, Message

INFINITE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Lease:
    """What a server granted.

    Attributes:
        address, length: the host's address, and the length of its prefix (0 to 32).
        server: who granted it.
        routers, routes: default routers, best first, and the rows of option 121, which replaces them (RFC 3442).
        dns, search: name servers, and domains to search.
        hostname: of this host, or None. mtu: bytes of the largest IP packet, or None.
        start: when the request was sent. seconds: how long it lasts, None for ever.
        renew_at, rebind_at, expires: T1, T2 and the end; None for a lease without end.
    """

    address: int
    length: int
    server: int
    routers: tuple[int, ...] = ()
    routes: tuple[ClasslessRoute, ...] = ()
    dns: tuple[int, ...] = ()
    search: tuple[str, ...] = ()
    hostname: str | None = None
    mtu: int | None = None
    start: int = 0
    seconds: int | None = None
    renew_at: int | None = None
    rebind_at: int | None = None
    expires: int | None = None

    def __str__(self) -> str:
        lasts = "for ever" if self.seconds is None else f"for {self.seconds} s"
        return f"{format_address(self.address)}/{self.length} from {format_address(self.server)} {lasts}"


def read_lease(message: Message, start: int, *, min_lease: int, min_mtu: int, most: int) -> Lease:
    """What an offer or acknowledgement grants.

    Args:
        start: when it was asked for, which is when the lease begins; microseconds.
        min_lease: a shorter lease counts as one of this length; microseconds.
        min_mtu: a smaller MTU counts as this.
        most: routers, name servers and search domains that are kept, of each; and four times as many routes.

    Raises:
        DhcpError: it cannot be used.
    """
    server = message.address(wire.SERVER_ID)
    if server is None or not wire.is_host(server):
        raise DhcpError("no_server")
    address = message.yiaddr
    if not wire.is_host(address):
        raise DhcpError("address")
    length = _prefix_length(message, address)
    prefix = Prefix(address, length + 96)
    if length < 31 and address in (prefix.network, prefix.broadcast):
        raise DhcpError("address")
    seconds = message.number(wire.LEASE_TIME, 4)
    if not seconds:
        raise DhcpError("no_lease_time")
    mtu = message.number(wire.INTERFACE_MTU, 2)
    routes = message.routes()
    domain = message.text(wire.DOMAIN_NAME)
    lease = Lease(
        address, length, server,
        routers=() if routes else wire.usable(message.addresses(wire.ROUTER), most),
        routes=tuple(routes or ())[: most * 4],
        dns=wire.usable(message.addresses(wire.DNS_SERVERS), most),
        search=tuple((message.search_list() or ([domain] if domain else []))[:most]),
        hostname=message.text(wire.HOST_NAME),
        mtu=None if mtu is None else max(mtu, min_mtu),
        start=start,
    )  # fmt: skip
    return lease if seconds == INFINITE else _timed(lease, max(seconds * SECOND, min_lease), message)


def _prefix_length(message: Message, address: int) -> int:
    """Of the netmask, or where none is said that of the address's class. Raises DhcpError for one that is none."""
    if wire.SUBNET_MASK not in message.options:
        return wire.natural_length(address)
    mask = message.address(wire.SUBNET_MASK)
    try:
        length = netmask_length(format_address(mask)) if mask is not None else 0
    except AddressError:
        length = 0
    if length == 0:
        raise DhcpError("netmask")
    return length


def _timed(lease: Lease, duration: int, message: Message) -> Lease:
    """The lease with its times; T1 and T2 that do not lie in order within it are a half and 7/8 (RFC 2131 §4.4.5)."""
    renew = (message.number(wire.RENEWAL_TIME, 4) or 0) * SECOND
    rebind = (message.number(wire.REBINDING_TIME, 4) or 0) * SECOND
    if not 0 < renew < duration:
        renew = duration // 2
    if not renew < rebind < duration:
        rebind = duration * 7 // 8
    if not renew < rebind:
        renew = duration // 2
    start = lease.start
    t1, t2, end = start + renew, start + rebind, start + duration
    return replace(lease, seconds=duration // SECOND, renew_at=t1, rebind_at=t2, expires=end)
