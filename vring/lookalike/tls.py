"""SSL over sockets that have no descriptor of the host: the engine works on memory, and we carry its bytes.

The standard library's `ssl.SSLSocket` hands a real socket to OpenSSL. `install` has it hand over a `Channel` instead:
OpenSSL over two `ssl.MemoryBIO`, and the socket's own `send` and `recv` between them and the network. All else of
`ssl.SSLSocket`, and with it http.client, smtplib, ftplib and whatever builds on it, stays as it is.

Promises, as of the standard library's own:
- Timeouts are the socket's: TimeoutError. On a socket that must not block SSLWantReadError and SSLWantWriteError are
  raised, and a write that raised has to be made again with the same data.
- One thread may read while another one writes.
- No more is taken from the socket than the record that OpenSSL waits for. So the socket is readable as long as there is
  more, and what follows the end of SSL is still in it.

Sections: `install`, `Channel`.
"""

from __future__ import annotations

import ssl
import threading
import weakref
from collections.abc import Callable
from typing import Any

HEADER = 5  # of a record: its type, its version, and the length of what follows (RFC 8446 §5.1)


def install(module: Any = ssl) -> None:
    """Let `SSLContext.wrap_socket` of this module `ssl`, which was imported over a look-alike `socket`, work on it."""

    def wrap_socket(
        context: ssl.SSLContext,
        sock: Any,
        server_side: bool,
        server_hostname: str | None = None,
        *,
        owner: Any = None,
        session: Any = None,
    ) -> Channel:
        return Channel(module, context, sock, server_side, server_hostname, owner, session)

    module.SSLContext._wrap_socket = wrap_socket


class Channel:
    """What an `ssl.SSLSocket` holds: the calls of OpenSSL's object, carried by its socket.

    Args:
        module: `ssl`, whose exceptions are raised.
        sock: the look-alike socket that carries it.
        context, server_side, server_hostname, owner, session: as `ssl` gives them.
    """

    def __init__(
        self,
        module: Any,
        context: Any,
        sock: Any,
        server_side: bool,
        server_hostname: str | None,
        owner: Any,
        session: Any,
    ) -> None:
        self._ssl = module
        self._low = sock._low
        self._sock = weakref.ref(sock)
        self._incoming = module.MemoryBIO()
        self._outgoing = module.MemoryBIO()
        self._engine = context._wrap_bio(
            self._incoming, self._outgoing, server_side, server_hostname, owner=owner, session=session
        )
        self._busy = threading.RLock()  # OpenSSL lets other threads run while it works on itself and the two memories
        self._unsent = b""  # of what the engine has given
        self._promised = 0  # bytes of data that the engine has, while their writer was told to come again
        self._sending = threading.RLock()  # taken before `_busy`, never while that is held
        self._header = b""  # of the record that arrives
        self._left = 0  # bytes of its body that have not arrived

    # -- what OpenSSL's object is asked ------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """What needs no network: certificates, ciphers, versions."""
        if name == "_engine":
            raise AttributeError(name)
        return getattr(self._engine, name)

    @property
    def context(self) -> Any:
        """The context; a server may change it once it knows the name that it was asked for."""
        return self._engine.context

    @context.setter
    def context(self, context: Any) -> None:
        self._engine.context = context

    @property
    def session(self) -> Any:
        """The session, to be resumed by a later connection."""
        return self._engine.session

    @session.setter
    def session(self, session: Any) -> None:
        self._engine.session = session

    # -- the network -------------------------------------------------------------------------------------------------

    def _flush(self, *, wait: bool = True) -> None:
        """Send what the engine has to send. Raises SSLWantWriteError when not all of it goes.

        Args:
            wait: for another thread that is sending; without it that one sends this too.
        """
        if not self._sending.acquire(blocking=wait):
            return
        try:
            while True:
                if not self._unsent:
                    with self._busy:
                        self._unsent = self._outgoing.read()
                if not self._unsent:
                    return
                self._unsent = self._unsent[self._low.send(self._unsent) :]
        except BlockingIOError:
            raise self._ssl.SSLWantWriteError(
                self._ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)"
            ) from None
        finally:
            self._sending.release()

    def _fetch(self) -> None:
        """Receive some more for the engine. Raises SSLWantReadError when nothing is there."""
        try:
            data = self._low.recv(self._left or HEADER - len(self._header))
        except BlockingIOError:
            raise self._ssl.SSLWantReadError(
                self._ssl.SSL_ERROR_WANT_READ, "The operation did not complete (read)"
            ) from None
        with self._busy:
            if not data:
                self._incoming.write_eof()
                return
            self._incoming.write(data)
        if self._left:
            self._left -= len(data)
        else:
            self._header += data
            if len(self._header) == HEADER:
                self._left = int.from_bytes(self._header[3:], "big")
        if not self._left and len(self._header) == HEADER:
            self._header = b""

    def _carry(self, step: Callable[[], Any], what: str) -> Any:
        """Do a step of the engine, with as much traffic as it needs; what it gives."""
        try:
            while True:
                try:
                    with self._busy:
                        result = step()
                except self._ssl.SSLWantReadError:
                    self._flush()
                    self._fetch()
                    continue
                except self._ssl.SSLError:
                    self._tell()
                    raise
                self._flush()
                return result
        except TimeoutError:
            raise TimeoutError(f"The {what} operation timed out") from None

    def _tell(self) -> None:
        """Send what the engine has to send, an alert perhaps, if that can be sent."""
        try:
            self._flush(wait=False)
        except OSError:
            pass

    # -- what needs it -----------------------------------------------------------------------------------------------

    def do_handshake(self) -> None:
        """Agree with the peer on keys."""
        self._carry(self._engine.do_handshake, "handshake")

    def read(self, size: int = 1024, buffer: Any = None) -> Any:
        """Data, or with `buffer` how many bytes were put there; nothing at the end."""
        where = () if buffer is None else (buffer,)
        while True:
            try:
                with self._busy:
                    result = self._engine.read(size, *where)
            except self._ssl.SSLWantReadError:
                try:
                    if not self._promised:  # else its writer sends it, perhaps only once we have read
                        self._flush(wait=False)
                    self._fetch()
                except TimeoutError:
                    raise TimeoutError("The read operation timed out") from None
            except self._ssl.SSLError:
                self._tell()
                raise
            else:
                if not self._promised:
                    self._tell()  # what has been read is not lost by what cannot be sent
                return result

    def write(self, data: Any) -> int:
        """Send data; how many bytes were taken."""
        if not self._promised:
            try:
                self._promised = self._carry_write(data)
            except TimeoutError:
                raise TimeoutError("The write operation timed out") from None
        else:
            self._flush()
        taken, self._promised = self._promised, 0
        return taken

    def _carry_write(self, data: Any) -> int:
        while True:
            try:
                with self._sending:  # no reader is to send what is ours, and stop reading
                    with self._busy:
                        taken: int = self._engine.write(data)
                    self._promised = taken
                    self._flush()
                return taken
            except self._ssl.SSLWantReadError:  # the peer wants new keys first
                self._flush()
                self._fetch()

    def shutdown(self) -> Any:
        """Tell the peer that nothing more comes, and wait until it has said so too; the plain socket."""
        self._carry(self._engine.shutdown, "shutdown")
        return self._sock()
