"""The same calls, the host's kernel and ours, and the same results and errno."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from guest.sys.sockaddr import pack_sockaddr, pack_sockaddr_in6
from tests import sys_table, sys_table_options
from tests.netns import Namespace, namespace
from tests.sys_kernels import HostKernel, Kernel, OurKernel
from tests.sys_table import AsBytes, Row, Socket, To

FREE = [  # rows that any user may run on the host, because they leave the loopback alone and need no privilege
    *sys_table.MAKING,
    *sys_table.NAMING,
    *sys_table.CONNECTING,
    *sys_table.SENDING,
    *sys_table.RECEIVING,
    *sys_table_options.SOCKET_OPTIONS,
    *sys_table_options.IP_OPTIONS,
    *sys_table_options.ANCILLARY,
]
PRIVILEGED = [*sys_table_options.RAW, *sys_table_options.PING]


class Play:
    """One row on one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.sockets: dict[Socket, Any] = {}
        self.ports: dict[int, Socket] = {}
        self.addresses: dict[Socket, Any] = {}
        self.closed: set[Socket] = set()  # their descriptors may be somebody else's by now

    def run(self, steps: list[tuple[Any, ...]]) -> list[Any]:
        """The outcome of each step."""
        return [self.step(*step) for step in steps]

    def step(self, name: str, target: Any, *arguments: Any) -> tuple[Any, ...]:
        arguments = tuple(self._resolve(argument) for argument in arguments)
        if name in ("socket", "dup"):
            result = self.kernel.call(name, *arguments)
            if not isinstance(result, str):
                self.sockets[target] = result
                result = "a socket"
        elif name == "take":
            result = self.kernel.take(*arguments) if arguments[0] is not None else "no socket"
            if not isinstance(result, str):
                self.sockets[target], result = result
        elif name in ("fill", "drain"):
            result = self._until_it_fails(name, self.sockets[target])
        elif name == "poll":
            if any(one not in self.sockets for one, _ in target):
                return (name, "no socket")
            result = self.kernel.call(name, [(self.sockets[one], events) for one, events in target], *arguments)
            result = [one[1] if isinstance(one, tuple) else one for one in result]
        elif name in ("raw_recv", "ping_recv"):
            result = self.kernel.call("recvfrom", self.sockets[target], 200, sys_table.NOW)
            if isinstance(result, tuple):
                result = self._blank(name, *result)
        elif target in self.sockets:
            result = self.kernel.call(name, self.sockets[target], *arguments)
            if name == "close" and result is None:
                self.closed.add(target)
        else:
            return (name, "no socket")
        self._learn()
        return name, self._tame(result), *(bytes(one) for one in arguments if isinstance(one, bytearray))

    def _until_it_fails(self, name: str, sock: Any) -> Any:
        """Send, or receive, until that gives an error; which one."""
        call: tuple[Any, ...] = ("send", sock, bytes(1 << 16)) if name == "fill" else ("recv", sock, 1 << 20)
        while not isinstance(result := self.kernel.call(*call, sys_table.NOW), str) and result:
            pass
        return result

    def _resolve(self, argument: Any) -> Any:
        if isinstance(argument, Socket):
            return self.sockets.get(argument)
        if isinstance(argument, To):
            return argument.told(*self.addresses[argument.of])
        if isinstance(argument, AsBytes):
            return self._as_bytes(argument)
        if isinstance(argument, bytearray):
            return bytearray(argument)  # each kernel writes into its own
        if isinstance(argument, list):
            return [bytearray(one) if isinstance(one, bytearray) else one for one in argument]
        return argument

    def _as_bytes(self, wanted: AsBytes) -> bytes:
        _, port, *tail = self.addresses[wanted.of]
        packed = pack_sockaddr_in6(port, 1) if tail else pack_sockaddr(2, port, 0x7F000001)
        if wanted.family is not None:
            packed = wanted.family.to_bytes(2, "little") + packed[2:]
        return packed[: wanted.cut]

    def _learn(self) -> None:
        """Which ports belong to whom."""
        known = {name: sock for name, sock in self.sockets.items() if name not in self.closed}
        addresses = {name: self.kernel.call("getsockname", sock) for name, sock in known.items()}
        for name, address in addresses.items():
            if isinstance(address, tuple) and address[1]:
                self.addresses[name] = address
                owner = self.ports.get(address[1])
                if owner is None or not isinstance(addresses.get(owner), tuple):  # or its last owner has closed it
                    self.ports[address[1]] = name

    def _blank(self, name: str, data: bytes, address: Any) -> tuple[bytes, Any]:
        """What was received, without what each kernel chooses: identification and checksums."""
        raw = bytearray(data)
        if name == "raw_recv":
            raw[4:6] = raw[6:8] = raw[10:12] = b"??"  # "don't fragment" is a matter of taste on the loopback
            return bytes(raw), address
        raw[2:6] = b"????"
        return bytes(raw), address

    def _tame(self, value: Any) -> Any:
        if isinstance(value, tuple) and len(value) in (2, 4) and isinstance(value[0], str):
            return (value[0], f"port of {self.ports[value[1]]}" if value[1] in self.ports else value[1], *value[2:])
        if isinstance(value, (tuple, list)):
            return type(value)(self._tame(one) for one in value)
        return value


@pytest.fixture(scope="module")
def inside() -> Iterator[Namespace]:
    """A namespace with nothing but the loopback, as our guest has."""
    with namespace() as space:
        with space.entered():
            Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
        yield space


def compare(row: Row, host: HostKernel) -> None:
    """Play a row on both kernels."""
    steps = row[1]
    ours = OurKernel()
    try:
        theirs = Play(host).run(steps)
        found = Play(ours).run(steps)
    finally:
        host.close()
        ours.close()
    differences = [
        f"{step}: the host gives {a}, we give {b}" for step, a, b in zip(steps, theirs, found, strict=True) if a != b
    ]
    assert differences == [], "\n".join(differences)


@pytest.mark.root
@pytest.mark.parametrize("row", [pytest.param(row, id=row[0]) for row in FREE + PRIVILEGED])
def test_both_kernels_answer_alike(row: Row, inside: Namespace) -> None:
    compare(row, HostKernel(inside.entered()))


# The host's own namespace may have a way to strangers and neighbours, which our guest has not.
SHELTERED = ("stranger", "everybody")


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row[0]) for row in sys_table.NAMING + sys_table.SENDING + sys_table.RECEIVING
     if not any(word in row[0] for word in SHELTERED)],
)  # fmt: skip
def test_both_kernels_answer_alike_without_privilege(row: Row) -> None:
    compare(row, HostKernel(nullcontext()))


def test_the_table_is_long_enough_and_its_rows_have_names_of_their_own() -> None:
    names = [name for name, _ in FREE + PRIVILEGED]
    assert len(names) >= 120
    assert len(set(names)) == len(names)
