"""A folder of the host for the guest's programs (`--share DIR`): they read and write what is in it, and nothing else.

Only the command line and `vring.boot(share=…)` name a folder; a board file cannot, since boards are passed on.

Promises:
- Every name on the way to a file is opened by itself, relative to the folder before it, and a symbolic link among them
  is refused (EACCES), wherever it leads: so no path, and no link that is put there meanwhile, leads out of the folder.
- What is neither a file nor a folder (a device, a pipe, a socket) is refused likewise, and nothing waits for it.
- New files are made with the user's own umask. Nothing is ever deleted.

Read: openat(2), O_NOFOLLOW; guest/files.py has what the guest sees.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from guest.files import APPEND, CREATE, READ, WRITE, Entry, fail, steps

_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FLAGS = {
    READ: os.O_RDONLY,
    WRITE: os.O_WRONLY | os.O_CREAT,
    CREATE: os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    APPEND: os.O_WRONLY | os.O_CREAT | os.O_APPEND,
}


class HostFolder:
    """A folder of the host.

    Args:
        path: it must be there. What it leads to is decided now: the folder may be moved later.

    Raises OSError.
    """

    def __init__(self, path: str | Path) -> None:
        self.label = str(path)
        self._fd = os.open(path, _FOLDER)

    def close(self) -> None:
        """Let go of the folder; harmless when done. Files that are open stay open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def stat(self, path: str) -> Entry:
        """See `guest.files.Folder`."""
        with self._place(path) as (folder, name):
            return _entry(name, os.stat(name or ".", dir_fd=folder, follow_symlinks=False), path)

    def entries(self, path: str = "") -> list[Entry]:
        """See `guest.files.Folder`; links and what else cannot be opened are left out."""
        with self._place(path) as (folder, name):
            fd = _open(name or ".", _FOLDER | os.O_NOFOLLOW, folder, path)
        found = []
        try:
            for each in sorted(os.listdir(fd)):
                try:
                    found.append(_entry(each, os.stat(each, dir_fd=fd, follow_symlinks=False), each))
                except OSError:
                    continue  # it went away, or it is nothing for programs
        finally:
            os.close(fd)
        return found

    def open(self, path: str, mode: str = READ) -> BinaryIO:
        """See `guest.files.Folder`."""
        with self._place(path) as (folder, name):
            if not name:
                raise fail(errno.EISDIR, path)
            fd = _open(name, _FLAGS[mode] | _SAFE, folder, path)
        try:
            kind = os.fstat(fd).st_mode
            if stat.S_ISDIR(kind):
                raise fail(errno.EISDIR, path)
            if not stat.S_ISREG(kind):
                raise fail(errno.EACCES, path)
            if mode == WRITE:
                os.ftruncate(fd, 0)
            return os.fdopen(fd, "rb" if mode == READ else "ab" if mode == APPEND else "wb")
        except BaseException:
            os.close(fd)
            raise

    @contextmanager
    def _place(self, path: str) -> Iterator[tuple[int, str]]:
        """The folder that the last name of `path` is in, and that name; "" for the folder itself."""
        *above, name = steps(path) or [""]
        fd = os.dup(self._fd)
        try:
            for each in above:
                inner = _open(each, _FOLDER | os.O_NOFOLLOW, fd, path)
                os.close(fd)
                fd = inner
            yield fd, name
        finally:
            os.close(fd)


def _open(name: str, flags: int, folder: int, path: str) -> int:
    try:
        return os.open(name, flags, 0o666, dir_fd=folder)
    except OSError as error:
        number = error.errno or errno.EIO
        # A link, which O_DIRECTORY calls no folder; a pipe that nobody reads, or a socket
        if number in (errno.ELOOP, errno.ENXIO) or (number == errno.ENOTDIR and _is_link(name, folder)):
            number = errno.EACCES
        raise fail(number, path) from None


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _entry(name: str, found: os.stat_result, path: str) -> Entry:
    """Raises OSError: EACCES for what is neither a file nor a folder."""
    if stat.S_ISDIR(found.st_mode):
        return Entry(name, True, 0, found.st_mtime_ns)
    if stat.S_ISREG(found.st_mode):
        return Entry(name, False, found.st_size, found.st_mtime_ns)
    raise fail(errno.EACCES, path)
