"""What a soak does to guests: programs that talk all the time in every way, and a port of the hub that sends nonsense.

    load = Load(client, server, "10.0.0.1", "fd00::1", seed=1, strict=True)
    load.start()                        # servers and clients are programs of the two guests
    …                                   # time passes
    load.paused = True                  # each client ends what it does, and waits

A strict load is for a wire that loses and spoils but does not lie: then what is read is what was sent, always. On a
wire where a `Fuzzer` sends what it makes of real frames, answers may be wrong or never come; they are counted.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence

from guest.apps.env import Env
from guest.kernel import Guest
from guest.sys import constants as c
from hw.wire.link import Frame, Link, Receiver, frame_bytes
from hw.wire.wrapper import Wrapper
from tests.tcp_wire import checksum

MS = 1_000
SECOND = 1_000_000
BULK, ECHO, UDP = 1001, 1002, 1003  # ports
PATIENCE = 120 * SECOND
DIGEST = 32
KINDS = ("bulk", "requests", "opens", "udp", "ping")


class Wrong(AssertionError):
    """Something else came than was sent."""


class Load:
    """Servers on one guest and clients on another, for both families.

    Args:
        addresses: of the server, IPv4 and IPv6.
        strict: whether a wrong or missing answer is a failure of ours.

    Attributes:
        paused: whether clients are to wait. busy: how many do something.
        done: conversations that ended well by their kind, and errors by their name. moved: bytes of bulk.
    """

    def __init__(self, client: Guest, server: Guest, addresses: Sequence[str], seed: int, *, strict: bool) -> None:
        self.client = client
        self.server = server
        self.addresses = addresses
        self.strict = strict
        self.rng = random.Random(seed)
        self.paused = True
        self.busy = 0
        self.done: Counter[str] = Counter()
        self.moved = 0
        self.wrong: list[str] = []

    @property
    def well(self) -> int:
        """Conversations that have ended well."""
        return sum(self.done[kind] for kind in KINDS)

    def start(self) -> None:
        """Start all programs; the clients wait."""
        for server in (self._bulk_server, self._echo_server, self._udp_server):
            self.server.spawn(server)
        for kind in (self._bulk, *2 * (self._requests, self._opens), self._udp, self._ping):
            self.client.spawn(self._client(kind))

    # -- servers -------------------------------------------------------------------------------------------------

    def _listen(self, env: Env, port: int, serve: Callable[[Env, int], None]) -> None:
        calls = env.calls
        listening = calls.socket(c.AF_INET6)
        calls.setsockopt(listening, c.IPPROTO_IPV6, c.IPV6_V6ONLY, 0)
        calls.bind(listening, ("::", port))
        calls.listen(listening, 50)

        def one(env: Env, fd: int) -> None:
            calls.set_timeout(fd, PATIENCE)
            try:
                serve(env, fd)
            except OSError as error:
                self.done[f"server: {type(error).__name__}"] += 1
            finally:
                calls.close(fd)

        while True:
            try:
                fd, _ = calls.accept(listening)
            except OSError as error:
                self.done[f"accept: {type(error).__name__}"] += 1
                continue
            env.guest.spawn(lambda env, _argv, fd=fd: one(env, fd))

    def _bulk_server(self, env: Env, _argv: list[str]) -> None:
        def serve(env: Env, fd: int) -> None:
            found = hashlib.sha256()
            while data := env.calls.recv(fd, 65536):
                found.update(data)
            env.calls.send(fd, found.digest())

        self._listen(env, BULK, serve)

    def _echo_server(self, env: Env, _argv: list[str]) -> None:
        def serve(env: Env, fd: int) -> None:
            while data := env.calls.recv(fd, 4096):
                _all(env, fd, data)

        self._listen(env, ECHO, serve)

    def _udp_server(self, env: Env, _argv: list[str]) -> None:
        fd = env.calls.socket(c.AF_INET6, c.SOCK_DGRAM)
        env.calls.setsockopt(fd, c.IPPROTO_IPV6, c.IPV6_V6ONLY, 0)
        env.calls.bind(fd, ("::", UDP))
        while True:
            try:
                data, peer = env.calls.recvfrom(fd, 65536)
                env.calls.sendto(fd, data, peer)
            except OSError as error:
                self.done[f"udp server: {type(error).__name__}"] += 1

    # -- clients -------------------------------------------------------------------------------------------------

    def _client(self, kind: Callable[[Env, int, int, str, random.Random], None]) -> Callable[[Env, list[str]], None]:
        rng = random.Random(self.rng.random())
        name = kind.__name__.strip("_")

        def main(env: Env, _argv: list[str]) -> None:
            while True:
                env.sleep(SECOND if self.paused else rng.randrange(20 * MS))
                if self.paused:
                    continue
                self.busy += 1
                version = rng.randrange(2)
                family = (c.AF_INET, c.AF_INET6)[version]
                stream = kind not in (self._udp, self._ping)
                icmp = (c.IPPROTO_ICMP, c.IPPROTO_ICMPV6)[version] if kind == self._ping else 0
                fd = env.calls.socket(family, c.SOCK_STREAM if stream else c.SOCK_DGRAM, icmp)
                try:
                    env.calls.set_timeout(fd, PATIENCE if stream else SECOND)
                    kind(env, fd, version, self.addresses[version], rng)
                    self.done[name] += 1
                except OSError as error:
                    self.done[f"{name}: {type(error).__name__}"] += 1
                    if self.strict and stream:
                        self.wrong.append(f"{name}: {error!r}")
                except Wrong as error:
                    self.done[f"{name}: wrong"] += 1
                    if self.strict:
                        self.wrong.append(f"{name}: {error}")
                finally:
                    env.calls.close(fd)
                    self.busy -= 1

        return main

    def _bulk(self, env: Env, fd: int, _version: int, address: str, rng: random.Random) -> None:
        data = rng.randbytes(rng.randrange(1, 400_000))
        env.calls.connect(fd, (address, BULK))
        at = 0
        while at < len(data):
            step = rng.randrange(1, 100_000)
            at += env.calls.send(fd, data[at : at + step])
        env.calls.shutdown(fd, c.SHUT_WR)
        self.moved += len(data)
        found = _exactly(env, fd, DIGEST)
        if found != hashlib.sha256(data).digest():
            raise Wrong(f"{len(data)} bytes came as something else, or not: {found.hex()}")

    def _requests(self, env: Env, fd: int, _version: int, address: str, rng: random.Random) -> None:
        env.calls.connect(fd, (address, ECHO))
        env.calls.setsockopt(fd, c.IPPROTO_TCP, c.TCP_NODELAY, rng.randrange(2))
        for _ in range(rng.randrange(1, 30)):
            data = rng.randbytes(rng.randrange(1, 2000))
            _all(env, fd, data)
            if (found := _exactly(env, fd, len(data))) != data:
                raise Wrong(f"{len(data)} bytes were sent, {len(found)} other ones came back")

    def _opens(self, env: Env, fd: int, _version: int, address: str, rng: random.Random) -> None:
        env.calls.connect(fd, (address, rng.choice((ECHO, BULK))))
        if rng.random() < 0.2:
            env.calls.send(fd, b"nobody waits for the answer")  # so that closing is a reset
            env.sleep(rng.randrange(5 * MS))

    def _udp(self, env: Env, fd: int, _version: int, address: str, rng: random.Random) -> None:
        env.calls.connect(fd, (address, UDP))
        data = rng.randbytes(rng.choice((0, 1, 100, 1400, 3000, 20_000)))
        env.calls.send(fd, data)
        if env.calls.recv(fd, 65536) != data:
            raise Wrong("another datagram came back")

    def _ping(self, env: Env, fd: int, version: int, address: str, rng: random.Random) -> None:
        env.calls.connect(fd, (address, 0))
        data = rng.randbytes(rng.randrange(2000))
        env.calls.send(fd, bytes((128 if version else 8, 0, 0, 0, 0, 0, 0, 1)) + data)
        if env.calls.recv(fd, 65536)[8:] != data:
            raise Wrong("another echo came back")


def _all(env: Env, fd: int, data: bytes) -> None:
    """A socket with a timeout may take a part at a time."""
    while data:
        data = data[env.calls.send(fd, data) :]


def _exactly(env: Env, fd: int, size: int) -> bytes:
    found = b""
    while len(found) < size and (data := env.calls.recv(fd, size - len(found))):
        found += data
    return found


# -- nonsense ------------------------------------------------------------------------------------------------------


class Ear(Wrapper):
    """A link that keeps the last frames that passed, in either direction, as `heard`."""

    def __init__(self, inner: Link) -> None:
        super().__init__(inner)
        self.heard: deque[bytes] = deque(maxlen=300)

    def transmit(self, frames: Sequence[Frame]) -> int:
        """Frames go out."""
        self.heard += [frame_bytes(frame) for frame in frames[:4]]
        return super().transmit(frames)

    def receive(self, frames: Sequence[Frame]) -> int:
        """Frames come in."""
        self.heard += [frame_bytes(frame) for frame in frames[:4]]
        return super().receive(frames)


class Fuzzer(Receiver):
    """A port of the hub that sends what it makes of frames that were heard; what it is sent is thrown away.

    It has an address of its own, so that the hub goes on knowing where the others are; all else it may take from them.
    """

    MAC = b"\x02\x66\x75\x7a\x7a\x00"

    def __init__(self, link: Link, ear: Ear, seed: int) -> None:
        link.attach(self)
        self.link = link
        self.ear = ear
        self.rng = random.Random(seed)
        self.sent = 0

    def receive(self, frames: Sequence[Frame]) -> int:
        """Nothing is of interest."""
        return len(frames)

    def send(self, count: int) -> None:
        """Send so many frames."""
        if self.ear.heard:
            heard = list(self.ear.heard)
            self.link.transmit([(None, [self.mutated(self.rng.choice(heard))]) for _ in range(count)])
            self.sent += count

    def mutated(self, frame: bytes) -> bytes:
        """A frame with a few changes; of most the checksums are right again, so that they get as far as possible."""
        rng = self.rng
        out = bytearray(frame)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
            at = rng.randrange(12, min(len(out), 120 if rng.random() < 0.9 else 1 << 16))
            kind = rng.randrange(5)
            if kind == 0:
                out[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            elif kind == 2:
                del out[at : at + rng.randrange(1, 20)]
                out += bytes(max(0, 20 - len(out)))
            elif kind == 3:
                out[at:at] = rng.randbytes(rng.randrange(1, 20))
            else:
                out[at : at + 4] = rng.randbytes(4)
        out[6:12] = self.MAC
        if rng.random() < 0.7:
            mend(out)
        return bytes(out[:1514])


def mend(frame: bytearray) -> None:
    """Make lengths and checksums of IP, TCP, UDP and ICMP right, where the frame has them."""
    kind = bytes(frame[12:14])
    if kind == b"\x08\x00" and len(frame) >= 34:
        size = (frame[14] & 15) * 4
        if size < 20 or len(frame) < 14 + size:
            return
        frame[16:18] = (len(frame) - 14).to_bytes(2, "big")
        frame[24:26] = b"\0\0"
        frame[24:26] = checksum(bytes(frame[14 : 14 + size])).to_bytes(2, "big")
        protocol, src, dst, at = frame[23], bytes(frame[26:30]), bytes(frame[30:34]), 14 + size
    elif kind == b"\x86\xdd" and len(frame) >= 54:
        frame[18:20] = (len(frame) - 54).to_bytes(2, "big")
        protocol, src, dst, at = frame[20], bytes(frame[22:38]), bytes(frame[38:54]), 54
    else:
        return
    place = {6: 16, 17: 6, 1: 2, 58: 2}.get(protocol)
    if place is None or len(frame) < at + place + 2:
        return
    frame[at + place : at + place + 2] = b"\0\0"
    body = bytes(frame[at:])
    front = b"" if protocol == 1 else src + dst + len(body).to_bytes(4, "big") + protocol.to_bytes(4, "big")
    frame[at + place : at + place + 2] = checksum(front + body).to_bytes(2, "big")
