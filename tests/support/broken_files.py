"""Files that are no images, or damaged ones."""

import gzip

from tests.support.commands import image, save


def broken_nifti(path):
    """Write a file that is truncated in the middle of the voxels."""
    save(path, image())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bad_checksum(path):
    save(path, image())
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


def broken_zarr(path):
    save(path, image())
    chunk = next(file for file in (path / "c").rglob("*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:30])


SOURCES = {
    "missing.zarr": lambda path: None,
    "text.nii.gz": lambda path: path.write_text("hello"),
    "empty.nii.gz": lambda path: path.write_bytes(gzip.compress(b"")),
    "folder.zarr": lambda path: path.mkdir(),
    "five.zarr": lambda path: save(path, image((2, 3, 8, 8, 8))),
    "four.zarr": lambda path: save(path, image((2, 8, 8, 8))),
    "hollow.zarr": lambda path: save(path, image((0, 8, 8))),
    "truth.zarr": lambda path: save(path, image((8, 8, 8), bool)),
    "phase.zarr": lambda path: save(path, image((8, 8, 8), complex)),
}
