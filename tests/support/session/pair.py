"""Both ends of a session in one test, with a wire between them that delays but never reorders, and may be cut.

The models are functions of the text before a token, so their texts are known without running a session: the cloud's
choice is a hash of the prefix, and the draft's is the same most of the time.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random

from chaperone_common.errors import CloudUnavailable
from chaperone_common.frames import ClientFrame, Close, Draft, Failure, Open, Opened, ServerFrame, Verdict
from chaperone_common.logprobs import ChoiceLogprobs
from chaperone_common.session import (
    Audited,
    CloudSession,
    Committed,
    DeviceSession,
    Drafted,
    Retracted,
    SessionEvent,
    VerificationRequest,
)
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import Mode, OnDeviation, Proposal, SamplingParams, SessionId, Signal
from edge_client.planner import Action, CatchUp, DraftForest, DraftToken, FixedPlanner, HandOver, Send, Wait

VOCABULARY = 50
EOS = 0
SIGNAL = Signal(1.0, 0.5, 0.1, 1.0, 0.5)
PROMPT = (7, 8, 9)


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class Models:
    """A cloud and a draft model; `agreement` in percent, end-of-text once in `ending` tokens."""

    seed: int
    agreement: int = 80
    ending: int = 60

    def cloud(self, prefix: Sequence[int]) -> int:
        number = _hash(self.seed, tuple(prefix))
        return EOS if number % self.ending == 0 else 1 + number // self.ending % (VOCABULARY - 1)

    def draft(self, prefix: Sequence[int]) -> int:
        other = _hash("draft", self.seed, tuple(prefix))
        return self.cloud(prefix) if other % 100 < self.agreement else other // 100 % VOCABULARY

    def logprobs(self, prefix: Sequence[int], token_id: int, model: str) -> ChoiceLogprobs:
        """Return two likeliest tokens; all values depend on the text, the token and the model."""
        numbers = [_hash("logprobs", self.seed, tuple(prefix), token_id, model, place) for place in range(3)]
        own, *others = (-(number % 512) / 64 for number in numbers)
        return ChoiceLogprobs(
            own, tuple((number % VOCABULARY, value) for number, value in zip(numbers[1:], others, strict=True))
        )

    def doubts(self, prefix: Sequence[int]) -> bool:
        """Return the decision of a gate that is right more often than not."""
        return _hash("gate", self.seed, tuple(prefix)) % 100 < (10 if self.draft(prefix) == self.cloud(prefix) else 60)


def cloud_text(models: Models, prompt: Sequence[int], limit: int) -> list[int]:
    """Return the text that the cloud writes alone."""
    text = list(prompt)
    while len(text) < limit and (len(text) == len(prompt) or text[-1] != EOS):
        text.append(models.cloud(text))
    return text


@dataclass
class RandomPlanner:
    """A planner without a plan: it sends a random number of tokens at random times, and takes back takeovers."""

    random: Random
    run_ahead_tokens: int

    def next_action(self, session: DeviceSession) -> Action:
        unsent = len(session.text) - session.sent_length
        stuck = session.exhausted or len(session.text) - session.final_length > self.run_ahead_tokens
        if session.following and (len(session.text) == session.final_length or self.random.random() < 0.7):
            return Wait()
        if unsent and (stuck or self.random.random() < 0.35):
            return Send(self.random.randint(1, unsent))
        return Wait() if stuck else DraftToken()


@dataclass
class Pair:
    """A device and a cloud that take turns in an order drawn from `random`."""

    models: Models
    mode: Mode
    planner: FixedPlanner | RandomPlanner
    random: Random
    max_new_tokens: int = 60
    continuation_tokens: int = 0
    max_span_tokens: int | None = None
    resumed: tuple[int, ...] = ()  # tokens of a resumed generation
    resets: int = 0  # how often the stream may be cut before the text is complete
    reset_odds: int = 20  # one move in this many is a cut
    deadlines_ms: tuple[int, ...] = (0,)  # one is drawn for each Draft
    branch_tokens: int = 0  # at most, next to each Draft
    on_deviation: OnDeviation = OnDeviation.KEEP
    top_logprobs: int | None = None
    up: deque[ClientFrame] = field(default_factory=deque)
    down: deque[ServerFrame] = field(default_factory=deque)
    events: list[SessionEvent] = field(default_factory=list)
    overrides_at: list[tuple[int, int]] = field(default_factory=list)  # (index in the span, its length)
    most_in_flight: int = 0
    lost_verdicts: int = 0
    further_tokens: int = 0  # sent by the cloud after its own token
    overtaken_spans: int = 0  # the device had every token of them before the answer
    cut_takeovers: int = 0
    audits: Counter[int] = field(default_factory=Counter)  # by position, as events report them
    drafts: list[Draft] = field(default_factory=list)  # sent by the device
    wanted_ms: deque[int] = field(default_factory=deque)  # the deadlines of drafts in flight

    def __post_init__(self) -> None:
        opening = Open(SessionId("s"), "", SamplingParams(), self.max_new_tokens, (EOS,), PROMPT, self.resumed)
        opening = replace(opening, top_logprobs=self.top_logprobs)
        self.limit = len(PROMPT) + self.max_new_tokens
        self.device = DeviceSession(opening, limit=self.limit, on_deviation=self.on_deviation)
        self._open(opening)

    def _open(self, opening: Open) -> None:
        self.cloud = CloudSession(opening, context_tokens=10_000, vocabulary_size=VOCABULARY)
        self.down.append(Opened(prefilled=True, context_tokens=10_000))

    def run(self) -> None:
        """Run to the end; a deadlock fails instead of hanging."""
        for _ in range(100_000):
            if self.device.state == "done":
                return
            if self.resets and self.device.finish_reason is None and self.random.randrange(self.reset_odds) == 0:
                self.reset()
            moves = (self._device_moves, self._cloud_reads, self._cloud_writes, self._receive)
            if not self.up and not self.down and self.device.state == "device writes" and not self.device.finish_reason:
                self._check_agreement()
            if not any(move() for move in self.random.sample(moves, len(moves))):
                raise AssertionError(f"deadlock: {self.device.state}, {self.device.spans}")
        raise AssertionError("no end in sight")

    def _check_agreement(self) -> None:
        """Check that both ends agree when no frame is in flight."""
        assert self.device.revision == self.cloud.revision
        assert not self.cloud.writes
        assert not self.device.spans
        assert self.device.text[: self.device.read_length] == self.cloud.text[: self.device.read_length]

    def reset(self) -> None:
        """Cut the stream: frames in flight are lost, and the device opens a new stream."""
        self.resets -= 1
        self.cut_takeovers += self.device.following
        self.lost_verdicts += sum(isinstance(frame, Verdict) for frame in self.down)
        self.up.clear()
        self.wanted_ms.clear()
        self.down.clear()
        with suppress(CloudUnavailable):
            self.device.apply(Failure("UNAVAILABLE", "cut"))
        self._open(self.device.reopen())

    def _receive(self) -> bool:
        if not self.down:
            return False
        frame = self.down.popleft()
        spans = self.device.spans
        if isinstance(frame, Verdict) and spans and spans[0].token_ids and spans[0].end < self.device.final_length:
            self.overtaken_spans += spans[0].final_before == spans[0].start
        for event in self.device.apply(frame):
            self._note(event)
        assert self.device.tally.audited_tokens == self.audits.total()
        return True

    def _device_moves(self) -> bool:
        device = self.device
        if device.state in ("closing", "done"):
            return False
        if device.finish_reason is not None:
            self.up.append(device.close())
            return True
        action: Action = self.planner.next_action(device)
        match action:
            case DraftToken():
                token_id = self.models.draft(device.text)
                gate = self.mode is Mode.EXACT or token_id == EOS or self.models.doubts(device.text)
                own = self.models.logprobs(device.text, token_id, "device") if self.top_logprobs is not None else None
                for event in device.draft(Proposal(token_id, SIGNAL, VOCABULARY, logprobs=own), fires=gate):
                    self._note(event)
            case Send(tokens):
                self._send(self.continuation_tokens, tokens or self.max_span_tokens)
            case HandOver(tokens):
                self._send(tokens - 1, None)
            case Wait() | CatchUp() | DraftForest():
                return False
        return True

    def _send(self, continuation_tokens: int, max_tokens: int | None) -> None:
        wanted_ms = self.random.choice(self.deadlines_ms)
        unsent = self.device.text[self.device.sent_length :][:max_tokens]
        frame = self.device.send(
            continuation_tokens=continuation_tokens,
            max_tokens=max_tokens,
            deadline_ms=wanted_ms,
            branches=self._branches(unsent),
        )
        self.drafts.append(frame)
        self.up.append(frame)
        self.wanted_ms.append(wanted_ms)
        self.most_in_flight = max(self.most_in_flight, len(self.device.spans))

    def _branches(self, chain: list[int]) -> list[BranchToken]:
        """Return a random tree next to a chain, with choices of the cloud and of the draft."""
        before = self.device.text[: self.device.sent_length]
        texts = [[*before, *chain[:length]] for length in range(len(chain) + 1)]
        branches = []
        for _ in range(self.random.randint(0, self.branch_tokens)):
            parent = self.random.choice((0, len(texts) - 1, self.random.randrange(len(texts))))
            text = texts[parent]
            if len(text) < self.limit:
                guess = self.random.choice((self.models.cloud(text), self.models.draft(text), len(text) % VOCABULARY))
                branches.append(BranchToken(len(before) - 1 + parent, guess))
                texts.append([*text, guess])
        return branches

    def _cloud_reads(self) -> bool:
        if not self.up:
            return False
        frame = self.up.popleft()
        assert isinstance(frame, Draft | Close)
        if isinstance(frame, Draft) and self.cloud.hands_back(frame):
            self.down.append(self.cloud.hand_back())
        request = self.cloud.receive(frame)
        if isinstance(frame, Draft):
            assert self.cloud.deadline_ms == self.wanted_ms.popleft(), "sent or not, ignored or not"
        if request is not None:
            before = self.cloud.revision
            tree = request.tree
            texts = [tree.token_ids[: tree.end - index] for index in reversed(range(request.num_choices))]
            texts += tree.paths()
            answer = self._answer(request, texts)
            self.further_tokens += len(getattr(answer, "further_token_ids", ()))
            self.down.append(answer)
            if isinstance(frame, Draft) and self.cloud.revision > before:
                self.overrides_at.append((getattr(answer, "position", 0) - frame.start, len(frame.token_ids)))
        return True

    def _cloud_writes(self) -> bool:
        if not self.cloud.writes:
            return False
        request = self.cloud.writing()
        self.down.append(self._answer(request, [request.tree.token_ids]))
        return True

    def _answer(self, request: VerificationRequest, texts: Sequence[Sequence[int]]) -> ServerFrame:
        choices = [self.models.cloud(text) for text in texts]
        if self.top_logprobs is None:
            return self.cloud.answer(request, choices)
        found = [self.models.logprobs(text, choice, "cloud") for text, choice in zip(texts, choices, strict=True)]
        return self.cloud.answer(request, choices, logprobs=found[request.first_reported :])

    def _note(self, event: SessionEvent) -> None:
        self.events.append(event)
        if isinstance(event, Audited):
            self.audits.update(range(event.start, event.end))

    @property
    def committed(self) -> list[Committed]:
        return [event for event in self.events if isinstance(event, Committed)]


__all__ = ["EOS", "PROMPT", "Drafted", "Models", "Pair", "RandomPlanner", "Retracted", "cloud_text"]
