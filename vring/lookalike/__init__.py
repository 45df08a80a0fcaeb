"""What the look-alikes of `socket` and `select` need of the host, so that its programs may use a guest's sockets.

mirror.py shows a guest's sockets as descriptors of the host, polling.py waits for both kinds, host.py hands them to
`guest.stdlib`; tls.py is SSL over such sockets; default.py is the guest behind `vring.socket`.
"""
