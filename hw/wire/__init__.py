"""Where a NIC is plugged in: the link protocol, the wires, and the wrappers that listen in or misbehave.

Read `link.py` first; every other file is one kind of wire behind it.
"""
