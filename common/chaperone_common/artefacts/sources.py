"""The sources of weights, and checks of them before anything is built."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaperone_common.artefacts.manifest import file_sha256
from chaperone_common.artefacts.registry import PretrainedSource, Weights
from chaperone_common.errors import ConfigError, ModelError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_READ_SUFFIXES = {
    ".bin",
    ".jinja",
    ".json",
    ".model",
    ".pt",
    ".safetensors",
    ".txt",
}  # of files that `from_pretrained` may read
_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class Origin:
    """The arguments of `from_pretrained`."""

    name: str  # a folder, or the name of a model on a hub
    gguf_file: str | None = None  # a file in that folder
    revision: str | None = None  # a commit on the hub
    local: bool = False  # take files of the hub only from its cache on this machine

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments. Code that is packaged with weights is never run."""
        given = {
            "gguf_file": self.gguf_file,
            "revision": self.revision,
            "local_files_only": True if self.local else None,
        }
        return {"trust_remote_code": False} | {key: value for key, value in given.items() if value is not None}


def source_of_text(text: str, flag: str) -> PretrainedSource:
    """Return the source that a user names: a folder, or a model on a hub. Raise ConfigError with the flag's name."""
    source = PretrainedSource(source="pretrained", name=text) if text else None
    if source is None:
        raise ConfigError(f"{flag}: it is empty; name a folder, or a model on a hub")
    if (folder := source.folder) is not None:
        return PretrainedSource(source="pretrained", name=str(folder.absolute()))
    if _exists(text):
        raise ConfigError(f"{flag}: {text!r} is a file; name the folder with its config.json, weights and tokenizer")
    if not _HUB_NAME.fullmatch(text):
        raise ConfigError(f"{flag}: {text!r} does not exist; name a folder, or a model on a hub such as owner/name")
    return source


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def content_of(weights: Weights) -> str | None:
    """Return a digest of the files in a source folder; None for other sources, and for an absent folder.

    The digest is SHA-256 over one record per file, in the order of names: the name, a zero byte, the SHA-256 of the
    file. It takes seconds per gigabyte. Raises OSError for a file that cannot be read.
    """
    if not isinstance(weights, PretrainedSource) or (folder := weights.folder) is None:
        return None
    digest = hashlib.sha256()
    for path in _files_read(folder):
        digest.update(path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape") + b"\0")
        digest.update(bytes.fromhex(file_sha256(path)))
    return f"sha256:{digest.hexdigest()}"


def _files_read(folder: Path) -> list[Path]:
    paths = [*folder.iterdir(), *(folder / _TEMPLATES).glob("*.jinja")]
    return sorted(path for path in paths if path.suffix in _READ_SUFFIXES and path.is_file())


def refuse_absent(weights: Weights, model: str) -> None:
    """Raise ModelError if a source is no folder, and cannot be the name of a model on a hub."""
    if not isinstance(weights, PretrainedSource) or weights.folder is not None:
        return
    if not _HUB_NAME.fullmatch(weights.name):
        raise ModelError(f"{model}: weights.name: {weights.name!r} does not exist; name a folder, or a model on a hub")


def absent_on_hub(name: str, model: str, problem: str) -> ModelError:
    """Return the error for a name that is no folder here and was not found on the hub."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {
        "1",
        "ON",
        "YES",
        "TRUE",
    }  # the values that the hub's client accepts
    hub = "HF_HUB_OFFLINE turns the hub off" if offline else f"the hub did not give it ({problem})"
    return ModelError(f"{model}: weights.name: {name!r}: there is no such folder here, and {hub}")
