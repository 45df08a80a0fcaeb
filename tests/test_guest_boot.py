"""The boot: stages, front ends, network set-up, messages, start programs, the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import guest.init as init_module
from guest.apps.env import Env
from guest.cmdline import parse
from guest.fe import OnlyFrontEndZero
from guest.init import setup
from guest.kernel import Guest
from guest.net.device import IFF_RUNNING, IFF_UP
from guest.ni import NetworkInterface
from hw.machine import Machine
from hw.wire.cable import cable
from hw.wire.hub import Hub
from tests.fakes import frame
from tests.guest_board import SECOND, STATIC, Board, arp, echo


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.close()


def texts(guest: Guest) -> list[str]:
    """The log's lines without their times."""
    return [line[15:] for line in guest.log.lines]


def place(guest: Guest, beginning: str) -> int:
    """Where in the log the only line with this beginning stands."""
    found = [at for at, text in enumerate(texts(guest)) if text.startswith(beginning)]
    assert len(found) == 1, f"{beginning!r} stands {len(found)} times in\n{guest.log.text()}"
    return found[0]


# -- stages and front ends -----------------------------------------------------------------------------------------


def test_a_boot_reaches_init_running_and_logs_every_stage(board: Board) -> None:
    guest = board.boot(STATIC, board.peer()[0])
    assert guest.booted is True
    assert guest.log.lines[-1].endswith("init running")
    stages = ["memory", "events", "clock", "drivers", "stack", "front ends"]
    places = [place(guest, f"stage 1: {stage}:") for stage in stages]
    places += [place(guest, f"stage 2: {step}") for step in ("scheduler", "command line:", "init")]
    assert places == sorted(places)


def test_a_log_line_starts_with_the_time_in_microseconds(board: Board) -> None:
    guest = board.boot()
    board.run(1.5)
    guest.log.write("one\ntwo")
    assert guest.log.lines[0].startswith("[    0.000000] stage 1: memory: 65536 KiB at 0x0")
    assert guest.log.lines[-1] == "[    1.500000] one two"


@pytest.mark.parametrize("seed", [0, 7])
def test_the_same_seed_gives_the_same_log_byte_for_byte(seed: int) -> None:
    def run(seed: int) -> str:
        board = Board()
        hub = Hub(board.loop, "hub")
        board.boot("-ipaddr 10.0.0.1 -netmask 255.255.255.0", hub.port("a"), name="a", seed=seed)
        guest = board.boot(STATIC + " -s ping 10.0.0.1 -c 3 -s ifconfig", hub.port("b"), name="b", seed=seed)
        board.run(5)
        text = guest.log.text() + "\n".join(guest.log.output)
        board.close()
        return text

    assert run(seed) == run(seed)
    assert run(seed) != run(seed + 1), "the seed decides, through the MAC address at least"


@pytest.mark.parametrize("count", [0, 1, 2, 16])
def test_every_card_becomes_a_front_end_of_its_own(board: Board, count: int) -> None:
    ends = [board.peer() for _ in range(count)]
    guest = board.boot("", *(near for near, _ in ends))
    cards = board.machines["guest"].nics
    assert [fe.name for fe in guest.fes] == [f"eth{index}" for index in range(count)]
    assert [fe.mac for fe in guest.fes] == [card.device.mac for card in cards]
    assert len({fe.mac for fe in guest.fes}) == count
    for index, (_, peer) in enumerate(ends):
        peer.send(*(frame(number) for number in range(index + 1)))
    board.run(0.1)
    assert [fe.counters["rx_packets"] for fe in guest.fes] == [index + 1 for index in range(count)]
    assert [fe.device.counters["rx_packets"] for fe in guest.fes] == [index + 1 for index in range(count)]
    for index in range(count):
        assert place(guest, f"eth{index}: MAC {guest.fes[index].mac.hex(':')}")
    assert place(guest, f"stage 1: front ends: {count}")


def test_front_ends_end_at_the_first_gap(board: Board) -> None:
    ends = [board.peer() for _ in range(3)]
    guest = board.guest("", *(near for near, _ in ends))
    platform = guest.platform
    second = board.machines["guest"].nics[1]
    read = second.mmio_read

    def never_features_ok(offset: int, size: int) -> int:
        value = read(offset, size)
        return value & ~8 if offset == 0x70 else value

    second.mmio_read = never_features_ok  # type: ignore[method-assign]
    board.settle()
    assert [fe.name for fe in guest.fes] == ["eth0"]
    assert guest.platform is platform
    assert guest.booted is True


def test_too_little_memory_for_a_card_is_a_line_in_the_log(board: Board) -> None:
    machine = Machine(board.loop, name="small", memory_size=1 << 20)
    machine.add_virtio_net(board.peer()[0])
    guest = Guest(machine.platform, name="small")
    machine.power_on(guest)
    board.guests.append(guest)
    board.settle()
    assert guest.booted is True
    assert guest.fes == []
    assert [text for text in texts(guest) if text.startswith("virtio-net: no ") and "free pages" in text]


def test_stage_one_ends_with_front_ends_that_run_and_no_interface(board: Board) -> None:
    near, peer = board.peer()
    guest = board.guest(STATIC, near)
    board.loop.run(until=lambda: guest.stage == 1)
    assert place(guest, "stage 1: stack: lo is up") < place(guest, "eth0: MAC") < place(guest, "stage 1: front ends: 1")
    assert guest.log.lines[-1].endswith("stage 1: front ends: 1"), "the last step of stage 1"
    assert guest.ni is None
    assert [interface.name for interface in guest.stack.interfaces] == ["lo"]
    assert guest.stack.loopback.flags & IFF_UP, "the loopback is up"
    assert guest.fes[0].flags & IFF_RUNNING, "the front end runs"
    assert peer.frames == []


# -- network set-up ------------------------------------------------------------------------------------------------


def test_setup_takes_its_steps_in_order(board: Board) -> None:
    guest = board.boot(STATIC, board.peer()[0])
    steps = [
        "setup: interface eth0 added at FE/0, address 10.0.0.2, netmask 255.255.255.0, gateway 10.0.0.1",
        "setup: status callback of eth0 set",
        "setup: eth0 is the default interface",
        "setup: setting eth0 up",
        "status: eth0 is up, netif_up to init",
        "init: netif_up",
        "boot: start_em",
        "init running",
    ]
    places = [place(guest, step) for step in steps]
    assert places == sorted(places)
    assert not [text for text in texts(guest) if "DHCP" in text], "exactly one of DHCP start and set-up"
    assert guest.stack.default is guest.ni.interface if guest.ni else False


def test_the_status_callback_fires_inside_setup_and_mails_one_netif_up(board: Board) -> None:
    guest = board.boot("", board.peer()[0])
    seen: list[list[object]] = []

    def program(env: Env, argv: list[str]) -> int:
        assert setup(env.guest, parse(STATIC)) is True
        assert env.guest.init is not None
        seen.append(list(env.guest.init.mailbox))
        return 0

    process = guest.spawn(program)
    board.run(0.1)
    assert process.exit_status == 0
    assert seen == [["netif_up"]], "it was there when setup returned"


def test_programs_start_only_after_netif_up(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_module, "setup", lambda guest, options: True)  # an interface that does not come up yet
    guest = board.guest(STATIC + " -s idle 1", board.peer()[0])
    board.run(10)
    assert guest.booted is False
    assert [process.name for process in guest.scheduler] == ["init", "boot"]
    assert guest.init is not None
    guest.scheduler.send(guest.init, "netif_up")
    board.run(0.1)
    assert guest.booted is True
    assert place(guest, "init: netif_up") < place(guest, "boot: start_em") < place(guest, "boot: started idle[3]")
    guest.scheduler.send(guest.init, "netif_up")
    board.run(0.1)
    assert texts(guest).count("init: netif_up") == 2
    assert texts(guest).count("boot: started idle[3]") == 1, "a second one starts nothing"
    assert guest.scheduler.counters["sent_to_nobody"] == 0


def test_programs_start_at_once_without_networking(board: Board) -> None:
    guest = board.boot("-s idle 1", board.peer()[0])
    assert guest.booted is True
    assert board.loop.clock.now() == 0
    assert not [text for text in texts(guest) if "netif_up" in text or "start_em" in text]


def test_without_network_options_setup_is_never_called(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(init_module, "setup", lambda *arguments: called.append(arguments))
    near, peer = board.peer()
    guest = board.boot("", near)
    assert called == []
    assert guest.booted is True
    assert guest.ni is None
    assert [(fe.ni, fe.ol) for fe in guest.fes] == [(None, None)]
    peer.send(frame(1))
    board.run(0.1)
    assert guest.fes[0].counters["rx_dropped_disconnected"] == 1


@pytest.mark.parametrize("options", [STATIC, "-dhcp"])
def test_network_options_without_a_card_are_ignored_with_one_line(board: Board, options: str) -> None:
    guest = board.boot(options + " -s idle 1")
    assert [text for text in texts(guest) if text.startswith("setup")] == [
        "setup: no network card was found; the network options are ignored"
    ]
    assert guest.booted is True
    assert guest.ni is None
    assert setup(guest, parse(STATIC)) is False


def test_ip6_gives_the_interface_a_link_local_address(board: Board) -> None:
    guest = board.boot("-ip6", board.peer()[0])
    board.run(3)
    assert guest.ni is not None
    mac = guest.ni.interface.mac
    assert mac is not None
    eui64 = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    own = [prefix.address for prefix in guest.ni.interface.addresses]
    assert own == [0xFE80 << 112 | int.from_bytes(eui64, "big")]
    assert texts(guest).count("init: netif_up") == 1, "one message, though the addresses changed"
    plain = board.boot("", board.peer()[0], name="plain")
    assert plain.stack.config.ipv6 is False


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("-frob", "unknown option -frob"),
        ("-ipaddr 10.0.0", "-ipaddr '10.0.0' is not an IPv4 address"),
        ("-ipaddr 10.0.0.255 -netmask 255.255.255.0", "10.0.0.255/24 is not an address for one host"),
        ("-ipaddr 127.0.0.1 -netmask 255.0.0.0", "127.0.0.1/8"),
    ],
)
def test_a_wrong_command_line_halts_with_status_2(board: Board, options: str, says: str) -> None:
    guest = board.boot(options, board.peer()[0])
    assert (guest.halted, guest.exit_status) == (True, 2)
    assert len([text for text in texts(guest) if says in text and not text.startswith("stage 2")]) == 1
    assert guest.log.lines[-1].endswith("halted with status 2")


def test_missing_options_are_zero_and_the_log_says_so(board: Board) -> None:
    guest = board.boot("-ipaddr 10.0.0.2 -gateway 10.0.0.1", board.peer()[0])
    assert place(guest, "setup: no -netmask, it is 0.0.0.0")
    assert place(guest, "setup: with that netmask every address is a neighbour; the gateway is not used")
    assert guest.booted is True


def test_frames_before_the_interface_are_harmless_and_do_not_reach_it(board: Board) -> None:
    near, peer = board.peer()
    guest = board.guest(STATIC, near)
    board.loop.run(until=lambda: guest.stage == 1)
    mac = guest.fes[0].mac
    early = [
        arp(1, peer.mac, bytes([10, 0, 0, 1]), bytes(6), bytes([10, 0, 0, 2])),
        echo(8, peer.mac, mac, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), b"\0\1", b"\0\1", b"early"),
    ]
    peer.send(*early, *(frame(number) for number in range(100)))
    board.settle()
    board.run(1)
    assert guest.ni is not None
    assert guest.fes[0].counters["rx_dropped_disconnected"] == 102
    assert guest.ni.interface.counters["rx_packets"] == 0
    assert not [raw for raw in peer.frames if raw[:6] == peer.mac], "nobody was answered"
    peer.send(early[0])
    board.run(0.1)
    assert guest.ni.interface.counters["rx_packets"] == 1, "a later one arrives"


def test_frames_that_still_lie_in_the_ring_do_not_reach_an_interface_made_now(board: Board) -> None:
    near, peer = board.peer()
    guest = board.guest(STATIC, near)
    board.loop.run(until=lambda: guest.stage == 1)
    peer.send(*(frame(number) for number in range(200)))
    while guest.ni is None:
        guest.run()  # no interrupt comes through, so nobody has looked into the ring
    board.run(1)
    assert guest.fes[0].counters["rx_dropped_disconnected"] == 200
    assert guest.ni.interface.counters["rx_packets"] == 0


def test_only_fe_0_can_be_given_an_interface(board: Board) -> None:
    guest = board.boot(STATIC + " -s ifconfig eth1 -s idle", board.peer()[0], board.peer()[0])
    with pytest.raises(OnlyFrontEndZero):
        NetworkInterface(guest.fes[1], guest.stack)
    assert [interface.name for interface in guest.stack.interfaces] == ["lo", "eth0"]
    assert guest.fes[1].ni is None
    board.run(0.1)
    shown = "\n".join(guest.log.output)
    assert "eth1: flags=" in shown
    assert guest.fes[1].mac.hex(":") in shown
    assert "inet" not in shown


def test_link_changes_reach_the_interface_and_the_log(board: Board) -> None:
    near, _ = board.peer()
    guest = board.boot(STATIC, near)
    assert guest.ni is not None
    card = board.machines["guest"].nics[0].device
    card.set_link(False)
    board.run(0.1)
    assert not guest.ni.flags & IFF_RUNNING
    assert place(guest, "link: eth0 no carrier")
    card.set_link(True)
    board.run(0.1)
    assert guest.ni.flags & IFF_RUNNING
    assert place(guest, "link: eth0 running")


# -- programs and the end ------------------------------------------------------------------------------------------


def exits(status: int, after: float = 0.0) -> object:
    def main(env: Env, argv: list[str]) -> int:
        env.sleep(round(after * SECOND))
        return status

    return main


@pytest.mark.parametrize(
    ("statuses", "result"), [([(0, 0)], 0), ([(3, 0), (0, 1)], 0), ([(3, 2), (4, 1)], 4), ([(0, 1), (4, 2)], 4)]
)
def test_the_guest_halts_when_all_programs_have_ended(
    board: Board, statuses: list[tuple[int, float]], result: int
) -> None:
    words = " ".join(f"-s p{number}" for number in range(len(statuses)))
    guest = board.guest(words)
    for number, (status, after) in enumerate(statuses):
        guest.programs[f"p{number}"] = exits(status, after)  # type: ignore[assignment]
    board.run(5)
    assert (guest.halted, guest.exit_status) == (True, result)
    assert guest.log.lines[-1].startswith(f"[{max(after for _, after in statuses):12.6f}] halted with status {result}")


def test_without_programs_the_guest_runs_on(board: Board) -> None:
    guest = board.boot(STATIC, board.peer()[0])
    board.run(3600)
    assert guest.halted is False


def test_an_unknown_program_is_status_127(board: Board) -> None:
    guest = board.boot("-s idle 1 -s nosuch")
    board.run(2)
    assert (guest.halted, guest.exit_status) == (True, 127)
    assert place(guest, f"boot: there is no program nosuch; there are {', '.join(sorted(guest.programs))}")
    assert {"idle", "ifconfig", "ping", "sniff"} <= set(guest.programs)


def test_a_program_that_crashes_is_status_70_and_the_guest_lives(board: Board) -> None:
    def broken(env: Env, argv: list[str]) -> int:
        raise RuntimeError("oops")

    guest = board.boot("")
    process = guest.spawn(broken)
    board.run(1)
    assert process.exit_status == 70
    assert place(guest, "broken[3]: RuntimeError: oops")
    assert guest.halted is False


def test_spawn_takes_functions_with_arguments_and_names(board: Board) -> None:
    guest = board.guest("")
    with pytest.raises(RuntimeError, match="has not booted yet"):
        guest.spawn("idle")
    board.settle()
    got: list[object] = []

    def program(env: Env, argv: list[object]) -> None:
        got.extend(argv)
        env.print("two\nlines")

    process = guest.spawn(program, 1, "two")
    idle = guest.spawn("idle", "2")
    board.run(1)
    assert got == [1, "two"]
    assert guest.log.output == ["two", "lines"]
    assert (process.exit_status, idle.exit_status) == (0, None)
    board.run(1.1)
    assert idle.exit_status == 0
    with pytest.raises(KeyError):
        guest.spawn("nosuch")


def test_env_wait_sees_a_wake_that_came_before(board: Board) -> None:
    guest = board.boot("")
    results: list[tuple[bool, int]] = []

    def program(env: Env, argv: list[str]) -> None:
        env.wake()
        results.append((env.wait(timeout=1000), env.now()))
        results.append((env.wait(timeout=1000), env.now()))
        env.guest.services.timers.after(500, env.wake)
        results.append((env.wait(lambda: env.now() >= 1200, timeout=1000), env.now()))

    guest.spawn(program)
    board.run(1)
    assert results == [(True, 0), (False, 1000), (True, 1500)]


def test_a_kernel_fault_halts_that_guest_alone() -> None:
    board = Board()
    faulty, healthy = board.boot("", name="faulty"), board.boot("", name="healthy")

    def fault() -> None:
        raise ZeroDivisionError("in the kernel")

    faulty.services.timers.after(1000, fault)
    board.run(1)
    assert (faulty.halted, faulty.exit_status) == (True, 70)
    assert isinstance(faulty.panic, ZeroDivisionError)
    assert place(faulty, "panic: ZeroDivisionError: in the kernel (test_guest_boot.py:")
    assert healthy.halted is False
    faulty.panic = None
    board.close()


def test_close_unwinds_programs_outlets_and_drivers(board: Board) -> None:
    near, peer = board.peer()
    guest = board.boot(STATIC, near)
    unwound: list[str] = []

    def program(env: Env, argv: list[str]) -> None:
        env.guest.outlets.open("eth0", owner=env.process)
        try:
            env.wait()
        finally:
            unwound.append("program")

    guest.spawn(program)
    board.run(1)
    peer.send(*(frame(number, 1000) for number in range(300)))
    board.run(0.001)
    guest.close()
    guest.close()
    assert unwound == ["program"]
    assert guest.leaks == []
    assert len(guest.outlets) == 0
    assert guest.services.dma.free_bytes == guest.services.dma.size
    assert board.machines["guest"].nics[0].status == 0, "the device was reset"
    with pytest.raises(RuntimeError):
        guest.spawn("idle")


def test_close_says_what_did_not_come_back(board: Board) -> None:
    guest = board.boot("", board.peer()[0])
    page = guest.services.dma.alloc(100)
    guest.close()
    assert guest.leaks == ["4096 bytes of DMA pages were not freed"]
    assert place(guest, "leak: 4096 bytes")
    guest.services.dma.free(page)
    guest.leaks.clear()


def test_another_thread_cannot_spawn_or_close(board: Board) -> None:
    guest = board.boot("")
    refused: list[str] = []

    def elsewhere() -> None:
        for call in (lambda: guest.spawn("idle"), guest.close):
            try:
                call()
            except RuntimeError as error:
                refused.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(refused) == 2
    assert guest.halted is False


def test_a_halted_guest_takes_no_interrupts_and_lets_the_loop_rest(board: Board) -> None:
    near, peer = board.peer()
    guest = board.boot(STATIC + " -s idle 1", near)
    board.run(2)
    assert guest.halted is True
    peer.send(frame(1))
    assert board.loop.run() is False, "it came to an end: nothing is left to do"


def test_interrupts_before_the_boot_and_after_the_halt_mask_their_line(board: Board) -> None:
    guest = board.guest("", board.peer()[0])
    controller = board.machines["guest"].irq
    delivered: list[int] = []
    guest.interrupt(9)
    board.settle()
    guest.halt(0)
    guest.interrupt(8)
    controller.cpu = delivered.append
    for number in (8, 9, 10):
        controller.line(number).set_level(True)
    controller.deliver()
    assert delivered == [10]
    controller.line(10).set_level(False)


def test_the_next_deadline_is_the_nearest_of_timers_and_stack(board: Board) -> None:
    guest = board.boot(STATIC, board.peer()[0])
    board.run(1.5)
    announcement = guest.stack.poll_at()
    assert announcement is not None
    assert guest.next_deadline() == announcement
    earlier = guest.services.timers.at(announcement - 1, lambda: None)
    assert guest.next_deadline() == announcement - 1
    earlier.cancel()
    guest.services.timers.at(announcement + 1, lambda: None)
    assert guest.next_deadline() == announcement


def test_an_idle_guest_asks_for_no_turns(board: Board) -> None:
    guest = board.boot("-s idle", board.peer()[0])
    board.run(1)
    assert guest.run() is False
    assert guest.next_deadline() is None


def test_counters_name_every_layer(board: Board) -> None:
    hub = Hub(board.loop, "hub")
    board.boot("-ipaddr 10.0.0.1 -netmask 255.255.255.0", hub.port("a"), name="a")
    guest = board.guest(STATIC + " -s ping 10.0.0.1 -c 2 -s idle 9", hub.port("b"), cable(board.loop)[0], name="b")
    assert guest.counters() == {}
    board.run(5)
    counters = guest.counters()
    layers = list(counters)
    below = ["irq", "eth0 driver", "eth0 front end", "eth1 driver", "eth1 front end", "lo driver", "ethernet"]
    assert layers[: len(below)] == below
    assert {"loopback", "arp", "ip", "icmp", "icmpv6", "udp"} <= set(layers)
    assert layers[-3:] == ["dns", "calls", "scheduler"]
    assert counters["icmp"]["rx_echo_replies"] == 2
    assert counters["eth0 driver"]["rx_packets"] == counters["eth0 front end"]["rx_packets"]

