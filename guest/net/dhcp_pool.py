"""The addresses that a DHCP server gives away, and who has which. RFC 2131 §3.1, §4.3.

Promises:
- An address has one holder at a time, and a client one address.
- What a client had is kept for it until somebody else needs it, so that it gets the same address again.
- Memory is bounded by the number of addresses. To give one away costs a look at all of them at most, and when none is
  left, nothing until the next one is due.

Times are microseconds, handed in.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

MAX_POOL = 1 << 16


@dataclass(slots=True)
class Binding:
    """An address that was given away at some time.

    Attributes:
        client: whose it is or was; b"" for an address that somebody unknown has, which nobody gets.
        mac: the client's MAC address.
        expires: from then on others may have it; None for never.
        confirmed: the client has asked for it after it was offered.
    """

    address: int
    client: bytes
    mac: bytes
    expires: int | None
    confirmed: bool = False

    def active(self, now: int) -> bool:
        """Whether nobody else may have it."""
        return self.expires is None or now < self.expires


class AddressPool:
    """The addresses from `first` to `last`, both included, without those in `excluded`.

    Raises ValueError where they are not in order, or more than MAX_POOL.
    """

    def __init__(self, first: int, last: int, excluded: Collection[int] = ()) -> None:
        if not 0 < last - first + 1 <= MAX_POOL:
            raise ValueError(f"a pool has 1 to {MAX_POOL} addresses, not {last - first + 1}")
        self._first = first
        self._last = last
        self._excluded = frozenset(excluded)
        self._fresh = first  # those before it were given away at least once
        self._by_address: dict[int, Binding] = {}
        self._by_client: dict[bytes, Binding] = {}
        self._full_until: int | None = 0  # before that no address becomes free

    def __contains__(self, address: int) -> bool:
        """Whether it is an address of this pool."""
        return self._first <= address <= self._last and address not in self._excluded

    def active(self, now: int) -> list[Binding]:
        """What nobody else may have now, by address."""
        return [binding for _, binding in sorted(self._by_address.items()) if binding.active(now)]

    def of(self, client: bytes) -> Binding | None:
        """What a client has, or had and nobody else got."""
        return self._by_client.get(client)

    def take(self, client: bytes, mac: bytes, wanted: int | None, now: int, until: int) -> Binding | None:
        """An address for a client, kept for it until `until` at least; None when there is none.

        The one that it has or had, else the wanted one, else one that nobody ever had, else the one that has been free
        for longest (RFC 2131 §4.3.1).
        """
        binding = self._by_client.get(client)
        if binding is None:
            address = wanted if wanted is not None and self.is_free(wanted, now) else self._free(now)
            if address is None:
                return None
            binding = self._claim(address, client, mac, now)
        binding.mac = mac
        if not binding.active(now):
            binding.confirmed = False
        if binding.expires is not None and binding.expires < until:
            binding.expires = until
        return binding

    def is_free(self, address: int, now: int) -> bool:
        """Whether an address of this pool may be given to anybody."""
        if address not in self:
            return False
        binding = self._by_address.get(address)
        return binding is None or not binding.active(now)

    def confirm(self, binding: Binding, expires: int | None) -> None:
        """The client uses it until `expires`."""
        binding.confirmed = True
        self._expire(binding, expires)

    def release(self, binding: Binding, now: int) -> None:
        """The client does not use it any more."""
        binding.confirmed = False
        self._expire(binding, now)

    def quarantine(self, binding: Binding, until: int) -> None:
        """Somebody unknown uses it: nobody gets it before `until`."""
        self._by_client.pop(binding.client, None)
        binding.client = b""
        binding.confirmed = False
        self._expire(binding, until)

    def _expire(self, binding: Binding, when: int | None) -> None:
        binding.expires = when
        if when is not None and (self._full_until is None or when < self._full_until):
            self._full_until = when

    def _claim(self, address: int, client: bytes, mac: bytes, now: int) -> Binding:
        before = self._by_address.get(address)
        if before is not None:
            self._by_client.pop(before.client, None)
        binding = Binding(address, client, mac, now)
        self._by_address[address] = self._by_client[client] = binding
        return binding

    def _free(self, now: int) -> int | None:
        while self._fresh <= self._last:
            address = self._fresh
            self._fresh += 1
            if address in self and address not in self._by_address:
                return address
        if self._full_until is None or now < self._full_until:
            return None
        ends = [(binding.expires, at) for at, binding in self._by_address.items() if binding.expires is not None]
        soonest = min(ends, default=None)
        if soonest is not None and soonest[0] <= now:
            return soonest[1]
        self._full_until = None if soonest is None else soonest[0]
        return None
