"""When a device that has failed is tried again: after pauses that double, a bounded number of times.

A device that then works for `STABLE_AFTER` has a clean sheet again. After `RETRY_MAX` attempts that did not last it
stays down, and the log says so.
"""

from __future__ import annotations

from collections.abc import Callable

from guest.services import Services, Timer

SECOND = 1_000_000
RETRY_MAX = 5
RETRY_FIRST = 10_000  # microseconds before the first new attempt
STABLE_AFTER = 10 * SECOND


class Retry:
    """The attempts of one device.

    Args:
        services: for timers and the time.
        attempt: tries to bring the device up; why that failed, or an empty text.
        log: takes lines.

    Attributes:
        worked: whether the device ever did.
    """

    def __init__(self, services: Services, attempt: Callable[[], str], log: Callable[[str], None]) -> None:
        self.worked = False
        self._services = services
        self._attempt = attempt
        self._log = log
        self._attempts = 0
        self._since = 0  # when it last began to work
        self._timer: Timer | None = None

    def works(self) -> None:
        """The device works from now on."""
        self.worked = True
        self._since = self._services.platform.now()

    def failed(self, reason: str) -> None:
        """The device worked, and does not any more: plan another attempt, if one is left."""
        if self._services.platform.now() - self._since >= STABLE_AFTER:
            self._attempts = 0
        self._plan(reason)

    def cancel(self) -> None:
        """Plan no more than has begun."""
        if self._timer is not None:
            self._timer.cancel()

    def _plan(self, reason: str) -> None:
        if self._attempts >= RETRY_MAX:
            self._log(f"{reason}; given up after {RETRY_MAX} resets")
            return
        delay = RETRY_FIRST << self._attempts
        self._attempts += 1
        self._log(f"{reason}; reset {self._attempts} in {delay // 1000} ms")
        self._timer = self._services.timers.after(delay, self._again)

    def _again(self) -> None:
        self._timer = None
        reason = self._attempt()
        if reason:
            self._plan(reason)
        else:
            self._log("works again")
