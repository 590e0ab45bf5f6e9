"""Small folders of features for tests: `table.parquet` and `edges.parquet`, in parts."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BINS = 64


def write_parts(folder, columns, parts=2):
    """Write columns in several part files; two-dimensional columns become lists of a fixed size."""
    folder.mkdir(parents=True)
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(values.reshape(-1), values.shape[1]) if values.ndim == 2 else values
        for name, values in columns.items()
    }
    table = pa.table(arrays)
    bounds = np.linspace(0, len(table), parts + 1).astype(int)
    for part in range(parts):
        rows = table.slice(bounds[part], bounds[part + 1] - bounds[part])
        pq.write_table(rows, folder / f"part-{part:05}.parquet")


def write_features(folder, labels, pairs, histograms, parts=2):
    """Write supervoxels with histograms (n, channels, 64) and edges between label positions; return the folder."""
    labels, pairs = np.asarray(labels, np.int64), np.asarray(pairs, np.int64).reshape(-1, 2)
    rng = np.random.default_rng(0)
    n, m, channels = len(labels), len(pairs), histograms.shape[1]
    endings = [""] if channels == 1 else [f"-{c}" for c in range(channels)]
    table = {"label": labels, "num_pixels": histograms.sum((1, 2)), "area": rng.uniform(1, 9, n)}
    table |= {f"centroid-{axis}": rng.uniform(0, 9, n) for axis in range(3)}
    table |= {f"bbox-{axis}": rng.integers(0, 9, n) for axis in range(6)}
    table |= {f"intensity_mean{ending}": rng.normal(size=n) for ending in endings}
    table |= {f"histogram{ending}": histograms[:, c].astype(np.int64) for c, ending in enumerate(endings)}
    edges = {"source": labels[pairs[:, 0]], "target": labels[pairs[:, 1]]}
    edges |= {"num_faces": rng.integers(1, 9, m), "area": rng.uniform(1, 9, m)}
    edges |= {f"histogram_distance{ending}": rng.uniform(0, 1, m) for ending in endings}
    write_parts(folder / "table.parquet", table, parts)
    write_parts(folder / "edges.parquet", edges, parts)
    return folder
