"""D9: the look-alikes of `select`, beside the standard library's; a guest's sockets and the host's descriptors."""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import guest.select
import guest.socket
import vring
import vring.select
from tests.socket_scripts import Tell, pair
from vring.session import Session

Script = Callable[[Any, Any, Tell], None]
SELECTS = [guest.select, vring.select]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with vring.boot(nic="none") as made:
        yield made


# -- side by side ----------------------------------------------------------------------------------------------------


def names(module: Any, prefix: str, events: int) -> list[str]:
    """Events by name."""
    return sorted(
        name
        for name in dir(module)
        if name.startswith(prefix) and not name.startswith(("EPOLL_", "EPOLLET", "EPOLLONESHOT"))
        if events & getattr(module, name)
    )


def arrived(select: Any, sock: Any) -> None:
    """Wait until what was sent to this socket is there."""
    select.select([sock], [], [], 5)


def with_select(socket: Any, select: Any, tell: Tell) -> None:
    client, server = pair(socket)
    everything = [client, server.fileno()]

    def look() -> None:
        lists = select.select(everything, everything, everything, 0)
        tell([[["client", "server"][everything.index(each)] for each in ready] for ready in lists])

    look()
    client.sendall(b"x")
    arrived(select, server)
    look()
    server.recv(1)
    client.send(b"!", socket.MSG_OOB)
    select.select([], [], [server], 5)
    look()
    server.recv(1, socket.MSG_OOB)
    client.close()
    everything[0] = server
    arrived(select, server)
    tell(len(select.select([server], [server], [], 5)[0]), select.select([], [], [], 0))
    tell.error(lambda: select.select([server], [], [], -1), text=True)
    tell.error(lambda: select.select([client], [], [], 0), text=True)
    tell.error(lambda: select.select(1, [], [], 0))
    tell.error(lambda: select.select(["x"], [], [], 0), text=True)
    tell.error(lambda: select.select([5000], [], [], 0), text=True)
    tell.error(lambda: select.select([], [], [], "x"))
    number = server.fileno()
    server.close()
    tell.error(lambda: select.select([number], [], [], 0), text=True)


def with_poll(socket: Any, select: Any, tell: Tell) -> None:
    client, server = pair(socket)
    poll = select.poll()
    poll.register(client)
    poll.register(server, select.POLLIN | select.POLLRDHUP)
    who = {client.fileno(): "client", server.fileno(): "server"}

    def look() -> None:
        tell([(who[fd], names(select, "POLL", events)) for fd, events in sorted(poll.poll(0))])

    look()
    client.sendall(b"x")
    poll.modify(client, select.POLLIN)
    arrived(select, server)
    look()
    tell(server.recv(1))
    look()
    client.shutdown(socket.SHUT_WR)
    arrived(select, server)
    look()
    server.shutdown(socket.SHUT_WR)
    poll.modify(client, 0)
    arrived(select, client)
    look()
    poll.unregister(client)
    tell.error(lambda: poll.unregister(client))
    tell.error(lambda: poll.modify(client, select.POLLIN))
    tell.error(lambda: poll.register("x"), text=True)
    server.close()
    look()  # POLLNVAL
    client.close()


def with_epoll(socket: Any, select: Any, tell: Tell) -> None:
    client, server = pair(socket)
    with select.epoll() as epoll:
        tell(epoll.closed, epoll.fileno() >= 0)
        epoll.register(client, select.EPOLLIN)
        epoll.register(server.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        who = {client.fileno(): "client", server.fileno(): "server"}

        def look(wait: float = 0) -> None:
            tell([(who[fd], names(select, "EPOLL", events)) for fd, events in sorted(epoll.poll(wait))])

        look()
        look()  # the edge was told
        client.sendall(b"x")
        arrived(select, server)
        look()
        look()
        client.sendall(b"y")
        look(5)  # a further edge
        server.sendall(b"z")
        arrived(select, client)
        look()
        look()  # the level stays
        epoll.modify(client, select.EPOLLIN | select.EPOLLONESHOT)
        look()
        look()
        epoll.modify(client, select.EPOLLOUT)
        look()
        tell.error(lambda: epoll.register(client), text=True)
        epoll.unregister(client)
        tell.error(lambda: epoll.unregister(client), text=True)
        tell.error(lambda: epoll.modify(client, 0), text=True)
        tell.error(lambda: epoll.poll(0, 0), text=True)
        tell.error(lambda: epoll.register(-1))
        tell.error(lambda: epoll.register(4000), text=True)
        client.shutdown(socket.SHUT_RDWR)
        server.recv(10)
        arrived(select, server)
        epoll.modify(server, select.EPOLLIN | select.EPOLLRDHUP)
        look()
        server.close()
        look()  # closed sockets leave the set
    client.close()
    tell(epoll.closed)
    tell.error(epoll.fileno, text=True)
    tell.error(lambda: epoll.poll(0))
    tell.error(lambda: select.epoll(0), text=True)
    tell.error(lambda: select.epoll(-1, 12345), text=True)


def with_a_selector(socket: Any, select: Any, tell: Tell) -> None:
    client, server = pair(socket)
    chosen = select.DefaultSelector if hasattr(select, "DefaultSelector") else selectors.EpollSelector
    with chosen() as selector:
        key = selector.register(client, selectors.EVENT_READ, "data")
        tell(key.fileobj is client, key.fd == client.fileno(), key.events, key.data)
        selector.register(server, selectors.EVENT_READ | selectors.EVENT_WRITE, "server")

        def look(wait: float = 0) -> None:
            tell(sorted((key.data, events) for key, events in selector.select(wait)))

        look()
        server.sendall(b"x")
        arrived(select, client)
        look()
        look(-1)
        selector.modify(client, selectors.EVENT_WRITE, "other")
        look()
        tell(len(selector.get_map()), selector.get_key(server).data, client in selector.get_map())
        tell(selector.unregister(client).data, client in selector.get_map())
        tell.error(lambda: selector.unregister(client).data)
        tell.error(lambda: selector.register(server, 1))
        tell.error(lambda: selector.register(client, 0), text=True)
        server.close()
        tell(selector.unregister(server).data, selector.select(0))
    tell(selector.get_map())
    tell.error(lambda: selector.get_key(client), text=True)
    client.close()


SCRIPTS: list[Script] = [with_select, with_poll, with_epoll, with_a_selector]


def over_the_kernel(script: Script) -> str:
    tell = Tell()
    script(socket, select, tell)
    return tell.text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_d9_a_program_sees_the_same_over_a_guest_as_over_the_kernel(script: Script, session: Session) -> None:
    tell = Tell()

    script(session.guest.socket, session.guest.select, tell)

    assert tell.text == over_the_kernel(script)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_d9_and_so_does_a_program_in_a_guest_on_the_virtual_clock(script: Script) -> None:
    tell = Tell()

    def program(env: Any, argv: list[str]) -> int:
        script(guest.socket, guest.select, tell)
        return 0

    with vring.boot(nic="none", clock="virtual") as session:
        session.run(seconds=0.1)
        process = session.guest.spawn(program)
        session.run(seconds=60)
        said = session.console

    assert process.exit_status == 0, said
    assert tell.text == over_the_kernel(script)


# -- every name ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", SELECTS, ids=lambda module: module.__name__)
def test_every_public_name_of_the_hosts_module_is_there(module: ModuleType) -> None:
    public = {name for name in dir(select) if not name.startswith("_")}

    assert public - set(module.__all__) == set()
    assert {name for name in public if isinstance(getattr(select, name), int)} >= {"POLLIN", "EPOLLET", "PIPE_BUF"}
    for name in public:
        if isinstance(getattr(select, name), int):
            assert (name, getattr(module, name)) == (name, getattr(select, name))
    for kind in ("poll", "epoll"):
        theirs = getattr(select, kind)
        methods = {name for name in dir(theirs() if kind == "poll" else theirs) if not name.startswith("_")}
        assert {name for name in methods if not hasattr(getattr(module, kind), name)} == set()


def test_without_a_guest_one_line_says_where_to_look() -> None:
    with pytest.raises(RuntimeError, match="no current guest"):
        guest.select.select([], [], [], 0)


# -- both kinds in one wait ------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(session: Session) -> Iterator[dict[str, Any]]:
    """A guest's socket, a pipe and a socket of the host, each readable, and what makes them so."""
    client, server = pair(session.guest.socket)
    near, far = socket.socketpair()
    read, write = os.pipe()
    with client, server, near, far, os.fdopen(read, "rb", 0) as end, os.fdopen(write, "wb", 0) as start:
        yield {
            "guest": (client, lambda: server.sendall(b"x")),
            "host": (near, lambda: far.sendall(b"x")),
            "pipe": (end, lambda: start.write(b"x")),
        }


WAITS: dict[str, Callable[[Any, list[Any], float], list[Any]]] = {
    "select": lambda select, files, seconds: select.select(files, [], [], seconds)[0],
    "poll": lambda select, files, seconds: _registered(select.poll(), files, select.POLLIN).poll(seconds * 1000),
    "epoll": lambda select, files, seconds: _registered(select.epoll(), files, select.EPOLLIN).poll(seconds),
    "selector": lambda select, files, seconds: _registered(select.DefaultSelector(), files, 1).select(seconds),
}


def _registered(waiting: Any, files: list[Any], events: int) -> Any:
    for file in files:
        waiting.register(file, events)
    return waiting


@pytest.mark.parametrize("way", WAITS)
@pytest.mark.parametrize("who", ["guest", "host", "pipe"])
def test_d9_one_wait_has_sockets_of_the_guest_and_descriptors_of_the_host(
    crowd: dict[str, Any], who: str, way: str, session: Session
) -> None:
    files = [file for file, _ in crowd.values()]
    file, make_ready = crowd[who]
    wait = WAITS[way]

    assert wait(session.guest.select, files, 0) == []
    timer = threading.Timer(0.02, make_ready)  # while the wait is under way
    timer.start()
    (found,) = wait(session.guest.select, files, 10)
    timer.join()

    expected = {"select": file, "selector": file}.get(way, file.fileno())
    assert {"select": lambda: found, "selector": lambda: found[0].fileobj}.get(way, lambda: found[0])() == expected


@pytest.mark.parametrize("way", WAITS)
def test_d9_a_wait_ends_with_its_time(crowd: dict[str, Any], way: str, session: Session) -> None:
    assert WAITS[way](session.guest.select, [file for file, _ in crowd.values()], 0.01) == []


def test_d9_inside_a_guest_adopted_descriptors_are_in_the_same_wait() -> None:
    said: list[object] = []
    read, write = os.pipe()

    def program(env: Any, argv: list[str]) -> int:
        number = env.calls.adopt(read)
        client, server = pair(guest.socket)
        with client, server:
            server.sendall(b"x")
            said.append(guest.select.select([client, number], [], [], 5)[0] == [client])
            client.recv(1)
            os.write(write, b"y")
            said.append(guest.select.select([client, number], [], [], 5)[0] == [number])
        env.calls.close(number)
        return 0

    with vring.boot(nic="none") as session:
        session.run_until(lambda: session.guest.booted)
        process = session.call(lambda: session.guest.spawn(program))
        session.run_until(lambda: process.exit_status is not None, 20)
        console = session.console
    os.close(write)

    assert said == [True, True], console


# -- the host's own waits --------------------------------------------------------------------------------------------


def test_asyncio_of_the_host_works_on_a_guests_sockets(session: Session) -> None:
    """Five clients at once, each with more than any buffer holds, both ways."""
    theirs = session.guest.socket
    payload = bytes(range(256)) * 4000

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def client(where: Any) -> bool:
        sock = theirs.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where)
        reader, writer = await asyncio.open_connection(sock=sock)
        reading = asyncio.create_task(reader.read())
        writer.write(payload)
        writer.write_eof()
        got = await reading
        writer.close()
        await writer.wait_closed()
        return got == payload

    async def everybody() -> list[bool]:
        listener = theirs.create_server(("127.0.0.1", 0))
        async with await asyncio.start_server(echo, sock=listener):
            return await asyncio.gather(*[client(listener.getsockname()) for _ in range(5)])

    assert asyncio.run(everybody()) == [True] * 5
