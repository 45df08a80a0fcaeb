"""The numbers that programs expect in a module `socket` or `select`, as Linux has them, beside those of guest.sys.

Sources: bits/socket.h, linux/in.h, linux/in6.h, netinet/in.h, netinet/tcp.h, netdb.h, linux/if_packet.h,
linux/netlink.h. A test compares each with the host's own.
"""

from __future__ import annotations

import enum
from typing import Any

from guest.sys import constants

SOCKET_PREFIXES = (
    "AF_", "AI_", "EAI_", "INADDR_", "IPPORT_", "IPPROTO_", "IPV6_", "IP_", "MSG_", "NETLINK_", "NI_", "PACKET_", "PF_",
    "SCM_", "SHUT_", "SOCK_", "SOL_", "SO_", "TCP_",
)  # fmt: skip
SELECT_PREFIXES = ("EPOLL", "POLL")
NO_EVENTS = ("EPOLL_CTL_",)  # system calls need them, programs do not

MORE_SOCKET: dict[str, int] = {
    "AF_UNIX": 1, "AF_NETLINK": 16, "AF_PACKET": 17, "PF_PACKET": 17, "AF_ROUTE": 16,
    "SOCK_RDM": 4, "SOCK_SEQPACKET": 5,
    "AI_PASSIVE": 0x1, "AI_CANONNAME": 0x2, "AI_NUMERICHOST": 0x4, "AI_V4MAPPED": 0x8, "AI_ALL": 0x10,
    "AI_ADDRCONFIG": 0x20, "AI_NUMERICSERV": 0x400,
    "EAI_BADFLAGS": -1, "EAI_NONAME": -2, "EAI_AGAIN": -3, "EAI_FAIL": -4, "EAI_NODATA": -5, "EAI_FAMILY": -6,
    "EAI_SOCKTYPE": -7, "EAI_SERVICE": -8, "EAI_ADDRFAMILY": -9, "EAI_MEMORY": -10, "EAI_SYSTEM": -11,
    "EAI_OVERFLOW": -12,
    "NI_NUMERICHOST": 1, "NI_NUMERICSERV": 2, "NI_NOFQDN": 4, "NI_NAMEREQD": 8, "NI_DGRAM": 16, "NI_MAXHOST": 1025,
    "NI_MAXSERV": 32,
    "INADDR_ANY": 0, "INADDR_BROADCAST": 0xFFFFFFFF, "INADDR_LOOPBACK": 0x7F000001, "INADDR_NONE": 0xFFFFFFFF,
    "INADDR_UNSPEC_GROUP": 0xE0000000, "INADDR_ALLHOSTS_GROUP": 0xE0000001, "INADDR_MAX_LOCAL_GROUP": 0xE00000FF,
    "IPPORT_RESERVED": 1024, "IPPORT_USERRESERVED": 5000, "SOMAXCONN": 4096,
    "IPPROTO_HOPOPTS": 0, "IPPROTO_IGMP": 2, "IPPROTO_IPIP": 4, "IPPROTO_EGP": 8, "IPPROTO_PUP": 12,
    "IPPROTO_IDP": 22, "IPPROTO_TP": 29, "IPPROTO_ROUTING": 43, "IPPROTO_FRAGMENT": 44, "IPPROTO_RSVP": 46,
    "IPPROTO_GRE": 47, "IPPROTO_ESP": 50, "IPPROTO_AH": 51, "IPPROTO_NONE": 59, "IPPROTO_DSTOPTS": 60,
    "IPPROTO_PIM": 103, "IPPROTO_SCTP": 132, "IPPROTO_UDPLITE": 136, "IPPROTO_MPTCP": 262,
    "SOL_IP": 0, "SOL_TCP": 6, "SOL_UDP": 17,
    "SO_DEBUG": 1, "SO_PASSCRED": 16, "SO_PEERCRED": 17, "SO_RCVLOWAT": 18, "SO_SNDLOWAT": 19, "SO_PEERSEC": 31,
    "SO_PASSSEC": 34, "SO_MARK": 36, "SO_INCOMING_CPU": 49, "SCM_RIGHTS": 1, "SCM_CREDENTIALS": 2,
    "IP_OPTIONS": 4, "IP_RECVOPTS": 6, "IP_RETOPTS": 7, "IP_RECVRETOPTS": 7, "IP_TRANSPARENT": 19,
    "IP_BIND_ADDRESS_NO_PORT": 24, "IP_DEFAULT_MULTICAST_TTL": 1, "IP_DEFAULT_MULTICAST_LOOP": 1,
    "IP_MAX_MEMBERSHIPS": 20,
    "IPV6_NEXTHOP": 9, "IPV6_RECVHOPOPTS": 53, "IPV6_HOPOPTS": 54, "IPV6_RTHDRDSTOPTS": 55, "IPV6_RECVRTHDR": 56,
    "IPV6_RTHDR": 57, "IPV6_RECVDSTOPTS": 58, "IPV6_DSTOPTS": 59, "IPV6_RECVPATHMTU": 60, "IPV6_PATHMTU": 61,
    "IPV6_DONTFRAG": 62, "IPV6_RTHDR_TYPE_0": 0,
    "MSG_FASTOPEN": 0x20000000,
    "TCP_NODELAY": 1, "TCP_MAXSEG": 2, "TCP_CORK": 3, "TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6,
    "TCP_SYNCNT": 7, "TCP_LINGER2": 8, "TCP_DEFER_ACCEPT": 9, "TCP_WINDOW_CLAMP": 10, "TCP_INFO": 11,
    "TCP_QUICKACK": 12, "TCP_CONGESTION": 13, "TCP_USER_TIMEOUT": 18, "TCP_FASTOPEN": 23, "TCP_NOTSENT_LOWAT": 25,
    "PACKET_HOST": 0, "PACKET_BROADCAST": 1, "PACKET_MULTICAST": 2, "PACKET_OTHERHOST": 3, "PACKET_OUTGOING": 4,
    "PACKET_LOOPBACK": 5, "PACKET_FASTROUTE": 6, "NETLINK_ROUTE": 0,
    "EBADF": 9, "EAGAIN": 11, "EWOULDBLOCK": 11,
}  # fmt: skip

MORE_SELECT: dict[str, int] = {
    "EPOLLIN": 0x1, "EPOLLPRI": 0x2, "EPOLLOUT": 0x4, "EPOLLERR": 0x8, "EPOLLHUP": 0x10, "EPOLLRDNORM": 0x40,
    "EPOLLRDBAND": 0x80, "EPOLLWRNORM": 0x100, "EPOLLWRBAND": 0x200, "EPOLLMSG": 0x400, "EPOLLRDHUP": 0x2000,
    "POLLMSG": 0x400, "PIPE_BUF": 4096,
}  # fmt: skip

ENUMS = (
    ("AddressFamily", enum.IntEnum, "AF_"),
    ("SocketKind", enum.IntEnum, "SOCK_"),
    ("MsgFlag", enum.IntFlag, "MSG_"),
    ("AddressInfo", enum.IntFlag, "AI_"),
)


def socket_names() -> dict[str, Any]:
    """The constants of a module `socket`, with its enumerations."""
    names: dict[str, Any] = {
        name: value for name, value in vars(constants).items() if name.startswith(SOCKET_PREFIXES)
    }
    names.update(MORE_SOCKET)
    kind: Any
    for title, kind, prefix in ENUMS:
        members = {name: value for name, value in names.items() if name.startswith(prefix)}
        made = kind(title, members, module="socket")
        names[title] = made
        names.update({name: getattr(made, name) for name in members})
    names["has_ipv6"] = True
    return names


def select_names() -> dict[str, Any]:
    """The constants of a module `select`."""
    names = {
        name: value
        for name, value in vars(constants).items()
        if name.startswith(SELECT_PREFIXES) and not name.startswith(NO_EVENTS)
    }
    return {**names, **MORE_SELECT}
