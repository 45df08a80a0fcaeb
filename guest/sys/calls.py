"""The system calls of one guest, all of them: `Calls` is what the kernel hangs up and programs call.

    calls = Calls(scheduler, stack, now=platform.now)
    fd = calls.socket(AF_INET, SOCK_DGRAM)
    calls.bind(fd, ("10.0.0.1", 7))
    data, peer = calls.recvfrom(fd, 2048)       # blocks a guest process, and nothing else

Promises:
- A call that fails raises OSError with Linux's errno; only what the standard library checks before it enters the kernel
  (types, ranges of ports) raises TypeError, OverflowError or ValueError.
- Addresses are the standard library's tuples, times are microseconds, options and flags have Linux's numbers
  (guest/sys/constants.py).
- A guest process that blocks lets the others run. A caller that is no guest process waits through `block`, which
  whoever lets such callers in sets; without it a call that would block raises RuntimeError.
- Descriptors belong to the guest. Closing all of them leaves nothing in the stack.

SOCK_STREAM is TCP; other transports may enter `openers`.
"""

from __future__ import annotations

from guest.sys.data_calls import DataCalls
from guest.sys.file_calls import FileCalls
from guest.sys.ioctl_calls import IoctlCalls
from guest.sys.name_calls import NameCalls
from guest.sys.netconfig import NetConfigCalls
from guest.sys.poll_calls import PollCalls
from guest.sys.socket_calls import SocketCalls


class Calls(SocketCalls, DataCalls, FileCalls, IoctlCalls, PollCalls, NetConfigCalls, NameCalls):
    """The system calls of one guest; see `Core` for what it is made of, and the classes above for the calls."""
