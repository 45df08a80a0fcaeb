"""The class `socket`, over a guest's sockets or the host's.

`socket_class` makes one for a namespace. What the methods do and raise is the standard library's; timeouts are in
seconds. The names with an underscore are those that the standard library's own modules (ssl) use of a socket.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, TypeAlias

from guest.stdlib import files
from guest.stdlib.low import GuestSocket
from guest.stdlib.network import Low, Network
from guest.sys import constants as c

SENDFILE_BLOCK = 65536

ExceptionType: TypeAlias = type[BaseException]  # in the class below, `type` is a property


class Socket:
    """A socket.

    Args:
        family, type, proto: AF_INET, SOCK_STREAM and 0 unless said otherwise.
        fileno: make an object for this descriptor instead; what was not said is asked of it.
    """

    __slots__ = ("__weakref__", "_closed", "_io_refs", "_low")

    _network: ClassVar[Any]  # () → the Network that a new socket belongs to
    _families: ClassVar[Any]  # a number as a member of its enumeration, where it has one
    _kinds: ClassVar[Any]
    _plain: ClassVar[Any]  # what `accept` makes, whatever class the listening socket has

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        net: Network = self._network()
        self._io_refs = 0
        self._closed = False
        if fileno is not None:
            if not isinstance(fileno, int) or isinstance(fileno, bool):
                raise TypeError(f"an integer is required (got type {fileno.__class__.__name__})")
            if fileno < 0:
                raise ValueError("negative file descriptor")
            self._low: Low = net.adopt(fileno, int(family), int(type), int(proto))
            return
        family = c.AF_INET if family == -1 else int(family)
        type = c.SOCK_STREAM if type == -1 else int(type)
        self._low = net.open(family, type, 0 if proto == -1 else proto)

    @classmethod
    def _of(cls, low: Low) -> Any:
        made = cls._plain.__new__(cls._plain)
        made._io_refs = 0
        made._closed = False
        made._low = low
        return made

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, _kind: ExceptionType | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if not self._closed:
            self.close()

    def _brief(self) -> str:
        """What `repr` says that no system call is needed for."""
        low = self._low
        mirrored = not isinstance(low, GuestSocket) or low.mirror is not None  # it is not made for this
        number = low.fileno() if mirrored else low.fd
        closed = " [closed]" if self._closed else ""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}{closed} fd={number}, "
            f"family={self.family}, type={self.type}, proto={self.proto}"
        )

    def __repr__(self) -> str:
        text = self._brief()
        for name, ask in (("laddr", self._low.getsockname), ("raddr", self._low.getpeername)):
            try:
                address = None if self._closed else ask()
            except OSError:
                continue
            text += f", {name}={address}" if address else ""
        return f"<{text}>"

    def __getstate__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    def __del__(self) -> None:
        low = getattr(self, "_low", None)
        if not isinstance(low, GuestSocket) or low.fd < 0:
            return  # the host's warn by themselves
        fd = low.fd
        warnings.warn(f"unclosed <{self._brief()}>", ResourceWarning, source=self, stacklevel=2)
        low.fd = -1
        self._network().abandon(fd)

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def family(self) -> int:
        """AF_*."""
        member: int = self.__class__._families(self._low.family)
        return member

    @property
    def type(self) -> int:
        """SOCK_*, without the flags it was made with."""
        member: int = self.__class__._kinds(self._low.type)
        return member

    @property
    def proto(self) -> int:
        """IPPROTO_*, or 0 as it was made."""
        number: int = self._low.proto
        return number

    @property
    def timeout(self) -> float | None:
        """In seconds; None is for ever."""
        return self.gettimeout()

    # -- descriptors ---------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor; -1 when it is closed."""
        number: int = self._low.fileno()
        return number

    def dup(self) -> Any:
        """Another object for the same socket."""
        low = self._low.dup()
        made = self.__class__.__new__(self.__class__)
        made._io_refs = 0
        made._closed = False
        made._low = low
        made.settimeout(self.gettimeout())
        return made

    def detach(self) -> int:
        """Close the object and leave the descriptor open; it is the result."""
        self._closed = True
        number: int = self._low.detach()
        return number

    def close(self) -> None:
        """Close it, as soon as the last of the files that `makefile` made is closed too."""
        self._closed = True
        if self._io_refs <= 0:
            self._real_close()

    def _real_close(self) -> None:
        self._low.close()

    def _decref_socketios(self) -> None:
        self._io_refs = max(0, self._io_refs - 1)
        if self._closed:
            self.close()

    def get_inheritable(self) -> bool:
        """Whether programs that are executed get the descriptor."""
        return bool(self._low.get_inheritable())

    def set_inheritable(self, inheritable: bool) -> None:
        """Say so."""
        self._low.set_inheritable(inheritable)

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """A stream over the socket; the arguments are those of `open`."""
        return files.stream(self, mode, buffering, encoding, errors, newline)

    # -- timeouts and options ------------------------------------------------------------------------------------

    def settimeout(self, value: float | None) -> None:
        """How many seconds a call may block; None for ever, 0 not at all."""
        self._low.settimeout(value)

    def gettimeout(self) -> float | None:
        """What `settimeout` has set."""
        value: float | None = self._low.gettimeout()
        return value

    def setblocking(self, flag: bool) -> None:
        """Block for ever, or not at all."""
        self._low.setblocking(flag)

    def getblocking(self) -> bool:
        """Whether calls may block."""
        return bool(self._low.getblocking())

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int | bytes:
        """An option's value: a number, or with `buflen` up to so many bytes."""
        size = (buflen,) if buflen else ()
        value: int | bytes = self._low.getsockopt(level, option, *size)
        return value

    def setsockopt(self, level: int, option: int, value: Any, *optlen: int) -> None:
        """Set an option to a number, to bytes, or with None and a length to so many zeros."""
        self._low.setsockopt(level, option, value, *optlen)

    # -- naming --------------------------------------------------------------------------------------------------

    def bind(self, address: Any) -> None:
        """Give it a local address."""
        self._low.bind(address)

    def connect(self, address: Any) -> None:
        """Fix its peer; a stream connects."""
        self._low.connect(address)

    def connect_ex(self, address: Any) -> int:
        """The same; an error of the system's is returned as its number."""
        number: int = self._low.connect_ex(address)
        return number

    def listen(self, *backlog: int) -> None:
        """Take connections."""
        self._low.listen(*backlog)

    def _accept(self) -> tuple[int, Any]:
        low, address = self._take()
        return low.detach(), address

    def _take(self) -> tuple[Low, Any]:
        low = self._low
        if isinstance(low, GuestSocket):
            taken: tuple[Low, Any] = low.accept()
            return taken
        number, address = low._accept()  # a real socket's, which gives a descriptor
        return self._network().adopt(number, low.family, low.type, low.proto), address

    def accept(self) -> tuple[Any, Any]:
        """The next connection, as a socket that blocks, and its peer's address."""
        low, address = self._take()
        return self._of(low), address

    def getsockname(self) -> Any:
        """The local address."""
        return self._low.getsockname()

    def getpeername(self) -> Any:
        """The peer's address."""
        return self._low.getpeername()

    def shutdown(self, how: int) -> None:
        """SHUT_RD, SHUT_WR or SHUT_RDWR."""
        self._low.shutdown(how)

    # -- data ----------------------------------------------------------------------------------------------------

    def send(self, data: Any, *flags: int) -> int:
        """Send; how many bytes were taken."""
        sent: int = self._low.send(data, *flags)
        return sent

    def sendall(self, data: Any, *flags: int) -> None:
        """Send all of it."""
        self._low.sendall(data, *flags)

    def sendto(self, data: Any, *arguments: Any) -> int:
        """Send to an address, which comes last; flags may stand before it."""
        sent: int = self._low.sendto(data, *arguments)
        return sent

    def sendmsg(self, buffers: Any, *arguments: Any) -> int:
        """Send one message gathered from `buffers`; ancillary data, flags and an address may follow."""
        sent: int = self._low.sendmsg(buffers, *arguments)
        return sent

    def sendmsg_afalg(self, *arguments: Any, **keywords: Any) -> int:
        """For AF_ALG, which is the host's. Raises OSError: EOPNOTSUPP on others."""
        low = self._low
        if isinstance(low, GuestSocket):
            raise OSError("algset is only supported for AF_ALG")
        sent: int = low.sendmsg_afalg(*arguments, **keywords)
        return sent

    def recv(self, bufsize: int, *flags: int) -> bytes:
        """Receive up to `bufsize` bytes; none at the end."""
        data: bytes = self._low.recv(bufsize, *flags)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive into a buffer; how many bytes."""
        got: int = self._low.recv_into(buffer, nbytes, flags)
        return got

    def recvfrom(self, bufsize: int, *flags: int) -> tuple[bytes, Any]:
        """Receive, and from whom."""
        got: tuple[bytes, Any] = self._low.recvfrom(bufsize, *flags)
        return got

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """Receive into a buffer: how many bytes, and from whom."""
        got: tuple[int, Any] = self._low.recvfrom_into(buffer, nbytes, flags)
        return got

    def recvmsg(self, bufsize: int, *arguments: int) -> tuple[bytes, list[Any], int, Any]:
        """Data, ancillary data, flags and address; a size for ancillary data and flags may follow."""
        got: tuple[bytes, list[Any], int, Any] = self._low.recvmsg(bufsize, *arguments)
        return got

    def recvmsg_into(self, buffers: Any, *arguments: int) -> tuple[int, list[Any], int, Any]:
        """The same, scattered into `buffers`."""
        got: tuple[int, list[Any], int, Any] = self._low.recvmsg_into(buffers, *arguments)
        return got

    # -- files ---------------------------------------------------------------------------------------------------

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file that is open for bytes, from `offset`, to its end or `count` bytes; how many were sent.

        The file's position is behind them afterwards.
        """
        return self._sendfile_use_send(file, offset, count)

    def _sendfile_use_send(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        self._check_sendfile_params(file, offset, count)
        if self.gettimeout() == 0:
            raise ValueError("non-blocking sockets are not supported")
        if offset or _is_regular(file):
            file.seek(offset)
        total = 0
        try:
            while count is None or total < count:
                size = SENDFILE_BLOCK if count is None else min(SENDFILE_BLOCK, count - total)
                left = memoryview(file.read(size))
                if not left:
                    break
                while left:
                    sent = self.send(left)
                    total += sent
                    left = left[sent:]
            return total
        finally:
            if total and hasattr(file, "seek"):
                file.seek(offset + total)

    def _check_sendfile_params(self, file: Any, _offset: int, count: int | None) -> None:
        if "b" not in getattr(file, "mode", "b"):
            raise ValueError("file should be opened in binary mode")
        if not self.type & c.SOCK_STREAM:
            raise ValueError("only SOCK_STREAM type sockets are supported")
        if count is not None and not isinstance(count, int):
            raise TypeError(f"count must be a positive integer (got {count!r})")
        if count is not None and count <= 0:
            raise ValueError(f"count must be a positive integer (got {count!r})")


def _is_regular(file: Any) -> bool:
    """Whether it is a file of the disk with something in it, which is sent from its start wherever it stands."""
    try:
        status = os.fstat(file.fileno())
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def _member(kind: Any) -> Callable[[int], int]:
    """Turns a number into the member of `kind` that it is, if it is one."""

    def convert(number: int) -> int:
        try:
            member: int = kind(number)
        except ValueError:
            return number
        return member

    return convert


def socket_class(module: str, network: Callable[[], Network], families: Any, kinds: Any) -> type[Socket]:
    """The class `socket` of a namespace.

    Args:
        module: what the class calls its module.
        network: which network a new socket belongs to; asked when one is made.
        families, kinds: the enumerations of AF_* and SOCK_*.
    """
    made: Any = type(
        "socket",
        (Socket,),
        {
            "__slots__": (),
            "__doc__": Socket.__doc__,
            "__module__": module,
            "_network": staticmethod(network),
            "_families": staticmethod(_member(families)),
            "_kinds": staticmethod(_member(kinds)),
        },
    )
    made._plain = made
    result: type[Socket] = made
    return result
