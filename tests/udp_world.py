"""Hosts that talk UDP: what tests of transports and sockets need beside net_world.

`Host` there has one Ethernet interface; here are a host by itself, whose packets go round its loopback, and the calls
that tests make over and over.
"""

from __future__ import annotations

import random

from guest.net.address import parse_address
from guest.net.config import NetConfig
from guest.net.endpoint import Datagram, MessageEndpoint
from guest.net.stack import Stack
from guest.net.udp import Udp, UdpEndpoint
from tests.net_world import Clock


def at(address: str, port: int) -> tuple[int, int]:
    """An address and port as endpoints have them."""
    return parse_address(address), port


class Alone:
    """A host without a wire."""

    def __init__(self, *, seed: int = 1, config: NetConfig | None = None) -> None:
        self.clock = Clock()
        self.stack = Stack(now=self.clock, rng=random.Random(seed), config=config)
        self.udp: Udp = self.stack.udp

    def settle(self) -> None:
        """Let what waits on the loopback arrive."""
        while self.stack.poll_at() == self.clock.now and self.stack.poll():
            pass

    def bound(self, address: str, port: int, **options: object) -> UdpEndpoint:
        """An end that is bound, of the address's family, with options set before."""
        end = self.udp.open(6 if ":" in address else 4)
        for name, value in options.items():
            setattr(end.options, name, value)
        failed = end.bind(*at(address, port))
        if failed:
            raise OSError(failed, f"bind to {address} port {port}")
        return end


def payloads(end: MessageEndpoint) -> list[bytes]:
    """Everything that waits at an end, taken out."""
    found = []
    while (datagram := end.receive()) is not None:
        found.append(datagram.payload.tobytes())
    return found


def received(end: MessageEndpoint) -> Datagram:
    """The one datagram that waits at an end."""
    datagram = end.receive()
    if datagram is None:
        raise AssertionError("nothing was received")
    if end.receive() is not None:
        raise AssertionError("more than one datagram was received")
    return datagram
