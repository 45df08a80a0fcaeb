"""Names for addresses: `desc[3].addr`, `avail.idx`, `QUEUE_NOTIFY`, instead of numbers.

Source: the layouts of `hw.abi`; names are those of virtio 1.4 §2.7 and §4.2.2. Shared by everything that shows accesses
to people.
"""

from __future__ import annotations

from hw.abi import virtio_mmio, virtio_net
from hw.abi import virtio_packed as packed
from hw.abi import virtio_ring as abi

WINDOW = 0x1000


class FieldNames:
    """A map from guest-physical addresses to the names of what lies there.

    Rings and devices are added with a prefix, which is put in front of their names ("tx " or "").
    """

    def __init__(self) -> None:
        self._fields: dict[int, tuple[int, str]] = {}
        self._devices: list[tuple[int, str]] = []
        self._buffers: list[tuple[int, int, str]] = []

    def add_split_ring(self, addresses: tuple[int, int, int], size: int, prefix: str = "") -> None:
        """Name every field of a split virtqueue with `size` entries (descriptor table, available ring, used ring)."""
        desc, driver, device = addresses
        for index in range(size):
            for name, field in abi.VRING_DESC.fields.items():
                at = desc + abi.DESC_SIZE * index + field.offset
                self._fields[at] = (field.size, f"{prefix}desc[{index}].{name}")
            self._fields[driver + abi.RING_ENTRIES + 2 * index] = (2, f"{prefix}avail.ring[{index}]")
            for name, field in abi.VRING_USED_ELEM.fields.items():
                at = device + abi.RING_ENTRIES + abi.USED_ELEM_SIZE * index + field.offset
                self._fields[at] = (field.size, f"{prefix}used.ring[{index}].{name}")
        for area, name, event_offset, event in (
            (driver, "avail", abi.used_event_offset(size), "used_event"),
            (device, "used", abi.avail_event_offset(size), "avail_event"),
        ):
            self._fields[area + abi.RING_FLAGS] = (2, f"{prefix}{name}.flags")
            self._fields[area + abi.RING_IDX] = (2, f"{prefix}{name}.idx")
            self._fields[area + event_offset] = (2, f"{prefix}{event}")

    def add_packed_ring(self, addresses: tuple[int, int, int], size: int, prefix: str = "") -> None:
        """Name every field of a packed virtqueue with `size` entries (descriptor ring, driver's event, device's)."""
        ring, driver, device = addresses
        for index in range(size):
            for name, field in packed.VRING_PACKED_DESC.fields.items():
                at = ring + packed.PACKED_DESC_SIZE * index + field.offset
                self._fields[at] = (field.size, f"{prefix}desc[{index}].{name}")
        for area, name in ((driver, "driver_event"), (device, "device_event")):
            for member, field in packed.VRING_PACKED_DESC_EVENT.fields.items():
                self._fields[area + field.offset] = (field.size, f"{prefix}{name}.{member}")

    def add_virtio_mmio(self, base: int, prefix: str = "") -> None:
        """Name the registers of a virtio-mmio device at `base`, and the fields of a network device's configuration."""
        self._devices.append((base, prefix))

    def add_buffer(self, addr: int, length: int, name: str) -> None:
        """Name a piece of payload; of pieces that overlap the one added last is named."""
        self._buffers.append((addr, length, name))

    def name(self, addr: int, size: int) -> str:
        """What lies at `addr`: one name, several joined by "+", or the address where nothing has a name."""
        names = []
        at = addr
        while at < addr + size:
            field = self._fields.get(at)
            if field is None:
                break
            names.append(field[1])
            at += field[0]
        if names:
            first = names[0].rsplit(".", 1)[0] + "."
            return "+".join([names[0], *(name.removeprefix(first) for name in names[1:])])
        for base, prefix in self._devices:
            if base <= addr < base + WINDOW:
                return prefix + self._register(addr - base)
        for start, length, name in reversed(self._buffers):
            if start <= addr < start + length:
                return name if addr == start else f"{name}+{addr - start}"
        return f"{addr:#x}"

    @staticmethod
    def _register(offset: int) -> str:
        name = virtio_mmio.REGISTER_NAMES.get(offset)
        if name is not None and offset < virtio_mmio.VIRTIO_MMIO_CONFIG:
            return name
        for field, place in virtio_net.VIRTIO_NET_CONFIG.fields.items():
            delta = offset - virtio_mmio.VIRTIO_MMIO_CONFIG - place.offset
            if 0 <= delta < place.size:
                return f"config.{field}" + (f"[{delta}]" if delta or field == "mac" else "")
        return f"register {offset:#05x}"
