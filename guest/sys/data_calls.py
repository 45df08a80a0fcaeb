"""System calls that move data: send(2) and recv(2) in all their forms. What they do on streams is in stream_calls.py.

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
from guest.sys.fault import fault
from guest.sys.sockaddr import AddressArgument, Destination, SocketAddress, show
from guest.sys.socket_file import MORE_LIMIT, DatagramFile, SocketFile, copy_out, pieces_of
from guest.sys.stream_calls import StreamCalls
from guest.sys.stream_file import StreamFile

if TYPE_CHECKING:
    from guest.net.icmp_error import IcmpError

UDP_HEADER = 8  # what a quoted datagram has before its payload


class DataCalls(StreamCalls):
    """Calls that send and receive."""

    # -- sending -------------------------------------------------------------------------------------------------

    def send(self, fd: int, data: Buffer, flags: int = 0) -> int:
        """Send to the connected peer; how many bytes. Raises as `sendmsg`."""
        file = self._socket(fd)
        pieces = [memoryview(data).cast("B")]
        if isinstance(file, StreamFile):
            return self._stream_send(file, pieces, flags)
        return self._send(file, pieces, None, flags, Choices())

    def sendto(self, fd: int, data: Buffer, address: AddressArgument | None, flags: int = 0) -> int:
        """Send to `address`, which a stream passes over; how many bytes. Raises as `sendmsg`."""
        file = self._socket(fd)
        pieces = [memoryview(data).cast("B")]
        if isinstance(file, StreamFile):
            return self._stream_sendto(file, pieces, address, flags)
        return self._send(file, pieces, address, flags, Choices())

    def sendmsg(
        self,
        fd: int,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        address: AddressArgument | None = None,
    ) -> int:
        """Send what `buffers` hold, a datagram with ancillary data or a part of a stream; how many bytes.

        A stream takes everything, waiting for room; fewer bytes when its time has passed, or where it must not block.

        Raises OSError: EDESTADDRREQ, EMSGSIZE, ENETUNREACH, EACCES (broadcast), EADDRNOTAVAIL, EINVAL, EOPNOTSUPP
        (MSG_OOB of datagrams), EPIPE, EAGAIN, EINTR, and an error that came before (ECONNREFUSED, ECONNRESET, …).
        """
        file = self._socket(fd)
        items = list(ancdata)
        if isinstance(file, StreamFile):
            if any(level == c.SOL_SOCKET for level, _, _ in items):
                raise fault("EINVAL")
            return self._stream_sendto(file, [memoryview(buffer).cast("B") for buffer in buffers], address, flags)
        choices = chosen(file, items, self.interface_at, self.stack.ip.is_local) if items else Choices()
        return self._send(file, [memoryview(buffer).cast("B") for buffer in buffers], address, flags, choices)

    def _stream_sendto(
        self, file: StreamFile, pieces: Sequence[memoryview], address: AddressArgument | None, flags: int
    ) -> int:
        if address is not None and not isinstance(address, (bytes, bytearray, memoryview)):
            self._destination(file, address)  # for the errors of the standard library; the kernel does not look at it
        return self._stream_send(file, pieces, flags)

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
        """Up to `size` bytes of a stream, or of the next datagram, whose rest is gone. Nothing at the end of a stream,
        and after SHUT_RD.

        With MSG_TRUNC the result is no longer than otherwise; `recv_into` tells the whole length. Raises as `recvmsg`.
        """
        if size == 0:
            self._socket(fd)
            return b""  # the standard library does not ask the kernel for nothing
        return self.recvfrom(fd, size, flags)[0]

    def recvfrom(self, fd: int, size: int, flags: int = 0) -> tuple[bytes, SocketAddress | None]:
        """The same, with the sender's address; None of a stream. Raises as `recvmsg`."""
        if size < 0:
            raise ValueError("negative buffersize in recv")
        if flags & c.MSG_ERRQUEUE:
            data, _, _, address = self.recvmsg(fd, size, 0, flags)
            return data, address
        file = self._socket(fd)
        if isinstance(file, StreamFile):
            return self._stream_read(file, size, flags), None
        datagram = self._receive(file, flags)
        if datagram is None:
            return b"", None
        data = b"".join(pieces_of(datagram, size))
        self.counters["rx_copied_bytes"] += len(data)
        return data, self._sender(file, datagram)

    def recv_into(self, fd: int, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        """Receive into a buffer, at most `nbytes` (0 is all of it); how many bytes, or with MSG_TRUNC how long the
        datagram was. Of a stream MSG_TRUNC throws away what would have been received. Raises as `recvmsg`.
        """
        if not nbytes and not memoryview(buffer):
            self._socket(fd)
            return 0
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
        if isinstance(file, StreamFile):
            return self._stream_into(file, [view], flags), None
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

        The flags are MSG_TRUNC (the datagram was longer), MSG_CTRUNC (ancillary data is missing), MSG_OOB (it is
        urgent) and MSG_ERRQUEUE.

        Raises OSError: EAGAIN, EINTR, ENOTCONN, EOPNOTSUPP or EINVAL (MSG_OOB), and an error that came before. Raises
        TimeoutError (see `set_timeout`).
        """
        if size < 0 or ancsize < 0:
            raise ValueError("negative buffer size in recvmsg()")
        file = self._socket(fd)
        if isinstance(file, StreamFile) and not flags & c.MSG_ERRQUEUE:
            if not flags & c.MSG_OOB:
                return self._stream_read(file, size, flags), [], 0, None
            target = bytearray(size)
            done, items, told, address = self._stream_message(file, [memoryview(target)], flags)
            return bytes(target[:done]), items, told, address
        data = b""

        def take(pieces: Callable[[int], list[memoryview]]) -> int:
            nonlocal data
            data = b"".join(pieces(size))
            return len(data)

        _, items, told, address = self._message(file, take, ancsize, flags)
        return data, items, told, address

    def recvmsg_into(
        self, fd: int, buffers: Iterable[bytearray | memoryview], ancsize: int = 0, flags: int = 0
    ) -> tuple[int, list[Item], int, SocketAddress | None]:
        """The same, scattered into `buffers`; how many bytes comes first."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        file = self._socket(fd)
        if isinstance(file, StreamFile) and not flags & c.MSG_ERRQUEUE:
            return self._stream_message(file, views, flags)

        def take(pieces: Callable[[int], list[memoryview]]) -> int:
            return _scatter(pieces(sum(map(len, views))), views)

        return self._message(file, take, ancsize, flags)

    def _message(
        self, file: SocketFile, take: Callable[[Callable[[int], list[memoryview]]], int], ancsize: int, flags: int
    ) -> tuple[int, list[Item], int, SocketAddress | None]:
        """The next message: bytes that `take` has copied, ancillary data, flags, address."""
        address: SocketAddress | None
        if not isinstance(file, DatagramFile) or flags & c.MSG_ERRQUEUE:
            error = self._next_error(file)
            quote = memoryview(error.quoted)[UDP_HEADER if file.protocol == c.IPPROTO_UDP and not file.raw else 0 :]
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

    def _next_error(self, file: SocketFile) -> IcmpError:
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
