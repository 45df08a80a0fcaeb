"""Which tests belong to which step of the lesson track, and to which promise: tables, and how they are read.

A phase, a group or a deliverable is written as words, and a test is meant by any of them:

    E8, E1-E9             its name has the row's id in it: test_e8_…
    test_net_arp.py       it is in that file
    test_x.py::test_p*    that file and that name; * stands for anything
    *loopback*            a name like that, in any file

`tests/conftest.py` makes a marker of each phase and group: `make test PYTEST_ARGS="-m phase_6_1"`. The deliverables
are what `docs/make_deliverables.py` runs and tabulates. `tests/test_track.py` sees that each word means something.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STATUS = ROOT / "docs" / "status.md"


class Subset(NamedTuple):
    """Some tests: what they are about, and the words that mean them."""

    about: str
    words: str


# The phases in which a course builds a network stack; docs/teaching/README.md says what is there for each.
PHASES = {
    "phase_6_1": Subset(
        "driver, Ethernet, ARP",
        "E1-E9 test_drivers_virtio_net.py test_drivers_mmio.py test_ring_driver.py test_net_ethernet.py "
        "test_net_arp.py",
    ),
    "phase_6_2": Subset(
        "IP, ICMP, ping, routes",
        "E10 E11 E17-E24 test_checksum.py test_net_ip.py test_net_forward.py test_net_reassembly.py test_net_icmp.py "
        "test_guest_apps.py::test_ping_* test_guest_apps.py::test_flood_ping_*",
    ),
    "phase_6_3": Subset(
        "UDP, sockets",
        "E26-E28 E40-E43 E51 test_udp.py test_udp_linux.py test_tap_udp.py test_sys_descriptors.py "
        "test_sys_sockaddr.py test_sys_data.py test_sys_poll.py test_sys_side_by_side.py test_sys_netconfig.py "
        "test_classic.py",
    ),
    "phase_6_4": Subset(
        "TCP",
        "E30-E37 E40 E50 E52 test_tcp_handshake.py test_tcp_states.py test_tcp_data.py test_tcp_window.py "
        "test_tcp_loss.py test_tcp_rtt.py test_tcp_reset.py test_tcp_timewait.py test_sys_streams_side_by_side.py",
    ),
    "phase_6_5": Subset(
        "programs, and tests of all of it",
        "E24 E44-E49 E53-E58 test_guest_apps.py test_apps_net.py test_apps_set.py test_apps_tcp.py test_apps_http.py "
        "test_apps_sh.py test_fuzz_stack.py test_tcp_fuzz.py test_docs.py test_track.py",
    ),
}  # fmt: skip

# What a test suite of a network stack must have.
GROUPS = {
    "group_loopback": Subset("a guest that talks to itself", "A10 *loopback*"),
    "group_external": Subset(
        "a guest and hosts that are not ours: the host's kernel, servers, an outside",
        "P5 D13 E49 E56 N7 test_tap_guest.py test_tap_net.py test_tap_udp.py test_tap_tcp.py test_dhcp_dnsmasq.py "
        "test_usernet.py test_usernet_datagrams.py test_usernet_guest.py test_simnet.py test_tour.py",
    ),
    "group_data_integrity": Subset(
        "large transfers that must arrive as they were sent",
        "P1 E17 E31 E52 test_tcp_lossy.py test_tap_tcp_lossy.py test_usernet.py::test_d13_ten_megabytes_* "
        "test_apps_tcp.py::test_e45_echo_returns_every_byte_* test_tap_tcp.py::test_e30_ten_megabytes_*",
    ),
    "group_connection_handling": Subset(
        "connections that open, close and are many",
        "E30 E32 E50 H62 test_tcp_handshake.py test_tcp_states.py test_tcp_timewait.py test_tcp_scale.py "
        "test_tcp_keepalive.py test_sys_streams_side_by_side.py",
    ),
    "group_error_conditions": Subset(
        "errors, and peers that are wrong or hostile",
        "E21-E23 E54 H1-H65 test_net_icmp.py test_tcp_reset.py test_tcp_hostile.py test_drivers_hostile.py "
        "test_usernet_hostile.py test_fuzz_stack.py test_tcp_fuzz.py",
    ),
}  # fmt: skip


class Deliverable(NamedTuple):
    """A box to tick: the tests of rows, those that docs/status.md names for each, and further tests by their names."""

    box: str
    rows: str
    tests: str = ""


# The boxes of that course in their order, and what is in a box one by one.
DELIVERABLES = (
    Deliverable("virtio-net driver functional", "E1-E5"),
    Deliverable("Ethernet layer working", "E6 E7"),
    Deliverable("ARP protocol implemented", "E8 E9"),
    Deliverable("IP layer with routing", "E10 E11 E17-E19"),
    Deliverable("ICMP (ping) working", "E20-E23"),
    Deliverable("UDP sockets functional", "E26-E28 E51"),
    Deliverable("TCP connection establishment and data transfer", "E30 E33 E34 E53"),
    Deliverable(
        "TCP connection termination", "E32 E50 C19",
        "test_tcp_states.py::test_e32_fin_wait_1_to_closing_to_time_wait "
        "test_tcp_states.py::test_e32_established_to_fin_wait_1_to_fin_wait_2_to_time_wait_to_closed",
    ),
    Deliverable("TCP retransmission", "E31 E35 E37 E52"),
    Deliverable("Complete socket API", "E36 E40-E43"),
    Deliverable("User programs: `ping`", "E24 E49"),
    Deliverable(
        "User programs: `echo`, `echoclient`", "",
        "test_apps_tcp.py::test_e45_echo_between_two_guests_over_both_families "
        "test_apps_tcp.py::test_e45_echo_serves_many_clients_at_once "
        "test_apps_tcp.py::test_e45_the_kernel_has_its_bytes_echoed "
        "test_apps_tcp.py::test_e45_echoclient_and_nc_talk_to_a_server_of_the_kernel",
    ),
    Deliverable(
        "User programs: `udpecho`", "",
        "test_apps_net.py::test_b16_udpecho_between_two_guests_over_both_families "
        "test_apps_net.py::test_e56_ping_and_udpecho_by_a_name_that_a_server_knows",
    ),
    Deliverable(
        "User programs: `wget`", "",
        "test_apps_http.py::test_e45_wget_fetches_from_httpd_over_both_families "
        "test_simnet.py::test_e56_the_page_comes_byte_for_byte "
        "test_usernet_guest.py::test_e56_the_guest_fetches_a_page_from_the_hosts_loopback",
    ),
    Deliverable("User programs: `ifconfig`", "E44"),
    Deliverable(
        "Test suite: loopback, `-m group_loopback`", "A10",
        "test_partial.py::test_d19_a_guest_talks_to_itself_over_its_loopback "
        "test_track.py::test_e47_each_group_has_tests_and_its_marker_chooses_them",
    ),
    Deliverable("Test suite: external, `-m group_external`", "E49 E56"),
    Deliverable("Test suite: data integrity (large transfers), `-m group_data_integrity`", "E31 E17"),
    Deliverable("Test suite: connection handling, `-m group_connection_handling`", "E50 H62"),
    Deliverable("Test suite: error conditions, `-m group_error_conditions`", "E21 E22 H58 H59"),
    Deliverable(
        "Documentation: network stack architecture", "",
        "test_docs.py::test_b12_the_design_names_what_is_there test_docs.py::test_b12_every_file_of_the_house_is_drawn",
    ),
    Deliverable("Documentation: packet flow diagrams", "", "test_docs.py::test_e48_the_ways_of_packets_are_drawn"),
    Deliverable(
        "Documentation: API usage guide", "",
        "test_docs.py::test_a_python_example_runs_and_prints_what_is_shown "
        "test_docs.py::test_a_command_prints_what_is_shown",
    ),
    Deliverable(
        "Documentation: performance characteristics", "",
        "test_track.py::test_e48_the_page_on_performance_has_every_figure_that_is_measured_here",
    ),
)  # fmt: skip


# -- reading them ----------------------------------------------------------------------------------------------------


def expand(words: str) -> list[str]:
    """The words, with ranges of rows written out: "E8-E10" is E8, E9, E10."""
    found = []
    for word in words.split():
        span = re.fullmatch(r"([A-Z])(\d+)-\1(\d+)", word)
        found += [f"{span[1]}{at}" for at in range(int(span[2]), int(span[3]) + 1)] if span else [word]
    return found


def rows_of(test: str) -> set[str]:
    """The rows that a test's name has in it: `test_e21_e22_…` has E21 and E22."""
    return {row.upper() for row in re.findall(r"(?<=_)[a-z]\d+(?=_|$)", test.rpartition("::")[2])}


def means(word: str, test: str) -> bool:
    """Whether a word means the test `test_x.py::test_y` (`test_x.py::TestY::test_z`)."""
    if re.fullmatch(r"[A-Z]\d+", word):
        return word in rows_of(test)
    file, _, name = word.partition("::")
    if word.endswith(".py"):
        return test.startswith(f"{word}::")
    if name:
        return fnmatchcase(test, f"{file}::{name}")
    return fnmatchcase(test.rpartition("::")[2], word)


@cache
def marks_of(test: str) -> tuple[str, ...]:
    """The phases and groups that a test belongs to."""
    return tuple(
        name
        for name, subset in (*PHASES.items(), *GROUPS.items())
        if any(means(word, test) for word in expand(subset.words))
    )


def all_tests() -> list[str]:
    """Every test function of the suite, as `test_x.py::test_y`, without running or importing anything."""
    found = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        names = re.findall(r"^\s*def (test_\w+)\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        found += [f"{path.name}::{name}" for name in names]
    return found


def named_tests() -> dict[str, list[str]]:
    """Row → the tests that docs/status.md names for it, as `test_x.py::test_y`."""
    return {
        row: re.findall(r"`(test_\w+\.py::\w+)`", rest)
        for row, rest in re.findall(r"^\| ([A-Z]\d+) \|(.*)$", STATUS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }


def shown_by(deliverable: Deliverable, rows: dict[str, list[str]]) -> list[str]:
    """What shows a deliverable: the tests of its rows and its own, each once. Raises KeyError for a row without any."""
    named: Iterable[str] = (test for row in expand(deliverable.rows) for test in rows[row])
    return list(dict.fromkeys([*named, *deliverable.tests.split()]))


def table(passed: Mapping[str, int]) -> list[str]:
    """The rows of docs/deliverables.md; `passed` says how often each test did, once for each set of its parameters."""
    rows = named_tests()
    lines = ["| deliverable | tests | result |", "|---|---|---|"]
    for each in DELIVERABLES:
        tests = shown_by(each, rows)
        said = f"{sum(passed[test] for test in tests)} passed" if passed.keys() >= set(tests) else "not run"
        lines.append(f"| {each.box} | {', '.join(f'`{test}`' for test in tests)} | {said} |")
    return lines
