"""A wire to the host's kernel: one TAP interface, or one TUN interface.

Frames are Ethernet without packet information (IFF_NO_PI), on a TUN bare IP packets; with `vnet_hdr` each has the
12-byte virtio header in front, little-endian, both ways. An interface that exists (persistent, `ip tuntap add`) is
attached to; otherwise one is made, which disappears with `close`. Bringing it up and giving it addresses is left to the
host's administrator; while it is down, frames are dropped and counted (`tx_dropped_link_down`).

Read first: `link.py`, `descriptor.py`; Documentation/networking/tuntap.rst of the Linux kernel.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from functools import partial

from hw.abi import if_tun
from hw.abi import virtio_net as net
from hw.abi.virtio_net import ZERO_HEADER
from hw.loop import Loop
from hw.wire.descriptor import DescriptorLink, alternatives
from hw.wire.link import Views, WireError

_DEVICE = "/dev/net/tun"
# struct ifreq: char ifr_name[16]; short ifr_flags; the rest of its union
_IFREQ = struct.Struct("=16sH22x")
_NAME_MAX = 15  # IFNAMSIZ without the final zero byte

_OFFLOADS = {
    net.VIRTIO_NET_F_GUEST_CSUM: if_tun.TUN_F_CSUM,
    net.VIRTIO_NET_F_GUEST_TSO4: if_tun.TUN_F_TSO4,
    net.VIRTIO_NET_F_GUEST_TSO6: if_tun.TUN_F_TSO6,
    net.VIRTIO_NET_F_GUEST_ECN: if_tun.TUN_F_TSO_ECN,
}


class TapLink(DescriptorLink):
    """A link to the TAP interface `name`, or the TUN interface.

    Args:
        loop: its clock must be real.
        name: the interface, at most 15 bytes; "tap%d" lets the kernel choose the number.
        vnet_hdr: carry the virtio header, and with it checksum and segmentation offload, to and from the kernel.
        tun: what is carried is IP packets.

    Attributes:
        interface: the interface's name as the kernel gave it.

    Raises:
        WireError: the right or the device is missing, the interface is in use, or the name does not do.
    """

    def __init__(self, loop: Loop, name: str, *, vnet_hdr: bool = False, tun: bool = False) -> None:
        kind = "tun" if tun else "tap"
        super().__init__(loop, f"{kind}:{name}")
        raw = os.fsencode(name)
        if not raw or len(raw) > _NAME_MAX or b"\0" in raw:
            raise WireError(f"{kind}:{name}: an interface has a name of 1 to {_NAME_MAX} bytes")
        flags = if_tun.IFF_TUN if tun else if_tun.IFF_TAP
        flags |= if_tun.IFF_NO_PI | (if_tun.IFF_VNET_HDR if vnet_hdr else 0)
        fd = -1
        try:
            fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            answer = fcntl.ioctl(fd, if_tun.TUNSETIFF, _IFREQ.pack(raw, flags))
            if vnet_hdr:
                fcntl.ioctl(fd, if_tun.TUNSETVNETHDRSZ, struct.pack("=i", len(ZERO_HEADER)))
                fcntl.ioctl(fd, if_tun.TUNSETVNETLE, struct.pack("=i", 1))
            # A persistent TAP keeps the offloads of its last owner, and would hand us what we did not ask for.
            fcntl.ioctl(fd, if_tun.TUNSETOFFLOAD, 0)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise WireError(f"{kind}:{name}: {_explain(kind, name, error, opened=fd >= 0)}") from None
        self.interface = os.fsdecode(_IFREQ.unpack(answer)[0].partition(b"\0")[0])
        self.name = f"{kind}:{self.interface}"
        self.header_size = len(ZERO_HEADER) if vnet_hdr else 0
        self._start(fd, partial(os.writev, fd))

    def take_offloads(self, features: int) -> None:
        """Have the kernel leave checksums and segments to the receiver, as far as that takes them."""
        if not self.header_size or self._fd < 0:
            return
        flags = sum(flag for bit, flag in _OFFLOADS.items() if features >> bit & 1)
        if not flags & (if_tun.TUN_F_TSO4 | if_tun.TUN_F_TSO6):
            flags &= if_tun.TUN_F_CSUM
        with suppress(OSError):  # the interface is gone, which whoever reads it next is told
            fcntl.ioctl(self._fd, if_tun.TUNSETOFFLOAD, flags)

    def read_into(self, views: Views) -> int:
        """The next frame, read straight into `views`; see `Link.read_into`."""
        try:
            length = os.readv(self._fd, views)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._failed("rx_error", error)
            return 0
        return self._received(length)


def _explain(kind: str, name: str, error: OSError, *, opened: bool) -> str:
    """What went wrong while opening, and what to do instead, in one line."""
    number = error.errno
    if number == errno.EACCES and not opened:
        return f"needs the right to read and write {_DEVICE}; {alternatives()}"
    if number in (errno.EPERM, errno.EACCES):
        return (
            f"needs CAP_NET_ADMIN, or a {kind.upper()} of your own "
            f"(once, as root: ip tuntap add dev {name} mode {kind} user $USER); "
            + alternatives()
        )
    if not opened:
        why = f"{_DEVICE}: {error.strerror}; load the kernel's tun module, or hand the device to the container"
        return f"{why}; {alternatives()}"
    if number == errno.EBUSY:
        return "in use by another program; choose another name, or end that program"
    if number == errno.EINVAL:
        return f"not a name for an interface, or the name of one that is no {kind.upper()} (or a multi-queue one)"
    return f"{error.strerror}"
