"""Both halves of a shared ring as Xen's own macros make them: `io/ring.h` and `io/netif.h`, compiled.

`Front` and `Back` work on a page that somebody else works on, too. A message is bytes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from cffi import FFI

KINDS = {"tx": (12, 4), "rx": (8, 8)}  # bytes of a request and of a response

_DECLARATIONS = """
void *{k}_front(void *page, unsigned start); void *{k}_back(void *page, unsigned start);
int {k}_put_request(void *front, const char *request); int {k}_push_requests(void *front);
int {k}_take_response(void *front, char *response); int {k}_final_responses(void *front);
int {k}_take_request(void *back, char *request); int {k}_final_requests(void *back);
void {k}_put_response(void *back, const char *response); int {k}_push_responses(void *back);
int {k}_overflow(void *back); void {k}_init(void *page); int {k}_size(void);
"""

_SOURCE = """
typedef struct netif_{k}_sring S_{k};
typedef struct netif_{k}_front_ring F_{k};
typedef struct netif_{k}_back_ring B_{k};
static void {k}_init(void *page) {{ S_{k} *s = page; SHARED_RING_INIT(s); }}
static int {k}_size(void) {{ return __RING_SIZE((S_{k} *)0, 4096); }}
static void *{k}_front(void *page, unsigned start)
{{ F_{k} *f = calloc(1, sizeof *f); FRONT_RING_ATTACH(f, (S_{k} *)page, start, 4096); return f; }}
static void *{k}_back(void *page, unsigned start)
{{ B_{k} *b = calloc(1, sizeof *b); BACK_RING_ATTACH(b, (S_{k} *)page, start, 4096); return b; }}
static int {k}_put_request(void *p, const char *m)
{{ F_{k} *f = p; if (RING_FULL(f)) return 0; memcpy(RING_GET_REQUEST(f, f->req_prod_pvt++), m, {q}); return 1; }}
static int {k}_push_requests(void *p) {{ F_{k} *f = p; int n; RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(f, n); return n; }}
static int {k}_take_response(void *p, char *m)
{{ F_{k} *f = p; if (!RING_HAS_UNCONSUMED_RESPONSES(f)) return 0;
   memcpy(m, RING_GET_RESPONSE(f, f->rsp_cons++), {r}); return 1; }}
static int {k}_final_responses(void *p) {{ F_{k} *f = p; int n; RING_FINAL_CHECK_FOR_RESPONSES(f, n); return n != 0; }}
static int {k}_take_request(void *p, char *m)
{{ B_{k} *b = p; if (!RING_HAS_UNCONSUMED_REQUESTS(b)) return 0;
   memcpy(m, RING_GET_REQUEST(b, b->req_cons++), {q}); return 1; }}
static int {k}_final_requests(void *p) {{ B_{k} *b = p; int n; RING_FINAL_CHECK_FOR_REQUESTS(b, n); return n != 0; }}
static void {k}_put_response(void *p, const char *m)
{{ B_{k} *b = p; memcpy(RING_GET_RESPONSE(b, b->rsp_prod_pvt++), m, {r}); }}
static int {k}_push_responses(void *p) {{ B_{k} *b = p; int n; RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(b, n); return n; }}
static int {k}_overflow(void *p) {{ B_{k} *b = p; return RING_REQUEST_PROD_OVERFLOW(b, b->sring->req_prod); }}
"""

_HEAD = """
#define __XEN_INTERFACE_VERSION__ __XEN_LATEST_INTERFACE_VERSION__
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()
#include <xen/xen.h>
#include <xen/io/netif.h>
"""


def compiled(folder: Path) -> ModuleType:
    """The extension, built in `folder`."""
    ffi = FFI()
    ffi.cdef("".join(_DECLARATIONS.format(k=kind) for kind in KINDS) + "void free(void *);")
    source = _HEAD + "".join(_SOURCE.format(k=kind, q=sizes[0], r=sizes[1]) for kind, sizes in KINDS.items())
    ffi.set_source("_xen_rings", source)
    spec = importlib.util.spec_from_file_location("_xen_rings", ffi.compile(tmpdir=str(folder)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Half:
    """What both halves share: the page and the functions of one kind of ring."""

    def __init__(self, module: ModuleType, kind: str, page: memoryview, maker: str, start: int) -> None:
        self._ffi, self._lib, self._kind = module.ffi, module.lib, kind
        self.request, self.response = KINDS[kind]
        self._page = module.ffi.from_buffer(page)
        ring = self._call(maker, module.ffi.cast("void *", self._page), start)
        self._ring = module.ffi.gc(ring, module.lib.free)

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(self._lib, f"{self._kind}_{name}")(*arguments)

    def _take(self, name: str, size: int) -> bytes | None:
        out = self._ffi.new("char[16]")
        return bytes(self._ffi.buffer(out, size)) if self._call(name, self._ring, out) else None


class Front(Half):
    """The front half."""

    def __init__(self, module: ModuleType, kind: str, page: memoryview, start: int = 0) -> None:
        super().__init__(module, kind, page, "front", start)

    def put(self, request: bytes) -> bool:
        return bool(self._call("put_request", self._ring, request))

    def push(self) -> bool:
        return bool(self._call("push_requests", self._ring))

    def take(self) -> bytes | None:
        return self._take("take_response", self.response)

    def final_check(self) -> bool:
        return bool(self._call("final_responses", self._ring))


class Back(Half):
    """The back half."""

    def __init__(self, module: ModuleType, kind: str, page: memoryview, start: int = 0) -> None:
        super().__init__(module, kind, page, "back", start)

    def take(self) -> bytes | None:
        return self._take("take_request", self.request)

    def put(self, response: bytes) -> None:
        self._call("put_response", self._ring, response)

    def push(self) -> bool:
        return bool(self._call("push_responses", self._ring))

    def final_check(self) -> bool:
        return bool(self._call("final_requests", self._ring))
