"""ioctl(2) as far as sockets have it: how much waits, and FIONBIO. tcp(7), udp(7), socket(7).

What is asked is told as the call's result; C's pointer to an integer is not needed here.
"""

from __future__ import annotations

from guest.sys import constants as c
from guest.sys.core import Core
from guest.sys.fault import fault
from guest.sys.files import File
from guest.sys.socket_file import DatagramFile, SocketFile
from guest.sys.stream_file import StreamFile


class IoctlCalls(Core):
    """The call `ioctl`."""

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """FIONBIO of any file: not blocking from now on, or again. Of sockets how many bytes there are:

        FIONREAD (SIOCINQ): that can be read, of datagrams of the next one. SIOCOUTQ (TIOCOUTQ): that were written and
        not acknowledged. SIOCOUTQNSD: of those, that were not sent yet. SIOCATMARK: 1 where urgent data is next.

        Raises OSError: EBADF; EINVAL of a stream that listens; ENOTTY or EINVAL where the file has no such request.
        """
        file = self.fds.file(fd)
        if request == c.FIONBIO:
            file.flags = file.flags & ~c.O_NONBLOCK | (c.O_NONBLOCK if argument else 0)
            return 0
        if not isinstance(file, SocketFile):
            raise fault("EINVAL" if file.kind == "epoll" else "ENOTTY")
        found = self._waiting(file, request)
        if found is None:
            raise fault("ENOTTY")
        return found

    @staticmethod
    def _waiting(file: File, request: int) -> int | None:
        """The answer to a request; None where there is no such one. Raises OSError: EINVAL."""
        if isinstance(file, StreamFile):
            endpoint = file.endpoint
            if request == c.SIOCATMARK:
                return int(endpoint.at_mark)
            if request not in (c.SIOCINQ, c.SIOCOUTQ, c.SIOCOUTQNSD):
                return None
            if endpoint.listening:
                raise fault("EINVAL")
            return {c.SIOCINQ: endpoint.unread, c.SIOCOUTQ: endpoint.unacked, c.SIOCOUTQNSD: endpoint.unsent}[request]
        if isinstance(file, DatagramFile):
            if request == c.SIOCINQ:
                datagram = file.endpoint.receive(peek=True)
                return 0 if datagram is None else len(datagram.payload)
            if request == c.SIOCOUTQ:
                return 0  # what was sent has left
        return None
