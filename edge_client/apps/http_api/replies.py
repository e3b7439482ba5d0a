"""The answers of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chaperone_common.errors import ChaperoneError
from chaperone_common.logprobs import TokenLogprobs
from chaperone_common.session import Committed, Finished
from chaperone_common.stats import GenerationStats
from chaperone_common.types import FinishReason
from edge_client.apps.http_api.logprobs import Offsets, of_chat, of_completion, sources
from edge_client.generation import error_json

# Of the statistics: those that say how far the large model stands by the text.
_VERIFIED = (
    "seed",
    "round_trips",
    "verified_tokens",
    "overridden_tokens",
    "skipped_tokens",
    "unverified_tokens",
    "deviations",
    "promises_hold",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A text and its measurements."""

    text: str
    origins: tuple[str, ...]  # of each token
    finish_reason: FinishReason
    stats: GenerationStats
    unverified: ChaperoneError | None = None  # the loss of the cloud, if the device continued alone
    logprobs: tuple[TokenLogprobs, ...] | None = None  # of each token that adds to the text, if they are wanted


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: its id, kind, time and model, which each part of it repeats."""

    id: str
    kind: str  # `chat.completion` or `text_completion`
    created: int  # seconds since 1970
    model: str

    @property
    def chats(self) -> bool:
        """True for `/v1/chat/completions`."""
        return self.kind == "chat.completion"

    @property
    def prompt(self) -> str:
        """The name of the request's field that holds the text to answer."""
        return "messages" if self.chats else "prompt"

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the JSON of an answer that is not streamed."""
        stats = [answer.stats for answer in answers]
        return {
            **self._head(self.kind),
            **_fingerprint(stats[0]),
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": usage(stats),
            "chaperone": {
                "choices": [
                    {
                        **_verified(answer.stats, answer.unverified),
                        "origins": answer.origins,
                        **({} if answer.logprobs is None else {"logprob_sources": sources(answer.logprobs)}),
                    }
                    for answer in answers
                ]
            },
        }

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        text: dict[str, Any] = {"text": answer.text}
        if self.chats:
            text = {"message": {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}}
        return {
            "index": index,
            **text,
            "logprobs": self._logprobs(answer.logprobs),
            "finish_reason": str(answer.finish_reason),
        }

    def _logprobs(self, found: Sequence[TokenLogprobs] | None, offsets: Offsets | None = None) -> dict[str, Any] | None:
        if found is None:
            return None
        return of_chat(found) if self.chats else of_completion(found, offsets or Offsets())

    def begins(self, index: int) -> str:
        """Return the first event of a choice, which holds no text."""
        return self._event(index, {"role": "assistant", "content": "", "refusal": None} if self.chats else "")

    def token(
        self, index: int, event: Committed, found: Sequence[TokenLogprobs] | None = None, offsets: Offsets | None = None
    ) -> str:
        """Return the event of a token.

        `found` are the log-probabilities of it and of tokens before it that completed no text, if they are wanted;
        `offsets` has counted those of earlier events.
        """
        chaperone: dict[str, Any] = {"source": str(event.origin)}
        return self._part(index, event.text, found, offsets, chaperone)

    def ends(
        self,
        index: int,
        event: Finished,
        unverified: ChaperoneError | None,
        found: Sequence[TokenLogprobs] | None = None,
        offsets: Offsets | None = None,
    ) -> list[str]:
        """Return the last events of a choice: the rest of its text and log-probabilities, and its end."""
        verified = _verified(event.stats, unverified)
        last = self._event(
            index,
            {} if self.chats else "",
            finish_reason=str(event.finish_reason),
            chaperone=verified,
            fingerprint=_fingerprint(event.stats),
        )
        return [self._part(index, event.text, found, offsets), last] if event.text or found else [last]

    def _part(
        self,
        index: int,
        text: str,
        found: Sequence[TokenLogprobs] | None,
        offsets: Offsets | None,
        chaperone: dict[str, Any] | None = None,
    ) -> str:
        if found is not None:
            chaperone = {**(chaperone or {}), "logprob_sources": sources(found)}
        added = {"content": text} if self.chats else text
        return self._event(index, added, logprobs=self._logprobs(found, offsets), chaperone=chaperone)

    def usage(self, stats: Sequence[GenerationStats]) -> str:
        """Return the event with the usage of all choices."""
        head = {**self._head(self._chunk_kind), **_fingerprint(stats[0])}
        return server_sent({**head, "choices": [], "usage": usage(stats)})

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chats else self.kind

    def _event(
        self,
        index: int,
        text: dict[str, Any] | str,
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        chaperone: dict[str, Any] | None = None,
        fingerprint: Mapping[str, str] | None = None,
    ) -> str:
        key = "delta" if self.chats else "text"
        choice = {"index": index, key: text, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk: dict[str, Any] = {**self._head(self._chunk_kind), **(fingerprint or {}), "choices": [choice]}
        return server_sent(chunk if chaperone is None else {**chunk, "chaperone": chaperone})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(stats: Sequence[GenerationStats]) -> dict[str, Any]:
    """Return the usage of all choices: their prompt counts once."""
    prompt = stats[0].prompt_tokens
    completion = sum(each.completion_tokens for each in stats)
    cached = max(stats[0].edge_cached_tokens, stats[0].cloud_cached_tokens)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": min(cached, prompt)},
    }


def models(name: str, created: int) -> dict[str, Any]:
    """Return the list of models: the one pair."""
    return {"object": "list", "data": [model(name, created)]}


def model(name: str, created: int) -> dict[str, Any]:
    """Return the description of the pair."""
    return {"id": name, "object": "model", "created": created, "owned_by": "chaperone"}


def server_sent(data: dict[str, Any] | str) -> str:
    """Return a server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n"


def _fingerprint(stats: GenerationStats) -> dict[str, str]:
    """Return the field that names the large model. A stream has it at its end, when the model is certain."""
    return {"system_fingerprint": stats.model_digest} if stats.model_digest else {}


def _verified(stats: GenerationStats, unverified: ChaperoneError | None) -> dict[str, Any]:
    """Return what the cloud verified of a text."""
    verified: dict[str, Any] = {name: getattr(stats, name) for name in _VERIFIED}
    verified["stats"] = stats.to_json()
    if unverified is not None:
        verified["unverified"] = error_json(unverified)
    return verified
