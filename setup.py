"""What pyproject.toml cannot say: two small C extensions, both optional.

With a C compiler they are built; without one (or without Python's headers) the build warns and goes on, and the
package works on its Python code. `optional=True` stands in the build scripts, which setuptools hands to the Extension.
"""

from __future__ import annotations

from setuptools import setup

SCRIPTS = ["guest/_native_build.py:ffi", "hw/_native_build.py:ffi"]

try:
    import cffi  # noqa: F401
except ImportError:
    SCRIPTS = []

setup(cffi_modules=SCRIPTS)
