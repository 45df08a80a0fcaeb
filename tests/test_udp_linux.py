"""Who may bind what, who gets a datagram and which errno comes back: the same calls to the kernel of this machine, on
its loopback, and to a stack of ours; the outcomes are equal.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from collections.abc import Callable, Iterator

import pytest

from guest.net.address import parse_address
from guest.net.udp import UdpEndpoint
from tests.udp_world import Alone, payloads

ANY4, ANY6, ANY_MAPPED, MAPPED = "0.0.0.0", "::", "::ffff:0.0.0.0", "::ffff:127.0.0.1"
LO4, LO4_TOO, LO6 = "127.0.0.1", "127.0.0.2", "::1"
FOREIGN4, FOREIGN6 = "198.51.100.7", "2001:db8::7"

OPTIONS = {
    "reuse_addr": (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    "reuse_port": (socket.SOL_SOCKET, socket.SO_REUSEPORT),
    "broadcast": (socket.SOL_SOCKET, socket.SO_BROADCAST),
}


class Kernel:
    """This machine's own UDP."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def open(self, family: int, *options: str) -> int:
        end = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        end.setblocking(False)
        for option in options:
            if option == "v6only":
                continue
            if option == "device":
                end.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
            else:
                end.setsockopt(*OPTIONS[option], 1)
        if family == 6:
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, "v6only" in options)
        self._sockets.append(end)
        return len(self._sockets) - 1

    def _try(self, call: Callable[[], object]) -> str:
        try:
            call()
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "ok"

    def bind(self, end: int, address: str, port: int) -> str:
        return self._try(lambda: self._sockets[end].bind((address, port)))

    def connect(self, end: int, address: str, port: int) -> str:
        return self._try(lambda: self._sockets[end].connect((address, port)))

    def disconnect(self, end: int) -> str:
        # An address of family AF_UNSPEC, which Python cannot write.
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        return "ok" if libc.connect(self._sockets[end].fileno(), bytes(16), 16) == 0 else "failed"

    def send(self, end: int, payload: bytes, to: tuple[str, int] | None = None) -> str:
        if to is None:
            return self._try(lambda: self._sockets[end].send(payload))
        return self._try(lambda: self._sockets[end].sendto(payload, to))

    def shutdown(self, end: int, how: int) -> str:
        return self._try(lambda: self._sockets[end].shutdown(how))

    def join(self, end: int, group: str) -> str:
        request = socket.inet_aton(group) + socket.inet_aton(LO4)
        return self._try(lambda: self._sockets[end].setsockopt(0, socket.IP_ADD_MEMBERSHIP, request))

    def leave(self, end: int, group: str) -> str:
        request = socket.inet_aton(group) + socket.inet_aton(LO4)
        return self._try(lambda: self._sockets[end].setsockopt(0, socket.IP_DROP_MEMBERSHIP, request))

    def multicast_from_loopback(self, end: int, everything: bool) -> None:
        self._sockets[end].setsockopt(0, socket.IP_MULTICAST_IF, socket.inet_aton(LO4))
        self._sockets[end].setsockopt(0, 49, everything)  # IP_MULTICAST_ALL

    def drain(self, end: int) -> list[bytes]:
        found = []
        with contextlib.suppress(OSError):
            while True:
                found.append(self._sockets[end].recv(65536))
        return found

    def error(self, end: int) -> int:
        return self._sockets[end].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def local(self, end: int) -> tuple[str, bool]:
        """The local address, and whether there is a port."""
        name = self._sockets[end].getsockname()
        return name[0], name[1] != 0

    def close(self) -> None:
        for end in self._sockets:
            end.close()


class Ours:
    """The same calls to a stack of ours."""

    def __init__(self) -> None:
        self._host = Alone()
        self._ends: list[UdpEndpoint] = []

    def open(self, family: int, *options: str) -> int:
        end = self._host.udp.open(family)
        for option in options:
            if option == "device":
                end.options.bind_device = self._host.stack.loopback
            else:
                setattr(end.options, option, True)
        self._ends.append(end)
        return len(self._ends) - 1

    def _named(self, number: int) -> str:
        self._host.settle()
        return errno.errorcode[number] if number else "ok"

    def bind(self, end: int, address: str, port: int) -> str:
        return self._named(self._ends[end].bind(parse_address(address), port))

    def connect(self, end: int, address: str, port: int) -> str:
        return self._named(self._ends[end].connect(parse_address(address), port))

    def disconnect(self, end: int) -> str:
        return self._named(self._ends[end].disconnect())

    def send(self, end: int, payload: bytes, to: tuple[str, int] | None = None) -> str:
        where = None if to is None else (parse_address(to[0]), to[1])
        return self._named(self._ends[end].send([payload], where))

    def shutdown(self, end: int, how: int) -> str:
        return self._named(self._ends[end].shutdown(how))

    def join(self, end: int, group: str) -> str:
        return self._named(self._ends[end].join(parse_address(group), self._host.stack.loopback))

    def leave(self, end: int, group: str) -> str:
        return self._named(self._ends[end].leave(parse_address(group), self._host.stack.loopback))

    def multicast_from_loopback(self, end: int, everything: bool) -> None:
        self._ends[end].options.multicast_if = self._host.stack.loopback
        self._ends[end].options.multicast_all = everything

    def drain(self, end: int) -> list[bytes]:
        return payloads(self._ends[end])

    def error(self, end: int) -> int:
        return self._ends[end].take_error()

    def local(self, end: int) -> tuple[str, bool]:
        """The local address, and whether there is a port."""
        from guest.net.address import format_address, format_mapped

        address, port = self._ends[end].local
        return (format_address if self._ends[end].family == 4 else format_mapped)(address), port != 0

    def close(self) -> None:
        for end in self._ends:
            end.close()


Side = Kernel | Ours


def free_port(count: int = 3) -> int:
    """The first of several neighbouring ports that nobody on this machine has."""
    draw = random.SystemRandom()
    while True:
        first = draw.randrange(10_000, 30_000)
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + count):
                    probe = held.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
                    probe.bind(("::", port))
            except OSError:
                continue
        return first


@pytest.fixture(scope="module", autouse=True)
def has_ipv6() -> None:
    """Both families are compared."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((LO6, 0))
    except OSError:
        pytest.skip("this machine's loopback has no IPv6")


def both(scenario: Callable[[Side, int], list[object]]) -> None:
    """Run a scenario on either side and compare."""
    port = free_port()
    outcomes = []
    for side in (Kernel(), Ours()):
        with contextlib.closing(side):
            outcomes.append(scenario(side, port))
    theirs, ours = outcomes
    assert ours == theirs


BINDS = [
    (4, ANY4), (4, LO4), (4, LO4_TOO), (4, FOREIGN4), (4, "255.255.255.255"), (4, "224.0.0.200"),
    (6, ANY6), (6, LO6), (6, MAPPED), (6, ANY_MAPPED), (6, FOREIGN6), (6, f"::ffff:{FOREIGN4}"), (6, "ff05::200"),
]  # fmt: skip
FLAGS = ["reuse_addr", "reuse_port", "v6only", "device"]


def flags_of(number: int) -> tuple[str, ...]:
    return tuple(flag for bit, flag in enumerate(FLAGS) if number >> bit & 1)


def pairs() -> Iterator[tuple[int, str, int, str, int, int]]:
    draw = random.Random(7)
    for family, address in BINDS:
        for other_family, other_address in BINDS:
            for _ in range(4):
                yield family, address, other_family, other_address, draw.randrange(16), draw.randrange(16)
            yield family, address, other_family, other_address, 0, 0


def test_e27_two_binds_conflict_where_linux_says_so() -> None:
    """Every pair of addresses, with options drawn at random, and twice with none."""
    cases = list(pairs())

    def scenario(side: Side, port: int) -> list[object]:
        outcome: list[object] = []
        for family, address, other_family, other_address, flags, other_flags in cases:
            fresh = type(side)()
            with contextlib.closing(fresh):
                one = fresh.open(family, *flags_of(flags & (15 if family == 6 else 11)))
                two = fresh.open(other_family, *flags_of(other_flags & (15 if other_family == 6 else 11)))
                case = (family, address, flags_of(flags), other_family, other_address, flags_of(other_flags))
                outcome.append((case, fresh.bind(one, address, port), fresh.bind(two, other_address, port)))
        return outcome

    both(scenario)


@pytest.mark.parametrize("seed", range(60))
def test_e27_a_datagram_reaches_whom_linux_gives_it_to(seed: int) -> None:
    """Up to five ends on one port, bound and connected at random; then datagrams to every local address."""
    draw = random.Random(seed)
    ends = []
    for _ in range(draw.randrange(1, 6)):
        family, address = draw.choice([bind for bind in BINDS if bind[1] not in (FOREIGN4, FOREIGN6)])
        flags = draw.choice([0, 1, 1, 1, 4, 5, 5, 8, 9, 13])  # without groups: those are chosen by a secret
        connect = draw.random() < 0.3
        ends.append((family, address, flags_of(flags & (15 if family == 6 else 11)), connect))
    senders = [(4, ANY4, 1), (4, LO4_TOO, 2), (6, ANY6, 2), (6, MAPPED, 1)]  # with ports of their own

    def scenario(side: Side, port: int) -> list[object]:
        outcome: list[object] = []
        sending = []
        for family, source, above in senders:
            sender = side.open(family, "reuse_addr")
            outcome.append(side.bind(sender, source, port + above))
            sending.append(sender)
        numbers = []
        for family, address, flags, connect in ends:
            end = side.open(family, *flags)
            outcome.append(side.bind(end, address, port))
            if connect:
                outcome.append(side.connect(end, LO4 if family == 4 else LO6, port + 1))
            numbers.append(end)
        for sender, (family, *_) in zip(sending, senders, strict=True):
            for destination in (LO4, LO4_TOO, LO6, MAPPED):
                if (":" in destination) == (family == 6):
                    outcome.append((destination, side.send(sender, destination.encode(), (destination, port))))
                    side.error(sender)
        outcome.append([side.drain(number) for number in numbers])
        return outcome

    both(scenario)


def test_e27_the_last_to_bind_gets_unicast_when_all_may_share() -> None:
    def scenario(side: Side, port: int) -> list[object]:
        ends = [side.open(4, "reuse_addr") for _ in range(3)]
        outcome: list[object] = [side.bind(end, ANY4, port) for end in ends]
        sender = side.open(4)
        side.send(sender, b"one", (LO4, port))
        return [*outcome, [side.drain(end) for end in ends]]

    both(scenario)


def test_e27_a_reuse_port_group_shares_and_everyone_in_it_gets_some() -> None:
    def scenario(side: Side, port: int) -> list[object]:
        ends = [side.open(4, "reuse_port") for _ in range(4)]
        outcome: list[object] = [side.bind(end, ANY4, port) for end in ends]
        for _ in range(200):
            side.send(side.open(4), b"x", (LO4, port))
        got = [len(side.drain(end)) for end in ends]
        return [*outcome, sum(got), min(got) > 20]

    both(scenario)


def test_e27_multicast_reaches_members_and_those_who_want_everything() -> None:
    def scenario(side: Side, port: int) -> list[object]:
        group = "239.1.2.3"
        outcome: list[object] = []
        ends = []
        for address, everything in ((ANY4, True), (ANY4, False), (ANY4, False), (group, False), (LO4, True)):
            end = side.open(4, "reuse_addr")
            outcome.append(side.bind(end, address, port))
            side.multicast_from_loopback(end, everything)
            ends.append(end)
        outcome += [side.join(ends[2], group), side.join(ends[2], group), side.join(ends[3], group)]
        outcome += [side.leave(ends[0], group), side.join(ends[0], LO4)]
        sender = side.open(4)
        side.multicast_from_loopback(sender, True)
        outcome.append(side.send(sender, b"to all", (group, port)))
        outcome.append([side.drain(end) for end in ends])
        outcome += [side.leave(ends[2], group), side.leave(ends[2], group)]
        outcome.append(side.send(sender, b"again", (group, port)))
        return [*outcome, [side.drain(end) for end in ends]]

    both(scenario)


def calls(side: Side, port: int) -> list[object]:
    """One call after the other, each with its outcome."""
    outcome: list[object] = []
    note = outcome.append
    end = side.open(4)
    note(side.local(end))
    note(side.send(end, b"nowhere"))
    note(side.local(end))  # a port was taken nevertheless
    note(side.send(end, b"x", (LO4, 0)))
    note(side.send(end, bytes(65_507), (LO4, port)))
    note(side.send(end, bytes(65_508), (LO4, port)))
    note(side.send(end, bytes(65_536), (LO4, port)))
    note(side.bind(end, LO4, port))  # bound already
    note(side.bind(end, FOREIGN4, port))
    note(side.error(end))  # what was refused is not told to an unconnected end
    note(side.shutdown(end, 3))
    note(side.shutdown(end, socket.SHUT_WR))
    note(side.send(end, b"x", (LO4, port)))
    note(side.connect(end, LO4, port))
    note(side.send(end, b"x"))

    end = side.open(4)
    note(side.connect(end, LO4, port))
    note(side.local(end))
    note(side.send(end, b"refused"))
    note(side.send(end, b"told here"))
    note(side.send(end, b"refused again"))
    note(side.error(end))
    note(side.error(end))
    note(side.send(end, b"elsewhere", (LO4_TOO, port)))
    note(side.error(end))  # nobody there either, but that was not the connected one
    note(side.connect(end, ANY4, port))
    note(side.disconnect(end))
    note(side.local(end))
    note(side.send(end, b"nowhere"))
    note(side.local(end))
    note(side.connect(end, LO4, 0))

    end = side.open(4)
    note(side.bind(end, ANY4, port + 1))
    note(side.connect(end, LO4_TOO, port))
    note(side.local(end))
    note(side.bind(end, LO4, port + 2))
    note(side.disconnect(end))
    note(side.local(end))
    note(side.connect(end, LO4, port))
    note(side.shutdown(end, socket.SHUT_RDWR))

    end = side.open(4)
    note(side.bind(end, LO4_TOO, port + 2))
    note(side.send(end, b"x", (ANY4, port + 2)))
    note(side.drain(end))  # "any" is the own address
    note(side.connect(end, LO4, port))
    note(side.disconnect(end))
    note(side.local(end))
    return outcome


def calls6(side: Side, port: int) -> list[object]:
    """The same for IPv6 and for ends that speak both."""
    outcome: list[object] = []
    note = outcome.append
    end = side.open(6)
    note(side.local(end))
    note(side.send(end, b"nowhere"))
    note(side.send(end, b"x", (LO6, 0)))
    note(side.send(end, bytes(65_527), (LO6, port)))
    note(side.send(end, bytes(65_528), (LO6, port)))
    note(side.send(end, bytes(65_507), (MAPPED, port)))
    note(side.send(end, bytes(65_508), (MAPPED, port)))
    note(side.connect(end, MAPPED, port))
    note(side.local(end))
    note(side.send(end, b"refused"))
    note(side.error(end))
    note(side.disconnect(end))
    note(side.local(end))
    note(side.connect(end, LO6, port))
    note(side.local(end))
    note(side.send(end, b"refused"))
    note(side.send(end, b"told here"))
    note(side.disconnect(end))
    note(side.local(end))
    note(side.connect(end, "fe80::7", port))
    note(side.bind(end, "fe80::7", port))

    end = side.open(6)
    note(side.bind(end, "fe80::7", port))
    note(side.bind(end, LO6, port))
    note(side.bind(end, LO6, port))
    note(side.send(end, b"to myself", (ANY6, port)))
    note(side.drain(end))

    end = side.open(6, "v6only")
    note(side.bind(end, MAPPED, port + 1))
    note(side.send(end, b"x", (MAPPED, port)))
    note(side.connect(end, MAPPED, port))
    note(side.connect(end, ANY6, port))

    end = side.open(6)
    note(side.bind(end, MAPPED, port + 2))
    note(side.local(end))
    note(side.send(end, b"x", (LO6, port)))
    note(side.send(end, b"to myself", (ANY6, port + 2)))
    note(side.drain(end))
    return outcome


@pytest.mark.parametrize("scenario", [calls, calls6])
def test_e40_calls_end_as_on_linux(scenario: Callable[[Side, int], list[object]]) -> None:
    both(scenario)
