"""Domain descriptions of Xen's xl as boards."""

from __future__ import annotations

from pathlib import Path

import pytest

from vring.config import Board, ConfigError

EXAMPLE = """
# the domain of a small web server
name   = "web"; memory = 48
kernel = "/boot/web"    # passed over: vring has a guest of its own
vcpus  = 1
extra  = "-ipaddr 10.0.0.2 -netmask 255.255.255.0 -s idle"
vif    = ['mac=00:16:3E:00:00:01,bridge=br0',
          "mtu=9000, vifname=web1",
         ]
vif   += ['']
on_crash = 'destroy'
"""


def load(tmp_path: Path, text: str) -> Board:
    path = tmp_path / "web.cfg"
    path.write_text(text)
    return Board.load(path)


def test_a_description_is_a_board_of_one_guest_with_xen_cards(tmp_path: Path) -> None:
    (guest,) = load(tmp_path, EXAMPLE).guests
    assert (guest.name, guest.memory) == ("web", 48 << 20)
    assert guest.words == "-ipaddr 10.0.0.2 -netmask 255.255.255.0 -s idle"
    assert [(nic.model, str(nic.wire), dict(nic.options)) for nic in guest.nics] == [
        ("xen", "hub:br0", {"mac": "00:16:3e:00:00:01"}),
        ("xen", "hub:xenbr0", {"mtu": 9000}),
        ("xen", "hub:xenbr0", {}),
    ]


def test_no_vif_means_no_card_and_cmdline_goes_before_extra(tmp_path: Path) -> None:
    (guest,) = load(tmp_path, 'extra = "-dhcp"\ncmdline = "-s idle"').guests
    assert guest.nics == ()
    assert guest.words == "-s idle"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("colour = 1", ("xl has no key 'colour'", "name, memory, extra")),
        ("name = 7", ("name is text in quotes",)),
        ('memory = "64M"', ("memory is a number of MiB",)),
        ("memory = 2", ("memory is 4M to 3G",)),
        ("vif = 'bridge=a'", ("vif is a list",)),
        ("vif = [1]", ("vif 0:", "text in quotes")),
        ("vif = ['bridge']", ("vif 0:", "'bridge' is not key=value")),
        ("vif = ['', 'speed=1']", ("vif 1:", "no key 'speed'", "mac, bridge, mtu")),
        ("vif = ['mac=00:16']", ("nic 0: mac",)),
        ("vif = ['bridge=a/b']", ("vif 0:", "'a/b'")),
        ("\nname", ("line 2:", "KEY = VALUE")),
        ("name = 'a' 'b'", ("line 1:", "more behind the value")),
        ("name = 'a\n'", ("line 1:", "not understood")),
        ("vif = ['a=b',\n", ("line 1:", "no end")),
        ("memory += 3", ("line 1:", "adds to a list")),
        ("name = name", ("line 1:", "text in quotes, a number, or a list")),
    ],
)
def test_a_mistake_is_one_line_that_says_where(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    said = str(caught.value)
    assert "\n" not in said
    for part in ("web.cfg", *parts):
        assert part in said
