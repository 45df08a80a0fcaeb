"""traceroute: the routers on the way to a host, by packets that may take one hop, two hops, and so on.

A router that has to drop such a packet says so (ICMP "time exceeded"); the host itself answers an echo request, or says
that nobody is at a port. What they say is read from the socket's error queue (IP_RECVERR), as on Linux.

Read: traceroute(8), ip(7), RFC 792, RFC 4443 §3.
"""

from __future__ import annotations

import struct

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.streams import addresses
from guest.apps.usage import UsageError, options, seconds, whole
from guest.net.address import V4_PREFIX, format_address
from guest.sys import constants as c

USAGE = """usage: traceroute HOST [-I] [-4 | -6] [-f FIRST] [-m HOPS] [-q COUNT] [-w SECONDS] [-p PORT]
  -I          echo requests instead of datagrams
  -f FIRST    begin so many hops away (default 1)
  -m HOPS     go no farther (default 30)
  -q COUNT    ask each hop so many times (default 3)
  -w SECONDS  how long to wait for each answer (default 2)
  -p PORT     the first datagram's port; each next one's is one more (default 33434)
  -4, -6      which address of HOST"""
EXAMPLES = ("traceroute 8.8.8.8", "traceroute -I -q 1 example.com", "traceroute -6 fd00::1")

PORT = 33434
SIZE = 32  # bytes of payload
ROOM = 2048  # bytes of what comes back, and of what is told beside it
SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6 = 2, 3
ERROR = struct.Struct("<IBBBBII")  # sock_extended_err: errno, origin, type, code, …
SOCKADDR_IN, SOCKADDR_IN6 = slice(20, 24), slice(24, 40)  # the offender's address behind it
ECHO = struct.Struct("!BBHHH")
ECHO_REQUEST = {False: 8, True: 128}
TIME_EXCEEDED = {SO_EE_ORIGIN_ICMP: 11, SO_EE_ORIGIN_ICMP6: 3}
UNREACHABLE = {SO_EE_ORIGIN_ICMP: 3, SO_EE_ORIGIN_ICMP6: 1}
PORT_UNREACHABLE = {SO_EE_ORIGIN_ICMP: 3, SO_EE_ORIGIN_ICMP6: 4}
MARKS = {
    (SO_EE_ORIGIN_ICMP, 0): "!N", (SO_EE_ORIGIN_ICMP, 1): "!H", (SO_EE_ORIGIN_ICMP, 2): "!P",
    (SO_EE_ORIGIN_ICMP, 13): "!X", (SO_EE_ORIGIN_ICMP6, 0): "!N", (SO_EE_ORIGIN_ICMP6, 1): "!X",
    (SO_EE_ORIGIN_ICMP6, 3): "!H",
}  # fmt: skip


def main(env: Env, argv: list[str]) -> int:
    """0 when the host has answered, 1 when it has not, 2 for wrong usage and names that nobody knows."""
    try:
        chosen, rest = options(argv, "I46f:m:q:w:p:")
        if len(rest) != 1:
            raise UsageError("one host is needed")
        most = whole("-m", chosen.get("-m", "30"), 1, 255)
        first = whole("-f", chosen.get("-f", "1"), 1, most)
        count = whole("-q", chosen.get("-q", "3"), 1, 10)
        patience = seconds("-w", chosen.get("-w", "2"))
        if not patience:
            raise UsageError("-w 0: more than 0 is needed")
        port = whole("-p", chosen.get("-p", str(PORT)), 1, 65535 - most * count)
    except UsageError as error:
        env.print(f"traceroute: {error}\n{USAGE}")
        return EX_USAGE
    family = c.AF_INET6 if "-6" in chosen else c.AF_INET if "-4" in chosen else None
    try:
        family, address = addresses(env, rest[0], family)[0]
    except OSError as error:
        env.print(f"traceroute: {rest[0]}: {error.strerror}")
        return EX_USAGE
    env.print(f"traceroute to {rest[0]} ({address}), {most} hops at most, {SIZE} bytes of payload")
    try:
        probes = _Probes(env, family, address, port, "-I" in chosen)
    except OSError as error:
        env.print(f"traceroute: {error.strerror}")
        return 1
    try:
        for hop in range(first, most + 1):
            if _ask(env, probes, hop, count, patience):
                return 0 if probes.reached else 1
    finally:
        env.calls.close(probes.fd)
    return 1


def _ask(env: Env, probes: _Probes, hop: int, count: int, patience: int) -> bool:
    """Ask one hop and print its line; whether it is the end of the way."""
    words: list[str] = []
    last = ""
    ended = False
    for _ in range(count):
        start = env.now()
        try:
            probes.send(hop)
            answer = probes.receive(patience)
        except OSError as error:
            words.append(f"{error.strerror}")
            ended = True
            break
        if answer is None:
            words.append("*")
            continue
        who, mark, final = answer
        took = env.now() - start
        words.append(f"{f'{who}  ' if who != last else ''}{took // 1000}.{took % 1000:03d} ms{mark and ' ' + mark}")
        last = who
        ended = ended or final
    env.print(f"{hop:2d}  {'  '.join(words)}")
    return ended


class _Probes:
    """The packets, and who answers them.

    Attributes:
        fd: the socket.
        reached: the host itself has answered.
    """

    def __init__(self, env: Env, family: int, address: str, port: int, echo: bool) -> None:
        self._env = env
        self._v6 = family == c.AF_INET6
        self._address = address
        self._port = port
        self._echo = echo
        self._sent = 0
        self.reached = False
        calls = env.calls
        self.fd = calls.socket(family, c.SOCK_DGRAM, (c.IPPROTO_ICMPV6 if self._v6 else c.IPPROTO_ICMP) * echo)
        level, wanted = (c.IPPROTO_IPV6, c.IPV6_RECVERR) if self._v6 else (c.IPPROTO_IP, c.IP_RECVERR)
        try:
            calls.setsockopt(self.fd, level, wanted, 1)
        except BaseException:
            calls.close(self.fd)
            raise

    def send(self, hops: int) -> None:
        """Send the next packet. Raises OSError."""
        calls = self._env.calls
        level, option = (c.IPPROTO_IPV6, c.IPV6_UNICAST_HOPS) if self._v6 else (c.IPPROTO_IP, c.IP_TTL)
        calls.setsockopt(self.fd, level, option, hops)
        self._sent += 1
        payload = bytes(range(SIZE))
        if self._echo:  # identifier and checksum are the kernel's
            payload = ECHO.pack(ECHO_REQUEST[self._v6], 0, 0, 0, self._sent) + payload
        calls.getsockopt(self.fd, c.SOL_SOCKET, c.SO_ERROR)  # about an older packet: it would end this call
        calls.sendto(self.fd, payload, (self._address, 0 if self._echo else self._port + self._sent - 1))

    def receive(self, patience: int) -> tuple[str, str, bool] | None:
        """Who answers the packet that was sent last, a mark where it is no way on, and whether it is the end.

        None where nobody does within `patience` microseconds. That there is no way on may be said about an older
        packet, as when a neighbour is asked for in vain. Raises OSError.
        """
        env = self._env
        deadline = env.now() + patience
        while (left := deadline - env.now()) > 0:
            found = env.calls.poll([(self.fd, c.POLLIN)], left)
            events = found[0][1] if found else 0
            if events & c.POLLERR:
                if (answer := self._error()) is not None:
                    return answer
                env.calls.getsockopt(self.fd, c.SOL_SOCKET, c.SO_ERROR)  # it would end the next call
            if events & c.POLLIN and (answer := self._reply()) is not None:
                return answer
        return None

    def _error(self) -> tuple[str, str, bool] | None:
        try:
            quoted, items, _, peer = self._env.calls.recvmsg(self.fd, ROOM, ROOM, c.MSG_ERRQUEUE | c.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        if not items or peer is None:
            return None
        if not self._echo:
            number = peer[1] - self._port + 1
        else:
            number = ECHO.unpack_from(quoted)[4] if len(quoted) >= ECHO.size else 0
        value = items[0][2]
        _, origin, kind, code, _, _, _ = ERROR.unpack_from(value)
        if self._v6:
            offender = int.from_bytes(value[SOCKADDR_IN6], "big")
        else:
            offender = V4_PREFIX | int.from_bytes(value[SOCKADDR_IN], "big")
        who = format_address(offender)
        there = kind == UNREACHABLE.get(origin) and code == PORT_UNREACHABLE.get(origin) and not self._echo
        if kind == TIME_EXCEEDED.get(origin) or there:
            self.reached = self.reached or (there and number == self._sent)
            return (who, "", there) if number == self._sent else None
        if not 0 < number <= self._sent:
            return None
        return who, MARKS.get((origin, code), f"!<{kind},{code}>") if kind == UNREACHABLE.get(origin) else "!", True

    def _reply(self) -> tuple[str, str, bool] | None:
        data, peer = self._env.calls.recvfrom(self.fd, ROOM, c.MSG_DONTWAIT)
        if peer is None or (self._echo and (len(data) < ECHO.size or ECHO.unpack_from(data)[4] != self._sent)):
            return None
        self.reached = True
        return peer[0], "", True
