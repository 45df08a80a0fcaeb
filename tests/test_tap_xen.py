"""A guest on Xen's cards, met by the host's own kernel over a TAP: pings, and streams both ways, as over virtio.

Each profile of the card, on a TAP without the virtio header and on one with it, where the kernel gives and takes large
segments and blank checksums.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tap_tcp import (
    CONNECTS,
    GUEST,
    LISTENS,
    Streams,
    digest,
    guest_reads,
    guest_writes,
    kernel_exchanges,
    stream,
    tcp_guest,
    tcp_host,
)
from tests.tap_world import pings, until

pytestmark = pytest.mark.root

SIZE = 10_000_000
BOTH = pytest.mark.parametrize(("role", "version"), [(CONNECTS, 4), (LISTENS, 6)])


@pytest.fixture(scope="module", params=["xen:profile=ling", "xen:profile=full", "xen:profile=full,queues=2"])
def card(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["tap:t0", "tap:t0,vnet_hdr=on"])
def wire(request: pytest.FixtureRequest, card: str) -> Iterator[Streams]:
    """A guest with that card on that TAP."""
    with tcp_host() as host, tcp_guest(host, request.param, card=card) as session:
        yield Streams(host, session)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [0, 56, 1452, 8000])
def test_p5_the_kernel_pings_a_guest_on_xen_100_of_100(wire: Streams, version: int, size: int) -> None:
    assert pings(wire.host, GUEST[version], size, 100) == 100


@BOTH
def test_ten_megabytes_go_each_way_at_once_over_xen(wire: Streams, role: str, version: int) -> None:
    there, back = stream(version, SIZE), stream(version + 1, SIZE)
    with wire.connected(role, version) as link:
        writing = link.job(lambda calls: guest_writes(calls, link.fd, there))
        reading = link.job(lambda calls: digest(guest_reads(calls, link.fd)))
        assert digest(kernel_exchanges(link.sock, back)) == digest(there)
        assert reading.result() == digest(back)
        writing.result()


def test_nothing_was_dropped_or_refused_and_both_ends_count_the_same(wire: Streams) -> None:
    """Last: of all that the tests above have sent. What came before the guest had a driver was for nobody."""

    def ends() -> tuple[dict[str, int], dict[str, int]]:
        found = wire.session.counters()["guest"]
        return found["eth0 driver"], found["vif0 netback"]

    def same() -> bool:
        near, far = ends()
        return all(near[name] == far[name] > 0 for name in ("rx_packets", "tx_packets", "rx_bytes", "tx_bytes"))

    assert until(same), ends()
    near, far = ends()
    assert near["connects"] == 1
    assert not {name for name, value in near.items() if value and ("dropped" in name or "refused" in name)}
    assert not {name for name, value in far.items() if value and "dropped" in name} - {"rx_dropped_no_driver"}
