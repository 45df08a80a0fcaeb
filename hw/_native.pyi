from typing import Any

from cffi import FFI

class _Lib:
    def hw_inet_sum(self, data: Any, length: int, /) -> int: ...
    def hw_fence(self) -> None: ...

ffi: FFI
lib: _Lib
