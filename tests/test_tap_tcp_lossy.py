"""Streams between a guest and the kernel over a TAP that loses, reorders, repeats and spoils frames, in both roles, and
a capture of all of it read by others. The second half of row E31; the first is tests/test_tcp_lossy.py.

The bad wire is hw/wire/impair.py, between the TAP and the card, so both kernels see the same kind of path; the capture
stands between it and the card. Everything happens once, in `talk`, and the tests look at what has come of it.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import PcapNgReader, wrpcap

from guest.sys import constants as c
from tests.requirements import require_program
from tests.tap_tcp import (
    CONNECTS,
    LISTENS,
    Info,
    Streams,
    digest,
    guest_reads,
    guest_writes,
    kernel_counters,
    kernel_info,
    kernel_reads,
    stream,
    tcp_guest,
    tcp_host,
)
from tests.tap_world import MAC
from tests.test_tap_capture import rebuilt

pytestmark = pytest.mark.root

WIRE = "tap:t0,loss=10%,reorder=5%,duplicate=2%,corrupt=1%"
WORDS = "net.retries=15"  # as patient as Linux: six losses of one segment in a row come to pass
WAYS = [(CONNECTS, 4), (LISTENS, 6)]
OUT, INTO = 400_000, 1_000_000  # bytes
BAD = " || ".join((
    "_ws.malformed", "_ws.short", "_ws.expert.severity == error", "ip.checksum.status == 0", "tcp.checksum.status == 0"
))  # fmt: skip


@dataclass
class Talk:
    """What came of it.

    Attributes:
        out, into: of each way, hashes of what was sent and of what came, out of the guest and into it.
        mine: what the kernel said of its end when it had sent all.
        kernel, guest, wire: counters.
        capture: the file.
    """

    capture: Path
    out: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)
    into: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)
    mine: dict[tuple[str, int], Info] = field(default_factory=dict)
    kernel: dict[str, int] = field(default_factory=dict)
    guest: Counter[str] = field(default_factory=Counter)
    wire: Counter[str] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Talk:
    """Bulk both ways, by both roles, on the bad wire; and on each connection a byte that is urgent."""
    done = Talk(tmp_path_factory.mktemp("lossy") / "bad.pcapng")
    with tcp_host() as host, tcp_guest(host, WIRE, words=WORDS, pcap=done.capture) as session:
        wire = Streams(host, session)
        for number, (role, version) in enumerate(WAYS):
            there, back = stream(number, OUT), stream(number + 9, INTO)
            with wire.connected(role, version) as link:
                writing = link.job(lambda calls, fd=link.fd, data=there: guest_writes(calls, fd, data))  # type: ignore[misc]
                done.out[role, version] = digest(there), digest(kernel_reads(link.sock))
                writing.result()
                reading = link.job(lambda calls, fd=link.fd: guest_reads(calls, fd))  # type: ignore[misc]
                link.sock.sendall(back)
                link.sock.shutdown(1)
                done.into[role, version] = digest(back), digest(reading.result())
                done.mine[role, version] = kernel_info(link.sock)
            with wire.connected(role, version) as link:
                link.calls.send(link.fd, b"stop here!", c.MSG_OOB)
                assert link.sock.recv(20) == b"stop here"
        done.kernel = kernel_counters(host)
        counters = session.counters()["guest"]
        done.guest, done.wire = counters["tcp"], counters["wire tap:t0"]
    return done


@pytest.mark.parametrize("way", WAYS)
def test_e31_what_arrives_over_a_bad_tap_is_what_was_sent(talk: Talk, way: tuple[str, int]) -> None:
    for sent, came in (talk.out[way], talk.into[way]):
        assert came == sent
    for kind in ("lost", "reordered", "duplicated", "corrupted"):
        assert talk.wire[f"rx_{kind}"] > 0 < talk.wire[f"tx_{kind}"], f"nothing was {kind}: {talk.wire}"


@pytest.mark.parametrize("way", WAYS)
def test_rfc2018_each_side_repairs_by_the_others_selective_acknowledgements(talk: Talk, way: tuple[str, int]) -> None:
    assert talk.mine[way].total_retrans > 0
    assert talk.kernel["TCPSackRecovery"] > 0 < talk.kernel["TCPFastRetrans"], "the guest's blocks start no recovery"
    assert talk.kernel["TCPSACKReneging"] == 0, "the guest has taken back what it said"
    assert talk.kernel["TCPOFOQueue"] > 0, "the guest has never sent out of order: nothing was lost"
    assert talk.guest["recoveries"] > 0 < talk.guest["tx_retransmits"]
    # Far fewer timeouts than losses: it is acknowledgements that find them.
    assert talk.guest["timeouts"] < talk.wire["tx_lost"] / 2, talk.guest


def test_e31_each_side_has_dropped_what_the_wire_had_spoiled(talk: Talk) -> None:
    """What was spoiled can come twice, and can be spoiled where another layer sees it."""
    assert 0 < talk.kernel["InCsumErrors"] <= talk.wire["tx_corrupted"] + talk.wire["tx_duplicated"]
    assert 0 < talk.guest["rx_dropped_checksum"] <= talk.wire["rx_corrupted"] + talk.wire["rx_duplicated"]


# -- the capture -------------------------------------------------------------------------------------------------------


def of_the_guest(capture: Path) -> Iterator[Packet]:
    """TCP that the guest has sent, as scapy reads it. What it received may be spoiled."""
    with PcapNgReader(str(capture)) as reader:
        for frame in reader:
            packet = Ether(bytes(frame))
            if packet.src == MAC and TCP in packet:
                yield packet


def tshark(file: Path, *words: str) -> list[str]:
    """What tshark prints of a capture, with checksums looked at."""
    options = ["-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"]
    done = subprocess.run(
        [require_program("tshark"), "-n", "-r", str(file), *options, *words],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_scapy_builds_every_segment_of_the_guest_again_as_it_was(talk: Talk) -> None:
    seen: Counter[str] = Counter()
    for packet in of_the_guest(talk.capture):
        assert rebuilt(packet) == bytes(packet), packet.show(dump=True)
        seen.update(f"flag {letter}" for letter in str(packet[TCP].flags))
        seen.update(name for name, _ in packet[TCP].options)
        seen["IPv4" if IP in packet else "IPv6"] += 1
    flags = {f"flag {letter}" for letter in "SAPFU"}
    wanted = flags | {"MSS", "WScale", "SAckOK", "Timestamp", "SAck", "IPv4", "IPv6"}
    assert wanted <= set(seen), f"{wanted - set(seen)} were not sent: {seen}"
    assert seen["SAck"] > 50


def test_tshark_finds_no_malformed_segment_and_no_bad_checksum(talk: Talk) -> None:
    assert tshark(talk.capture, "-Y", f"eth.src == {MAC} && ({BAD})") == []
    good = tshark(talk.capture, "-Y", f"eth.src == {MAC} && tcp.checksum.status == 1")
    assert len(good) == sum(1 for _ in of_the_guest(talk.capture)), "tshark has looked at every checksum"


def test_the_filter_finds_a_wrong_checksum(talk: Talk, tmp_path: Path) -> None:
    frame = bytearray(bytes(next(of_the_guest(talk.capture))))
    frame[-1] ^= 0x55
    wrpcap(str(tmp_path / "wrong.pcap"), [Ether(bytes(frame))])
    assert len(tshark(tmp_path / "wrong.pcap", "-Y", BAD)) == 1
