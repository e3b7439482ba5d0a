"""The values that the parts of Chaperone exchange, and the glossary of the project.

draft       tokens that the device's small model proposed and that the cloud has not checked
span        a run of consecutive draft tokens, sent or not
chain       the span's own tokens, one after the other
branch      tokens next to a chain: alternatives that the cloud judges in the same forward
forward     one run of the large model over new tokens
choice      the token that a model chooses at a position
feed, read  let the device's model, or the cloud's, process tokens in a forward
signal      per-token uncertainty of the small model
risk        probability that the cloud would have chosen another token here
gate        the policy that reads signals and decides: keep drafting, skip, or fire
skip, fire  commit without asking; ask the cloud now
stand       equal the cloud's choices: a drafted token that stands is accepted
verdict     the cloud's answer on a span: how many tokens stand, and its own token after them
override    the cloud's own token in place of the draft's
bonus       the cloud's own token after a span that stands whole, if the device has none there yet
takeover    an override of many tokens: the cloud writes on by itself until it hands back
audit       the cloud's judgement of tokens that were already skipped
deviation   a committed token that is not the one the cloud would have chosen after the same prefix
catch       caught / (caught + deviations), where caught counts the draft tokens that were overridden before they were
            final
commit, retract   make output final; take provisional output back
round trip  one request on the link that the device had to wait for; a hidden one overlaps with drafting

A position counts tokens from the start of the conversation, prompt included, from 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from chaperone_common.errors import InvalidRequest
from chaperone_common.logprobs import ChoiceLogprobs
from chaperone_common.ranges import check_ranges, stop_problem, top_logprobs_problem
from chaperone_common.token_tree import BranchToken, TokenTree

SessionId = NewType("SessionId", str)


class Mode(StrEnum):
    """The promise about final tokens."""

    EXACT = "exact"  # the cloud confirms every token
    GATED = "gated"  # the gate decides which tokens the cloud is asked about
    EDGE = "edge"  # the device writes alone, and sends nothing
    CLOUD = "cloud"  # the cloud writes alone
    CONDITIONED = "conditioned"  # the cloud encodes the prompt once, and the device writes alone with the encoding

    @property
    def drafts(self) -> bool:
        """True if the device's model takes part."""
        return self is not Mode.CLOUD

    @property
    def connects(self) -> bool:
        """True if the cloud's model takes part."""
        return self is not Mode.EDGE

    @property
    def writes_alone(self) -> bool:
        """True if the device's tokens are final without the cloud, so that nothing is promised about them."""
        return self in (Mode.EDGE, Mode.CONDITIONED)


class OnDeviation(StrEnum):
    """The treatment of a skipped token where the cloud would have chosen another one."""

    KEEP = "keep"  # it is final as soon as it is skipped
    RETRACT = "retract"  # it stays provisional until it is audited, and is then replaced


@dataclass(frozen=True, slots=True)
class Promises:
    """The promises of a gated generation. With `catch` 0 and `max_deviation` 1, only an end-of-text token fires."""

    catch: float = 0.95  # least catch, as in the glossary; 0 promises nothing
    max_deviation: float = 0.02  # largest share of deviations among committed tokens; 1 promises nothing

    def __post_init__(self) -> None:
        check_ranges(self, "catch", "max_deviation")


class FinishReason(StrEnum):
    """The reason why a generation ended, with the names of OpenAI's API."""

    STOP = "stop"  # an end-of-text token or a stop string
    LENGTH = "length"  # max_new_tokens were written, or the context is full


class Origin(StrEnum):
    """The model that wrote a committed token, and the model that confirmed it."""

    DRAFT = "draft"  # written by the device, skipped by the gate
    VERIFIED = "verified"  # written by the device, confirmed by the cloud before it was final
    OVERRIDE = "override"  # the cloud's token in place of the draft's
    BONUS = "bonus"  # the cloud's token after a whole span, where the device had none yet
    TAKEOVER = "takeover"  # the cloud wrote on by itself
    UNVERIFIED = "unverified"  # the device's, final without the cloud: it was lost, or `max_cloud_share` was reached

    @property
    def judged(self) -> bool:
        """True if the cloud confirmed or chose the token before it was final."""
        return self not in (Origin.DRAFT, Origin.UNVERIFIED)

    @property
    def of_cloud(self) -> bool:
        """True if the cloud chose the token itself. Such tokens count for `cloud_share`."""
        return self in (Origin.OVERRIDE, Origin.BONUS, Origin.TAKEOVER)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The parameters of a choice, named as Hugging Face and OpenAI do.

    Raises InvalidRequest for a value out of range.
    """

    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # 1: off
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off
    seed: int = 0  # the key of the noise that device and cloud share

    def __post_init__(self) -> None:
        check_ranges(self, "temperature", "top_p", "top_k", "min_p", "seed")


@dataclass(frozen=True, slots=True)
class BeamParams:
    """Several texts at once, from which the best are returned; the names are Hugging Face's where it has one.

    With temperature 0 this is beam search, and above it is beam sampling. Raises InvalidRequest.
    """

    num_beams: int  # texts that grow at once
    num_return_sequences: int = 1  # texts that are returned, the best first
    beam_width: int | None = None  # texts that the device drafts in each layer of a forest; None: as the link asks for
    beam_threshold: float | None = None  # lets the number of beams fall where drafts would not stand; None: it is fixed
    length_penalty: float = 1.0  # a score is the log-probability over the length to the power of this
    early_stopping: bool = False  # True: end as soon as there are `num_beams` whole texts
    one_cache: bool = False  # after each round go on from the best text alone

    def __post_init__(self) -> None:
        check_ranges(self, "num_beams", "num_return_sequences", "length_penalty")
        for name in ("beam_width", "beam_threshold"):
            if getattr(self, name) is not None:
                check_ranges(self, name)
        if self.num_return_sequences > self.num_beams:
            raise InvalidRequest(
                f"num_return_sequences: {self.num_return_sequences}, and num_beams is {self.num_beams}; ask for as "
                "many beams at least, or for fewer texts"
            )


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """The parameters of one request: how to sample, and when to stop."""

    sampling: SamplingParams = SamplingParams()
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()  # the text ends before the first of these strings
    logprobs: bool = False  # report the log-probability of each token
    top_logprobs: int = 0  # and those of this number of the likeliest tokens at its position; needs `logprobs`
    beams: BeamParams | None = None  # None: one text

    def __post_init__(self) -> None:
        check_ranges(self, "max_new_tokens", "top_logprobs")
        if problem := top_logprobs_problem(self.top_logprobs, logprobs=self.logprobs):
            raise InvalidRequest(f"top_logprobs: {problem}")
        if problem := stop_problem(self.stop):
            raise InvalidRequest(f"stop: {problem}")
        if self.beams is not None and self.logprobs:
            raise InvalidRequest("logprobs: texts with beams have scores alone; leave it out, or ask for num_beams 1")

    @property
    def reported_logprobs(self) -> int | None:
        """The likeliest tokens to report at each position; None if no log-probabilities are wanted."""
        return self.top_logprobs if self.logprobs else None


@dataclass(frozen=True, slots=True)
class PromptInput:
    """The tokens that the models read before they write; raises InvalidRequest if there are none."""

    token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise InvalidRequest("prompt: it is empty; give at least one token")


@dataclass(frozen=True, slots=True)
class Choice:
    """A model's choice at one position; `sampling.choose` makes it."""

    token_id: int
    coupled_margin: float  # best minus second-best score; scores include the noise
    runner_up: int  # id of the token with the second-best score
    logprobs: ChoiceLogprobs | None = None  # if the request asked for them


@dataclass(frozen=True, slots=True)
class Signal:
    """Uncertainty of the small model at one position."""

    entropy_nats: float
    top1_probability: float
    margin: float  # top-1 minus top-2 probability
    coupled_margin: float  # as in `Choice`
    risk: float  # as in the glossary, in [0, 1]
    varentropy: float = 0.0  # variance of the surprisal, in square nats; 0 if it was not measured


@dataclass(frozen=True, slots=True)
class Proposal:
    """The small model's choice for the next token, its uncertainty, and its second choice."""

    token_id: int
    signal: Signal
    runner_up: int  # id of the second-best token
    # The small model's, if the request asked for them.
    logprobs: ChoiceLogprobs | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Span:
    """A run of draft tokens that was sent to the cloud.

    The cloud also chooses the token after the run, unless that position is below `final_before`.
    """

    revision: int
    start: int  # position of the first token
    token_ids: tuple[int, ...]
    final_before: int  # tokens below this position are committed already
    continuation_tokens: int  # largest number of tokens of a takeover, if there is an override
    branches: tuple[BranchToken, ...] = ()

    @property
    def end(self) -> int:
        """The position after the last token of the chain."""
        return self.start + len(self.token_ids)

    @property
    def tree(self) -> TokenTree:
        """The span as a chain, with its branches next to it."""
        return TokenTree(self.token_ids, self.branches, self.start)

    @property
    def asks_next(self) -> bool:
        """True if the cloud chooses the token after the span, whether the device has drafted one or not."""
        return self.final_before <= self.end
