"""Programs that run as guest processes; each is a file with a `main(env, argv) -> int` and its usage text.

Exit statuses are the usual ones: 0 is good, 1 is not, 2 is wrong usage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guest.apps.env import Program

EX_USAGE = 2
EX_NOT_FOUND = 127  # as a shell reports a program that it does not know


def programs() -> dict[str, Program]:
    """The programs that a guest has, by name; a new table each time."""
    from guest.apps import (  # noqa: PLC0415 - only a guest that boots needs them
        discard,
        echo,
        echoclient,
        guard,
        idle,
        ifconfig,
        ip,
        nc,
        nslookup,
        ping,
        sniff,
        ss,
        udpecho,
    )

    return {
        "discard": discard.main, "echo": echo.main, "echoclient": echoclient.main, "guard": guard.main,
        "idle": idle.main, "ifconfig": ifconfig.main, "ip": ip.main, "nc": nc.main, "nslookup": nslookup.main,
        "ping": ping.main, "sniff": sniff.main, "ss": ss.main, "udpecho": udpecho.main,
    }  # fmt: skip
