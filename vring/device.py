"""`vring device`: our network card for other people's drivers, over vhost-user.

    VM or user-space driver ── vhost-user socket ── the card ── a wire of vring's ── …

The wire is any that a board can have, so behind the card may be a TAP, the user-mode gateway, or a hub that several
sockets share. The command runs until it is interrupted; drivers may come and go meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from hw.machine import Option, vhost_card
from hw.vhost.server import DeviceServer
from vring.build import Rig
from vring.config import Board, ConfigError, WireSpec


class Devices:
    """Cards at sockets, the n-th on the n-th wire.

    Args:
        sockets: where front ends find them.
        wires: what each is plugged into.
        options: what the cards offer, as a virtio NIC's options on a board.
        client: connect to front ends that listen.
        pcap: write what passes the cards to this pcapng file.
        seed: for all that is random.
        tell: told in one line of drivers that come and go.

    Raises ConfigError for options and wires that cannot be, `hw.wire.link.WireError` for sockets and wires that cannot
    be made.
    """

    def __init__(
        self,
        sockets: Sequence[str],
        wires: Sequence[str],
        *,
        options: Mapping[str, Option] | None = None,
        client: bool = False,
        pcap: Path | None = None,
        seed: int | None = None,
        tell: Callable[[str], None] = print,
    ) -> None:
        if len(wires) != len(sockets):
            raise ConfigError(f"there are {len(sockets)} sockets and {len(wires)} wires; the n-th belongs to the n-th")
        if len(set(sockets)) < len(sockets):
            raise ConfigError("two devices cannot share a socket; a path stands there twice")
        specs = [WireSpec.parse(wire) for wire in wires]
        for spec in specs:
            if spec.kind in ("sim", "tun"):
                raise ConfigError(f"the wire {spec} cannot be here: a driver elsewhere has real time and whole frames")
        self.rig = Rig(Board((), seed=seed), pcap=pcap, console=lambda _, line: tell(line))
        self.servers: list[DeviceServer] = []
        try:
            for number, (path, spec) in enumerate(zip(sockets, specs, strict=True)):
                link = self.rig.open_wire(spec, f"device{number}")
                try:
                    device = vhost_card(link, self.rig.random(f"device{number}"), dict(options or {}))
                except ValueError as error:
                    raise ConfigError(str(error)) from None
                self.servers.append(DeviceServer(self.rig.loop, path, device, client=client, tell=tell))
        except BaseException:
            self.close()
            raise

    def run(self) -> None:
        """Serve until `stop`."""
        self.rig.loop.run()

    def stop(self) -> None:
        """Let `run` return; may be called from a signal handler."""
        self.rig.loop.stop()

    def close(self) -> None:
        """Hang up everywhere, and close the wires. Harmless when closed."""
        with ExitStack() as last:
            last.callback(self.rig.close)
            for server in self.servers:
                last.callback(server.close)
