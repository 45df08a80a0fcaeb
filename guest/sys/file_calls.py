"""System calls on descriptors of any kind: close(2), dup(2), fcntl(2), read(2), write(2), and `adopt`.

Closing a stream with SO_LINGER waits until its peer has everything, or for the time that was set; socket(7).
"""

from __future__ import annotations

from guest.net.pbuf import Buffer
from guest.sys import constants as c
from guest.sys.fault import fault
from guest.sys.host_file import HostFile
from guest.sys.stream_calls import StreamCalls
from guest.sys.stream_file import StreamFile

READ_READY = c.POLLIN | c.POLLERR | c.POLLHUP | c.POLLRDHUP
WRITE_READY = c.POLLOUT | c.POLLERR | c.POLLHUP
SETTABLE = c.O_NONBLOCK


class FileCalls(StreamCalls):
    """Calls that ask nothing of a file but that it is open."""

    def close(self, fd: int) -> None:
        """Free a descriptor; the last one of a file closes it. Raises OSError: EBADF."""
        if self.lingers(fd) and self._waits.able:
            self._close_slowly(fd)
        else:
            self.fds.close(fd)

    def lingers(self, fd: int) -> bool:
        """Whether closing this descriptor may have to wait (SO_LINGER). Raises OSError: EBADF."""
        file = self.fds.file(fd)
        return isinstance(file, StreamFile) and file.refs == 1 and bool(file.endpoint.options.linger)

    def _close_slowly(self, fd: int) -> None:
        file = self.fds.file(fd)
        if not isinstance(file, StreamFile):
            return
        with file:
            self.fds.close(fd)
            file.endpoint.close()
            try:
                self._waits.until(lambda: not file.lingering, file.endpoint.options.linger, [(file, c.POLLHUP)])
            except InterruptedError:
                pass  # a signal ends the wait, not the close

    def close_all(self) -> int:
        """Close every descriptor of the guest; how many there were."""
        return self.fds.close_all()

    def dup(self, fd: int) -> int:
        """Another descriptor for the same file, the lowest free one. Raises OSError: EBADF, EMFILE."""
        return self.fds.dup(fd)

    def dup2(self, fd: int, target: int) -> int:
        """Make `target` refer to the same file. Raises OSError: EBADF."""
        return self.fds.dup2(fd, target)

    def fcntl(self, fd: int, command: int, argument: int = 0) -> int:
        """F_GETFL, F_SETFL (O_NONBLOCK), F_GETFD, F_SETFD (FD_CLOEXEC), F_DUPFD, F_DUPFD_CLOEXEC.

        Raises OSError: EBADF, EINVAL, EMFILE.
        """
        file = self.fds.file(fd)
        if command == c.F_GETFL:
            return file.flags
        if command == c.F_SETFL:
            file.flags = file.flags & ~SETTABLE | argument & SETTABLE
            return 0
        if command == c.F_GETFD:
            return c.FD_CLOEXEC if self.fds.cloexec(fd) else 0
        if command == c.F_SETFD:
            self.fds.set_cloexec(fd, bool(argument & c.FD_CLOEXEC))
            return 0
        if command in (c.F_DUPFD, c.F_DUPFD_CLOEXEC):
            return self.fds.dup(fd, argument, cloexec=command == c.F_DUPFD_CLOEXEC)
        raise fault("EINVAL")

    def read(self, fd: int, size: int) -> bytes:
        """Up to `size` bytes; none at the end. Raises OSError: EBADF, EINVAL, EAGAIN, EINTR and the file's own."""
        file = self.fds.file(fd)
        if isinstance(file, StreamFile):
            return self._stream_read(file, size, 0)
        target = bytearray(size)
        return bytes(memoryview(target)[: self.read_into(fd, target)])

    def read_into(self, fd: int, target: bytearray | memoryview) -> int:
        """Read into a buffer; how many bytes. Raises as `read`."""
        file = self.fds.file(fd)
        view = memoryview(target).cast("B")
        if isinstance(file, StreamFile):
            return self._stream_into(file, [view], 0)
        since = self._now()
        with file:
            while (done := file.read_into(view)) is None:
                self._pause(file, 0, c.POLLIN, lambda: bool(file.poll() & READ_READY), since)
        self.counters["rx_copied_bytes"] += done
        return done

    def write(self, fd: int, data: Buffer) -> int:
        """Write; how many bytes were taken, of a stream all of them, as `sendmsg` says.

        Raises OSError: EBADF, EINVAL, EAGAIN, EINTR and the file's own.
        """
        file = self.fds.file(fd)
        view = memoryview(data).cast("B")
        if isinstance(file, StreamFile):
            return self._stream_send(file, [view])
        since = self._now()
        with file:
            while (done := file.write(view)) is None:
                self._pause(file, 0, c.POLLOUT, lambda: bool(file.poll() & WRITE_READY), since, receiving=False)
        return done

    def adopt(self, fd: int) -> int:
        """A guest descriptor for a duplicate of the host's descriptor `fd`, to read, write and wait for.

        Raises:
            RuntimeError: there is no way to wait for the host here: no machine, or its clock is the virtual one.
            OSError: EBADF, EMFILE.
        """
        host = self.host
        if host is None:
            raise RuntimeError("this guest has no machine that waits for descriptors of the host")
        host.check()
        return self.fds.install(HostFile(host, fd))
