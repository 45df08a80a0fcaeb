"""Board descriptions: which guests there are, what NICs they have, and where each NIC is plugged in.

A board comes from a TOML file, from a domain description of Xen's `xl` (vring/xl.py), or from command-line words; all
end in the same frozen values. Nothing here touches
the host or builds anything.

Promises: whatever is wrong raises `ConfigError`, whose text is one line that says where (file, table, key, or the
option), what is wrong, and what is allowed.

A file:

    clock = "virtual"            # or "real" (the default, unless there is a sim wire)
    seed = 1
    run = 10                     # seconds of the board's clock at most; without it until the guests halt

    [[guest]]
    name = "alice"
    memory = "64M"
    cmdline = "-s ping 10.0.0.2 -c 4"
    ip = "10.0.0.1"              # ip, mask, gateway, mac: put in front of the command line, given to the first NIC
    mask = "255.255.255.0"

    [[guest.nic]]
    model = "virtio"             # or "xen", or "vhost-user" with a key `socket`
    wire = "hub:lan,loss=1%"
    mtu = 1500                   # every other key is an option of the NIC

A guest that says `partial = true` has no machine and does not boot: its wires go straight under its stack, each NIC
has the key `address` ("10.0.0.1/24", several with blanks between), and its command line has settings only. So it can
have any number of networks: it makes a router, or a host that is just there. The first guest is not of that kind.

A file with one guest may leave `[[guest]]` out and write its keys at the top; then NICs are `[[nic]]`.

Sections: the values (`WireSpec`, `NicSpec`, `GuestSpec`, `Board`), words, TOML.
"""

from __future__ import annotations

import ipaddress
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

ClockName = Literal["real", "virtual"]
Option: TypeAlias = str | int | bool
Options: TypeAlias = Mapping[str, Option]

CLOCKS = ("real", "virtual")
NIC_MODELS = ("virtio", "vhost-user", "xen")
OUTSIDE_MODELS = ("vhost-user",)  # somebody else serves them, in real time
DIRECT = "direct"  # what a partial guest has in place of a card
WIRE_KINDS = ("none", "hub", "tap", "tun", "packet", "user", "sim", "stream", "dgram", "vde")
OUTSIDE_WIRES = ("tap", "tun", "packet", "user", "stream", "dgram", "vde")
NAMED_WIRES = ("tap", "tun", "packet")  # whose name is an interface of the host
SOCKET_WIRES = {  # by kind: how it is written, and the options that it has besides impairments
    "stream": ("stream:PATH or stream:HOST:PORT, with ,server to listen there", ("server",)),
    "dgram": ("dgram:LOCAL,remote=REMOTE, each a path or HOST:PORT", ("remote",)),
    "vde": ("vde:PATH or vde:PATH[PORT]", ()),
}
WIRE_FORMS = (
    "none, hub, hub:NAME, tap:NAME, tun:NAME, packet:INTERFACE, user[:OPTIONS], sim[:OPTIONS], "
    "stream:ADDRESS[,server], dgram:ADDRESS,remote=ADDRESS, vde:PATH[PORT]"
)
MEMORY_DEFAULT = 64 << 20
MEMORY_MIN = 4 << 20
MEMORY_MAX = 3 << 30
PAGE = 4096


class ConfigError(Exception):
    """A board that cannot be; the text is one line."""


# -- the values ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WireSpec:
    """Where a NIC is plugged in: a kind, a name (of hub, TAP or interface), and `key=value` options.

    Options other than `vnet_hdr` are impairments (loss, delay, …), read by `hw.wire.impair`. What a user wire has
    besides is in `options`, word by word, read by `vring.usernet.options`; what a sim wire has is all there, read by
    `vring.simnet.options`.
    """

    kind: str = "none"
    name: str = ""
    vnet_hdr: bool = False
    impairments: str = ""
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> WireSpec:
        """Read `KIND[:NAME][,key=value…]`. Raises ConfigError."""
        head, *words = text.split(",")
        kind, _, name = head.partition(":")
        if kind == "user":
            return cls._parse_user(text, [name, *words] if name else words)
        if kind == "sim":
            return cls._parse_sim(text, [name, *words] if name else words)
        if kind in SOCKET_WIRES:
            return cls._parse_socket(text, kind, name, words)
        if kind not in WIRE_KINDS:
            raise ConfigError(f"{text!r} is not a wire; a wire is one of {WIRE_FORMS}")
        if kind == "none" and (name or words):
            raise ConfigError(f"wire {text!r}: 'none' takes no name and no options")
        if kind in NAMED_WIRES and not name:
            raise ConfigError(f"wire {text!r} lacks a name; write {kind}:{'INTERFACE' if kind == 'packet' else 'NAME'}")
        if kind in NAMED_WIRES and not re.fullmatch(r"[^\s/:]{1,15}", name):
            raise ConfigError(f"wire {text!r}: {name!r} is no name of an interface (1 to 15 characters)")
        vnet_hdr = False
        impairments = []
        for word in words:
            key, equals, value = word.partition("=")
            if key == "vnet_hdr":
                if kind != "tap":
                    raise ConfigError(f"wire {text!r}: only a tap has the option vnet_hdr")
                vnet_hdr = _switch(value if equals else "on", f"wire {text!r}: vnet_hdr")
            elif not equals or not key or not value:
                raise ConfigError(f"wire {text!r}: {word!r} is not key=value")
            else:
                impairments.append(word)
        spec = cls(kind, name or ("hub" if kind == "hub" else ""), vnet_hdr, ",".join(impairments))
        _check_impairments(spec.impairments, text)
        return spec

    @classmethod
    def _parse_user(cls, text: str, words: list[str]) -> WireSpec:
        from hw.wire.impair import KEYS  # noqa: PLC0415  (few boards need these)
        from vring.usernet.options import UserOptions  # noqa: PLC0415

        impairments = ",".join(word for word in words if word.partition("=")[0] in KEYS)
        options = tuple(word for word in words if word.partition("=")[0] not in KEYS)
        try:
            UserOptions.parse(options)
        except ValueError as error:
            raise ConfigError(f"wire {text!r}: {error}") from None
        _check_impairments(impairments, text)
        return cls("user", "", False, impairments, options)

    @classmethod
    def _parse_socket(cls, text: str, kind: str, name: str, words: list[str]) -> WireSpec:
        from hw.wire.endpoint import parse_address, parse_place  # noqa: PLC0415  (few boards need these)

        form, known = SOCKET_WIRES[kind]
        mine = tuple(word for word in words if word.partition("=")[0] in known)
        impairments = ",".join(word for word in words if word not in mine)
        wrong = [word for word in mine if (word.partition("=")[2] == "") != (word == "server")]
        if not name or wrong or (kind == "dgram" and len(mine) != 1):
            raise ConfigError(f"wire {text!r}: write {form}")
        try:
            if kind == "vde":
                parse_place(name)
            else:
                for address in (name, *(word.partition("=")[2] for word in mine if "=" in word)):
                    parse_address(address)
        except ValueError as error:
            raise ConfigError(f"wire {text!r}: {error}") from None
        _check_impairments(impairments, text)
        return cls(kind, name, False, impairments, mine)

    @classmethod
    def _parse_sim(cls, text: str, words: list[str]) -> WireSpec:
        from vring.simnet.options import SimOptions  # noqa: PLC0415  (few boards need it)

        try:
            SimOptions.parse(words)
        except ValueError as error:
            raise ConfigError(f"wire {text!r}: {error}") from None
        return cls("sim", options=tuple(words))

    def __str__(self) -> str:
        head = f"{self.kind}:{self.name}" if self.name else self.kind
        if self.kind in ("user", "sim"):
            rest = ",".join((*self.options, *([self.impairments] if self.impairments else [])))
            return f"{self.kind}:{rest}" if rest else self.kind
        words = [head, *self.options, "vnet_hdr=on" if self.vnet_hdr else "", self.impairments]
        return ",".join(filter(None, words))


@dataclass(frozen=True, slots=True)
class NicSpec:
    """One NIC: its model, the options of that model, its wire. `mac` is one of the options."""

    model: str = "virtio"
    options: Options = field(default_factory=lambda: MappingProxyType({}))
    wire: WireSpec = WireSpec()

    @classmethod
    def parse(cls, text: str, wire: WireSpec | str = WireSpec()) -> NicSpec:
        """Read `MODEL[:key=value,…]`. Raises ConfigError."""
        model, _, rest = text.partition(":")
        options: dict[str, Option] = {}
        for word in rest.split(",") if rest else []:
            key, equals, value = word.partition("=")
            if model == "vhost-user" and not equals and not options:
                key, equals, value = "socket", "=", word
            if not key or (equals and not value):
                raise ConfigError(f"nic {text!r}: {word!r} is not key=value")
            options[key] = _option(value) if equals else True
        wire = WireSpec.parse(wire) if isinstance(wire, str) else wire
        return cls.of(model, options, wire, f"nic {text!r}")

    @classmethod
    def of(
        cls, model: str, options: Options, wire: WireSpec, where: str, models: Sequence[str] = NIC_MODELS
    ) -> NicSpec:
        """A NIC whose model and options have been checked. Raises ConfigError that begins with `where`."""
        if model not in models:
            raise ConfigError(f"{where}: there is no model {model!r}; models are {', '.join(models)}")
        if model == "vhost-user":
            if not options.get("socket"):
                raise ConfigError(f"{where}: say where its back end listens: vhost-user:/path/to/socket")
            if wire.kind != "none":
                raise ConfigError(f"{where}: its back end has the wire; {wire} cannot be plugged in here")
        if "mac" in options:
            options = {**options, "mac": _mac(options["mac"], f"{where}: mac")}
        return cls(model, MappingProxyType(dict(options)), wire)

    @property
    def mac(self) -> bytes | None:
        """The six bytes of the option `mac`, or None."""
        text = self.options.get("mac")
        return None if text is None else bytes.fromhex(str(text).replace(":", ""))


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """One guest: name, RAM in bytes, NICs and command line; `ip`, `mask`, `gateway` stand for command-line words.

    A `partial` one has no machine (vring/partial.py); its `gateway` is a route.
    """

    name: str = "guest"
    memory: int = MEMORY_DEFAULT
    cmdline: str = ""
    nics: tuple[NicSpec, ...] = (NicSpec(),)
    ip: str = ""
    mask: str = ""
    gateway: str = ""
    partial: bool = False

    @property
    def words(self) -> str:
        """The guest's own command line: the networking keys as options, then `cmdline`."""
        if self.partial:
            return self.cmdline
        keys = (("-ipaddr", self.ip), ("-netmask", self.mask), ("-gateway", self.gateway))
        return " ".join([*(f"{flag} {value}" for flag, value in keys if value), *([self.cmdline] * bool(self.cmdline))])


@dataclass(frozen=True, slots=True)
class Board:
    """Guests that share one clock.

    Attributes:
        seed: decides all that is random; see `chosen_seed` for None.
        run: how long it may run, in seconds of that clock; None is no limit.
        source: the file it was read from, for error messages.
    """

    guests: tuple[GuestSpec, ...] = (GuestSpec(),)
    clock: ClockName = "real"
    seed: int | None = None
    run: float | None = None
    source: str = ""

    @property
    def chosen_seed(self) -> int | None:
        """The seed; without one 0 on the virtual clock, and None (the host's entropy) on the real one.

        What leads outside must not be guessable there: addresses, ports, identifiers (RFC 6056, RFC 7739).
        """
        return 0 if self.seed is None and self.clock == "virtual" else self.seed

    @classmethod
    def load(cls, path: str | Path) -> Board:
        """Read a TOML file, or a domain description of Xen's `xl` when its name ends in .cfg. Raises ConfigError."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: is not a text file in UTF-8") from None
        from vring import xl  # noqa: PLC0415  (it raises what is defined here)

        if Path(path).suffix in xl.SUFFIXES:
            return _board(xl.read(text, str(path)), str(path))
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, where: str = "board") -> Board:
        """Read the text of a TOML file; `where` names it in errors. Raises ConfigError."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{where}: not TOML: {error}") from None
        return _board(table, where)

    @classmethod
    def of_words(cls, nics: Sequence[str] = (), wires: Sequence[str] = (), cmdline: str = "") -> Board:
        """One guest from command-line words. Raises ConfigError.

        The n-th wire belongs to the n-th NIC; a NIC without one has `none`. Wires alone make one virtio NIC each;
        nothing at all makes one virtio NIC; the NIC `none` makes a guest without NICs.
        """
        return cls().with_words(nics or ["virtio"] * max(1, len(wires)), wires, cmdline)

    def with_words(self, nics: Sequence[str] = (), wires: Sequence[str] = (), cmdline: str | None = None) -> Board:
        """This board with the NICs, wires and command line of its only guest replaced. Raises ConfigError."""
        if not nics and not wires and cmdline is None:
            return self
        if len(self.guests) != 1:
            raise ConfigError(
                f"the board has {len(self.guests)} guests, so --nic, --wire and a guest command line do not say whose "
                "they are; change the board file"
            )
        guest = self.guests[0]
        if nics and "none" in nics:
            if len(nics) > 1:
                raise ConfigError("--nic none stands alone: a guest has NICs or it has none")
            guest = replace(guest, nics=())
        elif nics:
            guest = replace(guest, nics=tuple(NicSpec.parse(text) for text in nics))
        if len(wires) > len(guest.nics):
            raise ConfigError(
                f"there are {len(wires)} wires for {len(guest.nics)} NICs; the n-th --wire belongs to the n-th --nic"
            )
        plugged = [
            replace(nic, wire=WireSpec.parse(wire)) for nic, wire in zip(guest.nics[: len(wires)], wires, strict=True)
        ]
        guest = replace(guest, nics=(*plugged, *guest.nics[len(wires) :]))
        if cmdline is not None:
            guest = replace(guest, cmdline=cmdline)
        usual = _usual_clock((guest,))
        return replace(self, guests=(guest,), clock=self.clock if self.source or usual == "real" else usual)

    def where(self, guest: GuestSpec, slot: int | None = None) -> str:
        """How errors name a guest of this board, or one of its NICs."""
        words = [self.source] if self.source else []
        # "guest" is the name of a guest that was given none: saying it twice helps nobody.
        words.append("guest" if guest.name == "guest" else f"guest {guest.name}")
        words[-1] += "" if slot is None else f" nic {slot}"
        return ": ".join(words)

    def check(self) -> None:
        """Raises ConfigError for what only the whole board shows: a wire to the outside on the virtual clock.

        Also for a clock that is none, since a board may be put together without a file.
        """
        if self.clock not in CLOCKS:
            raise ConfigError(f"clock is 'real' or 'virtual', not {self.clock!r}")
        for guest in self.guests:
            for slot, nic in enumerate(guest.nics):
                if nic.wire.kind == "tun" and not guest.partial:
                    raise ConfigError(
                        f"{self.where(guest, slot)}: a card carries Ethernet frames, and the wire {nic.wire} has none; "
                        "use a tap, or a guest without a machine"
                    )
                if self.clock == "virtual" and nic.model in OUTSIDE_MODELS:
                    raise ConfigError(
                        f"{self.where(guest, slot)}: a {nic.model} card is served by another process, where time is "
                        "real; use the clock 'real'"
                    )
                if self.clock == "virtual" and nic.wire.kind in OUTSIDE_WIRES:
                    raise ConfigError(
                        f"{self.where(guest, slot)}: the wire {nic.wire} leads outside, where time is real; use the "
                        "clock 'real', or a hub"
                    )


def _usual_clock(guests: Sequence[GuestSpec]) -> ClockName:
    """The clock of a board that does not say: virtual where there is a simulated outside, and no other."""
    kinds = {nic.wire.kind for guest in guests for nic in guest.nics}
    return "virtual" if "sim" in kinds and not kinds & set(OUTSIDE_WIRES) else "real"


# -- words -----------------------------------------------------------------------------------------------------------


def join_words(words: Sequence[str]) -> str:
    """The words as one guest command line; those with blanks or quotes in them are quoted as the guest reads it."""
    return " ".join(_quote(word) for word in words)


def _quote(word: str) -> str:
    if word and not re.search(r"[\s'\"]", word):
        return word
    return "\"'\"".join(f"'{part}'" for part in word.split("'")) if "'" in word else f"'{word}'"


def _option(text: str) -> Option:
    """The value of a `key=value` word: a switch, a number, or text."""
    if text in ("on", "true", "off", "false"):
        return text in ("on", "true")
    return int(text) if re.fullmatch(r"\d+", text) else text


def _switch(text: str, where: str) -> bool:
    if text not in ("on", "off"):
        raise ConfigError(f"{where} is on or off, not {text!r}")
    return text == "on"


def _mac(value: object, where: str) -> str:
    text = str(value)
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise ConfigError(f"{where} is written as 52:54:00:00:00:01, not {text!r}")
    if int(text[:2], 16) & 1:
        raise ConfigError(f"{where} {text} is a group address; the second hex digit must be even")
    return text.lower()


def _check_impairments(text: str, wire: str) -> None:
    """Let `hw.wire.impair` read the impairments, so that mistakes show before anything is built."""
    if text:
        from hw.wire.impair import parse_impairments  # noqa: PLC0415  (only boards with impairments need it)

        try:
            parse_impairments(text)
        except ValueError as error:
            raise ConfigError(f"wire {wire!r}: {error}") from None


# -- TOML ------------------------------------------------------------------------------------------------------------

_BOARD_KEYS = ("clock", "seed", "run", "guest")
_GUEST_KEYS = ("name", "memory", "cmdline", "ip", "mask", "gateway", "mac", "nic", "partial")
_MACHINE_KEYS = ("memory", "ip", "mask", "mac")  # that a partial guest cannot have


def _board(table: dict[str, Any], where: str) -> Board:
    guest_keys = [key for key in table if key in _GUEST_KEYS]
    if "guest" in table:
        if guest_keys:
            raise ConfigError(
                f"{where}: the key {guest_keys[0]!r} stands beside [[guest]]; put it inside the guest that it is for"
            )
        _allow(table, _BOARD_KEYS, where)
        tables = _tables(table["guest"], f"{where}: guest")
        guests = tuple(_guest(each, f"{where}: guest {at}", f"guest{at}") for at, each in enumerate(tables))
    else:
        _allow(table, (*_BOARD_KEYS, *_GUEST_KEYS), where)
        guests = (_guest({key: table[key] for key in guest_keys}, where, "guest"),)
    if not guests:
        raise ConfigError(f"{where}: guest: a board has at least one guest")
    names = [guest.name for guest in guests]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: two guests have the name {name!r}")
    clock = _get(table, "clock", str, _usual_clock(guests), where)
    if clock not in CLOCKS:
        raise ConfigError(f"{where}: clock is 'real' or 'virtual', not {clock!r}")
    seed = _get(table, "seed", int, 0, where) if "seed" in table else None
    run = table.get("run")
    if run is not None and (isinstance(run, bool) or not isinstance(run, int | float) or not 0 < run < math.inf):
        raise ConfigError(f"{where}: run is a finite number of seconds above 0, not {run!r}")
    board = Board(guests, "virtual" if clock == "virtual" else "real", seed, run, where)
    if guests[0].partial:
        raise ConfigError(f"{board.where(guests[0])}: is partial, and the first guest is one that boots")
    board.check()
    return board


def _guest(table: dict[str, Any], where: str, name: str) -> GuestSpec:
    _allow(table, _GUEST_KEYS, where)
    name = _get(table, "name", str, name, where)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", name):
        raise ConfigError(f"{where}: name is up to 32 letters, digits, - and _, not {name!r}")
    partial = _get(table, "partial", bool, False, where)
    for key in _MACHINE_KEYS if partial else ():
        if key in table:
            raise ConfigError(f"{where}: {key} is not for a partial guest; its NICs have addresses")
    tables = _tables(table.get("nic", [] if partial else [{}]), f"{where}: nic")
    nics = [_nic(each, f"{where}: nic {at}", partial) for at, each in enumerate(tables)]
    if "mac" in table:
        if not nics:
            raise ConfigError(f"{where}: mac is for the first NIC, and this guest has none")
        if "mac" in nics[0].options:
            raise ConfigError(f"{where}: mac stands here and in nic 0; write it once")
        mac = _mac(table["mac"], f"{where}: mac")
        nics[0] = replace(nics[0], options=MappingProxyType({**nics[0].options, "mac": mac}))
    return GuestSpec(
        name=name,
        memory=_memory(table.get("memory", MEMORY_DEFAULT), f"{where}: memory"),
        cmdline=_get(table, "cmdline", str, "", where),
        nics=tuple(nics),
        ip=_address(table, "ip", where),
        mask=_address(table, "mask", where),
        gateway=_address(table, "gateway", where),
        partial=partial,
    )


def _nic(table: dict[str, Any], where: str, partial: bool) -> NicSpec:
    if partial:
        _allow(table, ("wire", "address", "mac", "mtu"), where)
    options: dict[str, Option] = {}
    for key, value in table.items():
        if key in ("model", "wire"):
            continue
        if not isinstance(value, str | int):
            raise ConfigError(f"{where}: {key} is text, a whole number, true or false, not {value!r}")
        options[key] = value
    try:
        wire = WireSpec.parse(_get(table, "wire", str, "none", where))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if partial:
        return NicSpec.of(DIRECT, _checked(options, where), wire, where, (DIRECT,))
    return NicSpec.of(_get(table, "model", str, "virtio", where), options, wire, where)


def _checked(options: dict[str, Option], where: str) -> dict[str, Option]:
    """The options of a partial guest's NIC."""
    for text in str(options.get("address", "")).split():
        try:
            if "/" not in text:
                raise ValueError(text)
            ipaddress.ip_interface(text)
        except ValueError:
            raise ConfigError(f"{where}: address {text!r} is not written as 10.0.0.1/24") from None
    mtu = options.get("mtu", 1500)
    if isinstance(mtu, bool) or not isinstance(mtu, int) or not 68 <= mtu <= 65535:
        raise ConfigError(f"{where}: mtu is 68 to 65535, not {mtu!r}")
    return options


def _allow(table: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in table:
        if key not in allowed:
            raise ConfigError(f"{where}: there is no key {key!r}; keys here are {', '.join(allowed)}")


def _tables(value: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ConfigError(f"{where} is a list of tables; write [[{where.rsplit(' ', 1)[-1]}]]")
    return value


def _get(table: Mapping[str, Any], key: str, kind: type, default: Any, where: str) -> Any:
    value = table.get(key, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        what = {str: "text", bool: "true or false"}.get(kind, "a whole number")
        raise ConfigError(f"{where}: {key} is {what}, not {value!r}")
    return value


def _address(table: Mapping[str, Any], key: str, where: str) -> str:
    text: str = _get(table, key, str, "", where)
    if text:
        try:
            ipaddress.IPv4Address(text)
        except ValueError:
            raise ConfigError(f"{where}: {key} is an IPv4 address such as 10.0.0.1, not {text!r}") from None
    return text


def _memory(value: object, where: str) -> int:
    """Bytes from a number of bytes or a text such as "64M"."""
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    match = re.fullmatch(r"(\d+)([KMG]?)", value) if isinstance(value, str) else None
    if match:
        size = int(match[1]) * units[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise ConfigError(f"{where} is a size such as \"64M\", not {value!r}")
    if not MEMORY_MIN <= size <= MEMORY_MAX or size % PAGE:
        raise ConfigError(f"{where} is 4M to 3G in whole pages of 4096 bytes, not {value!r}")
    return size
