"""System calls that move data: send(2) and recv(2) in all their forms.

Received payload is copied once, from the views of its packet buffer into the caller's memory; `counters` says how many
bytes that were. What is sent is copied once, from the caller's memory into the packet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from guest.net.endpoint import Datagram
from guest.net.icmp_errno import meaning
from guest.net.pbuf import Buffer
from guest.sys import constants as c
from guest.sys.ancillary import Choices, Item, chosen, fit, received, reported
from guest.sys.core import Core
from guest.sys.fault import fault
from guest.sys.sockaddr import AddressArgument, Destination, SocketAddress, show
from guest.sys.socket_file import MORE_LIMIT, DatagramFile, copy_out, pieces_of

if TYPE_CHECKING:
    from guest.net.icmp_error import IcmpError

UDP_HEADER = 8  # what a quoted datagram has before its payload


class DataCalls(Core):
    """Calls that send and receive."""

    # -- sending -------------------------------------------------------------------------------------------------

    def send(self, fd: int, data: Buffer, flags: int = 0) -> int:
        """Send to the connected peer; how many bytes. Raises as `sendmsg`."""
        return self._send(self._socket(fd), [memoryview(data).cast("B")], None, flags, Choices())

    def sendto(self, fd: int, data: Buffer, address: AddressArgument | None, flags: int = 0) -> int:
        """Send to `address`; how many bytes. Raises as `sendmsg`."""
        return self._send(self._socket(fd), [memoryview(data).cast("B")], address, flags, Choices())

    def sendmsg(
        self,
        fd: int,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        address: AddressArgument | None = None,
    ) -> int:
        """Send one message gathered from `buffers`, with ancillary data; how many bytes.

        Raises OSError: EDESTADDRREQ, EMSGSIZE, ENETUNREACH, EACCES (broadcast), EADDRNOTAVAIL, EINVAL, EOPNOTSUPP
        (MSG_OOB), EPIPE, EAGAIN, EINTR, and an error that an earlier message caused (ECONNREFUSED, …).
        """
        file = self._socket(fd)
        items = list(ancdata)
        choices = chosen(file, items, self.interface_at, self.stack.ip.is_local) if items else Choices()
        return self._send(file, [memoryview(buffer).cast("B") for buffer in buffers], address, flags, choices)

    def _send(
        self,
        file: DatagramFile,
        pieces: Sequence[memoryview],
        address: AddressArgument | None,
        flags: int,
        choices: Choices,
    ) -> int:
        where = None if address is None else self._destination(file, address)
        if flags & c.MSG_OOB:
            raise fault("EOPNOTSUPP")
        if where is not None and where.family == c.AF_UNSPEC and file.family == c.AF_INET6:
            where = None
        size = sum(map(len, pieces))
        if file.corked is not None or (flags & c.MSG_MORE and file.protocol == c.IPPROTO_UDP and not file.raw):
            return self._cork(file, pieces, size, where, flags, choices)
        self._transmit(file, [piece for piece in pieces if len(piece)], where, flags, choices)
        self.counters["tx_datagrams"] += 1
        self.counters["tx_copied_bytes"] += size
        return size

    def _cork(
        self,
        file: DatagramFile,
        pieces: Sequence[memoryview],
        size: int,
        where: Destination | None,
        flags: int,
        choices: Choices,
    ) -> int:
        """MSG_MORE: collect, and send everything as one datagram with the first call that does not say it."""
        if file.corked is None:
            if where is None and file.endpoint.remote is None:
                raise fault("EDESTADDRREQ")
            file.corked, file.corked_to = bytearray(), where
        if len(file.corked) + size > MORE_LIMIT:
            raise fault("EMSGSIZE")
        file.corked += b"".join(pieces)
        if not flags & c.MSG_MORE:
            data, file.corked = file.corked, None
            self._transmit(file, [data] if data else [], file.corked_to, flags, choices)
            self.counters["tx_datagrams"] += 1
            self.counters["tx_copied_bytes"] += len(data)
        return size

    def _transmit(
        self, file: DatagramFile, pieces: Sequence[Buffer], where: Destination | None, flags: int, choices: Choices
    ) -> None:
        endpoint = file.endpoint
        scope = None if where is None else self._scope(where)
        to = None if where is None else (where.address, where.port)
        interface = scope if choices.interface is None else choices.interface
        since = self._now()
        with file:
            while True:
                number = endpoint.send(
                    pieces, to, src=choices.src, interface=interface, ttl=choices.ttl, tos=choices.tos
                )
                if not number:
                    return
                error = fault(number)
                if not isinstance(error, BlockingIOError) or endpoint.writable:
                    raise error
                self._pause(file, flags, c.POLLOUT, lambda: endpoint.writable, since, receiving=False)

    # -- receiving -----------------------------------------------------------------------------------------------

    def recv(self, fd: int, size: int, flags: int = 0) -> bytes:
        """Up to `size` bytes of the next datagram; the rest of it is gone. Nothing after SHUT_RD.

        With MSG_TRUNC the result is no longer than otherwise; `recv_into` tells the whole length. Raises as `recvmsg`.
        """
        return self.recvfrom(fd, size, flags)[0]

    def recvfrom(self, fd: int, size: int, flags: int = 0) -> tuple[bytes, SocketAddress | None]:
        """The same, with the sender's address; None where there is none. Raises as `recvmsg`."""
        if size < 0:
            raise ValueError("negative buffersize in recv")
        if flags & c.MSG_ERRQUEUE:
            data, _, _, address = self.recvmsg(fd, size, 0, flags)
            return data, address
        file = self._socket(fd)
        datagram = self._receive(file, flags)
        if datagram is None:
            return b"", None
        data = b"".join(pieces_of(datagram, size))
        self.counters["rx_copied_bytes"] += len(data)
        return data, self._sender(file, datagram)

    def recv_into(self, fd: int, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        """Receive into a buffer, at most `nbytes` (0 is all of it); how many bytes, or with MSG_TRUNC how long the
        datagram was. Raises as `recvmsg`.
        """
        return self.recvfrom_into(fd, buffer, nbytes, flags)[0]

    def recvfrom_into(
        self, fd: int, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, SocketAddress | None]:
        """The same, with the sender's address. Raises as `recvmsg`."""
        view = memoryview(buffer).cast("B")
        if nbytes < 0 or nbytes > len(view):
            raise ValueError("nbytes is greater than the length of the buffer")
        if nbytes:
            view = view[:nbytes]
        if flags & c.MSG_ERRQUEUE:
            length, _, _, address = self.recvmsg_into(fd, [view], 0, flags)
            return length, address
        file = self._socket(fd)
        datagram = self._receive(file, flags)
        if datagram is None:
            return 0, None
        copied = copy_out(datagram, view)
        self.counters["rx_copied_bytes"] += copied
        return len(datagram.payload) if flags & c.MSG_TRUNC else copied, self._sender(file, datagram)

    def recvmsg(
        self, fd: int, size: int, ancsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[Item], int, SocketAddress | None]:
        """Data, ancillary data (as much as a control buffer of `ancsize` bytes holds), flags and the sender's address.

        The flags are MSG_TRUNC (the datagram was longer), MSG_CTRUNC (ancillary data is missing) and MSG_ERRQUEUE.

        Raises OSError: EAGAIN, EINTR, EOPNOTSUPP (MSG_OOB), and an error that an earlier message caused. Raises
        TimeoutError (see `set_timeout`).
        """
        if size < 0 or ancsize < 0:
            raise ValueError("negative buffer size in recvmsg()")
        data = b""

        def take(pieces: Callable[[int], list[memoryview]]) -> int:
            nonlocal data
            data = b"".join(pieces(size))
            return len(data)

        _, items, told, address = self._message(fd, take, ancsize, flags)
        return data, items, told, address

    def recvmsg_into(
        self, fd: int, buffers: Iterable[bytearray | memoryview], ancsize: int = 0, flags: int = 0
    ) -> tuple[int, list[Item], int, SocketAddress | None]:
        """The same, scattered into `buffers`; how many bytes comes first."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]

        def take(pieces: Callable[[int], list[memoryview]]) -> int:
            return _scatter(pieces(sum(map(len, views))), views)

        return self._message(fd, take, ancsize, flags)

    def _message(
        self, fd: int, take: Callable[[Callable[[int], list[memoryview]]], int], ancsize: int, flags: int
    ) -> tuple[int, list[Item], int, SocketAddress | None]:
        """The next message: bytes that `take` has copied, ancillary data, flags, address."""
        file = self._socket(fd)
        address: SocketAddress | None
        if flags & c.MSG_ERRQUEUE:
            error = self._next_error(file)
            quote = memoryview(error.quoted)[0 if file.raw or file.ping else UDP_HEADER :]
            copied, length = take(lambda size: [quote[:size]]), len(quote)
            items: list[Item] = [reported(file, error, meaning(error)[0])]
            port = 0 if file.raw or file.ping else int.from_bytes(error.quoted[2:4], "big")
            address = show(file.family, error.dst, port)
            told = c.MSG_ERRQUEUE
        else:
            datagram = self._receive(file, flags)
            if datagram is None:
                return 0, [], 0, None
            copied, length = take(lambda size: pieces_of(datagram, size)), len(datagram.payload)
            items = received(file, datagram)
            address = self._sender(file, datagram)
            told = 0
        self.counters["rx_copied_bytes"] += copied
        kept, missing = fit(items, ancsize)
        told |= (c.MSG_TRUNC if copied < length else 0) | (c.MSG_CTRUNC if missing else 0)
        return length if flags & c.MSG_TRUNC else copied, kept, told, address

    def _receive(self, file: DatagramFile, flags: int) -> Datagram | None:
        """The next datagram, waiting for it if need be; None after SHUT_RD."""
        if flags & c.MSG_OOB and (file.raw or file.ping):
            raise fault("EOPNOTSUPP")
        datagram = file.receive(bool(flags & c.MSG_PEEK))
        if datagram is None:
            since = self._now()
            endpoint = file.endpoint
            with file:
                while datagram is None:
                    if endpoint.shut_read and not file.nonblocking and not flags & c.MSG_DONTWAIT:
                        return None
                    ready = lambda: bool(endpoint.readable or endpoint.error)  # noqa: E731  # it needs no name
                    self._pause(file, flags, c.POLLIN, ready, since)
                    datagram = file.receive(bool(flags & c.MSG_PEEK))
        self.counters["rx_datagrams"] += 1
        return datagram

    def _next_error(self, file: DatagramFile) -> IcmpError:
        """The oldest queued error, taken out. Raises OSError: EAGAIN, whether the socket blocks or not, as on Linux."""
        errors = file.endpoint.errors
        if not errors:
            raise fault("EAGAIN")
        error = errors.popleft()
        if not errors:
            file.endpoint.error = 0
        return error

    @staticmethod
    def _sender(file: DatagramFile, datagram: Datagram) -> SocketAddress:
        return show(file.family, datagram.src, datagram.src_port, datagram.interface.index)


def _scatter(pieces: Sequence[memoryview], views: Sequence[memoryview]) -> int:
    """Copy `pieces` into `views`, which have room for them; how many bytes."""
    total = 0
    slots = iter(views)
    slot = next(slots, memoryview(b""))
    for piece in pieces:
        at = 0
        while at < len(piece):
            while not len(slot):
                slot = next(slots)
            size = min(len(slot), len(piece) - at)
            slot[:size] = piece[at : at + size]
            slot = slot[size:]
            at += size
        total += at
    return total
