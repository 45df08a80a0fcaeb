"""A wire straight under an interface of a stack (D19): hosts on a network without card, driver and kernel."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from guest.net.address import parse_address
from guest.net.interface import Interface
from guest.net.pbuf import Offload, PacketBuffer
from guest.net.stack import Stack
from guest.net.tcp.endpoint import TcpEndpoint
from hw.clock import VirtualClock
from hw.loop import Loop
from hw.wire.cable import cable
from hw.wire.link import Frame, Link, Views, WireError
from tests.guest_board import Board
from vring.direct import PULLED, WAITING, DirectInterface, StackTurns, direct_stack

SECOND = 1_000_000
MAC = bytes.fromhex("02000000000a")


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(VirtualClock())
    yield loop
    loop.close()


def host(loop: Loop, link: Link, number: int) -> tuple[Stack, DirectInterface]:
    """10.0.0.`number`, and fd00::`number`."""
    stack = direct_stack(loop, rng=random.Random(number))
    eth = DirectInterface(stack, link, mac=bytes((2, 0, 0, 0, 0, number)))
    eth.interface.add_address(f"10.0.0.{number}", 24)
    eth.interface.add_address(f"fd00::{number:x}", 64, check=False)
    eth.interface.set_up()
    return stack, eth


@pytest.mark.parametrize("target", ["10.0.0.2", "fd00::2"])
def test_d19_two_stacks_ping_over_a_cable_without_a_card(loop: Loop, target: str) -> None:
    near, far = cable(loop)
    alice, _ = host(loop, near, 1)
    host(loop, far, 2)
    port = alice.icmp.open_echo()

    port.send(target, 1, b"x" * 5000)
    loop.run(deadline=SECOND)

    reply = port.receive()
    assert reply is not None, f"no answer; counters: {alice.counters}"
    assert (reply.src, reply.seq, reply.error) == (target, 1, None)
    assert reply.payload == b"x" * 5000, "the payload came back changed, or its fragments were not put together"


def test_d19_a_guest_with_a_card_and_a_bare_stack_ping_each_other() -> None:
    board = Board()
    near, far = cable(board.loop)
    bare, _ = host(board.loop, far, 1)
    guest = board.boot("-ipaddr 10.0.0.2 -netmask 255.255.255.0", near)

    there = bare.icmp.open_echo()
    there.send("10.0.0.2", 1, b"to the guest")
    back = guest.stack.icmp.open_echo()
    back.send("10.0.0.1", 2, b"to the stack")
    board.run(1)

    first, second = there.receive(), back.receive()
    board.close()
    assert [first and first.payload, second and second.payload] == [b"to the guest", b"to the stack"]


def test_d19_tcp_crosses_a_cable_byte_for_byte(loop: Loop) -> None:
    near, far = cable(loop)
    alice, _ = host(loop, near, 1)
    bob, _ = host(loop, far, 2)
    server = bob.tcp.open(4)
    server.bind(bob.interfaces[1].addresses[0].address, 7)
    server.listen(5)
    client = alice.tcp.open(4)
    client.connect(bob.interfaces[1].addresses[0].address, 7)
    loop.run(until=lambda: server.readable, deadline=SECOND)
    child = server.accept()
    assert child is not None, "nobody came"

    sent = random.Random(3).randbytes(300_000)
    at, got = 0, b""

    def moved() -> bool:
        nonlocal at, got
        at += client.write([sent[at : at + 10_000]]) if at < len(sent) else 0
        piece = child.read(1 << 20)
        got += piece if isinstance(piece, bytes) else b""
        return len(got) == len(sent)

    assert loop.run(until=moved, deadline=60 * SECOND), f"{len(got)} of {len(sent)} bytes came"
    assert got == sent


def test_d19_a_batch_comes_in_order_in_memory_of_its_own(loop: Loop) -> None:
    near, far = cable(loop)
    _, eth = host(loop, near, 1)
    got: list[PacketBuffer] = []
    eth.receiver = got.extend
    borrowed = bytearray(b"first" * 10), bytearray(b"second" * 10)

    far.transmit([(None, [memoryview(borrowed[0])]), (None, [b"a piece, ", memoryview(borrowed[1])])])
    for memory in borrowed:
        memory[:] = bytes(len(memory))  # a wire's views are dead after the call

    assert [packet.tobytes() for packet in got] == [b"first" * 10, b"a piece, " + b"second" * 10]


def test_d19_the_cable_is_the_carrier(loop: Loop) -> None:
    near, far = cable(loop)
    _, eth = host(loop, near, 1)
    assert not running(eth.interface), "it runs with nobody at the other end"

    _, other = host(loop, far, 2)
    assert running(eth.interface)

    other.close()
    assert not running(eth.interface)


def running(interface: Interface) -> bool:
    return bool(interface.flags & 0x40)


class Narrow(Link):
    """A wire that takes `room` frames."""

    def __init__(self) -> None:
        super().__init__("narrow")
        self.room = 0
        self.sent: list[bytes] = []
        self.headers: list[bytes | None] = []

    def transmit(self, frames: Sequence[Frame]) -> int:
        taken = min(self.room, len(frames))
        self.room -= taken
        self.sent += [b"".join(views) for _, views in frames[:taken]]
        self.headers += [None if header is None else bytes(header) for header, _ in frames[:taken]]
        return taken


def test_d19_what_a_full_wire_does_not_take_waits_in_order_and_holds_senders_off(loop: Loop) -> None:
    wire = Narrow()
    wire.room = 100
    stack, eth = host(loop, wire, 1)
    peer = eth.interface.neighbours
    assert peer is not None
    group = 0xFFFF_E000_0005  # 224.0.0.5, for which nobody has to be asked
    wire.room, wire.sent = 2, []
    asked: list[int] = []

    def send(number: int) -> None:
        end = stack.udp.open(4)
        end.options.bind_device = eth.interface
        assert end.send([f"datagram {number:03}".encode()], (group, 9)) == 0
        end.close()

    for number in range(5):
        send(number)
    eth.interface.when_room(lambda: asked.append(eth.interface.room()))

    assert [frame[-12:] for frame in wire.sent] == [b"datagram 000", b"datagram 001"]
    assert eth.interface.room() == 0, "a full wire has room"

    wire.room = 2
    eth.writable()
    assert asked == [], "senders were called while the wire is full"

    wire.room = 100
    eth.writable()
    assert [frame[-12:] for frame in wire.sent] == [f"datagram {number:03}".encode() for number in range(5)]
    assert [room > 0 for room in asked] == [True], "the sender that waited for room was not called, once"

    wire.room = 0
    for number in range(WAITING + 7):
        send(number)
    assert eth.counters["tx_dropped_queue_full"] == 7
    assert eth.counters["tx_packets"] + WAITING + 7 == stack.counters["ethernet"]["tx_packets"]


def test_d19_a_taken_link_leaves_the_stack_as_it_was(loop: Loop) -> None:
    near, _ = cable(loop)
    host(loop, near, 1)
    stack = direct_stack(loop, rng=random.Random(2))

    with pytest.raises(WireError, match="something is plugged in already"):
        DirectInterface(stack, near, mac=MAC)

    assert [interface.name for interface in stack.interfaces] == ["lo"]


def test_d19_a_stopped_stack_takes_no_turns(loop: Loop) -> None:
    near, far = cable(loop)
    stack = Stack(now=loop.clock.now, rng=random.Random(1))
    turns = StackTurns(stack, loop)
    eth = DirectInterface(stack, near, mac=MAC)
    eth.interface.add_address("10.0.0.1", 24)
    host(loop, far, 2)
    eth.interface.set_up()
    assert turns.next_deadline() is not None, "an interface that just came up announces itself again"

    turns.stop()

    assert turns.next_deadline() is None
    loop.run(deadline=10 * SECOND)
    assert stack.counters["arp"]["tx_announcements"] == 0, "it went on announcing itself"


# -- what is large ---------------------------------------------------------------------------------------------------


def streaming(loop: Loop, wire: Link, **options: bool) -> tuple[Stack, DirectInterface, TcpEndpoint]:
    """A host whose peer, played by the test, has taken its SYN and offers a large window."""
    stack = direct_stack(loop, rng=random.Random(5))
    eth = DirectInterface(stack, wire, mac=MAC, **options)
    eth.interface.add_address("10.0.0.1", 24)
    eth.interface.set_up()
    assert eth.interface.neighbours is not None
    eth.interface.neighbours.learn(parse_address("10.0.0.2"), bytes.fromhex("020000000002"), create=True)
    end = stack.tcp.open(4)
    end.connect(parse_address("10.0.0.2"), 80)
    syn = Ether(wire.sent[-1])  # type: ignore[attr-defined]  # the wires here keep what was sent
    answer = TCP(sport=80, dport=syn[TCP].sport, seq=1000, ack=syn[TCP].seq + 1, flags="SA", window=65535,
                 options=[("MSS", 1460)])  # fmt: skip
    raw = bytes(Ether(src="02:00:00:00:00:02", dst=MAC.hex(":")) / IP(src="10.0.0.2", dst="10.0.0.1") / answer)
    eth.receive([(None, [raw])])
    assert end.connected
    return stack, eth, end


def test_d19_what_a_wire_does_not_cut_is_cut_here_and_waits_frame_by_frame(loop: Loop) -> None:
    wire = Narrow()
    wire.room = 100
    _, eth, end = streaming(loop, wire)
    wire.sent, wire.room = [], 3
    before = eth.counters.copy()
    data = random.Random(1).randbytes(10_000)

    end.write([data])

    assert [len(frame) for frame in wire.sent] == [1514] * 3
    wire.room = 100
    eth.writable()
    assert b"".join(bytes(Ether(frame)[TCP].payload) for frame in wire.sent) == data, "in another order, or not all"
    counted = eth.counters - before
    assert (counted["tx_packets"], counted["tx_bytes"]) == (len(wire.sent), sum(map(len, wire.sent)))


def test_d19_what_waits_to_be_cut_waits_whole(loop: Loop) -> None:
    """However much that is: what waits is bounded in packets, not in frames."""
    wire = Narrow()
    wire.room = 100
    stack, eth, end = streaming(loop, wire)
    wire.sent, wire.room = [], 2
    group = 0xFFFF_E000_0005  # 224.0.0.5
    datagrams = stack.udp.open(4)
    datagrams.options.bind_device = eth.interface

    eth.interface.hold()
    datagrams.send([b"first"], (group, 9))
    end.write([bytes(5000)])
    datagrams.send([b"last"], (group, 9))
    eth.interface.release()

    assert [len(frame) for frame in wire.sent] == [47, 1514]
    assert len(eth._waiting) == 4, "three frames of the packet that was begun, and the one behind it"
    wire.room = 100
    eth.writable()
    assert [len(frame) for frame in wire.sent] == [47, 1514, 1514, 1514, 674, 46]


def test_d19_what_cannot_be_cut_is_dropped_and_counted_and_the_rest_goes_on(loop: Loop) -> None:
    wire = Narrow()
    wire.room = 100
    _, eth, _ = streaming(loop, wire)
    wire.sent = []
    senseless = PacketBuffer.from_bytes(bytes(100))
    senseless.offload = Offload(gso_type=1, hdr_len=54, gso_size=0, csum_start=34, csum_offset=16)

    assert eth.transmit([senseless, PacketBuffer.from_bytes(b"a frame")]) == 2

    assert wire.sent == [b"a frame"]
    assert eth.counters["tx_dropped_offload"] == 1


def test_d19_a_wire_that_cuts_gets_what_tcp_sends_at_a_time(loop: Loop) -> None:
    wire = Narrow()
    wire.room = 100
    _, _, end = streaming(loop, wire, large=True)
    wire.sent, wire.headers = [], []

    end.write([bytes(10_000)])

    assert [len(frame) for frame in wire.sent] == [54 + 10_000]
    flags, gso_type, head, most = struct.unpack_from("<BBHH", wire.headers[0] or bytes(12))
    assert (flags, gso_type, head, most) == (1, 1, 54, 1460)


class Descriptor(Link):
    """A wire that is read, as those of the host are: gives its frames one after the other."""

    def __init__(self, frames: list[bytes], header_size: int = 0) -> None:
        super().__init__("descriptor")
        self.header_size = header_size
        self._frames = frames

    def transmit(self, frames: Sequence[Frame]) -> int:
        return len(frames)

    def read_into(self, views: Views) -> int:
        if not self._frames:
            return 0
        raw = self._frames.pop(0)
        at = 0
        for view in views:
            part = raw[at : at + len(view)]
            memoryview(view)[: len(part)] = part
            at += len(part)
        return at


@pytest.mark.parametrize("header", [b"", bytes(12)], ids=["plain", "with header"])
def test_d19_what_is_read_goes_up_in_one_batch_and_leaves_the_others_their_turn(loop: Loop, header: bytes) -> None:
    sent = [header + bytes(14) + bytes([number]) * 60 for number in range(PULLED + 5)]
    wire = Descriptor(list(sent), len(header))
    _, eth = host(loop, wire, 1)
    batches: list[list[bytes]] = []
    eth.receiver = lambda packets: batches.append([packet.tobytes() for packet in packets])

    eth.pull(wire)
    eth.pull(wire)
    eth.pull(wire)

    assert [len(batch) for batch in batches] == [PULLED, 5], "a batch was cut up, or nothing came as something"
    assert [frame for batch in batches for frame in batch] == [frame[len(header) :] for frame in sent]


def test_d19_a_router_is_handed_frames_as_they_came(loop: Loop) -> None:
    """Segments that follow each other: a host gets one packet, a router each of them."""
    wire = Narrow()
    stack, eth = host(loop, wire, 1)
    tcp = TCP(sport=1, dport=2, flags="A")
    frames = []
    for number in range(3):
        tcp.seq = 1 + 1000 * number
        frames.append(bytes(Ether(dst="02:00:00:00:00:01") / IP(dst="10.0.0.1") / tcp / Raw(bytes(1000))))
    seen: list[int] = []
    eth.receiver = lambda packets: seen.append(len(packets))

    eth.receive([(None, [frame]) for frame in frames])
    stack.forwarding = True
    eth.receive([(None, [frame]) for frame in frames])

    assert seen == [1, 3]
