"""Errors of system calls: OSError with Linux's number and text, without the host's help in choosing either.

The numbers are those of Linux on x86-64, which Python's `errno` has where this runs.
"""

from __future__ import annotations

import errno
import os


def fault(error: str | int) -> OSError:
    """The exception for an error given by name ("EINVAL") or number. Python picks the subclass by the number."""
    number: int = getattr(errno, error) if isinstance(error, str) else error
    return OSError(number, os.strerror(number))


def check(number: int) -> None:
    """Raise what a call below gave as an errno; 0 is success."""
    if number:
        raise OSError(number, os.strerror(number))
