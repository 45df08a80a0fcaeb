"""nslookup: ask the resolver for the addresses of a name, or the name of an address.

Read: nslookup(1) of BIND, whose output this follows.
"""

from __future__ import annotations

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.usage import UsageError, no_answer, options
from guest.net.address import AddressError, format_address, parse_address
from guest.net.dns import Query, Resolver
from guest.net.dns_exchange import NODATA, Answer
from guest.net.dns_wire import AAAA, PTR, A

USAGE = """usage: nslookup [-4] [-6] NAME|ADDRESS [SERVER]
  -4, -6  addresses of one family only
  SERVER  ask this name server and nobody else; by default the guest's own, its hosts table first"""


def main(env: Env, argv: list[str]) -> int:
    """0 when there is an answer, 1 when there is none, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "46")
        if not 1 <= len(rest) <= 2:
            raise UsageError("a name is needed, and a server may follow")
        server = parse_address(rest[1]) if len(rest) > 1 else None
    except (UsageError, AddressError) as error:
        env.print(f"nslookup: {error}\n{USAGE}")
        return EX_USAGE
    resolver = env.guest.resolver if server is None else _asking(env, server)
    try:
        address: int | None = parse_address(rest[0])
    except AddressError:
        address = None
    families = [family for family in (4, 6) if f"-{family}" in chosen] or [4, 6]
    kinds = [PTR] if address is not None else [{4: A, 6: AAAA}[family] for family in families]
    answers = []
    for kind in kinds:
        query = _query(env, resolver, rest[0], kind, address)
        if query.answer is not None:
            answers.append(query.answer)
    return _show(env, rest[0], answers)


def _asking(env: Env, server: int) -> Resolver:
    """A resolver that knows one server, and no hosts."""
    guest = env.guest
    resolver = Resolver(
        now=guest.platform.now, rng=guest.platform.rng, open_endpoint=guest.stack.udp.open,
        open_stream=guest.stack.tcp.open, timers=guest.services.timers,
    )  # fmt: skip
    resolver.set_servers("static", [server])
    return resolver


def _query(env: Env, resolver: Resolver, name: str, kind: str, address: int | None) -> Query:
    """A question with its answer."""

    def done(_query: Query) -> None:
        env.wake()

    query = resolver.reverse(address, done) if address is not None else resolver.ask(name, kind, done)
    try:
        env.wait(lambda: query.done)
    finally:
        query.cancel()
    return query


def _show(env: Env, name: str, answers: list[Answer]) -> int:
    found = [answer for answer in answers if answer.ok]
    for answer in (found or answers)[:1]:
        if answer.server is None and answer.source == "dns":
            continue  # nobody was asked
        where = f"{format_address(answer.server)}#53" if answer.server is not None else answer.source
        env.print(f"Server:  {where}\n")
    for answer in found:
        for address in answer.addresses:
            env.print(f"Name:    {answer.canonical or answer.name}\nAddress: {format_address(address)}")
        for text in answer.names:
            env.print(f"{name}  name = {text}")
    if found:
        return 0
    errors = [answer.error for answer in answers]
    env.print(f"** {name}: {no_answer(next((error for error in errors if error != NODATA), NODATA))}")
    return 1
