"""DHCP messages: bytes to `Message` and back. RFC 2131 §2, RFC 2132, RFC 3396 (long options), RFC 3442, RFC 3397.

     0         4        8      12     16     20     24     28         44         108        236    240
    | op … hops | xid | secs | flags | ciaddr yiaddr siaddr giaddr | chaddr | sname | file | magic | options …

`parse` takes anything; what is no message it refuses with `DhcpError`, whose `reason` is the name of a counter. Lengths
are checked before values. Options are a table from number to bytes; the accessors below read the values, and give None
where an option is missing or has a length that its kind cannot have. Addresses are IPv4 as the stack has them
(`address.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from guest.net.address import V4_ANY, V4_BITS, V4_PREFIX

SERVER_PORT = 67
CLIENT_PORT = 68

# op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file, magic
HEADER = struct.Struct("!BBBBIHHIIII16s64s128sI")
HEADER_SIZE = 240
assert HEADER.size == HEADER_SIZE
SNAME = slice(44, 108)
FILE = slice(108, 236)

MAGIC = 0x63825363
MIN_SIZE = 300  # BOOTP's, which relays may insist on (RFC 1542 §2.1)
MAX_SIZE = 4096  # more than any client asks for
MAX_OPTION = 255

BOOTREQUEST, BOOTREPLY = 1, 2
ETHERNET = 1
BROADCAST = 0x8000  # flags: answer to 255.255.255.255, RFC 2131 §2

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
MESSAGE_NAMES = ("", "DISCOVER", "OFFER", "REQUEST", "DECLINE", "ACK", "NAK", "RELEASE", "INFORM")

# Options by number, RFC 2132
PAD, END = 0, 255
SUBNET_MASK, ROUTER, DNS_SERVERS, HOST_NAME, DOMAIN_NAME, INTERFACE_MTU = 1, 3, 6, 12, 15, 26
REQUESTED_ADDRESS, LEASE_TIME, OVERLOAD, MESSAGE_TYPE, SERVER_ID, PARAMETERS = 50, 51, 52, 53, 54, 55
MAX_MESSAGE, RENEWAL_TIME, REBINDING_TIME, VENDOR_CLASS, CLIENT_ID = 57, 58, 59, 60, 61
DOMAIN_SEARCH, CLASSLESS_ROUTES = 119, 121

IN_FILE, IN_SNAME = 1, 2  # bits of OVERLOAD


class DhcpError(ValueError):
    """What came is no DHCP message that can be used.

    Attributes:
        reason: why, as a word for counters: "short", "magic", …
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ClasslessRoute(NamedTuple):
    """A row of option 121: an IPv4 network, the length of its prefix (0 to 32), the router (0.0.0.0: on the link)."""

    network: int
    length: int
    router: int


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        op: BOOTREQUEST or BOOTREPLY.
        xid: which exchange it belongs to.
        secs: since the client began, as it says. flags: BROADCAST or 0.
        ciaddr, yiaddr, siaddr, giaddr: the client's address, the one offered, the next server's, the relay's.
        chaddr: the client's MAC address.
        options: number → value; what came in several parts is joined (RFC 3396 §7).
    """

    op: int
    xid: int
    chaddr: bytes
    secs: int = 0
    flags: int = 0
    ciaddr: int = V4_ANY
    yiaddr: int = V4_ANY
    siaddr: int = V4_ANY
    giaddr: int = V4_ANY
    options: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def kind(self) -> int | None:
        """DISCOVER to INFORM; None where the option is missing or wrong."""
        value = self.number(MESSAGE_TYPE, 1)
        return value if value is not None and DISCOVER <= value <= INFORM else None

    def number(self, option: int, size: int) -> int | None:
        """The value of an option that is a number of `size` bytes."""
        raw = self.options.get(option)
        return int.from_bytes(raw, "big") if raw is not None and len(raw) == size else None

    def address(self, option: int) -> int | None:
        """The value of an option that is one address."""
        value = self.number(option, 4)
        return None if value is None else V4_PREFIX | value

    def addresses(self, option: int) -> list[int] | None:
        """The values of an option that is a list of addresses."""
        raw = self.options.get(option)
        if not raw or len(raw) % 4:
            return None
        return [V4_PREFIX | value for (value,) in struct.iter_unpack("!I", raw)]

    def text(self, option: int) -> str | None:
        """The value of an option that is a name: letters, digits, dots, dashes, underscores; trailing zeros are cut."""
        raw = self.options.get(option, b"").rstrip(b"\0")
        if not raw or len(raw) > 253 or not all(chr(c).isalnum() or c in b"._-" for c in raw) or not raw.isascii():
            return None
        return raw.decode("ascii")

    def routes(self) -> list[ClasslessRoute] | None:
        """Option 121 (RFC 3442); None where it is missing or any row of it is wrong."""
        raw = self.options.get(CLASSLESS_ROUTES)
        if not raw:
            return None
        rows: list[ClasslessRoute] = []
        at = 0
        while at < len(raw):
            length = raw[at]
            significant = (length + 7) // 8
            end = at + 1 + significant + 4
            if length > 32 or end > len(raw):
                return None
            network = int.from_bytes(raw[at + 1 : at + 1 + significant].ljust(4, b"\0"), "big")
            network &= V4_BITS << (32 - length) & V4_BITS  # bits behind the prefix are to be ignored
            router = int.from_bytes(raw[end - 4 : end], "big")
            rows.append(ClasslessRoute(V4_PREFIX | network, length, V4_PREFIX | router))
            at = end
        return rows

    def search_list(self) -> list[str] | None:
        """Option 119 (RFC 3397): domains to search, with DNS's compression; None where it is missing or wrong."""
        raw = self.options.get(DOMAIN_SEARCH)
        if not raw:
            return None
        import dns.exception  # noqa: PLC0415  (few servers send this option)
        import dns.name  # noqa: PLC0415

        names: list[str] = []
        at = 0
        try:
            while at < len(raw):
                name, used = dns.name.from_wire(raw, at)  # follows pointers backwards only
                names.append(name.to_text(omit_final_dot=True))
                at += used
        except (dns.exception.DNSException, ValueError, IndexError):
            return None
        return [name for name in names if name != "."]


def parse(raw: bytes | bytearray | memoryview) -> Message:
    """The message that a server or a client sent. Raises DhcpError."""
    data = bytes(raw)
    if len(data) < HEADER_SIZE:
        raise DhcpError("short")
    if len(data) > MAX_SIZE:
        raise DhcpError("long")
    op, htype, hlen, _, xid, secs, flags, ci, yi, si, gi, chaddr, sname, file, magic = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise DhcpError("magic")
    if op not in (BOOTREQUEST, BOOTREPLY):
        raise DhcpError("op")
    if htype != ETHERNET or hlen != 6:
        raise DhcpError("hardware")
    options: dict[int, bytes] = {}
    _collect(data[HEADER_SIZE:], options)
    overload = options.pop(OVERLOAD, b"\0")
    if len(overload) != 1 or overload[0] > IN_FILE | IN_SNAME:
        raise DhcpError("overload")
    if overload[0] & IN_FILE:  # RFC 2131 §4.1: first `file`, then `sname`
        _collect(file, options)
    if overload[0] & IN_SNAME:
        _collect(sname, options)
    return Message(
        op, xid, chaddr[:6], secs, flags,
        V4_PREFIX | ci, V4_PREFIX | yi, V4_PREFIX | si, V4_PREFIX | gi, options,
    )  # fmt: skip


def _collect(area: bytes, options: dict[int, bytes]) -> None:
    """Join the options in `area` to those that are known. Raises DhcpError: a length leads out of it, or no end."""
    at = 0
    size = len(area)
    while at < size:
        code = area[at]
        at += 1
        if code == END:
            return
        if code == PAD:
            continue
        if at == size or at + 1 + area[at] > size:
            raise DhcpError("option_length")
        length = area[at]
        options[code] = options.get(code, b"") + area[at + 1 : at + 1 + length]
        at += 1 + length
    raise DhcpError("no_end")


def build(message: Message) -> bytes:
    """The bytes of a message, at least 300; options in the table's order, long ones in parts (RFC 3396 §6)."""
    parts = [
        HEADER.pack(
            message.op, ETHERNET, len(message.chaddr), 0, message.xid, message.secs, message.flags,
            message.ciaddr & V4_BITS, message.yiaddr & V4_BITS, message.siaddr & V4_BITS, message.giaddr & V4_BITS,
            message.chaddr, b"", b"", MAGIC,
        )
    ]  # fmt: skip
    for code, value in message.options.items():
        for start in range(0, max(1, len(value)), MAX_OPTION):
            piece = value[start : start + MAX_OPTION]
            parts.append(bytes((code, len(piece))) + piece)
    parts.append(bytes((END,)))
    return b"".join(parts).ljust(MIN_SIZE, b"\0")


def pack_address(address: int) -> bytes:
    """The four bytes of an IPv4 address."""
    return (address & V4_BITS).to_bytes(4, "big")


def is_host(address: int) -> bool:
    """Whether an IPv4 address can be that of one host: not in 0/8, 127/8, multicast, reserved or broadcast."""
    top = address >> 24 & 0xFF
    return 0 < top < 224 and top != 127


def natural_length(address: int) -> int:
    """The prefix length of an address whose netmask nobody said (RFC 950 §2.1's classes)."""
    top = address >> 24 & 0xFF
    return 8 if top < 128 else 16 if top < 192 else 24


def usable(addresses: Iterable[int] | None, limit: int) -> tuple[int, ...]:
    """Those of `addresses` that can be hosts, each once, at most `limit`."""
    return tuple(dict.fromkeys(address for address in addresses or () if is_host(address)))[:limit]
