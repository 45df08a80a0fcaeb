"""Which drivers there are, and probing for what they drive.

Promises:
- Drivers are probed in the order in which they were registered, each once; a probe answers 1 or 0.
- A driver's devices are in index order and end at the first that cannot be brought up.
- The registry is an object of its guest; nothing is registered by importing a module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from guest.drivers import netfront, virtio_net
from guest.drivers.netfront_config import NetfrontOptions
from guest.net.device import NetDevice
from guest.net.pbuf import PacketBuffer
from guest.services import Services
from guest.xen.domain import Domain

GRID_LIMIT = 32


@dataclass(frozen=True, slots=True)
class DriverNode:
    """A driver, as the registry knows it.

    Attributes:
        name: unique in a grid.
        ids: device ids that it drives, on its own bus.
        probe: 1 when a device that it drives is there, else 0; changes nothing.
        init: brings up all its devices, in index order, until the first that fails (it logs why).
        transmit: sends packets through one of them; how many were accepted.
    """

    name: str
    ids: tuple[int, ...]
    probe: Callable[[Services], int]
    init: Callable[[Services], list[NetDevice]]
    transmit: Callable[[NetDevice, Sequence[PacketBuffer]], int]


class DriverGrid:
    """Up to `limit` drivers, and the network devices that they found.

    Attributes:
        links: those devices and what `add_link` added, in order.
    """

    def __init__(self, limit: int = GRID_LIMIT) -> None:
        self.limit = limit
        self.links: list[NetDevice] = []
        self._nodes: dict[str, DriverNode] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[DriverNode]:
        return iter(self._nodes.values())

    def register(self, node: DriverNode) -> None:
        """Add a driver, to be probed after those that are there. Raises ValueError: its name is taken, or no room."""
        if node.name in self._nodes:
            raise ValueError(f"a driver named {node.name} is registered already")
        if len(self._nodes) >= self.limit:
            raise ValueError(f"no room for the driver {node.name}: {self.limit} are registered")
        self._nodes[node.name] = node

    def find(self, name: str) -> DriverNode | None:
        """The driver called `name`, or None."""
        return self._nodes.get(name)

    def net_link_init(self, services: Services) -> dict[str, int]:
        """Probe with every driver and bring up what is there, as eth0, eth1, …; each driver's answer, by its name."""
        answers: dict[str, int] = {}
        count = 0
        for node in self:
            answers[node.name] = found = 1 if node.probe(services) else 0
            if not found:
                continue
            for device in node.init(services):
                device.name = f"eth{count}"
                count += 1
                self.links.append(device)
        return answers

    def add_link(self, device: NetDevice) -> None:
        """Add a device that no driver has to find, such as the loopback."""
        self.links.append(device)

    def net_link_primary(self) -> NetDevice | None:
        """eth0 where there is one, else the loopback, else None."""
        names = {device.name: device for device in reversed(self.links)}
        return names.get("eth0") or names.get("lo")


def standard_grid(
    rx_ring: int = virtio_net.RX_RING,
    tx_ring: int = virtio_net.TX_RING,
    *,
    xen: Domain | None = None,
    netfront_options: NetfrontOptions | None = None,
) -> DriverGrid:
    """A grid with the drivers that the guest comes with, in probe order.

    Args:
        rx_ring, tx_ring: entries of virtio rings, at most; on Xen, pages that are posted and that may be in flight.
        xen: this domain, on Xen.
        netfront_options: how its interfaces are driven, but for the pages.
    """
    grid = DriverGrid()
    init = partial(virtio_net.init, rx_size=rx_ring, tx_size=tx_ring)
    grid.register(DriverNode("virtio-net", virtio_net.DEVICE_IDS, virtio_net.probe, init, _transmit))
    options = replace(netfront_options or NetfrontOptions(), rx_pages=rx_ring, tx_pages=tx_ring)
    grid.register(
        DriverNode(
            "xen-vif",
            (),  # found in the store, by name
            lambda _services: netfront.probe(xen),
            lambda _services: [] if xen is None else netfront.init(xen, options),
            _transmit,
        )
    )
    return grid


def _transmit(device: NetDevice, packets: Sequence[PacketBuffer]) -> int:
    return device.transmit(packets)


def probe_devices(services: Services, grid: DriverGrid) -> list[NetDevice]:
    """Probe with every driver of `grid`; the network devices that were found, in index order."""
    before = len(grid.links)
    grid.net_link_init(services)
    return grid.links[before:]
