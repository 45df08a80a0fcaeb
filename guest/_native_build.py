"""Builds `guest._native`, the guest's small C helper: the Internet checksum's sum and a memory fence.

The extension is optional. Whoever imports it catches ImportError and does the same in Python, which is slower but
not different. The machine's side has C of its own in `hw/_native_build.py`; the sources are separate on purpose, so
that each side remains a witness against the other.

Read: RFC 1071 (the sum does not depend on byte order, so words are added as the processor has them and swapped once
at the end).
"""

from __future__ import annotations

from cffi import FFI

ffi = FFI()

ffi.cdef("""
uint32_t vring_inet_sum(const uint8_t *data, size_t length);
void vring_fence(void);
""")

ffi.set_source(
    "guest._native",
    r"""
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The folded 16-bit ones'-complement sum of big-endian words, not inverted.
   An odd last byte counts as the high half of a word. */
static uint32_t vring_inet_sum(const uint8_t *data, size_t length)
{
    uint64_t sum_a = 0, sum_b = 0, carries = 0;

    while (length >= 16) {
        uint64_t a, b;
        memcpy(&a, data, 8);
        memcpy(&b, data + 8, 8);
        sum_a += a;
        carries += sum_a < a;
        sum_b += b;
        carries += sum_b < b;
        data += 16;
        length -= 16;
    }
    sum_a += sum_b;
    carries += sum_a < sum_b;

    /* At most 15 bytes are left: in a zeroed block they add nothing that is not there. */
    uint64_t rest[2] = {0, 0};
    memcpy(rest, data, length);
    for (int i = 0; i < 2; i++) {
        sum_a += rest[i];
        carries += sum_a < rest[i];
    }

    /* 2^64 is 1 modulo 0xffff, so a carry out of the top is worth one. */
    uint64_t sum = (sum_a >> 32) + (sum_a & 0xffffffffu) + (carries >> 32) + (carries & 0xffffffffu);
    while (sum >> 16)
        sum = (sum >> 16) + (sum & 0xffff);

    const uint16_t probe = 1;
    uint8_t first;
    memcpy(&first, &probe, 1);
    if (first)
        sum = (sum >> 8) | ((sum & 0xff) << 8);
    return (uint32_t)sum;
}

static void vring_fence(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}
""",
    optional=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
