"""Hosts on one wire, with the timers that servers and clients beside a stack wait with, on one clock."""

from __future__ import annotations

from guest.net.config import NetConfig
from guest.services import Timers
from tests.net_world import SECOND, Clock, Host


class Street:
    """Stacks on one wire. Frames are carried in no time."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.start = self.clock.now
        self.timers = Timers(self.clock)
        self.hosts: list[Host] = []
        self.heard: list[tuple[float, bytes]] = []  # every frame, with the seconds since the start

    def host(self, mac: str, *addresses: str, up: bool = True, **settings: object) -> Host:
        """One more host; addresses are written with their prefix lengths, and are not checked."""
        made = Host(None, mac, clock=self.clock, seed=len(self.hosts), config=NetConfig(**settings))  # type: ignore[arg-type]
        for address in addresses:
            text, _, length = address.partition("/")
            made.eth.add_address(text, int(length), check=False)
        self.hosts.append(made)
        if up:
            made.eth.set_up()
        return made

    @property
    def at(self) -> float:
        """Seconds since the start."""
        return (self.clock.now - self.start) / SECOND

    def run(self, seconds: float) -> None:
        """Let time pass, and carry and do what is due on the way."""
        end = self.clock.now + round(seconds * SECOND)
        while True:
            self._carry()
            times = [host.stack.poll_at() for host in self.hosts] + [self.timers.next_deadline()]
            due = min((at for at in times if at is not None), default=None)
            if due is None or due > end:
                break
            self.clock.now = max(due, self.clock.now)
            for host in self.hosts:
                host.stack.poll()
            self.timers.run_due()
        self.clock.now = end

    def _carry(self) -> None:
        while flights := [(host, frames) for host in self.hosts if (frames := host.take())]:
            for sender, frames in flights:
                self.heard += [(self.at, frame) for frame in frames]
                for host in self.hosts:
                    if host is not sender:
                        host.receive(*frames)
