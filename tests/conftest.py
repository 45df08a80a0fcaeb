"""For all tests: how hypothesis draws its examples, which phases of the track a test belongs to (tests/track.py), and
that nothing is skipped where everything must run.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.track import GROUPS, PHASES, marks_of

# On CI the same examples every time, so that a red run is a change and not a draw; at home new ones, to find more.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None)


def everything_required() -> bool:
    """Whether a test that cannot run here counts as failed."""
    return os.environ.get("CI") == "true" or os.environ.get("VRING_REQUIRE_ALL") == "1"


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("ci" if everything_required() else "dev")
    for name, subset in (*PHASES.items(), *GROUPS.items()):
        config.addinivalue_line("markers", f"{name}: {subset.about}")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file, *names = item.nodeid.partition("[")[0].split("::")
        for mark in marks_of("::".join((file.rpartition("/")[2], *names))):
            item.add_marker(mark)


def _skipped(config: pytest.Config) -> list[pytest.TestReport]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return list(reporter.stats.get("skipped", [])) if reporter is not None else []


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    is_worker = hasattr(session.config, "workerinput")
    if everything_required() and not is_worker and _skipped(session.config) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not everything_required():
        return
    for report in _skipped(config):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.write_line(f"SKIPPED WHERE NOTHING MAY BE: {report.nodeid}: {reason}", red=True)
