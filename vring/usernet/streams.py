"""TCP through the user wire: a connection of the guest's and a socket of the host's, joined.

    guest ── TcpEndpoint of the gateway's stack ── Stream ── socket ── outside

Promises:
- The guest's SYN is answered once the host's socket is connected. Until then it may come again; if that fails the guest
  hears what the host heard: a reset, or the ICMP error that fits.
- What one side sends is read no faster than the other takes it: the window closes, or the host's socket is left alone.
  So a stream holds at most one receive buffer and one send buffer of the stack's, whatever its ends do.
- The end of each direction, and a reset, are carried across by themselves and at once.
- At most `STREAMS` streams at a time. Beyond that, and when the host has no descriptor left, SYNs are dropped and
  counted, so that the guest tries again; forwards leave their callers in the host's queue.

Bytes leave the stack's buffers by `sendmsg` as they lie there; on the way in they are copied once, from the scratch
buffer that a host's socket is read into. All streams that something happened to are served in one turn of the loop, and
what they send to the guest leaves in one batch.

Sections: `Stream`, `Gate` (the listening side towards the guest), `Streams`.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from guest.net.endpoint import SHUT_WR
from guest.net.family import IpHeader
from guest.net.interface import Interface
from guest.net.stack import Stack
from guest.net.tcp.endpoint import TcpEndpoint
from guest.net.tcp.listener import Listener, Request
from guest.net.tcp.state import State
from guest.net.tcp.tcb import Ends, Segment
from hw.loop import Loop
from vring.usernet import host

STREAMS = 1024
SCRATCH = 1 << 18  # bytes read from a host's socket at once, at most
MOST_VIEWS = 512  # of one sendmsg; the kernel takes 1024 (IOV_MAX)
OVER = (State.CLOSED, State.TIME_WAIT)


class Stream:
    """One connection from end to end.

    Attributes:
        sock: the host's socket; None once it is closed.
        end: the guest's side; None until the guest has answered.
        segment, header: the guest's SYN while the host is connecting.
        joined: both sides are connected.
        paused: the host's socket is not read, for the guest takes no more.
        blocked: nothing is sent to the host, for its socket takes no more.
        host_done, guest_done: what came from there has ended, and was said to the other side.
    """

    __slots__ = (
        "blocked", "end", "ends", "fd", "guest_done", "header", "host_done", "joined", "paused", "ready", "segment",
        "sock",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, ends: Ends | None) -> None:
        self.sock: socket.socket | None = sock
        self.fd = sock.fileno()
        self.ends = ends
        self.end: TcpEndpoint | None = None
        self.segment: Segment | None = None
        self.header: IpHeader | None = None
        self.joined = False
        self.paused = True
        self.ready = False  # the host's socket has something to read
        self.blocked = False
        self.host_done = False
        self.guest_done = False


class Gate(Listener):
    """Answers SYNs to whatever address and port, once it is told to; says when one of its requests is over."""

    def __init__(self, streams: Streams, end: TcpEndpoint) -> None:
        super().__init__(end._tcp, end, STREAMS)
        self._streams = streams

    def forget(self, request: Request) -> None:
        super().forget(request)
        self._streams.request_over(request.ends)


class Streams:
    """All streams of one user wire.

    Args:
        loop: watches the host's sockets.
        stack: the gateway's.
        interface: towards the guest.
        outside: where the host is to connect to for an address and port of the guest's; None for nowhere.
        counters: counts `tcp_…`.
        complain: tells people of something, once.
    """

    def __init__(
        self,
        loop: Loop,
        stack: Stack,
        interface: Interface,
        *,
        outside: Callable[[int, int], tuple[int, int] | None],
        counters: Counter[str],
        complain: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._stack = stack
        self._interface = interface
        self._outside = outside
        self.counters = counters
        self._complain = complain
        self._streams: dict[Stream, None] = {}
        self._opening: dict[Ends, Stream] = {}  # the guest's SYN is here, and not yet its answer to ours
        self._dirty: dict[Stream, None] = {}
        self._scratch = memoryview(bytearray(SCRATCH))
        end = stack.tcp.open(6)
        end.options.oob_inline = True
        end.settings.nodelay = True
        end.on_ready = self._accept
        self._gate = end.listener = Gate(self, end)
        stack.tcp.unclaimed = self._syn

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._streams))

    @property
    def full(self) -> bool:
        """Whether no further stream may be made."""
        return len(self._streams) >= STREAMS

    # -- the guest connects --------------------------------------------------------------------------------------

    def _syn(self, ends: Ends, segment: Segment, header: IpHeader, now: int, above: int | None) -> bool:
        """A SYN to an address outside, or to a port of the gateway's."""
        known = self._opening.get(ends)
        if known is not None:
            known.segment, known.header = segment, header
            return True
        target = self._outside(*ends[:2])
        if target is None:
            if self._stack.ip.is_local(ends[0]):
                return False  # nobody listens there, says the stack
            return self._unreachable(segment, header, "admin")
        if self.full:
            self.counters["tcp_dropped_full"] += 1
            return True
        try:
            sock = host.open_socket(target[0], socket.SOCK_STREAM)
        except OSError as error:
            return self._no_socket(segment, header, error)
        stream = Stream(sock, ends)
        segment.packet = segment.packet.keep()
        stream.segment, stream.header = segment, header
        self._streams[stream] = None
        self._opening[ends] = stream
        failed = _connect(sock, *target)
        if failed == errno.EINPROGRESS:
            self._loop.set_writer(stream.fd, partial(self._connected, stream))
        else:
            self._answer(stream, failed)
        return True

    def _no_socket(self, segment: Segment, header: IpHeader, error: OSError) -> bool:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            self.counters["tcp_dropped_no_descriptor"] += 1
            self._complain(f"no more descriptors for connections ({error.strerror}); raise the limit with ulimit -n")
            return True
        return self._unreachable(segment, header, host.ICMP_KINDS.get(error.errno or 0, "host"))

    def _unreachable(self, segment: Segment, header: IpHeader, kind: str) -> bool:
        self.counters["tcp_unreachable"] += 1
        if self._stack.ip.error is not None:
            self._stack.ip.error(segment.packet, header, kind, 0)
        return True

    def _connected(self, stream: Stream) -> None:
        """The host's connect has come to an end."""
        if stream.sock is None:
            return
        self._loop.set_writer(stream.fd, None)
        self._answer(stream, stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _answer(self, stream: Stream, failed: int) -> None:
        """Let the guest know how the host's connect went."""
        ends, segment, header = stream.ends, stream.segment, stream.header
        if ends is None or segment is None or header is None:
            return
        interface = header.interface if ends[2] >> 118 == 0x3FA else None  # a link-local peer
        stream.segment = stream.header = None
        if not failed:
            self._gate.arrives(ends, segment, interface, self._stack.now(), None)
            if ends in self._opening and ends not in self._gate.requests:
                self.counters["tcp_dropped_full"] += 1
                self._drop(stream)
            return
        self._drop(stream)
        if failed == errno.ECONNREFUSED:
            self.counters["tcp_refused"] += 1
            self._stack.tcp.reset(ends, segment, interface)
        else:
            self._unreachable(segment, header, host.ICMP_KINDS.get(failed, "host"))

    def request_over(self, ends: Ends) -> None:
        """A half-open connection has become one, or the guest gave up."""
        self._loop.call_soon(partial(self._check, ends))

    def _check(self, ends: Ends) -> None:
        stream = self._opening.get(ends)
        if stream is not None and stream.segment is None and ends not in self._gate.requests:
            self.counters["tcp_given_up"] += 1
            self._drop(stream)

    def _accept(self) -> None:
        """The guest has completed handshakes."""
        while (end := self._gate.accept()) is not None:
            ends = None if end.connection is None else end.connection.ends
            stream = None if ends is None else self._opening.pop(ends, None)
            if stream is None or stream.sock is None:
                end.kill()
                continue
            self._join(stream, end)

    # -- the host connects ---------------------------------------------------------------------------------------

    def forward(self, sock: socket.socket, guest: int, port: int) -> None:
        """Join `sock`, which somebody outside has connected, to `port` of the guest's address `guest`."""
        end = self._stack.tcp.open(4 if guest >> 32 == 0xFFFF else 6)
        end.options.oob_inline = True
        end.settings.nodelay = True
        stream = Stream(sock, None)
        self._streams[stream] = None
        stream.end = end
        failed = end.connect(guest, port)
        if failed != errno.EINPROGRESS:
            self.counters["tcp_forward_failed"] += 1
            self._drop(stream)
            return
        end.on_ready = partial(self._touch, stream)
        self._loop.set_hangup(stream.fd, partial(self._host_hung_up, stream))

    # -- joined --------------------------------------------------------------------------------------------------

    def _join(self, stream: Stream, end: TcpEndpoint) -> None:
        """Both sides are connected."""
        sock = stream.sock
        if sock is None:
            return
        stream.end = end
        stream.ends = None
        stream.joined = True
        end.on_ready = partial(self._touch, stream)
        end.options.sndbuf = 2 * SCRATCH
        end.options.sndbuf_fixed = True
        self.counters["tcp_opened"] += 1
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop.set_hangup(stream.fd, partial(self._host_hung_up, stream))
        self._resume(stream)
        self._touch(stream)

    def _touch(self, stream: Stream) -> None:
        """Serve a stream in this turn of the loop or the next."""
        if not self._dirty:
            self._loop.call_soon(self._serve)
        self._dirty[stream] = None

    def _readable(self, stream: Stream) -> None:
        stream.ready = True
        self._touch(stream)

    def _writable(self, stream: Stream) -> None:
        self._loop.set_writer(stream.fd, None)
        stream.blocked = False
        self._touch(stream)

    def _host_hung_up(self, stream: Stream) -> None:
        """The host's socket has an error, or both of its directions are over: see which, however stalled we are."""
        sock = stream.sock
        if sock is None or (stream.joined and not stream.paused):
            return  # reading will show it, behind the data that came before
        self._loop.set_hangup(stream.fd, None)
        failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            self._host_failed(stream)

    def _serve(self) -> None:
        """Move bytes of all streams that something happened to."""
        dirty, self._dirty = self._dirty, {}
        self._interface.hold()
        try:
            for stream in dirty:
                self._move(stream)
        finally:
            self._interface.release()

    def _move(self, stream: Stream) -> None:
        end = stream.end
        if end is None:
            return
        if end.error:
            if stream.joined and not stream.blocked and stream.sock is not None:
                self._to_host(stream, end, stream.sock)  # what came before the reset
            self._guest_failed(stream)
            return
        if stream.sock is None:
            self._settle(stream)
            return
        if end.connecting:
            return
        if not stream.joined:
            self._join(stream, end)
        if not stream.blocked and not stream.guest_done:
            self._to_host(stream, end, stream.sock)
            if end.at_end and not end.unread and stream.sock is not None:
                self._end_towards_host(stream, stream.sock)
        if stream.sock is not None and not stream.host_done and (stream.ready or stream.paused):
            self._to_guest(stream, end, stream.sock)
        if stream.host_done and stream.guest_done:
            self._close_socket(stream)
            self._settle(stream)

    def _to_host(self, stream: Stream, end: TcpEndpoint, sock: socket.socket) -> None:
        """Give the host what the guest has sent."""
        while views := end.peek_views(SCRATCH):
            whole = len(views) <= MOST_VIEWS
            views = views[:MOST_VIEWS]
            try:
                sent = sock.sendmsg(views)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._host_failed(stream)
                return
            if sent:
                self.counters["tcp_bytes_out"] += sent
                end.discard(sent)
            if sent < sum(map(len, views)):
                self.counters["tcp_host_full"] += 1
                stream.blocked = True
                self._loop.set_writer(stream.fd, partial(self._writable, stream))
                return
            if whole and not end.unread:
                break

    def _end_towards_host(self, stream: Stream, sock: socket.socket) -> None:
        """The guest has ended its direction, and the host has all of it."""
        stream.guest_done = True
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is over on that side, too

    def _to_guest(self, stream: Stream, end: TcpEndpoint, sock: socket.socket) -> None:
        """Give the guest what the host has."""
        room = end.write_room()
        if room <= 0 or (stream.paused and room < SCRATCH // 4):
            self._pause(stream)
            return
        room = min(room, SCRATCH)
        try:
            count = sock.recv_into(self._scratch, room)
        except BlockingIOError:
            stream.ready = False
            self._resume(stream)
            return
        except OSError:
            self._host_failed(stream)
            return
        if not count:
            stream.host_done = True
            self._pause(stream)
            end.shutdown(SHUT_WR)
            return
        self.counters["tcp_bytes_in"] += count
        end.write([self._scratch[:count]])
        if count < room:
            stream.ready = False
            self._resume(stream)
        else:
            self._touch(stream)  # there may be more; the others get their turn first

    def _pause(self, stream: Stream) -> None:
        if not stream.paused:
            stream.paused = True
            self._loop.set_reader(stream.fd, None)

    def _resume(self, stream: Stream) -> None:
        if stream.paused:
            stream.paused = False
            self._loop.set_reader(stream.fd, partial(self._readable, stream))

    # -- the end -------------------------------------------------------------------------------------------------

    def _host_failed(self, stream: Stream) -> None:
        """The host's side was reset, or broke: so is the guest's."""
        self.counters["tcp_reset_outside"] += 1
        self._drop(stream)

    def _guest_failed(self, stream: Stream) -> None:
        """The guest's side was reset, or broke: so is the host's."""
        if stream in self._streams:
            self.counters["tcp_reset_by_guest"] += 1
            self._drop(stream)

    def _settle(self, stream: Stream) -> None:
        """Nothing is left to be moved: let go of the guest's side once it has everything."""
        end = stream.end
        if end is None or end.state in OVER:
            if end is not None:
                end.on_ready = None
                end.close()
            self.counters["tcp_closed"] += 1
            self._forget(stream)

    def _drop(self, stream: Stream) -> None:
        """End both sides with a reset."""
        self._close_socket(stream, with_reset=True)
        if stream.ends is not None and self._opening.get(stream.ends) is stream:
            del self._opening[stream.ends]
            request = self._gate.requests.get(stream.ends)
            if request is not None:
                self._gate.forget(request)
        if stream.end is not None:
            stream.end.on_ready = None
            stream.end.kill()
        self._forget(stream)

    def _close_socket(self, stream: Stream, *, with_reset: bool = False) -> None:
        sock, stream.sock = stream.sock, None
        if sock is None:
            return
        self._loop.forget(stream.fd)
        if with_reset:
            host.reset(sock)
        else:
            sock.close()

    def _forget(self, stream: Stream) -> None:
        self._streams.pop(stream, None)
        self._dirty.pop(stream, None)

    def close(self) -> None:
        """Reset all streams, and take no further ones."""
        self._stack.tcp.unclaimed = None
        for stream in list(self._streams):
            self._drop(stream)
        self._gate.close()
        self._gate.end.listener = None
        self._dirty.clear()


def _connect(sock: socket.socket, address: int, port: int) -> int:
    """Begin to connect: 0, EINPROGRESS, or why not."""
    try:
        return sock.connect_ex(host.sockaddr(address, port))
    except OSError as error:
        return error.errno or errno.EINVAL
