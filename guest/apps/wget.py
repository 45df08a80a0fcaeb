"""wget: an HTTP client that downloads a URL into the guest's folder.

What speaks HTTP is the standard library's `http.client`, over a socket of the guest. The file is named after the URL;
one that is there is never overwritten, unless `-O` names it.

Read: RFC 9110 §14 (ranges), §15.4 (redirections), wget(1), whose words these are.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from guest.apps import EX_USAGE
from guest.apps.env import SECOND, Env
from guest.apps.streams import CHUNK, dial, shown
from guest.apps.usage import UsageError, options, seconds, whole, why
from guest.files import APPEND, CREATE, WRITE
from guest.sys import constants as c

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

USAGE = """usage: wget [-cq] [-4 | -6] [-O FILE] [-T SECONDS] [-m COUNT] URL
  -O FILE     write to FILE, also if it is there; - prints the page
  -c          go on with a file of which a part is there
  -T SECONDS  how long to wait for the connection, and for each piece (default 60)
  -m COUNT    follow so many redirections (default 20)
  -q          print nothing but errors
  -4, -6      which address of the server"""
EXAMPLES = ("wget http://example.com", "wget -O - 10.0.2.2:8000/hello.txt", "wget -c http://10.0.0.1/big.bin")

PORT = 80
NAME_MOST = 200  # characters of a file's name
COPIES = 1000  # name.1, name.2, … up to this
REDIRECTIONS = (301, 302, 303, 307, 308)
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416
BAR = 20
STEP = 10  # per cent between two lines of progress, which are at least so long apart:
PAUSE = SECOND // 2
REDRAW = SECOND // 10  # between two looks of a line that is drawn again and again


class _Failed(Exception):
    """There is no download; the text is one line."""


class Wish(NamedTuple):
    """What the command line asks for; `patience` in microseconds."""

    output: str | None
    resume: bool
    family: int | None
    patience: int
    redirections: int


def main(env: Env, argv: list[str]) -> int:
    """0 when the whole file is there, 1 when it is not, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "cqO:T:m:46")
        if len(rest) != 1:
            raise UsageError("one URL is needed")
        patience = seconds("-T", chosen.get("-T", "60"))
        if not patience:
            raise UsageError("-T 0: more than 0 is needed")
        family = c.AF_INET6 if "-6" in chosen else c.AF_INET if "-4" in chosen else None
        redirections = whole("-m", chosen.get("-m", "20"), 0, 1000)
        wish = Wish(chosen.get("-O"), "-c" in chosen, family, patience, redirections)
        if wish.output == "" or (wish.resume and wish.output == "-"):
            raise UsageError("a name is needed" if not wish.output else "-c needs a file to go on with")
        url = _url(rest[0] if "://" in rest[0] else f"http://{rest[0]}")
    except UsageError as error:
        env.print(f"wget: {error}\n{USAGE}")
        return EX_USAGE
    tell = (lambda _text: None) if "-q" in chosen or wish.output == "-" else env.print
    try:
        return _Download(env, wish, tell).run(url)
    except _Failed as failed:
        env.print(f"wget: {failed}")
    return 1


def _url(text: str) -> SplitResult:
    """A URL that can be asked for. Raises UsageError."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise UsageError(f"{text}: {error}") from None
    if url.scheme != "http":
        raise UsageError(f"{text}: only http:// is spoken here")
    if not url.hostname or url.username is not None or port == 0 or not url.hostname.isascii():
        raise UsageError(f"{text}: a URL is written http://HOST[:PORT][/PATH]")
    return url


class _Download:
    """One run: redirections, and then a body into a file."""

    def __init__(self, env: Env, wish: Wish, tell: Callable[[str], None]) -> None:
        self.env = env
        self.wish = wish
        self.tell = tell

    def run(self, url: SplitResult) -> int:
        """Download. Raises _Failed."""
        name = self.wish.output or _file_name(url)
        have = self._have(name) if self.wish.resume else 0
        for _ in range(self.wish.redirections + 1):
            onward = self._ask(url, name, have)
            if onward is None:
                return 0
            try:
                url = _url(urljoin(url.geturl(), onward))
            except (UsageError, ValueError) as error:
                raise _Failed(f"the redirection leads to {shown(str(error).encode())}") from None
            self.tell(f"wget: redirected to {shown(url.geturl().encode())}")
        raise _Failed(f"more than {self.wish.redirections} redirections")

    def _have(self, name: str) -> int:
        """Bytes of the file that are there."""
        try:
            found = self.env.guest.files.stat(name)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return 0
            raise _Failed(f"{name}: {error.strerror}") from None
        if found.is_folder:
            raise _Failed(f"{name} is a folder")
        return found.size

    def _ask(self, url: SplitResult, name: str, have: int) -> str | None:
        """One request; where it is redirected to, None when the file is there. Raises _Failed."""
        from http.client import HTTPException  # noqa: PLC0415 - it is large, and most guests never ask for it

        connection = self._connect(url)
        try:
            target = quote(url.path or "/", safe="/%:@!$&'()*+,;=~-._") + (f"?{url.query}" if url.query else "")
            headers = {"User-Agent": "vring-wget", "Accept": "*/*", "Connection": "close"}
            if have:
                headers["Range"] = f"bytes={have}-"
            connection.request("GET", target, headers=headers)
            with connection.getresponse() as response:
                if response.status in REDIRECTIONS and (onward := response.getheader("Location")):
                    return onward
                self._body(response, name, have)
        except TimeoutError:
            raise _Failed(f"{url.netloc}: nothing has come for {self.wish.patience / SECOND:g} s") from None
        except HTTPException as error:
            raise _Failed(f"{url.netloc}: no answer that is HTTP ({type(error).__name__})") from None
        except (OSError, ValueError) as error:
            raise _Failed(f"{url.netloc}: {getattr(error, 'strerror', None) or error}") from None
        finally:
            connection.close()
        return None

    def _connect(self, url: SplitResult) -> HTTPConnection:
        from http.client import HTTPConnection  # noqa: PLC0415 - likewise

        from guest import socket  # noqa: PLC0415 - likewise

        host, port = url.hostname or "", url.port or PORT
        try:
            fd = dial(self.env, c.SOCK_STREAM, host, port, self.wish.family, self.wish.patience)
        except OSError as error:
            raise _Failed(f"{host} port {port}: {why(error)}") from None
        connection = HTTPConnection(host, port)
        connection.sock = socket.socket(fileno=fd)
        connection.sock.settimeout(self.wish.patience / SECOND)
        return connection

    def _body(self, response: HTTPResponse, name: str, have: int) -> None:
        """Put what comes where it belongs. Raises _Failed, OSError, HTTPException."""
        kind = shown((response.getheader("Content-Type") or "no type").encode())
        self.tell(f"HTTP {response.status} {shown(response.reason.encode())}, {kind}")
        span = response.getheader("Content-Range") or ""
        if response.status == RANGE_NOT_SATISFIABLE and have and span.rpartition("/")[2] == str(have):
            self.tell(f"wget: {name} is complete already, {have} bytes")
            return
        resumed = bool(have) and response.status == PARTIAL_CONTENT
        if resumed and not span.startswith(f"bytes {have}-"):
            raise _Failed(f"the server sent another part than was asked for: {shown(span.encode())}")
        if response.status != 200 and not resumed:
            raise _Failed(f"the server said {response.status} {shown(response.reason.encode())}")
        if self.wish.output == "-":
            self._print(response)
            return
        name, file = self._open(name, APPEND if resumed else WRITE if self.wish.output or have else CREATE)
        start = have if resumed else 0
        with file:
            self._copy(response, name, file, start)

    def _open(self, name: str, mode: str) -> tuple[str, BinaryIO]:
        """The file, under this name or the next one that is free. Raises _Failed."""
        for number in range(COPIES):
            each = f"{name}.{number}" if number else name
            try:
                return each, self.env.guest.files.open(each, mode)
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise _Failed(f"{each}: {error.strerror}") from None
        raise _Failed(f"{name}: there are {COPIES} files of that name")

    def _copy(self, response: HTTPResponse, name: str, file: BinaryIO, start: int) -> None:
        length = None if response.length is None else start + response.length
        progress = _Progress(self.env, self.tell, name, start, length)
        for data in _pieces(response):
            try:
                file.write(data)
            except OSError as error:
                raise _Failed(f"{name}: {error.strerror}") from None
            progress.add(len(data))
        if length is not None and progress.done < length:
            raise _Failed(f"the connection ended after {progress.done} of {length} bytes; wget -c goes on from there")
        progress.end()
        self.tell(f"wget: {name} saved in {self.env.guest.files.label}, {progress.done} bytes")

    def _print(self, response: HTTPResponse) -> None:
        length, done, line = response.length, 0, b""
        for data in _pieces(response):
            done += len(data)
            *lines, line = (line + data).split(b"\n")
            for each in lines:
                self.env.print(shown(each.removesuffix(b"\r")))
        if line:
            self.env.print(shown(line))
        if length is not None and done < length:
            raise _Failed(f"the connection ended after {done} of {length} bytes")


def _pieces(response: HTTPResponse) -> Iterator[bytes]:
    """What comes, as it comes; a server need not close the connection behind the last byte it promised."""
    left = response.length
    while left != 0 and (data := response.read1(CHUNK if left is None else min(CHUNK, left))):
        left = None if left is None else left - len(data)
        yield data


class _Progress:
    """How much is there, as a bar, and how fast it came: one line that is drawn again and again on the terminal of who
    waits for it, and otherwise a line now and then.
    """

    def __init__(self, env: Env, tell: Callable[[str], None], name: str, start: int, length: int | None) -> None:
        self._env = env
        self._tell = tell
        self._name = name
        self._start = start
        self._length = length
        self._began = env.now()
        self._percent = 0
        terminal = env.guest.terminal
        shows = terminal is not None and terminal.foreground is env.process and tell == env.print
        self._draw = terminal.draw if terminal is not None and shows else None
        self._last = self._began - (REDRAW if self._draw is not None else 0)  # the first piece is drawn at once
        self.done = start

    def add(self, size: int) -> None:
        """So many more bytes are there."""
        self.done += size
        now = self._env.now()
        if self._draw is not None:
            if now - self._last >= REDRAW:
                self._last = now
                self._line(now)
            return
        percent = 100 * self.done // self._length if self._length else 0
        if now - self._last >= PAUSE and (percent >= self._percent + STEP or not self._length):
            self._percent = percent
            self._last = now
            self._line(now)

    def end(self) -> None:
        """All of it is there."""
        self._length = self.done
        self._line(self._env.now())

    def _line(self, now: int) -> None:
        bar = " " * (BAR + 7)
        if self._length is not None:
            part = self.done * BAR // self._length if self._length else BAR
            percent = 100 * self.done // self._length if self._length else 100
            bar = f"{percent:3d}% [{'=' * (part - 1)}{'>' * bool(part)}{' ' * (BAR - part)}]"
        took = now - self._began
        rate = f"  {amount((self.done - self._start) * SECOND // took)}/s" if took else ""
        (self._draw or self._tell)(f"{self._name}  {bar}  {amount(self.done)}{rate}")


def amount(size: int) -> str:
    """Bytes for people: 999 B, 1.2 kB, 3.4 MB."""
    for unit, factor in (("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)):
        if size >= factor:
            return f"{size * 10 // factor / 10:.1f} {unit}"
    return f"{size} B"


def _file_name(url: SplitResult) -> str:
    """What the file is called: the last part of the path, without what a name cannot have or would hide."""
    name = unquote(url.path.rpartition("/")[2], errors="replace")
    name = "".join(one if one.isprintable() and one != "/" else "_" for one in name).lstrip(".")
    return name[:NAME_MOST] or "index.html"
