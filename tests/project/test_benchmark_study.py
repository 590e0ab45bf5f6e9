"""The benchmark study: it reads pairs, measures every method, and reports failures."""

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest

import dseeds
from dseeds.benchmark.methods import Method
from dseeds.phantom import phantom
from tests.support.paths import ROOT

sys.path.append(str(ROOT / "notebooks"))

from benchmark_study import COLUMNS, main, methods, study
from curves import comparable, plot, summary, table
from pairs import Pair, parse_pair, read_case, read_decathlon, read_pairs

OURS = methods()[0]
SCRIPT = ROOT / "notebooks" / "benchmark_study.py"
SHAPE = 24, 32, 40


@pytest.fixture(autouse=True)
def _plots():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def write(path, *channels, spacing=(1, 1, 1)):
    """Write volumes (z, y, x) as NIfTI, several of them as 4D."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.stack([channel.T for channel in channels], axis=-1)
    nib.save(nib.Nifti1Image(values if len(channels) > 1 else values[..., 0], np.diag([*spacing[::-1], 1])), path)
    return str(path)


@pytest.fixture
def decathlon(tmp_path):
    """A task of the Medical Segmentation Decathlon with two small bodies."""
    folder = tmp_path / "Task99_Body"
    cases = []
    for number in range(2):
        image, truth = phantom(SHAPE, dtype="int16", seed=number)
        named = {"image": f"./imagesTr/body_{number:03}.nii.gz", "label": f"./labelsTr/body_{number:03}.nii.gz"}
        write(folder / named["image"], image)
        write(folder / named["label"], truth)
        cases.append(named)
    (folder / "dataset.json").write_text(
        json.dumps({"name": "Body", "training": cases, "test": ["./imagesTs/x.nii.gz"]})
    )
    return folder


@pytest.mark.parametrize(
    ("text", "image", "truth"),
    [
        ("ct.nii.gz:organs.nii.gz", "ct.nii.gz", "organs.nii.gz"),
        ("s3://lab/a.zarr:s3://lab/b.zarr", "s3://lab/a.zarr", "s3://lab/b.zarr"),
        (r"C:\a.nii:C:\b.nii", r"C:\a.nii", r"C:\b.nii"),
    ],
)
def test_a_pair_in_words(text, image, truth):
    assert parse_pair(text) == Pair(image, truth)


@pytest.mark.parametrize("text", ["ct.nii.gz", "a:b:c", "a:", ":b"])
def test_malformed_pairs_are_refused(text):
    with pytest.raises(ValueError, match="a pair is IMAGE:TRUTH"):
        parse_pair(text)


def test_files_of_pairs(tmp_path):
    table, objects = tmp_path / "pairs.csv", tmp_path / "pairs.json"
    table.write_text("image,truth,name,window\na.nii,b.nii,first,abdomen\ns3://lab/a.zarr,/data/b.nii,,\n")
    result = read_pairs(table)
    assert result == [
        Pair(str(tmp_path / "a.nii"), str(tmp_path / "b.nii"), "first", window="abdomen"),
        Pair("s3://lab/a.zarr", "/data/b.nii"),
    ]
    objects.write_text(
        json.dumps(
            [
                {"image": "a.nii", "truth": "b.nii", "name": "first", "window": "abdomen"},
                {"image": "s3://lab/a.zarr", "truth": "/data/b.nii"},
            ]
        )
    )
    assert read_pairs(objects) == result


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs.csv", "a.nii,b.nii\nc.nii,d.nii\n"),
        ("pairs.csv", "image,truth,mask\na,b,c\n"),
        ("pairs.json", '[{"image": "a"}]'),
        ("pairs.json", '["a"]'),
        ("pairs.json", "{"),
        ("pairs.csv", "image,truth\n"),
    ],
)
def test_files_without_pairs_are_refused(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValueError, match=r"that name image and truth in every row|has no rows"):
        read_pairs(file)


def test_a_task_of_the_decathlon(decathlon):
    first, second = read_decathlon(decathlon)
    assert (first.name, second.name, first.task) == ("body_000", "body_001", "Task99_Body")
    assert Path(second.truth).samefile(decathlon / "labelsTr/body_001.nii.gz")
    with pytest.raises(ValueError, match=r"has no dataset\.json"):
        read_decathlon(decathlon / "imagesTr")


def test_the_command_on_the_decathlon(decathlon, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--counts", "8,60", "--methods", "dseeds,SLIC 0.1,SimpleITK SLIC 30", "--repeats", "1"]
    main(["--decathlon", str(decathlon), "--out", str(out), *options])
    with (out / "benchmark_study.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    stored = json.loads((out / "benchmark_study.json").read_text())
    assert [list(row) for row in rows] == [list(COLUMNS)] * 2 * 2 * 3
    assert [row["case"] for row in rows] == [row["case"] for row in stored["rows"]]
    assert stored["packages"]["dseeds"] == dseeds.__version__
    for row in stored["rows"]:
        assert None not in [row[name] for name in COLUMNS if name != "error"]
        assert row["error"] is None
        assert row["mvoxel_per_second"] == pytest.approx(math.prod(SHAPE) / row["seconds"] / 1e6)
    assert (out / "benchmark_study.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "benchmark_study.svg").read_text()
    output = capsys.readouterr().out
    assert "| **dseeds** |" in output
    assert "| **SLIC 0.1** |" in output

    # The same figures, computed by hand.
    image, truth = phantom(SHAPE, dtype="int16", seed=1)
    labels = dseeds.supervoxels(image, n_segments=60)
    figures = dseeds.evaluate(labels, truth)
    [ours] = [r for r in stored["rows"] if (r["case"], r["method"], r["asked"]) == ("body_001", "dseeds", 60)]
    assert ours["made"] == figures["supervoxels"]
    for name in ("achievable_dice", "undersegmentation_error", "boundary_recall"):
        assert ours[name] == figures[name]

    with pytest.raises(SystemExit, match="not an empty folder"):
        main(["--decathlon", str(decathlon), "--out", str(out), *options])
    assert json.loads((out / "benchmark_study.json").read_text()) == stored


def test_a_limit_is_for_each_task(decathlon, capsys):
    main(["--decathlon", str(decathlon), "--limit", "1", "--counts", "8", "--methods", "dseeds", "--repeats", "1"])
    output = capsys.readouterr().out
    assert "body_000" in output
    assert "body_001" not in output


def test_failures_are_reported_and_the_rest_continues(decathlon, tmp_path, capsys):
    body = read_decathlon(decathlon)[0]
    small, damaged = write(tmp_path / "small.nii", np.ones((3, 4, 5), np.uint8)), tmp_path / "damaged.nii"
    damaged.write_bytes(b"no image")
    pairs = [f"{body.image}:{small}", f"{tmp_path / 'nowhere.nii'}:{small}", f"{damaged}:{small}"]
    with pytest.raises(SystemExit, match="3 of 5 results are missing"):
        main([*pairs, "--decathlon", str(decathlon), "--counts", "8", "--methods", "dseeds", "--repeats", "1"])
    output = capsys.readouterr().out
    failed = [line.split(" failed: ")[1] for line in output.splitlines() if "failed" in line]
    assert failed[0] == f"the image has shape {SHAPE} and the truth (3, 4, 5): they must lie on one grid."
    assert failed[1] == f"{tmp_path / 'nowhere.nii'} does not exist"
    assert failed[2].startswith(f"{damaged} cannot be opened as an image")
    assert "body_001" in output
    assert "| **dseeds** |" in output


def test_a_method_that_fails_is_left_out_of_means(decathlon):
    def cut(case):
        if case.count == 60:
            raise RuntimeError("out of\nluck")
        return OURS.cut(case)

    broken = Method("broken", "", cut)
    rows = list(study(read_decathlon(decathlon)[:1], counts=[8, 60], compared=[OURS, broken], repeats=1))
    assert [row["error"] for row in rows] == [None, None, None, "out of luck"]
    assert comparable(rows) == rows[:2]
    assert summary(rows)[0]["made"] == 8
    plot(rows)


def test_channels_are_seen_together(tmp_path):
    """Only the second channel shows the structure."""
    z, y, x = np.ogrid[:24, :24, :24]
    truth = ((z - 11) ** 2 + (y - 13) ** 2 + (x - 10) ** 2 < 64).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 5, (2, 24, 24, 24)).astype(np.float32)
    one = write(tmp_path / "one.nii.gz", noise[0])
    both = write(tmp_path / "both.nii.gz", noise[0], noise[1] + 100 * truth)
    structures = write(tmp_path / "truth.nii.gz", truth)
    compared = [m for m in methods() if m.name in ("dseeds", "SLIC 0.3", "SimpleITK SLIC 60")]
    single = replace(OURS, peer="one channel", takes_channels=False)
    rows = list(
        study([Pair(one, structures), Pair(both, structures)], counts=[27], compared=[*compared, single], repeats=1)
    )
    assert [row["error"] for row in rows] == [None] * (2 * len(compared) + 1)
    seen = {row["method"]: row["achievable_dice"] for row in rows if row["channels"] == 2}
    assert list(seen) == [method.name for method in compared]
    for row in rows:
        assert row["made"] > 13
        if row["channels"] == 1 and row["method"] in seen:
            assert row["achievable_dice"] + 0.1 < seen[row["method"]]
    assert seen["dseeds"] > 0.95


def test_reading(tmp_path):
    image, truth = phantom(SHAPE, dtype="float32")
    image[0, 0, 0] = np.nan
    organ = np.where(truth == truth.max(), truth, 0)
    spacing = (3, 1, 1)
    pair = Pair(
        write(tmp_path / "i.nii", image, spacing=spacing),
        write(tmp_path / "t.nii", organ.astype(np.float32), spacing=spacing),
    )
    case, spacing = read_case(pair)
    assert spacing == (3, 1, 1)
    assert case.windows == (pytest.approx(np.nanpercentile(image, (0.5, 99.5)), rel=0.01),)
    assert case.truth.dtype.kind == "i"
    assert np.array_equal(case.truth, organ)
    assert np.isfinite(case.image).all()
    assert case.image[0, 0, 0] == case.windows[0][0]
    assert (case.scaled.min(), case.scaled.max()) == (0, 1)

    cropped, _ = read_case(pair, window="0:1000", crop=2)
    assert cropped.windows == ((0, 1000),)
    assert np.count_nonzero(cropped.truth) == np.count_nonzero(organ)
    where = np.argwhere(organ)
    sides = np.minimum(where.max(axis=0) + 3, SHAPE) - np.maximum(where.min(axis=0) - 2, 0)
    assert cropped.shape == tuple(sides)
    assert cropped.count == 1


@pytest.mark.parametrize(
    ("image", "truth", "message"),
    [
        (np.arange(27.0), np.full(27, 0.5), "whole numbers"),
        (np.arange(27.0), np.zeros(27), "no structure"),
        (np.ones(27), np.ones(27), "constant"),
    ],
)
def test_uninformative_pairs_are_refused(tmp_path, image, truth, message):
    pair = Pair(*(write(tmp_path / f"{n}.nii", v.reshape(3, 3, 3)) for n, v in (("i", image), ("t", truth))))
    [row] = study([pair], counts=[1], compared=[OURS])
    assert message in row["error"]
    assert row["case"] == pair.image


def row(method, made, *, requested, case="a", task="t", rises=0.1, seconds=1.0):
    """Return a row whose figures depend on the number of supervoxels."""
    figure = rises * math.log(made)
    quality = dict.fromkeys(
        ("achievable_dice", "undersegmentation_error", "boundary_recall", "explained_variation"), figure
    )
    known = {
        "task": task,
        "case": case,
        "method": method,
        "peer": method[:1],
        "setting": method[1:],
        "asked": requested,
    }
    return {**known, "made": made, "voxels": 10**6, "seconds": seconds, "error": None, **quality}


def test_methods_are_compared_at_equal_numbers():
    """A method that makes half as many supervoxels as requested is not worse for that."""
    whole = [row("A", n, requested=n) for n in (250, 500, 1000)]
    half = [row("B", n // 2, requested=n, seconds=3) for n in (250, 500, 1000)]
    better = [row("B2", n // 2, requested=n, rises=0.11) for n in (250, 500, 1000)]
    rows = [each for three in zip(whole, half, better, strict=True) for each in three]
    first, second, third = summary(rows)
    assert second["achievable_dice"] == pytest.approx(first["achievable_dice"])
    assert third["achievable_dice"] == pytest.approx(1.1 * first["achievable_dice"])
    assert first["made"] == second["made"] == third["made"]
    assert 250 < first["made"] < 500
    assert (second["ratio"], third["ratio"]) == (pytest.approx(3), pytest.approx(1))
    assert [each["best"] for each in (first, second, third)] == [True, False, True]
    assert "| **B2** |" in table(rows)
    assert "| B |" in table(rows)


def test_tasks_count_alike_however_many_cases_they_have():
    many = [row("A", 100, requested=100, case=str(n), rises=0.1) for n in range(9)]
    [result] = summary([*many, row("A", 100, requested=100, task="other", rises=0.2)])
    assert result["achievable_dice"] == pytest.approx(0.15 * math.log(100))


def test_the_plot_has_a_row_for_each_task_and_their_mean():
    rows = [row(m, n, requested=n, task=t) for t in ("CT", "MR") for n in (100, 1000) for m in ("A", "B")]
    figure = plot(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")] == [
        "Mean over 2 tasks, 2 cases",
        "CT, 1 case",
        "MR, 1 case",
    ]
    assert [axes.get_ylabel() for axes in figure.axes[:3]] == [
        "Achievable Dice",
        "Undersegmentation error",
        "Time (s per million voxels)",
    ]
    assert all(axes.get_xlabel() == "Supervoxels" and axes.get_xscale() == "log" for axes in figure.axes[-3:])
    with pytest.raises(ValueError, match="nothing to draw"):
        plot([])


def test_two_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two pairs are called 'a'"):
        next(study([Pair("a", "b"), Pair("a", "c")]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "SEEDS"], "there is no method 'SEEDS'"),
        (["a:b", "a:c"], "two pairs are called 'a'"),
        (["--pairs", "nowhere.csv"], "nowhere.csv"),
        (["--decathlon", "nowhere"], "no dataset.json"),
    ],
)
def test_invalid_arguments_are_one_sentence(arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(["x:y", *arguments])
    assert message in caught.value.code


def test_missing_data_are_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("DSEEDS_DATA", str(tmp_path / "nowhere"))
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"the real volumes are not at {tmp_path / 'nowhere'}; name pairs, or set DSEEDS_DATA to their folder.\n"
    )
