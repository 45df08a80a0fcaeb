"""How a C struct is written down: a name, a size, and for each field its offset and width in bytes.

A `Layout` is used by the tools that show memory to people and by the test that compares it with the C headers. Code
on the data path uses the offsets as plain integers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Field:
    """One member: byte `offset` in the struct, `size` in bytes, `format` as the struct module writes it."""

    offset: int
    size: int
    format: str


@dataclass(frozen=True, slots=True)
class Layout:
    """A struct with little-endian members: `size` in bytes and `fields` by name, in order."""

    name: str
    size: int
    fields: Mapping[str, Field]

    @classmethod
    def of(cls, name: str, members: Iterable[tuple[str, str]]) -> Layout:
        """Lay out `members`, pairs of name and struct-module format, one behind the other.

        A member without a name is padding: it takes room and is no field.
        """
        fields: dict[str, Field] = {}
        offset = 0
        for member, fmt in members:
            size = struct.calcsize("<" + fmt)
            if member:
                fields[member] = Field(offset, size, fmt)
            offset += size
        return cls(name, offset, MappingProxyType(fields))

    def offset(self, field: str) -> int:
        """Byte offset of `field`. Raises KeyError for a name that the struct does not have."""
        return self.fields[field].offset

    def unpack(self, raw: bytes | memoryview) -> dict[str, int | bytes]:
        """Decode the first `size` bytes of `raw`, for people to read. Raises struct.error when it is too short."""
        values: dict[str, int | bytes] = {}
        for name, field in self.fields.items():
            (values[name],) = struct.unpack_from("<" + field.format, raw, field.offset)
        return values
