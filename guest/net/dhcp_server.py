"""A DHCP server for IPv4 on one interface of a stack. Sans-I/O; RFC 2131 §4.3, RFC 2132, RFC 6842.

    DISCOVER → OFFER    REQUEST → ACK or NAK    INFORM → ACK    RELEASE, DECLINE → nothing

It works in the calls of its UDP end, and has no timers: an offer or a lease that is over is seen when somebody wants
the address.

Promises:
- Whatever arrives, nothing raises; what is not answered is counted under `rx_dropped_…` or `rx_ignored_…`.
- A client is known by its client identifier, or else by its MAC address (§4.2), and has one address (dhcp_pool.py).
- An address that a client declined is given to nobody for `quarantine`. When none is left, `exhausted` counts.

What comes through a relay is dropped: the server is for the link that it is on. There, it asks nobody before it offers
an address; the client does (RFC 5227).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from guest.net import dhcp_wire as wire
from guest.net.address import (
    MAC_ZERO,
    V4_ANY,
    V4_BITS,
    V4_BROADCAST,
    Prefix,
    format_address,
    format_mac,
    is_v4,
    to_address,
)
from guest.net.config import SECOND
from guest.net.dhcp_lease import INFINITE
from guest.net.dhcp_pool import AddressPool, Binding
from guest.net.dhcp_wire import DhcpError, Message
from guest.net.endpoint import Datagram
from guest.net.interface import Interface
from guest.net.stack import Stack
from guest.net.udp import UdpEndpoint

DAY = 86_400 * SECOND


@dataclass(frozen=True, slots=True)
class DhcpServerConfig:
    """Times of the server.

    Attributes:
        offer_time: how long an offered address waits for its client.
        min_lease: nobody gets a shorter lease, whatever it asks for, unless the server's own is shorter.
        quarantine: how long a declined address is given to nobody.
    """

    offer_time: int = 60 * SECOND
    min_lease: int = 60 * SECOND
    quarantine: int = 3600 * SECOND


class DhcpServer:
    """DHCP on `interface`, which has an IPv4 address: the first one is the server's.

    Args:
        stack: with UDP.
        first, last: the addresses to give away, as text or number, in the interface's network. The server's own and
            those of `gateway` and `dns` are left out.
        gateway: the default router; None for a network that leads nowhere.
        dns: name servers.
        lease: how long an address is given away for; microseconds, None for ever.
        mtu: bytes of the largest IP packet, where clients are to be told.
        domain: the clients' domain, "" for none.
        extra: further options for every client, by number, as they stand in a message.
        authoritative: there is no other server here. Then a client that is not known but wants to keep its address may
            have it, or hears NAK. Otherwise it hears nothing (§4.3.2).
        config: further times.
        log: takes a line for each lease.

    Attributes:
        address: the server's.
        pool: who has which address.
        counters: messages by name, drops by reason, `exhausted`.

    Raises:
        ValueError: the interface cannot do DHCP, or the addresses are not in its network.
        AddressError: a text is no address.
    """

    def __init__(
        self,
        stack: Stack,
        interface: Interface,
        *,
        first: str | int,
        last: str | int,
        gateway: str | int | None = None,
        dns: Sequence[str | int] = (),
        lease: int | None = DAY,
        mtu: int | None = None,
        domain: str = "",
        extra: Mapping[int, bytes] | None = None,
        authoritative: bool = True,
        config: DhcpServerConfig | None = None,
        log: Callable[[str], None] = lambda _line: None,
    ) -> None:
        own = next((prefix for prefix in interface.addresses if is_v4(prefix.address)), None)
        if own is None or interface.neighbours is None:
            raise ValueError(f"{interface.name}: a DHCP server needs a MAC and an IPv4 address")
        low, high = to_address(first), to_address(last)
        if not (own.contains(low) and own.contains(high)) or {low, high} & {own.network, own.broadcast}:
            raise ValueError(f"{format_address(low)} to {format_address(high)} are not hosts of {own}")
        self.interface = interface
        self.address = own.address
        self.counters: Counter[str] = Counter()
        self.config = config or DhcpServerConfig()
        self._stack = stack
        self._network: Prefix = own
        self._lease = lease
        self._authoritative = authoritative
        self._log = log
        self._end: UdpEndpoint | None = None
        router = None if gateway is None else to_address(gateway)
        servers = [to_address(server) for server in dns]
        self.pool = AddressPool(low, high, {own.address, router or own.address, *servers})
        mask = V4_BITS << 128 - own.length & V4_BITS
        self._options: dict[int, bytes] = {wire.SUBNET_MASK: mask.to_bytes(4, "big")}  # before the router (RFC 2132)
        if router is not None:
            self._options[wire.ROUTER] = wire.pack_address(router)
        if servers:
            self._options[wire.DNS_SERVERS] = b"".join(map(wire.pack_address, servers))
        if domain:
            self._options[wire.DOMAIN_NAME] = domain.encode("ascii")
        if mtu is not None:
            self._options[wire.INTERFACE_MTU] = mtu.to_bytes(2, "big")
        self._options |= extra or {}
        self._handlers: dict[int, Callable[[Message, bytes], str]] = {
            wire.DISCOVER: self._discover,
            wire.REQUEST: self._request,
            wire.DECLINE: self._decline,
            wire.RELEASE: self._release,
            wire.INFORM: self._inform,
        }

    def start(self) -> int:
        """Listen on port 67; 0 or an errno (the port is taken). Harmless when it does."""
        if self._end is not None:
            return 0
        end = self._stack.udp.open(4)
        end.options.broadcast = True
        end.options.bind_device = self.interface
        failed = end.bind(V4_ANY, wire.SERVER_PORT)
        if failed:
            end.close()
            return failed
        end.on_ready = self._readable
        self._end = end
        return 0

    def close(self) -> None:
        """Stop listening; who has which address is kept. Harmless when it does not listen."""
        end, self._end = self._end, None
        if end is not None:
            end.on_ready = None
            end.close()

    def leases(self) -> list[Binding]:
        """The leases that run now, by address."""
        return [binding for binding in self.pool.active(self._stack.now()) if binding.confirmed]

    # -- messages ------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        end = self._end
        while end is not None and (datagram := end.receive()) is not None:
            self.counters[self._receive(datagram)] += 1
            end = self._end
        if end is not None:
            end.take_error()

    def _receive(self, datagram: Datagram) -> str:
        """Answer a message; the counter that it belongs under."""
        try:
            message = wire.parse(datagram.payload.tobytes())
        except DhcpError as error:
            return f"rx_dropped_{error.reason}"
        mac = message.chaddr
        if message.op != wire.BOOTREQUEST:
            return "rx_dropped_op"
        if mac[0] & 1 or mac == MAC_ZERO:
            return "rx_dropped_hardware"
        if message.giaddr != V4_ANY:
            return "rx_dropped_relayed"
        handler = self._handlers.get(message.kind or 0)
        if handler is None:
            return "rx_dropped_kind"
        if wire.SERVER_ID in message.options and message.address(wire.SERVER_ID) is None:
            return "rx_dropped_server_id"
        client = message.options.get(wire.CLIENT_ID, bytes((wire.ETHERNET,)) + mac)
        if not 2 <= len(client) <= wire.MAX_OPTION:
            return "rx_dropped_client_id"
        return handler(message, client)

    def _discover(self, message: Message, client: bytes) -> str:
        binding = self._take(message, client, message.address(wire.REQUESTED_ADDRESS))
        if binding is not None:
            self._grant(wire.OFFER, message, binding)
        return "rx_discover"

    def _request(self, message: Message, client: bytes) -> str:
        server = message.address(wire.SERVER_ID)
        known = self.pool.of(client)
        now = self._stack.now()
        if server is not None and server != self.address:  # it has taken another server's offer
            if known is not None and not known.confirmed:
                self.pool.release(known, now)
            return "rx_ignored_other_server"
        wanted = message.ciaddr if message.ciaddr != V4_ANY else message.address(wire.REQUESTED_ADDRESS)
        if wanted is None:
            return "rx_dropped_no_address"
        selecting = server is not None
        if known is None and not selecting and not self._authoritative and self._network.contains(wanted):
            return "rx_ignored_unknown_client"  # another server may know it
        binding = known
        if known is None or (known.address != wanted and not known.active(now)):
            binding = self._take(message, client, wanted) if self.pool.is_free(wanted, now) else None
        if binding is None or binding.address != wanted:
            self._refuse(message)
            return "rx_request"
        seconds = self._seconds(message)
        news = not binding.confirmed or not binding.active(now)
        binding.mac = message.chaddr
        self.pool.confirm(binding, None if seconds is None else now + seconds * SECOND)
        if news:
            self._log(f"dhcp: {format_address(wanted)} is {format_mac(message.chaddr)}'s")
        self._grant(wire.ACK, message, binding)
        return "rx_request"

    def _decline(self, message: Message, client: bytes) -> str:
        binding = self.pool.of(client)
        if message.address(wire.SERVER_ID) != self.address:
            return "rx_ignored_other_server"
        if binding is None or binding.address != message.address(wire.REQUESTED_ADDRESS):
            return "rx_ignored_not_its_address"
        self.pool.quarantine(binding, self._stack.now() + self.config.quarantine)
        self._log(f"dhcp: somebody else has {format_address(binding.address)}, says {format_mac(message.chaddr)}")
        return "rx_decline"

    def _release(self, message: Message, client: bytes) -> str:
        binding = self.pool.of(client)
        if message.address(wire.SERVER_ID) != self.address:
            return "rx_ignored_other_server"
        if binding is None or binding.address != message.ciaddr:
            return "rx_ignored_not_its_address"
        self.pool.release(binding, self._stack.now())
        return "rx_release"

    def _inform(self, message: Message, _client: bytes) -> str:
        """A client that has its address from elsewhere wants to know the rest (§4.3.5): no address, no lease time."""
        network = self._network
        if not network.contains(message.ciaddr) or message.ciaddr in (self.address, network.network, network.broadcast):
            return "rx_dropped_address"
        self._send(wire.ACK, message, message.ciaddr, V4_ANY, self._options)
        return "rx_inform"

    # -- answers -------------------------------------------------------------------------------------------------

    def _take(self, message: Message, client: bytes, wanted: int | None) -> Binding | None:
        now = self._stack.now()
        binding = self.pool.take(client, message.chaddr, wanted, now, now + self.config.offer_time)
        if binding is None:
            self.counters["exhausted"] += 1
        return binding

    def _seconds(self, message: Message) -> int | None:
        """How long the client may have its address: as long as it asks, within bounds; None for ever."""
        asked = message.number(wire.LEASE_TIME, 4)
        own = None if self._lease is None else self._lease // SECOND
        if asked is None or asked == INFINITE:
            return own
        least = self.config.min_lease // SECOND
        return max(asked, least) if own is None else min(max(asked, least), own)

    def _grant(self, kind: int, message: Message, binding: Binding) -> None:
        """OFFER or ACK with all that belongs to the address."""
        seconds = self._seconds(message)
        options = {wire.LEASE_TIME: (INFINITE if seconds is None else seconds).to_bytes(4, "big")}
        if seconds is not None:
            options[wire.RENEWAL_TIME] = (seconds // 2).to_bytes(4, "big")
            options[wire.REBINDING_TIME] = (seconds * 7 // 8).to_bytes(4, "big")
        address = to = binding.address
        if message.ciaddr == V4_ANY and message.flags & wire.BROADCAST:
            to = V4_BROADCAST
        elif self.interface.neighbours is not None:  # it may not answer ARP for that address yet (§4.1)
            self.interface.neighbours.learn(address, message.chaddr, create=True)
        self._send(kind, message, to, address, options | self._options)

    def _refuse(self, message: Message) -> None:
        self._send(wire.NAK, message, V4_BROADCAST, V4_ANY, {})

    def _send(self, kind: int, message: Message, to: int, yiaddr: int, options: dict[int, bytes]) -> None:
        head = {wire.MESSAGE_TYPE: bytes((kind,)), wire.SERVER_ID: wire.pack_address(self.address)}
        if wire.CLIENT_ID in message.options:  # RFC 6842
            options = options | {wire.CLIENT_ID: message.options[wire.CLIENT_ID]}
        reply = Message(
            wire.BOOTREPLY, message.xid, message.chaddr, flags=message.flags,
            ciaddr=message.ciaddr if kind == wire.ACK else V4_ANY, yiaddr=yiaddr, options=head | options,
        )  # fmt: skip
        if self._end is None:
            return
        failed = self._end.send(
            [wire.build(reply)], (to, wire.CLIENT_PORT), src=self.address, interface=self.interface
        )
        self.counters["tx_failed" if failed else f"tx_{wire.MESSAGE_NAMES[kind].lower()}"] += 1
