"""The calls of a small teaching kernel by their own names, from `net_send` up to `tcp_accept`, over one booted guest.

    net = Classic(machine.guest, machine.calls)     # in a guest program: Classic(env.guest)
    sock = net.tcp_connect("10.0.2.2", 7)
    net.tcp_send(sock, b"hello")
    print(net.arp_lookup("10.0.2.2"), net.tcp_recv(sock, 100))

Who reads a kernel of that kind finds each of its functions here, and behind it, in a line or two, what the real stack
calls it. Nothing is done here that cannot be done without.

| layer    | functions                                                              | what they stand on               |
|----------|------------------------------------------------------------------------|----------------------------------|
| card     | net_send, net_recv                                                     | `guest.fe.FrontEnd`              |
| Ethernet | eth_send, eth_recv                                                     | `guest.net.ethernet.Ethernet`    |
| ARP      | arp_lookup, arp_request, arp_recv, arp_update                          | `guest.net.arp`, `.neighbour`    |
| IP       | ip_send, ip_recv, ip_checksum, ip_route                                | `guest.net.ip.IpEngine`          |
| ICMP     | icmp_send_echo, icmp_recv                                              | `guest.net.echo.EchoPorts`       |
| UDP      | udp_bind, udp_send, udp_recv, udp_input                                | the system calls                 |
| TCP      | tcp_connect, tcp_listen, tcp_accept, tcp_send, tcp_recv, tcp_close,    | the system calls                 |
|          | tcp_input, tcp_retransmit                                              |                                  |
| settings | setipaddr, getipaddr                                                   | the system calls                 |

Promises:
- Addresses are 32-bit numbers in the host's order (10.0.2.15 is 0x0a00020f) or dotted text.
- What fails raises OSError with Linux's errno: EINVAL for an address that is none, ENODEV without eth0.
- The functions that take a packet from "below" do with it all that the stack does with one that has just arrived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.net.address import V4_PREFIX, AddressError, is_v4, to_address
from guest.net.checksum import checksum
from guest.net.hops import ETH_P_IP
from guest.net.pbuf import Buffer, PacketBuffer
from guest.sys.constants import AF_INET, SOCK_STREAM
from guest.sys.fault import check, fault
from guest.sys.stream_file import StreamFile

if TYPE_CHECKING:
    from guest.fe import FrontEnd
    from guest.kernel import Guest
    from guest.net.arp import Arp
    from guest.net.interface import Interface
    from guest.net.neighbour import NeighbourCache
    from guest.sys.calls import Calls
    from guest.sys.netconfig import IpConfig

ICMP, TCP, UDP = 1, 6, 17
BACKLOG = 5  # which the calls let nobody choose


class Classic:
    """The calls over one guest.

    Args:
        guest: it has booted.
        calls: its system calls, as who calls may use them; a guest program needs none but the guest's own.
    """

    def __init__(self, guest: Guest, calls: Calls | None = None) -> None:
        self._guest = guest
        self._calls = calls or guest.calls
        self._stack = guest.stack

    # -- the card ------------------------------------------------------------------------------------------------

    def net_send(self, data: Buffer) -> int:
        """Send a whole Ethernet frame by eth0; 0, or -1 where the card had no room."""
        return self._fe().transmit([PacketBuffer.from_bytes(data)], "ol") - 1

    def net_recv(self, data: Buffer) -> None:
        """A whole Ethernet frame has arrived at eth0: for the interface and the raw outlet, whoever is there."""
        self._fe().receive([PacketBuffer.from_bytes(data)])

    # -- Ethernet ------------------------------------------------------------------------------------------------

    def eth_send(self, dest_mac: bytes, ethertype: int, data: Buffer) -> int:
        """Send `data` to a MAC address in a frame from eth0's own; 0 or -1."""
        return self.net_send(dest_mac + self._fe().mac + ethertype.to_bytes(2, "big") + bytes(data))

    def eth_recv(self, frame: Buffer) -> None:
        """A frame has arrived for the interface alone: look at its type and pass it on."""
        self._interface().input([PacketBuffer.from_bytes(frame)])

    # -- ARP -----------------------------------------------------------------------------------------------------

    def arp_lookup(self, ip: int | str) -> bytes | None:
        """The MAC address that is known for `ip`, 6 bytes; None where there is none, or it is too old."""
        return self._neighbours().lookup(_address(ip))

    def arp_request(self, ip: int | str) -> None:
        """Ask who has `ip`."""
        self._arp().request(_address(ip))

    def arp_recv(self, packet: Buffer) -> None:
        """An ARP packet has arrived, without its Ethernet header."""
        self._arp().input([PacketBuffer.from_bytes(packet)])

    def arp_update(self, ip: int | str, mac: bytes) -> None:
        """Note that `ip` is at `mac`, and send what has waited for that."""
        self._neighbours().learn(_address(ip), mac, True)

    # -- IP ------------------------------------------------------------------------------------------------------

    def ip_send(self, dest_ip: int | str, protocol: int, data: Buffer) -> None:
        """Send `data` in a packet. Raises OSError: ENETUNREACH, EMSGSIZE and what else `IpEngine.output` answers."""
        check(self._stack.ip.output(PacketBuffer.from_bytes(data), _address(dest_ip), protocol))

    def ip_recv(self, packet: Buffer) -> None:
        """A packet has arrived at eth0, without a link header."""
        self._stack.ip.input(self._interface(), ETH_P_IP, [PacketBuffer.from_bytes(packet)])

    def ip_checksum(self, header: Buffer) -> int:
        """The Internet checksum of `header`, 16 bits (RFC 1071); 0 where the field in it is right already."""
        return checksum([header])

    def ip_route(self, dest_ip: int | str) -> int:
        """The next hop: `dest_ip` itself where it is a neighbour, or a gateway. Raises OSError: ENETUNREACH."""
        hop = self._stack.ip.hop(_address(dest_ip))
        if hop is None:
            raise fault("ENETUNREACH")
        return hop.next_hop - V4_PREFIX

    # -- ICMP ----------------------------------------------------------------------------------------------------

    def icmp_send_echo(self, dest_ip: int | str, ident: int, seq: int, data: bytes = b"") -> None:
        """Send an echo request. Raises OSError, as `ip_send`."""
        check(self._stack.icmp.send_echo(_address(dest_ip), ident, seq, data))

    def icmp_recv(self, packet: Buffer) -> None:
        """An IP packet with an ICMP message has arrived. Raises OSError: EPROTOTYPE where it holds something else."""
        self._input(packet, ICMP)

    # -- UDP -----------------------------------------------------------------------------------------------------

    def udp_bind(self, sock: int, port: int) -> None:
        """Bind a datagram socket to a port of every address. Raises OSError, as the call `bind`."""
        self._calls.bind(sock, ("0.0.0.0", port))

    def udp_send(self, sock: int, dest_ip: int | str, dest_port: int, data: Buffer) -> int:
        """Send a datagram; its bytes. Raises OSError, as the call `sendto`."""
        return self._calls.sendto(sock, data, (_text(dest_ip), dest_port))

    def udp_recv(self, sock: int, size: int) -> bytes:
        """Wait for a datagram; its first `size` bytes. Raises OSError, as the call `recv`."""
        return self._calls.recv(sock, size)

    def udp_input(self, packet: Buffer) -> None:
        """An IP packet with a datagram has arrived. Raises OSError: EPROTOTYPE where it holds something else."""
        self._input(packet, UDP)

    # -- TCP -----------------------------------------------------------------------------------------------------

    def tcp_connect(self, dest_ip: int | str, dest_port: int) -> int:
        """Open a connection; its socket, once it is established. Raises OSError: ECONNREFUSED, ETIMEDOUT, …"""
        sock = self._calls.socket(AF_INET, SOCK_STREAM)
        try:
            self._calls.connect(sock, (_text(dest_ip), dest_port))
        except BaseException:
            self._calls.close(sock)
            raise
        return sock

    def tcp_listen(self, port: int) -> int:
        """A socket that takes connections to `port`. Raises OSError: EADDRINUSE, …"""
        sock = self._calls.socket(AF_INET, SOCK_STREAM)
        try:
            self._calls.bind(sock, ("0.0.0.0", port))
            self._calls.listen(sock, BACKLOG)
        except BaseException:
            self._calls.close(sock)
            raise
        return sock

    def tcp_accept(self, listen_sock: int) -> int:
        """Wait for a connection; its socket."""
        return self._calls.accept(listen_sock)[0]

    def tcp_send(self, sock: int, data: Buffer) -> int:
        """Send, as much as there is room for; how many bytes. Raises OSError, as the call `send`."""
        return self._calls.send(sock, data)

    def tcp_recv(self, sock: int, size: int) -> bytes:
        """Wait for up to `size` bytes; none at the stream's end. Raises OSError, as the call `recv`."""
        return self._calls.recv(sock, size)

    def tcp_close(self, sock: int) -> None:
        """Close: a FIN goes out, or a RST where something has not been read."""
        self._calls.close(sock)

    def tcp_input(self, packet: Buffer) -> None:
        """An IP packet with a segment has arrived. Raises OSError: EPROTOTYPE where it holds something else."""
        self._input(packet, TCP)

    def tcp_retransmit(self, sock: int) -> bool:
        """Let the retransmission timer of a connection fire now; whether anything was unacknowledged.

        Raises OSError: EBADF, ENOTSOCK, ENOTCONN.
        """
        file = self._calls.fds.file(sock)
        if not isinstance(file, StreamFile):
            raise fault("ENOTSOCK")
        connection = file.endpoint.connection
        if connection is None:
            raise fault("ENOTCONN")
        if connection.scoreboard.first is None:
            return False
        connection.rto_at = self._stack.now()
        self._stack.tcp.arm(connection)
        self._stack.poll()
        return True

    # -- settings ------------------------------------------------------------------------------------------------

    def setipaddr(self, ip: int | str, netmask: int | str, gateway: int | str = 0) -> None:
        """Set eth0's address, mask and gateway. Raises OSError: EINVAL, ENODEV."""
        self._calls.setipaddr(ip, netmask, gateway)

    def getipaddr(self) -> IpConfig:
        """eth0's address, mask and gateway, as numbers. Raises OSError: ENODEV."""
        return self._calls.getipaddr()

    # -- what is behind ------------------------------------------------------------------------------------------

    def _fe(self) -> FrontEnd:
        if not self._guest.fes:
            raise fault("ENODEV")
        return self._guest.fes[0]

    def _interface(self) -> Interface:
        if self._guest.ni is None:
            raise fault("ENODEV")
        return self._guest.ni.interface

    def _arp(self) -> Arp:
        arp = self._interface().arp
        if arp is None:
            raise fault("ENODEV")
        return arp

    def _neighbours(self) -> NeighbourCache:
        neighbours = self._interface().neighbours
        if neighbours is None:
            raise fault("ENODEV")
        return neighbours

    def _input(self, packet: Buffer, protocol: int) -> None:
        if len(packet) > 9 and packet[9] != protocol:  # IPv4's field
            raise fault("EPROTOTYPE")
        self.ip_recv(packet)


def _address(ip: int | str) -> int:
    """What the stack calls an IPv4 address: the number of its mapped form. Raises OSError: EINVAL."""
    if isinstance(ip, int):
        if not 0 <= ip < 1 << 32:
            raise fault("EINVAL")
        return V4_PREFIX | ip
    try:
        number = to_address(ip)
    except AddressError:
        raise fault("EINVAL") from None
    if not is_v4(number):
        raise fault("EINVAL")
    return number


def _text(ip: int | str) -> str:
    number = _address(ip) - V4_PREFIX
    return ".".join(str(byte) for byte in number.to_bytes(4, "big"))
