"""The benchmark: files of cases, figures against independent computations, missing peers, tables and plots."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from scipy import ndimage
from skimage.segmentation import watershed

import dseeds
from dseeds.benchmark import methods as method_list
from dseeds.benchmark import run_benchmark
from dseeds.benchmark.cases import load_case, read_cases
from dseeds.benchmark.criteria import CRITERIA, RANKING, Disturbance, measure_criteria
from dseeds.benchmark.etps import cut_etps
from dseeds.benchmark.methods import all_methods, choose_methods
from dseeds.benchmark.plots import COLOURS
from dseeds.benchmark.summary import count_wins, loss, mean_figure, spread, tabulate_means
from dseeds.cli import main
from dseeds.core.geometry import Lattice
from dseeds.phantom import phantom

SHAPE = 16, 26, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A body, without and with a map, and the list of both."""
    folder = tmp_path_factory.mktemp("benchmark")
    image, truth = phantom(SHAPE, dtype="int16")
    walls = ndimage.grey_dilation(truth, 3) != ndimage.grey_erosion(truth, 3)
    for name, values in (("image", image), ("truth", truth), ("map", walls.astype(np.float32))):
        np.save(folder / f"{name}.npy", values)
    (folder / "cases.csv").write_text(
        "name,kind,image,truth,steps,boundaries\n"
        "body,phantom,image.npy,truth.npy,4 8,\n"
        "walls,map,image.npy,truth.npy,8x6x6,map.npy\n"
        "dark,stain,image.npy,truth.npy,8,dark\n"
    )
    return folder


@pytest.fixture(scope="module")
def result(folder):
    chosen = ["dseeds", "dseeds boundaries", "SLIC 0.1", "SimpleITK SLIC 30", "watershed 1"]
    return run_benchmark(folder / "cases.csv", methods=chosen, blur=(), repeats=1)


def test_files_of_cases(folder):
    body, walls, dark = read_cases(folder / "cases.csv")
    assert (body.steps, walls.steps) == (((4, 4, 4), (8, 8, 8)), ((8, 6, 6),))
    assert body.image == str(folder / "image.npy")
    assert (body.boundaries, walls.boundaries, dark.boundaries) == (None, str(folder / "map.npy"), "dark")
    rows = [{"name": "a", "kind": "k", "image": "s3://lab/a.zarr", "truth": "/t.nii", "steps": [4, [2, 4, 4]]}]
    (folder / "cases.json").write_text(json.dumps(rows))
    [case] = read_cases(folder / "cases.json")
    assert (case.image, case.truth) == ("s3://lab/a.zarr", "/t.nii")
    assert case.steps == ((4, 4, 4), (2, 4, 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,truth\na,b\n", "must be a CSV with a header"),
        ("name,kind,image,truth,steps,colour\na,b,c,d,8,red\n", "must be a CSV with a header"),
        ("name,kind,image,truth,steps\n", "has no rows"),
        ("name,kind,image,truth,steps\na,b,c,d,1\n", "the steps of a must be voxels from 2 on"),
        ("name,kind,image,truth,steps\na,b,c,d,8x8\n", "the steps of a must be voxels from 2 on"),
        ("name,kind,image,truth,steps\na,b,c,d,8\na,b,c,d,8\n", "are called 'a'"),
        ("name,kind,image,truth,steps\na,b,nowhere.npy,d,8\n", "nowhere.npy does not exist"),
    ],
)
def test_a_bad_file_of_cases_is_one_sentence(tmp_path, capsys, text, message):
    file = tmp_path / "cases.csv"
    file.write_text(text)
    assert main(["benchmark", str(file)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_figures_against_independent_computations(folder):
    case, _ = load_case("body", str(folder / "image.npy"), str(folder / "truth.npy"))
    case = case.whole_cells((4, 4, 4))
    assert case.shape == (16, 24, 24)
    # Every third label in two pieces, and some of few voxels.
    labels = dseeds.supervoxels(case.image, step=4).astype(np.int64)
    labels[labels % 3 == 0] = 3
    labels[0, 0, :2] = [900, 901]
    figures = measure_criteria(labels, case)
    known = dseeds.evaluate(labels, case.truth, image=np.clip(case.image, *case.windows[0]))
    for name in set(CRITERIA) & set(known):
        assert figures[name] == pytest.approx(known[name], rel=1e-5)

    names = np.unique(labels)
    sizes = ndimage.sum_labels(np.ones(labels.shape), labels, names)
    assert figures["size_variation"] == pytest.approx(np.std(sizes) / np.mean(sizes))
    assert figures["tiny_share"] == pytest.approx(np.mean(sizes < 6.4))
    assert figures["tiny_share"] > 0
    assert figures["extra_pieces"] == sum(ndimage.label(labels == name)[1] - 1 for name in names)
    assert figures["extra_pieces"] > 0


def test_rows_have_the_figures_of_the_labels(folder, result):
    assert result.failures == 0
    body, _ = load_case("body", str(folder / "image.npy"), str(folder / "truth.npy"))
    image, truth, [window] = body.image[:, :24], body.truth[:, :24], body.windows
    expected = dseeds.evaluate(dseeds.supervoxels(image, step=8, window=window), truth, image=np.clip(image, *window))
    [row] = [r for r in result.rows if (r["case"], r["method"], r["disturbance"]) == ("body", "dseeds", None)][1:]
    for name in RANKING:
        assert row[name] == pytest.approx(expected[name], rel=1e-5)
    for row in result.rows:
        assert all(row[name] >= 0 for name in CRITERIA)
        assert row["nanoseconds_per_voxel"] > 0
        cells = {"body": {(4, 4, 4): 144, (8, 8, 8): 18}, "walls": {(8, 6, 6): 32}, "dark": {(8, 8, 8): 18}}
        if row["is_own"] or row["peer"] == "watershed":
            assert row["supervoxels"] == cells[row["case"]][tuple(row["step"])]
    assert {row["disturbance"] for row in result.rows} == {None, "noise 0.1"}
    assert {row["boundaries"] for row in result.rows} == {None, "map", "dark"}
    own = [row["case"] for row in result.rows if row["method"] == "dseeds boundaries"]
    assert set(own) == {"walls", "dark"}


def load_walls(folder):
    image, truth, boundaries = (str(folder / f"{name}.npy") for name in ("image", "truth", "map"))
    return load_case("walls", image, truth, boundaries=boundaries)[0]


def test_every_watershed_floods_the_same_map_from_the_same_seeds(folder):
    case, _ = load_case(
        "w", *(str(folder / f"{n}.npy") for n in ("image", "truth")), boundaries=str(folder / "map.npy")
    )
    case = case.whole_cells((8, 6, 6))
    assert (case.relief.min(), case.relief.max()) == (0, 255)
    assert np.array_equal(np.argwhere(case.markers)[[0, 1]], [[4, 3, 3], [4, 3, 9]])
    [method] = choose_methods(["watershed 10"])[0]
    seeds = np.zeros(case.shape, int)
    seeds[4::8, 3::6, 3::6] = np.arange(1, 33).reshape(2, 4, 4)
    assert np.array_equal(method.cut(case), watershed(case.relief, seeds, compactness=10))
    if find_spec("bioimage_cpp"):
        [other] = choose_methods(["bioimage-cpp watershed"])[0]
        labels = other.cut(case)
        assert np.array_equal(np.unique(labels), np.arange(1, 33))
        assert np.array_equal(labels[seeds > 0], seeds[seeds > 0])
    image = replace(case, boundaries="image").relief
    assert np.allclose(255 - image, replace(case, boundaries="dark").relief, atol=1e-3)


@pytest.mark.parametrize(("compactness", "boundary"), [(0.003, 0.03), (0.03, 0.1)])
def test_etps_lowers_its_energy_and_cuts_no_supervoxel(compactness, boundary):
    image, _ = phantom((20, 30, 24))
    lattice = Lattice((20, 30, 24), (5, 6, 8))
    scaled = (image / np.float32(3000)).clip(0, 1)
    labels = cut_etps(scaled, lattice, compactness=compactness, boundary=boundary)
    sizes = np.bincount(labels.reshape(-1), minlength=lattice.size + 1)[1:]
    assert sizes.min() >= 5 * 6 * 8 / 4
    assert all(ndimage.label(labels == name)[1] == 1 for name in range(1, lattice.size + 1))
    cells = np.kron(np.arange(1, lattice.size + 1).reshape(lattice.cells), np.ones((5, 6, 8), int))
    energies = [etps_energy(names, scaled, lattice.step, compactness, boundary) for names in (labels, cells)]
    assert energies[0] < 0.8 * energies[1]
    # Nothing pays where there is nothing to follow, and a boundary of two regions is found where one can pass.
    assert np.array_equal(cut_etps(np.zeros_like(scaled), lattice, compactness=0.1, boundary=0.1), cells)
    halves = np.zeros((8, 8, 16), np.float32)
    halves[:, :, 6:] = 1
    halves = cut_etps(halves, Lattice(halves.shape, (8, 8, 8)), compactness=0.003, boundary=0.03)
    assert np.array_equal(halves, np.where(np.arange(16) < 6, 1, 2) * np.ones((8, 8, 1), int))


def etps_energy(labels, image, step, compactness, boundary):
    """Return the energy that ETPS lowers: squared intensities and distances, and neighbours in other supervoxels."""
    numbers, positions = labels - 1, np.stack(np.indices(labels.shape)) / np.reshape(step, (3, 1, 1, 1))
    sizes = np.bincount(numbers.reshape(-1))
    energy = sum(
        weight * np.sum(ndimage.variance(values, numbers, np.arange(len(sizes))) * sizes)
        for weight, values in ((1, image), *((compactness, axis) for axis in positions))
    )
    padded = np.pad(labels, 1)
    shifts = [s for s in np.ndindex(3, 3, 3) if s != (1, 1, 1)]
    around = [padded[tuple(slice(a, a + n) for a, n in zip(s, labels.shape, strict=True))] for s in shifts]
    return energy + boundary / 26 * sum(np.sum((other != labels) & (other > 0)) for other in around) / 2


def test_noise_and_blur_are_those_that_are_stated(folder):
    case, _ = load_case(
        "body", str(folder / "image.npy"), str(folder / "truth.npy"), boundaries=str(folder / "map.npy")
    )
    blurred = Disturbance("blur", 1.5).apply(case)
    assert np.array_equal(blurred.image, ndimage.gaussian_filter(case.scaled, 1.5))
    flat = replace(case, image=np.full((32, 32, 32), 0.5, np.float32), windows=((0.0, 1.0),), boundaries=None)
    noise = Disturbance("noise", 0.1)
    assert np.std(noise.apply(flat).image) == pytest.approx(0.1, rel=0.02)
    assert np.array_equal(noise.apply(flat).image, noise.apply(flat).image)
    assert not np.array_equal(noise.apply(case).boundaries, case.relief / 255)


def test_every_peer_has_a_colour_of_its_own():
    assert set(COLOURS) == {method.peer for method in all_methods()}
    assert len(set(COLOURS.values())) == len(COLOURS)


def row(kind, case, step, dice, *, method="A", own=False, disturbance=None):
    figures = dict.fromkeys(CRITERIA, 0.5) | {"achievable_dice": dice}
    keys = {"case": case, "kind": kind, "step": [step] * 3, "boundaries": None, "disturbance": disturbance}
    return {**keys, "method": method, "peer": method, "setting": "", "is_own": own, **figures, "error": None}


def test_kinds_count_alike_however_many_volumes_they_have():
    rows = [row("CT", str(n), step, 0.4 + step / 100) for n in range(9) for step in (10, 20)]
    rows += [row("MR", "m", step, 0.7 + step / 50) for step in (10, 20)]
    assert mean_figure(rows, "achievable_dice") == pytest.approx((0.55 + 1.0) / 2)
    assert spread(rows, "achievable_dice") == pytest.approx((0.05 + 0.1) / 2)
    disturbed = [row("CT", "0", 10, 0.3, disturbance="noise 0.1"), row("MR", "m", 10, 0.8, disturbance="noise 0.1")]
    assert loss([*rows, *disturbed], "achievable_dice", "noise 0.1") == pytest.approx(0.775 - 0.55)


def test_wins_are_against_the_best_setting_and_failures_are_left_out_of_means():
    rows = [row("CT", c, 8, d, method="ours", own=True) for c, d in (("a", 0.6), ("b", 0.6))]
    rows += [row("CT", c, 8, d, method=m) for m, c, d in (("A", "a", 0.5), ("A", "b", 0.7), ("B", "a", 0.55))]
    assert count_wins(rows, "ours")["achievable_dice"] == (1, 2)
    table = tabulate_means([r for r in rows if r["method"] != "B"], "of a test", ["B"])
    assert "ours leads" in table.note
    assert "figures of some cases are missing: B." in table.note
    assert [line[0] for line in table.lines] == ["**ours**", "**A**"]


def test_a_missing_peer_is_left_out_and_named(folder, monkeypatch, capsys):
    monkeypatch.setattr(method_list, "find_spec", lambda module: find_spec(module) if module == "dseeds" else None)
    options = ["--noise", "none", "--blur", "none", "--repeats", "1"]
    assert main(["benchmark", str(folder / "cases.csv"), *options, "--methods", "dseeds,SLIC,SimpleITK SLIC 30"]) == 0
    captured = capsys.readouterr()
    assert "scikit-image is not installed; SLIC is left out." in captured.err
    assert "SimpleITK is not installed; SimpleITK SLIC is left out." in captured.err
    assert "dseeds" in captured.out
    with pytest.raises(ValueError, match="no method is left to compare: pip install scikit-image"):
        choose_methods(["SLIC"])
    with pytest.raises(ValueError, match="there is no method 'SEEDS'"):
        choose_methods(["SEEDS"])


def test_a_method_that_fails_is_reported_and_the_others_continue(folder, monkeypatch, capsys):
    def fail(case):
        raise RuntimeError("out of\nluck")

    known = [replace(method, cut=fail) if method.name == "SLIC 0.1" else method for method in all_methods()]
    monkeypatch.setattr(method_list, "all_methods", lambda: known)
    options = ["--methods", "dseeds,SLIC 0.1", "--noise", "none", "--blur", "none", "--repeats", "1"]
    assert main(["benchmark", str(folder / "cases.csv"), *options]) == 1
    captured = capsys.readouterr()
    assert "SLIC 0.1: failed: out of luck" in captured.err
    assert "4 of 8 results are missing" in captured.err
    assert "leads" not in captured.out


def test_the_command_writes_everything_and_replaces_only_its_own(folder, tmp_path, capsys):
    document, plots = tmp_path / "benchmark.json", tmp_path / "plots"
    options = ["--methods", "dseeds,watershed 1", "--blur", "none", "--repeats", "1", "--quiet"]
    command = ["benchmark", str(folder / "cases.csv"), *options, "--json", str(document), "--figures", str(plots)]
    assert main(command) == 0
    assert capsys.readouterr().out == ""
    stored = json.loads(document.read_text())
    assert len(stored["rows"]) == 2 * 2 * 4
    assert stored["packages"]["dseeds"] == dseeds.__version__
    page = (plots / "benchmark.md").read_text()
    assert "### Means over 1 kind of volumes, 1 case without boundary maps" in page
    assert "| **dseeds** |" in page
    for name in ("quality.svg", "robustness.svg"):
        assert (plots / name).read_bytes().startswith(b"<?xml")
    assert main(command) == 1
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    document.write_text("{}")
    assert main([*command, "--overwrite"]) == 1
    assert "was not written by dseeds" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "message"), [({"repeats": 0}, "repeats"), ({"noise": [0.0]}, "strengths")])
def test_invalid_numbers_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        run_benchmark(folder / "cases.csv", **options)
