"""The projector: from the large model's hidden states to rows that are added to the embeddings of the device's model.

Source: LLM-to-SLM (Bergner et al. 2024, arXiv 2402.16844), where the rows are called Z.
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

from chaperone_common.artefacts.manifest import ProjectorSpec, pull_remedy
from chaperone_common.errors import ModelCorrupt, ModelError
from chaperone_common.files import replace_file

PROJECTOR_NAME = "projector.safetensors"  # in the folder of the cloud's model

_FORMAT = "chaperone-projector-1"
_TENSORS = ("first.weight", "first.bias", "last.weight", "last.bias")


class Projector(torch.nn.Module):
    """Linear, ReLU, Linear, after a norm without weights. The last matrix starts at zero, so that all rows do."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(width_in, elementwise_affine=False)
        self.first = torch.nn.Linear(width_in, hidden)
        self.last = torch.nn.Linear(hidden, width_out)
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.zeros_(self.last.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return rows [..., width_out] of hidden states [..., width_in]."""
        result: torch.Tensor = self.last(torch.relu(self.first(self.norm(states))))
        return result


@dataclass(frozen=True, slots=True)
class ProjectorWeights:
    """A trained projector, and the layers of the large model whose hidden states it reads, joined in this order.

    Layer 0 are the embeddings, layer i is the input of the decoder layer with index i, and the number of layers is the
    state after the last norm: as transformers counts `hidden_states`. Raises ValueError for tensors that do not fit
    together.
    """

    layers: tuple[int, ...]
    tensors: Mapping[str, torch.Tensor]  # float32, with values that bfloat16 can hold; by the names of `Projector`

    def __post_init__(self) -> None:
        if not self.layers or min(self.layers) < 0:
            raise ValueError(f"layers: {self.layers}; a projector reads at least one layer, from 0 on")
        if {*self.tensors} != {*_TENSORS}:
            raise ValueError(f"tensors: {sorted(self.tensors)}, not {sorted(_TENSORS)}")
        shapes = [tuple(self.tensors[name].shape) for name in _TENSORS]
        hidden, width = shapes[1][:1], shapes[3][:1]
        if not (shapes == [hidden + shapes[0][1:], hidden, width + hidden, width] and len(shapes[0]) == 2):
            raise ValueError(f"tensors: shapes {shapes} of {_TENSORS} do not fit together")
        if not all(torch.isfinite(tensor).all() for tensor in self.tensors.values()):
            raise ValueError("tensors: some values are no finite numbers")

    @classmethod
    def of(cls, layers: tuple[int, ...], tensors: Mapping[str, torch.Tensor]) -> ProjectorWeights:
        """Take tensors of any type, rounded to what a file holds."""
        rounded = {name: tensor.detach().to(torch.bfloat16).float().cpu() for name, tensor in tensors.items()}
        return cls(layers, rounded)

    @property
    def width_in(self) -> int:
        """Numbers of all layers' hidden states together."""
        return int(self.tensors["first.weight"].shape[1])

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return int(self.tensors["last.weight"].shape[0])

    @property
    def spec(self) -> ProjectorSpec:
        """The entry of a manifest. Its digest is of the layers and tensors."""
        digest = hashlib.sha256(json.dumps([_FORMAT, list(self.layers)]).encode())
        for name, tensor in self.stored().items():
            digest.update(json.dumps([name, list(tensor.shape)]).encode())
            digest.update(tensor.view(torch.int16).numpy().astype("<i2").tobytes())
        return ProjectorSpec(digest="sha256:" + digest.hexdigest(), width=self.width, layers=self.layers)

    def stored(self) -> dict[str, torch.Tensor]:
        """Return the tensors as a file holds them."""
        return {name: self.tensors[name].to(torch.bfloat16).contiguous() for name in _TENSORS}

    def module(self, device: torch.device) -> Projector:
        """Return the projector, ready to compute in float32."""
        hidden = self.tensors["first.bias"].shape[0]
        projector = Projector(self.width_in, hidden, self.width)
        projector.load_state_dict(dict(self.tensors))
        return projector.requires_grad_(False).eval().to(device)

    def check_cloud(self, config: Any, name: str) -> None:
        """Raise ModelError unless the large model `name` has the layers and the width that the projector reads."""
        layers, width = int(config.num_hidden_layers), int(config.hidden_size)
        if max(self.layers) > layers:
            raise ModelError(
                f"projector: it reads layer {max(self.layers)}, {name} has layers 0 to {layers}; "
                "train one for this pair, or name another adapter"
            )
        if self.width_in != width * len(self.layers):
            raise ModelError(
                f"projector: it reads {self.width_in} numbers of a token, {len(self.layers)} layers of {name} have "
                f"{width * len(self.layers)}; train one for this pair, or name another adapter"
            )

    def check_edge(self, width: int, name: str) -> None:
        """Raise ModelError unless the embeddings of the device's model `name` have the width of the rows."""
        if self.width != width:
            raise ModelError(
                f"projector: its rows have {self.width} numbers, the embeddings of {name} {width}; "
                "train one for this pair, or name another adapter"
            )

    def save(self, folder: Path) -> None:
        """Write a safetensors file into the folder of the cloud's model."""
        header = {"format": _FORMAT, "layers": json.dumps(self.layers)}
        replace_file(folder / PROJECTOR_NAME, [save(self.stored(), header)])

    @classmethod
    def load(cls, folder: Path, expected: ProjectorSpec) -> ProjectorWeights:
        """Read that file. Raises ModelCorrupt unless it has the projector that the manifest names."""
        path = folder / PROJECTOR_NAME
        remedy = pull_remedy(folder, "cloud", force=True)
        try:
            with safe_open(path, framework="pt") as file:
                layers = json.loads((file.metadata() or {}).get("layers", "[]"))
                weights = cls.of(tuple(layers), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, TypeError, ValueError, RuntimeError) as error:
            raise ModelCorrupt(f"{path}: it is no projector ({error}); {remedy}") from None
        if weights.spec.digest != expected.digest:
            raise ModelCorrupt(
                f"{path}: the projector is {weights.spec.digest}, the manifest says {expected.digest}; {remedy}"
            )
        return weights
