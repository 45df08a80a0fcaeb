"""Another TCP in Python doing the same as bench/tcp.py's guest: pmd-pytcp, if it is installed. Run by bench/tcp.py.

    pip install pmd-pytcp==0.3.8
    python -m bench.pytcp        serves echo, discard and a source of bytes on t0, until SIGTERM
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import inspect
import os
import signal
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from bench.tap_ping import GUEST, MAC
from hw.abi import if_tun

ECHO, DISCARD, SOURCE = 7, 9, 19
BLOCK = 1 << 16
TASKS: list[asyncio.Task[None]] = []  # a task that nobody holds may vanish


def missing() -> str | None:
    """Why this cannot run here, or None."""
    found = importlib.util.find_spec("pmd_pytcp") is not None
    return None if found else "pmd-pytcp is not installed: pip install pmd-pytcp==0.3.8"


async def main() -> None:
    """Serve until SIGTERM."""
    from pmd_net_addr import Ip4IfAddr, MacAddress  # noqa: PLC0415
    from pmd_pytcp import stack  # noqa: PLC0415
    from pmd_pytcp.lib.interface_layer import InterfaceLayer  # noqa: PLC0415

    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, if_tun.TUNSETIFF, struct.pack("16sH22x", b"t0", if_tun.IFF_TAP | if_tun.IFF_NO_PI))
    stack.init(
        fd=fd,
        layer=InterfaceLayer.L2,
        mac_address=MacAddress(MAC),
        ip4_host=Ip4IfAddr(f"{GUEST}/24"),
        ip4_dhcp=False,
        ip6_support=False,
        ip6_lla_autoconfig=False,
    )
    await _maybe(stack.start())
    for port, serve in ((ECHO, _echo), (DISCARD, _discard), (SOURCE, _source)):
        TASKS.append(asyncio.create_task(_listen(port, serve)))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await asyncio.sleep(8)  # it asks first whether somebody else has its address
    print("ready", flush=True)
    await stopped.wait()
    os._exit(0)  # its own services may take long to end


async def _maybe(result: Any) -> Any:
    """What a call gave, whether or not it has to be awaited."""
    return await result if inspect.isawaitable(result) else result


async def _listen(port: int, serve: Callable[[Any], Awaitable[None]]) -> None:
    from pmd_pytcp import socket  # noqa: PLC0415

    listening = socket.socket(socket.AF_INET4, socket.SOCK_STREAM)
    await _maybe(listening.bind(("0.0.0.0", port)))
    await _maybe(listening.listen())
    while True:
        accepted, _ = await listening.accept()
        TASKS.append(asyncio.create_task(_one(serve, accepted)))


async def _one(serve: Callable[[Any], Awaitable[None]], accepted: Any) -> None:
    try:
        await serve(accepted)
    except OSError:
        pass
    finally:
        await _maybe(accepted.close())


async def _echo(accepted: Any) -> None:
    while data := await accepted.recv(BLOCK):
        await accepted.send(data)


async def _discard(accepted: Any) -> None:
    while await accepted.recv(BLOCK):
        pass


async def _source(accepted: Any) -> None:
    block = bytes(BLOCK)
    while True:
        waiting = accepted._tcp_session._tx.buffer  # `send` takes everything at once; a program would see it grow
        while len(waiting) > 4 * BLOCK:
            await asyncio.sleep(0.001)
        await accepted.send(block)


if __name__ == "__main__":
    asyncio.run(main())
