"""One queue of a Xen network interface: a pair of rings, their pages, and one event channel or two.

Promises: it is made whole or not at all, and `close` gives everything back that the back end has let go of.

Read: Xen's public `io/netif.h`, "Multiple Queues", "Split event channels".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from guest.dma import PAGE, DmaError
from guest.drivers.netfront_config import NetfrontOptions, Offer, QueueKeys
from guest.drivers.netfront_rx import ReceiveSide
from guest.drivers.netfront_tx import ETHERNET_HEADER, VLAN_TAG, TransmitSide
from guest.xen.domain import Domain
from guest.xen.events import EventError
from guest.xen.grants import GrantError


class Queue:
    """A pair of rings and their event channels.

    Args:
        xen: this domain.
        domid: the back end's.
        options: how many pages.
        offer: what was agreed on.
        mtu: of the interface.
        counters: the device's.
        on_event: called when the back end has answered something.

    Raises DmaError, GrantError, EventError; nothing is kept then.
    """

    def __init__(
        self,
        xen: Domain,
        domid: int,
        options: NetfrontOptions,
        offer: Offer,
        mtu: int,
        counters: Counter[str],
        on_event: Callable[[], None],
    ) -> None:
        dma, features = xen.services.dma, offer.features
        self._events = events = xen.events
        self.tx_port = self.rx_port = 0
        self._rx: ReceiveSide | None = None
        try:
            self.tx_port = self.rx_port = events.open(domid, on_event)
            if offer.split:
                self.rx_port = events.open(domid, on_event)
            self.rx = self._rx = ReceiveSide(
                xen.grants, dma, domid, options.rx_pages, features, counters, self.notify_rx
            )
            longest = mtu + ETHERNET_HEADER
            if not features.tx_sg:
                longest = min(longest, PAGE - VLAN_TAG)  # a frame is one slot, and a slot at most a page
            self.tx = TransmitSide(
                xen.grants, dma, domid, options.tx_pages, longest, features, counters, self.notify_tx
            )
        except (DmaError, GrantError, EventError):
            if self._rx is not None:
                self._rx.close()
            self._close_ports()
            raise

    def notify_tx(self) -> None:
        """Send the event of the transmit ring."""
        self._events.notify(self.tx_port)

    def notify_rx(self) -> None:
        """Send the event of the receive ring."""
        self._events.notify(self.rx_port)

    def kick(self) -> None:
        """Tell the back end of both rings, whether it asked or not."""
        self.notify_tx()
        if self.rx_port != self.tx_port:
            self.notify_rx()

    @property
    def keys(self) -> QueueKeys:
        """What the back end is told."""
        return QueueKeys(self.tx.ring_page.refs[0], self.rx.ring_page.refs[0], self.tx_port, self.rx_port)

    def _close_ports(self) -> None:
        for port in {self.tx_port, self.rx_port} - {0}:
            self._events.close(port)

    def close(self, forget: bool) -> None:
        """Give everything back; after a resume (`forget`) channels and grants are gone already."""
        if not forget:
            self._close_ports()
        self.rx.close(forget)
        self.tx.close(forget)
