"""echo: the echo service over TCP (RFC 862): each connection gets back what it sends, until it sends no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.streams import CHUNK, serve
from guest.apps.usage import UsageError, options, whole, why

if TYPE_CHECKING:
    from guest.sys.sockaddr import SocketAddress

USAGE = """usage: echo [-c COUNT] [PORT]
  -c COUNT  stop after so many connections (default: never)
  PORT      default 7"""

PORT = 7


def main(env: Env, argv: list[str]) -> int:
    """0 once `-c` connections are served, 1 when a call failed, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "c:")
        if len(rest) > 1:
            raise UsageError("one port at most")
        count = whole("-c", chosen["-c"], 1, 1 << 32) if "-c" in chosen else None
        port = whole("port", rest[0], 1, 65535) if rest else PORT
    except UsageError as error:
        env.print(f"echo: {error}\n{USAGE}")
        return EX_USAGE
    try:
        return serve(env, "echo", port, _echo, count)
    except OSError as error:
        env.print(f"echo: port {port}: {why(error)}")
        return 1


def _echo(env: Env, fd: int, _peer: SocketAddress) -> int:
    calls = env.calls
    total = 0
    while data := calls.recv(fd, CHUNK):
        total += len(data)
        calls.send(fd, data)
    return total
