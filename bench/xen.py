"""Xen's cards beside virtio's: frames from driver to driver over a hub, and bulk TCP from guest to guest.

Both contestants are whole guests of ours on the virtual clock; only the model of card differs. `ling` copies each frame
to and from pages that were granted once; `full` grants the pages of each frame, has split event channels, and takes
segments of TCP that are larger than the MTU, which virtio's card does not yet.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.harness import Figure, compare
from guest.net.pbuf import PacketBuffer
from guest.sys import constants as c
from vring.build import Rig
from vring.config import Board

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest.apps.env import Env

BATCH = 64
BLOCK = 1 << 16
PORT = 9
CARDS = {"virtio": {"model": "virtio"}, "Xen, as LING": {"model": "xen", "profile": "ling"}, "Xen": {"model": "xen"}}


def measure(rounds: int, scale: float) -> list[Figure]:
    """Small and full-size frames, and a stream, for each profile of Xen's card; more is better."""
    figures = []
    amount = int(20_000_000 * scale)
    frames = int(20_000 * scale)
    for card in list(CARDS)[1:]:
        for size in (60, 1514):
            figure = Figure(
                f"driver to driver over the hub, {card}, {size} B", "frames/s", "virtio's card",
                note=f"batches of {BATCH}",
            )  # fmt: skip
            one = _frames(card, frames, size), _frames("virtio", frames, size)
            figures.append(compare(figure, *one, rounds))
        figure = Figure(
            f"TCP bulk from guest to guest, {card}", "MB/s", "virtio's card", note=f"{amount / 1e6:g} MB, MTU 1500"
        )
        figures.append(compare(figure, _stream(card, amount), _stream("virtio", amount), rounds))
    return figures


def _rig(card: str) -> Rig:
    """Two guests on a hub, both with such a card, booted."""
    keys = "".join(f'{key} = "{value}"\n' for key, value in CARDS[card].items())
    guests = "".join(
        f'[[guest]]\nname = "{name}"\nip = "{ip}"\nmask = "255.255.255.0"\n[[guest.nic]]\nwire = "hub:lan"\n{keys}'
        for name, ip in (("left", "10.0.0.1"), ("right", "10.0.0.2"))
    )
    rig = Rig(Board.parse(f'clock = "virtual"\n{guests}'))
    rig.power_on()
    rig.loop.run(until=lambda: all(guest.booted for guest in rig.guests))
    return rig


def _frames(card: str, frames: int, size: int) -> Callable[[], float]:
    def one() -> float:
        rig = _rig(card)
        sender, receiver = (guest.fes[0].device for guest in rig.guests)
        got = 0

        def count(packets: object) -> None:
            nonlocal got
            got += len(packets)  # type: ignore[arg-type]

        packet = PacketBuffer.from_bytes(receiver.mac + sender.mac + b"\x88\xb5" + bytes(size - 14))
        batch = [packet] * BATCH
        turn = rig.loop.turn
        while turn():
            pass  # what the boot has left to do
        receiver.receiver = count
        start = time.perf_counter()
        for _ in range(frames // BATCH):
            sender.transmit(batch)
            while turn():
                pass
        elapsed = time.perf_counter() - start
        rig.close()
        if got != frames // BATCH * BATCH:
            raise RuntimeError(f"{frames - got} of {frames} frames did not arrive")
        return got / elapsed

    return one


def _stream(card: str, amount: int) -> Callable[[], float]:
    def one() -> float:
        rig = _rig(card)
        left, right = rig.guests
        taken = 0

        def sink(env: Env, _argv: list[str]) -> int:
            nonlocal taken
            calls, buffer = env.calls, bytearray(1 << 18)
            listening = calls.socket(c.AF_INET, c.SOCK_STREAM)
            calls.bind(listening, ("0.0.0.0", PORT))
            calls.listen(listening, 1)
            fd, _ = calls.accept(listening)
            while count := calls.recv_into(fd, buffer):
                taken += count
            return 0

        def source(env: Env, _argv: list[str]) -> int:
            calls, block = env.calls, memoryview(bytes(BLOCK))
            fd = calls.socket(c.AF_INET, c.SOCK_STREAM)
            calls.connect(fd, ("10.0.0.2", PORT))
            for at in range(0, amount, BLOCK):
                calls.send(fd, block[: min(BLOCK, amount - at)])
            calls.close(fd)
            return 0

        right.spawn(sink)
        left.spawn(source)
        start = time.perf_counter()
        rig.loop.run(until=lambda: taken >= amount)
        elapsed = time.perf_counter() - start
        rig.close()
        return taken / elapsed / 1e6

    return one
