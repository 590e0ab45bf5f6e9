"""The folders of runs: a run is started, read, resumed and removed here; see `dseeds.engine.run`."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from dseeds._version import __version__
from dseeds.engine.journal import seal, unseal
from dseeds.engine.messages import MessageLog
from dseeds.engine.repair import RegionFailed
from dseeds.engine.run import (
    AUTO_MASK,
    FORMAT,
    SUFFIX,
    ResolvedTarget,
    Run,
    RunSpec,
    open_run_image,
    run_identity,
    scratch_elsewhere,
)
from dseeds.io import ArraySource, Image, nifti_run, open_boundary_map, open_mask
from dseeds.seeds.schedule import OWN_MAP
from dseeds.storage.label_group import check_target, published_by, published_product, remove_target, written_by
from dseeds.storage.lease import LEASE_FOLDER as LEASE
from dseeds.storage.lease import Lease, LeaseLost, check_free, hold_lease
from dseeds.storage.location import LocalLocation, Location, open_location
from dseeds.storage.ownership import check_overwrite

# Files in the run's folder: its specification, the write-ahead marker of publishing, and why it failed.
DOCUMENT, PUBLISHING, FAILURE = "run.json", "publishing", "failure.json"
# Folders of a run that keeps nothing else: its labels until they are finished, and older ones that they replace.
LABELS, OLDER = "labels", "older"
# What late tasks may write after their run has been removed.
_LEFTOVERS = re.compile(
    rf"[0-9a-f]{{16}}/(?:done|scratch|{LABELS}|{OLDER})/.+|{LEASE}/\d+\.json|{PUBLISHING}|{FAILURE}"
)


class RunMismatch(ValueError):
    """The parameters, or the version of dseeds, differ from those of the unfinished run."""


def read_spec(folder: Location) -> RunSpec | None:
    """Read the specification of an unfinished run; None if there is no run.

    Raises a ValueError if it is damaged, or was written by another version of dseeds.
    """
    content = folder.read(DOCUMENT)
    if content is None:
        return None
    try:
        document = unseal(content)
    except ValueError as error:
        raise ValueError(f"{folder.address}/{DOCUMENT} is damaged: remove {folder.address} and start again.") from error
    if document.get("format") != FORMAT or document.get("dseeds") != __version__:
        raise RunMismatch(
            f"the unfinished run at {folder.address} was started by dseeds {document.get('dseeds')}, but this is "
            f"{__version__}: resume it with that version, or start again with overwrite=True (--overwrite)."
        )
    return RunSpec.from_document(document)


def load_run(folder: str, *, with_source: bool = True) -> Run:
    """Open the unfinished run in a folder; without its source, with an image of the same shape and dtypes.

    Raises a FileNotFoundError if there is no run, and a ValueError if it is damaged or its inputs cannot be opened.
    """
    spec = read_spec(open_location(folder))
    if spec is None:
        raise FileNotFoundError(f"there is no unfinished run at {folder}.")
    target, sources = ResolvedTarget.at(folder.removesuffix(SUFFIX)), spec.sources
    if not with_source:
        channels = [ArraySource(np.broadcast_to(np.zeros((), dtype), spec.shape)) for dtype in spec.dtypes]
        count = len(spec.parameters.weights)
        boundaries = Image(tuple(channels[count:])) if channels[count:] else None
        return Run(spec, target, Image(tuple(channels[:count])), boundaries=boundaries)
    if sources is None:
        raise _was_in_memory("source", folder)
    image, mask, boundaries = open_run_image(sources, spec.options), None, None
    if spec.parameters.mask not in (None, AUTO_MASK):
        if spec.mask_address is None:
            raise _was_in_memory("mask", folder)
        mask = open_mask(spec.mask_address, image)
    if spec.parameters.boundary_kind == OWN_MAP:
        if spec.boundaries_address is None:
            raise _was_in_memory("boundary map", folder)
        boundaries = open_boundary_map(spec.boundaries_address, image)
    return Run(spec, target, image, mask, boundaries, sources[0])


def _was_in_memory(name: str, folder: str) -> ValueError:
    return ValueError(f"the {name} of the run at {folder} was in the memory of the process that started it.")


def is_unfinished(run: Run) -> bool:
    """Return whether there is a run to be resumed."""
    return run.folder.read(DOCUMENT) is not None


def is_current(run: Run) -> bool:
    """Return whether a run has neither been published nor replaced by another."""
    spec = read_spec(run.folder)
    return spec is not None and spec.identity == run.identity


def begin_run(run: Run, resume: bool) -> bool:
    """Store the specification of a run, unless it is resumed, and return whether it is.

    Raises a FileExistsError if there is an unfinished run that is neither resumed nor overwritten, or if the folder is
    not ours.
    """
    folder = run.folder
    if resume and is_unfinished(run):
        return True
    leftovers = _vacate(run)
    if not folder.create(DOCUMENT, seal(run.spec.to_document())):
        raise _just_started(folder)
    folder.delete(leftovers)
    return False


def _vacate(run: Run) -> list[str]:
    """Remove the unfinished run of the same target, and return the files that lie in a folder without one.

    Raises a FileExistsError if the run must not be overwritten, the files are not ours, or the folder is in use.
    """
    folder, leftovers = run.folder, []
    is_replaced = is_unfinished(run)
    if not is_replaced:
        leftovers = list(folder.names())
        is_ours = all(_LEFTOVERS.fullmatch(name) for name in leftovers)
        check_overwrite(folder.address, overwrite=True, is_ours=is_ours)
    # A run in another process may hold it without a document.
    check_free(folder)
    _restore_older(run)
    if is_replaced:
        if not run.spec.overwrite:
            raise FileExistsError(
                f"there is an unfinished run at {folder.address}: resume it with resume=True (--resume), or start "
                f"again with overwrite=True (--overwrite)."
            )
        remove_run(folder)
    return leftovers


def _restore_older(run: Run) -> None:
    """Move labels back to the target that a run was about to replace when it was killed.

    Raises a FileExistsError if they must not be overwritten.
    """
    folder, target = run.folder, run.target
    if not isinstance(folder, LocalLocation) or target.is_nifti or target.path.exists():
        return
    for older in folder.path.glob(f"*/{OLDER}"):
        # Otherwise the newer labels had replaced them, and somebody has removed these.
        if not older.with_name(LABELS).exists():
            continue
        # Another process may restore them too.
        with suppress(FileNotFoundError):
            older.rename(target.path)
        check_target(target.location, run.spec.overwrite)


@contextmanager
def hold_folder(run: Run) -> Iterator[Lease]:
    """Hold the folder of a run that keeps nothing in it but its lease and unfinished labels, and remove it at the end.

    Raises a FileExistsError if there is an unfinished run to resume, unless `overwrite` is set, or if the folder is
    not ours; RunInUse if another process is working on the target.
    """
    folder = run.folder
    _vacate(run)
    try:
        with hold_lease(folder) as lease:
            if is_unfinished(run):
                raise _just_started(folder)
            _clear_leftovers(folder)
            try:
                yield lease
            finally:
                # What another process writes that has taken over is not ours to remove.
                with suppress(LeaseLost, OSError):
                    lease.confirm()
                    folder.clear(run.identity)
    finally:
        # Not if another process holds it.
        _remove_empty(folder.at(LEASE))
        _remove_empty(folder)


@contextmanager
def hold_labels(target: Location) -> Iterator[Lease]:
    """Hold finished labels, so that neither a run nor another process changes them.

    Raises a FileExistsError if their run is kept, and RunInUse if another process is working on them.
    """
    folder = open_location(target.address + SUFFIX)
    try:
        with hold_lease(folder) as lease:
            if folder.read(DOCUMENT) is not None:
                raise FileExistsError(
                    f"there is a run of {target.address} at {folder.address}: finish it with dseeds segment --resume, "
                    f"which removes that folder, before you edit its labels."
                )
            yield lease
    finally:
        _remove_empty(folder.at(LEASE))
        _remove_empty(folder)


def _just_started(folder: Location) -> FileExistsError:
    return FileExistsError(f"another process has just started a run at {folder.address}: name another target.")


def _clear_leftovers(folder: Location) -> None:
    """Remove what runs that were killed have left in a folder without a run."""
    names = {name.partition("/")[0] for name in folder.names()}
    if isinstance(folder, LocalLocation):
        names |= {path.name for path in folder.path.iterdir()}
    for name in names - {LEASE}:
        folder.clear(name)
        folder.delete([name])


def forget_run(run: Run) -> None:
    """Remove the folder of a run, unless another run has replaced it."""
    if is_current(run):
        remove_run(run.folder)


def remove_run(folder: Location) -> None:
    """Remove an unfinished run with its scratch, and nothing else."""
    try:
        document = unseal(folder.read(DOCUMENT) or b"")
        identity = run_identity(document)
    except ValueError:
        raise FileExistsError(f"{folder.address} holds no readable run of dseeds: remove it by hand.") from None
    folder.clear(LEASE)
    _clear(folder, document.get("scratch"), identity)
    # The marker of publishing goes last: if this is interrupted, it can be repeated.
    folder.delete([FAILURE, DOCUMENT])
    folder.delete([PUBLISHING])
    _remove_empty(folder)


def remove_leftovers(run: Run) -> None:
    """Remove what was written by a run after it had been removed."""
    _clear(run.folder, run.spec.scratch, run.identity)


def _clear(folder: Location, elsewhere: str | None, identity: str) -> None:
    # The marks go first: if this is interrupted, no mark refers to missing data.
    folder.clear(f"{identity}/done")
    if elsewhere is not None:
        scratch = scratch_elsewhere(elsewhere, folder)
        scratch.clear(identity)
        _remove_empty(scratch)
    folder.clear(identity)
    _remove_empty(folder)


def may_have_progress(run: Run) -> bool:
    """Return whether work may be done that would be lost with a run; True if its folder cannot be reached."""
    messages = MessageLog(run.scratch, run.identity)
    try:
        return any(next(names, None) for names in (run.folder.names(f"{run.identity}/done"), messages.place.names()))
    except OSError:
        return True


def is_published(run: Run) -> bool:
    """Return whether the labels are published, so that only the folder of the run is left to be removed."""
    return run.folder.read(PUBLISHING) is not None and is_finished(run)


def is_finished(run: Run) -> bool:
    """Return whether the target holds the labels of a run with the same identity."""
    return is_made(run) if run.target.is_nifti else published_by(run.target.location) == run.identity


def is_made(run: Run) -> bool:
    """Return whether the target holds what a run would write, even if another was cut otherwise to write it."""
    target = run.target
    return (nifti_run(target.path) if target.is_nifti else published_product(target.location)) == run.spec.product


def has_features(run: Run) -> bool:
    """Return whether the features that the user wants of labels that are made are there as well."""
    if run.features is None:
        return True
    # Here, not above: Arrow takes its time to import.
    from dseeds.storage.parquet_dataset import Dataset

    try:
        return Dataset(open_location(run.features)).note().get("product") == run.spec.product
    except (FileNotFoundError, ValueError):
        return False


def abandon_run(run: Run) -> None:
    """Remove everything that a run has written."""
    target = run.target
    if not target.is_nifti and written_by(target.location) == run.identity:
        remove_target(target.location)
    remove_run(run.folder)


def read_failure(folder: Location) -> dict[str, Any] | None:
    """Read why the run in a folder failed last; None if it did not, or the file is damaged."""
    with suppress(ValueError):
        return dict(json.loads(folder.read(FAILURE) or b""))
    return None


def record_failure(run: Run, failed: RegionFailed) -> None:
    """Store why a run failed, and add a note to the error: the command that tries that region alone."""
    with suppress(OSError):
        run.folder.write(FAILURE, json.dumps(failed.to_dict(), indent=2).encode())
    command = ["dseeds", "debug-region", run.folder.address, "--phase", failed.phase, "--region", str(failed.region)]
    failed.add_note(f"try that region alone with: {shlex.join(command)}")


def _remove_empty(location: Location) -> None:
    if isinstance(location, LocalLocation):
        with suppress(OSError):
            location.path.rmdir()
