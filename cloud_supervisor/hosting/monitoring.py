"""Metrics and readiness over HTTP, from a thread of their own. They answer while the event loop is busy.

The pages hold counts and the names of tenants, and nobody has to show a credential for them. So their port is for the
operator's network, not for the internet.
"""

from __future__ import annotations

import io
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import StrEnum
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from chaperone_common.address import host_and_port
from chaperone_common.errors import ConfigError, trace_of

_LOG = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
MAX_HEAD_BYTES = 8 << 10  # of the request line and all headers
REQUEST_S = 10.0  # for a whole request and its answer
_POLL_S = 0.1


class Readiness(StrEnum):
    """The reason why a host takes no new sessions, or `ready`."""

    LOADING = "loading"
    READY = "ready"
    FULL = "full"
    DRAINING = "draining"
    STOPPING = "stopping"


class Monitoring:
    """An HTTP server for `/metrics`, `/healthz` and `/readyz`."""

    def __init__(
        self, address: str, metrics: WSGIApplication, readiness: Callable[[], str], *, request_s: float = REQUEST_S
    ) -> None:
        """Take the port; raises ConfigError if that is impossible.

        `readiness` returns `ready`, or the reason why no session is admitted. Any thread may call it.
        """
        host, port = host_and_port(address, any_port=True)
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._server = _HttpServer(family, host, port, _Pages(metrics, readiness), request_s)
        except OSError as error:
            raise ConfigError(f"metrics: {address!r} cannot be bound ({error.strerror}); choose a free port") from None
        self.address = f"{address.rpartition(':')[0]}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="http", daemon=True)

    def start(self) -> None:
        """Answer requests from now on."""
        self._thread.start()
        _LOG.info("metrics, health and readiness on http://%s", self.address)

    def close(self) -> None:
        """Close the port. Requests that are being answered end with the process."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Pages:
    """The WSGI application."""

    def __init__(self, metrics: WSGIApplication, readiness: Callable[[], str]) -> None:
        self._metrics = metrics
        self._readiness = readiness

    def __call__(self, environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status, text = HTTPStatus.OK, ""
        try:
            match environment.get("REQUEST_METHOD"), environment.get("PATH_INFO"):
                case (("GET" | "HEAD"), "/metrics"):
                    return self._metrics(environment, start_response)
                case (("GET" | "HEAD"), "/healthz"):
                    text = "alive"
                case (("GET" | "HEAD"), "/readyz"):
                    text = self._readiness()
                    status = HTTPStatus.OK if text == Readiness.READY else HTTPStatus.SERVICE_UNAVAILABLE
                case (("GET" | "HEAD"), _):
                    status, text = HTTPStatus.NOT_FOUND, "the pages are /metrics, /healthz and /readyz"
                case _:
                    status, text = HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered"
        except Exception as error:
            _LOG.error("a page failed: %s", trace_of(error))
            status, text = HTTPStatus.INTERNAL_SERVER_ERROR, "the page failed; the log has the details"
        body = f"{text}\n".encode()
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        start_response(f"{status.value} {status.phrase}", [*headers, ("Cache-Control", "no-store")])
        return [] if environment.get("REQUEST_METHOD") == "HEAD" else [body]


class _HttpServer(ThreadingMixIn, WSGIServer):
    """Answers a bounded number of connections, each for a bounded time."""

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, family: int, host: str, port: int, pages: WSGIApplication, request_s: float) -> None:
        self.address_family = family
        self._request_s = request_s
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), _Handler)
        self.set_app(pages)

    def server_bind(self) -> None:
        """Bind without looking the host's name up, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        alarm = threading.Timer(self._request_s, _hang_up, (request,))
        alarm.daemon = True
        alarm.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            alarm.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _LOG.debug("a connection for metrics broke")


class _Handler(WSGIRequestHandler):
    """Reads the head of one request, and nothing after it."""

    server_version = "chaperone"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        head = bytearray()
        while not head.endswith((b"\r\n\r\n", b"\n\n")) and len(head) <= MAX_HEAD_BYTES:
            line = self.rfile.readline(MAX_HEAD_BYTES + 1 - len(head))
            if not line:
                break
            head += line
        self.rfile.close()
        self.rfile = io.BytesIO(bytes(head))
        self._too_long = len(head) > MAX_HEAD_BYTES

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self._too_long:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return False
        return True

    def get_stderr(self) -> Any:
        """Keep tracebacks of wsgiref off standard error, which nobody may be reading."""
        return io.StringIO()

    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Keep requests out of the log: a probe comes every few seconds."""


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended
        connection.shutdown(socket.SHUT_RDWR)
