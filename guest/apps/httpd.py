"""httpd: a web server for the files of the guest's folder.

HTTP is the standard library's: the request handler of `http.server`, over an accepted socket in a guest process of its
own. What is here is which file a request means, and what of it is sent.

Promises:
- HTTP/1.1 with connections that stay, HEAD, one range a request, and conditions by ETag and date (RFC 9110 §13, §14).
- A path cannot lead out of the folder: names are decoded once and then looked at one by one. `..` is refused however it
  is spelt, links are (guest/files.py), and names that begin with a dot are not there.
- There is no `Date` in an answer: a guest has no calendar (RFC 9110 §6.6.1).
"""

from __future__ import annotations

import errno
from email.utils import formatdate, parsedate_to_datetime
from html import escape
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit

from guest.apps import EX_USAGE
from guest.apps.env import SECOND, Env
from guest.apps.streams import CHUNK, serve, shown
from guest.apps.usage import UsageError, options, whole, why
from guest.files import Entry
from guest.sys import constants as c

if TYPE_CHECKING:
    from guest.sys.calls import Calls
    from guest.sys.sockaddr import SocketAddress

USAGE = """usage: httpd [-c COUNT] [-d FOLDER] [-q] [PORT]
  -c COUNT   stop after so many connections (default: never)
  -d FOLDER  serve this part of the guest's folder
  -q         do not print what is asked for
  PORT       default 80"""
EXAMPLES = ("httpd", "httpd -d public 8080", "vring boot --share . -- -dhcp -s httpd")

PORT = 80
MAPPED = "::ffff:"  # what IPv4 addresses begin with on a socket for both families
IDLE = 60  # seconds that a client may say nothing
LINGER, LINGER_BYTES = 2 * SECOND, 1 << 20  # how long, and how much, is still read behind the last answer
INDEX = "index.html"
TYPES = {
    "html": "text/html; charset=utf-8", "htm": "text/html; charset=utf-8", "txt": "text/plain; charset=utf-8",
    "md": "text/plain; charset=utf-8", "css": "text/css", "js": "text/javascript", "json": "application/json",
    "svg": "image/svg+xml", "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif",
    "pdf": "application/pdf", "wasm": "application/wasm", "xml": "application/xml",
}  # fmt: skip
BINARY = "application/octet-stream"
ODD = "surrogateescape"  # how Python's names of files hold bytes that are no UTF-8
NANO = 1_000_000_000  # a second of a file's time


def main(env: Env, argv: list[str]) -> int:
    """0 once `-c` connections are served, 1 when a call failed, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "c:d:q")
        if len(rest) > 1:
            raise UsageError("one port at most")
        count = whole("-c", chosen["-c"], 1, 1 << 32) if "-c" in chosen else None
        port = whole("port", rest[0], 1, 65535) if rest else PORT
    except UsageError as error:
        env.print(f"httpd: {error}\n{USAGE}")
        return EX_USAGE
    root = chosen.get("-d", "")
    files = env.guest.files
    try:
        if not files.stat(root).is_folder:
            raise OSError(errno.ENOTDIR, "it is not a folder")
        handler = _handler_class()
    except OSError as error:
        env.print(f"httpd: {root}: {error.strerror}")
        return 1

    def talk(env: Env, fd: int, peer: SocketAddress) -> int:
        from guest import socket  # noqa: PLC0415 - only programs that use the look-alikes need it

        connection = socket.socket(fileno=fd)
        try:
            return int(handler(env, connection, peer, root, "-q" in chosen).received)
        finally:
            connection.detach()  # whoever accepted it closes it
            _linger(env.calls, fd)

    env.print(f"httpd: {root or 'everything'} in {files.label}")
    try:
        return serve(env, "httpd", port, talk, count)
    except OSError as error:
        env.print(f"httpd: port {port}: {why(error)}")
        return 1


def _linger(calls: Calls, fd: int) -> None:
    """End the sending direction and read what still comes: a RST for it could take the answer away (RFC 9112 §9.6)."""
    left = LINGER_BYTES
    try:
        calls.shutdown(fd, c.SHUT_WR)
        calls.set_timeout(fd, LINGER)
        while left > 0 and (size := len(calls.recv(fd, CHUNK))):
            left -= size
    except OSError:
        pass  # it is over


def _handler_class() -> Any:
    """The class, whose base is large and loads on first use."""
    from http.server import BaseHTTPRequestHandler  # noqa: PLC0415

    class Handler(_Answers, BaseHTTPRequestHandler):
        """One connection."""

    return Handler


class _Answers:
    """What a connection is answered, as a `BaseHTTPRequestHandler`.

    Attributes:
        received: bytes of requests, about.
    """

    protocol_version = "HTTP/1.1"
    timeout: float | None = IDLE

    # What the base has; it is not known to the type checker here.
    command: str
    path: str
    request_version: str
    headers: Any
    wfile: Any
    close_connection: bool

    def __init__(self, env: Env, connection: Any, peer: SocketAddress, root: str, quiet: bool) -> None:
        self.env = env
        self.peer = peer
        self.root = root
        self.quiet = quiet
        self.received = 0
        super().__init__(connection, peer, None)  # type: ignore[call-arg]  # the base answers all requests in here

    # -- what the base asks for ----------------------------------------------------------------------------------

    def version_string(self) -> str:
        """The Server header."""
        return "vring-httpd"

    def send_response(self, code: int, message: str | None = None) -> None:
        """The status line and Server; no Date."""
        base: Any = self
        self.received += len(getattr(base, "raw_requestline", b""))
        base.log_request(code)
        base.send_response_only(code, message)
        base.send_header("Server", self.version_string())

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """A line for each answer."""
        asked = shown(getattr(self, "requestline", "").encode("latin-1", "replace"))
        self.log_message("%s", f"{asked} {int(code)}")

    def log_message(self, _format: str, *words: object) -> None:
        """A line about this connection."""
        if not self.quiet:
            self.env.print(f"httpd: {self.peer[0].removeprefix(MAPPED)} {shown((_format % words).encode())}")

    def do_GET(self) -> None:
        """A page."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """The same without it."""
        self._answer(body=False)

    # -- answers -------------------------------------------------------------------------------------------------

    def _answer(self, body: bool) -> None:
        headers = self.headers
        if self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.0"  # so that the answer has a head
            self._say(400, "Bad Request: which version of HTTP?", body)
            return
        if "Content-Length" in headers or "Transfer-Encoding" in headers:
            self.close_connection = True  # nobody reads that body, so what follows it cannot be told from it
        if self.request_version == "HTTP/1.1" and len(headers.get_all("Host", [])) != 1:
            self._say(400, "Bad Request: one Host header is needed", body)
            return
        files = self.env.guest.files
        try:
            asked, path = self._file()
            entry = files.stat(path)
            if entry.is_folder:
                if not asked.endswith("/"):
                    self._redirect(asked + "/", body)
                    return
                try:
                    entry, path = files.stat(f"{path}/{INDEX}"), f"{path}/{INDEX}"
                except OSError:
                    self._listing(asked, files.entries(path), body)
                    return
            with files.open(path) as file:
                self._send_file(file, entry, body)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                self._say(403, "Forbidden", body)
            elif error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.EISDIR, errno.ENAMETOOLONG):
                self._say(404, "Not Found", body)
            else:
                raise  # the connection itself

    def _file(self) -> tuple[str, str]:
        """The path of the URL, decoded, and where that is in the folder. Raises OSError."""
        try:
            target = self.path if self.path.startswith("/") else urlsplit(self.path).path or "/"
            asked = unquote(target.partition("#")[0].partition("?")[0], errors=ODD)
        except ValueError:
            raise OSError(errno.EINVAL, "no path") from None
        names = [name for name in asked.split("/") if name]
        if ".." in names:
            raise OSError(errno.EACCES, "outside")
        if any(name.startswith(".") for name in names):
            raise OSError(errno.ENOENT, "hidden")
        return asked, "/".join([self.root, *names])

    def _send_file(self, file: BinaryIO, entry: Entry, body: bool) -> None:
        changed = formatdate(entry.changed // NANO, usegmt=True)
        tag = f'"{entry.changed:x}-{entry.size:x}"'
        fields = {"Last-Modified": changed, "ETag": tag, "Accept-Ranges": "bytes"}
        if self._has_it(entry, tag):
            self._head(304, fields)
            return
        first, last = 0, entry.size - 1
        code = 200
        if body and "Range" in self.headers and self._same(tag, changed):
            try:
                span = _span(self.headers["Range"], entry.size)
            except ValueError:
                self._say(416, "Range Not Satisfiable", body, {"Content-Range": f"bytes */{entry.size}"})
                return
            if span is not None:
                first, last = span
                code = 206
                fields["Content-Range"] = f"bytes {first}-{last}/{entry.size}"
        left = last - first + 1
        kind = TYPES.get(entry.name.rpartition(".")[2].lower(), BINARY)
        self._head(code, {**fields, "Content-Type": kind, "Content-Length": str(left)})
        if not body:
            return
        file.seek(first)
        while left and (data := file.read(min(CHUNK, left))):
            self.wfile.write(data)
            left -= len(data)
        if left:  # the file has become shorter meanwhile
            self.close_connection = True

    def _has_it(self, entry: Entry, tag: str) -> bool:
        """Whether the client's copy is the same, as it asks with If-None-Match or else If-Modified-Since."""
        tags = self.headers.get("If-None-Match")
        if tags is not None:
            return tags.strip() == "*" or tag in [one.strip().removeprefix("W/") for one in tags.split(",")]
        try:
            since = parsedate_to_datetime(self.headers.get("If-Modified-Since", ""))
            return entry.changed // NANO <= since.timestamp()
        except (ValueError, TypeError, OverflowError):
            return False

    def _same(self, tag: str, changed: str) -> bool:
        """Whether If-Range, where it is there, is about the file as it is."""
        return self.headers.get("If-Range", tag).strip() in (tag, changed)

    def _redirect(self, asked: str, body: bool) -> None:
        # `//name/` would be another host's
        self._say(301, "Moved Permanently", body, {"Location": "/" + quote(asked.lstrip("/"), errors=ODD)})

    def _listing(self, asked: str, entries: list[Entry], body: bool) -> None:
        """What a folder has in it, as a page of links."""
        lines = ['<li><a href="../">../</a></li>'] if asked.strip("/") else []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = entry.name + "/" * entry.is_folder
            size = "" if entry.is_folder else f" {entry.size}"
            lines.append(f'<li><a href="./{quote(name, errors=ODD)}">{escape(name)}</a>{size}</li>')
        title = escape(asked)
        text = f"<!DOCTYPE html>\n<title>{title}</title>\n<h1>{title}</h1>\n<ul>\n" + "\n".join(lines) + "\n</ul>\n"
        self._send(200, text, body, {"Content-Type": TYPES["html"]})

    def _say(self, code: int, text: str, body: bool, fields: dict[str, str] | None = None) -> None:
        self._send(code, f"{text}\n", body, {"Content-Type": TYPES["txt"], **(fields or {})})

    def _send(self, code: int, text: str, body: bool, fields: dict[str, str]) -> None:
        data = text.encode("utf-8", "backslashreplace")
        self._head(code, {**fields, "Content-Length": str(len(data))})
        if body:
            self.wfile.write(data)

    def _head(self, code: int, fields: dict[str, str]) -> None:
        base: Any = self
        base.send_response(code)
        for name, value in fields.items():
            base.send_header(name, value)
        if self.close_connection:
            base.send_header("Connection", "close")
        base.end_headers()


def _span(text: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header; None for what is to be ignored: another unit, several ranges, nonsense.

    Raises ValueError: nothing of the range is there.
    """
    unit, equals, words = text.partition("=")
    first, dash, last = words.strip().partition("-")
    numbers = [word for word in (first, last) if word]
    if unit.strip().lower() != "bytes" or not equals or not dash or not numbers:
        return None
    if not all(word.isascii() and word.isdecimal() and len(word) < 20 for word in numbers):
        return None
    if not first:
        length = min(int(last), size)
        if not length:
            raise ValueError("an empty range")
        return size - length, size - 1
    start, end = int(first), int(last) if last else size - 1
    if last and end < start:
        return None
    if start >= size:
        raise ValueError("behind the end")
    return start, min(end, size - 1)
