"""The guest's command line: words, quotes, and the options that the boot knows.

The options are LING's (`-ipaddr A`, `-netmask M`, `-gateway G`, `-dhcp`, `-s PROGRAM ARGUMENTS…`) and three more
(`-dhcp-timeout S`, `-ip6`). LING ignores an option with another number of values than it takes; here that is an error,
as is an option that nobody knows.

Promises:
- Words are separated by blanks; '…' and "…" quote.
- A word that stands before every option, or has the form `name=value`, belongs to the kernel and its drivers. Those
  that start with `net.` are settings: `net.rx_ring=64 net.mtu=1400 net.dns=10.0.0.3`; guest/config.py has the list.
- Of an option that is given twice the last one counts; every `-s` counts.
- What follows `-s PROGRAM` up to the next `-s` is the program's. A quoted `-s "ping 10.0.0.1 -s 1400"` is complete in
  itself, and options may follow it.
- Every mistake is a `CommandLineError` of one line that names the option and shows how it is written.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from guest.config import Settings, parse_settings

EXAMPLES = {
    "-ipaddr": "-ipaddr 10.0.0.2",
    "-netmask": "-netmask 255.255.255.0",
    "-gateway": "-gateway 10.0.0.1",
    "-dhcp": "-dhcp",
    "-dhcp-timeout": "-dhcp -dhcp-timeout 30",
    "-ip6": "-ip6",
    "-s": "-s ping 10.0.0.1 -c 3",
}

_ADDRESS_OPTIONS = ("-ipaddr", "-netmask", "-gateway")
_SWITCHES = ("-dhcp", "-ip6")


class CommandLineError(ValueError):
    """The command line has a mistake; the text is one line."""


@dataclass(frozen=True)
class StartProgram:
    """A program to start once the network is up: its name, and its arguments as words."""

    name: str
    args: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.name, *self.args))


@dataclass(frozen=True)
class BootOptions:
    """What the command line says.

    Attributes:
        ipaddr, netmask, gateway: dotted quads, None where not given.
        dhcp: ask a DHCP server; it wins over a static address.
        dhcp_timeout: microseconds after which the programs start without an address; None is never.
        ip6: configure IPv6 too.
        start: the programs to start, in order.
        kernel: words for the kernel and its drivers, in order.
        settings: what those of them that start with `net.` say.
    """

    ipaddr: str | None = None
    netmask: str | None = None
    gateway: str | None = None
    dhcp: bool = False
    dhcp_timeout: int | None = None
    ip6: bool = False
    start: tuple[StartProgram, ...] = ()
    kernel: tuple[str, ...] = field(default=())
    settings: Settings = field(default_factory=Settings)

    @property
    def networked(self) -> bool:
        """Whether any network option is given, so that `setup` is to be called."""
        return self.dhcp or self.ip6 or any((self.ipaddr, self.netmask, self.gateway))


def tokenise(text: str) -> list[str]:
    """The words of `text`. Raises CommandLineError for a quote that is never closed."""
    words: list[str] = []
    word: list[str] = []
    inside = False  # a word has begun, perhaps with an empty quote
    quote = ""
    for char in text:
        if quote:
            if char == quote:
                quote = ""
            else:
                word.append(char)
        elif char in "'\"":
            quote = char
            inside = True
        elif not char.isspace():
            word.append(char)
            inside = True
        elif inside:
            words.append("".join(word))
            word, inside = [], False
    if quote:
        raise CommandLineError(f"the quote {quote} is never closed")
    if inside:
        words.append("".join(word))
    return words


def parse(text: str) -> BootOptions:
    """The options in `text`. Raises CommandLineError."""
    words = tokenise(text)
    values: dict[str, str] = {}
    switches: set[str] = set()
    start: list[StartProgram] = []
    kernel: list[str] = []
    last = ""  # the option that the next word could belong to
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("-"):
            if last and "=" not in word:
                raise CommandLineError(_extra(last, word))
            kernel.append(word)
            continue
        last = word
        if word in _SWITCHES:
            switches.add(word)
        elif word == "-s":
            program, at = _start(words, at)
            start.append(program)
        elif word in EXAMPLES:
            if at == len(words) or words[at].startswith("-"):
                raise CommandLineError(f"{word} needs a value, as in: {EXAMPLES[word]}")
            values[word] = words[at]
            at += 1
        else:
            raise CommandLineError(f"unknown option {word}; the options are {', '.join(EXAMPLES)}")
    for option in _ADDRESS_OPTIONS:
        if option in values:
            values[option] = _address(option, values[option])
    if "-dhcp-timeout" in values and "-dhcp" not in switches:
        raise CommandLineError(f"-dhcp-timeout means nothing without -dhcp, as in: {EXAMPLES['-dhcp-timeout']}")
    try:
        settings = parse_settings(kernel)
    except ValueError as error:
        raise CommandLineError(str(error)) from None
    return BootOptions(
        ipaddr=values.get("-ipaddr"),
        netmask=values.get("-netmask"),
        gateway=values.get("-gateway"),
        dhcp="-dhcp" in switches,
        dhcp_timeout=_seconds("-dhcp-timeout", values.get("-dhcp-timeout")),
        ip6="-ip6" in switches,
        start=tuple(start),
        kernel=tuple(kernel),
        settings=settings,
    )


def _extra(option: str, word: str) -> str:
    if option in _SWITCHES:
        return f"{option} takes no value, but {word!r} follows it; write: {EXAMPLES[option]}"
    return f"{option} takes one value, and {word!r} is one too many; write: {EXAMPLES[option]}"


def _start(words: list[str], at: int) -> tuple[StartProgram, int]:
    """The program behind a `-s`, and where the words go on."""
    if at == len(words) or not words[at].strip() or words[at].startswith("-"):
        raise CommandLineError(f"-s needs a program, as in: {EXAMPLES['-s']}")
    name = words[at]
    at += 1
    if any(char.isspace() for char in name):
        inner = tokenise(name)
        return StartProgram(inner[0], tuple(inner[1:])), at
    end = words.index("-s", at) if "-s" in words[at:] else len(words)
    for word in words[at:end]:
        if word in EXAMPLES:
            raise CommandLineError(
                f"{word} stands behind -s {name}, where it would be an argument of {name}; put it before -s"
            )
    return StartProgram(name, tuple(words[at:end])), end


def _address(option: str, value: str) -> str:
    try:
        address = ipaddress.IPv4Address(value)
    except ValueError:
        raise CommandLineError(f"{option} {value!r} is not an IPv4 address, as in: {EXAMPLES[option]}") from None
    if option == "-netmask":
        zeros = int(address) ^ 0xFFFFFFFF
        if zeros & (zeros + 1):
            raise CommandLineError(f"-netmask {value} has ones behind zeros; write: {EXAMPLES[option]}")
    elif address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        raise CommandLineError(f"{option} {value} is not the address of one host; write: {EXAMPLES[option]}")
    return str(address)


def _seconds(option: str, value: str | None) -> int | None:
    """A number of seconds, as microseconds."""
    if value is None:
        return None
    try:
        micros = round(float(value) * 1_000_000)
    except (ValueError, OverflowError):
        micros = 0
    if micros <= 0:
        raise CommandLineError(f"{option} {value!r} is not a number of seconds above 0, as in: {EXAMPLES[option]}")
    return micros
