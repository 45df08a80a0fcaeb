"""B8: unchanged programs over a guest, with `vring run`: beside the interpreter alone; over the loopback, between two
guests, and between a guest and the host's kernel.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.netns import Namespace, namespace
from tests.requirements import require_program
from tests.tap_world import make_tap, until

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests" / "programs"
VRING = [sys.executable, "-P", "-c", "from vring.cli import main; main()", "run"]
HERE = "10.77.0.1"  # nobody has it but the guest
ALONE = ["--wire", "hub", "--cmdline", f"-ipaddr {HERE} -netmask 255.255.255.0"]
HOST, LEFT, RIGHT = "10.9.0.1", "10.9.0.2", "10.9.0.3"

SEEN = """\
urllib http 200 1000000
urllib https 200 1000000
http.client HTTPConnection 0
http.client HTTPConnection 10
http.client HTTPConnection 1000000
http.client HTTPSConnection 0
http.client HTTPSConnection 10
http.client HTTPSConnection 1000000
urllib ConnectionRefusedError
urllib SSLCertVerificationError
socketserver ONE TWO
socketserver b'DATAGRAM'
asyncio [b'OVER ASYNCIO\\n', b'OVER ASYNCIO\\n', b'OVER ASYNCIO\\n', b'OVER ASYNCIO\\n']
smtplib 220
smtplib (250, b'35000 bytes over SSLSocket')
ftplib 226 done
ftplib 226 done 1000000
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for every address here, and its key: made anew for each run."""
    folder = tmp_path_factory.mktemp("certificate")
    made = str(folder / "certificate.pem"), str(folder / "key.pem")
    names = ",".join(f"IP:{address}" for address in ("127.0.0.1", HERE, HOST, LEFT, RIGHT))
    words = [require_program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += ["-nodes", "-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={names}"]
    subprocess.run([*words, "-out", made[0], "-keyout", made[1]], check=True, capture_output=True, timeout=60)
    return made


def run(words: Sequence[str], where: Path | None = None, text: str = "") -> tuple[int, str, str]:
    """A program's exit status, and what it says on both outputs."""
    done = subprocess.run(words, cwd=where, input=text, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


# -- over the loopback -----------------------------------------------------------------------------------------------


def test_b8_servers_and_clients_of_the_standard_library_run_over_a_guest(certificate: tuple[str, str]) -> None:
    """http, https, socketserver, asyncio with and without TLS, smtplib with STARTTLS, ftplib: in one process."""
    words = [*VRING, *ALONE, str(PROGRAMS / "servers.py"), HERE, *certificate, "clients"]

    assert run(words) == (0, SEEN, "")


BOTH_WAYS = """\
import os, select, socket, ssl, sys, threading
where, *pair = sys.argv[1:]
listener = socket.create_server((where, 0))
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(*pair)
client = ssl.create_default_context(cafile=pair[0])
data, start = os.urandom(1_000_000), threading.Event()
def small(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20000)
    return sock
def echo(sock):
    while data := sock.recv(65536):
        sock.sendall(data)
def say(sock):
    sock.sendall(b"hello")
    start.wait()
    while sock.recv(65536):
        pass
def hear(sock):
    start.wait()
    got = b""
    while more := sock.recv(65536):
        got += more
    sock.sendall(str(got == data).encode())
def connect(serve):
    def run():
        with server.wrap_socket(small(listener.accept()[0]), server_side=True) as sock:
            serve(sock)
    threading.Thread(target=run, daemon=True).start()
    return client.wrap_socket(small(socket.create_connection(listener.getsockname())), server_hostname=where)

with connect(echo) as sock:
    threading.Thread(target=sock.sendall, args=(data,), daemon=True).start()
    got = b""
    while len(got) < len(data) and (more := sock.recv(65536)):
        got += more
    print("two threads", got == data)
with connect(say) as sock:
    select.select([sock], [], [])
    sock.setblocking(False)
    try:
        while True:
            sock.send(data)
    except ssl.SSLWantWriteError:
        print("no more room", sock.recv(9))
    start.set()
start.clear()
with connect(hear) as sock:
    sock.settimeout(0.01)
    late, left = 0, memoryview(data)
    while left:
        try:
            left = left[sock.send(left):]
        except TimeoutError:
            late += 1
            start.set()
    print("late", late > 0)
    sock.settimeout(None)
    try:
        sock.unwrap()
    except ssl.SSLError as error:
        print(error.reason)
"""


def test_b8_ssl_reads_and_writes_at_once_and_goes_on_where_it_could_not(
    tmp_path: Path, certificate: tuple[str, str]
) -> None:
    """One thread reads while another one writes, and neither waits for the other; who is told that there is no room
    reads on; who was too slow writes on.
    """
    (tmp_path / "ways.py").write_text(BOTH_WAYS)
    words = ["ways.py", "127.0.0.1", *certificate]

    expected = run([sys.executable, *words], tmp_path)

    assert run([*VRING, *words], tmp_path) == expected


OUTLIVING = """\
import os, select, socket, threading
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
def wait(call):
    started.release()
    try:
        call()
    finally:
        os.write(1, b"came back")
started = threading.Semaphore(0)
for call in (listener.accept, lambda: client.recv(1), lambda: [client.getsockname() for _ in iter(int, 1)]):
    threading.Thread(target=wait, args=(call,), daemon=True).start()
    started.acquire()
"""


def test_threads_that_outlive_the_program_hear_of_no_errors(tmp_path: Path) -> None:
    """They wait, or are at work, when the program ends and takes its guest with it."""
    (tmp_path / "ends.py").write_text(OUTLIVING)

    assert run([*VRING, "ends.py"], tmp_path) == (0, "", "") == run([sys.executable, "ends.py"], tmp_path)


def test_b8_a_program_reaches_this_hosts_own_servers_where_nothing_else_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text("of the host")
    program = tmp_path / "client.py"
    program.write_text(
        "import sys, urllib.request\n"
        "with urllib.request.urlopen(f'http://10.0.2.2:{sys.argv[1]}/page.txt', timeout=10) as answer:\n"
        "    print(answer.status, answer.read())\n"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        said = run([*VRING, str(program), str(server.server_address[1])])
        server.shutdown()
        thread.join()

    assert said == (0, "200 b'of the host'\n", "")


def test_b8_one_command_runs_a_web_server_and_its_client() -> None:
    status, said, complaints = run([*VRING, str(ROOT / "fixtures" / "programs" / "web.py")])

    assert (status, said[:15], complaints) == (0, "200 SimpleHTTP ", "")


# -- as the interpreter would ----------------------------------------------------------------------------------------

PLAIN = {
    "itself": """\
import __main__, other, pickle, sys
print(sys.argv, sys.path[0], __name__, __file__, __package__, __spec__, "__annotations__" in globals(), other.name)
class A: pass
print(type(pickle.loads(pickle.dumps(A()))).__name__, __main__.A is A, input()[::-1])
sys.exit(7)
""",
    "error": "def inner():\n    raise ValueError('wrong')\ninner()",
    "syntax": "print('never')\n1 +* 2",
    "interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT); input()",
    "ends": """\
import atexit, sys, threading
atexit.register(print, "at the end")
threading.Thread(target=lambda: print("a thread goes on")).start()
sys.exit("said to stderr")
""",
    "library": """\
import asyncio, concurrent.futures, select, socket, subprocess, sys
a, b = socket.socketpair(); a.send(b"x"); print(a.family, b.recv(1), socket.__name__, select.__name__, socket.gaierror)
print(subprocess.run([sys.executable, "-c", "print(5)"], capture_output=True).stdout)
print(list(concurrent.futures.ThreadPoolExecutor(3).map(abs, [-1, 2, -3])), asyncio.run(asyncio.sleep(0, "slept")))
""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in PLAIN.items():
        (tmp_path / f"{name}_.py").write_text(text)
    (tmp_path / "other.py").write_text("name = 'beside it'")
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    text = "import sys; print(sys.argv, sys.path[0], __package__, __spec__.name, __file__)"
    (package / "__main__.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", PLAIN)
def test_a_program_says_and_ends_as_without_us(name: str, folder: Path) -> None:
    words = [f"{name}_.py", "--verbose", "-m", "a b"]

    expected = run([sys.executable, *words], folder, "line\n")

    assert run([*VRING, *words], folder, "line\n") == expected


@pytest.mark.parametrize("words", [["-m", "package", "x"], ["package", "x"], ["-mother"], ["none.py"], ["-m", "none"]])
def test_so_do_modules_and_folders(words: list[str], folder: Path) -> None:
    assert run([*VRING, *words], folder) == run([sys.executable, *words], folder)


def test_the_sockets_are_the_guests_and_not_the_hosts(folder: Path) -> None:
    (folder / "who.py").write_text("import socket; print(socket.gethostname(), socket.if_nameindex())")
    (folder / "here").mkdir()
    (folder / "here" / "struct.py").write_text("raise ImportError('the current directory is no place for modules')")

    assert run([*VRING, *ALONE, "../who.py"], folder / "here") == (0, "guest [(1, 'lo'), (2, 'eth0')]\n", "")


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        ([], 2, "vring: run: a program is needed: a script, or -m and a module"),
        (["--guest", "bob", "x.py"], 2, "vring: there is no guest 'bob'; the board has guest"),
        (["--board", "nowhere.toml", "x.py"], 2, "nowhere.toml"),
        (["--cmdline", "-ipaddr 10.0.0.999", "x.py"], 2, "is not an IPv4 address"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], status: int, line: str) -> None:
    ended, said, complaint = run([*VRING, *words])

    assert (ended, said, complaint.count("\n")) == (status, "", 1)
    assert line in complaint


# -- on TAPs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bridged() -> Iterator[Namespace]:
    """A namespace whose kernel has HOST on a bridge, with two TAPs on it."""
    with namespace() as host:
        host.run("ip", "link", "add", "br0", "type", "bridge")
        host.run("ip", "addr", "add", f"{HOST}/24", "dev", "br0")
        host.run("ip", "link", "set", "br0", "up")
        for name in ("t0", "t1"):
            make_tap(host, name)
            host.run("ip", "link", "set", name, "master", "br0")
        yield host


def on(tap: str, address: str) -> list[str]:
    """The command that runs a program on a guest at a TAP."""
    return [*VRING, "--wire", f"tap:{tap}", "--cmdline", f"-ipaddr {address} -netmask 255.255.255.0"]


@contextmanager
def serving(host: Namespace, words: Sequence[str]) -> Iterator[None]:
    """servers.py, until the block ends; it must end well."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = host.popen(*words, **pipes)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if first != "ready\n":
            process.kill()
            raise AssertionError(first + "".join(process.communicate()))
        yield
        assert (*process.communicate(timeout=20), process.returncode) == ("", "", 0)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_b8_programs_talk_between_two_guests_and_between_a_guest_and_the_host(
    bridged: Namespace, certificate: tuple[str, str]
) -> None:
    """Everything, https among it: guest to guest, guest to host, host to guest; the same two programs everywhere."""
    servers, clients = str(PROGRAMS / "servers.py"), str(PROGRAMS / "clients.py")
    alone = [sys.executable]
    left, right = on("t0", LEFT), on("t1", RIGHT)
    with ExitStack() as stack:
        stack.enter_context(serving(bridged, [*left, servers, LEFT, *certificate]))
        stack.enter_context(serving(bridged, [*alone, servers, HOST, *certificate]))
        for who, address in ((right, LEFT), (right, HOST), (alone, LEFT)):
            done = bridged.run(*who, clients, address, certificate[0], check=False)
            assert (done.returncode, done.stdout, done.stderr) == (0, SEEN, ""), f"{who[-1]} asks {address}"
        curl = ["curl", "-sS", "--max-time", "20", "--cacert", certificate[0], f"https://{LEFT}:8001/5"]
        assert bridged.run(*curl).stdout == "xxxxx"


def test_b8_the_hosts_curl_fetches_from_http_server_in_a_guest(bridged: Namespace, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20000
    (tmp_path / "large").write_bytes(content)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file.txt").write_text("served by a guest\n")
    words = [*on("t0", LEFT), "-m", "http.server", "8000", "--directory", str(tmp_path)]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = bridged.popen(*words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    try:
        fetch = ["curl", "-sS", "--max-time", "20"]
        url = f"http://{LEFT}:8000"
        small = [*fetch, f"{url}/served/file.txt"]
        assert until(lambda: bridged.run(*small, check=False).stdout == "served by a guest\n"), log.read_text()
        bridged.run(*fetch, f"{url}/large", "-o", str(tmp_path / "fetched"))
        assert (tmp_path / "fetched").read_bytes() == content
        many = bridged.run(*fetch, "--parallel", *[f"{url}/served/"] * 20)
        assert many.stdout.count(">file.txt<") == 20
        missing = bridged.run(*fetch, "-o", "/dev/null", "-w", "%{http_code}", f"{url}/missing")
        assert missing.stdout == "404"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "Keyboard interrupt received, exiting." in log.read_text()
