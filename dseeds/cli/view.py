"""`dseeds view`: open supervoxels in a viewer."""

from __future__ import annotations

import webbrowser
from typing import Annotated

from dseeds.cli.errors import print_error
from dseeds.cli.options import LabelsArgument, output_option
from dseeds.cli.preview import ImageArgument

EXAMPLES = (
    "dseeds view labels.zarr",
    "dseeds view labels.zarr embryo.ome.zarr --serve --port 8100",
    "dseeds view labels.nii.gz ct.nii.gz --serve --open",
)


def view_command(
    labels: LabelsArgument,
    image: ImageArgument = None,
    serve: Annotated[bool, output_option("--serve", help="Serve to a browser even if napari is installed.")] = False,
    port: Annotated[
        int, output_option(metavar="N", min=0, max=65535, help="Port to serve on.", show_default="any free port")
    ] = 0,
    open_browser: Annotated[bool, output_option("--open", help="Open the link in the default browser.")] = False,
) -> None:
    """Open supervoxels over their image in napari, or print a link that shows them in a browser.

    Without napari, or with --serve, labels and image are served until Ctrl-C, to this machine only (127.0.0.1) and
    under a random path. The link opens Neuroglancer, whose page reads them from there.
    """
    from dseeds.viz.viewers import add_to_napari, has_napari, open_layers, select_viewable, serve_layers

    layers, missing = open_layers(labels, image)
    if missing:
        print_error(f"note: {missing}: labels are shown without an image; name it to show both.")
    if has_napari() and not serve:
        import napari

        add_to_napari(napari.Viewer(title=f"dseeds: {labels}"), layers)
        napari.run()
        return

    def announce(link: str) -> None:
        print(link, flush=True)
        print_error("serving until Ctrl-C")
        if open_browser:
            webbrowser.open(link)

    viewable, reasons = select_viewable(layers)
    for reason in reasons:
        print_error(f"note: {reason}")
    serve_layers(viewable, announce, port)
