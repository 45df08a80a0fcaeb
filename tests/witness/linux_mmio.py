"""A real Linux kernel as the guest of our machine: QEMU lends its processor, the virtio-mmio card is ours.

- Registers: QEMU's `x-pci-proxy-dev` sends every access of a 4 KB BAR over a socket; it is answered by `Machine.bus`.
  An ACPI table made here (`acpi_table`) tells Linux that a virtio-mmio device (`LNRO0005`) lies at that BAR.
- RAM: QEMU is started on the memory file of `Machine.memory`, so the rings are read where Linux wrote them.
- Interrupts: the card's line goes to an input of QEMU's IOAPIC through the qtest socket (`set_irq_in`).

A register access holds QEMU's processor, and with it QEMU's big lock, until it is answered. So the answer goes out
first, and nothing here ever waits for what qtest says: the level of the line is sent in a later turn of the loop.

The messages are those of QEMU's `include/hw/remote/mpqemu-link.h`.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hw.clock import MILLISECOND, SECOND, RealClock
from hw.loop import Loop
from hw.machine import FIRST_IRQ, MIB, SLOT_BASE, Machine, Option
from hw.memory import AccessHook
from hw.wire.cable import cable
from hw.wire.link import Frame, Link, Receiver, frame_bytes
from tests.witness.linux_guest import LINUX, PEER, PINGS_BACK

RAM = 256 * MIB
IOAPIC_INPUT = 20
BAR_SIZE = 0x1000
USUAL_BAR = 0xFEBFF000  # where SeaBIOS puts the only BAR of this size; found out and corrected if it does not
BOOT_SECONDS = 120  # a boot takes three, alone on two cores

SYNC_SYSMEM, RET, CONFIG_WRITE, CONFIG_READ, BAR_WRITE, BAR_READ, SET_IRQFD, DEVICE_RESET = range(8)
_HEADER = struct.Struct("<i4xQ")  # command, bytes of payload
_CONFIG_ACCESS = struct.Struct("<IIi")  # address, value, size
_BAR_ACCESS = struct.Struct("<QQI")  # address, value, size
_REGIONS = 8  # entries in each of the three arrays of SYNC_SYSMEM, and file descriptors at most

PCI_BAR0 = 0x10
PCI_UNUSED = (*range(0x14, 0x28), *range(0x30, 0x34))  # the other BARs and the expansion ROM


# -- ACPI ----------------------------------------------------------------------------------------------------------


def _package(body: bytes) -> bytes:
    """`body` behind its PkgLength (ACPI 6.5 §20.2.4), which counts itself."""
    if len(body) < 0x3F:
        return bytes([len(body) + 1]) + body
    length = len(body) + 2
    return bytes([0x40 | length & 0xF, length >> 4]) + body


def acpi_table(base: int) -> bytes:
    """AML: a device LNRO0005 with registers at `base` and a level-triggered, active-high interrupt."""
    resources = b"".join(
        [
            struct.pack("<BHBII", 0x86, 9, 1, base, BAR_SIZE),  # 32-bit fixed memory, writable (§6.4.3.4)
            struct.pack("<BHBBI", 0x89, 6, 1, 1, IOAPIC_INPUT),  # extended interrupt (§6.4.3.6)
            b"\x79\0",  # end tag
        ]
    )
    device = b"".join(
        [
            b"VRNG",
            b"\x08_HID\x0dLNRO0005\0",  # Name(_HID, "LNRO0005")
            b"\x08_UID\0",  # Name(_UID, Zero)
            b"\x08_CRS\x11" + _package(b"\x0a" + bytes([len(resources)]) + resources),  # Name(_CRS, Buffer …)
        ]
    )
    return b"\x10" + _package(b"\\_SB_" + b"\x5b\x82" + _package(device))  # Scope(\_SB) { Device(VRNG) { … } }


# -- who answers Linux ---------------------------------------------------------------------------------------------


def _internet_checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class Peer(Receiver):
    """The host at the far end of the cable: answers ARP and echo requests, fragment by fragment, and pings back.

    When Linux pings it first, it sends `PINGS_BACK` echo requests in bursts of `BURST`. `counters` says what it saw.
    """

    MAC = bytes.fromhex("025600000001")
    BURST = 40

    def __init__(self, link: Link, loop: Loop) -> None:
        self.counters: Counter[str] = Counter()
        self.link = link
        self._loop = loop
        link.attach(self)

    def receive(self, frames: Sequence[Frame]) -> int:
        answers = [answer for answer in map(self._answer, map(frame_bytes, frames)) if answer]
        self.counters["received"] += len(frames)
        self._send(answers)
        return len(frames)

    def _send(self, frames: list[bytes]) -> None:
        self.counters["sent"] += len(frames)
        self.link.transmit([(None, [frame]) for frame in frames])

    def _answer(self, frame: bytes) -> bytes | None:
        mac, ethertype = frame[6:12], frame[12:14]
        back = mac + self.MAC + ethertype
        if ethertype == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == socket.inet_aton(PEER):
            self.counters["arp_requests"] += 1
            return back + frame[14:20] + b"\0\2" + self.MAC + frame[38:42] + frame[22:32]
        if ethertype != b"\x08\0" or frame[23] != socket.IPPROTO_ICMP or frame[30:34] != socket.inet_aton(PEER):
            self.counters["other"] += 1
            return None
        fragment = struct.unpack_from("!H", frame, 20)[0]
        header = frame[14:26] + frame[30:34] + frame[26:30]  # the exchange of addresses leaves the checksum right
        if fragment & 0x1FFF:
            self.counters["fragments"] += 1
            return back + header + frame[34:]
        kind, code, checksum = struct.unpack_from("!BBH", frame, 34)
        if kind == 0:
            self.counters["echo_replies"] += 1
            return None
        self.counters["echo_requests"] += 1
        if self.counters["echo_requests"] == 1:
            self._ping_back(mac)
        # From type 8 to type 0: the sum of the words loses 0x0800, the checksum gains it (RFC 1624).
        checksum += 0x0800
        return back + header + struct.pack("!BBH", 0, code, (checksum & 0xFFFF) + (checksum >> 16)) + frame[38:]

    def _ping_back(self, mac: bytes) -> None:
        frames = [self._request(mac, sequence) for sequence in range(PINGS_BACK)]
        for start in range(0, PINGS_BACK, self.BURST):
            delay = (start // self.BURST + 1) * 10 * MILLISECOND
            self._loop.clock.after(delay, partial(self._send, frames[start : start + self.BURST]))

    def _request(self, mac: bytes, sequence: int) -> bytes:
        echo = struct.pack("!BBHHH", 8, 0, 0, 0x5652, sequence) + bytes(range(sequence & 0xFE))
        echo = echo[:2] + struct.pack("!H", _internet_checksum(echo)) + echo[4:]
        addresses = socket.inet_aton(PEER) + socket.inet_aton(LINUX)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(echo), sequence, 0, 64, socket.IPPROTO_ICMP, 0) + addresses
        ip = ip[:10] + struct.pack("!H", _internet_checksum(ip)) + ip[12:]
        return mac + self.MAC + b"\x08\0" + ip + echo


# -- QEMU ----------------------------------------------------------------------------------------------------------


class _BarMoved(Exception):
    """The firmware put the BAR elsewhere: at `args[0]`."""


class LinuxBoard(AccessHook):
    """Our machine with one virtio card and Linux on it.

    Args:
        mac, options: of the card, as for `Machine.add_virtio_net`.

    After `boot`: `console` is what Linux wrote, `trace` every register access as (op, offset, size, value), `levels`
    how many times the interrupt line was set high or low in QEMU, `peer` the host that Linux talked to.
    """

    def __init__(self, *, mac: bytes, **options: Option) -> None:
        self._mac = mac
        self._options = options
        self._base = USUAL_BAR

    def boot(self, qemu: str, kernel: Path, initrd: Path, directory: Path) -> None:
        """Run Linux until it powers off. Raises TimeoutError or OSError, with the console's end in the text."""
        for _ in range(2):
            self._power_on()
            try:
                self._run(qemu, kernel, initrd, directory)
                return
            except _BarMoved as moved:
                self._base = moved.args[0]
            finally:
                self.loop.close()
        raise OSError(f"the firmware puts the BAR at {self._base:#x} now and somewhere else then")

    def _power_on(self) -> None:
        self.loop = Loop(RealClock())
        self.machine = Machine(self.loop, memory_size=RAM)
        near, far = cable(self.loop)
        self.card = self.machine.add_virtio_net(near, mac=self._mac, options=self._options)
        self.peer = Peer(far, self.loop)
        self.machine.bus.hook = self.machine.irq.hook = self
        self.console = ""
        self.trace: list[tuple[str, int, int, int]] = []
        self.levels: Counter[bool] = Counter()
        self.qtest_said: Counter[str] = Counter()
        self._level = self._level_sent = False
        self._config = bytearray(256)
        struct.pack_into("<HH", self._config, 0, 0x1234, 0x5652)
        self._config[0x0B] = 0xFF  # class: none of those that firmware or Linux would look at
        self._open_ends = 0

    # -- hook: registers and interrupt line

    def register(self, who: str, op: str, addr: int, size: int, value: int) -> None:
        self.trace.append((op, addr - SLOT_BASE, size, value))

    def interrupt(self, line: int, level: bool) -> None:
        if line == FIRST_IRQ:
            self._level = level
            self.loop.call_soon(self._send_level)

    def _send_level(self) -> None:
        if self._level != self._level_sent and self._open_ends:
            self._level_sent = self._level
            self.levels[self._level] += 1
            command = f"set_irq_in ioapic unnamed-gpio-in {IOAPIC_INPUT} {int(self._level)}\n"
            try:
                self._qtest.sendall(command.encode())
            except OSError:
                self.qtest_said["gone"] += 1

    # -- QEMU's process

    def _run(self, qemu: str, kernel: Path, initrd: Path, directory: Path) -> None:
        table = directory / "ssdt.aml"
        table.write_bytes(acpi_table(self._base))
        self._proxy, proxy = socket.socketpair()
        self._qtest, qtest = socket.socketpair()
        ram = self.machine.memory.fd
        command = [
            qemu, "-machine", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max", "-m", f"{RAM // MIB}",
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
            "-object", f"memory-backend-file,id=ram,mem-path=/dev/fd/{ram},size={RAM},share=on",
            "-device", f"x-pci-proxy-dev,id=card,fd={proxy.fileno()}",
            "-chardev", f"socket,id=qtest,fd={qtest.fileno()}", "-qtest", "chardev:qtest", "-qtest-log", "none",
            "-acpitable", f"sig=SSDT,rev=2,oem_id=VRING,oem_table_id=VIRTMMIO,data={table}",
            "-kernel", str(kernel), "-initrd", str(initrd),
            # pci=off: Linux must neither move the BAR nor look for a driver of the proxy.
            "-append", "console=ttyS0 quiet loglevel=3 panic=-1 pci=off ipv6.disable=1",
        ]  # fmt: skip
        with self._proxy, self._qtest:
            self._proxy.settimeout(10)
            self._qtest.settimeout(10)
            with proxy, qtest:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[ram, proxy.fileno(), qtest.fileno()],
                )
            try:
                self._attend(process)
            finally:
                process.kill()  # harmless when it has ended
                process.communicate()

    def _attend(self, process: subprocess.Popen[bytes]) -> None:
        """Serve QEMU until it ends."""
        assert process.stdout is not None
        self._output = process.stdout.fileno()
        for fd, callback in (
            (self._proxy.fileno(), self._message),
            (self._qtest.fileno(), self._read_qtest),
            (self._output, self._read_console),
        ):
            self.loop.set_reader(fd, callback)
            self._open_ends += 1
        deadline = self.loop.clock.now() + BOOT_SECONDS * SECOND
        if not self.loop.run(lambda: self._open_ends == 0, deadline):
            raise TimeoutError(self._story(f"Linux is not done after {BOOT_SECONDS} s"))
        if process.wait(10):
            raise OSError(self._story(f"QEMU ends with {process.returncode}"))
        if "@done" not in self.console:
            raise OSError(self._story("Linux does not come to its end"))

    def _story(self, what: str) -> str:
        last = "\n".join(self.console.splitlines()[-40:])
        return (
            f"{what}; status {self.card.status}, failure {self.card.failure!r}, refusal {self.card.refusal!r}, "
            f"{dict(self.card.counters)}, {dict(self.card.device.counters)}, peer {dict(self.peer.counters)}\n{last}"
        )

    def _ended(self, fd: int) -> None:
        self.loop.set_reader(fd, None)
        self._open_ends -= 1

    def _read_console(self) -> None:
        data = os.read(self._output, 65536)
        if not data:
            self._ended(self._output)
        self.console += data.decode(errors="replace").replace("\r", "")

    def _read_qtest(self) -> None:
        try:
            data = self._qtest.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._ended(self._qtest.fileno())
        self.qtest_said.update(data.decode().split())

    # -- messages of the proxy

    def _message(self) -> None:
        try:
            open_still = self._answer_one()
        except ConnectionError:
            open_still = False
        if not open_still:
            self._ended(self._proxy.fileno())

    def _answer_one(self) -> bool:
        """Take one message and answer it; False at the end of the stream."""
        header, descriptors, _, _ = socket.recv_fds(self._proxy, _HEADER.size, _REGIONS)
        try:
            if not header:
                return False
            command, length = _HEADER.unpack(header)
            payload = self._proxy.recv(length, socket.MSG_WAITALL) if length else b""
            if command == SYNC_SYSMEM:
                self._check_ram(payload, descriptors)
        finally:
            for fd in descriptors:
                os.close(fd)
        if command not in (SYNC_SYSMEM, SET_IRQFD):  # these two want no answer
            self._proxy.sendall(_HEADER.pack(RET, 8) + struct.pack("<Q", self._access(command, payload)))
        return True

    def _check_ram(self, payload: bytes, descriptors: list[int]) -> None:
        """QEMU says which files are RAM where: it must be ours, at the same place."""
        numbers = struct.unpack_from(f"<{3 * _REGIONS}Q", payload)
        ours = os.fstat(self.machine.memory.fd).st_ino
        for addr, offset, fd in zip(numbers[:_REGIONS], numbers[2 * _REGIONS :], descriptors, strict=False):
            if os.fstat(fd).st_ino == ours and addr != offset:
                raise OSError(f"QEMU has byte {offset:#x} of RAM at {addr:#x}")

    def _access(self, command: int, payload: bytes) -> int:
        """Do what a message asks for; the value to answer with."""
        if command in (CONFIG_WRITE, CONFIG_READ):
            addr, value, size = _CONFIG_ACCESS.unpack_from(payload)
            if command == CONFIG_READ:
                return int.from_bytes(self._config[addr : addr + size], "little")
            self._write_config(addr, value, size)
        elif command in (BAR_WRITE, BAR_READ):
            addr, value, size = _BAR_ACCESS.unpack_from(payload)
            addr = SLOT_BASE + addr % BAR_SIZE
            if command == BAR_READ:
                return self.machine.bus.read(addr, size)
            self.machine.bus.write(addr, size, value)
        return 0

    def _write_config(self, addr: int, value: int, size: int) -> None:
        if addr in PCI_UNUSED:
            return
        if addr == PCI_BAR0 and size == 4:
            value &= -BAR_SIZE & 0xFFFFFFFF
            if value not in (0, -BAR_SIZE & 0xFFFFFFFF, self._base):
                raise _BarMoved(value)
        self._config[addr : addr + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
