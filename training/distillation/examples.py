"""Answers as batches of tensors, and which of them training never sees."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.answers.answer import Answer

_HELD_OUT = 0.08  # share of the prompts


@dataclass(frozen=True, slots=True)
class Batch:
    """Some texts, padded at their ends to the longest.

    `rows` points at the places in the flattened [texts x longest] whose next token is one of an answer. The targets
    are of these rows.
    """

    tokens: torch.Tensor  # int64 [texts, longest]
    mask: torch.Tensor  # int64 [texts, longest]: 1 for tokens, 0 for padding
    prompt_lengths: tuple[int, ...]
    rows: torch.Tensor  # int64 [M]
    top_ids: torch.Tensor  # int64 [M, K]
    top_logprobs: torch.Tensor  # float32 [M, K]
    encodings: torch.Tensor | None  # float32 [texts, longest prompt, width of all layers], 0 after a prompt's end


def is_held_out(answer_id: str) -> bool:
    """Return whether training never sees a prompt. It depends on its name alone, so it stays when prompts are added."""
    return int.from_bytes(hashlib.sha256(answer_id.encode()).digest()[:4]) < _HELD_OUT * 2**32


def batch_of(answers: Sequence[Answer], layers: Sequence[int]) -> Batch:
    """Join answers to a batch; `layers` are those whose encodings it holds, none for none."""
    lengths = [len(answer.prompt) + len(answer.tokens) for answer in answers]
    longest = max(lengths)
    tokens = torch.zeros(len(answers), longest, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    rows = []
    for text, answer in enumerate(answers):
        tokens[text, : lengths[text]] = torch.from_numpy(np.concatenate([answer.prompt, answer.tokens]))
        mask[text, : lengths[text]] = 1
        first = text * longest + len(answer.prompt) - 1  # the row before a token predicts it
        rows.append(torch.arange(first, first + len(answer.tokens)))
    return Batch(
        tokens=tokens,
        mask=mask,
        prompt_lengths=tuple(len(answer.prompt) for answer in answers),
        rows=torch.cat(rows),
        top_ids=torch.from_numpy(np.concatenate([answer.top_ids for answer in answers])).long(),
        top_logprobs=torch.from_numpy(np.concatenate([answer.top_logprobs for answer in answers])).float(),
        encodings=_encodings(answers, layers) if layers else None,
    )


def _encodings(answers: Sequence[Answer], layers: Sequence[int]) -> torch.Tensor:
    joined = [np.concatenate([answer.encodings[layer].restored() for layer in layers], axis=1) for answer in answers]
    padded = torch.zeros(len(joined), max(map(len, joined)), joined[0].shape[1])
    for text, rows in enumerate(joined):
        padded[text, : len(rows)] = torch.from_numpy(rows)
    return padded


def steps_of(answers: Sequence[Answer], tokens: int, draws: np.random.Generator) -> list[list[Answer]]:
    """Return batches of at most about `tokens` tokens with their padding, each answer once, in random order.

    Texts of about one length share a batch.
    """
    ordered = sorted(answers, key=lambda answer: len(answer.prompt) + len(answer.tokens) + draws.uniform(0, 32))
    batches: list[list[Answer]] = [[]]
    for answer in ordered:
        length = len(answer.prompt) + len(answer.tokens)
        if batches[-1] and (len(batches[-1]) + 1) * length > tokens:
            batches.append([])
        batches[-1].append(answer)
    return [batches[index] for index in draws.permutation(len(batches))]
