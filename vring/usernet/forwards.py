"""What comes from the host to the guest: sockets that listen on the host, each for a rule; added and removed any time.

A connection to one is taken when there is room for a stream, and joined to a new connection from the gateway to the
guest. The guest sees the gateway's address; what it answers, a refusal included, is what the caller sees.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial

from hw.loop import Loop
from vring.usernet import host
from vring.usernet.datagrams import Datagrams
from vring.usernet.options import Forward, UserOptions
from vring.usernet.streams import Streams

WAIT = 100_000  # microseconds until a socket is looked at again that had to leave its callers waiting
ACCEPTS = 64  # connections that one socket gives in a turn


class Forwards:
    """The forwards of one user wire.

    Args:
        loop: watches the sockets.
        options: say which guest a rule is for that does not say.
        streams, datagrams: where what comes goes.
        counters: counts `tcp_forwarded`.
        complain: tells people of something, once.
    """

    def __init__(
        self,
        loop: Loop,
        options: UserOptions,
        streams: Streams,
        datagrams: Datagrams,
        *,
        counters: Counter[str],
        complain: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._options = options
        self._streams = streams
        self._datagrams = datagrams
        self._counters = counters
        self._complain = complain
        self._rules: dict[Forward, socket.socket] = {}

    @property
    def rules(self) -> list[Forward]:
        """What is forwarded now, each with the port that it has."""
        return list(self._rules)

    def add(self, rule: Forward | str) -> Forward:
        """Forward from now on; the rule with the port that it got.

        Raises ValueError for a text that is no rule, or a guest that is not on this wire; WireError where the host does
        not let us listen.
        """
        rule = Forward.parse(rule) if isinstance(rule, str) else rule
        guest = self._options.target(rule)
        sock = host.listen(rule)
        rule = host.bound(rule, sock)
        self._rules[rule] = sock
        come = self._datagrams.forward if rule.kind == "udp" else self._accept
        self._loop.set_reader(sock.fileno(), partial(come, sock, guest, rule.guest_port))
        return rule

    def remove(self, rule: Forward | str) -> bool:
        """Stop a forward, named by its host side (`tcp::8080`); connections go on. Whether there was one.

        Raises ValueError for a text that names none.
        """
        named = Forward.parse_host_side(rule) if isinstance(rule, str) else rule
        for known in list(self._rules):
            if known.host_side == named.host_side:
                self._stop(known)
                return True
        return False

    def _stop(self, rule: Forward) -> None:
        sock = self._rules.pop(rule)
        self._loop.forget(sock.fileno())
        if rule.kind == "udp":
            self._datagrams.forget(sock)
        sock.close()
        if rule.kind == "unix":
            host.unlink(rule.path)

    def _accept(self, sock: socket.socket, guest: int, port: int) -> None:
        for _ in range(ACCEPTS):
            if self._streams.full:
                self._counters["tcp_forward_waits"] += 1
                self._wait(sock, guest, port)
                return
            try:
                made, _ = sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._complain(f"no more descriptors for connections ({error.strerror}); raise it with ulimit -n")
                    self._wait(sock, guest, port)
                    return
                continue  # that caller is gone
            made.setblocking(False)
            self._counters["tcp_forwarded"] += 1
            self._streams.forward(made, guest, port)

    def _wait(self, sock: socket.socket, guest: int, port: int) -> None:
        """Leave callers in the host's queue for a while."""
        self._loop.set_reader(sock.fileno(), None)

        def again() -> None:
            if sock in self._rules.values():
                self._loop.set_reader(sock.fileno(), partial(self._accept, sock, guest, port))

        self._loop.clock.after(WAIT, again)

    def close(self) -> None:
        """Stop all."""
        for rule in list(self._rules):
            self._stop(rule)
