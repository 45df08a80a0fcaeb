"""A guest that boots with -dhcp: order of the boot, what the lease changes, renewal, conflicts, names, the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guest.apps.env import Env
from guest.kernel import Guest
from guest.net.address import format_address, parse_address
from guest.net.dns import ResolveError
from hw.wire.cable import cable
from hw.wire.link import Link
from tests.dhcp_peer import Server
from tests.dhcp_world import OFFERED, SERVER
from tests.guest_board import CARDS, SECOND, Board, arp, wire_of
from tests.test_guest_boot import place, texts


@pytest.fixture(params=CARDS)
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    made = Board(request.param)
    yield made
    made.close()


@pytest.fixture
def served(board: Board) -> tuple[Guest, Server]:
    """A guest with -dhcp that has not run, and the server at the other end of its cable."""
    near, server = wired(board)
    return board.guest("-dhcp -s idle", near), server


def wired(board: Board) -> tuple[Link, Server]:
    """A cable with the server at its other end."""
    near, far = cable(board.loop)
    return near, Server(far, board.loop)


def addresses(guest: Guest) -> list[str]:
    assert guest.ni is not None
    return [str(prefix) for prefix in guest.ni.interface.addresses]


def routes(guest: Guest) -> list[str]:
    assert guest.ni is not None
    return [
        f"{row.prefix} via {'link' if row.gateway is None else format_address(row.gateway)}"
        for row in guest.stack.routes
        if row.interface is guest.ni.interface
    ]


# -- the boot ------------------------------------------------------------------------------------------------------


def test_a11_setup_takes_its_steps_in_order_and_starts_dhcp(board: Board, served: tuple[Guest, Server]) -> None:
    guest, _ = served
    board.run(5)
    steps = [
        "setup: interface eth0 added at FE/0, address by DHCP",
        "setup: status callback of eth0 set",
        "setup: eth0 is the default interface",
        "setup: starting DHCP on eth0",
        f"dhcp: eth0: lease of {OFFERED}/24 from {SERVER} for 3600 s",
        "status: eth0 is up, netif_up to init",
        "init: netif_up",
        "boot: start_em",
        "boot: started idle[3]",
        "init running",
    ]
    places = [place(guest, step) for step in steps]
    assert places == sorted(places)
    assert "setup: setting eth0 up" not in texts(guest), "exactly one of DHCP start and set-up"


def test_a13_netif_up_comes_after_the_ack_with_what_the_ack_says(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    server.serves = False
    board.run(7)
    assert guest.booted is False
    assert "init: netif_up" not in texts(guest)
    assert server.kinds() == ["discover 0.0.0.0 > 255.255.255.255"] * len(server.heard)
    assert len(server.heard) >= 2
    server.serves = True
    board.settle()
    ack_at = next(at for at, kind in server.sent if kind == "ack")
    up_at = float(next(line for line in guest.log.lines if line.endswith("init: netif_up"))[1:13])
    assert up_at == pytest.approx(ack_at + 0.6), "after the ACK and the three probes"
    assert addresses(guest) == [f"{OFFERED}/24"]
    assert routes(guest) == ["10.0.0.0/24 via link", f"0.0.0.0/0 via {SERVER}"]
    assert [format_address(one) for one in guest.resolver.servers] == ["10.0.0.3"]


def test_dhcp_wins_over_static_values(board: Board) -> None:
    near, _ = wired(board)
    guest = board.boot("-ipaddr 10.0.0.2 -netmask 255.255.255.0 -gateway 10.0.0.9 -dhcp", near)
    assert addresses(guest) == [f"{OFFERED}/24"]
    assert f"0.0.0.0/0 via {SERVER}" in routes(guest)
    assert place(guest, "setup: -ipaddr 10.0.0.2 is ignored: -dhcp wins")


def test_without_a_server_the_boot_waits_for_ever(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    server.serves = False
    board.run(24 * 3600)
    assert guest.booted is False
    assert len(server.heard) == pytest.approx(24 * 3600 / 64, rel=0.02), "one every 64 seconds"


def test_dhcp_timeout_lets_the_programs_start_and_the_client_goes_on(board: Board) -> None:
    near, server = wired(board)
    server.serves = False
    guest = board.guest("-dhcp -dhcp-timeout 10 -s idle", near)
    board.run(9.9)
    assert guest.booted is False
    board.run(0.2)
    assert guest.booted is True
    late = "dhcp: eth0: no lease after 10 s; still looking"
    order = [late, "init: no address yet", "boot: start_em", "boot: started"]
    places = [place(guest, step) for step in order]
    assert places == sorted(places)
    assert "init: netif_up" not in texts(guest)
    server.serves = True
    board.run(20)
    assert addresses(guest) == [f"{OFFERED}/24"]
    assert texts(guest).count("init: netif_up") == 1
    assert len([text for text in texts(guest) if text.startswith("boot: started")]) == 1, "nothing is started twice"


def test_a_timeout_after_the_lease_says_nothing(board: Board) -> None:
    near, _ = wired(board)
    guest = board.guest("-dhcp -dhcp-timeout 10", near)
    board.run(20)
    assert guest.booted is True
    assert not [text for text in texts(guest) if "no lease" in text]


def test_a_timeout_after_a_lease_that_was_lost_says_nothing(board: Board) -> None:
    near, server = wired(board)
    server.lease = 10
    guest = board.guest("-dhcp -dhcp-timeout 30", near)
    board.run(1)
    server.serves = False
    board.run(60)
    assert addresses(guest) == []
    assert not [text for text in texts(guest) if "no lease" in text or "no address yet" in text]
    assert guest.scheduler.counters["sent_to_nobody"] == 0


# -- what the lease says -------------------------------------------------------------------------------------------


def test_mtu_routes_names_and_search_list_are_taken(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    server.options = [
        (26, (1400).to_bytes(2, "big")), (12, b"alpha"), (119, b"\3lan\0"),
        (121, bytes([16, 172, 16, 10, 0, 0, 7, 0, 10, 0, 0, 8])),
    ]  # fmt: skip
    board.settle()
    assert guest.ni is not None
    assert guest.ni.interface.mtu == 1400
    assert routes(guest) == ["10.0.0.0/24 via link", "172.16.0.0/16 via 10.0.0.7", "0.0.0.0/0 via 10.0.0.8"]
    assert guest.hostname == "alpha"
    assert guest.resolver.search == ["lan"]


def test_an_mtu_above_the_card_s_own_is_not_taken(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    server.options = [(26, (9000).to_bytes(2, "big"))]
    board.settle()
    assert guest.ni is not None
    assert guest.ni.interface.mtu == 1500


def test_a_renewal_is_unicast_and_a_change_in_it_is_worked_in(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    server.lease = 100
    board.run(1)
    server.heard.clear()
    server.options = [(121, bytes([0, 10, 0, 0, 9])), (26, (1300).to_bytes(2, "big"))]
    board.run(49.01)
    assert server.heard == [(50.0, f"request {OFFERED} > {SERVER}")], "T1 counts from the request, at 0 s"
    assert addresses(guest) == [f"{OFFERED}/24"]
    assert guest.ni is not None
    assert guest.ni.interface.mtu == 1300
    assert routes(guest) == ["10.0.0.0/24 via link", "0.0.0.0/0 via 10.0.0.9"]
    assert texts(guest).count("init: netif_up") == 1
    assert not [text for text in texts(guest) if text.startswith("address: eth0 removed")]


def test_the_lease_ends_when_nobody_renews_it(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    server.lease = 100
    board.run(1)
    server.serves = False
    server.heard.clear()
    board.run(98.9)
    assert addresses(guest) == [f"{OFFERED}/24"]
    board.run(0.2)
    assert addresses(guest) == []
    assert routes(guest) == []
    assert guest.resolver.servers == []
    wanted = [(50.0, f"request {OFFERED} > {SERVER}"), (87.5, f"request {OFFERED} > 255.255.255.255")]
    assert server.heard[:2] == wanted
    assert server.heard[2] == (100.0, "discover 0.0.0.0 > 255.255.255.255")
    server.serves = True
    board.run(10)
    assert addresses(guest) == [f"{OFFERED}/24"]
    assert texts(guest).count("init: netif_up") == 2, "it went and came back"


def test_a_refusal_of_a_renewal_takes_the_address_away(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    server.lease = 100
    board.run(1)
    server.refuses = True
    board.run(49.5)
    assert addresses(guest) == []


def test_an_address_that_somebody_has_is_declined(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    server.taken.add(OFFERED)
    board.run(1)
    assert server.kinds()[-1] == "decline 0.0.0.0 > 255.255.255.255"
    assert place(guest, f"dhcp: eth0: {OFFERED} is in use by {server.text}")
    assert guest.booted is False
    server.next = "10.0.0.51"
    board.run(11)
    assert addresses(guest) == ["10.0.0.51/24"]


def test_a_probe_that_comes_back_to_us_is_no_claim(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    answer = server.answer

    def mirror(raw: bytes) -> bytes | None:
        return raw if raw[12:14] == b"\x08\x06" else answer(raw)

    server.answer = mirror  # type: ignore[method-assign]
    board.run(2)
    assert addresses(guest) == [f"{OFFERED}/24"]


def test_another_host_s_probe_for_the_address_is_a_claim(board: Board, served: tuple[Guest, Server]) -> None:
    _, server = served
    board.run(0.3)
    server.send(arp(1, server.mac, bytes(4), bytes(6), bytes([10, 0, 0, 50])))
    board.run(0.1)
    assert server.kinds()[-1] == "decline 0.0.0.0 > 255.255.255.255"


def test_our_address_is_given_up_at_the_second_claim(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    board.run(5)
    claim = arp(1, server.mac, bytes([10, 0, 0, 50]), bytes(6), bytes([10, 0, 0, 50]))
    server.send(claim)
    board.run(1)
    assert addresses(guest) == [f"{OFFERED}/24"], "it is defended"
    server.send(claim)
    board.run(0.1)
    assert addresses(guest) == []
    assert server.kinds()[-1] == "decline 0.0.0.0 > 255.255.255.255"


def test_after_the_link_was_away_the_lease_is_confirmed(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    board.run(5)
    server.heard.clear()
    wire = wire_of(board.machines["guest"])
    wire.set_carrier(False)
    board.run(1)
    wire.set_carrier(True)
    board.run(1)
    assert server.kinds() == ["request 0.0.0.0 > 255.255.255.255"]
    assert addresses(guest) == [f"{OFFERED}/24"]


def test_release_gives_the_address_back(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    board.run(5)
    assert guest.dhcp is not None
    guest.dhcp.release()
    board.run(0.1)
    assert server.kinds()[-1] == f"release {OFFERED} > {SERVER}"
    assert addresses(guest) == []
    assert guest.dhcp.state.value == "stopped"


def test_closing_in_the_middle_leaves_nothing(board: Board) -> None:
    for seconds in (0.0, 0.1, 0.3, 1.0):
        near, _ = wired(board)
        guest = board.guest("-dhcp", near, name=f"g{seconds}")
        board.run(seconds)
        guest.close()
        assert guest.leaks == []
        if guest.stage == 2:
            assert list(guest.stack.udp.ports) == []


def test_a_port_that_nobody_closes_is_a_leak(board: Board) -> None:
    guest = board.boot("")
    end = guest.stack.udp.open(4)
    assert end.bind(0xFFFF << 32, 777) == 0
    guest.close()
    assert guest.leaks == ["UDP port 777 is still bound"]
    guest.leaks.clear()


def test_counters_of_the_client_and_the_resolver(board: Board, served: tuple[Guest, Server]) -> None:
    guest, _ = served
    board.settle()
    counters = guest.counters()
    assert counters["eth0 dhcp"]["tx_discover"] == counters["eth0 dhcp"]["rx_offer"] == 1
    assert counters["eth0 dhcp"]["tx_probes"] == 3
    assert "dns" in counters


def test_an_interface_may_ask_for_dhcp_later(board: Board) -> None:
    near, _ = wired(board)
    guest = board.boot("-ipaddr 10.0.0.2 -netmask 255.255.255.0", near)
    guest.calls.if_up("eth0", dhcp=True)
    board.run(2)
    assert addresses(guest) == ["10.0.0.2/24", f"{OFFERED}/24"]


# -- names ---------------------------------------------------------------------------------------------------------


def test_a_program_resolves_names_at_the_server_that_dhcp_told(board: Board, served: tuple[Guest, Server]) -> None:
    guest, server = served
    server.names = {"www.example.org": "192.0.2.1"}
    board.run(2)
    got: list[object] = []

    def program(env: Env, argv: list[str]) -> int:
        got.append([format_address(one) for one in env.guest.resolver.resolve(env, "www.example.org")])
        try:
            env.guest.resolver.resolve(env, "nosuch.example.org")
        except ResolveError as error:
            got.append(error.error)
        fd = env.guest.calls.socket(2, 2)
        env.guest.calls.connect(fd, ("www.example.org", 9))
        got.append(env.guest.calls.getpeername(fd))
        env.guest.calls.close(fd)
        try:
            env.guest.calls.connect(env.guest.calls.socket(2, 2), ("nosuch.example.org", 9))
        except OSError as error:
            got.append(error.errno)
        return 0

    process = guest.spawn(program)
    board.run(1)
    assert process.exit_status == 0, guest.log.text()
    assert got == [["192.0.2.1"], "NXDOMAIN", ("192.0.2.1", 9), -2]
    assert "dnspython" not in guest.log.text()


def test_hosts_and_servers_of_the_command_line(board: Board) -> None:
    guest = board.boot("net.hosts=peer@10.0.0.9,six@fd00::1 net.dns=10.0.0.53,fd00::53 net.search=a.org,b.org")
    assert guest.resolver.query("peer").answer.addresses == (parse_address("10.0.0.9"),)  # type: ignore[union-attr]
    assert guest.resolver.query("six", 6).answer.addresses == (parse_address("fd00::1"),)  # type: ignore[union-attr]
    assert [format_address(one) for one in guest.resolver.servers] == ["10.0.0.53", "fd00::53"]
    assert guest.resolver.search == ["a.org", "b.org"]


def test_two_guests_have_two_resolvers_and_two_leases(board: Board) -> None:
    guests = []
    for number, address in enumerate(("10.0.0.50", "10.0.0.60")):
        near, server = wired(board)
        server.next = address
        guests.append(board.boot("-dhcp", near, name=f"g{number}", seed=number))
    assert [addresses(guest) for guest in guests] == [["10.0.0.50/24"], ["10.0.0.60/24"]]
    assert board.loop.clock.now() < 5 * SECOND
