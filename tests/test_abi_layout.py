"""The data sheet against the kernel's headers: a C program is compiled that says what they say, field by field.

`hw.abi` writes every struct and constant down by hand. Here a C compiler is the witness: one generated program prints
offset and size of each member of each layout, the value of each constant that the headers know, and where
`vring_init` puts the areas of a queue of every legal size.
"""

from __future__ import annotations

import importlib
import pkgutil
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

import hw.abi
from hw.abi import (
    virtio_mmio,
    virtio_net,
    virtio_net_ctrl,
    virtio_ring,
    xen_event,
    xen_grant,
    xen_netif,
    xen_ring,
    xen_store,
)  # fmt: skip
from hw.abi.layout import Layout
from tests.requirements import require_header, require_program

HEADERS = {
    "hw.abi.virtio": ["linux/virtio_config.h", "linux/virtio_ids.h", "linux/virtio_ring.h"],
    "hw.abi.virtio_ring": ["linux/virtio_ring.h"],
    "hw.abi.virtio_packed": ["linux/virtio_ring.h"],
    "hw.abi.virtio_mmio": ["linux/virtio_mmio.h"],
    "hw.abi.virtio_net": ["linux/virtio_net.h"],
    "hw.abi.virtio_net_ctrl": ["linux/virtio_net.h"],
    "hw.abi.vhost_user": ["linux/vhost_types.h"],
    "hw.abi.if_tun": ["linux/if_tun.h"],
    "hw.abi.xen": ["xen/xen.h"],
    "hw.abi.xen_ring": ["xen/xen.h", "xen/io/netif.h"],
    "hw.abi.xen_netif": ["xen/xen.h", "xen/io/netif.h"],
    "hw.abi.xen_grant": ["xen/xen.h", "xen/grant_table.h"],
    "hw.abi.xen_event": ["xen/xen.h", "xen/event_channel.h"],
    "hw.abi.xen_store": ["errno.h", "xen/io/xs_wire.h"],
    "hw.abi.xen_bus": ["xen/io/xenbus.h"],
}

# What must be said before Xen's headers are read: which edition of the interface is meant.
DEFINES = ["-D__XEN_INTERFACE_VERSION__=__XEN_LATEST_INTERFACE_VERSION__"]

# Constants that a header has as enumerators, which #ifdef does not see. All of them are compared.
ENUMERATORS = {"hw.abi.xen_store": "XS_", "hw.abi.xen_bus": "XenbusState"}

# Modules that describe no header: how layouts are written down.
NO_HEADER = {"hw.abi.layout"}

# Constants that some header in use does not have, each with its value (None for those of our own that other tests
# here compare) and the section it comes from. A newer header may know more of them; then it is compared as well.
_VHOST_USER = {
    "VERSION": 1, "VERSION_MASK": 3, "REPLY": 4, "NEED_REPLY": 8, "F_PROTOCOL_FEATURES": 30,
    "GET_FEATURES": 1, "SET_FEATURES": 2, "SET_OWNER": 3, "RESET_OWNER": 4, "SET_MEM_TABLE": 5, "SET_VRING_NUM": 8,
    "SET_VRING_ADDR": 9, "SET_VRING_BASE": 10, "GET_VRING_BASE": 11, "SET_VRING_KICK": 12, "SET_VRING_CALL": 13,
    "SET_VRING_ERR": 14, "GET_PROTOCOL_FEATURES": 15, "SET_PROTOCOL_FEATURES": 16, "GET_QUEUE_NUM": 17,
    "SET_VRING_ENABLE": 18, "SEND_RARP": 19, "NET_SET_MTU": 20, "SET_BACKEND_REQ_FD": 21, "GET_CONFIG": 24,
    "SET_CONFIG": 25, "RESET_DEVICE": 34, "SET_STATUS": 39, "GET_STATUS": 40,
    "PROTOCOL_F_MQ": 0, "PROTOCOL_F_REPLY_ACK": 3, "PROTOCOL_F_BACKEND_REQ": 5, "PROTOCOL_F_CONFIG": 9,
    "PROTOCOL_F_RESET_DEVICE": 13, "PROTOCOL_F_STATUS": 16,
}  # fmt: skip
NOT_IN_EVERY_HEADER: dict[str, dict[str, tuple[int | None, str]]] = {
    "hw.abi.vhost_user": {
        **{f"VHOST_USER_{name}": (value, "docs/interop/vhost-user") for name, value in _VHOST_USER.items()},
        "MEMORY_REGIONS_MAX": (8, "docs/interop/vhost-user, memory regions description"),
        "VRING_INDEX_MASK": (0xFF, "docs/interop/vhost-user, VHOST_USER_SET_VRING_KICK"),
        "VRING_NOFD_MASK": (0x100, "docs/interop/vhost-user, VHOST_USER_SET_VRING_KICK"),
    },
    "hw.abi.virtio": {
        "VIRTIO_F_IN_ORDER": (35, "virtio 1.4 §6"),
        "VIRTIO_F_NOTIFICATION_DATA": (38, "virtio 1.4 §6"),
        "VIRTIO_F_NOTIF_CONFIG_DATA": (39, "virtio 1.4 §6"),
        "VIRTIO_F_ADMIN_VQ": (41, "virtio 1.4 §6"),
        "VIRTIO_F_SUSPEND": (43, "virtio 1.4 §6"),
        "VIRTIO_ID_NONE": (0, "virtio 1.4 §5, reserved"),
    },
    "hw.abi.virtio_ring": {
        "QUEUE_SIZE_MAX": (32768, "virtio 1.4 §2.7, Queue Size"),
        "DESC_SIZE": (None, "ours: the size of a layout, below"),
        "USED_ELEM_SIZE": (None, "ours: the size of a layout, below"),
        "RING_FLAGS": (None, "ours: compared below with offsetof"),
        "RING_IDX": (None, "ours: compared below with offsetof"),
        "RING_ENTRIES": (None, "ours: compared below with offsetof"),
    },
    "hw.abi.virtio_packed": {
        "PACKED_DESC_ALIGN_SIZE": (16, "virtio 1.4 §2.8.10.1"),
        "PACKED_EVENT_ALIGN_SIZE": (4, "virtio 1.4 §2.8.10.1"),
        "PACKED_QUEUE_SIZE_MAX": (32768, "virtio 1.4 §2.8"),
        "PACKED_DESC_SIZE": (None, "ours: the size of a layout"),
        "PACKED_EVENT_SIZE": (None, "ours: the size of a layout"),
    },
    "hw.abi.virtio_mmio": {
        "VIRTIO_MMIO_QUEUE_RESET": (0x0C0, "virtio 1.4 §4.2.2, QueueReset"),
        "MAGIC": (0x74726976, "virtio 1.4 §4.2.2, MagicValue"),
        "VERSION": (2, "virtio 1.4 §4.2.2, Version"),
    },
    "hw.abi.virtio_net": {
        "VIRTIO_NET_F_DEVICE_STATS": (50, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_HASH_TUNNEL": (51, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_VQ_NOTF_COAL": (52, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_GUEST_USO4": (54, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_GUEST_USO6": (55, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_HOST_USO": (56, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_GUEST_HDRLEN": (59, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_RSS_CONTEXT": (64, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO": (65, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO_CSUM": (66, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO": (67, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO_CSUM": (68, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_OUT_NET_HEADER": (69, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_F_IPSEC": (70, "virtio 1.4 §5.1.3"),
        "VIRTIO_NET_HDR_GSO_UDP_L4": (5, "virtio 1.4 §5.1.9"),
        "MTU_MIN": (68, "virtio 1.4 §5.1.4.1"),
        "MTU_MAX": (65535, "virtio 1.4 §5.1.4.1"),
        "RECEIVEQ1": (0, "virtio 1.4 §5.1.2"),
        "TRANSMITQ1": (1, "virtio 1.4 §5.1.2"),
        "NUM_BUFFERS_OFFSET": (None, "ours: compared below with offsetof"),
        "HASH_OFFSET": (12, "virtio 1.4 §5.1.9, struct virtio_net_hdr"),
        "TUNNEL_TYPES_OFFSET": (24, "virtio 1.4 §5.1.4, struct virtio_net_config"),
        "DUPLEX_HALF": (0, "virtio 1.4 §5.1.4"),
        "DUPLEX_FULL": (1, "virtio 1.4 §5.1.4"),
        "DUPLEX_UNKNOWN": (0xFF, "virtio 1.4 §5.1.4"),
        "SPEED_MAX": (0x7FFFFFFF, "virtio 1.4 §5.1.4"),
        "SPEED_UNKNOWN": (0xFFFFFFFF, "virtio 1.4 §5.1.4"),
    },
    "hw.abi.virtio_net_ctrl": {
        "VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET": (2, "virtio 1.4 §5.1.9.5.10"),
        "VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET": (3, "virtio 1.4 §5.1.9.5.10"),
        "VIRTIO_NET_CTRL_HASH_TUNNEL": (7, "virtio 1.4 §5.1.9.4.4"),
        "VIRTIO_NET_CTRL_HASH_TUNNEL_SET": (0, "virtio 1.4 §5.1.9.4.4"),
        "VIRTIO_NET_CTRL_STATS": (8, "virtio 1.4 §5.1.9.5.11"),
        "VIRTIO_NET_CTRL_STATS_QUERY": (0, "virtio 1.4 §5.1.9.5.11"),
        "VIRTIO_NET_CTRL_STATS_GET": (1, "virtio 1.4 §5.1.9.5.11"),
        **{
            f"VIRTIO_NET_STATS_TYPE_REPLY_{way}_{kind}": (base + at, "virtio 1.4 §5.1.9.5.11")
            for way, base in (("RX", 0), ("TX", 16))
            for at, kind in enumerate(("BASIC", "CSUM", "GSO", "SPEED"))
        },
        "VIRTIO_NET_STATS_TYPE_REPLY_CVQ": (32, "virtio 1.4 §5.1.9.5.11"),
        "RSS_KEY_SIZE_MIN": (40, "virtio 1.4 §5.1.4.1"),
        "RSS_TABLE_LENGTH_MIN": (128, "virtio 1.4 §5.1.4.1"),
    },
    "hw.abi.if_tun": {
        "TUN_F_USO4": (0x20, "Linux 6.2, linux/if_tun.h"),
        "TUN_F_USO6": (0x40, "Linux 6.2, linux/if_tun.h"),
    },
    "hw.abi.xen": {
        "XEN_PAGE_SIZE": (4096, "xen/io/ring.h, XEN_PAGE_SHIFT: always 4 KiB"),
        "DOM0": (0, "ours: the first domain"),
    },
    "hw.abi.xen_ring": {
        "SRING_HEADER_SIZE": (None, "ours: compared below with offsetof"),
        "REQ_PROD": (None, "ours: compared below with offsetof"),
        "REQ_EVENT": (None, "ours: compared below with offsetof"),
        "RSP_PROD": (None, "ours: compared below with offsetof"),
        "RSP_EVENT": (None, "ours: compared below with offsetof"),
        "PROD_INIT": (0, "xen/io/ring.h, SHARED_RING_INIT"),
        "EVENT_INIT": (1, "xen/io/ring.h, SHARED_RING_INIT"),
    },
    "hw.abi.xen_netif": {
        "TX_SLOT_SIZE": (None, "ours: compared below with sizeof"),
        "RX_SLOT_SIZE": (None, "ours: compared below with sizeof"),
        "CTRL_SLOT_SIZE": (None, "ours: compared below with sizeof"),
        "NET_RING_SLOTS": (None, "ours: compared below with __RING_SIZE"),
    },
    "hw.abi.xen_grant": {
        "GRANT_ENTRY_SIZE": (8, "ours: the size of a layout"),
        "GRANTS_PER_FRAME": (512, "ours: entries in a page"),
    },
    "hw.abi.xen_event": {
        "SHARED_INFO_VCPU_INFO": (None, "ours: compared below with offsetof"),
        "SHARED_INFO_EVTCHN_PENDING": (None, "ours: compared below with offsetof"),
        "SHARED_INFO_EVTCHN_MASK": (None, "ours: compared below with offsetof"),
        "UPCALL_PENDING": (None, "ours: compared below with offsetof"),
        "UPCALL_MASK": (None, "ours: compared below with offsetof"),
        "PENDING_SEL": (None, "ours: compared below with offsetof"),
        "EVTCHN_WORD_BITS": (64, "xen/xen.h, xen_ulong_t"),
        "EVTCHN_WORDS": (64, "xen/xen.h, struct shared_info"),
    },
    "hw.abi.xen_store": dict.fromkeys(
        (
            "STORE_REQ", "STORE_RSP", "REQ_CONS", "REQ_PROD", "RSP_CONS", "RSP_PROD",
            "SERVER_FEATURES", "CONNECTION", "ERROR",
        ),
        (None, "ours: compared below with offsetof"),
    ),
    "hw.abi.xen_bus": {},
}

# Structures that some header in use does not have, each with its size and section. A header that knows one compares it.
LAYOUTS_NOT_IN_EVERY_HEADER = {
    "virtio_net_ctrl_coal": (8, "virtio 1.4 §5.1.9.5.10"),
    "virtio_net_ctrl_coal_vq": (12, "virtio 1.4 §5.1.9.5.10"),
    "virtio_net_stats_capabilities": (8, "virtio 1.4 §5.1.9.5.11"),
    "virtio_net_stats_reply_hdr": (8, "virtio 1.4 §5.1.9.5.11"),
}

QUEUE_SIZES = [1 << power for power in range(16)]
ALIGNMENTS = [virtio_ring.VRING_USED_ALIGN_SIZE, 64, 4096]


def sheets() -> dict[str, ModuleType]:
    """Every module of the data sheet, by its full name."""
    names = [f"hw.abi.{module.name}" for module in pkgutil.iter_modules(hw.abi.__path__)]
    return {name: importlib.import_module(name) for name in names if name not in NO_HEADER}


def constants_of(module: ModuleType) -> dict[str, int]:
    """Its numbers, under the headers' names; Xen's are part lower case."""
    return {name: value for name, value in vars(module).items() if name[0].isupper() and type(value) is int}


def layouts_of(module: ModuleType) -> list[Layout]:
    return [value for value in vars(module).values() if isinstance(value, Layout)]


def run_c(directory: Path, headers: Iterable[str], body: Iterable[str]) -> list[list[str]]:
    """Compile and run a program whose main() has the statements `body`; its output as lists of words."""
    require_program("gcc")
    for header in headers:
        require_header(header)
    includes = ["stddef.h", "stdint.h", "stdio.h", "sys/ioctl.h", *headers]
    source = "\n".join(
        [*(f"#include <{header}>" for header in includes), "int main(void) {", *body, "return 0; }", ""],
    )
    (directory / "say.c").write_text(source)
    built = subprocess.run(
        ["gcc", *DEFINES, "-o", "say", "say.c"], cwd=directory, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, f"the headers do not have what the data sheet names:\n{built.stderr}"
    said = subprocess.run([directory / "say"], capture_output=True, text=True, check=True)
    return [line.split() for line in said.stdout.splitlines()]


def layouts_in_c(directory: Path, headers: Iterable[str], layouts: Iterable[Layout]) -> dict[str, dict[str, list[int]]]:
    """For each struct its members as [offset, size], and under the empty name [0, size of the struct]."""
    body = []
    for layout in layouts:
        struct = f"struct {layout.name}"
        body.append(f'printf("{layout.name} . 0 %zu\\n", sizeof({struct}));')
        for field in layout.fields:
            body.append(
                f'printf("{layout.name} {field} %zu %zu\\n",'
                f" offsetof({struct}, {field}), sizeof((({struct} *)0)->{field}));"
            )
    found: dict[str, dict[str, list[int]]] = {}
    for struct, field, offset, size in run_c(directory, headers, body):
        found.setdefault(struct, {})[field] = [int(offset), int(size)]
    return found


def layouts_here(layouts: Iterable[Layout]) -> dict[str, dict[str, list[int]]]:
    """The same of the data sheet."""
    found: dict[str, dict[str, list[int]]] = {}
    for layout in layouts:
        struct = found.setdefault(layout.name, {})
        struct["."] = [0, layout.size]
        struct.update({name: [field.offset, field.size] for name, field in layout.fields.items()})
    return found


def constants_in_c(
    directory: Path, headers: Iterable[str], names: Iterable[str], enumerators: str | None = None
) -> dict[str, int]:
    """The values of those of `names` that the headers define as macros or, below a prefix, as enumerators."""
    body = [
        f'printf("{name} %lld\\n", (long long)({name}));'
        if enumerators is not None and name.startswith(enumerators)
        else f'#ifdef {name}\nprintf("{name} %lld\\n", (long long)({name}));\n#endif'
        for name in names
    ]
    return {name: int(value) for name, value in run_c(directory, headers, body)}


def test_every_sheet_has_its_headers_named() -> None:
    assert set(sheets()) == set(HEADERS), "a module of hw.abi is compared with nothing"
    assert set(NOT_IN_EVERY_HEADER) == set(HEADERS)


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_constants_are_those_of_the_headers(name: str, tmp_path: Path) -> None:
    ours = constants_of(sheets()[name])
    assert ours, "the data sheet has no constant: it cannot be compared"

    theirs = constants_in_c(tmp_path, HEADERS[name], ours, ENUMERATORS.get(name))

    assert {constant: ours[constant] for constant in theirs} == theirs
    unknown = set(ours) - set(theirs)
    explained = NOT_IN_EVERY_HEADER[name]
    assert unknown - set(explained) == set(), "neither in the header nor explained here: a misspelt name?"
    assert set(explained) - set(ours) == set(), "explained here, but no longer in the data sheet"
    for constant, (value, section) in explained.items():
        assert value in (None, ours[constant]), f"{constant}: {section}"


@pytest.mark.parametrize("name", sorted(name for name, module in sheets().items() if layouts_of(module)))
def test_layouts_are_those_of_the_headers(name: str, tmp_path: Path) -> None:
    known = ""
    for header in HEADERS[name]:
        require_header(header)
        known += Path("/usr/include", header).read_text()
    layouts = []
    for layout in layouts_of(sheets()[name]):
        if layout.name in LAYOUTS_NOT_IN_EVERY_HEADER and f"struct {layout.name} {{" not in known:
            size, section = LAYOUTS_NOT_IN_EVERY_HEADER[layout.name]
            assert layout.size == size, section
        else:
            layouts.append(layout)

    assert layouts_here(layouts) == layouts_in_c(tmp_path, HEADERS[name], layouts)


def test_the_comparison_sees_a_wrong_layout(tmp_path: Path) -> None:
    wrong = Layout.of("vring_desc", [("addr", "I"), ("len", "I"), ("flags", "H"), ("next", "H")])

    theirs = layouts_in_c(tmp_path, ["linux/virtio_ring.h"], [wrong])

    assert layouts_here([wrong]) != theirs
    assert theirs["vring_desc"]["len"] == [8, 4]


@pytest.mark.parametrize("align", ALIGNMENTS)
def test_ring_areas_lie_where_vring_init_puts_them(align: int, tmp_path: Path) -> None:
    sizes = ", ".join(map(str, QUEUE_SIZES))
    theirs = run_c(
        tmp_path,
        ["linux/virtio_ring.h"],
        [
            "static char memory[1 << 21] __attribute__((aligned(4096)));",
            f"static const unsigned sizes[] = {{{sizes}}};",
            "for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {",
            "  struct vring r;",
            f"  vring_init(&r, sizes[i], memory, {align});",
            "  char *avail = (char *)r.avail, *used = (char *)r.used;",
            '  printf("%u %td %td %td %td %u\\n", sizes[i], avail - memory, used - memory,',
            "    (char *)&vring_used_event(&r) - avail, (char *)&vring_avail_event(&r) - used,",
            f"    vring_size(sizes[i], {align}));",
            "}",
        ],
    )
    assert len(theirs) == len(QUEUE_SIZES)

    for line in theirs:
        size, avail, used, used_event, avail_event, whole = map(int, line)
        end_of_driver_area = avail + virtio_ring.driver_area_size(size)
        assert virtio_ring.desc_area_size(size) == avail, f"queue size {size}"
        assert -(-end_of_driver_area // align) * align == used, f"queue size {size}"
        assert virtio_ring.used_event_offset(size) == used_event, f"queue size {size}"
        assert virtio_ring.avail_event_offset(size) == avail_event, f"queue size {size}"
        assert used + virtio_ring.device_area_size(size) == whole, f"queue size {size}"


def test_the_largest_queue_is_the_largest_legal_one() -> None:
    assert QUEUE_SIZES[-1] == virtio_ring.QUEUE_SIZE_MAX, "virtio 1.4 §2.7: a power of two, at most 32768"


def test_sizes_are_those_of_the_layouts() -> None:
    assert (virtio_ring.DESC_SIZE, virtio_ring.USED_ELEM_SIZE) == (16, 8), "virtio 1.4 §2.7.5, §2.7.8"


def test_offsets_inside_a_ring_are_those_of_its_struct(tmp_path: Path) -> None:
    body = [
        f'printf("%zu %zu %zu\\n", offsetof({ring}, flags), offsetof({ring}, idx), offsetof({ring}, ring));'
        for ring in ("struct vring_avail", "struct vring_used")
    ]

    ours = [virtio_ring.RING_FLAGS, virtio_ring.RING_IDX, virtio_ring.RING_ENTRIES]

    assert [list(map(int, line)) for line in run_c(tmp_path, ["linux/virtio_ring.h"], body)] == [ours, ours]


def test_packet_header_of_the_data_path_is_the_layout(tmp_path: Path) -> None:
    ((with_hash, num_buffers),) = run_c(
        tmp_path,
        ["linux/virtio_net.h"],
        [
            'printf("%zu %zu\\n", sizeof(struct virtio_net_hdr_v1_hash),'
            " offsetof(struct virtio_net_hdr_v1, num_buffers));"
        ],
    )

    layout = virtio_net.VIRTIO_NET_HDR_V1
    assert "<" + "".join(field.format for field in layout.fields.values()) == virtio_net.NET_HEADER.format
    assert virtio_net.NET_HEADER.size == layout.size == virtio_net.header_length(0) == len(virtio_net.ZERO_HEADER)
    assert virtio_net.header_length(1 << virtio_net.VIRTIO_NET_F_HASH_REPORT) == int(with_hash)
    assert int(num_buffers) == virtio_net.NUM_BUFFERS_OFFSET


@pytest.mark.parametrize(
    ("bits", "length"),
    [
        # virtio 1.4 §5.1.9, struct virtio_net_hdr: each group of fields lies behind the one before it.
        ([], 12),
        ([virtio_net.VIRTIO_NET_F_MRG_RXBUF], 12),
        ([virtio_net.VIRTIO_NET_F_HASH_REPORT], 20),
        ([virtio_net.VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO], 24),
        ([virtio_net.VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO, virtio_net.VIRTIO_NET_F_HASH_REPORT], 24),
        ([virtio_net.VIRTIO_NET_F_OUT_NET_HEADER], 32),
        ([virtio_net.VIRTIO_NET_F_IPSEC, virtio_net.VIRTIO_NET_F_HASH_REPORT], 32),
    ],
)
def test_header_grows_with_its_features(bits: list[int], length: int) -> None:
    assert virtio_net.header_length(sum(1 << bit for bit in bits)) == length


def test_heads_of_the_hash_configurations_are_those_of_their_structs(tmp_path: Path) -> None:
    places = [
        "offsetof(struct virtio_net_rss_config, indirection_table)",
        "offsetof(struct virtio_net_rss_config, hash_key_data) - offsetof(struct virtio_net_rss_config, max_tx_vq)",
        "offsetof(struct virtio_net_hash_config, hash_key_data)",
    ]
    theirs = run_c(tmp_path, ["linux/virtio_net.h"], [f'printf("%zu\\n", {place});' for place in places])

    ours = [virtio_net_ctrl.RSS_HEAD, virtio_net_ctrl.RSS_TAIL, virtio_net_ctrl.HASH_HEAD]
    assert [[str(each.size)] for each in ours] == theirs


def test_a_hash_report_is_one_more_than_the_bit_of_its_type() -> None:
    """virtio 1.4 §5.1.9.4.5"""
    for bit, name in enumerate(("IPv4", "TCPv4", "UDPv4", "IPv6", "TCPv6", "UDPv6")):
        assert getattr(virtio_net_ctrl, f"VIRTIO_NET_RSS_HASH_TYPE_{name}") == 1 << bit
        assert getattr(virtio_net_ctrl, f"VIRTIO_NET_HASH_REPORT_{name}") == bit + 1


def test_there_are_26_rules_of_dependence() -> None:
    """virtio 1.4 §5.1.3.1"""
    assert len(virtio_net.FEATURE_REQUIRES) == 26


def test_register_names_are_one_for_one() -> None:
    registers = {
        value
        for name, value in constants_of(virtio_mmio).items()
        if name.startswith("VIRTIO_MMIO_") and not name.startswith("VIRTIO_MMIO_INT_")
    }

    assert set(virtio_mmio.REGISTER_NAMES) == registers
    assert all(offset % 4 == 0 for offset in registers), "virtio 1.4 §4.2.2.2: registers are 32 bits wide, aligned"


def test_a_feature_needs_only_features_that_have_names() -> None:
    needed = {bit for ways in virtio_net.FEATURE_REQUIRES.values() for way in ways for bit in way}

    assert needed | set(virtio_net.FEATURE_REQUIRES) <= set(virtio_net.FEATURE_NAMES)


def test_a_shared_ring_lies_as_ring_h_lays_it(tmp_path: Path) -> None:
    kinds = {
        "netif_tx": (xen_netif.TX_SLOT_SIZE, xen_netif.NETIF_TX_REQUEST, xen_netif.NETIF_TX_RESPONSE),
        "netif_rx": (xen_netif.RX_SLOT_SIZE, xen_netif.NETIF_RX_REQUEST, xen_netif.NETIF_RX_RESPONSE),
        "xen_netif_ctrl": (
            xen_netif.CTRL_SLOT_SIZE, xen_netif.XEN_NETIF_CTRL_REQUEST, xen_netif.XEN_NETIF_CTRL_RESPONSE
        ),
    }  # fmt: skip
    body = [
        'printf("%zu %zu %zu %zu %zu %zu %u\\n",'
        + ",".join(f" offsetof(struct {kind}_sring, {field})" for field in ("req_prod", "req_event", "rsp_prod"))
        + f", offsetof(struct {kind}_sring, rsp_event), offsetof(struct {kind}_sring, ring),"
        f" sizeof(union {kind}_sring_entry), __RING_SIZE((struct {kind}_sring *)0, 4096));"
        for kind in kinds
    ]

    theirs = [list(map(int, line)) for line in run_c(tmp_path, HEADERS["hw.abi.xen_netif"], body)]

    for line, (slot, request, response) in zip(theirs, kinds.values(), strict=True):
        places = [xen_ring.REQ_PROD, xen_ring.REQ_EVENT, xen_ring.RSP_PROD, xen_ring.RSP_EVENT]
        assert line == [*places, xen_ring.SRING_HEADER_SIZE, slot, xen_ring.ring_size(4096, slot)]
        assert slot == max(request.size, response.size)
    assert theirs[0][-1] == theirs[1][-1] == xen_netif.NET_RING_SLOTS


@pytest.mark.parametrize(
    ("code", "layout"),
    [
        (xen_netif.TX_REQUEST, xen_netif.NETIF_TX_REQUEST),
        (xen_netif.TX_RESPONSE, xen_netif.NETIF_TX_RESPONSE),
        (xen_netif.RX_REQUEST, xen_netif.NETIF_RX_REQUEST),
        (xen_netif.RX_RESPONSE, xen_netif.NETIF_RX_RESPONSE),
        (xen_netif.EXTRA_GSO, xen_netif.NETIF_EXTRA_GSO),
        (xen_netif.EXTRA_MCAST, xen_netif.NETIF_EXTRA_MCAST),
        (xen_netif.EXTRA_HASH, xen_netif.NETIF_EXTRA_HASH),
        (xen_grant.GRANT_ENTRY, xen_grant.GRANT_ENTRY_V1),
        (xen_store.MESSAGE, xen_store.XSD_SOCKMSG),
    ],
)
def test_xen_structs_of_the_data_path_are_the_layouts(code: struct.Struct, layout: Layout) -> None:
    assert code.format == "<" + "".join(field.format for field in layout.fields.values())


def test_flags_of_the_two_net_rings_swap_their_first_bits() -> None:
    assert (xen_netif.NETTXF_csum_blank, xen_netif.NETTXF_data_validated) == (1, 2), "xen/io/netif.h"
    assert (xen_netif.NETRXF_data_validated, xen_netif.NETRXF_csum_blank) == (1, 2), "xen/io/netif.h"


def test_the_shared_info_page_lies_as_xen_h_lays_it(tmp_path: Path) -> None:
    places = {
        "struct shared_info, vcpu_info": xen_event.SHARED_INFO_VCPU_INFO,
        "struct shared_info, evtchn_pending": xen_event.SHARED_INFO_EVTCHN_PENDING,
        "struct shared_info, evtchn_mask": xen_event.SHARED_INFO_EVTCHN_MASK,
        "struct vcpu_info, evtchn_upcall_pending": xen_event.UPCALL_PENDING,
        "struct vcpu_info, evtchn_upcall_mask": xen_event.UPCALL_MASK,
        "struct vcpu_info, evtchn_pending_sel": xen_event.PENDING_SEL,
    }
    body = [f'printf("%zu\\n", offsetof({place}));' for place in places]
    body.append('printf("%zu\\n", sizeof(((struct shared_info *)0)->evtchn_pending));')

    theirs = [int(line[0]) for line in run_c(tmp_path, HEADERS["hw.abi.xen_event"], body)]

    assert theirs == [*places.values(), xen_event.EVTCHN_2L_NR_CHANNELS // 8]


def test_the_store_page_lies_as_xs_wire_h_lays_it(tmp_path: Path) -> None:
    fields = xen_store.XENSTORE_DOMAIN_INTERFACE.fields
    ours = [
        xen_store.STORE_REQ, xen_store.STORE_RSP, xen_store.REQ_CONS, xen_store.REQ_PROD, xen_store.RSP_CONS,
        xen_store.RSP_PROD, xen_store.SERVER_FEATURES, xen_store.CONNECTION, xen_store.ERROR,
    ]  # fmt: skip
    body = [f'printf("%zu\\n", offsetof(struct xenstore_domain_interface, {field}));' for field in fields]

    theirs = [int(line[0]) for line in run_c(tmp_path, HEADERS["hw.abi.xen_store"], body)]

    assert theirs == ours == [field.offset for field in fields.values()]


def test_the_store_knows_the_errors_of_xs_wire_h(tmp_path: Path) -> None:
    body = [
        "for (size_t i = 0; i < sizeof xsd_errors / sizeof *xsd_errors; i++)",
        '  printf("%s\\n", xsd_errors[i].errstring);',
    ]

    theirs = [line[0] for line in run_c(tmp_path, HEADERS["hw.abi.xen_store"], body)]

    assert tuple(theirs) == xen_store.XSD_ERRORS
