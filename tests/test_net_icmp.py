"""ICMP over a whole stack: echo, errors in and out, the echo port; peers are played by scapy."""

from __future__ import annotations

import errno
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum as scapy_checksum

from guest.net.address import AddressError
from guest.net.config import SECOND, NetConfig
from guest.net.pbuf import Lease, PacketBuffer
from tests.net_world import (
    BROADCAST,
    OUR_IP,
    OUR_MAC,
    PEER_IP,
    PEER_MAC,
    Host,
    echo_request,
    fragments,
    to_us,
)


@pytest.fixture
def host() -> Host:
    """A host that knows its peer."""
    ours = Host()
    ours.meet()
    return ours


def checked(frame: Packet) -> Packet:
    """The frame, after its ICMP checksum was found right by scapy, as a receiver would."""
    assert scapy_checksum(bytes(frame[ICMP])) == 0
    return frame


@pytest.mark.parametrize("size", [0, 1, 56, 255, 256, 257, 1472])
def test_e20_a_request_is_answered_with_the_same_payload(host: Host, size: int) -> None:
    payload = bytes(number * 7 & 255 for number in range(size))
    host.receive(echo_request(payload, ident=0xBEEF, seq=0xFFFF, tos=0x10))
    (reply,) = host.parsed()
    assert (reply.src, reply.dst) == (OUR_MAC, PEER_MAC)
    assert (reply[IP].src, reply[IP].dst, reply[IP].ttl, reply[IP].tos) == (OUR_IP, PEER_IP, 64, 0x10)
    assert (reply[ICMP].type, reply[ICMP].code, reply[ICMP].id, reply[ICMP].seq) == (0, 0, 0xBEEF, 0xFFFF)
    assert bytes(checked(reply)[ICMP].payload) == payload


@given(st.binary(max_size=600), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.sets(st.integers(1, 640)))
def test_every_reply_sums_up_however_the_request_was_cut(payload: bytes, ident: int, seq: int, cuts: set[int]) -> None:
    host = Host()
    host.meet()
    host.eth.input([fragments(bytes(echo_request(payload, ident, seq)), cuts)])
    (reply,) = host.parsed()
    assert bytes(checked(reply)[ICMP].payload) == payload


def test_a_long_reply_shares_the_requests_memory_and_writes_nothing_into_it(host: Host) -> None:
    raw = bytes(echo_request(bytes(1000)))
    area = bytearray(raw)
    given_back: list[bool] = []
    host.eth.input([PacketBuffer(memoryview(area), lease=Lease(lambda: given_back.append(True), lambda: False))])
    assert bytes(area) == raw, "the received bytes are as they were"
    (reply,) = host.batches[0]
    assert reply.frags[0].obj is area, "the payload was not copied"
    gc.collect()
    assert given_back == [], "and stays lent until the reply is gone"
    del reply
    host.batches.clear()
    gc.collect()
    assert given_back == [True]


def test_a_short_reply_gives_the_buffer_back_at_once(host: Host) -> None:
    given_back: list[bool] = []
    area = memoryview(bytearray(bytes(echo_request(bytes(56)))))
    host.eth.input([PacketBuffer(area, lease=Lease(lambda: given_back.append(True), lambda: False))])
    assert given_back == [True]
    assert len(host.take()) == 1


def test_e23_bad_checksums_are_dropped_and_counted(host: Host) -> None:
    bad = to_us(ICMP(type=8, id=1, seq=1, chksum=0x1234) / b"payload")
    host.receive(bad)
    assert host.take() == []
    assert host.count("icmp", "rx_dropped_checksum") == 1


def test_a_reply_of_zeros_does_not_have_a_checksum_of_zero(host: Host) -> None:
    host.receive(echo_request(bytes(8), ident=0, seq=0))
    assert checked(host.parsed()[0])[ICMP].chksum == 0xFFFF


def test_a_reply_whose_words_sum_up_to_all_ones_has_a_checksum_of_zero(host: Host) -> None:
    host.receive(echo_request(bytes(8), ident=0xFFFF, seq=0))
    assert checked(host.parsed()[0])[ICMP].chksum == 0


@pytest.mark.parametrize("length", [0, 1, 7])
def test_h55_messages_shorter_than_8_bytes_are_dropped(host: Host, length: int) -> None:
    host.receive(to_us(Raw(bytes(ICMP(type=8))[:length]), proto=1))
    assert host.take() == []
    assert host.count("icmp", "rx_dropped_short") == 1


@pytest.mark.parametrize("dst", ["255.255.255.255", "10.0.0.255"])
def test_broadcast_pings_are_ignored_by_default(dst: str) -> None:
    host, willing = Host(), Host(config=NetConfig(icmp_echo_broadcast=True))
    ping = Ether(dst=BROADCAST, src=PEER_MAC) / IP(src=PEER_IP, dst=dst) / ICMP(type=8, id=1, seq=1)
    for each in (host, willing):
        each.meet()
        each.receive(ping)
    assert host.take() == []
    assert host.count("icmp", "rx_ignored_broadcast") == 1
    (reply,) = willing.parsed()
    assert (reply[IP].src, reply[IP].dst) == (OUR_IP, PEER_IP), "answered from an address of one host"


def test_no_reply_goes_to_nobody() -> None:
    host = Host(config=NetConfig(icmp_echo_broadcast=True))
    host.receive(Ether(dst=BROADCAST, src=PEER_MAC) / IP(src="0.0.0.0", dst="255.255.255.255") / ICMP(type=8))
    assert host.take() == []
    assert host.count("icmp", "rx_dropped_source") == 1


@pytest.mark.parametrize(("kind", "counter"), [(5, "rx_ignored_type"), (4, "rx_ignored_type"), (13, "rx_dropped_type")])
def test_h55_redirects_change_nothing_and_other_types_are_counted(host: Host, kind: int, counter: str) -> None:
    before = list(host.stack.routes)
    host.receive(to_us(ICMP(type=kind, gw="10.0.0.66") / IP(src=OUR_IP, dst="8.8.8.8") / UDP()))
    assert host.take() == []
    assert host.count("icmp", counter) == 1
    assert list(host.stack.routes) == before


# -- the echo port ---------------------------------------------------------------------------------------------------


def sent_request(host: Host, seq: int = 5, payload: bytes = b"hello") -> Packet:
    """What an echo port of the host puts on the wire; the port is at `host.port`."""
    port = host.stack.icmp.open_echo()
    host.port = port  # type: ignore[attr-defined]
    port.send(PEER_IP, seq, payload, ttl=9)
    return checked(host.parsed()[0])


def test_the_port_sends_a_request_and_receives_the_reply(host: Host) -> None:
    request = sent_request(host)
    port = host.port  # type: ignore[attr-defined]
    assert (request[ICMP].type, request[ICMP].id, request[ICMP].seq, request[IP].ttl) == (8, port.ident, 5, 9)
    ready: list[int] = []
    port.on_ready = lambda: ready.append(1)
    assert port.receive() is None
    host.clock.now += 1234
    host.receive(to_us(ICMP(type=0, id=port.ident, seq=5) / b"hello", ttl=61))
    reply = port.receive()
    assert reply == (PEER_IP, port.ident, 5, 61, b"hello", host.clock.now, None)
    assert ready == [1]
    assert port.receive() is None


def test_ports_have_identifiers_of_their_own_and_get_only_their_replies(host: Host) -> None:
    ports = [host.stack.icmp.open_echo() for _ in range(300)]
    assert len({port.ident for port in ports}) == 300
    host.receive(to_us(ICMP(type=0, id=ports[7].ident, seq=1)))
    assert [port.ident for port in ports if port.receive()] == [ports[7].ident]
    ports[7].close()
    ports[7].close()
    host.receive(to_us(ICMP(type=0, id=ports[7].ident, seq=1)))
    assert host.count("icmp", "rx_ignored_no_port") == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        ports[7].send(PEER_IP, 1, b"")


def test_what_a_port_cannot_send_is_an_os_error(host: Host) -> None:
    port = host.stack.icmp.open_echo()
    for address, payload, number in (("9.9.9.9", b"", errno.ENETUNREACH), (PEER_IP, bytes(65508), errno.EMSGSIZE)):
        with pytest.raises(OSError) as caught:
            port.send(address, 1, payload)
        assert caught.value.errno == number
    with pytest.raises(AddressError):
        port.send("nonsense", 1, b"")


def test_a_port_that_nobody_reads_is_bounded(host: Host) -> None:
    port = host.stack.icmp.open_echo()
    for seq in range(300):
        host.receive(to_us(ICMP(type=0, id=port.ident, seq=seq)))
    assert host.count("icmp", "rx_dropped_queue_full") == 44
    first = port.receive()
    assert first is not None
    assert first.seq == 0, "the newest are dropped"


def error_about(request: Packet, kind: int, code: int, mtu: int = 0, quote: int | None = None) -> Packet:
    """An error that a router at 10.0.0.254 sends about our request."""
    quoted = bytes(request[IP])[:quote]
    return to_us(ICMP(type=kind, code=code, nexthopmtu=mtu) / Raw(quoted), src="10.0.0.254")


@pytest.mark.parametrize(
    ("kind", "code", "mtu", "text"),
    [
        (3, 0, 0, "Destination Net Unreachable"),
        (3, 1, 0, "Destination Host Unreachable"),
        (3, 2, 0, "Destination Protocol Unreachable"),
        (3, 4, 1400, "Frag needed and DF set (mtu = 1400)"),
        (3, 15, 0, "Destination Unreachable, code 15"),
        (11, 0, 0, "Time to live exceeded"),
        (11, 1, 0, "Frag reassembly time exceeded"),
        (12, 0, 0, "Parameter problem"),
    ],
)
def test_errors_reach_the_port_whose_request_they_quote(host: Host, kind: int, code: int, mtu: int, text: str) -> None:
    request = sent_request(host)
    host.receive(error_about(request, kind, code, mtu, quote=28))
    reply = host.port.receive()  # type: ignore[attr-defined]
    assert (reply.src, reply.seq, reply.error, reply.payload) == ("10.0.0.254", 5, text, b"")
    assert host.count("icmp", "rx_errors") == 1
    assert host.take() == [], "nothing is sent about an error"


@pytest.mark.parametrize(
    ("spoil", "counter"),
    [
        (lambda raw: raw[:0], "rx_dropped_quote_short"),
        (lambda raw: raw[:19], "rx_dropped_quote_short"),
        (lambda raw: raw[:27], "rx_dropped_quote_short"),
        (lambda raw: b"\x65" + raw[1:], "rx_dropped_quote_short"),
        (lambda raw: b"\x44" + raw[1:], "rx_dropped_quote_short"),
        (lambda raw: b"\x4f" + raw[1:40], "rx_dropped_quote_short"),
        (lambda raw: raw[:12] + b"\x0a\0\0\x07" + raw[16:], "rx_dropped_quote_foreign"),
        (lambda raw: raw[:7] + b"\x01" + raw[8:], "rx_dropped_quote_foreign"),
        (lambda raw: raw[:9] + b"\x11" + raw[10:], "rx_ignored_no_port"),
        (lambda raw: raw[:20] + b"\0" + raw[21:], "rx_ignored_no_port"),
        (lambda raw: raw[:24] + bytes([raw[24] ^ 1]) + raw[25:], "rx_ignored_no_port"),
    ],
)
def test_h55_errors_about_short_or_foreign_packets_are_not_believed(host: Host, spoil: object, counter: str) -> None:
    request = sent_request(host)
    quoted = spoil(bytes(request[IP])[:28] + bytes(20))  # type: ignore[operator]
    host.receive(to_us(ICMP(type=3, code=1) / Raw(quoted)))
    assert host.port.receive() is None  # type: ignore[attr-defined]
    assert host.count("icmp", counter) == 1


@pytest.mark.parametrize("mtu", [0, 67])
def test_h55_an_mtu_below_the_floor_is_not_believed(host: Host, mtu: int) -> None:
    host.receive(error_about(sent_request(host), 3, 4, mtu))
    assert host.port.receive() is None  # type: ignore[attr-defined]
    assert host.count("icmp", "rx_dropped_mtu") == 1


def test_a_neighbour_that_does_not_answer_is_an_error_at_the_port() -> None:
    host = Host()
    port = host.stack.icmp.open_echo()
    port.send("10.0.0.77", 1, b"a")
    port.send("10.0.0.77", 2, bytes(900))
    host.wait(3 * SECOND - 1)
    assert port.receive() is None
    host.wait(1)
    replies = [port.receive(), port.receive()]
    assert [(r.src, r.seq, r.error) for r in replies if r] == [
        (OUR_IP, 1, "Destination Host Unreachable"),
        (OUR_IP, 2, "Destination Host Unreachable"),
    ]


# -- errors that are sent --------------------------------------------------------------------------------------------


def unknown(src: str = PEER_IP, dst: str = OUR_IP, size: int = 30, **fields: object) -> Packet:
    return to_us(Raw((bytes(range(256)) * 4)[:size]), src, dst, proto=99, **fields)


def test_an_unknown_protocol_is_answered_with_protocol_unreachable(host: Host) -> None:
    request = unknown()
    host.receive(request)
    (message,) = host.parsed()
    assert (message[ICMP].type, message[ICMP].code, message[IP].src, message[IP].dst) == (3, 2, OUR_IP, PEER_IP)
    assert bytes(checked(message)[ICMP].payload) == bytes(request[IP])


def test_an_error_quotes_as_much_as_fits_into_576_bytes(host: Host) -> None:
    request = unknown(size=1000)
    host.eth.input([fragments(bytes(request), {33, 40, 700})])
    (message,) = host.take()
    assert Ether(message)[IP].len == 576
    assert message[14 + 20 + 8 :] == bytes(request[IP])[:548]


@pytest.mark.parametrize("dst", ["10.0.0.255", "255.255.255.255", "224.0.0.1"])
def test_no_error_about_broadcasts_and_groups(host: Host, dst: str) -> None:
    mac = "01:00:5e:00:00:01" if dst.startswith("224") else BROADCAST
    packet = unknown(dst=dst)
    packet.dst = mac
    host.receive(packet)
    assert host.take() == []
    assert host.count("icmp", "tx_suppressed") == 1


def test_no_error_about_an_error_or_a_later_fragment_or_nobody(host: Host) -> None:
    icmp = host.stack.icmp
    told: list[bool] = []
    host.stack.ip.handlers[1] = lambda packet, header: told.append(icmp.send_error(packet, header, 3, 3))
    host.stack.ip.handlers[99] = lambda packet, header: told.append(
        icmp.send_error(packet, header._replace(fragment=2), 3, 3)
    )
    host.receive(to_us(ICMP(type=3) / Raw(bytes(28))), to_us(ICMP(type=11) / Raw(bytes(28))), unknown())
    assert told == [False, False, False]
    host.receive(echo_request())
    assert told[3:] == [True], "a request is no error"
    assert len(host.take()) == 1


def test_errors_are_rate_limited(host: Host) -> None:
    for _ in range(200):
        host.receive(unknown())
    assert len(host.take()) == 50, "the burst"
    assert host.count("icmp", "tx_dropped_rate_limited") == 150
    host.wait(10_000)
    for _ in range(20):
        host.receive(unknown())
    assert len(host.take()) == 10, "a thousand a second"
    host.wait(60 * SECOND)
    host.take()
    for _ in range(60):
        host.receive(unknown())
    assert len(host.take()) == 50, "the bucket does not overflow"


def test_echo_replies_are_not_errors_and_are_not_limited(host: Host) -> None:
    for seq in range(200):
        host.receive(echo_request(seq=seq))
    assert len(host.take()) == 200
