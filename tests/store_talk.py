"""Talking to a store, ours or Xen's own: messages by hand over whatever carries bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from hw.memory import GuestMemory
from hw.xen.grants import DomainGrants, GrantTable
from hw.xen.store_ring import StoreRing
from hw.xen.xenstore import Store, StoreClient

DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, START, END = 1, 2, 3, 4, 5, 6, 7
INTRODUCE, DOMAIN_PATH, WRITE, MKDIR, RM, SET_PERMS, EVENT, ERROR = 8, 10, 11, 12, 13, 14, 15, 16
IS_INTRODUCED, RESET_WATCHES, DIRECTORY_PART = 17, 21, 22


class Bytes(Protocol):
    """Something that carries bytes both ways."""

    def send(self, message: bytes) -> None: ...
    def receive(self, length: int) -> bytes: ...


class Talker:
    """One client: asks, and keeps the events that come in between."""

    def __init__(self, carrier: Bytes) -> None:
        self.carrier = carrier
        self.events: list[tuple[str, str]] = []
        self._request = 0

    def ask(self, kind: int, payload: bytes, tx_id: int = 0) -> str | bytes:
        """The payload of the answer, or the name of an error as text."""
        self._request += 1
        self.carrier.send(struct.pack("<IIII", kind, self._request, tx_id, len(payload)) + payload)
        while True:
            found, req_id, found_tx, length = struct.unpack("<IIII", self.carrier.receive(16))
            content = self.carrier.receive(length)
            if found != EVENT:
                break
            path, token, rest = content.decode().split("\0")
            assert (req_id, found_tx, rest) == (0, 0, "")
            self.events.append((path, token))
        assert (req_id, found_tx) == (self._request, tx_id)
        if found == ERROR:
            return content.rstrip(b"\0").decode()
        assert found == kind
        return content

    def words(self, kind: int, *words: str, tx_id: int = 0) -> str | bytes:
        """`ask` with zero-terminated words."""
        return self.ask(kind, b"".join(word.encode() + b"\0" for word in words), tx_id)

    def write(self, path: str, value: str = "", tx_id: int = 0) -> str | bytes:
        return self.ask(WRITE, path.encode() + b"\0" + value.encode(), tx_id)

    def read(self, path: str, tx_id: int = 0) -> str | bytes:
        return self.words(READ, path, tx_id=tx_id)

    def start(self) -> int:
        answer = self.words(START, "")
        assert isinstance(answer, bytes), answer
        return int(answer.rstrip(b"\0"))

    def end(self, tx_id: int, commit: bool = True) -> str | bytes:
        return self.words(END, "T" if commit else "F", tx_id=tx_id)

    def heard(self) -> list[tuple[str, str]]:
        """The events so far; those that are on their way come before the answer to one more question."""
        self.words(DOMAIN_PATH, "7")
        events, self.events = self.events, []
        return events


class Direct:
    """Domain 0's way to our store: no ring."""

    def __init__(self, store: Store) -> None:
        self.store, self.out = store, b""
        self.client = StoreClient(0, self._receive)
        store.clients.append(self.client)

    def _receive(self, operation: int, req_id: int, tx_id: int, payload: bytes) -> None:
        self.out += struct.pack("<IIII", operation, req_id, tx_id, len(payload)) + payload

    def send(self, message: bytes) -> None:
        operation, req_id, tx_id, _ = struct.unpack_from("<IIII", message)
        self.store.request(self.client, operation, req_id, tx_id, message[16:])

    def receive(self, length: int) -> bytes:
        data, self.out = self.out[:length], self.out[length:]
        assert len(data) == length, "no answer"
        return data


class OurRing:
    """A domain's way to our store: a ring page, written and read byte by byte."""

    def __init__(self, store: Store, domid: int, start: int = 0) -> None:
        self.memory = GuestMemory(2 * 4096)
        self.memory.span(8, 8)[:] = struct.pack("<HHI", 1, 0, 1)
        self.later: list[Callable[[], None]] = []
        page = DomainGrants(0, {domid: GrantTable(self.memory, [0])}).map(domid, 1)
        self.page = self.memory.span(4096, 4096)
        self.words = self.page.cast("I")
        for index in range(512, 516):
            self.words[index] = start
        self.notified = 0
        self.ring = StoreRing(store, domid, page, self._notify, self.later.append)
        store.introduced.add(domid)

    def _notify(self) -> None:
        self.notified += 1

    def kick(self) -> None:
        self.ring.process()

    def send(self, message: bytes) -> None:
        for byte in message:
            while (self.words[513] - self.words[512]) & 0xFFFFFFFF >= 1024:
                before = self.words[512]
                self.kick()
                assert self.words[512] != before, "the store does not take what was written"
            self.page[self.words[513] % 1024] = byte
            self.words[513] = (self.words[513] + 1) & 0xFFFFFFFF
        self.kick()

    def receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            if self.words[514] == self.words[515]:
                self.kick()
                assert self.words[514] != self.words[515], "the store does not answer"
            data += self.page[1024 + self.words[514] % 1024 :][:1]
            self.words[514] = (self.words[514] + 1) & 0xFFFFFFFF
        return data
