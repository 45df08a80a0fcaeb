"""A Xen back end that does what a test tells it, byte by byte: the other end without the card's code.

It writes the toolstack's keys and its own states into the store, maps the rings that the guest has made, and writes
responses with `struct` from the layouts of Xen's public headers, so it can break every rule. It is for the guest's
front end; the card has a scripted front end of the same kind.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from guest.drivers.netfront import NetfrontDriver
from guest.kernel import Guest
from guest.net.pbuf import PacketBuffer
from hw.machine import Machine
from hw.xen.ports import GrantedPage, StoreError
from tests.guest_board import Board

PAGE = 4096
WRAP = 0xFFFFFFFF
CSUM_BLANK, VALIDATED, MORE, EXTRA = 2, 1, 4, 8  # on receive; the first two the other way round on transmit
FULL = {
    "feature-rx-copy": 1, "feature-sg": 1, "feature-gso-tcpv4": 1, "feature-gso-tcpv6": 1,
    "feature-ipv6-csum-offload": 1, "feature-split-event-channels": 1,
}  # fmt: skip


class Backend:
    """The back end of vif 0 of a domain, and what the toolstack writes for both ends.

    Args:
        board: whose machine it is for.
        machine: made with a Xen board; it has not run yet.
        front: keys of the front end's, from the toolstack.
        features: and other keys of its own; those of `FULL` and state 2 if nothing is said.
    """

    def __init__(
        self, board: Board, machine: Machine, front: Mapping[str, object] | None = None, **features: object
    ) -> None:
        assert board.host is not None
        assert machine.domain is not None
        self.board, self.machine, self.host, self.domain = board, machine, board.host, machine.domain
        self.store = self.host.store
        domid = self.domain.domid
        self.front = f"/local/domain/{domid}/device/vif/0"
        self.back = f"/local/domain/0/backend/vif/{domid}/0"
        self.rings: dict[str, GrantedPage] = {}
        self.ports: dict[str, int] = {}
        self.events: list[str] = []
        for path, permissions in ((self.front, (f"n{domid}", "r0")), (self.back, ("n0", f"r{domid}"))):
            self.store.mkdir(path)
            self.store.permit(path, *permissions)
        keys = {"backend": self.back, "backend-id": 0, "mac": "02:00:00:00:00:02", "state": 1, **(front or {})}
        offer = {**FULL, "online": 1, "state": 2, **{key.replace("_", "-"): value for key, value in features.items()}}
        for path, values in ((self.front, keys), (self.back, offer)):
            for key, value in values.items():
                if value is not None:
                    self.store.write(f"{path}/{key}", str(value))
        self.store.watch(f"{self.front}/state", self._front_changed)

    # -- the store -------------------------------------------------------------------------------------------------

    def state(self, state: object) -> None:
        """Say that this end is in `state`, whatever that is, and let the guest see it."""
        self.store.write(f"{self.back}/state", str(state))
        self.board.run(0.001)

    def _front_changed(self, _path: str) -> None:
        """In this alone it does what it should: when the front end closes, it lets go and closes."""
        if self.rings and self.front_state in ("5", "6"):
            self.detach()
            self.store.write(f"{self.back}/state", "6")

    @property
    def front_state(self) -> str:
        return self.store.get(f"{self.front}/state")

    @property
    def complaint(self) -> str:
        """What the front end left in its error node."""
        return self.store.get(f"/local/domain/{self.domain.domid}/error/device/vif/0/error")

    # -- the rings -------------------------------------------------------------------------------------------------

    def attach(self, below: str = "") -> Backend:
        """Map the rings of the front end's keys, bind its channels, and be Connected."""
        for kind in ("tx", "rx"):
            page = self.host.grants.map(self.domain.domid, self.store.number(f"{self.front}{below}/{kind}-ring-ref"))
            self.rings[kind] = page
            try:
                remote = self.store.number(f"{self.front}{below}/event-channel-{kind}")
            except StoreError:
                remote = self.store.number(f"{self.front}{below}/event-channel") if kind == "tx" else 0
            if remote:
                self.ports[kind] = self.host.events.bind(self.domain.domid, remote, self._event(kind))
        self.state(4)
        return self

    def _event(self, kind: str) -> Callable[[], None]:
        return lambda: self.events.append(kind)

    def detach(self) -> None:
        """Let go of rings and channels."""
        for page in self.rings.values():
            page.unmap()
        for port in self.ports.values():
            self.host.events.unbind(port)
        self.rings, self.ports = {}, {}

    def index(self, kind: str, which: int) -> int:
        """0 req_prod, 1 req_event, 2 rsp_prod, 3 rsp_event."""
        return int(struct.unpack("<I", self.rings[kind].span(4 * which, 4, "to-device"))[0])

    def publish(self, kind: str, rsp_prod: int) -> None:
        self.rings[kind].span(8, 4, "from-device")[:] = struct.pack("<I", rsp_prod & WRAP)

    def kick(self, kind: str = "rx") -> None:
        """Send the event, and let the guest do what is due."""
        self.host.events.notify(self.ports.get(kind, self.ports["tx"]))
        self.board.run(0.001)

    def respond(self, kind: str, response: bytes) -> None:
        """The next response, published."""
        prod = self.index(kind, 2)
        size = 12 if kind == "tx" else 8
        self.rings[kind].span(64 + size * (prod % 256), len(response), "from-device")[:] = response
        self.publish(kind, prod + 1)

    def posted(self, number: int) -> tuple[int, int]:
        """Id and reference of receive request `number`."""
        id_, gref = struct.unpack("<H2xI", self.rings["rx"].span(64 + 8 * (number % 256), 8, "to-device"))
        return int(id_), int(gref)

    def page_of(self, gref: int) -> memoryview:
        """The guest's page that a reference stands for."""
        return self.machine.memory.span(self.frame_of(gref) * PAGE, PAGE)

    def entry(self, gref: int) -> tuple[int, int, int]:
        """Flags, domain and frame of a grant entry."""
        at = self.domain.grant_frames[gref // 512] + 8 * (gref % 512)
        flags, domid, frame = struct.unpack("<HHI", self.machine.memory.span(at, 8))
        return int(flags), int(domid), int(frame)

    def frame_of(self, gref: int) -> int:
        return self.entry(gref)[2]

    def granted(self) -> dict[int, int]:
        """References that are valid now, but for the toolstack's, and their frames."""
        raw = b"".join(self.machine.memory.span(addr, PAGE) for addr in self.domain.grant_frames)
        entries = enumerate(struct.iter_unpack("<HHI", raw))
        return {ref: frame for ref, (flags, _, frame) in entries if flags and ref >= 8}

    def received(
        self, data: bytes = b"", flags: int = 0, *, offset: int = 0, status: int | None = None, id_: int | None = None
    ) -> None:
        """Answer the next receive request; `data` lies at `offset` of its page."""
        posted, gref = self.posted(self.index("rx", 2))
        self.page_of(gref)[offset : offset + len(data)] = data
        answer = len(data) if status is None else status
        self.respond("rx", struct.pack("<HHHh", posted if id_ is None else id_, offset, flags, answer))

    def extra(self, kind: int = 1, size: int = 1000, gso: int = 1, more: bool = False) -> None:
        """Extra information in the next receive response."""
        self.respond("rx", struct.pack("<BBHBBH", kind, int(more), size, gso, 0, 0))

    def requests(self) -> list[tuple[int, ...]]:
        """The transmit requests that were not answered: gref, offset, flags, id, size."""
        found = []
        for at in range(self.index("tx", 2), self.index("tx", 0)):
            found.append(struct.unpack("<IHHHH", self.rings["tx"].span(64 + 12 * (at % 256), 12, "to-device")))
        return found

    def sent(self, *answers: tuple[int, int]) -> None:
        """Answer transmit requests: id and status of each."""
        for id_, status in answers:
            self.respond("tx", struct.pack("<Hh", id_, status))


class Front:
    """A guest of ours with one card, whose other end is a `Backend`."""

    def __init__(self, board: Board, cmdline: str = "", *, machine: Machine | None = None, **keys: Any) -> None:
        self.board = board
        machine = machine or board.machine(cmdline)
        self.backend = Backend(board, machine, **keys)
        self.guest = Guest(machine.platform)
        self.got: list[bytes] = []
        machine.power_on(self.guest)
        board.guests.append(self.guest)
        board.settle(self.guest)
        board.run(0.01)

    @property
    def driver(self) -> NetfrontDriver:
        found: Any = self.guest.devices[0]
        assert isinstance(found, NetfrontDriver)
        found.receiver = self._receive
        return found

    def _receive(self, packets: Any) -> None:
        self.got += [packet.tobytes() for packet in packets]

    def send(self, *frames: bytes) -> int:
        return self.driver.transmit([PacketBuffer.from_bytes(each) for each in frames])
