"""How kernels are compiled, and how their compiled code is kept between runs where someone asks for it.

Numba compiles a kernel in every process anew. Its own cache on disk is written by whoever compiles first, so that many
workers race for its files. Here runs only read: `compile_kernels` writes the code of all kernels to one file, which
gets its name when it is complete. The name says for what the code is good, so that no other is ever loaded.

Nothing is read or written unless the environment variable ``DSEEDS_CACHE_DIR`` names a folder. Loading code is running
it, so the folder has to be the user's own: one that others may write to is refused.
"""

from __future__ import annotations

import os
import pickle
import stat
import sys
import tempfile
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
from numba.core.serialize import dumps

# The environment variable that names the folder.
FOLDER = "DSEEDS_CACHE_DIR"
DTYPES = ("uint8", "int16", "uint16", "int32", "float32", "float64")

Function = TypeVar("Function", bound=Callable[..., Any])

_kernels: list[Any] = []


def jit(function: Function) -> Function:
    """Compile a kernel on its first call, without the GIL, unless its compiled code is at hand."""
    kernel: Any = njit(nogil=True)(function)
    _kernels.append(kernel)
    if os.environ.get(FOLDER):
        # Numba has no public place for another cache than its own.
        kernel._cache = CompiledCode(kernel)
    return cast(Function, kernel)


class CompiledCode(NullCache):
    """What Numba asks for a kernel's compiled code before it compiles, and what forgets what it is told."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    @property
    def cache_path(self) -> str | None:
        """The folder."""
        return os.environ.get(FOLDER)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load the code for some types of arguments; None if there is none."""
        code = _read().get(_key(self.kernel, sig))
        if code is None:
            return None
        target_context.refresh()
        return CompileResult._rebuild(target_context, *pickle.loads(code))


def compile_kernels() -> Path:
    """Compile all kernels for the usual dtypes and keep the code, unless it is there already.

    The folder is the one that the environment variable ``DSEEDS_CACHE_DIR`` names; it is made where it is missing.
    Processes that have the variable set find the code when they start. It is good for this version of dseeds, Python,
    NumPy and Numba and for this processor; others do not see it and compile as always.

    Returns
    -------
    Path
        The file with the code.

    Raises
    ------
    ValueError
        If the variable is not set.
    PermissionError
        If others may write to the folder.
    """
    if not os.environ.get(FOLDER):
        raise ValueError(f"{FOLDER} is not set: let it name a folder of your own, where compiled code is to be kept.")
    path = _path()
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _check_own(path.parent, path.parent.stat())
    if path.exists():
        return path
    _call_all()
    code = {
        _key(kernel, types): dumps(result._reduce())
        for kernel in _kernels
        for types, result in kernel.overloads.items()
    }
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        unfinished = Path(file.name)
        try:
            pickle.dump(code, file)
            file.flush()
            # Else a machine that goes down can leave the name and lose the content.
            os.fsync(file.fileno())
            unfinished.chmod(0o644)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    return path


def is_at_hand() -> bool:
    """Tell whether `compile_kernels` has left code in the folder that is good for this process.

    Raises
    ------
    PermissionError
        If others may write to it.
    """
    return bool(os.environ.get(FOLDER) and _read())


def _call_all() -> None:
    """Call everything that has kernels, on tiny volumes."""
    import numpy as np
    from distributed import Client

    import dseeds
    from dseeds.kernel.painting import distinct
    from dseeds.kernel.pyramid import take_means, take_modes
    from dseeds.phantom import phantom

    image, truth = phantom((32, 32, 32))
    with (
        tempfile.TemporaryDirectory() as folder,
        Client(processes=False, n_workers=1, dashboard_address="127.0.0.1:0") as client,
    ):
        for dtype in DTYPES:
            volume = (image % 100).astype(dtype)
            # With one level of blocks, with two and with three: their histograms differ in dtype.
            for step in (4, 8, 16):
                labels = dseeds.supervoxels(volume, step=step)
            masked: Any = {"step": 8, "mask": "auto", "bins": "equalised", "min_size": 9, "levels": 1}
            dseeds.supervoxels(volume, **masked)
            for name, asked in (("plain", {"step": 16}), ("masked", masked)):
                dseeds.segment(volume, Path(folder, f"{dtype}-{name}"), client=client, **asked)
        for step in (4, 8, 16):
            dseeds.supervoxels(np.stack([volume, volume]), step=step, channel_axis=0)
    dseeds.evaluate(labels, truth, image=volume, region=16)
    for dtype in DTYPES:
        take_means(image.astype(dtype), (2, 2, 2), np.empty((16, 16, 16), dtype))
    for dtype in ("uint8", "float64"):
        dseeds.features(labels, image.astype(dtype))
    histograms = {"histogram": np.ones((2, 64), np.int64)}
    graph = dseeds.AdjacencyGraph(np.array([1, 2]), np.array([[0, 1]]), histograms, {})
    dseeds.agglomerate(graph).cut(n_segments=1)
    for ids in (labels, labels.astype(np.int64) << 32):
        distinct(ids.reshape(-1))
        take_modes(ids.view(f"u{ids.itemsize}"), (2, 2, 2), np.empty((16, 16, 16), f"u{ids.itemsize}"))
        for dtype in ("uint8", "int16", "float32", "float64"):
            dseeds.paint(ids, {1: 1}, dtype=dtype).compute()


@cache
def _read() -> dict[str, bytes]:
    """Read the code of all kernels, as it is stored, by kernel and types; nothing if there is no file."""
    path = _path()
    try:
        with path.open("rb") as file:
            _check_own(path.parent, path.parent.stat())
            _check_own(path, os.fstat(file.fileno()))
            return cast(dict[str, bytes], pickle.load(file))
    except FileNotFoundError:
        return {}


def _path() -> Path:
    return Path(os.environ[FOLDER]).expanduser().absolute() / f"{_fingerprint()}.kernels"


@cache
def _fingerprint() -> str:
    """Name what compiled code depends on: all sources, for a kernel takes constants from anywhere, and what runs it."""
    versions = sys.implementation.cache_tag, *sys.version_info, *map(version, ("numpy", "numba", "llvmlite"))
    processor = cpu_target.target_context.codegen().magic_tuple()
    digest = sha256(repr((versions, processor)).encode())
    package = Path(__file__).parent
    for source in sorted(package.rglob("*.py")):
        content = source.read_bytes()
        digest.update(f"{source.relative_to(package).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _key(kernel: Any, types: Any) -> str:
    return f"{kernel.__module__}.{kernel.__qualname__}{types}"


def _check_own(path: Path, status: os.stat_result) -> None:
    """Refuse what others may have written."""
    # Windows has no such bits.
    if sys.platform == "win32":
        return
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"{path} may be written by others, so that compiled code in it is not safe to run: take a folder of your "
            f"own for {FOLDER}, or chmod go-w it."
        )
