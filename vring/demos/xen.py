"""The demo `xen`: the guest sends one frame on a Xen card.

Read beside it: Xen's public `io/ring.h`, `io/netif.h`, `grant_table.h` and `event_channel.h`.
"""

from __future__ import annotations

from guest.net.pbuf import PacketBuffer
from vring.demos.recorder import Recorder
from vring.demos.stage import Recording
from vring.demos.xen_stage import SIDES, XenStage

EARLIER = 3

INTRO = (
    "A program hands the guest's front end one Ethernet frame. The driver (netfront, the front end in Xen's words) "
    "copies it into one of its 128 transmit pages, all of which it granted to domain 0 when it connected: each has "
    "an entry in the grant table, and may only be read. The back end (netback, in domain 0) has the pages of the two "
    "rings mapped and sees no other memory of the guest's: for everything else it asks Xen, with a grant reference. "
    "Ring, grant table and event bits are all the two have; there is no register. Three frames went before."
)

WORDS = {
    "program": ("a frame", "These are the bytes that the program wants to send."),
    "prepare": (
        "before it sends",
        "The front end writes with which response it wants an event (rsp_event). For this demo it wants to hear of "
        "the next; usually it lets most go by. Then it looks whether responses have come.",
    ),
    "request": (
        "request",
        "The front end writes a request into the next slot: the grant reference of the page, where in the page the "
        "frame begins, how long it is, and an id that the response will name.",
    ),
    "publish": (
        "publish",
        "One store of req_prod makes the request the back end's. Until that store the back end sees nothing.",
    ),
    "notify": (
        "notify",
        "The front end looks with which request the back end wants an event (req_event). It is this one, so it asks "
        "Xen to send an event over the channel that the two share.",
    ),
    "fetch": (
        "the back end reads",
        "The back end wakes up, sees that req_prod has moved, and reads the words of the request, each once.",
    ),
    "grant": (
        "grant",
        "The back end cannot reach the page; it asks Xen to copy out of it, and names domain and reference. Xen "
        "looks into the guest's grant table whether the entry permits domain 0 to read, and which page it is. The "
        "whole entry is read at once.",
    ),
    "copy": (
        "copy",
        "Xen copies the frame out of the guest's page. From here on the guest can change nothing of it any more. The "
        "back end looks whether there are more requests: not yet.",
    ),
    "wire": ("the frame leaves", "The back end has handed it to the cable."),
    "response": (
        "response",
        "The back end answers in the slot of the request: its id, and OKAY. The store of rsp_prod makes that "
        "visible, and the page the front end's again. A look at rsp_event: the front end wants to be told.",
    ),
    "event": (
        "event",
        "The back end sends an event. Xen sets the port's pending bit in the guest's shared info page, looks that it "
        "is not masked, then sets the bit that says in which word it is, and then the byte that says that there is "
        "something at all. That keeps the interrupt line high.",
    ),
    "ask": (
        "ask for the next event",
        "Before it sleeps the back end writes with which request it wants an event (req_event), then looks once "
        "more, so that nothing put in between is missed.",
    ),
    "upcall": (
        "upcall",
        "The line is high, so the guest is interrupted. It clears the byte first, then takes the selector, then the "
        "port's bit: an event that comes meanwhile makes a new upcall. With the byte clear, the line goes low. The "
        "work itself is put off to a poll.",
    ),
    "poll": (
        "poll",
        "The front end serves both rings. Nothing was received; on the transmit ring rsp_prod has moved, and the id "
        "in the response says which page is free again. It asks for an event with the next frame that is received, "
        "and looks once more. The grant stays as it is, for the next frame that goes into that page.",
    ),
}


def record(seed: int = 0) -> Recording:
    """Send one frame and record it."""
    stage = XenStage(seed)
    try:
        fe = stage.guest.fes[0]
        frame = stage.frame(fe.mac, stage.peer_mac())

        def send(recorder: Recorder) -> None:
            recorder.note("program", "a frame to send", frame)
            stage.netfront.queues[0].tx.ring.enable()
            fe.transmit([PacketBuffer.from_bytes(frame)], "ol")

        # Frames that went before, so that slots, ids and references are not all the first.
        for _ in range(EARLIER):
            fe.transmit([PacketBuffer.from_bytes(frame[:30])], "ol")
        stage.settle()
        stage.netfront.check()
        first, steps = stage.record(send)
    finally:
        stage.close()
    return Recording("xen: the guest sends a frame on a Xen card", INTRO, first, steps, WORDS, SIDES)
