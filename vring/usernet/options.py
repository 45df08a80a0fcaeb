"""What `--wire user:…` may say: the options of a user wire and its forwards, as values. QEMU's spelling.

    user:net=10.0.2.0/24,hostfwd=tcp::8080-:80,hostfwd=udp:127.0.0.1:5353-10.0.2.15:53,restrict=on

Nothing here touches the host. Whatever is wrong raises ValueError, whose text says what is, and what is allowed.

Options of QEMU's that stand for something that is not done here are refused by name (`REFUSED`).

Sections: `Forward` (a rule), `UserOptions`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from guest.net.address import (
    AddressError,
    Prefix,
    format_address,
    is_link_local,
    is_multicast,
    is_unspecified,
    is_v4,
    netmask_length,
    parse_address,
    to_prefix,
)
from guest.net.dhcp_wire import is_host
from guest.net.dns_wire import is_name

FORWARD_FORM = "[tcp|udp]:[host address]:host port-[guest address]:guest port, such as tcp::8080-:80"
FORWARD_KINDS = ("tcp", "udp", "unix")
REFUSED = {
    "tftp": "there is no TFTP server here; serve files with HTTP on the host, at the address of `host`",
    "tftp-server-name": "there is no TFTP server here",
    "bootfile": "guests do not boot from the network here",
    "smb": "there is no SMB server here",
    "smbserver": "there is no SMB server here",
    "guestfwd": "connections to programs are not made here; let the program listen on the host's loopback",
    "id": "a wire has no id; the guest and the card name it",
}
LOOPBACK4 = parse_address("127.0.0.1")
LOOPBACK6 = parse_address("::1")
MTU_LEAST = 1280
NET = to_prefix("10.0.2.0", 24)
NET6 = to_prefix("fec0::", 64)


class Forward(NamedTuple):
    """A rule: what comes to `port` of `address` on the host goes to `guest_port` of `guest`.

    Attributes:
        kind: "tcp", "udp", or "unix", a stream socket at `path`.
        address: of the host; the loopback unless it was given.
        port: 0 for any that is free.
        guest: None for the first address that DHCP gives.
        path: of a "unix" rule, else "".
    """

    kind: str
    address: int
    port: int
    guest: int | None
    guest_port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Forward:
        """Read a rule. Raises ValueError."""
        where = f"hostfwd={text}"
        head, dash, tail = text.rpartition("-")
        if not dash:
            raise ValueError(f"{where}: there is no '-'; write {FORWARD_FORM}")
        guest, guest_port = _end(tail, f"{where}: the guest's side")
        if guest_port == 0:
            raise ValueError(f"{where}: the guest's port is 1 to 65535, not 0")
        kind, address, port, path = _host_side(head, where)
        return cls(kind, address, port, guest, guest_port, path)

    @classmethod
    def parse_host_side(cls, text: str) -> Forward:
        """Read the part before the '-', which is enough to name a rule that is to be removed. Raises ValueError."""
        kind, address, port, path = _host_side(text, f"hostfwd {text}")
        return cls(kind, address, port, None, 0, path)

    @property
    def host_side(self) -> str:
        """How the rule is named when it is to be removed: `tcp:127.0.0.1:8080`."""
        return f"unix:{self.path}" if self.kind == "unix" else f"{self.kind}:{endpoint(self.address, self.port)}"

    def __str__(self) -> str:
        guest = "" if self.guest is None else _bracketed(self.guest)
        return f"{self.host_side}-{guest}:{self.guest_port}"


def endpoint(address: int, port: int) -> str:
    """`10.0.2.2:80`, `[fec0::2]:80`."""
    return f"{_bracketed(address)}:{port}"


def _bracketed(address: int) -> str:
    text = format_address(address)
    return f"[{text}]" if ":" in text else text


def _host_side(text: str, where: str) -> tuple[str, int, int, str]:
    """Kind, address, port and path."""
    kind, colon, rest = text.partition(":")
    if not colon:
        raise ValueError(f"{where}: {text!r} is no host side; write {FORWARD_FORM}")
    kind = kind or "tcp"
    if kind not in FORWARD_KINDS:
        raise ValueError(f"{where}: {kind!r} is none of {', '.join(FORWARD_KINDS)}; write {FORWARD_FORM}")
    if kind == "unix":
        if not rest or len(rest.encode()) > 107:
            raise ValueError(f"{where}: the path of a socket has 1 to 107 bytes")
        return kind, 0, 0, rest
    address, port = _end(rest, f"{where}: the host's side")
    return kind, LOOPBACK4 if address is None else address, port, ""


def _end(text: str, where: str) -> tuple[int | None, int]:
    """`[address]:port`, an IPv6 address in brackets."""
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:\[\]]*)):(\d{1,5})", text)
    if found is None:
        raise ValueError(f"{where} {text!r} is not [address]:port; write {FORWARD_FORM}")
    port = int(found[3])
    if port > 0xFFFF:
        raise ValueError(f"{where}: there is no port {port}; ports end at 65535")
    host = found[1] or found[2]
    if host == "localhost":
        host = "127.0.0.1"
    try:
        return (parse_address(host) if host else None), port
    except AddressError as error:
        raise ValueError(f"{where}: {error}") from None


@dataclass(frozen=True, slots=True)
class UserOptions:
    """The options of one user wire. Addresses are 128-bit numbers; None stands for what follows from `net`.

    Attributes:
        ipv4, ipv6: whether the family is spoken.
        net: the guest's network. host: the gateway's address in it, behind which the host's loopback lies (.2).
        dns: the name server's address (.3). dhcpstart: the first address that DHCP gives (.15).
        net6, host6, dns6: likewise (::2, ::3).
        restrict: the guest reaches nothing outside; forwards work.
        forwards: rules from the start on.
        names: names that the name server knows, as (name, address).
        resolvers: the host's name servers, as (address, port); empty for those of /etc/resolv.conf.
        hostname, domainname, dnssearch: what DHCP tells guests.
        mtu: bytes of the largest IP packet on the wire.
    """

    ipv4: bool = True
    ipv6: bool = True
    net: Prefix = NET
    host: int | None = None
    dns: int | None = None
    dhcpstart: int | None = None
    net6: Prefix = NET6
    host6: int | None = None
    dns6: int | None = None
    restrict: bool = False
    forwards: tuple[Forward, ...] = ()
    names: tuple[tuple[str, int], ...] = ()
    resolvers: tuple[tuple[int, int], ...] = ()
    hostname: str = ""
    domainname: str = ""
    dnssearch: tuple[str, ...] = ()
    mtu: int = 1500

    @classmethod
    def parse(cls, words: Sequence[str]) -> UserOptions:
        """Read words such as "net=10.0.2.0/24". Raises ValueError."""
        found: dict[str, object] = {}
        lists: dict[str, list[object]] = {"forwards": [], "names": [], "resolvers": [], "dnssearch": []}
        prefix6: str | None = None
        for word in words:
            key, equals, value = word.partition("=")
            if key in REFUSED:
                raise ValueError(f"{key}: {REFUSED[key]}")
            if key not in KEYS:
                raise ValueError(f"{word!r}: there is no option {key!r}; there are {', '.join(sorted(KEYS))}")
            if not equals or not value:
                raise ValueError(f"{word!r} is not key=value")
            try:
                match key:
                    case "ipv4" | "ipv6" | "restrict":
                        found[key] = _switch(key, value)
                    case "net":
                        found["net"] = _network(key, value)
                    case "ipv6-net":
                        found["net6"] = _network(key, value)
                    case "ipv6-prefix":
                        prefix6 = value
                        found.setdefault("net6", _network(key, f"{value}/64"))
                    case "ipv6-prefixlen":
                        found["net6"] = _network(key, f"{prefix6 or 'fec0::'}/{value}")
                    case "host" | "dns" | "dhcpstart":
                        found[key] = _address(key, value, v4=True)
                    case "ipv6-host" | "ipv6-dns":
                        found[key.removeprefix("ipv6-") + "6"] = _address(key, value, v4=False)
                    case "hostfwd":
                        lists["forwards"].append(Forward.parse(value))
                    case "dnsname":
                        lists["names"].append(_name(value))
                    case "resolver":
                        lists["resolvers"].append(_resolver(value))
                    case "dnssearch":
                        lists["dnssearch"].append(_word(key, value))
                    case "mtu":
                        found["mtu"] = _mtu(value)
                    case _:
                        found[key] = _word(key, value)
            except AddressError as error:
                raise ValueError(f"{key}: {error}") from None
        made = cls(**found, **{key: tuple(values) for key, values in lists.items()})  # type: ignore[arg-type]
        made.check()
        return made

    def check(self) -> None:
        """Raises ValueError for options that contradict each other."""
        if not self.ipv4 and not self.ipv6:
            raise ValueError("ipv4 and ipv6 are both off, so nothing is left to speak")
        for key, address, net in (
            ("host", self.host, self.net), ("dns", self.dns, self.net), ("dhcpstart", self.dhcpstart, self.net),
            ("ipv6-host", self.host6, self.net6), ("ipv6-dns", self.dns6, self.net6),
        ):  # fmt: skip
            inside = address is None or (net.contains(address) and address not in (net.network, net.broadcast))
            if address is not None and not inside:
                raise ValueError(f"{key}: {format_address(address)} is no host of {net}")
        numbers = {self.gateway, self.server, self.first}
        if self.ipv4 and len(numbers) < 3:
            raise ValueError("host, dns and dhcpstart are three different addresses")
        if self.ipv6 and self.gateway6 == self.server6:
            raise ValueError("ipv6-host and ipv6-dns are two different addresses")
        for rule in self.forwards:
            self.target(rule)

    @property
    def gateway(self) -> int:
        """The gateway's IPv4 address."""
        return self.net.network + 2 if self.host is None else self.host

    @property
    def server(self) -> int:
        """The name server's."""
        return self.net.network + 3 if self.dns is None else self.dns

    @property
    def first(self) -> int:
        """The first that DHCP gives; in a /28 the last that there is."""
        last = self.net.network + (1 << 128 - self.net.length) - 2
        return min(self.net.network + 15, last) if self.dhcpstart is None else self.dhcpstart

    @property
    def gateway6(self) -> int:
        """The gateway's IPv6 address."""
        return self.net6.network + 2 if self.host6 is None else self.host6

    @property
    def server6(self) -> int:
        """The name server's."""
        return self.net6.network + 3 if self.dns6 is None else self.dns6

    def target(self, rule: Forward) -> int:
        """The guest's address of a rule. Raises ValueError where it is in no network of this wire."""
        guest = self.first if rule.guest is None else rule.guest
        spoken, net = (self.ipv4, self.net) if is_v4(guest) else (self.ipv6, self.net6)
        if not spoken or not net.contains(guest):
            raise ValueError(f"hostfwd={rule}: {format_address(guest)} is not in the guest's network {net}")
        return guest


KEYS = frozenset((
    "ipv4", "ipv6", "net", "ipv6-net", "ipv6-prefix", "ipv6-prefixlen", "host", "ipv6-host", "dns", "ipv6-dns",
    "dhcpstart", "restrict", "hostfwd", "dnsname", "resolver", "hostname", "domainname", "dnssearch", "mtu",
))  # fmt: skip


def _switch(key: str, value: str) -> bool:
    if value not in ("on", "off"):
        raise ValueError(f"{key} is on or off, not {value!r}")
    return value == "on"


def _network(key: str, value: str) -> Prefix:
    """`10.0.2.0/24`, `10.0.2.0/255.255.255.0`, `fec0::/64`; IPv4 without length is a /24, as with QEMU."""
    text, _, length = value.partition("/")
    address = parse_address(text)
    if is_v4(address) != (key == "net"):
        raise ValueError(f"{key}: {text} is of the other family")
    if is_v4(address):
        bits = 24 if not length else netmask_length(length) if "." in length else _number(key, length, 32)
        if not 1 <= bits <= 28:
            raise ValueError(f"{key}: a /{bits} has no room for gateway, name server and guests; use /8 to /28")
    else:
        bits = _number(key, length or "64", 128)
        if bits != 64:
            raise ValueError(f"{key}: guests make themselves addresses in a /64 only, not in a /{bits}")
    prefix = to_prefix(address, bits)
    if not (is_host(prefix.network) if is_v4(prefix.network) else _is_host6(prefix.network)):
        raise ValueError(f"{key}: hosts have no addresses in {prefix}")
    return prefix


def _is_host6(network: int) -> bool:
    """Whether a host may have addresses in a network of IPv6; those of the link itself, it has anyway."""
    return not (is_multicast(network) or is_unspecified(network) or is_link_local(network))


def _number(key: str, text: str, most: int) -> int:
    if not text.isdecimal() or int(text) > most:
        raise ValueError(f"{key}: {text!r} is not a number from 0 to {most}")
    return int(text)


def _mtu(value: str) -> int:
    number = _number("mtu", value, 65521)
    if number < MTU_LEAST:
        raise ValueError(f"mtu: {number} is below {MTU_LEAST}, which IPv6 needs")
    return number


def _address(key: str, value: str, *, v4: bool) -> int:
    address = parse_address(value)
    if is_v4(address) != v4:
        raise ValueError(f"{key}: {value} is of the other family")
    return address


def _name(value: str) -> tuple[str, int]:
    name, equals, address = value.partition("=")
    if not equals or not name:
        raise ValueError(f"dnsname={value}: write dnsname=NAME=ADDRESS")
    return _word("dnsname", name), parse_address(address)


def _resolver(value: str) -> tuple[int, int]:
    """`127.0.0.1`, `127.0.0.1:5353`, `[::1]:53`, `::1`."""
    if value.count(":") > 1 and not value.startswith("["):
        return parse_address(value), 53
    address, port = _end(value if re.search(r":\d+$", value) else f"{value}:53", f"resolver={value}: the server")
    if address is None:
        raise ValueError(f"resolver={value}: write ADDRESS or ADDRESS:PORT")
    return address, port


def _word(key: str, value: str) -> str:
    if not is_name(value) or not value.isascii():
        raise ValueError(f"{key}: {value!r} is no name")
    return value
