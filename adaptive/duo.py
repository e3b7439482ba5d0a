"""The Duo network: a Qwen2 model whose layers have a small FFN next to the big one, and a route for each token."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

SMALL_SHARE = 1 / 16  # of a big FFN's computation


class Effort(IntEnum):
    """The computation of a token in a layer, after the attention, which every token takes."""

    SKIP = 0  # no FFN
    SMALL = 1
    BIG = 2

    @property
    def cost(self) -> float:
        """In big FFNs."""
        return {Effort.SKIP: 0.0, Effort.SMALL: SMALL_SHARE, Effort.BIG: 1.0}[self]


@dataclass(frozen=True, slots=True)
class DuoConfig:
    """The size of a Duo network."""

    vocabulary: int
    layers: int = 8
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    big: int = 1024  # inner width of the big FFN; the small one has a sixteenth
    context: int = 512

    @property
    def small(self) -> int:
        """Inner width of the small FFN."""
        return max(1, int(self.big * SMALL_SHARE))

    def qwen2(self, inner: int) -> Qwen2Config:
        """Return the configuration of a Qwen2 model with FFNs of this inner width."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=inner,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            use_cache=False,
        )


class DuoFfn(nn.Module):
    """Both FFNs of a layer.

    `constant` says which one all tokens take, `route` which one each token takes, and `mixture` with which weights it
    takes both; the last one that is set counts.
    """

    def __init__(self, big: Qwen2MLP, small: Qwen2MLP) -> None:
        super().__init__()
        self.big, self.small = big, small
        self.constant = Effort.BIG
        self.route: torch.Tensor | None = None  # int64 [texts, tokens] of `Effort`
        self.mixture: torch.Tensor | None = None  # float [texts, tokens, 3], in the order of `Effort`
        self.router: nn.Module | None = None  # chooses the mixture from the input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum to add to the residual stream [texts, tokens, width]."""
        if self.router is not None:
            self.mixture = self.router(x)
        if self.mixture is not None:
            weights = self.mixture.to(x.dtype)
            small, big = weights[..., Effort.SMALL, None], weights[..., Effort.BIG, None]
            mixed: torch.Tensor = small * self.small(x) + big * self.big(x)
            return mixed
        if self.route is None:
            if self.constant is Effort.SKIP:
                return torch.zeros_like(x)
            whole: torch.Tensor = self.big(x) if self.constant is Effort.BIG else self.small(x)
            return whole
        found = torch.zeros_like(x)
        for effort, network in ((Effort.SMALL, self.small), (Effort.BIG, self.big)):
            chosen = self.route == effort
            found = found.masked_scatter(chosen[..., None], network(x[chosen]).to(x.dtype))
        return found


class DuoTransformer(nn.Module):
    """A causal language model with a route for each token and layer."""

    def __init__(self, config: DuoConfig, seed: int = 0) -> None:
        """Make a network with random weights."""
        super().__init__()
        self.config = config
        torch.manual_seed(seed)
        self.model = Qwen2ForCausalLM(config.qwen2(config.big))
        small = config.qwen2(config.small)
        for layer in self.decoder_layers:
            network = Qwen2MLP(small)
            for linear in (network.gate_proj, network.up_proj, network.down_proj):
                nn.init.normal_(linear.weight, std=small.initializer_range)
            layer.mlp = DuoFfn(layer.mlp, network)

    @property
    def decoder_layers(self) -> Any:
        """The layers of the model, of transformers."""
        return self.model.model.layers

    @property
    def ffns(self) -> list[DuoFfn]:
        """The FFNs of all layers."""
        return [layer.mlp for layer in self.decoder_layers]

    def forward(self, token_ids: torch.Tensor, routes: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits [texts, tokens, vocabulary]; `routes` [texts, tokens, layers] of `Effort`, None: all big."""
        for layer, ffn in enumerate(self.ffns):
            ffn.route = None if routes is None else routes[..., layer]
            ffn.mixture = None
        logits: torch.Tensor = self.model(token_ids).logits
        return logits

    def fixed(self, pattern: tuple[Effort, ...], token_ids: torch.Tensor) -> torch.Tensor:
        """Return routes by which all tokens take one pattern, an effort for each layer."""
        return torch.tensor(pattern).expand(*token_ids.shape, -1)

    def plain(self, pattern: tuple[Effort, ...]) -> Qwen2ForCausalLM:
        """Return a usual Qwen2 model that computes as this network does by one pattern.

        Its FFNs are as wide as the widest that the pattern takes. Others are filled up with zeros.
        """
        inner = self.config.big if Effort.BIG in pattern else self.config.small
        model = Qwen2ForCausalLM(self.config.qwen2(inner))
        own = {name: value for name, value in self.model.state_dict().items() if ".mlp." not in name}
        for layer, effort in enumerate(pattern):
            ffn = self.ffns[layer]
            network = ffn.big if effort is Effort.BIG else ffn.small
            for name, value in network.state_dict().items():
                rows = value if effort is not Effort.SKIP else torch.zeros_like(value)
                missing = inner - rows.shape[1 if name.startswith("down") else 0]
                pad = (0, missing) if name.startswith("down") else (0, 0, 0, missing)
                own[f"model.layers.{layer}.mlp.{name}"] = nn.functional.pad(rows, pad)
        model.load_state_dict(own)
        return model


def random_routes(shape: tuple[int, int], layers: int, generator: torch.Generator) -> torch.Tensor:
    """Return routes [texts, tokens, layers] with each effort equally likely: stage 1 trains with them."""
    return torch.randint(len(Effort), (*shape, layers), generator=generator)


def cost_of(routes: torch.Tensor) -> torch.Tensor:
    """Return the cost of each token [texts, tokens], in big FFNs."""
    costs = torch.tensor([effort.cost for effort in Effort])
    return costs[routes].sum(dim=-1)
