"""The large model on disk, and how it becomes a cloud."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.artefacts.registry import known_pair_folder
from chaperone_common.command.sizes import shown_bytes
from cloud_supervisor.assembly import Cloud, build_cloud
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.observation import Observer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Weights:
    """The files of a large model, found and checked, but not loaded."""

    folder: Path
    manifest: ModelManifest

    @classmethod
    def of_pair(cls, pair: str) -> Weights:
        """Find the large model of a pair; raises as `known_pair_folder` and `load_manifest` do."""
        folder = known_pair_folder(pair, "cloud")
        return cls(folder, load_manifest(folder, role="cloud"))

    def announced(self, config: CloudConfig) -> str:
        """Return the line that says what is loaded now, which can take minutes."""
        where = f" into each of {config.ray.replicas} replicas" if config.engine == "ray" else ""
        size = shown_bytes(self.manifest.total_bytes)
        return f"loading {self.manifest.model} ({size} of files, dtype {config.dtype}){where}"

    def load(self, config: CloudConfig, observer: Observer) -> Cloud:
        """Load the model, which takes seconds, and assemble a cloud; raises as `TorchModel.of_manifest` does."""
        from cloud_supervisor.model.torch_model import TorchModel  # takes seconds to import

        model = TorchModel.of_manifest(
            self.folder,
            self.manifest,
            dtype=config.dtype,
            threads=config.threads,
            device=config.device,
            kv_budget_mib=config.kv_budget_mib,
        )
        _LOG.info("%s computes in %s on %s", self.manifest.model, model.dtype, config.device)
        return build_cloud(config, model, self.manifest, observer)
