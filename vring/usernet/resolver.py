"""The host's name servers, for the guest's queries: over UDP, over TCP for an answer that was cut, one after the other.

    query ─→ first server ─ no answer in `PATIENCE` ─→ the next … ─→ None: the guest hears SERVFAIL

A query is passed on as it is, and so is its answer, once its identification is the query's. At most `PENDING` queries
are under way. The servers are those that were given, or else those of /etc/resolv.conf at that moment.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from guest.net.address import AddressError, parse_address
from hw.clock import Timer
from hw.loop import Loop
from vring.usernet import host

RESOLV_CONF = Path("/etc/resolv.conf")
PORT = 53
PATIENCE = 2_000_000  # microseconds until the next server is asked
SERVERS = 3  # that are asked, at most (resolv.conf(5), MAXNS)
PENDING = 64
LARGEST = 65535
TRUNCATED = 0x02  # in the third byte of a message (RFC 1035 §4.1.1)

Answer: TypeAlias = Callable[["bytes | None"], None]


def host_servers(path: Path = RESOLV_CONF) -> list[tuple[int, int]]:
    """The name servers of the host, as (address, port)."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append((parse_address(words[1]), PORT))
            except AddressError:
                continue  # such as one with a zone
    return found


class Resolver:
    """Asks the host's name servers.

    Args:
        loop: watches the sockets, and the time.
        servers: as (address, port); empty for those of the host.
        counters: counts `dns_…`.
        complain: tells people of something, once.
    """

    def __init__(
        self,
        loop: Loop,
        servers: Sequence[tuple[int, int]],
        *,
        counters: Counter[str],
        complain: Callable[[str], None],
    ) -> None:
        self.loop = loop
        self.counters = counters
        self._servers = list(servers)
        self._complain = complain
        self._asking: set[_Question] = set()

    def __len__(self) -> int:
        return len(self._asking)

    def ask(self, query: bytes, answer: Answer) -> None:
        """Find an answer: a `Forward` of guest/net/dns_server.py."""
        servers = (self._servers or host_servers())[:SERVERS]
        if not servers:
            self._complain("the host has no name server in /etc/resolv.conf; name one with resolver=ADDRESS")
        if not servers or len(self._asking) >= PENDING:
            self.counters["dns_dropped_full" if servers else "dns_dropped_no_server"] += 1
            answer(None)
            return
        self.counters["dns_queries"] += 1
        question = _Question(self, query, answer, servers)
        self._asking.add(question)
        question.next_server()

    def done(self, question: _Question, answer: bytes | None) -> None:
        """A question has its answer, or will have none."""
        self._asking.discard(question)
        self.counters["dns_answers" if answer is not None else "dns_failures"] += 1

    def close(self) -> None:
        """Forget all questions; nobody is called any more."""
        for question in list(self._asking):
            question.stop()
        self._asking.clear()


class _Question:
    """One query on its way."""

    def __init__(self, resolver: Resolver, query: bytes, answer: Answer, servers: list[tuple[int, int]]) -> None:
        self._resolver = resolver
        self._loop = resolver.loop
        self._query = query
        self._answer = answer
        self._servers = servers
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None
        self._stream = b""  # what is still to be written over TCP
        self._got = bytearray()  # what came over TCP
        self._cut: bytes | None = None  # the answer that did not fit a datagram

    def stop(self) -> None:
        """Close what is open."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            self._loop.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _finish(self, answer: bytes | None) -> None:
        self.stop()
        self._resolver.done(self, answer)
        self._answer(answer)

    def next_server(self) -> None:
        """Ask the next one."""
        self.stop()
        while self._servers:
            server = self._servers[0]
            try:
                sock = self._sock = host.open_socket(server[0], socket.SOCK_DGRAM)
                sock.connect(host.sockaddr(*server))
                sock.send(self._query)
            except OSError:
                self._servers.pop(0)
                self.stop()
                continue
            self._loop.set_reader(sock.fileno(), partial(self._datagram, sock))
            self._timer = self._loop.clock.after(PATIENCE, self._give_up)
            return
        self._finish(self._cut)

    def _give_up(self) -> None:
        self._servers.pop(0)
        self.next_server()

    def _is_answer(self, data: bytes) -> bool:
        return len(data) >= 12 and data[:2] == self._query[:2] and bool(data[2] & 0x80)

    def _datagram(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(LARGEST)
        except BlockingIOError:
            return
        except OSError:
            self._give_up()
            return
        if not self._is_answer(data):
            self._resolver.counters["dns_dropped_foreign"] += 1
        elif data[2] & TRUNCATED:
            self._cut = data
            self._ask_over_tcp()
        else:
            self._finish(data)

    # -- over TCP ------------------------------------------------------------------------------------------------

    def _ask_over_tcp(self) -> None:
        self.stop()
        server = self._servers[0]
        self._stream = len(self._query).to_bytes(2, "big") + self._query
        self._got.clear()
        try:
            sock = self._sock = host.open_socket(server[0], socket.SOCK_STREAM)
            failed = sock.connect_ex(host.sockaddr(*server))
        except OSError as error:
            failed = error.errno or errno.EINVAL
        if failed not in (0, errno.EINPROGRESS) or self._sock is None:
            self._give_up()
            return
        self._timer = self._loop.clock.after(PATIENCE, self._give_up)
        self._loop.set_writer(sock.fileno(), partial(self._write, sock))
        self._loop.set_reader(sock.fileno(), partial(self._read, sock))

    def _write(self, sock: socket.socket) -> None:
        try:
            self._stream = self._stream[sock.send(self._stream) :]
        except BlockingIOError:
            return
        except OSError:
            self._give_up()
            return
        if not self._stream:
            self._loop.set_writer(sock.fileno(), None)

    def _read(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(LARGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._got += data
        size = int.from_bytes(self._got[:2], "big")
        if len(self._got) >= 2 + size and len(self._got) > 2:
            message = bytes(self._got[2 : 2 + size])
            self._finish(message if self._is_answer(message) else self._cut)
        elif not data:
            self._give_up()
