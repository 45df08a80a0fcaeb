"""The tour that `make boot` takes: what a user without rights sees of a guest, and what a failure looks like."""

from __future__ import annotations

import io
import re
import threading
from http.server import SimpleHTTPRequestHandler

import pytest
from rich.console import Console

import vring.tour

STEPS = (
    (r"vring boot", r"address 10\.0\.2\.15/24"),
    (r"guest\$ nslookup web\.tour", r"Address: 10\.0\.2\.2"),
    (r"guest\$ ping 10\.0\.2\.2 .*", r"4 packets transmitted, 4 received, 0% packet loss"),
    (r"guest\$ wget http://web\.tour:\d+/numbers\.bin", r"4,194,304 bytes in .* SHA-256 [0-9a-f]{12}… at both ends"),
    (r"host\$ GET http://127\.0\.0\.1:\d+/page\.html", r"<h1>It works</h1>"),
    (r"What passed on the way", r"doorbells rung"),
)


def take() -> tuple[int, str]:
    """Take the tour; its status, and what it printed."""
    console = Console(file=io.StringIO(), width=100)
    status = vring.tour.tour(console)
    return status, console.file.getvalue()  # type: ignore[attr-defined]


def test_n5_the_tour_shows_an_address_a_name_a_ping_a_file_in_and_a_page_out() -> None:
    threads = threading.active_count()

    status, said = take()

    assert status == 0, said
    for number, part in enumerate(re.split(r"(?m)^(?=\d [A-Z])", said)[1:], 1):
        for expected in STEPS[number - 1]:
            assert re.search(expected, part), f"step {number} without {expected}: {part}"
    assert said.count("✓") == len(STEPS)
    assert threading.active_count() == threads, "the guest's thread and the web server's have ended"


def test_the_tour_ends_with_status_1_at_the_first_thing_that_is_not_as_it_should_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Liar(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"lies")

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setattr(vring.tour, "_Quiet", Liar)

    status, said = take()

    assert status == 1
    assert said.splitlines()[-1] == "✗ numbers.bin has 4 bytes and is not what was served"
    assert said.count("✓") == 3
