"""What all of Xen's interfaces share: the page, and the names that domains go by.

Source: Xen's public `xen.h`. Domain numbers are 16 bits wide.
"""

from __future__ import annotations

XEN_PAGE_SIZE = 4096

DOMID_FIRST_RESERVED = 0x7FF0  # real domains have smaller numbers
DOMID_SELF = 0x7FF0
DOMID_INVALID = 0x7FF4
DOM0 = 0  # the control domain, where back ends and the store live
