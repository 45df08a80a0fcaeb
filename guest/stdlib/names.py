"""The functions of a module `socket` that turn names into addresses and back: getaddrinfo(3) and its kin.

Names are the guest's: its hosts table, its name servers (`guest.sys.name_calls`). Results and errors are those of the
C library on Linux; the rules of `getaddrinfo` are RFC 3493 §6.1 and what glibc makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from guest.net.address import is_loopback, parse_address
from guest.stdlib import services
from guest.stdlib.network import Network
from guest.stdlib.numbers import v4_mapped, v4_text
from guest.sys import constants as c
from guest.sys.name_calls import HOST_NAME_MAX
from guest.sys.sockaddr import EAI_ADDRFAMILY, EAI_NONAME, ResolveError, format_v6, parse_host
from guest.sys.sockaddr import inet_aton as parse_v4

AI_PASSIVE, AI_CANONNAME, AI_NUMERICHOST, AI_V4MAPPED = 0x1, 0x2, 0x4, 0x8
AI_ALL, AI_ADDRCONFIG, AI_NUMERICSERV = 0x10, 0x20, 0x400
AI_KNOWN = 0x1C7F  # with glibc's AI_IDN and its kin
NI_NUMERICHOST, NI_NUMERICSERV, NI_NOFQDN, NI_NAMEREQD, NI_DGRAM = 1, 2, 4, 8, 16

EAI_BADFLAGS, EAI_FAMILY, EAI_SOCKTYPE, EAI_SERVICE = -1, -6, -7, -8
MESSAGES = {
    EAI_BADFLAGS: "Bad value for ai_flags",
    EAI_NONAME: "Name or service not known",
    EAI_FAMILY: "ai_family not supported",
    EAI_SOCKTYPE: "ai_socktype not supported",
    EAI_SERVICE: "Servname not supported for ai_socktype",
    EAI_ADDRFAMILY: "Address family for hostname not supported",
}
LABEL_END = 64  # no label of a name is as long
HOST_NOT_FOUND = 1  # netdb.h's h_errno

# What getaddrinfo offers: type, protocol, how services call it, whether it is there when nobody says which.
KINDS = (
    (c.SOCK_STREAM, c.IPPROTO_TCP, "tcp", True),
    (c.SOCK_DGRAM, c.IPPROTO_UDP, "udp", True),
    (c.SOCK_DGRAM, 136, "udplite", False),  # IPPROTO_UDPLITE
    (c.SOCK_STREAM, 132, "sctp", False),  # IPPROTO_SCTP
    (c.SOCK_RAW, 0, "", True),  # any protocol, no services
)

Row: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]
Place: TypeAlias = tuple[int, str, int]  # AF_*, address, scope


class NameFunctions:
    """The functions, for one network.

    Args:
        network: whose names.
        enums: `AddressFamily` and `SocketKind`.
        tables: `getservbyname`, `getservbyport` and `getprotobyname`, where the host has larger ones.
    """

    def __init__(
        self,
        network: Callable[[], Network],
        enums: Mapping[str, Any],
        tables: Mapping[str, Callable[..., Any]],
    ) -> None:
        self._network = network
        self._family = enums["AddressFamily"]
        self._kind = enums["SocketKind"]
        self.getservbyname = tables.get("getservbyname", services.getservbyname)
        self.getservbyport = tables.get("getservbyport", services.getservbyport)
        self.getprotobyname = tables.get("getprotobyname", services.getprotobyname)

    def _fault(self, number: int) -> OSError:
        return self._network().name_fault(ResolveError(number, MESSAGES[number]))

    # -- getaddrinfo ---------------------------------------------------------------------------------------------

    def getaddrinfo(
        self,
        host: str | bytes | bytearray | None,
        port: str | bytes | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Row]:
        """What to make sockets with for a host and a service: (family, type, proto, canonical name, address) each.

        Raises gaierror.
        """
        if host is not None and not isinstance(host, (str, bytes, bytearray)):
            raise TypeError("getaddrinfo() argument 1 must be string or None")
        name = _host_text(host)
        service = _service_text(port)
        if flags & ~AI_KNOWN or (flags & AI_CANONNAME and name is None):
            raise self._fault(EAI_BADFLAGS)
        if name is None and service is None:
            raise self._fault(EAI_NONAME)
        if family not in (c.AF_UNSPEC, c.AF_INET, c.AF_INET6):
            raise self._fault(EAI_FAMILY)
        kinds = self._ports(service, type, proto, flags)
        if name is None:
            places = _nobody(family, flags)
        else:
            places = self._places(name, family, flags)
        canonical = name if flags & AI_CANONNAME and name else ""
        rows: list[Row] = []
        for each, text, scope in places:
            for kind, protocol, number in kinds:
                address: tuple[Any, ...] = (text, number) if each == c.AF_INET else (text, number, 0, scope)
                rows.append((self._family(each), self._kind(kind), protocol, canonical, address))
                canonical = ""  # in the first row alone
        return rows

    def _ports(self, service: str | None, type: int, proto: int, flags: int) -> list[tuple[int, int, int]]:
        """Types, protocols and ports that go with a service. Raises gaierror."""
        rows = [
            row
            for row in KINDS
            if (not type or type == row[0]) and (not proto or proto == row[1] or row[0] == c.SOCK_RAW)
        ]
        if not rows:
            raise self._fault(EAI_SOCKTYPE if type else EAI_SERVICE)
        if type or proto:
            rows = rows[:1]
        else:
            rows = [row for row in rows if row[3]]
        number = 0 if not service else int(service) if service.isascii() and service.isdigit() else None
        if number is None and flags & AI_NUMERICSERV:
            raise self._fault(EAI_NONAME)
        found = []
        for kind, protocol, label, _ in rows:
            if not label and service is not None and (type or proto):
                raise self._fault(EAI_SERVICE)
            here = number
            if here is None and label:
                try:
                    here = self.getservbyname(service, label)
                except OSError:
                    continue
            if here is not None:
                found.append((kind, protocol if label else proto, here & 0xFFFF))
        if not found:
            raise self._fault(EAI_SERVICE)
        return found

    def _places(self, name: str, family: int, flags: int) -> list[Place]:
        """The addresses of a host. Raises gaierror."""
        net = self._network()
        mapped = bool(flags & AI_V4MAPPED) and family == c.AF_INET6
        number = parse_v4(name)
        if number is not None:
            if family == c.AF_INET6 and not mapped:
                raise self._fault(EAI_ADDRFAMILY)
            text = v4_text(number)
            return [(c.AF_INET6, v4_mapped(text), 0)] if mapped else [(c.AF_INET, text, 0)]
        if ":" in name:
            return [self._literal(name, family)]
        if flags & AI_NUMERICHOST or not name:
            raise self._fault(EAI_NONAME)
        asked = family
        if mapped:
            asked = c.AF_UNSPEC
        elif flags & AI_ADDRCONFIG and not family:
            asked = self._configured()
        try:
            found = net.calls.resolve(name, asked)
        except ResolveError as error:
            raise net.name_fault(error) from None
        places = [(c.AF_INET6 if ":" in text else c.AF_INET, text, 0) for text in found]
        if mapped:
            own = [place for place in places if place[0] == c.AF_INET6]
            others = [(c.AF_INET6, v4_mapped(text), 0) for each, text, _ in places if each == c.AF_INET]
            places = own + others if flags & AI_ALL else own or others
        return places

    def _literal(self, name: str, family: int) -> Place:
        """An IPv6 address that is written out, with a zone perhaps. Raises gaierror."""
        net = self._network()
        text, percent, zone = name.partition("%")
        try:
            address, _ = parse_host(text, c.AF_INET6, lambda _zone: 0)
        except OSError:
            raise self._fault(EAI_NONAME) from None
        if family == c.AF_INET:
            raise self._fault(EAI_ADDRFAMILY)
        scope = 0
        if percent:
            indexes = {name: index for index, name in net.calls.if_nameindex()}
            scope = int(zone) if zone.isdigit() else indexes.get(zone, 0)
            if not scope:
                raise self._fault(EAI_NONAME)
        return c.AF_INET6, format_v6(address), scope

    def _configured(self) -> int:
        """The only family that this host has addresses of, those of the loopback aside; 0 for both or none."""
        calls = self._network().calls
        families = {
            c.AF_INET6 if ":" in text else c.AF_INET
            for _, name in calls.if_nameindex()
            for text, _ in calls.if_addrs(name)
            if not is_loopback(parse_address(text))
        }
        return families.pop() if len(families) == 1 else c.AF_UNSPEC

    # -- one host ------------------------------------------------------------------------------------------------

    def gethostbyname(self, hostname: str | bytes, /) -> str:
        """The IPv4 address of a host. Raises gaierror."""
        return self._v4(hostname)[0]

    def gethostbyname_ex(self, hostname: str | bytes, /) -> tuple[str, list[str], list[str]]:
        """The name, other names, and the IPv4 addresses of a host. Raises gaierror."""
        return str(_host_text(hostname)), [], self._v4(hostname)

    def _v4(self, hostname: str | bytes) -> list[str]:
        name = _host_text(hostname)
        if name == "":
            return ["0.0.0.0"]
        if name == "<broadcast>":
            return ["255.255.255.255"]
        return [text for _, text, _ in self._places(str(name), c.AF_INET, 0)]

    def gethostbyaddr(self, ip_address: str | bytes, /) -> tuple[str, list[str], list[str]]:
        """The name, other names, and the addresses of the host at an address. Raises herror, gaierror."""
        net = self._network()
        where = _host_text(ip_address)
        text = self._places(str(where), c.AF_UNSPEC, 0)[0][1] if where else "0.0.0.0"
        name = net.calls.reverse(text)
        if name is None:
            raise net.herror(HOST_NOT_FOUND, "Unknown host")
        return name, [], [text]

    def getnameinfo(self, sockaddr: tuple[Any, ...], flags: int, /) -> tuple[str, str]:
        """The name of a host and of a service at an address; numbers where they have none. Raises gaierror."""
        net = self._network()
        if not isinstance(sockaddr, tuple):
            raise TypeError("getnameinfo() argument 1 must be a tuple")
        if not 2 <= len(sockaddr) <= 4 or not isinstance(sockaddr[0], str) or not isinstance(sockaddr[1], int):
            raise TypeError("getnameinfo(): illegal sockaddr argument")
        if len(sockaddr) > 2 and not 0 <= sockaddr[2] <= 0xFFFFF:
            raise OverflowError("getnameinfo(): flowinfo must be 0-1048575.")
        rows = self.getaddrinfo(sockaddr[0], sockaddr[1], type=c.SOCK_DGRAM, flags=AI_NUMERICHOST)
        (text, port, *rest) = rows[0][4]
        scope = (sockaddr[3] if len(sockaddr) > 3 else 0) or (rest[1] if rest else 0)
        name = None if flags & NI_NUMERICHOST else net.calls.reverse(text)
        if name is None and flags & NI_NAMEREQD:
            raise self._fault(EAI_NONAME)
        if name is not None and flags & NI_NOFQDN:
            name = name.partition(".")[0]
        if name is None:
            name = text + (f"%{self._zone(scope)}" if scope else "")
        service = str(port)
        if not flags & NI_NUMERICSERV:
            try:
                service = self.getservbyport(port, "udp" if flags & NI_DGRAM else "tcp")
            except OSError:
                pass
        return name, service

    def _zone(self, scope: int) -> str:
        return next((name for index, name in self.if_nameindex() if index == scope), str(scope))

    def getfqdn(self, name: str = "") -> str:
        """The name of a host with its domain, as far as anybody knows one; of this host by default."""
        name = name.strip()
        if name in ("", "0.0.0.0", "::"):
            name = self.gethostname()
        try:
            known, others, _ = self.gethostbyaddr(name)
        except OSError:
            return name
        return next((each for each in [known, *others] if "." in each), known)

    # -- this host and its interfaces ----------------------------------------------------------------------------

    def gethostname(self) -> str:
        """What this host is called."""
        name: str = self._network().calls.gethostname()
        return name

    def sethostname(self, name: str | bytes, /) -> None:
        """Call this host so. Raises OSError."""
        self._network().calls.sethostname(name if isinstance(name, str) else bytes(name[: HOST_NAME_MAX + 1]).decode())

    def if_nameindex(self) -> list[tuple[int, str]]:
        """Index and name of every interface."""
        found: list[tuple[int, str]] = self._network().calls.if_nameindex()
        return found

    def if_nametoindex(self, oname: str, /) -> int:
        """The index of an interface. Raises OSError."""
        for index, name in self.if_nameindex():
            if name == oname:
                return index
        raise OSError("no interface with this name")

    def if_indextoname(self, if_index: int, /) -> str:
        """The name of an interface. Raises OSError: ENXIO."""
        name: str = self._network().calls.if_indextoname(if_index)
        return name


def _host_text(host: str | bytes | bytearray | None) -> str | None:
    """A host's name as servers know it. Raises UnicodeError for what can be none."""
    if host is None:
        return None
    if isinstance(host, str):
        if host.isascii() and len(host) < LABEL_END and not host.startswith(".") and ".." not in host:
            return host  # no label is empty or too long
        return host.encode("idna").decode("ascii")
    return bytes(host).decode("ascii")


def _service_text(port: str | bytes | int | None) -> str | None:
    if port is None:
        return None
    if isinstance(port, int):
        return str(int(port))
    if isinstance(port, bytes):
        return port.decode("utf-8")
    if isinstance(port, str):
        return port
    raise OSError("Int or String expected")


def _nobody(family: int, flags: int) -> list[Place]:
    """Where a host is not named: every address for who listens, the own host for who connects."""
    if flags & AI_PASSIVE:
        places = [(c.AF_INET, "0.0.0.0", 0), (c.AF_INET6, "::", 0)]
    else:
        places = [(c.AF_INET6, "::1", 0), (c.AF_INET, "127.0.0.1", 0)]
    return [place for place in places if family in (c.AF_UNSPEC, place[0])]

