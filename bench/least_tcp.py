"""The least TCP: one connection at a time over a TAP, on a path that loses nothing, with a peer that means well.

No timers, no retransmission, no options but an MSS and a window scale, no state but five numbers. Checksums are made
and looked at, in C where that is built, as nothing else here would be a fair ceiling for a stack.
"""

from __future__ import annotations

import os
import select
import struct

from guest.net.checksum import inet_sum

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
MSS = 1460
WINDOW = 65535
SCALE = 3
# Ethernet, IPv4 and TCP headers in one go
HEADERS = struct.Struct("!6s6sHBBHHHBBHIIHHIIHHHH")
assert HEADERS.size == 54


class LeastTcp:
    """See above. `echo` is the port that sends back, `source` the one that sends without end; others only receive."""

    def __init__(self, fd: int, mac: bytes, address: bytes, echo: int, source: int) -> None:
        self._fd = fd
        self._mac = mac
        self._address = address
        self._own = int.from_bytes(address, "big")
        self._echo = echo
        self._source = source
        self._frame = bytearray(2048)
        self._view = memoryview(self._frame)
        self._block = memoryview(bytes(MSS))
        self._peer = b""
        self._key = (0, 0, 0)  # the peer's address and port, and ours
        self._nxt = self._una = self._rcv = self._window = self._shift = self._unacked = 0

    def run(self, stop: int) -> None:
        """Serve until `stop` is readable."""
        epoll = select.epoll()
        epoll.register(self._fd, select.EPOLLIN)
        epoll.register(stop, select.EPOLLIN)
        frame = self._frame
        while True:
            for ready, _ in epoll.poll():
                if ready == stop:
                    return
                for _ in range(64):
                    try:
                        length = os.readv(self._fd, [frame])
                    except BlockingIOError:
                        break
                    if frame[12:14] == b"\x08\0" and frame[23] == 6:
                        self._segment(length)
                    elif frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == self._address:
                        answer = frame[6:12] + self._mac + frame[12:20] + b"\0\2" + self._mac + self._address
                        os.write(self._fd, answer + frame[22:32])
                if self._unacked:
                    self._send(ACK)
                if self._key[2] == self._source:
                    self._pour()

    def _segment(self, length: int) -> None:
        fields = HEADERS.unpack_from(self._frame)
        total, src, dst, sport, dport, seq, ack, word, window = *fields[5:6], *fields[11:19]
        if dst != self._own or inet_sum(self._view[14:34]) != 0xFFFF:
            return
        if (inet_sum(self._view[34 : 14 + total]) + src + dst + 6 + total - 20) % 0xFFFF:
            return
        offset = 34 + (word >> 12 << 2)
        size = 14 + total - offset
        if word & SYN:
            self._peer = fields[1]
            self._key = (src, sport, dport)
            self._rcv = seq + 1 & 0xFFFFFFFF
            self._una = self._nxt = 1000
            at = self._frame.find(b"\x03\x03", 54, offset)
            self._shift = self._frame[at + 2] if at > 0 else 0
            self._send(SYN | ACK)
            self._nxt = self._una = 1001
            return
        if self._key != (src, sport, dport) or word & RST:
            return
        self._window = window << self._shift
        self._una = ack
        if size and seq == self._rcv:
            self._rcv = seq + size & 0xFFFFFFFF
            self._unacked += 1
            if dport == self._echo:
                self._send(ACK | PSH, self._view[offset : offset + size])
        if word & FIN and seq + size & 0xFFFFFFFF == self._rcv:
            self._rcv = self._rcv + 1 & 0xFFFFFFFF
            self._send(ACK | FIN)

    def _pour(self) -> None:
        while self._nxt - self._una + MSS <= self._window and self._nxt - self._una < 64 * MSS:
            try:
                self._send(ACK, self._block)
            except BlockingIOError:
                return

    def _send(self, flags: int, payload: memoryview | bytes = b"") -> None:
        peer, sport, own = self._key
        options = struct.pack("!BBHBBBB", 2, 4, MSS, 1, 3, 3, SCALE) if flags & SYN else b""
        size = 20 + len(options) + len(payload)
        word = (5 + len(options) // 4) << 12 | flags
        check = 0x4500 + size + 20 + (64 << 8 | 6) + self._own + peer
        total = self._own + peer + 6 + size + own + sport + self._nxt + self._rcv + word + WINDOW
        total += int.from_bytes(options, "big") + (inet_sum(payload) if len(payload) else 0)
        headers = HEADERS.pack(
            self._peer, self._mac, 0x0800, 0x45, 0, size + 20, 0, 0, 64, 6, 0xFFFF - check % 0xFFFF, self._own, peer,
            own, sport, self._nxt, self._rcv, word, WINDOW, 0xFFFF - total % 0xFFFF, 0,
        )  # fmt: skip
        os.writev(self._fd, [headers, options, payload])
        self._nxt = self._nxt + len(payload) + bool(flags & (SYN | FIN)) & 0xFFFFFFFF
        self._unacked = 0
