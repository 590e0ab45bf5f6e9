"""Speed and ratio of compressors for scratch arrays: ``python tests/benchmarks/compression.py [SOURCE]``.

A run's own arrays, written and read with each codec as a task does: one region, whole shards, with checksums.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

import dseeds
from dseeds.engine.run import SUFFIX
from dseeds.phantom import write_phantom

CODECS = {
    "none": None,
    "lz4": BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle"),
    "lz4, shuffled": BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"),
    "lz4, bits shuffled": BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle"),
    "zstd 1 in blosc": BloscCodec(cname="zstd", clevel=1, shuffle="noshuffle"),
    "zstd 1 in blosc, shuffled": BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
    "zstd 3 in blosc, shuffled": BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
    "zstd 1": ZstdCodec(level=1),
    "zstd 3": ZstdCodec(level=3),
}
ARRAYS = ("bins-0", "histograms-1", "codes-08", "codes-12", "statistics-12", "labels")
REPEATS = 3


def measure(array: zarr.Array, codec: BloscCodec | ZstdCodec | None, folder: Path) -> tuple[float, float, float]:
    """Write and read a region; return GB/s of both and the compression ratio."""
    shard = array.shards or array.chunks
    values = array[tuple(slice(0, n) for n in shard)]
    compressors = [Crc32cCodec()] if codec is None else [codec, Crc32cCodec()]
    writes, reads = [], []
    for repeat in range(REPEATS):
        path = folder / f"{time.perf_counter_ns()}-{repeat}"
        copy = zarr.create_array(
            path,
            shape=values.shape,
            dtype=array.dtype,
            chunks=array.chunks,
            shards=shard if shard != array.chunks else None,
            compressors=compressors,
        )
        start = time.perf_counter()
        copy[:] = values
        middle = time.perf_counter()
        copy[:]
        writes.append(middle - start)
        reads.append(time.perf_counter() - middle)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return values.nbytes / min(writes) / 1e9, values.nbytes / min(reads) / 1e9, values.nbytes / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", help="a Zarr image, by default a phantom")
    parser.add_argument("--step", type=int, default=16)
    arguments = parser.parse_args()
    zarr.config.set({"async.concurrency": 4, "threading.max_workers": 2})
    with tempfile.TemporaryDirectory() as temporary:
        folder, source = Path(temporary), arguments.source
        if source is None:
            source = folder / "body.zarr"
            write_phantom(source, shape=(256, 256, 256))
        dseeds.segment(source, folder / "labels.zarr", step=arguments.step, workers=1, keep_scratch=True)
        scratch = next((folder / f"labels.zarr{SUFFIX}").glob("*/scratch"))
        print(f"{'array':<15}{'codec':<28}{'write GB/s':>11}{'read GB/s':>11}{'ratio':>9}")
        for array in ARRAYS:
            path = folder / "labels.zarr" / "0" if array == "labels" else scratch / array
            if not path.exists():
                continue
            for name, codec in CODECS.items():
                write, read, ratio = measure(zarr.open_array(path, mode="r"), codec, folder)
                print(f"{array:<15}{name:<28}{write:>11.2f}{read:>11.2f}{ratio:>9.1f}")


if __name__ == "__main__":
    main()
