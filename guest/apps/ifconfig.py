"""ifconfig: the interfaces with flags, addresses and counters; the loopback first, as LING's getifaddrs lists them.

Only eth0 can have addresses; the other front ends show what they have: flags and MAC.
"""

from __future__ import annotations

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.links import LinkInfo, family_word, links
from guest.apps.usage import UsageError, options
from guest.net.address import format_mac

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
    found = links(env.guest)
    if rest and rest[0] not in found:
        env.print(f"ifconfig: there is no {rest[0]}; there are {', '.join(found)}")
        return 1
    for name, link in found.items():
        if not rest or rest[0] == name:
            env.print("\n".join(_block(link)))
    return 0


def _block(link: LinkInfo) -> list[str]:
    lines = [f"{link.name}: flags={link.flags}<{link.flag_names}>  mtu {link.mtu}"]
    if link.interface is not None:
        for prefix in link.interface.addresses:
            lines.append(f"        {family_word(prefix)} {link.interface.describe(prefix.address)}")
    if link.mac:
        lines.append(f"        ether {format_mac(link.mac)}")
    for way in ("rx", "tx"):
        text = f"        {way.upper()} packets {link.total(way, 'packets')}  bytes {link.total(way, 'bytes')}"
        lines.append(f"{text}  dropped {link.total(way, 'dropped')}")
    return lines
