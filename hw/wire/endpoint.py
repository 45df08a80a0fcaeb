"""Addresses of sockets, as wires write them: a path, or a numeric host with a port."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import TypeAlias

Address: TypeAlias = str | tuple[str, int]
VDE_PORT_MAX = 0xFFFF


def parse_address(text: str) -> Address:
    """A path, which has a "/" in it, or "HOST:PORT". Raises ValueError with one line."""
    if "/" in text:
        if len(text.encode()) > 107:
            raise ValueError(f"{text} is too long for the path of a socket (107 bytes)")
        return text
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        number = -1
    if not colon or not 0 <= number <= 65535:
        raise ValueError(f"{text!r} is neither a path with a / in it nor a numeric HOST:PORT")
    return host, number


def family_of(address: Address) -> int:
    """The family of sockets that `address` is for."""
    if isinstance(address, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def parse_place(place: str) -> tuple[str, int]:
    """Folder and port (0 for any) of a VDE switch: "PATH" or "PATH[PORT]". Raises ValueError with one line."""
    found = re.fullmatch(r"([^\[\]]+)(?:\[(\d+)\])?", place)
    port = int(found[2] or 0) if found is not None else -1
    if found is None or not 0 <= port <= VDE_PORT_MAX:
        raise ValueError(f"{place!r} is not PATH or PATH[PORT]")
    return found[1], port
