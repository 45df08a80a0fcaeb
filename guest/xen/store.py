"""A client of the store: reads, writes, transactions, watches.

    value = store.read("device/vif/0/backend")
    store.transaction(lambda tx: tx.write("state", "4"))
    store.watch("/local/domain/0/backend/vif/1/0/state", changed)

Promises:
- A call returns with its answer or raises `StoreError`; it never waits for a store that will not move.
- Watch events that arrive meanwhile are kept in order, and handed to their callbacks by `dispatch`, never from inside
  a call.
- A transaction that the store refuses with EAGAIN is done again from its start, a bounded number of times.
- A message that cannot be, and an answer that nobody waits for, are counted and dropped.

Values are text; what is not UTF-8 arrives with replacement characters.

Read: Xen's docs/misc/xenstore.txt, `hw/abi/xen_store.py`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TypeVar

from guest.xen.store_ring import StoreError, StorePort
from hw.abi import xen_store as abi

TRANSACTION_TRIES = 32
WAITS = 100_000  # pieces that an answer may come in

T = TypeVar("T")

_HEADER = abi.MESSAGE.size


class Store:
    """A connection.

    Args:
        port: what carries it.
        ready: called when a watch event has arrived, so that somebody calls `dispatch`.

    Attributes:
        counters: `requests`, `watch_events`, `stale_answers`, `unknown_watches`, `transactions_again`.
    """

    def __init__(self, port: StorePort, ready: Callable[[], None] = lambda: None) -> None:
        self._port = port
        self._ready = ready
        self._buffer = bytearray()
        self._serial = 0
        self._watches: dict[str, Callable[[str], None]] = {}
        self._events: deque[tuple[str, str]] = deque()
        self.counters: Counter[str] = Counter()

    # -- requests ------------------------------------------------------------------------------------------------

    def request(self, kind: int, payload: bytes, tx: int = 0) -> bytes:
        """Send one request; the payload of its answer. Raises StoreError."""
        if len(payload) > abi.XENSTORE_PAYLOAD_MAX:
            raise StoreError(f"a request of {len(payload)} bytes is too long for the store", "E2BIG")
        self._serial = (self._serial + 1) & 0xFFFFFFFF
        serial = self._serial
        self.counters["requests"] += 1
        self._port.send(abi.MESSAGE.pack(kind, serial, tx, len(payload)) + payload)
        for _ in range(WAITS):
            while (message := self._next()) is not None:
                answer, of, body = message
                if answer == abi.XS_WATCH_EVENT:
                    self._keep_event(body)
                elif of != serial:
                    self.counters["stale_answers"] += 1  # of a request that was given up
                elif answer == abi.XS_ERROR:
                    name = body.rstrip(b"\0").decode("ascii", "replace")
                    what = payload.split(b"\0")[0].decode("utf-8", "replace")
                    raise StoreError(f"the store refuses {abi.OPERATION_NAMES.get(kind, kind)} {what}: {name}", name)
                elif answer != kind:
                    raise StoreError(f"the store answers request {kind} with {answer}")
                else:
                    return body
            if not self._port.wait():
                break
        raise StoreError("the store does not answer")

    def _next(self) -> tuple[int, int, bytes] | None:
        """The next whole message that has arrived: its type, request id and payload."""
        buffer = self._buffer
        buffer += self._port.receive()
        if len(buffer) < _HEADER:
            return None
        kind, serial, _, length = abi.MESSAGE.unpack_from(buffer)
        if length > abi.XENSTORE_PAYLOAD_MAX:
            raise StoreError(f"the store sends {length} bytes in one message")
        if len(buffer) < _HEADER + length:
            return None
        body = bytes(buffer[_HEADER : _HEADER + length])
        del buffer[: _HEADER + length]
        return kind, serial, body

    def read(self, path: str, tx: int = 0) -> str:
        """The value at `path`. Raises StoreError, with the name ENOENT where there is none."""
        return self.request(abi.XS_READ, _strings(path), tx).decode("utf-8", "replace")

    def get(self, path: str, default: str = "", tx: int = 0) -> str:
        """The value at `path`, or `default` where there is none or it may not be read."""
        try:
            return self.read(path, tx)
        except StoreError as error:
            if error.name:
                return default
            raise

    def number(self, path: str, default: int, tx: int = 0) -> int:
        """The value at `path` as a number, or `default` where there is none, or one that is no such number."""
        return parse_number(self.get(path, "", tx), default)

    def write(self, path: str, value: str | int, tx: int = 0) -> None:
        """Set the value at `path`. Raises StoreError."""
        self.request(abi.XS_WRITE, _strings(path) + str(value).encode(), tx)

    def remove(self, path: str, tx: int = 0) -> None:
        """Remove `path` and all below it; nothing happens where there is none. Raises StoreError."""
        try:
            self.request(abi.XS_RM, _strings(path), tx)
        except StoreError as error:
            if error.name != "ENOENT":
                raise

    def directory(self, path: str, tx: int = 0) -> list[str]:
        """The names below `path`. Raises StoreError."""
        body = self.request(abi.XS_DIRECTORY, _strings(path), tx)
        return [name.decode("utf-8", "replace") for name in body.split(b"\0") if name]

    # -- transactions --------------------------------------------------------------------------------------------

    def transaction(self, work: Callable[[int], T]) -> T:
        """Do `work(tx)` in a transaction, again for as long as somebody else got in between; what it returned.

        Raises StoreError: what `work` raised, after the transaction was ended, or EAGAIN when it never went through.
        """
        for _ in range(TRANSACTION_TRIES):
            text = self.request(abi.XS_TRANSACTION_START, b"\0").rstrip(b"\0").decode("ascii", "replace")
            tx = parse_number(text, -1)
            if not 0 < tx <= 0xFFFFFFFF:
                raise StoreError(f"the store calls a transaction {text!r}")
            try:
                result = work(tx)
            except StoreError as error:
                if error.name:
                    self._abort(tx)
                raise
            try:
                self.request(abi.XS_TRANSACTION_END, b"T\0", tx)
            except StoreError as error:
                if error.name != "EAGAIN":
                    raise
                self.counters["transactions_again"] += 1
            else:
                return result
        raise StoreError(f"a transaction failed {TRANSACTION_TRIES} times", "EAGAIN")

    def _abort(self, tx: int) -> None:
        try:
            self.request(abi.XS_TRANSACTION_END, b"F\0", tx)
        except StoreError:
            pass  # what went wrong before is told

    # -- watches -------------------------------------------------------------------------------------------------

    def watch(self, path: str, callback: Callable[[str], None], token: str | None = None) -> str:
        """Call `callback(path)` whenever `path` or something below it changes, and once now; the watch's token.

        Raises StoreError.
        """
        if token is None:
            self._serial = (self._serial + 1) & 0xFFFFFFFF
            token = f"w{self._serial:x}"
        self._watches[token] = callback  # its first event may come before the answer
        try:
            self.request(abi.XS_WATCH, _strings(path, token))
        except StoreError:
            del self._watches[token]
            raise
        return token

    def unwatch(self, path: str, token: str) -> None:
        """End a watch; an event that is on its way is dropped. Raises StoreError."""
        self._watches.pop(token, None)
        self.request(abi.XS_UNWATCH, _strings(path, token))

    def _keep_event(self, body: bytes) -> None:
        parts = body.split(b"\0")
        self.counters["watch_events"] += 1
        if len(parts) >= 3:
            self._events.append((parts[0].decode("utf-8", "replace"), parts[1].decode("utf-8", "replace")))
            self._ready()
        else:
            self.counters["unknown_watches"] += 1

    def dispatch(self) -> bool:
        """Take in what has arrived and call back for the watch events among it; whether there were any.

        Raises StoreError.
        """
        while (message := self._next()) is not None:
            kind, _, body = message
            if kind == abi.XS_WATCH_EVENT:
                self._keep_event(body)
            else:
                self.counters["stale_answers"] += 1
        count = len(self._events)
        for _ in range(count):
            path, token = self._events.popleft()
            callback = self._watches.get(token)
            if callback is None:
                self.counters["unknown_watches"] += 1
            else:
                callback(path)
        return count > 0

    def wait(self) -> bool:
        """Wait until something has arrived, such as a watch event; False when nothing will."""
        return self._port.wait()

    def restart(self) -> None:
        """After a resume: the connection is new, and no watch is set."""
        self._buffer.clear()
        self._watches.clear()
        self._events.clear()


def parse_number(text: str, default: int) -> int:
    """`text` as a decimal number of at most 10 digits, or `default`."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else default


def _strings(*texts: str) -> bytes:
    """Each with the NUL that ends it. A NUL inside would be another string: then StoreError."""
    if any("\0" in text for text in texts):
        raise StoreError("a path has a NUL in it", "EINVAL")
    return b"".join(text.encode() + b"\0" for text in texts)
