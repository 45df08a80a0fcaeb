"""Names and words for what lies in Xen's shared pages: `request[3].gref`, `grant_table[9]`, `evtchn_pending[0]`.

A slot holds a request until its response is put in its place, so the name of a word in it depends on who does what:
front ends store requests and load responses, back ends the other way round.

Source: the layouts of `hw.abi`; names are those of Xen's public headers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from hw.abi import xen_event as event
from hw.abi import xen_grant as grant
from hw.abi import xen_netif as nif
from hw.abi import xen_ring as ring
from hw.abi.xen import XEN_PAGE_SIZE
from vring.view.decode_xen import GrantEntry, Kind

Words = Callable[[int], str]  # a value in words

_INDICES = {
    ring.REQ_PROD: "req_prod", ring.REQ_EVENT: "req_event", ring.RSP_PROD: "rsp_prod", ring.RSP_EVENT: "rsp_event",
}  # fmt: skip
_STATUS = {0: "OKAY", 1: "NULL", 0xFFFF: "ERROR", 0xFFFE: "DROPPED"}


def _pair(low: str, high: str) -> tuple[str, Words]:
    return f"{low}+{high}", lambda value: f"{low} {value & 0xFFFF}, {high} {value >> 16}"


def _answered(value: int) -> str:
    return f"id {value & 0xFFFF}, status {_STATUS.get(value >> 16, value >> 16)}"


# The words of each message: a name, and how to say its value.
_REQUESTS: dict[Kind, tuple[tuple[str, Words], ...]] = {
    "tx": (("gref", str), _pair("offset", "flags"), _pair("id", "size")),
    "rx": (("id", str), ("gref", str)),
}
_RESPONSES: dict[Kind, tuple[tuple[str, Words], ...]] = {
    "tx": (("id+status", _answered),),
    "rx": (_pair("id", "offset"), _pair("flags", "status")),
}
_SLOT = {"tx": nif.TX_SLOT_SIZE, "rx": nif.RX_SLOT_SIZE}


def _ports(first: int, value: int) -> str:
    return ", ".join(f"port {first + bit}" for bit in range(value.bit_length()) if value >> bit & 1) or "none"


class XenNames:
    """What lies where in the pages that a domain shares."""

    def __init__(self) -> None:
        self._rings: dict[int, tuple[Kind, str]] = {}
        self._frames: list[int] = []
        self._shared_info = -XEN_PAGE_SIZE

    def add_ring(self, page: int, kind: Kind, prefix: str = "") -> None:
        """Name what lies in the page of a ring; `prefix` goes before each name."""
        self._rings[page] = kind, prefix

    def add_grant_table(self, frames: Sequence[int]) -> None:
        """Name the entries of the grant table whose pages lie at `frames`."""
        self._frames = list(frames)

    def add_shared_info(self, page: int) -> None:
        """Name what the shared info page says of event channels."""
        self._shared_info = page

    def name(self, addr: int, size: int, *, response: bool) -> tuple[str, Words]:
        """A name for the `size` bytes at `addr`, and how to say their value; the address where nothing has a name.

        Args:
            response: whether a slot's word is one of a response, see above.
        """
        page, offset = addr & -XEN_PAGE_SIZE, addr % XEN_PAGE_SIZE
        if page in self._rings:
            return self._ring_word(*self._rings[page], offset, response)
        if page in self._frames:
            return self._grant(self._frames.index(page), offset, size)
        if page == self._shared_info:
            return self._event(offset)
        return f"{addr:#x}", str

    @staticmethod
    def _ring_word(kind: Kind, prefix: str, offset: int, response: bool) -> tuple[str, Words]:
        if offset in _INDICES:
            return prefix + _INDICES[offset], str
        slot, at = divmod(offset - ring.SRING_HEADER_SIZE, _SLOT[kind])
        words = (_RESPONSES if response else _REQUESTS)[kind]
        if slot < 0 or at // 4 >= len(words):
            return f"{prefix}page+{offset}", str
        name, say = words[at // 4]
        return f"{prefix}{'response' if response else 'request'}[{slot}].{name}", say

    @staticmethod
    def _grant(number: int, offset: int, size: int) -> tuple[str, Words]:
        ref = number * grant.GRANTS_PER_FRAME + offset // grant.GRANT_ENTRY_SIZE

        def say(value: int) -> str:
            entry = GrantEntry(ref, value & 0xFFFF, value >> 16 & 0xFFFF, value >> 32)
            return f"{entry.flag_names} to domain {entry.domid}, frame {entry.frame:#x}"

        if size == grant.GRANT_ENTRY_SIZE:
            return f"grant_table[{ref}]", say
        part = {0: "flags", 2: "domid", 4: "frame"}[offset % grant.GRANT_ENTRY_SIZE]
        return f"grant_table[{ref}].{part}", str

    @staticmethod
    def _event(offset: int) -> tuple[str, Words]:
        if offset == event.UPCALL_PENDING:
            return "evtchn_upcall_pending", str
        if offset == event.PENDING_SEL:
            return "evtchn_pending_sel", lambda value: f"{value:#x}"
        for start, name in ((event.SHARED_INFO_EVTCHN_PENDING, "pending"), (event.SHARED_INFO_EVTCHN_MASK, "mask")):
            word, rest = divmod(offset - start, 8)
            if 0 <= word < event.EVTCHN_WORDS and not rest:
                return f"evtchn_{name}[{word}]", partial(_ports, event.EVTCHN_WORD_BITS * word)
        return f"shared_info+{offset}", str
