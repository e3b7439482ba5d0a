"""The text that the cloud model writes alone, computed as plainly as possible.

No code of Chaperone is used here: forwards run without a cache, Philox uses Python integers, and the rule of coupled
choice uses float64, as the protocol states it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

MASK = 2**64 - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 (Salmon et al., SC 2011)."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (b >> 64) ^ c1 ^ k0, b & MASK, (a >> 64) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


@lru_cache(maxsize=1024)
def _block(seed: int, position: int, block: int) -> list[int]:
    """Return the raw numbers of four tokens; cached, since a choice needs each of them."""
    return philox([1 + block, position, 0, 0], [seed, 0])


def uniform(seed: int, position: int, token_id: int) -> float:
    raw = _block(seed, position, token_id // 4)[token_id % 4]
    return ((raw >> 11) + 0.5) * 2.0**-53


def choice(
    logits: np.ndarray[Any, Any],
    position: int,
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    seed: int,
) -> int:
    """Return the token that the rule chooses for a position; `logits  # [vocabulary]`."""
    if temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p = (p / p.sum()).tolist()  # a loop reads Python's floats faster than numpy's
    order = sorted(range(len(p)), key=lambda v: (-p[v], v))
    if top_k:
        order = order[:top_k]
    mass, total, kept = 0.0, sum(p[v] for v in order), []
    for v in order:
        if mass >= top_p * total:
            break
        kept.append(v)
        mass += p[v]
    kept = [v for v in kept if p[v] >= min_p * p[order[0]]]
    return max(kept, key=lambda v: math.log(p[v]) - math.log(-math.log(uniform(seed, position, v))))


def load(folder: Path, dtype: torch.dtype = torch.float32, *, attention: str | None = None) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()


def choices(
    model: Any, prompt: Sequence[int], text: Sequence[int], *, vocabulary_size: int, **sampling: Any
) -> list[int]:
    """Return the oracle's choice for each position of a text, after the prompt and the tokens before it.

    If every choice is the text's own token, the text is the oracle's, by induction over the positions.
    """
    found = rows(model, prompt, text, vocabulary_size=vocabulary_size)
    return [choice(row, len(prompt) + index, **sampling) for index, row in enumerate(found)]


def rows(model: Any, prompt: Sequence[int], text: Sequence[int], *, vocabulary_size: int) -> np.ndarray[Any, Any]:
    """Return the logits [tokens, vocabulary] from which each token of a text was chosen."""
    return _logits(model, [*prompt, *text], vocabulary_size)[len(prompt) - 1 : -1]


def generate(model: Any, prompt: Sequence[int], *, vocabulary_size: int, **settings: Any) -> tuple[list[int], str, str]:
    """Return token ids, text and finish reason, from a forward for each token."""

    def logits_after(ids: list[int]) -> np.ndarray[Any, Any]:
        return np.asarray(_logits(model, [*prompt, *ids], vocabulary_size)[-1])

    return _extend(logits_after, len(prompt), **settings)


def confirm(
    model: Any, prompt: Sequence[int], claimed: Sequence[int], *, vocabulary_size: int, **settings: Any
) -> tuple[list[int], str, str]:
    """Check claimed token ids with a single forward, and return the result of `generate` if they are right.

    Otherwise the result differs from the claim: it ends at the first other token, or where the oracle ends.
    """
    found = list(_logits(model, [*prompt, *claimed], vocabulary_size)[len(prompt) - 1 :])

    def logits_after(ids: list[int]) -> np.ndarray[Any, Any] | None:
        return found[len(ids)] if ids == [*claimed[: len(ids)]] else None

    return _extend(logits_after, len(prompt), **settings)


def _extend(
    logits_after: Callable[[list[int]], np.ndarray[Any, Any] | None],
    prompt_tokens: int,
    *,
    max_new_tokens: int,
    eos_token_ids: Container[int],
    decode: Callable[[list[int]], str],
    stop: Sequence[str] = (),
    **sampling: Any,
) -> tuple[list[int], str, str]:
    """Choose token after token, until the text ends or no logits are known."""
    ids: list[int] = []
    while len(ids) < max_new_tokens and (logits := logits_after(ids)) is not None:
        ids.append(choice(logits, prompt_tokens + len(ids), **sampling))
        text = decode(ids)
        ends = [text.index(s) for s in stop if s in text]
        if ends:
            return ids, text[: min(ends)], "stop"
        if ids[-1] in eos_token_ids:
            return ids, text, "stop"
    return ids, decode(ids), "length"


def _logits(model: Any, token_ids: list[int], vocabulary_size: int) -> np.ndarray[Any, Any]:
    """Return the logits [tokens, vocabulary] after each token, from one forward without cache."""
    with torch.inference_mode():
        logits: np.ndarray[Any, Any] = model(torch.tensor([token_ids]), use_cache=False).logits[0].float().numpy()
    return logits[:, :vocabulary_size]
