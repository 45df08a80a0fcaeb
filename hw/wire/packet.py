"""A wire onto an interface that the host has already: a packet socket (AF_PACKET, SOCK_RAW).

What arrives at the interface from outside is read; what the host itself sends there is not, and what we send does not
reach the host's own stack: the NIC sits beside the host on the same wire, not before it. The interface is put into
promiscuous mode for as long as the link is open.

The kernel takes a VLAN tag out of the frame; it is put back from the packet's auxiliary data. It can also hand us a
frame from a local sender whose checksum was left to the hardware: such frames are passed on as they are and counted as
`rx_checksum_not_ready` (as a fix, switch the sender's transmit checksum offload off).

Read first: `link.py`, `descriptor.py`; packet(7).
"""

from __future__ import annotations

import errno
import socket
import struct

from hw.loop import Loop
from hw.wire.descriptor import DescriptorLink, alternatives
from hw.wire.link import Views, WireError

_ETH_P_ALL = 0x0003
_ETH_P_8021Q = 0x8100
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_AUXDATA = 8
_PACKET_IGNORE_OUTGOING = 23
_PACKET_MR_PROMISC = 1
_TP_STATUS_CSUMNOTREADY = 1 << 3
_TP_STATUS_VLAN_VALID = 1 << 4
_TP_STATUS_VLAN_TPID_VALID = 1 << 6
# struct packet_mreq: int mr_ifindex; unsigned short mr_type, mr_alen; unsigned char mr_address[8]
_MREQ = struct.Struct("=iHH8s")
# struct tpacket_auxdata: __u32 tp_status, tp_len, tp_snaplen; __u16 tp_mac, tp_net, tp_vlan_tci, tp_vlan_tpid
_AUXDATA = struct.Struct("=IIIHHHH")
_ANCILLARY = socket.CMSG_SPACE(_AUXDATA.size)
_TAG = struct.Struct(">HH")
_TAG_OFFSET = 12


class PacketLink(DescriptorLink):
    """A link onto the interface `ifname`.

    Args:
        loop: its clock must be real.
        ifname: an interface of the host, such as "eth0".

    Raises:
        WireError: the right is missing or there is no such interface.
    """

    def __init__(self, loop: Loop, ifname: str) -> None:
        super().__init__(loop, f"packet:{ifname}")
        sock: socket.socket | None = None
        try:
            index = socket.if_nametoindex(ifname)
            # Protocol 0: nothing comes in before the socket is bound to its one interface.
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
            sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _MREQ.pack(index, _PACKET_MR_PROMISC, 0, bytes(8)))
            sock.bind((ifname, _ETH_P_ALL))
        except (OSError, ValueError) as error:
            if sock is not None:
                sock.close()
            raise WireError(f"packet:{ifname}: {_explain(ifname, error)}") from None
        self._socket = sock
        self._start(sock.fileno(), sock.sendmsg)

    def read_into(self, views: Views) -> int:
        """The next frame, read straight into `views`; see `Link.read_into`."""
        try:
            length, ancillary, _, _ = self._socket.recvmsg_into(views, _ANCILLARY)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._failed("rx_error", error)
            return 0
        for level, kind, data in ancillary:
            if level == _SOL_PACKET and kind == _PACKET_AUXDATA and len(data) >= _AUXDATA.size:
                status, _, _, _, _, tci, tpid = _AUXDATA.unpack_from(data)
                if status & _TP_STATUS_CSUMNOTREADY:
                    self.counters["rx_checksum_not_ready"] += 1
                if status & _TP_STATUS_VLAN_VALID:
                    tag = _TAG.pack(tpid if status & _TP_STATUS_VLAN_TPID_VALID else _ETH_P_8021Q, tci)
                    length = insert(views, length, _TAG_OFFSET, tag)
        return self._received(length)

    def close(self) -> None:
        """Close the socket; the interface leaves promiscuous mode."""
        super().close()
        self._socket.detach()  # its descriptor is closed already


def insert(views: Views, length: int, offset: int, piece: bytes) -> int:
    """Put `piece` at `offset` into the `length` bytes that `views` hold, as far as they reach; the new length."""
    old = b"".join(views)[:length]
    new = old[:offset] + piece + old[offset:]
    at = 0
    for view in views:
        part = new[at : at + len(view)]
        memoryview(view)[: len(part)] = part
        at += len(part)
    return at


def _explain(ifname: str, error: OSError | ValueError) -> str:
    """What went wrong while opening, and what to do instead, in one line."""
    if isinstance(error, ValueError):
        return "not a name for an interface"
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"needs CAP_NET_RAW; {alternatives()}"
    if error.errno in (errno.ENODEV, errno.ENXIO, None):  # None is what if_nametoindex raises
        return f"the host has no interface {ifname}"
    return error.strerror or str(error)
