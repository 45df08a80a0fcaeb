"""The trace of a frame's way: every stage in order, the drop with its reason at its stage, nothing when it is off."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

import pytest

import vring
from guest.sys.constants import AF_INET, AF_INET6, SO_RCVBUF, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET
from hw.machine import Machine
from vring.cli import main
from vring.config import Board
from vring.session import Session
from vring.trace.flow import Passage

PAIR = """
clock = "virtual"
[[guest]]
name = "alice"
ip = "10.0.0.1"
mask = "255.255.255.0"
cmdline = "-ip6"
nic = [{ wire = "hub:lan" }]
[[guest]]
name = "bob"
ip = "10.0.0.2"
mask = "255.255.255.0"
cmdline = "-ip6"
nic = [{ wire = "hub:lan" }]
"""
RX = ["nic", "ring", "irq", "driver", "fe", "ethernet", "ip", "udp", "socket"]
TX = ["ip", "ethernet", "fe", "driver", "ring", "nic"]


class Watched:
    """Two guests that know each other's MAC addresses, and what the trace has told since `clear`."""

    def __init__(self, session: Session, told: list[Passage]) -> None:
        self.session = session
        self.told = told
        self.alice, self.bob = session.calls_of("alice"), session.calls_of("bob")
        self.session.run(seconds=3)  # duplicate address detection
        fd = self.alice.socket(AF_INET, SOCK_DGRAM)
        self.alice.sendto(fd, b"", ("10.0.0.2", 9))
        self.session.run(seconds=1)
        self.fd = fd

    def send(self, data: bytes, port: int) -> None:
        """Alice sends to Bob; only the trace of that is kept."""
        self.told.clear()
        self.alice.sendto(self.fd, data, ("10.0.0.2", port))
        self.session.run(seconds=0.1)

    def of(self, guest: str, way: str) -> list[Passage]:
        """The way of what came in or went out; a transmitted buffer that comes back is no stage of a frame."""
        return [
            one for one in self.told
            if (one.guest, one.way) == (guest, way) and not (way == "tx" and one.text.startswith("used"))
        ]  # fmt: skip


@contextmanager
def watched(*, packed: bool = False) -> Iterator[Watched]:
    text = PAIR.replace("nic = [{", "nic = [{ packed = true,") if packed else PAIR
    told: list[Passage] = []
    with vring.boot(Board.parse(text), trace=told.append) as session:
        yield Watched(session, told)


@pytest.fixture(params=["split", "packed"])
def pair(request: pytest.FixtureRequest) -> Iterator[Watched]:
    with watched(packed=request.param == "packed") as made:
        yield made


def test_c4_a_frame_is_seen_at_every_stage_in_order(pair: Watched) -> None:
    fd = pair.bob.socket(AF_INET, SOCK_DGRAM)
    pair.bob.bind(fd, ("0.0.0.0", 7))

    pair.send(b"hello", 7)

    assert [one.stage for one in pair.of("alice", "tx")] == TX
    up = pair.of("bob", "rx")
    assert [one.stage for one in up] == RX
    assert {one.interface for one in up} == {"eth0"}
    port = pair.alice.getsockname(pair.fd)[1]
    said = {one.stage: one.text for one in up}
    assert said["nic"] == f"IP 10.0.0.1 > 10.0.0.2 UDP {port} > 7, 13 bytes"
    assert said["ring"].endswith(f"len {12 + 14 + 20 + 8 + 5}")
    assert said["irq"] == "line 5 is high"
    assert said["driver"] == "47 bytes, copied"
    assert said["fe"] == "to ni"
    assert said["udp"] == f"port {port} > 7"
    assert said["socket"] == f"fd {fd}: 5 bytes wait"
    assert not any(one.dropped for one in pair.told)


def test_d1_ipv4_is_shown_in_the_form_that_the_engine_works_with(pair: Watched) -> None:
    pair.send(b"x", 7)

    assert "::ffff:10.0.0.1 > ::ffff:10.0.0.2 protocol 17" in [
        one.text for one in pair.of("bob", "rx") if one.stage == "ip"
    ]


def test_c4_ipv6_passes_the_same_stages(pair: Watched) -> None:
    fd = pair.bob.socket(AF_INET6, SOCK_DGRAM)
    pair.bob.bind(fd, ("::", 7))
    bob = next(text for text, _ in pair.bob.if_addrs("eth0") if text.startswith("fe80"))
    sender = pair.alice.socket(AF_INET6, SOCK_DGRAM)
    pair.alice.sendto(sender, b"", (f"{bob}%eth0", 7))
    pair.session.run(seconds=0.1)
    pair.told.clear()

    pair.alice.sendto(sender, b"hello", (f"{bob}%eth0", 7))
    pair.session.run(seconds=0.1)

    assert [one.stage for one in pair.of("bob", "rx")] == RX
    assert next(one for one in pair.of("bob", "rx") if one.stage == "nic").text.startswith("IP6 fe80::")


def test_c4_a_request_is_seen_at_its_last_stage_before_its_answer_starts_down(pair: Watched) -> None:
    pair.told.clear()
    pair.session.guests[0].stack.icmp.open_echo().send("10.0.0.2", 1, b"")
    pair.session.run(seconds=0.1)

    ping = [(one.way, one.stage) for one in pair.told if one.guest == "bob" and not one.text.startswith("used")]
    assert ping == [
        *(("rx", stage) for stage in ("nic", "irq", "driver", "fe", "ethernet", "ip", "icmp")),
        *(("tx", stage) for stage in TX),
    ]


@pytest.mark.parametrize(
    ("ethertype", "causes"),
    [(4, ["request ::ffff:10.0.0.1 > ::ffff:10.0.0.2", "reply ::ffff:10.0.0.2 > ::ffff:10.0.0.1"]),
     (6, ["type 135 code 0", "type 135 about {bob}", "{bob} > {alice} protocol 58"])],
)  # fmt: skip
def test_c4_who_has_is_seen_before_its_answer(pair: Watched, ethertype: int, causes: list[str]) -> None:
    alice, bob = (
        next(text for text, _ in calls.if_addrs("eth0") if text.startswith("fe80")) for calls in (pair.alice, pair.bob)
    )
    for guest in pair.session.guests:
        guest.stack.interfaces[1].neighbours.flush()
    pair.told.clear()
    if ethertype == 4:
        pair.alice.sendto(pair.fd, b"", ("10.0.0.2", 9))
    else:
        pair.alice.sendto(pair.alice.socket(AF_INET6, SOCK_DGRAM), b"", (f"{bob}%eth0", 9))
    pair.session.run(seconds=0.1)

    upper = [one.text for one in pair.told if one.guest == "bob" and one.stage in ("arp", "icmpv6", "nd", "ip")]
    wanted = [text.format(alice=alice, bob=bob) for text in causes]
    assert [text for text in upper if text in wanted][: len(wanted)] == wanted


def no_listener(_pair: Watched) -> int:
    return 9


def full_socket(pair: Watched) -> int:
    fd = pair.bob.socket(AF_INET, SOCK_DGRAM)
    pair.bob.bind(fd, ("0.0.0.0", 7))
    pair.bob.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, 0)
    for _ in range(20):
        pair.send(b"fills", 7)
    return 7


def interface_down(pair: Watched) -> int:
    pair.bob.if_down("eth0")
    return 7


def nobody_connected(pair: Watched) -> int:
    guest = pair.session.guests[1]
    guest.fes[0].ni = None
    return 7


def cable_out(pair: Watched) -> int:
    pair.session.machines[1].nics[0].device.set_link(False)  # type: ignore[attr-defined]  # the cable is out
    return 7


def other_address(pair: Watched) -> int:
    pair.bob.if_del_addr("eth0", "10.0.0.2")
    return 7


@pytest.mark.parametrize(
    ("spoil", "stage", "reason"),
    [
        (no_listener, "udp", "rx_dropped_no_port"),
        (full_socket, "udp", "rx_dropped_rcvbuf"),
        (other_address, "ip", "rx_dropped_forwarding_off"),
        (interface_down, "ethernet", "rx_dropped_down"),
        (nobody_connected, "fe", "rx_dropped_disconnected"),
        (cable_out, "nic", "rx_dropped_link_down"),
    ],
)
def test_c4_a_dropped_frame_says_why_at_its_stage(
    pair: Watched, spoil: Callable[[Watched], int], stage: str, reason: str
) -> None:
    pair.send(b"hello", spoil(pair))

    up = pair.of("bob", "rx")
    assert [(one.stage, one.text) for one in up if one.dropped] == [(stage, reason)]
    assert up[-1].dropped, "the way ends there"
    expected = RX[: RX.index(stage) + 1]
    assert [one.stage for one in up if not one.dropped] in (expected, expected[:-1])


def test_what_the_stack_cannot_send_is_seen_where_it_stops(pair: Watched) -> None:
    pair.told.clear()
    with pytest.raises(OSError, match="unreachable"):
        pair.alice.sendto(pair.fd, b"x", ("8.8.8.8", 7))
    pair.session.guests[0].stack.icmp.open_echo().send("10.0.0.9", 1, b"")
    pair.session.run(seconds=5)

    assert [(one.stage, one.text) for one in pair.of("alice", "tx") if one.dropped] == [
        ("neighbour", "tx_dropped_unreachable")
    ]


@pytest.mark.parametrize("target", ["10.0.0.2", "127.0.0.1"])
def test_c4_a_segment_that_is_sent_is_on_its_way_out(pair: Watched, target: str) -> None:
    """A TCP segment is seen at the stage tcp of either guest: there on its way out, here on its way in."""
    server = pair.alice if target == "127.0.0.1" else pair.bob
    listener = server.socket(AF_INET, SOCK_STREAM)
    server.bind(listener, ("0.0.0.0", 7))
    server.listen(listener, 1)
    pair.told.clear()

    pair.alice.connect(pair.alice.socket(AF_INET, SOCK_STREAM), (target, 7))
    pair.session.run(seconds=0.1)

    ways = [one.way for one in pair.told if one.stage == "tcp"]
    assert ways == ["tx", "rx"] * 3, "SYN, its answer, and the acknowledgement, each sent and received"


def test_the_loopback_has_its_own_stages(pair: Watched) -> None:
    fd = pair.bob.socket(AF_INET, SOCK_DGRAM)
    pair.bob.bind(fd, ("127.0.0.1", 7))
    pair.told.clear()

    pair.bob.sendto(fd, b"x", ("127.0.0.1", 7))
    pair.session.run(seconds=0.1)

    assert [(one.way, one.stage, one.interface) for one in pair.told] == [
        ("tx", "ip", "lo"), ("tx", "driver", "lo"),
        ("rx", "driver", "lo"), ("rx", "ip", "lo"), ("rx", "udp", "lo"), ("rx", "socket", "lo"),
    ]  # fmt: skip


def test_a_line_names_time_guest_interface_way_stage_and_what() -> None:
    seen = Passage(12_345, "alice", "eth0", "rx", "ring", "used id 3 len 98")
    lost = Passage(61_000_001, "bob", "eth0", "rx", "ip", "rx_dropped_checksum", dropped=True)

    assert str(seen) == "[    0.012345] alice eth0  rx  ring      used id 3 len 98"
    assert str(lost) == "[   61.000001] bob eth0  rx  ip        dropped: rx_dropped_checksum"


def test_counters_count_as_before() -> None:
    def counters(trace: Callable[[Passage], None] | None) -> object:
        with vring.boot(Board.parse(PAIR), trace=trace) as session:
            session.run(seconds=3)
            fd = session.calls.socket(AF_INET, SOCK_DGRAM)
            session.calls.sendto(fd, b"x", ("10.0.0.2", 9))
            session.run(seconds=1)
            return {guest: {layer: dict(counter) for layer, counter in layers.items()}
                    for guest, layers in session.counters().items()}  # fmt: skip

    assert counters(None) == counters(lambda _passage: None)


def test_without_a_trace_nothing_is_put_in() -> None:
    with vring.boot(Board.parse(PAIR)) as session:
        session.run(seconds=1)
        guest, machine = session.guest, session.machines[0]

        assert guest.stack.trace is None
        assert machine.memory.hook is None
        assert machine.irq.hook is None
        assert type(guest.fes[0].counters) is type(guest.lo.counters)
        assert "deliver" not in vars(guest.fes[0].device)
        assert "run" not in vars(guest)
        assert type(machine) is Machine


def test_the_command_prints_the_way_of_a_ping() -> None:
    said = io.StringIO()
    words = ["boot", "--trace", "--clock", "virtual", "--wire", "hub", "--", "-s", "ping", "127.0.0.1", "-c", "1", "-q"]

    with redirect_stdout(said), pytest.raises(SystemExit) as ended:
        main(words)

    assert ended.value.code == 0
    lines = said.getvalue().splitlines()
    assert "[    0.000000] guest lo    tx  ip        ::ffff:127.0.0.1 > ::ffff:127.0.0.1 protocol 1" in lines
    assert "[    0.000000] guest lo    rx  icmp      type 0 code 0" in lines
