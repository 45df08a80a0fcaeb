"""The DHCP client at work on an interface: UDP port 68, the ARP check, address, routes and MTU.

It runs in callbacks: datagrams come from the endpoint, time from the kernel's timers, conflicts and link changes from
the stack's events. What concerns the host as a whole (name servers, host name) is told to `on_lease`.

    timers, datagrams, events ─→ DhcpClient ─→ actions ─→ endpoint │ ARP probe │ interface, routes

The interface has to be up. Messages leave it as broadcasts from 0.0.0.0 while it has no address, and ask for answers to
255.255.255.255 (RFC 2131 §4.1), so that they come through an IP layer that does not know the address yet.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from guest.net import arp
from guest.net.address import V4_ANY, V4_BITS, V4_PREFIX, AddressError, format_address, format_mac
from guest.net.dhcp import Configure, Deconfigure, DhcpClient, DhcpConfig, Probe, Send, State
from guest.net.dhcp_lease import Lease
from guest.net.dhcp_wire import CLIENT_PORT, SERVER_PORT
from guest.net.endpoint import MessageEndpoint
from guest.net.ethernet import ETH_P_ARP
from guest.net.interface import Interface
from guest.net.pbuf import PacketBuffer
from guest.net.stack import Stack
from guest.net.timer import Cancellable, Timers


class DhcpService:
    """DHCP on `interface`.

    Args:
        stack: with UDP.
        interface: not the loopback.
        rng: source of transaction ids and jitter.
        timers: the kernel's.
        config: times and limits.
        hostname: told to the server.
        log: writes one line to the log.
        on_lease: called with each new lease once the interface has it, and with None when it has lost it.

    Attributes:
        client: the state machine; its `counters` are this service's.
    """

    def __init__(
        self,
        stack: Stack,
        interface: Interface,
        *,
        rng: random.Random,
        timers: Timers,
        config: DhcpConfig | None = None,
        hostname: str = "",
        log: Callable[[str], None] = lambda _line: None,
        on_lease: Callable[[Lease | None], None] = lambda _lease: None,
    ) -> None:
        if interface.mac is None:
            raise ValueError(f"{interface.name}: DHCP needs an interface with a MAC address")
        self.interface = interface
        self._stack = stack
        self._now = stack.now
        self._timers = timers
        self._write = log
        self._on_lease = on_lease
        self.client = DhcpClient(mac=interface.mac, rng=rng, config=config, hostname=hostname, log=self._log)
        self._mtu = interface.mtu  # before any server spoke
        self._routes: dict[tuple[int, int], int | None] = {}  # network and prefix length → router
        self._endpoint: MessageEndpoint | None = None
        self._timer: tuple[int, Cancellable] | None = None
        self._probing: int | None = None
        self._beneath: Callable[[Sequence[PacketBuffer]], None] | None = None  # the ARP that we listen in front of
        self._busy = False

    def _log(self, line: str) -> None:
        self._write(f"dhcp: {self.interface.name}: {line}")

    def __repr__(self) -> str:
        return f"<DhcpService {self.interface.name} {self.client.state.value}>"

    @property
    def counters(self) -> Counter[str]:
        """Messages by name, drops by reason."""
        return self.client.counters

    @property
    def state(self) -> State:
        """Where the client is."""
        return self.client.state

    @property
    def lease(self) -> Lease | None:
        """What it holds."""
        return self.client.lease

    @property
    def bound(self) -> bool:
        """Whether the interface has an address of this service's."""
        return self.client.bound

    def start(self) -> int:
        """Begin; 0 or an errno (port 68 is taken). Harmless when it runs."""
        if self._endpoint is not None:
            return 0
        endpoint = self._stack.udp.open(4)
        endpoint.options.broadcast = True
        endpoint.options.bind_device = self.interface
        error = endpoint.bind(V4_ANY, CLIENT_PORT)
        if error:
            endpoint.close()
            return error
        self._endpoint = endpoint
        endpoint.on_ready = self._readable
        self._stack.subscribe(self._event)
        self.client.start(self._now())
        self._settle()
        return 0

    def renew(self) -> bool:
        """Ask the server for more time now; False where there is no lease, or one without end."""
        asked = self.client.renew(self._now())
        self._settle()
        return asked

    def release(self) -> None:
        """Give the address back to its server, and end."""
        self.client.stop(self._now())
        self._settle()
        self.close()

    def close(self) -> None:
        """End without a word: the server will find out at the end of the lease. Harmless when ended."""
        self._stop_probing()
        if self._timer is not None:
            self._timer[1].cancel()
            self._timer = None
        if self._endpoint is not None:
            self._stack.unsubscribe(self._event)
            self._endpoint.on_ready = None
            self._endpoint.close()
            self._endpoint = None

    # -- what happens --------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        endpoint = self._endpoint
        while endpoint is not None and (datagram := endpoint.receive()) is not None:
            self.client.receive(datagram.payload.tobytes(), self._now())
            self._settle()
            endpoint = self._endpoint
        if endpoint is not None:
            endpoint.take_error()

    def _due(self) -> None:
        self._timer = None
        self.client.poll(self._now())
        self._settle()

    def _event(self, event: str, interface: Interface, detail: object) -> None:
        if interface is not self.interface:
            return
        lease = self.client.lease
        if event == "conflict" and isinstance(detail, tuple) and lease is not None and detail[0] == lease.address:
            self.client.conflict(self._now())
        elif event == "link" and detail == "removed":
            self.close()
        elif event == "link" and detail in ("running", "up"):
            self.client.link_up(self._now())
        self._settle()

    # -- what is done about it -----------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Do what the client asks for, and set the timer to its next time."""
        if self._busy:
            return  # an action has caused an event; the loop below is still running
        self._busy = True
        try:
            while actions := self.client.take():
                for action in actions:
                    match action:
                        case Send():
                            self._send(action)
                        case Probe():
                            self._probe(action.address)
                        case Configure():
                            self._configure(action.lease, action.before)
                        case Deconfigure():
                            self._deconfigure(action.lease)
        finally:
            self._busy = False
        if self.client.state is not State.CHECKING:
            self._stop_probing()
        when = self.client.poll_at()
        if self._timer is not None and self._timer[0] != when:
            self._timer[1].cancel()
            self._timer = None
        if self._timer is None and when is not None:
            self._timer = (when, self._timers.at(when, self._due))

    def _send(self, action: Send) -> None:
        if self._endpoint is None:
            return
        broadcast = self.interface if action.to & V4_BITS == V4_BITS else None
        error = self._endpoint.send(
            [action.data], (action.to, SERVER_PORT), src=action.source, interface=broadcast
        )
        if error:
            self.counters["tx_failed"] += 1  # the client tries again

    def _configure(self, lease: Lease, before: Lease | None) -> None:
        interface = self.interface
        self._log(f"lease of {lease}")
        self._set_mtu(lease.mtu)
        if before is None or (before.address, before.length) != (lease.address, lease.length):
            if before is not None:
                interface.remove_address(before.address)
            try:
                interface.add_address(lease.address, lease.length)
            except AddressError as error:
                self._log(str(error))
                self.client.reject(self._now())
                return
        self._set_routes(lease)
        self._on_lease(lease)

    def _deconfigure(self, lease: Lease) -> None:
        self._log(f"{format_address(lease.address)} is given up")
        self._set_routes(None)
        self.interface.remove_address(lease.address)
        self._set_mtu(None)
        self._on_lease(None)

    def _set_mtu(self, wanted: int | None) -> None:
        """The server's MTU where it is smaller than the interface's own."""
        mtu = self._mtu if wanted is None else min(wanted, self._mtu)
        if mtu != self.interface.mtu:
            self.interface.set_mtu(mtu)

    def _set_routes(self, lease: Lease | None) -> None:
        """Have the routes of `lease` and no others of ours."""
        stack = self._stack
        wanted: dict[tuple[int, int], int | None] = {}
        if lease is not None:
            for row in lease.routes:
                wanted.setdefault((row.network, row.length), None if row.router == V4_ANY else row.router)
            if not lease.routes and lease.routers:
                wanted[(V4_ANY, 0)] = lease.routers[0]
        for key, router in list(self._routes.items()):
            if key not in wanted or wanted[key] != router:
                stack.remove_route(*key, self.interface)
                del self._routes[key]
        for key, router in wanted.items():
            if key in self._routes:
                continue
            try:
                stack.add_route(*key, router, self.interface)
            except AddressError as error:
                self._log(str(error))
                self.counters["routes_refused"] += 1
            else:
                self._routes[key] = router

    # -- the ARP check, RFC 5227 §2.1.1 --------------------------------------------------------------------------

    def _probe(self, address: int) -> None:
        """Ask who has `address`, and listen for whoever has, or wants it too."""
        if self.interface.arp is None:
            return
        if self._beneath is None:
            handlers = self.interface.link.handlers
            self._beneath = handlers[ETH_P_ARP]
            handlers[ETH_P_ARP] = self._arp
        self._probing = address
        self.counters["tx_probes"] += 1
        self.interface.arp.request(address)  # from 0.0.0.0: the interface has no address

    def _stop_probing(self) -> None:
        self._probing = None
        if self._beneath is not None:
            self.interface.link.handlers[ETH_P_ARP] = self._beneath
            self._beneath = None

    def _arp(self, packets: Sequence[PacketBuffer]) -> None:
        """ARP packets on their way to the interface's ARP."""
        address = self._probing
        beneath = self._beneath
        claimant: bytes | None = None
        for packet in packets:
            if not packet.pullup(arp.PACKET_SIZE):
                continue
            fields = arp.PACKET.unpack_from(packet.area, packet.data)
            operation, mac, sender, target = fields[4], fields[5], V4_PREFIX | fields[6], V4_PREFIX | fields[8]
            probe = operation == arp.REQUEST and sender == V4_ANY and target == address
            if mac != self.interface.mac and (sender == address or probe):
                claimant = mac
        if beneath is not None:
            beneath(packets)
        if claimant is not None and address is not None:
            self._log(f"{format_address(address)} is in use by {format_mac(claimant)}")
            self.client.conflict(self._now())
            self._settle()
