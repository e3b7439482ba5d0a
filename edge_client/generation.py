"""What is asked for, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaperone_common.errors import ChaperoneError
from chaperone_common.partial import PartialGeneration
from chaperone_common.session import Audited, Committed, Drafted, Event, Failed, Finished, Retracted, Unverified
from chaperone_common.stats import GenerationStats
from chaperone_common.types import (
    FinishReason,
    GenerationParams,
    Mode,
    Origin,
    Promises,
    PromptInput,
)

Prompt = str | Sequence[Mapping[str, Any]] | PromptInput


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    origins: tuple[Origin, ...]
    finish_reason: FinishReason
    stats: GenerationStats
    unverified: ChaperoneError | None = None  # why the device went on alone, if it did

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, as `chaperone generate` writes them; `unverified` only if the cloud was lost."""
        fields = {
            "prompt_token_ids": list(self.prompt_token_ids),
            "token_ids": list(self.token_ids),
            "text": self.text,
            "origins": [str(origin) for origin in self.origins],
            "finish_reason": str(self.finish_reason),
            "stats": self.stats.to_json(),
        }
        if self.unverified is not None:
            fields["unverified"] = error_json(self.unverified)
        return fields


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt in tokens, and everything that decides what is written after it."""

    prompt: PromptInput
    params: GenerationParams = GenerationParams()
    mode: Mode = Mode.EXACT
    promises: Promises = Promises()  # of gated
    committed_token_ids: tuple[int, ...] = ()  # of a failed generation that is resumed
    warm_start: bool = False  # for measurements: draft nothing until both ends hold the prompt's KV
    model_digest: str = ""  # of the large model that began the text that is resumed; "" takes any


@dataclass
class Collector:
    """Puts events together again; `result` raises what a Failed event carries."""

    request: GenerationRequest
    token_ids: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    text: str = ""
    drafted: bool = False  # something provisional was shown
    unverified: ChaperoneError | None = None
    ending: Finished | Failed | None = None

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Committed():
                self.token_ids.append(event.token_id)
                self.origins.append(event.origin)
                self.text += event.text
            case Finished() | Failed():
                self.text += event.text
                self.ending = event
            case Unverified():
                self.unverified = event.error
            case Drafted():
                self.drafted = True
            case Retracted() | Audited():
                pass

    def result(self) -> Generation:
        """The generation, once Finished or Failed came."""
        match self.ending:
            case Finished() as finished:
                return Generation(
                    self.request.prompt.token_ids,
                    tuple(self.token_ids),
                    self.text,
                    tuple(self.origins),
                    finished.finish_reason,
                    finished.stats,
                    self.unverified,
                )
            case Failed(error):
                raise error
            case None:
                raise RuntimeError("the generation has not ended")

    def partial(self) -> PartialGeneration:
        """What is final, to be resumed from once Failed came."""
        request = self.request
        begun_with = self.ending.stats.model_digest if self.ending is not None else ""
        return PartialGeneration(
            request.prompt.token_ids,
            (*request.committed_token_ids, *self.token_ids),
            self.text,
            tuple(self.origins),
            request.params,
            request.mode,
            request.promises,
            begun_with or request.model_digest,
        )


def error_json(error: ChaperoneError, *, where: str = "") -> dict[str, str]:
    """Return an error as `chaperone generate` writes it; `where` stands before the message."""
    return {"type": type(error).__name__, "message": f"{where}{error.message}"}


def unverified_warning(error: ChaperoneError) -> str:
    """Return what to say of a text that the device wrote on alone."""
    return f"the cloud is lost, and tokens from here on are the device's own, which nobody verifies: {error.message}"
