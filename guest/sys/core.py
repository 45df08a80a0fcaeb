"""What all system calls of a guest share: the tables, how a descriptor becomes a file, and how a call waits.

Times are microseconds, everywhere: timeouts of poll and select too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from guest.sys.constants import AF_UNSPEC, MSG_DONTWAIT
from guest.sys.descriptors import DescriptorTable
from guest.sys.fault import fault
from guest.sys.files import File
from guest.sys.host_file import HostDescriptors
from guest.sys.scheduler import Process, Scheduler
from guest.sys.sockaddr import AddressArgument, Destination, Resolver, needs_scope, parse
from guest.sys.socket_file import DatagramFile, SocketFile
from guest.sys.stream_file import StreamFile
from guest.sys.wait import Block, Waits

if TYPE_CHECKING:
    from guest.net.interface import Interface
    from guest.net.stack import Stack


class Core:
    """The state behind the system calls of one guest.

    Args:
        scheduler: of the guest's processes, which block through it.
        stack: the network stack.
        now: the time in microseconds.
        fds: the descriptor table; a new one if not given.
        host: lets descriptors of the host in (`adopt`); None where none are.

    Attributes:
        block: how a caller that is no guest process waits: (is it so?, microseconds or None) → whether it became so.
            None refuses such callers with RuntimeError where they would block.
        resolver: (name, AF_*) → 128-bit address, raising `ResolveError`; None knows no names.
        dhcp: starts DHCP on an interface, for `if_up`; None where there is none.
        capable: asked whether a caller may do what needs a privilege: "net_raw" (raw sockets), "net_bind_service"
            (ports below 1024), "net_admin" (interfaces, addresses, routes). By default everybody may.
        counters: `rx_copied_bytes`, `rx_datagrams`, `tx_copied_bytes`, `tx_datagrams`, `sockets_opened`,
            `connections_accepted`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        stack: Stack,
        *,
        now: Callable[[], int],
        fds: DescriptorTable | None = None,
        host: HostDescriptors | None = None,
    ) -> None:
        self.stack = stack
        self.fds = DescriptorTable() if fds is None else fds
        self.host = host
        self.resolver: Resolver | None = None
        self.dhcp: Callable[[Interface], None] | None = None
        self.capable: Callable[[str], bool] = lambda _capability: True
        self.counters: Counter[str] = Counter()
        self._now = now
        self._scheduler = scheduler
        self._waits = Waits(scheduler, now)

    @property
    def block(self) -> Block | None:
        """See the class."""
        return self._waits.block

    @block.setter
    def block(self, block: Block | None) -> None:
        self._waits.block = block

    def _need(self, capability: str, error: str = "EPERM") -> None:
        """Raises OSError `error` unless the caller may."""
        if not self.capable(capability):
            raise fault(error)

    # -- files ---------------------------------------------------------------------------------------------------

    def _socket(self, fd: int) -> DatagramFile | StreamFile:
        """The socket behind a descriptor. Raises OSError: EBADF, ENOTSOCK."""
        file = self.fds.file(fd)
        if not isinstance(file, (DatagramFile, StreamFile)):
            raise fault("ENOTSOCK")
        return file

    # -- addresses -----------------------------------------------------------------------------------------------

    def interface_at(self, index: int) -> Interface | None:
        """The interface with this index, or None."""
        return next((interface for interface in self.stack.interfaces if interface.index == index), None)

    def _zone(self, text: str) -> int:
        """The interface index that a zone, a name or a number, means; 0 for none."""
        for interface in self.stack.interfaces:
            if text in (interface.name, str(interface.index)):
                return interface.index
        return 0

    def _destination(self, file: SocketFile, address: AddressArgument) -> Destination:
        """What a caller's address means for this socket. Raises as `sockaddr.parse`."""
        return parse(address, file.family, self._zone, self.resolver)

    def _scope(self, destination: Destination) -> Interface | None:
        """The interface that a link-local address needs. Raises OSError: ENODEV when it names one that is not here."""
        if destination.family == AF_UNSPEC or not destination.scope or not needs_scope(destination.address):
            return None
        interface = self.interface_at(destination.scope)
        if interface is None:
            raise fault("ENODEV")
        return interface

    # -- waiting -------------------------------------------------------------------------------------------------

    def _pause(
        self, file: File, flags: int, events: int, ready: Callable[[], bool], since: int, *, receiving: bool = True
    ) -> None:
        """Block until `ready()`, as long as the socket's settings and `flags` let this call, which began at `since`.

        Raises OSError: EAGAIN (it must not block, or SO_RCVTIMEO or SO_SNDTIMEO has passed), EINTR. Raises
        TimeoutError when the time of `set_timeout` has passed.
        """
        if file.nonblocking or flags & MSG_DONTWAIT:
            raise fault("EAGAIN")
        timeout = file.timeout if isinstance(file, SocketFile) else None
        limit = timeout
        if timeout is None and isinstance(file, SocketFile):
            limit = (file.rcvtimeo if receiving else file.sndtimeo) or None
        left = None if limit is None else max(0, since + limit - self._now())
        if not self._waits.until(ready, left, [(file, events)]):
            raise fault("EAGAIN") if timeout is None else TimeoutError("timed out")

    def interrupt(self, process: Process, signal: int = 2) -> None:
        """A signal for a process: what it is blocked in ends with EINTR, unless it has the signal masked."""
        self._waits.interrupt(process, signal)
