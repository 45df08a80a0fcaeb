"""The one folder that programs have: files by name, and nothing of the host's unless somebody handed it in.

A guest is made with a folder in memory that is gone with the guest; the workbench puts a folder of the host in its
place where the user named one. Programs see `Folder` and cannot tell which it is.

Promises:
- A path is relative to the folder, whether it begins with `/` or not. None leads out: `..` is refused.
- What fails raises OSError with Linux's errno: ENOENT, EACCES, EEXIST, EISDIR, ENOTDIR, ENOSPC, EINVAL.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from typing import BinaryIO, NamedTuple, Protocol

RAM_LIMIT = 16 << 20  # bytes that a folder in memory holds
READ, WRITE, CREATE, APPEND = "rb", "wb", "xb", "ab"  # modes of `open`, as the standard library's
MODES = (READ, WRITE, CREATE, APPEND)


class Entry(NamedTuple):
    """One thing in a folder.

    Attributes:
        size: bytes; 0 for a folder.
        changed: when it was last changed, in nanoseconds since 1970, or since power-on in a guest's memory.
    """

    name: str
    is_folder: bool
    size: int
    changed: int


class Folder(Protocol):
    """Where files are. `label` says to people which folder it is."""

    @property
    def label(self) -> str: ...

    def stat(self, path: str) -> Entry:
        """What is at `path`. Raises OSError."""

    def entries(self, path: str = "") -> list[Entry]:
        """What a folder has in it, by name. Raises OSError."""

    def open(self, path: str, mode: str = READ) -> BinaryIO:
        """A file: to read, to write anew, to create (EEXIST where it is there), to append. Raises OSError."""


def fail(number: int, path: str) -> OSError:
    """An error as the host's calls raise it."""
    return OSError(number, os.strerror(number), path)


def steps(path: str) -> list[str]:
    """The names on the way to `path`, none for the folder itself. Raises OSError: EACCES for `..`, EINVAL."""
    if "\0" in path:
        raise fail(errno.EINVAL, path)
    names = [name for name in path.split("/") if name not in ("", ".")]
    if ".." in names:
        raise fail(errno.EACCES, path)
    return names


class RamFolder:
    """A folder in memory: files only, no folders in it.

    Args:
        now: the time that files are stamped with, in microseconds.
        limit: bytes that all files together may have; a write beyond raises ENOSPC.
    """

    label = "the guest's memory"

    def __init__(self, now: Callable[[], int], limit: int = RAM_LIMIT) -> None:
        self._now = now
        self._limit = limit
        self._files: dict[str, tuple[bytearray, int]] = {}  # what is in it, and when that was put there

    def stat(self, path: str) -> Entry:
        """See `Folder`."""
        name = self._name(path)
        if not name:
            return Entry("", True, 0, 0)
        data, changed = self._file(name)
        return Entry(name, False, len(data), changed * 1000)

    def entries(self, path: str = "") -> list[Entry]:
        """See `Folder`."""
        name = self._name(path)
        if name:
            self._file(name)
            raise fail(errno.ENOTDIR, path)
        return [self.stat(each) for each in sorted(self._files)]

    def open(self, path: str, mode: str = READ) -> BinaryIO:
        """See `Folder`."""
        name = self._name(path)
        if not name:
            raise fail(errno.EISDIR, path)
        if mode == READ:
            return io.BytesIO(bytes(self._file(name)[0]))
        if mode not in MODES:
            raise ValueError(f"a file is opened with one of {', '.join(MODES)}, not {mode!r}")
        if mode == CREATE and name in self._files:
            raise fail(errno.EEXIST, path)
        if mode != APPEND or name not in self._files:
            self._files[name] = bytearray(), self._now()
        return io.BufferedWriter(_RamWriter(self, name), 1)

    def extend(self, name: str, data: memoryview) -> int:
        """Add to a file. Raises OSError: ENOSPC; then nothing was added."""
        there = self._file(name)[0]
        if sum(len(content) for content, _ in self._files.values()) + len(data) > self._limit:
            raise fail(errno.ENOSPC, name)
        there += data
        self._files[name] = there, self._now()
        return len(data)

    def _name(self, path: str) -> str:
        names = steps(path)
        if len(names) > 1:
            raise fail(errno.ENOTDIR if names[0] in self._files else errno.ENOENT, path)
        return names[0] if names else ""

    def _file(self, name: str) -> tuple[bytearray, int]:
        try:
            return self._files[name]
        except KeyError:
            raise fail(errno.ENOENT, name) from None


class _RamWriter(io.RawIOBase):
    """What writes at a file's end."""

    def __init__(self, folder: RamFolder, name: str) -> None:
        super().__init__()
        self._folder = folder
        self._name = name

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self._folder.extend(self._name, memoryview(data).cast("B"))  # type: ignore[arg-type]  # a buffer
