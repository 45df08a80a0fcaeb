"""On a real Xen: our front end with Linux's xen-netback, and our back end with Linux's xen-netfront.

Each test is one boot of Xen under QEMU's emulation, with Linux as domain 0, and our programs in it
(`netfront_in_dom0.py`, `netback_in_dom0.py`). `make interop-xen` runs them; the name of this file keeps them out of
`make test`, since they take a minute together and download 70 MB once.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop_xen import netback_in_dom0 as back
from tests.interop_xen import netfront_in_dom0 as front
from tests.interop_xen.boot import Boot, boot
from tests.interop_xen.image import CannotMake, DebianFiles, debian_files, domain_disk, python_files
from tests.requirements import require, require_program

pytestmark = pytest.mark.witness

QEMU = "qemu-system-x86_64"
ALL_ANSWERED = "200 packets transmitted, 200 packets received, 0% packet loss"
EACH_ANSWERED = "10 packets transmitted, 10 packets received, 0% packet loss"


@dataclass
class Bench:
    """What can be booted."""

    qemu: str
    files: DebianFiles
    python: bytes
    work: Path

    def run(self, script: str, *extra: tuple[str, bytes]) -> Boot:
        """Boot, and run `script` in domain 0 to a good end."""
        booted = boot(self.qemu, self.files, self.python, script, self.work, extra)
        print(booted.console)  # shown when something below fails
        print(f"{self.files.versions}; domain 0 was ready after {booted.said.get('ready')} s of its time")
        assert "late" not in booted.said, booted.said["late"]
        assert "late" not in booted.report, f"waited in vain for {booted.report['late']}"
        assert booted.said["exit"] == "0"
        for trouble in ("WARNING:", "BUG:", "Call Trace", "(XEN) d", "Oops"):
            assert trouble not in booted.console
        return booted


@pytest.fixture(scope="module")
def files(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> DebianFiles:
    require(platform.machine() == "x86_64", "needs an x86-64 machine, for Debian's Xen of its own kind")
    for program in (QEMU, "apt-get", "apt-cache", "dpkg", "ldd"):
        require_program(program)
    cache = getattr(pytestconfig, "cache", None)
    chosen = os.environ.get("VRING_CACHE")
    if chosen is None:
        chosen = cache.mkdir("interop-xen") if cache is not None else tmp_path_factory.mktemp("interop-xen")
    try:
        return debian_files(Path(chosen))
    except CannotMake as error:
        require(False, f"needs Debian's Xen, kernel and busybox: {error}")
        raise


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return python_files(tmp_path_factory.mktemp("python"))


@pytest.fixture
def bench(files: DebianFiles, python: bytes, tmp_path: Path) -> Bench:
    return Bench(require_program(QEMU), files, python, tmp_path)


# -- our front end -------------------------------------------------------------------------------------------------

# All of the guest's RAM is granted through gntalloc, which allows 1024 pages unless it is told otherwise.
FRONT_SCRIPT = """
insmod /lib/modules/xen-gntalloc.ko limit=4096
insmod /lib/modules/xen-netback.ko max_queues={queues}
python3 -S -m tests.interop_xen.netfront_in_dom0 {profile} {queues}
"""


@pytest.mark.parametrize(
    ("profile", "queues", "channels"),
    [("plain", 1, 1), ("full", 1, 2), ("full", 2, 2)],
    ids=["as LING", "split channels", "two queues"],
)
def test_our_front_end_works_with_linuxs_back_end(bench: Bench, profile: str, queues: int, channels: int) -> None:
    said: dict[str, Any] = bench.run(FRONT_SCRIPT.format(profile=profile, queues=queues)).report

    # The guest's ping compares each payload; domain 0 answers as 20 hosts, and pings back.
    assert said["pings"] == {"transmitted": 200, "received": 200}
    assert said["pinged"] == ALL_ANSWERED
    assert said["stream"], f"{front.STREAM_BYTES} bytes of TCP came back from the guest with a difference"

    # Each queue was used both ways, through as many event channels as were agreed on, and everything was returned.
    assert [queue["channels"] for queue in said["queues"]] == [channels] * queues
    for queue in said["queues"]:
        assert queue["rx events"] > 0
        assert queue["tx"]["req_prod"] == queue["tx"]["rsp_cons"] > 0
        assert queue["rx"]["rsp_cons"] > 0
        assert (queue["tx"]["broken"], queue["rx"]["broken"]) == (None, None)
    assert said["counters"]["connects"] == 1

    # Both ends count the same, and nothing was dropped or damaged.
    counters, interface = said["counters"], said["interface"]
    assert counters["tx_packets"] == interface["rx_packets"]
    assert counters["rx_packets"] == interface["tx_packets"]
    assert counters["rx_bytes"] == interface["tx_bytes"]
    assert not {name for name, value in counters.items() if value and ("dropped" in name or "refused" in name)}
    assert not {name for name, value in interface.items() if value and ("dropped" in name or "errors" in name)}

    # The end: Linux has closed, and has let go of the guest's pages.
    assert said["backend state"] == "Closed"
    assert (said["panic"], said["leaks"], said["granted"]) == ("", [], 0)


# -- our back end --------------------------------------------------------------------------------------------------

BACK_SCRIPT = """
xenconsoled --log=guest --log-dir=/var/log/xen/console --pid-file=/run/xenconsoled.pid
cat > linux.cfg <<END
name="linux"
type="pv"
kernel="/job/linux"
ramdisk="/job/disk"
memory=160
vcpus={queues}
extra="console=hvc0 panic=-1 quiet"
on_poweroff="destroy"
on_crash="destroy"
END
xl create -q -p linux.cfg
python3 -S -m tests.interop_xen.netback_in_dom0 $(xl domid linux) {profile} {queues}
status=$?
xl destroy linux 2>/dev/null
sleep 0.5
cat /var/log/xen/console/guest-linux.log
[ $status -eq 0 ]
"""

DOMAIN_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
say() {{ echo "@$*"; }}
driver() {{ echo vif-0 > /sys/bus/xen/drivers/vif/$1; }}
up() {{
    until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
    ip addr add {back.LINUX}/16 dev eth0
    ip link set eth0 up
    until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
}}
ip link set lo up
ip route add local 10.78.1.0/24 dev lo
insmod /lib/modules/xen-netfront.ko
up
say queues $(ls -d /sys/class/net/eth0/queues/tx-* | wc -l)
say domain-mac $(cat /sys/class/net/eth0/address)
for address in {" ".join(back.FLOWS)}; do
    ping -q -c 10 -A -s 1000 -I $address {back.PEER} | grep transmitted
done > /tmp/pings
say domain-pings $(grep -c "{EACH_ANSWERED}" /tmp/pings)
dd if=/dev/urandom of=/tmp/sent bs=1000 count=300 2>/dev/null
nc {back.PEER} {back.ECHO_PORT} < /tmp/sent > /tmp/back
say domain-stream $(cmp /tmp/sent /tmp/back && echo the same)
nc -l -p {back.BYE_PORT} < /dev/null
for file in rx_packets tx_packets rx_errors tx_errors rx_dropped tx_dropped; do
    say $file $(cat /sys/class/net/eth0/statistics/$file)
done
awk '/^Icmp:/ {{ if (names) {{ split(names, name); for (i = 2; i <= NF; i++) print "@" name[i], $i }}
                else names = $0 }}' /proc/net/snmp
driver unbind
driver bind
up
say domain-again $(ping -q -c 20 -A {back.PEER} | grep transmitted)
driver unbind
dmesg | grep -E 'WARNING:|BUG:|Call Trace'
say domain-over
poweroff -f
"""


@pytest.mark.parametrize(
    ("profile", "queues", "channels"), [("ling", 1, 1), ("full", 2, 2)], ids=["as LING", "two queues, split channels"]
)
def test_our_back_end_works_with_linuxs_front_end(bench: Bench, profile: str, queues: int, channels: int) -> None:
    disk = ("job/disk", domain_disk(bench.files, DOMAIN_INIT))
    kernel = ("job/linux", bench.files.kernel.read_bytes())

    booted = bench.run(BACK_SCRIPT.format(profile=profile, queues=queues), disk, kernel)

    # The guest's ping compares each payload, Linux checks each checksum; both ping and are pinged as 20 hosts.
    said: dict[str, Any] = booted.report
    words = booted.said
    assert said["pings"] == {"transmitted": 200, "received": 200}
    assert words["domain-pings"] == str(len(back.FLOWS))
    assert words["InEchoReps"] == words["OutEchos"] == words["InEchos"] == words["OutEchoReps"] == "200"
    assert words["domain-stream"] == "the same"
    for mistakes in ("InErrors", "InCsumErrors", "rx_errors", "tx_errors", "rx_dropped", "tx_dropped"):
        assert words[mistakes] == "0", mistakes
    assert words["domain-mac"] == back.MAC
    assert words["queues"] == str(queues)

    # Each queue was used both ways, through as many event channels as were agreed on.
    assert [queue["channels"] for queue in said["queues"]] == [channels] * queues
    for queue in said["queues"]:
        assert queue["tx"] > 0
        assert queue["rx"] > 0

    # Linux's driver let go and came back, and let go again; nothing of it is held, and nothing was dropped meanwhile.
    assert words["domain-again"] == "20 packets transmitted, 20 packets received, 0% packet loss"
    counters = said["counters"]
    assert (counters["state_Connected"], counters["state_Closed"]) == (2, 2)
    assert said["grants"]["maps"] == 2 * 2 * queues
    assert said["grants"]["mapped"] == 0
    assert (said["error"], said["panic"]) == ("", "")
    nobody = "rx_dropped_no_driver"  # while Linux has no driver, the guest may speak all the same
    assert not {name for name, value in counters.items() if value and "dropped" in name} - {nobody}
