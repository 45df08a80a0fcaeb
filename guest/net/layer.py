"""What every layer of the stack has: counters, and a trace that costs one comparison while nobody looks.

A packet that a layer gives up is dropped with `Layer.drop`, which counts it under the reason's name and shows it to the
trace; so whoever traces sees at which stage a packet stopped, and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

from guest.net.pbuf import PacketBuffer

# (stage, packet, text): the text is the drop's reason (`rx_dropped_…`, `tx_dropped_…`) or what the stage saw.
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

    def drop(self, packet: PacketBuffer, reason: str) -> None:
        """Count a packet that goes no further."""
        self.counters[reason] += 1
        if self.trace is not None:
            self.trace(self.stage, packet, reason)
