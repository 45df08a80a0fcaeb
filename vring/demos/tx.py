"""The demo `tx`: the guest sends one frame.

Read beside it: virtio 1.4 §2.7.13 (supplying buffers), §2.7.14 (receiving used buffers), §5.1.9.2 (transmission).
"""

from __future__ import annotations

from guest.net.pbuf import PacketBuffer
from hw.abi.virtio_net import TRANSMITQ1
from vring.demos.recorder import Recorder
from vring.demos.stage import Recording, Stage

EARLIER = 3

INTRO = (
    "A program hands the guest's front end one Ethernet frame. The driver copies it into a buffer of guest RAM "
    "behind a virtio header of 12 bytes. From here on driver and device talk only through memory, one register "
    "and one interrupt line. The transmit queue has 8 entries; three frames have gone through it before."
)

WORDS = {
    "prepare": (
        "before it sends",
        "The driver writes how far the device must get before it may interrupt (used_event). For this demo it "
        "wants to hear of every frame; usually it lets most of them go by. Then it looks whether buffers have come "
        "back.",
    ),
    "poll": (
        "poll",
        "The handler has put its work off to a poll, which serves both queues with receive interrupts switched off "
        "meanwhile. On the transmit queue used.idx has moved: the buffer in the new entry is the driver's again.",
    ),
    "describe": (
        "descriptor",
        "The driver describes the buffer: where it lies, how long it is, and no WRITE flag, so the device may only "
        "read.",
    ),
    "offer": (
        "available ring",
        "The descriptor's number goes into the next entry of the available ring; then one store of avail.idx makes "
        "it the device's. Until that store the device sees nothing.",
    ),
    "doorbell": (
        "doorbell",
        "The driver looks how far the device has asked to be told (avail_event), finds that it wants to know, and "
        "writes the queue's number to the register QUEUE_NOTIFY.",
    ),
    "fetch": (
        "the device reads",
        "The device wakes up, sees that avail.idx has moved, and reads the entry and then the descriptor, each "
        "field once.",
    ),
    "dma": (
        "DMA",
        "The device reads the buffer straight out of guest RAM: the virtio header, then the frame. Nothing is "
        "copied.",
    ),
    "wire": ("the frame leaves", "The device has handed it to the cable."),
    "return": (
        "used ring",
        "The device gives the descriptor back: its number, and 0 bytes written, because it only read. The store of "
        "used.idx makes that visible.",
    ),
    "interrupt": (
        "interrupt",
        "The device looks whether the driver wants to be interrupted (used_event says so) and raises its line.",
    ),
    "ask": (
        "ask for the next doorbell",
        "Before it sleeps the device writes up to where it has read (avail_event), then looks once more, so that "
        "nothing offered in between is missed.",
    ),
    "acknowledge": (
        "acknowledge",
        "The guest's handler reads why it was interrupted and writes that back; the line goes low.",
    ),
}


def record(seed: int = 0) -> Recording:
    """Send one frame and record it."""
    stage = Stage(TRANSMITQ1, seed)
    try:
        frame = stage.frame(stage.guest.fes[0].mac, stage.peer_mac())

        def send(recorder: Recorder) -> None:
            recorder.note("program", "a frame to send", frame)
            stage.driver.tx.ring.enable_interrupts()
            stage.guest.fes[0].transmit([PacketBuffer.from_bytes(frame)], "ol")

        # Frames that went before, so that the numbers of slots and descriptors are not the same.
        stage.guest.fes[0].transmit([PacketBuffer.from_bytes(frame[:30]) for _ in range(EARLIER)], "ol")
        stage.settle()
        stage.driver.check()
        first, steps = stage.record(send)
    finally:
        stage.close()
    words = {**WORDS, "program": ("a frame", "These are the bytes that the program wants to send.")}
    return Recording("tx: the guest sends a frame", INTRO, first, steps, words)
