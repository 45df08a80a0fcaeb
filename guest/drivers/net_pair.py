"""A pair of queues of a network device, with their buffers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from guest.dma import DmaError, DmaPool
from guest.drivers.net_rx import ReceiveQueue, buffer_size
from guest.drivers.net_tx import TransmitQueue
from guest.ring.ring import Ring


class Pair(NamedTuple):
    """A receive and a transmit queue."""

    rx: ReceiveQueue
    tx: TransmitQueue

    def close(self) -> None:
        """Give up the buffers; what is still lent comes back by itself."""
        self.rx.pool.close()
        self.tx.pool.close()


def make_pair(
    dma: DmaPool,
    sizes: tuple[int, int],
    features: int,
    mtu: int,
    counters: Counter[str],
    doorbell: Callable[[Ring[Any]], None],
) -> Pair:
    """Buffers for `sizes` entries of a receive and a transmit ring. Raises DmaError; nothing is kept then."""
    rx_size, tx_size = sizes
    rx = ReceiveQueue(dma, rx_size, buffer_size(rx_size, features, mtu), counters)
    try:
        tx = TransmitQueue(dma, tx_size, mtu, features, counters, lambda: doorbell(tx.ring))
    except DmaError:
        rx.pool.close()
        raise
    return Pair(rx, tx)
