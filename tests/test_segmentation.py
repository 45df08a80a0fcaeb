"""Cutting a packet of several segments: what comes out is what a sender would have sent segment by segment.

The witness is scapy, which computes every length and checksum anew.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from guest.net.pbuf import Offload, PacketBuffer
from guest.net.segmentation import cut
from hw.abi import virtio_net as net

MSS = 1448
TIMESTAMP = [("NOP", None), ("NOP", None), ("Timestamp", (123456, 654321))]
KINDS = {4: net.VIRTIO_NET_HDR_GSO_TCPV4, 6: net.VIRTIO_NET_HDR_GSO_TCPV6}


def headers(version: int, seq: int, flags: str, ident: int) -> Ether:
    ip = IPv6(src="fd00::1", dst="fd00::2")
    if version == 4:
        ip = IP(src="10.0.0.1", dst="10.0.0.2", id=ident, flags="DF")
    tcp = TCP(sport=80, dport=40000, seq=seq, ack=7, flags=flags, window=501, options=TIMESTAMP)
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / ip / tcp


def large(version: int, payload: bytes, pieces: list[int], *, seq: int = 1, flags: str = "PA", ident: int = 1,
          mss: int = MSS, kind: int = 0) -> PacketBuffer:  # fmt: skip
    """A packet to be cut, its payload in views that end at `pieces`."""
    whole = bytes(headers(version, seq, flags, ident) / Raw(payload))
    size = len(whole) - len(payload)
    packet = PacketBuffer.from_bytes(whole[:size])
    ends = [0, *sorted(end % (len(payload) + 1) for end in pieces), len(payload)]
    packet.frags = [memoryview(payload)[start:end] for start, end in pairwise(ends)]
    start = 14 + (20 if version == 4 else 40)
    packet.offload = Offload(net.VIRTIO_NET_HDR_F_NEEDS_CSUM, KINDS[version] | kind, size, mss, start, 16)
    return packet


def expected(version: int, payload: bytes, *, seq: int, flags: str, ident: int, mss: int) -> list[bytes]:
    """What scapy makes of it, segment by segment."""
    found = []
    for at in range(0, len(payload), mss):
        said = flags if at + mss >= len(payload) else flags.replace("P", "").replace("F", "")
        said = said if at == 0 else said.replace("C", "")
        number = (seq + at) & 0xFFFF_FFFF
        step = (ident + at // mss) & 0xFFFF
        found.append(bytes(headers(version, number, said, step) / Raw(payload[at : at + mss])))
    return found


@pytest.mark.parametrize("version", [4, 6])
@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 20_000),
    pieces=st.lists(st.integers(0, 1 << 16), max_size=5),
    seq=st.sampled_from([1, 0xFFFF_FFFF, 0xFFFF_F000, 0x8000_0000]),
    flags=st.sampled_from(["A", "PA", "FPA", "PAC", "FPAEC"]),
    ident=st.sampled_from([0, 1, 0xFFFE, 0xFFFF]),
    mss=st.sampled_from([8, 535, 1448]),
)
def test_segments_are_those_that_would_have_been_sent_one_by_one(
    version: int, size: int, pieces: list[int], seq: int, flags: str, ident: int, mss: int
) -> None:
    payload = random.Random(size).randbytes(min(size, 40 * mss))
    packet = large(version, payload, pieces, seq=seq, flags=flags, ident=ident, mss=mss)

    frames = [b"".join(parts) for parts in cut(packet)]

    assert frames == expected(version, payload, seq=seq, flags=flags, ident=ident, mss=mss)


def test_a_payload_is_not_copied() -> None:
    payload = bytes(range(256)) * 40
    frames = cut(large(4, payload, [3000]))

    assert all(isinstance(view, memoryview) and view.obj is payload for parts in frames for view in parts[1:])


def test_a_packet_that_says_ecn_is_cut_as_its_family_says() -> None:
    payload = bytes(5000)
    packet = large(4, payload, [], flags="PAC", kind=net.VIRTIO_NET_HDR_GSO_ECN)

    assert [b"".join(parts) for parts in cut(packet)] == expected(4, payload, seq=1, flags="PAC", ident=1, mss=MSS)


@pytest.mark.parametrize("version", [4, 6])
def test_a_payload_of_zeros_has_a_checksum_all_the_same(version: int) -> None:
    """Sums of zero and of 65535 are the same number to the checksum, and not the same bytes."""
    payload = bytes(4 * MSS)
    assert [b"".join(parts) for parts in cut(large(version, payload, [1, 2]))] == expected(
        version, payload, seq=1, flags="PA", ident=1, mss=MSS
    )
