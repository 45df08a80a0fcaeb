"""The store as back ends and toolstacks use it: values by path, transactions that are tried again, watches.

Promises: only `StoreError` is raised for what the store answers. A value that another domain wrote is text of any
kind; `read_number` is for those that should be numbers and may be garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from hw.abi import xen_store as xs
from hw.xen.ports import StoreError, StorePort
from hw.xen.xenstore import Store, StoreClient

T = TypeVar("T")
ATTEMPTS = 16  # of a transaction that others keep disturbing


class LocalStore:
    """The store as its own process reaches it (`hw.xen.ports.StorePort`): no ring, the answer at once.

    Args:
        store: the server.
        schedule: has the handlers of events called soon.
        domid: as which domain.
    """

    def __init__(self, store: Store, schedule: Callable[[Callable[[], None]], None], domid: int = 0) -> None:
        self._store = store
        self._schedule = schedule
        self._client = StoreClient(domid, self._receive)
        store.clients.append(self._client)
        self._answer: tuple[int, bytes] = (xs.XS_ERROR, b"")
        self._handlers: list[Callable[[str, str], None]] = []

    def _receive(self, operation: int, req_id: int, tx_id: int, payload: bytes) -> None:
        if operation == xs.XS_WATCH_EVENT:
            path, token, _ = payload.decode("latin-1").split("\0")
            self._schedule(lambda: self._tell(path, token))
        else:
            self._answer = (operation, payload)

    def _tell(self, path: str, token: str) -> None:
        for handler in self._handlers:
            handler(path, token)

    def request(self, operation: int, payload: bytes, transaction: int = 0) -> bytes:
        """One message and the payload of its answer. Raises StoreError."""
        self._store.request(self._client, operation, 0, transaction, payload)
        answered, answer = self._answer
        if answered == xs.XS_ERROR:
            raise StoreError(answer.rstrip(b"\0").decode("latin-1"), payload.split(b"\0")[0].decode("latin-1"))
        return answer

    def on_event(self, handler: Callable[[str, str], None]) -> None:
        self._handlers.append(handler)


class StoreView:
    """Reading and writing by path, inside a transaction or without one (0)."""

    def __init__(self, port: StorePort, transaction: int = 0) -> None:
        self.port = port
        self._transaction = transaction

    def _ask(self, operation: int, *words: str, value: bytes = b"") -> bytes:
        payload = b"".join(word.encode("latin-1") + b"\0" for word in words) + value
        return self.port.request(operation, payload, self._transaction)

    def read(self, path: str) -> str:
        """The value at `path`. Raises StoreError, "ENOENT" when there is none."""
        return self._ask(xs.XS_READ, path).decode("latin-1")

    def get(self, path: str, default: str = "") -> str:
        """The value at `path`, or `default` when it cannot be read."""
        try:
            return self.read(path)
        except StoreError:
            return default

    def number(self, path: str, default: int | None = None) -> int:
        """The decimal number at `path`; `default` when it is missing.

        Raises StoreError("ENOENT") when it is missing without a default, ("EINVAL") for what is no number.
        """
        try:
            text = self.read(path)
        except StoreError as error:
            if default is None or error.name != "ENOENT":
                raise
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 10:
            raise StoreError("EINVAL", path)
        return int(text)

    def write(self, path: str, value: str | int) -> None:
        """Set a value."""
        self._ask(xs.XS_WRITE, path, value=str(value).encode("latin-1"))

    def mkdir(self, path: str) -> None:
        """Make a node unless it is there."""
        self._ask(xs.XS_MKDIR, path)

    def remove(self, path: str) -> None:
        """Remove a node and what is below it; harmless when it is not there."""
        try:
            self._ask(xs.XS_RM, path)
        except StoreError as error:
            if error.name != "ENOENT":
                raise

    def list(self, path: str) -> Sequence[str]:
        """The names below `path`, none when it is missing."""
        try:
            names = self._ask(xs.XS_DIRECTORY, path)
        except StoreError as error:
            if error.name != "ENOENT":
                raise
            return ()
        return names.decode("latin-1").split("\0")[:-1]

    def permit(self, path: str, *words: str) -> None:
        """Set permissions, such as "n0", "r7"."""
        self._ask(xs.XS_SET_PERMS, path, *words)

    def write_all(self, path: str, values: Mapping[str, str | int]) -> None:
        """Set several values below `path`."""
        for key, value in values.items():
            self.write(f"{path}/{key}", value)


class StoreAccess(StoreView):
    """The store without a transaction, and those that need one."""

    def __init__(self, port: StorePort) -> None:
        super().__init__(port)
        self._watched: dict[str, Callable[[str], None]] = {}
        self._tokens = 0
        port.on_event(self._event)

    def atomically(self, work: Callable[[StoreView], T]) -> T:
        """Do `work` in a transaction, again as long as it collides with others. Raises StoreError."""
        for attempt in range(ATTEMPTS):
            view = StoreView(self.port, int(self.port.request(xs.XS_TRANSACTION_START, b"\0").rstrip(b"\0")))
            try:
                result = work(view)
            except BaseException:
                view._ask(xs.XS_TRANSACTION_END, "F")
                raise
            try:
                view._ask(xs.XS_TRANSACTION_END, "T")
            except StoreError as error:
                if error.name != "EAGAIN" or attempt == ATTEMPTS - 1:
                    raise
            else:
                return result
        raise StoreError("EAGAIN")

    def watch(self, path: str, handler: Callable[[str], None]) -> str:
        """Call `handler(changed path)` once soon, and after each change at or below `path`; a token for `unwatch`."""
        self._tokens += 1
        token = f"t{self._tokens}"
        self._watched[token] = handler
        self._ask(xs.XS_WATCH, path, token)
        return token

    def unwatch(self, path: str, token: str) -> None:
        """End a watch."""
        if self._watched.pop(token, None) is not None:
            self._ask(xs.XS_UNWATCH, path, token)

    def _event(self, path: str, token: str) -> None:
        handler = self._watched.get(token)
        if handler is not None:
            handler(path)
