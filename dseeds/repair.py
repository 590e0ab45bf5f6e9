"""Damaged scratch: what wrote it does it again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from dseeds.course import Course
from dseeds.phases import LABEL, Phase
from dseeds.store import Damage

# Damage that is found while damage is mended, and so on: the round before is there, but no more.
DEEPEST = 3


class BeyondRepair(RuntimeError):
    """Scratch is damaged, and what it was made of is gone."""


Again = Callable[[Phase, int], None]


def mend(course: Course, damage: Damage, again: Again, import_again: Callable[[], None], depth: int = 0) -> None:
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
    if damage.name == "source":
        with suppress(Damage):
            course.job.store.read(damage.name, damage.box)
            # Mended meanwhile, for another task.
            return
        import_again()
        return
    phase = _writer(course, damage.name)
    for number in _regions(course, damage):
        if _is_whole(course, damage.name, number):
            continue
        for _ in range(DEEPEST * DEEPEST):
            try:
                again(phase, number)
                break
            except Damage as deeper:
                mend(course, deeper, again, import_again, depth + 1)
        else:
            raise _beyond_repair(damage) from damage


def _beyond_repair(damage: Damage) -> BeyondRepair:
    return BeyondRepair(f"{damage}, and so is what it was made of: begin anew with overwrite=True (--overwrite).")


def _writer(course: Course, name: str) -> Phase:
    if name.startswith("digits"):
        return Phase("window", int(name.partition("-")[2]))
    return LABEL if name == "labels" else course.job.store.layouts[name][0]


def _regions(course: Course, damage: Damage) -> list[int]:
    """List the regions that a damaged box touches."""
    regions, kind = course.job.regions, damage.name.partition("-")[0]
    if kind in ("shells", "digits"):
        return regions.numbers(damage.box)
    if kind in ("statistics", "core"):
        return regions.touching(damage.box)
    return regions.touching(course.job.grid_of(damage.name).cells_of(damage.box))


def _is_whole(course: Course, name: str, number: int) -> bool:
    """Tell whether a region's own part of an array can be read."""
    job, kind = course.job, name.partition("-")[0]
    cells = job.regions.box(number)
    if kind in ("shells", "digits"):
        box = job.regions.around(number, 0)
    elif kind in ("statistics", "core"):
        box = cells
    else:
        box = job.grid_of(name).of_cells(cells)
    try:
        job.store.read(name, box)
    except Damage:
        return False
    return True
