"""Damaged scratch: what wrote it does it again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from dseeds.engine.dask_runner import RETRIES
from dseeds.engine.label_tables import write_offsets, write_tables
from dseeds.engine.label_tasks import read_graph
from dseeds.engine.phases import GRAPH, Phase
from dseeds.engine.run_state import RunState
from dseeds.engine.scratch import parse_name
from dseeds.storage.zarr_arrays import ScratchCorrupted

# Damage that is found while damage is mended, and so on: the round before is there, but no more.
DEEPEST = 3
# Arrays of one piece per region, and of cells; the others are of voxels or blocks.
PIECES, CELLS = ("shells", "digits", "intensities", "graph"), ("statistics", "core", "parts")


class BeyondRepair(RuntimeError):
    """Scratch is damaged, and what it was made of is gone."""


Again = Callable[[Phase, int], None]


def repair_damage(
    course: RunState, damage: ScratchCorrupted, again: Again, import_again: Callable[[], None], depth: int = 0
) -> None:
    """Find the regions whose part of an array is damaged, and have their tasks done again.

    Parameters
    ----------
    course : Course
        How far the run is.
    damage : Damage
        What was found.
    again : callable
        Does a region's task of a phase once more.
    import_again : callable
        Copies the source into scratch once more.
    depth : int
        How many damages led to this one.

    Raises
    ------
    BeyondRepair
        If one damage leads to the next.
    """
    if depth >= DEEPEST:
        raise _beyond_repair(damage) from damage
    if parse_name(damage.name)[0] in ("source", "mask"):
        with suppress(ScratchCorrupted):
            course.job.store.read(damage.name, damage.box)
            # Mended meanwhile, for another task.
            return
        import_again()
        return
    if damage.name == "offsets":
        _rewrite(course, damage, again, import_again, depth, lambda: write_offsets(course.job))
        return
    if damage.name.startswith("table"):
        graph = course.regions(GRAPH)
        count = course.counted_parts
        _rewrite(course, damage, again, import_again, depth, lambda: write_tables(course.job, count, graph))
        return
    phase = course.writer(damage.name)
    for number in _regions(course, damage):
        if _is_whole(course, damage.name, number):
            continue
        for _ in range(DEEPEST * DEEPEST):
            try:
                again(phase, number)
                break
            except ScratchCorrupted as deeper:
                repair_damage(course, deeper, again, import_again, depth + 1)
        else:
            raise _beyond_repair(damage) from damage


def repairing(function: Callable[[], None], mend_it: Callable[[ScratchCorrupted], None]) -> None:
    """Do something that reads scratch in this process, after mending what is damaged."""
    for _ in range(RETRIES):
        try:
            return function()
        except ScratchCorrupted as damage:
            mend_it(damage)
    return function()


def _beyond_repair(damage: ScratchCorrupted) -> BeyondRepair:
    return BeyondRepair(f"{damage}, and so is what it was made of: begin anew with overwrite=True (--overwrite).")


def _rewrite(
    course: RunState,
    damage: ScratchCorrupted,
    again: Again,
    import_again: Callable[[], None],
    depth: int,
    function: Callable[[], object],
) -> None:
    """Write once more what was found out of all regions at once."""
    for _ in range(DEEPEST * DEEPEST):
        try:
            function()
            return
        except ScratchCorrupted as deeper:
            repair_damage(course, deeper, again, import_again, depth + 1)
    raise _beyond_repair(damage) from damage


def _regions(course: RunState, damage: ScratchCorrupted) -> list[int]:
    """List the regions that a damaged box touches."""
    regions, (kind, _) = course.job.regions, parse_name(damage.name)
    if kind in PIECES:
        found = regions.numbers(damage.box)
    elif kind in CELLS:
        found = regions.touching(damage.box)
    else:
        found = regions.touching(course.job.grid_of(damage.name).cells_of(damage.box))
    return [number for number in found if not course.job.is_outside(number)]


def _is_whole(course: RunState, name: str, number: int) -> bool:
    """Tell whether a region's own part of an array can be read."""
    job, (kind, _) = course.job, parse_name(name)
    cells = job.regions.box(number)
    if kind in PIECES:
        box = job.regions.around(number, 0)
    elif kind in CELLS:
        box = cells
    else:
        box = job.grid_of(name).units_of(cells)
    try:
        if kind == "graph":
            read_graph(job, number)
        else:
            job.store.read(name, box)
    except ScratchCorrupted:
        return False
    return True
