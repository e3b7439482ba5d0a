"""A model on a web server: a folder that HTTP or HTTPS serves."""

from __future__ import annotations

import asyncio
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import suppress
from http import HTTPStatus
from typing import IO, Any
from urllib.parse import urlsplit

from chaperone_common.address import is_loopback
from chaperone_common.artefacts.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, ManifestFile
from chaperone_common.errors import ConfigError, ModelError, ModelMissing
from edge_client.artefacts.source import SourceLost

_TIMEOUT_S = 30.0  # for a connection, and for each block
_BLOCK_BYTES = 256 << 10
_RANGE = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)", re.ASCII)
_MAY_PASS = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the same scheme or to HTTPS, as web servers make them to their storage."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            fp.close()
            raise ModelError(f"{req.full_url}: it redirects to another scheme, which is refused; use another source")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class UrlSource:
    """The `Source` port over the files below one address. No credentials of this device are sent."""

    def __init__(self, url: str, *, insecure: bool = False) -> None:
        """Check the address; raises ConfigError. `insecure` allows HTTP to other machines."""
        self._base = checked_url(url, insecure=insecure).rstrip("/")
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _Redirects(),
        ):  # and none for files or FTP
            self._opener.add_handler(handler)

    @property
    def place(self) -> str:
        return self._base

    async def manifest(self) -> bytes:
        with await asyncio.to_thread(self._open, MANIFEST_NAME, 0) as response:
            return await asyncio.to_thread(_read, response, MAX_MANIFEST_BYTES + 1, self._base)

    async def read(self, name: str, expected: ManifestFile, offset: int) -> AsyncGenerator[bytes, None]:
        with await asyncio.to_thread(self._open, name, offset) as response:
            skipped = offset - _first_byte(response, offset)
            while block := await asyncio.to_thread(_read, response, _BLOCK_BYTES, self._base):
                yield block[skipped:] if skipped < len(block) else b""
                skipped = max(0, skipped - len(block))

    async def close(self) -> None:
        self._opener.close()

    def _open(self, name: str, offset: int) -> Any:
        url = f"{self._base}/{name}"
        headers = {"Accept-Encoding": "identity", "User-Agent": "chaperone"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            return self._opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                raise ModelMissing(
                    f"{url}: there is no such file; give the address of a folder `edge` with its manifest.json"
                ) from None
            kind = SourceLost if error.code in _MAY_PASS else ModelError
            raise kind(f"{url}: the server answers {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
            raise SourceLost(f"{url}: cannot be read: {_words(error)}") from None


def checked_url(url: str, *, insecure: bool = False) -> str:
    """Return an address of a folder; raises ConfigError, and quotes no password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"from: it is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"from: {url!r} is no address of HTTP or HTTPS; write https://HOST/FOLDER")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("from: the URL holds a name or password, which is not supported; use a folder in its place")
    if parts.query or parts.fragment:
        raise ConfigError("from: the URL has a query or fragment; give the address of a folder, https://HOST/FOLDER")
    local = is_loopback(
        f"[{parts.hostname}]:{port or 80}" if ":" in parts.hostname else f"{parts.hostname}:{port or 80}"
    )
    if parts.scheme == "http" and not (local or insecure):
        raise ConfigError(
            f"from: {url!r} is plain HTTP, and everybody on the way could send another model; use https, give the "
            "SHA-256 of the manifest with --sha256, or say --insecure"
        )
    return url


def _first_byte(response: Any, offset: int) -> int:
    """Return the offset at which an answer begins: 0 of a server that sends the whole file."""
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        return 0
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != offset:
        raise ModelError(f"{response.url}: the server sends another part than bytes {offset} and after")
    return offset


def _read(response: IO[bytes], size: int, place: str) -> bytes:
    try:
        return response.read(size)
    except http.client.IncompleteRead as error:
        return error.partial
    except (OSError, http.client.HTTPException) as error:
        with suppress(OSError):
            response.close()
        raise SourceLost(f"{place}: the connection broke: {_words(error)}") from None


def _words(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return str(reason) or type(error).__name__
