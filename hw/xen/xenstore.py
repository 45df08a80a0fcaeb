"""The store as a server: operations on the tree, watches, limits. It knows messages, not how they travel.

Promises:
- Every request gets one answer: its own type, or XS_ERROR with the name of an error. What a request contains cannot
  raise anything else.
- An event follows the answer to the request that caused it, and reaches only who may read the node.
- What clients without privileges can pile up is bounded: nodes, size of a node, watches, transactions, permissions.

Read first: Xen's docs/misc/xenstore.txt, `io/xs_wire.h`.

Sections: `StoreClient`, `Store`: requests, reading and writing, watches, transactions, domains.
"""

from __future__ import annotations

from collections.abc import Callable

from hw.abi import xen_store as xs
from hw.abi.xen_bus import domain_path
from hw.xen import store_tree as tree
from hw.xen.ports import StoreError
from hw.xen.store_tree import Node, Transaction, Tree, View

# Limits of clients without privileges, as the C daemon has them by default.
NODES_MAX = 1000
VALUE_MAX = 2048
WATCHES_MAX = 128
TRANSACTIONS_MAX = 10
TRANSACTION_NODES_MAX = 1024
PERMISSIONS_MAX = 5

OK = b"OK\0"


class StoreClient:
    """Somebody who talks to the store.

    Args:
        domid: which domain it is; domain 0 has all privileges.
        send: called with type, request id, transaction and payload of each message to the client.
    """

    def __init__(self, domid: int, send: Callable[[int, int, int, bytes], None]) -> None:
        self.domid = domid
        self.send = send
        self.watches: dict[tuple[str, str], str] = {}  # (absolute path, token) → what its own relative paths begin with
        self.transactions: dict[int, Transaction] = {}

    @property
    def privileged(self) -> bool:
        """Whether permissions and limits do not hold for it."""
        return self.domid == 0

    def forget(self) -> None:
        """End its watches and transactions."""
        self.watches.clear()
        self.transactions.clear()


class Store:
    """The store and its clients."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.clients: list[StoreClient] = []
        self.introduced: set[int] = {0}
        self._events: list[tuple[StoreClient, str, str]] = []
        self._next_transaction = 1
        self._operations: dict[int, Callable[[StoreClient, View, bytes], bytes]] = {
            xs.XS_DIRECTORY: self._directory,
            xs.XS_DIRECTORY_PART: self._directory_part,
            xs.XS_READ: self._read,
            xs.XS_WRITE: self._write,
            xs.XS_MKDIR: self._mkdir,
            xs.XS_RM: self._rm,
            xs.XS_GET_PERMS: self._get_permissions,
            xs.XS_SET_PERMS: self._set_permissions,
            xs.XS_WATCH: self._watch,
            xs.XS_UNWATCH: self._unwatch,
            xs.XS_RESET_WATCHES: self._reset_watches,
            xs.XS_GET_DOMAIN_PATH: self._domain_path,
            xs.XS_IS_DOMAIN_INTRODUCED: self._is_introduced,
        }

    # -- requests --------------------------------------------------------------------------------------------------

    def request(self, client: StoreClient, operation: int, req_id: int, tx_id: int, payload: bytes) -> None:
        """Handle one message and send the answer, then the events that it caused."""
        try:
            answer = self._handle(client, operation, tx_id, payload)
        except StoreError as error:
            operation, answer = xs.XS_ERROR, error.name.encode() + b"\0"
        client.send(operation, req_id, tx_id, answer)
        self._flush()

    def _handle(self, client: StoreClient, operation: int, tx_id: int, payload: bytes) -> bytes:
        if operation == xs.XS_TRANSACTION_START:
            return self._start(client, tx_id)
        if operation == xs.XS_TRANSACTION_END:
            return self._end(client, tx_id, payload)
        handler = self._operations.get(operation)
        if handler is None:
            raise StoreError("ENOSYS" if client.privileged or operation not in xs.OPERATION_NAMES else "EACCES")
        view: View = self.tree
        if tx_id and operation not in (xs.XS_WATCH, xs.XS_UNWATCH, xs.XS_RESET_WATCHES):
            if tx_id not in client.transactions:
                raise StoreError("ENOENT", "no such transaction")
            view = client.transactions[tx_id]
        answer = handler(client, view, payload)
        if len(answer) > xs.XENSTORE_PAYLOAD_MAX:
            raise StoreError("E2BIG")
        return answer

    def _flush(self) -> None:
        events, self._events = self._events, []
        for client, path, token in dict.fromkeys(events):  # two watches may share a token; once is enough
            payload = path.encode("latin-1") + b"\0" + token.encode("latin-1") + b"\0"
            if len(payload) <= xs.XENSTORE_PAYLOAD_MAX:  # with a long token it may not fit into a message
                client.send(xs.XS_WATCH_EVENT, 0, 0, payload)

    def _absolute(self, client: StoreClient, path: str) -> str:
        """The absolute path that the client means. Raises StoreError for what is no path."""
        if not path.startswith("/"):
            if len(path) > xs.XENSTORE_REL_PATH_MAX:
                raise StoreError("EINVAL")
            path = f"{domain_path(client.domid)}/{path}"
        tree.check_path(path)
        return path

    def _path(self, client: StoreClient, payload: bytes) -> str:
        """The path of a request that consists of just one."""
        (path,) = _strings(payload, 1)
        return self._absolute(client, path)

    def _node(self, client: StoreClient, view: View, path: str, need: int) -> Node:
        """The node at `path`, if it is there and the client may do all of `need`. Raises StoreError."""
        node = view.get(path)
        if node is not None and (client.privileged or node.allows(client.domid) & need == need):
            return node
        if node is not None:
            raise StoreError("EACCES", path)
        # Whether a node is missing is told only to those who could see it if it were there.
        above = tree.parent_of(path)
        while (parent := view.get(above)) is None:
            above = tree.parent_of(above)
        known = client.privileged or parent.allows(client.domid) & need
        raise StoreError("ENOENT" if known else "EACCES", path)

    # -- reading and writing -----------------------------------------------------------------------------------------

    def _read(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        return self._node(client, view, self._path(client, payload), tree.READ).value

    def _directory(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        return _join(self._node(client, view, self._path(client, payload), tree.READ).children)

    def _directory_part(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        """As many whole names as fit, from a byte offset on; an empty name ends the whole list."""
        path, offset = _strings(payload, 2)
        node = self._node(client, view, self._absolute(client, path), tree.READ)
        if not offset.isascii() or not offset.isdigit():
            raise StoreError("EINVAL")
        names = _join(node.children)
        answer = str(node.generation).encode() + b"\0"
        at = int(offset)
        if at >= len(names):
            return answer + b"\0"
        room = xs.XENSTORE_PAYLOAD_MAX - len(answer) - 1
        part = names[at:] if len(names) - at <= room else names[at : names.rfind(b"\0", at, at + room) + 1]
        return answer + part + (b"\0" if at + len(part) == len(names) else b"")

    def _write(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        name, zero, value = payload.partition(b"\0")
        if not zero:
            raise StoreError("EINVAL")
        self._store(client, view, self._absolute(client, name.decode("latin-1")), value)
        return OK

    def _mkdir(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        self._store(client, view, self._path(client, payload), None)
        return OK

    def _store(self, client: StoreClient, view: View, path: str, value: bytes | None) -> None:
        """Set the value of a node, made with its parents if it is missing; None only makes it."""
        try:
            node = self._node(client, view, path, tree.WRITE)
        except StoreError as error:
            if error.name != "ENOENT":
                raise
            node = self._create(client, view, path, value or b"")
        else:
            if value is None:
                return
            self._check_size(client, value)
            view.put(path, value, node.permissions, node.children)
        self._changed(view, path, node)

    def _check_size(self, client: StoreClient, value: bytes) -> None:
        if not client.privileged and len(value) > VALUE_MAX:
            raise StoreError("ENOSPC", "value too long")

    def _create(self, client: StoreClient, view: View, path: str, value: bytes) -> Node:
        """Make a node and the parents that it lacks; each takes over its parent's permissions, with a new owner."""
        self._check_size(client, value)
        missing = [path]
        while (parent := view.get(tree.parent_of(missing[-1]))) is None:
            missing.append(tree.parent_of(missing[-1]))
        permissions = parent.permissions
        if not client.privileged:
            permissions = ((client.domid, permissions[0][1]), *permissions[1:])
            if view.owned_by(client.domid) + len(missing) > NODES_MAX:
                raise StoreError("ENOSPC", "too many nodes")
        for each in reversed(missing):
            above = tree.parent_of(each)
            parent = view.get(above)
            if parent is not None:
                names = (*parent.children, each.rpartition("/")[2])
                view.put(above, parent.value, parent.permissions, names)
            view.put(each, value if each == path else b"", permissions, ())
        made = view.get(path)
        if made is None:
            raise StoreError("EIO", path)
        return made

    def _rm(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        path = self._path(client, payload)
        try:
            node = self._node(client, view, path, tree.WRITE)
        except StoreError as error:
            if error.name == "ENOENT" and view.get(tree.parent_of(path)) is not None:
                return OK
            raise
        if path == "/":
            raise StoreError("EINVAL", "the root stays")
        above = tree.parent_of(path)
        parent = view.get(above)
        going = [(path, node)]
        for at, each in going:  # grows while it is gone through: a guest's nodes may lie a thousand deep
            for name in each.children:
                child = view.get(tree.child_path(at, name))
                if child is not None:
                    going.append((tree.child_path(at, name), child))
        for at, each in going:
            self._changed(view, at, each, exact=at != path)
        if parent is not None:
            name = path.rpartition("/")[2]
            names = tuple(each for each in parent.children if each != name)
            view.put(above, parent.value, parent.permissions, names)
        for at, _ in going:
            view.delete(at)
        return OK

    def _get_permissions(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        node = self._node(client, view, self._path(client, payload), tree.READ)
        return _join(tree.permission_words(node.permissions))

    def _set_permissions(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        path, *words = _strings(payload)
        path = self._absolute(client, path)
        permissions = tree.permissions_of(words)
        node = self._node(client, view, path, tree.WRITE | tree.OWNER)
        if not client.privileged:
            if permissions[0][0] != node.owner:
                raise StoreError("EPERM", "a node cannot be given away")
            if len(permissions) > PERMISSIONS_MAX:
                raise StoreError("ENOSPC", "too many permissions")
        view.put(path, node.value, permissions, node.children)
        self._changed(view, path, node)
        return OK

    # -- watches -------------------------------------------------------------------------------------------------------

    def _watch(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        path, token = _strings(payload, 2, or_more=True)[:2]
        base = "" if path.startswith(("/", "@")) else domain_path(client.domid) + "/"
        absolute = base + path
        if not absolute.startswith("@"):
            absolute = self._absolute(client, path)
        if (absolute, token) in client.watches:
            raise StoreError("EEXIST")
        if not client.privileged and len(client.watches) >= WATCHES_MAX:
            raise StoreError("E2BIG", "too many watches")
        client.watches[absolute, token] = base
        self._events.append((client, path, token))
        return OK

    def _unwatch(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        path, token = _strings(payload, 2, or_more=True)[:2]
        absolute = path if path.startswith("@") else self._absolute(client, path)
        if client.watches.pop((absolute, token), None) is None:
            raise StoreError("ENOENT")
        return OK

    def _reset_watches(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        client.forget()
        return OK

    def _changed(self, view: View, path: str, old: Node | None, *, exact: bool = False) -> None:
        """A node that was `old` was changed or is about to go: tell watches, or note it for the end of the transaction.

        With `exact` only watches on just that path hear of it.
        """
        if isinstance(view, Transaction):
            view.changes[path] = exact
        else:
            self._fire(path, old, exact)

    def _fire(self, path: str, old: Node | None, exact: bool) -> None:
        """Tell of a node those who might read it before or may now, and those who may read its parent."""
        nodes = [node for node in (old, self.tree.get(path), self.tree.get(tree.parent_of(path))) if node is not None]
        for client in self.clients:
            domid = client.domid
            seen = client.privileged or any(node.allows(domid) & tree.READ for node in nodes)
            for (top, token), base in client.watches.items() if seen else ():
                if (path == top) if exact else tree.is_below(path, top):
                    self._events.append((client, path[len(base) :], token))

    def fire_special(self, name: str) -> None:
        """@introduceDomain or @releaseDomain; only clients with privileges hear of it."""
        for client in self.clients:
            for top, token in client.watches if client.privileged else ():
                if top == name:
                    self._events.append((client, name, token))
        self._flush()

    # -- transactions ----------------------------------------------------------------------------------------------

    def _start(self, client: StoreClient, tx_id: int) -> bytes:
        if tx_id:
            raise StoreError("EBUSY", "a transaction inside a transaction")
        if not client.privileged and len(client.transactions) >= TRANSACTIONS_MAX:
            raise StoreError("ENOSPC", "too many transactions")
        while not self._next_transaction or self._next_transaction in client.transactions:
            self._next_transaction = (self._next_transaction + 1) & 0xFFFFFFFF
        number = self._next_transaction
        self._next_transaction = (number + 1) & 0xFFFFFFFF
        most = None if client.privileged else TRANSACTION_NODES_MAX
        client.transactions[number] = Transaction(self.tree, most)
        return str(number).encode() + b"\0"

    def _end(self, client: StoreClient, tx_id: int, payload: bytes) -> bytes:
        if payload not in (b"T\0", b"F\0"):
            raise StoreError("EINVAL")
        transaction = client.transactions.pop(tx_id, None)
        if transaction is None:
            raise StoreError("ENOENT", "no such transaction")
        if payload == b"T\0":
            transaction.check()
            if not client.privileged and transaction.owned_by(client.domid) > NODES_MAX:
                raise StoreError("ENOSPC", "too many nodes")
            transaction.commit()
            for path, exact in transaction.changes.items():
                self._fire(path, transaction.seen[path], exact)
        return OK

    # -- domains -------------------------------------------------------------------------------------------------------

    def _domain_path(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        return domain_path(_domid(payload)).encode() + b"\0"

    def _is_introduced(self, client: StoreClient, view: View, payload: bytes) -> bytes:
        return b"T\0" if _domid(payload) in self.introduced else b"F\0"

    def introduce(self, domid: int) -> None:
        """A domain is in communication with the store from now on."""
        self.introduced.add(domid)
        self.fire_special("@introduceDomain")

    def release(self, domid: int) -> None:
        """A domain is gone: its clients' watches and transactions end."""
        self.introduced.discard(domid)
        self.forget(domid)
        self.clients = [client for client in self.clients if client.domid != domid]
        self.fire_special("@releaseDomain")

    def forget(self, domid: int) -> None:
        """End the watches and transactions of a domain's clients."""
        for client in self.clients:
            if client.domid == domid:
                client.forget()


def _strings(payload: bytes, count: int | None = None, *, or_more: bool = False) -> list[str]:
    """The zero-terminated strings of a payload. Raises StoreError("EINVAL") when they are not `count`."""
    if not payload.endswith(b"\0"):
        raise StoreError("EINVAL", "no zero at the end")
    words = payload[:-1].decode("latin-1").split("\0")
    if count is not None and (len(words) < count or (len(words) > count and not or_more)):
        raise StoreError("EINVAL", f"{len(words)} words")
    return words


def _join(words: tuple[str, ...] | list[str]) -> bytes:
    return b"".join(word.encode("latin-1") + b"\0" for word in words)


def _domid(payload: bytes) -> int:
    (text,) = _strings(payload, 1)
    if not text.isascii() or not text.isdigit() or int(text) > 0xFFFF:
        raise StoreError("EINVAL")
    return int(text)
