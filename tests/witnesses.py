"""Who else's software each side of vring is tested against: the rows of the table in docs/interop.md.

`python docs/make_interop.py` runs the tests of every row and writes the table, with the versions that it found and what
came of the tests. Here is what a row says by itself.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.witness.linux_guest import KERNEL


class Row(NamedTuple):
    """One counterpart.

    Attributes:
        counterpart: what it is.
        versions: whose, by their names in `VERSIONS`.
        side: which side of vring it meets.
        features: what is negotiated or switched on.
        shown: what the tests show.
        tests: their files, from the project's folder.
    """

    counterpart: str
    versions: tuple[str, ...]
    side: str
    features: str
    shown: str
    tests: tuple[str, ...]


def _said(command: tuple[str, ...], pattern: str) -> Callable[[], str]:
    """The version that a program says of itself."""

    def ask() -> str:
        if shutil.which(command[0]) is None:
            return ""
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        found = re.search(pattern, done.stdout + done.stderr)
        return found[1] if found else ""

    return ask


def _package(name: str) -> Callable[[], str]:
    """The upstream version of a Debian package that is installed or could be."""
    return _said(("apt-cache", "policy", name), r"(?:Installed|Candidate): (?:\d+:)?(\d[\d.]*)")


VERSIONS: Mapping[str, Callable[[], str]] = {
    "DPDK": _said(("dpdk-testpmd", "-v", "--no-huge", "-m", "8"), r"RTE Version: 'DPDK ([\d.]+)"),
    "Linux in QEMU": _package(KERNEL),
    "Linux": lambda: platform.release().partition("-")[0],
    "QEMU": _said(("qemu-system-x86_64", "--version"), r"version ([\d.]+)"),
    "Xen": _package("libxen-dev"),
    "dnsmasq": _said(("dnsmasq", "--version"), r"version ([\d.]+)"),
    "gcc": _said(("gcc", "-dumpfullversion"), r"([\d.]+)"),
    "libxen-dev": _package("libxen-dev"),
    "linux-libc-dev": _package("linux-libc-dev"),
    "radvd": _said(("radvd", "--version"), r"Version: ([\d.]+)"),
    "scapy": lambda: importlib.metadata.version("scapy"),
    "tshark": _said(("tshark", "--version"), r"Wireshark\) ([\d.]+)"),
    "vde2": _said(("vde_switch", "--version"), r"VDE ([\d.]+)"),
}


def versions(row: Row) -> str:
    """Those of a row, as they are on this machine."""
    return ", ".join(f"{name} {VERSIONS[name]()}".strip() for name in row.versions)


def cells(row: Row) -> tuple[str, str, str, str]:
    """What a row says in the table by itself: counterpart, side, features, what is shown."""
    return row.counterpart, row.side, row.features, row.shown


def table(passed: Mapping[str, int]) -> list[str]:
    """The table's lines; `passed` is how many tests passed, by file."""
    lines = [
        "| counterpart | version tested | which side of vring | features | what is shown | tests | result |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        counterpart, side, features, shown = cells(row)
        files = ", ".join(f"`{file}`" for file in row.tests)
        result = f"{sum(passed[file] for file in row.tests)} passed"
        lines.append(
            f"| {counterpart} | {versions(row)} | {side} | {features} | {shown} | {files} | {result} |"
        )
    return lines


ROWS = (
    Row(
        "Linux's `virtio_mmio` and `virtio_net` drivers, in a kernel under QEMU",
        ("Linux in QEMU", "QEMU"),
        "the card: registers, negotiation, queues",
        (
            "six cards: plain rings of 32 entries; indirect and event index; mergeable buffers at MTU 9000; all "
            "defaults; packed rings; a control queue with RSS, coalescing, filters and four pairs of queues"
        ),
        (
            "Linux negotiates exactly what is offered, in the order of virtio 1.4 §3.1.1; 334 pings and 200 pings "
            "back, "
            "all answered, small, full and in fragments of 60,000 bytes; every interrupt accounted for; the driver is "
            "unloaded and loaded again; every register access was recorded and is answered alike when it is done again"
        ),
        ("tests/test_witness_linux.py", "tests/test_register_replay.py"),
    ),
    Row(
        "QEMU's `virtio-net-device`, through its qtest socket",
        ("QEMU",),
        "the driver, and a whole guest",
        (
            "split and packed rings, with indirect descriptors, event index and mergeable buffers each on and off; MTU "
            "9000"
        ),
        (
            "2000 frames out and back for each choice; every interrupt accounted for; a cable that is pulled; a device "
            "that asks for a reset; the guest pings a host and answers one; it pings a guest on our own machine; "
            "QEMU's "
            "control queue filters by address, group and VLAN as our driver tells it"
        ),
        ("tests/test_witness_qtest.py",),
    ),
    Row(
        "DPDK's virtio-user driver, testpmd",
        ("DPDK",),
        "the card, in `vring device`'s place: vhost-user back end, queues",
        (
            "split and packed rings, each plain, with mergeable buffers, in order, and vectorised; frames of 9,000 "
            "bytes; two pairs of queues; testpmd as client and as server"
        ),
        (
            "100,000 frames out and back for each, byte for byte; a table of indirect descriptors that breaks the "
            "rules "
            "stops its queue alone; testpmd is killed in mid-transfer and the next one is served"
        ),
        ("tests/interop/vhost_dpdk.py",),
    ),
    Row(
        "DPDK's vhost device, testpmd",
        ("DPDK",),
        "a whole guest and its driver: vhost-user front end",
        ("split, event index, mergeable, packed, in order, rings of 32 entries; two pairs of queues, split and packed"),
        (
            "100,000 frames out and back for each, byte for byte; the guest pings testpmd; testpmd is killed in "
            "mid-transfer, another takes over, and no frame comes twice"
        ),
        ("tests/interop/vhost_front.py",),
    ),
    Row(
        "Linux's `virtio_net` driver, in a kernel under QEMU whose netdev is `vhost-user`",
        ("Linux in QEMU", "QEMU"),
        "`vring device` with a user wire",
        (
            "split and packed rings, each plain and with mergeable buffers, indirect descriptors and event index; two "
            "pairs of queues; checksum and segmentation offload"
        ),
        (
            "a lease by DHCP, 200 pings, packets of 20,000 bytes, 20 MiB by wget each way with equal SHA-256; the "
            "device is killed, or ended, in mid-transfer, another takes over, and the guest's next files are whole"
        ),
        ("tests/interop/vhost_linux.py",),
    ),
    Row(
        "QEMU's card with a Linux guest, over QEMU's own netdevs",
        ("Linux in QEMU", "QEMU", "vde2"),
        "the wires `stream:`, `dgram:` and `vde:`, and a whole guest at their other end",
        "stream with either side listening; datagrams; a VDE switch between them",
        "200 pings and 50 pings back, packets of 8,000 bytes, 20 MiB by TCP there and back with equal SHA-256",
        ("tests/interop/qemu_wires.py",),
    ),
    Row(
        "`vde_switch`",
        ("vde2",),
        "the wire `vde:`",
        "any port and a chosen one",
        "frames from port to port, byte for byte; a switch that ends",
        ("tests/test_wire_sockets.py",),
    ),
    Row(
        "Linux's `xen-netback`, on a real Xen",
        ("Xen", "Linux in QEMU", "QEMU"),
        "the front end, and a whole guest, in the control domain over `/dev/xen`",
        "as LING; split event channels; two queues",
        (
            "200 pings and 200 pings back, all intact; TCP comes back without a difference; both ends count the same "
            "frames and bytes; Linux has let go of every page at the end"
        ),
        ("tests/interop_xen/real_xen.py",),
    ),
    Row(
        "Linux's `xen-netfront`, in a second domain of a real Xen",
        ("Xen", "Linux in QEMU", "QEMU"),
        "the back end, in the control domain over `/dev/xen`",
        "as LING; two queues with split event channels",
        (
            "200 pings each way, payloads and checksums right; TCP comes back without a difference; the driver lets "
            "go, "
            "comes back, and lets go again, and nothing of its pages stays mapped"
        ),
        ("tests/interop_xen/real_xen.py",),
    ),
    Row(
        "The macros of Xen's public headers, through a C compiler",
        ("libxen-dev", "gcc"),
        "both halves of a shared ring, the data sheet",
        "transmit and receive rings, indices that wrap at 2³²",
        (
            "ours opposite C's beside C's on both sides: the same messages, the same room, the same decisions to "
            "notify, and pages that stay equal byte for byte; every layout and constant"
        ),
        ("tests/test_xen_ring.py", "tests/test_xen_front_ring.py", "tests/test_abi_layout.py"),
    ),
    Row(
        "Xen's `xenstored`",
        ("Xen",),
        "the store; the guest's client of one",
        "transactions, watches, permissions, names of errors, limits",
        (
            "the same answers and events as from ours, for each rule and for any sequence of requests of three "
            "clients; "
            "the client reads, writes, retries and watches at either alike"
        ),
        ("tests/test_xen_store.py", "tests/test_xen_store_client.py"),
    ),
    Row(
        "The kernel's C headers, through a C compiler",
        ("linux-libc-dev", "gcc"),
        "the data sheet, `hw/abi`",
        "rings, registers, network header and configuration, TAP",
        (
            "every layout and constant, field by field; where `vring_init` puts the areas of a ring of every legal "
            "size, at three alignments"
        ),
        ("tests/test_abi_layout.py",),
    ),
    Row(
        "The host's kernel, over a TAP",
        ("Linux",),
        "a whole guest",
        "with and without the virtio header on the TAP",
        "ping 100 of 100, payloads of 0 and 1472 bytes, `arping`, the guest pings the kernel, two cards on two TAPs",
        ("tests/test_tap_guest.py",),
    ),
    Row(
        "The host's kernel, over a TAP, both IP families",
        ("Linux",),
        "the stack up to UDP",
        "IPv4, IPv6, link-local; with two TAPs a guest that forwards",
        (
            "ping and ping6 1,000 of 1,000, 0 to 60,000 bytes; probes with small TTLs; UDP echo both ways up to the "
            "largest datagram; addresses that the kernel holds are refused"
        ),
        ("tests/test_tap_net.py", "tests/test_tap_udp.py"),
    ),
    Row(
        "The host's kernel, over a TAP, both IP families",
        ("Linux",),
        "the stack up to TCP, in both roles",
        "window scale, timestamps and SACK, each on and off; urgent data, keepalives, ECN, MTU 1300 to 9000",
        (
            "ten megabytes each way at once; half-closed streams; windows that close and open; resets; urgent bytes "
            "both ways; marks of congestion echoed both ways; a router says that the path is narrow; and 1.4 megabytes "
            "for each role over a wire that loses 10 %, reorders, repeats and spoils"
        ),
        ("tests/test_tap_tcp.py", "tests/test_tap_tcp_lossy.py"),
    ),
    Row(
        "The host's kernel, its own sockets",
        ("Linux",),
        "the system calls",
        "UDP, raw and ICMP sockets, options, ancillary data",
        "266 rows of calls with equal results and errors; who gets a datagram when sockets share a port",
        ("tests/test_sys_side_by_side.py", "tests/test_udp_linux.py"),
    ),
    Row(
        "dnsmasq",
        ("dnsmasq",),
        "DHCP client, resolver",
        "leases, renewal, A, AAAA, no such name",
        "a boot with `-dhcp`, a short lease renewed, names resolved",
        ("tests/test_dhcp_dnsmasq.py",),
    ),
    Row(
        "radvd",
        ("radvd",),
        "autoconfiguration",
        "prefix, default route, MTU, RDNSS",
        ("an address within three seconds of the advertisement, pings both ways, the route gone when the daemon stops"),
        ("tests/test_tap_net.py",),
    ),
    Row(
        "tshark and scapy, on a capture of TCP over that bad wire",
        ("tshark", "scapy"),
        "the segments that a guest sends",
        "all options of TCP, selective acknowledgements, urgent data",
        "no malformed segment, no bad checksum; scapy builds every segment again byte for byte",
        ("tests/test_tap_tcp_lossy.py",),
    ),
    Row(
        "tshark and scapy, on one capture",
        ("tshark", "scapy"),
        "all that a guest sends",
        "DHCP, DNS, IPv6 set-up, groups, pings, UDP, errors",
        "no malformed packet, no bad checksum; scapy builds every frame again byte for byte",
        ("tests/test_tap_capture.py",),
    ),
    Row(
        "The host's kernel, over TAP and AF_PACKET",
        ("Linux",),
        "the wires alone",
        "virtio header, VLAN tags, back-pressure",
        "frames both ways, whole and in order; interfaces that go down, up, and away; missing rights",
        ("tests/test_wire_tap.py", "tests/test_wire_packet.py"),
    ),
    Row(
        "scapy",
        ("scapy",),
        "the stack, captures",
        "Ethernet, ARP, IPv4, ICMP, pcapng",
        "it reads the headers that the stack builds, agrees on checksums, and reads the captures back",
        ("tests/test_net_ethernet.py", "tests/test_net_ip.py", "tests/test_checksum.py", "tests/test_wire_pcap.py"),
    ),
)
