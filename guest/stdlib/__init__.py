"""Look-alikes of the standard library's `socket` and `select` over a guest's system calls.

`guest.socket` and `guest.select` are these for whatever guest a program runs in; the workbench has them for the host's
threads, with what only the host knows handed in (`guest.stdlib.network.Host`).
"""
