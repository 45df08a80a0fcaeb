"""System calls that configure the network: setipaddr and getipaddr, and the interface calls of LWIPv6 by Python names.

    LWIPv6                             here
    lwip_tapif_add, lwip_tunif_add     if_add (with and without a MAC address), if_del
    lwip_add_addr, lwip_del_addr       if_add_addr, if_del_addr, if_addrs
    lwip_add_route, lwip_del_route     add_route, del_route, routes
    lwip_ifup, lwip_ifup_flags         if_up, if_up(dhcp=True)
    lwip_ifdown                        if_down
    lwip_event_subscribe               poll_subscribe (poll_calls.py); event_subscribe here is about interfaces
    lwip_stack_flags_get, …_set        stack_flags_get, stack_flags_set
    (its user filter)                  guard_rules, guard_add, guard_del, guard_flush, guard_policies, guard_policy
    lwip_stack_new, lwip_msocket       a `Stack` and a `Calls` each: a socket belongs to the stack of its calls

Every call raises OSError; an address that is no address is EINVAL, an interface that is not there ENODEV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple

from guest.net.address import (
    V4_BITS,
    V4_PREFIX,
    AddressError,
    format_address,
    is_unspecified,
    is_v4,
    to_address,
    to_prefix,
)
from guest.net.pbuf import PacketBuffer
from guest.sys.core import Core
from guest.sys.fault import fault

if TYPE_CHECKING:
    from guest.net.guard import Guard, RuleCount
    from guest.net.interface import Interface

Subscriber = Callable[[str, "Interface", object], None]


class StackFlags(IntFlag):
    """What a stack does with packets; LWIPv6's numbers."""

    FORWARDING = 1
    FILTER = 2


class IpConfig(NamedTuple):
    """What getipaddr gives: 32-bit numbers, 0 for what is not set."""

    ip: int
    netmask: int
    gateway: int


class RouteEntry(NamedTuple):
    """A row of the routing table, as text; `gateway` is None where the destination is a neighbour."""

    destination: str
    prefix_len: int
    gateway: str | None
    interface: str
    metric: int


class NetConfigCalls(Core):
    """Calls on interfaces, addresses and routes."""

    # -- the two calls of the small kernel -----------------------------------------------------------------------

    def setipaddr(self, ip: int | str, netmask: int | str, gateway: int | str = 0) -> None:
        """Give the default interface this IPv4 address, mask and gateway in place of those it has, and set it up.

        Args:
            ip, netmask, gateway: 32-bit numbers (10.0.0.1 is 0x0a000001) or text; an `ip` or a `gateway` of 0 is none.

        Raises OSError: ENODEV (no interface but the loopback), EINVAL; then nothing has changed.
        """
        self._need("net_admin")
        interface = self._primary()
        address, mask, via = (_to_v4(value) for value in (ip, netmask, gateway))
        hosts = ~mask & V4_BITS
        if hosts & (hosts + 1):
            raise fault("EINVAL")
        length = 32 - hosts.bit_length()
        before = [prefix for prefix in interface.addresses if is_v4(prefix.address)]
        for prefix in before:
            interface.remove_address(prefix.address)
        if address:
            try:
                interface.add_address(V4_PREFIX | address, length)
            except AddressError:
                for prefix in before:
                    interface.insert(prefix)
                raise fault("EINVAL") from None
        interface.set_up()
        if via:
            self.stack.set_gateway(V4_PREFIX | via)
        else:
            self.stack.remove_route("0.0.0.0", 0, interface, 0)

    def getipaddr(self) -> IpConfig:
        """The IPv4 address, mask and gateway of the default interface. Raises OSError: ENODEV."""
        interface = self._primary()
        gateway = 0
        for route in self.stack.routes:
            if route.prefix == to_prefix("0.0.0.0", 0) and route.interface is interface and route.gateway is not None:
                gateway = route.gateway & V4_BITS
                break
        for prefix in interface.addresses:
            if is_v4(prefix.address):
                mask = V4_BITS & ~((1 << (128 - prefix.length)) - 1)
                return IpConfig(prefix.address & V4_BITS, mask, gateway)
        return IpConfig(0, 0, gateway)

    def _primary(self) -> Interface:
        interface = self.stack.default
        if interface is None or interface is self.stack.loopback:
            raise fault("ENODEV")
        return interface

    # -- interfaces ----------------------------------------------------------------------------------------------

    def if_nametoindex(self, name: str) -> int:
        """The index of an interface. Raises OSError: ENODEV."""
        return self._interface(name).index

    def if_indextoname(self, index: int) -> str:
        """The name of an interface. Raises OSError: ENXIO."""
        interface = self.interface_at(index)
        if interface is None:
            raise fault("ENXIO")
        return interface.name

    def if_nameindex(self) -> list[tuple[int, str]]:
        """Index and name of every interface."""
        return [(interface.index, interface.name) for interface in self.stack.interfaces]

    def if_add(
        self,
        name: str,
        output: Callable[[Sequence[PacketBuffer]], None],
        *,
        mac: bytes | None = None,
        mtu: int | None = None,
    ) -> Interface:
        """Add an interface, down and without address; `output` takes what it sends, `Interface.input` what arrives.

        Args:
            mac: 6 bytes for an interface that carries Ethernet frames (tap); None for bare IP packets (tun).
            mtu: bytes of the largest IP packet; the stack's default if not given.

        Raises OSError: EEXIST, EINVAL.
        """
        self._need("net_admin")
        if any(interface.name == name for interface in self.stack.interfaces):
            raise fault("EEXIST")
        try:
            return self.stack.add_interface(name, mac, self.stack.config.mtu if mtu is None else mtu, output)
        except ValueError:
            raise fault("EINVAL") from None

    def if_del(self, name: str) -> None:
        """Take an interface away, with its addresses and routes. Raises OSError: ENODEV, EINVAL (the loopback)."""
        self._need("net_admin")
        interface = self._interface(name)
        if interface is self.stack.loopback:
            raise fault("EINVAL")
        self.stack.remove_interface(interface)

    def if_up(self, name: str, *, dhcp: bool = False) -> None:
        """Set an interface up; with `dhcp`, let it find its address. Raises OSError: ENODEV, EOPNOTSUPP (no DHCP)."""
        self._need("net_admin")
        interface = self._interface(name)
        if dhcp and self.dhcp is None:
            raise fault("EOPNOTSUPP")
        interface.set_up()
        if dhcp and self.dhcp is not None:
            self.dhcp(interface)

    def if_down(self, name: str) -> None:
        """Set an interface down. Raises OSError: ENODEV."""
        self._need("net_admin")
        self._interface(name).set_down()

    # -- addresses -----------------------------------------------------------------------------------------------

    def if_add_addr(self, name: str, address: str, prefix_len: int) -> None:
        """Add an address of either family. Raises OSError: ENODEV, EEXIST, EINVAL."""
        self._need("net_admin")
        interface = self._interface(name)
        number = _to_address(address)
        if any(other.owns(number) for other in self.stack.interfaces):
            raise fault("EEXIST")
        try:
            interface.add_address(number, prefix_len)
        except AddressError:
            raise fault("EINVAL") from None

    def if_del_addr(self, name: str, address: str) -> None:
        """Remove an address. Raises OSError: ENODEV, EINVAL, EADDRNOTAVAIL (it is not there)."""
        self._need("net_admin")
        if not self._interface(name).remove_address(_to_address(address)):
            raise fault("EADDRNOTAVAIL")

    def if_addrs(self, name: str) -> list[tuple[str, int]]:
        """Addresses and prefix lengths, each as its family counts it, in the order in which they were added."""
        found = []
        for prefix in self._interface(name).addresses:
            length = prefix.length - 96 if is_v4(prefix.address) else prefix.length
            found.append((format_address(prefix.address), length))
        return found

    # -- routes --------------------------------------------------------------------------------------------------

    def add_route(
        self, destination: str, prefix_len: int, gateway: str | None = None, name: str | None = None, metric: int = 0
    ) -> None:
        """Add a route. Raises OSError: ENODEV, EEXIST, EINVAL, ENETUNREACH (the gateway is on no network of ours)."""
        self._need("net_admin")
        interface = None if name is None else self._interface(name)
        via = None if gateway is None else _to_address(gateway)
        if via is not None and is_unspecified(via):
            via = None
        if interface is None:
            interface = next((i for i in self.stack.interfaces if via is not None and i.on_link(via)), None)
            if interface is None:
                raise fault("ENETUNREACH" if via is not None else "ENODEV")
        try:
            prefix = to_prefix(destination, prefix_len)
            if prefix.network == prefix.address:
                for route in self.stack.routes:
                    if (route.prefix, route.metric) == (prefix, metric) and route.interface is interface:
                        raise fault("EEXIST")
            self.stack.add_route(prefix.address, prefix_len, via, interface, metric)
        except AddressError:
            raise fault("EINVAL") from None

    def del_route(self, destination: str, prefix_len: int, name: str | None = None, metric: int | None = None) -> None:
        """Remove a route. Raises OSError: ENODEV, EINVAL, ESRCH (it is not there)."""
        self._need("net_admin")
        interface = None if name is None else self._interface(name)
        try:
            there = self.stack.remove_route(destination, prefix_len, interface, metric)
        except AddressError:
            raise fault("EINVAL") from None
        if not there:
            raise fault("ESRCH")

    def routes(self) -> list[RouteEntry]:
        """The routing table, best first."""
        owners = {id(interface): interface.name for interface in self.stack.interfaces}
        found = []
        for route in self.stack.routes:
            prefix = route.prefix
            length = prefix.length - 96 if is_v4(prefix.address) else prefix.length
            via = None if route.gateway is None else format_address(route.gateway)
            owner = owners[id(route.interface)]
            found.append(RouteEntry(format_address(prefix.address), length, via, owner, route.metric))
        return found

    # -- flags and the guard -------------------------------------------------------------------------------------

    def stack_flags_get(self) -> StackFlags:
        """Whether packets for others are passed on, and whether the guard is asked."""
        forwarding = StackFlags.FORWARDING if self.stack.forwarding else StackFlags(0)
        return forwarding | (StackFlags.FILTER if self.stack.filtering else StackFlags(0))

    def stack_flags_set(self, flags: int) -> None:
        """Say so. Without FILTER the guard's rules stay and everything passes. Raises OSError: EINVAL."""
        self._need("net_admin")
        if not 0 <= flags <= StackFlags.FORWARDING | StackFlags.FILTER:
            raise fault("EINVAL")
        self.stack.forwarding = bool(flags & StackFlags.FORWARDING)
        self.stack.filtering = bool(flags & StackFlags.FILTER)

    def guard_rules(self) -> list[RuleCount]:
        """The rules of the packet filter in order, with the packets and bytes that each decided."""
        guard = self.stack.guard
        return [] if guard is None else guard.rules

    def guard_add(self, rule: str, number: int | None = None) -> int:
        """Add a rule (guest/net/guard_rule.py) as the last, or before the one with this number; its own number.

        Raises OSError: EINVAL (no rule), ENOENT (no such number).
        """
        self._need("net_admin")
        try:
            return self._guard().add(rule, number)
        except ValueError:
            raise fault("EINVAL") from None
        except IndexError:
            raise fault("ENOENT") from None

    def guard_del(self, number: int) -> None:
        """Delete a rule by its number, from 1. Raises OSError: ENOENT."""
        self._need("net_admin")
        try:
            self._guard().delete(number)
        except IndexError:
            raise fault("ENOENT") from None

    def guard_flush(self) -> None:
        """Delete all rules; policies stay."""
        self._need("net_admin")
        if self.stack.guard is not None:
            self.stack.guard.flush()

    def guard_policies(self) -> dict[str, tuple[str, int, int]]:
        """What becomes of packets that no rule matches, by hook, with the packets and bytes that it became of."""
        guard = self.stack.guard
        hooks = ("in", "forward", "out")
        return {hook: ("accept", 0, 0) if guard is None else guard.policy(hook) for hook in hooks}

    def guard_policy(self, hook: str, action: str) -> None:
        """Say what becomes of them. Raises OSError: EINVAL."""
        self._need("net_admin")
        try:
            self._guard().set_policy(hook, action)
        except ValueError:
            raise fault("EINVAL") from None

    def _guard(self) -> Guard:
        """The stack's guard; its first one if it had none."""
        if self.stack.guard is None:
            from guest.net.guard import Guard  # noqa: PLC0415 - who never filters does not load it

            self.stack.guard = Guard()
        return self.stack.guard

    # -- events --------------------------------------------------------------------------------------------------

    def event_subscribe(self, callback: Subscriber) -> None:
        """Call `callback(event, interface, detail)` at each change of links, addresses and routes."""
        self.stack.subscribe(callback)

    def event_unsubscribe(self, callback: Subscriber) -> None:
        """Stop that."""
        self.stack.unsubscribe(callback)

    def _interface(self, name: str) -> Interface:
        for interface in self.stack.interfaces:
            if interface.name == name:
                return interface
        raise fault("ENODEV")


def _to_address(text: str) -> int:
    try:
        return to_address(text)
    except AddressError:
        raise fault("EINVAL") from None


def _to_v4(value: int | str) -> int:
    """A 32-bit number from one, or from dotted text. Raises OSError: EINVAL."""
    if isinstance(value, str):
        number = _to_address(value)
        if not is_v4(number):
            raise fault("EINVAL")
        return number & V4_BITS
    if not 0 <= value <= V4_BITS:
        raise fault("EINVAL")
    return value
