"""What `--wire sim:…` may say, as values.

    sim:seed=7,latency=20ms,loss=1%,web.loss=10%,uplink.rate=2mbit

`latency` (or `delay`), `loss` and the other words of `hw.wire.impair` are for every link of the outside, or for one of
them with its name before the word. Latency is one way. Nothing is built here; whatever is wrong raises ValueError, in
one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hw.wire.impair import KEYS, Impairments, parse_impairments

# The links of the outside, and their one-way delays in milliseconds unless somebody says otherwise.
LINKS = {"uplink": 2, "dns": 3, "web": 20}
FORM = "seed=N, or [LINK.]KEY=VALUE with one of the links {} and one of the keys latency, {}"


@dataclass(frozen=True, slots=True)
class SimOptions:
    """The options of a simulated outside.

    Attributes:
        seed: decides what is random there; None for what follows from the board's seed.
        links: what each link does to frames, by its name.
    """

    seed: int | None
    links: dict[str, Impairments]

    @classmethod
    def parse(cls, words: Sequence[str]) -> SimOptions:
        """Read words such as "loss=1%". Raises ValueError."""
        seed: int | None = None
        common: list[str] = []
        own: dict[str, list[str]] = {name: [] for name in LINKS}
        for word in words:
            key, equals, value = word.partition("=")
            link, dot, bare = key.rpartition(".")
            bare = "delay" if bare == "latency" else bare
            if not equals or not value:
                raise ValueError(f"{word!r} is not key=value; write {_form()}")
            if key == "seed":
                if seed is not None:
                    raise ValueError(f"{word}: seed is given twice")
                if not (value.isascii() and value.isdecimal() and len(value) < 20):
                    raise ValueError(f"seed: {value!r} is not a whole number")
                seed = int(value)
            elif bare not in KEYS or (dot and link not in LINKS):
                raise ValueError(f"{word!r}: there is no option {key!r}; write {_form()}")
            else:
                (own[link] if dot else common).append(f"{bare}={value}")
        return cls(seed, {name: _impairments(name, common, words) for name, words in own.items()})


def _impairments(link: str, common: list[str], own: list[str]) -> Impairments:
    found: Impairments = {"delay_us": LINKS[link] * 1000}
    for words in (common, own):  # what is said of one link goes over what is said of all
        if words:
            found.update(parse_impairments(",".join(words)))
    return found


def _form() -> str:
    return FORM.format(", ".join(LINKS), ", ".join(KEYS))
