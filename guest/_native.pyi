from typing import Any

from cffi import FFI

class _Lib:
    def vring_inet_sum(self, data: Any, length: int, /) -> int: ...
    def vring_cut(
        self, out: Any, head: Any, head_size: int, ip: int, start: int, payload: Any, length: int, most: int, /
    ) -> None: ...
    def vring_fence(self) -> None: ...

ffi: FFI
lib: _Lib
