"""wget and httpd: two guests on a hub, each with a folder in memory; servers and clients that the test plays.

Each request that the test writes by itself is what stands on the wire, byte for byte.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from guest.apps.env import Env
from guest.apps.httpd import _span
from guest.apps.streams import send_all
from guest.apps.wget import amount
from guest.files import RamFolder
from guest.kernel import Guest
from guest.sys.constants import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET
from guest.sys.scheduler import Process
from tests.guest_board import Board
from tests.test_apps_net import Pair
from vring.share import HostFolder

BIG = random.Random(80).randbytes(300_000)
SAVED = "saved in the guest's memory"


@pytest.fixture
def pair() -> Iterator[Pair]:
    board = Board()
    made = Pair(board)
    put(made.bob, "big.bin", BIG)
    put(made.bob, "hello.txt", b"hello\nworld\n")
    yield made
    board.close()


def put(guest: Guest, name: str, data: bytes) -> None:
    with guest.files.open(name, "wb") as file:
        file.write(data)


def get(guest: Guest, name: str) -> bytes:
    with guest.files.open(name) as file:
        return file.read()


def serve(pair: Pair, line: str = "httpd") -> Process:
    name, *words = line.split()
    process = pair.bob.spawn(name, *words)
    pair.board.run(0.1)
    return process


def ask(pair: Pair, request: bytes, port: int = 80) -> bytes:
    """What a server on Bob says to these bytes, until it closes or says no more for two seconds."""
    said = bytearray()

    def client(env: Env, _words: list[Any]) -> int:
        fd = env.calls.socket(AF_INET, SOCK_STREAM)
        env.calls.connect(fd, ("10.0.0.2", port))
        env.calls.set_timeout(fd, 2_000_000)
        send_all(env.calls, fd, request)
        try:
            while data := env.calls.recv(fd, 65536):
                said.extend(data)
        except TimeoutError:
            said.extend(b"(open)")
        env.calls.close(fd)
        return 0

    process = pair.alice.spawn(client)
    pair.board.run(100)
    assert process.exit_status == 0, pair.alice.log.lines[-1]
    return bytes(said)


def answer(pair: Pair, *answers: bytes, close: bool = True, port: int = 80) -> list[bytes]:
    """A server on Bob that says `answers`, one a connection; the requests that came, filled as they come."""
    asked: list[bytes] = []

    def server(env: Env, _words: list[Any]) -> int:
        calls = env.calls
        fd = calls.socket(AF_INET, SOCK_STREAM)
        calls.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, 1)
        calls.bind(fd, ("10.0.0.2", port))
        calls.listen(fd, 5)
        held = []
        for each in answers:
            connection, _ = calls.accept(fd)
            request = b""
            while b"\r\n\r\n" not in request:
                request += calls.recv(connection, 65536)
            asked.append(request)
            calls.send(connection, each)
            if close:
                calls.close(connection)
            else:
                held.append(connection)
        calls.close(fd)
        for connection in held:
            calls.recv(connection, 1)
            calls.close(connection)
        return 0

    pair.bob.spawn(server)
    pair.board.run(0.1)
    return asked


def page(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode() + body


# -- the two of them -----------------------------------------------------------------------------------------------


def test_e45_wget_fetches_from_httpd_over_both_families(pair: Pair) -> None:
    serve(pair)
    assert pair.run("wget http://10.0.0.2/big.bin") == (0, [
        "HTTP 200 OK, application/octet-stream",
        "big.bin  100% [===================>]  300.0 kB",
        f"wget: big.bin {SAVED}, 300000 bytes",
    ])  # fmt: skip
    assert get(pair.alice, "big.bin") == BIG
    assert pair.run("wget -6 -q bob/hello.txt") == (0, [])
    assert get(pair.alice, "hello.txt") == b"hello\nworld\n"
    assert pair.run("wget -O - bob/hello.txt") == (0, ["hello", "world"])
    assert pair.bob.log.output == [
        "httpd: everything in the guest's memory", "httpd: port 80", "httpd: 10.0.0.1 GET /big.bin HTTP/1.1 200",
        "httpd: fd00::1 GET /hello.txt HTTP/1.1 200", "httpd: fd00::1 GET /hello.txt HTTP/1.1 200",
    ]  # fmt: skip


def test_e45_a_file_that_is_there_is_not_overwritten_unless_it_is_named(pair: Pair) -> None:
    serve(pair)
    put(pair.alice, "hello.txt", b"mine")
    assert pair.run("wget bob/hello.txt")[1][-1] == f"wget: hello.txt.1 {SAVED}, 12 bytes"
    assert pair.run("wget bob/hello.txt")[1][-1] == f"wget: hello.txt.2 {SAVED}, 12 bytes"
    assert get(pair.alice, "hello.txt") == b"mine"
    assert pair.run("wget -O hello.txt bob/hello.txt")[0] == 0
    assert get(pair.alice, "hello.txt") == b"hello\nworld\n"


def test_e45_wget_goes_on_where_a_download_ended(pair: Pair) -> None:
    serve(pair)
    put(pair.alice, "big.bin", BIG[:123_456])
    status, output = pair.run("wget -c bob/big.bin")
    assert (status, output[0]) == (0, "HTTP 206 Partial Content, application/octet-stream")
    assert get(pair.alice, "big.bin") == BIG
    assert pair.run("wget -c bob/big.bin")[1][-1] == "wget: big.bin is complete already, 300000 bytes"
    assert pair.run("wget -c bob/hello.txt")[0] == 0, "there is nothing yet to go on with"


def test_e45_a_server_that_knows_no_ranges_sends_the_whole_again(pair: Pair) -> None:
    asked = answer(pair, page(b"whole", "Content-Length: 5"))
    put(pair.alice, "x", b"wh")
    assert pair.run("wget -c bob/x")[0] == 0
    assert b"Range: bytes=2-\r\n" in asked[0]
    assert get(pair.alice, "x") == b"whole"


def test_e45_wget_says_how_far_it_is(pair: Pair) -> None:
    """A server that sends a tenth each second."""

    def slow(env: Env, _words: list[Any]) -> int:
        calls = env.calls
        fd = calls.socket(AF_INET, SOCK_STREAM)
        calls.bind(fd, ("10.0.0.2", 80))
        calls.listen(fd, 5)
        connection, _ = calls.accept(fd)
        calls.recv(connection, 65536)
        calls.send(connection, page(b"", "Content-Length: 10000"))
        for _ in range(10):
            env.sleep(1_000_000)
            calls.send(connection, bytes(1000))
        calls.close(connection)
        calls.close(fd)
        return 0

    pair.bob.spawn(slow)
    status, output = pair.run("wget bob/slow")
    assert status == 0
    assert output[1:4] == [
        "slow   10% [=>                  ]  1.0 kB  1.0 kB/s",
        "slow   20% [===>                ]  2.0 kB  1.0 kB/s",
        "slow   30% [=====>              ]  3.0 kB  1.0 kB/s",
    ]
    assert output[-2:] == ["slow  100% [===================>]  10.0 kB  1.0 kB/s", f"wget: slow {SAVED}, 10000 bytes"]


def test_e45_wget_follows_redirections_up_to_a_limit(pair: Pair) -> None:
    onward = page(b"", "Location: /there", "Content-Length: 0", status="302 Found")
    answer(pair, onward, page(b"found", "Content-Length: 5"))
    status, output = pair.run("wget bob/here")
    assert (status, output[0]) == (0, "wget: redirected to http://bob/there")
    assert get(pair.alice, "here") == b"found"

    asked = answer(pair, *[onward] * 4, port=81)
    assert pair.run("wget -m 3 bob:81/x")[1][-1] == "wget: more than 3 redirections"
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("https://bob/", "the redirection leads to https://bob/: only http:// is spoken here"),
        ("file:///etc/passwd", "the redirection leads to file:///etc/passwd: only http:// is spoken here"),
        ("http://[bob/", "the redirection leads to"),
        ("http://nobody.example/", "nobody.example port 80: Temporary failure in name resolution"),
    ],
)
def test_e45_wget_goes_nowhere_else(pair: Pair, location: str, said: str) -> None:
    answer(pair, page(b"", f"Location: {location}", status="301 Moved Permanently"))
    status, output = pair.run("wget bob/x")
    assert status == 1
    assert output[-1].startswith(f"wget: {said}")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            page(b"short", "Content-Length: 100"),
            "the connection ended after 5 of 100 bytes; wget -c goes on from there",
        ),
        (page(b"ff\r\nshort", "Transfer-Encoding: chunked"), "bob: no answer that is HTTP (IncompleteRead)"),
        (b"SSH-2.0-what\r\n", "bob: no answer that is HTTP (BadStatusLine)"),
        (b"", "bob: no answer that is HTTP (RemoteDisconnected)"),
        (page(b"gone", "Content-Length: 4", status="404 Not \x1b[2JFound"), "the server said 404 Not \\x1b[2JFound"),
        (page(b"x", "Content-Range: bytes 7-7/9", status="206 Part"), "the server said 206 Part"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n", "bob: no answer that is HTTP (HTTPException)"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000, "bob: no answer that is HTTP (LineTooLong)"),
    ],
)
def test_e45_wget_tells_what_is_wrong_with_an_answer(pair: Pair, said: bytes, why: str) -> None:
    answer(pair, said)
    status, output = pair.run("wget bob/x")
    assert (status, output[-1]) == (1, f"wget: {why}")


def test_e45_another_part_than_was_asked_for_is_refused(pair: Pair) -> None:
    answer(pair, page(b"xy", "Content-Range: bytes 0-1/9", "Content-Length: 2", status="206 Partial Content"))
    put(pair.alice, "x", b"abc")
    assert "another part than was asked for: bytes 0-1/9" in pair.run("wget -c bob/x")[1][-1]
    assert get(pair.alice, "x") == b"abc"


def test_e45_wget_takes_all_that_was_promised_and_waits_for_no_more(pair: Pair) -> None:
    answer(pair, page(b"0123456789", "Content-Length: 10"), close=False)
    assert pair.run("wget -O ten bob/x", 1)[0] == 0
    assert get(pair.alice, "ten") == b"0123456789"
    answer(pair, page(b"5\r\nab\r\nc\r\n3\r\ndef\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), port=81)
    assert pair.run("wget -O chunks bob:81/x")[0] == 0
    assert get(pair.alice, "chunks") == b"ab\r\ncdef"
    answer(pair, page(b"to the end"), port=82)
    assert pair.run("wget -O end bob:82/x")[0] == 0
    assert get(pair.alice, "end") == b"to the end"


def test_e45_wget_waits_no_longer_than_t_says(pair: Pair) -> None:
    assert pair.run("wget -T 1 10.0.0.99", 1.1) == (1, ["wget: 10.0.0.99 port 80: Connection timed out"])
    answer(pair, b"HTTP/1.1 200 OK\r\n", close=False)
    assert pair.run("wget -T 3 bob", 3.1) == (1, ["wget: bob: nothing has come for 3 s"])


@pytest.mark.parametrize(
    "line",
    [
        "wget", "wget a b", "wget ftp://bob/", "wget https://bob/", "wget http://", "wget http://bob:0/",
        "wget http://bob:x/", "wget http://user@bob/", "wget -T 0 bob", "wget -m -1 bob", "wget -c -O - bob",
        "httpd 0", "httpd 80 81", "httpd -c 0", "httpd -x",
    ],
)  # fmt: skip
def test_wrong_usage_of_both_is_status_2_with_usage_text(pair: Pair, line: str) -> None:
    status, output = pair.run(line, 1)
    assert status == 2
    assert output[1].startswith(f"usage: {line.partition(' ')[0]} ")


def test_e45_a_url_decides_about_the_name_and_about_nothing_else(pair: Pair) -> None:
    serve(pair)
    for path, name in (("", "index.html"), ("/?x=/y", "index.html.1"), ("/%2e%2e%2fetc", "_etc"), ("/.rc", "rc")):
        answer(pair, page(b"x", "Content-Length: 1"), port=81)
        assert pair.run(f"wget bob:81{path}", 5)[1][-1] == f"wget: {name} {SAVED}, 1 bytes", path
    assert pair.run("wget -O ../x bob/hello.txt") == (1, [
        "HTTP 200 OK, text/plain; charset=utf-8", "wget: ../x: Permission denied",
    ])  # fmt: skip


def test_a_full_folder_is_said(pair: Pair) -> None:
    serve(pair)
    pair.alice.files = RamFolder(pair.alice.platform.now, limit=100_000)
    assert pair.run("wget bob/big.bin") == (1, [
        "HTTP 200 OK, application/octet-stream", "wget: big.bin: No space left on device",
    ])  # fmt: skip


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_560_000, "2.5 MB")])
def test_amounts_are_for_people(size: int, text: str) -> None:
    assert amount(size) == text


# -- httpd alone ---------------------------------------------------------------------------------------------------


def test_httpd_keeps_a_connection_and_answers_what_is_pipelined(pair: Pair) -> None:
    serve(pair)
    one = b"GET /hello.txt HTTP/1.1\r\nHost: bob\r\n\r\n"
    said = ask(pair, one + one + b"HEAD /hello.txt HTTP/1.1\r\nHost: bob\r\n\r\n")
    assert said.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert said.count(b"\r\n\r\nhello\nworld\n") == 2, "HEAD has no body"
    assert said.endswith(b"Content-Length: 12\r\n\r\n(open)")
    assert b"\r\nDate:" not in said
    assert ask(pair, b"GET /hello.txt HTTP/1.0\r\n\r\n").endswith(b"hello\nworld\n"), "closed behind the body"
    closing = b"GET /hello.txt HTTP/1.1\r\nHost: bob\r\nConnection: close\r\n\r\n"
    assert ask(pair, closing + one).count(b"hello") == 1


def test_httpd_lets_go_of_a_client_that_says_nothing(pair: Pair) -> None:
    serve(pair, "httpd -c 1")
    fds: list[int] = []

    def silent(env: Env, _words: list[Any]) -> int:
        fds.append(env.calls.socket(AF_INET, SOCK_STREAM))
        env.calls.connect(fds[0], ("10.0.0.2", 80))
        return len(env.calls.recv(fds[0], 1))

    client = pair.alice.spawn(silent)
    pair.board.run(59)
    assert client.alive is True
    pair.board.run(2)
    assert client.exit_status == 0
    pair.alice.calls.close(fds[0])


@pytest.mark.parametrize(
    ("span", "status", "body"),
    [
        ("bytes=0-4", 206, b"hello"), ("bytes=6-", 206, b"world\n"), ("bytes=-6", 206, b"world\n"),
        ("bytes=6-100", 206, b"world\n"), ("bytes=-100", 206, b"hello\nworld\n"), ("bytes=0-0", 206, b"h"),
        ("bytes=12-", 416, b""), ("bytes=-0", 416, b""),
        ("bytes=0-1,4-5", 200, b"hello\nworld\n"), ("lines=0-1", 200, b"hello\nworld\n"),
        ("bytes=4-1", 200, b"hello\nworld\n"), ("bytes=a-b", 200, b"hello\nworld\n"), ("", 200, b"hello\nworld\n"),
    ],
)  # fmt: skip
def test_httpd_sends_one_range(pair: Pair, span: str, status: int, body: bytes) -> None:
    serve(pair)
    said = ask(pair, f"GET /hello.txt HTTP/1.0\r\nRange: {span}\r\n\r\n".encode())
    head, _, sent = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    if status == 416:
        assert b"\r\nContent-Range: bytes */12\r\n" in head
    else:
        assert sent == body
        assert b"\r\nContent-Length: %d" % len(body) in head


def test_ranges_of_an_empty_file_are_behind_its_end() -> None:
    for text in ("bytes=0-", "bytes=-1"):
        with pytest.raises(ValueError, match=r"behind|empty"):
            _span(text, 0)


def test_httpd_sends_a_page_only_to_who_has_another_one(pair: Pair) -> None:
    serve(pair)
    first = ask(pair, b"HEAD /hello.txt HTTP/1.0\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in first.decode().split("\r\n") if ": " in line)
    same = [f"If-None-Match: {fields['ETag']}", "If-None-Match: *", f"If-Modified-Since: {fields['Last-Modified']}"]
    for field in same:
        said = ask(pair, f"GET /hello.txt HTTP/1.0\r\n{field}\r\n\r\n".encode())
        assert said.startswith(b"HTTP/1.1 304 Not Modified\r\n")
        assert said.endswith(b"\r\n\r\n"), field
    old = formatdate(-86400, usegmt=True)
    for field in ('If-None-Match: "x"', f"If-Modified-Since: {old}", "If-Modified-Since: soon"):
        assert ask(pair, f"GET /hello.txt HTTP/1.0\r\n{field}\r\n\r\n".encode()).endswith(b"hello\nworld\n"), field
    for field, start in ((fields["ETag"], b"206"), ('"x"', b"200")):
        said = ask(pair, f"GET /hello.txt HTTP/1.0\r\nRange: bytes=0-1\r\nIf-Range: {field}\r\n\r\n".encode())
        assert said.startswith(b"HTTP/1.1 " + start)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /hello.txt HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET nonsense\r\n\r\n", 400), (b"\x00\x01\x02\r\n\r\n", 400), (b"POST / HTTP/1.0\r\n\r\n", 501),
        (b"GET /%ff HTTP/1.0\r\n\r\n", 404), (b"GET /a%00b HTTP/1.0\r\n\r\n", 404),
        (b"GET /none HTTP/1.0\r\n\r\n", 404),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.0\r\n\r\n", 414), (b"GET / HTTP/3.0\r\n\r\n", 505),
        (b"GET / HTTP/1.0\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431), (b"GET /hello.txt/x HTTP/1.0\r\n\r\n", 404),
        (b"GET http://bob/hello.txt HTTP/1.0\r\n\r\n", 200), (b"GET //hello.txt?x#y HTTP/1.0\r\n\r\n", 200),
    ],
)  # fmt: skip
def test_httpd_answers_what_is_odd_and_serves_on(pair: Pair, request_: bytes, status: int) -> None:
    serve(pair)
    assert b" %d " % status in ask(pair, request_).partition(b"\r\n")[0] + b" "
    assert ask(pair, b"GET /hello.txt HTTP/1.0\r\n\r\n").endswith(b"hello\nworld\n")
    assert "Traceback" not in pair.bob.log.text()


def test_httpd_takes_no_request_from_the_body_of_another(pair: Pair) -> None:
    serve(pair)
    inner = b"GET /big.bin HTTP/1.1\r\nHost: x\r\n\r\n"
    for field in (b"Content-Length: %d" % len(inner), b"Transfer-Encoding: chunked"):
        said = ask(pair, b"GET /hello.txt HTTP/1.1\r\nHost: bob\r\n" + field + b"\r\n\r\n" + inner)
        assert said.count(b"HTTP/1.1 ") == 1
        assert b"\r\nConnection: close\r\n" in said


def test_httpd_survives_a_client_that_resets(pair: Pair) -> None:
    serve(pair)

    def rude(env: Env, _words: list[Any]) -> int:
        fd = env.calls.socket(AF_INET, SOCK_STREAM)
        env.calls.connect(fd, ("10.0.0.2", 80))
        env.calls.send(fd, b"GET /big.bin HTTP/1.0\r\n\r\n")
        env.calls.recv(fd, 1)
        env.calls.close(fd)  # with unread data: a RST
        return 0

    pair.alice.spawn(rude)
    pair.board.run(5)
    assert ask(pair, b"GET /hello.txt HTTP/1.0\r\n\r\n").endswith(b"hello\nworld\n")


def test_a_port_that_is_taken_is_said(pair: Pair) -> None:
    serve(pair)
    status, output = pair.run("httpd", guest=pair.bob)
    assert (status, output[-1]) == (1, "httpd: port 80: Address already in use; ss -l shows by whom")


# -- a folder of the host ------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, pair: Pair) -> Iterator[Path]:
    """A site, and beside it what nobody must see."""
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "site"
    (root / "sub dir").mkdir(parents=True)
    (root / "page.html").write_text("<p>hello</p>")
    (root / "sub dir" / "in&side.txt").write_text("inside")
    (root / ".hidden").write_text("secret")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    folder = HostFolder(root)
    pair.bob.files = folder
    yield root
    folder.close()


def test_httpd_lists_a_folder_of_the_host_and_serves_what_is_in_it(pair: Pair, site: Path) -> None:
    serve(pair)
    assert pair.run("wget -O - bob") == (0, [
        "<!DOCTYPE html>", "<title>/</title>", "<h1>/</h1>", "<ul>", '<li><a href="./page.html">page.html</a> 12</li>',
        '<li><a href="./sub%20dir/">sub dir/</a></li>', "</ul>",
    ])  # fmt: skip
    inside = pair.run("wget -O - bob/sub%20dir")[1]
    assert inside[-3:] == [
        '<li><a href="../">../</a></li>', '<li><a href="./in%26side.txt">in&amp;side.txt</a> 6</li>', "</ul>"
    ]  # fmt: skip
    assert pair.run("wget -O - bob/sub%20dir/in%26side.txt") == (0, ["inside"])
    (site / "index.html").write_text("<h1>home</h1>")
    assert pair.run("wget -O - bob") == (0, ["<h1>home</h1>"])


def test_httpd_lists_and_serves_names_that_are_no_utf8(pair: Pair, site: Path) -> None:
    """Names of files are bytes: one that cannot be read must not cost the others."""
    odd = os.fsencode(site) + b"/odd \xff"
    os.mkdir(odd)
    Path(os.fsdecode(odd + b"/\xfe.txt")).write_text("odd")
    serve(pair)
    assert b'<a href="./odd%20%FF/">' in ask(pair, b"GET / HTTP/1.0\r\n\r\n")
    assert b"Location: /odd%20%FF/\r\n" in ask(pair, b"GET /odd%20%FF HTTP/1.0\r\n\r\n")
    assert b'<a href="./%FE.txt">' in ask(pair, b"GET /odd%20%FF/ HTTP/1.0\r\n\r\n")
    assert ask(pair, b"GET /odd%20%FF/%FE.txt HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nodd")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret", "/%2e%2e/secret", "/%2E%2E%2Fsecret", "/.%2e/secret", "/..%2fsecret", "/sub%20dir/../../secret",
        "/./../secret", "//../secret", "/%252e%252e/secret", "/..\\secret", "/out", "/up/secret", "/up/", "/.hidden",
        "/%2ehidden", "/sub%20dir/%2e%2e/%2e%2e/secret", "http://bob/../secret", "/out?x", "/..;/secret",
        "/%c0%ae%c0%ae/secret",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder(pair: Pair, site: Path, path: str) -> None:
    assert (site.parent / "secret").exists()
    serve(pair)
    said = ask(pair, f"GET {path} HTTP/1.0\r\n\r\n".encode())
    assert said.split(b" ")[1] in (b"403", b"404")
    assert b"secret\r\n" not in said
    assert not said.endswith(b"secret")


def test_httpd_d_serves_a_part_and_nothing_above_it(pair: Pair, site: Path) -> None:
    pair.bob.spawn("httpd", "-d", "sub dir", "81")
    pair.board.run(0.1)
    assert (site / "page.html").exists()
    assert ask(pair, b"GET /in%26side.txt HTTP/1.0\r\n\r\n", 81).endswith(b"inside")
    assert b" 403 " in ask(pair, b"GET /../page.html HTTP/1.0\r\n\r\n", 81)
    refused = {"none": "No such file or directory", "page.html": "it is not a folder", "up": "Permission"}
    for folder, why in refused.items():
        status, output = pair.run(f"httpd -d {folder} 82", guest=pair.bob)
        assert status == 1
        assert output[-1].startswith(f"httpd: {folder}: {why}")


def test_wget_saves_in_a_folder_of_the_host(pair: Pair, site: Path) -> None:
    serve(pair)
    pair.alice.files = pair.bob.files
    assert pair.run("wget -O copy.html bob/page.html")[1][-1] == f"wget: copy.html saved in {site}, 12 bytes"
    assert (site / "copy.html").read_text() == "<p>hello</p>"
    for name in ("out", "up/x", "../x", "sub dir"):
        process = pair.alice.spawn("wget", "-O", name, "bob/page.html")
        pair.board.run(5)
        assert process.exit_status == 1, name
    assert sorted(path.name for path in site.parent.iterdir()) == ["secret", "site"]
    assert (site.parent / "secret").read_text() == "secret"
