"""`manifest.json`, which describes the files of a model and how they were made."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from chaperone_common.artefacts.folders import PAIR_NAME, Role, chaperone_home
from chaperone_common.artefacts.registry import near_pair
from chaperone_common.errors import ModelCorrupt, ModelError, ModelMissing
from chaperone_common.settings import FrozenModel

MANIFEST_NAME = "manifest.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"  # absent if the model has none
SPECIAL_TOKENS_NAME = "special_tokens.json"  # texts that a chat template uses, by name
MANIFEST_FORMAT = 1
# Metadata of a device's graph. Without it, the graph writes keys and values into the buffers that it reads.
KV_METADATA, KV_RETURNED = "chaperone.kv", "returned"  # the graph returns keys and values of all tokens
CHECKSUM_ALWAYS_BELOW_BYTES = 64 * 1024 * 1024

MAX_MANIFEST_BYTES = 1 << 20  # of one that another machine sends

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_READ_BLOCK_BYTES = 4 * 1024 * 1024


class ManifestFile(FrozenModel):
    """The size and checksum of one file of an artefact."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ProjectorSpec(FrozenModel):
    """The projector that the device's model was trained with. The cloud encodes prompts with it."""

    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")  # of its tensors and layers
    width: int = Field(ge=1)  # numbers of a row: the width of the device's embeddings
    layers: tuple[int, ...] = Field(min_length=1)  # of the large model, whose hidden states it reads


class ModelManifest(FrozenModel):
    """The content of `manifest.json`, which is the last file written of an artefact."""

    format: Literal[1] = 1
    pair: str = Field(pattern=f"^{PAIR_NAME}$")  # a part of paths
    role: Role
    model: str
    source: dict[str, Any]
    recipe: dict[str, Any]
    versions: dict[str, str]  # versions of the packages that made it
    tokenizer_digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    vocabulary_size: int = Field(ge=1)  # ids that the tokenizer has; logits from this index on are padding
    eos_token_ids: tuple[int, ...] = Field(min_length=1)
    context_tokens: int = Field(ge=1)
    files: dict[str, ManifestFile]
    content: str | None = None  # of a source folder: "sha256:..."; of a hub's model: "commit:..."
    projector: ProjectorSpec | None = None  # no part of `digest`; absent in the file if there is none

    @model_serializer(mode="wrap")
    def _without_absent_projector(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = serialise(self)
        if self.projector is None:
            written.pop("projector", None)
        return written

    @property
    def total_bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def digest(self) -> str:
        """A digest of the source and the recipe: two machines that follow one recipe have one digest.

        It is not made from the files, whose last bits may differ between machines.
        """
        origin = self.content or self.source.get("sha256", self.source)
        made = json.dumps([self.role, self.model, origin, self.recipe, self.tokenizer_digest], sort_keys=True)
        return "sha256:" + hashlib.sha256(made.encode()).hexdigest()


def load_manifest(folder: Path | str, *, role: Role, verify: bool = False, remedy: str | None = None) -> ModelManifest:
    """Read an artefact's manifest and compare the files with it.

    Sizes are always compared. Checksums of files above 64 MiB take seconds per GB, so they are compared only with
    `verify`. `remedy` ends the messages, in place of the command that gets the model. Raises ModelMissing if there is
    no manifest, ModelCorrupt if a file differs from it, and ModelError if a file cannot be read.
    """
    folder = Path(folder)
    forced = remedy or pull_remedy(folder, role, force=True)
    try:
        content = (folder / MANIFEST_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ModelMissing(_missing(folder, role, remedy or pull_remedy(folder, role))) from None
    except IsADirectoryError as error:
        raise ModelCorrupt(f"{folder / MANIFEST_NAME}: cannot be read ({error}); {forced}") from None
    except OSError as error:
        raise ModelError(_unreadable(folder / MANIFEST_NAME, error)) from None
    manifest = parse_manifest(content, role=role, place=str(folder / MANIFEST_NAME), remedy=forced)
    for name, expected in manifest.files.items():
        try:
            problem = _file_problem(folder / name, expected, verify=verify)
        except OSError as error:
            raise ModelError(_unreadable(folder / name, error)) from None
        if problem is not None:
            raise ModelCorrupt(f"{folder / name}: {problem}; {forced}")
    return manifest


def parse_manifest(content: bytes, *, role: Role, place: str, remedy: str) -> ModelManifest:
    """Return the manifest that a file holds; raises ModelCorrupt with its place and the remedy."""
    try:
        manifest = ModelManifest.model_validate_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ModelCorrupt(f"{place}: cannot be read ({error}); {remedy}") from None
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first["loc"] else first["msg"]
        raise ModelCorrupt(f"{place}: {problem}; {remedy}") from None
    if manifest.role != role:
        raise ModelCorrupt(f"{place}: role: {manifest.role!r}, but the {role} model is wanted; {remedy}")
    return manifest


def is_file_name(name: str) -> bool:
    """Return whether a file of a model that travels may have this name: one part, and not the manifest's."""
    return _FILE_NAME.fullmatch(name) is not None and name != MANIFEST_NAME


def pull_remedy(folder: Path, role: Role, *, force: bool = False, cloud: str = "HOST:PORT") -> str:
    """Return how to get the model of a folder, as the end of a message.

    A device fetches its model from the cloud at the address `cloud`, and replaces a damaged one without being forced.
    """
    pair = folder.parent.name
    if role == "edge":
        return f"run `chaperone models pull --pair {pair} --cloud {cloud}`"
    return f"run `chaperone-cloud models pull --pair {pair}{' --force' if force else ''}`"


def _missing(folder: Path, role: Role, remedy: str) -> str:
    """Return the message for an absent model. Pulling a misspelt pair would not help: the near name is the remedy."""
    near = near_pair(folder)
    if near is None:
        return f"{folder}: no {role} model here; {remedy}"
    return f"{folder}: no {role} model here (did you mean {near!r}?); give {near!r} as the pair"


def _file_problem(path: Path, expected: ManifestFile, *, verify: bool) -> str | None:
    """Return the difference between a file and its manifest, or None."""
    try:
        size = path.stat().st_size
        if size != expected.bytes:
            return f"{size} bytes, the manifest says {expected.bytes}"
        if (verify or size <= CHECKSUM_ALWAYS_BELOW_BYTES) and file_sha256(path) != expected.sha256:
            return "its SHA-256 is not the manifest's"
    except FileNotFoundError:
        return "it is missing"
    except IsADirectoryError:
        return "it is a folder"
    return None


def _unreadable(path: Path, error: OSError) -> str:
    """Return the message for a file that exists and cannot be read. Pulling the model again would not help."""
    return f"{path}: cannot be read: {error.strerror or error}; CHAPERONE_HOME is {chaperone_home()}"


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
