"""Mutated image files, and checks that each is refused in one sentence or read as nibabel and zarr read it."""

import copy
import gzip
import json
import math
import re
import resource
import signal
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zarr
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from zarr.errors import ZarrUserWarning

from dseeds.convert.describe import describe
from dseeds.io import open_source

BATCHES, BATCH = 10, 100  # a thousand of each format
PATIENCE = 60  # seconds for what takes milliseconds
ROOM = 3 << 30  # bytes of address space for a batch: nibabel reserves up to 2 GiB, which it does not fill
GROWTH = 256 << 20  # bytes of memory
READABLE = 1 << 16  # voxels


class Hang(BaseException):
    """A BaseException, so that it is not taken for damage of the file."""


@contextmanager
def watched():
    """Stop reads that hang, and let nothing allocate gigabytes."""

    def stop(*_):
        raise Hang

    # The timer is that of the limit of the whole test.
    timer, began = signal.setitimer(signal.ITIMER_REAL, 0), time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, hard))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if timer[0]:
            signal.setitimer(signal.ITIMER_REAL, max(0.01, timer[0] - (time.monotonic() - began)))
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < GROWTH


def assert_sentence(text):
    """Check that a message is one clear sentence, without Python's own words."""
    assert "\n" not in text
    assert 20 < len(text) < 400, text
    assert len(text.split()) >= 4
    assert not re.search(r"[a-z]\.\s+[A-Z]", text), text
    assert not re.search(r"object (is not|has no)|could not convert|cannot convert|literal for int", text), text
    assert_without_internals(text)
    assert not re.search(r"MemoryError|allocate", text), "it was tried before it was refused: " + text


def examine(path, volume, stored):
    """Open, describe and read a file, and compare with `stored`, another reader; return whether it was readable."""
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            source = open_source(path, volume=volume)
            description = describe(path, volume=volume)
            json.dumps([description, source.identity])
            box = tuple(slice(max(0, n - 3), n) for n in source.shape)
            corner = source.read(box)
            slabs = list(source.slabs(4)) if math.prod(source.shape) <= READABLE else None
        except (ValueError, TypeError, OSError) as error:
            assert_sentence(str(error))
            return False
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert time.monotonic() - began < PATIENCE
            assert not [warning for warning in caught if not of_somebody_else(warning)], [
                str(w.message) for w in caught
            ]
    assert len(source.shape) == 3
    assert min(source.shape) > 0
    assert source.dtype.kind in "iuf"
    assert source.spacing is None or all(math.isfinite(size) and size > 0 for size in source.spacing)
    assert (description["shape"], description["dtype"]) == (list(source.shape), str(source.dtype))
    assert (corner.dtype, corner.shape) == (source.dtype, tuple(side.stop - side.start for side in box))
    if slabs is not None:
        with warnings.catch_warnings(action="ignore"):
            expected = stored(path, source)
        read = np.concatenate([slab for _, slab in slabs])
        assert {slab.dtype for _, slab in slabs} == {source.dtype} == {expected.dtype}
        np.testing.assert_array_equal(read, expected)
        np.testing.assert_array_equal(corner, expected[box])
    return True


def of_somebody_else(warning):
    """Return whether a warning is nibabel's about header extensions, or zarr's about metadata."""
    return issubclass(warning.category, ZarrUserWarning) or (
        Path(warning.filename).name == "nifti1.py" and re.search("Extension size|overflow", str(warning.message))
    )


EXTREMES = (0, 1, -1, 2, 5, 7, 8, 64, 127, -128, 255, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**62, -(2**63))
EXTREMES += (np.nan, np.inf, -np.inf, 1e-45, 1e-30, 0.5, 352.5, 353, 540, 1e10, 1e30, 3.4e38, -1e30, 1e308)
FIELDS = ("dim", "pixdim", "datatype", "bitpix", "sizeof_hdr", "vox_offset", "scl_slope", "scl_inter", "magic")
FIELDS += ("xyzt_units", "intent_code", "qform_code", "sform_code", "quatern_b", "srow_x", "cal_max", "slice_code")


def nifti_bytes(rng):
    """Return a valid file as (header, voxels), of any NIfTI version, dtype and byte order."""
    kind = rng.choice([Nifti1Header, Nifti2Header])
    order = str(rng.choice(["<", ">"]))
    header = kind(endianness=order)
    header.set_data_dtype(str(rng.choice(["u1", "i1", "i2", "u2", "i4", "f4", "f8"])))
    shape = (7, 6, 5) if rng.random() < 0.8 else (7, 6, 5, 2)
    header.set_data_shape(shape)
    header.set_slope_inter(*((1, 0) if rng.random() < 0.5 else (2, -10)))
    header.set_data_offset(352 if kind is Nifti1Header else 544)
    voxels = rng.integers(0, 100, shape).astype(header.get_data_dtype().newbyteorder(order))
    return np.frombuffer(header.binaryblock, kind.template_dtype.newbyteorder(order)).copy(), voxels.tobytes("F")


def set_extreme(rng, header):
    field = header[str(rng.choice(FIELDS))]
    flat = field.reshape(-1)
    places = slice(None) if rng.random() < 0.1 else rng.integers(flat.size)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        if flat.dtype.kind == "S":
            flat[places] = bytes(rng.integers(0, 256, flat.dtype.itemsize, "u1"))
        else:
            flat[places] = np.array(EXTREMES[rng.integers(len(EXTREMES))]).astype(flat.dtype)


def flip(rng, raw, end):
    for place in rng.integers(0, min(end, len(raw)), rng.integers(1, 9)):
        raw[place] = rng.integers(256)


def mutant_nifti(rng, folder):
    header, voxels = nifti_bytes(rng)
    two = header.dtype.itemsize == 540
    pair = rng.random() < 0.25
    if pair:
        header["magic"], header["vox_offset"] = (b"ni2\0\r\n\x1a\n" if two else b"ni1"), 0
    damage = rng.choice(["field", "field", "fields", "bytes", "swap", "extension", "short", "gzip"])
    if damage.startswith("field"):
        for _ in range(1 if damage == "field" else 4):
            set_extreme(rng, header)
    if damage == "swap":
        field = str(rng.choice(["all", *FIELDS[:8]]))
        if field == "all":
            header = header.byteswap()
        else:
            header[field] = header[field].byteswap()
    flag = bytes(4)
    if damage == "extension":
        size, code = (np.array(EXTREMES[:18])[rng.integers(18, size=2)]).astype(header["datatype"].dtype.str[0] + "i4")
        flag = b"\1" + bytes(3) + size.tobytes() + code.tobytes() + bytes(rng.integers(0, 40))
        if rng.random() < 0.5 and not pair:
            header["vox_offset"] += len(flag) - 4
    raw = bytearray(header.tobytes() + flag)
    if damage == "bytes":
        flip(rng, raw, len(raw))
    if pair:
        whole, path = raw, folder / f"a.{rng.choice(['hdr', 'img'])}"
        path.with_suffix(".img").write_bytes(voxels)
    else:
        whole, path = raw + voxels, folder / f"a.{rng.choice(['nii', 'nii.gz'])}"
    if damage == "short":
        del whole[rng.integers(len(whole)) :]
    if path.suffix == ".gz":
        whole = bytearray(gzip.compress(bytes(whole), 1, mtime=0))
        if damage == "gzip":
            how = rng.integers(4)
            if how == 0:
                flip(rng, whole, len(whole))
            elif how == 1:
                del whole[rng.integers(len(whole)) :]
            elif how == 2:
                whole += bytes(rng.integers(0, 256, 30, "u1"))
            else:
                flip(rng, whole, 12)
    (path.with_suffix(".hdr") if pair else path).write_bytes(whole)
    return path


JUNK = (None, True, -1, 0, 1, 2, 3, 2**31, 2**60, 2**62, 2**64, 10**40, -(2**63), 0.5, 1e308, "", "NaN", "Infinity")
JUNK += ("../..", "/etc/passwd", "..", "x" * 5000, "\0", "a\nb", "\ud7ff", "|O", "<f4", "float32", "bool", "group")
JUNK += ([], {}, [[]], [0], [1], [2**62] * 3, [2**60, 7, 8], [-1, 7, 8], [0, 4, 4], [5, 5, 5], [1.5] * 3, ["a"] * 3)
JUNK += ({"name": "nope"}, {"id": "nope"}, {"id": "pickle"}, [{"id": "pickle"}], {"name": "bytes"}, [None] * 3)
JUNK += ([{"name": "bytes"}, {"name": "nope", "configuration": {}}], [{"name": "gzip"}], [1] * 100)
for _ in range(200):
    JUNK[-1].append([JUNK[-1].pop()])


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sound_array(path, zarr_format, shape=(6, 7, 8), **options):
    data = np.random.default_rng(0).integers(0, 1000, shape).astype("int16")
    options = {"chunks": (*(1,) * (len(shape) - 3), 3, 4, 4), **options}
    array = zarr.create_array(path, shape=shape, dtype="int16", zarr_format=zarr_format, fill_value=7, **options)
    array[...] = data
    return array


def sound_image(path, zarr_format):
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    sound_array(group.store_path / "0", zarr_format, (2, 6, 7, 8))
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "tzyx"]
    scale = [{"type": "scale", "scale": [1.0, 2.0, 0.5, 0.5]}]
    image = {"name": "a", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    noted = {"supervoxels": 4, "parameters": {"step": [1, 2, 3], "asked": {"step": 3}}, "source": {}}
    if zarr_format == 2:
        group.attrs.update({"multiscales": [{"version": "0.4", **image}], "dseeds": noted})
    else:
        group.attrs.update({"ome": {"version": "0.5", "multiscales": [image]}, "dseeds": noted})


def places(node):
    """Yield every container in a document with each of its keys or indices."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield node, key
        yield from places(value)


def mutate(rng, text):
    if rng.random() < 0.1:
        raw = bytearray(text)
        if rng.random() < 0.5:
            flip(rng, raw, len(raw))
        else:
            del raw[rng.integers(len(raw)) :]
        return bytes(raw)
    document = json.loads(text)
    for _ in range(1 if rng.random() < 0.8 else 3):
        result = list(places(document))
        if not result:
            break
        holder, key = result[rng.integers(len(result))]
        junk = copy.deepcopy(JUNK[rng.integers(len(JUNK))])
        if rng.random() < 0.2:
            del holder[key]
        elif rng.random() < 0.1:
            holder[key] = [holder[key], junk]
        elif isinstance(holder[key], int) and rng.random() < 0.5:
            holder[key] = int(rng.choice([0, -1, 1, 2, 5, 2**31, 2**60, 2**62]))
        elif isinstance(holder, dict) and rng.random() < 0.1:
            holder["storage_transformers"] = junk
        else:
            holder[key] = junk
    return json.dumps(document).encode()


def mutant_zarr(rng, folder, sound):
    files = dict(sound[rng.integers(len(sound))])
    name = str(rng.choice(sorted(name for name in files if Path(name).name in METADATA)))
    files[name] = mutate(rng, files[name])
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


def change(path, name, edit):
    document = json.loads((path / name).read_text())
    edit(document)
    (path / name).write_text(json.dumps(document))


# NRRD, HDF5 and TIFF: the header of a valid file with some bytes, numbers or words changed.

HEADER_BYTES = {"nrrd": 420, "h5": 2600, "tif": 400}
WORDS = [b"0", b"-1", b"3", b"99999999999", b"nan", b"none", b"(1,0)", b"(0,0,0)", b"list", b"vector", b"domain", b""]
WORDS += [b"float", b"uchar", b"gzip", b"raw", b"big", b'"um"', b"1e308", b"\xff", b":", b"x" * 300]


def sound_header_files(folder):
    """Write valid files, and return their contents by ending."""
    import h5py
    import SimpleITK
    import tifffile

    voxels = np.random.default_rng(0).integers(0, 99, (5, 6, 7)).astype("i2")
    contents = {ending: [] for ending in HEADER_BYTES}
    for compressed in (False, True):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), folder / "a.nrrd", compressed)
        contents["nrrd"].append((folder / "a.nrrd").read_bytes())
        tifffile.imwrite(folder / "a.tif", voxels, photometric="minisblack", compression="zlib" if compressed else None)
        contents["tif"].append((folder / "a.tif").read_bytes())
        with h5py.File(folder / "a.h5", "w") as file:
            made = file.create_dataset("a", data=voxels, chunks=(2, 3, 4) if compressed else None)
            made.attrs["element_size_um"] = (3.0, 1, 1)
            # Of fixed length: libhdf5 itself crashes on texts of any length whose address is damaged.
            made.attrs["axistags"] = np.bytes_(json.dumps({"axes": [{"key": key} for key in "zyx"]}))
        contents["h5"].append((folder / "a.h5").read_bytes())
    return contents


def mutant_header(rng, folder, ending, contents):
    """Write a file whose header is damaged in one to four places."""
    content = bytearray(contents[ending][rng.integers(len(contents[ending]))])
    if ending == "nrrd" and rng.random() < 0.7:
        lines = bytes(content).split(b"\n")
        for _ in range(rng.integers(1, 4)):
            number = rng.integers(1, 12)
            words = lines[number].split(b" ")
            words[rng.integers(len(words))] = WORDS[rng.integers(len(WORDS))]
            lines[number] = b" ".join(words)
        content = bytearray(b"\n".join(lines))
    elif rng.random() < 0.1:
        del content[rng.integers(len(content)) :]
    else:
        flip(rng, content, HEADER_BYTES[ending])
    path = folder / f"a.{ending}"
    path.write_bytes(content)
    return path


def assert_without_internals(text, name=""):
    """Check that a message is one line that names the file, and nothing that only a library's authors understand."""
    assert "\n" not in text
    assert name in text
    assert not re.search(r"0x[0-9a-f]{4}|\.(cxx|hxx|cpp|py)\b|SimpleITK-build|object (is not|has no|at)", text), text
    assert not re.search(r"numcodecs|imagecodecs\.|tifffile|h5py|pydicom|nibabel|Traceback|::|/tmp/tmp", text), text


def examine_header(path):
    """Open and read a file with a damaged header; return whether it was readable. Other errors are not caught."""
    with warnings.catch_warnings(action="ignore"):
        try:
            source = open_source(path)
            json.dumps([describe(path), source.identity])
            if math.prod(source.shape) <= READABLE:
                for _, slab in source.slabs(2):
                    assert slab.shape[1:] == source.shape[1:]
        except (ValueError, OSError) as error:
            assert_without_internals(str(error), path.name)
            return False
    assert source.spacing is None or all(math.isfinite(size) and size > 0 for size in source.spacing)
    return True
