"""The far side of the user wire: a gateway of our own stack that stands for the whole world outside.

    card ─ cable ─ DirectInterface ─ Stack ─┬─ streams, datagrams, echoes ─ the host's sockets
                                            └─ DHCP, name server, router advertisements

Promises:
- No right of the host's is needed, and nothing listens outside of the loopback unless an address was given.
- 10.0.2.2 (`host`) stands for the host's own loopback; every other address for itself.
- Everything is bounded: streams, flows, queries, and the bytes in each.
- What the guest sends never raises; what goes nowhere is counted in `counters`, and the guest hears why where there is
  an ICMP error for it.
- `close` leaves no descriptor behind.

Restricted, the guest has the network, addresses, and what forwards bring; nothing leads out, names included.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import TypedDict

from guest.net.address import Prefix, is_link_local, is_v4
from guest.net.config import NetConfig
from guest.net.dhcp_server import DhcpServer
from guest.net.dns_server import DnsServer
from guest.net.radvd import RouterAdvertiser
from guest.net.stack import Stack
from guest.net.tcp.config import TcpConfig
from hw.loop import Loop
from hw.wire.cable import cable
from hw.wire.link import Link, WireError
from vring.direct import DirectInterface, StackTurns
from vring.usernet.datagrams import Datagrams
from vring.usernet.echoes import Echoes
from vring.usernet.forwards import Forwards
from vring.usernet.options import LOOPBACK4, LOOPBACK6, UserOptions
from vring.usernet.resolver import Resolver
from vring.usernet.streams import STREAMS, Streams

MAC = bytes.fromhex("525500000202")  # in a range that nobody sells; 10.0.2.2 at its end
WINDOW = 1 << 18
GUESTS = 15  # addresses that DHCP gives, at most
ROUTER_LIFETIME = 1800
HOST_NAME, DOMAIN_SEARCH = 12, 119  # DHCP options


class _Common(TypedDict):
    """What streams, datagrams and echoes are all given."""

    outside: Callable[[int, int], tuple[int, int] | None]
    counters: Counter[str]
    complain: Callable[[str], None]


def _names(options: UserOptions) -> dict[str, list[int]]:
    """Names with all the addresses that they were given."""
    found: dict[str, list[int]] = {}
    for name, address in options.names:
        found.setdefault(name, []).append(address)
    return found


def _dhcp_extra(options: UserOptions) -> dict[int, bytes]:
    """A host's name, and the domains that it looks names up in (RFC 2132 §3.14, RFC 3397)."""
    found = {}
    if options.hostname:
        found[HOST_NAME] = options.hostname.encode("ascii")
    if options.dnssearch:
        labels = [[*domain.strip(".").split("."), ""] for domain in options.dnssearch]
        found[DOMAIN_SEARCH] = b"".join(bytes((len(word),)) + word.encode("ascii") for each in labels for word in each)
    return found


class UserNet:
    """User-mode networking behind one wire.

    Args:
        loop: its clock must be real, for the sockets are the host's.
        options: see `UserOptions`.
        name: for people.
        rng: decides what is random on the gateway: sequence numbers, identifiers.
        complain: takes a line that people should see; each is said once.
        wire: our end of the wire. Without it a cable is made.
        large: what is at the other end takes large segments (see `DirectInterface`).

    Attributes:
        link: the guest's end of the wire that was made; else the one that was handed in.
        stack: the gateway's.
        counters: what went through and what did not, with reasons.
        streams, datagrams, echoes, resolver, forwards: see there.

    Raises:
        WireError: the clock is virtual, or a forward cannot be made.
    """

    def __init__(
        self,
        loop: Loop,
        options: UserOptions | None = None,
        *,
        name: str = "user",
        rng: random.Random,
        complain: Callable[[str], None] = lambda _line: None,
        wire: Link | None = None,
        large: bool = False,
    ) -> None:
        if loop.clock.virtual:
            raise WireError(f"{name}: leads outside, where time is real; use --clock real, or --wire hub")
        self.options = options = options or UserOptions()
        self.counters: Counter[str] = Counter()
        self._loop = loop
        self._complain = complain
        self._said: set[str] = set()
        self.link: Link
        if wire is None:
            self.link, wire = cable(loop, name)
            self.link.name = name
        else:
            self.link = wire
        tcp = TcpConfig(
            window=WINDOW, window_max=WINDOW, sndbuf_max=WINDOW, syn_cookies=False, syn_queue=STREAMS, ecn=0
        )
        self.stack = Stack(now=loop.clock.now, rng=rng, config=NetConfig(tcp=tcp, membership=False))
        self._turns = StackTurns(self.stack, loop)
        self._device = DirectInterface(self.stack, wire, name="guest", mac=MAC, mtu=options.mtu, large=large)
        self.interface = interface = self._device.interface
        self._closed = False
        self._dhcp: DhcpServer | None = None
        self._servers: list[DnsServer] = []
        self._advertiser: RouterAdvertiser | None = None
        self._add_addresses()
        self.stack.ip.transparent = interface
        common: _Common = {"outside": self.outside, "counters": self.counters, "complain": self.complain}
        self.streams = Streams(loop, self.stack, interface, **common)
        self.datagrams = Datagrams(loop, self.stack, interface, **common)
        self.echoes = Echoes(loop, self.stack, interface, **common)
        self.resolver = Resolver(loop, options.resolvers, counters=self.counters, complain=self.complain)
        self.forwards = Forwards(
            loop, options, self.streams, self.datagrams, counters=self.counters, complain=self.complain
        )
        interface.set_up()
        try:
            self._start_servers()
            for rule in options.forwards:
                self.forwards.add(rule)
        except BaseException:
            self.close()
            raise

    def _add_addresses(self) -> None:
        options, interface = self.options, self.interface
        if options.ipv4:
            length = options.net.length - 96
            interface.add_address(options.gateway, length)
            interface.add_address(options.server, length)
        if options.ipv6:
            interface.add_address("fe80::2", 64, check=False)
            interface.add_address(options.gateway6, options.net6.length, check=False)
            interface.add_address(options.server6, options.net6.length, check=False)

    def _start_servers(self) -> None:
        options, stack, interface = self.options, self.stack, self.interface
        clock, leads_out = self._loop.clock, not options.restrict
        if options.ipv4:
            last = min(options.first + GUESTS - 1, (options.net.broadcast or 0) - 1)
            self._dhcp = DhcpServer(
                stack, interface, first=options.first, last=last, gateway=options.gateway if leads_out else None,
                dns=[options.server] if leads_out else [], domain=options.domainname,
                mtu=options.mtu if options.mtu != 1500 else None, extra=_dhcp_extra(options),
            )  # fmt: skip
            self._dhcp.start()
        if options.ipv6:
            self._advertiser = RouterAdvertiser(
                stack, interface, Prefix(options.net6.network, options.net6.length), timers=clock,
                dns=[options.server6] if leads_out else [], lifetime=ROUTER_LIFETIME if leads_out else 0,
                mtu=options.mtu,
            )  # fmt: skip
            self._advertiser.start()
        if leads_out:
            names = _names(options)
            for address in [options.server] * options.ipv4 + [options.server6] * options.ipv6:
                server = DnsServer(stack, address, timers=clock, names=names, forward=self.resolver.ask)
                server.start()
                self._servers.append(server)

    # -- what the parts ask ----------------------------------------------------------------------------------------

    def outside(self, address: int, port: int) -> tuple[int, int] | None:
        """Where the host is to go for an address and port that the guest wants; None for nowhere."""
        options = self.options
        if options.restrict:
            return None
        v4 = is_v4(address)
        net, gateway = (options.net, options.gateway) if v4 else (options.net6, options.gateway6)
        if address == gateway:
            return (LOOPBACK4 if v4 else LOOPBACK6), port
        if net.contains(address) or is_link_local(address) or not (options.ipv4 if v4 else options.ipv6):
            return None
        return address, port

    def complain(self, line: str) -> None:
        """Tell people, once."""
        if line not in self._said:
            self._said.add(line)
            self._complain(f"user wire: {line}")

    def close(self) -> None:
        """Reset what is open, and give everything back. Harmless when closed."""
        if self._closed:
            return
        self._closed = True
        self.forwards.close()
        self.streams.close()
        self.datagrams.close()
        self.echoes.close()
        self.resolver.close()
        for server in (self._dhcp, *self._servers):
            if server is not None:
                server.close()
        if self._advertiser is not None:
            self._advertiser.close()
        self._device.close()
        self._turns.stop()
