"""Mirrors: descriptors of the host whose readable and writable state is that of a guest's socket.

Any wait of the host then works on them: select, poll, epoll, asyncio. A mirror is one end of a pair of Unix sockets
with a small send buffer. It is made readable by a byte from the far end, and not writable by filling its buffer; an
eventfd cannot be neither, which most sockets are most of the time.

What such a pair cannot show is kept beside it: `Mirror.events` has the exact POLL* events, and `sign` gives a further
descriptor that is readable while one of certain events is true.

Promises:
- Only the home thread changes a mirror: when the guest's socket says that something happened, and after each call on
  it, before that call returns to its caller. So a wait that begins after a call sees what the call has left.
- An error and a hang-up show as readable and writable: what is called then does not block.
- Who closes the descriptor behind our back (`os.close(sock.detach())`) has closed the guest's socket.
- Nothing but waiting is to be done with a mirror: reading or writing it moves no data of the socket's.

Sections: `Mirror`, `Mirrors`.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from guest.sys import constants as c

if TYPE_CHECKING:
    from guest.kernel import Guest
    from guest.sys.files import File
    from hw.loop import Loop

FILLER = bytes(4096)
READABLE = c.POLLIN | c.POLLRDNORM | c.POLLERR | c.POLLHUP | c.POLLNVAL
WRITABLE = c.POLLOUT | c.POLLWRNORM | c.POLLERR | c.POLLHUP | c.POLLNVAL
WATCHED = c.POLLIN | c.POLLPRI | c.POLLOUT | c.POLLERR | c.POLLHUP | c.POLLRDHUP
OVER = c.POLLIN | c.POLLOUT | c.POLLERR | c.POLLHUP  # of a socket that is gone


class Mirror:
    """One descriptor of the host.

    Attributes:
        fd: the guest's descriptor. file: what it refers to.
        number: the host's descriptor. inode: of what it refers to, by which its duplicates are known.
        events: the POLL* events of the socket that are true.
        edges: somebody waits for edges: a further byte for each thing that arrives.
    """

    __slots__ = (
        "_far", "_near", "_readable", "_signs", "_writable", "edges", "events", "fd", "file", "inode", "number",
    )  # fmt: skip

    def __init__(self, fd: int, file: File) -> None:
        self.fd = fd
        self.file = file
        self.events = 0
        self.edges = False
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self._near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
        self.number = self._near.fileno()
        self.inode = os.fstat(self.number).st_ino
        self._readable = False
        self._writable = True
        self._signs: dict[int, int] = {}
        file.watch(self.happened, WATCHED)
        self.update()

    @property
    def far(self) -> int:
        """The far end's descriptor, which hangs up when the last copy of the near one is closed."""
        return self._far.fileno()

    def happened(self) -> None:
        """The socket says that something has happened."""
        if self.edges and self._readable and self._near_is_ours():
            _drain(self._near)
            _send(self._far, b"!")
        self.update()

    def update(self) -> None:
        """Show what is true now."""
        events = self.events = self.file.poll() if self.file.refs else OVER
        readable = bool(events & READABLE)
        if readable != self._readable:
            self._readable = readable
            if readable:
                _send(self._far, b"!")
            elif self._near_is_ours():
                _drain(self._near)
        writable = bool(events & WRITABLE)
        if writable != self._writable:
            self._writable = writable
            if writable:
                _drain(self._far)
            elif self._near_is_ours():
                while _send(self._near, FILLER):
                    pass
        for bits in self._signs:
            self._show(bits)

    def _near_is_ours(self) -> bool:
        """Whether the near end's number still is the near end: programs can close any number."""
        try:
            return os.fstat(self.number).st_ino == self.inode
        except OSError:
            return False

    def sign(self, bits: int) -> int:
        """A descriptor that is readable while one of the events `bits` is true."""
        if bits not in self._signs:
            self._signs[bits] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._show(bits)
        return self._signs[bits]

    def _show(self, bits: int) -> None:
        number = self._signs[bits]
        try:
            os.eventfd_read(number)
        except BlockingIOError:
            pass
        if self.events & bits:
            os.eventfd_write(number, 1)

    def hung_up(self) -> bool:
        """Whether nobody has the near end any more."""
        poll = select.poll()
        poll.register(self._far, 0)
        return bool(poll.poll(0))

    def let_go(self) -> None:
        """Close the near end."""
        self._near.close()

    def forget_number(self) -> None:
        """The near end is closed already, and its number may be another file's by now."""
        self._near.detach()

    def end(self) -> None:
        """The socket is gone: whoever waits sees that, as long as he has the near end."""
        self.file.unwatch(self.happened)
        self.events = OVER
        for number in self._signs.values():
            os.close(number)
        self._signs.clear()
        self._far.close()


class Mirrors:
    """The mirrors of one guest. All but `at` and `find` are for the home thread.

    Args:
        guest: whose sockets they show.
        loop: of the home thread.
        close: closes a descriptor of the guest, and ends what host threads wait for there.
    """

    def __init__(self, guest: Guest, loop: Loop, close: Callable[[int], None]) -> None:
        self._guest = guest
        self._loop = loop
        self._close = close
        self._by_fd: dict[int, Mirror] = {}
        self._by_number: dict[int, Mirror] = {}
        self._by_inode: dict[int, Mirror] = {}
        self._by_file: dict[File, list[Mirror]] = {}
        self._by_far: dict[int, Mirror] = {}
        self._hang_ups: select.epoll | None = None

    def at(self, number: int) -> Mirror | None:
        """The mirror that is this descriptor, or None. (Any thread.)"""
        mirror = self._by_number.get(number)
        return mirror if mirror is not None and self.find(number) is mirror else None

    def find(self, number: int) -> Mirror | None:
        """The mirror that this descriptor, or what it was duplicated from, is; None for others. (Any thread.)

        Raises OSError: EBADF.
        """
        status = os.fstat(number)
        return self._by_inode.get(status.st_ino) if stat.S_ISSOCK(status.st_mode) else None

    def make(self, fd: int) -> Mirror:
        """The mirror of a guest's descriptor. Raises OSError: EBADF, EMFILE."""
        file = self._guest.calls.fds.file(fd)
        mirror = self._by_fd.get(fd)
        if mirror is not None and mirror.file is file:
            return mirror
        mirror = Mirror(fd, file)
        self._by_fd[fd] = self._by_number[mirror.number] = self._by_far[mirror.far] = mirror
        self._by_inode[mirror.inode] = mirror
        self._by_file.setdefault(file, []).append(mirror)
        if self._hang_ups is None:
            self._hang_ups = select.epoll()
            self._loop.set_reader(self._hang_ups.fileno(), self._look_for_hang_ups)
        # Only hang-ups, which are always told; as an edge, since what fills the buffer makes the far end readable.
        self._hang_ups.register(mirror.far, select.EPOLLET)
        return mirror

    def refresh(self, fd: int) -> None:
        """A call has worked on this descriptor."""
        if self._by_fd:
            fds = self._guest.calls.fds
            for mirror in self._by_file.get(fds.file(fd), ()) if fd in fds else ():
                mirror.update()

    def close(self, fd: int) -> None:
        """Close a guest's descriptor with its mirror; later, if a copy of the mirror is left. Raises OSError: EBADF."""
        mirror = self._by_fd.get(fd)
        if mirror is None:
            self._close(fd)
            return
        mirror.let_go()
        self._by_number.pop(mirror.number, None)
        if mirror.hung_up():
            self._end(mirror)

    def _look_for_hang_ups(self) -> None:
        if self._hang_ups is None:
            return
        for far, _ in self._hang_ups.poll(0):
            mirror = self._by_far.get(far)
            if mirror is not None and mirror.hung_up():
                mirror.forget_number()
                self._end(mirror)

    def _end(self, mirror: Mirror) -> None:
        """Nobody can reach the guest's socket any more."""
        self._forget(mirror)
        fds = self._guest.calls.fds
        if mirror.fd in fds and fds.file(mirror.fd) is mirror.file:
            self._close(mirror.fd)
        mirror.end()

    def _forget(self, mirror: Mirror) -> None:
        for table, key in (
            (self._by_fd, mirror.fd), (self._by_far, mirror.far), (self._by_number, mirror.number),
            (self._by_inode, mirror.inode),
        ):  # fmt: skip
            if table.get(key) is mirror:
                del table[key]
        left = [each for each in self._by_file.get(mirror.file, ()) if each is not mirror]
        if left:
            self._by_file[mirror.file] = left
        else:
            self._by_file.pop(mirror.file, None)

    def end(self) -> None:
        """The guest is gone: every mirror says so."""
        for mirror in list(self._by_fd.values()):
            self._forget(mirror)
            mirror.end()
        if self._hang_ups is not None:
            self._loop.set_reader(self._hang_ups.fileno(), None)
            self._hang_ups.close()
            self._hang_ups = None


def _send(sock: socket.socket, data: bytes) -> int:
    """Send; how many bytes were taken, 0 when there is no room or nobody at the other end."""
    try:
        return sock.send(data)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        return 0


def _drain(sock: socket.socket) -> None:
    """Receive until nothing is left."""
    try:
        while sock.recv(len(FILLER)):
            pass
    except (BlockingIOError, ConnectionResetError):
        pass
