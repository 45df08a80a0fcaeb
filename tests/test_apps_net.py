"""The network programs: ip, ss, udpecho, nslookup, and ping by name and over IPv6; two guests on a hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from guest.apps.decode import decode
from guest.apps.env import Env
from guest.kernel import Guest
from guest.net.address import parse_address
from guest.sys.constants import AF_INET, AF_INET6, SO_RCVBUF, SOCK_DGRAM, SOL_SOCKET
from hw.wire.cable import cable
from hw.wire.hub import Hub
from tests.guest_board import Board

ALICE = "-ipaddr 10.0.0.1 -netmask 255.255.255.0 -gateway 10.0.0.254 -ip6 net.hosts=bob@10.0.0.2,bob@fd00::2"
BOB = "-ipaddr 10.0.0.2 -netmask 255.255.255.0 -ip6"


class Pair:
    """Alice, with a second card, and Bob, on one hub; both have an address in fd00::/64."""

    def __init__(self, board: Board) -> None:
        self.board = board
        hub = Hub(board.loop, "lan")
        self.alice = board.guest(ALICE, hub.port("a"), cable(board.loop)[0], name="alice")
        self.bob = board.guest(BOB, hub.port("b"), name="bob")
        board.settle()
        self.alice.calls.if_add_addr("eth0", "fd00::1", 64)
        self.bob.calls.if_add_addr("eth0", "fd00::2", 64)
        board.run(3)

    def run(self, line: str, seconds: float = 20, guest: Guest | None = None) -> tuple[int | None, list[str]]:
        """The exit status of a program on Alice, and what it printed."""
        guest = guest or self.alice
        name, *words = line.split()
        guest.log.output.clear()
        process = guest.spawn(name, *words)
        self.board.run(seconds)
        return process.exit_status, guest.log.output

    def link_local(self, guest: Guest) -> str:
        """The link-local address of a guest's eth0."""
        return next(text for text, _ in guest.calls.if_addrs("eth0") if text.startswith("fe80"))


@pytest.fixture
def pair() -> Iterator[Pair]:
    board = Board()
    yield Pair(board)
    board.close()


# -- ip ------------------------------------------------------------------------------------------------------------


def test_ip_addr_shows_interfaces_addresses_and_scopes(pair: Pair) -> None:
    status, output = pair.run("ip addr")
    mac, other = (fe.mac.hex(":") for fe in pair.alice.fes)
    assert status == 0
    assert output == [
        "1: lo: <UP,LOOPBACK,RUNNING> mtu 65536",
        "    link/none",
        "    inet 127.0.0.1/8 scope host",
        "    inet6 ::1/128 scope host",
        "2: eth0: <UP,BROADCAST,RUNNING,MULTICAST> mtu 1500",
        f"    link/ether {mac}",
        "    inet 10.0.0.1/24 scope global",
        f"    inet6 {pair.link_local(pair.alice)}/64 scope link",
        "    inet6 fd00::1/64 scope global",
        "3: eth1: <BROADCAST,MULTICAST> mtu 1500",
        f"    link/ether {other}",
    ]
    assert pair.run("ip -4 addr show dev eth0")[1][2:] == ["    inet 10.0.0.1/24 scope global"]
    assert pair.run("ip -6 addr show lo")[1][2:] == ["    inet6 ::1/128 scope host"]
    assert pair.run("ip addr show eth9") == (1, ["ip: there is no eth9; there are lo, eth0, eth1"])


def test_ip_addr_add_and_del_change_what_the_host_answers_to(pair: Pair) -> None:
    assert pair.run("ping 10.0.0.77 -c 1 -q")[0] == 1
    assert pair.run("ip addr add 10.0.0.77/24 dev eth0", guest=pair.bob) == (0, [])
    assert pair.run("ping 10.0.0.77 -c 1 -q")[0] == 0
    assert pair.run("ip addr add 10.0.0.77/24 dev eth0", guest=pair.bob) == (
        1, ["ip: addr add 10.0.0.77/24 dev eth0: File exists"]
    )  # fmt: skip
    assert pair.run("ip addr del 10.0.0.77/24 dev eth0", guest=pair.bob) == (0, [])
    assert pair.run("ping 10.0.0.77 -c 1 -q")[0] == 1
    assert pair.run("ip addr del 10.0.0.77/24 dev eth0", guest=pair.bob)[0] == 1


def test_an_address_under_examination_is_shown_as_tentative(pair: Pair) -> None:
    pair.run("ip addr add fd00::5/64 dev eth0", 0.1)
    assert "    inet6 fd00::5/64 scope global tentative" in pair.run("ip addr", 0.1)[1]
    assert "        inet6 fd00::5/64 tentative" in pair.run("ifconfig eth0", 0.1)[1]
    assert "    inet6 fd00::5/64 scope global" in pair.run("ip addr", 5)[1] + pair.run("ip addr")[1]


def test_ip_route_shows_adds_and_deletes(pair: Pair) -> None:
    assert pair.run("ip route") == (0, ["10.0.0.0/24 dev eth0", "default via 10.0.0.254 dev eth0"])
    assert pair.run("ip route add 10.5.0.0/16 via 10.0.0.2 metric 5") == (0, [])
    assert pair.run("ip route add default via fd00::2") == (0, [])
    assert pair.run("ip route")[1][1] == "10.5.0.0/16 via 10.0.0.2 dev eth0 metric 5"
    assert pair.run("ip -6 route")[1] == ["fe80::/64 dev eth0", "fd00::/64 dev eth0", "default via fd00::2 dev eth0"]
    hop = pair.alice.stack.ip.hop(parse_address("10.5.1.2"))
    assert hop is not None
    assert hop.next_hop == parse_address("10.0.0.2")
    assert pair.run("ip route del 10.5.0.0/16") == (0, [])
    assert pair.run("ip -6 route del default") == (0, [])
    assert pair.run("ip route del 10.5.0.0/16") == (1, ["ip: route del 10.5.0.0/16: No such process"])
    assert pair.run("ip -6 route")[1] == ["fe80::/64 dev eth0", "fd00::/64 dev eth0"]
    assert pair.run("ip route add 10.6.0.0/16 via 10.9.9.9") == (
        1, ["ip: route add 10.6.0.0/16 via 10.9.9.9: Network is unreachable"]
    )  # fmt: skip


def test_ip_neigh_shows_who_was_heard_and_who_is_asked_for(pair: Pair) -> None:
    assert pair.run("ping 10.0.0.2 -c 1 -q")[0] == 0
    assert pair.run("ping -6 bob -c 1 -q")[0] == 0
    pair.alice.spawn("ping", "10.0.0.99", "-c", "1", "-q")
    status, output = pair.run("ip neigh", 0.5)
    mac = pair.bob.fes[0].mac.hex(":")
    assert status == 0
    assert set(output) >= {
        f"10.0.0.2 dev eth0 lladdr {mac} REACHABLE",
        f"fd00::2 dev eth0 lladdr {mac} REACHABLE",
        "10.0.0.99 dev eth0 INCOMPLETE",
    }
    shown = [line for line in pair.run("ip -6 neigh show dev eth0")[1] if " dev " in line]  # ping's words beside it
    assert shown == [f"fd00::2 dev eth0 lladdr {mac} REACHABLE"]


def test_ip_link_sets_up_down_and_mtu(pair: Pair) -> None:
    assert pair.run("ip link set dev eth0 down") == (0, [])
    assert "UP" not in pair.run("ip link show eth0")[1][0]
    assert pair.run("ping 10.0.0.2 -c 1 -q")[0] == 1
    assert pair.run("ip link set eth0 up") == (0, [])
    assert pair.run("ping 10.0.0.2 -c 1 -q")[0] == 0
    assert pair.run("ip link set eth0 mtu 1400") == (0, [])
    assert pair.run("ip link show eth0")[1][0].endswith("mtu 1400")
    assert pair.run("ip link set eth0 mtu 9000") == (1, ["ip: eth0 cannot carry more than 1500 bytes"])
    assert pair.run("ip link set lo mtu 1500") == (0, [])
    assert pair.run("ip link set eth1 up") == (1, ["ip: eth1 has no network interface"])


def test_ip_s_link_shows_the_counters_of_the_device(pair: Pair) -> None:
    pair.run("ping 10.0.0.2 -c 3 -q")
    status, output = pair.run("ip -s link show eth0")
    counters = pair.alice.fes[0].device.counters
    assert status == 0
    assert output[2] == f"    RX: bytes {counters['rx_bytes']}  packets {counters['rx_packets']}  dropped 0"
    assert output[3] == f"    TX: bytes {counters['tx_bytes']}  packets {counters['tx_packets']}  dropped 0"
    counters["rx_dropped_short"] += 2
    assert pair.run("ip -s link show eth0")[1][2:4] == [
        output[2].replace("dropped 0", "dropped 2"), "        rx_dropped_short 2"
    ]  # fmt: skip


# -- ss ------------------------------------------------------------------------------------------------------------


def test_ss_lists_sockets_with_and_without_a_peer(pair: Pair) -> None:
    calls = pair.alice.calls
    wild, dual, peered = (calls.socket(family, SOCK_DGRAM) for family in (AF_INET, AF_INET6, AF_INET))
    calls.bind(wild, ("0.0.0.0", 53))
    calls.bind(dual, ("::", 7))
    calls.bind(peered, ("10.0.0.1", 5000))
    calls.connect(peered, ("10.0.0.2", 7))

    assert pair.run("ss -u") == (0, [
        "State  Recv-Q  Send-Q  Local Address:Port  Peer Address:Port",
        "ESTAB  0       0       10.0.0.1:5000       10.0.0.2:echo",
    ])  # fmt: skip
    assert pair.run("ss -uln")[1][1:] == [
        "UNCONN  0       0       *:7                 *:*",
        "UNCONN  0       0       0.0.0.0:53          0.0.0.0:*",
    ]
    assert len(pair.run("ss -ua")[1]) == 4
    assert [line.split()[3] for line in pair.run("ss -ul6")[1][1:]] == ["*:echo"]
    assert [line.split()[3] for line in pair.run("ss -ul4")[1][1:]] == ["0.0.0.0:domain"]
    calls.close_all()
    assert len(pair.run("ss -ua")[1]) == 1


def test_ss_shows_what_waits_and_what_was_dropped(pair: Pair) -> None:
    calls = pair.alice.calls
    fd = calls.socket(AF_INET, SOCK_DGRAM)
    calls.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, 0)
    calls.bind(fd, ("127.0.0.1", 7))
    for _ in range(10):
        calls.sendto(fd, bytes(500), ("127.0.0.1", 7))
    row = pair.run("ss -ulne")[1][1].split()
    assert row[0] == "UNCONN"
    assert int(row[1]) == pair.alice.calls.fds.file(fd).endpoint.queued_bytes > 500  # type: ignore[attr-defined]  # a socket
    assert int(row[-1]) > 0


# -- udpecho -------------------------------------------------------------------------------------------------------


def test_b16_udpecho_between_two_guests_over_both_families(pair: Pair) -> None:
    server = pair.bob.spawn("udpecho", "-l", "-c", "6")
    pair.board.run(0.1)
    assert pair.run("udpecho 10.0.0.2") == (
        0, ["5 bytes from 10.0.0.2 port 7: seq=1 time=0.000 ms", "1 sent, 1 echoed"]
    )  # fmt: skip
    assert pair.run("udpecho -6 bob 7 hey -c 3") == (0, [
        "3 bytes from fd00::2 port 7: seq=1 time=0.000 ms",
        "5 bytes from fd00::2 port 7: seq=2 time=0.000 ms",
        "5 bytes from fd00::2 port 7: seq=3 time=0.000 ms",
        "3 sent, 3 echoed",
    ])  # fmt: skip
    assert pair.run("udpecho -4 bob")[0] == 0
    assert pair.run(f"udpecho {pair.link_local(pair.bob)}%eth0")[0] == 0
    assert server.exit_status == 0
    assert pair.bob.log.output == ["udpecho: port 7", "udpecho: 6 datagrams served"]


def test_udpecho_without_a_server_is_refused(pair: Pair) -> None:
    assert pair.run("udpecho 10.0.0.2 9") == (1, ["1 sent, 0 echoed", "udpecho: 10.0.0.2 port 9: Connection refused"])


def test_udpecho_without_an_answer_gives_up_after_its_patience(pair: Pair) -> None:
    fd = pair.bob.calls.socket(AF_INET, SOCK_DGRAM)
    pair.bob.calls.bind(fd, ("10.0.0.2", 7))
    assert pair.run("udpecho 10.0.0.2 -W 2 -c 2", 3.9)[0] is None
    pair.board.run(0.2)
    assert pair.alice.log.output == [
        "udpecho: 10.0.0.2: no echo of datagram 1", "udpecho: 10.0.0.2: no echo of datagram 2", "2 sent, 0 echoed"
    ]  # fmt: skip


def test_udpecho_takes_no_other_datagram_for_an_echo(pair: Pair) -> None:
    def liar(env: Env, _argv: list[Any]) -> int:
        fd = env.calls.socket(AF_INET, SOCK_DGRAM)
        env.calls.bind(fd, ("10.0.0.2", 7))
        data, peer = env.calls.recvfrom(fd, 100)
        env.calls.sendto(fd, data + b"?", peer)
        env.calls.close(fd)
        return 0

    pair.bob.spawn(liar)
    pair.board.run(0.1)
    status, output = pair.run("udpecho 10.0.0.2")
    assert status == 1
    assert output[0] == "udpecho: 10.0.0.2: another datagram came"


def test_udpecho_says_that_a_port_is_taken_or_a_name_unknown(pair: Pair) -> None:
    pair.bob.spawn("udpecho", "-l")
    pair.board.run(0.1)
    assert pair.run("udpecho -l", guest=pair.bob) == (
        1, ["udpecho: port 7: Address already in use; ss -l shows by whom"]
    )  # fmt: skip
    assert pair.run("udpecho nobody")[0] == 1


# -- names ---------------------------------------------------------------------------------------------------------


def name_server(records: dict[tuple[str, str], list[str]]) -> Callable[[Env, list[Any]], int]:
    """A program that answers on port 53 from a table: (name, type) → data."""

    def main(env: Env, _argv: list[Any]) -> int:
        fd = env.calls.socket(AF_INET, SOCK_DGRAM)
        env.calls.bind(fd, ("10.0.0.2", 53))
        while True:
            data, peer = env.calls.recvfrom(fd, 2048)
            query = dns.message.from_wire(data)
            reply = dns.message.make_response(query, recursion_available=True)
            question = query.question[0]
            kind = dns.rdatatype.to_text(question.rdtype)
            name = question.name.to_text().rstrip(".")
            if (name, kind) in records:
                reply.answer.append(dns.rrset.from_text_list(question.name, 60, "IN", kind, records[name, kind]))
            elif not any(known == name for known, _ in records):
                reply.set_rcode(dns.rcode.NXDOMAIN)
            env.calls.sendto(fd, reply.to_wire(), peer)

    return main


RECORDS = {
    ("www.example.org", "A"): ["192.0.2.1"],  # one: dnspython, which plays the server here, shuffles several
    ("www.example.org", "AAAA"): ["2001:db8::1"],
    ("four.example.org", "A"): ["192.0.2.4"],
    ("bob.example.org", "A"): ["10.0.0.2"],
    ("1.2.0.192.in-addr.arpa", "PTR"): ["www.example.org."],
}


def test_nslookup_asks_a_server_for_both_families_and_for_names(pair: Pair) -> None:
    server = pair.bob.spawn(name_server(RECORDS))
    pair.board.run(0.1)
    assert pair.run("nslookup www.example.org 10.0.0.2") == (0, [
        "Server:  10.0.0.2#53",
        "",
        "Name:    www.example.org",
        "Address: 192.0.2.1",
        "Name:    www.example.org",
        "Address: 2001:db8::1",
    ])  # fmt: skip
    assert pair.run("nslookup -6 www.example.org 10.0.0.2")[1][2:] == [
        "Name:    www.example.org", "Address: 2001:db8::1"
    ]  # fmt: skip
    assert pair.run("nslookup 192.0.2.1 10.0.0.2")[1][2:] == ["192.0.2.1  name = www.example.org"]
    assert pair.run("nslookup four.example.org 10.0.0.2")[0] == 0
    assert pair.run("nslookup -6 four.example.org 10.0.0.2") == (
        1, ["Server:  10.0.0.2#53", "", "** four.example.org: No address of this family"]
    )  # fmt: skip
    assert pair.run("nslookup no.example.org 10.0.0.2")[1][-1] == "** no.example.org: Name or service not known"
    pair.bob.scheduler.kill(server)


def test_nslookup_knows_the_hosts_table_and_who_never_answers(pair: Pair) -> None:
    assert pair.run("nslookup bob") == (0, [
        "Server:  hosts", "", "Name:    bob", "Address: 10.0.0.2", "Name:    bob", "Address: fd00::2",
    ])  # fmt: skip
    assert pair.run("nslookup fd00::2")[1][-1] == "fd00::2  name = bob"
    assert pair.run("nslookup nobody") == (1, ["** nobody: No name server is known"])
    assert pair.run("nslookup nobody 10.0.0.99", 120)[1][-1] == "** nobody: No name server has answered"


def test_e56_ping_and_udpecho_by_a_name_that_a_server_knows(pair: Pair) -> None:
    pair.bob.spawn(name_server(RECORDS))
    pair.bob.spawn("udpecho", "-l", "12345")
    pair.alice.resolver.set_servers("static", [parse_address("10.0.0.2")], ["example.org"])
    pair.board.run(0.1)
    status, output = pair.run("ping bob.example.org -c 1")
    assert status == 0
    assert output[0] == "PING bob.example.org (10.0.0.2) 56(84) bytes of data."
    assert pair.run("udpecho bob.example.org 12345")[0] == 0
    assert pair.run("ping nobody.example.org -c 1") == (2, ["ping: nobody.example.org: Name or service not known"])


# -- ping over IPv6 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["fd00::2", "bob", "-6 bob"])
def test_ping_over_ipv6(pair: Pair, host: str) -> None:
    status, output = pair.run(f"ping {host} -c 2 -s 100")
    assert status == 0
    assert output[0] == f"PING {host.removeprefix('-6 ')} (fd00::2) 100(148) bytes of data."
    assert output[1] == "108 bytes from fd00::2: icmp_seq=1 ttl=64 time=0.000 ms"
    assert output[-3] == "--- fd00::2 ping statistics ---"
    assert output[-2] == "2 packets transmitted, 2 received, 0% packet loss, time 1000ms"


def test_ping_4_takes_the_other_family(pair: Pair) -> None:
    assert pair.run("ping -4 bob -c 1")[1][0] == "PING bob (10.0.0.2) 56(84) bytes of data."


def test_ping_to_a_link_local_address_goes_out_of_its_zone(pair: Pair) -> None:
    address = pair.link_local(pair.bob)
    status, output = pair.run(f"ping {address}%eth0 -c 1")
    assert status == 0
    assert output[1].startswith(f"64 bytes from {address}: icmp_seq=1")
    assert pair.run(f"ping {address}%lo -c 1 -W 1")[0] == 1
    assert pair.run(f"ping {address}%eth7 -c 1")[0] == 2


@pytest.mark.parametrize("size", [0, 1452, 1453, 20000, 65507])
def test_ping_of_any_size_over_both_families(pair: Pair, size: int) -> None:
    for host in ("10.0.0.2", "fd00::2"):
        status, output = pair.run(f"ping {host} -c 1 -s {size}")
        assert status == 0
        assert f"{size + 8} bytes from {host}" in output[1]


def test_ping_names_who_says_that_a_host_is_unreachable(pair: Pair) -> None:
    status, output = pair.run("ping fd00::99 -c 1 -W 9")
    assert status == 1
    assert re.match(r"From \S+ icmp_seq=1 Destination .*unreachable", output[1], re.IGNORECASE)


# -- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "ip", "ip foo", "ip addr frobnicate", "ip addr add 10.0.0.1/24", "ip addr add 10.0.0.1/33 dev eth0",
        "ip addr add x/24 dev eth0", "ip addr show eth0 eth1", "ip route add", "ip route add default via",
        "ip route add 10.0.0.0/8 toward 10.0.0.1", "ip route add 10.0.0.0/8 dev eth0 metric x", "ip route show x",
        "ip link set eth0", "ip link set eth0 sideways", "ip link set eth0 mtu 67", "ip neigh add x", "ip -9 addr",
        "ss x", "ss -q", "udpecho", "udpecho a 0", "udpecho a 7 b c", "udpecho -l 7 8", "udpecho a -W soon",
        "udpecho -l -c 0", "nslookup", "nslookup a b", "nslookup a 10.0.0.2 c",
        "ping 10.0.0.1 -s 65508", "ping fd00::1 -s 65528", "ping fd00::1%eth7",
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2_with_usage_text(pair: Pair, line: str) -> None:
    status, output = pair.run(line, 0.1)
    name = line.split(maxsplit=1)[0]
    assert status == 2
    assert output[0].startswith(f"{name}: ")
    assert output[1].startswith(f"usage: {name}")


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ("86dd60000000000811ff" "fe80" + "00" * 13 + "01" + "ff02" + "00" * 13 + "01" + "0035003500080000",
         "IP6 fe80::1 > ff02::1 UDP 53 > 53, 8 bytes"),
        ("86dd6000000000083aff" "fe80" + "00" * 13 + "01" + "ff02" + "00" * 13 + "01" + "8000000000070001",
         "IP6 fe80::1 > ff02::1 ICMPv6 echo request id 7 seq 1, 8 bytes"),
        ("86dd6000000000100001" + "00" * 15 + "01" + "00" * 15 + "02" + "3a00050200000000" + "8f00000000000000",
         "IP6 ::1 > ::2 ICMPv6 listener report code 0, 8 bytes"),
        ("86dd60000000001c2c40" + "00" * 15 + "01" + "00" * 15 + "02" + "1100" + "05a8" + "00000001" + "00" * 20,
         "IP6 ::1 > ::2 fragment at 1448, 20 bytes"),
    ],
)  # fmt: skip
def test_decode_knows_ipv6(raw: str, line: str) -> None:
    assert decode(bytes(12) + bytes.fromhex(raw)) == line
