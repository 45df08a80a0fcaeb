"""ip: show and change interfaces, addresses, routes and neighbours, in the words of iproute2's program.

Changes go through the system calls; what the kernel refuses is one line with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.links import LinkInfo, change_mtu, family_word, links, scope
from guest.apps.usage import UsageError, options, whole
from guest.net.address import AddressError, Prefix, format_address, format_mac, is_v4, parse_address
from guest.net.interface import MAX_MTU, MIN_MTU
from guest.net.route import ADDRCONF, DYNAMIC, REJECT

USAGE = """usage: ip [-4] [-6] [-s] OBJECT [COMMAND]
  ip addr [show [dev IF]]            ip addr add|del ADDRESS/LENGTH dev IF
  ip link [show [dev IF]]            ip link set IF up|down|mtu BYTES
  ip route [show]                    ip route add|del PREFIX|default [via GATEWAY] [dev IF] [metric N]
  ip neigh [show [dev IF]]
  -4, -6  one family only (routes: IPv4 unless told otherwise)
  -s      counters too, drops by reason"""

_SHOW = ("show", "list", "ls")


class _Refused(Exception):
    """The guest does not do it; the text is one line."""


class _Ip:
    """One run: where to print, and what the options said."""

    def __init__(self, env: Env, families: Sequence[int], counters: bool) -> None:
        self.env = env
        self.families = families
        self.counters = counters

    def wanted(self, address: int) -> bool:
        """Whether an address is of a family that is asked for."""
        return not self.families or (4 if is_v4(address) else 6) in self.families

    def chosen(self, words: Sequence[str]) -> list[LinkInfo]:
        """The interfaces that `[dev] IF` names; all without it."""
        found = links(self.env.guest)
        if not words:
            return list(found.values())
        if len(words) != 1:
            raise UsageError(f"one interface at most, not {' '.join(words)}")
        if words[0] not in found:
            raise _Refused(f"there is no {words[0]}; there are {', '.join(found)}")
        return [found[words[0]]]

    # -- showing -------------------------------------------------------------------------------------------------

    def head(self, link: LinkInfo) -> list[str]:
        """The lines that `addr` and `link` begin with."""
        lines = [f"{link.index}: {link.name}: <{link.flag_names}> mtu {link.mtu}"]
        lines.append(f"    link/ether {format_mac(link.mac)}" if link.mac and any(link.mac) else "    link/none")
        return lines

    def addr_show(self, words: Sequence[str]) -> None:
        """Interfaces with their addresses."""
        for link in self.chosen(words):
            lines = self.head(link)
            for prefix in link.interface.addresses if link.interface is not None else ():
                if link.interface is not None and self.wanted(prefix.address):
                    text, _, marks = link.interface.describe(prefix.address).partition(" ")
                    line = f"    {family_word(prefix)} {text} scope {scope(prefix.address)} {marks}"
                    lines.append(line.rstrip())
            self.env.print("\n".join(lines + self.statistics(link)))

    def link_show(self, words: Sequence[str]) -> None:
        """Interfaces without their addresses."""
        for link in self.chosen(words):
            self.env.print("\n".join(self.head(link) + self.statistics(link)))

    def statistics(self, link: LinkInfo) -> list[str]:
        """With -s: what the interface counted."""
        lines = []
        for way in ("rx", "tx") if self.counters else ():
            numbers = "  ".join(f"{what} {link.total(way, what)}" for what in ("bytes", "packets", "dropped"))
            lines.append(f"    {way.upper()}: {numbers}")
            lines += [f"        {reason} {count}" for reason, count in link.drops(way).items()]
        return lines

    def route_show(self, words: Sequence[str]) -> None:
        """The routing table, best first."""
        if words:
            raise UsageError(f"ip route show takes no {words[0]}")
        names = {id(interface): interface.name for interface in self.env.guest.stack.interfaces}
        for route in self.env.guest.stack.routes:
            v4 = is_v4(route.prefix.address)
            if (4 if v4 else 6) not in (self.families or (4,)) or names[id(route.interface)] == "lo":
                continue
            line = _prefix_text(route.prefix)
            if route.gateway is not None:
                line += f" via {format_address(route.gateway)}"
            line += f" dev {names[id(route.interface)]}"
            line += f" metric {route.metric}" if route.metric else ""
            for flag, word in ((ADDRCONF, " proto ra"), (DYNAMIC, " proto redirect"), (REJECT, " unreachable")):
                line += word if route.flags & flag else ""
            self.env.print(line)

    def neigh_show(self, words: Sequence[str]) -> None:
        """Who was heard of, and at which MAC address."""
        for link in self.chosen(words):
            cache = None if link.interface is None else link.interface.neighbours
            for address, mac, _ in cache.entries() if cache is not None else ():
                if self.wanted(address):
                    state = "INCOMPLETE" if mac is None else f"lladdr {format_mac(mac)} REACHABLE"
                    self.env.print(f"{format_address(address)} dev {link.name} {state}")

    # -- changing ------------------------------------------------------------------------------------------------

    def addr_change(self, command: str, words: Sequence[str]) -> None:
        """`addr add` and `addr del`."""
        if len(words) != 3 or words[1] != "dev":
            raise UsageError(f"ip addr {command} needs ADDRESS/LENGTH dev IF")
        address, length = _prefix(words[0])
        self.with_interface(words[2])
        calls = self.env.calls
        if command == "add":
            calls.if_add_addr(words[2], address, length)
        else:
            calls.if_del_addr(words[2], address)

    def route_change(self, command: str, words: Sequence[str]) -> None:
        """`route add` and `route del`."""
        if not words or len(words) % 2 == 0:
            raise UsageError(f"ip route {command} needs PREFIX [via GATEWAY] [dev IF] [metric N]")
        said = dict(zip(words[1::2], words[2::2], strict=True))
        via, dev, metric = (said.pop(word, None) for word in ("via", "dev", "metric"))
        if said:
            raise UsageError(f"ip route {command}: what is {next(iter(said))}?")
        number = None if metric is None else whole("metric", metric, 0, 1 << 31)
        if words[0] == "default":
            v6 = 6 in self.families or (via is not None and ":" in via)
            address, length = ("::" if v6 else "0.0.0.0"), 0
        else:
            address, length = _prefix(words[0])
        if dev is not None:
            self.with_interface(dev)
        if command == "add":
            self.env.calls.add_route(address, length, via, dev, number or 0)
        else:
            self.env.calls.del_route(address, length, dev, number)

    def link_set(self, words: Sequence[str]) -> None:
        """`link set`."""
        words = words[1:] if words[:1] == ["dev"] else words
        if len(words) == 2 and words[1] in ("up", "down"):
            self.with_interface(words[0])
            (self.env.calls.if_up if words[1] == "up" else self.env.calls.if_down)(words[0])
        elif len(words) == 3 and words[1] == "mtu":
            mtu = whole("mtu", words[2], MIN_MTU, MAX_MTU)
            self.with_interface(words[0])
            try:
                change_mtu(self.env.guest, words[0], mtu)
            except OSError as error:
                raise _Refused(error.strerror) from None
        else:
            raise UsageError("ip link set needs IF and one of up, down, mtu BYTES")

    def with_interface(self, name: str) -> LinkInfo:
        """The interface `name`, which must be one that the IP stack has."""
        link = self.chosen([name])[0]
        if link.interface is None:
            raise _Refused(f"{name} has no network interface")
        return link

    # -- which is which ------------------------------------------------------------------------------------------

    def run(self, words: Sequence[str]) -> None:
        """Do what the words say."""
        if not words:
            raise UsageError("an object is needed: addr, link, route or neigh")
        objects: dict[str, tuple[Callable[[Sequence[str]], None], tuple[str, ...]]] = {
            "address": (self.addr_show, ("add", "del")),
            "link": (self.link_show, ("set",)),
            "route": (self.route_show, ("add", "del")),
            "neighbour": (self.neigh_show, ()),
        }
        name = next((name for name in objects if name.startswith(words[0])), None)
        if name is None:
            raise UsageError(f"what is {words[0]}?")
        show, commands = objects[name]
        if len(words) == 1 or words[1] in _SHOW:
            rest = list(words[2:])
            show(rest[1:] if rest[:1] == ["dev"] else rest)
        elif words[1] not in commands:
            raise UsageError(f"ip {words[0]} knows no {words[1]}")
        elif name == "link":
            self.link_set(words[2:])
        else:
            (self.addr_change if name == "address" else self.route_change)(words[1], words[2:])


def main(env: Env, argv: list[str]) -> int:
    """0, 1 when the guest refuses, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "46s")
        families = [family for family in (4, 6) if f"-{family}" in chosen]
        _Ip(env, families, "-s" in chosen).run(rest)
    except UsageError as error:
        env.print(f"ip: {error}\n{USAGE}")
        return EX_USAGE
    except _Refused as refused:
        env.print(f"ip: {refused}")
        return 1
    except OSError as failed:
        env.print(f"ip: {' '.join(rest)}: {failed.strerror}")
        return 1
    return 0


def _prefix(text: str) -> tuple[str, int]:
    """`10.0.0.1/24` in its parts; an address alone is one host. Raises UsageError."""
    address, slash, length = text.partition("/")
    try:
        bits = 32 if is_v4(parse_address(address)) else 128
    except AddressError as error:
        raise UsageError(str(error)) from None
    return address, whole("prefix length", length, 0, bits) if slash else bits


def _prefix_text(prefix: Prefix) -> str:
    if prefix.length == (96 if is_v4(prefix.address) else 0):
        return "default"
    return str(prefix)
