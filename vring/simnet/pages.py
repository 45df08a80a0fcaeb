"""The pages of example.com, as a folder that nobody can write to."""

from __future__ import annotations

import errno
import io
from collections.abc import Mapping
from typing import BinaryIO

from guest.files import READ, Entry, fail, steps

LINES = 3000  # of big.txt: all different, so that a piece out of place shows
CHANGED = 1_893_456_000_000_000_000  # 2030-01-01, when the virtual clock begins; in nanoseconds

INDEX = b"""<!DOCTYPE html>
<html lang="en">
<head><title>Example</title></head>
<body>
<h1>Example</h1>
<p>This page comes from a host that exists only in the process that you started.</p>
<p><a href="/about">More about it</a>, <a href="/big.txt">a larger file</a>.</p>
</body>
</html>
"""
ABOUT = b"""<!DOCTYPE html>
<html lang="en">
<head><title>About</title></head>
<body>
<h1>About</h1>
<p>Who asked for /about was sent on to /about/, which is this page.</p>
</body>
</html>
"""
PAGES = {
    "index.html": INDEX,
    "about/index.html": ABOUT,
    "big.txt": b"".join(b"line %6d of a file that is large\n" % number for number in range(LINES)),
}


class PageFolder:
    """A `guest.files.Folder` of fixed pages.

    Args:
        pages: path → contents. Folders are made of the paths.
    """

    label = "the pages of this host"

    def __init__(self, pages: Mapping[str, bytes]) -> None:
        self._pages = dict(pages)
        self._folders: dict[str, set[str]] = {"": set()}
        for path in self._pages:
            names = path.split("/")
            for depth in range(len(names)):
                self._folders.setdefault("/".join(names[:depth]), set()).add(names[depth])

    def stat(self, path: str) -> Entry:
        """See `Folder`."""
        name = "/".join(steps(path))
        if name in self._folders:
            return Entry(name.rpartition("/")[2], True, 0, CHANGED)
        return Entry(name.rpartition("/")[2], False, len(self._page(name)), CHANGED)

    def entries(self, path: str = "") -> list[Entry]:
        """See `Folder`."""
        name = "/".join(steps(path))
        if name not in self._folders:
            self._page(name)
            raise fail(errno.ENOTDIR, path)
        return [self.stat(f"{name}/{each}") for each in sorted(self._folders[name])]

    def open(self, path: str, mode: str = READ) -> BinaryIO:
        """See `Folder`; to write is refused with EROFS."""
        name = "/".join(steps(path))
        if mode != READ:
            raise fail(errno.EROFS, path)
        if name in self._folders:
            raise fail(errno.EISDIR, path)
        return io.BytesIO(self._page(name))

    def _page(self, name: str) -> bytes:
        try:
            return self._pages[name]
        except KeyError:
            raise fail(errno.ENOENT, name) from None
