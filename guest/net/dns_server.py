"""A DNS server on an address of a stack: it answers for names that it was given, and hands all others to a forwarder.

RFC 1035, RFC 2181, RFC 6891 (EDNS sizes), RFC 7766 (TCP). Sans-I/O. Messages are read and written by dnspython.

    query ─→ a name of ours ─→ answer │ else `forward` ─→ its answer │ without a forwarder ─→ NXDOMAIN

Promises:
- Whatever arrives, nothing raises: what is no query is dropped and counted (`rx_dropped_…`); a query that cannot be
  answered hears why (`FORMERR`, `NOTIMP`, `REFUSED`). A response is never answered.
- At most `PENDING` queries wait for the forwarder; with more, those that have waited longest are forgotten. At most
  `STREAMS` connections are open; a new one takes the place of the oldest.
- What does not fit a datagram is cut to "ask again over TCP", with the size that the client offers, 512 bytes at least.
- An answer of the forwarder is passed on as it is, once its identification was seen to be the query's.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from guest.net.address import AddressError, format_address, is_v4, to_address
from guest.net.dns_wire import PORT, is_name, reverse_name
from guest.net.stack import Stack
from guest.net.tcp.endpoint import TcpEndpoint
from guest.net.timer import Cancellable, Timers
from guest.net.udp import UdpEndpoint

if TYPE_CHECKING:
    import dns.message

PENDING = 256
STREAMS = 16
HEADER = struct.Struct("!HHHHHH")  # identification, flags, four counts (RFC 1035 §4.1.1)
HEADER_SIZE = HEADER.size
QR = 0x8000  # a response
MIN_PAYLOAD = 512  # of a datagram whose sender says nothing (RFC 1035 §2.3.4)
MAX_PAYLOAD = 1232  # fits any path's MTU
MAX_MESSAGE = 0xFFFF
TTL = 60

# An answer, or None where there will be none.
Answer: TypeAlias = Callable[["bytes | None"], None]
# Takes a query and the call for its answer.
Forward: TypeAlias = Callable[[bytes, Answer], None]


class DnsServer:
    """Answers on port 53 of `address`, over UDP and TCP, from `start` on.

    Args:
        address: one of the stack's.
        timers: give the turns in which connections are served.
        names: name → its address or addresses, of both families, as text or numbers. Pointers are made of them.
        forward: gets queries for other names, and calls back with the answer, at once or later; with None where there
            is none, and the client hears SERVFAIL. Without it other names do not exist.
        ttl: seconds that clients may keep an answer about `names`.

    Attributes:
        names: as above, in lower case without a last dot; may be changed with `add`.
        counters: `rx_queries`, `tx_answers`, `forwarded`, and drops by reason.

    Raises:
        AddressError: a name or address is none.
    """

    def __init__(
        self,
        stack: Stack,
        address: str | int,
        *,
        timers: Timers,
        names: Mapping[str, str | int | Iterable[str | int]] | None = None,
        forward: Forward | None = None,
        ttl: int = TTL,
    ) -> None:
        self.address = to_address(address)
        self.names: dict[str, list[int]] = {}
        self.counters: Counter[str] = Counter()
        self.forward = forward
        self._stack = stack
        self._timers = timers
        self._ttl = ttl
        self._pointers: dict[str, list[str]] = {}  # the names that have an address, by the address's own name
        self._pending: dict[int, Answer] = {}
        self._serial = 0
        self._udp: UdpEndpoint | None = None
        self._listener: TcpEndpoint | None = None
        self._streams: dict[TcpEndpoint, _Stream] = {}
        self._accepting: Cancellable | None = None
        for name, addresses in (names or {}).items():
            self.add(name, addresses)

    def add(self, name: str, addresses: str | int | Iterable[str | int]) -> None:
        """Answer for `name` from now on, in place of what was known. Raises AddressError."""
        if not is_name(name):
            raise AddressError(f"{name!r} is not a domain name")
        key = name.lower().removesuffix(".")
        several = [addresses] if isinstance(addresses, str | int) else addresses
        found = list(dict.fromkeys(to_address(address) for address in several))
        before, self.names[key] = self.names.get(key, []), found
        for pointer in map(reverse_name, set(before) - set(found)):
            self._pointers[pointer].remove(key)
            if not self._pointers[pointer]:
                del self._pointers[pointer]
        for address in found:
            if address not in before:
                self._pointers.setdefault(reverse_name(address), []).append(key)

    def start(self) -> int:
        """Listen; 0 or an errno (the port is taken, the address is not the stack's). Harmless when it does."""
        if self._udp is not None:
            return 0
        family = 4 if is_v4(self.address) else 6
        udp = self._stack.udp.open(family)
        listener = self._stack.tcp.open(family)
        failed = udp.bind(self.address, PORT) or listener.bind(self.address, PORT) or listener.listen(STREAMS)
        if failed:
            udp.close()
            listener.close()
            return failed
        udp.on_ready = self._readable
        listener.on_ready = self._accept_soon
        self._udp = udp
        self._listener = listener
        return 0

    def close(self) -> None:
        """Stop listening, close connections, forget queries. Harmless when it does not listen."""
        if self._udp is None or self._listener is None:
            return
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None
        for stream in list(self._streams.values()):
            stream.close()
        self._pending.clear()
        for end in (self._udp, self._listener):
            end.on_ready = None
            end.close()
        self._udp = self._listener = None

    # -- over UDP ------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        while self._udp is not None and (datagram := self._udp.receive()) is not None:
            self.query(
                datagram.payload.tobytes(),
                partial(self._reply, (datagram.src, datagram.src_port), datagram.dst, datagram.interface),
            )
        if self._udp is not None:
            self._udp.take_error()

    def _reply(self, to: tuple[int, int], source: int, interface: object, answer: bytes | None) -> None:
        if self._udp is None or answer is None:
            return
        zone = next((each for each in self._stack.interfaces if each is interface and to[0] >> 118 == 0x3FA), None)
        if to[1] == 0 or self._udp.send([answer], to, src=source, interface=zone):
            self.counters["tx_failed"] += 1

    # -- over TCP ------------------------------------------------------------------------------------------------

    def _accept_soon(self) -> None:
        """Accept in a turn of its own: `on_ready` comes in the middle of a connection's work."""
        if self._accepting is None:
            self._accepting = self._timers.at(self._stack.now(), self._accept)

    def _accept(self) -> None:
        self._accepting = None
        while self._listener is not None and (end := self._listener.accept()) is not None:
            if len(self._streams) >= STREAMS:
                self.counters["streams_pushed_out"] += 1
                next(iter(self._streams.values())).close()
            self._streams[end] = _Stream(self, end, self._timers, self._stack.now, self._streams)

    # -- queries -------------------------------------------------------------------------------------------------

    def query(self, raw: bytes, answer: Answer, *, stream: bool = False) -> bool:
        """A query arrived; `answer` is called with what to send, once at most. Whether it was one."""
        import dns.exception  # noqa: PLC0415  (loads at the first query)
        import dns.flags  # noqa: PLC0415
        import dns.message  # noqa: PLC0415
        import dns.opcode  # noqa: PLC0415
        import dns.rcode  # noqa: PLC0415
        import dns.rdataclass  # noqa: PLC0415

        if len(raw) < HEADER_SIZE:
            self.counters["rx_dropped_short"] += 1
            return False
        if raw[2] & 0x80:
            self.counters["rx_dropped_response"] += 1
            return False
        try:
            asked = dns.message.from_wire(raw, ignore_trailing=True)
        except Exception:  # a parser that is not ours, fed by strangers
            self.counters["rx_dropped_malformed"] += 1
            return False
        self.counters["rx_queries"] += 1
        limit = MAX_MESSAGE if stream else max(MIN_PAYLOAD, min(asked.payload, MAX_PAYLOAD))
        send = partial(self._answer, answer, asked, limit)
        if asked.opcode() != dns.opcode.QUERY:
            send(self._error(asked, dns.rcode.NOTIMP))
        elif len(asked.question) != 1:
            send(self._error(asked, dns.rcode.FORMERR))
        elif asked.question[0].rdclass != dns.rdataclass.IN:
            send(self._error(asked, dns.rcode.REFUSED))
        else:
            own = self._own(asked)
            if own is not None or self.forward is None:
                send(own or self._error(asked, dns.rcode.NXDOMAIN))
            else:
                self._hand_on(raw, asked, send)
        return True

    def _own(self, asked: dns.message.Message) -> bytes | None:
        """The answer about one of our names; None for others."""
        import dns.flags  # noqa: PLC0415
        import dns.message  # noqa: PLC0415
        import dns.rdataclass  # noqa: PLC0415
        import dns.rdatatype  # noqa: PLC0415
        import dns.rrset  # noqa: PLC0415

        question = asked.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = question.rdtype
        known = self.names.get(name)
        if known is None and name not in self._pointers:
            return None
        response = dns.message.make_response(asked, recursion_available=True, our_payload=MAX_PAYLOAD)
        response.flags |= dns.flags.AA
        found: list[str] = []
        if known is not None and kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
            found = [format_address(one) for one in known if is_v4(one) == (kind == dns.rdatatype.A)]
        elif known is None and kind == dns.rdatatype.PTR:
            found = [self._pointers[name][0] + "."]
        if found:
            response.answer.append(dns.rrset.from_text_list(question.name, self._ttl, "IN", kind, found))
        return bytes(response.to_wire(max_size=MAX_MESSAGE))

    def _hand_on(self, raw: bytes, asked: dns.message.Message, send: Answer) -> None:
        import dns.rcode  # noqa: PLC0415

        while len(self._pending) >= PENDING:
            self.counters["forgotten"] += 1
            del self._pending[next(iter(self._pending))]
        self._serial += 1
        serial = self._serial
        self._pending[serial] = send
        self.counters["forwarded"] += 1

        def answered(answer: bytes | None) -> None:
            waiting = self._pending.pop(serial, None)
            if waiting is None:
                self.counters["rx_ignored_late"] += 1
                return
            if answer is not None and (len(answer) < HEADER_SIZE or answer[:2] != raw[:2] or not answer[2] & 0x80):
                self.counters["rx_dropped_answer"] += 1
                answer = None
            waiting(self._error(asked, dns.rcode.SERVFAIL) if answer is None else answer)

        if self.forward is not None:
            self.forward(raw, answered)

    def _error(self, asked: dns.message.Message, rcode: int) -> bytes:
        """A response that says why there is none.

        Many questions are not repeated in it (RFC 9619): pointers make a few bytes stand for hundreds, and what a
        stranger may choose so freely need not even fit a message.
        """
        import dns.message  # noqa: PLC0415
        import dns.rcode  # noqa: PLC0415

        self.counters[f"tx_{dns.rcode.to_text(dns.rcode.Rcode(rcode)).lower()}"] += 1
        if len(asked.question) > 1:
            return HEADER.pack(asked.id, QR | asked.opcode() << 11 | rcode, 0, 0, 0, 0)
        response = dns.message.make_response(asked, recursion_available=True, our_payload=MAX_PAYLOAD)
        response.set_rcode(dns.rcode.Rcode(rcode))
        return bytes(response.to_wire(max_size=MAX_MESSAGE))

    def _answer(self, answer: Answer, asked: dns.message.Message, limit: int, raw: bytes | None) -> None:
        """Send a response, cut to its question where it is too long."""
        import dns.flags  # noqa: PLC0415
        import dns.message  # noqa: PLC0415

        if raw is not None and len(raw) > limit:
            self.counters["tx_truncated"] += 1
            response = dns.message.make_response(asked, recursion_available=True, our_payload=MAX_PAYLOAD)
            response.flags |= dns.flags.TC
            raw = bytes(response.to_wire())
        self.counters["tx_answers"] += 1
        answer(raw)


class _Stream:
    """A connection with a client: each query has its length before it, and waits for the answer to the one before."""

    def __init__(
        self, server: DnsServer, end: TcpEndpoint, timers: Timers, now: Callable[[], int],
        streams: dict[TcpEndpoint, _Stream],
    ) -> None:  # fmt: skip
        self._server = server
        self._end = end
        self._timers = timers
        self._now = now
        self._streams = streams
        self._got = bytearray()
        self._unsent = bytearray()
        self._turn: Cancellable | None = None
        self._open = True
        self._waiting = False  # for the answer to the last query
        end.on_ready = self._soon
        self._soon()

    def _soon(self) -> None:
        if self._turn is None and self._open:
            self._turn = self._timers.at(self._now(), self._look)

    def _look(self) -> None:
        self._turn = None
        if not self._send():
            return
        while self._open and not (self._waiting or self._unsent):
            size = 2 if len(self._got) < 2 else 2 + int.from_bytes(self._got[:2], "big")
            if size == len(self._got):
                query = bytes(self._got[2:])
                self._got.clear()
                self._waiting = True
                if not self._server.query(query, self._answer, stream=True):
                    self.close()
                continue
            more = self._end.read(size - len(self._got))
            if more is None:
                return
            if isinstance(more, int) or not more:  # an error, or the end
                self.close()
                return
            self._got += more

    def _answer(self, raw: bytes | None) -> None:
        self._waiting = False
        if raw is not None and self._open:
            self._unsent += len(raw).to_bytes(2, "big") + raw
            self._soon()

    def _send(self) -> bool:
        """Send what waits; whether the connection goes on."""
        while self._unsent:
            taken = self._end.write([bytes(self._unsent)])
            if taken < 0:
                self.close()
                return False
            if taken == 0:
                return False
            del self._unsent[:taken]
        return self._open

    def close(self) -> None:
        """Close the connection."""
        self._open = False
        self._streams.pop(self._end, None)
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._end.on_ready = None
        self._end.close()
