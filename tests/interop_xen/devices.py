"""What Linux offers of Xen to its programs: /dev/xen/gntdev, gntalloc, evtchn and xenbus, one class for each.

Source: linux/include/uapi/xen/{gntdev,gntalloc,evtchn}.h. The numbers of the calls carry no direction, only the size
of the fixed part of their argument. Needs root of a domain with the modules loaded. Raises OSError.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import struct
from collections.abc import Sequence
from ctypes import addressof, c_char

from hw.abi.xen import XEN_PAGE_SIZE
from hw.abi.xen_grant import GNTCOPY_dest_gref, GNTCOPY_source_gref
from hw.abi.xen_store import MESSAGE

PATIENCE = 20_000  # milliseconds that an answer of the store may take


def _call_number(kind: str, number: int, size: int) -> int:
    return size << 16 | ord(kind) << 8 | number


_MAP = struct.Struct("=IIQII")  # count, pad, index; domid, ref
_UNMAP = struct.Struct("=QII")  # index, count, pad
_LOCAL = struct.Struct("=Q")  # an address
_FOREIGN = struct.Struct("=IHH")  # ref, offset, domid
_SEGMENT = struct.Struct("=8s8sHHhxx")  # source, destination, length, flags, status
_COPY = struct.Struct("=IxxxxQ")  # count, address of segments
_ALLOC = struct.Struct("=HHIQ")  # domid, flags, count, index; then the references
_BIND = struct.Struct("=II")  # domain, port
_PORT = struct.Struct("=I")

GNTDEV_MAP = _call_number("G", 0, _MAP.size)
GNTDEV_UNMAP = _call_number("G", 1, _UNMAP.size)
GNTDEV_COPY = _call_number("G", 8, _COPY.size)
GNTALLOC_ALLOC = _call_number("G", 5, 24)
GNTALLOC_FLAG_WRITABLE = 1
EVTCHN_BIND_INTERDOMAIN = _call_number("E", 1, _BIND.size)
EVTCHN_BIND_UNBOUND_PORT = _call_number("E", 2, _PORT.size)
EVTCHN_UNBIND = _call_number("E", 3, _PORT.size)
EVTCHN_NOTIFY = _call_number("E", 4, _PORT.size)


def _open(name: str) -> int:
    return os.open(f"/dev/xen/{name}", os.O_RDWR | os.O_CLOEXEC)


class GrantDevice:
    """Pages that other domains have granted to this one."""

    BOUNCE = 1 << 20  # bytes of one call's copies

    def __init__(self) -> None:
        self._fd = _open("gntdev")
        # Copies go through a buffer whose address is known; what is handed in may be read-only.
        self._bounce = mmap.mmap(-1, self.BOUNCE)
        self._bounce_addr = addressof(c_char.from_buffer(self._bounce))

    def map(self, domid: int, ref: int) -> tuple[mmap.mmap, int]:
        """A page, to read and write, and what `unmap` is to be told."""
        call = bytearray(_MAP.pack(1, 0, 0, domid, ref))
        fcntl.ioctl(self._fd, GNTDEV_MAP, call)
        index = _MAP.unpack(call)[2]
        try:
            return mmap.mmap(self._fd, XEN_PAGE_SIZE, mmap.MAP_SHARED, offset=index), index
        except OSError:
            self.unmap(index)
            raise

    def unmap(self, index: int) -> None:
        """Give a page back, after its mapping was closed."""
        fcntl.ioctl(self._fd, GNTDEV_UNMAP, _UNMAP.pack(index, 1, 0))

    def copy(self, domid: int, pieces: Sequence[tuple[int, int, memoryview, bool]]) -> list[int]:
        """Do copies (reference, offset, own memory, whether into the page); a status for each."""
        segments = bytearray(_SEGMENT.size * len(pieces))
        places = []
        at = 0
        for number, (ref, offset, view, to_guest) in enumerate(pieces):
            places.append(at)
            local, foreign = _LOCAL.pack(self._bounce_addr + at), _FOREIGN.pack(ref, offset, domid)
            if to_guest:
                self._bounce[at : at + len(view)] = bytes(view)
                ends = local, foreign, len(view), GNTCOPY_dest_gref
            else:
                ends = foreign, local, len(view), GNTCOPY_source_gref
            _SEGMENT.pack_into(segments, number * _SEGMENT.size, *ends, 0)
            at += len(view)
        addr = addressof(c_char.from_buffer(segments))
        fcntl.ioctl(self._fd, GNTDEV_COPY, bytearray(_COPY.pack(len(pieces), addr)))
        for place, (_, _, view, to_guest) in zip(places, pieces, strict=True):
            if not to_guest:
                view[:] = self._bounce[place : place + len(view)]
        return [status for *_, status in _SEGMENT.iter_unpack(segments)]


class GrantAllocator:
    """`count` pages of this domain in a row, each granted to `domid` for reading and writing.

    Attributes:
        refs: the reference of each page.
        memory: the pages, one mapping.
    """

    def __init__(self, domid: int, count: int) -> None:
        self._fd = _open("gntalloc")
        call = bytearray(_ALLOC.pack(domid, GNTALLOC_FLAG_WRITABLE, count, 0)) + bytearray(4 * count)
        fcntl.ioctl(self._fd, GNTALLOC_ALLOC, call)
        index = _ALLOC.unpack_from(call)[3]
        self.refs = struct.unpack_from(f"={count}I", call, _ALLOC.size)
        self.memory = mmap.mmap(self._fd, count * XEN_PAGE_SIZE, mmap.MAP_SHARED, offset=index)


class EventDevice:
    """Event channels of this domain. `fd` is readable while ports are pending."""

    def __init__(self) -> None:
        self.fd = _open("evtchn")
        os.set_blocking(self.fd, False)

    def bind_interdomain(self, domid: int, remote_port: int) -> int:
        """Join another domain's port; the local one, pending at once."""
        return self._call(EVTCHN_BIND_INTERDOMAIN, _BIND.pack(domid, remote_port))

    def bind_unbound(self, domid: int) -> int:
        """A port that `domid` may join."""
        return self._call(EVTCHN_BIND_UNBOUND_PORT, _PORT.pack(domid))

    def unbind(self, port: int) -> None:
        """Close a port."""
        self._call(EVTCHN_UNBIND, _PORT.pack(port))

    def notify(self, port: int) -> None:
        """Send an event to the other end."""
        self._call(EVTCHN_NOTIFY, _PORT.pack(port))

    def _call(self, number: int, argument: bytes) -> int:
        return fcntl.ioctl(self.fd, number, bytearray(argument))

    def pending(self) -> list[int]:
        """The ports that have become pending, each once; from now on they can do so again."""
        try:
            raw = os.read(self.fd, 4096)
        except BlockingIOError:
            return []
        os.write(self.fd, raw)  # unmasks them
        return [port for (port,) in _PORT.iter_unpack(raw)]


class StoreDevice:
    """A connection to the store, as a stream of its messages. `fd` is readable when some have come."""

    def __init__(self) -> None:
        self.fd = _open("xenbus")
        os.set_blocking(self.fd, False)

    def send(self, raw: bytes) -> None:
        """Send one whole message."""
        if os.write(self.fd, raw) != len(raw):
            raise OSError("the store's device takes half a message")

    def receive(self) -> bytes:
        """What has come; may be nothing."""
        try:
            return os.read(self.fd, 4096 + MESSAGE.size)
        except BlockingIOError:
            return b""

    def wait(self) -> bool:
        """Wait until something has come; False when that takes too long."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(PATIENCE))
