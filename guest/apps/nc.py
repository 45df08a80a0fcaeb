"""nc: netcat, one connection of TCP or UDP from the command line.

What is sent is what `-m` says, what a person types whose terminal this program has, and what other processes mail to
it: a text is sent as a line, bytes as they are, and an empty one is the end of what there is to send. What comes is
printed, line by line.

Two processes do this: this one sends, its child receives; a third one reads the terminal, from the connection on. The
child's end is this one's end too: when the peer sends no more, the connection is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.streams import CHUNK, dial, listening, send_all, shown
from guest.apps.usage import UsageError, seconds, several, whole, why
from guest.sys import constants as c

if TYPE_CHECKING:
    from guest.sys.scheduler import Process

USAGE = """usage: nc [-uvN] [-4 | -6] [-w SECONDS] [-m TEXT]... HOST PORT
       nc -l [-uvN] [-w SECONDS] [-m TEXT]... PORT
  -l          wait for a connection (with -u: for a datagram), and talk to whom it is from
  -u          UDP instead of TCP
  -m TEXT     send this line; may be given again
  -N          send nothing else: end the sending direction after that
  -w SECONDS  how long to wait for the connection, and for something to happen on it (default: for ever)
  -v          say what happens
  -4, -6      which address of HOST"""


class Session:
    """One conversation.

    Attributes:
        fd: connected. datagrams: whether it is of UDP.
        patience: microseconds in which something must happen, None for ever.
        sent, received: bytes.
        fault: what ended it, if not its peer.
    """

    def __init__(self, env: Env, fd: int, datagrams: bool, patience: int | None) -> None:
        self.fd = fd
        self.datagrams = datagrams
        self.patience = patience
        self.sent = 0
        self.received = 0
        self.fault: OSError | None = None
        self._env = env
        self._last = env.now()  # when something was sent or received
        self._line = b""

    def run(self, texts: list[str], ended: bool) -> None:
        """Send `texts`, and then what is mailed unless that has `ended`; until the peer, silence or a fault ends it."""
        env = self._env
        calls = env.calls
        calls.set_timeout(self.fd, self.patience)
        reader = env.guest.spawn(self._receive)
        over = object()

        def tell(_reader: Process) -> None:
            env.guest.scheduler.send(env.process, over)

        reader.on_exit.append(tell)
        typist = None if ended else self._typist()
        try:
            for text in texts:
                self._send(text)
            if ended:
                self._send("")
            while (message := env.receive()) is not over:
                if isinstance(message, (str, bytes)) and not ended:
                    ended = not message
                    self._send(message)
        except OSError as error:
            self.fault = self.fault or error
        finally:
            env.guest.scheduler.kill(reader)
            if typist is not None:
                env.guest.scheduler.kill(typist)

    def _typist(self) -> Process | None:
        """The child that mails what is typed; None where nobody types to this program."""
        guest, own = self._env.guest, self._env.process
        terminal = guest.terminal
        if terminal is None or not terminal.typed or terminal.foreground is not own:
            return None
        send = guest.scheduler.send

        def pass_on(env: Env, _words: list[str]) -> int:
            while (line := terminal.read(env, None)) is not None:
                send(own, line or b"\n")
            send(own, "")
            return 0

        return guest.spawn(pass_on)

    def _send(self, message: str | bytes) -> None:
        calls = self._env.calls
        if not message:
            if not self.datagrams:
                calls.shutdown(self.fd, c.SHUT_WR)
            return
        data = message if isinstance(message, bytes) else f"{message}\n".encode()
        if self.datagrams:
            calls.send(self.fd, data)
        else:
            send_all(calls, self.fd, data)
        self.sent += len(data)
        self._last = self._env.now()

    def _receive(self, env: Env, _words: list[str]) -> int:
        """The child: print what comes, until nothing does any more."""
        try:
            while True:
                try:
                    data = env.calls.recv(self.fd, CHUNK)
                except TimeoutError:
                    if self.patience is not None and env.now() - self._last >= self.patience:
                        return 0
                    continue
                self._last = env.now()
                self.received += len(data)
                if self.datagrams:
                    env.print(shown(data.removesuffix(b"\n")))
                elif data:
                    self._print(data)
                else:
                    return 0
        except OSError as error:
            self.fault = error
            return 1
        finally:
            if self._line:
                env.print(shown(self._line))

    def _print(self, data: bytes) -> None:
        """Whole lines; the beginning of one waits for its rest, up to a point."""
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > CHUNK:
            lines.append(self._line)
            self._line = b""
        for line in lines:
            self._env.print(shown(line))


def main(env: Env, argv: list[str]) -> int:
    """0 when there was a connection and nothing was wrong with it, 1 otherwise, 2 for wrong usage."""
    try:
        pairs, rest = several(argv, "luvNw:m:46")
        chosen = dict(pairs)
        patience = seconds("-w", chosen["-w"]) if "-w" in chosen else None
        if patience == 0:
            raise UsageError("-w 0: more than 0 is needed")
        if len(rest) != (1 if "-l" in chosen else 2):
            raise UsageError("-l needs a port" if "-l" in chosen else "a host and a port are needed")
        port = whole("port", rest[-1], 1, 65535)
    except UsageError as error:
        env.print(f"nc: {error}\n{USAGE}")
        return EX_USAGE
    texts = [value for option, value in pairs if option == "-m"]
    family = c.AF_INET6 if "-6" in chosen else c.AF_INET if "-4" in chosen else None
    kind = c.SOCK_DGRAM if "-u" in chosen else c.SOCK_STREAM
    tell = env.print if "-v" in chosen else _silent
    calls = env.calls
    try:
        if "-l" in chosen:
            fd = _await(env, kind, port)
        else:
            fd = dial(env, kind, rest[0], port, family, patience)
    except OSError as error:
        env.print(f"nc: {rest[0] if len(rest) > 1 else 'listening'} port {port}: {why(error)}")
        return 1
    try:
        peer = calls.getpeername(fd)
        tell(f"nc: connection {'from' if '-l' in chosen else 'to'} {peer[0]} port {peer[1]}")
        session = Session(env, fd, kind == c.SOCK_DGRAM, patience)
        session.run(texts, "-N" in chosen)
    except OSError as error:  # the peer is gone already
        env.print(f"nc: {error.strerror}")
        return 1
    finally:
        calls.close(fd)
    tell(f"nc: {session.sent} bytes sent, {session.received} received")
    if session.fault is None:
        return 0
    env.print(f"nc: {peer[0]} port {peer[1]}: {session.fault.strerror}")
    return 1


def _await(env: Env, kind: int, port: int) -> int:
    """The first connection to a port; or a socket connected to whom the first datagram is from. Raises OSError."""
    calls = env.calls
    fd = listening(env, kind, port)
    if kind == c.SOCK_STREAM:
        try:
            return calls.accept(fd)[0]
        finally:
            calls.close(fd)
    try:
        calls.connect(fd, calls.recvfrom(fd, 1, c.MSG_PEEK)[1])
    except BaseException:
        calls.close(fd)
        raise
    return fd


def _silent(_text: str) -> None:
    """Where `-v` is not given."""
