"""Small programs over a module `socket`, and what each saw: run over the host's kernel and over a guest they must see
the same.

A script gets the module, and `tell`, which notes a value or the exception that came instead. Addresses of the loopback
are all that they use; numbers that differ from run to run (ports, descriptors) are not told.
"""

from __future__ import annotations

import copy
import re
import tempfile
import weakref
from collections.abc import Callable
from typing import Any


class Tell:
    """Notes what a script saw, a line for each thing."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @property
    def text(self) -> str:
        """All that was noted."""
        return "\n".join(self.lines)

    def __call__(self, *values: Any) -> None:
        self.lines.append(" ".join(map(repr, values)))

    def error(self, call: Callable[[], Any], *, text: bool = False) -> None:
        """Note the exception that `call` raises: its type and number, and what it says if `text`."""
        try:
            value = call()
        except Exception as error:
            number = getattr(error, "errno", None)
            self.lines.append(f"{type(error).__name__} {number}" + (f" {error}" if text else ""))
        else:
            self.lines.append(f"no error but {value!r}")


def pair(socket: Any) -> tuple[Any, Any]:
    """The two ends of a connection over the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def plain(text: str) -> str:
    """A `repr` of a socket without what differs from run to run."""
    return re.sub(r"fd=\d+|\('127\.0\.0\.1', \d{2,}\)|<[\w.]*socket", "…", text)


def conversation(socket: Any, tell: Tell) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=5)
    tell(listener.family, listener.type, listener.proto, listener.gettimeout(), listener.getblocking())
    client = socket.create_connection(listener.getsockname(), timeout=5)
    tell(client.family, client.type, client.gettimeout(), client.timeout)
    server, peer = listener.accept()
    tell(type(server) is socket.socket, peer == client.getsockname() == server.getpeername(), server.gettimeout())
    tell(plain(repr(client)), plain(repr(listener)))
    tell(client.sendall(b"hello"), server.recv(5, socket.MSG_WAITALL))
    tell(server.send(b"and good bye"), client.recv(3), client.recv(100))
    tell(client.shutdown(socket.SHUT_WR), server.recv(100), server.recv(100))
    tell(server.sendall(b"late"), client.recv(100))
    server.close()
    tell(client.recv(100), client.close(), client.close(), client.fileno(), listener.close())
    tell(plain(repr(client)))


def failures(socket: Any, tell: Tell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        used = listener.getsockname()
        tell.error(lambda: socket.create_server(("127.0.0.1", used[1]), reuse_port=False))
        tell.error(listener.getpeername, text=True)
        tell.error(lambda: listener.recv(1), text=True)
        tell.error(lambda: listener.connect(used))
    tell.error(lambda: socket.create_connection(used), text=True)
    tell.error(lambda: socket.create_connection(used, all_errors=True))
    with socket.socket() as sock:
        tell(sock.connect_ex(used))
        tell.error(lambda: sock.send(b"x"))
        tell.error(lambda: sock.recv(1))
        tell.error(sock.accept, text=True)
        tell.error(lambda: sock.shutdown(socket.SHUT_RD))
        tell.error(lambda: sock.bind(("192.0.2.1", 0)), text=True)
        tell.error(lambda: sock.bind(("127.0.0.1",)))
        tell.error(lambda: sock.bind(("127.0.0.1", 70000)))
        tell.error(lambda: sock.bind("127.0.0.1"))
        tell.error(lambda: sock.bind((1, 2)))
        tell.error(lambda: sock.getsockopt(socket.SOL_SOCKET, 9999), text=True)
        tell.error(lambda: sock.setsockopt(socket.SOL_SOCKET, 9999, 1), text=True)
        tell.error(lambda: sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, "yes"))
        tell.error(lambda: sock.recv(-1))
        tell.error(lambda: sock.send("text"))
        tell.error(lambda: sock.sendto(b"x"))
    tell.error(lambda: sock.recv(1), text=True)
    tell.error(sock.getsockname)
    tell.error(lambda: sock.connect(used))
    tell.error(lambda: socket.socket(fileno=-1))
    tell.error(lambda: socket.socket(fileno="1"))
    tell.error(lambda: socket.socket(12345))
    tell.error(lambda: socket.socket(socket.AF_INET, 77))
    tell.error(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_UDP))


def resets(socket: Any, tell: Tell) -> None:
    client, server = pair(socket)
    server.sendall(b"never read")
    tell(client.recv(1, socket.MSG_PEEK))
    client.close()  # with data unread: a reset
    tell.error(lambda: server.recv(1), text=True)
    tell(server.recv(1))
    tell.error(lambda: server.send(b"x"), text=True)
    server.close()


def timeouts(socket: Any, tell: Tell) -> None:
    client, server = pair(socket)
    client.settimeout(0.01)
    tell.error(lambda: client.recv(1), text=True)
    tell(client.gettimeout(), client.getblocking())
    client.setblocking(False)
    tell(client.gettimeout(), client.getblocking(), client.timeout)
    tell.error(lambda: client.recv(1), text=True)
    server.sendall(b"x")
    client.setblocking(True)
    tell(client.recv(1), client.gettimeout(), client.getblocking())
    tell.error(lambda: client.recv(1, socket.MSG_DONTWAIT))
    for wrong in (-1, "1", float("nan"), 1e300):
        tell.error(lambda wrong=wrong: client.settimeout(wrong))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.01)
        tell.error(listener.accept, text=True)
        listener.settimeout(0)
        tell.error(listener.accept)
        with socket.socket() as sock:
            sock.setblocking(False)
            tell(sock.connect_ex(listener.getsockname()) in (0, 115))
    tell(socket.getdefaulttimeout())
    socket.setdefaulttimeout(2.5)
    try:
        with socket.socket() as sock:
            tell(sock.gettimeout(), socket.getdefaulttimeout())
    finally:
        socket.setdefaulttimeout(None)
    tell.error(lambda: socket.setdefaulttimeout(-1))
    client.settimeout(0.05)
    tell.error(lambda: client.sendall(bytes(1 << 24)), text=True)
    client.close()
    server.close()


def streams(socket: Any, tell: Tell) -> None:
    client, server = pair(socket)
    with client.makefile("w", encoding="utf-8", newline="\r\n") as out, server.makefile("rb") as lines:
        tell(out.mode, lines.mode if hasattr(lines, "mode") else None, out.encoding)
        print("first\nsecönd", file=out, flush=True)
        tell(lines.readline(), lines.readline())
        out.write("rest")
    client.close()
    tell(server.recv(100), server.recv(100))
    both = server.makefile("rwb", buffering=0)
    tell(both.readable(), both.writable(), both.seekable(), both.mode, both.name == both.fileno(), both.closed)
    server.close()
    tell(both.read(10), both.closed)
    tell.error(both.seek)
    both.close()
    for call in (both.fileno, both.readable, both.seekable):
        tell.error(call, text=True)
    tell.error(lambda: both.read(1))
    tell(server.fileno())
    client, server = pair(socket)
    tell.error(lambda: client.makefile("q"), text=True)
    tell.error(lambda: client.makefile("r", buffering=0), text=True)
    reader = client.makefile("rb")
    client.settimeout(0.01)
    tell.error(reader.readline, text=True)
    tell.error(reader.readline, text=True)
    client.setblocking(False)
    raw = client.makefile("rb", buffering=0)
    tell(raw.read(1), raw.readinto(bytearray(3)))
    for each in (reader, raw, client, server):
        each.close()


def messages(socket: Any, tell: Tell) -> None:
    client, server = pair(socket)
    tell(client.sendmsg([b"ab", bytearray(b"cd"), memoryview(b"ef")]), server.recvmsg(100))
    tell(client.sendmsg([]), client.sendmsg([b"xyz"], [], socket.MSG_DONTWAIT))
    buffers = [bytearray(2), bytearray(5)]
    got = server.recvmsg_into(buffers)
    tell(got, buffers)
    client.sendall(b"0123456789")
    room = bytearray(6)
    tell(server.recv_into(room), room, server.recv_into(memoryview(room)[2:], 2), room)
    tell(server.recvfrom(1), server.recvfrom_into(room, 1), room)
    for each in (client, server):
        each.close()
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("localhost", 0))
        where = one.getsockname()
        tell(other.sendto(b"hello", where), one.recvfrom(100) == (b"hello", other.getsockname()))
        tell(other.sendto(b"hello", 0, where), one.recvmsg(2)[:3])
        tell(other.sendto(b"", where), one.recv(10))
        tell(other.sendmsg([b"a", b"b"], [], 0, where), one.recv(1, socket.MSG_PEEK), one.recv(10, socket.MSG_TRUNC))
        other.connect(where)
        tell(other.send(b"x"), other.getpeername() == where, one.recv(10))
        tell.error(lambda: one.send(b"x"), text=True)
        tell.error(lambda: one.sendto(bytes(66000), where), text=True)


def sending_files(socket: Any, tell: Tell) -> None:
    client, server = pair(socket)
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789" * 1000)
        file.seek(0)
        with server.makefile("rb") as arriving:
            tell(client.sendfile(file), file.tell(), arriving.read(10000) == b"0123456789" * 1000)
        tell(client.sendfile(file, 9995), file.tell(), server.recv(100))
        tell(client.sendfile(file, 3, 4), file.tell(), server.recv(100))
        tell.error(lambda: client.sendfile(file, 0, 0), text=True)
        tell.error(lambda: client.sendfile(file, 0, 1.5), text=True)
        client.setblocking(False)
        tell.error(lambda: client.sendfile(file), text=True)
    with tempfile.TemporaryFile("w+") as text:
        tell.error(lambda: client.sendfile(text), text=True)
    client.close()
    server.close()


def descriptors(socket: Any, tell: Tell) -> None:
    client, server = pair(socket)
    twin = client.dup()
    tell(twin.fileno() != client.fileno(), twin.getsockname() == client.getsockname(), twin.get_inheritable())
    client.close()
    tell(twin.send(b"over the copy"), server.recv(100))
    number = twin.detach()
    tell(twin.fileno(), number >= 0)
    tell.error(lambda: twin.send(b"x"))
    again = socket.socket(fileno=number)
    tell(again.fileno() == number, again.family, again.type, again.proto)
    tell(again.send(b"again"), server.recv(100))
    copy = socket.fromfd(again.fileno(), socket.AF_INET, socket.SOCK_STREAM)
    again.close()
    tell(copy.send(b"copied"), server.recv(100))
    tell(server.get_inheritable(), server.set_inheritable(True), server.get_inheritable())
    third = socket.dup(copy.fileno())
    copy.close()
    server.setblocking(False)
    tell.error(lambda: server.recv(1))  # the connection is there as long as a descriptor is
    server.setblocking(True)
    tell(socket.close(third), server.recv(1))
    tell.error(lambda: socket.close(third))
    tell.error(lambda: socket.fromfd(third, socket.AF_INET, socket.SOCK_STREAM))
    tell.error(lambda: socket.socket(fileno=third))
    server.close()
    with socket.socket() as sock:
        tell(sock.fileno() >= 0)
    tell(sock.fileno())
    first, second = socket.socketpair()
    tell(first.send(b"ping"), second.recv(10), second.send(b"pong"), first.recv(10))
    first.close()
    tell(second.recv(10), second.close())


def options(socket: Any, tell: Tell) -> None:
    client, server = pair(socket)
    for level, name in (
        ("SOL_SOCKET", "SO_REUSEADDR"), ("SOL_SOCKET", "SO_KEEPALIVE"), ("SOL_SOCKET", "SO_BROADCAST"),
        ("IPPROTO_TCP", "TCP_NODELAY"), ("IPPROTO_TCP", "TCP_KEEPIDLE"), ("IPPROTO_TCP", "TCP_KEEPCNT"),
        ("IPPROTO_TCP", "TCP_CORK"), ("IPPROTO_IP", "IP_TTL"), ("IPPROTO_IP", "IP_TOS"),
    ):  # fmt: skip
        where = getattr(socket, level), getattr(socket, name)
        tell(name, client.getsockopt(*where), client.setsockopt(*where, 1), client.getsockopt(*where))
        tell(client.getsockopt(*where, 4))
    tell(client.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM)
    tell(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    tell(client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\x05\0\0\0"))
    tell(client.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    tell.error(lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE, 5000), text=True)
    client.close()
    server.close()


def names(socket: Any, tell: Tell) -> None:
    def ask(*words: Any, **more: Any) -> None:
        tell.error(lambda: socket.getaddrinfo(*words, **more), text=True)  # a list is "no error but …"

    ask("127.0.0.1", 80)
    ask("127.0.0.1", "http", type=socket.SOCK_STREAM)
    ask(b"127.0.0.1", b"53", 0, socket.SOCK_DGRAM)
    ask("::1", 80, proto=socket.IPPROTO_TCP)
    ask("fe80::1%lo", 80, proto=socket.IPPROTO_TCP)
    ask(None, 80, type=socket.SOCK_STREAM)
    ask(None, 80, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ask(None, None)
    ask("127.0.0.1", None, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
    ask("name", 80, flags=socket.AI_NUMERICHOST)
    ask("127.0.0.1", "no-such-service")
    ask("127.0.0.1", "http", flags=socket.AI_NUMERICSERV)
    ask("127.0.0.1", 80, socket.AF_INET6)
    ask("::1", 80, socket.AF_INET)
    ask("127.0.0.1", 80, 77)
    ask("127.0.0.1", 80, type=77)
    ask("127.0.0.1", 80, type=socket.SOCK_STREAM, proto=socket.IPPROTO_UDP)
    ask("127.1", 80, type=socket.SOCK_RAW)
    ask("localhost", 80, socket.AF_INET, socket.SOCK_STREAM)
    tell.error(lambda: socket.getaddrinfo(5, 80))
    tell(socket.gethostbyname("127.0.0.1"), socket.gethostbyname("localhost"), socket.gethostbyname(""))
    tell(socket.gethostbyname_ex("127.0.0.1"), socket.gethostbyname("255.255.255.255"))
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    tell(socket.getnameinfo(("127.0.0.1", 80), numeric), socket.getnameinfo(("::1", 80, 0, 0), numeric))
    tell(socket.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST))
    tell.error(lambda: socket.getnameinfo(("name", 80), numeric), text=True)
    tell.error(lambda: socket.getnameinfo(("127.0.0.1",), 0))
    tell(socket.getservbyname("http"), socket.getservbyname("domain", "udp"), socket.getservbyport(443, "tcp"))
    tell.error(lambda: socket.getservbyname("no-such-service"), text=True)
    tell.error(lambda: socket.getservbyport(65000), text=True)
    tell(socket.getprotobyname("tcp"), socket.getprotobyname("udp"), socket.getprotobyname("icmp"))
    tell(dict(socket.if_nameindex())[1], socket.if_nametoindex("lo"), socket.if_indextoname(1))
    tell.error(lambda: socket.if_nametoindex("none0"), text=True)
    tell.error(lambda: socket.if_indextoname(9999))
    tell(isinstance(socket.gethostname(), str), isinstance(socket.getfqdn(), str))


def numbers(socket: Any, tell: Tell) -> None:
    for name in ("htons", "ntohs", "htonl", "ntohl"):
        function = getattr(socket, name)
        tell(name, function(0), function(0x1234), function(0xFFFF))
        for wrong in (-1, 1 << 32, "1", 1.5):
            tell.error(lambda function=function, wrong=wrong: function(wrong))
    for text in ("127.0.0.1", "127.1", "0x7f.1", "1", "256.0.0.1", "", "1.2.3.4.5", "a"):
        tell.error(lambda text=text: socket.inet_aton(text), text=True)
    for family, text in (
        (socket.AF_INET, "10.0.0.1"), (socket.AF_INET, "10.1"), (socket.AF_INET6, "::"), (socket.AF_INET6, "::1.2.3.4"),
        (socket.AF_INET6, "1:2:3:4:5:6:7:8"), (socket.AF_INET6, "fe80::1%lo"), (socket.AF_INET6, ":::"), (99, "::"),
    ):  # fmt: skip
        tell.error(lambda family=family, text=text: socket.inet_pton(family, text), text=True)
    for family, packed in (
        (socket.AF_INET, b"\x0a\0\0\x01"), (socket.AF_INET, b"abc"), (socket.AF_INET6, bytes(15) + b"\1"),
        (99, b"1234"),
        (socket.AF_INET6, bytes(10) + b"\xff\xff\1\2\3\4"), (socket.AF_INET6, bytes(4)),
    ):  # fmt: skip
        tell.error(lambda family=family, packed=packed: socket.inet_ntop(family, packed), text=True)
    tell.error(lambda: socket.inet_ntoa(b"\1\2\3\4"))
    tell.error(lambda: socket.inet_ntoa(b"\1\2\3"), text=True)
    tell([socket.CMSG_LEN(n) for n in (0, 1, 8)], [socket.CMSG_SPACE(n) for n in (0, 1, 8)])
    tell.error(lambda: socket.CMSG_LEN(-1))


def kinds(socket: Any, tell: Tell) -> None:
    tell(socket.error is OSError, socket.timeout is TimeoutError, socket.SocketType.__name__)
    tell(issubclass(socket.gaierror, OSError), issubclass(socket.herror, OSError), socket.has_ipv6)
    tell(repr(socket.AF_INET), repr(socket.SOCK_STREAM), repr(socket.MSG_PEEK), repr(socket.AI_PASSIVE))
    tell(socket.AddressFamily(2), socket.SocketKind(1))
    with socket.socket() as sock:
        tell(weakref.ref(sock)() is sock, sock in {sock: 1}, bool(sock))
        tell.error(lambda: copy.copy(sock), text=True)

        class More(socket.socket):
            """As programs do."""

            note = "mine"

        with More(socket.AF_INET, socket.SOCK_DGRAM) as more, more.dup() as twin:
            tell(more.note, isinstance(more, socket.socket), type(twin).__name__)


SCRIPTS = [
    conversation, failures, resets, timeouts, streams, messages, sending_files, descriptors, options, names,
    numbers, kinds,
]  # fmt: skip
