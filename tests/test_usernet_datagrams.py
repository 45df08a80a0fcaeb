"""UDP, pings and names through the user wire: a guest's stack, the gateway and sockets of the host's, in one loop."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rrset
import pytest

from guest.net.address import parse_address
from guest.net.echo import EchoReply
from guest.net.endpoint import Endpoint
from guest.net.udp import UdpEndpoint
from tests.netns import Namespace, namespace
from tests.user_world import (
    DNS,
    FAMILY,
    GUEST,
    GUEST6,
    HOST,
    HOST_OF,
    LOOPBACK_OF,
    UserWorld,
    has_ipv6,
    no_descriptor_is_left,
)
from vring.usernet import resolver
from vring.usernet.datagrams import FLOWS
from vring.usernet.resolver import host_servers

VERSIONS = pytest.mark.parametrize(
    "version", [4, pytest.param(6, marks=pytest.mark.skipif(not has_ipv6(), reason="the host has no ::1"))]
)
OUTSIDE, OUTSIDE6 = "192.0.2.1", "2001:db8::1"  # of the namespace's own loopback


@pytest.fixture
def world() -> Iterator[UserWorld]:
    with no_descriptor_is_left(), UserWorld() as made:
        yield made


class HostUdp:
    """A UDP socket on the host's loopback, in the world's loop."""

    def __init__(self, world: UserWorld, version: int = 4, *, echo: bool = False) -> None:
        self.sock = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind((LOOPBACK_OF[version], 0))
        self.port: int = self.sock.getsockname()[1]
        self.got: list[tuple[bytes, tuple[str, int]]] = []
        self._echo = echo
        self._loop = world.loop
        world.loop.set_reader(self.sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            while True:
                data, name = self.sock.recvfrom(65535)
                self.got.append((data, name[:2]))
                if self._echo:
                    self.sock.sendto(data[::-1], name)
        except OSError:
            return

    def close(self) -> None:
        self._loop.forget(self.sock.fileno())
        self.sock.close()


@pytest.fixture
def echo(world: UserWorld, request: pytest.FixtureRequest) -> Iterator[HostUdp]:
    """A server on the host that answers with what it got, backwards."""
    params = getattr(request.node, "callspec", None)
    made = HostUdp(world, params.params.get("version", 4) if params else 4, echo=True)
    yield made
    made.close()


def udp_to(world: UserWorld, address: str, port: int) -> UdpEndpoint:
    """A connected end of the guest's."""
    end = world.stack.udp.open(6 if ":" in address else 4)
    assert end.connect(parse_address(address), port) == 0
    return end


def text(end: UdpEndpoint) -> bytes | None:
    datagram = end.receive()
    return None if datagram is None else datagram.payload.tobytes()


def failed(end: Endpoint) -> int | None:
    return end.take_error() or None


# -- UDP -------------------------------------------------------------------------------------------------------------


@VERSIONS
def test_d13_datagrams_go_out_and_answers_come_back(world: UserWorld, echo: HostUdp, version: int) -> None:
    end = udp_to(world, HOST_OF[version], echo.port)
    for size in (0, 1, 1400, 9000):  # the last in fragments on the guest's wire
        assert end.send([b"x" * size, b"<"]) == 0
        assert world.wait_for(lambda: text(end), "no answer came") == b"<" + b"x" * size
    assert (world.net.counters["udp_out"], world.net.counters["udp_in"], len(world.net.datagrams)) == (4, 4, 1)


@VERSIONS
def test_d13_nobody_on_the_port_is_what_the_guest_hears(world: UserWorld, echo: HostUdp, version: int) -> None:
    echo.close()
    end = udp_to(world, HOST_OF[version], echo.port)

    end.send([b"anybody?"])

    assert world.wait_for(lambda: failed(end), "the guest heard nothing") == errno.ECONNREFUSED


def test_d13_an_error_about_one_datagram_does_not_cost_the_next(world: UserWorld, echo: HostUdp) -> None:
    """The host tells of it when the next one is sent."""
    echo.close()
    end = udp_to(world, HOST, echo.port)
    end.send([b"so that the gateway is known"])
    world.wait_for(lambda: failed(end))

    world.eth.interface.hold()
    end.send([b"one"])
    end.send([b"two"])
    world.eth.interface.release()

    assert world.net.counters["udp_out"] == 3
    world.need(lambda: world.net.counters["udp_refused"] == 3, "each was refused, and not each was said to be")


def test_d13_a_flow_ends_when_it_was_silent_and_one_in_use_does_not(world: UserWorld, echo: HostUdp) -> None:
    table = world.net.datagrams.out
    table._idle = 200_000  # microseconds
    busy, silent = udp_to(world, HOST, echo.port), udp_to(world, HOST, echo.port)
    busy.send([b"first"])
    silent.send([b"once"])
    world.wait_for(lambda: text(silent))

    def talk() -> bool:
        if text(busy) is not None:
            busy.send([b"again"])
        return world.net.counters["udp_expired"] > 0

    world.need(talk, "the silent flow did not end")

    assert (world.net.counters["udp_expired"], len(table)) == (1, 1), "the flow in use ended as well"
    world.need(lambda: len(table) == 0, "the other one did not end when it was silent, too")


def test_d13_there_are_never_more_flows_than_may_be(world: UserWorld, echo: HostUdp) -> None:
    ends = [udp_to(world, HOST, echo.port) for _ in range(FLOWS + 20)]
    most = 0
    for end in ends:
        end.send([b"hello"])
        world.need(lambda end=end: text(end) is not None, "one had no answer")
        most = max(most, len(world.net.datagrams))

    assert (most, world.net.counters["udp_evicted"]) == (FLOWS, 20)


@VERSIONS
def test_d13_a_forwarded_datagram_is_answered_to_its_own_caller(world: UserWorld, version: int) -> None:
    guest = {4: GUEST, 6: GUEST6}[version]
    host_side = {4: "127.0.0.1", 6: "[::1]"}[version]
    rule = world.net.forwards.add(f"udp:{host_side}:0-{f'[{guest}]' if version == 6 else guest}:53")
    server = world.stack.udp.open(version)
    server.bind(parse_address(guest), 53)

    def answer() -> None:
        while (datagram := server.receive()) is not None:
            server.send([b"to ", datagram.payload.tobytes()], (datagram.src, datagram.src_port))

    server.on_ready = answer
    callers = [HostUdp(world, version) for _ in range(3)]
    for number, caller in enumerate(callers):
        caller.sock.sendto(b"caller %d" % number, (LOOPBACK_OF[version], rule.port))

    world.need(lambda: all(caller.got for caller in callers), "not every caller was answered")

    name = (LOOPBACK_OF[version], rule.port)
    assert [caller.got for caller in callers] == [[(b"to caller %d" % number, name)] for number in range(3)]
    for caller in callers:
        caller.close()
    assert world.net.forwards.remove(rule.host_side)
    assert len(world.net.datagrams) == 0, "the callers of a forward outlived it"


def test_d13_hops_that_run_out_at_the_gateway_are_said_to_have(world: UserWorld) -> None:
    """As traceroute asks: the first hop is the gateway."""
    end = udp_to(world, "198.51.100.1", 33434)
    end.options.recverr = True

    end.send([b"probe"], ttl=1)

    world.need(lambda: end.errors, "the gateway said nothing")
    error = end.errors[0]
    assert (error.type, error.code, error.offender) == (11, 0, parse_address(HOST))
    assert len(world.net.datagrams) == 0, "a socket of the host's was opened for it"


# -- restricted ------------------------------------------------------------------------------------------------------


def test_d13_a_restricted_guest_reaches_nothing_but_forwards_reach_it() -> None:
    with no_descriptor_is_left(), UserWorld("restrict=on", "hostfwd=tcp::0-:80") as world:
        server = world.server()
        echo = HostUdp(world, echo=True)

        stream = world.dial(HOST, server.port)
        datagrams = udp_to(world, HOST, echo.port)
        datagrams.send([b"hello"])
        far = udp_to(world, "198.51.100.1", 53)
        far.send([b"hello"])
        world.need(lambda: not stream.connecting and far.error, "the guest was not told")

        assert stream.take_error() == errno.ECONNREFUSED, "the gateway is there, and nobody listens on it"
        assert far.take_error() == errno.EHOSTUNREACH
        assert (echo.got, server.peers, len(world.net.datagrams)) == ([], [], 0)
        assert world.net.options.restrict
        listening = world.listen(80)
        peer = world.call(world.net.forwards.rules[0].port)
        child = world.wait_for(listening.accept, "the forward brought nobody")
        peer.write(b"in", end=True)
        world.need(lambda: child.unread == 2, "the forward brought nothing")
        echo.close()


# -- pings -----------------------------------------------------------------------------------------------------------


def ping(world: UserWorld, address: str, size: int = 56, seconds: float = 10, **options: int) -> EchoReply | None:
    """One ping of the guest's, and what came of it in time."""
    port = world.stack.icmp.open_echo()
    port.send(address, 7, b"p" * size, **options)
    found: list[EchoReply] = []

    def answered() -> bool:
        reply = port.receive()
        found.extend([reply] if reply is not None else [])
        return bool(found)

    world.run(answered, seconds)
    port.close()
    return found[0] if found else None


@pytest.mark.parametrize("address", ["10.0.2.2", "10.0.2.3", "fec0::2", "fec0::3"])
def test_e56_the_gateway_answers_pings_itself(world: UserWorld, address: str) -> None:
    reply = ping(world, address)

    assert reply is not None, "no answer"
    assert (reply.src, reply.seq, reply.payload) == (address, 7, b"p" * 56)
    assert world.net.counters["icmp_out"] == 0, "the host was asked"


def test_n7_hops_of_a_ping_run_out_at_the_gateway(world: UserWorld) -> None:
    reply = ping(world, "198.51.100.1", ttl=1)

    assert reply is not None, "no answer"
    assert (reply.src, reply.error) == (HOST, "Time to live exceeded")


@pytest.fixture
def inside() -> Iterator[Namespace]:
    """A host of the test's own, whose loopback has an address that is not loopback to the guest."""
    with namespace() as host:
        host.run("ip", "addr", "add", f"{OUTSIDE}/32", "dev", "lo")
        yield host


@pytest.mark.root
@pytest.mark.parametrize("outside", [OUTSIDE, OUTSIDE6])
def test_n7_a_ping_goes_outside_through_a_ping_socket(inside: Namespace, outside: str) -> None:
    inside.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
    if outside == OUTSIDE6:
        inside.need("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0")
        inside.need("ip", "addr", "add", f"{OUTSIDE6}/128", "dev", "lo", "nodad")
    with inside.entered(), no_descriptor_is_left(), UserWorld() as world:
        reply = ping(world, outside, size=1000)
        large = ping(world, outside, size=3000)

        assert reply is not None, f"no answer: {dict(world.net.counters)}"
        assert (reply.src, reply.seq, reply.payload, reply.error) == (outside, 7, b"p" * 1000, None)
        assert large is not None, "a ping in fragments had no answer"
        assert large.payload == b"p" * 3000
        assert (world.net.counters["icmp_out"], world.net.counters["icmp_in"], world.said) == (2, 2, [])


@pytest.mark.root
def test_n7_where_the_host_lets_nobody_ping_one_line_says_so(inside: Namespace) -> None:
    inside.run("sysctl", "-qw", "net.ipv4.ping_group_range=1 0")
    with inside.entered(), no_descriptor_is_left(), UserWorld() as world:
        replies = [ping(world, OUTSIDE, seconds=0.05) for _ in range(2)]

        assert replies == [None, None]
        assert world.net.counters["icmp_dropped_no_socket"] == 2
        assert len(world.said) == 1, world.said
        assert "net.ipv4.ping_group_range" in world.said[0]


@pytest.mark.root
def test_d13_what_the_host_cannot_reach_the_guest_cannot_either(inside: Namespace) -> None:
    """A host without a route: the guest hears of it at once, by TCP and UDP."""
    with inside.entered(), no_descriptor_is_left(), UserWorld() as world:
        stream = world.dial("198.51.100.1", 80)
        end = udp_to(world, "198.51.100.1", 80)
        end.options.recverr = True  # as on Linux, the one that is not connected hears of it only if it asks
        end.send([b"hello"])

        world.need(lambda: not stream.connecting and end.error, "the guest heard nothing")

        assert stream.take_error() == errno.ENETUNREACH
        assert end.take_error() == errno.ENETUNREACH
        assert len(world.net.streams) == 0


@pytest.mark.root
def test_d13_another_host_is_reached_at_its_own_address(inside: Namespace) -> None:
    with inside.entered(), no_descriptor_is_left(), UserWorld() as world, socket.create_server((OUTSIDE, 0)) as server:
        end = world.dial(OUTSIDE, server.getsockname()[1])
        world.need(lambda: end.connected, "nobody answered")
        server.accept()[0].close()
        end.kill()


# -- names -----------------------------------------------------------------------------------------------------------


class NameServer(HostUdp):
    """A fake name server on the host's loopback: knows one name, over UDP, and over TCP what is too large for that."""

    def __init__(self, world: UserWorld, *, addresses: int = 1, silent: bool = False, cut: bool = False) -> None:
        super().__init__(world)
        self._addresses = [f"192.0.2.{number}" for number in range(1, addresses + 1)]
        self._silent = silent
        self._cut = cut
        self.stream = world.server(port=self.port)
        self.stream.on_peer = lambda peer: setattr(peer, "on_data", lambda: self._over_tcp(peer))

    def _answer(self, query: bytes, *, whole: bool) -> bytes:
        asked = dns.message.from_wire(query)
        answer = dns.message.make_response(asked)
        if self._cut and not whole:
            answer.flags |= dns.flags.TC
        else:
            answer.answer = [dns.rrset.from_text(asked.question[0].name, 60, "IN", "A", *self._addresses)]
        return answer.to_wire()

    def _readable(self) -> None:
        super()._readable()
        while self.got and not self._silent:
            query, name = self.got.pop(0)
            self.sock.sendto(b"\0\0" + self._answer(query, whole=False)[2:], name)  # a stranger's, to be passed over
            self.sock.sendto(self._answer(query, whole=False), name)

    def _over_tcp(self, peer: object) -> None:
        got = peer.got  # type: ignore[attr-defined]
        if len(got) > 2 and len(got) >= 2 + int.from_bytes(got[:2], "big"):
            answer = self._answer(bytes(got[2:]), whole=True)
            peer.write(struct.pack("!H", len(answer)) + answer, end=True)  # type: ignore[attr-defined]


def look_up(world: UserWorld, name: str, server: str = DNS) -> dns.message.Message:
    """A query of the guest's, and its answer."""
    end = udp_to(world, server, 53)
    query = dns.message.make_query(name, "A", use_edns=0, payload=1232)
    end.send([query.to_wire()])
    return dns.message.from_wire(world.wait_for(lambda: text(end), "the name server said nothing"))


def addresses(answer: dns.message.Message) -> list[str]:
    return [item.to_text() for row in answer.answer for item in row]


@pytest.mark.parametrize("server", ["10.0.2.3", "fec0::3"])
def test_d13_names_are_asked_of_the_host_and_those_given_are_known(server: str) -> None:
    with no_descriptor_is_left(), UserWorld("dnsname=here.test=10.0.2.2", "dnsname=here.test=10.0.2.9") as world:
        fake = NameServer(world)
        world.net.resolver._servers = [(parse_address("127.0.0.1"), fake.port)]

        assert addresses(look_up(world, "there.test", server)) == ["192.0.2.1"]
        assert sorted(addresses(look_up(world, "HERE.test", server))) == ["10.0.2.2", "10.0.2.9"]

        counted = {key: world.net.counters[key] for key in ("dns_queries", "dns_answers", "dns_dropped_foreign")}
        assert counted == {"dns_queries": 1, "dns_answers": 1, "dns_dropped_foreign": 1}
        assert len(world.net.resolver) == 0
        fake.close()


def test_d13_a_cut_answer_is_fetched_whole_over_tcp() -> None:
    with no_descriptor_is_left(), UserWorld() as world:
        fake = NameServer(world, addresses=60, cut=True)
        world.net.resolver._servers = [(parse_address("127.0.0.1"), fake.port)]

        answer = look_up(world, "many.test")

        assert len(addresses(answer)) == 60
        assert not answer.flags & dns.flags.TC
        fake.close()


def test_d13_a_silent_name_server_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "PATIENCE", 50_000)
    with no_descriptor_is_left(), UserWorld() as world:
        silent, fake = NameServer(world, silent=True), NameServer(world)
        loopback = parse_address("127.0.0.1")
        nobody = HostUdp(world)
        nobody.close()
        world.net.resolver._servers = [(loopback, silent.port), (loopback, nobody.port), (loopback, fake.port)]

        assert addresses(look_up(world, "there.test")) == ["192.0.2.1"]

        world.net.resolver._servers = [(loopback, silent.port)]
        answer = look_up(world, "there.test")
        assert answer.rcode() == 2, "the guest was not told SERVFAIL"
        silent.close()
        fake.close()


def test_d13_without_a_name_server_the_guest_and_people_hear_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resolver, "host_servers", lambda: host_servers(tmp_path / "missing"))
    with no_descriptor_is_left(), UserWorld() as world:
        assert look_up(world, "there.test").rcode() == 2
        assert len(world.said) == 1, world.said
        assert "resolver=ADDRESS" in world.said[0]


def test_the_hosts_name_servers_are_read_as_the_host_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    lines = ("# nameserver 192.0.2.9", "search test", "nameserver 192.0.2.1", "nameserver  2001:db8::1",
             "nameserver fe80::1%eth0")  # fmt: skip
    path.write_text("\n".join(lines))

    assert host_servers(path) == [(parse_address("192.0.2.1"), 53), (parse_address("2001:db8::1"), 53)]
