"""Servers of one service that are killed and started again on their ports, with TLS and tokens."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from chaperone_common.artefacts.manifest import load_manifest
from cloud_supervisor.assembly import build_cloud
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.hosting.entrance import Entrance
from cloud_supervisor.model.ports import TargetModel
from cloud_supervisor.security.authentication import Authenticator
from cloud_supervisor.security.certificates import make_certificates
from cloud_supervisor.security.tls import ServerTls
from cloud_supervisor.security.tokens import TokenFile
from cloud_supervisor.server import Server

_HASTE = 20.0  # files are looked at once in a second of the clock


class HurriedClock:
    """Shows the seconds of a clock that runs fast, so that changed files are noticed soon."""

    def now(self) -> float:
        return time.monotonic() * _HASTE


class Credentials:
    """The files of a service: a certificate that can be replaced, and tokens."""

    def __init__(self, folder: Path, *, certificates: int) -> None:
        """Make `certificates` certificates of as many authorities. Devices trust all of them."""
        folders = [folder / f"certificate-{number}" for number in range(certificates)]
        for each in folders:
            make_certificates(each, ["127.0.0.1"])
        self._folder = folder
        self._next: Iterator[Path] = itertools.cycle(folders)
        self.ca_file, self.cert_file, self.key_file = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
        self.ca_file.write_bytes(b"".join((each / "ca.pem").read_bytes() for each in folders))
        self.tokens_file = folder / "tokens.json"
        self.rotate()

    def rotate(self) -> None:
        """Replace the certificate, and then its key: for a moment they do not fit."""
        newest = next(self._next)
        for path in (self.cert_file, self.key_file):
            shutil.copy(newest / path.name, path)

    def new_token(self, tenant: str) -> tuple[str, Path]:
        """Add a token; return its id and the file for the device."""
        token = TokenFile.create(self.tokens_file, tenant)
        _, token_id, _ = token.split("_", 2)
        path = self._folder / f"token-{token_id}"
        path.touch(0o600)
        path.write_text(token, encoding="utf-8")
        return token_id, path

    def revoke(self, token_id: str) -> None:
        TokenFile.revoke(self.tokens_file, token_id)

    def entrance(self) -> Entrance:
        """Return the entrance of one server."""
        clock = HurriedClock()
        tls = ServerTls(self.cert_file, self.key_file, clock=clock)
        return Entrance(Authenticator(tokens_file=self.tokens_file, clock=clock), tls)


class Replica:
    """A server that keeps its port when it is started again."""

    def __init__(self, config: CloudConfig, model: TargetModel, pair: Path, credentials: Credentials) -> None:
        self._config = config.model_copy(update={"listen": "127.0.0.1:0"})
        self._model = model
        self._manifest = load_manifest(pair / "cloud", role="cloud")
        self._credentials = credentials
        self._server: Server | None = None
        self._evictions = 0

    @property
    def address(self) -> str:
        return self._config.listen

    @property
    def server(self) -> Server | None:
        """The server, if it runs."""
        return self._server

    @property
    def evictions(self) -> int:
        """Caches that had to make room for others, since the first start."""
        return self._evictions + (self._server.cloud.runner.kv_stats.evictions if self._server is not None else 0)

    async def start(self) -> None:
        entrance = self._credentials.entrance()
        cloud = build_cloud(self._config, self._model, self._manifest, entrance.observer)
        self._server = Server(self._config, cloud, entrance=entrance)
        self._config = self._config.model_copy(update={"listen": await self._server.start()})

    async def stop(self) -> None:
        """Stop at once, without a word to anybody."""
        if self._server is not None:
            self._evictions, server, self._server = self.evictions, self._server, None
            await server.stop(0)
