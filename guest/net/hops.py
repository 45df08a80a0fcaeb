"""Where packets go: own addresses, groups, routes and path MTUs, and what they say together about a destination.

RFC 1122 §3.3.1, RFC 1191, RFC 6724, RFC 8201. The engine (ip.py) stands on this and moves the packets. What is found
for a destination is remembered until an address, a route or a state changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import NamedTuple

from guest.net.address import (
    V4_ALL_HOSTS,
    V4_ANY,
    V4_BROADCAST,
    V4_LOOPBACK,
    V6_ALL_NODES,
    V6_ANY,
    is_link_local,
    is_loopback,
    is_multicast,
    is_unspecified,
    is_v4,
)
from guest.net.config import NetConfig
from guest.net.family import Codec, IpInterface
from guest.net.groups import Groups, MembershipChanged
from guest.net.layer import Layer
from guest.net.pbuf import CAST_BROADCAST, CAST_HOST, CAST_MULTICAST
from guest.net.pmtu import PathMtuCache
from guest.net.route import REJECT, RouteTable
from guest.net.source import source_address

ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
IDENT_SLOTS = 1024
REMEMBERED_HOPS = 1024


class Hop(NamedTuple):
    """How to reach a destination: out of which interface, to which neighbour, from which address.

    Attributes:
        slot: of the identification counter; -1 in IPv6, where only fragments have one.
        mtu: bytes of the largest packet: the interface's, or less where the path is known to take less.
        until: when `mtu` is to be looked up again; 0 for never.
        may_say_df: whether a packet that fits may say "don't fragment"; not on paths of less than 552 bytes.
        ttl: of packets that do not say.
    """

    interface: IpInterface
    next_hop: int
    cast: int
    src: int
    codec: Codec
    slot: int
    mtu: int
    until: int
    may_say_df: bool
    ttl: int


class HopTable(Layer):
    """The part of the network layer that knows where packets go.

    Args:
        codecs: the families.
        rng: source of the key of the hash that spreads destinations over identification counters.
        config: limits and times.
        now: the time.

    Attributes:
        routes: the routing table; call `refresh` after changing it.
        loopback: where packets to own addresses go.
        default: where packets to 255.255.255.255 and multicast groups go unless told otherwise.
        groups: the multicast groups that are received.
        path_mtus: the paths that are known to be narrow.
        transparent: the interface whose hosts are served in the name of all others, as a proxy does: whatever one host
            it sends to is taken as sent to this one, and answers leave there from any address. None for none.
    """

    def __init__(
        self, codecs: Iterable[Codec], *, rng: random.Random, config: NetConfig, now: Callable[[], int]
    ) -> None:
        super().__init__("ip")
        self.codecs: dict[int, Codec] = {codec.ethertype: codec for codec in codecs}
        self.routes: RouteTable[IpInterface] = RouteTable()
        self.loopback: IpInterface | None = None
        self.default: IpInterface | None = None
        self.transparent: IpInterface | None = None
        self.groups = Groups()
        self.path_mtus = PathMtuCache(config.pmtu_entries, config.pmtu_time)
        self._now = now
        self._config = config
        self._rng = rng
        self._key = rng.randbytes(16)
        self._local: set[int] = set()
        self._accepted: dict[int, int] = {}  # destination → the cast it is for
        self._link_local: dict[int, IpInterface] = {}  # own link-local address → where it is
        self._hops: dict[int, Hop] = {}
        self.refresh(())

    def refresh(self, interfaces: Iterable[IpInterface]) -> None:
        """Addresses, routes or states of interfaces have changed."""
        interfaces = list(interfaces)
        self._hops.clear()
        self.groups.keep_only(interfaces)
        self._local = set()
        self._link_local = {}
        self._accepted = {
            V4_BROADCAST: CAST_BROADCAST, V4_ALL_HOSTS: CAST_MULTICAST, V6_ALL_NODES: CAST_MULTICAST,
        }  # fmt: skip
        for interface in interfaces:
            for prefix in interface.addresses:
                if prefix.address in interface.tentative:
                    continue
                self._local.add(prefix.address)
                if prefix.broadcast is not None and interface is not self.loopback:
                    self._accepted[prefix.broadcast] = CAST_BROADCAST
                if is_link_local(prefix.address) and not is_v4(prefix.address):
                    self._link_local[prefix.address] = interface
        for address in self._local:
            self._accepted[address] = CAST_HOST

    def is_local(self, address: int) -> bool:
        """Whether `address` is one of this host's own."""
        return address in self._local or is_loopback(address)

    # -- groups --------------------------------------------------------------------------------------------------

    def join(self, interface: IpInterface, group: int) -> None:
        """Receive packets to `group` on `interface`; counted, so each `join` wants its `leave`."""
        self.groups.join(interface, group)

    def leave(self, interface: IpInterface, group: int) -> bool:
        """Undo one `join`; whether there was one."""
        return self.groups.leave(interface, group)

    @property
    def membership_changed(self) -> MembershipChanged | None:
        """Told of the first `join` and the last `leave`: (interface, group, whether joined)."""
        return self.groups.changed

    @membership_changed.setter
    def membership_changed(self, callback: MembershipChanged | None) -> None:
        self.groups.changed = callback

    # -- path MTU ------------------------------------------------------------------------------------------------

    def packet_too_big(self, dst: int, mtu: int) -> bool:
        """Somebody on the way to `dst` passes on `mtu` bytes at most; whether that was less than we knew.

        Whoever calls has made sure that it is about a packet of ours. Never raises an MTU; for the floors see pmtu.py.
        """
        hop = self.hop(dst)
        if hop is None or hop.cast != CAST_HOST or hop.interface is self.loopback:
            return False
        lowered = self.path_mtus.lower(dst, mtu, hop.mtu, self._now())
        if lowered:
            self.counters["path_mtu_lowered"] += 1
            self._hops.pop(dst, None)
        return lowered

    def path_mtu(self, dst: int) -> int:
        """Bytes of the largest packet that `dst` is known to take; 0 where nothing leads there."""
        hop = self.hop(dst)
        return 0 if hop is None else hop.mtu

    # -- the way to a destination --------------------------------------------------------------------------------

    def hop(self, dst: int, interface: IpInterface | None = None) -> Hop | None:
        """How to reach `dst`, out of `interface` if one is given; None where nothing leads there."""
        if interface is None:
            known = self._hops.get(dst)
            if known is not None and not (known.until and self._now() >= known.until):
                return known
        found = self.find(dst, interface)
        if found is None or not found[0].is_up:
            return None
        out, next_hop, cast = found
        v4 = is_v4(dst)
        codec = self.codecs.get(ETH_P_IP if v4 else ETH_P_IPV6)
        if out is self.loopback and cast == CAST_HOST:
            # From the address itself, but from 127.0.0.1 to the other addresses of 127.0.0.0/8.
            src: int | None = dst if dst in self._local or not v4 else V4_LOOPBACK
        else:
            src = source_address(out, next_hop if v4 else dst)
        if src is None and cast != CAST_HOST and (dst == V4_BROADCAST or cast == CAST_MULTICAST):
            src = V4_ANY if v4 else V6_ANY  # a host that has no address yet asks for one
        if codec is None or src is None:
            return None
        mtu, until, locked = self.path_mtus.get(dst, self._now())
        widest = min(out.mtu if v4 else out.mtu6, codec.max_size)
        mtu = min(mtu, widest) if mtu else widest
        ttl = self._config.ttl if v4 else out.hop_limit or self._config.ttl
        if cast == CAST_MULTICAST:
            ttl = 1  # RFC 1112 §6.1
        slot = self._hash(dst) % IDENT_SLOTS if v4 else -1
        hop = Hop(out, next_hop, cast, src, codec, slot, mtu, until, not locked, ttl)
        if interface is None:
            if len(self._hops) >= REMEMBERED_HOPS:
                self._hops.clear()
            self._hops[dst] = hop
        return hop

    def _hash(self, number: int) -> int:
        """32 bits that say nothing about a 128-bit number to whoever lacks the key."""
        return int.from_bytes(blake2b(number.to_bytes(16, "big"), key=self._key, digest_size=4).digest(), "big")

    def find(self, dst: int, interface: IpInterface | None = None) -> tuple[IpInterface, int, int] | None:
        """Interface, next hop and cast towards `dst`."""
        if is_unspecified(dst):
            return None
        if self.is_local(dst):
            return None if self.loopback is None else (self.loopback, dst, CAST_HOST)
        cast = CAST_MULTICAST if is_multicast(dst) else self._accepted.get(dst, CAST_HOST)
        if cast == CAST_MULTICAST or dst == V4_BROADCAST:
            out = interface or self.default
            return None if out is None else (out, dst, cast)
        for route in self.routes.lookup(dst):
            if interface in (None, route.interface) and route.interface.is_up:
                if route.flags & REJECT:
                    return None
                return route.interface, dst if route.gateway is None else route.gateway, cast
        return None

    def _may_send_from(self, src: int, hop: Hop) -> bool:
        if is_loopback(src):
            return hop.interface is self.loopback
        if is_unspecified(src):
            return hop.cast != CAST_HOST and is_v4(src) == (hop.codec.ethertype == ETH_P_IP)
        return src in self._local or (hop.interface is self.transparent and hop.cast == CAST_HOST)

    def stands_for(self, interface: IpInterface, address: int) -> bool:
        """Whether what `interface` sends to `address`, which is no own one, is taken all the same."""
        return interface is self.transparent and not (
            is_multicast(address) or is_unspecified(address) or is_loopback(address) or is_link_local(address)
        )
