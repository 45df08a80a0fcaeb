"""Xen's rings, grants and event channels, read from raw memory by the offsets of Xen's headers and nothing else.

Source: Xen's public `io/ring.h`, `io/netif.h`, `grant_table.h`, `event_channel.h`. As `decode.py`, this is the third
witness: it knows neither half.

Promises: decoding reads and never writes, tells no hook, and takes any content; a ring that makes no sense decodes to
values that make no sense.

A slot holds a request from when it was put until its response is put in the same place; which of the two it is, the
indices say.

Sections: rings, grants, event channels.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hw.abi import xen_event as event
from hw.abi import xen_grant as grant
from hw.abi import xen_netif as nif
from hw.abi import xen_ring as abi
from hw.abi.xen import XEN_PAGE_SIZE
from vring.view.decode import Owner, Spans

# -- rings -----------------------------------------------------------------------------------------------------------

Kind = Literal["tx", "rx"]

_WRAP = 0xFFFFFFFF
_INDICES = struct.Struct("<IIII")
_SIZES: dict[str, int] = {"tx": nif.TX_SLOT_SIZE, "rx": nif.RX_SLOT_SIZE}
_TX_FLAGS = (
    (nif.NETTXF_csum_blank, "csum_blank"), (nif.NETTXF_data_validated, "data_validated"),
    (nif.NETTXF_more_data, "more_data"), (nif.NETTXF_extra_info, "extra_info"),
)  # fmt: skip
_RX_FLAGS = (
    (nif.NETRXF_data_validated, "data_validated"), (nif.NETRXF_csum_blank, "csum_blank"),
    (nif.NETRXF_more_data, "more_data"), (nif.NETRXF_extra_info, "extra_info"),
)  # fmt: skip
_STATUS = {
    nif.NETIF_RSP_DROPPED: "DROPPED", nif.NETIF_RSP_ERROR: "ERROR", nif.NETIF_RSP_OKAY: "OKAY",
    nif.NETIF_RSP_NULL: "NULL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class XenRingState:
    """What lies in the page of a network ring. Indices run from 0 to 2**32 - 1 and wrap.

    Attributes:
        kind: which of the two rings, and so which messages.
        page: guest-physical address.
        slots: the raw bytes of each.
    """

    kind: Kind
    page: int
    req_prod: int
    req_event: int
    rsp_prod: int
    rsp_event: int
    slots: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """How many slots there are."""
        return len(self.slots)

    @property
    def pending(self) -> int:
        """How many requests were put and not answered."""
        return (self.req_prod - self.rsp_prod) & _WRAP

    def is_request(self, slot: int) -> bool:
        """Whether what lies in the slot is a request that was not answered."""
        return (slot - self.rsp_prod) % self.size < self.pending

    def owners(self) -> list[Owner]:
        """Whose each slot is now: the back end's from its request to its response."""
        return ["device" if self.is_request(slot) else "driver" for slot in range(self.size)]

    def request(self, slot: int) -> str:
        """The slot as a request, in words; a first extra information is known by the flag of what comes before it."""
        raw = self.slots[slot]
        if self.kind == "tx" and slot != self.rsp_prod % self.size:
            _, _, flags, _, _ = nif.TX_REQUEST.unpack(self.slots[slot - 1])
            if flags & nif.NETTXF_extra_info:
                return _extra(raw)
        if self.kind == "rx":
            number, _, gref = nif.RX_REQUEST.unpack(raw)
            return f"id {number}, gref {gref}"
        gref, offset, flags, number, size = nif.TX_REQUEST.unpack(raw)
        return f"id {number}, gref {gref}, offset {offset}, size {size}{_words(flags, _TX_FLAGS)}"

    def response(self, slot: int) -> str:
        """The slot as a response, in words; a first extra information is known by the flag of what comes before it."""
        raw = self.slots[slot]
        if self.kind == "rx":
            _, _, flags, _ = nif.RX_RESPONSE.unpack(self.slots[slot - 1])
            if flags & nif.NETRXF_extra_info and not self.is_request((slot - 1) % self.size):
                return _extra(raw)
            number, offset, flags, status = nif.RX_RESPONSE.unpack(raw)
            what = _STATUS.get(status, str(status)) if status <= 0 else f"{status} bytes"
            return f"id {number}, offset {offset}, {what}{_words(flags, _RX_FLAGS)}"
        number, status = nif.TX_RESPONSE.unpack_from(raw)
        return f"id {number}, {_STATUS.get(status, str(status))}"


def _extra(raw: bytes) -> str:
    """Extra information, in words."""
    kind, flags, size, gso, _, _ = nif.EXTRA_GSO.unpack_from(raw)
    more = " more" if flags & nif.XEN_NETIF_EXTRA_FLAG_MORE else ""
    if kind != nif.XEN_NETIF_EXTRA_TYPE_GSO:
        return f"extra type {kind}{more}"
    family = {nif.XEN_NETIF_GSO_TYPE_TCPV4: "TCPv4", nif.XEN_NETIF_GSO_TYPE_TCPV6: "TCPv6"}.get(gso, f"type {gso}")
    return f"extra GSO {family}, size {size}{more}"


def _words(flags: int, names: tuple[tuple[int, str], ...]) -> str:
    return "".join(f" {name}" for bit, name in names if flags & bit)


def decode_xen_ring(
    memory: bytes | bytearray | memoryview | Spans, page: int, kind: Kind, *, base: int = 0
) -> XenRingState:
    """Decode the ring at `page`.

    Args:
        memory: a dump of guest RAM, or guest RAM itself.
        kind: of which ring.
        base: guest-physical address of the dump's first byte.

    Raises ValueError for a page that is not all in the dump, `MemoryFault` for one outside guest RAM.
    """
    raw = _page(memory, page, base)
    size = _SIZES[kind]
    places = range(abi.SRING_HEADER_SIZE, abi.SRING_HEADER_SIZE + size * abi.ring_size(XEN_PAGE_SIZE, size), size)
    req_prod, req_event, rsp_prod, rsp_event = _INDICES.unpack_from(raw)
    slots = tuple(raw[at : at + size] for at in places)
    return XenRingState(kind, page, req_prod, req_event, rsp_prod, rsp_event, slots)


def _page(memory: bytes | bytearray | memoryview | Spans, page: int, base: int = 0) -> bytes:
    if isinstance(memory, bytes | bytearray | memoryview):
        start = page - base
        if start < 0 or start + XEN_PAGE_SIZE > len(memory):
            raise ValueError(f"the page at {page:#x} is not all in the dump")
        return bytes(memory[start : start + XEN_PAGE_SIZE])
    return bytes(memory.span(page, XEN_PAGE_SIZE))


# -- grants ----------------------------------------------------------------------------------------------------------

_GRANT_TYPES = {
    grant.GTF_permit_access: "permit_access", grant.GTF_accept_transfer: "accept_transfer",
    grant.GTF_transitive: "transitive",
}  # fmt: skip
_GRANT_FLAGS = ((grant.GTF_readonly, "readonly"), (grant.GTF_reading, "reading"), (grant.GTF_writing, "writing"))


@dataclass(frozen=True, slots=True)
class GrantEntry:
    """One entry of a grant table, version 1."""

    ref: int
    flags: int
    domid: int
    frame: int

    @property
    def address(self) -> int:
        """Guest-physical address of the page."""
        return self.frame * XEN_PAGE_SIZE

    @property
    def flag_names(self) -> str:
        """The flags as words."""
        kind = _GRANT_TYPES.get(self.flags & grant.GTF_type_mask, "invalid")
        return kind + _words(self.flags, _GRANT_FLAGS)


def decode_grants(memory: Spans, frames: Sequence[int]) -> list[GrantEntry]:
    """The entries that grant something, from the table whose pages lie at `frames`. Raises `MemoryFault`."""
    found = []
    for number, addr in enumerate(frames):
        entries = grant.GRANT_ENTRY.iter_unpack(_page(memory, addr))
        for ref, (flags, domid, frame) in enumerate(entries, number * grant.GRANTS_PER_FRAME):
            if flags & grant.GTF_type_mask != grant.GTF_invalid:
                found.append(GrantEntry(ref, flags, domid, frame))
    return found


# -- event channels --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EventBits:
    """What the shared info page says of event channels.

    Attributes:
        upcall_pending: the byte of vcpu 0 that keeps its interrupt line high.
        selector: which words of `pending` to look at, a bit each.
        pending, masked: the ports whose bit is set.
    """

    upcall_pending: int
    selector: int
    pending: frozenset[int]
    masked: frozenset[int]


def decode_events(memory: Spans, shared_info: int) -> EventBits:
    """The bits in the page at `shared_info`. Raises `MemoryFault`."""
    raw = _page(memory, shared_info)
    selector = int.from_bytes(raw[event.PENDING_SEL : event.PENDING_SEL + 8], "little")
    maps = (event.SHARED_INFO_EVTCHN_PENDING, event.SHARED_INFO_EVTCHN_MASK)
    pending, masked = (_ports(raw[at : at + 8 * event.EVTCHN_WORDS]) for at in maps)
    return EventBits(raw[event.UPCALL_PENDING], selector, pending, masked)


def _ports(bits: bytes) -> frozenset[int]:
    whole = int.from_bytes(bits, "little")
    return frozenset(port for port in range(whole.bit_length()) if whole >> port & 1)
