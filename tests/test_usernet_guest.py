"""The user wire as a whole guest sees it, with its card, DHCP and sockets, and as a user of the command meets it."""

from __future__ import annotations

import hashlib
import http.server
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest

import vring
from guest.net.address import format_address, parse_address
from guest.sys import constants as c
from tests.tap_tcp import Job
from tests.user_world import has_ipv6
from vring.config import ConfigError
from vring.session import Session

PATIENCE = 20.0
COMMAND = [sys.executable, "-c", "from vring.cli import main; main()"]
PAGE = random.Random(8).randbytes(3_000_000)


@contextmanager
def web_server() -> Iterator[int]:
    """A web server on the host's loopback; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    words = "user:hostfwd=tcp::0-:80,dnsname=here.test=10.0.2.2,dnsname=here.test=fec0::2,hostname=box,domainname=test"
    with vring.boot(wire=words, cmdline="-dhcp -ip6", seed=3) as made:
        assert made.run_until(lambda: made.guest.booted, PATIENCE), made.console
        yield made


def has(session: Session, address: str) -> bool:
    wanted = parse_address(address)
    return session.run_until(lambda: session.guest.stack.ip.is_local(wanted), PATIENCE)


def fetch(session: Session, host: str, port: int) -> bytes:
    """GET / over the guest's sockets."""
    connection = HTTPConnection(host, port, timeout=PATIENCE)
    sockets: Any = session.guest.socket
    connection.sock = sockets.create_connection((host, port), PATIENCE)
    connection.request("GET", "/")
    body = connection.getresponse().read()
    connection.close()
    return body


def test_d13_the_guest_gets_qemus_addresses_by_dhcp(session: Session) -> None:
    assert has(session, "10.0.2.15")
    stack = session.guest.stack
    routes = session.call(lambda: [(str(route.prefix), route.gateway) for route in stack.routes])
    assert ("0.0.0.0/0", parse_address("10.0.2.2")) in routes
    assert "offer of 10.0.2.15/24 from 10.0.2.2" in session.log


def test_d13_the_guest_makes_itself_an_address_of_the_advertised_network(session: Session) -> None:
    stack = session.guest.stack
    prefix = parse_address("fec0::") >> 64

    def addressed() -> bool:
        eth = stack.interfaces[1]
        return any(each.address >> 64 == prefix and each.address not in eth.tentative for each in eth.addresses)

    assert session.run_until(addressed, PATIENCE), "no address"
    routes = session.call(lambda: [(str(route.prefix), route.gateway) for route in stack.routes])
    assert ("::/0", parse_address("fe80::2")) in routes
    servers = session.call(lambda: [format_address(server) for server in stack.dns_servers])
    assert servers == ["fec0::3"]


@pytest.mark.parametrize("host", ["10.0.2.2", "here.test"])
def test_e56_the_guest_fetches_a_page_from_the_hosts_loopback(session: Session, host: str) -> None:
    with web_server() as port:
        body = fetch(session, host, port)

    assert hashlib.sha256(body).digest() == hashlib.sha256(PAGE).digest()


def test_e55_the_guest_serves_what_the_host_fetches_through_a_forward(session: Session) -> None:
    port = session.hostfwds()[0].port

    def serve(calls: Any) -> None:
        listening = calls.socket(c.AF_INET, c.SOCK_STREAM)
        calls.bind(listening, ("0.0.0.0", 80))
        calls.listen(listening, 5)
        fd, peer = calls.accept(listening)
        assert peer[0] == "10.0.2.2", "callers come from the gateway"
        while not calls.recv(fd, 4096).endswith(b"\r\n\r\n"):
            pass
        view = memoryview(b"HTTP/1.0 200 OK\r\n\r\n" + PAGE)
        while view:
            view = view[calls.send(fd, view[:65536]) :]
        calls.close(fd)
        calls.close(listening)

    serving = Job(session, serve)
    assert session.run_until(lambda: any(end.listening for end in session.guest.stack.tcp.ends), PATIENCE)
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", "/")
    body = connection.getresponse().read()
    connection.close()
    serving.result()
    assert hashlib.sha256(body).digest() == hashlib.sha256(PAGE).digest()


def test_n5_the_same_host_port_leads_to_another_port_of_the_guest_while_it_runs(session: Session) -> None:
    """What the seed's test does: 8080 to 80, and then it talks to the echo server, which listens on 7."""
    first = session.hostfwds()[0]
    assert session.hostfwd_remove(first.host_side)
    rule = session.hostfwd_add(f"tcp::{first.port}-:7")

    def echo(calls: Any) -> None:
        listening = calls.socket(c.AF_INET, c.SOCK_STREAM)
        calls.bind(listening, ("0.0.0.0", 7))
        calls.listen(listening, 5)
        fd, _ = calls.accept(listening)
        while data := calls.recv(fd, 4096):
            calls.send(fd, data)
        calls.close(fd)
        calls.close(listening)

    echoing = Job(session, echo)
    assert session.run_until(lambda: any(end.listening for end in session.guest.stack.tcp.ends), PATIENCE)
    with socket.create_connection(("127.0.0.1", rule.port), PATIENCE) as sock:
        sock.sendall(b"hello, world")
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while data := sock.recv(4096):
            got += data
    echoing.result()
    assert got == b"hello, world"
    assert session.hostfwd_remove(f"tcp::{rule.port}")
    assert session.hostfwds() == []
    session.hostfwd_add(str(first))


def test_d13_the_session_says_what_is_wrong_with_a_rule(session: Session) -> None:
    with pytest.raises(ConfigError, match=r"there is no .-."):
        session.hostfwd_add("tcp::8080")
    with pytest.raises(ConfigError, match=r"there is no user wire at .guest\.eth1.; there are guest\.eth0"):
        session.hostfwd_add("tcp::0-:80", card="guest.eth1")
    with vring.boot(wire="hub") as other, pytest.raises(ConfigError, match="the board has no user wire"):
        other.hostfwds()


@pytest.mark.skipif(not has_ipv6(), reason="the host has no ::1")
def test_d13_the_guest_reaches_the_hosts_ipv6_loopback(session: Session) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        sockets: Any = session.guest.socket
        with sockets.create_connection(("fec0::2", server.getsockname()[1]), PATIENCE) as sock:
            there, _ = server.accept()
            with there:
                there.sendall(b"over IPv6")
                assert sock.recv(100) == b"over IPv6"


def test_e53_ten_megabytes_each_way_take_less_than_four_seconds(session: Session) -> None:
    """More than 20 Mbit/s, twenty times what the row asks for."""
    data = random.Random(4).randbytes(10_000_000)
    sockets: Any = session.guest.socket

    def timed(reader: Any, writer: Any) -> int:
        """Microseconds that the data takes."""
        writing = threading.Thread(target=lambda: (writer.sendall(data), writer.shutdown(socket.SHUT_WR)))
        started = session.now()
        writing.start()
        got = bytearray()
        while piece := reader.recv(1 << 18):
            got += piece
        took = session.now() - started
        writing.join()
        assert got == data, "other bytes came than were sent"
        return took

    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = sockets.create_connection(("10.0.2.2", server.getsockname()[1]), PATIENCE)
        there, _ = server.accept()
        with sock, there:
            into, out = timed(sock, there), timed(there, sock)
    assert max(into, out) < 4_000_000, f"{into} µs into the guest, {out} µs out of it"


def test_d13_a_restricted_guest_is_given_an_address_and_no_way_out() -> None:
    """As with QEMU: no router, no name server."""
    with vring.boot(wire="user:restrict=on", cmdline="-dhcp") as session:
        assert has(session, "10.0.2.15"), session.console
        stack = session.guest.stack
        assert [str(route.prefix) for route in stack.routes if route.gateway is not None] == []
        sockets: Any = session.guest.socket
        with pytest.raises(OSError, match="unreachable"):
            sockets.create_connection(("198.51.100.1", 80), PATIENCE)
        with pytest.raises(ConnectionRefusedError):  # the gateway is there, as a host with nothing behind it
            sockets.create_connection(("10.0.2.2", 80), PATIENCE)


@pytest.mark.parametrize(
    ("nic", "wire"), [("virtio:mtu=65520", "user:mtu=65520"), ("virtio:offload=on", "user")], ids=["mtu", "offload"]
)
def test_d13_a_wire_with_a_large_mtu_or_offload_carries_large_packets(nic: str, wire: str) -> None:
    data = random.Random(5).randbytes(1_000_000)
    with vring.boot(nic=nic, wire=wire, cmdline="-dhcp") as session:
        assert has(session, "10.0.2.15"), session.console
        sockets: Any = session.guest.socket
        with socket.create_server(("127.0.0.1", 0)) as server:
            sock = sockets.create_connection(("10.0.2.2", server.getsockname()[1]), PATIENCE)
            there, _ = server.accept()
            with sock, there:
                writing = threading.Thread(target=lambda: (there.sendall(data), there.shutdown(socket.SHUT_WR)))
                writing.start()
                got = b""
                while piece := sock.recv(1 << 18):
                    got += piece
                writing.join()
        assert got == data
        segments = session.call(lambda: session.guest.stack.tcp.counters["rx_segments"])
        assert segments < 100, "they came in small ones"


# -- the command -----------------------------------------------------------------------------------------------------


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_e56_the_command_boots_pings_the_gateway_and_counts() -> None:
    words = ("boot", "--wire", "user", "--exit-status", "--", "-dhcp", "-s", "ping", "10.0.2.2", "-c", "2", "-i", "0.1")
    done = command(*words)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 packets transmitted, 2 received" in done.stdout


def test_d13_mistakes_and_failures_of_the_command_are_one_line() -> None:
    bad = command("boot", "--wire", "user:hostfwd=tcp::8080")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1), bad.stderr
    assert bad.stderr.startswith("vring: wire 'user:hostfwd=tcp::8080': hostfwd=tcp::8080: there is no '-'")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = command("boot", "--wire", f"user:hostfwd=tcp::{port}-:80")
    assert (taken.returncode, taken.stderr.count("\n")) == (1, 1), taken.stderr
    assert f"port {port} is in use by another program; choose another, or port 0" in taken.stderr
