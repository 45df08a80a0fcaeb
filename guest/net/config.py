"""What can be set in the stack, with its defaults, in one place. Times are microseconds."""

from __future__ import annotations

from dataclasses import dataclass

SECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class NetConfig:
    """Settings of one stack.

    Attributes:
        mtu: of an interface that does not say; bytes of the largest IP packet.
        loopback_mtu: of `lo`. loopback_queue: packets that may wait there.
        ttl: of packets that do not say.
        arp_entries: neighbours of one interface. arp_ttl: how long one may be used after it was heard of.
        arp_retries: requests before giving up. arp_interval: time between them.
        arp_queue: packets that wait for one neighbour.
        arp_announcements: how often a new address is announced, two seconds apart (RFC 5227 §2.3).
        icmp_rate: errors sent a second, at most. icmp_burst: how many may go at once.
        icmp_echo_broadcast: answer pings to broadcast and multicast addresses.
        echo_queue: replies that may wait in one echo port.
    """

    mtu: int = 1500
    loopback_mtu: int = 65536
    loopback_queue: int = 1024
    ttl: int = 64
    arp_entries: int = 256
    arp_ttl: int = 300 * SECOND
    arp_retries: int = 3
    arp_interval: int = SECOND
    arp_queue: int = 32
    arp_announcements: int = 2
    icmp_rate: int = 1000
    icmp_burst: int = 50
    icmp_echo_broadcast: bool = False
    echo_queue: int = 256
