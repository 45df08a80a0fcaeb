"""ethtool: show and set the cards: driver, link, features, queues, interrupts, filters, and what each counted.

What is set is asked of the device through its control queue; a card without one shows what it has and sets nothing.
Options are those of ethtool(8); `--vlan` is this guest's own, for a filter that Linux sets with a VLAN interface.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from guest.apps import EX_USAGE
from guest.apps.env import SECOND, Env
from guest.apps.usage import UsageError, whole
from guest.drivers.net_settings import VLANS
from guest.drivers.virtio_net import VirtioNetDriver
from guest.net.address import format_mac
from guest.net.device import IFF_RUNNING, NetDevice
from hw.abi import virtio as virtio_abi
from hw.abi import virtio_net as net
from hw.abi import virtio_net_ctrl as ctrl

if TYPE_CHECKING:
    from guest.drivers.net_settings import Settings, Told

USAGE = """usage: ethtool INTERFACE                       link, speed and duplex, MTU, what is received
       ethtool -i INTERFACE                    driver, queues' sizes, negotiated features
       ethtool -k INTERFACE                    receive offloads and filters
       ethtool -K INTERFACE rx|tso on|off      receive offloads
       ethtool -l INTERFACE                    queue pairs
       ethtool -L INTERFACE combined N         use so many
       ethtool -c INTERFACE                    how long interrupts wait
       ethtool -C INTERFACE [queue N] [rx-usecs|rx-frames|tx-usecs|tx-frames NUMBER]...
       ethtool -x INTERFACE                    how received flows are spread
       ethtool -S INTERFACE                    counters of the driver and of the device
       ethtool --vlan INTERFACE add|del ID     receive frames with this tag, or no longer"""
EXAMPLES = (
    "ethtool eth0", "ethtool -S eth0", "ethtool -L eth0 combined 4", "ethtool -C eth0 rx-usecs 50 rx-frames 16",
    "ethtool --vlan eth0 add 5",
)  # fmt: skip

ANSWER_WITHIN = 10 * SECOND
LIMIT_MAX = 0xFFFFFFFF
_SHOWS = ("-i", "-k", "-l", "-c", "-x", "-S")
_SETS = ("-K", "-L", "-C", "--vlan")
_TSO = (net.VIRTIO_NET_F_GUEST_TSO4, net.VIRTIO_NET_F_GUEST_TSO6)
_COALESCE = ("rx-usecs", "rx-frames", "tx-usecs", "tx-frames")
_TRANSPORT = {
    virtio_abi.VIRTIO_F_RING_PACKED: "RING_PACKED",
    virtio_abi.VIRTIO_F_IN_ORDER: "IN_ORDER",
    virtio_abi.VIRTIO_F_NOTIFICATION_DATA: "NOTIFICATION_DATA",
    virtio_abi.VIRTIO_F_RING_RESET: "RING_RESET",
    virtio_abi.VIRTIO_RING_F_INDIRECT_DESC: "INDIRECT_DESC",
    virtio_abi.VIRTIO_RING_F_EVENT_IDX: "EVENT_IDX",
    virtio_abi.VIRTIO_F_VERSION_1: "VERSION_1",
}


class _Refused(Exception):
    """The device or the driver says no; the text is one line."""


def main(env: Env, argv: list[str]) -> int:
    """0, 1 for an unknown interface or what its card refuses, 2 for wrong usage."""
    words = [str(word) for word in argv]
    try:
        option = words.pop(0) if words and words[0].startswith("-") else ""
        if option not in ("", *_SHOWS, *_SETS):
            raise UsageError(f"what is {option}?")
        if not words or (option not in _SETS and len(words) > 1) or (option in _SETS and len(words) < 3):
            raise UsageError("an interface is needed" if not words else f"what is {words[-1]}?")
        cards = {fe.name: fe.device for fe in env.guest.fes}
        if words[0] not in cards:
            env.print(f"ethtool: {words[0]} is no card; there {'are' if cards else 'is'} {', '.join(cards) or 'none'}")
            return 1
        device = cards[words[0]]
        if option in _SETS:
            _set(env, device, option, words[1:])
        else:
            for line in _show(env, device, option):
                env.print(line)
    except UsageError as error:
        env.print(f"ethtool: {error}\n{USAGE}")
        return EX_USAGE
    except _Refused as error:
        env.print(f"ethtool: {words[0]}: {error}")
        return 1
    return 0


# -- showing -------------------------------------------------------------------------------------------------------


def _show(env: Env, device: NetDevice, option: str) -> list[str]:
    if option == "":
        return _link(device)
    if option == "-S":
        return _statistics(env, device)
    if option == "-i":
        return _driver(device)
    settings = _settings(device)
    return {"-k": _features, "-l": _queues, "-c": _coalescing, "-x": _spread}[option](device, settings)


def _settings(device: NetDevice) -> Settings:
    if not isinstance(device, VirtioNetDriver):
        raise _Refused("this kind of card has nothing that could be shown or set here")
    return device.settings


def _heading(device: NetDevice, text: str) -> str:
    return f"{device.name}: {text}"


def _link(device: NetDevice) -> list[str]:
    settings = device.settings if isinstance(device, VirtioNetDriver) else None
    speed = None if settings is None else settings.can.speed
    rows = [
        ("link", "yes" if device.flags & IFF_RUNNING else "no"),
        ("speed", "unknown" if speed is None else f"{speed} Mbit/s"),
        ("duplex", "unknown" if settings is None else settings.can.duplex),
        ("address", format_mac(device.mac)),
        ("MTU", f"{device.mtu} bytes"),
    ]
    if settings is not None and settings.can.has(net.VIRTIO_NET_F_CTRL_RX):
        groups = f"own address, broadcasts, {len(settings.groups)} groups"
        rows.append(("receives", "everything" if settings.promiscuous else groups))
    return [_heading(device, "settings"), *_table(rows)]


def _table(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows) + 2
    return [f"  {name:<{width}}{value}" for name, value in rows]


def _driver(device: NetDevice) -> list[str]:
    if not isinstance(device, VirtioNetDriver):
        return [_heading(device, "driver xen-netfront")]
    names = {**_TRANSPORT, **net.FEATURE_NAMES}
    bits = [names.get(bit, str(bit)) for bit in range(device.features.bit_length()) if device.features >> bit & 1]
    rows = [
        ("driver", "virtio-net"),
        ("bus", f"virtio-mmio at {device.transport.slot.base:#x}, line {device.transport.slot.irq}"),
        ("rings", f"{device.rx.ring_size} receive, {device.tx.ring_size} transmit buffers a queue"),
        ("features", " ".join(bits)),
    ]
    return [_heading(device, "driver"), *_table(rows)]


def _features(device: NetDevice, settings: Settings) -> list[str]:
    can = settings.can
    switch = "" if can.has(net.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) else " [fixed]"

    def state(bits: tuple[int, ...]) -> str:
        if not any(can.has(bit) for bit in bits):
            return "off [not offered]"
        return ("on" if any(settings.offloads >> bit & 1 for bit in bits) else "off") + switch

    vlans = ", ".join(map(str, sorted(settings.vlans))) or "none"
    rows = [
        ("rx", state((net.VIRTIO_NET_F_GUEST_CSUM,))),
        ("tso", state(_TSO)),
        ("address filter", "on" if can.has(net.VIRTIO_NET_F_CTRL_RX) else "off [not offered]"),
        ("vlan filter", f"on, lets in {vlans}" if can.has(net.VIRTIO_NET_F_CTRL_VLAN) else "off [not offered]"),
    ]
    return [_heading(device, "features"), *_table(rows)]


def _queues(device: NetDevice, settings: Settings) -> list[str]:
    rows = [("combined", str(settings.pairs)), ("at most", str(settings.can.pairs))]
    return [_heading(device, "queue pairs"), *_table(rows)]


def _coalescing(device: NetDevice, settings: Settings) -> list[str]:
    rows = []
    for pair in range(settings.can.pairs):
        for way, index in (("rx", 2 * pair), ("tx", 2 * pair + 1)):
            packets, usecs = settings.coalescing.get(index, (0, 0))
            rows.append((f"queue {index} ({way})", f"{way}-usecs {usecs}  {way}-frames {packets}"))
    return [_heading(device, "interrupts wait for, whichever is first"), *_table(rows)]


def _spread(device: NetDevice, settings: Settings) -> list[str]:
    if not settings.table:
        how = "to the only queue" if settings.pairs == 1 else "to the queue that its flow was last sent on"
        return [_heading(device, f"a frame goes {how}")]
    names = " ".join(name for bit, name in ctrl.HASH_TYPE_NAMES.items() if settings.can.hash_types & bit)
    lines = [_heading(device, f"a frame goes by its hash ({names}), modulo {len(settings.table)}")]
    lines += [
        f"  {at:4}: {' '.join(map(str, settings.table[at : at + 8]))}" for at in range(0, len(settings.table), 8)
    ]
    return [*lines, f"  key {settings.key.hex(':')}"]


def _statistics(env: Env, device: NetDevice) -> list[str]:
    rows = [(name, str(count)) for name, count in sorted(device.counters.items())]
    lines = [_heading(device, "the driver counted"), *(_table(rows) if rows else ["  nothing yet"])]
    if not isinstance(device, VirtioNetDriver):
        return lines
    answers: list[dict[int, dict[str, int]] | None] = []

    def told(found: dict[int, dict[str, int]] | None) -> None:
        answers.append(found)
        env.wake()

    device.settings.ask_statistics(told)
    env.wait(lambda: bool(answers), ANSWER_WITHIN)
    found = answers[0] if answers else None
    if found is None:
        return lines
    for index, counted in sorted(found.items()):
        lines.append(_heading(device, f"the device counted on queue {index}"))
        lines += _table([(name, str(count)) for name, count in counted.items()])
    return lines


# -- setting -------------------------------------------------------------------------------------------------------


def _set(env: Env, device: NetDevice, option: str, words: list[str]) -> None:
    """Raises UsageError and _Refused."""
    steps = {"-K": _offload, "-L": _combined, "-C": _coalesce, "--vlan": _vlan}[option](device, words)
    for step in steps:
        _ask(env, step)


def _ask(env: Env, step: Callable[[Told], None]) -> None:
    """Ask the device for one thing, and wait for its answer."""
    answers: list[str] = []

    def told(why: str) -> None:
        answers.append(why)
        env.wake()

    step(told)
    if not env.wait(lambda: bool(answers), ANSWER_WITHIN):
        raise _Refused("the device does not answer")
    if answers[0]:
        raise _Refused(answers[0])


def _pairs_of(words: list[str]) -> dict[str, str]:
    if len(words) % 2:
        raise UsageError(f"{words[-1]} needs a value")
    return dict(zip(words[::2], words[1::2], strict=True))


def _offload(device: NetDevice, words: list[str]) -> list[Callable[[Told], None]]:
    settings = _settings(device)
    offloads = settings.offloads
    for name, value in _pairs_of(words).items():
        if name not in ("rx", "tso") or value not in ("on", "off"):
            raise UsageError(f"what is {name} {value}?")
        for bit in (net.VIRTIO_NET_F_GUEST_CSUM,) if name == "rx" else _TSO:
            mask = 1 << bit & settings.can.features
            offloads = offloads | mask if value == "on" else offloads & ~mask
    return [partial(settings.set_offloads, offloads)]


def _combined(device: NetDevice, words: list[str]) -> list[Callable[[Told], None]]:
    wish = _pairs_of(words)
    if set(wish) != {"combined"}:
        raise UsageError("say combined and a number")
    count = whole("combined", wish["combined"], 1, 0x8000)
    return [partial(_settings(device).set_pairs, count)]


def _coalesce(device: NetDevice, words: list[str]) -> list[Callable[[Told], None]]:
    wish = _pairs_of(words)
    queue = whole("queue", wish.pop("queue"), 0, 0xFFFF) if "queue" in wish else None
    limits: dict[str, dict[str, int]] = {}
    for name, value in wish.items():
        if name not in _COALESCE:
            raise UsageError(f"what is {name}?")
        way, _, what = name.partition("-")
        limits.setdefault(way, {})[what] = whole(name, value, 0, LIMIT_MAX)
    settings = _settings(device)
    steps: list[Callable[[Told], None]] = []
    for way, said in limits.items():
        index = queue if queue is not None else int(way == "tx")
        if index % 2 != (way == "tx"):
            raise UsageError(f"queue {index} is no {way} queue")
        before_packets, before_usecs = settings.coalescing.get(index, (0, 0))
        packets, usecs = said.get("frames", before_packets), said.get("usecs", before_usecs)
        if queue is None:
            steps.append(partial(settings.set_coalescing, way, packets, usecs))
        else:
            steps.append(partial(settings.set_queue_coalescing, queue, packets, usecs))
    if not steps:
        raise UsageError("say what is to be set: rx-usecs, rx-frames, tx-usecs, tx-frames")
    return steps


def _vlan(device: NetDevice, words: list[str]) -> list[Callable[[Told], None]]:
    if len(words) != 2 or words[0] not in ("add", "del"):
        raise UsageError("say add or del, and the VLAN")
    vlan = whole(words[0], words[1], VLANS[0], VLANS[-1])
    return [partial(_settings(device).set_vlan, vlan, words[0] == "add")]
