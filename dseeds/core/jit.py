"""Compilation of the Numba kernels, and an optional cache of their compiled code on disk.

Numba compiles a kernel anew in every process. Numba's own cache on disk is written by the first process that compiles,
so that many workers race for its files. Here, runs only read: `compile_kernels` writes the code of all kernels to one
file, and renames it when it is complete. The name is a fingerprint of all that the code depends on, so that code for
another version or machine is never loaded.

Nothing is read or written unless the environment variable ``DSEEDS_CACHE_DIR`` names a folder. Loading code means
running it, so a folder to which others may write is refused.
"""

from __future__ import annotations

import os
import pickle
import stat
import sys
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target

# The environment variable that names the folder.
CACHE_FOLDER = "DSEEDS_CACHE_DIR"

Function = TypeVar("Function", bound=Callable[..., Any])

registered_kernels: list[Any] = []


def jit(function: Function) -> Function:
    """Compile a kernel on its first call, without the GIL, unless its compiled code is cached."""
    kernel: Any = njit(nogil=True)(function)
    registered_kernels.append(kernel)
    if os.environ.get(CACHE_FOLDER):
        # Numba has no public hook for a cache other than its own.
        kernel._cache = CodeCache(kernel)
    return cast(Function, kernel)


def inlined_jit(function: Function) -> Function:
    """Compile a step of a kernel that is called for every few voxels, without the GIL, into its caller.

    Without `forceinline` the calls would cost more than the work; without `_nrt=False` each of them would count
    references to all arrays. Such a function must not allocate.
    """
    options: dict[str, Any] = {"nogil": True, "forceinline": True, "_nrt": False}
    return cast(Function, njit(**options)(function))


class CodeCache(NullCache):
    """A read-only cache of compiled code, in Numba's cache interface."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    @property
    def cache_path(self) -> str | None:
        """The folder."""
        return os.environ.get(CACHE_FOLDER)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the code for some types of arguments, or None."""
        code = _read().get(kernel_key(self.kernel, sig))
        if code is None:
            return None
        target_context.refresh()
        return CompileResult._rebuild(target_context, *pickle.loads(code))


def is_compiled() -> bool:
    """Return whether the folder holds code from `compile_kernels` for this process; see `require_private`."""
    return bool(os.environ.get(CACHE_FOLDER) and _read())


@cache
def _read() -> dict[str, bytes]:
    """Return the stored code of all kernels, by kernel and types; empty if there is no file."""
    path = cache_file()
    try:
        with path.open("rb") as file:
            require_private(path.parent, path.parent.stat())
            require_private(path, os.fstat(file.fileno()))
            return cast(dict[str, bytes], pickle.load(file))
    except FileNotFoundError:
        return {}


def cache_file() -> Path:
    """Return the file that holds the compiled code of all kernels for this process."""
    return Path(os.environ[CACHE_FOLDER]).expanduser().absolute() / f"{_fingerprint()}.kernels"


@cache
def _fingerprint() -> str:
    """Return a digest of all sources, since a kernel takes constants from anywhere, of versions and processor."""
    versions = sys.implementation.cache_tag, *sys.version_info, *map(version, ("numpy", "numba", "llvmlite"))
    processor = cpu_target.target_context.codegen().magic_tuple()
    digest = sha256(repr((versions, processor)).encode())
    package = Path(__file__).parents[1]
    for source in sorted(package.rglob("*.py")):
        content = source.read_bytes()
        digest.update(f"{source.relative_to(package).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()


def kernel_key(kernel: Any, types: Any) -> str:
    """Return the key of a kernel's compiled code for given argument types."""
    return f"{kernel.__module__}.{kernel.__qualname__}{types}"


def require_private(path: Path, status: os.stat_result) -> None:
    """Raise a PermissionError if others may have written to a path."""
    # Windows has no such permission bits.
    if sys.platform == "win32":
        return
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"{path} may be written by others, so that compiled code in it is not safe to run: use a folder of your "
            f"own for {CACHE_FOLDER}, or run chmod go-w on it."
        )
