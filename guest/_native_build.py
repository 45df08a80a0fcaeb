"""Builds `guest._native`, the guest's small C helper: the Internet checksum's sum, cutting a TCP packet into segments
(`guest/net/gso.py`), and a memory fence.

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
void vring_cut(uint8_t *out, const uint8_t *head, size_t head_size, size_t ip, size_t start,
               const uint8_t *payload, size_t length, size_t most);
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

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put_checksum(uint8_t *at, uint32_t sum)
{
    while (sum >> 16)
        sum = (sum >> 16) + (sum & 0xffff);
    put16(at, ~sum);
}

/* Segments of at most `most` bytes of payload, one behind the other. `head` is the headers of the whole packet, with
   IP at `ip` and TCP at `start`; `out` has room for one per segment and for the payload. */
static void vring_cut(uint8_t *out, const uint8_t *head, size_t head_size, size_t ip, size_t start,
                      const uint8_t *payload, size_t length, size_t most)
{
    const int v4 = start - ip == 20;
    const size_t addresses = ip + (v4 ? 12 : 8);
    const uint8_t *tcp_head = head + start;
    uint32_t ident = (uint32_t)head[ip + 4] << 8 | head[ip + 5];
    uint32_t seq = (uint32_t)tcp_head[4] << 24 | (uint32_t)tcp_head[5] << 16 | (uint32_t)tcp_head[6] << 8 | tcp_head[7];
    uint8_t off = 0;   /* CWR in all but the first */

    while (length > 0) {
        const size_t size = length < most ? length : most;
        const size_t segment = head_size - start + size;
        uint8_t *tcp = out + start;

        memcpy(out, head, head_size);
        memcpy(out + head_size, payload, size);
        if (v4) {
            put16(out + ip + 2, (uint32_t)(20 + segment));
            put16(out + ip + 4, ident++);
            put16(out + ip + 10, 0);
            put_checksum(out + ip + 10, vring_inet_sum(out + ip, 20));
        } else {
            put16(out + ip + 4, (uint32_t)segment);
        }
        put16(tcp + 4, seq >> 16);
        put16(tcp + 6, seq);
        tcp[13] &= (uint8_t)~(off | (size < length ? 0x09 : 0));   /* PSH, FIN in the last alone */
        put16(tcp + 16, 0);
        put_checksum(tcp + 16, vring_inet_sum(out + addresses, start - addresses + segment) + 6 + (uint32_t)segment);
        off = 0x80;
        seq += (uint32_t)size;
        out += head_size + size;
        payload += size;
        length -= size;
    }
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
