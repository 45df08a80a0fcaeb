"""What can be set in a guest, with its defaults: the one place to look.

    word on the command line    default      what it is
    net.rx_ring=64              256          entries of each card's receive ring, a power of two
    net.tx_ring=64              128          entries of each card's transmit ring, a power of two
    net.mtu=1400                1500         bytes of the largest IP packet on eth0; see below
    net.tcp_window=16384        65535        bytes that a TCP connection offers to receive at first
    net.tcp_window_max=65535    6291456      how far it may raise that for a reader who keeps up; see below
    net.tcp_profile=phase6      full         full, or a fixed window of 4096 bytes and only the timer against loss
    net.retries=3               5            times that TCP sends a segment again before it gives up
    net.keepalive=60000         7200000      milliseconds of silence before TCP's first keepalive probe
    net.forwarding=1            0            whether packets for others are passed on
    net.membership=0            1            whether routers are told of multicast groups (IGMP, MLD)

    net.guard="drop in tcp"     none         rules and policies of the packet filter, more behind semicolons
    net.hosts=peer@10.0.0.1     none         the hosts table: name@address, more behind commas
    net.dns=10.0.0.3            none         name servers, more behind commas
    net.search=example.org      none         domains that a short name is looked for in, more behind commas

A card offers a ring of some size and the guest takes at most that much. A card that says its own MTU has it, unless
`net.mtu`, or a `GuestConfig` handed to the guest, says a smaller one. With `net.tcp_window_max` not above
`net.tcp_window` the window is never raised. The times and limits inside the stack are `NetConfig` (guest/net/config.py)
and `TcpConfig` (guest/net/tcp/config.py), those of the DHCP client and the resolver `DhcpConfig` and `DnsConfig`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from guest.net.address import AddressError, parse_address
from guest.net.hosts import parse_entries
from guest.net.tcp.config import PROFILES, TcpConfig

PREFIX = "net."

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """Settings of one guest; for their meaning see above. Raises ValueError for one that is out of range."""

    rx_ring: int = 256
    tx_ring: int = 128
    mtu: int = 1500
    tcp_window: int = 65535
    tcp_window_max: int = 6 << 20
    tcp_profile: str = "full"
    retries: int = 5
    keepalive: int = 7_200_000
    forwarding: int = 0
    membership: int = 1

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{PREFIX}{name}={getattr(self, name)} is none of {', '.join(choices)}")
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{PREFIX}{name}={value} is not within {least} to {most}")
        for name in ("rx_ring", "tx_ring"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ValueError(f"{PREFIX}{name}={value} is not a power of two")


    def tcp(self) -> TcpConfig:
        """What the stack's TCP is made with. The profile phase6 keeps its window unless a smaller one is wanted."""
        profile = PROFILES[self.tcp_profile]()
        window = min(self.tcp_window, profile.window) if profile.window < TcpConfig().window else self.tcp_window
        return replace(
            profile,
            window=window,
            window_max=max(window, min(self.tcp_window_max, profile.window_max)),
            retries=self.retries,
            syn_retries=self.retries,
            synack_retries=self.retries,
            keepalive_idle=self.keepalive * 1000,
        )


LIMITS = {
    "rx_ring": (2, 32768),  # virtio 1.4 §2.7
    "tx_ring": (2, 32768),
    "mtu": (68, 65535),  # RFC 791 §3.2
    "tcp_window": (536, 1 << 30),  # a segment of RFC 1122 §4.2.2.6; RFC 7323 §2.3
    "tcp_window_max": (536, 1 << 30),
    "retries": (0, 255),
    "keepalive": (1, 1 << 40),
    "forwarding": (0, 1),
    "membership": (0, 1),
}
CHOICES = {"tcp_profile": tuple(PROFILES)}
assert set(LIMITS) | set(CHOICES) == {one.name for one in fields(GuestConfig)}
LISTS = ("guard", "hosts", "dns", "search")


@dataclass(frozen=True)
class Settings:
    """What the command line sets.

    Attributes:
        values: fields of `GuestConfig` by name.
        guard: rules and policies as text, which are right, or "".
        hosts: names and addresses. dns: name servers. search: domains.
    """

    values: dict[str, Any] = field(default_factory=dict)
    guard: str = ""
    hosts: tuple[tuple[str, int], ...] = ()
    dns: tuple[int, ...] = ()
    search: tuple[str, ...] = ()

    def over(self, config: GuestConfig) -> GuestConfig:
        """`config` with these values in place of its own."""
        return replace(config, **self.values)


def parse_settings(words: Iterable[str]) -> Settings:
    """What the `net.…` words among `words` set; the last of each counts. Raises ValueError, one line."""
    values: dict[str, Any] = {}
    lists: dict[str, str] = {}
    for word in words:
        name, _, text = word.partition("=")
        if not name.startswith(PREFIX):
            continue
        name = name.removeprefix(PREFIX)
        if name in LISTS:
            lists[name] = text
        elif name in CHOICES:
            values[name] = text
        elif name in LIMITS:
            if not (text.isascii() and text.isdigit()):
                raise ValueError(f"{word}: {PREFIX}{name} takes a number, as in: {PREFIX}{name}={_default(name)}")
            values[name] = int(text)
        else:
            known = ", ".join(PREFIX + one for one in (*LIMITS, *CHOICES, *LISTS))
            raise ValueError(f"unknown setting {PREFIX}{name}; the settings are {known}")
    settings = Settings(
        values,
        ";".join(_list(lists, "guard", '"drop in tcp to port 80"', _rules)),
        _list(lists, "hosts", "peer@10.0.0.1", parse_entries),
        _list(lists, "dns", "10.0.0.3", lambda text: [parse_address(item) for item in text.split(",")]),
        _list(lists, "search", "example.org", _domains),
    )
    settings.over(GuestConfig())
    return settings


def _default(name: str) -> int:
    value: int = getattr(GuestConfig(), name)
    return value


def _list(lists: dict[str, str], name: str, example: str, parse: Callable[[str], list[T]]) -> tuple[T, ...]:
    if name not in lists:
        return ()
    try:
        return tuple(parse(lists[name]))
    except (AddressError, ValueError) as error:
        raise ValueError(f"{PREFIX}{name}: {error}; write: {PREFIX}{name}={example}") from None


def _rules(text: str) -> list[str]:
    from guest.net.guard_rule import parse_rules  # noqa: PLC0415 - without rules it is not loaded

    return [str(line) for line in parse_rules(text)]


def _domains(text: str) -> list[str]:
    names = [item.strip(".") for item in text.split(",")]
    if not all(names):
        raise ValueError(f"{text!r} names no domain")
    return names
