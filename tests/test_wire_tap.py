"""The TAP wire against the host's kernel, in a namespace of the test's own: both ways, full, down, gone, refused."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hw.abi import if_tun
from hw.clock import SECOND, RealClock, VirtualClock
from hw.loop import Loop
from hw.wire.link import Link, Receiver, Views, WireError
from hw.wire.tap import TapLink
from tests.netns import Namespace, namespace
from tests.requirements import require_header
from tests.wire_ends import BROADCAST, Station, frame, mac

A, B = mac(1), mac(2)
ETH_P_TEST = 0x88B5
TUNSETSNDBUF = 0x400454D4
SO_RCVBUFFORCE = 33


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(RealClock())
    yield loop
    loop.close()


@pytest.fixture
def tap(ns: Namespace, loop: Loop) -> Iterator[TapLink]:
    """A TAP of our own, up."""
    with ns.entered():
        link = TapLink(loop, "t0")
    ns.run("ip", "link", "set", "t0", "up")
    yield link
    link.close()


@pytest.fixture
def host(ns: Namespace, tap: TapLink) -> Iterator[socket.socket]:
    """A packet socket of the host's on the TAP."""
    with ns.entered():
        made = packet_socket("t0")
    yield made
    made.close()


def packet_socket(interface: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_TEST))
    made.bind((interface, ETH_P_TEST))
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)  # room for all that a test sends
    made.settimeout(10)
    return made


def run_until(loop: Loop, station: Station, count: int) -> None:
    arrived = loop.run(until=lambda: len(station.got) >= count, deadline=loop.clock.now() + 20 * SECOND)
    assert arrived, f"only {len(station.got)} of {count} frames came"


@pytest.mark.root
def test_frames_go_to_the_host_and_come_from_it(loop: Loop, tap: TapLink, host: socket.socket) -> None:
    station = Station(tap)

    tap.transmit([(None, [b"\xff" * 6 + A, memoryview(b"\x88\xb5to "), bytearray(b"host".ljust(43, b"\0"))])])
    assert host.recv(2000)[14:22].rstrip(b"\0") == b"to host"

    host.send(frame(A, B, b"to guest")[1][0])
    run_until(loop, station, 1)
    assert station.texts() == [b"to guest"]
    assert station.headers == [None]
    assert (tap.counters["tx_frames"], tap.counters["tx_bytes"]) == (1, 60)
    assert (tap.counters["rx_frames"], tap.counters["rx_bytes"]) == (1, 60)


@pytest.mark.root
def test_many_frames_come_whole_and_in_order(loop: Loop, tap: TapLink, host: socket.socket) -> None:
    station = Station(tap)

    for number in range(300):
        host.send(frame(A, B, b"%d" % number, size=60 + number)[1][0])
    run_until(loop, station, 300)

    assert station.texts() == [b"%d" % number for number in range(300)]
    assert [len(data) for data in station.got] == [60 + number for number in range(300)]


class Scatter(Receiver):
    """Reads into three small views and a large one, as a driver's buffers may lie."""

    def __init__(self, link: Link) -> None:
        self.got: list[bytes] = []
        link.attach(self)

    def pull(self, link: Link) -> None:
        views: Views = [bytearray(5), bytearray(1), bytearray(20), bytearray(70_000)]
        while length := link.read_into(views):
            self.got.append(b"".join(views)[:length])


@pytest.mark.root
def test_a_frame_is_read_straight_into_the_views(loop: Loop, tap: TapLink, host: socket.socket) -> None:
    reader = Scatter(tap)
    sent = frame(A, B, b"scattered", size=1000)[1][0]

    host.send(sent)
    loop.run(until=lambda: bool(reader.got), deadline=20 * SECOND)

    assert reader.got == [sent]


@pytest.mark.root
def test_the_virtio_header_goes_both_ways(ns: Namespace, loop: Loop) -> None:
    with ns.entered():
        link = TapLink(loop, "t0", vnet_hdr=True)
        ns.run("ip", "link", "set", "t0", "up")
        host = packet_socket("t0")
    station = Station(link)
    assert link.header_size == 12

    # NEEDS_CSUM over the bytes from 20 on, into 14 + 10: the kernel makes the sum when someone on the host looks.
    payload = bytes(range(46))
    needs = struct.pack("<BBHHHHH", 1, 0, 0, 0, 20, 4, 0)
    link.transmit([(needs, [BROADCAST + A + b"\x88\xb5" + payload]), (None, [frame(BROADCAST, A, b"plain")[1][0]])])
    assert len(host.recv(2000)) == 60
    assert host.recv(2000)[14:19] == b"plain"
    assert (link.counters["tx_frames"], link.counters["tx_bytes"]) == (2, 120)

    host.send(frame(A, B, b"back")[1][0])
    run_until(loop, station, 1)
    assert station.texts() == [b"back"]
    assert station.headers[0] is not None
    assert station.headers[0][:10] == bytes(10), "nothing is left to us"
    assert link.counters["rx_bytes"] == 60
    host.close()
    link.close()


@pytest.mark.root
def test_a_super_frame_with_an_unfinished_checksum_is_good_for_the_host(ns: Namespace, loop: Loop) -> None:
    """20,000 bytes of TCP in one frame, its checksum left to the host: the host's TCP takes it for a good segment."""
    with ns.entered():
        link = TapLink(loop, "t0", vnet_hdr=True)
        ns.run("ip", "addr", "add", "10.9.0.1/24", "dev", "t0")
        ns.run("ip", "link", "set", "t0", "up", "address", "02:00:00:00:00:01")
        ns.run("ip", "neigh", "add", "10.9.0.2", "lladdr", "02:00:00:00:00:02", "dev", "t0")
    station = Station(link)
    size = 20_000
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40 + size, 1, 0, 64, 6, 0, b"\x0a\x09\0\2", b"\x0a\x09\0\1")
    ip = ip[:10] + struct.pack(">H", ~ones_sum(ip) & 0xFFFF) + ip[12:]
    pseudo = ip[12:20] + struct.pack(">HH", 6, 20 + size)
    tcp = struct.pack(">HHIIBBHHH", 4000, 4001, 1000, 1, 0x50, 0x10, 1000, ones_sum(pseudo), 0)
    header = struct.pack("<BBHHHHH", 1, 1, 54, 1460, 34, 16, 0)

    link.transmit([(header, [A + B + b"\x08\x00" + ip + tcp, bytes(size)])])
    run_until(loop, station, 1)

    reset = next(data for data in station.got if data[23] == 6)
    assert reset[47] & 0x04, "nobody listens there: a reset"
    assert link.counters["tx_dropped_refused"] == 0
    snmp = ns.run("cat", "/proc/net/snmp").stdout.splitlines()
    tcp_stats = [line.split() for line in snmp if line.startswith("Tcp:")]
    assert dict(zip(*tcp_stats, strict=True))["InCsumErrors"] == "0"
    link.close()


def ones_sum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.root
def test_a_frame_that_needs_offload_is_dropped_without_the_header(loop: Loop, tap: TapLink) -> None:
    Station(tap)
    unfinished = bytes([1]) + bytes(11)
    segments = bytes([0, 1]) + bytes(10)

    assert tap.transmit([frame(B, A, header=unfinished), frame(B, A, header=segments), frame(B, A)]) == 3

    assert tap.counters["tx_dropped_offload"] == 2
    assert tap.counters["tx_frames"] == 1


@pytest.mark.root
def test_an_interface_that_is_down_drops_counted_and_works_when_it_is_up(ns: Namespace, loop: Loop) -> None:
    with ns.entered():
        link = TapLink(loop, "t0")
    Station(link)

    assert link.transmit([frame(B, A), frame(B, A)]) == 2
    assert link.counters["tx_dropped_link_down"] == 2
    ns.run("ip", "link", "set", "t0", "up")
    link.transmit([frame(B, A)])

    assert link.counters["tx_frames"] == 1
    link.close()


@pytest.mark.root
def test_a_runt_is_refused_by_the_kernel_and_counted(loop: Loop, tap: TapLink) -> None:
    Station(tap)

    assert tap.transmit([(None, [b"\2" * 13]), frame(B, A)]) == 2

    assert tap.counters["tx_dropped_refused"] == 1
    assert tap.counters["tx_frames"] == 1


@pytest.mark.root
def test_a_full_host_holds_the_sender_back_until_there_is_room(ns: Namespace, loop: Loop, tap: TapLink) -> None:
    """The frames wait in a shaped queue of the host and count against the TAP's send buffer, which is made small."""
    ns.need("ip", "link", "add", "br0", "type", "bridge")
    ns.need("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for name in ("t0", "v0"):
        ns.run("ip", "link", "set", name, "master", "br0")
    for name in ("br0", "v0", "v1"):
        ns.run("ip", "link", "set", name, "up")
    ns.need("tc", "qdisc", "add", "dev", "v0", "root", "tbf", "rate", "1mbit", "burst", "2000", "limit", "1000000")
    fcntl.ioctl(tap.fileno(), TUNSETSNDBUF, struct.pack("=i", 20_000))
    station = Station(tap)
    with ns.entered():
        far = packet_socket("v1")
    left = [frame(B, A, b"%d" % number, size=1500) for number in range(100)]
    wanted = len(left)

    def push() -> None:
        del left[: tap.transmit(left)]

    push()
    assert len(left) > 50, "the buffer takes about ten"
    assert tap.transmit(left) == 0
    assert tap.counters["tx_blocked"] == 1, "the host is not asked again before it says so"
    station.writable = push  # type: ignore[method-assign]
    assert loop.run(until=lambda: not left, deadline=loop.clock.now() + 20 * SECOND)

    assert [far.recv(2000)[14:].rstrip(b"\0") for _ in range(wanted)] == [b"%d" % number for number in range(wanted)]
    assert tap.counters["tx_frames"] == wanted
    assert tap.counters["tx_blocked"] >= 2
    far.close()


@pytest.mark.root
def test_pause_leaves_frames_in_the_host_and_resume_fetches_them(loop: Loop, tap: TapLink, host: socket.socket) -> None:
    station = Station(tap)
    tap.pause()
    tap.pause()
    host.send(frame(A, B, b"waiting")[1][0])

    loop.run(deadline=loop.clock.now() + 5_000)
    assert station.got == []

    tap.resume()
    run_until(loop, station, 1)
    assert station.texts() == [b"waiting"]


@pytest.mark.root
def test_frames_for_nobody_are_counted(loop: Loop, tap: TapLink, host: socket.socket) -> None:
    Station(tap)
    tap.detach()
    host.send(frame(A, B)[1][0])

    loop.run(until=lambda: tap.counters["rx_dropped_no_receiver"] == 1, deadline=20 * SECOND)

    assert tap.counters["rx_dropped_no_receiver"] == 1


@pytest.mark.root
def test_an_interface_that_is_deleted_loses_carrier_and_the_loop_rests(ns: Namespace, loop: Loop, tap: TapLink) -> None:
    station = Station(tap)
    ns.run("ip", "link", "del", "t0")

    loop.run(until=lambda: not tap.carrier, deadline=20 * SECOND)
    turns = 0

    def counted() -> bool:
        nonlocal turns
        turns += 1
        return False

    loop.run(until=counted, deadline=loop.clock.now() + 20_000)

    assert station.carriers == [False]
    assert turns < 10, "the loop must not spin on a dead descriptor"
    assert tap.transmit([frame(B, A)]) == 1
    assert tap.counters["tx_dropped_interface_gone"] == 1


@pytest.mark.root
def test_an_interface_made_here_goes_with_close_and_sending_is_counted(ns: Namespace, loop: Loop) -> None:
    with ns.entered():
        link = TapLink(loop, "tap%d")
    Station(link)
    assert (link.interface, link.name) == ("tap0", "tap:tap0")
    assert ns.run("ip", "link", "show", "tap0").returncode == 0

    link.close()
    link.close()

    assert ns.run("ip", "link", "show", "tap0", check=False).returncode != 0
    assert link.transmit([frame(B, A)]) == 1
    assert link.counters["tx_dropped_interface_gone"] == 1
    assert link.fileno() == -1


@pytest.mark.root
def test_a_persistent_tap_is_attached_to_and_stays(ns: Namespace, loop: Loop) -> None:
    ns.run("ip", "tuntap", "add", "dev", "keep0", "mode", "tap")
    for vnet_hdr in (True, False, True):
        with ns.entered():
            link = TapLink(loop, "keep0", vnet_hdr=vnet_hdr)
        link.close()

    assert ns.run("ip", "link", "show", "keep0").returncode == 0


@pytest.mark.root
def test_a_persistent_tap_forgets_the_offloads_of_its_last_owner(ns: Namespace, loop: Loop) -> None:
    ns.run("ip", "tuntap", "add", "dev", "keep0", "mode", "tap", "vnet_hdr")
    with ns.entered():
        link = TapLink(loop, "keep0", vnet_hdr=True)
        fcntl.ioctl(link.fileno(), if_tun.TUNSETOFFLOAD, if_tun.TUN_F_CSUM | if_tun.TUN_F_TSO4)
        link.close()
        link = TapLink(loop, "keep0", vnet_hdr=True)
        ns.run("ip", "addr", "add", "10.9.0.1/24", "dev", "keep0")
        ns.run("ip", "link", "set", "keep0", "up")
        ns.run("ip", "neigh", "add", "10.9.0.2", "lladdr", "02:00:00:00:00:02", "dev", "keep0")
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.sendto(b"x" * 100, ("10.9.0.2", 9))
        udp.close()
    station = Station(link)

    run_until(loop, station, 1)

    datagram = next(at for at, data in enumerate(station.got) if data[23:24] == b"\x11")
    assert station.headers[datagram] is not None
    assert not station.headers[datagram][0] & 1, "the checksum is finished"  # type: ignore[index]
    link.close()


@pytest.mark.root
def test_an_interface_in_use_is_one_clear_line(ns: Namespace, loop: Loop, tap: TapLink) -> None:
    with ns.entered(), pytest.raises(WireError, match=r"^tap:t0: in use by another program[^\n]*$"):
        TapLink(loop, "t0")


@pytest.mark.root
@pytest.mark.parametrize("name", ["lo", "a/b", "."])
def test_a_name_that_is_no_tap_is_one_clear_line(ns: Namespace, loop: Loop, name: str) -> None:
    with ns.entered(), pytest.raises(WireError, match=r": not a name for an interface, or [^\n]*no TAP[^\n]*$"):
        TapLink(loop, name)


@pytest.mark.parametrize("name", ["", "sixteen-bytes-xx", "ü" * 8, "a\0b"])
def test_a_name_that_cannot_be_is_refused_before_anything_is_opened(loop: Loop, name: str) -> None:
    with pytest.raises(WireError, match="a name of 1 to 15 bytes"):
        TapLink(loop, name)


def test_the_virtual_clock_is_refused() -> None:
    loop = Loop(VirtualClock())

    with pytest.raises(WireError, match=r"^tap:t0: [^\n]*--clock real[^\n]*$"):
        TapLink(loop, "t0")
    loop.close()


OPEN = """
import os, sys
from hw.clock import RealClock
from hw.loop import Loop
from hw.wire.tap import TapLink
if "nobody" in sys.argv:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    TapLink(Loop(RealClock()), "t0")
    print("opened")
except Exception as error:
    print(error)
"""
EMPTY = "mount -t tmpfs none /dev/net"
OPEN_TO_ALL = f"{EMPTY}; mknod -m 666 /dev/net/tun c 10 200"
OPEN_TO_ROOT = f"{EMPTY}; mknod -m 600 /dev/net/tun c 10 200"


def say_open(ns: Namespace, device: str, who: str) -> str:
    """What a process of `who` says that opens t0, where the shell commands `device` have made /dev/net."""
    return ns.run("unshare", "--mount", "sh", "-c", f'{device}; exec "$0" "$@"', sys.executable, "-c", OPEN, who).stdout


@pytest.mark.root
def test_without_the_right_one_line_names_it_and_the_ways_out(ns: Namespace) -> None:
    ns.run("ip", "tuntap", "add", "dev", "t0", "mode", "tap", "user", "1")

    assert say_open(ns, OPEN_TO_ALL, "nobody") == (
        "tap:t0: needs CAP_NET_ADMIN, or a TAP of your own (once, as root: ip tuntap add dev t0 mode tap user $USER); "
        "--wire user, to reach the outside, and --wire hub need no right\n"
    )


@pytest.mark.root
def test_the_owner_of_a_persistent_tap_needs_no_right(ns: Namespace) -> None:
    ns.run("ip", "tuntap", "add", "dev", "t0", "mode", "tap", "user", "65534")

    assert say_open(ns, OPEN_TO_ALL, "nobody") == "opened\n"


@pytest.mark.root
def test_a_device_that_may_not_be_opened_is_one_clear_line(ns: Namespace) -> None:
    assert say_open(ns, OPEN_TO_ROOT, "nobody") == (
        "tap:t0: needs the right to read and write /dev/net/tun; "
        "--wire user, to reach the outside, and --wire hub need no right\n"
    )


@pytest.mark.root
def test_no_device_is_one_clear_line(ns: Namespace) -> None:
    said = say_open(ns, EMPTY, "root")

    assert said.startswith("tap:t0: /dev/net/tun: No such file or directory; load the kernel's tun module")
    assert said.count("\n") == 1


def test_the_constants_are_the_kernels() -> None:
    require_header("linux/if_tun.h")
    lines = Path("/usr/include/linux/if_tun.h").read_text().splitlines()
    numbers = {line.split()[1]: line for line in lines if line.startswith("#define TUN")}

    for name, value in vars(if_tun).items():
        if name.startswith(("TUNSET", "TUNGET")):
            assert f"'T', {value & 0xFF}," in numbers[name]
