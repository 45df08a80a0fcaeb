"""Calls that configure the network: what is set is read back, and used for the next packet."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether

from guest.net.address import Prefix, parse_address
from guest.net.interface import Interface
from guest.net.pbuf import PacketBuffer
from guest.sys.constants import AF_INET, AF_INET6, SO_BROADCAST, SOCK_DGRAM, SOCK_RAW, SOL_SOCKET
from guest.sys.netconfig import IpConfig
from tests.sys_world import World

MAC = bytes.fromhex("525400000001")
PEER = "52:54:00:00:00:02"


class Wired(World):
    """A guest with an Ethernet interface, whose frames are kept in `sent`."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.eth = self.calls.if_add("eth0", self._output, mac=MAC)
        self.stack.default = self.eth

    def _output(self, packets: Sequence[PacketBuffer]) -> None:
        self.sent += [packet.tobytes() for packet in packets]

    def take(self) -> list[Ether]:
        """The frames sent since the last time."""
        self.settle()
        frames, self.sent = self.sent, []
        return [Ether(frame) for frame in frames]

    def meet(self, address: str) -> None:
        """A neighbour makes itself known."""
        frame = Ether(dst="ff:ff:ff:ff:ff:ff", src=PEER) / ARP(op=1, hwsrc=PEER, psrc=address, pdst=address)
        own = next(prefix for prefix in self.eth.addresses)
        frame[ARP].pdst = ".".join(str(own.address >> shift & 255) for shift in (24, 16, 8, 0))
        self.eth.input([PacketBuffer.from_bytes(bytes(frame))])
        self.take()


@pytest.fixture
def world() -> Iterator[Wired]:
    made = Wired()
    yield made
    made.close()


def send(world: Wired, host: str, family: int = AF_INET) -> None:
    fd = world.calls.socket(family, SOCK_DGRAM)
    try:
        world.calls.sendto(fd, b"x", (host, 9))
    finally:
        world.calls.close(fd)


def test_what_setipaddr_sets_is_read_back_and_used_for_the_next_packet(world: Wired) -> None:
    calls = world.calls
    assert calls.getipaddr() == IpConfig(0, 0, 0)

    calls.setipaddr(0x0A000005, 0xFFFFFF00, 0x0A000001)

    assert calls.getipaddr() == IpConfig(0x0A000005, 0xFFFFFF00, 0x0A000001)
    world.meet("10.0.0.2")
    send(world, "10.0.0.2")
    (frame,) = world.take()
    assert (frame.dst, frame[IP].src, frame[IP].dst, frame[UDP].dport) == (PEER, "10.0.0.5", "10.0.0.2", 9)
    send(world, "192.0.2.1")
    assert [frame[ARP].pdst for frame in world.take()] == ["10.0.0.1"], "strangers are behind the gateway"


def test_setipaddr_replaces_what_was_there(world: Wired) -> None:
    calls = world.calls
    calls.setipaddr("10.0.0.5", "255.255.255.0", "10.0.0.1")
    calls.setipaddr("192.168.7.9", "255.255.0.0")

    assert calls.getipaddr() == IpConfig(0xC0A80709, 0xFFFF0000, 0)
    assert calls.if_addrs("eth0") == [("192.168.7.9", 16)]
    with pytest.raises(OSError, match="Network is unreachable"):
        send(world, "10.0.0.2")
    calls.setipaddr(0, 0)
    assert calls.getipaddr() == IpConfig(0, 0, 0)
    assert calls.if_addrs("eth0") == []


@pytest.mark.parametrize(
    ("ip", "netmask", "gateway"),
    [
        ("10.0.0.5", 0xFF00FF00, 0), ("10.0.0.255", "255.255.255.0", 0), ("224.0.0.1", "255.0.0.0", 0),
        ("nonsense", "255.0.0.0", 0), ("::1", "255.0.0.0", 0), (1 << 32, 0, 0), ("10.0.0.5", "255.255.255.0", -1),
        ("127.0.0.5", "255.0.0.0", 0),
    ],
)  # fmt: skip
def test_a_setipaddr_that_fails_changes_nothing(
    world: Wired, ip: int | str, netmask: int | str, gateway: int | str
) -> None:
    world.calls.setipaddr("10.0.0.9", "255.255.255.0", "10.0.0.1")
    before = world.calls.getipaddr()

    with pytest.raises(OSError, match="Invalid argument"):
        world.calls.setipaddr(ip, netmask, gateway)

    assert world.calls.getipaddr() == before
    assert world.calls.if_addrs("eth0") == [("10.0.0.9", 24)]


def test_without_an_interface_there_is_nothing_to_set() -> None:
    world = World()
    for call in (lambda: world.calls.setipaddr(1, 0), world.calls.getipaddr):
        with pytest.raises(OSError, match="No such device"):
            call()
    world.close()


def test_interfaces_have_names_and_indices(world: Wired) -> None:
    calls = world.calls
    assert calls.if_nameindex() == [(1, "lo"), (2, "eth0")]
    assert calls.if_nametoindex("eth0") == 2
    assert calls.if_indextoname(1) == "lo"
    with pytest.raises(OSError, match="No such device"):
        calls.if_nametoindex("eth9")
    with pytest.raises(OSError, match="No such device or address"):
        calls.if_indextoname(9)


def test_interfaces_come_and_go(world: Wired) -> None:
    calls = world.calls
    sent: list[bytes] = []
    tun = calls.if_add("tun0", lambda packets: sent.extend(packet.tobytes() for packet in packets), mtu=1400)
    assert tun.mtu == 1400
    calls.if_add_addr("tun0", "10.9.0.1", 24)
    calls.if_up("tun0")

    send(world, "10.9.0.2")
    world.settle()

    assert [(IP(raw).src, IP(raw).dst) for raw in sent] == [("10.9.0.1", "10.9.0.2")], "bare IP packets"
    for name, number in (("tun0", "File exists"), ("bad", "Invalid argument")):
        with pytest.raises(OSError, match=number):
            calls.if_add(name, lambda _packets: None, mtu=5)
    calls.if_del("tun0")
    assert calls.if_nameindex() == [(1, "lo"), (2, "eth0")]
    with pytest.raises(OSError, match="Network is unreachable"):
        send(world, "10.9.0.2")
    with pytest.raises(OSError, match="Invalid argument"):
        calls.if_del("lo")


def test_addresses_of_both_families_are_added_and_removed(world: Wired) -> None:
    calls = world.calls
    calls.if_up("eth0")
    for number in range(1, 9):
        calls.if_add_addr("eth0", f"10.0.{number}.1", 24)
        calls.if_add_addr("eth0", f"2001:db8:{number}::1", 64)
    added = [one for one in calls.if_addrs("eth0") if not one[0].startswith("fe80")]
    assert len(added) == 16
    assert ("10.0.3.1", 24) in added
    assert ("2001:db8:3::1", 64) in added
    world.pass_time(3_000_000)  # until the new addresses are known to be ours alone

    fd = calls.socket(AF_INET, SOCK_DGRAM)
    calls.bind(fd, ("10.0.3.1", 0))
    calls.if_del_addr("eth0", "10.0.3.1")

    assert ("10.0.3.1", 24) not in calls.if_addrs("eth0")
    with pytest.raises(OSError, match="Cannot assign requested address"):
        calls.sendto(fd, b"x", ("10.0.4.9", 9))
    for call, error in (
        (lambda: calls.if_del_addr("eth0", "10.0.3.1"), "Cannot assign"),
        (lambda: calls.if_add_addr("eth0", "10.0.4.1", 24), "File exists"),
        (lambda: calls.if_add_addr("eth0", "10.0.4.0.1", 24), "Invalid argument"),
        (lambda: calls.if_add_addr("eth0", "10.0.99.1", 33), "Invalid argument"),
        (lambda: calls.if_add_addr("eth0", "224.0.0.9", 24), "Invalid argument"),
        (lambda: calls.if_add_addr("eth9", "10.0.99.1", 24), "No such device"),
    ):
        with pytest.raises(OSError, match=error):
            call()


def test_routes_are_added_and_removed(world: Wired) -> None:
    calls = world.calls
    calls.if_up("eth0")
    calls.if_add_addr("eth0", "192.168.1.5", 24)
    calls.add_route("0.0.0.0", 0, "192.168.1.1")
    calls.add_route("10.0.0.0", 8, "192.168.1.2", "eth0", 5)
    calls.add_route("172.16.0.0", 12, None, "eth0")

    rows = [row for row in calls.routes() if row.interface == "eth0" and ":" not in row.destination]
    assert rows == [
        ("192.168.1.0", 24, None, "eth0", 0),
        ("172.16.0.0", 12, None, "eth0", 0),
        ("10.0.0.0", 8, "192.168.1.2", "eth0", 5),
        ("0.0.0.0", 0, "192.168.1.1", "eth0", 0),
    ]
    world.take()
    send(world, "10.2.3.4")
    assert [frame[ARP].pdst for frame in world.take() if ARP in frame] == ["192.168.1.2"]
    for call, error in (
        (lambda: calls.add_route("10.0.0.0", 8, "192.168.1.2", "eth0", 5), "File exists"),
        (lambda: calls.add_route("10.1.0.0", 16, "203.0.113.1"), "Network is unreachable"),
        (lambda: calls.add_route("10.1.0.0", 16), "No such device"),
        (lambda: calls.add_route("10.1.0.0", 16, None, "eth9"), "No such device"),
        (lambda: calls.add_route("10.1.0.1", 16, None, "eth0"), "Invalid argument"),
        (lambda: calls.add_route("10.1.0.0", 99, None, "eth0"), "Invalid argument"),
        (lambda: calls.del_route("10.1.0.0", 16), "No such process"),
        (lambda: calls.del_route("10.1.0.0", 99), "Invalid argument"),
    ):
        with pytest.raises(OSError, match=error):
            call()
    calls.del_route("10.0.0.0", 8)
    send(world, "10.2.3.4")
    assert [frame[ARP].pdst for frame in world.take() if ARP in frame] == ["192.168.1.1"]


def test_up_may_start_dhcp_and_events_are_told(world: Wired) -> None:
    started: list[Interface] = []
    events: list[tuple[str, object]] = []

    def listen(event: str, interface: Interface, detail: object) -> None:
        events.append((event, detail))

    with pytest.raises(OSError, match="not supported"):
        world.calls.if_up("eth0", dhcp=True)
    assert not world.eth.is_up

    world.calls.event_subscribe(listen)
    world.calls.dhcp = started.append
    world.calls.if_up("eth0", dhcp=True)
    world.calls.if_down("eth0")

    assert started == [world.eth]
    assert not world.eth.is_up
    assert ("link", "up") in events
    assert ("link", "down") in events
    world.calls.event_unsubscribe(listen)
    heard = len(events)
    world.calls.if_up("eth0")
    assert len(events) == heard


def test_a_broadcast_needs_leave(world: Wired) -> None:
    world.calls.setipaddr("10.0.0.5", "255.255.255.0")
    fd = world.calls.socket(AF_INET, SOCK_DGRAM)
    for host in ("10.0.0.255", "<broadcast>"):
        with pytest.raises(PermissionError):
            world.calls.sendto(fd, b"x", (host, 9))
        with pytest.raises(PermissionError):
            world.calls.connect(fd, (host, 9))
    world.take()

    world.calls.setsockopt(fd, SOL_SOCKET, SO_BROADCAST, 1)
    world.calls.sendto(fd, b"x", ("<broadcast>", 9))

    assert [(frame.dst, frame[IP].dst) for frame in world.take()] == [("ff:ff:ff:ff:ff:ff", "255.255.255.255")]


def test_a_zone_chooses_the_interface(world: Wired) -> None:
    world.calls.if_up("eth0")
    world.eth.insert(Prefix(parse_address("fe80::5"), 64), check=False)
    fd = world.calls.socket(AF_INET6, SOCK_DGRAM)

    world.calls.bind(fd, ("fe80::5%eth0", 0))
    assert world.calls.getsockname(fd)[0] == "fe80::5"
    assert world.calls.getsockname(fd)[2:] == (0, 2)
    world.calls.connect(fd, ("fe80::9", 9, 0, 2))
    assert world.calls.getpeername(fd) == ("fe80::9", 9, 0, 2)
    other = world.calls.socket(AF_INET6, SOCK_DGRAM)
    with pytest.raises(OSError, match="No such device"):
        world.calls.sendto(other, b"x", ("fe80::9", 9, 0, 77))
    assert world.calls.sendto(other, b"x", ("fe80::9%eth0", 9)) == 1


# -- capabilities (row D22) --------------------------------------------------------------------------------------


def test_d22_the_capabilities_callback_is_asked_before_what_needs_a_privilege(world: Wired) -> None:
    calls = world.calls
    fd = calls.socket(AF_INET, SOCK_DGRAM)
    asked: list[str] = []

    def nobody(capability: str) -> bool:
        asked.append(capability)
        return False

    calls.capable = nobody
    with pytest.raises(PermissionError) as caught:
        calls.bind(fd, ("0.0.0.0", 1023))
    assert caught.value.errno == errno.EACCES
    for refused in (
        lambda: calls.socket(AF_INET, SOCK_RAW, 255),
        lambda: calls.if_up("eth0"),
        lambda: calls.if_add_addr("eth0", "10.0.0.9", 24),
        lambda: calls.add_route("10.9.0.0", 16, "10.0.0.1"),
        lambda: calls.setipaddr("10.0.0.9", "255.255.255.0"),
    ):
        with pytest.raises(PermissionError) as caught:
            refused()
        assert caught.value.errno == errno.EPERM
    assert asked == ["net_bind_service", "net_raw", *["net_admin"] * 4]
    assert calls.if_addrs("eth0") == []
    asked.clear()
    calls.bind(fd, ("0.0.0.0", 1024))
    assert asked == [], "an ordinary port is nobody's privilege"
