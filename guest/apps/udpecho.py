"""udpecho: the echo service over UDP (RFC 862), and a client for it.

The server has one socket for both families. The client sends one datagram after the other and waits for each to come
back; the text of datagrams behind the first has their number after it, so that a late echo is not taken for another.
"""

from __future__ import annotations

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.streams import dial, listening
from guest.apps.usage import UsageError, options, seconds, whole, why
from guest.sys import constants as c

USAGE = """usage: udpecho -l [PORT] [-c COUNT]
       udpecho HOST [PORT] [TEXT] [-c COUNT] [-W SECONDS] [-4 | -6]
  -l          serve: send every datagram back
  -c COUNT    stop after so many datagrams (server: default never; client: default 1)
  -W SECONDS  how long the client waits for each echo (default 1)
  -4, -6      which address of HOST
  PORT        default 7"""

PORT = 7
LONGEST = 65535


def main(env: Env, argv: list[str]) -> int:
    """0 when every datagram came back, 1 when one did not or a call failed, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "lc:W:46")
        count = whole("-c", chosen["-c"], 1, 1 << 32) if "-c" in chosen else None
        patience = seconds("-W", chosen.get("-W", "1"))
        serving = "-l" in chosen
        if serving and len(rest) > 1:
            raise UsageError("a server takes a port and no more")
        if not serving and not 1 <= len(rest) <= 3:
            raise UsageError("a host is needed, and a port and a text may follow")
        ports = rest[:1] if serving else rest[1:2]
        port = whole("port", ports[0], 1, 65535) if ports else PORT
    except UsageError as error:
        env.print(f"udpecho: {error}\n{USAGE}")
        return EX_USAGE
    try:
        if serving:
            return _serve(env, port, count)
        family = c.AF_INET6 if "-6" in chosen else c.AF_INET if "-4" in chosen else None
        return _ask(env, (rest[0], port), rest[2] if len(rest) > 2 else "hello", count or 1, patience, family)
    except OSError as error:
        env.print(f"udpecho: {'' if serving else f'{rest[0]} '}port {port}: {why(error)}")
        return 1


def _serve(env: Env, port: int, count: int | None) -> int:
    calls = env.calls
    fd = listening(env, c.SOCK_DGRAM, port)
    served = 0
    try:
        env.print(f"udpecho: port {port}")
        while served != count:
            data, peer = calls.recvfrom(fd, LONGEST)
            served += 1
            try:
                calls.sendto(fd, data, peer)
            except OSError as error:  # a peer that cannot be answered is no reason to leave the others
                env.print(f"udpecho: {peer[0] if peer else '?'}: {error.strerror}")
    finally:
        calls.close(fd)
        env.print(f"udpecho: {served} datagrams served")
    return 0


def _ask(env: Env, peer: tuple[str, int], text: str, count: int, patience: int, family: int | None) -> int:
    calls = env.calls
    fd = dial(env, c.SOCK_DGRAM, *peer, family, patience)
    sent = returned = 0
    try:
        where = calls.getpeername(fd)
        for number in range(1, count + 1):
            data = (text if number == 1 else f"{text} {number}").encode()
            start = env.now()
            calls.send(fd, data)
            sent = number
            try:
                while calls.recv(fd, LONGEST) != data:
                    env.print(f"udpecho: {where[0]}: another datagram came")
            except TimeoutError:
                env.print(f"udpecho: {where[0]}: no echo of datagram {number}")
                continue
            returned += 1
            took = env.now() - start
            env.print(
                f"{len(data)} bytes from {where[0]} port {where[1]}: seq={number} "
                f"time={took // 1000}.{took % 1000:03d} ms"
            )
    finally:
        calls.close(fd)
        env.print(f"{sent} sent, {returned} echoed")
    return 0 if returned == count else 1
