"""A capture of all that a guest and the kernel say to each other, read by others: scapy builds every frame again from
its parts, checksums included, and tshark finds nothing malformed and no bad checksum.

The kernel's checksums are complete here, because the TAP carries no virtio header and so no offload.
"""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS
from scapy.layers.inet import ICMP, IP, UDP, IPerror, defragment
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6Unknown,
    IPerror6,
    IPv6,
    IPv6ExtHdrFragment,
    defragment6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import NoPayload, Packet, Raw
from scapy.utils import PcapNgReader, wrpcap

from guest.apps.env import Env
from guest.net.address import format_address, parse_address
from guest.sys.constants import AF_INET, AF_INET6, SOCK_DGRAM
from tests.netns import Namespace, namespace
from tests.requirements import require_program
from tests.tap_world import (
    HOST4,
    HOST6,
    boot,
    dnsmasq,
    has_address,
    kernel_socket,
    make_tap,
    pings,
    probe,
    radvd,
    until,
)
from vring.session import Session

try:
    from scapy.layers.igmp import IGMPv3
except ImportError:  # before scapy 2.7
    from scapy.contrib.igmpv3 import IGMPv3

pytestmark = pytest.mark.root

BAD = " || ".join(
    ["_ws.malformed", "_ws.short", "_ws.expert.severity == error"]
    + [f"{protocol}.checksum.status == 0" for protocol in ("ip", "udp", "icmp", "icmpv6", "igmp")]
)
CHECKED = ("ip", "udp")
QUOTED = (IPerror, IPerror6)
OWN6 = "2001:db8:9:0:5054:ff:fe09:2"


def talk(host: Namespace, session: Session, where: Path) -> None:
    """All that a guest says: DHCP and a renewal, DNS, SLAAC, groups, pings, echoes, probes, errors."""
    guest = session.guest
    assert session.run_until(lambda: guest.booted and has_dhcp(session), 20), session.log
    lease = guest.dhcp.lease if guest.dhcp else None
    assert lease is not None
    own4 = format_address(lease.address)
    assert has_address(session, OWN6, 20), session.log
    assert until(lambda: "udpecho: port 7" in session.console)

    calls = session.calls
    fd4, fd6 = calls.socket(AF_INET, SOCK_DGRAM), calls.socket(AF_INET6, SOCK_DGRAM)
    join(session, "239.9.9.9", "ff02::9")
    rng = random.Random(1)
    for destination, version in ((own4, 4), (OWN6, 6)):
        for size in (0, 56, 1473, 9000):
            assert pings(host, destination, size, 5) == 5
        with kernel_socket(host, version) as client:
            client.connect((destination, 7))
            for size in (0, 1, 1472, 1473, 9000, 65_507 if version == 4 else 65_527):
                data = rng.randbytes(size)
                client.send(data)
                assert client.recv(70_000) == data
        probe(host, destination, 1)
    for fd, address, version in ((fd4, HOST4, 4), (fd6, HOST6, 6)):
        with kernel_socket(host, version) as server:
            server.bind((address, 7007))
            for size in (0, 1, 9000):
                calls.sendto(fd, rng.randbytes(size), (address, 7007))
                assert len(server.recv(70_000)) == size
        calls.connect(fd, (address, 9))
        calls.send(fd, b"nobody listens there")
        with pytest.raises(ConnectionRefusedError):
            calls.recv(fd, 10)
    run(session, "ping", HOST4, "-c", "5", "-i", "0.01", "-s", "4000")
    run(session, "ping", HOST6, "-c", "5", "-i", "0.01", "-s", "4000")
    run(session, "nslookup", "www.test.lan")
    assert until(lambda: (where / "dnsmasq.log").read_text().count("DHCPACK") >= 2, 10), "T1 is three seconds"
    session.call(lambda: guest.dhcp.release() if guest.dhcp else None)


def has_dhcp(session: Session) -> bool:
    return session.guest.dhcp is not None and session.guest.dhcp.bound


def join(session: Session, *groups: str) -> None:
    """Be in these groups until the end."""

    def member(env: Env, _argv: list[str]) -> int:
        stack = env.guest.stack
        for group in groups:
            end = stack.udp.open(6 if ":" in group else 4)
            assert end.join(parse_address(group), stack.default) == 0
        env.wait()
        return 0

    session.call(lambda: session.guest.spawn(member))


def run(session: Session, program: str, *argv: str) -> None:
    process = session.call(lambda: session.guest.spawn(program, *argv))
    assert session.run_until(lambda: not process.alive, 20)
    assert process.exit_status == 0, session.console


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The capture of one talk."""
    where = tmp_path_factory.mktemp("capture")
    file = where / "all.pcapng"
    with namespace() as host:
        make_tap(host, "t0", f"{HOST4}/24", f"{HOST6}/64", "2001:db8:9::1/64")
        with (
            dnsmasq(host, where),
            radvd(host, where),
            boot(host, "-dhcp -ip6 -s udpecho -l 7", pcap=file) as session,
        ):
            talk(host, session, where)
    return file


@pytest.fixture(scope="module")
def frames(capture: Path) -> list[bytes]:
    with PcapNgReader(str(capture)) as reader:
        return [bytes(packet) for packet in reader]


# -- scapy -------------------------------------------------------------------------------------------------------


def layers(packet: Packet) -> Iterator[Packet]:
    """The packet's layers, down to what an error quotes; that may be cut off anywhere."""
    while not isinstance(packet, NoPayload):
        yield packet
        if isinstance(packet, QUOTED):
            return
        packet = packet.payload


def rebuilt(packet: Packet) -> bytes:
    """The packet, built from its fields with lengths and checksums found anew; quoted packets stay as they are."""
    copy = packet.copy()
    for layer in layers(copy):
        if isinstance(layer, QUOTED):
            break
        for name in ("chksum", "cksum", "len", "plen"):
            if any(field.name == name for field in layer.fields_desc):
                layer.delfieldval(name)
    return bytes(copy)


def is_fragment(packet: Packet) -> bool:
    if IP in packet:
        return bool(packet[IP].flags.MF or packet[IP].frag)
    return IPv6ExtHdrFragment in packet


def whole(frames: list[bytes]) -> list[Packet]:
    """All packets, those in fragments put together by scapy."""
    packets = [Ether(frame) for frame in frames]
    pieces: dict[tuple[object, ...], list[Packet]] = {}
    found = []
    for packet in packets:
        if not is_fragment(packet):
            found.append(packet)
            continue
        header = packet[IP] if IP in packet else packet[IPv6]
        number = packet[IP].id if IP in packet else packet[IPv6ExtHdrFragment].id
        pieces.setdefault((header.src, header.dst, number), []).append(packet)
    for parts in pieces.values():
        if IP in parts[0]:
            (joined,) = defragment(parts)
            found.append(Ether(bytes(joined)))
        else:
            joined = defragment6(parts)
            found.append(Ether(bytes(joined)) if Ether in joined else IPv6(bytes(joined)))
    return found


def test_scapy_builds_every_frame_again_as_it_was(frames: list[bytes]) -> None:
    assert len(frames) > 500
    for frame in frames:
        packet = Ether(frame)
        if is_fragment(packet):
            header = packet.copy()
            if IP in packet:  # the rest is looked at when it is whole
                header[IP].remove_payload()
                header[IP].delfieldval("chksum")
                assert bytes(header)[14:34] == frame[14:34], packet.summary()
        else:
            assert rebuilt(packet) == frame, packet.show(dump=True)


def test_scapy_knows_every_layer_and_joins_all_fragments(frames: list[bytes]) -> None:
    seen: Counter[str] = Counter()
    for packet in whole(frames):
        inner = packet[IPv6 if IPv6 in packet else Ether]
        assert rebuilt(inner) == bytes(inner), packet.summary()
        assert not packet.haslayer(ICMPv6Unknown), packet.show(dump=True)
        for layer in layers(packet):
            seen[type(layer).__name__] += 1
            if isinstance(layer, Raw):
                below = layer.underlayer
                allowed = (UDP, ICMP, ICMPv6EchoRequest, ICMPv6EchoReply)
                assert isinstance(below, allowed), packet.show(dump=True)
                assert not (isinstance(below, UDP) and {below.sport, below.dport} & {53, 67, 68}), "unreadable"
    wanted = [
        ARP, IP, IPv6, UDP, ICMP, ICMPv6EchoRequest, ICMPv6EchoReply, ICMPv6ND_NS, ICMPv6ND_NA, ICMPv6ND_RS,
        ICMPv6ND_RA, BOOTP, DHCP, DNS, IPerror, IPerror6,
    ]  # fmt: skip
    assert not [layer.__name__ for layer in wanted if not seen[layer.__name__]], seen
    assert [name for name in seen if name.startswith("IGMPv3")], seen
    assert seen["ICMPv6MLReport2"], seen


def test_the_check_by_scapy_sees_a_wrong_checksum(frames: list[bytes]) -> None:
    frame = next(frame for frame in frames if UDP in Ether(frame) and not is_fragment(Ether(frame)))
    wrong = frame[:-1] + bytes([frame[-1] ^ 1])
    assert rebuilt(Ether(wrong)) != wrong


# -- tshark ------------------------------------------------------------------------------------------------------


def tshark(file: Path, *words: str) -> list[str]:
    """What tshark prints of a capture, with checksums looked at."""
    options = [word for protocol in CHECKED for word in ("-o", f"{protocol}.check_checksum:TRUE")]
    done = subprocess.run(
        [require_program("tshark"), "-n", "-r", str(file), *options, *words],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_tshark_finds_nothing_malformed_and_no_bad_checksum(capture: Path) -> None:
    assert tshark(capture, "-Y", BAD) == []


def test_tshark_knows_every_protocol(capture: Path, frames: list[bytes]) -> None:
    stacks = tshark(capture, "-T", "fields", "-e", "frame.protocols")
    assert len(stacks) == len(frames)
    seen = Counter(name for stack in stacks for name in stack.split(":"))
    wanted = {"eth", "arp", "ip", "ipv6", "udp", "icmp", "icmpv6", "igmp", "dhcp", "dns"}
    assert wanted <= set(seen), seen


def test_the_filter_finds_a_wrong_checksum_of_each_protocol(frames: list[bytes], tmp_path: Path) -> None:
    wrong = []
    for layer in (UDP, ICMP, ICMPv6EchoRequest, IGMPv3):
        packet = next(
            packet for packet in map(Ether, frames) if layer in packet and not is_fragment(packet)
        )
        frame = bytearray(bytes(packet))
        at = len(frame) - len(bytes(packet[layer])) + (6 if layer is UDP else 2)
        frame[at] ^= 0x55
        wrong.append(Ether(bytes(frame)))
    packet = Ether(next(frame for frame in frames if IP in Ether(frame)))
    packet[IP].chksum ^= 0x55
    wrong.append(packet)
    file = tmp_path / "wrong.pcap"
    wrpcap(str(file), wrong)
    assert len(tshark(file, "-Y", BAD)) == len(wrong)
