"""The guest's client of the store: each test runs against our store and against Xen's own C daemon."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guest.xen.store import TRANSACTION_TRIES, Store
from guest.xen.store_ring import StoreError
from tests.store_talk import OurRing
from tests.test_xen_store import Ours, Theirs, World, daemon_files
from tests.witness.xenstored import PATIENCE, RingPage

_files = daemon_files  # the fixture

OWN = "/local/domain/1/own"


class Port:
    """What carries the client's bytes: the ring page of domain 1."""

    def __init__(self, ring: OurRing | RingPage, more: Callable[[], bool]) -> None:
        self.ring, self.more = ring, more

    def send(self, raw: bytes) -> None:
        self.ring.send(raw)

    def receive(self) -> bytes:
        return self.ring.receive((self.ring.words[515] - self.ring.words[514]) & 0xFFFFFFFF)

    def wait(self) -> bool:
        return self.more()


class Bench:
    """A client as domain 1, and domain 0 beside it."""

    def __init__(self, world: World) -> None:
        self.zero = world.zero
        ring = world.one.carrier
        assert isinstance(ring, OurRing | RingPage)

        def there() -> bool:
            return ring.words[515] != ring.words[514]

        def more() -> bool:
            if isinstance(ring, OurRing):
                ring.kick()
                return there()
            end = time.monotonic() + PATIENCE
            while not there():  # the daemon is a process of its own
                if time.monotonic() > end:
                    return False
                time.sleep(0.0002)
            return True

        self.store = Store(Port(ring, more), self._ready)
        self.ready = 0
        self.heard: list[str] = []

    def _ready(self) -> None:
        self.ready += 1

    def watch(self, path: str) -> str:
        return self.store.watch(path, self.heard.append)

    def told(self) -> list[str]:
        """What the callbacks have heard; what is on its way comes before the answer to one more question."""
        self.store.get("own")
        self.store.dispatch()
        heard = list(self.heard)
        self.heard.clear()
        return heard


@pytest.fixture(params=["ours", pytest.param("theirs", marks=pytest.mark.witness)])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "ours":
        yield Bench(Ours())
        return
    files, shim = request.getfixturevalue("_files")
    with tempfile.TemporaryDirectory() as folder:
        theirs = Theirs(files, shim, Path(folder))
        yield Bench(theirs)
        theirs.daemon.close()


# -- values ----------------------------------------------------------------------------------------------------------


def test_values_are_written_read_listed_and_removed(bench: Bench) -> None:
    store = bench.store

    store.write("own/state", 4)
    store.write(f"{OWN}/name", "vif ü")

    assert store.read(f"{OWN}/state") == "4"
    assert store.read("own/name") == "vif ü"
    assert sorted(store.directory("own")) == ["name", "state"]
    assert store.number("own/state", 0) == 4
    assert store.number("own/name", 7) == 7
    store.remove("own/name")
    store.remove("own/name")
    assert store.directory("own") == ["state"]


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("ENOENT", lambda store: store.read("own/nothing")),
        ("ENOENT", lambda store: store.directory("own/nothing")),
        ("EACCES", lambda store: store.read("/secret/key")),
        ("EACCES", lambda store: store.write("name", "x")),
        ("EINVAL", lambda store: store.write("own/a b", "x")),
        ("EINVAL", lambda store: store.read("own/a\0b")),
        ("E2BIG", lambda store: store.write("own/long", "x" * 5000)),
        ("ENOENT", lambda store: store.read("own/x", 4000)),
        ("ENOENT", lambda store: store.unwatch("own", "nothing")),
    ],
)
def test_refusals_have_the_names_of_the_wire(bench: Bench, name: str, act: Callable[[Store], object]) -> None:
    with pytest.raises(StoreError) as raised:
        act(bench.store)

    assert raised.value.name == name
    assert bench.store.get("own/nothing", "still there") == "still there"


def test_a_watch_that_is_set_is_refused_a_second_time(bench: Bench) -> None:
    token = bench.watch("own")

    with pytest.raises(StoreError) as raised:
        bench.store.watch("own", bench.heard.append, token)

    assert raised.value.name == "EEXIST"


# -- transactions ----------------------------------------------------------------------------------------------------


def test_a_transaction_takes_effect_as_a_whole(bench: Bench) -> None:
    store = bench.store

    def work(tx: int) -> str:
        store.write("own/one", 1, tx)
        store.write("own/two", 2, tx)
        assert bench.zero.read(f"{OWN}/one") == "ENOENT", "nobody sees half of it"
        return store.read("own/one", tx)

    assert store.transaction(work) == "1"
    assert [store.read(f"own/{name}") for name in ("one", "two")] == ["1", "2"]


def test_a_transaction_that_somebody_got_in_between_is_done_again(bench: Bench) -> None:
    store = bench.store
    store.write("own/count", 1)
    tries: list[int] = []

    def work(tx: int) -> None:
        count = store.number("own/count", 0, tx)
        tries.append(count)
        if len(tries) == 1:
            bench.zero.write(f"{OWN}/count", "10")
        store.write("own/count", count + 1, tx)

    store.transaction(work)

    assert tries == [1, 10]
    assert store.read("own/count") == "11"
    assert store.counters["transactions_again"] == 1


def test_a_transaction_that_never_goes_through_ends(bench: Bench) -> None:
    store = bench.store
    store.write("own/count", 0)
    tries = 0

    def work(tx: int) -> None:
        nonlocal tries
        tries += 1
        store.write("own/count", store.number("own/count", 0, tx) + 1, tx)
        bench.zero.write(f"{OWN}/count", "100")

    with pytest.raises(StoreError) as raised:
        store.transaction(work)

    assert (raised.value.name, tries) == ("EAGAIN", TRANSACTION_TRIES)
    assert store.read("own/count") == "100"


def test_what_fails_inside_is_told_and_leaves_nothing(bench: Bench) -> None:
    store = bench.store

    def work(tx: int) -> None:
        store.write("own/half", 1, tx)
        store.read("/secret/key", tx)

    for _ in range(30):  # more than may be open at once
        with pytest.raises(StoreError) as raised:
            store.transaction(work)
        assert raised.value.name == "EACCES"
    assert store.get("own/half", "none") == "none"


# -- watches ---------------------------------------------------------------------------------------------------------


def test_a_watch_is_called_once_at_first_and_then_for_each_change(bench: Bench) -> None:
    bench.watch("/local/domain/1/own")
    assert bench.told() == [OWN]

    bench.zero.write(f"{OWN}/state", "2")
    bench.zero.write(f"{OWN}/state", "4")
    bench.zero.write("/secret/key", "43")

    assert bench.told() == [f"{OWN}/state", f"{OWN}/state"]
    assert bench.ready == bench.store.counters["watch_events"] == 3


def test_a_relative_watch_is_told_relative_paths(bench: Bench) -> None:
    bench.watch("own")

    bench.zero.write(f"{OWN}/state", "2")

    assert bench.told() == ["own", "own/state"]


def test_events_wait_for_dispatch_and_keep_their_order(bench: Bench) -> None:
    bench.watch("own/a")
    bench.watch("own/b")

    for name in ("b", "a", "b"):
        bench.zero.write(f"{OWN}/{name}", "x")
    assert bench.store.get("own/a") == "x"
    assert bench.heard == [], "never from inside a call"

    assert bench.told() == ["own/a", "own/b", "own/b", "own/a", "own/b"]


def test_an_ended_watch_hears_nothing_more(bench: Bench) -> None:
    token = bench.watch("own")
    bench.zero.write(f"{OWN}/state", "2")

    bench.store.unwatch("own", token)
    bench.zero.write(f"{OWN}/state", "3")

    assert bench.told() == []
    assert bench.store.counters["unknown_watches"] == 2, "the first event, and that of the change before the end"


def test_a_callback_may_ask_the_store(bench: Bench) -> None:
    seen: list[str] = []
    bench.store.watch("own/state", lambda path: seen.append(bench.store.get(path, "none")))
    bench.store.dispatch()
    bench.zero.write(f"{OWN}/state", "4")

    bench.told()

    assert seen == ["none", "4"]
