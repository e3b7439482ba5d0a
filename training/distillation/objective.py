"""The objective of training: the divergence from the large model's likely tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_LEAST = 1e-6  # of a probability; float16 log-probabilities of all K tokens can sum to a little over 1


def divergence(logits: torch.Tensor, top_ids: torch.Tensor, top_logprobs: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q) of each row, in nats [M].

    p is the large model's distribution over its K likeliest tokens, with all others as one; q is that of `logits`
    [M, vocabulary] over the same K + 1 events. A token with log-probability -inf counts with the others.
    """
    log_q = logits.float().log_softmax(dim=-1).gather(1, top_ids)
    listed = top_logprobs.isfinite()
    p = top_logprobs.exp()
    rest_p = (1 - p.sum(dim=1)).clamp(min=_LEAST)
    rest_q = (1 - (log_q.exp() * listed).sum(dim=1)).clamp(min=_LEAST)
    among_listed = (p * (top_logprobs.masked_fill(~listed, 0.0) - log_q)).sum(dim=1)
    return among_listed + rest_p * (rest_p.log() - rest_q.log())


@dataclass(slots=True)
class Likeness:
    """The likeness of a drafter to the large model, summed over tokens."""

    tokens: int = 0
    divergence: float = 0.0  # nats
    agreed: int = 0  # tokens whose likeliest is the large model's
    overlap: float = 0.0  # sum over tokens of the probability that both share, at temperature 1

    def add(self, logits: torch.Tensor, top_ids: torch.Tensor, top_logprobs: torch.Tensor) -> None:
        """Add some rows."""
        q = logits.float().softmax(dim=-1).gather(1, top_ids)
        self.tokens += len(logits)
        self.divergence += float(divergence(logits, top_ids, top_logprobs).sum())
        self.agreed += int((logits.argmax(dim=-1) == top_ids[:, 0]).sum())
        self.overlap += float(torch.minimum(q, top_logprobs.exp()).sum())

    def as_json(self) -> dict[str, float]:
        """Return means over tokens."""
        return {
            "tokens": self.tokens,
            "divergence": round(self.divergence / self.tokens, 5),
            "agreement": round(self.agreed / self.tokens, 5),
            "overlap": round(self.overlap / self.tokens, 5),
        }
