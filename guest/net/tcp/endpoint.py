"""An end of TCP below the system calls: a listening one, or one of a connection. As on Linux.

It never blocks and never raises for what peers or callers do; calls give 0 or an errno, those that move data a count or
a negative errno. `on_ready` is called whenever somebody who waits should look again.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from guest.net.address import V4_ANY, V6_ANY, is_multicast, is_unspecified, is_v4
from guest.net.addressed import AddressedEndpoint, needs_zone
from guest.net.endpoint import SHUT_RD, SHUT_RDWR, SHUT_WR
from guest.net.pbuf import CAST_HOST, Buffer
from guest.net.tcp.congestion import UNLIMITED
from guest.net.tcp.connection import Connection
from guest.net.tcp.listener import Listener
from guest.net.tcp.segment import MASK
from guest.net.tcp.settings import TcpInfo, TcpSettings
from guest.net.tcp.state import MAY_RECEIVE, MAY_SEND, State
from guest.net.tcp.timers import NEVER

if TYPE_CHECKING:
    from guest.net.family import IpInterface
    from guest.net.interface import Interface
    from guest.net.tcp.layer import Tcp

PROTOCOL = 6
RCVBUF = 131_072  # what Linux starts with (net.ipv4.tcp_rmem, tcp_wmem); tuned unless a caller fixes them
SNDBUF = 16_384
OPENING = (State.SYN_SENT, State.SYN_RECEIVED)


class TcpEndpoint(AddressedEndpoint):
    """A TCP socket below the system calls. Made by `Tcp.open`, or by a listening end.

    Attributes:
        settings: the TCP_* options.
        connection: what it is an end of, from `connect` on; None before, and of a listening one.
        listener: of a listening one.
    """

    protocol = PROTOCOL

    def __init__(self, tcp: Tcp, family: int) -> None:
        super().__init__(tcp.ip, family, tcp.net)
        self.options.rcvbuf = RCVBUF
        self.options.sndbuf = SNDBUF
        self.settings = TcpSettings.of(tcp.config)
        self.connection: Connection | None = None
        self.listener: Listener | None = None
        self._tcp = tcp
        self._address_fixed = False
        self._port_fixed = False
        self._bound = False  # whether it has its port; one that it had is still shown, as on Linux
        self._told = False  # `connect` has said that the connection is there

    # -- addresses -----------------------------------------------------------------------------------------------

    def bind(self, addr: int, port: int, interface: Interface | None = None) -> int:
        if self.closed:
            return errno.EBADF
        failed = self._may_bind(addr, interface)
        if failed:
            return failed
        if is_multicast(addr) and not is_v4(addr):
            return errno.EINVAL
        if self.state in (State.CLOSED, State.TIME_WAIT) and self.connection is not None and not self._port_fixed:
            self._leave_connection()  # what is over holds no port that nobody chose
        if self._bound or self.connection is not None:
            return errno.EINVAL
        device = self.options.bind_device
        if needs_zone(addr) and interface is not None:
            self.options.bind_device = interface
        failed = self._tcp.ports.bind(self, addr, port)
        if failed:
            self.options.bind_device = device
            return failed
        self._bound = True
        self._address_fixed = not is_unspecified(addr)
        self._port_fixed = port != 0
        self._fix_source()
        return 0

    def listen(self, backlog: int) -> int:
        """Take connections: 0, EINVAL (connected), EADDRINUSE or EBADF. Again: another backlog."""
        if self.closed:
            return errno.EBADF
        backlog = min(max(0, backlog) if backlog >= 0 else self._tcp.config.backlog_max, self._tcp.config.backlog_max)
        if self.listener is not None:
            self.listener.backlog = backlog
            return 0
        if self.state is not State.CLOSED:
            return errno.EINVAL
        if self.connection is not None:
            self._leave_connection()
        if not self._bound:
            failed = self._tcp.ports.bind(self, self.local[0], 0)
            if failed:
                return failed
            self._bound = True
        failed = self._tcp.ports.listen(self)
        if failed:
            return failed
        self.listener = Listener(self._tcp, self, backlog)
        self.remote = None
        self.shut_read = self.shut_write = False
        return 0

    def accept(self) -> TcpEndpoint | None:
        """The end of the connection that has waited longest, or None."""
        return None if self.listener is None else self.listener.accept()

    def connect(self, addr: int, port: int, interface: Interface | None = None) -> int:
        """Open a connection: EINPROGRESS when the SYN is on its way, EALREADY while it is; once it is established 0,
        and EISCONN from then on. Otherwise why not.
        """
        if self.closed:
            return errno.EBADF
        if self.listener is not None:
            return errno.EISCONN
        connection = self.connection
        if connection is not None:
            if connection.state in OPENING:
                return errno.EALREADY
            if not self._told and connection.synchronized:
                self._told = True
                return self.take_error()
            if connection.state is not State.CLOSED:
                return errno.EISCONN
            failed = self.take_error() or (0 if self._told else errno.ECONNABORTED)
            self._leave_connection()
            if failed:
                return failed
        self.error = 0
        if self._lacks_zone(addr, interface):
            return errno.EINVAL
        if is_multicast(addr):
            return errno.ENETUNREACH
        failed, addr, src, out, hop = self._reach(addr, None, interface)
        if failed == errno.EACCES or (hop is not None and hop.cast != CAST_HOST):
            return errno.ENETUNREACH
        if failed or hop is None:
            return failed
        local = hop.src if src is None else src
        remote = (addr, port)
        failed = self._take_port(local, remote)
        if failed:
            return failed
        if needs_zone(addr) and interface is not None:
            self.options.bind_device = interface
        self.remote = remote
        self.shut_read = self.shut_write = False
        self._told = False
        self._fix_source()
        self.connection = self._tcp.connect(self, (local, self.local[1], *remote), out)
        return errno.EINPROGRESS

    def _take_port(self, local: int, remote: tuple[int, int]) -> int:
        """See that this end has a port from which no connection to `remote` leads; 0 or an errno."""
        tcp = self._tcp
        if self._bound:
            if not tcp.free((local, self.local[1], *remote)):
                return errno.EADDRNOTAVAIL
            self.local = (local, self.local[1])
            return 0
        failed = tcp.ports.bind_towards(self, local, remote, lambda port: not tcp.free((local, port, *remote)))
        self._bound = not failed
        return failed

    def disconnect(self) -> int:
        """Reset the connection, and stop listening (connecting to AF_UNSPEC)."""
        if self.closed:
            return errno.EBADF
        self._stop_listening()
        connection = self.connection
        if connection is not None and connection.state not in (State.CLOSED, State.TIME_WAIT):
            connection.kill(self._tcp.now())
            self.error = errno.ECONNRESET
        self._leave_connection()
        self.changed()
        return 0

    def _leave_connection(self) -> None:
        """The connection is over: this end may be used anew."""
        if self.connection is not None:
            self.connection.end = None
            self.connection = None
        self.remote = None
        self.shut_read = self.shut_write = False
        if not self._port_fixed:
            self._give_port_back()
        if not self._address_fixed:
            self.local = (V4_ANY if self.family == 4 else V6_ANY, self.local[1])
        self.options.bind_device = None
        self._fix_source()

    def child(self, connection: Connection, interface: IpInterface | None) -> TcpEndpoint:
        """The end of a connection that came in here; it inherits what was set."""
        child = TcpEndpoint(self._tcp, self.family)
        child.options = replace(self.options)
        child.settings = replace(self.settings)
        if interface is not None:
            child.options.bind_device = interface  # type: ignore[assignment]  # the engine's interfaces are the stack's
        self._tcp.ports.hold(child, *connection.ends[:2])
        child._bound = True
        child.remote = connection.ends[2:]
        child._told = True
        child._fix_source()
        child.attach(connection, interface)
        return child

    def attach(self, connection: Connection, interface: IpInterface | None) -> None:
        """Become the end of a connection that is new."""
        self.connection = connection
        connection.end = connection.holder = self
        connection.interface = interface
        connection.limit = self.receive_limit()
        connection.limit_fixed = self.options.rcvbuf_fixed or self.settings.window_clamp > 0
        connection.nodelay = self.settings.nodelay
        connection.corked = self.settings.cork
        if not self.settings.quickack:
            connection.quick = 0

    def receive_limit(self) -> int:
        """Bytes that a connection of this end offers at first."""
        limit = self.options.rcvbuf // 2 if self.options.rcvbuf_fixed else self._tcp.config.window
        clamp = self.settings.window_clamp
        return min(limit, clamp) if clamp else limit

    def settings_changed(self) -> None:
        """Options or settings were set: let the connection know what it has copies of."""
        connection = self.connection
        if connection is None:
            return
        connection.nodelay = self.settings.nodelay
        connection.corked = self.settings.cork
        if self.options.rcvbuf_fixed or self.settings.window_clamp:
            connection.limit = max(self.receive_limit(), 0)
            connection.limit_fixed = True
        if self.options.keepalive:
            connection.keep_alive(self._tcp.now())
        connection.flush(self._tcp.now())

    def quick_ack(self, on: bool) -> None:
        """TCP_QUICKACK: acknowledge at once what waits for that and some of what comes next, or nothing any more."""
        self.settings.quickack = on
        connection = self.connection
        if connection is not None:
            connection.quick = self._tcp.config.quick_acks if on else 0
            connection.ack_now = connection.ack_now or (on and connection.ack_at != NEVER)
            connection.flush(self._tcp.now())

    # -- data ----------------------------------------------------------------------------------------------------

    def write(self, pieces: Sequence[Buffer], *, oob: bool = False, more: bool = False) -> int:
        """Copy bytes into the send buffer, as many as it has room for: how many, 0 when it has none, or -errno.

        Args:
            oob: the last byte is urgent. more: further bytes follow soon, so a segment that is not full may wait.
        """
        if self.error:
            return -self.take_error()
        connection = self.connection
        if connection is None or self.shut_write or connection.state not in MAY_SEND:
            return -errno.EPIPE
        if connection.state in OPENING:
            return 0
        room = connection.send_room()
        if room <= 0:
            self._tcp.counters["tx_buffer_full"] += 1
            return 0
        taken = connection.queue([memoryview(piece) for piece in pieces], room)
        if oob and taken == sum(map(len, pieces)) and taken:
            connection.snd_up = connection.snd.end
        connection.corked = more or self.settings.cork
        connection.flush(self._tcp.now())
        return taken

    def read_into(self, target: memoryview, *, peek: bool = False, offset: int = 0) -> int | None:
        """Copy received bytes into `target`: how many; 0 at the end of the stream, None when there are none yet, or
        -errno. With `peek` they stay, and `offset` are passed over.
        """
        connection = self.connection
        if connection is None:
            return self._nothing()
        if not len(target):
            return 0
        count = connection.read(target, peek, self.options.oob_inline, offset)
        if count:
            if not peek:
                connection.was_read(count, self._tcp.now())
            return count
        return self._nothing()

    def read(self, size: int, *, peek: bool = False) -> bytes | int | None:
        """The same as new bytes; b"" at the end of the stream."""
        connection = self.connection
        ready = 0 if connection is None else connection.readable_bytes(self.options.oob_inline)
        if ready <= 0 or size <= 0:
            done = self.read_into(memoryview(bytearray(min(size, 1))), peek=peek)
            return b"" if done == 0 else done
        target = bytearray(min(size, ready))
        done = self.read_into(memoryview(target), peek=peek)
        return bytes(target) if done == len(target) else done if done is None or done < 0 else bytes(target[:done])

    def _nothing(self) -> int | None:
        """What a read gives that finds no bytes."""
        if self._all_came:
            return 0
        if self.error:
            return -self.take_error()
        if self.shut_read:
            return 0
        if self.connection is None or self.state is State.CLOSED:
            return 0 if self.remote is not None else -errno.ENOTCONN
        return None

    def peek_views(self, most: int) -> list[memoryview]:
        """The next `most` received bytes or fewer, in place, urgent ones among them; good until they are taken."""
        connection = self.connection
        return [] if connection is None else connection.rcv.views(most)

    def write_room(self) -> int:
        """Bytes that the next write takes; 0 also where none can be written."""
        connection = self.connection
        if connection is None or self.shut_write or connection.state not in MAY_SEND or connection.state in OPENING:
            return 0
        return connection.send_room()

    def discard(self, count: int) -> None:
        """Take bytes that were peeked at out of the stream."""
        connection = self.connection
        if connection is not None and count > 0:
            connection.rcv.take(None, min(count, len(connection.rcv)))
            connection.was_read(count, self._tcp.now())

    def read_oob(self, target: memoryview, *, peek: bool = False) -> int:
        """The urgent byte, which is read beside the others: 1; or -EINVAL (there is none, or it is inline), -EAGAIN (it
        has not come yet).
        """
        connection = self.connection
        if self.listener is not None:
            return -errno.ENOTCONN
        if connection is None or self.options.oob_inline or connection.urgent is None:
            return -errno.EINVAL
        if connection.urgent_read:
            return -errno.EINVAL
        if connection.urgent_byte is None:
            return 0 if self.at_end else -errno.EAGAIN
        target[0] = connection.urgent_byte
        if not peek:
            connection.urgent_read = True
        return 1

    # -- the end -------------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> int:
        if self.closed:
            return errno.EBADF
        if how not in (SHUT_RD, SHUT_WR, SHUT_RDWR):
            return errno.EINVAL
        if self.listener is not None:
            if how != SHUT_WR:
                self._stop_listening()
                self.changed()
            return 0
        connection = self.connection
        if connection is not None and connection.state is State.SYN_SENT:
            return self.disconnect()
        self.shut_read = self.shut_read or how != SHUT_WR
        if connection is None or connection.state is State.CLOSED or self.remote is None:
            self.shut_write = self.shut_write or how != SHUT_RD
            return errno.ENOTCONN
        if how != SHUT_RD:
            self.shut_write = True
            connection.finish(self._tcp.now())
        connection.tell = True
        connection.flush(self._tcp.now())
        return 0

    def close(self) -> None:
        """Let go: a connection sends what waits and its FIN, or is reset where data is unread or lingering is not
        wanted (RFC 9293 §3.10.4, RFC 2525 §2.17).
        """
        if self.closed:
            return
        self.closed = True
        self._stop_listening()
        connection = self.connection
        now = self._tcp.now()
        if connection is None:
            self._tcp.ports.release(self)
        else:
            unread = len(connection.rcv) > 0 and connection.state in (*MAY_RECEIVE, State.CLOSE_WAIT)
            if unread or (self.options.linger == 0 and connection.state is not State.TIME_WAIT):
                connection.kill(now)
            else:
                connection.finish(now)
            connection.let_go(now)
            connection.rcv.clear()
            if connection.state in (State.CLOSED, State.TIME_WAIT):
                self._tcp.ports.release(self)
            else:
                connection.flush(now)
        if self.on_ready is not None:
            self.on_ready()

    def kill(self) -> None:
        """Close with a reset."""
        self.options.linger = 0
        self.close()

    def _stop_listening(self) -> None:
        if self.listener is not None:
            listener, self.listener = self.listener, None
            self._tcp.ports.listening.discard(self)
            listener.close()
            if not self._port_fixed and not self.closed:
                self._give_port_back()

    def _give_port_back(self) -> None:
        if self._bound:
            self._bound = False
            self._tcp.ports.release(self)

    def changed(self) -> None:
        """Something has changed that a caller may be waiting for."""
        connection = self.connection
        if connection is not None and connection.error:
            self.error, connection.error = connection.error, 0
            self.shut_read = self.shut_write = True
        if self.on_ready is not None:
            self.on_ready()

    # -- states --------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Of the connection, or LISTEN."""
        if self.listener is not None:
            return State.LISTEN
        return State.CLOSED if self.connection is None else self.connection.state

    @property
    def listening(self) -> bool:
        """Whether it takes connections."""
        return self.listener is not None

    @property
    def connecting(self) -> bool:
        """Whether the handshake is under way."""
        return self.connection is not None and self.connection.state in OPENING

    @property
    def connected(self) -> bool:
        """Whether the handshake is over, and the connection is not."""
        return self.state not in (State.CLOSED, State.LISTEN, *OPENING)

    @property
    def at_end(self) -> bool:
        """Whether nothing more will come."""
        return self.shut_read or self._all_came

    @property
    def _all_came(self) -> bool:
        """Whether the peer's FIN was received, and everything before it."""
        connection = self.connection
        return connection is not None and connection.peer_fin is not None and connection.rcv_nxt > connection.peer_fin

    @property
    def readable(self) -> bool:
        """Whether a read would not have to wait, or there is a connection to accept."""
        if self.listener is not None:
            return bool(self.listener.ready)
        connection = self.connection
        if connection is None or connection.state in OPENING:
            return bool(self.error)
        return bool(connection.readable_bytes(self.options.oob_inline) > 0 or self.at_end or self.error)

    @property
    def writable(self) -> bool:
        """Whether there is room for a good part of the send buffer."""
        connection = self.connection
        if connection is None or self.shut_write or connection.state not in MAY_SEND:
            return self.listener is None
        if connection.state in OPENING:
            return False
        return connection.send_room() * 2 >= len(connection.snd)

    @property
    def urgent(self) -> bool:
        """Whether an urgent byte is there, and was not read."""
        connection = self.connection
        return connection is not None and connection.urgent_byte is not None and not connection.urgent_read

    @property
    def at_mark(self) -> bool:
        """Whether the next byte to read is the urgent one (SIOCATMARK)."""
        connection = self.connection
        return connection is not None and connection.urgent is not None and connection.urgent == connection.rcv.start

    @property
    def unread(self) -> int:
        """Bytes that can be read (SIOCINQ)."""
        connection = self.connection
        if connection is None:
            return 0
        rcv, urgent = connection.rcv, connection.urgent
        if urgent is not None and not self.options.oob_inline and rcv.start <= urgent < rcv.end:
            return urgent - rcv.start
        return len(rcv)

    @property
    def unsent(self) -> int:
        """Bytes that wait to be sent (SIOCOUTQNSD)."""
        connection = self.connection
        return 0 if connection is None else max(0, connection.snd_end - max(connection.snd_nxt, connection.snd.start))

    @property
    def unacked(self) -> int:
        """Bytes that are not acknowledged, those that wait included (SIOCOUTQ)."""
        connection = self.connection
        return 0 if connection is None else max(0, connection.snd_end - max(connection.snd_una, connection.snd.start))

    def info(self) -> TcpInfo:
        """Its connection's variables; zeros where it has none."""
        connection = self.connection
        if connection is None:
            return TcpInfo(self.state, self.settings.congestion, *(0,) * 25, False, False, False, 0)
        control, rtt, board = connection.control, connection.rtt, connection.scoreboard
        return TcpInfo(
            self.state, self.settings.congestion,
            connection.snd_una & MASK, connection.snd_nxt & MASK, connection.rcv_nxt & MASK,
            connection.snd_wnd, max(0, connection.rcv_adv - connection.rcv_nxt),
            connection.snd_scale, connection.rcv_scale,
            connection.mss, connection.adv_mss, connection.rcv_mss,
            control.cwnd, 0 if control.ssthresh >= UNLIMITED else control.ssthresh,
            rtt.rto, rtt.srtt, rtt.rttvar, rtt.min_rtt,
            self.unsent, connection.snd_nxt - connection.snd_una, board.in_flight, board.sacked_bytes,
            sum(one.end - one.start for one in board if one.lost), self.unread,
            connection.retransmits, connection.timeouts, connection.recovery,
            connection.stamps, connection.sack, connection.ecn, self._tcp.now() - connection.heard_at,
        )  # fmt: skip
