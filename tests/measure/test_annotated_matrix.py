"""Tables as AnnData: every number where scanpy, squidpy and SpatialData look for it, written and read back."""

import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import ndimage

import dseeds

anndata = pytest.importorskip("anndata", reason="ANNDATA IS MISSING: NO TABLE IS TESTED AS A MATRIX")

RNG = np.random.default_rng(3)
IMAGE = RNG.integers(0, 200, (12, 20, 16)).astype(np.uint8)
LABELS = dseeds.supervoxels(IMAGE, step=5).astype(np.int64) * 3
SPACING = (2.5, 0.5, 0.75)


def test_features_have_places_and_a_graph(tmp_path):
    features = dseeds.features(LABELS, IMAGE, spacing=SPACING)
    table = features.table.to_pandas()
    matrix = features.to_anndata("brain")
    assert matrix.obs.index.tolist() == [str(label) for label in table["label"]]
    np.testing.assert_array_equal(matrix.obs["instance_id"], np.unique(LABELS[LABELS > 0]))
    assert {"area", "intensity_mean", "surface_area"} <= set(matrix.var_names)
    assert not {"label", "num_pixels", "centroid-0", "bbox-5", "histogram"} & set(matrix.var_names)
    for name in matrix.var_names:
        np.testing.assert_array_equal(matrix[:, name].X.ravel(), table[name])
    np.testing.assert_array_equal(matrix.obsm["histogram"], np.stack(table["histogram"]))
    centres = np.array(ndimage.center_of_mass(LABELS > 0, LABELS, table["label"])) * SPACING
    np.testing.assert_allclose(matrix.obsm["spatial"], centres[:, ::-1])
    contacts, distances = (matrix.obsp[f"spatial_{name}"].toarray() for name in ("connectivities", "distances"))
    np.testing.assert_array_equal(contacts, dseeds.load_graph(features).to_scipy(None).toarray())
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    np.testing.assert_allclose(distances, apart * contacts)
    np.testing.assert_array_equal(
        matrix.obsp["contact_area"].toarray(), dseeds.load_graph(features).to_scipy().toarray()
    )
    matrix.write_h5ad(tmp_path / "features.h5ad")
    again = anndata.read_h5ad(tmp_path / "features.h5ad")
    np.testing.assert_array_equal(again.X, matrix.X)
    pd.testing.assert_frame_equal(again.obs, matrix.obs)
    assert dict(again.uns["spatialdata_attrs"]) == matrix.uns["spatialdata_attrs"]
    np.testing.assert_array_equal(dseeds.paint(LABELS, again, column="instance_id"), LABELS)
    with pytest.raises(ValueError, match="the AnnData matrix was made from other labels"):
        dseeds.paint(LABELS + (LABELS > 0), again, column="instance_id")


def test_every_table_is_a_matrix(tmp_path):
    classes = np.where(IMAGE > 150, 2, 1)
    two = np.stack([IMAGE, 255 - IMAGE])
    for measured, names in (
        (dseeds.features(LABELS), ["area", "surface_area", "compactness"]),
        (dseeds.features(LABELS, two, tmp_path / "features", channel_axis=0), None),
        (dseeds.vote(LABELS, classes), ["num_annotated", "num_majority", "purity", "coverage", "num_classes"]),
        (dseeds.textures(LABELS, IMAGE), ["num_pairs", "contrast", "homogeneity", "energy", "entropy"]),
        (dseeds.pool(LABELS, two, channel_axis=0), ["0", "1"]),
    ):
        matrix, table = measured.to_anndata(), measured.table.to_pandas()
        assert names is None or matrix.var_names.tolist() == names
        np.testing.assert_array_equal(matrix.obs["num_pixels"], table["num_pixels"])
        assert matrix.obs["region"].dtype == "category"
        assert set(matrix.obs["region"]) == {"labels"}
        assert "majority" not in table or matrix.obs["majority"].tolist() == table["majority"].tolist()
        # Clusters of any tool return to the voxels.
        matrix.obs["cluster"] = pd.Categorical([f"c{label % 2}" for label in table["label"]])
        painted = dseeds.paint(LABELS, matrix, column="cluster").compute()
        np.testing.assert_array_equal(painted, dseeds.paint(LABELS[::-1], matrix.obs, column="cluster")[::-1])
        with pytest.raises(ValueError, match="the AnnData matrix was made from other labels than the array"):
            dseeds.paint(LABELS[::-1], matrix, column="cluster")
        np.testing.assert_array_equal(painted, np.where(LABELS > 0, LABELS % 2 + 1, 0))


# SpatialData, and what it depends on, announce changes of their own.
@pytest.mark.filterwarnings("ignore")
def test_spatialdata_takes_labels_and_table(tmp_path):
    spatialdata = pytest.importorskip("spatialdata", reason="SPATIALDATA IS MISSING: ITS TABLES ARE NOT TESTED")
    from spatialdata.models import Labels3DModel, TableModel

    dseeds.segment(IMAGE, tmp_path / "labels.zarr", step=5, features=True)
    voxels = zarr.open_array(tmp_path / "labels.zarr" / "0", mode="r")[...]
    table = dseeds.Features(str(tmp_path / "labels.features")).to_anndata("supervoxels")
    TableModel().validate(table)
    element = Labels3DModel.parse(voxels, dims=("z", "y", "x"))
    data = spatialdata.SpatialData(labels={"supervoxels": element}, tables={"features": table})
    data.write(tmp_path / "spatial.zarr")
    again = spatialdata.read_zarr(tmp_path / "spatial.zarr")
    np.testing.assert_array_equal(np.asarray(again.labels["supervoxels"]), voxels)
    np.testing.assert_array_equal(again.tables["features"].X, table.X)
    elements, joined = spatialdata.match_element_to_table(again, "supervoxels", "features")
    assert list(elements) == ["supervoxels"]
    assert joined.obs["instance_id"].tolist() == table.obs["instance_id"].tolist()
    for broken in ("region", "instance_id"):
        with pytest.raises(ValueError, match=broken):
            TableModel().validate(anndata.AnnData(table.X, table.obs.drop(columns=broken), uns=dict(table.uns)))
