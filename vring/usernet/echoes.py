"""Pings through the user wire: a ping socket of the host's for each identifier of the guest's and each destination.

Such sockets need no right where the host lets the user's group have them (`sysctl net.ipv4.ping_group_range`, icmp(7)).
Where it does not, one line says so, and the guest gets no answers.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from guest.net.address import is_v4
from guest.net.echo import HEADER, HEADER_SIZE
from guest.net.family import IpHeader
from guest.net.icmp_base import IcmpLayer
from guest.net.interface import Interface
from guest.net.pbuf import PacketBuffer
from guest.net.stack import Stack
from hw.loop import Loop
from vring.usernet import host
from vring.usernet.flows import BATCH, Flow, FlowTable, closer

FLOWS = 64
IDLE = 30_000_000  # microseconds
LARGEST = 65535
HOPS = 64  # of replies; a ping socket does not say how many theirs had left
NO_RIGHT = (
    "pings go no further than the gateway, for this host lets its users have no ping sockets; as root: "
    "sysctl -w net.ipv4.ping_group_range='0 2147483647'"
)

Asked: TypeAlias = tuple[int, int, int]  # the guest's address and identifier, the destination


class Echoes:
    """Pings of one user wire.

    Args:
        loop, stack, interface, outside, counters, complain: as of `Streams`; counts `icmp_…`.
        idle: microseconds that an identifier may be silent.
        open_socket: gives the host's ping socket for an address; raises OSError.
    """

    def __init__(
        self,
        loop: Loop,
        stack: Stack,
        interface: Interface,
        *,
        outside: Callable[[int, int], tuple[int, int] | None],
        counters: Counter[str],
        complain: Callable[[str], None],
        idle: int = IDLE,
        open_socket: Callable[[int], socket.socket] | None = None,
    ) -> None:
        self._loop = loop
        self._stack = stack
        self._interface = interface
        self._outside = outside
        self.counters = counters
        self._complain = complain
        self._open_socket = open_socket or _ping_socket
        self._scratch = memoryview(bytearray(LARGEST))
        self.flows: FlowTable[Asked, socket.socket] = FlowTable(
            loop, "icmp", most=FLOWS, idle=idle, counters=counters, close=closer(loop)
        )
        stack.icmp.elsewhere = stack.icmpv6.elsewhere = self._request

    def __len__(self) -> int:
        return len(self.flows)

    def _request(self, packet: PacketBuffer, header: IpHeader, ident: int, seq: int) -> str:
        """The guest pings somebody outside; the packet stands at its ICMP header. The counter that it belongs under."""
        if header.ttl <= 1:
            self._error(packet, header, "ttl")
            return "rx_diverted"
        key = (header.src, ident, header.dst)
        flow = self.flows.find(key)
        try:
            if flow is None:
                target = self._outside(header.dst, 0)
                if target is None:
                    self._error(packet, header, "admin")
                    return "rx_diverted"
                sock = self._open_socket(target[0])
                try:
                    sock.connect(host.sockaddr(*target))
                except OSError:
                    sock.close()
                    raise
                flow = self.flows.add(key, sock)
                self._loop.set_reader(sock.fileno(), partial(self._answer, flow))
            flow.about = (packet, header)
            kind = packet.area[packet.data]
            # The kernel puts its own identifier and checksum in.
            head = HEADER.pack(kind, 0, 0, 0, seq)
            body = packet.clone()
            body.pull(HEADER_SIZE)
            flow.thing.sendmsg([head, *body.views()])
            self.counters["icmp_out"] += 1
        except BlockingIOError:
            self.counters["icmp_dropped_host_full"] += 1
        except OSError as error:
            self._failed(error.errno or 0, packet, header, opened=flow is not None)
        return "rx_diverted"

    def _failed(self, failed: int, packet: PacketBuffer, header: IpHeader, *, opened: bool) -> None:
        if failed in (errno.EACCES, errno.EPERM, errno.EPROTONOSUPPORT) and not opened:
            self.counters["icmp_dropped_no_socket"] += 1
            self._complain(NO_RIGHT)
        elif failed in (errno.EMFILE, errno.ENFILE):
            self.counters["icmp_dropped_no_descriptor"] += 1
        else:
            self.counters["icmp_unreachable"] += 1
            self._error(packet, header, host.ICMP_KINDS.get(failed, "host"))

    def _error(self, packet: PacketBuffer, header: IpHeader, kind: str) -> None:
        if self._stack.ip.error is not None:
            self._stack.ip.error(packet, header, kind, 0)

    def _answer(self, flow: Flow[Asked, socket.socket]) -> None:
        """The host's ping socket has something."""
        guest, ident, other = flow.key
        layer: IcmpLayer = self._stack.icmp if is_v4(guest) else self._stack.icmpv6
        for _ in range(BATCH):
            try:
                count = flow.thing.recv_into(self._scratch)
            except BlockingIOError:
                return
            except OSError as error:
                if isinstance(flow.about, tuple):
                    self._failed(error.errno or 0, *flow.about, opened=True)
                continue
            if count < HEADER_SIZE or self._scratch[0] != layer.echo_reply:
                continue
            _, _, _, _, seq = HEADER.unpack_from(self._scratch)
            reply = HEADER.pack(layer.echo_reply, 0, 0, ident, seq) + self._scratch[HEADER_SIZE:count]
            failed = layer.send_message(reply, other, guest, self._interface, HOPS)
            self.counters["icmp_dropped_to_guest" if failed else "icmp_in"] += 1
            self.flows.use(flow)

    def close(self) -> None:
        """End all, and take no further requests."""
        self._stack.icmp.elsewhere = self._stack.icmpv6.elsewhere = None
        self.flows.close()


def _ping_socket(address: int) -> socket.socket:
    return host.open_socket(
        address, socket.SOCK_DGRAM, socket.IPPROTO_ICMP if is_v4(address) else socket.IPPROTO_ICMPV6
    )
