"""echoclient: a client for the echo service over TCP (RFC 862).

It sends one text after the other over one connection and waits for each to come back; the text of those behind the
first has their number after it.
"""

from __future__ import annotations

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.streams import dial, send_all
from guest.apps.usage import UsageError, options, seconds, whole, why
from guest.sys import constants as c

USAGE = """usage: echoclient HOST [PORT] [TEXT] [-c COUNT] [-W SECONDS] [-4 | -6]
  PORT        default 7
  -c COUNT    send so many texts (default 1)
  -W SECONDS  how long to wait for the connection, and for each echo (default 10)
  -4, -6      which address of HOST"""

PORT = 7


def main(env: Env, argv: list[str]) -> int:
    """0 when every text came back, 1 when one did not or a call failed, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "c:W:46")
        count = whole("-c", chosen.get("-c", "1"), 1, 1 << 32)
        patience = seconds("-W", chosen.get("-W", "10"))
        if not patience:
            raise UsageError("-W 0: more than 0 is needed")
        if not 1 <= len(rest) <= 3:
            raise UsageError("a host is needed, and a port and a text may follow")
        port = whole("port", rest[1], 1, 65535) if len(rest) > 1 else PORT
        text = rest[2] if len(rest) > 2 else "hello"
        if not text:
            raise UsageError("an empty text has no echo")
    except UsageError as error:
        env.print(f"echoclient: {error}\n{USAGE}")
        return EX_USAGE
    family = c.AF_INET6 if "-6" in chosen else c.AF_INET if "-4" in chosen else None
    try:
        fd = dial(env, c.SOCK_STREAM, rest[0], port, family, patience)
    except OSError as error:
        env.print(f"echoclient: {rest[0]} port {port}: {why(error)}")
        return 1
    try:
        return 0 if _ask(env, fd, text, count) == count else 1
    finally:
        env.calls.close(fd)


def _ask(env: Env, fd: int, text: str, count: int) -> int:
    """How many of the texts came back."""
    calls = env.calls
    sent = returned = 0
    where = calls.getpeername(fd)
    try:
        for number in range(1, count + 1):
            data = (text if number == 1 else f"{text} {number}").encode()
            start = env.now()
            send_all(calls, fd, data)
            sent = number
            back = _receive(env, fd, len(data))
            if len(back) < len(data):
                env.print(f"echoclient: {where[0]} has closed the connection")
                break
            if back != data:
                env.print(f"echoclient: {where[0]}: something else came back")
                break
            returned += 1
            took = env.now() - start
            env.print(
                f"{len(data)} bytes from {where[0]} port {where[1]}: seq={number} "
                f"time={took // 1000}.{took % 1000:03d} ms"
            )
    except TimeoutError:
        env.print(f"echoclient: {where[0]}: no echo of text {sent}")
    except OSError as error:
        env.print(f"echoclient: {where[0]}: {error.strerror}")
    finally:
        env.print(f"{sent} sent, {returned} echoed")
    return returned


def _receive(env: Env, fd: int, size: int) -> bytes:
    """So many bytes, or fewer where the stream ends."""
    data = b""
    while len(data) < size and (more := env.calls.recv(fd, size - len(data))):
        data += more
    return data
