"""The hosts table."""

from __future__ import annotations

import pytest

from guest.net.address import V4_LOOPBACK, V6_LOOPBACK, AddressError, parse_address
from guest.net.hosts import MAX_ENTRIES, Hosts, parse_entries


def test_names_are_found_without_case_and_final_dot() -> None:
    hosts = Hosts()
    hosts.add("10.0.0.1", "Router", "gw")
    hosts.add("10.0.0.2", "router")
    hosts.add("fd00::1", "router")
    first, second, six = map(parse_address, ("10.0.0.1", "10.0.0.2", "fd00::1"))
    assert hosts.lookup("ROUTER.") == [first, second, six]
    assert hosts.lookup("router", 4) == [first, second]
    assert hosts.lookup("gw", 6) == [], "known, but not in that family"
    assert hosts.lookup("other") is None
    assert hosts.reverse(first) == "router"
    assert hosts.remove("gw") is True
    assert hosts.remove("gw") is False
    assert hosts.lookup("router", 4) == [second]


def test_localhost_is_this_host_whatever_the_table_says() -> None:
    hosts = Hosts()
    hosts.add("10.0.0.1", "localhost", "a.localhost")
    assert hosts.lookup("localhost") == [V4_LOOPBACK, V6_LOOPBACK]
    assert hosts.lookup("a.LocalHost.", 4) == [V4_LOOPBACK]
    assert hosts.lookup("notlocalhost") is None
    assert hosts.reverse(V6_LOOPBACK) == "localhost"


def test_a_file_is_read_line_by_line_and_wrong_lines_are_passed_over() -> None:
    hosts = Hosts()
    assert hosts.load("# head\n10.0.0.1  a b # tail\n\nnonsense c\n10.0.0.9\nfd00::1\ta\n") == 2
    assert hosts.lookup("b") == [parse_address("10.0.0.1")]
    assert hosts.lookup("c") is None


def test_what_cannot_be_added() -> None:
    hosts = Hosts()
    with pytest.raises(AddressError):
        hosts.add("10.0.0", "a")
    with pytest.raises(ValueError, match="needs a name"):
        hosts.add("10.0.0.1")
    for number in range(MAX_ENTRIES):
        hosts.add(number, f"h{number}")
    with pytest.raises(ValueError, match="rows already"):
        hosts.add("10.0.0.1", "a")


def test_entries_of_the_command_line() -> None:
    assert parse_entries("a@10.0.0.1,b@fd00::1") == [("a", parse_address("10.0.0.1")), ("b", parse_address("fd00::1"))]
    for text in ("", "a", "@10.0.0.1", "a@", "a@x", "a@10.0.0.1,"):
        with pytest.raises(ValueError):
            parse_entries(text)
