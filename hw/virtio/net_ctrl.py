"""The control queue of a network card: commands of the driver, each carried out whole or not at all.

Read first: virtio 1.4 §5.1.9.5 and its parts.

Promises:
- A command that is too short, too long, unknown, not negotiated or out of range is answered VIRTIO_NET_ERR and changes
  nothing.
- A chain without room for the answer breaks the rule of the queue, which is stopped (DEVICE_NEEDS_RESET).
- What a command changes is in force before its buffer is used.

Sections: `Card`, `ControlQueue`, commands by class: receive modes, addresses, VLANs, announcement; queues and hashes;
coalescing; statistics.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from hw.abi import virtio_net as net
from hw.abi import virtio_net_ctrl as ctrl
from hw.virtio.device import VirtioDevice
from hw.virtio.net_filter import MODES, VLANS, ReceiveFilter
from hw.virtio.net_side import Coalescing, Side
from hw.virtio.net_stats import CONTROL, RECEIVE, SUPPORTED, TRANSMIT, answer_to
from hw.virtio.queue import Chain, DeviceQueue, QueueError
from hw.virtio.steering import HASH_TYPES, KEY_MAX, TABLE_MAX, Rss, Steering

COMMAND_MAX = 1 << 16  # bytes of one command; ten thousand addresses
ADDRESS = 6
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Refused(Exception):
    """A command that is answered VIRTIO_NET_ERR; the text says why."""


class Card(VirtioDevice):
    """A network card that has a control queue, and what that changes of it.

    Attributes:
        negotiated: features, 0 without a driver.
        pairs: how many pairs of queues there are.
        filter: what is let in.
        steering: where it goes.
    """

    def __init__(self, features: int, queue_sizes: tuple[int, ...], pairs: int, mac: bytes) -> None:
        super().__init__(features, queue_sizes)
        self.negotiated = 0
        self.pairs = pairs
        self.filter = ReceiveFilter(mac)
        self.steering = Steering()

    @property
    def sides(self) -> list[Side]:
        """Receive and transmit sides, by queue number, where they are here."""
        return []

    def use_pairs(self, pairs: int) -> None:
        """Steer automatically over the first `pairs` (§5.1.9.5.6)."""
        raise Refused("there is one pair")

    def use_rss(self, rss: Rss, transmit: int) -> None:
        """Steer by a table (§5.1.9.5.7); the driver sends on `transmit` queues."""
        raise Refused("this card does not steer by tables")

    def set_offloads(self, offloads: int) -> None:
        """Receive offloads in force from now on (§5.1.9.5.9). Raises Refused for those that were not negotiated."""
        raise Refused("this card cannot switch offloads")

    def acknowledge_announce(self) -> None:
        """The driver has seen that it is to announce itself (§5.1.9.5.4)."""


class ControlQueue:
    """The control queue.

    Args:
        card: what commands change.

    Attributes:
        queue: the queue, None while it is not ready.
        index: its number in the terms of the driver that runs.
        refusal: why the last command that was refused was.
        done: commands received, and of those carried out (§5.1.9.5.11.3).
    """

    def __init__(self, card: Card) -> None:
        self.queue: DeviceQueue | None = None
        self.index = -1
        self.refusal = ""
        self.done = {"command_num": 0, "ok_num": 0}
        self._card = card
        self._all_rx = self._all_tx = Coalescing()  # for queues that are enabled later
        need: dict[tuple[int, int], tuple[int, Callable[[bytes], bytes | None]]] = {
            (ctrl.VIRTIO_NET_CTRL_MAC, ctrl.VIRTIO_NET_CTRL_MAC_TABLE_SET): (net.VIRTIO_NET_F_CTRL_RX, self._mac_table),
            (ctrl.VIRTIO_NET_CTRL_MAC, ctrl.VIRTIO_NET_CTRL_MAC_ADDR_SET): (
                net.VIRTIO_NET_F_CTRL_MAC_ADDR,
                self._mac_address,
            ),
            (ctrl.VIRTIO_NET_CTRL_VLAN, ctrl.VIRTIO_NET_CTRL_VLAN_ADD): (net.VIRTIO_NET_F_CTRL_VLAN, self._vlan_add),
            (ctrl.VIRTIO_NET_CTRL_VLAN, ctrl.VIRTIO_NET_CTRL_VLAN_DEL): (net.VIRTIO_NET_F_CTRL_VLAN, self._vlan_del),
            (ctrl.VIRTIO_NET_CTRL_ANNOUNCE, ctrl.VIRTIO_NET_CTRL_ANNOUNCE_ACK): (
                net.VIRTIO_NET_F_GUEST_ANNOUNCE,
                self._announce_ack,
            ),
            (ctrl.VIRTIO_NET_CTRL_MQ, ctrl.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET): (net.VIRTIO_NET_F_MQ, self._pairs),
            (ctrl.VIRTIO_NET_CTRL_MQ, ctrl.VIRTIO_NET_CTRL_MQ_RSS_CONFIG): (net.VIRTIO_NET_F_RSS, self._rss),
            (ctrl.VIRTIO_NET_CTRL_MQ, ctrl.VIRTIO_NET_CTRL_MQ_HASH_CONFIG): (
                net.VIRTIO_NET_F_HASH_REPORT,
                self._hash,
            ),
            (ctrl.VIRTIO_NET_CTRL_GUEST_OFFLOADS, ctrl.VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET): (
                net.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
                self._offloads,
            ),
            (ctrl.VIRTIO_NET_CTRL_NOTF_COAL, ctrl.VIRTIO_NET_CTRL_NOTF_COAL_TX_SET): (
                net.VIRTIO_NET_F_NOTF_COAL,
                self._coalesce_tx,
            ),
            (ctrl.VIRTIO_NET_CTRL_NOTF_COAL, ctrl.VIRTIO_NET_CTRL_NOTF_COAL_RX_SET): (
                net.VIRTIO_NET_F_NOTF_COAL,
                self._coalesce_rx,
            ),
            (ctrl.VIRTIO_NET_CTRL_NOTF_COAL, ctrl.VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET): (
                net.VIRTIO_NET_F_VQ_NOTF_COAL,
                self._coalesce_queue,
            ),
            (ctrl.VIRTIO_NET_CTRL_NOTF_COAL, ctrl.VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET): (
                net.VIRTIO_NET_F_VQ_NOTF_COAL,
                self._coalescing,
            ),
            (ctrl.VIRTIO_NET_CTRL_STATS, ctrl.VIRTIO_NET_CTRL_STATS_QUERY): (
                net.VIRTIO_NET_F_DEVICE_STATS,
                self._stats_query,
            ),
            (ctrl.VIRTIO_NET_CTRL_STATS, ctrl.VIRTIO_NET_CTRL_STATS_GET): (
                net.VIRTIO_NET_F_DEVICE_STATS,
                self._stats_get,
            ),
        }
        for mode, feature in MODES.items():
            need[ctrl.VIRTIO_NET_CTRL_RX, mode] = (feature, self._mode_setter(mode))
        self._commands = need

    def reset(self) -> None:
        """Forget what the driver said."""
        self.queue, self.index = None, -1
        self._all_rx = self._all_tx = Coalescing()

    def run(self) -> None:
        """Carry out what the driver asks for, one command after another."""
        queue = self.queue
        if queue is None:
            return
        try:
            queue.disable_kicks()
            for _ in range(queue.size):
                chain = queue.pop()
                if chain is None:
                    break
                queue.push(chain.head, self._carry_out(chain))
            self._publish(queue)
            if queue.enable_kicks():
                self._again()
        except QueueError as error:
            self._publish(queue)
            if self._card.transport is not None:
                self._card.transport.fail(queue.index, str(error))

    def _publish(self, queue: DeviceQueue) -> None:
        if queue.flush() and self._card.transport is not None:
            self._card.transport.notify_used(queue.index)

    def _again(self) -> None:
        if self._card.transport is not None:
            self._card.transport.again(self.index)

    def _carry_out(self, chain: Chain) -> int:
        """Do what `chain` asks, and answer; the bytes written."""
        if not chain.writable_length:
            raise QueueError("a command without room for its answer (virtio 1.4 §5.1.9.5)")
        self.done["command_num"] += 1
        self._card.counters["ctrl_commands"] += 1
        try:
            answer = bytes((ctrl.VIRTIO_NET_OK,)) + self._do(chain)
            self.done["ok_num"] += 1
        except Refused as why:
            self.refusal = str(why)
            self._card.counters["ctrl_refused"] += 1
            answer = bytes((ctrl.VIRTIO_NET_ERR,))
        written = 0
        for view in chain.writable:
            part = answer[written : written + len(view)]
            view[: len(part)] = part
            written += len(part)
        return written

    def _do(self, chain: Chain) -> bytes:
        if not 2 <= chain.readable_length <= COMMAND_MAX:
            raise Refused(f"a command of {chain.readable_length} bytes")
        content = b"".join(chain.readable)
        name = f"{ctrl.CLASS_NAMES.get(content[0], content[0])} command {content[1]}"
        known = self._commands.get((content[0], content[1]))
        if known is None:
            raise Refused(f"{name} is not known")
        feature, act = known
        if not self._card.negotiated >> feature & 1:
            raise Refused(f"{name} needs {net.FEATURE_NAMES[feature]}, which was not negotiated")
        try:
            return act(content[2:]) or b""
        except struct.error as error:
            raise Refused(f"{name}: {error}") from None
        except Refused as why:
            raise Refused(f"{name}: {why}") from None

    # -- receive modes, addresses, VLANs, announcement (§5.1.9.5.1 to §5.1.9.5.4) ------------------------------------

    def _mode_setter(self, mode: int) -> Callable[[bytes], None]:
        def set_mode(data: bytes) -> None:
            if len(data) != 1 or data[0] > 1:
                raise Refused(f"{data.hex()} is neither 0 nor 1")
            self._card.filter.set_mode(mode, bool(data[0]))

        return set_mode

    def _mac_table(self, data: bytes) -> None:
        tables = []
        for _ in range(2):
            (count,) = _U32.unpack_from(data)
            data = data[_U32.size :]
            length = count * ADDRESS
            if length > len(data):
                raise Refused(f"{count} addresses in {len(data)} bytes")
            tables.append([data[at : at + ADDRESS] for at in range(0, length, ADDRESS)])
            data = data[length:]
        unicast, multicast = tables
        if data:
            raise Refused(f"{len(data)} bytes behind the table")
        if any(mac[0] & 1 for mac in unicast) or not all(mac[0] & 1 for mac in multicast):
            raise Refused("an address stands in the other's table")
        self._card.filter.set_table(unicast, multicast)

    def _mac_address(self, data: bytes) -> None:
        if len(data) != ADDRESS or data[0] & 1 or not any(data):
            raise Refused(f"{data.hex(':')} is no station's address")
        self._card.filter.mac = data

    def _vlan(self, data: bytes) -> int:
        (vlan,) = _U16.unpack(data)
        if vlan >= VLANS:
            raise Refused(f"there is no VLAN {vlan}")
        return int(vlan)

    def _vlan_add(self, data: bytes) -> None:
        self._card.filter.vlans.add(self._vlan(data))

    def _vlan_del(self, data: bytes) -> None:
        self._card.filter.vlans.discard(self._vlan(data))

    def _announce_ack(self, data: bytes) -> None:
        if data:
            raise Refused(f"{len(data)} bytes that mean nothing")
        self._card.acknowledge_announce()

    # -- queues and hashes (§5.1.9.5.6 to §5.1.9.5.9) ----------------------------------------------------------------

    def _pairs(self, data: bytes) -> None:
        (pairs,) = _U16.unpack(data)
        if not 1 <= pairs <= self._card.pairs:
            raise Refused(f"{pairs} pairs of the {self._card.pairs} that there are")
        self._card.use_pairs(pairs)

    def _hash_key(self, types: int, data: bytes, length: int) -> bytes:
        if types & ~HASH_TYPES:
            raise Refused(f"hash types {types & ~HASH_TYPES:#x} are not supported")
        if len(data) != length:
            raise Refused(f"a key of {length} bytes in {len(data)}")
        if length > KEY_MAX:
            raise Refused(f"a key of {length} bytes is longer than {KEY_MAX}")
        return data

    def _hash(self, data: bytes) -> None:
        types, _, length = ctrl.HASH_HEAD.unpack_from(data)
        key = self._hash_key(types, data[ctrl.HASH_HEAD.size :], length)
        self._card.steering.use_hash(types, key)

    def _rss(self, data: bytes) -> None:
        types, mask, unclassified = ctrl.RSS_HEAD.unpack_from(data)
        entries = mask + 1
        if entries & mask or entries > TABLE_MAX:
            raise Refused(f"a table of {entries} entries")
        at = ctrl.RSS_HEAD.size + 2 * entries
        table = struct.unpack_from(f"<{entries}H", data, ctrl.RSS_HEAD.size)
        transmit, length = ctrl.RSS_TAIL.unpack_from(data, at)
        key = self._hash_key(types, data[at + ctrl.RSS_TAIL.size :], length)
        sides = self._card.sides
        for pair in (*table, unclassified):
            if pair >= self._card.pairs or sides[2 * pair].queue is None:
                raise Refused(f"receive queue {pair + 1} is not there")
        if not 1 <= transmit <= self._card.pairs:
            raise Refused(f"{transmit} transmit queues of the {self._card.pairs} that there are")
        self._card.use_rss(Rss(table, unclassified), transmit)
        self._card.steering.use_hash(types, key)

    def _offloads(self, data: bytes) -> None:
        (offloads,) = _U64.unpack(data)
        self._card.set_offloads(offloads)

    # -- coalescing (§5.1.9.5.10) ------------------------------------------------------------------------------------

    def _coalesce_rx(self, data: bytes) -> None:
        self._all_rx = Coalescing(*ctrl.COAL.unpack(data))
        for side in self._card.sides[::2]:
            side.coalesce(self._all_rx)

    def _coalesce_tx(self, data: bytes) -> None:
        self._all_tx = Coalescing(*ctrl.COAL.unpack(data))
        for side in self._card.sides[1::2]:
            side.coalesce(self._all_tx)

    def coalescing_of(self, index: int) -> Coalescing:
        """What a queue begins with when it is enabled: what was set for all of its kind."""
        return self._all_tx if index % 2 else self._all_rx

    def _side(self, index: int) -> Side:
        sides = self._card.sides
        if index >= len(sides) or sides[index].queue is None:
            raise Refused(f"queue {index} is no receive or transmit queue that is enabled")
        return sides[index]

    def _coalesce_queue(self, data: bytes) -> None:
        index, _, packets, usecs = ctrl.COAL_VQ.unpack(data)
        self._side(index).coalesce(Coalescing(packets, usecs))

    def _coalescing(self, data: bytes) -> bytes:
        """The index is the driver's, and what follows it is the answer, behind the acknowledgement."""
        index, _ = struct.unpack_from("<HH", data)
        return ctrl.COAL.pack(*self._side(index).coalescing)

    # -- statistics (§5.1.9.5.11) ------------------------------------------------------------------------------------

    def _stats_query(self, data: bytes) -> bytes:
        if data:
            raise Refused(f"{len(data)} bytes that mean nothing")
        return _U64.pack(SUPPORTED)

    def _stats_get(self, data: bytes) -> bytes:
        if not data or len(data) % ctrl.STATS_WANTED.size:
            raise Refused(f"{len(data)} bytes are no list of queues")
        done = dict(self.done)
        done["ok_num"] += 1  # this one: nothing below changes anything
        out = b""
        sides = self._card.sides
        for index, types in ctrl.STATS_WANTED.iter_unpack(data):
            if index == self.index:
                kind, stats = CONTROL, done
            elif index < len(sides):
                kind, stats = (TRANSMIT if index % 2 else RECEIVE), dict(sides[index].stats)
                stats["notifications"] = self._card.notifications[index]
            else:
                raise Refused(f"there is no queue {index}")
            answer = answer_to(kind, index, types, self._card.negotiated, stats)
            if answer is None:
                raise Refused(f"queue {index} has no statistics {types:#x}")
            out += answer
        return out
