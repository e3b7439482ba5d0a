"""Where weights come from: what is there is told apart from what is not, before anything is built."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaperone_common.artefacts.manifest import file_sha256
from chaperone_common.artefacts.registry import PretrainedSource, Weights
from chaperone_common.errors import ModelError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_READ = {".bin", ".jinja", ".json", ".model", ".pt", ".safetensors", ".txt"}  # of what `from_pretrained` may read
_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class Origin:
    """What `from_pretrained` is given: a folder or a hub's name, a GGUF file in it, a commit of it."""

    name: str
    gguf_file: str | None = None
    revision: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments beside the name. Code that comes with weights is never run."""
        given = {"gguf_file": self.gguf_file, "revision": self.revision}
        return {"trust_remote_code": False} | {key: value for key, value in given.items() if value is not None}


def content_of(weights: Weights) -> str | None:
    """Return a digest of the files of a folder that is a source; None for other sources, and for an absent folder.

    SHA-256 over one record per file in order of names: its name, a zero byte, the SHA-256 of its bytes. Costs seconds
    per gigabyte. Raise OSError for a file that cannot be read.
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
    return sorted(path for path in paths if path.suffix in _READ and path.is_file())


def refuse_absent(weights: Weights, model: str) -> None:
    """Raise ModelError where a source is neither a folder nor what a hub could know."""
    if not isinstance(weights, PretrainedSource) or weights.folder is not None:
        return
    if not _HUB_NAME.fullmatch(weights.name):
        raise ModelError(f"{model}: weights.name: {weights.name!r} does not exist; name a folder, or a model on a hub")


def absent_on_hub(name: str, model: str, problem: str) -> ModelError:
    """Return the error for a name that is no folder, and that no hub gave either."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}  # as the hub's client reads it
    hub = "HF_HUB_OFFLINE turns the hub off" if offline else f"the hub did not give it ({problem})"
    return ModelError(f"{model}: weights.name: {name!r}: there is no such folder here, and {hub}")
