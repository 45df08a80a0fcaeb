"""A shared ring as it lies in its page: four indices, then the slots.

Source: Xen's public `io/ring.h`. The indices count messages and wrap at 2^32; a message's slot is its index modulo
the number of slots. Whoever made the page (the front end) writes the indices' first values: both producers 0, both
events 1. The front end writes `req_prod` and `rsp_event`, the back end `rsp_prod` and `req_event`.
"""

from __future__ import annotations

from hw.abi.layout import Layout

# The part before the slots; `sring_layout` has the whole struct of one kind of ring.
SRING_HEADER_SIZE = 64
REQ_PROD = 0
REQ_EVENT = 4
RSP_PROD = 8
RSP_EVENT = 12

# First values of an empty ring.
PROD_INIT = 0
EVENT_INIT = 1


def sring_layout(name: str, slot_size: int) -> Layout:
    """`struct <name>_sring`, whose `ring` is the first of its slots."""
    return Layout.of(
        f"{name}_sring",
        [
            ("req_prod", "I"),
            ("req_event", "I"),
            ("rsp_prod", "I"),
            ("rsp_event", "I"),
            ("pvt", "4s"),
            ("__pad", "44s"),
            ("ring", f"{slot_size}s"),
        ],
    )


def ring_size(page_bytes: int, slot_size: int) -> int:
    """Slots in a ring of `page_bytes` bytes: as many as fit behind the header, rounded down to a power of two."""
    fit = (page_bytes - SRING_HEADER_SIZE) // slot_size
    return 1 << (fit.bit_length() - 1)
