"""QEMU's own virtio-net-device on machine microvm, as a platform for our guest: registers through the qtest socket,
RAM as shared memory, frames through a pair of datagram sockets.

    guest ── QtestPlatform ─┬─ mmio    readl/writel on the qtest socket ───────── virtio-mmio ── virtio-net-device
                            ├─ memory  the memfd that is QEMU's RAM too                                │
                            └─ irq     "IRQ raise 5" on the qtest socket → level of a line             │
    peer ── FrameSocket ────────────── datagrams, one frame each ───────────────────────── -netdev dgram

Promises:
- Nothing has a name on the host: RAM, firmware and sockets are descriptors that QEMU inherits.
- The line of the device is found by making it interrupt, not by knowing the board.
- Every IRQ message is counted; the lines keep their level, so a handler is called again until the device lowers it.

QEMU runs in another process, so the order of our stores and loads matters. x86 keeps all orders but one: a load may
overtake an earlier store, as of `avail_event` behind that of `avail.idx` (virtio 1.4 §2.7.13.4.1, §2.7.14). The round
trip of a doorbell comes too late for that. `StoreLoadFence` sits at the memory's hook and keeps the order.

Debian's QEMU is built without the qtest accelerator: a firmware that halts the only CPU serves as well. The machine has
to run, because virtio-net takes no frames while it is stopped.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import threading
from collections import Counter

from guest.drivers.virtio_mmio import MmioSlot, MmioTransport
from guest.platform import Mmio
from hw.abi import virtio, virtio_mmio, virtio_net
from hw.irq import InterruptController
from hw.loop import Cpu, Loop
from hw.memory import AccessHook, GuestMemory, MemoryPort
from hw.wire.descriptor import DescriptorLink
from hw.wire.link import Views

MEMORY_SIZE = 64 << 20
FIRMWARE = b"\xfa\xf4\xeb\xfd" * 16384  # 64 KiB of `cli; hlt; jmp` back, wherever the CPU begins
SLOT_BASE, SLOT_SIZE, SLOTS = 0xFEB00000, 0x200, 24  # microvm's virtio-mmio transports, most of them empty
_WIDTHS = {1: "b", 2: "w", 4: "l", 8: "q"}
TIMEOUT = 30.0  # seconds that QEMU may take for an answer


class QemuGone(Exception):
    """QEMU ended, does not answer, or refuses a command."""


class StoreLoadFence(AccessHook):
    """Before each load of a ring field all earlier stores are visible: taking a free lock is a locked instruction."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def before_load(self, who: str, addr: int, size: int) -> None:
        with self._lock:
            pass


class QtestMmio:
    """The qtest socket: registers, and the interrupt controller's inputs as QEMU reports them.

    Attributes:
        messages: how often each line was raised and lowered: `messages["raise", 5]`.
        hook: told of every register access once it is done, or None.
    """

    def __init__(self, link: socket.socket, irq: InterruptController) -> None:
        self._link = link
        self._irq = irq
        self._rest = b""
        self._answers: list[str] = []
        self.messages: Counter[tuple[str, int]] = Counter()
        self.hook: AccessHook | None = None

    def read(self, addr: int, size: int) -> int:
        value = int(self.command(f"read{_WIDTHS[size]} {addr:#x}"), 16)
        if self.hook is not None:
            self.hook.register("driver", "read", addr, size, value)
        return value

    def write(self, addr: int, size: int, value: int) -> None:
        self.command(f"write{_WIDTHS[size]} {addr:#x} {value:#x}")
        if self.hook is not None:
            self.hook.register("driver", "write", addr, size, value)

    def command(self, text: str) -> str:
        """Do `text`; its answer. What QEMU did before it answered, it has told by then."""
        self._link.sendall(text.encode() + b"\n")
        while not self._answers:
            self.receive()
        word, _, value = self._answers.pop().partition(" ")
        if word != "OK":
            raise QemuGone(f"{text}: {word} {value}")
        return value

    def receive(self) -> None:
        """Wait for at least one more piece of what QEMU says, and take all its whole lines."""
        try:
            piece = self._link.recv(65536)
        except TimeoutError:
            raise QemuGone("no answer on the qtest socket") from None
        if not piece:
            raise QemuGone("the qtest socket was closed")
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            text = line.decode()
            if text.startswith("IRQ "):  # "IRQ raise 5"
                _, what, number = text.split()
                self.messages[what, int(number)] += 1
                self._irq.line(int(number)).set_level(what == "raise")
            else:
                self._answers.append(text)


class FrameSocket(DescriptorLink):
    """Our end of the wire: a datagram socket, one frame each."""

    def __init__(self, loop: Loop, wire: socket.socket) -> None:
        super().__init__(loop, "qemu")
        wire.setblocking(False)
        self._wire = wire
        self._start(wire.fileno(), wire.sendmsg)

    def read_into(self, views: Views) -> int:
        try:
            length, _, _, _ = self._wire.recvmsg_into(views)
        except BlockingIOError:
            return 0
        return self._received(length)

    def close(self) -> None:
        super().close()
        self._wire.detach()  # its descriptor was the link's, and is closed


class QtestPlatform:
    """The machine as its guest sees it (`guest.platform.Platform`)."""

    def __init__(self, qemu: Qemu, cmdline: str) -> None:
        self._qemu = qemu
        self.memory: MemoryPort = qemu.memory.port("driver")
        self.mmio: Mmio = qemu.mmio
        self.irq = qemu.irq
        self.xen = None
        self.cmdline = cmdline
        self.rng = random.Random(f"qtest/{cmdline}")
        self.now = qemu.loop.clock.now

    def wake(self) -> None:
        """Give the guest a turn."""
        if self._qemu.cpu is not None:
            self._qemu.loop.kick_cpu(self._qemu.cpu)


class Qemu:
    """One QEMU with one virtio-net-device, for use with `with`.

    Args:
        loop: on the real clock; watches the qtest socket and the wire.
        program: path of qemu-system-x86_64.
        mac: the device's address, as text.
        options: further properties of the device, such as "host_mtu=9000,packed=on".

    Attributes:
        memory: RAM from guest-physical 0, shared with QEMU.
        mmio, irq: registers and lines.
        slot: where the device is and which line it has.
        wire: our end of its cable.
    """

    def __init__(self, loop: Loop, program: str, *, mac: str, options: str = "") -> None:
        self.options = options
        self.loop = loop
        self.cpu: Cpu | None = None
        self.memory = GuestMemory(MEMORY_SIZE)
        self.memory.hook = StoreLoadFence()
        self.irq = InterruptController(loop.call_soon)
        self._errors = os.memfd_create("errors")
        qtest, qtest_far = socket.socketpair()
        control, control_far = socket.socketpair()
        wire, wire_far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        firmware = os.memfd_create("firmware")
        os.write(firmware, FIRMWARE)
        inherited = [self.memory.fd, firmware, *(far.fileno() for far in (qtest_far, control_far, wire_far))]
        words = [
            "-machine", "microvm,ioapic2=off,pit=off,rtc=off,memory-backend=ram", "-accel", "tcg", "-m", "64",
            "-object", f"memory-backend-file,id=ram,size=64M,mem-path=/proc/self/fd/{self.memory.fd},share=on",
            "-bios", f"/proc/self/fd/{firmware}", "-display", "none", "-nodefaults",
            "-chardev", f"socket,id=qtest,fd={qtest_far.fileno()}", "-qtest", "chardev:qtest", "-qtest-log", "none",
            "-chardev", f"socket,id=control,fd={control_far.fileno()}", "-mon", "chardev=control,mode=control",
            "-global", "virtio-mmio.force-legacy=false",
            "-netdev", f"dgram,id=wire,local.type=fd,local.str={wire_far.fileno()}",
            "-device", f"virtio-net-device,id=nic,netdev=wire,mac={mac}" + (options and "," + options),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [program, *words],
            pass_fds=inherited, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors,
        )  # fmt: skip
        os.close(firmware)
        for far in (qtest_far, control_far, wire_far):
            far.close()
        self._qtest, self._control = qtest, control
        for link in (qtest, control):
            link.settimeout(TIMEOUT)
        self._replies = control.makefile("rb")
        self.wire = FrameSocket(loop, wire)
        self.mmio = QtestMmio(qtest, self.irq)
        try:
            self._replies.readline()  # the greeting
            self.control("qmp_capabilities")
            self.mmio.command("irq_intercept_in ioapic")
            self.slot = self._find_device()
        except BaseException as error:
            self.__exit__(None, error, None)
            raise
        self.mmio.messages.clear()
        loop.set_reader(qtest.fileno(), self.mmio.receive)

    def _find_device(self) -> MmioSlot:
        """Look through the transports, then make the device interrupt by taking its link away."""
        read = self.mmio.read
        for base in range(SLOT_BASE, SLOT_BASE + SLOTS * SLOT_SIZE, SLOT_SIZE):
            if read(base, 4) == virtio_mmio.MAGIC and read(base + virtio_mmio.VIRTIO_MMIO_DEVICE_ID, 4):
                break
        else:
            raise QemuGone("no virtio device on this board")
        transport = MmioTransport(self.mmio, MmioSlot(SLOT_SIZE, base, 0))
        features = virtio.features(virtio.VIRTIO_F_VERSION_1, virtio_net.VIRTIO_NET_F_STATUS)
        transport.negotiate(features, features, {})
        transport.add_status(virtio.VIRTIO_CONFIG_S_DRIVER_OK)
        self.set_link(False)
        transport.status()  # a round trip: the message is here now
        raised = [line for (what, line) in self.mmio.messages if what == "raise"]
        transport.reset()
        self.set_link(True)
        if len(raised) != 1:
            raise QemuGone(f"the device's interrupt raised lines {raised}")
        return MmioSlot(SLOT_SIZE, base, raised[0])

    # -- what a test does to it ------------------------------------------------------------------------------------

    def platform(self, words: str = "") -> QtestPlatform:
        """The door for a guest, whose command line announces the device and goes on with `words`."""
        slot = self.slot
        return QtestPlatform(self, f"virtio_mmio.device={slot.size}@{slot.base:#x}:{slot.irq} {words}".strip())

    def power_on(self, cpu: Cpu) -> None:
        """Plug `cpu` in and give it its first turn."""
        self.cpu = cpu
        self.irq.cpu = cpu.interrupt
        self.loop.add_cpu(cpu)

    def control(self, command: str, **arguments: object) -> object:
        """A command on QEMU's own control channel; its answer."""
        self._control.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            reply = json.loads(self._replies.readline() or b'{"error": "QEMU ended"}')
            if "error" in reply:
                raise QemuGone(f"{command}: {reply['error']}")
            if "return" in reply:  # all else is an event
                return reply["return"]

    def set_link(self, up: bool) -> None:
        """Plug the device's cable in, or pull it out."""
        self.control("set_link", name="nic", up=up)

    def settle(self) -> None:
        """Go on until QEMU and the guest have nothing left to do that needs no frame and no time."""
        while True:
            self.mmio.read(self.slot.base, 4)  # QEMU finishes what it is at before it answers
            if not self.loop.turn():
                return

    # -- the end -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Qemu:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            error.add_note(f"QEMU said: {self.said() or 'nothing'}")
        self.close()

    def close(self) -> None:
        """End QEMU and close the sockets."""
        self.irq.cpu = None
        self.loop.set_reader(self._qtest.fileno(), None)
        self.wire.close()
        self._process.kill()
        self._process.wait(TIMEOUT)
        self._replies.close()
        for link in (self._qtest, self._control):
            link.close()
        os.close(self._errors)

    def said(self) -> str:
        """What QEMU wrote to its standard error so far."""
        return os.pread(self._errors, 65536, 0).decode(errors="replace")
