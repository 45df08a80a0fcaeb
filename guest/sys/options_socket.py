"""Options of SOL_SOCKET. socket(7)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from guest.sys import constants as c
from guest.sys.fault import fault
from guest.sys.option import Option, field, kept, table, told
from guest.sys.socket_file import SocketFile
from guest.sys.stream_file import StreamFile

if TYPE_CHECKING:
    from guest.net.stack import Stack

TIMEVAL = struct.Struct("<qq")
LINGER = struct.Struct("<ii")
BUFFER_MAX = 4_194_304  # net.core.rmem_max and wmem_max
RCVBUF_MIN = 2304  # SOCK_MIN_RCVBUF
SNDBUF_MIN = 4608  # SOCK_MIN_SNDBUF
RCVBUF_TUNED_MAX = 6 << 20  # net.ipv4.tcp_rmem, the last of its numbers
INT_MAX = 0x7FFF_FFFF
IFNAMSIZ = 16


def _buffer(name: str, attribute: str, least: int, limit: int) -> Option:
    """SO_RCVBUF and SO_SNDBUF: twice the value is kept, for Linux counts what it needs besides the data."""

    def put(file: SocketFile, _stack: Stack, value: int, _raw: bytes) -> None:
        # A negative number is a huge unsigned one, except where only root may go beyond the limit.
        asked = min(value if value >= 0 else limit, limit) if limit == BUFFER_MAX else max(0, value)
        setattr(file.endpoint.options, attribute, max(least, min(asked, 0x3FFF_FFFF) * 2))
        setattr(file.endpoint.options, f"{attribute}_fixed", True)

    def get(file: SocketFile, _stack: Stack) -> int:
        return int(getattr(file.endpoint.options, attribute))

    return Option(name, None if name.endswith("FORCE") else get, put)


def _timeout(name: str, attribute: str) -> Option:
    def get(file: SocketFile, _stack: Stack) -> bytes:
        return TIMEVAL.pack(*divmod(getattr(file, attribute), 1_000_000))

    def put(file: SocketFile, _stack: Stack, _value: int, raw: bytes) -> None:
        seconds, micros = TIMEVAL.unpack_from(raw)
        if not 0 <= micros < 1_000_000:
            raise fault("EDOM")
        setattr(file, attribute, max(0, seconds * 1_000_000 + micros) if seconds >= 0 else 0)

    return Option(name, get, put, TIMEVAL.size)


def _get_linger(file: SocketFile, _stack: Stack) -> bytes:
    on = file.endpoint.options.linger is not None
    return LINGER.pack(on, file.settings.get((c.SOL_SOCKET, c.SO_LINGER), 0))


def _set_linger(file: SocketFile, _stack: Stack, _value: int, raw: bytes) -> None:
    on, seconds = LINGER.unpack_from(raw)
    if not on:
        file.endpoint.options.linger = None  # the time stays, and is told
        return
    seconds = seconds if seconds >= 0 else 0x7FFF_FFFF
    file.settings[c.SOL_SOCKET, c.SO_LINGER] = seconds
    file.endpoint.options.linger = seconds * 1_000_000


def _get_lowat(file: SocketFile, _stack: Stack) -> int:
    return file.rcvlowat if isinstance(file, StreamFile) else file.settings.get((c.SOL_SOCKET, c.SO_RCVLOWAT), 1)


def _set_lowat(file: SocketFile, stack: Stack, value: int, _raw: bytes) -> None:
    """Datagrams do not look at it. A stream's buffer grows to twice as much, if nobody has set its size."""
    value = value if value >= 0 else INT_MAX
    if not isinstance(file, StreamFile):
        file.settings[c.SOL_SOCKET, c.SO_RCVLOWAT] = value or 1
        return
    options = file.endpoint.options
    value = min(value, (options.rcvbuf if options.rcvbuf_fixed else RCVBUF_TUNED_MAX) // 2)
    file.rcvlowat = value or 1
    if not options.rcvbuf_fixed:
        options.rcvbuf = max(options.rcvbuf, value * 2)


def _get_device(file: SocketFile, _stack: Stack) -> bytes:
    device = file.endpoint.options.bind_device
    return b"" if device is None else device.name.encode() + b"\0"


def _set_device(file: SocketFile, stack: Stack, _value: int, raw: bytes) -> None:
    name = raw[: IFNAMSIZ - 1].split(b"\0", 1)[0].decode("ascii", "replace")
    device = None
    if name:
        device = next((interface for interface in stack.interfaces if interface.name == name), None)
        if device is None:
            raise fault("ENODEV")
    file.endpoint.options.bind_device = device


OPTIONS = table(
    c.SOL_SOCKET,
    field("SO_REUSEADDR", "reuse_addr", bool),
    field("SO_REUSEPORT", "reuse_port", bool),
    field("SO_BROADCAST", "broadcast", bool),
    field("SO_NO_CHECK", "no_check", bool),
    told("SO_TYPE", lambda file: file.type),
    told("SO_PROTOCOL", lambda file: file.protocol),
    told("SO_DOMAIN", lambda file: file.family),
    told("SO_ACCEPTCONN", lambda file: int(isinstance(file, StreamFile) and file.endpoint.listening)),
    told("SO_ERROR", lambda file: file.endpoint.take_error()),
    kept(c.SOL_SOCKET, "SO_DONTROUTE", bool),
    field("SO_KEEPALIVE", "keepalive", bool),
    field("SO_OOBINLINE", "oob_inline", bool),
    Option("SO_RCVLOWAT", _get_lowat, _set_lowat),
    told("SO_SNDLOWAT", lambda _file: 1),
    kept(c.SOL_SOCKET, "SO_PRIORITY", int),
    _buffer("SO_RCVBUF", "rcvbuf", RCVBUF_MIN, BUFFER_MAX),
    _buffer("SO_SNDBUF", "sndbuf", SNDBUF_MIN, BUFFER_MAX),
    _buffer("SO_RCVBUFFORCE", "rcvbuf", RCVBUF_MIN, 0),
    _buffer("SO_SNDBUFFORCE", "sndbuf", SNDBUF_MIN, 0),
    _timeout("SO_RCVTIMEO", "rcvtimeo"),
    _timeout("SO_SNDTIMEO", "sndtimeo"),
    Option("SO_LINGER", _get_linger, _set_linger, LINGER.size),
    Option("SO_BINDTODEVICE", _get_device, _set_device, 0),
)
