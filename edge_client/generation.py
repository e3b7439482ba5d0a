"""The request of a generation, the collector of its events, and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from chaperone_common.beams.frames import RunningBeam
from chaperone_common.beams.hypotheses import Hypothesis
from chaperone_common.errors import ChaperoneError
from chaperone_common.logprobs import Logprob, TokenLogprobs
from chaperone_common.partial import PartialBeams, PartialGeneration
from chaperone_common.ranges import check_ranges
from chaperone_common.session import (
    Audited,
    CloudShareReached,
    Committed,
    Drafted,
    Failed,
    Finished,
    Retracted,
    Unverified,
)
from chaperone_common.stats import GenerationStats, promises_hold
from chaperone_common.suggestion import summary
from chaperone_common.types import (
    FinishReason,
    GenerationParams,
    Mode,
    Origin,
    Promises,
    PromptInput,
)
from edge_client.events import Beams, BeamText, Event, Planned

Prompt = str | Sequence[Mapping[str, Any]] | PromptInput


class Streamer(Protocol):
    """A receiver of token ids, such as transformers' `TextStreamer`."""

    def put(self, value: Any) -> Any:
        """Take token ids as an array of NumPy: the prompt [1, tokens] first, then each final token [1]."""

    def end(self) -> Any:
        """Take the end of the generation."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    origins: tuple[Origin, ...]  # of each of `token_ids`
    finish_reason: FinishReason
    stats: GenerationStats
    unverified: ChaperoneError | None = None  # the loss of the cloud, if the device continued alone
    logprobs: tuple[TokenLogprobs, ...] | None = None  # of each of `token_ids`; None unless the request asked for them
    sequences: tuple[BeamText, ...] | None = None  # with beams: as many as were asked for, the best first

    def __repr__(self) -> str:
        """Return the beginning of the text and the main counts; the attributes have all of it."""
        return (
            f"Generation({summary(self.text, len(self.token_ids))}, finish_reason: {self.finish_reason}, "
            f"round_trips: {self.stats.round_trips})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of `chaperone generate --json`.

        It has `unverified` only if the cloud was lost, and `logprobs` and `sequences` only if the request asked for
        them.
        """
        fields: dict[str, Any] = {
            "prompt_token_ids": list(self.prompt_token_ids),
            "token_ids": list(self.token_ids),
            "text": self.text,
            "origins": [str(origin) for origin in self.origins],
            "finish_reason": str(self.finish_reason),
            "stats": self.stats.to_json(),
        }
        if self.logprobs is not None:
            fields["logprobs"] = [logprobs_json(found) for found in self.logprobs]
        if self.sequences is not None:
            fields["sequences"] = [sequence.to_json() for sequence in self.sequences]
        if self.unverified is not None:
            fields["unverified"] = error_json(self.unverified)
        return fields


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt in tokens, with all parameters of its generation."""

    prompt: PromptInput
    params: GenerationParams = GenerationParams()
    mode: Mode = Mode.EXACT
    promises: Promises = Promises()  # of mode `gated`
    committed_token_ids: tuple[int, ...] = ()  # final tokens of the failed generation that this one resumes
    warm_start: bool = False  # for measurements: draft nothing until both ends hold the prompt's KV cache
    model_digest: str = ""  # of the large model that began a resumed text; "" accepts any
    max_cloud_share: float | None = None  # of mode `gated`: the ceiling of the cloud's share of the text
    committed_cloud_tokens: int = 0  # how many of the committed tokens the cloud chose, as far as known
    committed_promises_hold: bool | None = True  # of the committed tokens, as `stats.promises_hold`, as far as known
    begun_beams: PartialBeams | None = None  # of the failed generation that this one resumes

    def __post_init__(self) -> None:
        """Raise InvalidRequest for a ceiling that is out of its range."""
        if self.max_cloud_share is not None:
            check_ranges(self, "max_cloud_share")


@dataclass
class Collector:
    """Collects the events of one generation, and makes its result."""

    request: GenerationRequest
    token_ids: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    text: str = ""
    drafted: bool = False  # True if provisional text was shown
    unverified: ChaperoneError | None = None
    cloud_share_reached: CloudShareReached | None = None  # the first such event
    beams: Beams | None = None  # after the last round
    ending: Finished | Failed | None = None

    def add(self, event: Event) -> None:
        """Add the next event."""
        match event:
            case Committed():
                self.token_ids.append(event.token_id)
                self.origins.append(event.origin)
                if event.logprobs is not None:
                    self.logprobs.append(event.logprobs)
                self.text += event.text
            case Finished() | Failed():
                self.text += event.text
                self.ending = event
            case Unverified():
                self.unverified = event.error
            case CloudShareReached():
                self.cloud_share_reached = self.cloud_share_reached or event
            case Beams():
                self.beams = event
            case Drafted():
                self.drafted = True
            case Retracted() | Audited() | Planned():
                pass

    def result(self) -> Generation:
        """Return the finished generation, after its last event; raises the error of a Failed event."""
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
                    self.wanted_logprobs,
                    self._sequences,
                )
            case Failed(error):
                raise error
            case None:
                raise RuntimeError("the generation has not ended")

    @property
    def wanted_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """The log-probabilities so far; None unless the request asked for them."""
        return tuple(self.logprobs) if self.request.params.logprobs else None

    @property
    def _sequences(self) -> tuple[BeamText, ...] | None:
        beams = self.request.params.beams
        if beams is None:
            return None
        return self.beams.finished[: beams.num_return_sequences] if self.beams is not None else ()

    def warnings(self) -> list[str]:
        """Return warnings about tokens of the text that the cloud was not asked about."""
        reached, lost = self.cloud_share_reached, self.unverified
        warnings = [] if reached is None else [cloud_share_warning(reached)]
        return warnings if lost is None else [*warnings, unverified_warning(lost)]

    def partial(self) -> PartialGeneration:
        """Return the final tokens so far, from which a failed generation can be resumed."""
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
            request.max_cloud_share,
            request.committed_cloud_tokens + sum(origin.of_cloud for origin in self.origins),
            self.wanted_logprobs,
            self._promises_hold,
            self._partial_beams,
        )

    @property
    def _partial_beams(self) -> PartialBeams | None:
        if self.beams is None:
            return self.request.begun_beams
        running = [RunningBeam(beam.token_ids, beam.log_p or 0.0, beam.logprob) for beam in self.beams.running]
        finished = [Hypothesis(beam.token_ids, beam.logprob, str(beam.finish_reason)) for beam in self.beams.finished]
        return PartialBeams(tuple(running), tuple(finished))

    @property
    def _promises_hold(self) -> bool | None:
        """As `stats.promises_hold`, for the final tokens so far."""
        request = self.request
        if not self.token_ids:
            nothing_yet = None if request.mode.writes_alone else True
            return request.committed_promises_hold if request.committed_token_ids else nothing_yet
        return promises_hold(
            request.mode,
            unverified=Origin.UNVERIFIED in self.origins,
            earlier=request.committed_promises_hold,
            resumed=bool(request.committed_token_ids),
        )


def logprobs_json(found: TokenLogprobs) -> dict[str, Any]:
    """Return the log-probabilities of a token as in the JSON of `chaperone generate`."""
    top = [_logprob_json(each) for each in found.top_logprobs]
    return {**_logprob_json(found.chosen), "source": str(found.source), "top_logprobs": top}


def _logprob_json(found: Logprob) -> dict[str, Any]:
    token_bytes = list(found.token_bytes)
    return {"token_id": found.token_id, "token": found.token, "bytes": token_bytes, "logprob": found.logprob}


def error_json(error: ChaperoneError, *, where: str = "") -> dict[str, str]:
    """Return an error as in the JSON of `chaperone generate`; `where` is a prefix of its message."""
    return {"type": type(error).__name__, "message": f"{where}{error.message}"}


def cloud_share_warning(event: CloudShareReached) -> str:
    """Return a warning about a text in which the ceiling on the cloud's share was reached."""
    return f"{event.reason}; tokens from here on may be unverified, and then the promises do not hold"


def unverified_warning(error: ChaperoneError) -> str:
    """Return a warning about a text that the device continued without the cloud."""
    return f"the cloud is lost, and tokens from here on are not verified: {error.message}"
