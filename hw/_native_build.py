"""Builds `hw._native`, the machine's small C helper: the Internet checksum's sum and a memory fence.

The extension is optional. Whoever imports it catches ImportError and does the same in Python, which is slower but
not different. The guest has C of its own in `guest/_native_build.py`, which shares no line with this.

Read: RFC 1071, section 1 (definition) and section 2 (deferred carries).
"""

from __future__ import annotations

from cffi import FFI

ffi = FFI()

ffi.cdef("""
uint32_t hw_inet_sum(const uint8_t *data, size_t length);
void hw_fence(void);
""")

ffi.set_source(
    "hw._native",
    r"""
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* Four bytes as the network orders them, whatever the processor does; compilers make one load of it. */
#define BE32(p) ((uint32_t)(p)[0] << 24 | (uint32_t)(p)[1] << 16 | (uint32_t)(p)[2] << 8 | (uint32_t)(p)[3])

/* The folded 16-bit ones'-complement sum of big-endian words, not inverted.
   An odd last byte counts as the high half of a word. */
static uint32_t hw_inet_sum(const uint8_t *data, size_t length)
{
    /* 32-bit words in a 64-bit sum: no carry is lost in less than 2^32 of them, which is 16 GiB. */
    uint64_t total = 0;
    size_t at = 0;

    for (; at + 4 <= length; at += 4)
        total += BE32(data + at);
    if (at + 2 <= length) {
        total += (uint64_t)((unsigned)data[at] << 8 | data[at + 1]);
        at += 2;
    }
    if (at < length)
        total += (uint64_t)data[at] << 8;

    /* The remainder modulo 0xffff, except that a sum which is not zero never folds to zero. */
    if (total == 0)
        return 0;
    return (uint32_t)((total - 1) % 0xffff) + 1;
}

static void hw_fence(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}
""",
    optional=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
