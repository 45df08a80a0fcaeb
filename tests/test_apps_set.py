"""Programs that change how a guest is on the network, and that find out how packets go: ifconfig, dhclient, traceroute.

Two guests on a hub; routers and servers are stacks of their own beside them (vring/direct.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from guest.kernel import Guest
from guest.net.stack import Stack
from hw.wire.cable import cable
from hw.wire.hub import Hub
from hw.wire.link import Link
from tests.dhcp_peer import Server
from tests.dhcp_world import OFFERED, SERVER
from tests.guest_board import Board
from tests.test_apps_net import Pair
from vring.direct import DirectInterface, direct_stack


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.close()


@pytest.fixture
def pair(board: Board) -> Pair:
    return Pair(board)


def run(board: Board, guest: Guest, line: str, seconds: float = 10) -> tuple[int | None, list[str]]:
    """The status of a program, and what it printed."""
    guest.log.output.clear()
    name, *words = line.split()
    process = guest.spawn(name, *words)
    board.run(seconds)
    return process.exit_status, guest.log.output


# -- ifconfig ------------------------------------------------------------------------------------------------------


def test_e44_ifconfig_shows_address_mask_gateway_mtu_flags_and_counters(pair: Pair) -> None:
    pair.run("ping 10.0.0.2 -c 1")
    status, output = pair.run("ifconfig eth0")
    eth = pair.alice.fes[0]
    assert (status, output[:4]) == (0, [
        "eth0: flags=4163<UP,BROADCAST,RUNNING,MULTICAST>  mtu 1500", "        inet 10.0.0.1/24",
        "          netmask 255.255.255.0  broadcast 10.0.0.255", f"        inet6 {pair.link_local(pair.alice)}/64",
    ])  # fmt: skip
    assert output[4:7] == [
        "        inet6 fd00::1/64", "        gateway 10.0.0.254", f"        ether {eth.mac.hex(':')}"
    ]  # fmt: skip
    received, sent = eth.device.counters["rx_packets"], eth.device.counters["tx_packets"]
    assert output[7].startswith(f"        RX packets {received}  bytes {eth.device.counters['rx_bytes']}  dropped ")
    assert output[8].startswith(f"        TX packets {sent}  bytes {eth.device.counters['tx_bytes']}  dropped ")
    assert [line.partition(":")[0] for line in pair.run("ifconfig -a")[1] if line[0] != " "] == ["lo", "eth0", "eth1"]


def test_e44_ifconfig_makes_a_guest_without_options_reachable(board: Board) -> None:
    hub = Hub(board.loop, "lan")
    bare = board.guest("", hub.port("a"), name="bare")
    other = board.guest("-ipaddr 10.0.0.2 -netmask 255.255.255.0", hub.port("b"), name="other")
    board.settle()
    assert run(board, other, "ping 10.0.0.1 -c 1 -q")[0] == 1
    assert run(board, bare, "ifconfig eth0 10.0.0.1 netmask 255.255.255.0 gateway 10.0.0.2 up") == (0, [])
    assert run(board, other, "ping 10.0.0.1 -c 1 -q")[0] == 0
    assert run(board, bare, "ip route")[1] == ["10.0.0.0/24 dev eth0", "default via 10.0.0.2 dev eth0"]
    assert run(board, bare, "ifconfig eth0 down") == (0, [])
    assert run(board, other, "ping 10.0.0.1 -c 1 -q")[0] == 1


@pytest.mark.parametrize(
    ("words", "address", "routes"),
    [
        ("10.0.0.9/16", "10.0.0.9/16", ["10.0.0.0/16 dev eth0", "default via 10.0.0.254 dev eth0"]),
        ("10.0.0.9 netmask 255.255.255.128", "10.0.0.9/25", ["10.0.0.0/25 dev eth0"]),
        ("172.16.0.1", "172.16.0.1/16", ["172.16.0.0/16 dev eth0"]),
        ("192.168.7.1", "192.168.7.1/24", ["192.168.7.0/24 dev eth0"]),
        ("gateway none", "10.0.0.1/24", ["10.0.0.0/24 dev eth0"]),
        ("gateway 10.0.0.2", "10.0.0.1/24", ["10.0.0.0/24 dev eth0", "default via 10.0.0.2 dev eth0"]),
        ("netmask 255.255.0.0", "10.0.0.1/16", ["10.0.0.0/16 dev eth0", "default via 10.0.0.254 dev eth0"]),
    ],
)
def test_e44_what_ifconfig_does_not_say_stays(pair: Pair, words: str, address: str, routes: list[str]) -> None:
    assert pair.run(f"ifconfig eth0 {words}") == (0, [])
    assert f"        inet {address}" in pair.run("ifconfig eth0")[1]
    assert pair.run("ip -4 route")[1] == routes


def test_e44_ifconfig_adds_and_deletes_addresses_and_sets_mtu_and_promiscuity(pair: Pair) -> None:
    assert pair.run("ifconfig eth0 add fd00::77/64") == (0, [])
    assert pair.run("ping -6 fd00::77 -c 1 -q", guest=pair.bob)[0] == 0
    assert pair.run("ifconfig eth0 del fd00::77") == (0, [])
    assert pair.run("ping -6 fd00::77 -c 1 -q", guest=pair.bob)[0] == 1
    assert pair.run("ifconfig eth0 mtu 1400 promisc") == (0, [])
    assert pair.run("ifconfig eth0")[1][0] == "eth0: flags=4419<UP,BROADCAST,RUNNING,PROMISC,MULTICAST>  mtu 1400"
    assert pair.run("ifconfig eth0 -promisc")[0] == 0
    assert "PROMISC" not in pair.run("ifconfig eth0")[1][0]
    assert pair.run("ifconfig lo add 127.0.0.7/8") == (0, [])
    assert pair.run("ping 127.0.0.7 -c 1 -q")[0] == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("eth9 up", "there is no eth9; there are lo, eth0, eth1"), ("eth0 mtu 9000", "cannot carry more than 1500"),
        ("eth1 up", "eth1: it is a raw card; only eth0 can be set"), ("lo 10.0.0.9", "its address stays"),
        ("eth0 gateway 10.9.9.9", "the gateway 10.9.9.9 is not in the network of the address"),
        ("eth0 add 10.0.0.1/24", "File exists"), ("eth0 del 10.0.0.7", "Cannot assign requested address"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_said_in_a_line(pair: Pair, words: str, why: str) -> None:
    status, output = pair.run(f"ifconfig {words}")
    assert (status, len(output)) == (1, 1)
    assert output[0].startswith("ifconfig: ")
    assert why in output[0]


@pytest.mark.parametrize(
    "words",
    [
        "eth0 10.0.0.1 10.0.0.2", "eth0 netmask", "eth0 netmask 255.0.255.0", "eth0 mtu x", "eth0 mtu 0", "eth0 wat",
        "eth0 fd00::1", "eth0 gateway fd00::1", "eth0 add fd00::1", "eth0 add fd00::1/129", "eth0 10.0.0.1/33", "-x",
        "eth0 gateway 10.0.0.1/8", "eth0 up mtu 1400 mtu 1401",
    ],
)  # fmt: skip
def test_wrong_usage_of_ifconfig_changes_nothing(pair: Pair, words: str) -> None:
    before = pair.run("ifconfig eth0")[1][:7]
    status, output = pair.run(f"ifconfig {words}")
    assert status == 2
    assert output[1].startswith("usage: ifconfig")
    assert pair.run("ifconfig eth0")[1][:7] == before


# -- dhclient ------------------------------------------------------------------------------------------------------


def served(board: Board, cmdline: str) -> tuple[Guest, Server]:
    near, far = cable(board.loop)
    server = Server(far, board.loop)
    guest = board.guest(cmdline, near)
    board.run(5)
    return guest, server


def test_dhclient_begins_shows_renews_and_gives_back_a_lease(board: Board) -> None:
    guest, _ = served(board, "")
    assert run(board, guest, "dhclient status") == (1, ["dhclient: DHCP is off; dhclient start begins"])
    assert run(board, guest, "dhclient renew") == (1, ["dhclient: there is nothing to renew"])
    shown = [
        "eth0: bound", f"  address       {OFFERED}/24", f"  server        {SERVER}", f"  gateway       {SERVER}",
    ]  # fmt: skip
    status, output = run(board, guest, "dhclient", 60)
    assert (status, output[:4]) == (0, shown)
    assert output[-1].startswith("  lasts         35")
    status, output = run(board, guest, "dhclient status", 1)
    assert (status, output[:4]) == (0, shown)
    left = int(output[-1].split()[1])
    assert 3500 < left < 3600
    status, output = run(board, guest, "dhclient renew", 5)
    assert (status, output[0]) == (0, "eth0: bound")
    assert int(output[-1].split()[1]) > left, "the server has given more time"
    assert run(board, guest, "dhclient release") == (0, ["dhclient: there is no lease any more"])
    assert run(board, guest, "dhclient status")[0] == 1
    assert run(board, guest, f"ping {SERVER} -c 1")[0] != 0


def test_dhclient_shows_the_lease_of_the_boot(board: Board) -> None:
    guest, _ = served(board, "-dhcp")
    assert run(board, guest, "dhclient status")[1][:2] == ["eth0: bound", f"  address       {OFFERED}/24"]


def test_dhclient_without_a_server_says_so_and_goes_on(board: Board) -> None:
    guest = board.boot("", cable(board.loop)[0])
    status, output = run(board, guest, "dhclient -t 3", 3.5)
    assert (status, output) == (
        1, ["eth0: no lease, selecting; no server has answered: is there one on the wire?"]
    )  # fmt: skip


def test_dhclient_without_a_card_says_so(board: Board) -> None:
    assert run(board, board.boot(), "dhclient") == (1, ["dhclient: there is no network card"])


@pytest.mark.parametrize("words", ["wat", "start stop", "-t x", "-z"])
def test_wrong_usage_of_dhclient_is_status_2(board: Board, words: str) -> None:
    status, output = run(board, board.boot(), f"dhclient {words}")
    assert status == 2
    assert output[1].startswith("usage: dhclient ")


def test_a_boot_that_waits_for_a_lease_in_vain_says_what_to_do(board: Board) -> None:
    guest = board.guest("-dhcp -s idle", cable(board.loop)[0])
    board.run(9)
    assert "no lease" not in guest.log.text()
    board.run(60)
    said = [line for line in guest.log.lines if "no lease" in line]
    assert [line[15:] for line in said] == [
        "dhcp: eth0: no lease after 10 s; still looking: is there a DHCP server on the wire? -dhcp-timeout S goes on "
        "without, -ipaddr needs none"
    ]
    assert guest.booted is False


# -- traceroute ----------------------------------------------------------------------------------------------------


class Road:
    """A guest, two routers and a host in a row; network N is 10.0.N.0/24 and fd0N::/64, the nearer end of it is .1.

    The routers do not answer what is for themselves any more slowly than what they drop: all of it takes no time.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        near, link = cable(board.loop)
        self.guest = board.guest("-ipaddr 10.0.1.1 -netmask 255.255.255.0 -gateway 10.0.1.2 -ip6", near)
        self.stacks = [direct_stack(board.loop, rng=random.Random(hop)) for hop in (1, 2, 3)]
        for hop, stack in enumerate(self.stacks, 1):
            self._plug(stack, link, hop, 2, "eth0")
            stack.add_route("10.0.1.0", 24, f"10.0.{hop}.1") if hop > 1 else None
            stack.add_route("fd01::", 64, f"fd0{hop}::1") if hop > 1 else None
            if hop < 3:
                stack.forwarding = True
                near, link = cable(board.loop)
                self._plug(stack, near, hop + 1, 1, "eth1")
        self.stacks[0].add_route("10.0.3.0", 24, "10.0.2.2")
        self.stacks[0].add_route("fd03::", 64, "fd02::2")
        board.settle()
        self.guest.calls.if_add_addr("eth0", "fd01::1", 64)
        self.guest.calls.add_route("::", 0, "fd01::2")
        board.run(3)

    @staticmethod
    def _plug(stack: Stack, link: Link, net: int, host: int, name: str) -> None:
        eth = DirectInterface(stack, link, name=name, mac=bytes([2, 0, 0, 0, net, host])).interface
        eth.set_up()
        eth.add_address(f"10.0.{net}.{host}", 24, check=False)
        eth.add_address(f"fd0{net}::{host}", 64, check=False)

    def trace(self, words: str, seconds: float = 60) -> tuple[int | None, list[str]]:
        return run(self.board, self.guest, f"traceroute {words}", seconds)


@pytest.fixture
def road(board: Board) -> Road:
    return Road(board)


@pytest.mark.parametrize("option", ["", " -I"])
@pytest.mark.parametrize("version", [4, 6])
def test_e45_traceroute_names_the_routers_and_the_host_in_their_order(road: Road, version: int, option: str) -> None:
    names = [f"10.0.{net}.2" if version == 4 else f"fd0{net}::2" for net in (1, 2, 3)]
    assert road.trace(f"{names[2]}{option}") == (0, [
        f"traceroute to {names[2]} ({names[2]}), 30 hops at most, 32 bytes of payload",
        *(f"{hop:2d}  {name}  0.000 ms  0.000 ms  0.000 ms" for hop, name in enumerate(names, 1)),
    ])  # fmt: skip
    assert road.trace(f"{names[2]} -q 1 -f 2 -m 2{option}") == (1, [
        f"traceroute to {names[2]} ({names[2]}), 2 hops at most, 32 bytes of payload", f" 2  {names[1]}  0.000 ms",
    ])  # fmt: skip


def test_e45_traceroute_says_who_is_silent_and_where_it_ends(road: Road) -> None:
    road.stacks[1].interfaces[1].set_down()
    assert road.trace("10.0.3.2 -m 3 -q 1 -w 1") == (1, [
        "traceroute to 10.0.3.2 (10.0.3.2), 3 hops at most, 32 bytes of payload", " 1  10.0.1.2  0.000 ms",
        " 2  *", " 3  *",
    ])  # fmt: skip
    assert road.trace("10.0.2.99 -q 1 -w 9")[1][1:] == [" 1  10.0.1.2  0.000 ms", " 2  10.0.1.2  3000.000 ms !H"]
    assert road.trace("10.0.77.1 -q 1")[1][1:] == [" 1  10.0.1.2  0.000 ms", " 2  10.0.1.2  0.000 ms !N"]


@pytest.mark.parametrize("words", ["", "a b", "a -m 0", "a -f 31", "a -w 0", "a -q 11", "a -p 65535", "-z"])
def test_wrong_usage_of_traceroute_is_status_2(road: Road, words: str) -> None:
    status, output = road.trace(words, 1)
    assert status == 2
    assert output[1].startswith("usage: traceroute ")


def test_traceroute_of_a_name_that_nobody_knows(road: Road) -> None:
    assert road.trace("nobody.example") == (2, ["traceroute: nobody.example: Temporary failure in name resolution"])
