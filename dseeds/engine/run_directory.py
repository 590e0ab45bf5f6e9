"""Runs as they lie in their folders: begun, read, gone on with and removed; see `dseeds.engine.run`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dseeds._version import __version__
from dseeds.engine.journal import seal, unseal
from dseeds.engine.run import SUFFIX, Run, run_identity, scratch_elsewhere
from dseeds.io import ArraySource, Image, nifti_run, open_image, open_mask
from dseeds.storage.label_group import published_by, remove_target, written_by
from dseeds.storage.lease import LEASE_FOLDER as LEASE
from dseeds.storage.lease import check_free
from dseeds.storage.location import Location, is_remote, open_location
from dseeds.storage.ownership import check_overwrite

FORMAT = 3
# Files in the run's folder: what it is, that its output is about to appear, and why it failed.
DOCUMENT, PUBLISHING, FAILURE = "run.json", "publishing", "failure.json"
# What tasks that come late leave of a run that is gone.
_REMAINS = re.compile(rf"[0-9a-f]{{16}}/(?:done|scratch)/.+|{LEASE}/\d+\.json|{PUBLISHING}|{FAILURE}")


class RunMismatch(ValueError):
    """What is asked for is not what the unfinished run was begun with."""


def read_document(folder: Location) -> dict[str, Any] | None:
    """Read what an unfinished run is; None if there is none.

    Raises
    ------
    ValueError
        If it is damaged, or of another version of this program.
    """
    content = folder.read(DOCUMENT)
    if content is None:
        return None
    try:
        document = unseal(content)
    except ValueError as error:
        raise ValueError(f"{folder.address}/{DOCUMENT} is damaged; remove {folder.address} to begin anew.") from error
    if document.get("format") != FORMAT or document.get("dseeds") != __version__:
        raise RunMismatch(
            f"the unfinished run at {folder.address} is of dseeds {document.get('dseeds')}, this is {__version__}: go "
            f"on with that version, or begin anew with overwrite=True (--overwrite)."
        )
    return document


def load_run(folder: str, *, with_source: bool = True) -> Run:
    """Read an unfinished run from its folder, and open its source; or put nothing but its shape and dtype in its place.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is damaged, or its source cannot be opened.
    """
    document = read_document(open_location(folder))
    if document is None:
        raise FileNotFoundError(f"there is no unfinished run at {folder}.")
    given, target = document["given"], folder.removesuffix(SUFFIX)
    if not with_source:
        nothing = tuple(
            ArraySource(np.broadcast_to(np.zeros((), dtype), document["shape"])) for dtype in document["dtypes"]
        )
        return Run(Image(nothing), given and given[0], target, document, document["overwrite"])
    if given is None:
        raise ValueError(f"the source of the run at {folder} was in the memory of the process that began it.")
    asked = document["asked"]
    image = open_image(
        given, volume=asked.get("volume"), channel_axis=asked.get("channel_axis"), level=asked.get("level", 0)
    )
    mask = None
    if document["mask"] not in (None, "auto"):
        if document["given_mask"] is None:
            raise ValueError(f"the mask of the run at {folder} was in the memory of the process that began it.")
        mask = open_mask(document["given_mask"], image)
    return Run(image, given[0], target, document, document["overwrite"], mask)


def is_current(run: Run) -> bool:
    """Tell whether a run has been neither published nor begun anew."""
    document = read_document(run.folder)
    return document is not None and run_identity(document) == run.identity


def read_failure(run: Run) -> dict[str, Any] | None:
    """Give why a run failed the last time it did."""
    with suppress(ValueError):
        return dict(json.loads(run.folder.read(FAILURE) or b""))
    return None


def begin_run(run: Run, resume: bool) -> bool:
    """Write down a run; or find that it has been begun, and go on.

    Returns
    -------
    bool
        Whether the run goes on.

    Raises
    ------
    FileExistsError
        If there is an unfinished run, and `resume` is not set, nor overwriting allowed; or if the folder is not ours.
    """
    folder = run.folder
    if folder.read(DOCUMENT) is None:
        remains = list(folder.names())
        is_ours = all(_REMAINS.fullmatch(name) for name in remains)
        check_overwrite(folder.address, overwrite=True, is_ours=is_ours)
    elif resume:
        return True
    else:
        check_free(folder)
        if not run.overwrite:
            raise FileExistsError(
                f"there is an unfinished run at {folder.address}: go on with it with resume=True (--resume), or begin "
                f"anew with overwrite=True (--overwrite)."
            )
        remove_run(folder)
        remains = []
    if not folder.create(DOCUMENT, seal(run.document)):
        raise FileExistsError(f"another process has just begun a run at {folder.address}: name another target.")
    folder.delete(remains)
    return False


def forget_run(run: Run) -> None:
    """Remove all that is known of a run, unless another has been begun in its place."""
    if is_current(run):
        remove_run(run.folder)


def remove_run(folder: Location) -> None:
    """Remove an unfinished run with its scratch, and nothing else."""
    try:
        document = unseal(folder.read(DOCUMENT) or b"")
        mine = run_identity(document)
    except ValueError:
        raise FileExistsError(f"{folder.address} holds no run of dseeds that can be read: remove it by hand.") from None
    folder.clear(LEASE)
    _clear(folder, document.get("scratch"), mine)
    # Last what tells that the labels are there: cut short, this can be done again.
    folder.delete([FAILURE, DOCUMENT])
    folder.delete([PUBLISHING])
    _remove_empty(folder)


def remove_leftovers(run: Run) -> None:
    """Remove what was written of a run after it had been removed."""
    _clear(run.folder, run.document["scratch"], run.identity)


def _clear(folder: Location, elsewhere: str | None, mine: str) -> None:
    # First what tells that something is done: cut short, nothing is believed to be there that is not.
    folder.clear(f"{mine}/done")
    if elsewhere is not None:
        place = scratch_elsewhere(elsewhere, folder)
        place.clear(mine)
        _remove_empty(place)
    folder.clear(mine)
    _remove_empty(folder)


def has_progress(run: Run) -> bool:
    """Tell whether anything of a run is done that would be lost with it."""
    return next(run.folder.names(f"{run.identity}/done"), None) is not None


def may_have_progress(run: Run) -> bool:
    """Tell whether anything of a run may be done: that it cannot be reached does not mean that there is nothing."""
    try:
        return has_progress(run)
    except OSError:
        return True


def is_published(run: Run) -> bool:
    """Tell whether the labels are there and right, so that only what is known of the run is left to be removed."""
    if run.folder.read(PUBLISHING) is None:
        return False
    found = nifti_run(Path(run.target)) if run.nifti else published_by(open_location(run.target))
    return found == run.identity


def abandon_run(run: Run) -> None:
    """Remove all that a run has written."""
    target = open_location(run.target)
    if not run.nifti and written_by(target) == run.identity:
        remove_target(target)
    remove_run(run.folder)


def write_failure(run: Run, failure: Mapping[str, Any]) -> None:
    """Leave word of why a run failed, for whoever looks at it later."""
    with suppress(OSError):
        run.folder.write(FAILURE, json.dumps(failure, indent=2).encode())


def _remove_empty(place: Location) -> None:
    if not is_remote(place.address):
        with suppress(OSError):
            Path(place.address).rmdir()
