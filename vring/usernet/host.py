"""The host's sockets, as the user wire needs them: non-blocking, with our addresses, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import socket
import struct

from guest.net.address import V4_BITS, is_v4, parse_address
from hw.wire.link import WireError
from vring.usernet.options import Forward, endpoint

RESET = struct.pack("ii", 1, 0)  # struct linger: closing sends a reset
BACKLOG = 128
PRIVILEGED = 1024

# What went wrong on the way to an outside host → the kind of ICMP error that the guest hears (guest/net/ip.py).
ICMP_KINDS = {
    errno.ENETUNREACH: "no_route",
    errno.ENETDOWN: "no_route",
    errno.EAFNOSUPPORT: "no_route",
    errno.EADDRNOTAVAIL: "no_route",
    errno.EACCES: "admin",
    errno.EPERM: "admin",
}


def family(address: int) -> socket.AddressFamily:
    """Of the host's socket for an address."""
    return socket.AF_INET if is_v4(address) else socket.AF_INET6


def sockaddr(address: int, port: int) -> tuple[str, int]:
    """An address and port as the host's socket module has them."""
    if is_v4(address):
        return socket.inet_ntop(socket.AF_INET, (address & V4_BITS).to_bytes(4, "big")), port
    return socket.inet_ntop(socket.AF_INET6, address.to_bytes(16, "big")), port


def from_sockaddr(name: tuple[str, int]) -> tuple[int, int]:
    """The other way round."""
    return parse_address(name[0].partition("%")[0]), name[1]


def open_socket(address: int, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
    """A non-blocking socket for talking to `address`. Raises OSError."""
    return socket.socket(family(address), kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)


def reset(sock: socket.socket) -> None:
    """Close with a reset where the socket is TCP's."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    except OSError:
        pass  # it is closed all the same
    sock.close()


def listen(rule: Forward) -> socket.socket:
    """The socket of a forward, bound, and listening where it is a stream's. Raises WireError."""
    sock: socket.socket | None = None
    try:
        if rule.kind == "unix":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            sock.bind(rule.path)
        else:
            sock = open_socket(rule.address, socket.SOCK_DGRAM if rule.kind == "udp" else socket.SOCK_STREAM)
            if rule.kind == "tcp":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if not is_v4(rule.address):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(sockaddr(rule.address, rule.port))
        if rule.kind != "udp":
            sock.listen(BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise WireError(f"hostfwd={rule}: {_explain(rule, error)}") from None
    return sock


def bound(rule: Forward, sock: socket.socket) -> Forward:
    """The rule with the port that its socket has."""
    return rule if rule.kind == "unix" else rule._replace(port=sock.getsockname()[1])


def unlink(path: str) -> None:
    """Remove the socket of a forward from the file system."""
    try:
        os.unlink(path)
    except OSError:
        pass  # somebody else did


def _explain(rule: Forward, error: OSError) -> str:
    """What went wrong while listening, and what to do instead, in one line."""
    place = rule.path if rule.kind == "unix" else f"port {rule.port}"
    if error.errno == errno.EADDRINUSE:
        what = "remove the file" if rule.kind == "unix" else "choose another, or port 0 for any that is free"
        return f"{place} is in use by another program; {what}"
    if error.errno in (errno.EACCES, errno.EPERM) and rule.kind != "unix" and rule.port < PRIVILEGED:
        return f"port {rule.port} is for root alone; choose one from {PRIVILEGED} on"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"the host has no address {endpoint(rule.address, rule.port).rpartition(':')[0]}"
    return f"{place}: {error.strerror}"
