"""dhclient: the DHCP client of eth0: begin, show, renew and give back its lease.

The client itself is the kernel's (guest/net/dhcp_service.py), which the option `-dhcp` starts at boot.
"""

from __future__ import annotations

from guest.apps import EX_USAGE
from guest.apps.env import SECOND, Env
from guest.apps.usage import UsageError, options, seconds
from guest.init import plug_in
from guest.names import start_dhcp
from guest.net.address import format_address
from guest.net.dhcp_lease import Lease

USAGE = """usage: dhclient [start | status | renew | release] [-t SECONDS]
  start       look for a server, where that is not under way, and wait for a lease (the default)
  status      show the lease
  renew       ask the server for more time now
  release     give the address back
  -t SECONDS  how long to wait (default 30); the client goes on after that"""
EXAMPLES = ("dhclient", "dhclient status", "dhclient -t 5 renew")

COMMANDS = ("start", "status", "renew", "release")
LOOK = SECOND // 20  # between two looks at the client


def main(env: Env, argv: list[str]) -> int:
    """0 with a lease (of `release`: without one), 1 otherwise, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "t:")
        if len(rest) > 1 or rest[:1] not in ([], *([command] for command in COMMANDS)):
            raise UsageError(f"what is {rest[-1]}?")
        patience = seconds("-t", chosen.get("-t", "30"))
    except UsageError as error:
        env.print(f"dhclient: {error}\n{USAGE}")
        return EX_USAGE
    command = rest[0] if rest else "start"
    client = env.guest.dhcp
    if command == "release":
        if client is not None:
            client.release()
        env.print("dhclient: there is no lease any more")
        return 0
    try:
        if command == "start":
            interface = plug_in(env.guest)
            interface.set_up()
            if start_dhcp(env.guest, interface):
                env.print("dhclient: port 68 is taken; ss -l shows by whom")
                return 1
            client = env.guest.dhcp
            _wait(env, None, patience)
        elif command == "renew":
            before = None if client is None else client.lease
            if client is None or not client.renew():
                env.print(f"dhclient: there is nothing to renew{', it lasts for ever' if before else ''}")
                return 0 if before else 1
            if not _wait(env, before, patience):
                env.print("dhclient: the server has not answered; the lease is what it was")
    except OSError as error:
        env.print(f"dhclient: {error.strerror}")
        return 1
    return _show(env)


def _wait(env: Env, before: Lease | None, patience: int) -> bool:
    """Wait until there is a lease other than `before`; whether there is."""
    deadline = env.now() + patience
    while True:
        client = env.guest.dhcp
        lease = None if client is None else client.lease
        if lease is not None and lease is not before:
            return True
        left = deadline - env.now()
        if left <= 0:
            return False
        env.sleep(min(left, LOOK))


def _show(env: Env) -> int:
    client = env.guest.dhcp
    if client is None:
        env.print("dhclient: DHCP is off; dhclient start begins")
        return 1
    lease = client.lease
    name = client.interface.name
    if lease is None:
        env.print(f"{name}: no lease, {client.state.value}; no server has answered: is there one on the wire?")
        return 1
    env.print(f"{name}: {client.state.value}")
    lines = [("address", f"{format_address(lease.address)}/{lease.length}"), ("server", format_address(lease.server))]
    if lease.routers:
        lines.append(("gateway", format_address(lease.routers[0])))
    if lease.dns:
        lines.append(("name servers", ", ".join(map(format_address, lease.dns))))
    if lease.search:
        lines.append(("search", ", ".join(lease.search)))
    if lease.expires is None or lease.renew_at is None:
        lines.append(("lasts", "for ever"))
    else:
        now = env.now()
        renewal = max(0, lease.renew_at - now) // SECOND
        lines.append(("lasts", f"{(lease.expires - now) // SECOND} s more, renewed in {renewal} s"))
    for label, text in lines:
        env.print(f"  {label:<12}  {text}")
    return 0
