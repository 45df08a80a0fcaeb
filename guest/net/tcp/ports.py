"""Who has which port: RFC 6056, and what Linux lets two ends share.

Two ends may not have the same port at addresses that may both be a packet's destination, unless they are bound to
different interfaces, or both have SO_REUSEADDR and neither of them listens, or both have SO_REUSEPORT. A connection in
TIME-WAIT holds its port like an end that does not listen.

A port that nobody chose is picked by a keyed hash of where it is to lead (RFC 6056 §3.3.3), so that nobody else can
tell which, and the same way gets the next one the next time.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from guest.net.ports import PortTable, overlap
from guest.net.tcp.secrets import Secrets

if TYPE_CHECKING:
    from guest.net.tcp.endpoint import TcpEndpoint
    from guest.net.tcp.timewait import WaitLine


class TcpPorts:
    """The ports of one stack's TCP.

    Args:
        secrets: hashes. waits: connections in TIME-WAIT.
        first, last: what is picked from.

    Attributes:
        listening: the ends that listen, to be found by a SYN's destination.
    """

    def __init__(self, secrets: Secrets, waits: WaitLine, first: int, last: int) -> None:
        self._secrets = secrets
        self._waits = waits
        self._first = first
        self._count = last - first + 1
        self._bound: dict[int, dict[TcpEndpoint, None]] = {}
        self._turn = 0
        self._waiting: dict[int, int] = {}  # by port: connections in TIME-WAIT
        key = secrets.port((0, 0, 0, 0), 0).to_bytes(8, "big")
        self.listening: PortTable[TcpEndpoint] = PortTable(key, first, last)

    def __iter__(self) -> Iterator[TcpEndpoint]:
        """All ends that have a port, by port."""
        return iter([end for port in sorted(self._bound) for end in self._bound[port]])

    # -- binding -------------------------------------------------------------------------------------------------

    def bind(self, end: TcpEndpoint, address: int, port: int) -> int:
        """Give an end its address and port, 0 for any that is free; 0 or EADDRINUSE."""
        if port == 0:
            port = self._pick((address, 0, 0, 0), lambda each: not self.conflicts(end, address, each))
            if port == 0:
                return errno.EADDRINUSE
        elif self.conflicts(end, address, port):
            return errno.EADDRINUSE
        self.hold(end, address, port)
        return 0

    def bind_towards(
        self, end: TcpEndpoint, address: int, remote: tuple[int, int], taken: Callable[[int], bool]
    ) -> int:
        """Give an end a port to connect from; `taken` says whether a connection to `remote` has it. 0 or
        EADDRNOTAVAIL.
        """
        port = self._pick((address, 0, *remote), lambda each: each not in self._bound and not taken(each))
        if port == 0:
            return errno.EADDRNOTAVAIL
        self.hold(end, address, port)
        return 0

    def hold(self, end: TcpEndpoint, address: int, port: int) -> None:
        """An end has this port, whoever else has it."""
        end.local = (address, port)
        self._bound.setdefault(port, {})[end] = None

    def release(self, end: TcpEndpoint) -> None:
        """An end needs its port no longer."""
        port = end.local[1]
        ends = self._bound.get(port)
        if ends is not None:
            ends.pop(end, None)
            if not ends:
                del self._bound[port]

    def _pick(self, ends: tuple[int, int, int, int], free: Callable[[int], bool]) -> int:
        """A port that is free, or 0."""
        self._turn += 1
        start = self._secrets.port(ends, 0) + self._turn
        for step in range(self._count):
            port = self._first + (start + step) % self._count
            if free(port):
                return port
        return 0

    def conflicts(self, end: TcpEndpoint, address: int, port: int) -> bool:
        """Whether somebody else has the port in a way that `end` cannot share."""
        mine = end.options
        for other in self._bound.get(port, ()):
            theirs = other.options
            if other is end:
                continue
            if mine.bind_device is not None and theirs.bind_device not in (None, mine.bind_device):
                continue
            if mine.reuse_addr and theirs.reuse_addr and not other.listening:
                continue
            if mine.reuse_port and theirs.reuse_port:
                continue
            if overlap(address, mine.v6only, other.local[0], theirs.v6only):
                return True
        if mine.reuse_addr or port not in self._waiting:
            return False
        return any(
            wait.ends[1] == port and overlap(address, mine.v6only, wait.ends[0], False)
            for wait in self._waits.members.values()
        )

    def waits(self, port: int, more: int) -> None:
        """A connection of this port came into TIME-WAIT (1) or left it (-1)."""
        count = self._waiting.get(port, 0) + more
        if count:
            self._waiting[port] = count
        else:
            self._waiting.pop(port, None)

    # -- listening -----------------------------------------------------------------------------------------------

    def listen(self, end: TcpEndpoint) -> int:
        """Let an end that has a port be found by SYNs; 0 or EADDRINUSE."""
        address, port = end.local
        if self.conflicts(end, address, port):
            return errno.EADDRINUSE
        self.listening.add(end)
        return 0
