"""A network stack of one's own in an ordinary program, as LWIPv6's library gives: no machine, no boot, no root needed.

    with vring.Stack() as stack:                              # lwip_stack_new … lwip_stack_free
        nic = stack.add_interface("user")                     # lwip_slirpif_add; "tap:t0", "tun:t0", "hub", …
        nic.add_addr("10.0.2.15", 24)                         # lwip_add_addr
        nic.up()                                              # lwip_ifup
        stack.add_route("0.0.0.0", 0, "10.0.2.2")             # lwip_add_route
        with stack.socket.create_connection(("10.0.2.2", 80)) as sock:     # lwip_msocket, lwip_connect
            ...

Promises:
- A program may have any number of stacks, which share nothing: each has its own interfaces, routes, ports and time.
- `socket` and `select` are the standard library's modules over this stack, for any thread; `calls` are its system
  calls, with descriptors of its own (docs/api.md has all names of LWIPv6's header beside those here).
- It is a `vring.session.Session` with one guest, which has no machine: what that promises of threads, clocks and
  `close` holds, and what it has besides (`counters`, `hostfwd_add`, `run`) is here too.
"""

from __future__ import annotations

import errno
import os
from types import ModuleType
from typing import cast

from guest.net.interface import Interface
from vring.config import Board, ClockName, ConfigError, GuestSpec, NicSpec, WireSpec
from vring.partial import PartialGuest
from vring.session import Session

LEASE = 30.0  # seconds that DHCP may take


class StackInterface:
    """An interface of a stack, by its name. Errors are OSError with Linux's errno."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.name = name
        self._stack = stack

    def add_addr(self, address: str, prefix_len: int) -> None:
        """Add an address of either family. One of IPv6 can be used once nobody on the wire has objected, in a second.

        Raises OSError: EEXIST, EINVAL.
        """
        self._stack.calls.if_add_addr(self.name, address, prefix_len)

    def del_addr(self, address: str) -> None:
        """Remove it. Raises OSError: EINVAL, EADDRNOTAVAIL."""
        self._stack.calls.if_del_addr(self.name, address)

    @property
    def addrs(self) -> list[tuple[str, int]]:
        """Addresses with the lengths of their prefixes, in the order in which they were added."""
        return cast("list[tuple[str, int]]", self._stack.calls.if_addrs(self.name))

    def up(self, *, dhcp: bool = False, timeout: float = LEASE) -> None:
        """Turn it on; with `dhcp`, and wait until it has an IPv4 address, for `timeout` seconds at most.

        Raises OSError: EOPNOTSUPP (no DHCP on such an interface), ETIMEDOUT (no lease; it is still being looked for).
        """
        stack = self._stack
        stack.calls.if_up(self.name, dhcp=dhcp)
        if dhcp and not stack.run_until(self._has_v4, timeout):
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), self.name)

    def down(self) -> None:
        """Turn it off."""
        self._stack.calls.if_down(self.name)

    def _has_v4(self) -> bool:
        return any("." in address for address, _ in self._stack.guest.calls.if_addrs(self.name))


class Stack(Session):
    """A stack, from now until `close`. Use it as a context manager, or call `close`.

    Args:
        words: settings, as on a guest's command line: "net.hosts=peer@10.0.0.2 net.forwarding=1 -ip6".
        clock: "real", or "virtual" for a stack without wires to the outside; then time passes in calls that block.
        seed: decides all that is random; without one, on the real clock, the host's entropy.

    Raises ConfigError for words that cannot be.
    """

    def __init__(self, words: str = "", *, clock: ClockName = "real", seed: int | None = None) -> None:
        guest = GuestSpec(name="stack", cmdline=words, nics=(), partial=True)
        super().__init__(Board((guest,), clock, seed))
        self.start()

    @property
    def socket(self) -> ModuleType:
        """The module `socket` over this stack."""
        module: ModuleType = self.guest.socket
        return module

    @property
    def select(self) -> ModuleType:
        """The module `select` over this stack's sockets, and the host's descriptors."""
        module: ModuleType = self.guest.select
        return module

    def add_interface(
        self, wire: str, *, name: str | None = None, mac: str | None = None, mtu: int = 1500
    ) -> StackInterface:
        """Plug a wire in: an interface that is down and has no address.

        Args:
            wire: as on the command line: "tap:NAME", "tun:NAME", "user", "packet:INTERFACE", "hub:NAME", "sim", with
                their options.
            name: eth0, eth1, … if not given.
            mac: such as "02:00:00:00:00:01"; by chance if not given.
            mtu: bytes of the largest IP packet.

        Raises ConfigError for a wire that is none, leads outside on the virtual clock, or a name that is taken;
        `hw.wire.link.WireError` for a wire that cannot be made.
        """
        spec = WireSpec.parse(wire)
        options = {} if mac is None else {"mac": mac}
        nic = NicSpec.of("direct", options, spec, f"wire {wire!r}", ("direct",))
        board = self.board
        Board((GuestSpec(nics=(nic,), partial=True),), board.clock).check()

        def plug() -> Interface:
            guest = cast("PartialGuest", self.guest)
            names = {each.name for each in guest.stack.interfaces}
            chosen = name or next(f"eth{at}" for at in range(len(names)) if f"eth{at}" not in names)
            if chosen in names:
                raise ConfigError(f"there is an interface {chosen!r} already")
            return self._rig.plug(guest, chosen, spec, mac=nic.mac, mtu=mtu, up=False)

        try:
            return StackInterface(self, self.call(plug).name)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def add_route(
        self, destination: str, prefix_len: int, gateway: str | None = None, nic: StackInterface | None = None,
        metric: int = 0,
    ) -> None:  # fmt: skip
        """Add a route: `gateway`, or an interface on which the destinations are neighbours.

        Raises OSError: EEXIST, EINVAL, ENETUNREACH (the gateway is on no network of ours), ENODEV.
        """
        self.calls.add_route(destination, prefix_len, gateway, None if nic is None else nic.name, metric)

    def del_route(self, destination: str, prefix_len: int, nic: StackInterface | None = None) -> None:
        """Remove a route. Raises OSError: EINVAL, ESRCH."""
        self.calls.del_route(destination, prefix_len, None if nic is None else nic.name)
