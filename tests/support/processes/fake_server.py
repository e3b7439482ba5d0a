"""`chaperone-cloud` with the fake large model, as a program: it starts in a second, since torch is not imported."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from chaperone_common.artefacts.manifest import ModelManifest
from cloud_supervisor.cli import main
from tests.support.fakes.target import FakeTarget


class TorchModel(FakeTarget):
    """The fake model under the name and with the constructor that `serve` expects."""

    dtype = "float32"

    @classmethod
    def of_manifest(cls, folder: Path, manifest: ModelManifest, **settings: Any) -> TorchModel:
        return cls(manifest.vocabulary_size, manifest.context_tokens)


if __name__ == "__main__":
    module = ModuleType("cloud_supervisor.model.torch_model")
    module.TorchModel = TorchModel  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    sys.exit(main())
