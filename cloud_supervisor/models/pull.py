"""The use case: make a pair's artefacts be there, once, whole, or not at all.

A pair is built in a temporary folder beside its final place and moved there in one step, so that a pull that dies
leaves nothing that loads. A lock per pair keeps two pulls apart; the operating system drops it with the process.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from cloud_supervisor.models.fetch import Downloader, fetch, pip_download
from cloud_supervisor.models.registry import (
    Pair,
    PretrainedSource,
    TinySource,
    Weights,
    WheelsSource,
    load_registry,
)
from common.config import (
    MANIFEST_NAME,
    ROLES,
    ManifestFile,
    ModelManifest,
    Role,
    chaperone_home,
    file_sha256,
    load_manifest,
    pair_folder,
)
from common.errors import ModelError, TokenizerMismatch

if TYPE_CHECKING:
    from cloud_supervisor.models.export import LoadedModel
    from cloud_supervisor.models.tokenizer import Vocabulary

_LOG = logging.getLogger(__name__)

_BUILD_MODULES = ("accelerate", "gguf", "onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai", "torch", "transformers")

Say = Callable[[str], None]


@dataclass(frozen=True)
class PairState:
    """Which artefacts of a pair are on this machine."""

    pair: str
    edge_model: str
    cloud_model: str
    edge_present: bool
    cloud_present: bool


@dataclass(frozen=True)
class _Fetcher:
    """Where downloads go, and how."""

    downloads: Path
    downloader: Downloader
    progress: bool

    def __call__(self, source: WheelsSource) -> Path:
        return fetch(source, self.downloads, downloader=self.downloader, progress=self.progress)


def list_pairs(registry_path: Path | None = None) -> list[PairState]:
    """Every pair of the registry, and which of its roles can be loaded."""
    registry = load_registry(registry_path)
    return [
        PairState(name, pair.edge.model, pair.cloud.model, _loads(name, "edge"), _loads(name, "cloud"))
        for name, pair in sorted(registry.pairs.items())
    ]


def pull(
    pair: str,
    *,
    registry_path: Path | None = None,
    force: bool = False,
    progress: bool = True,
    say: Say = _LOG.info,
    downloader: Downloader = pip_download,
) -> None:
    """Fetch, convert and quantise a pair; does nothing where that is done, unless `force`.

    `say` gets one line per stage, `progress` draws bars on standard error. Raises ConfigError, ModelError,
    ModelCorrupt (a download with the wrong checksum) or TokenizerMismatch (two vocabularies).
    """
    spec = load_registry(registry_path).pair(pair)
    if not force and _is_current(pair, spec):
        say(f"{pair}: already there")
        return
    models = chaperone_home() / "models"
    models.mkdir(parents=True, exist_ok=True)
    with _locked(models / f".{pair}.lock", pair, say):
        for leftover in models.glob(f".*-{pair}.*"):  # of a pull that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        if not force and _is_current(pair, spec):
            say(f"{pair}: already there")  # another pull made it while this one waited
            return
        building = Path(tempfile.mkdtemp(prefix=f".building-{pair}.", dir=models))
        try:
            _build(pair, spec, building, _Fetcher(chaperone_home() / "downloads", downloader, progress), say)
            _swap(building, models / pair)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    say(f"{pair}: ready in {models / pair}")


def _swap(building: Path, final: Path) -> None:
    """Put the new folder in the old one's place; whoever has the old files open keeps them."""
    building.chmod(0o755)  # a temporary folder is its owner's alone
    if final.exists():
        replaced = building.with_name(building.name.replace(".building-", ".replaced-"))
        final.replace(replaced)
        building.replace(final)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        building.replace(final)


def _is_current(pair: str, spec: Pair) -> bool:
    """Whether both artefacts load and were made of what the registry says now."""
    for role in ROLES:
        try:
            manifest = load_manifest(pair_folder(pair, role), role=role)
        except ModelError:
            return False
        if (manifest.source, manifest.recipe) != (_source_of(spec, role), _recipe_of(spec, role)):
            return False
    return True


def _loads(pair: str, role: Role) -> bool:
    try:
        load_manifest(pair_folder(pair, role), role=role)
    except ModelError:
        return False
    return True


def _source_of(spec: Pair, role: Role) -> dict[str, Any]:
    weights: Weights = spec.edge.weights if role == "edge" else spec.cloud.weights
    return weights.model_dump(mode="json")


def _recipe_of(spec: Pair, role: Role) -> dict[str, Any]:
    if role == "edge":
        return spec.edge.recipe.model_dump(mode="json")
    return spec.cloud.recipe.model_dump(mode="json") | {"end_of_text": list(spec.cloud.end_of_text)}


@contextmanager
def _locked(path: Path, pair: str, say: Say) -> Iterator[None]:
    """Hold the pair's lock; waits where another pull holds it."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{pair}: another pull is at work; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(pair: str, spec: Pair, building: Path, fetcher: _Fetcher, say: Say) -> None:
    """Make both artefacts in `building`, compare their vocabularies, and write the manifests last."""
    _require_packages()
    _stay_off_the_hub(spec)
    from cloud_supervisor.models import export  # torch and transformers: seconds, and only needed from here on
    from cloud_supervisor.models.tokenizer import read_vocabulary

    say(f"{pair}: preparing {spec.cloud.model} for the cloud ({spec.cloud.recipe.dtype})")
    cloud, edge = building / "cloud", building / "edge"
    loaded = _load(spec.cloud.weights, fetcher, spec.cloud.recipe.dtype)
    context_tokens = loaded.context_tokens
    export.save_tokenizer(loaded, cloud)
    vocabulary = read_vocabulary(cloud / "tokenizer.json")
    eos_token_ids = tuple(vocabulary.id_of(text) for text in spec.cloud.end_of_text) or loaded.eos_token_ids
    if not eos_token_ids:
        raise ModelError(f"{spec.cloud.model}: nothing says which tokens end a text; name them in end_of_text")
    export.export_cloud(loaded, cloud, eos_token_ids)
    del loaded  # several gigabytes

    say(f"{pair}: quantising {spec.edge.model} for the device ({spec.edge.recipe.precision})")
    loaded = _load(spec.edge.weights, fetcher, "float32")
    export.save_tokenizer(loaded, edge)
    _refuse_different_vocabularies(pair, read_vocabulary(edge / "tokenizer.json"), vocabulary)
    export.export_edge(loaded, edge, spec.edge.recipe)
    contexts: dict[Role, int] = {"edge": loaded.context_tokens, "cloud": context_tokens}
    del loaded
    _share_chat_template(cloud, edge)

    for role in ROLES:
        folder = building / role
        manifest = ModelManifest(
            pair=pair,
            role=role,
            model=spec.edge.model if role == "edge" else spec.cloud.model,
            source=_source_of(spec, role),
            recipe=_recipe_of(spec, role),
            versions=export.package_versions(),
            tokenizer_digest=vocabulary.digest,
            vocabulary_size=vocabulary.size,
            eos_token_ids=eos_token_ids,
            context_tokens=contexts[role],
            files=_files_of(folder),
        )
        (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _require_packages() -> None:
    """Say before the first download what the conversion would miss after it."""
    missing = [name for name in _BUILD_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"converting models needs {', '.join(missing)}; run `pip install 'chaperone-llm[cloud,build]'`, "
            f"or copy {chaperone_home() / 'models'} from a machine that has them"
        )


def _stay_off_the_hub(spec: Pair) -> None:
    """Without a hub name among the sources no library has a reason to ask a hub; read at their import."""
    sources = (spec.edge.weights, spec.cloud.weights)
    if not any(isinstance(source, PretrainedSource) and not Path(source.name).is_dir() for source in sources):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _load(weights: WheelsSource | PretrainedSource | TinySource, fetcher: _Fetcher, dtype: str) -> LoadedModel:
    from cloud_supervisor.models import export

    match weights:
        case WheelsSource():
            return export.load_gguf(fetcher(weights), dtype, progress=fetcher.progress)
        case PretrainedSource():
            return export.load_pretrained(weights.name, dtype)
        case TinySource():
            from cloud_supervisor.models.tiny import build_tiny

            return build_tiny(weights)
        case _:
            assert_never(weights)


def _refuse_different_vocabularies(pair: str, edge: Vocabulary, cloud: Vocabulary) -> None:
    if edge.digest != cloud.digest:
        raise TokenizerMismatch(
            f"{pair}: the two models read different vocabularies, so token ids mean different things: "
            f"device {edge.size} ids, {edge.digest}; cloud {cloud.size} ids, {cloud.digest}"
        )


def _share_chat_template(cloud: Path, edge: Path) -> None:
    """Give the device the cloud's template: templates differ inside one family, and both ends must read the same."""
    (edge / "tokenizer_config.json").unlink()
    (edge / "chat_template.jinja").unlink(missing_ok=True)
    if (cloud / "chat_template.jinja").exists():
        shutil.copyfile(cloud / "chat_template.jinja", edge / "chat_template.jinja")


def _files_of(folder: Path) -> dict[str, ManifestFile]:
    return {
        path.name: ManifestFile(bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted(folder.iterdir())
    }
