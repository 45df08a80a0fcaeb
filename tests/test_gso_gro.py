"""Cutting a packet of several segments, and joining them: what comes out is what a sender would have sent one by one.

The witness is scapy, which computes every length and checksum anew.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from guest.net.gro import join
from guest.net.gso import Cutter, segments_in_c, segments_in_python
from guest.net.pbuf import Lease, Offload, PacketBuffer
from hw.abi import virtio_net as net
from tests.requirements import require

MSS = 1448
TIMESTAMP = [("NOP", None), ("NOP", None), ("Timestamp", (123456, 654321))]
KINDS = {4: net.VIRTIO_NET_HDR_GSO_TCPV4, 6: net.VIRTIO_NET_HDR_GSO_TCPV6}


def cut(packet: PacketBuffer) -> list[memoryview]:
    return Cutter().cut(packet)


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

    frames = [bytes(frame) for frame in cut(packet)]

    assert frames == expected(version, payload, seq=seq, flags=flags, ident=ident, mss=mss)


@pytest.mark.parametrize("version", [4, 6])
@settings(max_examples=60, deadline=None)
@given(
    payload=st.binary(min_size=1, max_size=3000) | st.just(b"\xff" * 2000),
    seq=st.integers(0, 0xFFFF_FFFF),
    ident=st.integers(0, 0xFFFF),
    mss=st.sampled_from([8, 535, 1448]),
    link=st.sampled_from([0, 14]),
)
def test_c_and_python_cut_alike(version: int, payload: bytes, seq: int, ident: int, mss: int, link: int) -> None:
    in_c = segments_in_c()
    if in_c is None:
        require(False, "needs guest._native (a C compiler and Python's headers when vring is installed)")
    head = bytearray(bytes(headers(version, seq, "FPAEC", ident))[14 - link :])
    start = link + (20 if version == 4 else 40)
    made = [bytearray(-(-len(payload) // mss) * len(head) + len(payload)) for _ in range(2)]

    for segments, out in zip((in_c, segments_in_python), made, strict=True):
        segments(out, head, link, start, payload, mss)

    assert made[0] == made[1]


def test_a_sum_of_all_ones_is_written_as_a_checksum_of_zero() -> None:
    """65535 would say the same to whoever adds up, but no other sender writes it."""
    (probe,) = expected(4, bytes(2), seq=1, flags="PA", ident=1, mss=MSS)
    payload = probe[50:52]  # its checksum: with it for a payload the sum is all ones

    (frame,) = cut(large(4, payload, []))

    assert bytes(frame[-2:]) == payload
    assert bytes(frame[50:52]) == b"\0\0"


def test_an_ip_header_whose_sum_is_all_ones_has_a_checksum_of_zero() -> None:
    (probe,) = expected(4, bytes(9), seq=1, flags="PA", ident=0, mss=MSS)
    ident = int.from_bytes(probe[24:26], "big")

    (frame,) = cut(large(4, bytes(9), [], ident=ident))

    assert bytes(frame[24:26]) == b"\0\0"


def test_memory_is_used_again_and_a_shorter_packet_has_nothing_of_the_one_before() -> None:
    cutter = Cutter()
    first = cutter.cut(large(4, b"\xff" * 5000, []))[0].obj
    payload = bytes(range(200))

    frames = cutter.cut(large(6, payload, []))

    assert [bytes(frame) for frame in frames] == expected(6, payload, seq=1, flags="PA", ident=1, mss=MSS)
    assert frames[0].obj is first


def test_what_cannot_be_cut_is_refused() -> None:
    whole = large(4, bytes(99), [])
    assert whole.offload is not None
    for wrong in (
        whole.offload._replace(gso_size=0),
        whole.offload._replace(csum_start=13),
        whole.offload._replace(hdr_len=53),
        whole.offload._replace(hdr_len=200),
        None,
    ):
        whole.offload = wrong
        with pytest.raises(ValueError, match=r"not to be cut|shorter than its headers"):
            cut(whole)
    with pytest.raises(ValueError, match="without payload"):
        cut(large(4, b"", []))


def test_a_packet_that_says_ecn_is_cut_as_its_family_says() -> None:
    payload = bytes(5000)
    packet = large(4, payload, [], flags="PAC", kind=net.VIRTIO_NET_HDR_GSO_ECN)

    assert [bytes(frame) for frame in cut(packet)] == expected(4, payload, seq=1, flags="PAC", ident=1, mss=MSS)


@pytest.mark.parametrize("version", [4, 6])
def test_a_payload_of_zeros_has_a_checksum_all_the_same(version: int) -> None:
    """Sums of zero and of 65535 are the same number to the checksum, and not the same bytes."""
    payload = bytes(4 * MSS)
    assert [bytes(frame) for frame in cut(large(version, payload, [1, 2]))] == expected(
        version, payload, seq=1, flags="PA", ident=1, mss=MSS
    )


# -- joining ---------------------------------------------------------------------------------------------------------


def frames_of(
    version: int, payload: bytes, *, seq: int = 1, flags: str = "PA", ident: int = 1, mss: int = MSS
) -> list[PacketBuffer]:
    """Received frames that carry `payload`."""
    raw = expected(version, payload, seq=seq, flags=flags, ident=ident, mss=mss)
    return [PacketBuffer(memoryview(bytearray(frame))) for frame in raw]


@pytest.mark.parametrize("version", [4, 6])
@settings(max_examples=40, deadline=None)
@given(size=st.integers(600, 60_000), seq=st.sampled_from([1, 0xFFFF_F000]), mss=st.sampled_from([600, 1448, 9000]))
def test_what_is_joined_is_cut_into_the_same_frames_again(version: int, size: int, seq: int, mss: int) -> None:
    payload = random.Random(size).randbytes(size)
    before = expected(version, payload, seq=seq, flags="PA", ident=1, mss=mss)

    joined = join(frames_of(version, payload, seq=seq, mss=mss))

    after = [bytes(frame) for packet in joined for frame in (cut(packet) if packet.frags else [packet.tobytes()])]
    assert after == before
    if len(before) > 1 and (size % mss == 0 or size % mss >= 536):
        assert len(joined) == 1, "they follow each other and were not joined"


@pytest.mark.parametrize("version", [4, 6])
def test_a_joined_packet_has_right_headers(version: int) -> None:
    payload = random.Random(1).randbytes(3 * MSS)

    (packet,) = join(frames_of(version, payload))

    raw = packet.tobytes()
    assert raw[-len(payload) :] == payload
    seen = Ether(raw)
    if version == 4:
        shown = seen[IP].chksum
        del seen[IP].chksum
        assert (Ether(bytes(seen))[IP].chksum, seen[IP].len) == (shown, len(raw) - 14)
    else:
        assert seen[IPv6].plen == len(raw) - 54
    assert seen[TCP].flags == "PA"
    assert packet.offload is not None
    assert packet.offload[:4] == (net.VIRTIO_NET_HDR_F_DATA_VALID, KINDS[version], len(raw) - len(payload), MSS)


def corrupt_tcp(frame: bytes) -> bytes:
    return frame[:-1] + bytes((frame[-1] ^ 1,))


def corrupt_ip(frame: bytes) -> bytes:
    return frame[:24] + bytes((frame[24] ^ 1,)) + frame[25:]


def another_port(frame: bytes) -> bytes:
    seen = Ether(frame)
    seen[TCP].sport = 81
    del seen[TCP].chksum
    return bytes(seen)


def another_window(frame: bytes) -> bytes:
    seen = Ether(frame)
    seen[TCP].window = 77
    del seen[TCP].chksum
    return bytes(seen)


def a_fin(frame: bytes) -> bytes:
    seen = Ether(frame)
    seen[TCP].flags = "FA"
    del seen[TCP].chksum
    return bytes(seen)


def congested(frame: bytes) -> bytes:
    seen = Ether(frame)
    seen[IP].tos = 3
    del seen[IP].chksum
    return bytes(seen)


def a_fragment(frame: bytes) -> bytes:
    seen = Ether(frame)
    seen[IP].flags = "MF"
    del seen[IP].chksum
    return bytes(seen)


def lying_about_its_length(frame: bytes) -> bytes:
    return frame[:16] + (len(frame)).to_bytes(2, "big") + frame[18:]


@pytest.mark.parametrize(
    "change",
    [corrupt_tcp, corrupt_ip, another_port, another_window, a_fin, congested, a_fragment, lying_about_its_length],
)
def test_what_differs_is_left_as_it_came_and_in_its_place(change: Callable[[bytes], bytes]) -> None:
    """The third of five: the two before it are joined, and the two behind it."""
    raw = expected(4, random.Random(1).randbytes(5 * MSS), seq=1, flags="A", ident=1, mss=MSS)
    raw[2] = change(raw[2])

    joined = join([PacketBuffer(memoryview(bytearray(frame))) for frame in raw])

    assert [len(packet.frags) for packet in joined] == [2, 0, 2]
    assert joined[1].tobytes() == raw[2]
    assert joined[1].offload is None


def test_a_gap_and_a_repetition_are_left_to_tcp() -> None:
    raw = expected(4, bytes(5 * MSS), seq=1, flags="A", ident=1, mss=MSS)
    frames = [PacketBuffer(memoryview(bytearray(raw[number]))) for number in (0, 1, 3, 3, 4)]

    assert [len(packet.frags) for packet in join(frames)] == [2, 0, 2]


def test_a_longer_segment_begins_another_packet() -> None:
    """For all but the last of one packet are of one size."""
    short, long = frames_of(4, bytes(2 * 600), flags="A", mss=600), frames_of(4, bytes(2 * MSS), seq=1201, flags="A")

    assert [len(packet.frags) for packet in join(short + long)] == [2, 2]


def test_what_is_pushed_ends_a_packet() -> None:
    """Its sender wants it to be read now; and it may be followed by more."""
    first = frames_of(4, bytes(2 * MSS), flags="PA")
    second = frames_of(4, bytes(2 * MSS), seq=1 + 2 * MSS, flags="PA", ident=3)

    assert [len(packet.frags) for packet in join(first + second)] == [2, 2]


@given(data=st.binary(max_size=120), flip=st.integers(0, 1 << 12))
@settings(max_examples=200, deadline=None)
def test_no_frame_raises(data: bytes, flip: int) -> None:
    """Whatever stands in a frame."""
    raw = [bytearray(frame) for frame in expected(4, bytes(2 * MSS), seq=1, flags="A", ident=1, mss=MSS)]
    at = flip % 80
    raw[0][at : at + len(data)] = data[: len(raw[0]) - at]
    frames = [PacketBuffer(memoryview(frame)) for frame in (*raw, bytearray(data))]

    assert sum(map(len, join(frames))) >= len(data)


def test_lent_memory_is_read_only_and_lent_until_the_joined_packet_is_gone() -> None:
    """As a driver lends it: behind a header of its own, in buffers that it wants back."""
    raw = expected(4, random.Random(1).randbytes(3 * MSS), seq=1, flags="PA", ident=1, mss=MSS)
    returned: list[int] = []
    buffers = [bytearray(b"virtio header" + frame) for frame in raw]
    before = [bytes(buffer) for buffer in buffers]
    frames = [
        PacketBuffer(memoryview(buffer), 13, None, None, Lease(partial(returned.append, number), lambda: False))
        for number, buffer in enumerate(buffers)
    ]

    (packet,) = join(frames)
    del frames

    assert [bytes(buffer) for buffer in buffers] == before, "received memory was written to"
    assert returned == [], "a buffer went back while its payload is in use"
    assert packet.lease is not None
    assert not packet.lease.scarce()
    assert packet.tobytes()[-3 * MSS :] == b"".join(frame[-MSS:] for frame in raw)
    del packet
    assert sorted(returned) == [0, 1, 2], "a buffer did not come back"


# -- acknowledgements ------------------------------------------------------------------------------------------------


def ack(number: int, version: int = 4, **fields: object) -> PacketBuffer:
    """A received frame that says no more than that all before `number` has come."""
    frame = headers(version, seq=5, flags="A", ident=number & 0xFFFF)
    frame[TCP].ack = number & 0xFFFF_FFFF
    for name, value in fields.items():
        setattr(frame[TCP], name, value)
    return PacketBuffer(memoryview(bytearray(bytes(frame))))


def acknowledged(packets: list[PacketBuffer]) -> tuple[list[int], int]:
    """What the frames that are left of `packets` acknowledge, and how many were counted as left out."""
    counters: Counter[str] = Counter()
    left = [Ether(packet.tobytes())[TCP].ack for packet in join(packets, counters)]
    assert set(counters) <= {"rx_acks_merged"}
    return left, counters["rx_acks_merged"]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("options", [TIMESTAMP, []])
def test_of_acknowledgements_in_a_row_the_last_is_left(version: int, options: list[object]) -> None:
    row = [ack(number, version, options=options) for number in (0xFFFF_FF00, 100, 3000, 3001)]

    assert acknowledged(row) == ([3001], 3)


def test_the_last_keeps_its_window_and_its_timestamp() -> None:
    row = [ack(100, window=9), ack(200, window=5, options=[*TIMESTAMP[:2], ("Timestamp", (123460, 654330))])]
    last = row[1].tobytes()

    assert [packet.tobytes() for packet in join(row, Counter())] == [last]


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (ack(100), "the same number: a duplicate tells of a loss"),
        (ack(99), "it goes back"),
        (ack(200, sport=81), "another stream"),
        (ack(200, seq=6), "there was something between them"),
        (ack(200, options=[("NOP", None), ("NOP", None), ("SAck", (300, 400))]), "it tells of a hole"),
        (ack(200, options=[*TIMESTAMP, ("NOP", None), ("NOP", None), ("SAck", (300, 400))]), "likewise"),
        (ack(200, options=[]), "without the timestamp of the first"),
        (ack(200, flags="AE"), "congestion is told"),
        (ack(200, flags="FA"), "the end of the stream"),
        (ack(200, flags="RA"), "a reset"),
        (ack(200, flags="PA"), "not plain"),
        (ack(200, chksum=1), "it was damaged on the way"),
        (ack(200, urgptr=7, flags="AU"), "urgent"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_what_says_more_or_may_be_wrong_is_left_to_tcp(second: PacketBuffer, why: str) -> None:
    number = Ether(second.tobytes())[TCP].ack

    assert acknowledged([ack(100), second]) == ([100, number], 0), why


def test_what_an_undamaged_one_says_again_may_have_been_damaged() -> None:
    assert acknowledged([ack(100, chksum=1), ack(200, chksum=2), ack(300)]) == ([300], 2)


def test_a_damaged_one_does_not_replace_what_came_before() -> None:
    assert acknowledged([ack(100), ack(200), ack(300, chksum=1), ack(400, chksum=2)]) == ([200, 300, 400], 1)


def test_a_damaged_ip_header_makes_no_acknowledgement() -> None:
    damaged = ack(200)
    damaged.area[24] ^= 1

    assert acknowledged([ack(100), damaged]) == ([100, 200], 0)


def test_acknowledgements_with_data_between_them_are_all_left() -> None:
    data = frames_of(4, bytes(2 * MSS), flags="A")
    counters: Counter[str] = Counter()

    left = join([ack(100), *data, ack(200), ack(300)], counters)

    assert [len(packet.frags) for packet in left] == [0, 2, 0]
    assert counters == {"rx_acks_merged": 1}
    assert Ether(left[2].tobytes())[TCP].ack == 300


@pytest.mark.parametrize(
    "between",
    [
        b"what is no frame",
        expected(4, bytes(20), seq=1, flags="PA", ident=1, mss=MSS)[0],
        a_fin(expected(4, bytes(MSS), seq=1, flags="PA", ident=1, mss=MSS)[0]),
        corrupt_tcp(expected(6, bytes(MSS), seq=1, flags="PA", ident=1, mss=MSS)[0]),
    ],
    ids=["noise", "a small segment", "a large one that is the last", "a damaged one"],
)
def test_what_stands_between_acknowledgements_is_never_left_out(between: bytes) -> None:
    frames = [ack(100), PacketBuffer(memoryview(bytearray(between))), ack(200)]
    before = [packet.tobytes() for packet in frames]

    assert [packet.tobytes() for packet in join(frames, Counter())] == before


def test_two_that_tell_of_holes_are_both_left() -> None:
    holes = [*TIMESTAMP, ("NOP", None), ("NOP", None), ("SAck", (900, 1000))]

    assert acknowledged([ack(100, options=holes), ack(200, options=holes)]) == ([100, 200], 0)
