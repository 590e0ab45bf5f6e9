"""Images and masks in, labels out: one interface for all formats of volumes.

No arithmetic on voxels happens here, except for pyramids: voxels are passed on as they are stored, box by box or slab
by slab. A new format starts in `dseeds.io.source`.

- `source`, `open`: the interface of a volume, and the table of formats; `formats` implements them.
- `image`, `mask`, `boundary_map`, `labels`: what a volume is read as.
- `affine`, `ome_metadata`: its position in space, and the metadata of OME-Zarr.
- `resolution_levels`: the stored levels of an image, to be read.
- `pyramid`, `pyramid_levels`, `pyramid_kernels`: coarser levels, to be written.
- `label_listing`: labels inside the OME-Zarr image that they belong to.
"""

from dseeds.io.boundary_map import open_boundary_map
from dseeds.io.formats.dicom import DicomSource
from dseeds.io.formats.file_source import FileSource
from dseeds.io.formats.nifti import NiftiSource, check_nifti_target, nifti_run, write_nifti, write_nifti_labels
from dseeds.io.formats.ome_zarr import ZarrSource, frame_of, multiscale_of
from dseeds.io.image import Image, open_image
from dseeds.io.mask import Mask, ResampledMask, open_mask
from dseeds.io.ome_metadata import Frame, Multiscale, Resolution, ome_image_attributes, ome_label_attributes
from dseeds.io.open import open_source
from dseeds.io.source import ArraySource, Source, Spacing

# The name of `ResampledMask` in dseeds 0.1.
Stretched = ResampledMask

__all__ = [
    "ArraySource",
    "DicomSource",
    "FileSource",
    "Frame",
    "Image",
    "Mask",
    "Multiscale",
    "NiftiSource",
    "ResampledMask",
    "Resolution",
    "Source",
    "Spacing",
    "Stretched",
    "ZarrSource",
    "check_nifti_target",
    "frame_of",
    "multiscale_of",
    "nifti_run",
    "ome_image_attributes",
    "ome_label_attributes",
    "open_boundary_map",
    "open_image",
    "open_mask",
    "open_source",
    "write_nifti",
    "write_nifti_labels",
]
