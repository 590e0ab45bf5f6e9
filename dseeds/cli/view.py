"""`dseeds view`: supervoxels in a viewer."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from dseeds.cli import errors
from dseeds.cli.options import OUTPUT
from dseeds.cli.preview import Labels, NotedImage

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds view labels.zarr\n\n"
    "dseeds view labels.zarr embryo.ome.zarr --serve --port 8100\n\n"
    "dseeds view labels.nii.gz ct.nii.gz --serve --open"
)


def view(
    labels: Labels,
    image: NotedImage = None,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Serve to a browser even where napari is installed.", rich_help_panel=OUTPUT),
    ] = False,
    port: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=65535, help="Where to serve.", show_default="any free port", rich_help_panel=OUTPUT
        ),
    ] = 0,
    open_: Annotated[
        bool, typer.Option("--open", help="Open the link in this machine's browser.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Open napari with the supervoxels over their image, or print a link that shows them in a browser.

    Without napari, or with --serve, labels and image are served on this machine alone, 127.0.0.1, until Ctrl-C, under a
    name that cannot be guessed; the link opens neuroglancer, whose page reads them from there.
    """
    from dseeds.viz.viewers import add_to, has_napari, layers, showable
    from dseeds.viz.viewers import serve as lend

    shown, missing = layers(labels, image)
    if missing:
        errors.say(f"note: {missing}: labels are shown alone, so name their image.")
    if has_napari() and not serve:
        import napari

        add_to(napari.Viewer(title=f"dseeds: {labels}"), shown)
        napari.run()
        return

    def ready(link: str) -> None:
        print(link, flush=True)
        errors.say("serving until Ctrl-C")
        if open_:
            webbrowser.open(link)

    shown, left_out = showable(shown)
    for reason in left_out:
        errors.say(f"note: {reason}")
    lend(shown, ready, port)
