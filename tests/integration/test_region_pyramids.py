"""Levels of pyramids that regions write with their labels: the same as those that are made of the finished labels."""

from tempfile import TemporaryDirectory

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dseeds import segment
from dseeds.core.geometry import Lattice
from dseeds.engine import label_tasks
from dseeds.io.pyramid import build_pyramid
from dseeds.io.pyramid_levels import choose_levels
from tests.support.runs import cuts, noise

METHODS = ("mode", "nearest")


@pytest.fixture(autouse=True)
def short_pyramids(monkeypatch):
    """Halve volumes of a few voxels."""
    monkeypatch.setattr("dseeds.io.pyramid_levels.TOP_EXTENT", 6)
    monkeypatch.setattr("dseeds.io.pyramid_levels.THIN_EXTENT", 3)


@st.composite
def runs(draw):
    # Not shorter than a step, which would be shortened and not be made up of whole chunks.
    shape = draw(st.tuples(*[st.integers(8, 48)] * 3))
    step = draw(st.sampled_from([2, 4, 4, 8, (3, 4, 6)]))
    region = draw(st.sampled_from([8, 16, (8, 16, 48)]) | cuts(Lattice(shape, (4, 4, 4))))
    options = {"step": step, "region": region, "pyramid": draw(st.sampled_from(METHODS))}
    if step in (4, 8):
        options["chunks"] = draw(st.sampled_from([2, 4]))
    options["levels"] = draw(st.sampled_from([0, 0, 1]))
    # Regions outside have no tasks.
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(0, draw(st.integers(1, n))) for n in shape)] = 1
    return noise(shape, dtype="uint16"), mask if draw(st.booleans()) else None, options


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(runs())
@example(
    (noise((40, 36, 45), dtype="uint16"), None, {"step": 4, "region": 16, "chunks": 4, "pyramid": "mode", "levels": 1})
)
def test_they_are_those_of_the_labels(client, run):
    image, mask, options = run
    with TemporaryDirectory() as folder:
        segment(image, f"{folder}/a.zarr", mask=mask, client=client, **options)
        for within in ("", "2x/")[: options["levels"] + 1]:
            levels = choose_levels(image.shape)
            labels = zarr.open_array(f"{folder}/a.zarr/{within}0", mode="r")[:]
            zarr.create_array(f"{folder}/b.zarr/{within}0", data=labels, chunks=(8, 8, 8))
            build_pyramid(f"{folder}/b.zarr", options["pyramid"], levels, within=within)
            for number in range(1, len(levels) + 1):
                found, expected = (zarr.open_array(f"{folder}/{name}.zarr/{within}{number}")[:] for name in "ab")
                np.testing.assert_array_equal(found, expected)


def test_how_many_regions_write(tmp_path, client, monkeypatch):
    """As many as regions consist of whole blocks and shards of; one that is damaged is written again."""
    written = []
    write = label_tasks.LabelGroup.write

    def noted(self, box, values):
        written.append(self.name)
        write(self, box, values)

    image = noise((32, 32, 64), dtype="uint16")
    monkeypatch.setattr(label_tasks.LabelGroup, "write", noted)
    with monkeypatch.context() as patch:
        patch.setattr("dseeds.engine.driver.build_pyramids", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            segment(image, tmp_path / "a.zarr", step=4, region=16, chunks=4, client=client)
    assert sorted(written) == sorted(["0", "1", "2"] * 16)
    (tmp_path / "a.zarr" / "2" / "c" / "1" / "1" / "3").write_bytes(b"torn")
    written.clear()
    segment(image, tmp_path / "a.zarr", client=client, resume=True)
    assert sorted(written) == ["0", "1", "2"]
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr" / "3").shape, (4, 4, 8))
