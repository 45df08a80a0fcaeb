"""The store's tree: nodes by path, who may see and change them, and transactions over it.

Promises:
- A node exists only if its parent does. Nodes are values: a change puts a new one in its place, with a generation that
  nothing had before.
- A transaction works on copies. It ends well only if every node that it has looked at, also one that was missing, is
  still of the same generation; then all of it takes effect at once.

Read first: Xen's docs/misc/xenstore.txt. Permissions: the first entry names the owner, who may do everything, and what
everybody else may; later entries say what one domain may.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hw.abi.xen_store import XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX
from hw.xen.ports import StoreError

READ, WRITE, OWNER = 1, 2, 4
_LETTERS = {"n": 0, "r": READ, "w": WRITE, "b": READ | WRITE}
_WORDS = {bits: letter for letter, bits in _LETTERS.items()}
_PATH = re.compile(r"/|(/[A-Za-z0-9_@+-]+)+")
_DOMAIN = re.compile(r"/local/domain/\d{1,5}/")

Permission = tuple[int, int]  # domain, what it may: READ | WRITE


@dataclass(frozen=True, slots=True)
class Node:
    """One node as it is at some moment."""

    value: bytes
    permissions: tuple[Permission, ...]
    children: tuple[str, ...]
    generation: int

    @property
    def owner(self) -> int:
        """The domain that may do everything with it."""
        return self.permissions[0][0]

    def allows(self, domid: int) -> int:
        """READ, WRITE, OWNER: what a domain without privileges may."""
        if domid == self.owner:
            return READ | WRITE | OWNER
        for who, bits in self.permissions[1:]:
            if who == domid:
                return bits
        return self.permissions[0][1]


def check_path(path: str) -> None:
    """Raises StoreError("EINVAL") for what cannot be the absolute path of a node."""
    local = _DOMAIN.match(path)
    relative = len(path) - (local.end() if local else 0)
    if len(path) > XENSTORE_ABS_PATH_MAX or relative > XENSTORE_REL_PATH_MAX or not _PATH.fullmatch(path):
        raise StoreError("EINVAL", path[:64])


def parent_of(path: str) -> str:
    """The path one up; the root's is the root."""
    return path.rpartition("/")[0] or "/"


def child_path(path: str, name: str) -> str:
    """The path of a child."""
    return f"/{name}" if path == "/" else f"{path}/{name}"


def is_below(path: str, top: str) -> bool:
    """Whether `path` is `top` or lies below it."""
    return top in (path, "/") or path.startswith(top + "/")


def permissions_of(words: Iterable[str]) -> tuple[Permission, ...]:
    """Permissions from words such as "n0", "r7". Raises StoreError("EINVAL")."""
    found = []
    for word in words:
        if word[:1] not in _LETTERS or not word[1:].isascii() or not word[1:].isdigit() or int(word[1:]) > 0xFFFF:
            raise StoreError("EINVAL", word[:16])
        found.append((int(word[1:]), _LETTERS[word[0]]))
    if not found:
        raise StoreError("EINVAL")
    return tuple(found)


def permission_words(permissions: Iterable[Permission]) -> list[str]:
    """The same as words."""
    return [f"{_WORDS[bits]}{domid}" for domid, bits in permissions]


class Tree:
    """The nodes that everybody sees."""

    def __init__(self) -> None:
        self.generation = 0
        self._owned: Counter[int] = Counter()  # nodes by owner
        self._nodes: dict[str, Node] = {}
        self.put("/", b"", ((0, 0),), ())

    def get(self, path: str) -> Node | None:
        """The node at `path`."""
        return self._nodes.get(path)

    def owned_by(self, domid: int) -> int:
        """How many nodes a domain owns."""
        return self._owned[domid]

    def put(self, path: str, value: bytes, permissions: tuple[Permission, ...], children: tuple[str, ...]) -> None:
        """Put a node in place, as a new generation of it."""
        old = self._nodes.get(path)
        if old is not None:
            self._owned[old.owner] -= 1
        self.generation += 1
        node = self._nodes[path] = Node(value, permissions, children, self.generation)
        self._owned[node.owner] += 1

    def delete(self, path: str) -> None:
        """Take a node out; its children and its parent's list are the caller's business."""
        node = self._nodes.pop(path, None)
        if node is not None:
            self._owned[node.owner] -= 1


class Transaction:
    """A client's own view of the tree.

    Args:
        most: how many nodes it may look at; one too many spoils it. None: any number.

    Attributes:
        seen: each node that was looked at, as it was at first; None: it was missing.
        changes: what to tell watches of if it ends well: whether only watches on just that path hear of it.
    """

    def __init__(self, tree: Tree, most: int | None = None) -> None:
        self._tree = tree
        self._most = most
        self._spoiled = False
        self.seen: dict[str, Node | None] = {}
        self._copies: dict[str, Node | None] = {}
        self._changed: dict[str, None] = {}  # in the order of the first change
        self._gained: Counter[int] = Counter()  # nodes by owner, fewer than there were below 0
        self.changes: dict[str, bool] = {}

    def get(self, path: str) -> Node | None:
        """The node at `path` as this transaction sees it. Raises StoreError("ENOSPC") for one too many."""
        if path not in self._copies:
            if self._most is not None and len(self._copies) >= self._most:
                self._spoiled = True
                raise StoreError("ENOSPC", "too many nodes in a transaction")
            self.seen[path] = self._copies[path] = self._tree.get(path)
        return self._copies[path]

    def owned_by(self, domid: int) -> int:
        """How many nodes a domain owns, as this transaction sees it."""
        return self._tree.owned_by(domid) + self._gained[domid]

    def put(self, path: str, value: bytes, permissions: tuple[Permission, ...], children: tuple[str, ...]) -> None:
        """Put a node in place, for this transaction."""
        old = self.get(path)
        if old is not None:
            self._gained[old.owner] -= 1
        self._tree.generation += 1
        node = self._copies[path] = Node(value, permissions, children, self._tree.generation)
        self._changed[path] = None
        self._gained[node.owner] += 1

    def delete(self, path: str) -> None:
        """Take a node out, for this transaction."""
        old = self.get(path)
        if old is not None:
            self._gained[old.owner] -= 1
        self._copies[path] = None
        self._changed[path] = None

    def check(self) -> None:
        """Raises StoreError: "EAGAIN" when something that it looked at has changed, "ENOMEM" when it was spoiled."""
        if self._spoiled:
            raise StoreError("ENOMEM")
        if any(self._tree.get(path) is not node for path, node in self.seen.items()):  # a change puts a new one
            raise StoreError("EAGAIN")

    def commit(self) -> None:
        """Make it everybody's, after `check`."""
        for path in self._changed:
            node = self._copies[path]
            if node is None:
                self._tree.delete(path)
            else:
                self._tree.put(path, node.value, node.permissions, node.children)


View = Tree | Transaction
