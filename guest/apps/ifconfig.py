"""ifconfig: show and set the interfaces: address, mask, gateway, MTU, flags, counters.

Only eth0 and the loopback can have addresses; the other front ends show what they have: flags and MAC. Where the guest
booted without network options, the first address makes eth0's network interface. The loopback comes first, as in LING's
getifaddrs. Words are those of ifconfig(8) of net-tools, and `gateway`.
"""

from __future__ import annotations

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.links import LinkInfo, change_mtu, family_word, links
from guest.apps.usage import UsageError, several, whole
from guest.init import plug_in
from guest.net.address import V4_BITS, AddressError, format_address, format_mac, is_v4, netmask_length, parse_address
from guest.net.interface import MAX_MTU, MIN_MTU
from guest.sys.fault import fault

USAGE = """usage: ifconfig [-a] [INTERFACE]
       ifconfig INTERFACE [ADDRESS[/LENGTH]] [netmask MASK] [gateway GATEWAY|none] [mtu BYTES]
                          [add ADDRESS/LENGTH] [del ADDRESS] [promisc|-promisc] [up|down]
  netmask MASK     that of the address's old class, where neither it nor /LENGTH is said
  add, del         further addresses, of either family"""
EXAMPLES = (
    "ifconfig eth0", "ifconfig eth0 10.0.2.15 netmask 255.255.255.0 gateway 10.0.2.2", "ifconfig eth0 mtu 1400 down",
    "ifconfig eth0 add fd00::2/64",
)  # fmt: skip

_SWITCHES = ("up", "down", "promisc", "-promisc")
_VALUED = ("netmask", "gateway", "mtu", "add", "del")


class _Wish:
    """What the words after the interface ask for; each at most once. Raises UsageError."""

    def __init__(self, words: list[str]) -> None:
        self.values: dict[str, str] = {}
        self.switches: list[str] = []
        at = 0
        while at < len(words):
            word = words[at]
            at += 1
            if word in _SWITCHES:
                self.switches.append(word)
                continue
            name, value = word, word
            if word in _VALUED:
                if at == len(words):
                    raise UsageError(f"{word} needs a value")
                value = words[at]
                at += 1
            else:
                name = "address"
            if name in self.values:
                raise UsageError(f"{value}: there is a second {name}")
            self.values[name] = value
        self.mtu = whole("mtu", self.values["mtu"], MIN_MTU, MAX_MTU) if "mtu" in self.values else None
        for name in ("address", "netmask", "gateway", "add", "del"):
            if name in self.values and self.values[name] != "none":
                self._check(name, self.values[name])

    def _check(self, name: str, value: str) -> None:
        address, slash, length = value.partition("/")
        try:
            v4 = is_v4(parse_address(address))
            if name == "netmask":
                netmask_length(value)
        except AddressError as error:
            raise UsageError(f"{value}: what is that?" if name == "address" else str(error)) from None
        if slash and name in ("address", "add", "del"):
            whole("prefix length", length, 0, 32 if v4 else 128)
        elif slash or name == "add":
            raise UsageError(f"{name} {value}: {'ADDRESS/LENGTH' if name == 'add' else 'an address'} is needed")
        if not v4 and name in ("address", "gateway"):
            raise UsageError(f"{value}: an IPv4 address is needed; `add` takes those of IPv6")


def main(env: Env, argv: list[str]) -> int:
    """0, 1 for an unknown interface or what the guest refuses, 2 for wrong usage."""
    try:
        words = [str(word) for word in argv if word != "-a"]
        name, rest = (words[0], words[1:]) if words else ("", [])
        several([name], "")
        wish = _Wish(rest)
    except UsageError as error:
        env.print(f"ifconfig: {error}\n{USAGE}")
        return EX_USAGE
    found = links(env.guest)
    if name and name not in found:
        env.print(f"ifconfig: there is no {name}; there are {', '.join(found)}")
        return 1
    if rest:
        try:
            _apply(env, found[name], wish)
        except OSError as error:
            env.print(f"ifconfig: {name}: {error.strerror}")
            return 1
        return 0
    for each, link in found.items():
        if name in ("", each):
            env.print("\n".join(_block(env, link)))
    return 0


def _apply(env: Env, link: LinkInfo, wish: _Wish) -> None:
    """Do it, addresses first and up or down last. Raises OSError; then some of it may have been done."""
    guest, calls = env.guest, env.calls
    name, values = link.name, wish.values
    interface = link.interface
    if interface is None:
        if not guest.fes or name != guest.fes[0].name:
            raise OSError(0, f"it is a raw card; only {guest.fes[0].name if guest.fes else 'eth0'} can be set")
        interface = plug_in(guest)
    if {"address", "netmask", "gateway"} & set(values):
        if interface is guest.stack.loopback:
            raise OSError(0, "its address stays; `add` gives it more")
        _set_address(env, values)
    if "add" in values:
        address, _, length = values["add"].partition("/")
        calls.if_add_addr(name, address, int(length))
    if "del" in values:
        calls.if_del_addr(name, values["del"].partition("/")[0])
    if wish.mtu is not None:
        change_mtu(guest, link.name, wish.mtu)
    for word in wish.switches:
        match word:
            case "up":
                calls.if_up(name)
            case "down":
                calls.if_down(name)
            case _:
                interface.set_promiscuous(word == "promisc")


def _set_address(env: Env, values: dict[str, str]) -> None:
    """Address, mask and gateway: what is not said stays, but the mask of another address. Raises OSError."""
    calls = env.calls
    now = calls.getipaddr()
    text, slash, length = values.get("address", "").partition("/")
    address = parse_address(text) & V4_BITS if text else now.ip
    if not address:
        raise OSError(fault("EADDRNOTAVAIL").errno, "it has no address yet; say ADDRESS first")
    mask = now.netmask
    if "netmask" in values:
        mask = parse_address(values["netmask"]) & V4_BITS
    elif slash:
        mask = V4_BITS & ~((1 << (32 - int(length))) - 1)
    elif address != now.ip or not mask:
        mask = _class_mask(address)
    gateway = now.gateway
    if values.get("gateway") == "none":
        gateway = 0
    elif "gateway" in values:
        gateway = parse_address(values["gateway"]) & V4_BITS
    elif "address" in values and (address ^ gateway) & mask:
        gateway = 0  # the one of another network
    if gateway and (address ^ gateway) & mask:
        raise OSError(0, f"the gateway {values.get('gateway')} is not in the network of the address")
    calls.setipaddr(address, mask, gateway)


def _class_mask(address: int) -> int:
    """The mask that an address had before masks were said (RFC 791 §2.3), as ifconfig still fills it in."""
    return 0xFF000000 if address < 1 << 31 else 0xFFFF0000 if address < 3 << 30 else 0xFFFFFF00


def _block(env: Env, link: LinkInfo) -> list[str]:
    lines = [f"{link.name}: flags={link.flags}<{link.flag_names}>  mtu {link.mtu}"]
    interface = link.interface
    if interface is not None:
        for prefix in interface.addresses:
            lines.append(f"        {family_word(prefix)} {interface.describe(prefix.address)}")
            if is_v4(prefix.address) and prefix.broadcast is not None and link.mac:
                mask = V4_BITS & ~((1 << (128 - prefix.length)) - 1)
                text = f"netmask {_dotted(mask)}  broadcast {format_address(prefix.broadcast)}"
                lines.append(f"          {text}")
        if interface is env.guest.stack.default and link.mac and (gateway := env.calls.getipaddr().gateway):
            lines.append(f"        gateway {_dotted(gateway)}")
    if link.mac:
        lines.append(f"        ether {format_mac(link.mac)}")
    for way in ("rx", "tx"):
        text = f"        {way.upper()} packets {link.total(way, 'packets')}  bytes {link.total(way, 'bytes')}"
        lines.append(f"{text}  dropped {link.total(way, 'dropped')}")
    return lines


def _dotted(number: int) -> str:
    return ".".join(str(byte) for byte in number.to_bytes(4, "big"))
