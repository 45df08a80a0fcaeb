"""The demos tell the truth: every access once, in order, and the same every time."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from vring.demos import DEMOS, play, rx, tx, xen
from vring.demos.recorder import Access, cut, key_of
from vring.demos.stage import Recording
from vring.view.xen_rings import XenSnapshot

ROOT = Path(__file__).resolve().parent.parent
RECORD: dict[str, Callable[[int], Recording]] = {"tx": tx.record, "rx": rx.record, "xen": xen.record}


def shown(name: str, seed: int = 0) -> str:
    out = io.StringIO()
    play(name, Console(file=out, width=100, highlight=False, markup=False), seed=seed)
    return out.getvalue()


def keys(recording: Recording) -> list[str]:
    return [step.key for step in recording.steps]


def stores(recording: Recording) -> list[tuple[str, str, int, int]]:
    return [
        (access.who, access.name, access.old, access.new)
        for step in recording.steps for access in step.accesses
        if access.kind == "store"
    ]  # fmt: skip


def test_a_frame_is_sent_in_the_order_of_the_standard() -> None:
    recording = tx.record()

    assert keys(recording) == [
        "program", "prepare", "describe", "offer", "doorbell", "fetch", "dma", "wire", "return", "interrupt", "ask",
        "acknowledge", "poll",
    ]  # fmt: skip
    done = stores(recording)
    assert ("driver", "avail.ring[3]", 0, 2) in done
    assert done.index(("driver", "avail.ring[3]", 0, 2)) < done.index(("driver", "avail.idx", 3, 4))
    assert done.index(("device", "used.ring[3].id", 0, 2)) < done.index(("device", "used.idx", 3, 4))
    assert {who for who, name, _, _ in done if name.startswith(("desc", "avail.", "used_event"))} == {"driver"}
    assert {who for who, name, _, _ in done if name.startswith(("used.", "avail_event"))} == {"device"}


def test_a_frame_is_received_in_the_order_of_the_standard() -> None:
    recording = rx.record()

    assert keys(recording) == [
        "wire", "fetch", "dma", "return", "interrupt", "acknowledge", "poll", "describe", "offer", "doorbell", "rest",
        "program",
    ]  # fmt: skip
    done = stores(recording)
    assert ("device", "used.ring[3].len", 0, 66) in done
    assert ("device", "used.idx", 3, 4) in done
    assert ("driver", "avail.idx", 11, 12) in done


def test_a_frame_on_a_xen_card_goes_through_request_grant_copy_response_event() -> None:
    recording = xen.record()

    assert keys(recording) == [
        "program", "prepare", "request", "publish", "notify", "fetch", "grant", "copy", "wire", "response", "event",
        "ask", "upcall", "poll",
    ]  # fmt: skip
    done = stores(recording)
    order = [
        ("driver", "request[3].gref"), ("driver", "request[3].id+size"), ("driver", "req_prod"),
        ("device", "response[3].id+status"), ("device", "rsp_prod"),
        ("xen", "evtchn_pending[0]"), ("xen", "evtchn_pending_sel"), ("xen", "evtchn_upcall_pending"),
        ("driver", "evtchn_upcall_pending"), ("driver", "evtchn_pending_sel"), ("driver", "evtchn_pending[0]"),
    ]  # fmt: skip
    found = [(who, name) for who, name, _, _ in done]
    assert [found.index(each) for each in order] == sorted(found.index(each) for each in order)
    for side, ours in (("driver", ("req_prod", "rsp_event")), ("device", ("rsp_prod", "req_event"))):
        assert {who for who, name, _, _ in done if name in ours} == {side}


def test_on_a_xen_card_the_request_the_grant_and_the_copy_are_of_one_page() -> None:
    recording = xen.record(3)
    accesses = [access for step in recording.steps for access in step.accesses]

    (gref,) = [each.new for each in accesses if each.kind == "store" and each.name == "request[3].gref"]
    (size,) = [each.new >> 16 for each in accesses if each.kind == "store" and each.name == "request[3].id+size"]
    (entry,) = [each for each in accesses if each.name.startswith("grant_table")]
    (copy,) = [each for each in accesses if each.kind == "copy"]
    assert (entry.name, copy.name) == (f"grant_table[{gref}]", f"page of gref {gref}")
    assert entry.new & 7 == 5, "permit_access, readonly"
    assert entry.new >> 32 == copy.addr >> 12
    assert copy.size == size == len(copy.data)
    assert {access.data for access in accesses if access.kind in ("note", "copy")} == {copy.data}, "one frame all along"
    (call,) = [each for each in accesses if each.kind == "call"]
    assert (call.name, call.text) == ("EVTCHNOP_send", "port 2, answer 0")
    assert isinstance(recording.first, XenSnapshot)
    assert recording.first.ports[0] == 2


@pytest.mark.parametrize("name", ["tx", "rx"])
def test_the_bytes_that_dma_moved_are_the_frame(name: str) -> None:
    recording = RECORD[name](5)
    accesses = [access for step in recording.steps for access in step.accesses]

    frames = {access.data for access in accesses if access.kind == "note"}
    (moved,) = [access.data for access in accesses if access.kind == "dma"]
    assert len(frames) == 1, "what set out is what arrived"
    assert moved[12:].startswith(frames.pop())


@pytest.mark.parametrize("name", DEMOS)
def test_every_step_has_a_title_and_a_sentence(name: str) -> None:
    recording = RECORD[name](0)

    for key in keys(recording):
        title, sentence = recording.words[key]
        assert title
        assert sentence.endswith((".", "…", ")")), sentence
    assert set(recording.words) == set(keys(recording)), "a text for a step that never comes"


@pytest.mark.parametrize("name", DEMOS)
def test_the_same_seed_shows_the_same_demo(name: str) -> None:
    assert shown(name, seed=1) == shown(name, seed=1)
    assert shown(name, seed=1) != shown(name, seed=2)


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_fits_and_has_no_colours_when_piped(name: str) -> None:
    text = shown(name)

    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text.replace("…then", "").replace("descriptor…", ""), "a cell was cut off"
    assert ("req_prod" if name == "xen" else "avail.idx") in text
    assert "00 " * 16 not in text, "bytes of the buffer that nobody wrote"
    assert ("EVTCHNOP_send" if name == "xen" else "QUEUE_NOTIFY") in text
    assert f"interrupt line {69 if name == 'xen' else 5}" in text


def test_cutting_loses_no_access_and_keeps_their_order_inside_a_side() -> None:
    accesses = [
        Access("device", "load", "avail.idx"),
        Access("device", "store", "avail_event"),
        Access("device", "load", "avail.idx"),
        Access("driver", "store", "desc[0].addr"),
        Access("driver", "store", "avail.idx"),
        Access("device", "load", "avail.idx"),
        Access("device", "load", "avail.ring[0]"),
        Access("device", "dma", "buffer"),
        Access("device", "load", "avail.idx"),
    ]

    steps = cut(accesses)

    assert [each for step in steps for each in step.accesses] == accesses
    assert [step.key for step in steps] == ["ask", "describe", "offer", "fetch", "dma"]
    assert key_of(Access("device", "store", "used.flags"), frozenset()) == "ask"


def demo(*words: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from vring.cli import main; main()", "demo", *words],
        input=typed, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_step_waits_for_a_key_and_q_ends() -> None:
    said = demo("tx", "--step", typed="\n \nq\n")

    assert said.returncode == 0, said.stderr
    assert "\n2 driver: " in said.stdout
    assert "\n3 driver: " not in said.stdout
    assert said.stdout.count("press Enter") == 3


def test_demos_are_listed_and_an_unknown_one_is_a_mistake() -> None:
    assert [line.split()[0] for line in demo().stdout.splitlines()] == list(DEMOS)
    said = demo("zx")
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == "vring: there is no demo 'zx'; demos are tx, rx, xen\n"
