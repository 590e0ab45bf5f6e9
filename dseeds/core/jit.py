"""The decorators that compile kernels with Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

from dseeds.core.kernel_cache import KernelCache

Function = TypeVar("Function", bound=Callable[..., Any])

registered_kernels: list[Any] = []


def jit(function: Function) -> Function:
    """Compile a kernel on its first call, without the GIL, unless its compiled code is cached."""
    kernel: Any = njit(nogil=True)(function)
    registered_kernels.append(kernel)
    # Numba has no public hook for a cache other than its own.
    kernel._cache = KernelCache(kernel)
    return cast(Function, kernel)


def inlined_jit(function: Function) -> Function:
    """Compile a step of a kernel that is called for every few voxels, without the GIL, into its caller.

    Without `forceinline` the calls would cost more than the work; without `_nrt=False` each of them would count
    references to all arrays. Such a function must not allocate.
    """
    options: dict[str, Any] = {"nogil": True, "forceinline": True, "_nrt": False}
    return cast(Function, njit(**options)(function))
