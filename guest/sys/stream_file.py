"""Sockets of streams, SOCK_STREAM over TCP: what poll says of them, connections in and out, and reading and writing
without waiting. Waiting is for stream_calls.py and socket_calls.py.

Read: tcp(7), poll(2), and what Linux's tcp_poll and inet_getname do, which the tests compare with.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from guest.net.tcp.state import State
from guest.sys.constants import (
    IPPROTO_TCP,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLPRI,
    POLLRDHUP,
    POLLRDNORM,
    POLLWRNORM,
    SOCK_STREAM,
)
from guest.sys.fault import check, fault
from guest.sys.sockaddr import needs_scope
from guest.sys.socket_file import SocketFile

if TYPE_CHECKING:
    from guest.net.interface import Interface
    from guest.net.tcp.endpoint import TcpEndpoint

UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY)  # what `connect` gives that is neither there nor refused
OPENING = frozenset((State.SYN_SENT, State.SYN_RECEIVED))
UNNAMED = frozenset((State.CLOSED, State.LISTEN, State.SYN_SENT, State.TIME_WAIT))  # states in which nobody is the peer
SS_UNCONNECTED, SS_CONNECTING, SS_CONNECTED, SS_DISCONNECTING = 1, 2, 3, 4  # linux/net.h
LINGERING = frozenset((State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK))  # closed, and our FIN is not acknowledged


class StreamFile(SocketFile):
    """A socket of a stream.

    Args:
        endpoint: of the stack; closed with the file.
        family: AF_*.

    Attributes:
        phase: SS_*: what came of `connect`. It outlives the connection: only a disconnect makes an end new again.
        rcvlowat: SO_RCVLOWAT: bytes that have to be there before poll says that the socket can be read.
    """

    endpoint: TcpEndpoint

    def __init__(self, endpoint: TcpEndpoint, family: int) -> None:
        super().__init__(endpoint, family, SOCK_STREAM, IPPROTO_TCP)
        self.phase = SS_UNCONNECTED
        self.rcvlowat = 1

    # -- states --------------------------------------------------------------------------------------------------

    def poll(self) -> int:
        endpoint = self.endpoint
        state = endpoint.state
        if state is State.LISTEN:
            return POLLIN | POLLRDNORM if endpoint.readable else 0
        events = POLLERR if endpoint.error or endpoint.errors else 0
        ended = endpoint.at_end
        if state is State.CLOSED or (ended and endpoint.shut_write):
            events |= POLLHUP
        if ended:
            events |= POLLIN | POLLRDNORM | POLLRDHUP
        if state not in OPENING:
            lowat = self.rcvlowat
            if endpoint.unread >= lowat or (lowat == 1 and not endpoint.error and endpoint.readable):
                events |= POLLIN | POLLRDNORM
            if endpoint.shut_write or state is State.CLOSED or endpoint.writable:
                events |= POLLOUT | POLLWRNORM
            if endpoint.urgent:
                events |= POLLPRI
        return events

    @property
    def named(self) -> bool:
        """Whether there is a peer that getpeername may tell."""
        return self.endpoint.state not in UNNAMED

    @property
    def lingering(self) -> bool:
        """Whether the endpoint was closed and its peer has not acknowledged that."""
        return self.endpoint.state in LINGERING

    # -- connections ---------------------------------------------------------------------------------------------

    def listen(self, backlog: int) -> None:
        """Take connections. Raises OSError: EINVAL, EADDRINUSE."""
        if self.phase != SS_UNCONNECTED:
            raise fault("EINVAL")
        check(self.endpoint.listen(max(0, backlog)))  # the standard library knows no negative ones

    def accept(self) -> StreamFile | None:
        """The oldest connection that nobody has accepted, or None. Raises OSError: EINVAL, an end that does not listen.

        It starts with what was set on this socket, as on Linux.
        """
        if self.endpoint.state is not State.LISTEN:
            raise fault("EINVAL")
        endpoint = self.endpoint.accept()
        if endpoint is None:
            return None
        file = StreamFile(endpoint, self.family)
        file.phase = SS_CONNECTED
        file.rcvlowat = self.rcvlowat
        file.rcvtimeo, file.sndtimeo = self.rcvtimeo, self.sndtimeo
        file.wants = set(self.wants)
        file.settings = dict(self.settings)
        device = endpoint.options.bind_device
        if device is not None:
            file.scope = device.index if needs_scope(endpoint.local[0]) else 0
            file.peer_scope = device.index if endpoint.remote is not None and needs_scope(endpoint.remote[0]) else 0
        return file

    def connect(self, address: int, port: int, interface: Interface | None) -> int:
        """Begin to connect, or see what has come of it; 0 or an errno, see `TcpEndpoint.connect`."""
        if self.phase == SS_CONNECTED:
            return errno.EISCONN
        if self.phase == SS_DISCONNECTING:
            return errno.EINVAL
        number = self.endpoint.connect(address, port, interface)
        if number in UNDER_WAY:
            self.phase = SS_CONNECTING
        elif number != errno.EISCONN:
            self.phase = SS_UNCONNECTED if number else SS_CONNECTED
        return number

    def disconnect(self) -> int:
        """End the connection, or what should become one, by a reset; 0 or an errno."""
        self.phase = SS_UNCONNECTED
        return self.endpoint.disconnect()

    def shutdown(self, how: int) -> int:
        """Shut down; 0 or an errno. What waits for its peer's last segments counts as closed, as on Linux."""
        state = self.endpoint.state
        failed = self.endpoint.shutdown(how)
        if failed == errno.EINVAL:
            return failed
        if state in (State.LISTEN, State.SYN_SENT) and self.endpoint.state is State.CLOSED:
            self.phase = SS_UNCONNECTED
        elif self.phase == SS_CONNECTING:
            self.phase = SS_DISCONNECTING if state in (State.CLOSED, State.SYN_RECEIVED) else SS_CONNECTED
        return failed or (errno.ENOTCONN if state is State.TIME_WAIT else 0)

    # -- data ----------------------------------------------------------------------------------------------------

    def receive(self, target: memoryview, *, peek: bool = False, offset: int = 0) -> int | None:
        """Copy what is there: how much, 0 at the end of the stream, None where nothing is there yet.

        Raises OSError: ENOTCONN, and the error that ended the connection.
        """
        done = self.endpoint.read_into(target, peek=peek, offset=offset)
        if done is not None and done < 0:
            raise fault(-done)
        return done

    def take(self, size: int, peek: bool) -> bytes | None:
        """Up to `size` bytes of what is there; b"" at the end of the stream, None where nothing is there yet.

        Raises as `receive`.
        """
        taken = self.endpoint.read(size, peek=peek)
        if isinstance(taken, int):
            raise fault(-taken)
        return taken

    def send(self, pieces: Sequence[memoryview], *, oob: bool = False, more: bool = False) -> int:
        """Take what there is room for: how much, also 0. Raises OSError: EPIPE and the error that ended the stream."""
        taken = self.endpoint.write(pieces, oob=oob, more=more)
        if taken < 0:
            raise fault(-taken)
        return taken

    def read_into(self, target: memoryview) -> int | None:
        return self.receive(target)

    def write(self, source: memoryview) -> int | None:
        return self.send([source]) or (None if len(source) else 0)
