"""The resolver, as a dialogue with servers of scapy's messages: questions, tries, forgeries, cache."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR

from guest.net.address import format_address, parse_address
from guest.net.dns import Lookup, Query, ResolveError
from guest.net.dns_exchange import Answer, DnsConfig
from tests.dns_world import SERVER, Maker, Net, a, answer, cname, soa


def shown(query: Query) -> str:
    """The answer, as words."""
    got = query.answer
    if got is None:
        return "pending"
    return got.error or " ".join(map(format_address, got.addresses)) or " ".join(got.names)


# -- questions and answers -----------------------------------------------------------------------------------------


def test_an_address_is_asked_for_and_answered() -> None:
    net = Net()
    told: list[str] = []
    query = net.resolver.query("www.example.org", on_done=lambda done: told.append(shown(done)))
    assert net.questions() == [f"{SERVER}: www.example.org. A"]
    assert net.last.asked.rd == 1
    assert shown(query) == "pending"
    net.last.answers(a("www.example.org", "192.0.2.1"), a("www.example.org", "192.0.2.2"))
    assert told == ["192.0.2.1 192.0.2.2"]
    assert query.answer is not None
    assert (query.answer.ttl, query.answer.source, query.answer.server) == (60, "dns", parse_address(SERVER))
    assert net.open == []
    assert net.timers.next_deadline() is None
    assert net.resolver.pending == 0


def test_ipv6_addresses_and_names_of_addresses() -> None:
    net = Net("fd00::3")
    query = net.ask("www.example.org", 6)
    assert net.questions() == ["fd00::3: www.example.org. AAAA"]
    assert net.last.family == 6
    net.last.answers(a("www.example.org", "2001:db8::1"))
    assert shown(query) == "2001:db8::1"
    query = net.resolver.reverse(parse_address("192.0.2.7"))
    assert net.questions()[-1] == "fd00::3: 7.2.0.192.in-addr.arpa. PTR"
    net.last.answers(DNSRR(rrname="7.2.0.192.in-addr.arpa", type="PTR", rdata="seven.example.org"))
    assert shown(query) == "seven.example.org"
    net.resolver.reverse(parse_address("2001:db8::1"))
    assert net.questions()[-1].endswith("8.b.d.0.1.0.0.2.ip6.arpa. PTR")


def test_aliases_are_followed_with_the_least_ttl() -> None:
    net = Net()
    query = net.ask("www.example.org")
    net.last.answers(
        a("c.example.org", "192.0.2.9", ttl=50), cname("www.example.org", "b.example.org", 40),
        cname("b.example.org", "c.example.org", 90), a("other.example.org", "6.6.6.6"),
    )  # fmt: skip
    assert shown(query) == "192.0.2.9"
    assert query.answer is not None
    assert (query.answer.canonical, query.answer.ttl) == ("c.example.org", 40)


def test_an_alias_that_leads_out_of_the_answer_is_asked_for() -> None:
    net = Net()
    query = net.ask("www.example.org")
    net.last.answers(cname("www.example.org", "host.example.net"))
    assert net.questions()[-1] == f"{SERVER}: host.example.net. A"
    net.last.answers(a("host.example.net", "192.0.2.9"))
    assert shown(query) == "192.0.2.9"
    assert shown(net.ask("www.example.org")) == "pending", "how long the alias may be kept was not said together"


def test_names_are_compared_without_case() -> None:
    net = Net()
    query = net.ask("www.Example.ORG")
    net.last.answers(a("WWW.example.org", "192.0.2.1"))
    assert shown(query) == "192.0.2.1"


def test_a_name_that_is_not_there_and_one_without_addresses() -> None:
    net = Net()
    query = net.ask("nosuch.example.org")
    net.last.answers(rcode=3, authority=[soa()])
    assert shown(query) == "NXDOMAIN"
    query = net.ask("mail.example.org")
    net.last.answers(authority=[soa()])
    assert shown(query) == "NODATA"


def test_numbers_hosts_and_localhost_are_known_without_asking() -> None:
    net = Net()
    net.resolver.hosts.add("10.0.0.9", "peer")
    assert shown(net.ask("10.0.0.1")) == "10.0.0.1"
    assert shown(net.ask("10.0.0.1", 6)) == "NODATA"
    assert shown(net.ask("fd00::1", 6)) == "fd00::1"
    assert shown(net.ask("peer")) == "10.0.0.9"
    assert shown(net.ask("peer", 6)) == "NODATA"
    assert shown(net.ask("localhost")) == "127.0.0.1"
    assert shown(net.resolver.reverse(parse_address("10.0.0.9"))) == "peer"
    assert net.tries == []


@pytest.mark.parametrize("name", ["", ".", "a..b", "x" * 64, ".".join(["abcdefgh"] * 30), "a" * 300])
def test_h64_what_can_be_no_name_is_not_asked_for(name: str) -> None:
    net = Net()
    assert shown(net.ask(name)) == "BADNAME"
    assert net.tries == []


def test_without_servers_there_is_an_answer_at_once() -> None:
    net = Net()
    net.resolver.set_servers("static", [])
    assert shown(net.ask("www.example.org")) == "NOSERVERS"


# -- search list ---------------------------------------------------------------------------------------------------


def test_a_short_name_is_looked_for_in_the_search_list_first() -> None:
    net = Net(search=["one.org", "two.org"])
    query = net.ask("www")
    for _ in range(2):
        net.last.answers(rcode=3)
    net.last.answers(a("www", "192.0.2.1"))
    assert net.questions() == [f"{SERVER}: www.one.org. A", f"{SERVER}: www.two.org. A", f"{SERVER}: www. A"]
    assert shown(query) == "192.0.2.1"


def test_a_name_with_a_dot_is_taken_as_it_is_first_and_one_that_ends_in_a_dot_only_so() -> None:
    net = Net(search=["one.org"])
    net.ask("www.x")
    net.last.answers(rcode=3)
    assert net.questions() == [f"{SERVER}: www.x. A", f"{SERVER}: www.x.one.org. A"]
    query = net.ask("www.")
    net.last.answers(rcode=3)
    assert net.questions()[1:] == [f"{SERVER}: www. A"]
    assert shown(query) == "NXDOMAIN"


@pytest.mark.parametrize("rcodes", [(0, 3), (3, 0)])
def test_no_data_anywhere_is_told_rather_than_no_such_name(rcodes: tuple[int, int]) -> None:
    net = Net(search=["one.org"])
    query = net.ask("www")
    for rcode in rcodes:
        net.last.answers(rcode=rcode)
    assert shown(query) == "NODATA"


# -- several servers, times ----------------------------------------------------------------------------------------


def test_servers_are_asked_in_turn_with_growing_waits() -> None:
    net = Net("10.0.0.3", "10.0.0.4")
    query = net.ask("www.example.org")
    times = [0.0]
    start = net.clock.now
    while shown(query) == "pending":
        due = net.timers.next_deadline()
        assert due is not None
        net.wait((due - net.clock.now) / 1e6)
        times.append((net.clock.now - start) / 1e6)
    assert times == [0, 2, 4, 8, 12, 20, 28]
    assert [one.split(":")[0] for one in net.questions()] == ["10.0.0.3", "10.0.0.4"] * 3
    assert shown(query) == "TIMEOUT"
    assert net.open == []


def test_h63_each_try_has_a_new_id_and_a_new_port() -> None:
    def tries(seed: int) -> list[tuple[int, int]]:
        net = Net(seed=seed, config=DnsConfig(rounds=20, wait=1))
        net.ask("www.example.org")
        net.wait(10)
        return [(end.asked.id, end.local[1]) for end in net.tries]

    ids, ports = zip(*tries(1), strict=True)
    assert len(set(ids)) == len(set(ports)) == 20
    assert all(a + 1 != b for a, b in pairwise(ids))
    assert tries(1) == tries(1)
    assert tries(1) != tries(2)


def test_a_server_that_nobody_is_at_gives_way_at_once() -> None:
    net = Net("10.0.0.3", "10.0.0.4", "10.0.0.5")
    net.unreachable.add("10.0.0.4")
    query = net.ask("www.example.org")
    net.last.fail(111)
    assert [one.split(":")[0] for one in net.questions()] == ["10.0.0.3", "10.0.0.5"]
    net.last.answers(a("www.example.org", "192.0.2.1"))
    assert shown(query) == "192.0.2.1"
    assert net.count("tx_unreachable") == 2


def test_all_servers_unreachable_ends_without_waiting() -> None:
    net = Net("10.0.0.3", "10.0.0.4")
    net.unreachable |= {"10.0.0.3", "10.0.0.4"}
    assert shown(net.ask("www.example.org")) == "UNREACHABLE"
    assert net.open == []


@pytest.mark.parametrize(("rcode", "name"), [(2, "SERVFAIL"), (5, "REFUSED"), (4, "NOTIMP")])
def test_a_server_that_cannot_answer_gives_way_to_the_next(rcode: int, name: str) -> None:
    net = Net("10.0.0.3", "10.0.0.4", config=DnsConfig(rounds=1))
    query = net.ask("www.example.org")
    net.last.answers(rcode=rcode)
    assert net.questions()[-1] == "10.0.0.4: www.example.org. A"
    net.last.answers(rcode=rcode)
    assert shown(query) == name


def test_a_server_from_before_edns_is_asked_again_without() -> None:
    net = Net()
    query = net.ask("www.example.org")
    assert net.last.asked.arcount == 1
    net.last.answers(rcode=1)
    assert net.last.asked.arcount == 0
    net.last.answers(a("www.example.org", "192.0.2.1"))
    assert shown(query) == "192.0.2.1"


def test_a_cancelled_question_is_silent() -> None:
    net = Net()
    told: list[Query] = []
    query = net.resolver.query("www.example.org", on_done=told.append)
    query.cancel()
    assert (shown(query), told, net.open, net.timers.next_deadline()) == ("CANCELLED", [], [], None)


def test_closing_ends_what_is_under_way() -> None:
    net = Net()
    told: list[str] = []
    for number in range(5):
        net.resolver.query(f"www{number}.example.org", on_done=lambda query: told.append(shown(query)))
    net.resolver.close()
    assert told == ["CANCELLED"] * 5
    assert net.open == []


def test_questions_under_way_are_bounded() -> None:
    net = Net(config=DnsConfig(pending=4))
    queries = [net.ask(f"www{number}.example.org") for number in range(6)]
    assert [shown(query) for query in queries] == ["pending"] * 4 + ["BUSY"] * 2
    assert net.count("tx_dropped_busy") == 2


# -- H64: forgeries and malformed answers --------------------------------------------------------------------------


def good(asked: DNS) -> DNS:
    return answer(asked, a("www.example.org", "6.6.6.6"))


def raw(body: bytes) -> Maker:
    """An answer with one question, one record, and `body` behind the question."""

    def make(asked: DNS) -> bytes:
        question = b"\3www\7example\3org\0\0\1\0\1"
        return struct.pack("!HHHHHH", asked.id, 0x8180, 1, 1, 0, 0) + question + body

    return make


A_RECORD = b"\0\1\0\1\0\0\0\x3c\0\4\6\6\6\6"


@pytest.mark.parametrize(
    ("make", "counted"),
    [
        (lambda asked: bytes(answer(asked, a("www.example.org", "6.6.6.6"), id=asked.id ^ 1)), "id"),
        (lambda asked: bytes(answer(asked, a("www.example.org", "6.6.6.6"), qr=0)), "query"),
        (lambda asked: bytes(answer(asked, a("www.example.org", "6.6.6.6"), opcode=2)), "opcode"),
        (lambda asked: bytes(answer(asked, qd=[DNSQR(qname="other.org")])), "question"),
        (lambda asked: bytes(answer(asked, qd=[DNSQR(qname="www.example.org", qtype="AAAA")])), "question"),
        (lambda asked: bytes(answer(asked, qd=[DNSQR(qname="www.example.org", qclass=3)])), "question"),
        (lambda asked: bytes(answer(asked, qd=[])), "question"),
        (lambda asked: bytes(good(asked))[:11], "short"),
        (lambda asked: b"", "short"),
        (lambda asked: bytes(good(asked))[:-1], "malformed"),
        (raw(b"\xc0\x21" + A_RECORD), "malformed"),  # a pointer to itself
        (raw(b"\xc0\xff" + A_RECORD), "malformed"),  # forward, past the end
        (raw(b"\xc0\x23\xc0\x21" + A_RECORD), "malformed"),  # two that point to each other
        (raw(b"\x40" + b"a" * 64 + b"\0" + A_RECORD), "malformed"),  # a label of 64
        (raw((b"\x3f" + b"a" * 63) * 5 + b"\0" + A_RECORD), "malformed"),  # a name of 320
        (raw(b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\xff\6\6\6\6"), "malformed"),  # a length past the end
        (raw(b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\3\6\6\6"), "malformed"),  # an address of three bytes
        (raw(b""), "malformed"),  # the count says one record, and there is none
        (lambda asked: bytes(answer(asked, cname("www.example.org", "a.org"), cname("a.org", "www.example.org"))),
         "alias_loop"),
    ],
)  # fmt: skip
def test_h64_what_is_not_the_answer_is_counted_and_the_answer_still_awaited(make: Maker, counted: str) -> None:
    net = Net()
    query = net.ask("www.example.org")
    net.last.hears(make(net.last.asked))
    assert net.count(f"rx_dropped_{counted}") == 1, dict(net.resolver.counters)
    assert shown(query) == "pending"
    assert len(net.tries) == 1
    net.last.answers(a("www.example.org", "192.0.2.1"))
    assert shown(query) == "192.0.2.1"


@pytest.mark.parametrize(("source", "port"), [("10.0.0.66", 53), (SERVER, 54)])
def test_h64_another_source_is_not_believed(source: str, port: int) -> None:
    net = Net()
    query = net.ask("www.example.org")
    net.last.hears(bytes(good(net.last.asked)), source, port)
    assert net.count("rx_dropped_source") == 1
    assert shown(query) == "pending"


def test_h64_records_for_other_names_are_not_taken() -> None:
    net = Net()
    query = net.ask("www.example.org")
    net.last.answers(a("www.example.com", "6.6.6.6"))
    assert shown(query) == "NODATA"


def test_h64_a_flood_of_forgeries_ends_the_try() -> None:
    net = Net("10.0.0.3", "10.0.0.4")
    net.ask("www.example.org")
    first = net.last
    for _ in range(64):
        first.hears(b"\0" * 12)
    assert net.questions()[-1] == "10.0.0.4: www.example.org. A"


def test_h64_aliases_without_end_are_given_up() -> None:
    net = Net(config=DnsConfig(rounds=1))
    query = net.ask("n0.example.org")
    for number in range(20):
        if shown(query) != "pending":
            break
        net.last.answers(cname(f"n{number}.example.org", f"n{number + 1}.example.org"))
    assert shown(query) == "SERVFAIL"
    assert len(net.tries) == 9


def test_h64_more_addresses_than_one_wants_are_cut() -> None:
    net = Net()
    query = net.ask("www.example.org")
    net.last.answers(*(a("www.example.org", f"192.0.{n // 200}.{n % 200 + 1}") for n in range(900)))
    assert query.answer is not None
    assert len(query.answer.addresses) == 64


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_h64_no_answer_raises_whatever_was_done_to_it(data: st.DataObject) -> None:
    net = Net(config=DnsConfig(rounds=2))
    query = net.ask("www.example.org")
    packet = bytearray(
        bytes(answer(net.last.asked, cname("www.example.org", "b.org"), a("b.org", "192.0.2.1"), authority=[soa()]))
    )
    for _ in range(data.draw(st.integers(0, 8))):
        packet[data.draw(st.integers(2, len(packet) - 1))] = data.draw(st.integers(0, 255))
    net.last.hears(bytes(packet[: data.draw(st.integers(0, len(packet)))] if data.draw(st.booleans()) else packet))
    net.wait(60)
    assert query.done, "every question ends"
    assert net.open == []
    assert net.count("rx_messages") == 1


# -- truncated answers ---------------------------------------------------------------------------------------------


def test_a_truncated_answer_gives_what_came_and_says_so() -> None:
    net = Net()
    query = net.ask("www.example.org")
    net.last.answers(a("www.example.org", "192.0.2.1"), tc=1)
    assert shown(query) == "192.0.2.1"
    assert query.answer is not None
    assert query.answer.truncated is True
    query = net.ask("www.example.org")
    assert shown(query) == "pending", "it is not kept"
    net.last.answers(tc=1)
    assert shown(query) == "TRUNCATED"


# -- the cache -----------------------------------------------------------------------------------------------------


def test_an_answer_is_kept_for_its_ttl_and_no_longer() -> None:
    net = Net()
    net.ask("www.example.org")
    net.last.answers(a("www.example.org", "192.0.2.1", ttl=60))
    net.wait(59.999999)
    query = net.ask("WWW.example.org")
    assert (shown(query), len(net.tries)) == ("192.0.2.1", 1)
    assert query.answer is not None
    assert (query.answer.source, query.answer.ttl) == ("cache", 1)
    net.wait(0.000001)
    assert shown(net.ask("www.example.org")) == "pending"


@pytest.mark.parametrize(("ttl", "kept"), [(0, 0), (0x7FFFFFFF, 86_400), (0xFFFFFFFF, 0)])
def test_ttls_at_their_ends(ttl: int, kept: int) -> None:
    net = Net()
    net.ask("www.example.org")
    net.last.answers(a("www.example.org", "192.0.2.1", ttl=ttl))
    net.wait(max(0, kept - 1))
    assert shown(net.ask("www.example.org")) == ("192.0.2.1" if kept else "pending")
    net.wait(100)
    assert shown(net.ask("www.example.org")) != "192.0.2.1"


def test_a_no_is_kept_as_long_as_the_soa_says() -> None:
    net = Net()
    net.ask("nosuch.example.org")
    net.last.answers(rcode=3, authority=[soa(ttl=60, minimum=30)])
    net.wait(29)
    assert shown(net.ask("nosuch.example.org")) == "NXDOMAIN"
    net.wait(1)
    assert shown(net.ask("nosuch.example.org")) == "pending"
    net.last.answers(rcode=3)
    assert shown(net.ask("nosuch.example.org")) == "pending", "without SOA it is not kept"


def test_the_cache_is_bounded_and_the_least_recently_used_goes() -> None:
    net = Net(config=DnsConfig(cache=2))
    for name in ("a.org", "b.org"):
        net.ask(name)
        net.last.answers(a(name, "192.0.2.1"))
    net.ask("a.org")
    net.ask("c.org")
    net.last.answers(a("c.org", "192.0.2.3"))
    assert [shown(net.ask(name)) for name in ("a.org", "c.org", "b.org")] == ["192.0.2.1", "192.0.2.3", "pending"]


def test_other_servers_mean_other_answers() -> None:
    net = Net()
    net.ask("www.example.org")
    net.last.answers(a("www.example.org", "192.0.2.1"))
    net.resolver.set_servers("dhcp eth0", [parse_address("10.0.0.9")], ["lan"])
    assert [format_address(one) for one in net.resolver.servers] == [SERVER, "10.0.0.9"]
    assert net.resolver.search == ["lan"]
    assert shown(net.ask("www.example.org")) == "pending"
    net.resolver.set_servers("dhcp eth0", [])
    assert [format_address(one) for one in net.resolver.servers] == [SERVER]


# -- both families -------------------------------------------------------------------------------------------------


def test_a_lookup_asks_for_both_families_and_puts_ipv6_first() -> None:
    net = Net()
    told: list[Lookup] = []
    pending = net.resolver.lookup("www.example.org", on_done=told.append)
    six, four = net.tries
    four.answers(a("www.example.org", "192.0.2.1"))
    assert not pending.done
    six.answers(a("www.example.org", "2001:db8::1"))
    assert told == [pending]
    assert [format_address(one) for one in pending.addresses] == ["2001:db8::1", "192.0.2.1"]


def test_addresses_that_cannot_be_reached_come_last() -> None:
    net = Net()
    net.resolver._reachable = lambda address: address != parse_address("2001:db8::1")
    order = net.resolver.in_order([parse_address("2001:db8::1"), parse_address("192.0.2.1")])
    assert [format_address(one) for one in order] == ["192.0.2.1", "2001:db8::1"]


def test_one_family_is_enough_and_the_error_is_the_harder_one() -> None:
    net = Net(config=DnsConfig(rounds=1))
    pending = net.resolver.lookup("www.example.org")
    six, four = net.tries
    six.answers()
    four.answers(a("www.example.org", "192.0.2.1"))
    assert (pending.done, pending.error, len(pending.addresses)) == (True, "", 1)
    pending = net.resolver.lookup("x.example.org")
    net.last.answers(rcode=3)
    net.wait(2)
    assert pending.error == "TIMEOUT"


class Stepper:
    """A waiter that answers the questions instead of waiting."""

    def __init__(self, net: Net, *addresses: str) -> None:
        self.net = net
        self.addresses = addresses
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1

    def wait(self, ready: object = None, timeout: int | None = None) -> bool:
        for end in list(self.net.open):
            end.answers(*(a(end.asked.qd[0].qname.decode(), one) for one in self.addresses))
        return bool(ready())  # type: ignore[operator]


def test_resolve_blocks_until_there_is_an_answer() -> None:
    net = Net()
    waiter = Stepper(net, "192.0.2.1", "2001:db8::1")
    assert net.resolver.resolve(waiter, "www.example.org", 4) == [parse_address("192.0.2.1")]
    assert waiter.woken == 1
    with pytest.raises(ResolveError, match=r"^other\.org: NODATA$"):
        net.resolver.resolve(Stepper(net), "other.org")


def test_an_answer_says_whether_it_is_one() -> None:
    assert Answer("a", "A").ok is True
    assert Answer("a", "A", "TIMEOUT").ok is False
