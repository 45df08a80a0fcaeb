"""A host on a wire that is a DHCP and DNS server: scapy's messages in frames, on the board's clock."""

from __future__ import annotations

from typing import Any

from scapy.layers.dns import DNS
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from hw.loop import Loop
from hw.wire.link import Link
from tests.dhcp_world import OFFERED, SERVER, reply, said
from tests.dns_world import a, answer
from tests.guest_board import SECOND, Peer

ALL = "ff:ff:ff:ff:ff:ff"


class Server(Peer):
    """It is silent until `serves`; what it heard is kept as words with the time in seconds."""

    def __init__(self, link: Link, loop: Loop) -> None:
        super().__init__(link)
        self.loop = loop
        self.answers = True
        self.serves = True
        self.refuses = False
        self.heard: list[tuple[float, str]] = []
        self.sent: list[tuple[float, str]] = []
        self.options: list[tuple[Any, ...]] = []
        self.lease = 3600
        self.taken: set[str] = set()  # addresses that somebody has
        self.names: dict[str, str] = {}
        self.next = OFFERED

    @property
    def now(self) -> float:
        return self.loop.clock.now() / SECOND

    @property
    def text(self) -> str:
        return self.mac.hex(":")

    def kinds(self) -> list[str]:
        return [kind for _, kind in self.heard]

    def answer(self, raw: bytes) -> bytes | None:
        packet = Ether(raw)
        made: Packet | None = None
        if ARP in packet and packet[ARP].op == 1 and packet[ARP].pdst in {SERVER, "10.0.0.3", *self.taken}:
            asked = packet[ARP]
            if asked.psrc != asked.pdst:
                made = ARP(op=2, hwsrc=self.text, psrc=asked.pdst, hwdst=asked.hwsrc, pdst=asked.psrc)
                return bytes(Ether(dst=packet.src, src=self.text) / made)
        if UDP in packet and packet[UDP].dport == 67:
            return self._dhcp(packet)
        if UDP in packet and packet[UDP].dport == 53:
            return self._dns(packet)
        return None

    def _dhcp(self, packet: Packet) -> bytes | None:
        heard = said(bytes(packet[UDP].payload))
        kind = {1: "discover", 3: "request", 4: "decline", 7: "release"}[heard["message-type"]]
        self.heard.append((self.now, f"{kind} {packet[IP].src} > {packet[IP].dst}"))
        if not self.serves or kind in ("decline", "release"):
            return None
        wanted = heard.get("requested_addr") or heard["ciaddr"]
        if kind == "discover":
            body = reply("offer", heard["xid"], *self.options, yiaddr=self.next, lease=self.lease, mac=heard["chaddr"])
        elif self.refuses:
            body = reply(
                "nak", heard["xid"], yiaddr="0.0.0.0", lease=None, usual=(), mac=heard["chaddr"]
            )
        else:
            body = reply("ack", heard["xid"], *self.options, yiaddr=wanted, lease=self.lease, mac=heard["chaddr"])
        self.sent.append((self.now, "offer" if kind == "discover" else "nak" if self.refuses else "ack"))
        to = heard["ciaddr"] if packet[IP].dst == SERVER else "255.255.255.255"
        head = Ether(dst=packet.src if to != "255.255.255.255" else ALL, src=self.text)
        return bytes(head / IP(src=SERVER, dst=to) / UDP(sport=67, dport=68) / body)

    def _dns(self, packet: Packet) -> bytes:
        asked = DNS(bytes(packet[UDP].payload))
        name = asked.qd[0].qname.decode().rstrip(".")
        address = self.names.get(name)
        fits = address is not None and (":" in address) == (asked.qd[0].qtype == 28)
        body = answer(asked, *([a(name, str(address))] if fits else []), rcode=0 if address else 3)
        head = Ether(dst=packet.src, src=self.text) / IP(src=packet[IP].dst, dst=packet[IP].src)
        return bytes(head / UDP(sport=53, dport=packet[UDP].sport) / body)



