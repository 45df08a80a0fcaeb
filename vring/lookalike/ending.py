"""The end of a program whose sockets are a guest's.

Closing a socket of the host's kernel leaves the kernel to send what is left. A guest ends with its program; so before
that it gets some time for what its connections still owe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vring.home import SessionError

if TYPE_CHECKING:
    from guest.kernel import Guest
    from vring.session import Session

PATIENCE = 5.0  # seconds


def finish(session: Session, patience: float = PATIENCE) -> None:
    """Close a session once its connections have sent everything, or after `patience` seconds."""
    try:
        session.run_until(lambda: not any(map(owes, session.guests)), patience)
    except SessionError:
        pass  # it is closed, or died
    session.close()


def owes(guest: Guest) -> bool:
    """Whether a connection has data or the end of its stream to send, or has not heard that they arrived."""
    if guest.halted or guest.stage < 1:
        return False
    tcp = getattr(guest.stack, "tcp", None)
    return tcp is not None and any(end.unsent or end.unacked for end in tcp.ends)
