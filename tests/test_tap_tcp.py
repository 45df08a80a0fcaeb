"""A guest's streams met by the host's own kernel over a TAP, in both roles and both families.

Row by row what two TCPs have to agree on: bulk, half-close, closed windows, resets, urgent data, keepalives, options,
explicit congestion notification, narrow paths; and the bad wire of row E31. All in a namespace of the test's own.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from guest.sys import constants as c
from tests.netns import Namespace, namespace
from tests.tap_tcp import (
    CONNECTS,
    ECN,
    ECN_SEEN,
    GUEST,
    GUEST_FAMILY,
    HOST,
    LISTENS,
    ROLES,
    SACK,
    STAMPS,
    WSCALE,
    Link,
    Streams,
    digest,
    guest_reads,
    guest_writes,
    kernel_counters,
    kernel_exchanges,
    kernel_figure,
    kernel_info,
    kernel_reads,
    set_tcp,
    stream,
    tcp_guest,
    tcp_host,
)
from tests.tap_world import HOST4, HOST6, make_tap, until

pytestmark = pytest.mark.root

MB = 1_000_000
VERSIONS = (4, 6)
BOTH = pytest.mark.parametrize(("role", "version"), [(role, version) for role in ROLES for version in VERSIONS])
EACH_ROLE = pytest.mark.parametrize(("role", "version"), [(CONNECTS, 4), (LISTENS, 6)])
TCP_REPAIR = 19  # linux/tcp.h
SO_LINGER_NONE = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def wire() -> Iterator[Streams]:
    """A guest on a TAP that does nothing bad."""
    with tcp_host() as host, tcp_guest(host) as session:
        yield Streams(host, session)


def reset_seen(sock: socket.socket) -> bool:
    """Whether the kernel's next read gives ECONNRESET; None of the data before it is lost."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    return False


# -- data ------------------------------------------------------------------------------------------------------------


@BOTH
def test_e30_ten_megabytes_go_each_way_at_once(wire: Streams, role: str, version: int) -> None:
    there, back = stream(version, 10 * MB), stream(version + 1, 10 * MB)
    with wire.connected(role, version) as link:
        writing = link.job(lambda calls: guest_writes(calls, link.fd, there))
        reading = link.job(lambda calls: digest(guest_reads(calls, link.fd)))
        assert digest(kernel_exchanges(link.sock, back)) == digest(there)
        assert reading.result() == digest(back)
        writing.result()


@BOTH
def test_e53_ten_megabytes_take_less_than_four_seconds_each_way(wire: Streams, role: str, version: int) -> None:
    """More than 20 Mbit/s, which the row asks for in so many words; a slow machine has twenty times that."""
    data = stream(version, 10 * MB)
    with wire.connected(role, version) as link:
        started = time.monotonic()
        writing = link.job(lambda calls: guest_writes(calls, link.fd, data))
        assert kernel_reads(link.sock) == data
        out = time.monotonic() - started
        writing.result()
        reading = link.job(lambda calls: guest_reads(calls, link.fd))
        started = time.monotonic()
        link.sock.sendall(data)
        link.sock.shutdown(socket.SHUT_WR)
        assert reading.result() == data
        into = time.monotonic() - started
    assert max(out, into) < 4, f"{out:.1f} s out of the guest, {into:.1f} s into it"


@EACH_ROLE
def test_e30_a_half_closed_stream_still_goes_the_other_way(wire: Streams, role: str, version: int) -> None:
    data = stream(version, 200_000)
    with wire.connected(role, version) as link:
        link.calls.send(link.fd, b"only this")
        link.calls.shutdown(link.fd, c.SHUT_WR)
        assert kernel_reads(link.sock) == b"only this"
        assert kernel_info(link.sock).state == "CLOSE_WAIT"
        assert until(lambda: link.guest_info.state == "FIN_WAIT_2")
        reading = link.job(lambda calls: guest_reads(calls, link.fd))
        link.sock.sendall(data)
        link.sock.close()
        assert digest(reading.result()) == digest(data)
    with wire.connected(role, version) as link:
        link.sock.sendall(b"only this")
        link.sock.shutdown(socket.SHUT_WR)
        assert link.job(lambda calls: guest_reads(calls, link.fd)).result() == b"only this"
        assert link.guest_info.state == "CLOSE_WAIT"
        assert until(lambda: kernel_info(link.sock).state == "FIN_WAIT_2")
        writing = link.job(lambda calls: guest_writes(calls, link.fd, data))
        assert digest(kernel_reads(link.sock)) == digest(data)
        writing.result()
        assert until(lambda: kernel_info(link.sock).state in ("CLOSED", "TIME_WAIT"))


@pytest.mark.parametrize("first", ["guest", "kernel"])
def test_e30_the_side_that_closes_first_waits_and_its_port_connects_again(wire: Streams, first: str) -> None:
    with wire.connected(LISTENS) as link:
        server, client = link.calls.getsockname(link.fd), link.sock.getsockname()
        if first == "guest":
            link.calls.close(link.fd)
            assert link.sock.recv(1) == b""
            link.sock.close()
        else:
            link.sock.close()
            assert link.calls.recv(link.fd, 1) == b""
            link.calls.close(link.fd)
    # The same two ends again, while one side still waits: the new SYN is newer (RFC 6191), and is let in.
    calls = wire.session.calls
    listening = calls.socket(c.AF_INET)
    calls.setsockopt(listening, c.SOL_SOCKET, c.SO_REUSEADDR, 1)
    calls.bind(listening, server)
    calls.listen(listening, 1)
    again = wire.socket()
    again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    again.bind(client)
    until(lambda: False, 0.002)  # timestamps count milliseconds: the next one is newer
    again.connect(server)
    fd, _ = calls.accept(listening)
    calls.send(fd, b"again")
    assert again.recv(10) == b"again"
    again.close()
    calls.close(fd)
    calls.close(listening)


@pytest.mark.parametrize("version", VERSIONS)
def test_e40_a_port_where_nobody_listens_refuses_both_ways(wire: Streams, version: int) -> None:
    calls = wire.session.calls
    fd = calls.socket(GUEST_FAMILY[version])
    with pytest.raises(ConnectionRefusedError):
        calls.connect(fd, (HOST[version], 4))
    calls.close(fd)
    with wire.socket(version) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((GUEST[version], 4))


# -- flow control ----------------------------------------------------------------------------------------------------


def fill(write: Callable[[bytes], int], quiet: Callable[[], bool]) -> int:
    """Write until no more is taken and nothing moves any more; how many bytes were taken."""
    taken = 0

    def full() -> bool:
        nonlocal taken
        try:
            while True:
                taken += write(bytes(4096))
        except BlockingIOError:
            return quiet()

    assert until(full), f"{taken} bytes were taken, and more are"
    return taken


@EACH_ROLE
def test_e34_a_kernel_that_does_not_read_is_waited_for(wire: Streams, role: str, version: int) -> None:
    def small(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)

    before = wire.session.counters()["guest"]["tcp"]
    with wire.connected(role, version, kernel=small) as link:
        calls, fd = link.calls, link.fd
        written = fill(
            lambda data: calls.send(fd, data, c.MSG_DONTWAIT),
            lambda: link.ask(lambda end: end.info().snd_wnd) < 1448 and link.ask(lambda end: end.unacked) > 0,
        )
        probes = lambda: wire.session.counters()["guest"]["tcp"]["tx_window_probes"] - before["tx_window_probes"]  # noqa: E731
        assert until(lambda: probes() >= 2), "the closed window is not probed"
        assert link.guest_info.state == "ESTABLISHED"
        calls.shutdown(fd, c.SHUT_WR)
        assert len(kernel_reads(link.sock)) == written


@EACH_ROLE
def test_e34_a_guest_that_does_not_read_closes_its_window_and_opens_it(wire: Streams, role: str, version: int) -> None:
    def small(calls: Any, fd: int) -> None:
        calls.setsockopt(fd, c.SOL_SOCKET, c.SO_RCVBUF, 20_000)

    with wire.connected(role, version, guest=small) as link:
        link.sock.setblocking(False)
        before = kernel_counters(wire.host)["TCPWinProbe"]
        written = fill(link.sock.send, lambda: kernel_counters(wire.host)["TCPWinProbe"] >= before + 2)
        assert kernel_figure(link.sock, "snd_wnd") < 1448
        link.sock.setblocking(True)
        link.sock.shutdown(socket.SHUT_WR)
        assert len(link.job(lambda calls: guest_reads(calls, link.fd)).result()) == written


@EACH_ROLE
def test_rfc7323_2_windows_beyond_64_kilobytes_are_used_both_ways(wire: Streams, role: str, version: int) -> None:
    def large(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def large_too(calls: Any, fd: int) -> None:
        calls.setsockopt(fd, c.SOL_SOCKET, c.SO_RCVBUF, 1 << 20)
        calls.setsockopt(fd, c.SOL_SOCKET, c.SO_SNDBUF, 1 << 20)

    with wire.connected(role, version, kernel=large, guest=large_too) as link:
        mine = kernel_info(link.sock)
        assert mine.options & WSCALE, mine
        assert mine.snd_wscale > 0 < mine.rcv_wscale, mine
        assert link.guest_info.snd_wscale == mine.rcv_wscale, "each scales by what the other has said"
        assert link.guest_info.rcv_wscale == mine.snd_wscale
        data = stream(1, 300_000)
        link.sock.sendall(data)  # nobody reads, and all of it arrives
        assert until(lambda: link.ask(lambda end: end.unread) == len(data))
        for at in range(0, len(data), 1 << 16):
            link.calls.send(link.fd, data[at : at + (1 << 16)])
        assert until(lambda: link.ask(lambda end: end.unacked) == 0), "the kernel has room for all of it"
        assert link.sock.recv(len(data), socket.MSG_WAITALL) == data


# -- the end ---------------------------------------------------------------------------------------------------------


@EACH_ROLE
def test_e40_a_reset_reaches_the_other_side(wire: Streams, role: str, version: int) -> None:
    """By SO_LINGER with no time, and by closing with data unread: each from each side."""
    with wire.connected(role, version) as link:
        link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, SO_LINGER_NONE)
        link.sock.close()
        with pytest.raises(ConnectionResetError):
            link.calls.recv(link.fd, 10)
        assert link.calls.recv(link.fd, 10) == b"", "it is told once"
        with pytest.raises(BrokenPipeError):
            link.calls.send(link.fd, b"x")
    with wire.connected(role, version) as link:
        link.calls.setsockopt(link.fd, c.SOL_SOCKET, c.SO_LINGER, SO_LINGER_NONE)
        link.calls.close(link.fd)
        assert reset_seen(link.sock)
    with wire.connected(role, version) as link:
        link.calls.send(link.fd, b"never read")
        assert until(lambda: bool(select.select([link.sock], [], [], 0)[0]))
        link.sock.close()
        with pytest.raises(ConnectionResetError):
            link.calls.recv(link.fd, 10)
    with wire.connected(role, version) as link:
        link.sock.send(b"never read")
        assert until(lambda: link.ask(lambda end: end.unread) == 10)
        link.calls.close(link.fd)
        assert reset_seen(link.sock)


def test_e40_data_for_a_guest_that_has_closed_is_answered_with_a_reset(wire: Streams) -> None:
    with wire.connected() as link:
        link.calls.close(link.fd)
        assert link.sock.recv(1) == b""
        link.sock.send(b"too late")
        assert until(lambda: kernel_info(link.sock).state == "CLOSED")
        with pytest.raises(BrokenPipeError):
            link.sock.send(b"x")


# -- urgent data -----------------------------------------------------------------------------------------------------


def test_d15_the_kernel_sends_urgent_data_to_the_guest(wire: Streams) -> None:
    with wire.connected(LISTENS) as link:
        calls, fd = link.calls, link.fd
        link.sock.send(b"abc")
        link.sock.send(b"de!", socket.MSG_OOB)
        link.sock.send(b"fgh")
        assert until(lambda: calls.poll([(fd, c.POLLPRI)], 0) == [(fd, c.POLLPRI)])
        assert until(lambda: link.ask(lambda end: end.connection.rcv_nxt - end.connection.irs) == 10)
        assert calls.ioctl(fd, c.SIOCATMARK) == 0
        assert calls.recv(fd, 1, c.MSG_OOB) == b"!"
        with pytest.raises(OSError, match="Invalid argument"):
            calls.recv(fd, 1, c.MSG_OOB)
        assert calls.recv(fd, 100) == b"abcde", "a read stops at the mark"
        assert calls.ioctl(fd, c.SIOCATMARK) == 1
        assert calls.recv(fd, 100) == b"fgh"
        assert calls.ioctl(fd, c.SIOCATMARK) == 0


def test_d15_urgent_data_stays_in_line_where_the_guest_wants_it(wire: Streams) -> None:
    inline = lambda calls, fd: calls.setsockopt(fd, c.SOL_SOCKET, c.SO_OOBINLINE, 1)  # noqa: E731
    with wire.connected(CONNECTS, guest=inline) as link:
        calls, fd = link.calls, link.fd
        link.sock.send(b"abc")
        link.sock.send(b"!", socket.MSG_OOB)
        link.sock.send(b"d")
        assert until(lambda: link.ask(lambda end: end.unread) == 5)
        assert calls.recv(fd, 100) == b"abc"
        assert calls.ioctl(fd, c.SIOCATMARK) == 1
        assert calls.recv(fd, 100) == b"!d"
        with pytest.raises(OSError, match="Invalid argument"):
            calls.recv(fd, 1, c.MSG_OOB)


def at_mark(sock: socket.socket) -> bool:
    """SIOCATMARK of the kernel's."""
    return bool(struct.unpack("i", fcntl.ioctl(sock, c.SIOCATMARK, bytes(4)))[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_d15_the_guest_sends_urgent_data_to_the_kernel(wire: Streams, version: int) -> None:
    with wire.connected(CONNECTS, version) as link:
        link.calls.send(link.fd, b"abc")
        link.calls.send(link.fd, b"de!", c.MSG_OOB)
        link.calls.send(link.fd, b"fgh")
        poll = select.poll()
        poll.register(link.sock, select.POLLPRI)
        assert poll.poll(10_000) == [(link.sock.fileno(), select.POLLPRI)]
        assert until(lambda: link.ask(lambda end: end.unacked) == 0)
        assert link.sock.recv(1, socket.MSG_OOB) == b"!"
        assert link.sock.recv(100) == b"abcde"
        assert at_mark(link.sock)
        assert link.sock.recv(100) == b"fgh"
        assert not at_mark(link.sock)
    inline = lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # noqa: E731
    with wire.connected(LISTENS, version, kernel=inline) as link:
        link.calls.send(link.fd, b"abc")
        link.calls.send(link.fd, b"!", c.MSG_OOB)
        link.calls.send(link.fd, b"d")
        assert until(lambda: link.ask(lambda end: end.unacked) == 0)
        assert link.sock.recv(100) == b"abc"
        assert at_mark(link.sock)
        assert link.sock.recv(100) == b"!d"


# -- keepalives ------------------------------------------------------------------------------------------------------


def test_rfc9293_3_8_4_keepalives_are_answered_both_ways(wire: Streams) -> None:
    """The kernel probes after a second of silence, the guest after six tenths, for an answer to an ACK that is out of
    the window comes twice a second at most; and all stay connected.
    """

    def often(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 1)):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def probing(link: Link) -> None:
        def set_up(end: Any) -> None:
            end.options.keepalive = True
            end.settings.keepidle = end.settings.keepintvl = 600_000
            end.settings.keepcnt = 1
            end.settings_changed()

        link.ask(set_up)

    kernel_before = kernel_counters(wire.host)["TCPKeepAlive"]
    with wire.connected(CONNECTS, kernel=often) as probed, wire.connected(LISTENS, 6) as prober:
        probing(prober)
        assert until(lambda: kernel_counters(wire.host)["TCPKeepAlive"] > kernel_before)
        assert until(lambda: kernel_info(probed.sock).last_ack_recv < 500), "the guest does not answer a probe"
        assert prober.ask(lambda end: end.info().idle) < 600_000, "the kernel does not answer the guest's probe"
        for link in (probed, prober):
            link.calls.send(link.fd, b"still here")
            assert link.sock.recv(20) == b"still here"


def test_rfc9293_3_8_4_a_kernel_that_has_forgotten_the_connection_resets_the_guests(wire: Streams) -> None:
    with wire.connected() as link:
        link.calls.setsockopt(link.fd, c.SOL_SOCKET, c.SO_KEEPALIVE, 1)
        link.sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        link.sock.close()  # without a word, as if it had crashed

        def hurry(end: Any) -> None:
            end.settings.keepidle = 50_000
            end.settings_changed()

        link.ask(hurry)
        with pytest.raises(ConnectionResetError):
            link.calls.recv(link.fd, 10)


# -- options ---------------------------------------------------------------------------------------------------------

OPTIONS = {"tcp_timestamps": STAMPS, "tcp_sack": SACK, "tcp_window_scaling": WSCALE}


@pytest.mark.parametrize("without", ["nothing", *OPTIONS])
def test_options_are_used_where_both_sides_have_them(wire: Streams, without: str) -> None:
    data = stream(3, 300_000)
    expected = sum(bit for name, bit in OPTIONS.items() if name != without)
    if without != "nothing":
        wire.host.run("sysctl", "-qw", f"net.ipv4.{without}=0")
    try:
        for role in ROLES:
            with wire.connected(role) as link:
                assert kernel_info(link.sock).options == expected
                assert link.guest_info.options == expected
                reading = link.job(lambda calls, link=link: guest_reads(calls, link.fd))  # type: ignore[misc]
                link.sock.sendall(data)
                link.sock.shutdown(socket.SHUT_WR)
                assert digest(reading.result()) == digest(data)
                writing = link.job(lambda calls, link=link: guest_writes(calls, link.fd, data))  # type: ignore[misc]
                assert digest(kernel_reads(link.sock)) == digest(data)
                writing.result()
    finally:
        if without != "nothing":
            wire.host.run("sysctl", "-qw", f"net.ipv4.{without}=1")


@BOTH
def test_segments_are_as_large_as_the_wire_allows(wire: Streams, role: str, version: int) -> None:
    room = 1500 - (40 if version == 4 else 60)
    with wire.connected(role, version) as link:
        writing = link.job(lambda calls: guest_writes(calls, link.fd, bytes(50_000)))
        kernel_reads(link.sock)
        writing.result()
        mine, its = kernel_info(link.sock), link.guest_info
        assert mine.snd_mss == mine.rcv_mss == its.snd_mss == room - 12, "timestamps take 12"
        assert its.advmss in (room, room - 12)


def marks(host: Namespace, chain: str) -> None:
    """Mark everything that can be marked as having met congestion (RFC 3168), in one direction."""
    host.need("nft", "add table inet congested")
    host.run("nft", f"add chain inet congested c {{ type filter hook {chain} priority 0; }};")
    for family in ("ip", "ip6"):
        host.run("nft", f"add rule inet congested c {family} ecn ect0 {family} ecn set ce")


@pytest.mark.parametrize(("role", "version"), [(CONNECTS, 6), (LISTENS, 4)])
def test_rfc3168_the_kernels_marks_are_echoed_by_the_guest_and_the_other_way(role: str, version: int) -> None:
    """Every packet is marked, in either direction; who sends hears of it and goes slower, and nothing is lost."""
    data = stream(4, 200_000)
    with tcp_host() as host, tcp_guest(host) as session:
        host.run("sysctl", "-qw", "net.ipv4.tcp_ecn=1", "net.ipv4.tcp_congestion_control=reno")
        set_tcp(session, ecn=1)
        wire = Streams(host, session)
        marks(host, "output")
        with wire.connected(role, version) as link:
            assert kernel_info(link.sock).options & ECN
            reading = link.job(lambda calls: guest_reads(calls, link.fd))
            link.sock.sendall(data)
            link.sock.shutdown(socket.SHUT_WR)
            assert digest(reading.result()) == digest(data)
            assert until(lambda: kernel_figure(link.sock, "delivered_ce") > 10), "the guest does not echo the marks"
            assert kernel_info(link.sock).total_retrans == 0
        host.run("nft", "flush ruleset")
        marks(host, "input")
        with wire.connected(role, version) as link:
            assert link.ask(lambda end: end.info().ecn)
            writing = link.job(lambda calls: guest_writes(calls, link.fd, data))
            assert digest(kernel_reads(link.sock)) == digest(data)
            writing.result()
            assert kernel_info(link.sock).options & ECN_SEEN, "what the guest sends says that it can be marked"
            info = link.ask(lambda end: end.info())
            assert 0 < info.ssthresh < 100_000, "the guest does not slow down when it hears of marks"


# -- narrow paths ----------------------------------------------------------------------------------------------------


def test_jumbo_frames_carry_jumbo_segments() -> None:
    with tcp_host(mtu=9000) as host, tcp_guest(host, mtu=9000) as session:
        wire = Streams(host, session)
        for role, version in ((CONNECTS, 4), (LISTENS, 6)):
            data = stream(version, MB)
            with wire.connected(role, version) as link:
                writing = link.job(lambda calls, link=link, data=data: guest_writes(calls, link.fd, data))  # type: ignore[misc]
                assert digest(kernel_reads(link.sock)) == digest(data)
                writing.result()
                room = 9000 - (40 if version == 4 else 60) - 12
                assert link.guest_info.snd_mss == room
                assert kernel_info(link.sock).rcv_mss == room
                assert kernel_info(link.sock).snd_mss == room


FAR = {4: "10.8.0.2", 6: "fd08::2"}


@contextmanager
def two_hops(mtu: int) -> Iterator[tuple[Namespace, Namespace]]:
    """guest — t0, router, v0 — v1, server: the namespaces of a router, whose second wire is narrower, and of a server.

    The server's own end of that wire takes 1500, so the handshake does not say how narrow it is.
    """
    with namespace() as router, namespace() as far:
        make_tap(router, "t0", f"{HOST4}/24", f"{HOST6}/64")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        router.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", far.path)
        for host, name, number in ((router, "v0", 1), (far, "v1", 2)):
            host.run("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=0", f"net.ipv6.conf.{name}.accept_dad=0")
            host.run("ip", "addr", "add", f"10.8.0.{number}/24", "dev", name)
            host.run("ip", "addr", "add", f"fd08::{number}/64", "dev", name)
            host.run("ip", "link", "set", name, "up")
        router.run("ip", "link", "set", "v0", "mtu", str(mtu))
        far.run("ip", "route", "add", "default", "via", "10.8.0.1")
        far.run("ip", "-6", "route", "add", "default", "via", "fd08::1")
        yield router, far


def test_rfc1191_rfc8201_a_router_says_that_the_path_is_narrow_and_segments_become_smaller() -> None:
    data = stream(5, 300_000)
    with two_hops(1300) as (router, far), tcp_guest(router, words=f"-gateway {HOST4}") as session:
        session.calls.add_route("::", 0, HOST6)
        wire = Streams(far, session, FAR)
        for version in VERSIONS:
            with wire.connected(CONNECTS, version) as link:
                writing = link.job(lambda calls, fd=link.fd: guest_writes(calls, fd, data))  # type: ignore[misc]
                assert digest(kernel_reads(link.sock)) == digest(data)
                writing.result()
                assert link.guest_info.snd_mss == 1300 - (40 if version == 4 else 60) - 12
        counters = session.counters()["guest"]["tcp"]
        assert (counters["path_mtu_lowered"], counters["black_holes"]) == (2, 0), counters
