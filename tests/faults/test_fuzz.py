"""Damaged, hostile and absurd files: each is refused in one sentence, or read as nibabel and zarr read it."""

import copy
import gzip
import json
import math
import pickle
import re
import resource
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr
from distributed import LocalCluster
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from zarr.errors import ZarrUserWarning

from dseeds import cli
from dseeds.convert.describe import describe
from dseeds.io import open_source

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as Linux does it")

BATCHES, BATCH = 20, 100
SAMPLE = 40  # on the command line
PATIENCE = 10  # seconds, for what takes milliseconds
ROOM = 3 << 30  # bytes of address space that a batch may take: nibabel asks for up to 2 GiB, which it does not fill
GROWTH = 256 << 20  # bytes of memory
READABLE = 1 << 16  # voxels


class Hang(BaseException):
    """Not an Exception, so that nobody takes it for damage of the file."""


@contextmanager
def watched():
    """Stop what hangs, and let nothing allocate gigabytes."""

    def stop(*_):
        raise Hang

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
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < GROWTH


def assert_sentence(text):
    """One clear sentence that a user can act on, and no word of Python's own."""
    assert "\n" not in text
    assert 20 < len(text) < 400, text
    assert len(text.split()) >= 4
    assert not re.search(r"[a-z]\.\s+[A-Z]", text), text
    assert not re.search(r"object (is not|has no)|could not convert|cannot convert|literal for int", text), text
    assert not re.search(r"MemoryError|allocate", text), "it was tried before it was refused: " + text


def examine(path, volume, stored):
    """Open, describe and read; `stored` reads the same by other means. Tells whether there was something to read."""
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    with warnings.catch_warnings(record=True) as said:
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
            assert not [warning for warning in said if not of_somebody_else(warning)], [str(w.message) for w in said]
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
    """Tell what nibabel says about the extensions of a header, and zarr about its metadata."""
    return issubclass(warning.category, ZarrUserWarning) or (
        Path(warning.filename).name == "nifti1.py" and re.search("Extension size|overflow", str(warning.message))
    )


# NIfTI

EXTREMES = (0, 1, -1, 2, 5, 7, 8, 64, 127, -128, 255, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**62, -(2**63))
EXTREMES += (np.nan, np.inf, -np.inf, 1e-45, 1e-30, 0.5, 352.5, 353, 540, 1e10, 1e30, 3.4e38, -1e30, 1e308)
FIELDS = ("dim", "pixdim", "datatype", "bitpix", "sizeof_hdr", "vox_offset", "scl_slope", "scl_inter", "magic")
FIELDS += ("xyzt_units", "intent_code", "qform_code", "sform_code", "quatern_b", "srow_x", "cal_max", "slice_code")


def nifti_bytes(rng):
    """A sound file as (header with extension flag, voxels), of any kind, type and byte order."""
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


def by_nibabel(path, _source):
    voxels = nibabel.load(path).dataobj
    # The rest of a series may be cut off.
    return np.asanyarray(voxels[(..., *(0,) * (voxels.ndim - 3))] if voxels.ndim > 3 else voxels).T


@pytest.mark.parametrize("seed", range(BATCHES))
def test_mutated_nifti(tmp_path, seed):
    opened = 0
    with watched():
        for number in range(BATCH):
            folder = tmp_path / str(number)
            folder.mkdir()
            rng = np.random.default_rng([seed, number])
            path = mutant_nifti(rng, folder)
            opened += examine(path, rng.choice([None, 0, 0, 0]), by_nibabel)
    assert 0.1 * BATCH < opened < 0.9 * BATCH


# Zarr

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


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sound images as {path within: content}."""
    folder = tmp_path_factory.mktemp("sound")
    for zarr_format in (2, 3):
        sound_array(folder / f"array-{zarr_format}", zarr_format)
        sound_image(folder / f"image-{zarr_format}", zarr_format)
    sound_array(folder / "sharded", 3, shards=(6, 8, 8))
    return [files_below(path) for path in sorted(folder.iterdir())]


def places(node):
    """Every container in a document, with a key or number in it."""
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
        found = list(places(document))
        if not found:
            break
        holder, key = found[rng.integers(len(found))]
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


def by_zarr(path, source):
    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Group):
        ome = node.attrs.get("ome", node.attrs)
        node = node[str(ome["multiscales"][0]["datasets"][0]["path"])]
    assert all(axis in (0, slice(None)) for axis in source.index)
    return node[source.index]


@pytest.mark.parametrize("seed", range(BATCHES))
def test_mutated_zarr(tmp_path, sound, seed):
    opened = 0
    with watched():
        for number in range(BATCH):
            folder = tmp_path / str(number)
            folder.mkdir()
            rng = np.random.default_rng([seed, number])
            path = mutant_zarr(rng, folder, sound)
            opened += examine(path, rng.choice([None, 0, 0, 0]), by_zarr)
    assert 0.1 * BATCH < opened < 0.9 * BATCH


# The command line


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one worker process, which compiles once for all tests here."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        memory_limit="2GiB",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as cluster:
        yield cluster


def small(path):
    """Tell what is refused or soon done from what is large and takes its time."""
    try:
        return math.prod(open_source(path, volume=0).shape) <= READABLE
    except (ValueError, TypeError, OSError):
        return True


def assert_good_end(code, out, err, folder, before):
    """Either there is a result, or there is one sentence and nothing else."""
    if code == 0:
        assert err == ""
    else:
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert_sentence(err.strip())
        assert files_below(folder) == before


@pytest.mark.filterwarnings("ignore:Extension size", "ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("make", ["nifti", "zarr"])
def test_mutants_on_the_command_line(tmp_path, capsys, cluster, sound, make):
    codes = []
    for number in range(SAMPLE):
        rng = np.random.default_rng([BATCHES, number])
        folder = tmp_path / str(number)
        (folder / "image").mkdir(parents=True)
        path = mutant_nifti(rng, folder / "image") if make == "nifti" else mutant_zarr(rng, folder / "image", sound)
        before = files_below(folder)
        assert_good_end(cli.main(["info", str(path), "--volume", "0"]), *capsys.readouterr(), folder, before)
        if not small(path):
            continue
        target = folder / ("labels.nii.gz" if make == "nifti" and rng.random() < 0.5 else "labels.zarr")
        options = ["--step", "4", "--volume", "0", "--quiet", "--scheduler", cluster.scheduler_address]
        codes.append(cli.main(["segment", str(path), str(target), *options]))
        assert_good_end(codes[-1], *capsys.readouterr(), folder, before)
        assert target.exists() == (codes[-1] == 0)
    assert len(codes) >= SAMPLE * 3 // 4
    assert set(codes) == {0, 1}


# Some that deserve a name


def rewrite(path, **fields):
    raw = bytearray(path.read_bytes())
    header = np.frombuffer(raw[:348], Nifti1Header.template_dtype.newbyteorder("<")).copy()
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(header.tobytes() + raw[348:])


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_a_header_that_promises_the_earth(tmp_path, ending):
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((7, 6, 5), "u1"), np.eye(4)), path)
    rewrite(path, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    if ending == "nii.gz":
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    with (
        watched(),
        pytest.raises(ValueError, match=r"a\.nii.* is incomplete: its header promises 35181150962015 bytes"),
    ):
        open_source(path)


def test_gzip_that_shrinks_a_lot_is_no_lie(tmp_path):
    data = np.zeros((300, 300, 300), "u1")
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    raw = gzip.compress(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()), 9)
    (tmp_path / "a.nii.gz").write_bytes(raw)
    assert data.nbytes > 900 * len(raw)
    assert open_source(tmp_path / "a.nii.gz").shape == (300, 300, 300)


def test_the_first_volume_of_a_series_that_was_cut_short(tmp_path):
    path = tmp_path / "a.nii"
    data = np.random.default_rng(0).integers(0, 100, (7, 6, 5, 3), "u1")
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:-1])
    np.testing.assert_array_equal(open_source(path, volume=1).read((slice(None),) * 3), data[..., 1].T)
    with pytest.raises(ValueError, match="is incomplete"):
        open_source(path, volume=2)


def test_what_overflows_in_scaling_is_infinite(tmp_path):
    path = tmp_path / "a.nii"
    image = nibabel.Nifti1Image(np.full((7, 6, 5), 1e300), np.eye(4))
    nibabel.save(image, path)
    rewrite(path, scl_slope=1e30, scl_inter=-np.float32(1e30))
    assert np.isposinf(open_source(path).read((slice(None),) * 3)).all()


def change(path, name, edit):
    document = json.loads((path / name).read_text())
    edit(document)
    (path / name).write_text(json.dumps(document))


def grid(document):
    return document["chunk_grid"]["configuration"]


ODD = {
    "no codec of that name": ({}, lambda d: d["codecs"].append({"name": "nope"}), "Unknown codec: 'nope'"),
    "a storage transformer": ({}, lambda d: d.update(storage_transformers=[{"name": "nope"}]), "storage transformers"),
    "what must be understood": ({}, lambda d: d.update(nope={"must_understand": True}), "extra fields"),
    "chunks of nothing": ({}, lambda d: grid(d).update(chunk_shape=[0, 4, 4]), "chunk"),
    "huge chunks": ({}, lambda d: grid(d).update(chunk_shape=[2**20] * 3), "cannot be read from voxel"),
    "huge numbers of chunks": ({}, lambda d: d.update(shape=[2**50] * 3), None),
    "more voxels than zarr can number": ({}, lambda d: d.update(shape=[6, 2**60, 8]), "longer than 9007199254740992"),
    "huge shards": (
        {"shards": (6, 8, 8)},
        lambda d: (d.update(shape=[2**40] * 3), grid(d).update(chunk_shape=[3 * 2**38, 2**40, 2**40])),
        "cannot be read from voxel",
    ),
    "chunks that do not divide shards": (
        {"shards": (6, 8, 8)},
        lambda d: d["codecs"][0]["configuration"].update(chunk_shape=[5, 5, 5]),
        "divisible",
    ),
    "an object type": ({}, lambda d: d.update(data_type="object"), "No Zarr data type"),
    "a fill value that does not fit": ({}, lambda d: d.update(fill_value=2**40), "cannot be opened as Zarr"),
    "a separator that climbs": (
        {},
        lambda d: d["chunk_key_encoding"]["configuration"].update(separator="/../../"),
        "separator",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_zarr(tmp_path, name):
    options, edit, says = ODD[name]
    sound_array(tmp_path / "a.zarr", 3, **options)
    change(tmp_path / "a.zarr", "zarr.json", edit)
    with watched():
        if says is None:
            assert open_source(tmp_path / "a.zarr").read((slice(0, 2),) * 3).shape == (2, 2, 2)
            return
        with pytest.raises(ValueError, match=says) as caught:
            open_source(tmp_path / "a.zarr").read((slice(0, 2),) * 3)
    assert_sentence(str(caught.value))


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("dtype", ["<i2", "|u1", ">f4", "<f8", "|b1", "<c8", "|S4", "<U4", "|V4", "|O", [["a", "<i2"]]])
@pytest.mark.parametrize(
    "coded",
    [
        {"filters": [{"id": "pickle"}], "compressor": None},
        {"filters": None, "compressor": {"id": "pickle"}},
        {"filters": [{"id": "vlen-utf8"}, {"id": "pickle"}], "compressor": None},
        {"filters": [{"id": "shuffle"}], "compressor": {"id": "pickle"}},
    ],
)
@pytest.mark.parametrize("ome", [False, True])
def test_no_program_in_a_file_is_run(tmp_path, dtype, coded, ome):
    path, trap = tmp_path / "a.zarr", tmp_path / "sprung"
    payload = pickle.dumps(Payload(trap))
    pickle.loads(payload)
    assert trap.exists(), "the trap works"
    trap.unlink()
    if ome:
        group = zarr.open_group(path, mode="w", zarr_format=2)
        group.attrs["multiscales"] = [{"axes": list("zyx"), "datasets": [{"path": "0"}]}]
    array = path / "0" if ome else path
    sound_array(array, 2)
    change(array, ".zarray", lambda d: d.update(coded, dtype=dtype, fill_value=None))
    for chunk in array.glob("[0-9]*"):
        chunk.write_bytes(payload)
    with pytest.raises(ValueError, match=r"a\.zarr") as caught:
        describe(path)
    assert_sentence(str(caught.value))
    with pytest.raises(ValueError, match=r"a\.zarr"):
        open_source(path).read((slice(None),) * 3)
    assert not trap.exists()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "way", ["../other", "0/../../other", "{folder}/other", "/other", "\\other", "..\\other", "C:/a"]
)
def test_ome_paths_stay_in_their_group(tmp_path, zarr_format, way):
    sound_image(tmp_path / "a.zarr", zarr_format)
    sound_array(tmp_path / "other", zarr_format)
    name = ".zattrs" if zarr_format == 2 else "zarr.json"

    def lead(document):
        ome = document if zarr_format == 2 else document["attributes"]["ome"]
        ome["multiscales"][0]["datasets"][0]["path"] = way.format(folder=tmp_path)

    change(tmp_path / "a.zarr", name, lead)
    with pytest.raises(ValueError, match="which would lie outside of it") as caught:
        open_source(tmp_path / "a.zarr")
    assert_sentence(str(caught.value))


def test_links_are_followed(tmp_path):
    sound_image(tmp_path / "a.zarr", 3)
    (tmp_path / "a.zarr" / "0").rename(tmp_path / "elsewhere")
    (tmp_path / "a.zarr" / "0").symlink_to(tmp_path / "elsewhere")
    assert open_source(tmp_path / "a.zarr", volume=1).shape == (6, 7, 8)


@pytest.mark.parametrize("noted", [{"phantom": [1]}, {"phantom": None}, {"parameters": 3}, {"parameters": None}, {}])
def test_notes_that_somebody_changed(tmp_path, noted):
    sound_image(tmp_path / "a.zarr", 3)
    zarr.open_group(tmp_path / "a.zarr").attrs["dseeds"] = noted
    assert describe(tmp_path / "a.zarr", volume=0)["shape"] == [6, 7, 8]


def test_the_checksum_of_mgz_counts_too(tmp_path):
    path = tmp_path / "a.mgz"
    nibabel.save(nibabel.MGHImage(np.arange(210, dtype="i4").reshape(7, 6, 5), np.eye(4)), path)
    assert len(list(open_source(path).slabs(2))) == 3
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="CRC check failed"):
        list(open_source(path).slabs(2))
