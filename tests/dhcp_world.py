"""A DHCP server for tests, made of scapy's messages, and a client on a clock that is moved by hand."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.packet import Packet

from guest.net.address import V4_BROADCAST, format_address
from guest.net.dhcp import Action, Configure, Deconfigure, DhcpClient, DhcpConfig, Probe, Send
from guest.net.dhcp_wire import MESSAGE_NAMES

MAC = bytes.fromhex("525400000001")
SECOND = 1_000_000
START = 5_000 * SECOND
SERVER = "10.0.0.1"
OFFERED = "10.0.0.50"
USUAL = (("subnet_mask", "255.255.255.0"), ("router", SERVER), ("name_server", "10.0.0.3"))


def said(raw: bytes) -> dict[str, Any]:
    """What scapy reads in a message that the client sent: its fields and options by name."""
    message = BOOTP(raw)
    found: dict[str, Any] = {name: message.getfieldval(name) for name in ("xid", "secs", "flags", "ciaddr", "op")}
    found["chaddr"] = bytes(message.chaddr)[:6]
    for option in message[DHCP].options:
        if isinstance(option, tuple):
            found[option[0]] = option[1] if len(option) == 2 else option[1:]
    return found


def reply(
    kind: str,
    xid: int,
    *options: tuple[Any, ...],
    yiaddr: str = OFFERED,
    server: str | None = SERVER,
    lease: int | None = 3600,
    mac: bytes = MAC,
    usual: Iterable[tuple[Any, ...]] = USUAL,
    **fields: Any,
) -> bytes:
    """A server's message."""
    table: list[Any] = [("message-type", kind)]
    if server is not None:
        table.append(("server_id", server))
    if lease is not None:
        table.append(("lease_time", lease))
    table += [*usual, *options, "end"]
    return bytes(BOOTP(op=2, chaddr=mac + bytes(10), xid=xid, yiaddr=yiaddr, **fields) / DHCP(options=table))


def nak(xid: int, server: str = SERVER) -> bytes:
    """A refusal."""
    return reply("nak", xid, yiaddr="0.0.0.0", server=server, lease=None, usual=())


class Dialogue:
    """A client, the clock, and what the client asked for since one last looked."""

    def __init__(self, seed: int = 1, config: DhcpConfig | None = None, **options: Any) -> None:
        self.now = START
        self.log: list[str] = []
        self.client = DhcpClient(
            mac=MAC, rng=random.Random(seed), config=config, log=self.log.append, **options
        )
        self.xid = 0

    @property
    def state(self) -> str:
        return self.client.state.value

    @property
    def at(self) -> float:
        """Seconds since the start."""
        return (self.now - START) / SECOND

    def start(self) -> list[str]:
        self.client.start(self.now)
        return self.happened()

    def hears(self, message: bytes | Packet) -> list[str]:
        """A message arrives; what the client does."""
        self.client.receive(bytes(message), self.now)
        return self.happened()

    def until(self, seconds: float) -> list[str]:
        """Let time pass up to `seconds` since the start; what the client did on the way."""
        end = START + round(seconds * SECOND)
        did: list[str] = []
        while (due := self.client.poll_at()) is not None and due <= end:
            self.now = max(due, self.now)
            self.client.poll(self.now)
            did += self.happened()
        self.now = end
        return did

    def next(self) -> list[str]:
        """Let time pass up to the next thing that is due, and do it."""
        due = self.client.poll_at()
        assert due is not None, "nothing is due"
        self.now = max(due, self.now)
        self.client.poll(self.now)
        return self.happened()

    def happened(self) -> list[str]:
        """What the client asked for, as words; the last message's id is `xid`."""
        return [self._tell(action) for action in self.client.take()]

    def _tell(self, action: Action) -> str:
        match action:
            case Send():
                self.sent = said(action.data)
                self.raw = action.data
                self.xid = self.sent["xid"]
                kind = MESSAGE_NAMES[self.sent["message-type"]].lower()
                to = "all" if action.to == V4_BROADCAST else format_address(action.to)
                return f"{kind} {format_address(action.source)} > {to}"
            case Probe():
                return f"probe {format_address(action.address)}"
            case Configure():
                return f"use {format_address(action.lease.address)}/{action.lease.length}"
            case Deconfigure():
                return f"drop {format_address(action.lease.address)}"

    def bind(self, *options: tuple[Any, ...], **fields: Any) -> list[str]:
        """From the start to BOUND; what the end of it did."""
        self.start()
        self.hears(reply("offer", self.xid, *options, **fields))
        self.hears(reply("ack", self.xid, *options, **fields))
        while self.state == "checking":
            did = self.next()
        return did
