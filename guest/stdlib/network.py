"""What the look-alikes stand on: the system calls of one guest, and, where there is a host, what only the host has.

A look-alike's namespace has one `Network`. Two kinds of places make them:

- Inside a guest, and on the virtual clock, there is no host: every integer is a descriptor of the guest.
- For threads of the host, `Network.host` is there and every integer is a descriptor of the host: `fileno()` gives one
  that mirrors the socket, AF_UNIX sockets and unknown descriptors are the host's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from guest.stdlib.low import GuestSocket
from guest.sys import constants as c
from guest.sys.sockaddr import ResolveError

Low: TypeAlias = Any  # a socket below the look-alike: a GuestSocket, or a real one of the host


class gaierror(OSError):
    """A host or service is not known; `errno` is one of EAI_*."""


class herror(OSError):
    """An address has no name; `errno` is a number of netdb.h's h_errno."""


gaierror.__module__ = herror.__module__ = "socket"


class Host(Protocol):
    """The host, as far as the look-alikes need it. Descriptors named `fd` are the guest's, those named `number` the
    host's.

    Attributes:
        names: constants, enumerations and exception classes that take the place of the guest's own, by name.
        families: the address families whose sockets are the host's.
    """

    names: Mapping[str, Any]
    families: frozenset[int]

    def mirror(self, fd: int, inheritable: bool) -> int:
        """A descriptor of the host that is readable and writable when the guest's is; the same one at each call."""

    def recognise(self, number: int) -> int | None:
        """The guest's descriptor that this one mirrors, or None. Raises OSError: EBADF."""

    def close_mirrored(self, fd: int) -> None:
        """Close a guest's descriptor together with its mirror."""

    def abandon(self, fd: int) -> None:
        """The same for one whose socket nobody refers to any more, later and without waiting."""

    def set_inheritable(self, number: int, inheritable: bool) -> None:
        """Set or clear the flag of a descriptor."""

    def socket(self, family: int, type: int, proto: int, fileno: int | None) -> Low:
        """A real socket."""

    def socketpair(self, family: int, type: int, proto: int) -> tuple[Low, Low]:
        """Two real sockets."""

    def close(self, number: int) -> None:
        """Close a descriptor. Raises OSError."""

    def dup(self, number: int) -> int:
        """Duplicate a descriptor. Raises OSError."""


class Network:
    """One guest's network, as programs see it.

    Args:
        calls: the system calls, those of the guest itself or a door to them.
        now: microseconds of the guest's clock.
        host: see `Host`; None where there is none.

    Attributes:
        default_timeout: of new sockets, in seconds; None is for ever.
        gaierror, herror: the exceptions for names that are not known.
    """

    def __init__(self, calls: Any, now: Callable[[], int], host: Host | None = None) -> None:
        names: Mapping[str, Any] = {} if host is None else host.names
        self.calls = calls
        self.now = now
        self.host = host
        self.default_timeout: float | None = None
        self.gaierror: Any = names.get("gaierror", gaierror)
        self.herror: Any = names.get("herror", herror)
        self._lost: deque[int] = deque()

    def name_fault(self, error: ResolveError) -> OSError:
        """What a program gets for a host that is not known."""
        fault: OSError = self.gaierror(error.errno, error.strerror)
        return fault

    # -- sockets -------------------------------------------------------------------------------------------------

    def open(self, family: int, type: int, proto: int) -> Low:
        """A new socket: the guest's, or for some families the host's. Raises OSError."""
        host = self.host
        if host is not None and family in host.families:
            return host.socket(family, type, proto, None)
        self.reap()
        fd = self.calls.socket(family, type | c.SOCK_CLOEXEC, proto)
        kind = type & ~(c.SOCK_NONBLOCK | c.SOCK_CLOEXEC)
        low = GuestSocket(self, fd, family, kind, proto)
        if type & c.SOCK_NONBLOCK:
            low.timeout = 0.0
        elif self.default_timeout is not None:
            low.settimeout(self.default_timeout)
        return low

    def adopt(self, number: int, family: int = -1, type: int = -1, proto: int = -1) -> Low:
        """The socket behind a descriptor; what is -1 is asked of it. Raises OSError: EBADF, ENOTSOCK."""
        host = self.host
        fd: int | None = number
        if host is not None:
            fd = host.recognise(number)
            if fd is None:
                return host.socket(family, type, proto, number)
        kind = self.calls.getsockopt(fd, c.SOL_SOCKET, c.SO_TYPE)
        low = GuestSocket(
            self,
            fd or 0,
            self.calls.getsockopt(fd, c.SOL_SOCKET, c.SO_DOMAIN) if family == -1 else family,
            kind if type == -1 else type,
            self.calls.getsockopt(fd, c.SOL_SOCKET, c.SO_PROTOCOL) if proto == -1 else proto,
        )
        if host is not None:
            low.mirror = number
        low.settimeout(self.default_timeout)
        return low

    def close(self, number: int) -> None:
        """Close a descriptor, whatever it is. Raises OSError: EBADF."""
        host = self.host
        if host is None:
            self.calls.close(number)
            return
        fd = host.recognise(number)
        if fd is None:
            host.close(number)
        else:
            host.close_mirrored(fd)

    def dup(self, number: int) -> int:
        """Another descriptor for the same. Raises OSError: EBADF, EMFILE."""
        host = self.host
        if host is None:
            made: int = self.calls.dup(number)
            return made
        fd = host.recognise(number)
        return host.dup(number) if fd is None else host.mirror(self.calls.dup(fd), False)

    # -- sockets that nobody refers to any more ------------------------------------------------------------------

    def abandon(self, fd: int) -> None:
        """Close a guest's descriptor at the next chance. The garbage collector calls this, at any time."""
        if self.host is not None:
            self.host.abandon(fd)
        else:
            self._lost.append(fd)

    def reap(self) -> None:
        """Close the descriptors that were abandoned."""
        while self._lost:
            try:
                self.calls.close(self._lost.popleft())
            except OSError:
                pass  # it was closed by number
