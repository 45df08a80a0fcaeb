"""Event channels, two-level: which bits of the shared info page say what.

Source: Xen's public `event_channel.h` and `xen.h` (struct shared_info, x86-64). Port p is bit p % 64 of word p // 64 in
both bitmaps. Setting a pending bit that was clear, on a port that is not masked, sets bit p // 64 of the vcpu's
`evtchn_pending_sel`, then `evtchn_upcall_pending`, and calls the guest. The guest clears `evtchn_upcall_pending` first,
then takes the selector, then the pending bits. An event that came while its port was masked makes no call by itself:
the guest unmasks with EVTCHNOP_unmask, which delivers it.
"""

from __future__ import annotations

from hw.abi.layout import Layout

VCPU_INFO = Layout.of(
    "vcpu_info",
    [
        ("evtchn_upcall_pending", "B"),
        ("evtchn_upcall_mask", "B"),
        ("", "6s"),
        ("evtchn_pending_sel", "Q"),
        ("arch", "16s"),
        ("time", "32s"),
    ],
)

# Offsets in the shared info page; vcpu 0 is at 0.
SHARED_INFO_VCPU_INFO = 0
SHARED_INFO_EVTCHN_PENDING = 2048
SHARED_INFO_EVTCHN_MASK = 2560
UPCALL_PENDING = 0  # in vcpu_info
UPCALL_MASK = 1
PENDING_SEL = 8

EVTCHN_WORD_BITS = 64
EVTCHN_WORDS = 64
EVTCHN_2L_NR_CHANNELS = 4096  # port 0 is never used

EVTCHNSTAT_closed = 0
EVTCHNSTAT_unbound = 1
EVTCHNSTAT_interdomain = 2
EVTCHNSTAT_pirq = 3
EVTCHNSTAT_virq = 4
EVTCHNSTAT_ipi = 5
