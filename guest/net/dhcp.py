"""The DHCP client for IPv4: a state machine that is handed messages and the time, and hands out actions. Sans-I/O.

    INIT ─→ SELECTING ─offer→ REQUESTING ─ack→ CHECKING ─nobody answers→ BOUND ─T1→ RENEWING ─T2→ REBINDING ─→ INIT
      ↑         │ ↑               │ nak           │ somebody does          ↑ ack ←───┴──────────────┘   │ lease over
      └─────────┘ └───────────────┴─── waits ─────┘                        └── REBOOTING, after the link was away

RFC 2131 §4.4 (figure 5 and the times), RFC 5227 §2.1.1 (checking an address), RFC 2132, RFC 3442.

Promises:
- Whatever arrives, nothing raises; what is not used is counted under `rx_dropped_…` or `rx_ignored_…`.
- The transaction id is 32 bits of the seeded source for each exchange; an answer to another id, or for another MAC
  address, is not ours (hostile servers off the link cannot guess it).
- A lease counts from the moment at which its first request was sent (§4.4.1); its times are exact to the microsecond.
- The address is given up at the end of the lease, never later; but a lease shorter than `min_lease` counts as one of
  that length, so its address is kept for as much longer.

Times are microseconds. What may be granted is in dhcp_lease.py. Sections: `DhcpConfig`, the actions, `DhcpClient`.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from guest.net import dhcp_wire as wire
from guest.net.address import V4_ANY, V4_BROADCAST, format_address
from guest.net.config import SECOND
from guest.net.dhcp_lease import Lease, read_lease
from guest.net.dhcp_wire import DhcpError, Message

PARAMETERS = bytes(
    (
        wire.SUBNET_MASK, wire.CLASSLESS_ROUTES, wire.ROUTER, wire.DNS_SERVERS, wire.HOST_NAME, wire.DOMAIN_NAME,
        wire.INTERFACE_MTU, wire.LEASE_TIME, wire.SERVER_ID, wire.RENEWAL_TIME, wire.REBINDING_TIME,
        wire.DOMAIN_SEARCH,
    )
)  # 121 before 3: RFC 3442


@dataclass(frozen=True, slots=True)
class DhcpConfig:
    """Times and limits of the client.

    Attributes:
        first_wait, last_wait: between the first two tries and at most; each wait is twice the one before (§4.1).
        jitter: added or taken away at random.
        request_tries: requests for an offer before another is looked for. reboot_tries: the same in REBOOTING.
        renew_wait: least time between tries while renewing and rebinding (§4.4.5).
        probes, probe_wait: how often, and how far apart, it is asked whether somebody has the address already.
        decline_wait: after a declined address (§3.1). nak_wait: after a refusal, twice as long after each further one.
        min_lease: a shorter lease counts as one of this length; one of 0 is refused.
        min_mtu: a smaller MTU from the server counts as this.
        servers: DNS servers, routers and search domains that are kept, of each.
    """

    first_wait: int = 4 * SECOND
    last_wait: int = 64 * SECOND
    jitter: int = SECOND
    request_tries: int = 4
    reboot_tries: int = 2
    renew_wait: int = 60 * SECOND
    probes: int = 3
    probe_wait: int = SECOND // 5
    decline_wait: int = 10 * SECOND
    nak_wait: int = SECOND
    min_lease: int = 10 * SECOND
    min_mtu: int = 576
    servers: int = 8


class State(Enum):
    """Where the client is; the names are RFC 2131's, STOPPED and CHECKING (the ARP check) aside."""

    STOPPED = "stopped"
    INIT = "init"
    SELECTING = "selecting"
    REQUESTING = "requesting"
    REBOOTING = "rebooting"
    CHECKING = "checking"
    BOUND = "bound"
    RENEWING = "renewing"
    REBINDING = "rebinding"


HOLDS_ADDRESS = (State.BOUND, State.RENEWING, State.REBINDING)


@dataclass(frozen=True, slots=True)
class Send:
    """Send `data` to port 67 of `to`: a server (from `source`, our address) or 255.255.255.255 (from 0.0.0.0 or it)."""

    data: bytes
    to: int
    source: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the link who has `address`, without claiming it; call `conflict` if somebody has."""

    address: int


@dataclass(frozen=True, slots=True)
class Configure:
    """Use this lease from now on, in place of `before`, which was used until now (None where there was none)."""

    lease: Lease
    before: Lease | None


@dataclass(frozen=True, slots=True)
class Deconfigure:
    """Do not use this lease any more."""

    lease: Lease


Action: TypeAlias = Send | Probe | Configure | Deconfigure


class DhcpClient:
    """The client of one interface.

    Args:
        mac: the interface's address.
        rng: source of transaction ids and jitter.
        config: times and limits.
        hostname: told to the server; "" for nothing.
        log: takes a line for each change of state worth telling.

    Attributes:
        state, lease: where it is, and what it holds (also while REBOOTING).
        counters: messages by name, drops by reason.
    """

    def __init__(
        self,
        *,
        mac: bytes,
        rng: random.Random,
        config: DhcpConfig | None = None,
        hostname: str = "",
        log: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.config = config or DhcpConfig()
        self.state = State.STOPPED
        self.lease: Lease | None = None
        self.counters: Counter[str] = Counter()
        self._mac = mac
        self._rng = rng
        self._hostname = hostname.encode("ascii", "ignore")[:63]
        self._log = log
        self._actions: list[Action] = []
        self._due: int | None = None  # when the state has something to do
        self._xid = 0
        self._began = 0  # when the exchange began, for `secs`
        self._secs = 0
        self._requested = 0  # when the first request of the exchange was sent
        self._tries = 0
        self._naks = 0
        self._offer: Lease | None = None  # chosen, asked for, or being checked
        self._conflicted: int | None = None  # when somebody last claimed our address

    @property
    def bound(self) -> bool:
        """Whether there is an address that may be used."""
        return self.lease is not None

    def take(self) -> list[Action]:
        """What is to be done, in order; asked after every call below."""
        actions, self._actions = self._actions, []
        return actions

    def poll_at(self) -> int | None:
        """When `poll` has something to do, or None."""
        return None if self.state is State.STOPPED else self._due

    # -- what the host wants ---------------------------------------------------------------------------------------

    def start(self, now: int) -> None:
        """Look for a server, for as long as it takes. Harmless when it runs."""
        if self.state is State.STOPPED:
            self._naks = 0
            self._restart(now)

    def stop(self, now: int) -> None:
        """Give up the address, telling its server (§4.4.6), and fall silent."""
        lease = self.lease
        if lease is not None and self.state in HOLDS_ADDRESS:
            self._new_exchange(now)
            options = {wire.SERVER_ID: wire.pack_address(lease.server)}
            self._send(wire.RELEASE, lease.server, lease.address, ciaddr=lease.address, options=options)
        self._lose()
        self.state = State.STOPPED
        self._due = None

    def renew(self, now: int) -> bool:
        """Ask the server for more time now, as if T1 had come (§4.4.5); False where there is nothing to renew."""
        lease = self.lease
        if lease is None or lease.rebind_at is None or self.state not in HOLDS_ADDRESS:
            return False
        self._extend(lease, now)
        return True

    def link_up(self, now: int) -> None:
        """The link was away and is back: confirm the lease, which may be another network's (§3.2), or begin again."""
        if self.state is State.STOPPED:
            return
        lease = self.lease
        if lease is None or (lease.expires is not None and now >= lease.expires):
            self._restart(now)
            return
        self._new_exchange(now)
        self._offer = lease
        self._enter(State.REBOOTING)
        self._request(now)

    def conflict(self, now: int) -> None:
        """Somebody else has the address that is being checked, or claims ours.

        An address in use is given up at the second claim within ten seconds (RFC 5227 §2.4 (b)).
        """
        if self.state is State.CHECKING:
            self._decline(now, self._offer)
        elif self.lease is not None and self.state in HOLDS_ADDRESS:
            last, self._conflicted = self._conflicted, now
            self.counters["conflicts"] += 1
            if last is not None and now - last < 10 * SECOND:
                self._decline(now, self.lease)

    def reject(self, now: int) -> None:
        """The host cannot use the lease that it was just given: decline it, and look for another one later."""
        if self.lease is not None:
            self._decline(now, self.lease)

    # -- time ------------------------------------------------------------------------------------------------------

    def poll(self, now: int) -> None:
        """Do what is due."""
        if self._due is None or now < self._due:
            return
        lease = self.lease
        match self.state:
            case State.INIT:
                self._restart(now)
            case State.SELECTING:
                self._discover(now)
            case State.REQUESTING:
                if self._tries < self.config.request_tries:
                    self._request(now)
                else:
                    self.counters["request_timeouts"] += 1
                    self._restart(now)
            case State.REBOOTING if lease is not None:
                if lease.expires is not None and now >= lease.expires:
                    self._extend(lease, now)
                elif self._tries < self.config.reboot_tries:
                    self._request(now)
                else:  # nobody answers: what is left of the lease may be used, §3.2
                    self._hold(lease, now)
            case State.CHECKING:
                self._check(now)
            case State.BOUND | State.RENEWING | State.REBINDING if lease is not None:
                self._extend(lease, now)

    def _extend(self, lease: Lease, now: int) -> None:
        """T1, T2 or the end of the lease, or the next try between them (§4.4.5)."""
        if lease.rebind_at is None or lease.expires is None:
            raise AssertionError("a lease without end has no timers")
        if now >= lease.expires:
            self._log(f"the lease of {format_address(lease.address)} is over")
            self.counters["expired"] += 1
            self._restart(now)
            return
        if self.state is State.BOUND or (self.state is State.RENEWING and now >= lease.rebind_at):
            self._new_exchange(now)
            self._requested = now
        rebinding = now >= lease.rebind_at
        self._enter(State.REBINDING if rebinding else State.RENEWING)
        until = lease.expires if rebinding else lease.rebind_at
        to = V4_BROADCAST if rebinding else lease.server
        self._secs = _seconds(now - self._began)
        self._send(wire.REQUEST, to, lease.address, ciaddr=lease.address)
        self._due = min(until, now + max((until - now) // 2, self.config.renew_wait))

    # -- messages --------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview, now: int) -> None:
        """A datagram arrived at port 68."""
        self.counters["rx_messages"] += 1
        try:
            message = wire.parse(data)
            self._receive(message, now)
        except DhcpError as error:
            self.counters[f"rx_dropped_{error.reason}"] += 1

    def _receive(self, message: Message, now: int) -> None:
        if message.op != wire.BOOTREPLY:
            raise DhcpError("op")
        if message.chaddr != self._mac:
            raise DhcpError("other_host")
        if message.xid != self._xid or self.state in (State.STOPPED, State.INIT):
            raise DhcpError("xid")
        kind = message.kind
        if kind is None:
            raise DhcpError("type")
        state = self.state
        self.counters[f"rx_{wire.MESSAGE_NAMES[kind].lower()}"] += 1
        if state is State.SELECTING and kind == wire.OFFER:
            self._offer = self._lease(message, now)
            self._log(f"offer of {self._offer}")
            self._enter(State.REQUESTING)
            self._tries = 0
            self._request(now)
        elif state in (State.REQUESTING, State.REBOOTING, State.RENEWING, State.REBINDING) and kind == wire.ACK:
            self._acknowledged(message, now)
        elif state in (State.REQUESTING, State.REBOOTING, State.RENEWING, State.REBINDING) and kind == wire.NAK:
            self._refused(message, now)
        else:
            self.counters["rx_ignored_state"] += 1

    def _acknowledged(self, message: Message, now: int) -> None:
        lease = self._lease(message, self._requested)
        offer = self._offer
        if self.state is State.REQUESTING and offer is not None and lease.server != offer.server:
            raise DhcpError("other_server")
        self._naks = 0
        before = self.lease
        if before is not None and before.address == lease.address:
            self._hold(lease, now)
        else:
            self._lose()
            self._offer = lease
            self._enter(State.CHECKING)
            self._tries = 0
            self._check(now)

    def _refused(self, message: Message, now: int) -> None:
        server = message.address(wire.SERVER_ID)
        if server is None:
            raise DhcpError("no_server")
        chosen = self._offer if self.state is State.REQUESTING else self.lease if self.state is State.RENEWING else None
        if chosen is not None and chosen.server != server:
            raise DhcpError("other_server")
        self._log(f"{format_address(server)} refuses")
        self._lose()
        self._wait(now, min(self.config.nak_wait << min(self._naks, 6), self.config.last_wait))
        self._naks += 1

    def _lease(self, message: Message, start: int) -> Lease:
        """What an offer or acknowledgement grants. Raises DhcpError where it cannot be used."""
        config = self.config
        lease = read_lease(message, start, min_lease=config.min_lease, min_mtu=config.min_mtu, most=config.servers)
        if wire.CLASSLESS_ROUTES in message.options and message.routes() is None:
            self.counters["rx_ignored_routes"] += 1
        return lease

    # -- states ----------------------------------------------------------------------------------------------------

    def _enter(self, state: State) -> None:
        self.state = state

    def _restart(self, now: int) -> None:
        """Without an address: look for a server."""
        self._lose()
        self._offer = None
        self._new_exchange(now)
        self._enter(State.SELECTING)
        self._discover(now)

    def _wait(self, now: int, duration: int) -> None:
        """Without an address: be silent for a while, then begin again."""
        self._offer = None
        self._enter(State.INIT)
        self._due = now + duration

    def _discover(self, now: int) -> None:
        self._secs = _seconds(now - self._began)
        self._send(wire.DISCOVER, V4_BROADCAST, V4_ANY, flags=wire.BROADCAST)
        self._back_off(now)

    def _request(self, now: int) -> None:
        """Ask for the offer, or, after the link was away, for the address that we have."""
        offer = self._offer
        assert offer is not None
        if self._tries == 0:
            self._requested = now
        options = {wire.REQUESTED_ADDRESS: wire.pack_address(offer.address)}
        if self.state is State.REQUESTING:
            options[wire.SERVER_ID] = wire.pack_address(offer.server)
        self._send(wire.REQUEST, V4_BROADCAST, V4_ANY, flags=wire.BROADCAST, options=options)
        self._back_off(now)

    def _check(self, now: int) -> None:
        """The next probe for the address that was granted, or its use."""
        lease = self._offer
        assert lease is not None
        if lease.expires is not None and now >= lease.expires:
            self._restart(now)
        elif self._tries < self.config.probes:
            self._tries += 1
            self._actions.append(Probe(lease.address))
            self._due = now + self.config.probe_wait
        else:
            self._hold(lease, now)

    def _hold(self, lease: Lease, now: int) -> None:
        """Use `lease`."""
        before, self.lease = self.lease, lease
        self._offer = None
        self._enter(State.BOUND)
        self._due = lease.renew_at if lease.renew_at is None or lease.renew_at > now else now
        if before != lease:
            self._actions.append(Configure(lease, before))

    def _lose(self) -> None:
        """Do not use the address any more."""
        lease, self.lease = self.lease, None
        self._conflicted = None
        if lease is not None:
            self._actions.append(Deconfigure(lease))

    def _decline(self, now: int, lease: Lease | None) -> None:
        """Tell the server that somebody else has the address (§4.4.4), and wait before the next try (§3.1)."""
        assert lease is not None
        self._log(f"{format_address(lease.address)} cannot be used; declined")
        self._lose()
        options = {
            wire.REQUESTED_ADDRESS: wire.pack_address(lease.address),
            wire.SERVER_ID: wire.pack_address(lease.server),
        }
        self._secs = 0
        self._send(wire.DECLINE, V4_BROADCAST, V4_ANY, options=options)
        self._wait(now, self.config.decline_wait)

    def _new_exchange(self, now: int) -> None:
        self._xid = self._rng.getrandbits(32)
        self._began = now
        self._secs = 0
        self._tries = 0

    def _back_off(self, now: int) -> None:
        """When to try again: 4, 8, 16, 32, 64, 64, … seconds, each plus or minus one (§4.1)."""
        config = self.config
        wait = min(config.first_wait << min(self._tries, 16), config.last_wait)
        self._tries += 1
        due = now + wait + self._rng.randint(-config.jitter, config.jitter)
        end = None if self.lease is None else self.lease.expires
        self._due = due if end is None else min(due, end)

    def _send(
        self,
        kind: int,
        to: int,
        source: int,
        *,
        ciaddr: int = V4_ANY,
        flags: int = 0,
        options: dict[int, bytes] | None = None,
    ) -> None:
        """One message (§4.4.1, table 5)."""
        table = {wire.MESSAGE_TYPE: bytes((kind,)), wire.CLIENT_ID: bytes((wire.ETHERNET,)) + self._mac}
        table |= options or {}
        if kind in (wire.DISCOVER, wire.REQUEST):
            table[wire.MAX_MESSAGE] = struct.pack("!H", 1500)
            if self._hostname:
                table[wire.HOST_NAME] = self._hostname
            table[wire.PARAMETERS] = PARAMETERS
        message = Message(wire.BOOTREQUEST, self._xid, self._mac, self._secs, flags, ciaddr, options=table)
        self.counters[f"tx_{wire.MESSAGE_NAMES[kind].lower()}"] += 1
        self._actions.append(Send(wire.build(message), to, source))


def _seconds(micros: int) -> int:
    """A duration for the field `secs`."""
    return min(micros // SECOND, 0xFFFF)
