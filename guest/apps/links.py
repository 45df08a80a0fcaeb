"""The interfaces of a guest as programs show them: the loopback first, then every front end, also those without one."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest.net.address import Prefix, is_link_local, is_loopback, is_v4
from guest.net.device import FLAG_NAMES
from guest.net.interface import Interface

if TYPE_CHECKING:
    from guest.kernel import Guest


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """One interface.

    Attributes:
        index: of the interface; front ends without one follow, numbered on.
        mac: empty where there is none.
        counters: the device's, or the link layer's where the device is not the guest's.
        interface: None for a front end that carries no network interface.
    """

    index: int
    name: str
    flags: int
    mtu: int
    mac: bytes
    counters: Counter[str]
    interface: Interface | None

    @property
    def flag_names(self) -> str:
        """The flags, as UP,BROADCAST,…"""
        return ",".join(text for bit, text in FLAG_NAMES.items() if self.flags & bit)

    def total(self, way: str, what: str) -> int:
        """`what` ("packets", "bytes" or "dropped") was counted this often on the way "rx" or "tx"."""
        if what != "dropped":
            return self.counters[f"{way}_{what}"]
        return sum(self.drops(way).values())

    def drops(self, way: str) -> dict[str, int]:
        """The drops on this way, by reason."""
        start = f"{way}_dropped"
        return {key: count for key, count in sorted(self.counters.items()) if key.startswith(start) and count}


def links(guest: Guest) -> dict[str, LinkInfo]:
    """All interfaces, by name."""
    lo = guest.lo
    devices = {lo.name: lo, **{fe.name: fe.device for fe in guest.fes}}
    found: dict[str, LinkInfo] = {}
    for interface in guest.stack.interfaces:
        device = devices.pop(interface.name, None)
        counters = interface.counters if device is None else device.counters
        found[interface.name] = LinkInfo(
            interface.index, interface.name, interface.flags, interface.mtu, interface.mac or b"", counters, interface
        )
    index = max(link.index for link in found.values())
    for name, device in devices.items():
        index += 1
        found[name] = LinkInfo(index, name, device.flags, device.mtu, device.mac, device.counters, None)
    return dict(sorted(found.items(), key=lambda item: (item[0] != lo.name, item[1].index)))


def change_mtu(guest: Guest, name: str, mtu: int) -> None:
    """Set the MTU of an interface. Raises OSError: ENODEV, EINVAL where its card cannot carry that much."""
    card = next((fe.device for fe in guest.fes if fe.name == name), None)
    if card is not None and mtu > card.mtu:
        raise OSError(errno.EINVAL, f"{name} cannot carry more than {card.mtu} bytes")
    for interface in guest.stack.interfaces:
        if interface.name == name:
            interface.set_mtu(mtu)
            return
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def family_word(prefix: Prefix) -> str:
    """`inet` or `inet6`."""
    return "inet" if is_v4(prefix.address) else "inet6"


def scope(address: int) -> str:
    """How far an address reaches: host, link or global (RFC 4007)."""
    return "host" if is_loopback(address) else "link" if is_link_local(address) else "global"
