"""Telling routers and switches which multicast groups are listened to, as both families do it: igmp.py, mld.py.

RFC 3376 (IGMPv3) and RFC 3810 (MLDv2), for hosts that want a group from any source; and their older versions once a
querier of that version was heard (RFC 3376 §7.2.1, RFC 3810 §8.2.1).

Promises:
- A join or a leave is reported at once and again after a random time; the same seed gives the same times.
- A query is answered within the time that it says; a later general query does not add answers to one that is due.
- Reports are as large as the interface lets them be, and split where they would be larger.
- Every message that comes in is counted once more: under `rx_queries`, `rx_reports`, `rx_ignored_…` or `rx_dropped_…`.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from guest.net.config import SECOND, NetConfig
from guest.net.family import IpHeader
from guest.net.layer import Layer
from guest.net.pbuf import PacketBuffer

# Types of group records (RFC 3376 §4.2.12)
MODE_IS_EXCLUDE = 2
CHANGE_TO_INCLUDE = 3
CHANGE_TO_EXCLUDE = 4

OLD_QUERIER = 260 * SECOND  # robustness 2 * query interval 125 s + response interval 10 s (RFC 3376 §8.12)
OLD_REPEAT = 10 * SECOND  # the older versions' unsolicited report interval (RFC 2236 §8.10, RFC 2710 §7.10)
ALL_GROUPS = 0


class Query(NamedTuple):
    """A checked query.

    Attributes:
        group: that it asks for, ALL_GROUPS for all.
        within: microseconds in which to answer.
        old: it speaks the older version.
    """

    group: int
    within: int
    old: bool


class Membership(Layer, ABC):
    """The memberships of one interface in one family.

    Args:
        now: the time.
        rng: source of delays.
        config: limits and times.
        mtu: of the interface, when asked.
        output: sends a message to a group.
        counters: where to count.

    Attributes:
        groups: that are reported.
    """

    name: str
    overhead: int  # bytes of a report that are no records, with the IP header
    record_size: int  # bytes of a record

    def __init__(
        self,
        *,
        now: Callable[[], int],
        rng: random.Random,
        config: NetConfig,
        mtu: Callable[[], int],
        output: Callable[[bytes, int], None],
        counters: Counter[str] | None = None,
    ) -> None:
        super().__init__(self.name, counters)
        self.groups: set[int] = set()
        self._mtu = mtu
        self._output = output
        self._now = now
        self._rng = rng
        self._config = config
        self._running = False
        self._old_until = 0
        self._changes: dict[int, tuple[int, int, int]] = {}  # group → record type, reports left, when
        self._answers: dict[int, int] = {}  # group or ALL_GROUPS → when to answer

    # -- what a family knows -------------------------------------------------------------------------------------

    @abstractmethod
    def reported(self, group: int) -> bool:
        """Whether memberships of `group` are told at all."""

    @abstractmethod
    def read(self, packet: PacketBuffer, header: IpHeader) -> str:
        """A message arrived, and is shown to the trace: the counter that it belongs under."""

    @abstractmethod
    def send_report(self, records: Sequence[tuple[int, int]]) -> None:
        """Send records, type and group, in one message."""

    @abstractmethod
    def send_old(self, group: int, joined: bool) -> None:
        """Send the older version's report or farewell."""

    # -- messages ------------------------------------------------------------------------------------------------

    def input(self, packet: PacketBuffer, header: IpHeader) -> None:
        """A message arrived, with its IP header pulled."""
        self.counters["rx_packets"] += 1
        self.settle(packet, self.read(packet, header))

    def _send_reports(self, records: Sequence[tuple[int, int]]) -> None:
        """Send records, in as few messages as they fit into."""
        most = max(1, (self._mtu() - self.overhead) // self.record_size)
        for start in range(0, len(records), most):
            self.counters["tx_reports"] += 1
            self.send_report(records[start : start + most])

    def _send_old(self, group: int, joined: bool) -> None:
        self.counters["tx_reports"] += 1
        self.send_old(group, joined)

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def old(self) -> bool:
        """Whether a querier of the older version was heard of late."""
        return self._now() < self._old_until

    def start(self) -> None:
        """The interface went up, or its link came back: report everything anew."""
        self._running = True
        for group in sorted(self.groups):
            self._change(group, CHANGE_TO_EXCLUDE)

    def stop(self) -> None:
        """The interface went down; memberships stay."""
        self._running = False
        self._changes.clear()
        self._answers.clear()
        self._old_until = 0

    def join(self, group: int) -> None:
        """`group` is listened to from now on."""
        if self.reported(group):
            self.groups.add(group)
            self._change(group, CHANGE_TO_EXCLUDE)

    def leave(self, group: int) -> None:
        """`group` is listened to no longer."""
        if group in self.groups:
            self.groups.discard(group)
            self._answers.pop(group, None)
            self._change(group, CHANGE_TO_INCLUDE)

    def _change(self, group: int, kind: int) -> None:
        if self._running:
            self._changes.pop(group, None)
            self._report_change(group, kind, self._config.group_reports)

    def _report_change(self, group: int, kind: int, left: int) -> None:
        old = self.old
        if left <= 0:
            return
        if old:
            self._send_old(group, kind == CHANGE_TO_EXCLUDE)
            if kind == CHANGE_TO_INCLUDE:
                return  # a farewell is said once
        else:
            self._send_reports([(kind, group)])
        if left > 1:
            when = self._now() + self._rng.randrange(1, (OLD_REPEAT if old else self._config.group_interval) + 1)
            self._changes[group] = kind, left - 1, when

    def queried(self, query: Query) -> str:
        """A querier asks: the counter that this belongs under."""
        if not self._running:
            return "rx_ignored_down"
        now = self._now()
        if query.old:
            self._old_until = now + OLD_QUERIER
        wanted = query.group if query.group in self.groups or query.group == ALL_GROUPS else None
        if wanted is None or not self.groups:
            return "rx_ignored_not_member"
        due = now + self._rng.randrange(max(1, query.within))
        for group in (wanted, ALL_GROUPS):
            if self._answers.get(group, due + 1) <= due:
                return "rx_queries"  # what is due sooner answers this as well
        self._answers[wanted] = due
        return "rx_queries"

    def overheard(self, group: int) -> str:
        """Another member has reported `group` in the older version: then we need not (RFC 2236 §3)."""
        if self.old:
            self._answers.pop(group, None)
            change = self._changes.get(group)
            if change is not None and change[0] == CHANGE_TO_EXCLUDE:
                del self._changes[group]
        return "rx_reports"

    # -- time ----------------------------------------------------------------------------------------------------

    def poll(self, now: int) -> bool:
        """Send the reports that are due; whether there was any."""
        worked = False
        for group, (kind, left, when) in list(self._changes.items()):
            if when <= now:
                worked = True
                del self._changes[group]
                self._report_change(group, kind, left)
        for group in [group for group, when in self._answers.items() if when <= now]:
            worked = True
            del self._answers[group]
            groups = sorted(self.groups) if group == ALL_GROUPS else [group]
            if self.old:
                for each in groups:
                    self._send_old(each, True)
            else:
                self._send_reports([(MODE_IS_EXCLUDE, each) for each in groups])
        return worked

    def poll_at(self) -> int | None:
        """When `poll` is due, or None."""
        if not self._changes and not self._answers:
            return None
        return min([when for _, _, when in self._changes.values()] + list(self._answers.values()))


def response_time(code: int, bits: int) -> int:
    """A maximum response code of `bits` bits as a number (RFC 3376 §4.1.1: 8 bits; RFC 3810 §5.1.3: 16 bits)."""
    if code < 1 << (bits - 1):
        return code
    mantissa = bits - 4
    return ((code & (1 << mantissa) - 1) | 1 << mantissa) << ((code >> mantissa & 7) + 3)
