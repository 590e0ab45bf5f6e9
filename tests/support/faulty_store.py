"""An object store on loopback that fails on request: a proxy in front of a sound one."""

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
# Headers of one connection; each side of a proxy has its own.
HOP = {"connection", "keep-alive", "transfer-encoding", "date", "server"}


@dataclass
class Faults:
    """Faults by request number, counted from 1 over all connections; `every=k` means the k-th, 2k-th, ...

    Attributes
    ----------
    error_every : int
        Answered with `status` without reaching the store; 0 for never, as in all others.
    status : int
        500, or 503 for SlowDown.
    drop_every : int
        The connection is closed before the store has seen the request.
    lose_every : int
        The store handles the request, but the connection is closed before the response.
    cut_every : int
        The connection is closed in the middle of the response's body; without a body, before the response.
    slow_every : int
        Answered `delay` seconds later.
    delay : float
        Seconds.
    expire_from : int, optional
        All requests from this one on are refused: the credentials have expired.
    expired_status : int
        403, or 400 as in AWS.
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
    """A request and the status of its response, 0 if the connection was closed."""

    method: str
    path: str
    range: str | None
    status: int


class Answer(NamedTuple):
    """A response of the store."""

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
        The proxy's URL.
    faults : Faults
        Can be changed or replaced at any time.
    requests : list of Request
        All requests, in the order of their ends.
    watch : callable, optional
        Called with every request's method and path before it is handled.
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
        """Serve again at the same address, without faults."""
        self.faults = Faults()
        self._server = _Server(("127.0.0.1", self._server.server_port), _Handler)
        self._server.store = self
        self.__enter__()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that make a process use this store as its S3."""
        return environment(self.url)

    def make_bucket(self) -> str:
        """Create a bucket, bypassing all faults, and return its URL."""
        name = f"bucket-{uuid.uuid4().hex}"
        s3(self.target.geturl()).create_bucket(Bucket=name)
        return f"s3://{name}"

    def next_number(self) -> int:
        """Count a request and return its number."""
        with self._counting:
            self.count += 1
            return self.count

    def expire_now(self, status: int = 403) -> None:
        """Refuse all requests from the next one on."""
        self.faults.expired_status = status
        self.faults.expire_from = self.count + 1


def environment(url: str) -> dict[str, str]:
    """Return the variables that make a process use the store at a URL as its S3."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def moto() -> Iterator[str]:
    """Run an S3 server in this process and yield its URL."""
    # It logs every request.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def s3(url: str) -> boto3.client:
    """Return an independent client of the store at a URL."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    store: FaultyStore

    def handle_error(self, _request: object, _address: object) -> None:
        # A client that disconnects is no error.
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
        # S3 accepts one of several writers of a new object; moto checks and then writes, so two could win.
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
            # Before the client gets the response: it may look at once.
            self._note(answer.status)
        self.send_response(answer.status)
        for name, value in answer.headers:
            if name.lower() not in HOP:
                self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in answer.headers):
            self.send_header("Content-Length", str(len(answer.body)))
        # Connections that stay open have a thread each. When a client closes a thousand of them at once, all these
        # threads wait for the interpreter's lock, and the process does nothing else for minutes.
        self.send_header("Connection", "close")
        self.close_connection = True
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
