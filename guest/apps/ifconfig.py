"""ifconfig: the interfaces with flags, addresses and counters; the loopback first, as LING's getifaddrs lists them.

Only eth0 can have addresses; the other front ends show what they have: flags and MAC.
"""

from __future__ import annotations

from collections import Counter

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.usage import UsageError, options
from guest.net.address import format_mac
from guest.net.device import FLAG_NAMES

USAGE = "usage: ifconfig [INTERFACE]"


def main(env: Env, argv: list[str]) -> int:
    """0, 1 for an unknown interface, 2 for wrong usage."""
    try:
        _, rest = options(argv, "")
        if len(rest) > 1:
            raise UsageError("one interface at most")
    except UsageError as error:
        env.print(f"ifconfig: {error}\n{USAGE}")
        return EX_USAGE
    blocks = _blocks(env)
    if rest and rest[0] not in blocks:
        env.print(f"ifconfig: there is no {rest[0]}; there are {', '.join(blocks)}")
        return 1
    for name, lines in blocks.items():
        if not rest or rest[0] == name:
            env.print("\n".join(lines))
    return 0


def _blocks(env: Env) -> dict[str, list[str]]:
    """What is to be printed for each interface."""
    guest = env.guest
    blocks: dict[str, list[str]] = {}
    addresses: dict[str, list[str]] = {}
    flags: dict[str, int] = {}
    for interface in guest.stack.interfaces:
        addresses[interface.name] = [str(address) for address in interface.addresses]
        flags[interface.name] = interface.flags
    lo = guest.lo
    blocks[lo.name] = _block(lo.name, flags[lo.name], lo.mtu, b"", addresses[lo.name], lo.counters)
    for fe in guest.fes:
        shown = flags.get(fe.name, fe.flags)
        blocks[fe.name] = _block(fe.name, shown, fe.mtu, fe.mac, addresses.get(fe.name, []), fe.device.counters)
    return blocks


def _block(
    name: str, flags: int, mtu: int, mac: bytes, addresses: list[str], counters: Counter[str]
) -> list[str]:
    names = ",".join(text for bit, text in FLAG_NAMES.items() if flags & bit)
    lines = [f"{name}: flags={flags}<{names}>  mtu {mtu}"]
    lines += [f"        inet {address}" for address in addresses]
    if mac:
        lines.append(f"        ether {format_mac(mac)}")
    for way in ("rx", "tx"):
        dropped = sum(count for key, count in counters.items() if key.startswith(f"{way}_dropped"))
        text = f"        {way.upper()} packets {counters[f'{way}_packets']}  bytes {counters[f'{way}_bytes']}"
        lines.append(f"{text}  dropped {dropped}")
    return lines
