"""What ICMP of both families shares about errors: a received error as a value, and the limit on those that are sent.

RFC 792, RFC 1122 §3.2.2, RFC 4443 §2.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from guest.net.config import SECOND

# IPv4: type, and the codes of "unreachable" (RFC 792, RFC 1122 §3.2.2.1, RFC 1812 §5.2.7.1)
UNREACHABLE = 3
TIME_EXCEEDED = 11
PARAMETER_PROBLEM = 12
FRAGMENTATION_NEEDED = 4
# IPv6 (RFC 4443 §3)
V6_UNREACHABLE = 1
V6_PACKET_TOO_BIG = 2
V6_TIME_EXCEEDED = 3
V6_PARAMETER_PROBLEM = 4

UNREACHABLE_TEXT = {
    0: "Destination Net Unreachable",
    1: "Destination Host Unreachable",
    2: "Destination Protocol Unreachable",
    3: "Destination Port Unreachable",
    5: "Source Route Failed",
    9: "Destination Net Prohibited",
    10: "Destination Host Prohibited",
    13: "Packet Filtered",
}
V6_UNREACHABLE_TEXT = {
    0: "No route",
    1: "Administratively prohibited",
    2: "Beyond scope of source address",
    3: "Address unreachable",
    4: "Port unreachable",
    5: "Source address failed ingress/egress policy",
    6: "Reject route to destination",
}
V6_PARAMETER_TEXT = {
    0: "Wrong header field", 1: "Unknown header", 2: "Unknown option", 3: "Header chain not in the first fragment",
}  # fmt: skip


class IcmpError(NamedTuple):
    """An error about a packet that was sent from here.

    Attributes:
        type, code: of the message, in its family's numbers.
        mtu: next-hop MTU of "fragmentation needed" and "packet too big", else 0.
        offender: who reports it; an own address when the neighbour did not answer.
        src, dst: of the packet it is about.
        quoted: that packet's first bytes behind its IP headers, at least 8.
        family: 4 or 6.
    """

    type: int
    code: int
    mtu: int
    offender: int
    src: int
    dst: int
    quoted: bytes
    family: int = 4

    @property
    def too_big(self) -> bool:
        """Whether the packet did not fit somewhere on its way."""
        if self.family == 6:
            return self.type == V6_PACKET_TOO_BIG
        return self.type == UNREACHABLE and self.code == FRAGMENTATION_NEEDED

    @property
    def text(self) -> str:
        """What ping prints."""
        if self.family == 6:
            return self._text6()
        if self.type == UNREACHABLE:
            if self.code == FRAGMENTATION_NEEDED:
                return f"Frag needed and DF set (mtu = {self.mtu})"
            return UNREACHABLE_TEXT.get(self.code, f"Destination Unreachable, code {self.code}")
        if self.type == TIME_EXCEEDED:
            return "Frag reassembly time exceeded" if self.code else "Time to live exceeded"
        return "Parameter problem"

    def _text6(self) -> str:
        if self.type == V6_UNREACHABLE:
            return f"Destination unreachable: {V6_UNREACHABLE_TEXT.get(self.code, f'Unknown code {self.code}')}"
        if self.type == V6_PACKET_TOO_BIG:
            return f"Packet too big: mtu={self.mtu}"
        if self.type == V6_TIME_EXCEEDED:
            return f"Time exceeded: {'Defragmentation failure' if self.code else 'Hop limit'}"
        return f"Parameter problem: {V6_PARAMETER_TEXT.get(self.code, f'code {self.code}')}"


# Takes an error about a packet of its protocol; whether that packet was its own.
ErrorHandler: TypeAlias = Callable[[IcmpError], bool]


class TokenBucket:
    """How many messages may be sent: `rate` a second, `burst` at once (RFC 4443 §2.4 (f)).

    It is kept in microseconds: a message costs the time after which the next one may go.
    """

    def __init__(self, now: Callable[[], int], rate: int, burst: int) -> None:
        self._now = now
        self._cost = SECOND // max(1, rate)
        self._most = self._cost * burst
        self._credit = self._most
        self._credited = now()

    def take(self) -> bool:
        """Whether one more may go now."""
        now = self._now()
        self._credit = min(self._credit + now - self._credited, self._most)
        self._credited = now
        if self._credit < self._cost:
            return False
        self._credit -= self._cost
        return True
