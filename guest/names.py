"""How the guest's parts find each other by name: the resolver over the stack's UDP, DHCP, and both behind the calls.

Programs may give a name wherever a system call takes an address; the call then blocks until the resolver has an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from guest.apps.env import Env
from guest.config import Settings
from guest.net.address import V4_LOOPBACK, V6_LOOPBACK, is_link_local, is_v4
from guest.net.dns import ResolveError, Resolver, Waiter
from guest.net.dns_exchange import NODATA, NXDOMAIN
from guest.net.hosts import plain
from guest.net.interface import Interface
from guest.sys.calls import Calls
from guest.sys.constants import AF_INET, AF_INET6
from guest.sys.fault import check
from guest.sys.sockaddr import EAI_NONAME
from guest.sys.sockaddr import ResolveError as NameFault

if TYPE_CHECKING:
    from guest.kernel import Guest
    from guest.net.dhcp_lease import Lease

EAI_AGAIN = -3  # netdb.h: no server has answered


def resolver_init(guest: Guest, settings: Settings) -> Resolver:
    """The resolver, with the hosts and servers of the command line."""
    stack = guest.stack
    resolver = Resolver(
        now=guest.platform.now,
        rng=guest.platform.rng,
        open_endpoint=stack.udp.open,
        open_stream=stack.tcp.open,
        timers=guest.services.timers,
        reachable=lambda address: stack.ip.hop(address) is not None,
    )
    for name, address in settings.hosts:
        resolver.hosts.add(address, name)
    resolver.set_servers("static", settings.dns, settings.search)
    return resolver


def calls_init(guest: Guest) -> Calls:
    """The system calls, which know names and can start DHCP."""
    calls = Calls(guest.scheduler, guest.stack, now=guest.platform.now)

    calls.names = names = GuestNames(guest)

    def dhcp(interface: Interface) -> None:
        check(start_dhcp(guest, interface))

    calls.resolver = lambda name, family: names.addresses(name, family)[0]
    calls.dhcp = dhcp
    return calls


class GuestNames:
    """What the resolver and the guest itself know; `guest.sys.name_calls.Names`.

    The host's own name, where the hosts table does not have it, means its addresses, or the loopback where it has none.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    @property
    def hostname(self) -> str:
        """What the host is called."""
        return self._guest.hostname

    @hostname.setter
    def hostname(self, name: str) -> None:
        self._guest.hostname = name

    def addresses(self, name: str, family: int) -> list[int]:
        """See `Names`."""
        guest = self._guest
        version = {AF_INET: 4, AF_INET6: 6}.get(family, 0)
        if plain(name) == plain(guest.hostname) and guest.resolver.hosts.lookup(name) is None:
            found = [address for address in self._own() if version in (0, 4 if is_v4(address) else 6)]
            if found:
                return guest.resolver.in_order(found)
        try:
            return guest.resolver.resolve(_waiter(guest), name, version)
        except ResolveError as error:
            if error.error in (NXDOMAIN, NODATA):
                raise NameFault(EAI_NONAME, "Name or service not known") from None
            raise NameFault(EAI_AGAIN, "Temporary failure in name resolution") from None

    def name_of(self, address: int) -> str | None:
        """See `Names`."""
        guest = self._guest
        if guest.resolver.hosts.reverse(address) is None and address in self._own():
            return guest.hostname
        waiter = _waiter(guest)
        query = guest.resolver.reverse(address, lambda _query: waiter.wake())
        try:
            waiter.wait(lambda: query.done)
        finally:
            query.cancel()
        return query.answer.names[0] if query.answer is not None and query.answer.names else None

    def _own(self) -> list[int]:
        """The addresses by which others may know this host; those of the loopback where there are none."""
        stack = self._guest.stack
        own = [
            prefix.address
            for interface in stack.interfaces
            if interface is not stack.loopback
            for prefix in interface.addresses
            if not is_link_local(prefix.address)
        ]
        return own or [V4_LOOPBACK, V6_LOOPBACK]


def start_dhcp(guest: Guest, interface: Interface) -> int:
    """Look for a DHCP server on `interface`, which is up; 0 or an errno. Harmless where that is under way."""
    from guest.net.dhcp_service import DhcpService  # noqa: PLC0415 - who has a static address does not load it

    for client in guest.dhcp_clients:
        if client.interface is interface:
            return client.start()
    source = f"dhcp {interface.name}"

    def leased(lease: Lease | None) -> None:
        guest.resolver.set_servers(source, lease.dns if lease else (), lease.search if lease else ())
        guest.hostname = (lease.hostname if lease else None) or guest.name

    client = DhcpService(
        guest.stack, interface, rng=guest.platform.rng, timers=guest.services.timers,
        hostname=guest.name, log=guest.log.write, on_lease=leased,
    )  # fmt: skip
    guest.dhcp_clients.append(client)
    return client.start()


class _Door:
    """Waits for a caller that is no guest process, through what lets such callers in."""

    def __init__(self, block: Callable[[Callable[[], bool], int | None], bool]) -> None:
        self._block = block

    def wake(self) -> None:
        """Nothing to do: `block` looks by itself."""

    def wait(self, ready: Callable[[], bool] | None = None, timeout: int | None = None) -> bool:
        """See `Waiter`."""
        return ready is not None and self._block(ready, timeout)


def _waiter(guest: Guest) -> Waiter:
    """What the current caller blocks with."""
    block = guest.calls.block
    return Env(guest) if block is None or guest.scheduler.current is not None else _Door(block)
