"""Options of programs, in the getopt style, and the errors that users make."""

from __future__ import annotations

import errno
import getopt

from guest.net.dns_exchange import NO_SERVERS, NODATA, NXDOMAIN, TIMEOUT

_ADVICE = {errno.EADDRINUSE: "; ss -l shows by whom", errno.ENETUNREACH: "; ip route shows where there is a way to"}
_NO_ANSWER = {
    NXDOMAIN: "Name or service not known",
    NODATA: "No address of this family",
    NO_SERVERS: "No name server is known",
    TIMEOUT: "No name server has answered",
}


class UsageError(Exception):
    """The arguments are wrong; the text is one line."""


def options(argv: list[str], letters: str) -> tuple[dict[str, str], list[str]]:
    """Options (`-c` → its value, or "") and the other arguments, in any order; `letters` as getopt takes them.

    Raises UsageError.
    """
    pairs, rest = several(argv, letters)
    return dict(pairs), rest


def several(argv: list[str], letters: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The same where an option may be given more than once. Raises UsageError."""
    try:
        return getopt.gnu_getopt([str(word) for word in argv], letters)
    except getopt.GetoptError as error:
        raise UsageError(str(error)) from None


def why(error: OSError) -> str:
    """Why a call failed and, where that is known, what shows more."""
    return f"{error.strerror}{_ADVICE.get(error.errno or 0, '')}"


def no_answer(error: str) -> str:
    """Why a name has no answer, for people; `error` as the resolver says it."""
    return _NO_ANSWER.get(error, error)


def whole(option: str, text: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`. Raises UsageError."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else low - 1
    if not low <= number <= high:
        raise UsageError(f"{option} {text}: a number from {low} to {high} is needed")
    return number


def seconds(option: str, text: str) -> int:
    """A number of seconds, 0 or more, as microseconds. Raises UsageError."""
    try:
        micros = round(float(text) * 1_000_000)
    except (ValueError, OverflowError):
        micros = -1
    if micros < 0:
        raise UsageError(f"{option} {text}: a number of seconds is needed")
    return micros
