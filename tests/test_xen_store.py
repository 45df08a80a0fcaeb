"""The store, as its clients see it: each test runs against ours and against Xen's own C daemon.

Domain 0 is the toolstack; domains 1 and 2 are guests, with a part of the tree each: what docs/misc/xenstore.txt says,
and what it leaves open as the C daemon does it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hw.xen.xenstore import Store
from tests.store_talk import (
    DIRECTORY,
    DIRECTORY_PART,
    DOMAIN_PATH,
    END,
    GET_PERMS,
    INTRODUCE,
    IS_INTRODUCED,
    MKDIR,
    READ,
    RESET_WATCHES,
    RM,
    SET_PERMS,
    START,
    UNWATCH,
    WATCH,
    WRITE,
    Direct,
    OurRing,
    Talker,
)  # fmt: skip
from tests.witness.xenstored import Xenstored, built_shim, unpacked

OK = b"OK\0"


class World(Protocol):
    """A store with domain 0 and two guests."""

    zero: Talker
    one: Talker
    two: Talker


class Ours:
    def __init__(self) -> None:
        self.store = Store()
        self.zero = Talker(Direct(self.store))
        self.one, self.two = (Talker(OurRing(self.store, domid)) for domid in (1, 2))
        furnish(self.zero)


class Theirs:
    def __init__(self, files: Path, shim: Path, folder: Path) -> None:
        self.daemon = Xenstored(files, shim, folder)
        self.zero = Talker(self.daemon.zero)
        self.one, self.two = (Talker(self.daemon.domain(domid)) for domid in (1, 2))
        furnish(self.zero)


def furnish(zero: Talker) -> None:
    """What the toolstack makes for two guests."""
    for domid in (1, 2):
        path = f"/local/domain/{domid}"
        assert zero.words(MKDIR, path) == OK
        assert zero.words(SET_PERMS, path, "n0", f"r{domid}") == OK
        assert zero.words(MKDIR, f"{path}/own") == OK
        assert zero.words(SET_PERMS, f"{path}/own", f"n{domid}") == OK
    assert zero.write("/secret/key", "42") == OK


@pytest.fixture(scope="module")
def daemon_files(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    cache = getattr(pytestconfig, "cache", None)
    chosen = os.environ.get("VRING_CACHE")
    if chosen is None:
        chosen = cache.mkdir("xenstored") if cache is not None else tmp_path_factory.mktemp("xenstored")
    return unpacked(Path(chosen)), built_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(params=["ours", pytest.param("theirs", marks=pytest.mark.witness)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "ours":
        yield Ours()
        return
    files, shim = request.getfixturevalue("daemon_files")
    with tempfile.TemporaryDirectory() as folder:
        theirs = Theirs(files, shim, Path(folder))
        yield theirs
        theirs.daemon.close()


# -- reading and writing -----------------------------------------------------------------------------------------------


def test_what_is_written_is_read(world: World) -> None:
    assert world.zero.write("/a/b/c", "value") == OK
    assert world.zero.read("/a/b/c") == b"value"
    assert world.zero.read("/a/b") == b"", "parents are made, empty"
    assert world.zero.words(DIRECTORY, "/a") == b"b\0"
    assert world.zero.write("/a/b/c", "") == OK
    assert world.zero.read("/a/b/c") == b""


def test_children_are_listed_in_the_order_in_which_they_came(world: World) -> None:
    for name in ("z", "a", "m"):
        world.zero.write(f"/list/{name}")
    assert world.zero.words(DIRECTORY, "/list") == b"z\0a\0m\0"
    world.zero.words(RM, "/list/a")
    world.zero.write("/list/a")
    assert world.zero.words(DIRECTORY, "/list") == b"z\0m\0a\0"
    assert world.zero.words(DIRECTORY, "/list/z") == b""


def test_making_a_node_that_is_there_changes_nothing(world: World) -> None:
    world.zero.write("/a", "value")
    assert world.zero.words(MKDIR, "/a") == OK
    assert world.zero.read("/a") == b"value"


def test_removing_takes_all_that_is_below(world: World) -> None:
    world.zero.write("/a/b/c", "1")
    assert world.zero.words(RM, "/a") == OK
    for path in ("/a", "/a/b", "/a/b/c"):
        assert world.zero.read(path) == "ENOENT"
    assert world.zero.words(RM, "/a") == OK, "its parent is there"
    assert world.zero.words(RM, "/a/b") == "ENOENT", "its parent is not"
    assert world.zero.words(RM, "/") == "EINVAL"


def test_a_value_may_be_any_bytes(world: World) -> None:
    value = bytes(range(256)) * 4
    assert world.one.ask(WRITE, b"own/x\0" + value) == OK
    assert world.one.read("own/x") == value


def test_relative_paths_are_below_the_domain(world: World) -> None:
    assert world.one.write("own/x", "1") == OK
    assert world.zero.read("/local/domain/1/own/x") == b"1"
    assert world.two.read("/local/domain/1/own/x") == "EACCES"


@pytest.mark.parametrize(
    "path",
    ["", "//", "/a//b", "/a/", "/a b", "/a\\b", "/\xe4", "/a.b", "a,b", "own//x", "own/", "/" + 3072 * "a", 2049 * "x"],
)
def test_what_is_no_path_is_refused(world: World, path: str) -> None:
    for client in (world.zero, world.one):
        for kind in (READ, DIRECTORY, MKDIR, RM):
            assert client.words(kind, path) == "EINVAL"
        assert client.write(path) == "EINVAL"
        if not path.startswith("@"):
            assert client.words(WATCH, path, "t") == "EINVAL"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (READ, b""), (READ, b"/a"), (READ, b"/a\0/b\0"), (DIRECTORY, b"/a"), (MKDIR, b"/a"), (RM, b"/a"),
        (WRITE, b"/a"), (WRITE, b""), (WATCH, b"/a\0"), (WATCH, b"/a\0t"), (UNWATCH, b"/a\0"), (GET_PERMS, b"/a"),
        (SET_PERMS, b"/a\0"), (SET_PERMS, b"/secret\0x0\0"), (SET_PERMS, b"/secret\0r\0"), (END, b"X\0"), (END, b""),
        (DIRECTORY_PART, b"/a\0"),
    ],
)  # fmt: skip
def test_payloads_of_another_shape_are_refused(world: World, kind: int, payload: bytes) -> None:
    answer = world.zero.ask(kind, payload)
    # The daemon says ENOENT or ENOMEM to some of them, for the path that it has not found in there.
    assert answer == "EINVAL" if isinstance(world, Ours) else answer in ("EINVAL", "ENOENT", "ENOMEM")


@pytest.mark.parametrize("kind", [18 + 2, 23, 99, 0xFFFF])
def test_operations_that_are_none_are_refused(world: World, kind: int) -> None:
    assert world.zero.ask(kind, b"\0") == "ENOSYS"
    assert world.one.ask(kind, b"\0") == "ENOSYS"


def test_a_request_may_come_in_pieces_and_several_at_once(world: World) -> None:
    first = b"\x02\0\0\0\1\0\0\0\0\0\0\0\x0e\0\0\0/local/domain\0"
    second = b"\x0a\0\0\0\2\0\0\0\0\0\0\0\2\0\0\x007\0"
    carrier = world.one.carrier
    carrier.send(first[:3])
    carrier.send(first[3:20])
    carrier.send(first[20:] + second)
    assert carrier.receive(16)[:8] == b"\x10\0\0\0\1\0\0\0"  # an error to the first
    assert carrier.receive(7) == b"EACCES\0"
    assert carrier.receive(16)[:8] == b"\x0a\0\0\0\2\0\0\0"
    assert carrier.receive(16) == b"/local/domain/7\0"


def test_answers_longer_than_the_ring_come_in_pieces(world: World) -> None:
    value = bytes(2000)
    assert world.one.ask(WRITE, b"own/x\0" + value) == OK
    for _ in range(5):
        assert world.one.read("own/x") == value


def test_long_lists_come_in_parts(world: World) -> None:
    names = [f"{number:03d}" + "n" * 40 for number in range(120)]
    for name in names:
        world.zero.write(f"/long/{name}")
    assert world.zero.words(DIRECTORY, "/long") == "E2BIG"
    found, generations, at = b"", set(), 0
    while True:
        part = world.zero.words(DIRECTORY_PART, "/long", str(at))
        assert isinstance(part, bytes)
        assert len(part) <= 4096
        generation, _, rest = part.partition(b"\0")
        generations.add(generation)
        last = rest.endswith(b"\0\0") or rest == b"\0"
        found += rest[:-1] if last else rest
        at = len(found)
        if last:
            break
    assert found == b"".join(name.encode() + b"\0" for name in names)
    assert len(generations) == 1


# -- permissions ---------------------------------------------------------------------------------------------------


def test_guests_see_and_change_only_what_they_may(world: World) -> None:
    assert world.one.read("/secret/key") == "EACCES"
    assert world.one.write("/secret/key", "1") == "EACCES"
    assert world.one.words(RM, "/secret/key") == "EACCES"
    assert world.one.read("/nothing") == "EACCES", "not even whether it is there"
    assert world.zero.words(SET_PERMS, "/secret/key", "n0", "r1") == OK
    assert world.one.read("/secret/key") == b"42"
    assert world.two.read("/secret/key") == "EACCES"
    assert world.one.write("/secret/key", "1") == "EACCES"
    assert world.zero.words(SET_PERMS, "/secret/key", "r0", "b2") == OK
    assert world.one.read("/secret/key") == b"42"
    assert world.two.write("/secret/key", "2") == OK
    assert world.zero.words(SET_PERMS, "/secret/key", "n0", "w2") == OK
    assert world.two.read("/secret/key") == "EACCES"
    assert world.two.write("/secret/key", "3") == OK


def test_missing_nodes_are_missing_where_one_may_look(world: World) -> None:
    assert world.one.read("own/x") == "ENOENT"
    assert world.one.read("x") == "ENOENT"
    assert world.one.write("x") == "EACCES", "reading is not writing"
    assert world.one.words(RM, "x") == "EACCES"
    assert world.one.words(RM, "own/x") == OK
    assert world.one.words(RM, "own/x/y") == "ENOENT"


def test_what_a_guest_makes_is_its_own(world: World) -> None:
    world.one.write("own/a/b", "1")
    assert world.one.words(GET_PERMS, "own/a/b") == b"n1\0"
    world.zero.write("/local/domain/1/own/c", "1")
    assert world.zero.words(GET_PERMS, "/local/domain/1/own/c") == b"n1\0", "as its parent"
    assert world.one.words(SET_PERMS, "own/a", "n1", "r0", "b2") == OK
    assert world.one.words(GET_PERMS, "own/a") == b"n1\0r0\0b2\0"
    assert world.two.write("/local/domain/1/own/a/of-two", "x") == OK
    assert world.two.words(GET_PERMS, "/local/domain/1/own/a/of-two") == b"n2\0r0\0b2\0"


def test_permissions_are_the_owners_to_set(world: World) -> None:
    assert world.one.words(SET_PERMS, "own", "n2") == "EPERM"
    assert world.zero.words(SET_PERMS, "/secret", "b0") == OK
    assert world.one.words(SET_PERMS, "/secret", "b0", "b1") == "EACCES"


# -- watches -----------------------------------------------------------------------------------------------------------


def test_a_watch_tells_once_at_first_and_then_of_each_change(world: World) -> None:
    assert world.zero.words(WATCH, "/w", "token") == OK
    assert world.zero.heard() == [("/w", "token")]
    # Asked after each change: an event that still waits is not told twice by the C daemon.
    for value in "12":
        world.zero.write("/w/x", value)
        assert world.zero.heard() == [("/w/x", "token")]
    world.zero.write("/wx", "1")
    assert world.zero.heard() == []
    world.zero.words(MKDIR, "/w/d")
    assert world.zero.heard() == [("/w/d", "token")]
    world.zero.words(MKDIR, "/w/d")
    world.zero.heard()
    for change in ((SET_PERMS, "/w/d", "r0"), (RM, "/w/d")):
        world.zero.words(*change)
        assert world.zero.heard() == [("/w/d", "token")]


def test_a_watch_below_what_is_removed_hears_of_its_own_path(world: World) -> None:
    world.zero.write("/w/a/b", "1")
    world.zero.words(WATCH, "/w/a", "a")
    world.zero.words(WATCH, "/w/a/b", "b")
    world.zero.words(WATCH, "/w/a/b/c", "c")
    world.zero.heard()
    world.zero.words(RM, "/w")
    assert sorted(world.zero.heard()) == [("/w/a", "a"), ("/w/a/b", "b")]


def test_relative_watches_tell_relative_paths(world: World) -> None:
    world.one.words(WATCH, "own", "mine")
    world.one.words(WATCH, "/local/domain/1/own", "whole")
    world.one.heard()
    world.zero.write("/local/domain/1/own/x", "1")
    assert sorted(world.one.heard()) == [("/local/domain/1/own/x", "whole"), ("own/x", "mine")]


def test_watches_tell_nobody_of_what_he_may_not_read(world: World) -> None:
    world.one.words(WATCH, "/secret", "t")
    world.one.words(WATCH, "/local/domain/2/own", "t")
    world.one.heard()
    world.zero.write("/secret/key", "43")
    world.two.write("own/x", "1")
    assert world.one.heard() == []


def test_a_watch_is_known_by_path_and_token(world: World) -> None:
    assert world.zero.words(WATCH, "/w", "1") == OK
    assert world.zero.words(WATCH, "/w", "1") == "EEXIST"
    assert world.zero.words(WATCH, "/w", "2") == OK
    assert world.zero.words(UNWATCH, "/w", "3") == "ENOENT"
    assert world.zero.words(UNWATCH, "/w", "1") == OK
    world.zero.heard()
    world.zero.write("/w", "x")
    assert world.zero.heard() == [("/w", "2")]


def test_reset_ends_all_watches_and_transactions_of_the_client(world: World) -> None:
    world.one.words(WATCH, "own", "t")
    transaction = world.one.start()
    assert world.one.words(RESET_WATCHES, "") == OK
    world.one.heard()
    world.one.write("own", "x")
    assert world.one.heard() == []
    assert world.one.end(transaction) == "ENOENT"


def test_new_domains_are_announced_to_domain_0(world: World) -> None:
    assert world.zero.words(WATCH, "@introduceDomain", "t") == OK
    assert world.zero.heard() == [("@introduceDomain", "t")]
    assert world.zero.words(DOMAIN_PATH, "5") == b"/local/domain/5\0"
    assert world.zero.words(IS_INTRODUCED, "1") == b"T\0"
    assert world.zero.words(IS_INTRODUCED, "9") == b"F\0"
    assert world.one.words(INTRODUCE, "9", "1", "1") == "EACCES"


# -- transactions ------------------------------------------------------------------------------------------------------


def test_a_transaction_shows_its_changes_only_when_it_ends(world: World) -> None:
    transaction = world.zero.start()
    world.zero.words(WATCH, "/t", "w")
    world.zero.heard()
    assert world.zero.write("/t/x", "1", transaction) == OK
    assert world.zero.read("/t/x", transaction) == b"1"
    assert world.zero.read("/t/x") == "ENOENT"
    assert world.zero.heard() == []
    assert world.zero.end(transaction) == OK
    assert world.zero.read("/t/x") == b"1"
    assert world.zero.heard() == [("/t/x", "w")]
    assert world.zero.end(transaction) == "ENOENT"


def test_a_transaction_can_be_given_up(world: World) -> None:
    transaction = world.zero.start()
    world.zero.write("/t", "1", transaction)
    assert world.zero.end(transaction, commit=False) == OK
    assert world.zero.read("/t") == "ENOENT"
    assert world.zero.read("/t", transaction) == "ENOENT"


@pytest.mark.parametrize("first", ["read", "write", "list", "missing"])
def test_what_others_changed_meanwhile_makes_it_fail(world: World, first: str) -> None:
    world.zero.write("/t/x", "1")
    transaction = world.one.start()
    world.zero.words(SET_PERMS, "/t", "b0")
    world.zero.words(SET_PERMS, "/t/x", "b0")
    if first == "read":
        assert world.one.read("/t/x", transaction) == b"1"
    elif first == "write":
        assert world.one.write("/t/x", "2", transaction) == OK
    elif first == "list":
        assert world.one.words(DIRECTORY, "/t", tx_id=transaction) == b"x\0"
    else:
        assert world.one.read("/t/y", transaction) == "ENOENT"
    if first in ("list", "missing"):
        world.zero.write("/t/y", "3")
    else:
        world.zero.write("/t/x", "3")
    assert world.one.end(transaction) == "EAGAIN"
    assert world.zero.read("/t/x") == (b"1" if first in ("list", "missing") else b"3")


def test_what_it_has_not_touched_may_change(world: World) -> None:
    world.zero.write("/t/x", "1")
    world.zero.write("/u/y", "1")
    transaction = world.zero.start()
    assert world.zero.write("/t/x", "2", transaction) == OK
    world.zero.write("/u/y", "2")
    assert world.zero.end(transaction) == OK


def test_a_transaction_tells_of_each_node_once(world: World) -> None:
    """However often it changed it, in the order of the first changes."""
    one = world.one
    for name in "abc":
        one.write(f"own/{name}")
    assert world.zero.words(WATCH, "/local/domain/1/own", "w") == OK
    world.zero.heard()
    transaction = one.start()
    one.write("own/c", "1", transaction)
    one.write("own/new", "1", transaction)
    one.words(RM, "own/a", tx_id=transaction)
    one.write("own/a", "1", transaction)
    one.words(SET_PERMS, "own/c", "n1", "r2", tx_id=transaction)
    one.write("own/c", "2", transaction)
    assert one.end(transaction) == OK
    assert world.zero.heard() == [(f"/local/domain/1/own/{name}", "w") for name in ("c", "new", "a")]


def test_transactions_do_not_nest_and_belong_to_their_client(world: World) -> None:
    transaction = world.one.start()
    assert world.one.words(START, "", tx_id=transaction) == "EBUSY"
    assert world.one.read("own", 4_000_000_000) == "ENOENT"
    assert world.one.end(0) == "ENOENT"


# -- limits ------------------------------------------------------------------------------------------------------------


def test_guests_have_limits_and_domain_0_has_none(world: World) -> None:
    assert world.one.write("own/x", "v" * 3000) == "ENOSPC"
    assert world.zero.write("/x", "v" * 3000) == OK
    tokens = [world.one.words(WATCH, "own", str(number)) for number in range(130)]
    assert tokens.count("E2BIG") in (1, 2), "128, or one more as the daemon counts"
    assert [world.zero.words(WATCH, "/x", str(number)) for number in range(130)] == [OK] * 130
    started = [world.two.words(START, "") for _ in range(20)]
    assert 0 < started.count("ENOSPC") < 20


def test_the_nodes_of_a_guest_are_counted(world: World) -> None:
    answers = [world.one.write(f"own/{number // 50}/{number}") for number in range(1000)]
    assert answers[:960] == [OK] * 960
    assert answers[-1] == "ENOSPC"
    assert world.one.words(RM, "own/0") == OK
    assert world.one.write("own/new") == OK


def test_the_nodes_that_a_guest_adds_in_several_transactions_are_counted_together(world: World) -> None:
    one = world.one
    for number in range(3):
        one.write(f"own/{number}")
    transactions = [one.start() for _ in range(3)]
    for number, transaction in enumerate(transactions):
        for name in range(400):
            assert one.write(f"own/{number}/{name}", "", transaction) == OK
    assert [one.end(transaction) for transaction in transactions] == [OK, OK, "ENOSPC"]


def test_the_nodes_that_a_guests_transaction_looks_at_are_bounded(world: World) -> None:
    transaction = world.one.start()
    answers = [world.one.read(f"own/{number}", transaction) for number in range(1100)]
    assert answers[:1000] == ["ENOENT"] * 1000
    assert answers[1030:] == ["ENOSPC"] * 70
    assert world.one.end(transaction) == "ENOMEM", "it is spoiled"
    transaction = world.zero.start()
    assert [world.zero.read(f"/{number}", transaction) for number in range(1100)] == ["ENOENT"] * 1100
    assert world.zero.end(transaction) == OK


def test_nodes_a_thousand_deep_are_made_and_removed(world: World) -> None:
    deep = "own/" + "/".join("a" * 985)
    assert world.zero.words(WATCH, f"/local/domain/1/{deep}", "w") == OK
    world.zero.heard()
    assert world.one.write(deep, "1") == OK
    assert world.zero.heard() == [(f"/local/domain/1/{deep}", "w")]
    assert world.one.words(RM, "own/a") == OK  # heard in between: the C daemon tells the same once while it waits
    assert world.zero.heard() == [(f"/local/domain/1/{deep}", "w")]
    assert world.one.words(DIRECTORY, "own") == b""


def test_an_event_that_fits_into_no_message_is_left_out(world: World) -> None:
    token, long = "t" * 3000, "own/" + "/".join(["p" * 200] * 8)
    assert world.one.words(WATCH, "own", token) == OK
    assert world.one.words(WATCH, "own", "short") == OK
    assert sorted(world.one.heard()) == [("own", "short"), ("own", token)]
    assert world.one.write(long) == OK
    assert world.one.heard() == [(long, "short")]


# -- any sequence --------------------------------------------------------------------------------------------------

PATHS = ("/s", "/s/a", "/s/a/b", "/s/c", "/local/domain/1/own/a", "/local/domain/1/own", "own/a/b", "/secret/key")
PERMISSIONS = (("n0",), ("r0",), ("b0",), ("n1",), ("n0", "r1"), ("n0", "b1", "w2"), ("r1", "b2"))
step = st.tuples(
    st.sampled_from(["zero", "one", "two"]),
    st.sampled_from(["read", "list", "write", "mkdir", "rm", "perms", "chmod", "watch", "unwatch", "start", "end"]),
    st.sampled_from(PATHS),
    st.integers(0, 7),
)


def play(world: World, steps: list[tuple[str, str, str, int]]) -> list[object]:
    """Do the steps; all that every client was told. Numbers of transactions are left out: they are the store's."""
    told: list[object] = []
    open_: dict[str, list[int]] = {"zero": [], "one": [], "two": []}
    for who, what, path, number in steps:
        client: Talker = getattr(world, who)
        mine = open_[who]
        tx_id = mine[number % len(mine)] if mine and number % 2 else 0
        if what == "start":
            answer: object = client.words(START, "")
            if isinstance(answer, bytes):
                mine.append(int(answer.rstrip(b"\0")))
                answer = "started"
        elif what == "end":
            answer = client.end(mine.pop(0), commit=number != 0) if mine else None
        elif what == "write":
            answer = client.write(path, str(number), tx_id)
        elif what == "chmod":
            answer = client.words(SET_PERMS, path, *PERMISSIONS[number % len(PERMISSIONS)], tx_id=tx_id)
        elif what in ("watch", "unwatch"):
            answer = client.words(WATCH if what == "watch" else UNWATCH, path, str(number % 2))
        else:
            kinds = {"read": READ, "list": DIRECTORY, "mkdir": MKDIR, "rm": RM, "perms": GET_PERMS}
            answer = client.words(kinds[what], path, tx_id=tx_id)
        told.append((who, what, path, tx_id != 0, answer))
        told.append([sorted(getattr(world, each).heard()) for each in ("zero", "one", "two")])
    return told


@pytest.mark.witness
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(step, max_size=30))
def test_any_sequence_is_answered_as_the_c_daemon_answers_it(
    daemon_files: tuple[Path, Path], steps: list[tuple[str, str, str, int]]
) -> None:
    files, shim = daemon_files
    with tempfile.TemporaryDirectory() as folder:
        theirs = Theirs(files, shim, Path(folder))
        try:
            said = play(theirs, steps)
        finally:
            theirs.daemon.close()
    assert play(Ours(), steps) == said


# -- the ring page (ours alone) --------------------------------------------------------------------------------------


def ring(start: int = 0) -> tuple[Store, Talker, OurRing]:
    store = Store()
    furnish(Talker(Direct(store)))
    carrier = OurRing(store, 1, start)
    return store, Talker(carrier), carrier


@pytest.mark.parametrize("start", [0xFFFFFFFF, 0xFFFFFC00, 5, 1023])
def test_the_rings_begin_where_their_indices_stand_and_wrap(start: int) -> None:
    _, one, _ = ring(start)
    for _ in range(3):
        assert one.ask(WRITE, b"own/x\0" + bytes(1500)) == OK
        assert one.read("own/x") == bytes(1500)


@pytest.mark.parametrize(("index", "ahead"), [(513, 1025), (513, -1), (514, 1), (514, -1025)])
def test_an_index_that_cannot_be_ends_the_connection_with_a_reason(index: int, ahead: int) -> None:
    _, _, carrier = ring()
    carrier.words[index] = (carrier.words[index] + ahead) & 0xFFFFFFFF
    if index == 514:
        carrier.page[0:16] = b"\x0a" + bytes(11) + b"\2" + bytes(3)
        carrier.page[16:18] = b"7\0"
        carrier.words[513] = 18
    carrier.kick()
    assert carrier.words[518] == 2  # XENSTORE_ERROR_RINGIDX
    before = carrier.words[515]
    carrier.kick()
    assert carrier.words[515] == before, "nothing is answered any more"


def test_a_payload_that_is_too_long_ends_the_connection_with_a_reason() -> None:
    _, _, carrier = ring()
    carrier.page[0:16] = b"\2" + bytes(11) + b"\1\x10\0\0"  # 4097
    carrier.words[513] = 16
    carrier.kick()
    assert carrier.words[518] == 3  # XENSTORE_ERROR_PROTO


def test_a_broken_connection_can_be_made_anew() -> None:
    store, one, carrier = ring()
    assert carrier.words[516] & 3 == 3, "both features are offered"
    one.words(WATCH, "own", "t")
    transaction = one.start()
    carrier.words[513] = 5000
    carrier.kick()
    carrier.words[517] = 1  # XENSTORE_RECONNECT
    carrier.kick()
    assert list(carrier.words[512:516]) == [0, 0, 0, 0]
    assert list(carrier.words[517:519]) == [0, 0]
    assert one.words(DOMAIN_PATH, "3") == b"/local/domain/3\0"
    assert one.end(transaction) == "ENOENT"
    Talker(Direct(store)).write("/local/domain/1/own", "x")
    assert one.heard() == [("own", "t")], "the event of the first watch, which had been on its way before"


def test_a_guest_that_does_not_fetch_its_events_is_cut_off() -> None:
    store, one, carrier = ring()
    for number in range(100):
        one.words(WATCH, "own", f"{number:0200d}")
    zero = Talker(Direct(store))
    for number in range(100):
        zero.write("/local/domain/1/own/x", str(number))
    assert carrier.words[518] == 1  # XENSTORE_ERROR_COMM
    assert zero.read("/local/domain/1/own/x") == b"99"


def test_events_arrive_without_being_asked_for() -> None:
    store, one, carrier = ring()
    one.words(WATCH, "own", "t")
    one.heard()
    notified = carrier.notified
    Talker(Direct(store)).write("/local/domain/1/own", "x")
    (later,) = carrier.later
    later()
    assert carrier.notified == notified + 1
    assert one.heard() == [("own", "t")]
