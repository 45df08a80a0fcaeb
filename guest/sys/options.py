"""Socket options: one table, (level, number) → name, how it is read and how it is set; and the two calls on it.

What comes from a caller is either a number or bytes, as in the standard library; how many bytes an option insists on,
what it makes of fewer, and what it answers to values out of range is Linux's behaviour, which the tests compare with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.sys import constants as c
from guest.sys import options_ip, options_ipv6, options_socket, options_tcp
from guest.sys.fault import fault
from guest.sys.option import INT, Option
from guest.sys.options_socket import IFNAMSIZ
from guest.sys.socket_file import SocketFile
from guest.sys.stream_file import StreamFile

if TYPE_CHECKING:
    from guest.net.stack import Stack

OPTIONS = options_socket.OPTIONS | options_ip.OPTIONS | options_ipv6.OPTIONS | options_tcp.OPTIONS


def _find(file: SocketFile, level: int, number: int, otherwise: str) -> Option:
    """The option, if this socket has it. Raises OSError: `otherwise` where no such level is, or ENOPROTOOPT."""
    v4 = file.family == c.AF_INET
    if level == c.IPPROTO_IP:
        known = v4 or not file.raw
        otherwise = "ENOPROTOOPT"
    elif level == c.SOL_RAW and v4 and file.raw:
        known = True
        if number == c.ICMP_FILTER and file.protocol != c.IPPROTO_ICMP:
            raise fault("EOPNOTSUPP")
    elif level == c.IPPROTO_ICMPV6 and not v4 and file.raw:
        known = True
        if file.protocol != c.IPPROTO_ICMPV6:
            raise fault("EOPNOTSUPP")
    elif level == c.IPPROTO_TCP and isinstance(file, StreamFile):
        known = True
    else:
        known = level == c.SOL_SOCKET or (level == c.IPPROTO_IPV6 and not v4)
    option = OPTIONS.get((level, number))
    if not known:
        raise fault(otherwise if v4 else "ENOPROTOOPT")
    if option is None or not option.applies(file):
        raise fault("ENOPROTOOPT")
    return option


def get(file: SocketFile, stack: Stack, level: int, number: int, size: int = 0) -> int | bytes:
    """getsockopt, as the standard library has it: a number, or with `size` up to so many bytes.

    Raises OSError: ENOPROTOOPT, EOPNOTSUPP (a level that an IPv4 socket does not have), EINVAL, ENOTCONN (IP_MTU).
    """
    if not 0 <= size <= 1024:
        raise OSError("getsockopt buflen out of range")
    option = _find(file, level, number, "EOPNOTSUPP")
    if option.get is None:
        raise fault("ENOPROTOOPT")
    if number == c.SO_BINDTODEVICE and level == c.SOL_SOCKET and size and file.endpoint.options.bind_device:
        if size < IFNAMSIZ:
            raise fault("EINVAL")
    value = option.get(file, stack)
    if not size:
        return value if isinstance(value, int) else INT.unpack_from(value + bytes(4))[0]
    if isinstance(value, bytes):
        return value[:size]
    if level == c.IPPROTO_IP and size < INT.size and 0 <= value <= 255:
        return bytes([value])  # ip(7) has room for those that give a single byte
    return INT.pack(value)[:size]


def set_option(file: SocketFile, stack: Stack, level: int, number: int, value: int | bytes) -> None:
    """setsockopt. Raises OSError: ENOPROTOOPT, EOPNOTSUPP, EINVAL and what the option itself says."""
    option = _find(file, level, number, "ENOPROTOOPT")
    if option.set is None or (option.name == "IP_HDRINCL" and not file.raw):
        raise fault("ENOPROTOOPT")
    raw = INT.pack(value) if isinstance(value, int) else bytes(value)
    if len(raw) < option.least:
        raise fault("EINVAL")
    if len(raw) >= INT.size:
        as_int = INT.unpack_from(raw)[0]
    else:
        as_int = raw[0] if raw else 0
    option.set(file, stack, as_int, raw)
    if isinstance(file, StreamFile):
        file.endpoint.settings_changed()
