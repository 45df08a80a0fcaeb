"""Worlds for the tests of TCP, on a virtual clock. In this one the test itself is the peer of a stack.

    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S", mss=1460)
    peer.expects("S.", seq=0, ack=1, mss=1460)
    peer.sends(".")
    end = server.accepts()
    peer.sends("P.", data=b"hello")
    end.reads(b"hello")
    peer.expects(".", ack=6, after=40 * MS)

Numbers are relative: the first of a side is 0, its SYN. What a call does not say of a segment that the peer sends is
what a well-behaved peer would put there; what it does not say of one that is expected is not looked at, but a flag is
there or it is not (only PSH, where it is not asked for, may be). A time (`after`, `during`) counts from what happened
last: a segment that was sent or expected, or a call of the program. Segments are expected in the order in which they
come, each connection for itself; a mismatch shows both, and the dialogue up to there.
"""

from __future__ import annotations

import errno
import random
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from guest.net.address import parse_address
from guest.net.config import NetConfig
from guest.net.interface import Interface
from guest.net.pbuf import PacketBuffer
from guest.net.stack import Stack
from guest.net.tcp.config import TcpConfig
from tests.net_world import Clock
from tests.tcp_wire import WRAP, Segment, build, checksum, ip_packet, parse, protocol_of

MS = 1_000
SECOND = 1_000_000
ADDRESSES = {4: ("10.0.0.1", "10.0.0.2"), 6: ("2001:db8::1", "2001:db8::2")}
AUTO: Any = object()  # of an argument: as a well-behaved peer does it, or whatever comes
ISS = WRAP - 1000  # of the peer: its numbers wrap in every test with a little data
FOREVER = 100_000 * SECOND


class Unexpected(AssertionError):
    """The stack did something else than the dialogue says."""


def number(address: str) -> int:
    """An address as the stack has it."""
    return parse_address(address)


def make_stack(clock: Clock, seed: int, tcp: TcpConfig | None, **settings: Any) -> Stack:
    """A stack with these settings of TCP, and of the rest. It checks its invariants after every segment."""
    config = NetConfig(tcp=replace(tcp or TcpConfig(quick_acks=0), check=True), **settings)
    return Stack(now=clock, rng=random.Random(seed), config=config)


class World:
    """One stack with a link to its peer, the test.

    Args:
        family: 4 or 6. tcp: settings. mtu: of the link. seed: of the stack. begin: how much
            later than others this world begins, microseconds. quick_acks: of TcpConfig; none here, so that what is
            acknowledged late is so from the start. settings: of NetConfig.

    Attributes:
        stack, link: see above. log: lines of what happened, for messages.
        mark: when something happened last, microseconds. strays: segments that belong to no `Peer` of the test.
        packets: other packets that came out, whole.
    """

    def __init__(
        self, family: int = 4, *, tcp: TcpConfig | None = None, mtu: int = 1500, seed: int = 1, begin: int = 0,
        quick_acks: int = 0, **settings: Any,
    ) -> None:  # fmt: skip
        self.family = family
        self.clock = Clock()
        self.clock.now += begin
        self.started = self.mark = self.clock.now
        self.log: list[str] = []
        self.peers: dict[tuple[str, int, int], Peer] = {}
        self.strays: list[Segment] = []
        self.packets: list[bytes] = []
        self.us, self.them = ADDRESSES[family]
        self.stack = make_stack(self.clock, seed, replace(tcp or TcpConfig(), quick_acks=quick_acks), **settings)
        self.link: Interface = self.stack.add_interface("tun0", None, mtu, self._collect)
        self.stack.default = self.link
        self.link.add_address(self.us, 24 if family == 4 else 64)
        self.link.set_up()
        self.settle()
        self.strays.clear()
        self.packets.clear()

    # -- time ----------------------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """Microseconds since the world began."""
        return self.clock.now - self.started

    def settle(self) -> None:
        """Let the stack do what is due now."""
        for _ in range(1000):
            due = self.stack.poll_at()
            if due is None or due > self.clock.now:
                return
            self.stack.poll()
        raise Unexpected("poll_at is in the past whatever poll does")

    def happened(self, line: str) -> None:
        """Something did: time counts from here."""
        self.log.append(f"{self.now / 1e6:.6f} {line}")
        self.settle()
        self.mark = self.clock.now

    def run_until(self, end: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Let time pass up to `end`, doing what is due on the way, as long as `stop` does not say so."""
        while not stop():
            due = self.stack.poll_at()
            if due is None or due > end:
                self.clock.now = max(end, self.clock.now)
                return
            self.clock.now = max(due, self.clock.now)
            self.settle()

    def passes(self, micros: int) -> None:
        """Let time pass; what comes out meanwhile waits to be expected. This is no event that times count from."""
        self.run_until(self.clock.now + micros)

    # -- packets -------------------------------------------------------------------------------------------------

    def _collect(self, packets: Sequence[PacketBuffer]) -> None:
        for packet in packets:
            raw = packet.tobytes()
            if protocol_of(raw) != 6:
                self.packets.append(raw)
                continue
            segment = parse(raw, self.now)
            peer = self.peers.get((segment.dst, segment.dport, segment.sport))
            if peer is None:
                self.strays.append(segment)
            else:
                peer.hears(segment)

    def delivers(self, packet: bytes) -> None:
        """An IP packet arrives."""
        self.link.input([PacketBuffer.from_bytes(packet)])

    def icmp(self, kind: int, code: int, quoted: bytes, value: int = 0, src: str | None = None) -> None:
        """An ICMP error of the world's family about a packet that the stack sent, from the peer or a router `src`."""
        src_raw, dst_raw = ip_address(src or self.them).packed, ip_address(self.us).packed
        body = struct.pack("!BBHI", kind, code, 0, value) + quoted
        over = body
        if self.family == 6:
            over = src_raw + dst_raw + struct.pack("!II", len(body), 58) + body
        body = body[:2] + struct.pack("!H", checksum(over)) + body[4:]
        self.delivers(ip_packet(src_raw, dst_raw, 1 if self.family == 4 else 58, body))
        self.happened(f"< ICMP {kind}/{code} {value}")

    def too_big(self, segment: Segment, mtu: int) -> None:
        """A router says that a segment was too big."""
        quoted = segment.packet[: 28 if self.family == 4 else 1200]
        self.icmp(*((3, 4) if self.family == 4 else (2, 0)), quoted, mtu)

    # -- who talks -----------------------------------------------------------------------------------------------

    def opens(self) -> Program:
        """A program makes a socket."""
        return Program(self, self.stack.tcp.open(self.family))

    def listens(self, port: int = 80, backlog: int = 5, *, reuse: bool = False) -> Program:
        """A program listens, with SO_REUSEADDR if it wants to `reuse` a port."""
        program = self.opens()
        program.end.options.reuse_addr = reuse
        assert program.end.bind(number("0.0.0.0" if self.family == 4 else "::"), port) == 0
        assert program.end.listen(backlog) == 0
        return program

    def peer(self, to: int = 80, port: int = 40_000, *, iss: int = ISS, src: str | None = None) -> Peer:
        """A peer at `port` (of the address `src`) that talks to our port `to`."""
        return Peer(self, src or self.them, port, to, iss)

    def connects(self, port: int = 7, *, local: int = 5000, iss: int = ISS) -> tuple[Program, Peer]:
        """A program connects from `local` to the peer's `port`; its SYN waits to be expected."""
        program = self.opens()
        assert program.end.bind(number("0.0.0.0" if self.family == 4 else "::"), local) == 0
        peer = self.peer(local, port, iss=iss)
        program.connects(port)
        return program, peer

    def established_on(self, port: int) -> tuple[Peer, Program]:
        """A connection to our `port` from 40000, without options."""
        server = self.listens(port)
        peer = self.peer(port)
        peer.sends("S", mss=1460)
        peer.expects("S.", seq=0, ack=1)
        peer.sends(".")
        return peer, server.accepts()

    def established(
        self, *, client: bool = False, mss: int | None = 1460, ws: int | None = None, sack: bool = False,
        ts: bool = False, win: int = 65535, iss: int = ISS, ecn: bool = False, rtt: int = 0,
    ) -> tuple[Peer, Program]:  # fmt: skip
        """A connection after the handshake: the peer offered these options, and took `rtt` microseconds to answer.

        With `client` it was us who connected.
        """
        options = {"mss": mss, "ws": ws, "sack_ok": sack}
        if client:
            program, peer = self.connects(iss=iss)
            peer.stamps = ts
            peer.expects("SEW" if ecn else "S", seq=0)
            self.passes(rtt)
            peer.sends("S.E" if ecn else "S.", win=min(win, 65535), **options)
            peer.expects(".", seq=1, ack=1)
        else:
            server = self.listens(reuse=True)
            peer = self.peer(iss=iss)
            peer.stamps = ts
            peer.sends("SEW" if ecn else "S", win=min(win, 65535), **options)
            peer.expects("S.E" if ecn else "S.", seq=0, ack=1)
        peer.win = win if ws is None else win >> ws
        if not client:
            self.passes(rtt)
            peer.sends(".")
            program = server.accepts()
            server.closes()
        return peer, program


class Program:
    """Who uses a `TcpEndpoint` of the stack.

    Attributes:
        end: the endpoint.
    """

    def __init__(self, world: World, end: Any) -> None:
        self.world = world
        self.end = end

    @property
    def state(self) -> str:
        """The RFC's name, with underscores."""
        return str(self.end.state.name)

    def _did(self, what: str) -> None:
        self.world.happened(f"  program {what}")

    def sets(self, **settings: Any) -> None:
        """Set TCP_* options."""
        for name, value in settings.items():
            assert hasattr(self.end.settings, name)
            setattr(self.end.settings, name, value)
        self.end.settings_changed()
        self._did(f"set {settings}")

    @property
    def rto(self) -> int:
        """The retransmission timeout now, microseconds."""
        return int(self.end.info().rto)

    def connects(self, port: int, expect: str = "EINPROGRESS") -> None:
        """Call `connect` to the peer's port."""
        got = self.end.connect(number(self.world.them), port)
        self._did(f"connect({port})")
        assert errno_name(got) == expect, f"connect gave {errno_name(got)}, not {expect}"

    def accepts(self) -> Program:
        """There is a connection to accept."""
        assert self.end.readable, "poll does not say that there is a connection"
        end = self.end.accept()
        if end is None:
            raise Unexpected("nothing to accept")
        self._did("accept()")
        return Program(self.world, end)

    def accepts_none(self) -> None:
        """There is nothing to accept."""
        assert not self.end.readable, "poll says that there is something to accept"
        assert self.end.accept() is None, "there was something to accept"

    def writes(self, data: bytes, expect: int | None = None, **how: bool) -> None:
        """Write; all of it is taken, or what `expect` says."""
        got = self.end.write([memoryview(data)], **how)
        self._did(f"write({len(data)} bytes) = {got if got >= 0 else errno_name(-got)}")
        assert got == (len(data) if expect is None else expect), f"write took {got}"

    def writes_fail(self, expect: str) -> None:
        """Writing gives an error."""
        got = self.end.write([b"x"])
        assert got < 0, f"write took {got} bytes"
        assert errno_name(-got) == expect, f"write gave {errno_name(-got)}, not {expect}"

    def read(self, count: int = 1 << 20) -> int | bytes | None:
        """At most `count` bytes; None where there is nothing, a negative errno."""
        area = bytearray(count)
        got = self.end.read_into(memoryview(area))
        self._did(f"read() = {got}")
        return bytes(area[:got]) if got is not None and got >= 0 else got

    def reads(self, data: bytes) -> None:
        """Exactly these bytes are there."""
        assert self.end.readable, "poll does not say that there is something"
        got = self.read()
        assert got == data, f"read {got!r:.200}, not {data!r:.200}"

    def reads_some(self, data: bytes) -> None:
        """These bytes are the next; there may be more."""
        got = self.read(len(data))
        assert got == data, f"read {got!r:.200}, not {data!r:.200}"

    def reads_nothing(self) -> None:
        """There is nothing to read, and no end either."""
        got = self.read()
        assert got is None, f"read {got!r:.200} where nothing should be"

    def reads_end(self) -> None:
        """The stream has ended."""
        assert self.end.readable, "poll does not say that there is an end"
        got = self.read()
        assert got == b"", f"read {got!r:.200} where the end should be"

    def reads_fail(self, expect: str) -> None:
        """Reading gives an error."""
        got = self.read()
        assert isinstance(got, int), f"read {got!r:.200}"
        assert errno_name(-got) == expect, f"read gave {errno_name(-got)}, not {expect}"

    def closes(self) -> None:
        """Call `close`."""
        self.end.close()
        self._did("close()")

    def shuts(self, how: int = 1) -> None:
        """Call `shutdown`, for writing if not said otherwise."""
        assert self.end.shutdown(how) == 0
        self._did(f"shutdown({how})")

    def is_in(self, state: str) -> None:
        """The connection is in this state."""
        assert self.state == state, f"the state is {self.state}, not {state}"


def errno_name(value: int) -> str:
    """A number of errno by its name, "0" for none."""
    return errno.errorcode.get(value, str(value))


class Peer:
    """One connection's other side, played by the test.

    Attributes:
        iss, irs: first number of the peer, and of the stack once its SYN came.
        nxt: the next number that the peer would send. heard: behind the last that came; what `ack` says by itself.
        win: field of the window, where a call does not say another.
        base: where a test counts from; nothing here looks at it.
        stamps: whether the peer sends timestamps: `clock` (milliseconds of the world and TS_START) and the last of ours
            that came.
    """

    TS_START = 5000

    def __init__(self, world: World, address: str, port: int, to: int, iss: int) -> None:
        self.world = world
        self.address = address
        self.port = port
        self.to = to
        self.iss = iss
        self.irs: int | None = None
        self.nxt = 0
        self.heard = 0
        self.win = 65535
        self.stamps = False
        self.ts_base: int | None = None
        self.ts_seen = 0
        self.inbox: deque[Segment] = deque()
        self.base = 0
        world.peers[address, port, to] = self

    @property
    def clock(self) -> int:
        """The peer's timestamp now."""
        return self.world.now // 1000 + self.TS_START

    # -- the peer sends ------------------------------------------------------------------------------------------

    def segment(
        self, flags: str, *, seq: int | None = None, ack: int | None = None, win: int | None = None, data: bytes = b"",
        ts: tuple[int, int] | None = AUTO, sack: Sequence[tuple[int, int]] = (), **fields: Any,
    ) -> Segment:  # fmt: skip
        """A segment of the peer, as on the wire. `ts` and `sack` are relative too (see `Peer.relative`)."""
        irs = self.irs or 0
        if ts is AUTO:
            echo = self.ts_seen if "." in flags else -(self.ts_base or 0)
            ts = (self.clock, echo) if self.stamps else None
        return Segment(
            flags,
            (self.iss + (self.nxt if seq is None else seq)) % WRAP,
            (irs + (self.heard if ack is None else ack)) % WRAP if "." in flags or ack is not None else 0,
            self.win if win is None else win,
            data,
            ts=None if ts is None else (ts[0], (ts[1] + (self.ts_base or 0)) % WRAP),
            sack=tuple(((left + irs) % WRAP, (right + irs) % WRAP) for left, right in sack),
            src=self.address,
            dst=self.world.us,
            sport=self.port,
            dport=self.to,
            **fields,
        )

    def sends(self, flags: str, *, spoil: bool = False, offset: int | None = None, **fields: Any) -> None:
        """Send a segment; see `segment` and, for `spoil` and `offset`, `build`."""
        segment = self.segment(flags, **fields)
        shown = replace(segment, seq=(segment.seq - self.iss + WRAP // 2) % WRAP - WRAP // 2, time=self.world.now)
        shown = replace(
            shown,
            ack=(segment.ack - (self.irs or 0)) % WRAP if "." in flags else 0,
            sack=tuple(fields.get("sack", ())),
        )
        if fields.get("seq") is None or shown.end > self.nxt:
            self.nxt = max(self.nxt, shown.end)
        self.world.delivers(build(segment, spoil=spoil, offset=offset))
        self.world.happened("< " + str(shown).partition(" ")[2])

    def sends_data(self, data: bytes, size: int = 1460, **fields: Any) -> None:
        """Send bytes, in segments of `size`."""
        for at in range(0, len(data), size):
            self.sends("P.", data=data[at : at + size], **fields)

    # -- the stack sends -----------------------------------------------------------------------------------------

    def hears(self, segment: Segment) -> None:
        """The stack sent this; it waits to be expected."""
        if self.irs is None and "S" in segment.flags:
            self.irs = segment.seq
        if segment.ts is not None:
            if self.ts_base is None:
                self.ts_base = segment.ts[0]
            self.ts_seen = (segment.ts[0] - self.ts_base) % WRAP
        self.inbox.append(self.relative(segment))

    def relative(self, segment: Segment) -> Segment:
        """The stack's segment with numbers relative to the first ones; its timestamps to its first one."""
        irs = self.irs if self.irs is not None else 0
        near = (self.heard + irs) % WRAP  # so that earlier ones come out smaller, even below zero
        seq = self.heard + (segment.seq - near + WRAP // 2) % WRAP - WRAP // 2
        back = lambda value: (value - self.iss + WRAP // 2) % WRAP - WRAP // 2  # noqa: E731
        ts = segment.ts
        return replace(
            segment,
            seq=seq,
            ack=back(segment.ack) if "." in segment.flags else segment.ack,
            sack=tuple((back(left), back(right)) for left, right in segment.sack),
            ts=None if ts is None or self.ts_base is None else ((ts[0] - self.ts_base) % WRAP, ts[1]),
        )

    def expects(
        self, flags: str, *, after: int = 0, within: tuple[int, int] | None = None, length: int | None = None,
        **fields: Any,
    ) -> Segment:  # fmt: skip
        """The next segment has these flags and fields, and leaves exactly `after` the last event, or `within` a span.

        Returns it, with relative numbers.
        """
        __tracebackhide__ = True
        world = self.world
        first, last = within or (after, after)
        begun = world.mark
        if not self.inbox:
            world.run_until(begun + last, lambda: bool(self.inbox))
        wanted = ", ".join([f"[{flags}]", *(f"{name} {show(value)}" for name, value in fields.items())])
        wanted += "" if length is None else f", length {length}"
        if not self.inbox:
            raise self._wrong(wanted, f"nothing until {(begun + last - world.started) / 1e6:.6f}", begun, first, last)
        got = self.inbox.popleft()
        wrong = []
        came = set(got.flags) - ({"P"} if "P" not in flags else set())
        if came != set(flags):
            wrong.append("flags")
        if length is not None and len(got.data) != length:
            wrong.append("length")
        wrong += [name for name, value in fields.items() if getattr(got, name) != value]
        if not begun + first <= got.time + world.started <= begun + last:
            wrong.append("time")
        if wrong:
            raise self._wrong(wanted, f"{got}  ({', '.join(wrong)})", begun, first, last)
        self.heard = max(self.heard, got.end)
        world.log.append(str(got).replace(" ", " > ", 1))
        world.mark = max(world.mark, got.time + world.started)
        return got

    def expects_data(self, data: bytes, *, size: int = 1460, ack: bool = True, **fields: Any) -> list[Segment]:
        """The next segments carry exactly these bytes, each `size` long but the last, now; then the peer acks."""
        got = []
        for at in range(0, len(data), size):
            got.append(self.expects(".", data=data[at : at + size], **fields))
        if ack:
            self.sends(".")
        return got

    def expects_nothing(self, during: int = 0) -> None:
        """No segment comes, now or for this long from the last event on, which then is an event itself."""
        __tracebackhide__ = True
        self.world.run_until(self.world.mark + during, lambda: bool(self.inbox))
        if self.inbox:
            begun = self.world.mark
            raise self._wrong(f"nothing for {during / 1e6:.6f}", str(self.inbox[0]), begun, 0, during)
        self.world.mark = self.world.clock.now

    def drains(self) -> list[Segment]:
        """Whatever waits to be expected is taken, unlooked at."""
        got = list(self.inbox)
        self.inbox.clear()
        self.heard = max([self.heard, *(segment.end for segment in got)])
        return got

    def _wrong(self, wanted: str, got: str, begun: int, first: int, last: int) -> Unexpected:
        start = begun - self.world.started
        times = f"{(start + first) / 1e6:.6f}" + (f" to {(start + last) / 1e6:.6f}" if last != first else "")
        lines = ["", "the dialogue:", *self.world.log[-16:], f"wanted: {times} {wanted}", f"   got: {got}"]
        lines += [f"behind it: {segment}" for segment in list(self.inbox)[:4]]
        return Unexpected("\n".join(lines))


def show(value: object) -> str:
    """A wanted value, briefly."""
    return f"{len(value)} bytes {value[:20]!r}" if isinstance(value, bytes) else str(value)
