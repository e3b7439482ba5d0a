"""Adapters: low-rank changes of a model's matrices, which are merged into its weights before they are quantised.

W becomes W + scale * up @ down (LoRA, Hu et al. 2021, arXiv 2106.09685: B and A).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from chaperone_common.errors import ModelError

_FORMAT = "chaperone-adapter-1"


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one matrix [out, in]."""

    down: torch.Tensor  # [rank, in]
    up: torch.Tensor  # [out, rank]


@dataclass(frozen=True, slots=True)
class Adapter:
    """Changes of the matrices of one model, by the names of its modules in transformers."""

    model: str  # the name of the model that it changes
    scale: float
    matrices: Mapping[str, LowRank]
    provenance: Mapping[str, Any]  # how it was made

    def save(self, path: Path) -> None:
        """Write a safetensors file in bfloat16, with the provenance in its header."""
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
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, header)

    @classmethod
    def load(cls, path: Path) -> Adapter:
        """Read such a file. Raises ModelError if it is none."""
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise ModelError(f"{path}: its format is {header.get('format')!r}, not {_FORMAT!r}")
                names = {name.rpartition(".")[0] for name in file.keys()}  # noqa: SIM118
                matrices = {
                    name: LowRank(file.get_tensor(f"{name}.down").float(), file.get_tensor(f"{name}.up").float())
                    for name in sorted(names)
                }
                return cls(header["model"], float(header["scale"]), matrices, json.loads(header["provenance"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ModelError(f"{path}: it is no adapter ({error}); make one with `python -m training`") from None

    def merge_into(self, model: torch.nn.Module, name: str) -> None:
        """Change the weights of a model of transformers, in place; `name` is its name.

        Raises ModelError for another model, and for matrices that it does not have, before anything is changed.
        """
        if name != self.model:
            raise ModelError(f"the adapter is for {self.model}, not for {name}; name another one, or none")
        modules = dict(model.named_modules())
        for place, change in self.matrices.items():
            weight = getattr(modules.get(place), "weight", None)
            expected = (change.up.shape[0], change.down.shape[1])
            if weight is None or tuple(weight.shape) != expected or change.down.shape[0] != change.up.shape[1]:
                raise ModelError(f"the adapter changes {place} of shape {list(expected)}, which {name} does not have")
        with torch.no_grad():
            for place, change in self.matrices.items():
                weight = modules[place].weight
                weight += (self.scale * (change.up @ change.down)).to(weight.dtype)
