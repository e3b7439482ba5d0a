"""Answers by the large model, several texts at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor, LogitsProcessorList

from cloud_supervisor.export.conversion import LoadedModel, message_ids
from training.answers.answer import Answer, Rows
from training.answers.sampling import Sampling
from training.pair import models_of
from training.prompt import Prompt


class TopTokens(LogitsProcessor):
    """Records the likeliest tokens of each step, and changes nothing."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._ids: list[NDArray[np.int32]] = []
        self._logprobs: list[NDArray[np.float16]] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Record a step; `scores` [texts, vocabulary] are logits at temperature 1."""
        values, ids = scores.float().topk(self._count, dim=-1)
        logprobs = values - scores.float().logsumexp(dim=-1, keepdim=True)
        self._ids.append(ids.numpy().astype(np.int32))
        self._logprobs.append(logprobs.numpy().astype(np.float16))
        return scores

    def of(self, text: int, steps: int) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
        """Return ids and log-probabilities [steps, count] of one text."""
        ids = np.stack([step[text] for step in self._ids[:steps]])
        return ids, np.stack([step[text] for step in self._logprobs[:steps]])


class Writer:
    """The large model, as it writes answers to batches of prompts."""

    def __init__(
        self, loaded: LoadedModel, vocabulary_size: int, *, name: str, top: int, layers: Sequence[int]
    ) -> None:
        """Take a model of transformers. Tokens from `vocabulary_size` on are padding of its matrix.

        `layers` are those whose hidden states are kept of each prompt: 0 are the embeddings, and the number of layers
        is the last.
        """
        self._loaded = loaded
        self._name = name
        self._no_tokens = [*range(vocabulary_size, loaded.model.get_output_embeddings().weight.shape[0])]
        self._top = top
        self._layers = layers

    @classmethod
    def of_pair(cls, pair: str, dtype: str, *, top: int, layers: Sequence[int] = ()) -> Writer:
        """Load the large model of a pair; raises ConfigError or ModelError."""
        with models_of(pair) as (_, cloud):
            vocabulary_size = cloud.vocabulary.size
            return cls(cloud.load(dtype), vocabulary_size, name=f"{cloud.name} {dtype}", top=top, layers=layers)

    @property
    def settings(self) -> dict[str, object]:
        """Everything about the model that an answer depends on."""
        return {"model": self._name, "top": self._top, "layers": list(self._layers)}

    def prompt_ids(self, prompt: Prompt) -> NDArray[np.int32]:
        """Return the token ids of a prompt, with the chat template around it."""
        return np.array(message_ids(self._loaded.tokenizer, prompt.text), np.int32)

    def text_of(self, answer: Answer) -> str:
        """Return the text of an answer, without special tokens."""
        return str(self._loaded.tokenizer.decode(answer.tokens.tolist(), skip_special_tokens=True))

    def write(self, prompts: Sequence[Prompt], sampling: Sampling, max_new_tokens: int) -> list[Answer]:
        """Return an answer to each prompt, of at most `max_new_tokens`."""
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        ends = set(self._loaded.eos_token_ids)
        longest = max(map(len, ids))
        padding = self._loaded.eos_token_ids[0]
        batch = torch.tensor([[padding] * (longest - len(row)) + row.tolist() for row in ids])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
        recorded = TopTokens(self._top)
        drawn = sampling.temperature > 0
        torch.manual_seed(sampling.seed)
        with torch.inference_mode():
            output = self._loaded.model.generate(
                batch,
                attention_mask=mask,
                do_sample=drawn,
                num_beams=1,
                temperature=sampling.temperature if drawn else None,
                top_p=sampling.top_p if drawn else None,
                top_k=0 if drawn else None,
                repetition_penalty=1.0,
                max_new_tokens=max_new_tokens,
                suppress_tokens=self._no_tokens or None,
                pad_token_id=padding,
                logits_processor=LogitsProcessorList([recorded]),
                output_hidden_states=bool(self._layers),
                return_dict_in_generate=True,
            )
        states = {layer: output.hidden_states[0][layer].float().numpy() for layer in self._layers}
        answers = []
        for text, (prompt, row) in enumerate(zip(prompts, ids, strict=True)):
            written = _ended(output.sequences[text, longest:].tolist(), ends)
            top_ids, top_logprobs = recorded.of(text, len(written))
            encodings = {layer: Rows.of(rows[text, longest - len(row) :]) for layer, rows in states.items()}
            tokens = np.array(written, np.int32)
            answers.append(Answer(prompt.id, prompt.kind, row, tokens, top_ids, top_logprobs, encodings))
        return answers


def _ended(tokens: list[int], ends: set[int]) -> list[int]:
    """Return the tokens up to the first one that ends a text."""
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    return tokens if end is None else tokens[: end + 1]
