"""DNS messages, as far as a stub resolver needs them: a question to bytes, and a reply checked against its question.

RFC 1035 §4, RFC 2181 §5 and §8, RFC 2308 (negative answers), RFC 5452 (which replies to believe), RFC 6891 (EDNS).
The format itself, with its compression, is dnspython's, which loads at the first question. It follows pointers
backwards only and bounds labels, names and counts; whatever it raises is `DnsError` here.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

from guest.net.address import V4_PREFIX, AddressError, format_address

if TYPE_CHECKING:
    import dns.message
    import dns.name

PORT = 53
PAYLOAD = 1232  # what EDNS offers: fits any path's MTU
MAX_CHAIN = 16  # aliases that are followed in one reply
MAX_ADDRESSES = 64  # of one answer
MAX_TTL = 0x7FFFFFFF  # RFC 2181 §8; dnspython reads a larger one as 0
A, PTR, AAAA = "A", "PTR", "AAAA"


class DnsError(ValueError):
    """What came is no reply to the question.

    Attributes:
        reason: why, as a word for counters: "malformed", "id", "question", …
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Reply(NamedTuple):
    """What a reply says.

    Attributes:
        rcode: "NOERROR", "NXDOMAIN", "SERVFAIL", …
        truncated: the server had more to say than the datagram took.
        canonical: the name at the end of the aliases.
        addresses: of A or AAAA records. names: of PTR records.
        ttl: seconds that all of it may be kept; for a negative answer what RFC 2308 says, 0 where it says nothing.
    """

    rcode: str
    truncated: bool
    canonical: str
    addresses: tuple[int, ...]
    names: tuple[str, ...]
    ttl: int


def question(name: str, kind: str, ident: int, *, edns: bool = True) -> bytes:
    """The query for `kind` ("A", "AAAA" or "PTR") of `name`. Raises AddressError where that can be no name."""
    import dns.exception  # noqa: PLC0415  (loads on first use)
    import dns.message  # noqa: PLC0415
    import dns.name  # noqa: PLC0415

    try:
        text = dns.name.from_text(name)
        query = dns.message.make_query(text, kind, id=ident, use_edns=0 if edns else False, payload=PAYLOAD)
        return query.to_wire()
    except (dns.exception.DNSException, ValueError) as error:
        raise AddressError(f"{name!r} is not a domain name") from error


def parse_reply(raw: bytes, ident: int, name: str, kind: str) -> Reply:
    """The reply to `question(name, kind, ident)`. Raises DnsError."""
    import dns.flags  # noqa: PLC0415
    import dns.message  # noqa: PLC0415
    import dns.name  # noqa: PLC0415
    import dns.opcode  # noqa: PLC0415
    import dns.rcode  # noqa: PLC0415
    import dns.rdataclass  # noqa: PLC0415
    import dns.rdatatype  # noqa: PLC0415

    if len(raw) < 12:
        raise DnsError("short")
    if int.from_bytes(raw[:2], "big") != ident:
        raise DnsError("id")
    if not raw[2] & 0x80:
        raise DnsError("query")
    try:
        message = dns.message.from_wire(raw, ignore_trailing=True)
        rcode = dns.rcode.to_text(message.rcode())
    except Exception as error:  # a parser that is not ours, fed by strangers
        raise DnsError("malformed") from error
    if message.opcode() != dns.opcode.QUERY:
        raise DnsError("opcode")
    wanted = dns.name.from_text(name)
    if not message.question and rcode in ("FORMERR", "NOTIMP", "SERVFAIL", "REFUSED"):
        return Reply(rcode, False, name, (), (), 0)  # a server that does not repeat what it did not understand
    if len(message.question) != 1:
        raise DnsError("question")
    asked = message.question[0]
    if asked.name != wanted or asked.rdtype != dns.rdatatype.from_text(kind) or asked.rdclass != dns.rdataclass.IN:
        raise DnsError("question")
    return _read(message, wanted, kind, rcode, bool(message.flags & dns.flags.TC))


def _read(message: dns.message.Message, name: dns.name.Name, kind: str, rcode: str, truncated: bool) -> Reply:
    """Follow the aliases from `name` to what was asked for."""
    import dns.rdataclass  # noqa: PLC0415
    import dns.rdatatype  # noqa: PLC0415

    wanted = dns.rdatatype.from_text(kind)
    sets = {(rrset.name, rrset.rdtype): rrset for rrset in message.answer if rrset.rdclass == dns.rdataclass.IN}
    ttl = MAX_TTL
    addresses: list[int] = []
    names: list[str] = []
    for _ in range(MAX_CHAIN):
        rrset = sets.get((name, wanted))
        alias = sets.get((name, dns.rdatatype.CNAME))
        if rrset is not None:
            ttl = min(ttl, rrset.ttl)
            for record in list(rrset)[:MAX_ADDRESSES]:
                if kind == PTR:
                    names.append(record.target.to_text(omit_final_dot=True))
                else:
                    addresses.append(_number(record.address))
            break
        if alias is None:
            break
        ttl = min(ttl, alias.ttl)
        name = next(iter(alias)).target
    else:
        raise DnsError("alias_loop")
    if not addresses and not names:
        ttl = min(ttl, _negative_ttl(message))
    canonical = name.to_text(omit_final_dot=True)
    return Reply(rcode, truncated, canonical, tuple(addresses), tuple(names), ttl)


def _number(text: str) -> int:
    """The 128-bit number of an address as dnspython writes it."""
    address = ipaddress.ip_address(text)
    return int(address) | (V4_PREFIX if address.version == 4 else 0)


def _negative_ttl(message: dns.message.Message) -> int:
    """How long a "no" may be kept: the lesser of the SOA record's TTL and its minimum (RFC 2308 §5); 0 without one."""
    import dns.rdatatype  # noqa: PLC0415

    for rrset in message.authority:
        if rrset.rdtype == dns.rdatatype.SOA:
            return int(min(rrset.ttl, next(iter(rrset)).minimum))
    return 0


def reverse_name(address: int) -> str:
    """The name under which the pointer of `address` stands (RFC 1035 §3.5, RFC 3596 §2.5)."""
    return ipaddress.ip_address(format_address(address)).reverse_pointer


def is_name(text: str) -> bool:
    """Whether `text` can be a domain name: up to 253 characters, labels of 1 to 63."""
    body = text.removesuffix(".")
    return 0 < len(body) <= 253 and all(0 < len(label) <= 63 for label in body.split("."))
