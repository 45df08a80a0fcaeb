"""What a Xen network interface is asked to be, what the back end offers, and what becomes of the two.

Two profiles. `full` is what this driver can: packets of several slots, segmentation and checksum flags both ways, an
event channel for each direction, several queues. `plain` is LING's: one page of data a packet, one event channel, none
of the rest; its keys are written in LING's order, without a transaction, and without waiting for the back end.

On the kernel's command line: `xen_netfront.profile=plain xen_netfront.queues=2`.

Read: Xen's public `io/netif.h`; `hw/abi/xen_bus.py` (the keys).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from guest.drivers.netfront_offload import NetFeatures
from guest.xen.bus import BusDevice
from hw.abi import xen_bus as bus
from hw.abi import xen_netif as abi

Profile = Literal["plain", "full"]

MTU = 1500
MTU_MAX = 65535 - 14  # a frame's length has 16 bits
QUEUES_MAX = 16
_WORD = "xen_netfront."


@dataclass(frozen=True, slots=True)
class NetfrontOptions:
    """How interfaces are to be driven.

    Attributes:
        profile: see above.
        queues: wanted, where the back end offers as many.
        rx_pages, tx_pages: of each queue: posted receive pages, and transmit requests that may be in flight. A ring has
            256 slots whatever these are.
    """

    profile: Profile = "full"
    queues: int = QUEUES_MAX
    rx_pages: int = 256
    tx_pages: int = 128


class Offer(NamedTuple):
    """What the back end offers, and what becomes of it.

    Attributes:
        rx_copy: it copies received packets into our pages; nothing else is supported.
        split: an event channel for each direction.
        queues: how many.
        features: agreed on.
    """

    rx_copy: bool
    split: bool
    queues: int
    features: NetFeatures


def read_offer(device: BusDevice, options: NetfrontOptions) -> Offer:
    """Read the back end's keys; one that is absent or no number is as if it did not offer. Raises StoreError."""
    rx_copy = device.theirs(bus.FEATURE_RX_COPY, 0) == 1
    if options.profile == "plain":
        return Offer(rx_copy, False, 1, NetFeatures())
    sg = device.theirs(bus.FEATURE_SG, 0) == 1
    kinds = {
        abi.XEN_NETIF_GSO_TYPE_TCPV4: bus.FEATURE_GSO_TCPV4,
        abi.XEN_NETIF_GSO_TYPE_TCPV6: bus.FEATURE_GSO_TCPV6,
    }
    csum4 = device.theirs(bus.FEATURE_NO_CSUM_OFFLOAD, 0) == 0
    csum6 = device.theirs(bus.FEATURE_IPV6_CSUM_OFFLOAD, 0) == 1
    sums = {abi.XEN_NETIF_GSO_TYPE_TCPV4: csum4, abi.XEN_NETIF_GSO_TYPE_TCPV6: csum6}
    gso = frozenset(kind for kind, key in kinds.items() if sg and sums[kind] and device.theirs(key, 0) == 1)
    most = device.theirs(bus.MULTI_QUEUE_MAX_QUEUES, 1)
    # What it may do to us is ours to say; what we may ask of it is what it offers.
    features = NetFeatures(
        tx_sg=sg, rx_sg=True, rx_csum=True, rx_gso=frozenset(kinds), tx_gso=gso, tx_csum4=csum4, tx_csum6=csum6
    )
    split = device.theirs(bus.FEATURE_SPLIT_EVENT_CHANNELS, 0) == 1
    return Offer(rx_copy, split, max(1, min(most, options.queues, QUEUES_MAX)), features)


class QueueKeys(NamedTuple):
    """What the back end has to know of a queue: references of the rings' pages, event channels (equal when one)."""

    tx_ref: int
    rx_ref: int
    tx_port: int
    rx_port: int


def connection_keys(options: NetfrontOptions, queues: Sequence[QueueKeys]) -> Iterator[tuple[str, int]]:
    """Keys and values that tell the back end of the front end, in the order in which they are written."""
    if options.profile == "plain":
        # LING's keys in LING's order.
        (queue,) = queues
        yield bus.RX_RING_REF, queue.rx_ref
        yield bus.TX_RING_REF, queue.tx_ref
        yield bus.EVENT_CHANNEL, queue.tx_port
        yield bus.REQUEST_RX_COPY, 1
        yield bus.FEATURE_NO_CSUM_OFFLOAD, 1
        yield bus.FEATURE_RX_NOTIFY, 1
        return
    if len(queues) > 1:
        yield bus.MULTI_QUEUE_NUM_QUEUES, len(queues)
    for number, queue in enumerate(queues):
        below = f"{bus.queue_key(number)}/" if len(queues) > 1 else ""
        yield below + bus.TX_RING_REF, queue.tx_ref
        yield below + bus.RX_RING_REF, queue.rx_ref
        if queue.tx_port == queue.rx_port:
            yield below + bus.EVENT_CHANNEL, queue.tx_port
        else:
            yield below + bus.EVENT_CHANNEL_TX, queue.tx_port
            yield below + bus.EVENT_CHANNEL_RX, queue.rx_port
    yield bus.REQUEST_RX_COPY, 1
    yield bus.FEATURE_RX_NOTIFY, 1
    yield bus.FEATURE_SG, 1
    yield bus.FEATURE_GSO_TCPV4, 1
    yield bus.FEATURE_GSO_TCPV6, 1
    yield bus.FEATURE_IPV6_CSUM_OFFLOAD, 1


# Keys of another profile, or of another number of queues, that an earlier connection may have left.
STALE_KEYS = (
    bus.RX_RING_REF, bus.TX_RING_REF, bus.EVENT_CHANNEL, bus.EVENT_CHANNEL_TX, bus.EVENT_CHANNEL_RX,
    bus.MULTI_QUEUE_NUM_QUEUES,
)  # fmt: skip


def parse_options(words: Sequence[str]) -> NetfrontOptions:
    """What the kernel's words say of profile and queues; the last of each counts. Raises ValueError, one line."""
    profile: Profile = "full"
    queues = QUEUES_MAX
    for word in words:
        if not word.startswith(_WORD):
            continue
        name, _, value = word.removeprefix(_WORD).partition("=")
        if name == "profile" and value == "plain":
            profile = "plain"
        elif name == "profile" and value == "full":
            profile = "full"
        elif name == "queues" and value.isascii() and value.isdigit() and 1 <= int(value) <= QUEUES_MAX:
            queues = int(value)
        else:
            raise ValueError(f"{word}: write {_WORD}profile=plain or full, {_WORD}queues=1 to {QUEUES_MAX}")
    return NetfrontOptions(profile, queues)
