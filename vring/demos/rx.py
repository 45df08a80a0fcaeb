"""The demo `rx`: a frame arrives for the guest.

Read beside it: virtio 1.4 §2.7.8 (used ring), §2.7.14 (receiving used buffers), §5.1.9.3 and §5.1.9.4 (reception).
"""

from __future__ import annotations

from guest.apps.env import Env
from hw.abi.virtio_net import RECEIVEQ1
from vring.demos.recorder import Recorder
from vring.demos.stage import Recording, Stage

EARLIER = 3

INTRO = (
    "A NIC can receive only into buffers that the driver has posted before. At boot the driver put all 8 entries "
    "of the receive queue on the available ring, each with an empty buffer that the device may write (WRITE). A "
    "program listens at a raw outlet. Now the peer at the other end of the cable sends a frame."
)

WORDS = {
    "wire": ("a frame arrives", "The peer has put these bytes on the cable."),
    "fetch": (
        "the device reads",
        "The device takes the next buffer that the driver has posted: the entry of the available ring, then the "
        "descriptor. From an earlier look at avail.idx it knows that there is one.",
    ),
    "dma": (
        "DMA",
        "The device writes a virtio header of 12 bytes and the frame behind it straight into the buffer in guest "
        "RAM.",
    ),
    "return": (
        "used ring",
        "The device gives the descriptor back and says how many bytes it wrote; the store of used.idx makes that "
        "visible.",
    ),
    "interrupt": (
        "interrupt",
        "The device compares used_event with how far it has got, finds that the driver wants to know, and raises "
        "its line.",
    ),
    "acknowledge": (
        "acknowledge",
        "The guest's handler reads why it was interrupted and writes that back; the line goes low. The work itself "
        "is put off to a poll.",
    ),
    "poll": (
        "poll",
        "While it polls, the driver wants no interrupts (used_event far away). It reads used.idx once, then each "
        "new entry: which buffer, how many bytes. The length is checked before anything in the buffer is believed.",
    ),
    "rest": (
        "rest",
        "Nothing has come back on the transmit queue. The driver asks to be interrupted by the next frame "
        "(used_event), and looks once more, so that one which came in between is not missed.",
    ),
    "describe": (
        "refill",
        "The driver posts a buffer again, so that the device never runs short: first its descriptor… (A frame this "
        "small was copied out, so it is the same buffer.)",
    ),
    "offer": ("available ring", "…then its entry in the available ring, and one store of avail.idx."),
    "doorbell": (
        "doorbell?",
        "The driver looks whether the device wants to be told of new buffers (avail_event), and writes "
        "QUEUE_NOTIFY only if it does.",
    ),
    "program": ("delivered", "The frame has gone through the front end to the program."),
}


def record(seed: int = 0) -> Recording:
    """Let one frame arrive and record it."""
    stage = Stage(RECEIVEQ1, seed)
    try:
        frame = stage.frame(stage.peer_mac(), stage.guest.fes[0].mac)
        heard: list[Recorder] = []

        def listen(env: Env, _argv: list[str]) -> int:
            env.guest.outlets.open("eth0", owner=env.process)
            while True:
                message = env.receive()
                if heard and isinstance(message, tuple) and message[1][0] == "data":
                    heard[0].note("program", "a frame received", message[1][1])

        stage.guest.spawn(listen)
        stage.settle()

        def arrive(recorder: Recorder) -> None:
            heard.append(recorder)
            recorder.note("wire", "a frame arrives", frame)
            stage.send_from_peer(frame)

        for _ in range(EARLIER):  # so that the first entries are not the ones to watch
            stage.send_from_peer(frame)
            stage.settle()
        first, steps = stage.record(arrive)
    finally:
        stage.close()
    return Recording("rx: a frame arrives for the guest", INTRO, first, steps, WORDS)
