"""The hosts table: names that are known without asking anybody. As /etc/hosts; RFC 6761 §6.3 for localhost.

Names are compared without case and without a dot at the end. `localhost` and all names below it are this host, whatever
the table says.
"""

from __future__ import annotations

from guest.net.address import V4_LOOPBACK, V6_LOOPBACK, format_address, is_v4, parse_address

MAX_ENTRIES = 4096


def plain(name: str) -> str:
    """The form in which names are compared."""
    return name.rstrip(".").lower()


class Hosts:
    """Names and addresses; of several addresses of a name the first added is the first found."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, tuple[str, ...]]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, address: str | int, *names: str) -> None:
        """Let `names` mean `address`; the first is what the address is called.

        Raises AddressError for what is no address, ValueError without a name or when the table is full.
        """
        number = parse_address(address) if isinstance(address, str) else address
        cleaned = tuple(plain(name) for name in names)
        if not cleaned or not all(cleaned):
            raise ValueError(f"{format_address(number)} needs a name")
        if len(self._rows) >= MAX_ENTRIES:
            raise ValueError(f"the hosts table has {MAX_ENTRIES} rows already")
        self._rows.append((number, cleaned))

    def remove(self, name: str) -> bool:
        """Forget every row that has `name`; whether there was one."""
        before = len(self._rows)
        self._rows = [row for row in self._rows if plain(name) not in row[1]]
        return len(self._rows) < before

    def load(self, text: str) -> int:
        """Add what a file like /etc/hosts says; how many rows. Lines that are none are passed over."""
        added = 0
        for line in text.splitlines():
            words = line.partition("#")[0].split()
            try:
                self.add(words[0], *words[1:])
            except (IndexError, ValueError):
                continue
            added += 1
        return added

    def lookup(self, name: str, family: int = 0) -> list[int] | None:
        """The addresses of `name` in a family (4, 6, or 0 for both); None where the table does not know the name.

        An empty list says that the name is known and has no address in that family.
        """
        wanted = plain(name)
        if wanted == "localhost" or wanted.endswith(".localhost"):
            found = [V4_LOOPBACK, V6_LOOPBACK]
        else:
            found = list(dict.fromkeys(address for address, names in self._rows if wanted in names))
            if not found:
                return None
        return [address for address in found if family in (0, 4 if is_v4(address) else 6)]

    def reverse(self, address: int) -> str | None:
        """What `address` is called, or None."""
        for known, names in self._rows:
            if known == address:
                return names[0]
        return "localhost" if address in (V4_LOOPBACK, V6_LOOPBACK) else None


def parse_entries(text: str) -> list[tuple[str, int]]:
    """The pairs in `name@address,name@address`, as the command line writes them. Raises ValueError."""
    entries = []
    for item in text.split(","):
        name, _, address = item.partition("@")
        if not plain(name) or not address:
            raise ValueError(f"{item!r} is not name@address")
        entries.append((name, parse_address(address)))
    return entries
