"""`--nic xen` wherever `--nic virtio` may stand, as people type it: boards, descriptions, programs, views, mistakes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import vring
from tests.test_cli import COMMAND, ENVIRONMENT, Said
from tests.test_cli import vring as command

typed = command  # the fixture that runs the command in this process

CARDS = ["xen", "xen:profile=full,queues=2", "xen:profile=ling"]
ALICE = "-ipaddr 10.0.0.1 -netmask 255.255.255.0"
BOB = "-ipaddr 10.0.0.2 -netmask 255.255.255.0"
Typed = Callable[..., Said]


def sim(*words: str) -> list[str]:
    return ["boot", "--clock", "virtual", *words]


@pytest.mark.parametrize(
    ("nic", "parts"),
    [
        ("xen:profile=fast", ["profile=fast", "full or ling"]),
        ("xen:queues=0", ["queues=0", "1 to 16"]),
        ("xen:queues=17", ["queues=17", "1 to 16"]),
        ("xen:queues=many", ["queues=many", "1 to 16"]),
        ("xen:profile=ling,queues=2", ["queues=2", "LING", "one queue"]),
        ("xen:sg=maybe", ["sg=maybe", "on or off"]),
        ("xen:mtu=20", ["mtu=20", "68"]),
        ("xen:rx_queue_size=8", ["'rx_queue_size'", "profile, queues"]),
        ("xen:mac=1:2", ["mac", "'1:2'"]),
        ("virtio:profile=ling", ["virtio", "'profile'"]),
        ("zen", ["'zen'", "virtio, vhost-user, xen"]),
    ],
)
def test_a_mistake_in_a_card_is_one_line(typed: Typed, nic: str, parts: list[str]) -> None:
    said = typed(*sim("--nic", nic, "--for", "1"))

    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("vring: ")
    assert said.err.count("\n") == 1
    for part in parts:
        assert part in said.err


@pytest.mark.parametrize("nic", CARDS)
def test_a_guest_boots_on_the_card_and_its_rings_grants_ports_and_keys_are_shown(typed: Typed, nic: str) -> None:
    said = typed(*sim("--nic", nic, "--wire", "hub:lan", "--for", "1", "-v", "--rings", "--", *ALICE.split()))

    assert (said.status, said.err) == (0, "")
    for part in (
        "status: eth0 is up, netif_up to init", "init running", "front end Connected, back end Connected",
        "guest eth0 rx", "256 slots, 256 with the back end", "req_prod ", "rsp_event ", "id 255, gref ",
        "store, domain 1 (guest)", "rx-ring-ref = ", "grant table of domain 1", "permit_access readonly",
        "event channels of domain 1", "evtchn_upcall_pending 0", "vif0 netback", "rsp_cons: responses read",
    ):  # fmt: skip
        assert part in said.out, part
    assert ("guest eth0 tx1" in said.out) == ("queues=2" in nic)
    assert ("feature-sg = 1" in said.out) == ("ling" not in nic)
    assert max(map(len, said.out[said.out.index("cards of guest") :].splitlines())) <= 100


@pytest.mark.parametrize("nic", CARDS)
def test_the_trace_of_a_ping_names_slots_references_and_ports(typed: Typed, nic: str, tmp_path: Path) -> None:
    model, _, options = nic.partition(":")
    keys = "".join(f", {key} = {value if value.isdigit() else repr(value)}" for key, _, value in
                   (word.partition("=") for word in options.split(",") if word))  # fmt: skip
    board = tmp_path / "pair.toml"
    board.write_text(
        f"""
        clock = "virtual"
        [[guest]]
        name = "alice"
        cmdline = "{ALICE} -s ping -c 1 10.0.0.2"
        nic = [{{ model = "{model}", wire = "hub:lan"{keys} }}]
        [[guest]]
        name = "bob"
        cmdline = "{BOB}"
        nic = [{{ model = "virtio", wire = "hub:lan" }}]
        """
    )

    said = typed("boot", str(board), "--trace", "--exit-status")

    assert (said.status, said.err) == (0, "")
    assert "1 packets transmitted, 1 received" in said.out
    lines = [line.split(maxsplit=6) for line in said.out.splitlines() if " alice eth0 " in line]
    stages = {(line[4], line[5]): line[6] for line in lines}
    assert stages["tx", "grant"].endswith(": 98 bytes copied")
    assert stages["rx", "ring"].endswith(", offset 0, 98 bytes")
    assert stages["rx", "event"].endswith(" is pending")


def test_a_description_as_xl_reads_it_is_a_board(typed: Typed, tmp_path: Path) -> None:
    domain = tmp_path / "web.cfg"
    domain.write_text(
        f"""
        name = "web"
        memory = 64
        extra = "{ALICE} -s ifconfig"
        vif = ['mac=00:16:3e:00:00:01,bridge=xenbr0', 'bridge=xenbr1']
        """
    )

    said = typed("boot", str(domain), "--clock", "virtual", "-v", "--exit-status")

    assert (said.status, said.err) == (0, "")
    assert "00:16:3e:00:00:01" in said.out
    assert "nic 1: xen on hub:xenbr1" in said.out


def test_a_description_with_a_mistake_is_one_line(typed: Typed, tmp_path: Path) -> None:
    domain = tmp_path / "web.cfg"
    domain.write_text('vif = ["bridge=xenbr0,colour=red"]\n')

    said = typed("boot", str(domain), "--clock", "virtual")

    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert "colour" in said.err


def test_cards_of_both_models_in_one_guest_are_numbered_virtio_first(typed: Typed) -> None:
    cards_given = ["--nic", "xen", "--wire", "hub:a", "--nic", "virtio", "--wire", "hub:b"]

    said = typed(*sim(*cards_given, "--for", "1", "-v", "--rings"))

    assert said.status == 0
    cards = said.out[said.out.index("cards of guest") :].splitlines()
    assert "DRIVER_OK" in cards[1]
    assert "eth1" in next(line for line in cards if "vif 0 of domain 1" in line)
    assert "guest eth1 rx  256 slots" in said.out
    assert "avail.idx" in said.out
    assert "reaped: read so far" in said.out
    assert "rsp_cons: responses read" in said.out


@pytest.mark.parametrize("nic", CARDS)
def test_from_python_a_card_is_a_word_too(nic: str) -> None:
    with vring.boot(nic=nic, wire="hub:lan", clock="virtual", cmdline=f"{ALICE} -s ping -c 1 127.0.0.1") as session:
        session.run(seconds=0.5)
        assert {queue.guest for queue in session.rings()} == {"guest"}
        assert session.run(seconds=10)
        assert session.exit_status == 0
        assert session.counters()["guest"]["vif0 netback"]["tx_packets"] > 0


@pytest.mark.parametrize("nic", CARDS)
def test_an_ordinary_program_runs_over_the_card(nic: str, tmp_path: Path) -> None:
    script = tmp_path / "talk.py"
    script.write_text(
        """
import socket, threading
listener = socket.create_server(("10.0.0.1", 0))
def serve():
    with listener.accept()[0] as one:
        one.sendall(one.recv(99)[::-1])
thread = threading.Thread(target=serve)
thread.start()
with socket.create_connection(listener.getsockname()) as one:
    one.sendall(b"gnirv")
    print(one.recv(99), [name for _, name in socket.if_nameindex()])
thread.join()
"""
    )

    said = subprocess.run(
        [*COMMAND, "run", "--nic", nic, "--wire", "none", "--cmdline", ALICE, str(script)],
        capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT,
    )  # fmt: skip

    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == "b'vring' ['lo', 'eth0']\n"


def test_a_guest_may_be_told_to_drive_any_card_as_ling_does(typed: Typed) -> None:
    said = typed(*sim("--nic", "xen", "--for", "1", "-v", "--", "xen_netfront.profile=plain"))

    assert "feature-no-csum-offload = 1" in said.out
    assert "event-channel-tx" not in said.out


def test_a_kernel_word_with_a_mistake_is_said_in_the_boot_log(typed: Typed) -> None:
    said = typed(*sim("--nic", "xen", "--for", "1", "--", "xen_netfront.profile=fast"))

    assert "xen_netfront.profile=fast: write xen_netfront.profile=plain or full" in said.out
    assert "eth0: MAC 00:16:3e:" in said.out
