"""Local ports of one transport: who may bind what, and whose packet it is. As Linux's UDP does it; RFC 6056.

Whose packet it is, the first of these that has anybody:
1. connected ends whose local and remote address and port are the packet's;
2. unconnected ends bound to the packet's destination address;
3. unconnected ends bound to any address: of the packet's family, or of IPv6 when not `v6only`.
Among several an end bound to the packet's interface comes before others, then one of the packet's own family, then a
SO_REUSEPORT group chosen by the flow, then whoever bound last. Ends bound to another interface are passed over.

A multicast or broadcast packet is for every end that matches (`members`).

Which binds conflict: those of the same port whose addresses may both be a packet's destination, unless they are bound
to different interfaces, or both have `reuse_addr`, or both have `reuse_port`.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from guest.net.address import V4_ANY, V6_ANY, is_v4

if TYPE_CHECKING:
    from guest.net.endpoint import Endpoint, MessageEndpoint

    End = TypeVar("End", bound=Endpoint)
    MessageEnd = TypeVar("MessageEnd", bound=MessageEndpoint)
else:
    End = TypeVar("End")


class PortTable(Generic[End]):
    """The bound ends of one transport; it is what sets their `local` and `remote`.

    Args:
        key: secret bytes; ports that the table picks, and the choice within SO_REUSEPORT groups, follow from it and
            cannot be foreseen without it (RFC 6056 §3.2).
        first, last: the ports that it picks from.
    """

    def __init__(self, key: bytes, first: int, last: int) -> None:
        self._key = key
        self._first = first
        self._count = last - first + 1
        self._flow_key = int.from_bytes(key[:8], "big")
        self._picked = 0
        self._ports: dict[int, list[End]] = {}  # last bound first, as everywhere below
        self._bound: dict[tuple[int, int], list[End]] = {}
        self._connected: dict[tuple[int, int, int, int], list[End]] = {}

    def __iter__(self) -> Iterator[End]:
        """All bound ends, by port."""
        return iter([end for port in sorted(self._ports) for end in reversed(self._ports[port])])

    # -- binding -------------------------------------------------------------------------------------------------

    def bind(self, end: End, address: int, port: int) -> int:
        """Give an unbound end its address and port, 0 for any free port; 0 or EADDRINUSE."""
        if port == 0:
            port = self._pick(end, address)
            if port == 0:
                return errno.EADDRINUSE
        elif self._conflicts(end, address, port):
            return errno.EADDRINUSE
        end.local = (address, port)
        self.add(end)
        return 0

    def add(self, end: End) -> None:
        """Let an end be found that has its address and port already, whoever else has them."""
        self._ports.setdefault(end.local[1], []).insert(0, end)
        self._file(end)

    def discard(self, end: End) -> None:
        """Take out an end that `add` or `bind` has put in; it keeps its address and port."""
        self._unfile(end)
        port = end.local[1]
        ends = self._ports[port]
        ends.remove(end)
        if not ends:
            del self._ports[port]

    def move(self, end: End, address: int, remote: tuple[int, int] | None) -> None:
        """Change the local address and the remote end of a bound end; never a conflict."""
        self._unfile(end)
        end.local = (address, end.local[1])
        end.remote = remote
        self._file(end)

    def release(self, end: End) -> None:
        """Take a bound end out; its port is free again. Its address stays, its port becomes 0."""
        self.discard(end)
        end.local = (end.local[0], 0)

    def _file(self, end: End) -> None:
        if end.remote is None:
            self._bound.setdefault(end.local, []).insert(0, end)
        else:
            self._connected.setdefault(end.local + end.remote, []).insert(0, end)

    def _unfile(self, end: End) -> None:
        if end.remote is None:
            ends = self._bound[end.local]
            ends.remove(end)
            if not ends:
                del self._bound[end.local]
        else:
            key = end.local + end.remote
            ends = self._connected[key]
            ends.remove(end)
            if not ends:
                del self._connected[key]

    def _pick(self, end: End, address: int) -> int:
        """A free port, or 0: a random start, then one after the other from there (RFC 6056 §3.3.1)."""
        self._picked += 1
        draw = hashlib.blake2b(self._picked.to_bytes(8, "big"), key=self._key, digest_size=8).digest()
        start = int.from_bytes(draw, "big")
        for step in range(self._count):
            port = self._first + (start + step) % self._count
            if port not in self._ports or not self._conflicts(end, address, port):
                return port
        return 0

    def _conflicts(self, end: End, address: int, port: int) -> bool:
        mine = end.options
        for other in self._ports.get(port, ()):
            theirs = other.options
            if mine.reuse_addr and theirs.reuse_addr:
                continue
            if mine.bind_device is not None and theirs.bind_device not in (None, mine.bind_device):
                continue
            if not overlap(address, mine.v6only, other.local[0], theirs.v6only):
                continue
            return not (mine.reuse_port and theirs.reuse_port)  # Linux: the last bound decides
        return False

    # -- finding -------------------------------------------------------------------------------------------------

    def find(self, src: int, src_port: int, dst: int, dst_port: int, interface: object) -> End | None:
        """Whose unicast packet it is that came in on `interface` (None: on any), or None."""
        if self._connected:
            ends = self._connected.get((dst, dst_port, src, src_port))
            if ends is not None and (end := self._best(ends, src, src_port, dst, interface)) is not None:
                return end
        ends = self._bound.get((dst, dst_port))
        if ends is not None and (end := self._best(ends, src, src_port, dst, interface)) is not None:
            return end
        ends = self._bound.get((V6_ANY, dst_port), [])
        if is_v4(dst):
            own = self._bound.get((V4_ANY, dst_port))
            if own is not None:
                ends = own + ends
        return self._best(ends, src, src_port, dst, interface) if ends else None

    def _best(self, ends: list[End], src: int, src_port: int, dst: int, interface: object) -> End | None:
        """The end that comes first, of those that may have the packet; `ends` has the last bound first."""
        v4 = dst >> 32 == 0xFFFF
        best: list[End] = []
        highest = -1
        for end in ends:
            options = end.options
            score = 0
            if options.bind_device is not None:
                if options.bind_device is not interface and interface is not None:
                    continue
                score = 4
            if v4:
                if end.family == 4:
                    score += 1
                elif options.v6only:
                    continue
            if score > highest:
                highest = score
                best = [end]
            elif score == highest:
                best.append(end)
        if not best:
            return None
        first = best[0]
        if len(best) == 1 or not first.options.reuse_port or first.remote is not None:
            return first
        group = [end for end in best if end.options.reuse_port]
        return group[hash((src, src_port, dst, self._flow_key)) % len(group)]

    def members(
        self: PortTable[MessageEnd], src: int, src_port: int, dst: int, dst_port: int, interface: object, group: bool
    ) -> list[MessageEnd]:
        """Everybody whose broadcast packet it is or, where `group` is set, whose multicast packet."""
        v4 = is_v4(dst)
        found = []
        for end in self._ports.get(dst_port, ()):
            options = end.options
            address = end.local[0]
            if address not in (dst, V6_ANY) and not (v4 and address == V4_ANY):
                continue
            if v4 and options.v6only and end.family == 6:
                continue
            if end.remote is not None and end.remote != (src, src_port):
                continue
            if options.bind_device is not None and options.bind_device is not interface:
                continue
            if group and not options.multicast_all and (dst, interface) not in end.groups:
                continue
            found.append(end)
        return found


def overlap(one: int, one_v6only: bool, other: int, other_v6only: bool) -> bool:
    """Whether two bound addresses may both be the destination of one packet."""
    if one == other:
        return True
    if is_v4(one) and is_v4(other):
        return V4_ANY in (one, other)
    # From here on one of the two is an IPv6 address; any IPv6 includes IPv4 unless told otherwise.
    return (one == V6_ANY and not (one_v6only and is_v4(other))) or (
        other == V6_ANY and not (other_v6only and is_v4(one))
    )
