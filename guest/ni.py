"""The network interface: joins front end 0 to an interface of the IP stack.

Promises:
- Only FE/0 carries one (`OnlyFrontEndZero`); a refused binding changes nothing.
- Received frames go to the stack as they are, by reference; what the stack sends leaves through the front end as the
  source "ni".
- The device's link flag is the interface's carrier.
"""

from __future__ import annotations

from collections.abc import Sequence

from guest.fe import FrontEnd
from guest.net.device import IFF_PROMISC, IFF_RUNNING
from guest.net.interface import Interface
from guest.net.pbuf import PacketBuffer
from guest.net.stack import Stack
from hw.abi.virtio_net import VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6

ETHERNET_HEADER = 14


class NetworkInterface:
    """The NI at `fe`, an interface of `stack` with the front end's name, MAC and MTU.

    Attributes:
        fe: the front end.
        interface: the stack's side.

    Raises OnlyFrontEndZero and PointTaken.
    """

    def __init__(self, fe: FrontEnd, stack: Stack) -> None:
        fe.bind_ni(self)
        self.fe = fe
        self.interface: Interface = stack.add_interface(fe.name, fe.mac, fe.mtu, self._output)
        self.interface.queue = fe.device
        fe.link_changed = self._link_changed
        fe.announce = self.interface.announce
        self.interface.filter_changed = self._filter_changed
        self._filter_changed()
        self._link_changed()

    @property
    def name(self) -> str:
        """The interface's name, eth0."""
        return self.interface.name

    @property
    def flags(self) -> int:
        """The interface's IFF_* bits."""
        return self.interface.flags

    def input(self, packets: Sequence[PacketBuffer]) -> None:
        """The front end delivers received frames."""
        self.interface.input(packets)

    def _output(self, packets: Sequence[PacketBuffer]) -> None:
        self.fe.transmit(packets, "ni")

    def _filter_changed(self) -> None:
        self.fe.want(bool(self.interface.flags & IFF_PROMISC), self.interface.group_macs)

    def _link_changed(self) -> None:
        self._take_over()
        self.interface.set_carrier(bool(self.fe.flags & IFF_RUNNING))

    def _take_over(self) -> None:
        """What the device segments itself, which it may learn anew each time that its link comes up."""
        device, interface = self.fe.device, self.interface
        most = device.gso_max_size - ETHERNET_HEADER
        interface.gso_max_size = most if VIRTIO_NET_HDR_GSO_TCPV4 in device.gso_kinds else 0
        interface.gso_max_size6 = most if VIRTIO_NET_HDR_GSO_TCPV6 in device.gso_kinds else 0
        if device.mtu < interface.mtu:
            interface.set_mtu(device.mtu)

    def close(self) -> None:
        """Set the interface down and leave the front end."""
        self.interface.set_down()
        self.fe.link_changed = self.fe.announce = None
        self.interface.filter_changed = None
        self.fe.unbind_ni(self)
