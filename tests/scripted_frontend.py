"""A Xen guest that does what a test tells it, byte by byte: the front end's side without the guest's code.

It writes grant entries, ring slots and messages to the store straight into RAM with `struct`, from the layouts of
Xen's public headers, so it can break every rule. It is for the back end; the guest's own front end has a scripted
hypervisor of the same kind.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hw.clock import VirtualClock
from hw.loop import Loop
from hw.machine import Machine
from hw.wire.link import Link
from hw.xen.hypervisor import Hypervisor
from hw.xen.vif import Vif
from tests.test_hw_mmio import Catcher

PAGE = 4096
READ, WATCH, WATCH_EVENT, ERROR, DIRECTORY, WRITE, RM = 2, 4, 15, 16, 1, 11, 13
CSUM_BLANK, VALIDATED, MORE, EXTRA = 1, 2, 4, 8  # on transmit; the first two the other way round on receive
OKAY, FAILED, NULL = 0, -1, 1


class StoreFailed(Exception):
    """The store answered with an error."""


class Guest:
    """A domain whose CPU only acknowledges events, and keeps count of them by port."""

    halted = False

    def __init__(self, *, host: Hypervisor | None = None, name: str = "guest", memory_size: int = 4 << 20) -> None:
        self.host = host or Hypervisor(Loop(VirtualClock()))
        self.machine = Machine(self.host.loop, name=name, memory_size=memory_size, xen=self.host)
        domain = self.machine.domain
        assert domain is not None
        self.xen = domain
        self.memory = self.machine.memory
        self.events: dict[int, int] = {}
        self.watched: list[tuple[str, str]] = []
        self._next_page = 0x10000
        self._next_ref = 8
        self._request = 0
        self._in = b""
        self.machine.power_on(self)

    # -- the CPU ------------------------------------------------------------------------------------------------

    def interrupt(self, line: int) -> None:
        assert line == self.xen.irq
        info = self.memory.span(self.xen.shared_info, PAGE)
        info[0] = 0  # evtchn_upcall_pending, first
        (selector,) = struct.unpack_from("<Q", info, 8)
        info[8:16] = bytes(8)
        for word in range(64):
            if selector >> word & 1:
                at = 2048 + 8 * word
                (pending,) = struct.unpack_from("<Q", info, at)
                (mask,) = struct.unpack_from("<Q", info, at + 512)
                info[at : at + 8] = (pending & mask).to_bytes(8, "little")
                for bit in range(64):
                    if (pending & ~mask) >> bit & 1:
                        self.events[64 * word + bit] = self.events.get(64 * word + bit, 0) + 1

    def run(self) -> bool:
        return False

    def next_deadline(self) -> int | None:
        return None

    def settle(self) -> None:
        """Let all be done that is due now."""
        for _ in range(2000):
            if not self.machine.loop.turn():
                return
        raise AssertionError("still busy after 2000 turns")

    def wait(self, microseconds: int) -> None:
        loop = self.machine.loop
        loop.run(deadline=loop.clock.now() + microseconds)

    # -- memory ---------------------------------------------------------------------------------------------------

    def page(self, content: bytes = b"", count: int = 1) -> int:
        """The address of fresh pages, poisoned but for `content` at their start."""
        addr = self._next_page
        self._next_page += count * PAGE
        self.memory.span(addr, count * PAGE)[:] = content + b"\xa5" * (count * PAGE - len(content))
        return addr

    def read(self, addr: int, length: int) -> bytes:
        return bytes(self.memory.span(addr, length))

    def write(self, addr: int, content: bytes) -> None:
        self.memory.span(addr, len(content))[:] = content

    def entry(self, ref: int, flags: int, domid: int, frame: int) -> None:
        """The grant entry `ref`, as the bytes that it is made of."""
        self.write(self.xen.grant_frames[ref // 512] + 8 * (ref % 512), struct.pack("<HHI", flags, domid, frame))

    def entry_flags(self, ref: int) -> int:
        return int.from_bytes(self.read(self.xen.grant_frames[ref // 512] + 8 * (ref % 512), 2), "little")

    def grant(self, addr: int, *, readonly: bool = False, domid: int = 0) -> int:
        """A fresh reference to the page at `addr`."""
        ref = self._next_ref
        self._next_ref += 1
        self.entry(ref, 1 | 4 * readonly, domid, addr // PAGE)
        return ref

    # -- the store ---------------------------------------------------------------------------------------------------

    def send_bytes(self, data: bytes) -> None:
        """Put bytes into the request ring, as many pieces as it takes."""
        base = self.xen.store_page
        while data:
            cons, prod = struct.unpack("<II", self.read(base + 2048, 8))
            room = 1024 - (prod - cons & 0xFFFFFFFF)
            piece, data = data[:room], data[room:]
            for at, byte in enumerate(piece):
                self.memory.span(base + (prod + at & 1023), 1)[0] = byte
            self.write(base + 2052, struct.pack("<I", prod + len(piece) & 0xFFFFFFFF))
            assert self.xen.evtchn_send(self.xen.store_port) == 0
            if data:
                self._receive()

    def _receive(self) -> None:
        """Take what there is in the response ring."""
        base = self.xen.store_page
        at = self.xen.shared_info + 2048
        while self.xen.poll(self.xen.store_port):
            word, bit = divmod(self.xen.store_port, 64)
            (pending,) = struct.unpack("<Q", self.read(at + 8 * word, 8))
            self.write(at + 8 * word, struct.pack("<Q", pending & ~(1 << bit)))
            cons, prod = struct.unpack("<II", self.read(base + 2056, 8))
            self._in += bytes(self.read(base + 1024 + (each & 1023), 1)[0] for each in range(cons, prod))
            self.write(base + 2056, struct.pack("<I", prod & 0xFFFFFFFF))
            if prod != cons:
                self.xen.evtchn_send(self.xen.store_port)

    def messages(self) -> list[tuple[int, int, int, bytes]]:
        """The messages that have arrived: type, request id, transaction, payload."""
        self._receive()
        found = []
        while len(self._in) >= 16:
            kind, req_id, tx_id, length = struct.unpack_from("<IIII", self._in)
            if len(self._in) < 16 + length:
                break
            found.append((kind, req_id, tx_id, self._in[16 : 16 + length]))
            self._in = self._in[16 + length :]
        return found

    def ask(self, kind: int, payload: bytes, tx_id: int = 0) -> bytes:
        """One request and its answer. Raises StoreFailed with the name of an error."""
        self._request += 1
        self.send_bytes(struct.pack("<IIII", kind, self._request, tx_id, len(payload)) + payload)
        answer = None
        for found, req_id, found_tx, content in self.messages():
            if found == WATCH_EVENT:
                path, token, _ = content.decode().split("\0")
                self.watched.append((path, token))
            else:
                assert (req_id, found_tx) == (self._request, tx_id)
                assert found in (kind, ERROR)
                answer = found, content
        assert answer is not None, "the store has not answered"
        if answer[0] == ERROR:
            raise StoreFailed(answer[1].rstrip(b"\0").decode())
        return answer[1]

    def get(self, path: str, tx_id: int = 0) -> str:
        return self.ask(READ, path.encode() + b"\0", tx_id).decode()

    def put(self, path: str, value: object, tx_id: int = 0) -> None:
        self.ask(WRITE, path.encode() + b"\0" + str(value).encode(), tx_id)


class FrontRing:
    """The front half of one ring page, by raw bytes."""

    def __init__(self, guest: Guest, slot: int, start: int = 0) -> None:
        self.guest, self.slot = guest, slot
        self.addr = guest.page()
        self.ref = guest.grant(self.addr)
        self.prod = self.seen = start
        self.guest.write(self.addr, struct.pack("<IIII", start, start + 1 & 0xFFFFFFFF, start, start + 1 & 0xFFFFFFFF))
        self.guest.write(self.addr + 16, bytes(48))

    def put(self, request: bytes) -> None:
        """The next request; not yet published."""
        self.guest.write(self.addr + 64 + self.slot * (self.prod % 256), request)
        self.prod = (self.prod + 1) & 0xFFFFFFFF

    def publish(self, prod: int | None = None) -> None:
        self.guest.write(self.addr, struct.pack("<I", self.prod if prod is None else prod & 0xFFFFFFFF))

    def index(self, at: int) -> int:
        """0 req_prod, 1 req_event, 2 rsp_prod, 3 rsp_event."""
        return int.from_bytes(self.guest.read(self.addr + 4 * at, 4), "little")

    def responses(self) -> list[bytes]:
        """The slots that were answered since the last look."""
        found = []
        while self.seen != self.index(2):
            found.append(self.guest.read(self.addr + 64 + self.slot * (self.seen % 256), self.slot))
            self.seen = (self.seen + 1) & 0xFFFFFFFF
        self.guest.write(self.addr + 12, struct.pack("<I", self.seen + 1 & 0xFFFFFFFF))
        return found


class Frontend:
    """Vif 0 of a guest: keys, rings, packets, as a test says.

    Args:
        guest: whose; by default a new one.
        wire: what the back end is plugged into; by default something that keeps what it is sent.
        options: of the back end, which offers four queues if nothing else is said.
    """

    def __init__(self, guest: Guest | None = None, wire: Link | None = None, **options: str | int | bool) -> None:
        self.guest = guest or Guest()
        self.wire = wire or Catcher()
        if options.get("profile") != "ling":
            options.setdefault("queues", 4)
        self.vif: Vif = self.guest.machine.add_xen_vif(self.wire, mac=b"\x00\x16\x3e\0\0\1", options=options)
        self.device = self.vif.device
        self.path = f"device/vif/{self.vif.handle}"
        self.tx, self.rx = FrontRing(self.guest, 12), FrontRing(self.guest, 8)
        self.ports: list[int] = []
        self.guest.settle()

    @property
    def backend_state(self) -> int:
        return int(self.guest.get(self.guest.get(f"{self.path}/backend") + "/state"))

    @property
    def counters(self) -> dict[str, int]:
        """What the back end counted, but for its states."""
        return {name: value for name, value in self.device.counters.items() if not name.startswith("state_")}

    def keys(self, **more: object) -> dict[str, object]:
        """What a front end with one queue writes; `more` with _ for -, None leaves a key out."""
        self.ports = [self.guest.xen.evtchn_alloc_unbound(0)]
        keys: dict[str, object] = {
            "tx-ring-ref": self.tx.ref,
            "rx-ring-ref": self.rx.ref,
            "event-channel": self.ports[0],
            "request-rx-copy": 1,
            "feature-rx-notify": 1,
        }
        keys.update({key.replace("_", "-"): value for key, value in more.items()})
        return {key: value for key, value in keys.items() if value is not None}

    def connect(self, **more: object) -> Frontend:
        """Write the keys and state 4."""
        for key, value in self.keys(**more).items():
            self.guest.put(f"{self.path}/{key}", value)
        self.state(4)
        return self

    def state(self, state: object) -> None:
        self.guest.put(f"{self.path}/state", state)
        self.guest.settle()

    def kick(self, which: int = 0) -> None:
        assert self.guest.xen.evtchn_send(self.ports[which]) == 0
        self.guest.settle()

    # -- packets --------------------------------------------------------------------------------------------------

    def slot(self, gref: int, offset: int, flags: int, request_id: int, size: int) -> None:
        self.tx.put(struct.pack("<IHHHH", gref, offset, flags, request_id, size))

    def transmit(self) -> list[tuple[int, int]]:
        """Publish and kick; the responses as (id, status)."""
        self.tx.publish()
        self.kick()
        return self.answers()

    def answers(self) -> list[tuple[int, int]]:
        return [struct.unpack_from("<Hh", raw) for raw in self.tx.responses()]  # type: ignore[misc]

    def send(self, frame: bytes, flags: int = 0, extras: Sequence[bytes] = ()) -> list[tuple[int, int]]:
        """A packet in as many slots as it has pages, the first behind it extra information; the responses."""
        pieces = [frame[at : at + PAGE] for at in range(0, len(frame), PAGE)] or [b""]
        for number, piece in enumerate(pieces):
            more = MORE if number + 1 < len(pieces) else 0
            first = (flags | (EXTRA if extras else 0)) if number == 0 else 0
            ref = self.guest.grant(self.guest.page(piece), readonly=True)
            self.slot(ref, 0, more | first, 100 + number, len(frame) if number == 0 else len(piece))
            for extra in extras if number == 0 else ():
                self.tx.put(extra.ljust(12, b"\0"))
        return self.transmit()

    def post(self, count: int = 1, *, kick: bool = True) -> list[int]:
        """Post receive buffers; the addresses of their pages. The id of each is its index in the ring."""
        pages = []
        for _ in range(count):
            pages.append(self.guest.page())
            self.rx.put(struct.pack("<HHI", self.rx.prod & 0xFFFF, 0, self.guest.grant(pages[-1])))
        self.rx.publish()
        if kick:
            self.kick(-1)
        return pages

    def received(self) -> list[tuple[int, int, int, int]]:
        """The receive responses as (id, offset, flags, status)."""
        return [struct.unpack("<HHHh", raw) for raw in self.rx.responses()]  # type: ignore[misc]

    def arrive(self, *frames: bytes, header: bytes | None = None) -> int:
        """Frames come from the wire; how many the back end took."""
        taken = self.device.receive([(header, [frame]) for frame in frames])
        self.guest.settle()
        return taken
