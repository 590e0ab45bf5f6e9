"""A read-only HTTP server on this machine for a viewer in a browser.

Any web page can send requests to a server on the reader's own machine. Files are therefore served under a random path,
which only the page that was given the link knows.
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
from typing_extensions import override

HOST = "127.0.0.1"
# How long browsers may cache the answer to a preflight request.
PREFLIGHT_SECONDS = "600"


class _ReadOnlyHandler(RequestHandler):
    """Lets pages of any origin read."""

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


class _NotFoundHandler(_ReadOnlyHandler):
    """Answers all other requests."""

    def get(self, *_: str) -> None:
        raise HTTPError(404)

    head = get


class _FileHandler(_ReadOnlyHandler, StaticFileHandler):
    """Serves files and byte ranges of them; it lists no folders and follows no links out of them."""

    @classmethod
    @override
    def get_absolute_path(cls, root: str, path: str) -> str:
        # Paths outside the root are refused below.
        return str(Path(root, path))

    @override
    def validate_absolute_path(self, root: str, absolute_path: str) -> str:
        try:
            path = Path(absolute_path).resolve()
            is_served = path.is_file() and path.is_relative_to(Path(root).resolve())
        except (OSError, ValueError):
            # Not a valid file name, or a loop of links.
            is_served = False
        if not is_served:
            raise HTTPError(404)
        return str(path)

    @override
    def compute_etag(self) -> str:
        # A hash of the content would mean reading a whole shard to answer for a range of it.
        status = Path(self.absolute_path or "").stat()
        return f'"{status.st_mtime_ns:x}-{status.st_size:x}"'

    @override
    def get_content_type(self) -> str:
        return "application/json" if str(self.absolute_path).endswith(".json") else "application/octet-stream"


def serve_files(paths: Mapping[str, Path], ready: Callable[[Mapping[str, str]], None], port: int = 0) -> None:
    """Serve files and folders to this machine until the process receives SIGINT or SIGTERM.

    The keys of `paths` are the last parts of the URLs. `ready` is called with the URLs when the server accepts
    requests. Port 0 is any free one; an OSError is raised if the port is taken.
    """
    asyncio.run(_serve(paths, ready, port))


async def _serve(paths: Mapping[str, Path], ready: Callable[[Mapping[str, str]], None], port: int) -> None:
    prefix = f"/{secrets.token_urlsafe(16)}/"
    routes: list[Any] = []
    for name, path in paths.items():
        inside = "/(.*)" if path.is_dir() else "()"
        routes.append((re.escape(prefix + name) + inside, _FileHandler, {"path": str(path)}))
    application = Application([*routes, (".*", _NotFoundHandler)], log_function=lambda _: None, autoreload=False)
    listener = create_server((HOST, port))
    listener.setblocking(False)
    server = HTTPServer(application)
    server.add_sockets([listener])
    actual_port = listener.getsockname()[1]
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stopped.set)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ready({name: f"http://{HOST}:{actual_port}{prefix}{name}" for name in paths})
        await stopped.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        server.stop()
        await server.close_all_connections()
