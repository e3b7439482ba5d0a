"""The device's model in training: its own weights stay, and a low-rank adapter, a projector, or both are learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from chaperone_common.errors import ConfigError
from cloud_supervisor.export.adapter import Adapter, LowRank, weights_digest
from cloud_supervisor.model.projector import Projector, ProjectorWeights
from training.distillation.examples import Batch

_SCALE = 2  # of an adapter's change


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of what is learned."""

    rank: int = 8  # of the adapter; 0: no adapter
    layers: tuple[int, ...] = ()  # of the large model, which the projector reads; empty: no projector
    hidden: int = 512  # width of the projector's middle


class Drafter:
    """The device's model with what is learned."""

    def __init__(self, model: Any, shape: Shape, encoding_width: int = 0) -> None:
        """Take a causal language model of transformers; its weights are frozen."""
        model.requires_grad_(False)
        self._base_digest = weights_digest(model)
        self._shape = shape
        self._base = model
        self._kept: Adapter | None = None  # low-rank changes that stay as they are
        self.projector: Projector | None = None
        if shape.rank:
            config = LoraConfig(r=shape.rank, lora_alpha=_SCALE * shape.rank, target_modules="all-linear")
            self._adapted: Any = get_peft_model(model, config)
        else:
            self._adapted = None
        if shape.layers:
            width = model.get_input_embeddings().weight.shape[1]
            self.projector = Projector(encoding_width, shape.hidden, width)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield what is learned."""
        yield from (parameter for parameter in self._base.parameters() if parameter.requires_grad)
        if self.projector is not None:
            yield from self.projector.parameters()

    def logits(self, batch: Batch) -> torch.Tensor:
        """Return the logits [M, vocabulary] before each token of the batch's answers."""
        embeddings = self._base.get_input_embeddings()(batch.tokens)
        if self.projector is not None and batch.encodings is not None:
            z = self.projector(batch.encodings)
            places = torch.arange(z.shape[1])[None, :, None] < torch.tensor(batch.prompt_lengths)[:, None, None]
            z = torch.where(places, z, 0.0).to(embeddings.dtype)
            embeddings = torch.cat([embeddings[:, : z.shape[1]] + z, embeddings[:, z.shape[1] :]], dim=1)
        states = self._base.get_decoder()(
            inputs_embeds=embeddings, attention_mask=batch.mask, use_cache=False
        ).last_hidden_state
        result: torch.Tensor = self._base.get_output_embeddings()(states.flatten(0, 1)[batch.rows])
        return result

    def learned(self) -> dict[str, torch.Tensor]:
        """Return copies of all that is learned, by name."""
        own = {name: value for name, value in self._base.named_parameters() if value.requires_grad}
        if self.projector is not None:
            own |= {f"projector.{name}": value for name, value in self.projector.named_parameters()}
        return {name: value.detach().clone() for name, value in own.items()}

    def load(self, learned: dict[str, torch.Tensor]) -> None:
        """Take over what `learned` has returned."""
        with torch.no_grad():
            for name, value in self._base.named_parameters():
                if value.requires_grad:
                    value.copy_(learned[name])
            for name, value in self.projector.named_parameters() if self.projector is not None else ():
                value.copy_(learned[f"projector.{name}"])

    @property
    def base_digest(self) -> str:
        """The digest of the weights that stay."""
        return self._base_digest

    def begin_with(self, adapter: Adapter, model: str) -> None:
        """Take over an adapter of this model; `model` is its name. Raises ConfigError for one of another form.

        With rank 0 its low-rank changes stay as they are, so that a projector is learned on top of them.
        """
        if (adapter.model, adapter.base) != (model, self._base_digest):
            raise ConfigError(f"--begin-with: it is for {adapter.model}, or for other weights of it than here")
        if self._shape.rank:
            self._go_on_with(adapter)
        else:
            adapter.merge_into(self._base, model)
            self._kept = adapter
        if adapter.projector is None:
            return
        if self.projector is None or adapter.projector.layers != self._shape.layers:
            raise ConfigError(f"--begin-with: it has a projector; give --layers {_joined(adapter.projector.layers)}")
        try:
            self.projector.load_state_dict(dict(adapter.projector.tensors))
        except RuntimeError:
            width = len(adapter.projector.tensors["first.bias"])
            raise ConfigError(f"--begin-with: its projector has a middle of {width}; give --hidden {width}") from None

    def _go_on_with(self, adapter: Adapter) -> None:
        """Take over low-rank changes as the first state of those that are learned."""
        own = dict(self._base.named_modules())
        with torch.no_grad():
            for place, change in adapter.matrices.items():
                module = own.get(place)
                if module is None or not hasattr(module, "lora_A"):
                    raise ConfigError(f"--begin-with: it changes {place}, and --rank {self._shape.rank} does not")
                down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
                if down.shape != change.down.shape:
                    raise ConfigError(f"--begin-with: it has rank {len(change.down)}; give --rank {len(change.down)}")
                down.copy_(change.down)
                up.copy_(change.up * (adapter.scale / _SCALE))

    def adapter(self, model: str, provenance: dict[str, Any]) -> Adapter:
        """Return what was learned: the low-rank changes, the projector, or both; with changes that were kept."""
        matrices = {
            name: LowRank(module.lora_A["default"].weight.detach(), module.lora_B["default"].weight.detach())
            for name, module in self._base.named_modules()
            if hasattr(module, "lora_A")
        }
        scale = float(_SCALE)
        if self._kept is not None:
            matrices, scale = dict(self._kept.matrices), self._kept.scale
        projector = None
        if self.projector is not None:
            projector = ProjectorWeights.of(self._shape.layers, self.projector.state_dict())
        return Adapter(model, self._base_digest, scale, matrices, provenance, projector)


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def encoding_width(encodings: Sequence[Any], layers: Sequence[int]) -> int:
    """Return the width of the joined hidden states of some layers."""
    return sum(encodings[0][layer].values.shape[1] for layer in layers)
