"""Source address selection: which own address to talk from. RFC 6724 §5; RFC 1122 §3.3.4.3 for IPv4.

Candidates are the addresses of the interface that a packet leaves by (RFC 6724 §4), without tentative ones.
"""

from __future__ import annotations

from guest.net.address import Prefix, is_loopback, is_multicast, is_v4, parse_address
from guest.net.family import IpInterface

SCOPE_LINK = 2
SCOPE_SITE = 5
SCOPE_GLOBAL = 14

# The labels of RFC 6724 §2.1, longest prefix first: prefix, its length, label.
POLICY = tuple(
    (parse_address(text), length, label)
    for text, length, label in (
        ("::1", 128, 0),
        ("::ffff:0:0", 96, 4),
        ("::", 96, 3),
        ("2001::", 32, 5),
        ("2002::", 16, 2),
        ("3ffe::", 16, 12),
        ("fec0::", 10, 11),
        ("fc00::", 7, 13),
        ("::", 0, 1),
    )
)


def scope(address: int) -> int:
    """How far an IPv6 address reaches, in the numbers of multicast scopes (RFC 6724 §3.1)."""
    if is_multicast(address):
        return address >> 112 & 15
    if address >> 118 == 0xFE80 >> 6 or is_loopback(address):
        return SCOPE_LINK
    return SCOPE_SITE if address >> 118 == 0xFEC0 >> 6 else SCOPE_GLOBAL


def label(address: int) -> int:
    """What kind of network an address belongs to (RFC 6724 §2.1)."""
    return next(value for prefix, length, value in POLICY if (address ^ prefix) >> 128 - length == 0)


def common_bits(first: int, second: int) -> int:
    """How many leading bits two addresses share."""
    return 128 - (first ^ second).bit_length()


def source_address(interface: IpInterface, towards: int) -> int | None:
    """The interface's address to use towards `towards`; None where it has none of that family.

    IPv4: pass the next hop; the first address whose network holds it, else the first there is. IPv6: pass the
    destination.
    """
    v4 = is_v4(towards)
    tentative = interface.tentative
    own = [prefix for prefix in interface.addresses if is_v4(prefix.address) == v4 and prefix.address not in tentative]
    if not own:
        return None
    if v4:
        return next((prefix.address for prefix in own if prefix.contains(towards)), own[0].address)
    reach = scope(towards)
    kind = label(towards)

    def merit(prefix: Prefix) -> tuple[bool, bool, int, bool, bool, int]:
        address = prefix.address
        wide = scope(address)
        enough = wide >= reach
        return (
            address == towards,  # rule 1
            enough, -wide if enough else wide,  # rule 2
            address not in interface.deprecated,  # rule 3
            label(address) == kind,  # rule 6
            min(common_bits(address, towards), prefix.length),  # rule 8
        )  # fmt: skip

    return max(own, key=merit).address
