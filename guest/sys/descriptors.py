"""The descriptor table of one guest: small integers for open files, the lowest free one first.

0, 1 and 2 are left to the console, so the first file gets 3. The table belongs to the guest, not to a process: what a
program leaves open stays open until it is closed or the guest ends.
"""

from __future__ import annotations

from collections.abc import Iterator

from guest.sys.fault import fault
from guest.sys.files import File

FIRST = 3
LIMIT = 1024


class DescriptorTable:
    """Which file each descriptor refers to.

    Args:
        limit: one more than the highest descriptor, as RLIMIT_NOFILE. first: the lowest.
    """

    def __init__(self, limit: int = LIMIT, first: int = FIRST) -> None:
        self.limit = limit
        self._first = first
        self._files: dict[int, File] = {}
        self._cloexec: set[int] = set()
        self._lowest = first  # no descriptor below this one is free

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._files))

    def __contains__(self, fd: object) -> bool:
        return fd in self._files

    def file(self, fd: int) -> File:
        """The file behind `fd`. Raises OSError: EBADF."""
        found = self._files.get(fd)
        if found is None:
            raise fault("EBADF")
        return found

    def check_room(self) -> None:
        """Raises OSError: EMFILE, when `install` would."""
        if len(self._files) >= self.limit - self._first:
            raise fault("EMFILE")

    def install(self, file: File, lowest: int = 0, *, cloexec: bool = False) -> int:
        """Give `file` the lowest free descriptor that is not below `lowest`.

        Raises OSError: EMFILE when none is left (the file is released), EINVAL when `lowest` is out of range.
        """
        file.hold()
        try:
            fd = self._take(lowest)
        except OSError:
            file.drop()
            raise
        self._files[fd] = file
        if cloexec:
            self._cloexec.add(fd)
        return fd

    def dup(self, fd: int, lowest: int = 0, *, cloexec: bool = False) -> int:
        """Another descriptor for the file behind `fd`. Raises OSError: EBADF, EMFILE, EINVAL."""
        return self.install(self.file(fd), lowest, cloexec=cloexec)

    def dup2(self, fd: int, target: int) -> int:
        """Make `target` refer to the file behind `fd`, closing what it was. Raises OSError: EBADF."""
        file = self.file(fd)
        if not self._first <= target < self.limit:
            raise fault("EBADF")
        if fd != target:
            file.hold()
            if target in self._files:
                self.close(target)
            self._files[target] = file
        return target

    def close(self, fd: int) -> None:
        """Free `fd`, and the file when it was the last that held it. Raises OSError: EBADF."""
        file = self._files.pop(fd, None)
        if file is None:
            raise fault("EBADF")
        self._cloexec.discard(fd)
        self._lowest = min(self._lowest, fd)
        file.drop()

    def close_all(self) -> int:
        """Close every descriptor; how many there were."""
        count = len(self._files)
        for fd in list(self._files):
            self.close(fd)
        return count

    def cloexec(self, fd: int) -> bool:
        """Whether the descriptor has FD_CLOEXEC. Raises OSError: EBADF."""
        self.file(fd)
        return fd in self._cloexec

    def set_cloexec(self, fd: int, on: bool) -> None:
        """Set or clear FD_CLOEXEC; nothing is ever executed here, so it is only kept. Raises OSError: EBADF."""
        self.file(fd)
        if on:
            self._cloexec.add(fd)
        else:
            self._cloexec.discard(fd)

    def _take(self, lowest: int) -> int:
        if lowest < 0 or lowest >= self.limit:
            raise fault("EINVAL")
        fd = max(lowest, self._lowest)
        while fd in self._files:
            fd += 1
        if fd >= self.limit:
            raise fault("EMFILE")
        if lowest <= self._lowest:
            self._lowest = fd + 1
        return fd
