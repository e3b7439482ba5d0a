"""The source of a model: the port that the cloud, a folder and a web server implement."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from chaperone_common.artefacts.manifest import ManifestFile
from chaperone_common.errors import ModelError


class SourceLost(ModelError):
    """A source stopped in the middle, and may continue."""


class Source(Protocol):
    """A place that holds the device's model of a pair. Nothing that it sends is trusted before it is checked."""

    @property
    def place(self) -> str:
        """The place, for messages."""

    async def manifest(self) -> bytes:
        """Return the content of `manifest.json`, of at most `MAX_MANIFEST_BYTES` and one more.

        Raises as `read` does.
        """

    def read(self, name: str, expected: ManifestFile, offset: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a file from `offset` on.

        Raises SourceLost, CloudLost or Overloaded where a later attempt may continue, and another ChaperoneError where
        none can.
        """

    async def close(self) -> None:
        """Let go of connections."""
