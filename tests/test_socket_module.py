"""B4, B5: the look-alikes of `socket`, beside the standard library's own over the host's loopback."""

from __future__ import annotations

import contextlib
import inspect
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import guest.socket
import vring
import vring.socket
from tests.socket_scripts import SCRIPTS, Tell, pair
from vring.lookalike.ending import finish
from vring.session import Session

Script = Callable[[Any, Tell], None]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with vring.boot(nic="none", cmdline="net.hosts=localhost@127.0.0.1,peer@127.0.0.2") as made:
        yield made


# -- side by side ----------------------------------------------------------------------------------------------------


def over_the_kernel(script: Script) -> str:
    tell = Tell()
    script(socket, tell)
    return tell.text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_b4_a_program_sees_the_same_over_a_guest_as_over_the_kernel(script: Script, session: Session) -> None:
    tell = Tell()

    script(session.guest.socket, tell)

    assert tell.text == over_the_kernel(script)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_b4_and_so_does_a_program_in_a_guest_on_the_virtual_clock(script: Script) -> None:
    tell = Tell()

    def program(env: Any, argv: list[str]) -> int:
        script(guest.socket, tell)
        return 0

    with vring.boot(nic="none", clock="virtual", cmdline="net.hosts=localhost@127.0.0.1") as session:
        session.run(seconds=0.1)
        process = session.guest.spawn(program)
        session.run(seconds=60)
        said = session.console

    assert process.exit_status == 0, said
    assert tell.text == over_the_kernel(script)


# -- every name ------------------------------------------------------------------------------------------------------

NOT_THERE = {
    "CAPI": "a door for C extensions to the host's sockets",
    "IntEnum": "another module's, which the standard library's imports by name",
    "IntFlag": "likewise",
}
# Families, and what belongs to them, that a guest has not: CAN, Bluetooth, VSOCK, TIPC, kernel crypto, and older ones.
NOT_IN_A_GUEST = (
    "AF_ALG", "AF_APPLETALK", "AF_ASH", "AF_ATM", "AF_AX25", "AF_BLUETOOTH", "AF_BRIDGE", "AF_CAN", "AF_DECnet",
    "AF_DIVERT", "AF_ECONET", "AF_HYPERV", "AF_IPX", "AF_IRDA", "AF_KEY", "AF_LLC", "AF_NETBEUI", "AF_NETROM",
    "AF_PPPOX", "AF_QIPCRTR", "AF_RDS", "AF_ROSE", "AF_SECURITY", "AF_SNA", "AF_TIPC", "AF_VSOCK", "AF_WANPIPE",
    "AF_X25", "ALG_", "BDADDR_", "BT", "CAN_", "ETH", "HCI_", "HV", "IOCTL_VM_", "J1939_", "NETLINK_", "PF_CAN",
    "PF_RDS", "SCM_J1939_", "SOL_ALG", "SOL_BLUETOOTH", "SOL_CAN_", "SOL_HCI", "SOL_L2CAP", "SOL_RDS", "SOL_RFCOMM",
    "SOL_SCO", "SOL_TIPC", "SO_HCI", "SO_J1939_", "SO_L2CAP", "SO_VM_SOCKETS_", "TIPC_", "UDPLITE_", "VMADDR_",
    "VM_SOCKETS_",
)  # fmt: skip


def public(module: ModuleType) -> set[str]:
    return {
        name for name, value in vars(module).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }


def without(names: set[str], expected: tuple[str, ...] | dict[str, str]) -> set[str]:
    return {name for name in names if not name.startswith(tuple(expected))}


def test_every_public_name_of_the_hosts_module_is_there() -> None:
    there = set(vring.socket.__all__)

    assert without(public(socket) - there, NOT_THERE) == set()


def test_inside_a_guest_only_foreign_families_are_missing() -> None:
    there = set(guest.socket.__all__)

    assert without(public(socket) - there, {**NOT_THERE, **dict.fromkeys(NOT_IN_A_GUEST, "")}) == set()


@pytest.mark.parametrize("module", [guest.socket, vring.socket], ids=lambda module: module.__name__)
def test_constants_are_the_hosts(module: Any) -> None:
    names = [name for name in module.__all__ if isinstance(getattr(socket, name, None), int)]

    assert len(names) > 190
    assert {name: int(getattr(module, name)) for name in names} == {name: int(getattr(socket, name)) for name in names}


def test_functions_and_methods_take_the_same_arguments() -> None:
    """Those that are written in Python can be asked; what C functions take, the scripts above try."""

    def arguments(of: Any) -> list[tuple[str, Any, bool]]:
        return [
            (each.name, each.kind, each.default is inspect.Parameter.empty)
            for each in inspect.signature(of).parameters.values()
        ]

    places = ((socket, vring.socket, vring.socket.__all__), (socket.socket, vring.socket.socket, dir(socket.socket)))
    asked = {
        name: (getattr(theirs, name), getattr(ours, name))
        for theirs, ours, names in places
        for name in names
        if not name.startswith("_") and inspect.isfunction(getattr(theirs, name, None))
    }

    assert len(asked) > 15
    assert {name: arguments(ours) for name, (_, ours) in asked.items()} == {
        name: arguments(theirs) for name, (theirs, _) in asked.items()
    }


def test_the_class_has_every_method_and_property() -> None:
    missing = {name for name in dir(socket.socket) if not hasattr(vring.socket.socket, name)}

    assert missing == {"_sendfile_use_sendfile"}  # its mirror takes no data; `sendfile` sends without


# -- whose sockets ---------------------------------------------------------------------------------------------------


def test_without_a_guest_one_line_says_where_to_look() -> None:
    with pytest.raises(RuntimeError, match=r"no current guest.*machine\.guest\.socket, or vring\.socket"):
        guest.socket.socket()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'guest\.socket' has no attribute 'nonsense'"):
        _ = guest.socket.nonsense


B5 = """
from vring import socket
with socket.create_connection(("127.0.0.1", 7)) as client:
    print(client.sendall(b"hello"), client.recv(100))
"""
SERVER = """
import threading
from vring import socket
listener = socket.create_server(("127.0.0.1", 7))
def serve():
    with listener, listener.accept()[0] as server:
        server.sendall(server.recv(100).upper())
threading.Thread(target=serve).start()
"""


def test_b5_three_lines_are_a_tcp_client_in_an_ordinary_program() -> None:
    done = subprocess.run([sys.executable, "-c", SERVER + B5], capture_output=True, text=True, timeout=30, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "None b'HELLO'\n", "")


def test_b5_a_programs_own_guest_reaches_what_the_host_reaches() -> None:
    """The user wire is there unless VRING_BOARD says otherwise: 10.0.2.2 is this host's own loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        program = f"""
from vring import socket
with socket.create_connection(("10.0.2.2", {port}), timeout=10) as client:
    print(client.getsockname()[0], client.recv(100))
"""
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as client:
            listener.settimeout(20)
            with listener.accept()[0] as server:
                server.sendall(b"from outside")
            said = client.communicate(timeout=20)[0]

    assert (client.returncode, said) == (0, "10.0.2.15 b'from outside'\n")


FAR = """
[[guest]]
name = "left"
ip = "10.0.0.1"
mask = "255.255.255.0"
nic = [{ wire = "hub:lan,delay=20ms" }]
[[guest]]
name = "right"
ip = "10.0.0.2"
mask = "255.255.255.0"
nic = [{ wire = "hub:lan" }]
"""


def test_b5_what_is_left_to_send_arrives_though_the_program_ends() -> None:
    """The program on the left ends as soon as the last of its data lies in its socket; the right one gets all of it."""
    with vring.boot(vring.Board.parse(FAR)) as session:
        left, right = session.guests
        got: list[bytes] = []
        with right.socket.create_server(("10.0.0.2", 7)) as listener:
            client = left.socket.create_connection(("10.0.0.2", 7), timeout=5)
            server, _ = listener.accept()

        def read() -> None:
            with contextlib.suppress(OSError), server, server.makefile("rb") as file:
                got.append(file.read())

        reader = threading.Thread(target=read)
        reader.start()
        client.sendall(bytes(50_000))
        client.close()
        finish(session, left)
        reader.join(10)

    assert [len(each) for each in got] == [50_000]


def test_unix_sockets_are_the_hosts_and_so_are_descriptors_that_are_no_guests(session: Session) -> None:
    theirs = session.guest.socket
    with theirs.socket(theirs.AF_UNIX) as sock:
        assert os.fstat(sock.fileno())
        assert sock.family == socket.AF_UNIX
    near, far = socket.socketpair()
    with near, theirs.socket(fileno=far.detach()) as wrapped, wrapped.dup() as twin:
        near.sendall(b"of the host")
        assert (twin.family, twin.recv(100)) == (socket.AF_UNIX, b"of the host")
    left, right = theirs.socketpair()
    read, write = os.pipe()
    with left, right:
        theirs.send_fds(left, [b"a pipe"], [write])
        data, (copy,), _, _ = theirs.recv_fds(right, 100, 1)
    os.close(write)
    os.write(copy, data)
    os.close(copy)
    assert os.read(read, 100) == b"a pipe"
    theirs.close(read)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read)


def test_names_are_asked_of_the_guests_own_resolver(session: Session) -> None:
    theirs = session.guest.socket

    assert theirs.gethostbyname("peer") == "127.0.0.2"
    assert theirs.getaddrinfo("peer", "http", type=socket.SOCK_STREAM) == [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 80))
    ]
    assert theirs.gethostbyaddr("127.0.0.2") == ("peer", [], ["127.0.0.2"])
    with theirs.create_server(("peer", 0)) as listener, theirs.create_connection(("peer", listener.getsockname()[1])):
        pass
    with pytest.raises(socket.gaierror) as error:
        theirs.create_connection(("nobody.invalid", 80))
    assert error.value.errno in (socket.EAI_NONAME, socket.EAI_AGAIN)


def test_one_socket_takes_connections_of_both_families(session: Session) -> None:
    theirs = session.guest.socket
    assert theirs.has_dualstack_ipv6()

    with theirs.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        for address, seen in (("127.0.0.1", "::ffff:127.0.0.1"), ("::1", "::1")):
            with theirs.create_connection((address, port), timeout=5) as client:
                server, peer = listener.accept()
                assert (peer[0], client.getpeername()[0]) == (seen, address)
                server.close()


# -- a real descriptor -----------------------------------------------------------------------------------------------


def ready(sock: Any) -> tuple[bool, bool]:
    """What the host's own poll says: readable, writable."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | select.POLLOUT)
    events = dict(poll.poll(0)).get(sock.fileno(), 0)
    return bool(events & select.POLLIN), bool(events & select.POLLOUT)


def test_fileno_is_a_descriptor_of_the_host_that_is_ready_when_the_socket_is(session: Session) -> None:
    client, server = pair(session.guest.socket)
    with client, server:
        assert os.fstat(client.fileno())
        assert ready(client) == (False, True)
        assert ready(server) == (False, True)

        server.sendall(b"hello")
        assert select.select([client.fileno()], [], [], 5)[0] == [client.fileno()]
        assert client.recv(2) == b"he"
        assert ready(client) == (True, True)  # there is more
        assert client.recv(100) == b"llo"
        assert ready(client) == (False, True)

        client.setblocking(False)
        while (now := ready(client))[1]:  # meanwhile the peer's buffer fills, which makes room here
            with contextlib.suppress(BlockingIOError):
                client.send(bytes(65536))
        assert now == (False, False)  # both buffers are full
        taken = 0
        server.settimeout(5)
        while not ready(client)[1]:
            taken += len(server.recv(1 << 20))
        assert taken

        server.shutdown(socket.SHUT_WR)
        assert select.select([client.fileno()], [], [], 5)[0] == [client.fileno()]
        assert client.recv(1) == b""
        assert ready(client)[0]  # and stays so


def test_a_listening_sockets_descriptor_is_readable_when_a_connection_waits(session: Session) -> None:
    theirs = session.guest.socket
    with theirs.create_server(("127.0.0.1", 0)) as listener:
        assert ready(listener) == (False, False)
        with theirs.create_connection(listener.getsockname()):
            assert select.select([listener.fileno()], [], [], 5)[0] == [listener.fileno()]
            listener.accept()[0].close()
            assert ready(listener) == (False, False)


def test_closing_gives_descriptors_back_on_both_sides(session: Session) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        client, server = pair(session.guest.socket)
        numbers = client.fileno(), server.fileno()
        client.close()
        server.close()
        for number in numbers:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(number)
    assert len(os.listdir("/proc/self/fd")) <= len(before)  # fewer, where something else was given back meanwhile


def test_who_closes_the_number_has_closed_the_socket(session: Session) -> None:
    client, server = pair(session.guest.socket)
    with server:
        os.close(client.detach())
        server.settimeout(5)
        assert server.recv(1) == b""


def test_the_inheritance_flag_is_the_descriptors(session: Session) -> None:
    with session.guest.socket.socket() as sock:
        for flag in (True, False):
            sock.set_inheritable(flag)
            assert (os.get_inheritable(sock.fileno()), sock.get_inheritable()) == (flag, flag)
        sock.set_inheritable(True)
        with sock.dup() as twin:
            assert (twin.get_inheritable(), os.get_inheritable(twin.fileno())) == (False, False)


def test_a_socket_that_nobody_refers_to_is_closed_with_a_warning(session: Session) -> None:
    client, server = pair(session.guest.socket)
    with server:
        server.settimeout(5)
        with pytest.warns(ResourceWarning, match="unclosed <socket.socket fd="):
            del client
        assert server.recv(1) == b""


# -- threads ---------------------------------------------------------------------------------------------------------


def test_one_thread_reads_while_another_writes(session: Session) -> None:
    client, server = pair(session.guest.socket)
    got = bytearray()

    def read() -> None:
        while data := server.recv(65536):
            got.extend(data)

    with client, server:
        reader = threading.Thread(target=read)
        reader.start()
        sent = bytes(range(256)) * 8000
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        reader.join(20)

    assert got == sent


def test_a_shutdown_ends_another_threads_read(session: Session) -> None:
    client, server = pair(session.guest.socket)
    seen: list[bytes] = []
    with client, server:
        reader = threading.Thread(target=lambda: seen.append(client.recv(1)))
        reader.start()
        client.shutdown(socket.SHUT_RDWR)
        reader.join(10)

    assert seen == [b""]
