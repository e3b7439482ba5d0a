"""Learned routers: in each layer a linear map from the FFN's input to an effort, with one budget for all layers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gumbel_softmax, one_hot

from adaptive.duo import DuoTransformer, Effort

_BUDGET_WEIGHT = 4.0  # of the excess over the budget, in nats for each share of all big FFNs (an assumption)


class Router(nn.Module):
    """The router of a layer. In training it draws with Gumbel noise, and passes the gradient straight through."""

    def __init__(self, width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(Effort))
        self.generator = generator
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return weights [texts, tokens, 3] that are 0 or 1."""
        logits = self.linear(x.detach().float())
        if self.training:
            return gumbel_softmax(logits, tau=1.0, hard=True)
        return one_hot(logits.argmax(dim=-1), len(Effort)).float()


class Routers(nn.Module):
    """The routers of a network, which stays as it is."""

    def __init__(self, duo: DuoTransformer) -> None:
        super().__init__()
        duo.requires_grad_(False)
        self._duo = [duo]  # no part of this module's weights
        self.layers = nn.ModuleList(Router(duo.config.width) for _ in range(duo.config.layers))

    def logits(self, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [texts, tokens, vocabulary], and the cost of each token [texts, tokens] in big FFNs."""
        found, mixtures = self._routed(token_ids)
        costs = torch.tensor([effort.cost for effort in Effort])
        return found, (mixtures * costs).sum(dim=(2, 3))

    def efforts(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the efforts [texts, tokens, layers] that the routers choose."""
        _, mixtures = self._routed(token_ids)
        return mixtures.argmax(dim=-1)

    def _routed(self, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits, and the weights [texts, tokens, layers, 3] of all efforts."""
        duo = self._duo[0]
        for ffn, router in zip(duo.ffns, self.layers, strict=True):
            ffn.route, ffn.mixture, ffn.router = None, None, router
        try:
            found: torch.Tensor = duo.model(token_ids).logits
            mixtures = torch.stack([ffn.mixture for ffn in duo.ffns if ffn.mixture is not None], dim=2)
        finally:
            for ffn in duo.ffns:
                ffn.router = ffn.mixture = None
        return found, mixtures

    def loss(self, token_ids: torch.Tensor, budget: float) -> torch.Tensor:
        """Return the loss of texts [texts, tokens], in nats a token, with the mean cost held to a budget."""
        logits, costs = self.logits(token_ids)
        likelihood = cross_entropy(logits[:, :-1].flatten(0, 1).float(), token_ids[:, 1:].flatten())
        excess = (costs.mean() - budget).abs() / len(self.layers)
        return likelihood + _BUDGET_WEIGHT * excess


def train_routers(
    duo: DuoTransformer,
    texts: torch.Tensor,
    budget: float,
    *,
    steps: int,
    batch: int = 8,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> Routers:
    """Return routers that were trained on texts [texts, tokens] for a budget in big FFNs; the network stays."""
    torch.manual_seed(seed)
    routers = Routers(duo).train()
    optimiser = torch.optim.Adam(routers.parameters(), lr=learning_rate)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(texts), (batch,), generator=draws)
        loss = routers.loss(texts[chosen], budget)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return routers.eval()
