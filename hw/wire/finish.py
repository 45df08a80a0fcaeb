"""What offload leaves to others, done in software: blank checksums filled in, super-frames cut into segments.

Whoever is handed a frame that its reader cannot take (a wire without virtio header, a card whose driver negotiated no
offload, a Xen front end that asked for none) passes it through `finished`.

Promises:
- A frame's header is believed only as far as it points into the frame; one that does not gives no frames.
- Segments are those that a network card makes: sequence numbers and IPv4 identifications go on, PSH and FIN are on the
  last alone, CWR on the first alone.

Read: virtio 1.4 §5.1.9.2 (csum_start, csum_offset, gso_size); RFC 1071; RFC 9293 §3.1; RFC 3168 §6.1.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hw.abi import virtio_net as net
from hw.wire.link import Buffer, Frame

_ETHERNET_HEADER = 14
_VLAN = (0x8100, 0x88A8)
_TCP_HEADER = 20
_TCP_CHECKSUM = 16
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_VERSIONS = {net.VIRTIO_NET_HDR_GSO_TCPV4: 4, net.VIRTIO_NET_HDR_GSO_TCPV6: 6}


def _python_sum(data: Buffer) -> int:
    value = int.from_bytes(data, "big") << 8 * (len(data) & 1)
    return value % 65535 or (65535 if value else 0)


def _native_sum() -> Callable[[Buffer], int] | None:
    """The sum in C, or None where the extension was not built."""
    try:
        from hw._native import ffi, lib  # noqa: PLC0415  # optional: installing works without a C compiler
    except ImportError:
        return None

    def inet_sum(data: Buffer) -> int:
        return lib.hw_inet_sum(ffi.from_buffer("uint8_t[]", data), len(data))

    return inet_sum


_sum: Callable[[Buffer], int] = _native_sum() or _python_sum


def complete_checksum(frame: bytearray, start: int, offset: int) -> None:
    """Put the checksum over everything from `start` on into place; the pseudo-header's sum is there already."""
    place = start + offset
    value = ~_sum(memoryview(frame)[start:]) & 0xFFFF
    frame[place : place + 2] = (value or 0xFFFF).to_bytes(2, "big")


def is_unfinished(header: Buffer | None) -> bool:
    """Whether a frame with this header has a blank checksum, or is to be cut."""
    return header is not None and bool(header[0] & net.VIRTIO_NET_HDR_F_NEEDS_CSUM or header[1])


def finished(frame: Frame) -> list[Frame]:
    """The frame as frames that need nothing done to them; none when its header makes no sense."""
    header, views = frame
    if header is None or not is_unfinished(header):
        return [(None, views)]
    flags, gso_type, _, gso_size, start, offset, _ = net.NET_HEADER.unpack_from(header)
    data = bytearray(b"".join(views))
    if not flags & net.VIRTIO_NET_HDR_F_NEEDS_CSUM or start < _ETHERNET_HEADER or start + offset + 2 > len(data):
        return []
    if gso_type:
        version = _VERSIONS.get(gso_type & ~net.VIRTIO_NET_HDR_GSO_ECN)
        if version is None or offset != _TCP_CHECKSUM or not gso_size:
            return []
        return [(None, [segment]) for segment in _segments(data, start, gso_size, version)]
    complete_checksum(data, start, offset)
    return [(None, [data])]


def _segments(data: bytearray, start: int, size: int, version: int) -> Iterator[bytearray]:
    """The frame whose TCP header is at `start`, cut into pieces with up to `size` bytes of payload."""
    network = _ETHERNET_HEADER + (4 if data[12] << 8 | data[13] in _VLAN else 0)
    if start + _TCP_HEADER > len(data) or start < network + (20 if version == 4 else 40):
        return
    payload = start + (data[start + 12] >> 4) * 4
    if data[network] >> 4 != version or not start + _TCP_HEADER <= payload <= len(data):
        return
    length = len(data) - start
    identification, sequence = _number(data, network + 4, 2), _number(data, start + 4, 4)
    # What is there is the sum over addresses, protocol and the length of it all; each segment has another length.
    pseudo, flags = _number(data, start + _TCP_CHECKSUM, 2) - length, data[start + 13]
    for count, at in enumerate(range(payload, max(len(data), payload + 1), size)):
        piece = data[:payload] + data[at : at + size]
        last = at + size >= len(data)
        if version == 4:
            _put(piece, network + 2, 2, len(piece) - network)
            _put(piece, network + 4, 2, identification + count)
            _put(piece, network + 10, 2, 0)
            end = network + (piece[network] & 15) * 4
            _put(piece, network + 10, 2, ~_sum(memoryview(piece)[network:end]))
        else:
            _put(piece, network + 4, 2, len(piece) - network - 40)
        _put(piece, start + 4, 4, sequence + at - payload)
        piece[start + 13] = flags & ~((0 if last else _FIN | _PSH) | (_CWR if count else 0))
        _put(piece, start + _TCP_CHECKSUM, 2, (pseudo + len(piece) - start) % 65535)
        complete_checksum(piece, start, _TCP_CHECKSUM)
        yield piece


def _number(data: bytearray, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _put(data: bytearray, at: int, size: int, value: int) -> None:
    data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "big")
