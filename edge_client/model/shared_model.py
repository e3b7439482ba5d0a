"""The device's model of one client."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from chaperone_common.artefacts.manifest import ModelManifest, pull_remedy
from chaperone_common.errors import InvalidRequest, ModelCorrupt, ModelError
from edge_client.config import DeviceSettings
from edge_client.model.onnx_model import OnnxModel


class SharedModel:
    """An `OnnxModel` that is loaded when it is first needed, for all generations of a client."""

    def __init__(self, folder: Path, manifest: ModelManifest, settings: DeviceSettings) -> None:
        self._folder = folder
        self._manifest = manifest
        self._settings = settings
        self._model: OnnxModel | None = None
        self._loading: asyncio.Task[OnnxModel] | None = None

    @property
    def loaded(self) -> bool:
        """True if the model is in memory."""
        return self._model is not None

    async def get(self) -> OnnxModel:
        """Return the model, and load it if need be; raises ModelError or ConfigError.

        A caller that is cancelled does not stop the loading, which others may wait for.
        """
        if self._model is None:
            if self._loading is None:
                self._loading = asyncio.create_task(asyncio.to_thread(self._load))
                self._loading.add_done_callback(_mark_retrieved)
            loading = self._loading
            try:
                self._model = await asyncio.shield(loading)
            finally:
                if loading.done() and self._loading is loading:
                    self._loading = None
        return self._model

    def leave_loop(self) -> None:
        """Forget a loading that an earlier event loop has begun; a loaded model stays."""
        self._loading = None

    async def close(self) -> None:
        """End the model's worker; idempotent."""
        if self._loading is not None:
            with suppress(ModelError, InvalidRequest):
                self._model = await asyncio.shield(self._loading)
            self._loading = None
        if self._model is not None:
            await asyncio.to_thread(self._model.close)
            self._model = None

    def _load(self) -> OnnxModel:
        model = OnnxModel.load(
            self._folder,
            threads=self._settings.threads,
            allow_spinning=self._settings.allow_spinning,
            vocabulary_size=self._manifest.vocabulary_size,
            context_tokens=self._manifest.context_tokens,
            providers=self._settings.providers,
        )
        projector, width = self._manifest.projector, model.graph.encoding_width
        if projector is not None and projector.width != width:
            model.close()
            raise ModelCorrupt(
                f"{self._folder}: the manifest names a projector of width {projector.width}, the graph takes "
                f"encodings of width {width}; {pull_remedy(self._folder, 'edge')}"
            )
        return model


def _mark_retrieved(loading: asyncio.Task[OnnxModel]) -> None:
    """Take the error of a loading that nobody awaits any more; the next one will raise it again."""
    if not loading.cancelled():
        loading.exception()
