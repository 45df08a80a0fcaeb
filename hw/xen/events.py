"""Event channels: ports that two domains share, and how an event reaches each.

Promises:
- A domain with RAM of its own is told through the bitmaps of its shared info page, two-level, and one interrupt line,
  which is high while `evtchn_upcall_pending` is set. The line's level is looked at anew before each delivery, so the
  guest lowers it by clearing that byte. `evtchn_upcall_mask` is ignored, as for guests without a paravirtual CPU.
- A domain without RAM (the control domain of the simulation) is told by a call of its handler, a turn later.
- Events are a bit each: any number that come before the domain looks are one.
- A closed channel leaves the other end unbound, ready for its next partner.

Read first: Xen's public `event_channel.h`, `hw/abi/xen_event.py`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from hw.abi import xen_event as e
from hw.abi.xen import DOMID_SELF, XEN_PAGE_SIZE
from hw.irq import IrqLine
from hw.memory import FieldView, GuestMemory

_PENDING = e.SHARED_INFO_EVTCHN_PENDING // 8
_MASK = e.SHARED_INFO_EVTCHN_MASK // 8
_SELECTOR = e.PENDING_SEL // 8


class SharedInfo:
    """The page in which a domain finds its events, and the line that says that there are some."""

    def __init__(self, memory: GuestMemory, addr: int, line: IrqLine) -> None:
        self.memory = memory
        self.addr = addr
        self.line = line
        line.sense = self._upcall_pending
        self._open()
        memory.on_reopen(self._open)

    def _open(self) -> None:
        fields = self.memory.fields
        self._words: FieldView = fields(self.addr, XEN_PAGE_SIZE, "Q", "xen")
        self._bytes: FieldView = fields(self.addr, XEN_PAGE_SIZE, "B", "xen")

    def _upcall_pending(self) -> bool:
        return self._bytes[e.UPCALL_PENDING] != 0

    def set_pending(self, port: int) -> None:
        """An event came for `port`."""
        word, bit = port // e.EVTCHN_WORD_BITS, 1 << port % e.EVTCHN_WORD_BITS
        pending = self._words[_PENDING + word]
        if not pending & bit:
            self._words[_PENDING + word] = pending | bit
            if not self._words[_MASK + word] & bit:
                self._select(word)

    def _select(self, word: int) -> None:
        selector = self._words[_SELECTOR]
        if not selector >> word & 1:
            self._words[_SELECTOR] = selector | 1 << word
        if not self._bytes[e.UPCALL_PENDING]:
            self._bytes[e.UPCALL_PENDING] = 1
        self.line.set_level(True)

    def unmask(self, port: int) -> None:
        """Clear the port's mask bit; an event that came while it was masked is delivered now."""
        word, bit = port // e.EVTCHN_WORD_BITS, 1 << port % e.EVTCHN_WORD_BITS
        mask = self._words[_MASK + word]
        if mask & bit:
            self._words[_MASK + word] = mask & ~bit
        if self._words[_PENDING + word] & bit:
            self._select(word)

    def is_pending(self, port: int) -> bool:
        """Whether the port's pending bit is set."""
        return bool(self._words[_PENDING + port // e.EVTCHN_WORD_BITS] >> port % e.EVTCHN_WORD_BITS & 1)

    def clear(self, port: int) -> None:
        """Forget an event of a port that was closed."""
        word, bit = port // e.EVTCHN_WORD_BITS, 1 << port % e.EVTCHN_WORD_BITS
        pending = self._words[_PENDING + word]
        if pending & bit:
            self._words[_PENDING + word] = pending & ~bit


class _Channel:
    """One port: its state, its partner (domain and port), and who is called in a domain without shared info."""

    __slots__ = ("domid", "handler", "port", "remote_domid", "remote_port", "scheduled", "state")

    def __init__(self, domid: int, port: int, remote_domid: int) -> None:
        self.domid = domid
        self.port = port
        self.state = e.EVTCHNSTAT_unbound
        self.remote_domid = remote_domid
        self.remote_port = 0
        self.handler: Callable[[], None] | None = None
        self.scheduled = False


class EventChannels:
    """The channels of all domains. Results below 0 are errnos, as the hypercalls return them.

    Args:
        schedule: has a handler called soon.
    """

    def __init__(self, schedule: Callable[[Callable[[], None]], None]) -> None:
        self._schedule = schedule
        self._ports: dict[int, dict[int, _Channel]] = {}
        self._shared: dict[int, SharedInfo | None] = {}

    def add_domain(self, domid: int, shared: SharedInfo | None) -> None:
        """A domain comes; with `shared` it is told through memory, without by its handlers."""
        self._ports[domid] = {}
        self._shared[domid] = shared

    def remove_domain(self, domid: int) -> None:
        """A domain leaves: all its channels are closed."""
        self.reset(domid)
        del self._ports[domid]
        del self._shared[domid]

    def reset(self, domid: int, keep: int = 0) -> None:
        """Close all channels of a domain but port `keep`."""
        for port in list(self._ports[domid]):
            if port != keep:
                self.close(domid, port)

    def state(self, domid: int, port: int) -> int:
        """EVTCHNSTAT_* of a port."""
        channel = self._ports[domid].get(port)
        return e.EVTCHNSTAT_closed if channel is None else channel.state

    def _allocate(self, domid: int, remote_domid: int) -> _Channel | None:
        ports = self._ports[domid]
        for port in range(1, e.EVTCHN_2L_NR_CHANNELS):
            if port not in ports:
                channel = ports[port] = _Channel(domid, port, remote_domid)
                return channel
        return None

    def alloc_unbound(self, domid: int, remote_domid: int) -> int:
        """EVTCHNOP_alloc_unbound: a port of `domid` that `remote_domid` may bind to."""
        if remote_domid == DOMID_SELF:
            remote_domid = domid
        if remote_domid not in self._ports:
            return -errno.ESRCH
        channel = self._allocate(domid, remote_domid)
        return -errno.ENOSPC if channel is None else channel.port

    def bind_interdomain(
        self, domid: int, remote_domid: int, remote_port: int, handler: Callable[[], None] | None = None
    ) -> int:
        """EVTCHNOP_bind_interdomain: a port of `domid`, pending at once, joined to one that waits for it."""
        if remote_domid == DOMID_SELF:
            remote_domid = domid
        if remote_domid not in self._ports:
            return -errno.ESRCH
        remote = self._ports[remote_domid].get(remote_port)
        if remote is None or remote.state != e.EVTCHNSTAT_unbound or remote.remote_domid != domid:
            return -errno.EINVAL
        channel = self._allocate(domid, remote_domid)
        if channel is None:
            return -errno.ENOSPC
        channel.state = remote.state = e.EVTCHNSTAT_interdomain
        channel.remote_port, remote.remote_port = remote.port, channel.port
        channel.handler = handler
        self._raise(channel)
        return channel.port

    def send(self, domid: int, port: int) -> int:
        """EVTCHNOP_send: make the other end pending. With nobody bound there the event is lost."""
        channel = self._ports[domid].get(port)
        if channel is None:
            return -errno.EINVAL
        if channel.state == e.EVTCHNSTAT_interdomain:
            self._raise(self._ports[channel.remote_domid][channel.remote_port])
        return 0

    def unmask(self, domid: int, port: int) -> int:
        """EVTCHNOP_unmask."""
        shared = self._shared[domid]
        if shared is None or port not in self._ports[domid]:
            return -errno.EINVAL
        shared.unmask(port)
        return 0

    def close(self, domid: int, port: int) -> int:
        """EVTCHNOP_close: the other end is unbound from now on, and waits for this domain again."""
        channel = self._ports[domid].pop(port, None)
        if channel is None:
            return -errno.EINVAL
        channel.handler = None
        if channel.state == e.EVTCHNSTAT_interdomain:
            remote = self._ports[channel.remote_domid][channel.remote_port]
            remote.state, remote.remote_domid, remote.remote_port = e.EVTCHNSTAT_unbound, domid, 0
        shared = self._shared[domid]
        if shared is not None:
            shared.clear(port)
        return 0

    def ports(self, domid: int) -> list[int]:
        """The ports that a domain has, ascending."""
        return sorted(self._ports.get(domid, ()))

    def partner(self, domid: int, port: int) -> tuple[int, int] | None:
        """Domain and port at the other end, or None."""
        channel = self._ports[domid].get(port)
        if channel is None or channel.state != e.EVTCHNSTAT_interdomain:
            return None
        return channel.remote_domid, channel.remote_port

    def _raise(self, channel: _Channel) -> None:
        shared = self._shared[channel.domid]
        if shared is not None:
            shared.set_pending(channel.port)
        elif not channel.scheduled:
            channel.scheduled = True
            self._schedule(lambda: self._call(channel))

    def _call(self, channel: _Channel) -> None:
        channel.scheduled = False
        if channel.handler is not None:
            channel.handler()
