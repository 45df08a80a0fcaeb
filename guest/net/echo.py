"""Echo of both families: identifiers, who has which, and the port that ping uses.

RFC 792, RFC 4443 §4. An identifier belongs to one owner for both families; replies and errors are handed to it.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from guest.net.address import format_address, is_v4, to_address
from guest.net.family import IpHeader
from guest.net.icmp_error import IcmpError
from guest.net.ip import IpInterface
from guest.net.pbuf import PacketBuffer

HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
HEADER_SIZE = 8
assert HEADER.size == HEADER_SIZE


class EchoReply(NamedTuple):
    """What came back for an echo request.

    Attributes:
        src: who answered, as text.
        ident, seq: of the request.
        ttl: hops that the reply had left (0 for an error).
        payload: of the reply (empty for an error).
        when: the time it arrived.
        error: None for a reply, else what went wrong, in ping's words; then `src` is who says so.
    """

    src: str
    ident: int
    seq: int
    ttl: int
    payload: bytes
    when: int
    error: str | None = None


class EchoOwner(Protocol):
    """Who sends echo requests under an identifier."""

    def echo_reply(self, packet: PacketBuffer, header: IpHeader) -> bool:
        """A reply with the identifier arrived, its ICMP header linear and not pulled; False when there is no room."""

    def echo_failed(self, error: IcmpError) -> bool:
        """An error about a request with the identifier arrived; whether it is believed."""


class EchoSender(Protocol):
    """One family's way to send a request."""

    def send_echo(
        self,
        dst: int,
        ident: int,
        seq: int,
        payload: bytes,
        ttl: int | None = None,
        interface: IpInterface | None = None,
    ) -> int:
        """Send an echo request; 0 or an errno."""


class EchoPorts:
    """The identifiers of one stack.

    Args:
        now: the time.
        rng: source of identifiers.
        limit: replies that may wait in one port.

    Attributes:
        owners: identifier → who has it.
        senders: family, 4 or 6 → what sends.
    """

    def __init__(self, *, now: Callable[[], int], rng: random.Random, limit: int) -> None:
        self.now = now
        self.limit = limit
        self.owners: dict[int, EchoOwner] = {}
        self.senders: dict[int, EchoSender] = {}
        self._rng = rng

    def register(self, owner: EchoOwner, ident: int | None = None) -> int:
        """Give `owner` an identifier, the one it wants or any; which it has.

        Raises OSError: EADDRINUSE, or EMFILE when all 65,536 are taken.
        """
        if ident is None:
            if len(self.owners) > 0xFFFF:
                raise OSError(errno.EMFILE, "no echo identifier is free")
            ident = self._rng.getrandbits(16)
            while ident in self.owners:
                ident = ident + 1 & 0xFFFF
        elif ident in self.owners:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self.owners[ident] = owner
        return ident

    def unregister(self, owner: EchoOwner, ident: int) -> None:
        """Take an identifier back."""
        if self.owners.get(ident) is owner:
            del self.owners[ident]

    def open(self, family: int | None = None) -> EchoPort:
        """A port under an identifier that nobody else has; for one family, or for both."""
        return EchoPort(self, family)


class EchoPort:
    """Sends echo requests under an identifier of its own and collects what comes back. Made by `EchoPorts.open`.

    Attributes:
        ident: the identifier.
        family: 4 or 6, or None for both.
        on_ready: called when something can be received.
    """

    def __init__(self, ports: EchoPorts, family: int | None) -> None:
        self.family = family
        self.on_ready: Callable[[], None] | None = None
        self._ports = ports
        self._received: deque[EchoReply] = deque()
        self._open = True
        self.ident = ports.register(self)

    def send(
        self, dst: int | str, seq: int, payload: bytes, ttl: int | None = None, interface: IpInterface | None = None
    ) -> None:
        """Send a request.

        Args:
            dst: text or 128-bit number.
            seq: its lower 16 bits count.
            payload: goes out from where it is; it is not copied.
            ttl: hops; the stack's usual number if not given.
            interface: the way out; the routing table decides if not given.

        Raises:
            AddressError: `dst` is no address.
            OSError: with the errno of `IpEngine.output`; EBADF when the port is closed; EAFNOSUPPORT when it is for the
                other family.
        """
        failed = errno.EBADF
        if self._open:
            address = to_address(dst)
            family = 4 if is_v4(address) else 6
            sender = self._ports.senders.get(family) if self.family in (None, family) else None
            failed = errno.EAFNOSUPPORT
            if sender is not None:
                failed = sender.send_echo(address, self.ident, seq & 0xFFFF, payload, ttl, interface)
        if failed:
            raise OSError(failed, os.strerror(failed))

    def receive(self) -> EchoReply | None:
        """The oldest reply or error that waits, or None."""
        return self._received.popleft() if self._received else None

    def close(self) -> None:
        """Give the identifier back."""
        self._open = False
        self._ports.unregister(self, self.ident)

    def echo_reply(self, packet: PacketBuffer, header: IpHeader) -> bool:
        """A reply arrived."""
        _, _, _, ident, seq = HEADER.unpack_from(packet.area, packet.data)
        packet.pull(HEADER_SIZE)
        src = format_address(header.src)
        return self._deliver(EchoReply(src, ident, seq, header.ttl, packet.tobytes(), self._ports.now()))

    def echo_failed(self, error: IcmpError) -> bool:
        """An error arrived."""
        _, _, _, ident, seq = HEADER.unpack_from(error.quoted)
        offender = format_address(error.offender)
        return self._deliver(EchoReply(offender, ident, seq, 0, b"", self._ports.now(), error.text))

    def _deliver(self, reply: EchoReply) -> bool:
        if len(self._received) >= self._ports.limit:
            return False
        self._received.append(reply)
        if self.on_ready is not None:
            self.on_ready()
        return True
