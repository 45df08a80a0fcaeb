"""An Internet of four hosts, each a stack of ours on wires of ours: what `--wire sim` is plugged into.

    guests ─ hub ─ router ──── uplink ──── core ─┬─ dns ─── 8.8.8.8
                   10.0.2.2                      └─ web ─── example.com
                   DHCP, router advertisements,
                   10.0.2.3: name server, which asks 8.8.8.8

Promises:
- No right, no socket, nothing of the host's: it runs anywhere, on either clock. On the virtual clock the same seed and
  guests give the same run, byte for byte.
- Nobody here answers by hand: hosts are `vring.partial.PartialGuest`s, with the stack, the servers and the programs
  that guests have. Routers forward, count down TTLs and report errors.
- Delay and loss are on the links behind the router (`vring.simnet.options`); the guests' own wires are theirs.

There is no address translation. The outside knows the way to 10.0.2.0/24, as in a laboratory.

    host      IPv4                      IPv6                      what is there
    router    10.0.2.2, 10.0.2.3        2001:db8:2::2, ::3        DHCP .15 to .99, DNS; echo 7, UDP echo 7 and 12345
    core      100.64.0.1                2001:db8:1::1             forwards
    dns       8.8.8.8                   2001:4860:4860::8888      DNS: all names
    web       203.0.113.80              2001:db8:113::80          HTTP 80; echo 7, discard 9, UDP echo 7
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from guest.net.dhcp_server import DhcpServer
from guest.net.dns_forward import DnsForwarder
from guest.net.dns_server import DnsServer
from guest.net.radvd import RouterAdvertiser
from hw.loop import Loop
from hw.wire.cable import cable
from hw.wire.hub import Hub
from hw.wire.impair import ImpairedLink
from hw.wire.link import Link
from vring.partial import PartialGuest
from vring.simnet.options import LINKS, SimOptions
from vring.simnet.pages import PAGES, PageFolder

ROUTER, SERVER = "10.0.2.2", "10.0.2.3"
ROUTER6, SERVER6 = "2001:db8:2::2", "2001:db8:2::3"
INSIDE, INSIDE6 = "10.0.2.0/24", "2001:db8:2::/64"
FIRST, LAST = "10.0.2.15", "10.0.2.99"
CORE, CORE6 = "100.64.0.1", "2001:db8:1::1"
DNS, DNS6 = "8.8.8.8", "2001:4860:4860::8888"
WEB, WEB6 = "203.0.113.80", "2001:db8:113::80"

NAMES = {
    "example.com": (WEB, WEB6),
    "www.example.com": (WEB, WEB6),
    "dns.google": (DNS, DNS6),
    "core.example.net": (CORE, CORE6),
}
INSIDE_NAMES = {"router.home.arpa": (ROUTER, ROUTER6)}


class SimNet:
    """The simulated outside.

    Args:
        loop: its turns and its clock.
        options: see `SimOptions`.
        rng: a source of randomness for each purpose, unless the options have a seed.

    Attributes:
        hosts: by name: router, core, dns, web.
        hub: what the guests and the router are plugged into.
        links: by name: uplink, dns, web; the end that has the impairments.
        dhcp, advertiser, name_servers, forwarder: the servers.
    """

    def __init__(self, loop: Loop, options: SimOptions, *, rng: Callable[[str], random.Random]) -> None:
        self.options = options
        self._loop = loop
        self._rng = rng if options.seed is None else lambda purpose: random.Random(f"{options.seed}/{purpose}")
        self.hub = Hub(loop, "sim")
        self.hosts: dict[str, PartialGuest] = {}
        self.links: dict[str, Link] = {}
        self._far: dict[str, Link] = {}
        for name in LINKS:
            self._add_link(name)
        self._add_router()
        core = self._add_host("core", "net.forwarding=1 net.membership=0")
        core.plug(self._far["uplink"], f"{CORE}/30", f"{CORE6}/64")
        core.plug(self.links["dns"], "8.8.8.1/24", "2001:4860:4860::1/64")
        core.plug(self.links["web"], "203.0.113.1/24", "2001:db8:113::1/64")
        core.route("100.64.0.2", INSIDE)
        core.route("2001:db8:1::2", INSIDE6)
        dns = self._add_host("dns")
        dns.plug(self._far["dns"], f"{DNS}/24", f"{DNS6}/64")
        dns.route("8.8.8.1")
        dns.route("2001:4860:4860::1")
        web = self._add_host("web")
        web.plug(self._far["web"], f"{WEB}/24", f"{WEB6}/64")
        web.route("203.0.113.1")
        web.route("2001:db8:113::1")
        self._add_servers()

    def _add_link(self, name: str) -> None:
        near, self._far[name] = cable(self._loop, name)
        seed = self._rng(f"sim link {name}").getrandbits(64)
        self.links[name] = ImpairedLink(near, self._loop, seed, **self.options.links[name])

    def _add_host(self, name: str, words: str = "net.membership=0") -> PartialGuest:
        host = PartialGuest(self._loop, name=name, rng=self._rng(f"sim host {name}"), words=words)
        self.hosts[name] = host
        return host

    def _add_router(self) -> None:
        router = self._add_host("router", "net.forwarding=1 net.membership=0")
        router.plug(
            self.hub.port("router"),
            f"{ROUTER}/24", f"{SERVER}/24", f"{ROUTER6}/64", f"{SERVER6}/64", "fe80::2/64",
        )  # fmt: skip
        router.plug(self.links["uplink"], "100.64.0.2/30", "2001:db8:1::2/64")
        router.route(CORE)
        router.route(CORE6)

    def _add_servers(self) -> None:
        router, dns, web = (self.hosts[name] for name in ("router", "dns", "web"))
        inside = router.stack.interfaces[1]
        self.dhcp = DhcpServer(
            router.stack, inside, first=FIRST, last=LAST, gateway=ROUTER, dns=[SERVER], domain="home.arpa"
        )
        timers = router.services.timers
        self.advertiser = RouterAdvertiser(router.stack, inside, INSIDE6, timers=timers, dns=[SERVER6])
        self.forwarder = DnsForwarder(router.stack, [DNS], timers=timers)
        self.name_servers = [
            DnsServer(router.stack, address, timers=timers, names=INSIDE_NAMES, forward=self.forwarder)
            for address in (SERVER, SERVER6)
        ]
        self.name_servers += [
            DnsServer(dns.stack, address, timers=dns.services.timers, names=NAMES) for address in (DNS, DNS6)
        ]
        self.dhcp.start()
        self.advertiser.start()
        for server in self.name_servers:
            server.start()
        web.files = PageFolder(PAGES)
        for host, programs in (
            (router, ("echo", "udpecho -l", "udpecho -l 12345")),
            (web, ("httpd", "echo", "discard", "udpecho -l")),
        ):
            for line in programs:
                name, *words = line.split()
                host.spawn(name, *words)

    def port(self, name: str) -> Link:
        """A wire of a guest's into this network."""
        return self.hub.port(name)

    def counters(self) -> dict[str, Counter[str]]:
        """What went over each link and was lost there, and what the servers did."""
        return {
            **{f"link {name}": Counter(link.counters) for name, link in self.links.items()},
            "dhcp server": Counter(self.dhcp.counters),
            "dns server": sum((server.counters for server in self.name_servers), Counter[str]()),
        }

    def close(self) -> None:
        """End programs and servers, pull the plugs."""
        self.advertiser.close()
        self.dhcp.close()
        self.forwarder.close()
        for server in self.name_servers:
            server.close()
        for host in self.hosts.values():
            host.close()
        for link in (*self.links.values(), *self._far.values()):
            link.close()
        self.hub.close()
