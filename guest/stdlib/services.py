"""The services and protocols that a guest knows without a file: those that programs ask for by name. IANA's numbers."""

from __future__ import annotations

SERVICES: dict[tuple[str, str], int] = {
    (name, protocol): port
    for port, name, protocols in (
        (7, "echo", "tcp udp"), (9, "discard", "tcp udp"), (13, "daytime", "tcp"), (19, "chargen", "tcp"),
        (20, "ftp-data", "tcp"), (21, "ftp", "tcp"), (22, "ssh", "tcp"), (23, "telnet", "tcp"), (25, "smtp", "tcp"),
        (37, "time", "tcp udp"), (53, "domain", "tcp udp"), (67, "bootps", "udp"), (68, "bootpc", "udp"),
        (69, "tftp", "udp"), (80, "http", "tcp"), (110, "pop3", "tcp"), (119, "nntp", "tcp"), (123, "ntp", "udp"),
        (143, "imap2", "tcp"), (161, "snmp", "tcp udp"), (389, "ldap", "tcp udp"), (443, "https", "tcp udp"),
        (465, "submissions", "tcp"), (514, "syslog", "udp"), (587, "submission", "tcp"), (636, "ldaps", "tcp"),
        (853, "domain-s", "tcp udp"), (990, "ftps", "tcp"), (993, "imaps", "tcp"), (995, "pop3s", "tcp"),
        (3306, "mysql", "tcp"), (5432, "postgresql", "tcp"),
    )
    for protocol in protocols.split()
}  # fmt: skip
SERVICES["imap", "tcp"] = 143  # a second name, so that the first is what the port is called

PROTOCOLS = {
    "ip": 0, "icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "ipv6": 41, "gre": 47, "esp": 50, "ah": 51, "ipv6-icmp": 58,
    "sctp": 132, "udplite": 136,
}  # fmt: skip


def getservbyname(servicename: str, protocolname: str | None = None, /) -> int:
    """The port of a service. Raises OSError."""
    for protocol in ("tcp", "udp") if protocolname is None else (protocolname,):
        if (servicename, protocol) in SERVICES:
            return SERVICES[servicename, protocol]
    raise OSError("service/proto not found")


def getservbyport(port: int, protocolname: str | None = None, /) -> str:
    """What the service at a port is called. Raises OSError, OverflowError."""
    if not 0 <= port <= 0xFFFF:
        raise OverflowError("getservbyport: port must be 0-65535.")
    for (name, protocol), number in SERVICES.items():
        if number == port and protocolname in (None, protocol):
            return name
    raise OSError("port/proto not found")


def getprotobyname(protocolname: str, /) -> int:
    """The number of a protocol. Raises OSError."""
    if protocolname not in PROTOCOLS:
        raise OSError("protocol not found")
    return PROTOCOLS[protocolname]
