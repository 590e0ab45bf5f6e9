"""Folders and files lent over HTTP to a viewer in a browser on this machine, and to nobody else.

Browsers let any page ask a server on their own machine. What is lent lies under a name that cannot be guessed, so that
only a page that was told of it finds it.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from socket import create_server
from types import FrameType
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.web import Application, HTTPError, RequestHandler, StaticFileHandler

HOST = "127.0.0.1"
# Browsers may keep for so many seconds that they are allowed to ask.
PREFLIGHT_SECONDS = "600"


class _Open(RequestHandler):
    """Lets a page of any origin read."""

    SUPPORTED_METHODS = ("GET", "HEAD", "OPTIONS")

    def set_default_headers(self) -> None:
        self.set_header("Access-Control-Allow-Origin", "*")
        self.set_header("Access-Control-Allow-Methods", ", ".join(self.SUPPORTED_METHODS))
        self.set_header("Access-Control-Allow-Headers", "Range, If-None-Match, Cache-Control")
        self.set_header("Access-Control-Expose-Headers", "*")
        self.set_header("Access-Control-Allow-Private-Network", "true")
        self.set_header("Access-Control-Max-Age", PREFLIGHT_SECONDS)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.clear_header("Server")

    def options(self, *_: str) -> None:
        self.set_status(204)

    def write_error(self, status_code: int, **_: Any) -> None:
        self.set_header("Content-Type", "text/plain")
        self.finish(f"{status_code}\n")


class _Nothing(_Open):
    """All that is not lent."""

    def get(self, *_: str) -> None:
        raise HTTPError(404)

    head = get


class _Lent(_Open, StaticFileHandler):
    """What is lent, to the last byte range; folders are not listed, and links do not lead out of them."""

    @classmethod
    def get_absolute_path(cls, root: str, path: str) -> str:
        """Give where a file would lie; what lies outside is refused below."""
        return str(Path(root, path))

    def validate_absolute_path(self, root: str, absolute_path: str) -> str:
        """Give the file to send."""
        try:
            path = Path(absolute_path).resolve()
            found = path.is_file() and path.is_relative_to(Path(root).resolve())
        except (OSError, ValueError):
            # No name of a file, or one that leads in circles.
            found = False
        if not found:
            raise HTTPError(404)
        return str(path)

    def compute_etag(self) -> str:
        """Tell states of a file apart: to read all of a shard for that would take longer than to send what is asked."""
        status = Path(self.absolute_path or "").stat()
        return f'"{status.st_mtime_ns:x}-{status.st_size:x}"'

    def get_content_type(self) -> str:
        """Zarr's metadata are JSON, all else is bytes."""
        return "application/json" if str(self.absolute_path).endswith(".json") else "application/octet-stream"


def serve_files(lent: Mapping[str, Path], ready: Callable[[Mapping[str, str]], None], port: int = 0) -> None:
    """Serve files and folders on this machine's own interface until the process is told to stop.

    Parameters
    ----------
    lent : dict of str to Path
        What is lent, and what it is called at the end of its URL.
    ready : callable
        Is told the URL of each when the server answers.
    port : int, default 0
        Where; any free port by default.

    Raises
    ------
    OSError
        If the port is taken.
    """
    asyncio.run(_lend(lent, ready, port))


async def _lend(lent: Mapping[str, Path], ready: Callable[[Mapping[str, str]], None], port: int) -> None:
    prefix = f"/{secrets.token_urlsafe(16)}/"
    routes: list[Any] = []
    for name, path in lent.items():
        inside = "/(.*)" if path.is_dir() else "()"
        routes.append((re.escape(prefix + name) + inside, _Lent, {"path": str(path)}))
    application = Application([*routes, (".*", _Nothing)], log_function=lambda _: None, autoreload=False)
    listening = create_server((HOST, port))
    listening.setblocking(False)
    server = HTTPServer(application)
    server.add_sockets([listening])
    found = listening.getsockname()[1]
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stopped.set)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ready({name: f"http://{HOST}:{found}{prefix}{name}" for name in lent})
        await stopped.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        server.stop()
        await server.close_all_connections()
