"""A web server over a folder, whose habits a test chooses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class WebServer(ThreadingHTTPServer):
    """Serves the files of a folder."""

    daemon_threads = True

    def __init__(self, folder: Path, *, ranges: bool, cut_after: int | None, redirect: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.ranges = ranges
        self.cut_after = cut_after  # bytes of the next large answer, after which the connection ends
        self.redirect = redirect
        self.asked: list[tuple[str, str]] = []  # path and range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append((self.path, wanted))
        if self.server.redirect is not None:
            self.send_response(302)
            self.send_header("Location", f"{self.server.redirect}{self.path}")
            self.end_headers()
            return
        path = self.server.folder / self.path.rpartition("/")[2]
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        cut = self.server.cut_after
        if cut is not None and len(content) - first > cut:
            self.server.cut_after = None
            self.wfile.write(content[first : first + cut])
            self.close_connection = True
            return
        self.wfile.write(content[first:])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass


@contextmanager
def web_server(
    folder: Path, *, ranges: bool = True, cut_after: int | None = None, redirect: str | None = None
) -> Iterator[WebServer]:
    server = WebServer(folder, ranges=ranges, cut_after=cut_after, redirect=redirect)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
