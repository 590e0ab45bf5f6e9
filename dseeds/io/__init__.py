"""Images in, labels out: the formats that volumes come in, behind one interface.

No arithmetic happens here: what a file holds is handed on as it is, box by box or slab by slab, and labels go
back the way the image came.
"""

from dseeds.io.channels import Image, open_image
from dseeds.io.dicom import DicomSource
from dseeds.io.file_source import FileSource
from dseeds.io.mask import Mask, Stretched, open_mask
from dseeds.io.nifti import (
    NiftiSource,
    check_nifti_target,
    nifti_run,
    write_nifti,
    write_nifti_labels,
)
from dseeds.io.ome import Frame, Multiscale, Resolution, ome_image_attributes, ome_label_attributes
from dseeds.io.source import ArraySource, Source, Spacing, open_source
from dseeds.io.zarr_image import ZarrSource, frame_of, multiscale_of

__all__ = [
    "ArraySource",
    "DicomSource",
    "FileSource",
    "Frame",
    "Image",
    "Mask",
    "Multiscale",
    "NiftiSource",
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
    "open_image",
    "open_mask",
    "open_source",
    "write_nifti",
    "write_nifti_labels",
]
