"""UDP through the user wire.

Out: each pair of addresses and ports that the guest uses is a connected socket of the host's. So what the host hears
about a datagram (a port where nobody listens, a network that is not there) comes back to the guest as the ICMP error
that it was. In: each caller of a forward is an end of the gateway's, connected to the guest.

Promises:
- At most `FLOWS` in each direction, and each for `idle` after its last datagram; see flows.py.
- What the host's socket or the guest's card does not take at once is dropped and counted, as networks do.
- What a socket has is read in a batch, and goes to the guest in one.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from guest.net.address import is_v4
from guest.net.family import IpHeader
from guest.net.interface import Interface
from guest.net.pbuf import PacketBuffer
from guest.net.stack import Stack
from guest.net.udp import HEADER_SIZE, UdpEndpoint
from hw.loop import Loop
from vring.usernet import host
from vring.usernet.flows import BATCH, Flow, FlowTable, closer

FLOWS = 256
IDLE = 240_000_000  # microseconds, as QEMU has it
LARGEST = 65535

Ends: TypeAlias = tuple[int, int, int, int]  # the guest's address and port, the other side's
Caller: TypeAlias = tuple[socket.socket, tuple[str, int]]  # the forward's socket, and who called


class Datagrams:
    """UDP of one user wire.

    Args:
        loop, stack, interface, outside, counters, complain: as of `Streams`; counts `udp_…`.
        idle: microseconds that a flow may be silent.
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
    ) -> None:
        self._loop = loop
        self._stack = stack
        self._interface = interface
        self._outside = outside
        self.counters = counters
        self._complain = complain
        self._scratch = memoryview(bytearray(LARGEST))
        self.out: FlowTable[Ends, socket.socket] = FlowTable(
            loop, "udp", most=FLOWS, idle=idle, counters=counters, close=closer(loop)
        )
        self.callers: FlowTable[Caller, UdpEndpoint] = FlowTable(
            loop, "udp_forward", most=FLOWS, idle=idle, counters=counters, close=_close_end
        )
        stack.udp.unclaimed = self._datagram

    def __len__(self) -> int:
        return len(self.out) + len(self.callers)

    # -- out -----------------------------------------------------------------------------------------------------

    def _datagram(self, packet: PacketBuffer, header: IpHeader, src_port: int, dst_port: int) -> bool:
        """A datagram that is for no end of the gateway's."""
        key = (header.src, src_port, header.dst, dst_port)
        flow = self.out.find(key)
        if header.ttl <= 1 and not self._stack.ip.is_local(header.dst):
            self.counters["udp_ttl"] += 1
            self._error(packet, header, "ttl")
            return True
        if flow is None:
            target = self._outside(header.dst, dst_port)
            if target is None:
                if self._stack.ip.is_local(header.dst):
                    return False  # nobody there, says the stack
                self.counters["udp_unreachable"] += 1
                self._error(packet, header, "admin")
                return True
            try:
                sock = host.open_socket(target[0], socket.SOCK_DGRAM)
            except OSError as failed:
                self._failed(failed.errno or 0, packet, header)
                return True
            try:
                sock.connect(host.sockaddr(*target))
            except OSError as failed:
                sock.close()
                self._failed(failed.errno or 0, packet, header)
                return True
            flow = self.out.add(key, sock)
            self._loop.set_reader(sock.fileno(), partial(self._answer, flow))
        flow.about = (packet, header)
        payload = packet.clone()
        payload.pull(HEADER_SIZE)
        self._send(flow, payload)
        return True

    def _send(self, flow: Flow[Ends, socket.socket], payload: PacketBuffer) -> None:
        for _ in range(2):  # the first may tell of what went wrong with one before
            try:
                flow.thing.sendmsg(payload.views())
            except BlockingIOError:
                self.counters["udp_dropped_host_full"] += 1
            except OSError as failed:
                self._tell(flow, failed.errno or 0)
                if failed.errno == errno.ECONNREFUSED:
                    continue
            else:
                self.counters["udp_out"] += 1
            return

    def _answer(self, flow: Flow[Ends, socket.socket]) -> None:
        """The host's socket of a flow has something."""
        guest, guest_port, other, other_port = flow.key
        end = self._stack.udp.open(4 if is_v4(guest) else 6)
        end.local = (other, other_port)  # it speaks in the other side's name, and hears nothing
        interface = self._interface if guest >> 118 == 0x3FA else None
        self._interface.hold()
        try:
            for _ in range(BATCH):
                try:
                    count = flow.thing.recv_into(self._scratch)
                except BlockingIOError:
                    break
                except OSError as failed:
                    self._tell(flow, failed.errno or 0)
                    continue
                self._count(end.send([self._scratch[:count]], (guest, guest_port), src=other, interface=interface))
                self.out.use(flow)
        finally:
            self._interface.release()

    def _count(self, failed: int) -> None:
        self.counters["udp_dropped_to_guest" if failed else "udp_in"] += 1

    # -- errors --------------------------------------------------------------------------------------------------

    def _tell(self, flow: Flow[Ends, socket.socket], failed: int) -> None:
        """The guest hears what the host heard about the flow's last datagram."""
        if isinstance(flow.about, tuple):
            self._failed(failed, *flow.about)

    def _failed(self, failed: int, packet: PacketBuffer, header: IpHeader) -> None:
        if failed in (errno.EMFILE, errno.ENFILE):
            self.counters["udp_dropped_no_descriptor"] += 1
            self._complain("no more descriptors for datagrams; raise the limit with ulimit -n")
            return
        kind = "port" if failed == errno.ECONNREFUSED else host.ICMP_KINDS.get(failed, "host")
        self.counters["udp_refused" if kind == "port" else "udp_unreachable"] += 1
        self._error(packet, header, kind)

    def _error(self, packet: PacketBuffer, header: IpHeader, kind: str) -> None:
        if self._stack.ip.error is not None:
            self._stack.ip.error(packet, header, kind, 0)

    # -- in ------------------------------------------------------------------------------------------------------

    def forward(self, sock: socket.socket, guest: int, port: int) -> None:
        """A forward's socket has something for a port of the guest's."""
        self._interface.hold()
        try:
            for _ in range(BATCH):
                try:
                    count, name = sock.recvfrom_into(self._scratch)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # what a caller thought of an answer of the guest's
                key = (sock, name[:2])
                flow = self.callers.find(key) or self._call(key, guest, port)
                if flow is not None:
                    self.counters["udp_forwarded"] += 1
                    self._count(flow.thing.send([self._scratch[:count]]))
        finally:
            self._interface.release()

    def _call(self, key: Caller, guest: int, port: int) -> Flow[Caller, UdpEndpoint] | None:
        """An end towards the guest for a caller that is new."""
        end = self._stack.udp.open(4 if is_v4(guest) else 6)
        if end.connect(guest, port):
            self.counters["udp_dropped_to_guest"] += 1
            end.close()
            return None
        flow = self.callers.add(key, end)
        end.on_ready = partial(self._answer_caller, flow)
        return flow

    def _answer_caller(self, flow: Flow[Caller, UdpEndpoint]) -> None:
        """The guest has answered a caller."""
        sock, name = flow.key
        while (datagram := flow.thing.receive()) is not None:
            self.callers.use(flow)
            try:
                sock.sendto(datagram.payload.tobytes(), name)
            except OSError:
                self.counters["udp_dropped_host_full"] += 1
            else:
                self.counters["udp_forward_answers"] += 1
        flow.thing.take_error()  # a guest where nobody listens: callers hear nothing, as from any router

    def forget(self, sock: socket.socket) -> None:
        """A forward is over, and so are its callers."""
        for flow in self.callers:
            if flow.key[0] is sock:
                self.callers.end(flow)

    def close(self) -> None:
        """End all flows, and take no further ones."""
        self._stack.udp.unclaimed = None
        self.out.close()
        self.callers.close()


def _close_end(end: UdpEndpoint) -> None:
    end.on_ready = None
    end.close()
