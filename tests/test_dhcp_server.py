"""The DHCP server as a dialogue: scapy's messages and our own client ask, on a clock that is moved by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from guest.net.address import format_address
from guest.net.dhcp_server import DhcpServer, DhcpServerConfig
from guest.net.dhcp_service import DhcpService
from tests.net_world import BROADCAST, Host
from tests.server_world import Street

SECOND = 1_000_000
SERVER = "10.0.2.2"
ALICE = "52:54:00:00:00:0a"
BOB = "52:54:00:00:00:0b"


class Served:
    """A server at 10.0.2.2, and clients whose messages the test writes."""

    def __init__(self, **settings: Any) -> None:
        self.host = Host(None)
        self.host.eth.add_address(SERVER, 24)
        self.host.eth.set_up()
        chosen = {
            "first": "10.0.2.15", "last": "10.0.2.17", "gateway": SERVER, "dns": ["10.0.2.3"], "lease": 3600 * SECOND
        }
        self.log: list[str] = []
        self.server = DhcpServer(self.host.stack, self.host.eth, log=self.log.append, **(chosen | settings))
        assert self.server.start() == 0
        self.host.take()

    def says(self, kind: str, mac: str = ALICE, *options: Any, src: str = "0.0.0.0", dst: str = "255.255.255.255",
             flags: int = 0x8000, ciaddr: str = "0.0.0.0", xid: int = 7, **fields: Any) -> str:  # fmt: skip
        """A client says something; what it hears, as "kind address > destination (MAC)"."""
        chaddr = bytes.fromhex(mac.replace(":", ""))
        message = BOOTP(op=1, chaddr=chaddr + bytes(10), xid=xid, flags=flags, ciaddr=ciaddr, **fields)
        message /= DHCP(options=[("message-type", kind), *options, "end"])
        return self.hears(message, mac, src, dst)

    def hears(self, message: Packet | bytes, mac: str = ALICE, src: str = "0.0.0.0",
              dst: str = "255.255.255.255") -> str:  # fmt: skip
        to = BROADCAST if dst == "255.255.255.255" else self.host.eth.mac.hex(":")  # type: ignore[union-attr]
        self.host.receive(Ether(src=mac, dst=to) / IP(src=src, dst=dst) / UDP(sport=68, dport=67) / message)
        answers = [packet for packet in self.host.parsed() if UDP in packet and packet[UDP].sport == 67]
        if not answers:
            return ""
        [self.packet] = answers
        reply = BOOTP(bytes(self.packet[UDP].payload))
        self.options = {option[0]: option[1:] for option in reply[DHCP].options if isinstance(option, tuple)}
        self.reply = reply
        kind = ["", "", "offer", "", "", "ack", "nak"][self.options["message-type"][0]]
        address = "" if reply.yiaddr == "0.0.0.0" else f" {reply.yiaddr}"
        return f"{kind}{address} > {self.packet[IP].dst} ({self.packet.dst})"

    def bind(self, mac: str = ALICE) -> str:
        """From DISCOVER to ACK; the address."""
        said = self.says("discover", mac)
        address = said.split()[1] if said else ""
        self.says("request", mac, ("server_id", SERVER), ("requested_addr", address))
        return address

    def renew(self, address: str, mac: str = ALICE, **fields: Any) -> str:
        """A client asks its server to keep its address."""
        return self.says("request", mac, src=address, dst=SERVER, ciaddr=address, flags=0, **fields)

    def count(self, name: str) -> int:
        return self.server.counters[name]

    def leases(self) -> list[str]:
        return [format_address(lease.address) for lease in self.server.leases()]


# -- what a client is given ----------------------------------------------------------------------------------------


def test_discover_offer_request_ack() -> None:
    served = Served(mtu=1400, domain="sim.lan")
    assert served.says("discover") == f"offer 10.0.2.15 > 255.255.255.255 ({BROADCAST})"
    assert (served.packet[IP].src, served.packet[UDP].dport, served.reply.xid) == (SERVER, 68, 7)
    assert served.options["server_id"] == (SERVER,)
    assert served.leases() == [], "an offer is no lease"
    said = served.says("request", ALICE, ("server_id", SERVER), ("requested_addr", "10.0.2.15"))
    assert said == f"ack 10.0.2.15 > 255.255.255.255 ({BROADCAST})"
    given = {key: value[0] for key, value in served.options.items()}
    assert given == {
        "message-type": 5, "server_id": SERVER, "lease_time": 3600, "renewal_time": 1800, "rebinding_time": 3150,
        "subnet_mask": "255.255.255.0", "router": SERVER, "name_server": "10.0.2.3", "domain": b"sim.lan",
        "interface-mtu": 1400,
    }  # fmt: skip
    assert served.leases() == ["10.0.2.15"]
    assert served.log == [f"dhcp: 10.0.2.15 is {ALICE}'s"]


def test_each_client_has_one_address_and_gets_it_again() -> None:
    served = Served()
    assert [served.bind(ALICE), served.bind(BOB), served.bind(ALICE)] == ["10.0.2.15", "10.0.2.16", "10.0.2.15"]


def test_a_client_identifier_counts_more_than_the_mac_address() -> None:
    served = Served()
    one, other = ("client_id", b"\xffone"), ("client_id", b"\xffother")
    assert "10.0.2.15" in served.says("discover", ALICE, one)
    assert served.options["client_id"] == (b"\xffone",), "RFC 6842: it is sent back"
    assert "10.0.2.16" in served.says("discover", ALICE, other)
    assert "10.0.2.15" in served.says("discover", BOB, one)
    assert "10.0.2.17" in served.says("discover", ALICE)
    kernel = ("client_id", b"\1" + bytes.fromhex(ALICE.replace(":", "")))
    assert "10.0.2.17" in served.says("discover", ALICE, kernel), "the usual identifier is the MAC address"


def test_the_address_that_a_client_asks_for_is_given_if_it_is_free() -> None:
    served = Served()
    assert "10.0.2.17" in served.says("discover", ALICE, ("requested_addr", "10.0.2.17"))
    assert "10.0.2.15" in served.says("discover", BOB, ("requested_addr", "10.0.2.17"))
    assert "10.0.2.16" in served.says("discover", "52:54:00:00:00:0c", ("requested_addr", "10.0.2.2")), "the server's"


def test_the_pool_leaves_out_gateway_and_name_servers() -> None:
    served = Served(first="10.0.2.1", last="10.0.2.4")
    assert [served.bind(mac) for mac in (ALICE, BOB)] == ["10.0.2.1", "10.0.2.4"]
    assert served.says("discover", "52:54:00:00:00:0c") == ""
    assert served.count("exhausted") == 1


def test_without_a_gateway_and_for_ever() -> None:
    served = Served(gateway=None, dns=(), lease=None)
    served.bind()
    assert served.options["lease_time"] == (0xFFFFFFFF,)
    assert not {"router", "name_server", "renewal_time", "rebinding_time"} & set(served.options)
    served.host.wait(10**9 * SECOND)
    assert served.leases() == ["10.0.2.15"]


@pytest.mark.parametrize(("asked", "given"), [(600, 600), (1, 60), (0, 60), (86400, 3600), (0xFFFFFFFF, 3600)])
def test_the_lease_is_as_long_as_the_client_asks_within_bounds(asked: int, given: int) -> None:
    served = Served()
    served.says("discover", ALICE, ("lease_time", asked))
    assert served.options["lease_time"] == (given,)


# -- where answers go, RFC 2131 §4.1 -------------------------------------------------------------------------------


def test_a_client_that_can_take_unicast_is_answered_at_its_mac_without_arp() -> None:
    served = Served()
    assert served.says("discover", flags=0) == f"offer 10.0.2.15 > 10.0.2.15 ({ALICE})"
    said = served.says("request", ALICE, ("server_id", SERVER), ("requested_addr", "10.0.2.15"), flags=0)
    assert said == f"ack 10.0.2.15 > 10.0.2.15 ({ALICE})"


def test_a_refusal_is_always_broadcast() -> None:
    served = Served()
    said = served.says("request", ALICE, ("requested_addr", "192.168.1.5"), flags=0)
    assert said == f"nak > 255.255.255.255 ({BROADCAST})"
    assert set(served.options) == {"message-type", "server_id"}


# -- renewing, rebinding, rebooting --------------------------------------------------------------------------------


def test_renewing_extends_the_lease() -> None:
    served = Served()
    address = served.bind()
    served.host.wait(1800 * SECOND)
    assert served.renew(address) == f"ack 10.0.2.15 > 10.0.2.15 ({ALICE})"
    assert served.reply.ciaddr == address
    served.host.wait(3599 * SECOND)
    assert served.leases() == [address]
    served.host.wait(2 * SECOND)
    assert served.leases() == []


def test_rebinding_is_answered_to_the_client_itself() -> None:
    served = Served()
    address = served.bind()
    assert served.says("request", src=address, ciaddr=address, flags=0) == f"ack {address} > {address} ({ALICE})"


def test_nobody_renews_what_is_somebody_elses() -> None:
    served = Served()
    address = served.bind(ALICE)
    assert served.renew(address, BOB) == f"nak > 255.255.255.255 ({BROADCAST})"
    assert served.leases() == [address]


def test_a_client_that_reboots_keeps_its_address_and_hears_no_for_another() -> None:
    served = Served()
    served.bind()
    assert "ack 10.0.2.15" in served.says("request", ALICE, ("requested_addr", "10.0.2.15"))
    assert "nak" in served.says("request", ALICE, ("requested_addr", "10.0.2.16"))


def test_a_client_nobody_knows_keeps_a_free_address_only_where_there_is_no_other_server() -> None:
    served = Served()
    assert "ack 10.0.2.16" in served.says("request", ALICE, ("requested_addr", "10.0.2.16"))
    assert "nak" in served.says("request", BOB, ("requested_addr", "10.0.2.16"))
    shared = Served(authoritative=False)
    assert shared.says("request", ALICE, ("requested_addr", "10.0.2.16")) == ""
    assert shared.count("rx_ignored_unknown_client") == 1
    assert "nak" in shared.says("request", ALICE, ("requested_addr", "192.168.1.5")), "that one is wrong here anyway"


def test_a_request_for_another_server_frees_what_was_offered() -> None:
    served = Served(last="10.0.2.15")
    served.says("discover", ALICE)
    assert served.says("request", ALICE, ("server_id", "10.0.2.9"), ("requested_addr", "10.0.2.99")) == ""
    assert "10.0.2.15" in served.says("discover", BOB)


# -- the end of a lease --------------------------------------------------------------------------------------------


def test_a_released_address_waits_for_its_client_but_not_when_it_is_needed() -> None:
    served = Served(last="10.0.2.16")
    address = served.bind(ALICE)
    release = {"src": address, "dst": SERVER, "ciaddr": address}
    assert served.says("release", ALICE, ("server_id", SERVER), **release) == ""
    assert served.leases() == []
    assert served.bind(BOB) == "10.0.2.16", "one that nobody had comes first"
    assert served.bind(ALICE) == address
    served.says("release", ALICE, ("server_id", SERVER), **release)
    assert served.bind("52:54:00:00:00:0c") == address


def test_only_the_holder_can_release_or_decline() -> None:
    served = Served()
    address = served.bind(ALICE)
    served.says("release", BOB, ("server_id", SERVER), src=address, dst=SERVER, ciaddr=address)
    served.says("decline", BOB, ("server_id", SERVER), ("requested_addr", address))
    assert served.leases() == [address]
    assert served.count("rx_ignored_not_its_address") == 2


def test_a_declined_address_is_given_to_nobody_for_a_while() -> None:
    served = Served(last="10.0.2.16", config=DhcpServerConfig(quarantine=600 * SECOND))
    address = served.bind(ALICE)
    assert served.says("decline", ALICE, ("server_id", SERVER), ("requested_addr", address)) == ""
    assert served.bind(ALICE) == "10.0.2.16"
    assert served.says("discover", BOB) == ""
    served.host.wait(599 * SECOND)
    assert served.says("discover", BOB) == ""
    served.host.wait(SECOND)
    assert served.bind(BOB) == address
    assert served.count("exhausted") == 2


def test_when_all_is_given_away_the_next_client_waits_for_the_first_that_ends() -> None:
    served = Served(last="10.0.2.16")
    assert [served.bind(ALICE), served.bind(BOB)] == ["10.0.2.15", "10.0.2.16"]
    served.host.wait(1800 * SECOND)
    served.renew("10.0.2.15", ALICE)
    for _ in range(3):
        assert served.says("discover", "52:54:00:00:00:0c") == ""
    assert served.count("exhausted") == 3
    served.host.wait(1800 * SECOND)
    assert served.bind("52:54:00:00:00:0c") == "10.0.2.16"
    assert "nak" in served.renew("10.0.2.16", BOB)


def test_an_offer_that_nobody_takes_is_free_again_after_a_minute() -> None:
    served = Served(last="10.0.2.15")
    served.says("discover", ALICE)
    assert served.says("discover", BOB) == ""
    served.host.wait(60 * SECOND)
    assert "10.0.2.15" in served.says("discover", BOB)


def test_an_offer_does_not_cut_a_lease_that_runs() -> None:
    served = Served()
    served.bind()
    served.says("discover")
    served.host.wait(3599 * SECOND)
    assert served.leases() == ["10.0.2.15"]


def test_inform_is_answered_without_an_address() -> None:
    served = Served()
    said = served.says("inform", src="10.0.2.99", ciaddr="10.0.2.99", dst="255.255.255.255")
    assert said == "", "it has to be asked first who has 10.0.2.99"
    served.host.meet("10.0.2.99", ALICE)
    assert served.says("inform", src="10.0.2.99", ciaddr="10.0.2.99") == f"ack > 10.0.2.99 ({ALICE})"
    assert "lease_time" not in served.options
    assert served.options["name_server"] == ("10.0.2.3",)


@pytest.mark.parametrize("address", ["10.0.2.255", "10.0.2.0", "10.0.3.9", SERVER])
def test_h65_inform_from_what_is_no_host_of_this_network_is_dropped(address: str) -> None:
    served = Served()
    served.host.meet("10.0.2.0", ALICE)
    assert served.says("inform", src="10.0.2.99", ciaddr=address) == "", "everybody would hear the answer"
    assert served.count("rx_dropped_address") == 1


# -- hostile -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"giaddr": "10.0.9.1"}, "rx_dropped_relayed"),
        ({"op": 2}, "rx_dropped_op"),
        ({"hlen": 16}, "rx_dropped_hardware"),
        ({"chaddr": b"\xff" * 16}, "rx_dropped_hardware"),
        ({"chaddr": bytes(16)}, "rx_dropped_hardware"),
        ({"kind": 6}, "rx_dropped_kind"),
        ({"kind": 77}, "rx_dropped_kind"),
        ({"options": [("client_id", b"\1")]}, "rx_dropped_client_id"),
        ({"options": [("client_id", b"\1" * 200), ("client_id", b"\1" * 200)]}, "rx_dropped_client_id"),
        ({"options": [(54, b"\1\2\3")]}, "rx_dropped_server_id"),
        ({"kind": 3}, "rx_dropped_no_address"),
        ({"kind": 3, "options": [(50, b"\1\2\3")]}, "rx_dropped_no_address"),
        ({"kind": 8, "ciaddr": "192.168.0.1"}, "rx_dropped_address"),
        ({"cut": 200}, "rx_dropped_short"),
        ({"cut": 242}, "rx_dropped_option_length"),
        ({"cut": 243}, "rx_dropped_no_end"),
    ],
)
def test_h65_what_makes_no_sense_is_dropped_and_counted(change: dict[str, Any], reason: str) -> None:
    served = Served()
    kind, options, cut = change.get("kind", 1), change.get("options", []), change.get("cut")
    fields = {name: value for name, value in change.items() if name not in ("kind", "options", "cut")}
    message = BOOTP(**({"op": 1, "chaddr": bytes.fromhex("52540000000a") + bytes(10)} | fields))
    raw = bytes(message / DHCP(options=[("message-type", kind), *options, "end"]))[:cut]
    assert served.hears(raw) == ""
    assert served.server.counters == {reason: 1}
    assert served.bind() == "10.0.2.15", "it goes on"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_h65_nothing_raises_whatever_comes(data: st.DataObject) -> None:
    served = Served()
    for _ in range(8):
        raw = bytearray(
            bytes(
                BOOTP(op=1, chaddr=data.draw(st.sampled_from([b"\x02" * 6, b"\x04" * 6])) + bytes(10))
                / DHCP(options=[
                    ("message-type", data.draw(st.integers(0, 9))), ("server_id", SERVER),
                    ("requested_addr", f"10.0.2.{data.draw(st.integers(0, 255))}"), "end",
                ])
            )
        )  # fmt: skip
        for _ in range(data.draw(st.integers(0, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        served.host.receive(
            Ether(dst=BROADCAST, src=ALICE) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
            / bytes(raw)
        )
        served.host.clock.now += data.draw(st.integers(0, 100)) * SECOND
    heard = sum(number for name, number in served.server.counters.items() if name.startswith("rx_"))
    assert heard == 8, "each message is counted once"
    holders = [lease.address for lease in served.server.pool.active(served.host.clock.now)]
    assert len(holders) == len(set(holders)) <= 3


def test_a_flood_of_clients_costs_bounded_memory() -> None:
    served = Served()
    rng = random.Random(1)
    for _ in range(500):
        served.says("discover", "02:" + rng.randbytes(5).hex(":"))
        served.host.clock.now += 40 * SECOND
    assert len(served.server.pool._by_address) <= 3
    assert len(served.server.pool._by_client) <= 3


@pytest.mark.parametrize("ends", [("10.0.3.1", "10.0.3.9"), ("10.0.2.0", "10.0.2.9"), ("10.0.2.9", "10.0.2.3")])
def test_a_pool_outside_the_network_is_refused(ends: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"are not hosts of 10\.0\.2\.2/24|a pool has 1 to"):
        Served(first=ends[0], last=ends[1])


def test_the_port_may_be_taken() -> None:
    served = Served()
    second = DhcpServer(served.host.stack, served.host.eth, first="10.0.2.15", last="10.0.2.16")
    assert second.start() == 98
    served.server.close()
    assert second.start() == 0


# -- our own client ------------------------------------------------------------------------------------------------


def test_d13_our_client_gets_keeps_and_gives_back_a_lease() -> None:
    street = Street()
    router = street.host("52:54:00:00:00:02", f"{SERVER}/24")
    guest = street.host(ALICE)
    server = DhcpServer(
        router.stack, router.eth, first="10.0.2.15", last="10.0.2.30", gateway=SERVER, lease=3600 * SECOND
    )
    assert server.start() == 0
    client = DhcpService(guest.stack, guest.eth, rng=random.Random(3), timers=street.timers)
    client.start()
    street.run(2)
    assert str(guest.eth.addresses[0]) == "10.0.2.15/24"
    assert [str(route.prefix) for route in guest.stack.routes if route.gateway is not None] == ["0.0.0.0/0"]
    street.run(10_000)
    assert client.bound, "it was renewed"
    assert server.counters["tx_ack"] == 1 + 10_000 // 1800
    assert server.counters["tx_nak"] == server.counters["exhausted"] == 0
    client.release()
    street.run(0)
    assert server.counters["rx_release"] == 1
    assert server.leases() == []
