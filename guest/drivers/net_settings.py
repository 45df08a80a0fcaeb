"""What can be set of a network device while it runs, through its control queue.

Promises:
- What was set is set again after a reset of the device.
- What the device did not offer, or refuses, is said in one line; the old setting stays.
- Who asks is told through a callback: nothing here waits.

Read: virtio 1.4 §5.1.9.5.1 to §5.1.9.5.11.

Sections: `Capabilities`, `Settings`: after bringing up, receiving, queues, offloads, coalescing, statistics.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from guest.drivers.net_ctrl import ANSWER_ROOM, COMMAND_ROOM, CommandQueue
from hw.abi import virtio_net as net
from hw.abi import virtio_net_ctrl as abi

Told: TypeAlias = Callable[[str], None]  # why something could not be set, or an empty text

PAIRS_WANTED = 8
VLANS = range(1, 4095)
GROUPS_MAX = (COMMAND_ROOM - 10) // 6  # with more all groups are let in
KEY_SIZE = abi.RSS_KEY_SIZE_MIN
TABLE_SIZE = abi.RSS_TABLE_LENGTH_MIN
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_OFFLOADS = (
    net.VIRTIO_NET_F_GUEST_CSUM,
    net.VIRTIO_NET_F_GUEST_TSO4,
    net.VIRTIO_NET_F_GUEST_TSO6,
    net.VIRTIO_NET_F_GUEST_ECN,
    net.VIRTIO_NET_F_GUEST_UFO,
    net.VIRTIO_NET_F_GUEST_USO4,
    net.VIRTIO_NET_F_GUEST_USO6,
)


def _deaf(_why: str) -> None:
    """Nobody asked to be told."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the device has.

    Attributes:
        features: what was negotiated.
        pairs: queue pairs that are set up.
        control: the control queue's number.
        speed: Mbit/s, or None where it does not say.
        duplex: "half", "full" or "unknown".
        key_size, table_size: of RSS, in bytes and entries.
        hash_types: that it can hash.
    """

    features: int = 0
    pairs: int = 1
    control: int = 2
    speed: int | None = None
    duplex: str = "unknown"
    key_size: int = 0
    table_size: int = 0
    hash_types: int = 0

    def has(self, feature: int) -> bool:
        """Whether feature bit `feature` was negotiated."""
        return bool(self.features >> feature & 1)


class Settings:
    """The settings of one device.

    Args:
        rng: where the key of receive hashes comes from.
        use_pairs: told how many pairs may be sent on from now on.

    Attributes:
        can: what the device has.
        pairs: queue pairs in use.
        promiscuous, groups: what is received beside the own address and broadcasts.
        vlans: whose tagged frames are received.
        offloads: receive offloads in force, a mask of feature bits.
        coalescing: by queue number, packets and microseconds before an interrupt.
        table, key: of RSS; no table while steering is automatic.
    """

    def __init__(self, rng: random.Random, use_pairs: Callable[[int], None]) -> None:
        self.can = Capabilities()
        self.pairs = 0  # as many as there are, until somebody says a number
        self.promiscuous = False
        self.groups: frozenset[bytes] = frozenset()
        self.vlans: set[int] = set()
        self.offloads = 0
        self.coalescing: dict[int, tuple[int, int]] = {}
        self.table: tuple[int, ...] = ()
        self.key = b""
        self._wish: int | None = None  # offloads that were asked for
        self._rng = rng
        self._use_pairs = use_pairs
        self._queue: CommandQueue | None = None

    # -- after bringing up ---------------------------------------------------------------------------------------

    def apply(self, queue: CommandQueue | None, can: Capabilities, mac: bytes | None) -> None:
        """The device runs: tell it everything that is not as it begins.

        Args:
            queue: the control queue, None where there is none.
            can: what the device has.
            mac: the own address, where the device does not have it.
        """
        self._queue, self.can = queue, can
        self.offloads = can.features & sum(1 << bit for bit in _OFFLOADS)
        self._use_pairs(1)
        if queue is None:
            self.pairs = 1
            return
        pairs = min(self.pairs or can.pairs, can.pairs)
        self.pairs = 1
        if mac is not None and can.has(net.VIRTIO_NET_F_CTRL_MAC_ADDR):
            queue.send(abi.VIRTIO_NET_CTRL_MAC, abi.VIRTIO_NET_CTRL_MAC_ADDR_SET, mac)
        self._send_receive_mode()
        for vlan in sorted(self.vlans):
            self._send_vlan(abi.VIRTIO_NET_CTRL_VLAN_ADD, vlan, _deaf)
        if pairs > 1:
            self.set_pairs(pairs)
        elif can.has(net.VIRTIO_NET_F_HASH_REPORT):
            self._send_hash()
        if self._wish is not None:
            self.set_offloads(self._wish)
        for index, (packets, usecs) in list(self.coalescing.items()):
            self._send_coalescing(index, packets, usecs, _deaf)

    def renew(self, speed: int | None, duplex: str) -> None:
        """The device says another speed."""
        self.can = replace(self.can, speed=speed, duplex=duplex)

    def _ask(self, kind: int, command: int, data: bytes, done: Callable[[bool], None]) -> None:
        if self._queue is None:
            done(False)
        else:
            self._queue.send(kind, command, data, done=lambda result: done(result is not None))

    # -- receiving (§5.1.9.5.1 to §5.1.9.5.4) --------------------------------------------------------------------

    def receive(self, promiscuous: bool, groups: Iterable[bytes]) -> None:
        """What is received beside the own address and broadcasts: everything, or these groups."""
        wanted = frozenset(groups)
        if (promiscuous, wanted) != (self.promiscuous, self.groups):
            self.promiscuous, self.groups = promiscuous, wanted
            self._send_receive_mode()

    def _send_receive_mode(self) -> None:
        queue = self._queue
        if queue is None or not self.can.has(net.VIRTIO_NET_F_CTRL_RX):
            return
        many = len(self.groups) > GROUPS_MAX
        for mode, on in (
            (abi.VIRTIO_NET_CTRL_RX_PROMISC, self.promiscuous),
            (abi.VIRTIO_NET_CTRL_RX_ALLMULTI, many),
        ):
            queue.send(abi.VIRTIO_NET_CTRL_RX, mode, bytes((on,)))
        table = () if many else sorted(self.groups)
        data = _U32.pack(0) + _U32.pack(len(table)) + b"".join(table)
        queue.send(abi.VIRTIO_NET_CTRL_MAC, abi.VIRTIO_NET_CTRL_MAC_TABLE_SET, data)

    def set_vlan(self, vlan: int, on: bool, told: Told = _deaf) -> None:
        """Receive frames with the tag `vlan`, 1 to 4094, or no longer."""
        if not self.can.has(net.VIRTIO_NET_F_CTRL_VLAN):
            told("the device does not filter by VLAN")
        elif on:
            self.vlans.add(vlan)
            self._send_vlan(abi.VIRTIO_NET_CTRL_VLAN_ADD, vlan, told)
        else:
            self.vlans.discard(vlan)
            self._send_vlan(abi.VIRTIO_NET_CTRL_VLAN_DEL, vlan, told)

    def _send_vlan(self, command: int, vlan: int, told: Told) -> None:
        def done(fine: bool) -> None:
            told("" if fine else f"the device refuses VLAN {vlan}")

        self._ask(abi.VIRTIO_NET_CTRL_VLAN, command, _U16.pack(vlan), done)

    def acknowledge_announce(self) -> None:
        """The device is told that its wish to be announced was heard."""
        if self._queue is not None:
            self._queue.send(abi.VIRTIO_NET_CTRL_ANNOUNCE, abi.VIRTIO_NET_CTRL_ANNOUNCE_ACK)

    # -- queues (§5.1.9.5.5 to §5.1.9.5.7) -----------------------------------------------------------------------

    def set_pairs(self, pairs: int, told: Told = _deaf) -> None:
        """Use the first `pairs` of the queue pairs, and spread what is received over them."""
        can = self.can
        if not 1 <= pairs <= can.pairs:
            told(f"{pairs} queue pairs are not there; there are {can.pairs}")
            return
        if pairs < self.pairs:
            self._use_pairs(pairs)  # before the device is told, nothing may be sent on the others any more

        def done(fine: bool) -> None:
            if fine:
                self.pairs = pairs
            self._use_pairs(self.pairs)
            told("" if fine else f"the device refuses {pairs} queue pairs")

        if can.has(net.VIRTIO_NET_F_RSS):
            self._send_rss(pairs, done)
        elif can.has(net.VIRTIO_NET_F_MQ):
            data = _U16.pack(pairs)
            self._ask(abi.VIRTIO_NET_CTRL_MQ, abi.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, data, done)
            if can.has(net.VIRTIO_NET_F_HASH_REPORT):
                self._send_hash()
        else:
            done(pairs == self.pairs)

    def _make_key(self) -> bytes:
        if not self.key:
            self.key = self._rng.randbytes(min(KEY_SIZE, self.can.key_size))
        return self.key

    def _send_rss(self, pairs: int, done: Callable[[bool], None]) -> None:
        entries = 1 << min(TABLE_SIZE, max(1, self.can.table_size)).bit_length() - 1
        table = tuple(at % pairs for at in range(entries))
        key = self._make_key()
        data = abi.RSS_HEAD.pack(self.can.hash_types, entries - 1, 0) + struct.pack(f"<{entries}H", *table)
        data += abi.RSS_TAIL.pack(pairs, len(key)) + key

        def finish(fine: bool) -> None:
            if fine:
                self.table = table
            done(fine)

        self._ask(abi.VIRTIO_NET_CTRL_MQ, abi.VIRTIO_NET_CTRL_MQ_RSS_CONFIG, data, finish)

    def _send_hash(self) -> None:
        key = self._make_key()
        data = abi.HASH_HEAD.pack(self.can.hash_types, bytes(8), len(key)) + key
        self._ask(abi.VIRTIO_NET_CTRL_MQ, abi.VIRTIO_NET_CTRL_MQ_HASH_CONFIG, data, lambda _fine: None)

    # -- offloads (§5.1.9.5.9) -----------------------------------------------------------------------------------

    def set_offloads(self, offloads: int, told: Told = _deaf) -> None:
        """Have exactly these receive offloads, a mask of VIRTIO_NET_F_GUEST_* bits."""
        if not self.can.has(net.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS):
            told("the device cannot switch receive offloads")
            return

        def done(fine: bool) -> None:
            if fine:
                self.offloads = self._wish = offloads
            told("" if fine else "the device refuses these receive offloads")

        data = _U64.pack(offloads)
        self._ask(abi.VIRTIO_NET_CTRL_GUEST_OFFLOADS, abi.VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, data, done)

    # -- coalescing (§5.1.9.5.10) --------------------------------------------------------------------------------

    def set_coalescing(self, way: str, packets: int, usecs: int, told: Told = _deaf) -> None:
        """Let all queues of `way` ("rx" or "tx") wait for `packets` or `usecs` before they interrupt."""
        if not self.can.has(net.VIRTIO_NET_F_NOTF_COAL):
            told("the device cannot put interrupts off")
            return
        command = abi.VIRTIO_NET_CTRL_NOTF_COAL_TX_SET if way == "tx" else abi.VIRTIO_NET_CTRL_NOTF_COAL_RX_SET

        def done(fine: bool) -> None:
            if fine:
                for index in range(way == "tx", 2 * self.can.pairs, 2):
                    self.coalescing[index] = (packets, usecs)
            told("" if fine else "the device refuses these limits")

        self._ask(abi.VIRTIO_NET_CTRL_NOTF_COAL, command, abi.COAL.pack(packets, usecs), done)

    def set_queue_coalescing(self, index: int, packets: int, usecs: int, told: Told = _deaf) -> None:
        """The same for one queue, by its number."""
        if not self.can.has(net.VIRTIO_NET_F_VQ_NOTF_COAL):
            told("the device has one limit for all queues")
        else:
            self._send_coalescing(index, packets, usecs, told)

    def _send_coalescing(self, index: int, packets: int, usecs: int, told: Told) -> None:
        def done(fine: bool) -> None:
            if fine:
                self.coalescing[index] = (packets, usecs)
            told("" if fine else f"the device refuses these limits for queue {index}")

        if self.can.has(net.VIRTIO_NET_F_VQ_NOTF_COAL):
            data = abi.COAL_VQ.pack(index, 0, packets, usecs)
            self._ask(abi.VIRTIO_NET_CTRL_NOTF_COAL, abi.VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET, data, done)
        else:
            self.set_coalescing("tx" if index % 2 else "rx", packets, usecs, told)

    # -- statistics (§5.1.9.5.11) --------------------------------------------------------------------------------

    def ask_statistics(self, told: Callable[[dict[int, dict[str, int]] | None], None]) -> None:
        """What the device counted, by queue number; `told` gets None where it says nothing."""
        queue, can = self._queue, self.can
        if queue is None or not can.has(net.VIRTIO_NET_F_DEVICE_STATS):
            told(None)
            return

        def supported(result: bytes | None) -> None:
            if result is None or len(result) < _U64.size:
                told(None)
                return
            (types,) = _U64.unpack_from(result)
            data = b"".join(
                abi.STATS_WANTED.pack(index, kinds)
                for index in (*range(2 * can.pairs), can.control)
                if (kinds := types & self._types_of(index))
            )
            queue.send(
                abi.VIRTIO_NET_CTRL_STATS,
                abi.VIRTIO_NET_CTRL_STATS_GET,
                data,
                result=ANSWER_ROOM - 1,
                done=lambda answer: told(None if answer is None else parse_statistics(answer)),
            )

        queue.send(
            abi.VIRTIO_NET_CTRL_STATS, abi.VIRTIO_NET_CTRL_STATS_QUERY, result=_U64.size, done=supported
        )

    def _types_of(self, index: int) -> int:
        """The types that may be asked of queue `index` (§5.1.9.5.11.12)."""
        has = self.can.has
        if index == self.can.control:
            return 1 << abi.VIRTIO_NET_STATS_TYPE_REPLY_CVQ
        if index % 2:
            types = 1 << abi.VIRTIO_NET_STATS_TYPE_REPLY_TX_BASIC
            if has(net.VIRTIO_NET_F_CSUM):
                types |= 1 << abi.VIRTIO_NET_STATS_TYPE_REPLY_TX_CSUM
            if has(net.VIRTIO_NET_F_HOST_TSO4) or has(net.VIRTIO_NET_F_HOST_TSO6) or has(net.VIRTIO_NET_F_HOST_USO):
                types |= 1 << abi.VIRTIO_NET_STATS_TYPE_REPLY_TX_GSO
            return types
        types = 1 << abi.VIRTIO_NET_STATS_TYPE_REPLY_RX_BASIC
        if has(net.VIRTIO_NET_F_GUEST_CSUM):
            types |= 1 << abi.VIRTIO_NET_STATS_TYPE_REPLY_RX_CSUM
        if has(net.VIRTIO_NET_F_GUEST_TSO4) or has(net.VIRTIO_NET_F_GUEST_TSO6):
            types |= 1 << abi.VIRTIO_NET_STATS_TYPE_REPLY_RX_GSO
        return types


def parse_statistics(answer: bytes) -> dict[int, dict[str, int]]:
    """The counters in an answer, by queue number and name, as far as it is whole and known."""
    found: dict[int, dict[str, int]] = {}
    at = 0
    while at + abi.STATS_REPLY.size <= len(answer):
        kind, index, _, size = abi.STATS_REPLY.unpack_from(answer, at)
        fields = abi.STATS_FIELDS.get(kind, ())
        need = abi.STATS_REPLY.size + 8 * len(fields)
        if size < need or at + size > len(answer):
            break
        values = struct.unpack_from(f"<{len(fields)}Q", answer, at + abi.STATS_REPLY.size)
        found.setdefault(index, {}).update(zip(fields, values, strict=True))
        at += size
    return found
