"""Rows E31, E52: two stacks on a bad wire. Everything arrives, whatever the wire does to the packets on the way."""

from __future__ import annotations

import random
from hashlib import sha256

import pytest

from guest.net.tcp.config import TcpConfig, phase6
from tests.tcp_pipe import BAD, MS, SECOND, Pair, Transfer, Wire, exchange

MB = 1_000_000
PATIENT = TcpConfig(retries=15, syn_retries=15, synack_retries=15)  # five in a row are lost now and then


def bodies(seed: int, there: int, back: int) -> tuple[bytes, bytes]:
    """What is sent, each way."""
    rng = random.Random(seed)
    return rng.randbytes(there), rng.randbytes(back)


@pytest.mark.parametrize("seed", range(20))
def test_e31_ten_megabytes_arrive_over_a_bad_wire(seed: int) -> None:
    """10 % loss, 5 % reordering, 2 % duplicates, 1 % corruption, each way; one way ten, the other one megabyte."""
    pair = Pair(BAD, seed=seed, tcp=PATIENT)
    data, answer = bodies(seed, 10 * MB, MB)
    client, server = pair.connect()
    ends = (client, server) if seed % 2 else (server, client)

    there, back = Transfer(*ends, data), Transfer(*reversed(ends), answer)
    pair.run(lambda: there.step() + back.step() == 2)

    assert sha256(there.received).digest() == sha256(data).digest()
    assert sha256(back.received).digest() == sha256(answer).digest()
    counts = pair.a.counts + pair.b.counts
    assert min(counts["lost"], counts["corrupt"], counts["duplicated"], counts["reordered"]) > 20, counts


@pytest.mark.parametrize("family", [4, 6])
def test_e31_ten_megabytes_each_way_at_once(family: int) -> None:
    exchange(Pair(BAD, seed=77, family=family, tcp=PATIENT), *bodies(77, 10 * MB, 10 * MB))


SETTINGS = {
    "without SACK": TcpConfig(sack=False),
    "without RACK": TcpConfig(rack=False, tail_probe=False),
    "without timestamps": TcpConfig(timestamps=False),
    "without scaling": TcpConfig(window_scale=False),
    "with ECN": TcpConfig(ecn=1),
    "reno": TcpConfig(congestion="reno"),
    "no congestion control": TcpConfig(congestion="none"),
    "a small window": TcpConfig(window=3000, window_max=3000),
    "a window of one byte": TcpConfig(window=1, window_max=1, blocks=4),
    "phase6": phase6(),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_e31_e37_every_setting_gets_everything_through(name: str) -> None:
    """Row E37: the simple profile too."""
    size = 600 if "one byte" in name else 300_000
    pair = Pair(BAD, seed=5, tcp=SETTINGS[name])

    exchange(pair, *bodies(5, size, size // 2), limit=20 * 3600 * SECOND)


@pytest.mark.parametrize("name", SETTINGS)
def test_e31_e37_every_setting_talks_with_the_full_one(name: str) -> None:
    size = 600 if "one byte" in name else 200_000
    pair = Pair(BAD, seed=6, tcp=(TcpConfig(), SETTINGS[name]))

    exchange(pair, *bodies(6, size, size), limit=20 * 3600 * SECOND)


WIRES = {
    "perfect": Wire(delay=0),
    "far": Wire(delay=300 * MS),
    "a third of it lost": Wire(loss=0.33, delay=MS),
    "all out of order": Wire(reorder=0.5, held=30 * MS),
    "everything twice": Wire(duplicate=1.0),
    "one in five corrupt": Wire(corrupt=0.2),
    "slow, with a short queue": Wire(rate=50_000, queue=8_000, delay=40 * MS),
    "slow, with a long queue": Wire(rate=50_000, queue=1 << 20, delay=40 * MS),
}


@pytest.mark.parametrize("name", WIRES)
def test_e31_every_wire_gets_everything_through(name: str) -> None:
    size = 30_000 if "third" in name else 300_000

    exchange(Pair(WIRES[name], seed=3, tcp=PATIENT), *bodies(3, size, size // 3), limit=20 * 3600 * SECOND)


def test_e31_without_loss_nothing_is_sent_twice() -> None:
    pair = Pair(Wire(delay=20 * MS))

    client, server = exchange(pair, *bodies(1, MB, MB))

    for side in (pair.a, pair.b):
        assert side.stack.tcp.counters["tx_retransmits"] == 0, side.stack.tcp.counters
    assert (client.info().retransmits, server.info().retransmits) == (0, 0)


def test_e31_reordering_alone_costs_little() -> None:
    """RACK learns how late packets may come; without that one in twenty held back is one loss in twenty."""
    pair = Pair(Wire(delay=20 * MS, reorder=0.05, held=5 * MS))

    exchange(pair, *bodies(1, 2 * MB, 0))

    sent = pair.a.counts["sent"]
    assert pair.a.stack.tcp.counters["tx_retransmits"] < sent // 50, pair.a.stack.tcp.counters


@pytest.mark.parametrize("congestion", ["reno", "cubic"])
def test_e35_a_bottleneck_is_filled_and_not_flooded(congestion: str) -> None:
    """1 MB/s, 40 ms round trips, a queue of 40 kB: at least 70 % of the rate, and less than 3 % sent again."""
    pair = Pair(Wire(rate=1_000_000, delay=20 * MS, queue=40_000), tcp=TcpConfig(congestion=congestion))
    client, server = pair.connect()
    begun = pair.now
    data, _ = bodies(2, 8 * MB, 0)

    there = Transfer(client, server, data)
    pair.run(there.step)

    assert bytes(there.received) == data
    took = (pair.now - begun) / SECOND
    assert 8 / took > 0.7, f"{8 / took:.2f} MB/s"
    again = client.info().retransmits
    assert 0 < again < 8 * MB // 1448 * 0.03, again


def test_e34_the_window_grows_until_a_long_fat_path_is_full() -> None:
    """10 MB/s over 100 ms: a megabyte must be under way; 65535 bytes would be 0.6 MB/s."""
    pair = Pair(Wire(rate=10_000_000, delay=50 * MS, queue=1 << 21))
    client, server = pair.connect()
    data, _ = bodies(3, 20 * MB, 0)
    there = Transfer(client, server, data)

    pair.run(there.step)

    assert bytes(there.received) == data
    assert 20 / (pair.now / SECOND) > 4, f"{20 / (pair.now / SECOND):.2f} MB/s"


def test_e31_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        pair = Pair(BAD, seed=9)
        exchange(pair, *bodies(9, 100_000, 50_000))
        runs.append((pair.now, pair.a.counts, pair.b.counts, dict(pair.a.stack.tcp.counters)))

    assert runs[0] == runs[1]


def test_e34_a_slow_reader_holds_a_fast_writer_back() -> None:
    """5 kB every 100 ms: the writer waits, and nothing is lost or sent twice for it."""
    pair = Pair(Wire(delay=5 * MS), tcp=TcpConfig(window=20_000, window_max=20_000))
    client, server = pair.connect()
    data, _ = bodies(4, 300_000, 0)
    got = bytearray()
    area = memoryview(bytearray(5_000))
    due = pair.now
    left = memoryview(data)

    def step() -> bool:
        nonlocal left, due
        if left:
            left = left[client.write([left[:50_000]]) :]
        if pair.now >= due:
            due += 100 * MS
            count = server.read_into(area)
            if count:
                got.extend(area[:count])
        return len(got) == len(data)

    pair.run(step, every=MS)

    assert bytes(got) == data
    assert pair.now >= 5900 * MS
    counters = pair.a.stack.tcp.counters
    assert counters["timeouts"] == 0, counters
