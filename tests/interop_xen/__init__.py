"""The project's two ends of a Xen network interface against Linux's, on a real Xen with a Linux control domain.

QEMU runs Xen, Xen runs Debian's kernel as domain 0, and in there runs this tree (`make interop-xen`):

    netfront_in_dom0    our guest on our netfront, over /dev/xen: Linux's xen-netback is the other end
    netback_in_dom0     our netback, over /dev/xen: Linux's xen-netfront in a second domain is the other end

Read `real_xen.py` for what is shown, `front_ports.py` and `back_ports.py` for how the ports are served, `image.py` for
what is booted.
"""
