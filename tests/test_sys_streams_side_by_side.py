"""Streams: the same calls in every state of a connection, on the host's kernel and on ours, and the same results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import sys_table_streams as table
from tests import sys_table_streams_data as more
from tests.netns import Namespace, namespace
from tests.sys_kernels import HostKernel
from tests.sys_table import Row
from tests.test_sys_side_by_side import compare

ROWS = [
    *table.MAKING, *table.NAMING, *table.CONNECTING, *more.SENDING, *more.URGENT, *more.CLOSING, *more.TCP_OPTIONS,
    *more.IOCTL,
]  # fmt: skip

# Whether our FIN is acknowledged yet when the question comes: Linux's peer may take a delayed acknowledgement's time.
MATTERS_OF_TIME = {("shut to write", "the state's number"), ("shut both ways", "the state's number")}


@pytest.fixture(scope="module")
def inside() -> Iterator[Namespace]:
    """A namespace with nothing but the loopback, as our guest has."""
    with namespace() as space:
        yield space


@pytest.mark.root
@pytest.mark.parametrize("row", [pytest.param(row, id=row[0]) for row in ROWS])
def test_e40_both_kernels_answer_alike(row: Row, inside: Namespace) -> None:
    compare(row, HostKernel(inside.entered()))


@pytest.mark.root
@pytest.mark.parametrize(
    ("state", "question"),
    [
        pytest.param(state, question, id=f"{state[0]} - {question[0]}")
        for state in table.STATES
        for question in table.QUESTIONS
        if (state[0], question[0]) not in MATTERS_OF_TIME
    ],
)
def test_e40_in_every_state_each_question_has_the_same_answer(
    state: tuple[str, table.Steps], question: tuple[str, table.Steps], inside: Namespace
) -> None:
    compare((question[0], [*state[1], *question[1]]), HostKernel(inside.entered()))
