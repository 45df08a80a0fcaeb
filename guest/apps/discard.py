"""discard: the discard service over TCP (RFC 863): each connection may send what it likes, and is told nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.streams import CHUNK, serve
from guest.apps.usage import UsageError, options, whole, why
from guest.sys.constants import MSG_TRUNC

if TYPE_CHECKING:
    from guest.sys.sockaddr import SocketAddress

USAGE = """usage: discard [-c COUNT] [PORT]
  -c COUNT  stop after so many connections (default: never)
  PORT      default 9"""

PORT = 9


def main(env: Env, argv: list[str]) -> int:
    """0 once `-c` connections are served, 1 when a call failed, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "c:")
        if len(rest) > 1:
            raise UsageError("one port at most")
        count = whole("-c", chosen["-c"], 1, 1 << 32) if "-c" in chosen else None
        port = whole("port", rest[0], 1, 65535) if rest else PORT
    except UsageError as error:
        env.print(f"discard: {error}\n{USAGE}")
        return EX_USAGE
    try:
        return serve(env, "discard", port, _discard, count)
    except OSError as error:
        env.print(f"discard: port {port}: {why(error)}")
        return 1


def _discard(env: Env, fd: int, _peer: SocketAddress) -> int:
    room = bytearray(CHUNK)
    total = 0
    while taken := env.calls.recv_into(fd, room, 0, MSG_TRUNC):  # thrown away before it is copied here
        total += taken
    return total
