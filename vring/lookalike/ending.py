"""The end of a program whose sockets are a guest's.

Closing a socket of the host's kernel leaves the kernel to send what is left. A guest ends with its program; so before
that it gets some time for what its connections still owe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vring.door import ThreadCalls
from vring.home import SessionError, this_thread

if TYPE_CHECKING:
    from guest.kernel import Guest
    from vring.session import Session

PATIENCE = 5.0  # seconds


def finish(session: Session, guest: Guest, patience: float = PATIENCE) -> None:
    """End a session whose program used this guest.

    Its descriptors are closed, as a kernel does, and the session as soon as its connections have sent everything, or
    after `patience` seconds.
    """
    try:
        calls = session.calls_of(guest)
        if isinstance(calls, ThreadCalls):
            calls.last = this_thread()
        calls.close_all()
        session.run_until(lambda: not owes(guest), patience)
    except (SessionError, OSError):
        pass  # it is closed, or died; or the guest has halted
    finally:
        session.close()


def owes(guest: Guest) -> bool:
    """Whether a connection has data or the end of its stream to send, or has not heard that they arrived."""
    if guest.halted or guest.stage < 1:
        return False
    return any(each.snd_una < each.snd_end for each in guest.stack.tcp.connections)
