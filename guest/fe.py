"""The front end: one network device of the guest, and its two connection points.

    device ── FrontEnd ─┬─ ni   the network interface of the IP stack (FE/0 only)
                        └─ ol   the raw outlet of a program

Promises:
- Every received batch goes to the NI first and then to the OL, whole and byte-identical, to each independently: a
  failure of one is counted and does not reach the other. The OL gets bytes of its own, taken before the NI may change
  anything.
- With neither connected the packets are counted and dropped, and their buffers go back to the driver.
- Both send through `transmit`, each in its own order; what the device does not take is counted for its source. Nobody
  blocks.

The front end knows no ring: the same class serves every driver.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

from guest.log import describe
from guest.net.device import NetDevice
from guest.net.pbuf import PacketBuffer

Source = Literal["ni", "ol"]

VLAN_TAG = 4
ETHERNET_HEADER = 14


class OnlyFrontEndZero(Exception):
    """A network interface was to be bound to another front end than FE/0; nothing was changed."""


class PointTaken(Exception):
    """FE/0 has a network interface already; nothing was changed."""


class NetworkPoint(Protocol):
    """What may sit at the point `ni`."""

    def input(self, packets: Sequence[PacketBuffer]) -> None:
        """Take received frames; they are lent, and the taker may pull and change them."""


class OutletPoint(Protocol):
    """What may sit at the point `ol`."""

    def accepts(self, count: int) -> int:
        """How many of `count` frames it has room for; it counts the others as dropped."""

    def input(self, frames: Sequence[bytes]) -> None:
        """Take received frames."""

    def robbed(self) -> None:
        """Another outlet has taken its place."""


class FrontEnd:
    """FE/`index`, named eth`index`.

    Args:
        index: position in probe order.
        device: the driver's device; it is renamed, and delivers here from now on.
        log: writes one line to the boot log.

    Attributes:
        ni, ol: what is connected, or None.
        counters: `rx_packets`, `rx_bytes`, `rx_dropped_disconnected`, `rx_ni_failed`, `rx_ol_failed`, and for each
            source `tx_ni_packets`, `tx_ni_dropped`, `tx_ol_packets`, `tx_ol_dropped`.
        link_changed: told when the device's link flag or MTU has changed.
        announce: told when the device wants the neighbours to be told where this station is.
    """

    def __init__(self, index: int, device: NetDevice, log: Callable[[str], None] = lambda _line: None) -> None:
        self.index = index
        self.name = f"eth{index}"
        self.device = device
        self.ni: NetworkPoint | None = None
        self.ol: OutletPoint | None = None
        self.counters: Counter[str] = Counter()
        self.link_changed: Callable[[], None] | None = None
        self.announce: Callable[[], None] | None = None
        self._wanted: tuple[bool, frozenset[bytes]] = (False, frozenset())  # by the network interface
        self._log = log
        device.name = self.name
        device.receiver = self.receive
        device.link_changed = self._link_changed
        device.announce = self._announce

    @property
    def mac(self) -> bytes:
        """The device's address, 6 bytes."""
        return self.device.mac

    @property
    def mtu(self) -> int:
        """Bytes of the largest IP packet."""
        return self.device.mtu

    @property
    def flags(self) -> int:
        """The device's IFF_* bits."""
        return self.device.flags

    @property
    def frame_max(self) -> int:
        """Bytes of the largest frame that may be sent, a VLAN tag included; 1518 for an MTU of 1500."""
        return self.device.mtu + ETHERNET_HEADER + VLAN_TAG

    # -- the points ----------------------------------------------------------------------------------------------

    def bind_ni(self, ni: NetworkPoint) -> None:
        """Connect the network interface. Raises OnlyFrontEndZero and PointTaken."""
        if self.index != 0:
            raise OnlyFrontEndZero(f"{self.name} cannot carry a network interface; only eth0 can")
        if self.ni is not None:
            raise PointTaken(f"{self.name} has a network interface already")
        self.ni = ni
        self._filter()

    def unbind_ni(self, ni: NetworkPoint) -> None:
        """Disconnect `ni`; nothing happens when it is not the one connected."""
        if self.ni is ni:
            self.ni = None
            self._wanted = (False, frozenset())
            self._filter()

    def bind_ol(self, outlet: OutletPoint) -> None:
        """Connect a raw outlet. One that is connected already is told that it was robbed, and a log line says so."""
        victim = self.ol
        if victim is outlet:
            return
        self.ol = outlet
        self._filter()
        if victim is not None:
            self._log(f"{self.name}: {outlet} is stealing control from {victim}")
            victim.robbed()

    def unbind_ol(self, outlet: OutletPoint) -> None:
        """Disconnect `outlet`; nothing happens when it is not the one connected."""
        if self.ol is outlet:
            self.ol = None
            self._filter()

    def want(self, promiscuous: bool, groups: Iterable[bytes]) -> None:
        """What the network interface receives beside frames for its own address and broadcasts."""
        self._wanted = (promiscuous, frozenset(groups))
        self._filter()

    def _filter(self) -> None:
        """Tell the device what is wanted: everything while a raw outlet is connected."""
        promiscuous, groups = self._wanted
        self.device.receive_mode(promiscuous or self.ol is not None, groups)

    # -- packets -------------------------------------------------------------------------------------------------

    def receive(self, packets: Sequence[PacketBuffer]) -> None:
        """The device delivers; NI first, then OL."""
        counters = self.counters
        count = len(packets)
        counters["rx_packets"] += count
        counters["rx_bytes"] += sum(map(len, packets))
        ni, ol = self.ni, self.ol
        if ni is None and ol is None:
            counters["rx_dropped_disconnected"] += count
            return
        frames: list[bytes] = []
        if ol is not None:
            try:
                frames = [packet.tobytes() for packet in packets[: ol.accepts(count)]]
            except Exception as error:
                self._failed("ol", count, error)
        if ni is not None:
            try:
                ni.input(packets)
            except Exception as error:
                self._failed("ni", count, error)
        if ol is not None and frames:
            try:
                ol.input(frames)
            except Exception as error:
                self._failed("ol", len(frames), error)

    def transmit(self, packets: Sequence[PacketBuffer], source: Source) -> int:
        """Send whole Ethernet frames, first to last; how many the device took. The others are dropped and counted."""
        count = len(packets)
        taken = self.device.transmit(packets)
        counters = self.counters
        counters[f"tx_{source}_packets"] += taken
        if taken < count:
            counters[f"tx_{source}_dropped"] += count - taken
        return taken

    def _failed(self, point: Source, count: int, error: Exception) -> None:
        """A point raised: count it, and say so the first time."""
        counter = f"rx_{point}_failed"
        if not self.counters[counter]:
            self._log(f"{self.name}: {point}: {describe(error)}")
        self.counters[counter] += count

    def _link_changed(self) -> None:
        if self.link_changed is not None:
            self.link_changed()

    def _announce(self) -> None:
        if self.announce is not None:
            self.announce()

    def close(self) -> None:
        """Take nothing more from the device."""
        self.device.receiver = None
        self.device.link_changed = None
        self.device.announce = None
        self.ni = None
        self.ol = None
