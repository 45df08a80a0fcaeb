"""What can be set in the stack, with its defaults, in one place. Times are microseconds.

Whole features are switched on and off here too. What is off is not loaded (row D17):

    switch                        default   modules of guest.net that come with it
    NetConfig.forwarding          off       forward
    NetConfig.ipv6                off       slaac; also loaded when a redirect is to be remembered
    NetConfig.membership          on        membership, igmp, mld
    Stack.guard                   None      guard, guard_rule, guard_answer
    DHCP on an interface          off       dhcp, dhcp_wire, dhcp_service: `-dhcp`, or `if_up(dhcp=True)`
    servers                       none      dhcp_server, dhcp_pool, dns_server, radvd: for who makes one

Forwarding and the guard may also be switched while the stack runs: `Stack.forwarding`, `Stack.filtering`. In a guest
the words `net.forwarding`, `net.membership` and `net.guard` on the command line, and `-ip6`, do it (guest/config.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from guest.net.tcp.config import TcpConfig

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
        arp_queue, arp_queue_bytes: packets that wait for one neighbour, and their bytes, at most. The fragments of the
            largest packet fit where the MTU is 280 or more.
        arp_announcements: how often a new address is announced, two seconds apart (RFC 5227 §2.3).
        icmp_rate: errors sent a second, at most. icmp_burst: how many may go at once.
        icmp_echo_broadcast: answer pings to broadcast and multicast addresses. icmpv6_echo_multicast: those to groups.
        forwarding: pass on packets for others.
        ipv6: make link-local addresses and listen to routers; without it IPv6 works with the addresses that are given.
        dad_transmits: solicitations before an IPv6 address is used, nd_interval apart (RFC 4862 §5.1); 0 for no check.
        nd_interval: also what follows the last of them. nd_delay: random wait before the first, at most.
        rs_transmits, rs_interval: how often routers are solicited (RFC 4861 §10).
        nd_routers, nd_prefixes, nd_servers, nd_redirects: what routers may make an interface remember, of each at most.
        nd_redirect_ttl: how long a redirect is followed.
        membership: tell routers which groups are received here; without it IGMP and MLD are not spoken, and groups are
            received where no switch or router waits to be asked.
        group_reports: how often a change of membership is reported (RFC 3376 §8.1), at random times up to
            group_interval apart.
        reassembly_bytes: memory that fragments may hold until their packets are whole. reassembly_sets: packets in the
            making, at most. reassembly_time: after the first fragment, how long the others are waited for.
        pmtu_entries: destinations whose path MTU is remembered. pmtu_time: for how long.
        echo_queue: replies that may wait in one echo port.
        rcvbuf, sndbuf: bytes of memory that a socket may hold, as getsockopt tells them.
        first_port, last_port: from which ports are picked for those who do not care (RFC 6056 §3.2).
        tcp: TCP's own settings.
    """

    mtu: int = 1500
    loopback_mtu: int = 65536
    loopback_queue: int = 1024
    ttl: int = 64
    arp_entries: int = 256
    arp_ttl: int = 300 * SECOND
    arp_retries: int = 3
    arp_interval: int = SECOND
    arp_queue: int = 256
    arp_queue_bytes: int = 128 << 10
    arp_announcements: int = 2
    icmp_rate: int = 1000
    icmp_burst: int = 50
    icmp_echo_broadcast: bool = False
    icmpv6_echo_multicast: bool = True
    forwarding: bool = False
    ipv6: bool = False
    dad_transmits: int = 1
    nd_interval: int = SECOND
    nd_delay: int = SECOND // 2
    rs_transmits: int = 3
    rs_interval: int = 4 * SECOND
    nd_routers: int = 8
    nd_prefixes: int = 16
    nd_servers: int = 8
    nd_redirects: int = 16
    nd_redirect_ttl: int = 600 * SECOND
    membership: bool = True
    group_reports: int = 2
    group_interval: int = SECOND
    echo_queue: int = 256
    reassembly_bytes: int = 4 << 20
    reassembly_sets: int = 256
    reassembly_time: int = 60 * SECOND
    pmtu_entries: int = 1024
    pmtu_time: int = 600 * SECOND
    rcvbuf: int = 212_992
    sndbuf: int = 212_992
    first_port: int = 32768
    last_port: int = 60999
    tcp: TcpConfig = field(default_factory=TcpConfig)
