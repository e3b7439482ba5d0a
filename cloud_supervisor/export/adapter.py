"""Adapters: what training adds to a device's model.

Low-rank changes of its matrices are merged into its weights before they are quantised: W becomes W + scale * up @ down
(LoRA, Hu et al. 2021, arXiv 2106.09685: B and A). A projector maps the large model's hidden states to its embeddings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from chaperone_common.errors import ModelError
from chaperone_common.files import replace_file
from cloud_supervisor.model.projector import ProjectorWeights

_FORMAT = "chaperone-adapter-1"
_PROJECTOR = "projector."  # the beginning of the names of a projector's tensors


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one matrix [out, in]."""

    down: torch.Tensor  # [rank, in]
    up: torch.Tensor  # [out, rank]


@dataclass(frozen=True, slots=True)
class Adapter:
    """Changes of the matrices of one model, by the names of its modules in transformers, a projector, or both."""

    model: str  # the name of the model that it changes
    base: str | None  # the digest of its weights; None: not stated, and not compared
    scale: float
    matrices: Mapping[str, LowRank]
    provenance: Mapping[str, Any]  # how it was made
    projector: ProjectorWeights | None = None

    def save(self, path: Path) -> None:
        """Write a safetensors file in bfloat16, with the provenance in its header. Raises OutputLost."""
        tensors = {
            f"{name}.{part}": getattr(change, part).to(torch.bfloat16).contiguous()
            for name, change in self.matrices.items()
            for part in ("down", "up")
        }
        header = {
            "format": _FORMAT,
            "model": self.model,
            "scale": repr(self.scale),
            "provenance": json.dumps(self.provenance),
        }
        if self.base is not None:
            header["base"] = self.base
        if self.projector is not None:
            tensors |= {f"{_PROJECTOR}{name}": tensor for name, tensor in self.projector.stored().items()}
            header["layers"] = json.dumps(self.projector.layers)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, [save(tensors, header)])

    @classmethod
    def load(cls, path: Path) -> Adapter:
        """Read such a file. Raises ModelError if it is none."""
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise ModelError(f"{path}: its format is {header.get('format')!r}, not {_FORMAT!r}")
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            projecting = {name: tensors.pop(name) for name in [*tensors] if name.startswith(_PROJECTOR)}
            names = {name.rpartition(".")[0] for name in tensors}
            matrices = {name: LowRank(tensors[f"{name}.down"], tensors[f"{name}.up"]) for name in sorted(names)}
            projector = None
            if projecting:
                named = {name.removeprefix(_PROJECTOR): tensor for name, tensor in projecting.items()}
                projector = ProjectorWeights.of(tuple(json.loads(header["layers"])), named)
            provenance = json.loads(header["provenance"])
            return cls(header["model"], header.get("base"), float(header["scale"]), matrices, provenance, projector)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: it is no adapter ({error}); make one with `python -m training`") from None

    def check_name(self, name: str) -> None:
        """Raise ModelError for a model of another name than that of the adapter's."""
        if name != self.model:
            raise ModelError(f"the adapter is for {self.model}, not for {name}; name another one, or none")

    def merge_into(self, model: Any, name: str) -> None:
        """Change the weights of a model of transformers, in place; `name` is its name.

        Raises ModelError for another model, for matrices that it does not have, and for a projector to another width,
        before anything is changed.
        """
        self.check_name(name)
        if self.projector is not None:
            self.projector.check_edge(model.get_input_embeddings().weight.shape[1], name)
        modules = dict(model.named_modules())
        for place, change in self.matrices.items():
            weight = getattr(modules.get(place), "weight", None)
            expected = (change.up.shape[0], change.down.shape[1])
            if weight is None or tuple(weight.shape) != expected or change.down.shape[0] != change.up.shape[1]:
                raise ModelError(f"the adapter changes {place} of shape {list(expected)}, which {name} does not have")
        if self.base is not None and (found := weights_digest(model)) != self.base:
            raise ModelError(
                f"the adapter was trained on other weights of {name} ({self.base}, here {found}); train one on these"
            )
        with torch.no_grad():
            for place, change in self.matrices.items():
                weight = modules[place].weight
                weight += (self.scale * (change.up @ change.down)).to(weight.dtype)


def weights_digest(model: Any) -> str:
    """Return a digest of the weights of a model, in bfloat16: the same for float32 that was read from bfloat16."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().to(torch.bfloat16).contiguous().view(torch.int16).numpy().data)
    return f"sha256:{digest.hexdigest()}"
