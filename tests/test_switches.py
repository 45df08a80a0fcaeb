"""Row D17: features that can be switched off; what is off is not loaded, and the rest works without it."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from guest.net.address import parse_address
from guest.net.config import NetConfig
from guest.net.guard import Guard
from guest.net.interface import Interface
from guest.net.pbuf import PacketBuffer
from guest.net.stack import Stack

SWITCHES = {
    "all off": NetConfig(forwarding=False, ipv6=False, membership=False),
    "forwarding on": NetConfig(forwarding=True, ipv6=False, membership=False),
    "autoconfiguration on": NetConfig(forwarding=False, ipv6=True, membership=False, dad_transmits=0),
    "membership on": NetConfig(forwarding=False, ipv6=False, membership=True),
    "all on": NetConfig(forwarding=True, ipv6=True, membership=True, dad_transmits=0),
}
MODULES = {
    "forward": ("forward",),
    "slaac": ("slaac",),
    "membership": ("membership", "igmp", "mld"),
    "guard": ("guard", "guard_rule", "guard_answer"),
    "dhcp": ("dhcp", "dhcp_wire", "dhcp_service"),
}


class World:
    """Two stacks on one cable, on a clock of their own."""

    def __init__(self, config: NetConfig) -> None:
        self.now = 0
        self.wire: list[tuple[Interface, bytes]] = []
        self.stacks = [self._stack(config, number) for number in (1, 2)]

    def _stack(self, config: NetConfig, number: int) -> Stack:
        stack = Stack(now=lambda: self.now, rng=random.Random(number), config=config)
        mac = bytes((2, 0, 0, 0, 0, number))
        other = 2 - number  # its place in the list

        def send(packets: list[PacketBuffer]) -> None:
            self.wire += [(self.stacks[other].interfaces[1], packet.tobytes()) for packet in packets]

        interface = stack.add_interface("eth0", mac, 1500, send)
        interface.add_address(f"10.0.0.{number}", 24)
        interface.add_address(f"fd00::{number}", 64, check=False)
        return stack

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + round(seconds * 1_000_000)
        while True:
            while self.wire:
                interface, raw = self.wire.pop(0)
                interface.input([PacketBuffer.from_bytes(raw)])
            due = [at for stack in self.stacks if (at := stack.poll_at()) is not None]
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            for stack in self.stacks:
                stack.poll()
        self.now = end


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("switch", SWITCHES)
def test_d17_the_rest_works_with_each_switch_off_and_on(switch: str, guarded: bool) -> None:
    world = World(SWITCHES[switch])
    ours, theirs = world.stacks
    for stack in world.stacks:
        stack.guard = Guard(["drop in tcp to any port 81"]) if guarded else None
        stack.interfaces[1].set_up()
    world.run(1)
    for own, peer in (("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")):
        family = 6 if ":" in own else 4
        there = parse_address(peer)

        port = ours.icmp.open_echo(family)
        port.send(there, 1, b"ping")
        world.run(1)
        assert (reply := port.receive()) is not None
        assert (reply.payload, reply.error) == (b"ping", None)

        server, client = theirs.udp.open(family), ours.udp.open(family)
        assert (server.bind(there, 53), client.send([b"datagram"], (there, 53))) == (0, 0)
        world.run(1)
        assert (datagram := server.receive()) is not None
        assert datagram.payload.tobytes() == b"datagram"

        listening, end = theirs.tcp.open(family), ours.tcp.open(family)
        assert (listening.bind(there, 80), listening.listen(1)) == (0, 0)
        end.connect(there, 80)
        world.run(1)
        assert end.write([b"stream"]) == 6
        world.run(1)
        assert (accepted := listening.accept()) is not None
        assert accepted.read(100) == b"stream"


def loaded(script: str) -> set[str]:
    """The modules of guest.net that a fresh interpreter has loaded after `script`."""
    script += "; import sys; print(*[name for name in sys.modules if name.startswith('guest.net.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.removeprefix("guest.net.") for name in done.stdout.split()}


STACK = (
    "import random; from guest.net.stack import Stack; from guest.net.config import NetConfig; "
    "stack = Stack(now=lambda: 0, rng=random.Random(0), config=NetConfig({})); "
    "interface = stack.add_interface('eth0', bytes(6), 1500, lambda packets: None); interface.set_up()"
)


@pytest.mark.parametrize(
    ("switched", "there", "absent"),
    [
        ("membership=False", (), ("forward", "slaac", "membership", "guard", "dhcp")),
        ("", ("membership",), ("forward", "slaac", "guard", "dhcp")),
        ("ipv6=True, membership=False", ("slaac",), ("forward", "membership", "guard", "dhcp")),
        ("forwarding=True, membership=False", ("forward",), ("slaac", "membership", "guard", "dhcp")),
    ],
)
def test_d17_what_is_off_is_not_loaded(switched: str, there: tuple[str, ...], absent: tuple[str, ...]) -> None:
    names = loaded(STACK.format(switched))
    assert {feature for feature in absent for module in MODULES[feature] if module in names} == set()
    assert [feature for feature in there if not set(MODULES[feature]) <= names] == []
