"""What a socket option is, and the kinds of them that come up again and again."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from guest.sys import constants as c
from guest.sys.fault import fault
from guest.sys.socket_file import SocketFile

if TYPE_CHECKING:
    from guest.net.stack import Stack

INT = struct.Struct("<i")


class Option(NamedTuple):
    """One option.

    Attributes:
        name: as in the C headers.
        get: its value; None where it cannot be read.
        set: takes the value as an integer and as the bytes that were given; None where it cannot be set.
        least: bytes that a value needs; 1 takes a single byte as a number (ip(7)); 0 leaves the check to `set`.
        applies: whether this socket has it.
    """

    name: str
    get: Callable[[SocketFile, Stack], int | bytes] | None
    set: Callable[[SocketFile, Stack, int, bytes], None] | None
    least: int = 4
    applies: Callable[[SocketFile], bool] = lambda _file: True


Table: TypeAlias = "dict[tuple[int, int], Option]"


def table(level: int, *options: Option) -> Table:
    """Options of one level, by their numbers."""
    return {(level, getattr(c, option.name)): option for option in options}


def within(value: int, low: int, high: int) -> int:
    """The value, if it is in range. Raises OSError: EINVAL."""
    if not low <= value <= high:
        raise fault("EINVAL")
    return value


# -- kinds of options --------------------------------------------------------------------------------------------


def field(name: str, attribute: str, change: Callable[[int], object] = int, least: int = 4) -> Option:
    """An option that is a field of the endpoint's `SocketOptions`; `change` checks a value and makes the field's."""

    def get(file: SocketFile, _stack: Stack) -> int:
        return int(getattr(file.endpoint.options, attribute))

    def put(file: SocketFile, _stack: Stack, value: int, _raw: bytes) -> None:
        setattr(file.endpoint.options, attribute, change(value))

    return Option(name, get, put, least)


def wish(level: int, name: str, least: int = 4) -> Option:
    """A flag that asks for ancillary data."""
    key = level, getattr(c, name)

    def put(file: SocketFile, _stack: Stack, value: int, _raw: bytes) -> None:
        (file.wants.add if value else file.wants.discard)(key)

    return Option(name, lambda file, _stack: int(key in file.wants), put, least)


def kept(level: int, name: str, change: Callable[[int], int]) -> Option:
    """A value that is kept and told, and changes nothing here."""
    key = level, getattr(c, name)

    def put(file: SocketFile, _stack: Stack, value: int, _raw: bytes) -> None:
        file.settings[key] = change(value)

    return Option(name, lambda file, _stack: file.settings.get(key, 0), put)


def told(name: str, get: Callable[[SocketFile], int]) -> Option:
    """An option that can only be read."""
    return Option(name, lambda file, _stack: get(file), None)


def icmp_filter(name: str, size: int) -> Option:
    """A filter of ICMP types, of `size` bytes; of a shorter value the rest stays."""

    def get(file: SocketFile, _stack: Stack) -> bytes:
        return file.endpoint.options.icmp_filter.to_bytes(32, "little")[:size]

    def put(file: SocketFile, stack: Stack, _value: int, raw: bytes) -> None:
        given = raw[:size]
        file.endpoint.options.icmp_filter = int.from_bytes(given + get(file, stack)[len(given) :], "little")

    return Option(name, get, put, 0)
