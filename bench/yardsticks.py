"""The yardsticks: the least that must be done, written as plainly as Python allows, with no checks and no layers.

What is measured against them is the price of being a machine: validation, suppression, accounting, a stack.
"""

from __future__ import annotations

import os
import select
import struct

DESC = struct.Struct("<QIHH")
USED = struct.Struct("<II")


class BareRing:
    """A split ring in a bytearray, both halves in one object, trusting everything."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = bytearray(16 * size + 6 + 2 * size + 6 + 8 * size + 16)
        self.avail = 16 * size
        self.used = self.avail + 6 + 2 * size
        self.cells = memoryview(self.memory).cast("H")
        self.next_avail = self.next_used = self.seen_avail = self.seen_used = 0

    def add(self, head: int, addr: int, length: int, flags: int) -> None:
        DESC.pack_into(self.memory, 16 * head, addr, length, flags, 0)
        self.cells[self.avail // 2 + 2 + self.next_avail % self.size] = head
        self.next_avail = self.next_avail + 1 & 0xFFFF

    def publish(self) -> None:
        self.cells[self.avail // 2 + 1] = self.next_avail

    def pop(self) -> tuple[int, int, int] | None:
        if self.cells[self.avail // 2 + 1] == self.seen_avail:
            return None
        head = self.cells[self.avail // 2 + 2 + self.seen_avail % self.size]
        self.seen_avail = self.seen_avail + 1 & 0xFFFF
        addr, length, _, _ = DESC.unpack_from(self.memory, 16 * head)
        return head, addr, length

    def push(self, head: int, length: int) -> None:
        USED.pack_into(self.memory, self.used + 4 + 8 * (self.next_used % self.size), head, length)
        self.next_used = self.next_used + 1 & 0xFFFF

    def flush(self) -> None:
        self.cells[self.used // 2 + 1] = self.next_used

    def reap(self) -> int | None:
        if self.cells[self.used // 2 + 1] == self.seen_used:
            return None
        head, _ = USED.unpack_from(self.memory, self.used + 4 + 8 * (self.seen_used % self.size))
        self.seen_used = self.seen_used + 1 & 0xFFFF
        return head


def answer_pings(fd: int, mac: bytes, address: bytes, stop: int) -> None:
    """Answer ARP and ICMP echo on a TAP until `stop` is readable: the least that a ping can be answered with."""
    epoll = select.epoll()
    epoll.register(fd, select.EPOLLIN)
    epoll.register(stop, select.EPOLLIN)
    frame = bytearray(2048)
    while True:
        for ready, _ in epoll.poll():
            if ready == stop:
                return
            try:
                length = os.readv(fd, [frame])
            except BlockingIOError:
                continue
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == address:
                reply = frame[6:12] + mac + frame[12:20] + b"\0\2" + mac + address + frame[22:32]
                os.write(fd, reply)
            elif frame[12:14] == b"\x08\0" and frame[23] == 1 and frame[34] == 8:
                if sum(struct.unpack_from("!10H", frame, 14)) % 65535:
                    continue
                frame[0:6], frame[6:12] = frame[6:12], mac
                frame[26:30], frame[30:34] = frame[30:34], frame[26:30]
                frame[34] = 0
                checksum = struct.unpack_from("!H", frame, 36)[0] + 0x800
                struct.pack_into("!H", frame, 36, (checksum & 0xFFFF) + (checksum >> 16))
                os.write(fd, memoryview(frame)[:length])


def echo_datagrams(fd: int, mac: bytes, address: bytes, stop: int) -> None:
    """Answer ARP and send UDP datagrams back, on a TAP, until `stop` is readable. The checksums are right as they are:
    no sum changes when source and destination change places.
    """
    epoll = select.epoll()
    epoll.register(fd, select.EPOLLIN)
    epoll.register(stop, select.EPOLLIN)
    frame = bytearray(2048)
    view = memoryview(frame)
    while True:
        for ready, _ in epoll.poll():
            if ready == stop:
                return
            for _ in range(64):
                try:
                    length = os.readv(fd, [frame])
                except BlockingIOError:
                    break
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == address:
                    os.write(fd, frame[6:12] + mac + frame[12:20] + b"\0\2" + mac + address + frame[22:32])
                elif frame[12:14] == b"\x08\0" and frame[23] == 17 and frame[30:34] == address:
                    if sum(struct.unpack_from("!10H", frame, 14)) % 65535:
                        continue
                    frame[0:6], frame[6:12] = frame[6:12], mac
                    frame[26:30], frame[30:34] = frame[30:34], frame[26:30]
                    frame[34:36], frame[36:38] = frame[36:38], frame[34:36]
                    os.write(fd, view[:length])
