"""What programs over TCP share: a server that gives each connection a guest process, a client's connection, words.

The server has one listening socket for both families, with the backlog 5 of the classic examples.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from guest.apps.env import SECOND, Env
from guest.net.address import AddressError, parse_address
from guest.sys import constants as c

if TYPE_CHECKING:
    from guest.sys.calls import Calls
    from guest.sys.scheduler import Process
    from guest.sys.sockaddr import SocketAddress

CHUNK = 65536
BACKLOG = 5
PAUSE = SECOND // 10  # before the next `accept`, where there is no descriptor for a connection
TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED)

# What a server does with a connection: descriptor and peer in, bytes received out. Raises OSError.
Handler = Callable[[Env, int, "SocketAddress"], int]


def listening(env: Env, kind: int, port: int) -> int:
    """A socket of `kind` (SOCK_*) for both families on `port`; one of streams listens. Raises OSError."""
    calls = env.calls
    fd = calls.socket(c.AF_INET6, kind)
    try:
        calls.setsockopt(fd, c.IPPROTO_IPV6, c.IPV6_V6ONLY, 0)
        calls.setsockopt(fd, c.SOL_SOCKET, c.SO_REUSEADDR, int(kind == c.SOCK_STREAM))
        calls.bind(fd, ("::", port))
        if kind == c.SOCK_STREAM:
            calls.listen(fd, BACKLOG)
    except BaseException:
        calls.close(fd)
        raise
    return fd


def serve(env: Env, name: str, port: int, handler: Handler, count: int | None) -> int:
    """Give each connection to `port` to a guest process that runs `handler`; after `count` of them (None: never) wait
    for those to end. 0. Raises OSError.

    The connections of a server that is killed go on, as those of a program that forks do.
    """
    calls = env.calls
    fd = listening(env, c.SOCK_STREAM, port)
    children: set[Process] = set()
    served = total = 0

    def one(env: Env, words: list[tuple[int, SocketAddress]]) -> int:
        nonlocal total
        connection, peer = words[0]
        try:
            total += handler(env, connection, peer)
        except OSError as error:
            env.print(f"{name}: {peer[0]} port {peer[1]}: {error.strerror}")
            return 1
        return 0

    env.print(f"{name}: port {port}")
    try:
        while served != count:
            try:
                connection, peer = calls.accept(fd)
            except OSError as error:
                if error.errno not in TRANSIENT:
                    raise
                env.print(f"{name}: {error.strerror}")
                env.sleep(PAUSE)
                continue
            served += 1
            child = env.guest.spawn(one, (connection, peer))
            child.name = f"{name} {peer[1]}"
            children.add(child)
            child.on_exit.append(_closer(calls, connection))  # also of one that is killed before it runs
            child.on_exit.append(children.discard)
    finally:
        calls.close(fd)
        env.print(f"{name}: {served} connections taken")
    for child in list(children):
        child.join()
    env.print(f"{name}: {total} bytes received")
    return 0


def _closer(calls: Calls, fd: int) -> Callable[[Process], None]:
    return lambda _ended: calls.close(fd)


def dial(env: Env, kind: int, host: str, port: int, family: int | None = None, patience: int | None = None) -> int:
    """A connected socket of `kind` (SOCK_*): to the first address of `host` that takes it.

    Args:
        family: AF_*, None for either.
        patience: microseconds for each address, and then for each call on the socket; None to wait as long as TCP does.

    Raises OSError: of the first address that there is a way to, or because there is none.
    """
    calls = env.calls
    fault: OSError | None = None
    for each, address in addresses(env, host, family):
        fd = calls.socket(each, kind)
        try:
            calls.set_timeout(fd, patience)
            calls.connect(fd, (address, port))
        except OSError as error:
            calls.close(fd)
            if fault is None or fault.errno == errno.ENETUNREACH:
                fault = error
        except BaseException:
            calls.close(fd)
            raise
        else:
            return fd
    if fault is None:
        raise AssertionError("a name has an address, or `addresses` raises")
    if isinstance(fault, TimeoutError):
        raise OSError(errno.ETIMEDOUT, "Connection timed out") from fault
    raise fault


def addresses(env: Env, host: str, family: int | None) -> list[tuple[int, str]]:
    """The addresses of `host` with their families, best first; at least one. Blocks. Raises OSError."""
    if family is None and ":" in host:
        return [(c.AF_INET6, host)]
    if family is not None and ":" in host:
        return [(family, host)]
    try:
        parse_address(host)
    except AddressError:
        found = env.calls.resolve(host, family or 0)
        return [(c.AF_INET6 if ":" in one else c.AF_INET, one) for one in found]
    return [(family or c.AF_INET, host)]


def send_all(calls: Calls, fd: int, data: bytes) -> None:
    """Send everything, also on a socket with a time limit. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[calls.send(fd, view) :]


def shown(data: bytes) -> str:
    """Bytes of a peer as text that is harmless on a terminal: what cannot be printed is shown as an escape."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() or one == "\t" else repr(one)[1:-1] for one in text)
