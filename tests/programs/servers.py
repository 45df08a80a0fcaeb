"""Servers of the standard library alone; nothing here knows of vring: servers.py ADDRESS CERTIFICATE KEY [clients].

HTTP and HTTPS, echoes of socketserver (TCP, UDP) and of asyncio (plain, TLS), SMTP with STARTTLS, passive FTP. It says
"ready" and serves until its input ends; with `clients` it runs those, in the same process, and ends.
"""

from __future__ import annotations

import asyncio
import http.server
import socket
import socketserver
import ssl
import sys
import threading

HTTP, HTTPS, TCP, UDP, STREAMS, TLS_STREAMS, SMTP, FTP = range(8000, 8008)


class Web(http.server.BaseHTTPRequestHandler):
    """GET /N is N bytes, POST gives back what it got."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"x" * int(self.path[1:]))

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


class Echo(socketserver.StreamRequestHandler):
    """Each line in capitals."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class Datagrams(socketserver.DatagramRequestHandler):
    """Each datagram in capitals."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.read().upper())


class Mail(socketserver.StreamRequestHandler):
    """SMTP with STARTTLS: prints nothing, and tells the size of each message that it takes."""

    context: ssl.SSLContext

    def say(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")

    def handle(self) -> None:
        self.say("220 here")
        while line := self.rfile.readline():
            word = line.split()[0].upper().decode()
            if word == "EHLO":
                self.say("250-here\r\n250 STARTTLS")
            elif word == "STARTTLS":
                self.say("220 go on")
                self.connection = self.context.wrap_socket(self.connection, server_side=True)
                self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
            elif word == "DATA":
                self.say("354 go on")
                size = 0
                while (line := self.rfile.readline()) != b".\r\n":
                    size += len(line)
                self.say(f"250 {size} bytes over {type(self.connection).__name__}")
            elif word == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 fine")


class Files(socketserver.StreamRequestHandler):
    """FTP with one file, of what was stored last; passive, RFC 959 and RFC 2428."""

    stored = b""

    def say(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")

    def handle(self) -> None:
        self.say("220 here")
        while line := self.rfile.readline():
            word = line.split()[0].upper().decode()
            if word == "PASV":
                listener = socket.create_server((self.connection.getsockname()[0], 0))
                host, port = listener.getsockname()
                self.say(f"227 there ({host.replace('.', ',')},{port >> 8},{port & 255})")
            elif word in ("STOR", "RETR"):
                self.say("150 go on")
                with listener, listener.accept()[0] as data, data.makefile("rwb") as file:
                    if word == "STOR":
                        Files.stored = file.read()
                    else:
                        file.write(Files.stored)
                self.say("226 done")
            elif word == "USER":
                self.say("331 and the password?")
            elif word == "PASS":
                self.say("230 welcome")
            elif word == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("200 fine")


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()


async def serve_streams(address: str, context: ssl.SSLContext, ready: threading.Event) -> None:
    await asyncio.start_server(shout, address, STREAMS)
    await asyncio.start_server(shout, address, TLS_STREAMS, ssl=context)
    ready.set()
    await asyncio.Event().wait()


class Threads(socketserver.ThreadingTCPServer):
    """Each connection in a thread."""

    daemon_threads = True
    allow_reuse_address = True


def start(address: str, certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    Mail.context = context
    secure = http.server.ThreadingHTTPServer((address, HTTPS), Web)
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    servers = [
        secure, http.server.ThreadingHTTPServer((address, HTTP), Web), Threads((address, TCP), Echo),
        socketserver.UDPServer((address, UDP), Datagrams), Threads((address, SMTP), Mail),
        Threads((address, FTP), Files),
    ]  # fmt: skip
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    ready = threading.Event()
    threading.Thread(target=asyncio.run, args=(serve_streams(address, context, ready),), daemon=True).start()
    ready.wait(30)


if __name__ == "__main__":
    start(*sys.argv[1:4])
    if sys.argv[4:] == ["clients"]:
        import clients

        clients.everything(sys.argv[1], sys.argv[2])
    else:
        print("ready", flush=True)
        sys.stdin.read()
