"""The control ring: how the guest says by which hash received flows are spread over its queues.

Promises: a request gets one response; a size, offset, key or mapping beyond the limits is answered with
INVALID_PARAMETER and changes nothing (XSA-270 is what happens otherwise). Static grants are not supported, and the
answer says so.

Read first: Xen's public `io/netif.h`, "Control ring" and "Hash types".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hw.abi import xen_netif as nif
from hw.abi.xen import XEN_PAGE_SIZE
from hw.abi.xen_grant import GNTST_okay
from hw.wire.link import Buffer
from hw.xen.offload import transport_of
from hw.xen.ports import GrantCopy, GrantPort
from hw.xen.ring import BackRing

KEY_MAX = 40  # bytes
MAPPING_MAX = 128  # entries
_TCP = 6
_OK = nif.XEN_NETIF_CTRL_STATUS_SUCCESS
_INVALID = nif.XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER
_UNSUPPORTED = nif.XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED
_TYPES = (
    nif.XEN_NETIF_CTRL_HASH_TYPE_IPV4
    | nif.XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP
    | nif.XEN_NETIF_CTRL_HASH_TYPE_IPV6
    | nif.XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP
)


def toeplitz(key: bytes, data: Buffer) -> int:
    """The Toeplitz hash of `data` under `key`, which goes on with zeros behind its end; 32 bits."""
    bits = 8 * len(data)
    window = int.from_bytes(bytes(key[: len(data) + 4]).ljust(len(data) + 4, b"\0"), "big")
    value = int.from_bytes(data, "big")
    result = 0
    for bit in range(bits):
        if value >> (bits - 1 - bit) & 1:
            result ^= window >> (bits - bit)
    return result & 0xFFFFFFFF


class HashSteering:
    """What the guest has chosen: algorithm, types, key, mapping.

    Args:
        queues: how many receive queues there are; a mapping names only those.
    """

    def __init__(self, queues: int) -> None:
        self.queues = queues
        self.algorithm = nif.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE
        self.types = 0
        self.key = b""
        self.mapping: list[int] = []

    def queue(self, frame: Buffer) -> int | None:
        """The queue for a frame, or None when the choice is the back end's."""
        if self.algorithm != nif.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ or not self.types:
            return None
        transport = transport_of(frame)
        if transport is None:
            return None
        at = transport.network
        if transport.version == 4:
            plain, with_ports = nif.XEN_NETIF_CTRL_HASH_TYPE_IPV4, nif.XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP
            data = bytes(frame[at + 12 : at + 20])
        else:
            plain, with_ports = nif.XEN_NETIF_CTRL_HASH_TYPE_IPV6, nif.XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP
            data = bytes(frame[at + 8 : at + 40])
        if self.types & with_ports and transport.protocol == _TCP:
            data += bytes(frame[transport.start : transport.start + 4])
        elif not self.types & plain:
            return None
        value = toeplitz(self.key, data)
        return self.mapping[value % len(self.mapping)] if self.mapping else value % self.queues


class ControlRing:
    """The ring on which the guest changes the steering.

    Args:
        ring: attached.
        steering: what is changed.
        grants, domid: for keys and mappings in the guest's pages.
        notify: sends an event to the front end.
    """

    def __init__(
        self, ring: BackRing, steering: HashSteering, grants: GrantPort, domid: int, notify: Callable[[], None]
    ) -> None:
        self.ring = ring
        self._steering = steering
        self._grants = grants
        self._domid = domid
        self._notify = notify
        self._handlers: dict[int, Callable[[Sequence[int]], tuple[int, int]]] = {
            nif.XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS: self._get_flags,
            nif.XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS: self._set_flags,
            nif.XEN_NETIF_CTRL_TYPE_SET_HASH_KEY: self._set_key,
            nif.XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE: lambda data: (_OK, MAPPING_MAX),
            nif.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE: self._set_mapping_size,
            nif.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING: self._set_mapping,
            nif.XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM: self._set_algorithm,
        }

    def process(self) -> bool:
        """Answer what was asked; whether there is more to do at once. Raises RingError."""
        for first, *data in self.ring.take_some(self.ring.size):
            handler = self._handlers.get(first >> 16)
            status, value = (_UNSUPPORTED, 0) if handler is None else handler(data)
            self.ring.put(first, status, value)
        if self.ring.push():
            self._notify()
        return self.ring.final_check()

    def _fetch(self, ref: int, offset: int, length: int) -> bytes | None:
        """Bytes of a granted page, or None."""
        data = bytearray(length)
        if not length:
            return b""
        copy = GrantCopy(ref, offset, memoryview(data), False)
        if self._grants.copy(self._domid, [copy]) != [GNTST_okay]:
            return None
        return bytes(data)

    def _get_flags(self, data: Sequence[int]) -> tuple[int, int]:
        if self._steering.algorithm == nif.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE:
            return _UNSUPPORTED, 0
        return _OK, _TYPES

    def _set_flags(self, data: Sequence[int]) -> tuple[int, int]:
        if data[0] & ~_TYPES or self._steering.algorithm == nif.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE:
            return _INVALID, 0
        self._steering.types = data[0]
        return _OK, 0

    def _set_key(self, data: Sequence[int]) -> tuple[int, int]:
        if data[1] > KEY_MAX:
            return _INVALID, 0
        key = self._fetch(data[0], 0, data[1])
        if key is None:
            return _INVALID, 0
        self._steering.key = key
        return _OK, 0

    def _set_mapping_size(self, data: Sequence[int]) -> tuple[int, int]:
        if data[0] > MAPPING_MAX:
            return _INVALID, 0
        self._steering.mapping = [0] * data[0]
        return _OK, 0

    def _set_mapping(self, data: Sequence[int]) -> tuple[int, int]:
        ref, count, start = data
        size = len(self._steering.mapping)
        # Checked one by one, so that no sum can wrap.
        if count > size or start > size or start + count > size or 4 * count > XEN_PAGE_SIZE:
            return _INVALID, 0
        raw = self._fetch(ref, 0, 4 * count)
        if raw is None:
            return _INVALID, 0
        entries = [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]
        if any(entry >= self._steering.queues for entry in entries):
            return _INVALID, 0
        self._steering.mapping[start : start + count] = entries
        return _OK, 0

    def _set_algorithm(self, data: Sequence[int]) -> tuple[int, int]:
        if data[0] not in (
            nif.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE,
            nif.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
        ):
            return _INVALID, 0
        self._steering.algorithm = data[0]
        return _OK, 0
