"""Which multicast groups are received on which interface, counting who wants them.

RFC 1112 §6.1, RFC 4291 §2.7. 224.0.0.1 and ff02::1 are received everywhere without being joined; the engine knows that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

from guest.net.family import IpInterface

# (interface, group, whether it was joined)
MembershipChanged: TypeAlias = Callable[[IpInterface, int, bool], None]


class Groups:
    """The memberships of one stack.

    Attributes:
        changed: told of the first join and of the last leave.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[IpInterface, int], int] = {}
        self.changed: MembershipChanged | None = None

    def member(self, interface: IpInterface, group: int) -> bool:
        """Whether packets to `group` are received on `interface`."""
        return (interface, group) in self._counts

    def of(self, interface: IpInterface) -> list[int]:
        """The groups of one interface, in the order in which they were joined."""
        return [group for owner, group in self._counts if owner is interface]

    def join(self, interface: IpInterface, group: int) -> None:
        """One more wants `group` on `interface`."""
        count = self._counts.get((interface, group), 0)
        self._counts[interface, group] = count + 1
        if not count and self.changed is not None:
            self.changed(interface, group, True)

    def leave(self, interface: IpInterface, group: int) -> bool:
        """One less wants it; whether there was one."""
        count = self._counts.get((interface, group), 0)
        if not count:
            return False
        if count > 1:
            self._counts[interface, group] = count - 1
            return True
        del self._counts[interface, group]
        if self.changed is not None:
            self.changed(interface, group, False)
        return True

    def keep_only(self, interfaces: Collection[IpInterface]) -> None:
        """Forget the memberships of interfaces that are gone; nobody is told, there is nowhere to tell it."""
        for key in [key for key in self._counts if key[0] not in interfaces]:
            del self._counts[key]
