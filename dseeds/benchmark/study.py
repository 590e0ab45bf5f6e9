"""`run_benchmark`: every method on every case at every step, with and without noise and blur."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from dseeds._version import __version__
from dseeds.benchmark.cases import Case, ListedCase, load_case, read_cases
from dseeds.benchmark.criteria import CRITERIA, Disturbance, measure_criteria
from dseeds.benchmark.methods import PACKAGES, Method, choose_methods
from dseeds.benchmark.plots import draw_figures
from dseeds.benchmark.summary import Row, SummaryTable, tabulate_all
from dseeds.benchmark.timing import REPEATS, best_time
from dseeds.core.geometry import triple
from dseeds.storage.owned_file import MARK

Observer: TypeAlias = Callable[[Row], object]

NOISE = (0.1,)
BLUR = (1.0,)
# Before the timing, each method cuts a piece of so many voxels along each axis, to compile and import.
_WARM_UP = 32


@dataclass(frozen=True)
class BenchmarkResult:
    """The figures of a benchmark.

    Attributes
    ----------
    rows : list of dict
        One for each case, step, method and disturbance: ``case``, ``kind``, ``step``, ``boundaries`` (``"map"``, the
        kind of a map, or None), ``disturbance`` (None, or such as ``"noise 0.1"``), ``method``, ``peer``, ``setting``,
        ``is_own``, the figures of `dseeds.benchmark.criteria.CRITERIA`, and ``error``, which is None unless the method
        failed.
    left_out : dict
        The package of each peer that is not installed.
    """

    rows: list[Row]
    left_out: dict[str, str]

    @property
    def failures(self) -> int:
        """The number of rows without figures."""
        return sum(row["error"] is not None for row in self.rows)

    def tables(self) -> list[SummaryTable]:
        """Return the means, the figures of each kind, and robustness and stability."""
        return tabulate_all(self.rows)

    def to_json(self) -> str:
        """Return everything as JSON, with the versions of all packages."""
        content = {
            "program": f"{MARK} {__version__}",
            "packages": _versions(),
            "machine": platform.platform(),
            "left_out": self.left_out,
            "tables": [vars(table) for table in self.tables()],
            "rows": self.rows,
        }
        return json.dumps(content, indent=2)

    def to_markdown(self) -> str:
        """Return the tables in Markdown."""
        return "\n\n".join([f"<!-- {MARK} {__version__} -->", *(t.to_markdown() for t in self.tables())]) + "\n"

    def figures(self) -> dict[str, bytes]:
        """Return plots as SVG files by their name: ``quality.svg`` and, with noise or blur, ``robustness.svg``.

        Raises
        ------
        MissingDependency
            If matplotlib is not installed.
        """
        return draw_figures(self.rows)


def run_benchmark(
    cases: str | Path | Sequence[ListedCase],
    *,
    methods: Sequence[str] | None = None,
    noise: Sequence[float] = NOISE,
    blur: Sequence[float] = BLUR,
    repeats: int = REPEATS,
    observer: Observer | None = None,
) -> BenchmarkResult:
    r"""Measure the supervoxels of dseeds and its peers on a list of cases.

    All methods get the same volume, cropped to whole cells, the same intensity window, the same boundary map and the
    same number of cells. They run in one thread of this process, one after the other. A method that fails is reported
    in its row, and the others continue.

    Parameters
    ----------
    cases : str, Path or sequence of ListedCase
        A file, see `dseeds.benchmark.cases.read_cases`, or what that returns.
    methods : sequence of str, optional
        Such as ``["dseeds", "SLIC 0.1", "watershed"]``. Default: all that are installed.
    noise, blur : sequence of float, optional
        Strengths at which figures are measured again: the standard deviation of Gaussian noise, as a share of the
        intensity window, and that of a Gaussian filter, in voxels. Default: 0.1 and 1.
    repeats : int, default 3
        The time is the CPU time of the fastest of so many runs.
    observer : callable, optional
        Receives each row when it is measured.

    Returns
    -------
    BenchmarkResult

    Raises
    ------
    FileNotFoundError
        If the file of cases does not exist.
    ValueError
        If it is malformed, a case cannot be read, a name is not that of a method, or a number is out of range.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from dseeds.phantom import write_phantom
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = write_phantom(Path(folder.name, "body.zarr"), shape=(24, 24, 24))
    >>> cases = Path(folder.name, "cases.csv")
    >>> _ = cases.write_text("name,kind,image,truth,steps\nbody,phantom,body.zarr,body.zarr/labels/organs,8\n")
    >>> [row] = run_benchmark(cases, methods=["dseeds"], noise=(), blur=()).rows
    >>> row["supervoxels"], row["extra_pieces"]
    (27, 0)
    >>> folder.cleanup()
    """
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, not {repeats}.")
    if any(not strength > 0 for strength in (*noise, *blur)):
        raise ValueError("the strengths of noise and blur must be above 0; leave both empty to measure neither.")
    listed = read_cases(cases) if isinstance(cases, str | Path) else list(cases)
    installed, left_out = choose_methods(methods)
    disturbances = [*(Disturbance("noise", s) for s in noise), *(Disturbance("blur", s) for s in blur)]
    rows = []
    for row in _measure_all(listed, installed, disturbances, repeats):
        rows.append(row)
        if observer is not None:
            observer(row)
    return BenchmarkResult(rows, left_out)


def _measure_all(
    listed: Sequence[ListedCase], methods: Sequence[Method], disturbances: Sequence[Disturbance], repeats: int
) -> Iterator[Row]:
    for item in listed:
        try:
            whole, _ = load_case(item.name, item.image, item.truth, window=item.window, boundaries=item.boundaries)
            cases = [whole.whole_cells(step) for step in item.steps]
        except ValueError as error:
            raise ValueError(f"case {item.name}: {error}") from error
        kind = whole.boundaries if isinstance(whole.boundaries, str) or whole.boundaries is None else "map"
        applicable = [method for method in methods if method.applies_to(whole)]
        _warm_up(applicable, whole)
        for case in cases:
            keys = {"case": item.name, "kind": item.kind, "step": list(case.step), "boundaries": kind}
            yield from _measure_case(case, applicable, keys | {"disturbance": None}, repeats)
            for disturbance in disturbances:
                named = keys | {"disturbance": disturbance.name}
                yield from _measure_case(disturbance.apply(case), applicable, named, 1)


def _measure_case(case: Case, methods: Sequence[Method], keys: Row, repeats: int) -> Iterator[Row]:
    # Preparing what the peers take is not part of the timing.
    _ = case.scaled, case.relief, case.markers
    for method in methods:
        named = {"method": method.name, "peer": method.peer, "setting": method.setting, "is_own": method.is_own}
        try:
            figures = _measure(method, case, repeats)
            yield {**keys, **named, **figures, "error": None}
        except Exception as error:
            sentence = " ".join(str(error).split()) or type(error).__name__
            yield {**keys, **named, **dict.fromkeys(CRITERIA), "error": sentence}


def _measure(method: Method, case: Case, repeats: int) -> Row:
    result: list[NDArray[Any]] = []

    def cut() -> None:
        result[:] = [method.cut(case)]

    # CPU time excludes other work on the machine, and would include a second thread.
    seconds = best_time(cut, repeats, time.process_time)
    [labels] = result
    return {**measure_criteria(labels, case), "nanoseconds_per_voxel": 1e9 * seconds / labels.size}


def _warm_up(methods: Sequence[Method], whole: Case) -> None:
    centre = tuple(slice(max(0, (n - _WARM_UP) // 2), (n + _WARM_UP) // 2) for n in whole.shape)
    piece = whole.crop(centre)
    small = piece.whole_cells(triple(max(2, min(n, _WARM_UP // 2)) for n in piece.shape))
    for method in methods:
        # A failure here occurs again, and is reported, in the measurement.
        with suppress(Exception):
            method.cut(small)


def _versions() -> dict[str, str]:
    result = {}
    for package in ("dseeds", "numpy", "numba", *PACKAGES.values()):
        with suppress(PackageNotFoundError):
            result[package] = version(package)
    return result
