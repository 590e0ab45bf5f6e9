"""Compiled code of kernels, kept on disk from one process to the next.

Every kernel and set of argument types has a file of its own, which any process that compiles it writes under another
name and renames. Files of processes that compile the same at once are equal, so it does not matter which of them stays.
The folder is named after a fingerprint of all that the code depends on, so that code for another version or machine is
never loaded. Loading code means running it: a folder to which others may write is not used.

Numba's own cache would not do. It changes an index of each kernel without a lock, so that two processes that compile
the kernel for different types may give both the same file, and a third runs the wrong code. It also knows only the
source of the kernel, not of the steps and constants from other modules that are compiled into it.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from llvmlite.binding import ffi
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from dseeds._version import __version__
from dseeds.core.forks import hold_at_fork

# The environment variable that names another folder, or turns the cache off.
CACHE_FOLDER = "DSEEDS_CACHE_DIR"
OFF = "off"
# How long the code of a version is kept that nobody uses.
KEPT_DAYS = 30
DIGEST_BYTES = 32
# Numba's settings that do not change the code.
HARMLESS_SETTINGS = {"NUMBA_NUM_THREADS", "NUMBA_CACHE_DIR", "NUMBA_DEBUG_CACHE"}
# The packages that kernels take constants from, and the line by which modules with kernels are known.
KERNEL_PACKAGES, KERNEL_IMPORT = ("core", "seeds"), b"from dseeds.core.jit import "


class CompileTimer:
    """The time that this process spends on compiling kernels, and who is told about it.

    Attributes
    ----------
    seconds : float
        The time so far.
    on_start : callable
        Called when the first kernel is about to be compiled.
    on_problem : callable
        Called with a sentence if compiled code cannot be kept.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.on_start: Callable[[], object] = lambda: None
        self.on_problem: Callable[[str], object] = lambda line: warnings.warn(line, RuntimeWarning, stacklevel=2)
        self._outermost: tuple[str, float] | None = None

    def start(self, name: str) -> None:
        """Start the clock, unless this kernel is compiled on behalf of another."""
        # Numba compiles one kernel at a time, under a lock. If one failed, its name is still there.
        if self._outermost is None or self._outermost[0] == name:
            self._outermost = name, time.perf_counter()
            if not self.seconds:
                self.on_start()

    def stop(self, name: str) -> None:
        """Stop the clock, if it was started for this kernel."""
        if self._outermost is not None and self._outermost[0] == name:
            self.seconds += time.perf_counter() - self._outermost[1]
            self._outermost = None


compile_timer = CompileTimer()


def compile_seconds() -> float:
    """Return the seconds that this process has spent on compiling kernels so far."""
    return compile_timer.seconds


class KernelCache(NullCache):
    """The compiled code of one kernel, in Numba's cache interface."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    @property
    def cache_path(self) -> str | None:
        """The folder."""
        folder = code_folder()
        return None if folder is None else str(folder)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the code for some types of arguments, or None."""
        folder, name = code_folder(), self._file_name(sig)
        content = None if folder is None else _read(folder / name)
        if content is None:
            compile_timer.start(name)
            return None
        # Code that allocates needs it; to refresh the context, as Numba does, would import what only compiling needs.
        rtsys.initialize(target_context)
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(content))
        except Exception:
            # Anything may be wrong with code that another process has written: compiling replaces it.
            compile_timer.start(name)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save the code for some types of arguments, if the folder can be written."""
        folder, name = code_folder(), self._file_name(sig)
        compile_timer.stop(name)
        # Code with addresses of this process is of no use to another; none of our kernels should have any.
        if folder is None or data.library.has_dynamic_globals or data.lifted:
            return
        try:
            _write(folder / name, dumps(data._reduce()))
        except OSError as error:
            # On Windows a file that another process reads cannot be replaced, and need not be.
            if not (folder / name).exists():
                notify(f"compiled code cannot be kept in {folder} ({error.strerror})")

    def _file_name(self, types: Any) -> str:
        key = f"{self.kernel.__module__}.{self.kernel.__qualname__}{types}"
        return f"{self.kernel.__name__}-{sha256(key.encode()).hexdigest()[:32]}.code"


def cache_folder() -> Path | None:
    """Return the folder of the code of all versions, which may not exist; None if the cache is turned off."""
    folder = os.environ.get(CACHE_FOLDER)
    if folder == OFF:
        return None
    if folder:
        return Path(folder).expanduser().absolute()
    return Path(AppDirs("dseeds", appauthor=False).user_cache_dir).absolute()


@cache
def code_folder() -> Path | None:
    """Return the folder of the code for this process, which is made if necessary; None if there can be none."""
    try:
        parent = cache_folder()
        return None if parent is None else open_code_folder(parent)
    except (OSError, RuntimeError) as error:
        # pathlib raises the latter for a user without a home.
        where = getattr(error, "filename", None) or os.environ.get(CACHE_FOLDER) or "the cache folder"
        notify(f"compiled code is not kept in {where} ({getattr(error, 'strerror', None) or error})")
        return None


def open_code_folder(parent: Path) -> Path:
    """Return the folder within a folder for the code for this process; raise an OSError if it cannot be used."""
    folder = parent / fingerprint()
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_private(parent, parent.stat())
    folder.mkdir(mode=parent.stat().st_mode & 0o755, exist_ok=True)
    require_private(folder, folder.stat())
    if os.access(folder, os.W_OK):
        # Tells that this version is in use.
        os.utime(folder)
        _remove_unused(parent)
    return folder


@cache
def fingerprint() -> str:
    """Return a digest of the sources that kernels take code and constants from, of versions and of the processor."""
    versions = [__version__, sys.implementation.cache_tag, *map(version, ("numpy", "numba", "llvmlite"))]
    names = sorted(name for name in os.environ if name.startswith("NUMBA_") and name not in HARMLESS_SETTINGS)
    settings = [(name, os.environ[name]) for name in names]
    processor = cpu_target.target_context.codegen().magic_tuple()
    digest = sha256(repr((versions, sys.version_info, settings, processor)).encode())
    package = Path(__file__).parents[1]
    for source in sorted(package.rglob("*.py")):
        content = source.read_bytes()
        # A module of another package with kernels imports only from these and from others like it, which a test holds.
        if source.relative_to(package).parts[0] in KERNEL_PACKAGES or KERNEL_IMPORT in content:
            digest.update(f"{source.relative_to(package).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()[:32]


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


@cache
def notify(problem: str) -> None:
    """Tell of a problem, once, and not in the workers of a local cluster as well."""
    if parent_process() is None:
        compile_timer.on_problem(f"{problem}: kernels are compiled anew in every process")


def _read(path: Path) -> bytes | None:
    """Return the code in a file; None if there is none, or it is damaged or not safe."""
    try:
        with path.open("rb") as file:
            require_private(path, os.fstat(file.fileno()))
            digest, content = file.read(DIGEST_BYTES), file.read()
    except OSError:
        return None
    return content if sha256(content).digest() == digest else None


def _write(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        try:
            file.write(sha256(content).digest() + content)
            file.close()
            # Root may keep code for all: it is the folder that is private.
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _remove_unused(parent: Path) -> None:
    """Remove the code of versions that have not been used for long."""
    old = time.time() - KEPT_DAYS * 86400
    for folder in parent.iterdir():
        # Another process may do the same.
        with suppress(OSError):
            if re.fullmatch("[0-9a-f]{32}", folder.name) and folder.stat().st_mtime < old:
                shutil.rmtree(folder, ignore_errors=True)


# A child process could not go on with half of a kernel.
for _owner in (global_compiler_lock, ffi.lib):
    # They are private, so another version may have none: llvmlite's is a lock in a lock.
    _lock = getattr(_owner, "_lock", None)
    _lock = getattr(_lock, "_lock", _lock)
    if _lock is not None:
        hold_at_fork(_lock)
