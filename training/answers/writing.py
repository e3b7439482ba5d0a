"""Answers by the large model, several texts at once, on the engine that serves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.artefacts.sources import Origin
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import Choice, SamplingParams
from cloud_supervisor.export.conversion import load_tokenizer, message_ids
from cloud_supervisor.kv.slots import SlotCache
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.model.torch_model import Dtype, TorchModel
from training.answers.answer import Answer, Author, Rows
from training.answers.sampling import Sampling
from training.options import check_layers
from training.prompt import Prompt


@dataclass(slots=True)
class _Text:
    """An answer that is being written."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    cache: SlotCache
    choices: list[Choice] = field(default_factory=list)

    def request(self, top: int) -> ForwardRequest:
        """Return the request for the next token: of the prompt, or of the last token that was written."""
        fed = (self.choices[-1].token_id,) if self.choices else self.prompt
        return ForwardRequest(self.cache, TokenTree(fed, (), self.cache.length), 1, self.sampling, top)


class Writer:
    """The large model of a pair, as it writes answers to batches of prompts."""

    def __init__(
        self,
        model: TorchModel,
        tokenizer: Any,
        eos_token_ids: Sequence[int],
        *,
        author: Author,
        name: str,
        top: int,
        layers: Sequence[int] = (),
    ) -> None:
        """Keep the `top` likeliest tokens, and the hidden states of each prompt after `layers`.

        `name` says which weights write, and in which data type. Layer 0 are the embeddings, and the number of layers is
        the last.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._ends = frozenset(eos_token_ids)
        self._author = author
        self._name = name
        self._top = top
        self._layers = layers

    @classmethod
    def of_pair(cls, pair: str, dtype: Dtype | Literal["auto"], *, top: int, layers: Sequence[int] = ()) -> Writer:
        """Load the large model of a pair that was pulled.

        Raises ConfigError for a layer that it does not have, and ModelMissing, or another ModelError.
        """
        folder = pair_folder(pair, "cloud")
        manifest = load_manifest(folder, role="cloud")
        model = TorchModel.of_manifest(folder, manifest, dtype=dtype, threads=None)
        check_layers(layers, model.num_layers)
        tokenizer = load_tokenizer(Origin(str(folder)))
        name = f"{manifest.digest} {model.dtype}"
        author = Author(manifest.model, manifest.tokenizer_digest)
        return cls(model, tokenizer, manifest.eos_token_ids, author=author, name=name, top=top, layers=layers)

    @property
    def context_tokens(self) -> int:
        """The longest text, prompt and answer together."""
        return self._model.context_tokens

    @property
    def author(self) -> Author:
        """The large model, as its answers name it."""
        return self._author

    @property
    def settings(self) -> dict[str, object]:
        """Everything about the model that an answer depends on."""
        return {"model": self._name, "top": self._top, "layers": list(self._layers)}

    def prompt_ids(self, prompt: Prompt) -> NDArray[np.int32]:
        """Return the token ids of a prompt, with the chat template around it."""
        return np.array(message_ids(self._tokenizer, prompt.text), np.int32)

    def text_of(self, answer: Answer) -> str:
        """Return the text of an answer, without special tokens."""
        return str(self._tokenizer.decode(answer.tokens.tolist(), skip_special_tokens=True))

    def encoded(self, answer: Answer) -> Answer:
        """Return an answer with the hidden states of its prompt."""
        text = _Text(tuple(answer.prompt.tolist()), SamplingParams(temperature=0.0), SlotCache(self._model.kv_pool))
        return replace(answer, encodings=self._read(text))

    def write(self, prompts: Sequence[Prompt], sampling: Sampling, max_new_tokens: int) -> list[Answer]:
        """Return an answer to each prompt, of at most `max_new_tokens`; each text has noise of its own."""
        texts, encodings = [], []
        for number, prompt in enumerate(prompts):
            seed = (sampling.seed << 16) + number
            params = SamplingParams(temperature=sampling.temperature, top_p=sampling.top_p, seed=seed)
            text = _Text(tuple(self.prompt_ids(prompt).tolist()), params, SlotCache(self._model.kv_pool))
            encodings.append(self._read(text))
            texts.append(text)
        while writing := [text for text in texts if not self._is_whole(text, max_new_tokens)]:
            for text, choices in zip(
                writing, self._model.forward([text.request(self._top) for text in writing]), strict=True
            ):
                text.choices += choices
        return [
            self._answer(prompt, text, encoded) for prompt, text, encoded in zip(prompts, texts, encodings, strict=True)
        ]

    def _read(self, text: _Text) -> dict[int, Rows]:
        """Read a prompt, choose the first token, and return the prompt's hidden states."""
        text.choices, states = self._model.hidden_states(text.request(self._top), self._layers)
        return {layer: Rows.of(rows) for layer, rows in zip(self._layers, states, strict=True)}

    def _is_whole(self, text: _Text, max_new_tokens: int) -> bool:
        ended = len(text.choices) >= max_new_tokens or text.choices[-1].token_id in self._ends
        if ended:
            text.cache.crop(0)
        return ended

    def _answer(self, prompt: Prompt, text: _Text, encodings: dict[int, Rows]) -> Answer:
        top = [choice.logprobs.top for choice in text.choices if choice.logprobs is not None]
        return Answer(
            self._author,
            prompt.id,
            prompt.kind,
            np.array(text.prompt, np.int32),
            np.array([choice.token_id for choice in text.choices], np.int32),
            np.array([[token_id for token_id, _ in row] for row in top], np.int32),
            np.array([[logprob for _, logprob in row] for row in top], np.float16),
            encodings,
        )
