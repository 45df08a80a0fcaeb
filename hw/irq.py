"""Interrupt lines, level-triggered, and the controller that brings them to a CPU.

Promises:
- A line that is high and not masked is delivered again and again, one turn of the loop apart, until the device lowers
  it.
- A device never calls into the guest: raising a line only asks the loop for a delivery, so no driver runs inside a
  device.
"""

from __future__ import annotations

from collections.abc import Callable

from hw.memory import AccessHook


class IrqLine:
    """One input of the controller. Devices call `set_level`; the level is kept here.

    A line whose level is a condition in memory, which the guest can end without touching the device, gets a `sense`:
    it is asked before each delivery whether the line is still high.
    """

    __slots__ = ("_controller", "asserts", "level", "number", "sense")

    def __init__(self, controller: InterruptController, number: int) -> None:
        self._controller = controller
        self.number = number
        self.level = False
        self.asserts = 0
        self.sense: Callable[[], bool] | None = None

    def is_high(self) -> bool:
        """The level as it is now."""
        if self.level and self.sense is not None:
            self.set_level(self.sense())
        return self.level

    def set_level(self, level: bool) -> None:
        """Raise or lower the line; a repeated level changes nothing."""
        if level == self.level:
            return
        self.level = level
        self._controller.changed(self)


class InterruptController:
    """Lines by number, their masks, and the pending ones.

    Args:
        schedule: called with `deliver` when there is something to deliver (`Loop.call_soon`).
    """

    def __init__(self, schedule: Callable[[Callable[[], None]], None]) -> None:
        self._schedule = schedule
        self._lines: dict[int, IrqLine] = {}
        self._masked: set[int] = set()
        self._scheduled = False
        self._cpu: Callable[[int], None] | None = None
        self.delivered = 0
        self.hook: AccessHook | None = None

    @property
    def cpu(self) -> Callable[[int], None] | None:
        """Whom to interrupt; called with the line's number. One that is plugged in late gets what is pending."""
        return self._cpu

    @cpu.setter
    def cpu(self, cpu: Callable[[int], None] | None) -> None:
        self._cpu = cpu
        self._request_pending()

    def line(self, number: int) -> IrqLine:
        """The line `number`, made on first use."""
        if number not in self._lines:
            self._lines[number] = IrqLine(self, number)
        return self._lines[number]

    def changed(self, line: IrqLine) -> None:
        """A line's level changed; called by the line."""
        if self.hook is not None:
            self.hook.interrupt(line.number, line.level)
        if line.level:
            line.asserts += 1
            self._request()

    def mask(self, number: int) -> None:
        """Deliver nothing from this line until `unmask`."""
        self._masked.add(number)

    def unmask(self, number: int) -> None:
        """Deliver from this line again, at once if it is high."""
        self._masked.discard(number)
        line = self._lines.get(number)
        if line is not None and line.is_high():
            self._request()

    def _request(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._schedule(self.deliver)

    def deliver(self) -> None:
        """Interrupt the CPU once for every line that is high and not masked, lowest number first."""
        self._scheduled = False
        for number in sorted(self._lines):
            # Each time anew: a handler may lower or mask other lines, or unplug the CPU.
            cpu = self._cpu
            if cpu is not None and number not in self._masked and self._lines[number].is_high():
                self.delivered += 1
                cpu(number)
        self._request_pending()

    def _request_pending(self) -> None:
        if self._cpu is not None and any(
            number not in self._masked and line.is_high() for number, line in self._lines.items()
        ):
            self._request()
