"""An object store on loopback that goes wrong as told: a proxy in front of one that does not."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

import boto3
from moto.server import ThreadedMotoServer

ERROR = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{}</Code><Message>{}</Message><RequestId>0</RequestId></Error>"""
CODES = {500: "InternalError", 503: "SlowDown"}
# They belong to one connection, and each side of a proxy has its own.
HOP = {"connection", "keep-alive", "transfer-encoding", "date", "server"}


@dataclass
class Faults:
    """What goes wrong. Requests are counted from 1 over all connections; `every=k` means the k-th, 2k-th, ...

    Attributes
    ----------
    error_every : int
        Answered with `status`, unseen by the store; 0 for never, as with all that follow.
    status : int
        500, or 503 for SlowDown.
    drop_every : int
        The connection is closed before the store has seen the request.
    lose_every : int
        The store does as it is bid, but the connection is closed before the answer.
    cut_every : int
        The connection is closed in the middle of the answer's body; without a body, before the answer.
    slow_every : int
        Answered after `delay` seconds.
    delay : float
        In seconds.
    expire_from : int, optional
        From this request on, every one is refused: the credentials have expired.
    expired_status : int
        403, or 400 as AWS has it.
    """

    error_every: int = 0
    status: int = 500
    drop_every: int = 0
    lose_every: int = 0
    cut_every: int = 0
    slow_every: int = 0
    delay: float = 0.0
    expire_from: int | None = None
    expired_status: int = 403


class Request(NamedTuple):
    """One request and what became of it; a status of 0 where the connection was closed."""

    method: str
    path: str
    range: str | None
    status: int


class Answer(NamedTuple):
    """What a store says."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class FaultyStore:
    """A proxy on loopback in front of an object store; a context manager.

    Parameters
    ----------
    target : str
        URL of the store.

    Attributes
    ----------
    url : str
        To be used in its place.
    faults : Faults
        May be changed or replaced at any time.
    requests : list of Request
        All so far, in the order of their ends.
    watch : callable, optional
        Is told of every request's method and path before anything becomes of it.
    """

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.faults = Faults()
        self.requests: list[Request] = []
        self.watch: Callable[[str, str], None] | None = None
        self.count = 0
        self._counting = threading.Lock()
        self.creating = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.store = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultyStore:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def die(self) -> None:
        """Close all connections and refuse new ones."""
        self.faults = Faults(drop_every=1)
        self.__exit__()

    def revive(self) -> None:
        """Be there again, at the same address, and well."""
        self.faults = Faults()
        self._server = _Server(("127.0.0.1", self._server.server_port), _Handler)
        self._server.store = self
        self.__enter__()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to know to use it as its S3."""
        return environment(self.url)

    def make_bucket(self) -> str:
        """Make a new bucket, past all faults, and give its URL."""
        name = f"bucket-{uuid.uuid4().hex}"
        s3(self.target.geturl()).create_bucket(Bucket=name)
        return f"s3://{name}"

    def next_number(self) -> int:
        """Count a request."""
        with self._counting:
            self.count += 1
            return self.count

    def expire_now(self, status: int = 403) -> None:
        """Refuse every request from the next on."""
        self.faults.expired_status = status
        self.faults.expire_from = self.count + 1


def environment(url: str) -> dict[str, str]:
    """Name the variables that make a process use the store at a URL as its S3."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def moto() -> Iterator[str]:
    """Run a whole S3 in this process and give its URL."""
    # It tells of every request.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def s3(url: str) -> boto3.client:
    """Give another, independent client of the store at a URL."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Its threads end with their connections, which clients keep open.
    block_on_close = False
    store: FaultyStore

    def handle_error(self, _request: object, _address: object) -> None:
        # A client that went away is its own business.
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _handle(self) -> None:
        store, faults = self.server.store, self.server.store.faults
        number = store.next_number()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if store.watch:
            store.watch(self.command, self.path)

        def now(every: int) -> bool:
            return every > 0 and number % every == 0

        if now(faults.slow_every):
            time.sleep(faults.delay)
        if faults.expire_from is not None and number >= faults.expire_from:
            self._refuse(faults.expired_status, "ExpiredToken", "The provided token has expired.")
        elif now(faults.error_every):
            self._refuse(faults.status, CODES[faults.status], "Please try again.")
        elif now(faults.drop_every):
            self._close()
        else:
            answer = self._forward(body)
            if now(faults.lose_every) or (now(faults.cut_every) and not answer.body):
                self._close()
            elif now(faults.cut_every):
                self._answer(answer, sent=len(answer.body) // 2)
                self._close()
            else:
                self._answer(answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _forward(self, body: bytes) -> Answer:
        target = self.server.store.target
        connection = http.client.HTTPConnection(target.hostname, target.port)
        # S3 takes one of several writers of a new object; moto looks first and then writes, so that two may win.
        alone = self.server.store.creating if "If-None-Match" in self.headers else nullcontext()
        with alone, closing(connection):
            connection.request(self.command, self.path, body or None, dict(self.headers.items()))
            answer = connection.getresponse()
            return Answer(answer.status, answer.getheaders(), answer.read())

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = ERROR.format(code, message).encode()
        self._answer(Answer(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))], body))

    def _answer(self, answer: Answer, sent: int | None = None) -> None:
        if sent is None:
            # Before the client knows: it may look at once.
            self._note(answer.status)
        self.send_response(answer.status)
        for name, value in answer.headers:
            if name.lower() not in HOP:
                self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in answer.headers):
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:sent])

    def _close(self) -> None:
        self._note(0)
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _note(self, status: int) -> None:
        self.server.store.requests.append(Request(self.command, self.path, self.headers.get("Range"), status))

    def log_message(self, *_: object) -> None:
        pass
