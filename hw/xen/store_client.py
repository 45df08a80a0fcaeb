"""The store as back ends and toolstacks use it: values by path, and watches.

Promises: only `StoreError` is raised for what the store answers. A value that another domain wrote is text of any
kind; `number` is for those that should be numbers and may be garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hw.abi import xen_store as xs
from hw.abi.xen import DOM0
from hw.xen.ports import StoreError, StorePort
from hw.xen.xenstore import Store, StoreClient


class LocalStore:
    """The store as its own process reaches it (`hw.xen.ports.StorePort`): no ring, the answer at once.

    Args:
        store: the server.
        schedule: has the handlers of events called soon.
    """

    def __init__(self, store: Store, schedule: Callable[[Callable[[], None]], None]) -> None:
        self._store = store
        self._schedule = schedule
        self._client = StoreClient(DOM0, self._receive)
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

    def request(self, operation: int, payload: bytes) -> bytes:
        """One message and the payload of its answer. Raises StoreError."""
        self._store.request(self._client, operation, 0, 0, payload)
        answered, answer = self._answer
        if answered == xs.XS_ERROR:
            raise StoreError(answer.rstrip(b"\0").decode("latin-1"), payload.split(b"\0")[0].decode("latin-1"))
        return answer

    def on_event(self, handler: Callable[[str, str], None]) -> None:
        self._handlers.append(handler)


class StoreAccess:
    """Reading, writing and watching by path."""

    def __init__(self, port: StorePort) -> None:
        self.port = port
        self._watched: dict[str, Callable[[str], None]] = {}
        self._tokens = 0
        port.on_event(self._event)

    def _ask(self, operation: int, *words: str, value: bytes = b"") -> bytes:
        payload = b"".join(word.encode("latin-1") + b"\0" for word in words) + value
        return self.port.request(operation, payload)

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
