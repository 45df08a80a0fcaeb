"""The numbers of the system calls are those of this host's Linux."""

from __future__ import annotations

import fcntl
import os
import platform
import select
import signal
import socket
import termios
from types import ModuleType

import pytest

from guest.sys import constants
from tests.requirements import require

HOST: tuple[ModuleType, ...] = (socket, select, os, fcntl, signal, termios)

# What the standard library leaves out: linux/in.h, linux/in6.h, asm-generic/socket.h, linux/sockios.h, linux/icmp.h,
# linux/icmpv6.h.
HEADERS = {
    "SOL_RAW": 255, "SO_NO_CHECK": 11, "SO_SNDBUFFORCE": 32, "SO_RCVBUFFORCE": 33, "IP_PKTINFO": 8, "IP_RECVERR": 11,
    "IP_MTU_DISCOVER": 10, "IP_MTU": 14, "IP_RECVTTL": 12, "IP_MULTICAST_ALL": 49, "IP_PMTUDISC_DONT": 0,
    "IP_PMTUDISC_WANT": 1, "IP_PMTUDISC_DO": 2, "IP_PMTUDISC_PROBE": 3, "IP_PMTUDISC_INTERFACE": 4,
    "IP_PMTUDISC_OMIT": 5, "IPV6_MTU_DISCOVER": 23, "IPV6_MTU": 24, "IPV6_RECVERR": 25, "IPV6_MULTICAST_ALL": 29,
    "ICMP_FILTER": 1, "ICMP6_FILTER": 1, "EPOLL_CTL_ADD": 1, "EPOLL_CTL_DEL": 2, "EPOLL_CTL_MOD": 3,
    "SIOCINQ": 0x541B, "SIOCOUTQ": 0x5411, "SIOCOUTQNSD": 0x894B, "SIOCATMARK": 0x8905,
}  # fmt: skip
NAMES = [name for name in vars(constants) if name.isupper() or (name[0].isupper() and "_" in name)]


def test_the_table_is_not_empty() -> None:
    assert len(NAMES) > 120


@pytest.mark.parametrize("name", NAMES)
def test_the_number_is_the_hosts(name: str) -> None:
    require(platform.machine() == "x86_64", "needs a Linux on x86-64 to compare with")
    theirs = [int(getattr(module, name)) for module in HOST if hasattr(module, name)] or [HEADERS[name]]

    assert getattr(constants, name) == theirs[0]
