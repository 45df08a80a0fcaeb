"""What an ICMP error means to a socket: its errno, and whether it is fatal. The numbers are those of Linux
(icmp_err_convert, icmpv6_err_convert); RFC 1122 §4.1.3.3, RFC 4443 §3.
"""

from __future__ import annotations

import errno

from guest.net.icmp_error import (
    PARAMETER_PROBLEM,
    UNREACHABLE,
    V6_PARAMETER_PROBLEM,
    V6_UNREACHABLE,
    IcmpError,
)

# Codes of "unreachable"; whatever is not here means "host unreachable".
V4_CODES = {
    0: errno.ENETUNREACH,
    2: errno.ENOPROTOOPT,
    3: errno.ECONNREFUSED,
    4: errno.EMSGSIZE,
    5: errno.EOPNOTSUPP,
    6: errno.ENETUNREACH,
    7: errno.EHOSTDOWN,
    8: errno.ENONET,
    9: errno.ENETUNREACH,
    11: errno.ENETUNREACH,
}
V6_CODES = {
    0: errno.ENETUNREACH,
    1: errno.EACCES,
    4: errno.ECONNREFUSED,
    5: errno.EACCES,
    6: errno.EACCES,
}
V4_FATAL = frozenset((2, 3, 6, 7, 8, 9, 10, 13, 14, 15))
V6_FATAL = frozenset((1, 4, 5, 6))


def meaning(error: IcmpError) -> tuple[int, bool]:
    """The errno of an error about a packet of ours, and whether it ends a connection.

    Errors that are not fatal may pass by themselves; a socket hears of them only if it asked (IP_RECVERR). Whether
    "too big" is fatal is the transport's to know.
    """
    if error.too_big:
        return errno.EMSGSIZE, False
    if error.family == 6:
        if error.type == V6_UNREACHABLE:
            return V6_CODES.get(error.code, errno.EHOSTUNREACH), error.code in V6_FATAL
        parameter = error.type == V6_PARAMETER_PROBLEM
    else:
        if error.type == UNREACHABLE:
            return V4_CODES.get(error.code, errno.EHOSTUNREACH), error.code in V4_FATAL
        parameter = error.type == PARAMETER_PROBLEM
    return (errno.EPROTO, True) if parameter else (errno.EHOSTUNREACH, False)
