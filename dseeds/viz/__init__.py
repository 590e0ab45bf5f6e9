"""Pictures, viewers and reports of supervoxels.

`sections` reads planes of a volume, `drawing` draws them, `preview` combines both into one picture; `viewers` opens
napari or Neuroglancer, which `http_server` serves; `html_report` writes a page about a run.
"""
