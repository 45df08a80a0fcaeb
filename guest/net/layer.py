"""What every layer of the stack has: counters, and a trace that costs one comparison while nobody looks.

A layer shows a packet to the trace before it does what the packet asks for, so the trace has cause before effect. A
packet that it gives up is dropped with `Layer.drop`, which counts it under the reason's name and shows it too; so
whoever traces sees at which stage a packet stopped, and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

from guest.net.pbuf import PacketBuffer

# (stage, packet, text): the text is why the packet went no further (`rx_dropped_…`, `tx_dropped_…`, `rx_ignored_…`) or
# what the stage saw.
Trace: TypeAlias = Callable[[str, PacketBuffer, str], None]


class Layer:
    """A stage that packets pass.

    Args:
        stage: its name in traces.
        counters: where it counts; its own unless given.
    """

    def __init__(self, stage: str, counters: Counter[str] | None = None) -> None:
        self.stage = stage
        self.counters: Counter[str] = Counter() if counters is None else counters
        self.trace: Trace | None = None

    def drop(self, packet: PacketBuffer, reason: str, detail: str = "") -> None:
        """Count a packet that goes no further; `detail` is for the trace alone."""
        self.counters[reason] += 1
        if self.trace is not None:
            self.trace(self.stage, packet, f"{reason}: {detail}" if detail else reason)

    def settle(self, packet: PacketBuffer, result: str) -> None:
        """Count under `result` what became of a packet that came in: `rx_dropped_…`, `rx_ignored_…`, or its kind."""
        if result.startswith(("rx_dropped", "rx_ignored")):
            self.drop(packet, result)
        else:
            self.counters[result] += 1
