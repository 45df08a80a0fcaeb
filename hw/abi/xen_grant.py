"""The grant table, version 1: which page of a domain another domain may reach.

Source: Xen's public `grant_table.h`. An entry is made valid by storing `domid` and `frame` first and `flags` last.
Xen sets `GTF_reading` and `GTF_writing` while the entry is in use; the owner may take it back only when neither is
set.
"""

from __future__ import annotations

import struct

from hw.abi.layout import Layout

GRANT_ENTRY_V1 = Layout.of("grant_entry_v1", [("flags", "H"), ("domid", "H"), ("frame", "I")])
GRANT_ENTRY = struct.Struct("<HHI")  # the same: flags, domid, frame number
GRANT_ENTRY_SIZE = 8
GRANTS_PER_FRAME = 512  # entries in one page of the table

GNTTAB_NR_RESERVED_ENTRIES = 8  # the first references belong to the toolstack
GNTTAB_RESERVED_CONSOLE = 0
GNTTAB_RESERVED_XENSTORE = 1

GTF_invalid = 0
GTF_permit_access = 1
GTF_accept_transfer = 2
GTF_transitive = 3
GTF_type_mask = 3
GTF_readonly = 1 << 2
GTF_reading = 1 << 3
GTF_writing = 1 << 4
GTF_sub_page = 1 << 8

GNTMAP_device_map = 1 << 0
GNTMAP_host_map = 1 << 1
GNTMAP_readonly = 1 << 2

GNTCOPY_source_gref = 1 << 0
GNTCOPY_dest_gref = 1 << 1

GNTST_okay = 0
GNTST_general_error = -1
GNTST_bad_domain = -2
GNTST_bad_gntref = -3
GNTST_bad_handle = -4
GNTST_bad_virt_addr = -5
GNTST_bad_dev_addr = -6
GNTST_no_device_space = -7
GNTST_permission_denied = -8
GNTST_bad_page = -9
GNTST_bad_copy_arg = -10
GNTST_address_too_big = -11
GNTST_eagain = -12
GNTST_no_space = -13

STATUS_NAMES = {
    value: name.removeprefix("GNTST_") for name, value in list(globals().items()) if name.startswith("GNTST_")
}
