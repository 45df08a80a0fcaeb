"""Clients of the standard library alone, for servers.py: clients.py ADDRESS CERTIFICATE. What each saw is a line."""

from __future__ import annotations

import asyncio
import ftplib
import http.client
import io
import smtplib
import socket
import ssl
import sys
import urllib.error
import urllib.request

HTTP, HTTPS, TCP, UDP, STREAMS, TLS_STREAMS, SMTP, FTP = range(8000, 8008)
LARGE = 1_000_000


def web(address: str, context: ssl.SSLContext) -> None:
    for port, scheme in ((HTTP, "http"), (HTTPS, "https")):
        with urllib.request.urlopen(f"{scheme}://{address}:{port}/{LARGE}", context=context, timeout=20) as answer:
            print("urllib", scheme, answer.status, len(answer.read()))
    for kind, port, more in (
        (http.client.HTTPConnection, HTTP, {}), (http.client.HTTPSConnection, HTTPS, {"context": context}),
    ):  # fmt: skip
        connection = kind(address, port, timeout=20, **more)
        for size in (0, 10, LARGE):  # one connection for all
            connection.request("POST", "/", body=b"y" * size)
            print("http.client", kind.__name__, len(connection.getresponse().read()))
        connection.close()
    try:
        urllib.request.urlopen(f"http://{address}:1/", timeout=20)
    except urllib.error.URLError as error:
        print("urllib", type(error.reason).__name__)
    try:
        urllib.request.urlopen(f"https://{address}:{HTTPS}/1", timeout=20)
    except urllib.error.URLError as error:
        print("urllib", type(error.reason).__name__)


def echoes(address: str) -> None:
    with socket.create_connection((address, TCP), timeout=20) as sock, sock.makefile("rw") as file:
        print("one\ntwo", file=file, flush=True)
        print("socketserver", file.readline().strip(), file.readline().strip())
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.sendto(b"datagram", (address, UDP))
        print("socketserver", sock.recv(100))


async def streams(address: str, context: ssl.SSLContext) -> None:
    async def ask(port: int, **more: object) -> bytes:
        reader, writer = await asyncio.open_connection(address, port, **more)  # type: ignore[arg-type]
        writer.write(b"over asyncio\n")
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return line

    print("asyncio", await asyncio.gather(*[ask(STREAMS) for _ in range(3)], ask(TLS_STREAMS, ssl=context)))


def mail(address: str, context: ssl.SSLContext) -> None:
    with smtplib.SMTP(address, SMTP, local_hostname="client", timeout=20) as server:
        print("smtplib", server.starttls(context=context)[0])
        server.mail("me@example.org")
        server.rcpt("you@example.org")
        print("smtplib", server.data("hello\n" * 5000))


def files(address: str) -> None:
    with ftplib.FTP(timeout=20) as server:
        server.connect(address, FTP)
        server.login()
        print("ftplib", server.storbinary("STOR file", io.BytesIO(b"z" * LARGE)))
        got = bytearray()
        print("ftplib", server.retrbinary("RETR file", got.extend), len(got))


def everything(address: str, certificate: str) -> None:
    context = ssl.create_default_context(cafile=certificate)
    web(address, context)
    echoes(address)
    asyncio.run(streams(address, context))
    mail(address, context)
    files(address)


if __name__ == "__main__":
    everything(*sys.argv[1:])
