"""A generation at some moment, made by hand, for tests of a planner's decision there."""

from __future__ import annotations

from chaperone_common.frames import Continuation, Open, Opened, Verdict
from chaperone_common.session import DeviceSession
from chaperone_common.types import Mode, OnDeviation, Proposal, SamplingParams, SessionId, Signal
from edge_client.planner import AdaptivePlanner, Decision, DraftToken, Estimates, Pipeline, Send, Situation
from edge_client.planner.draft_tree import DraftTree

EOS = 0
PROMPT = (7, 8, 9)
RUNNER_UP = 99


def known(
    *,
    draft_ms: float = 10.0,
    row_ms: float = 2.0,
    rtt_ms: float = 60.0,
    read_ms: float = 100.0,
    token_ms: float = 2.0,
    stream_ms: float | None = None,
    risk: float = 0.05,
) -> Estimates:
    """Return estimates of a client that has seen these costs many times, and no foreseen override."""
    estimates = Estimates()
    for index in range(100):
        tokens = 1 + index % 24
        estimates.drafted(1, draft_ms)
        estimates.drafted(2, draft_ms + row_ms)
        estimates.travelled(rtt_ms)
        estimates.read(tokens, read_ms + token_ms * tokens)
        streamed_ms = read_ms + token_ms if stream_ms is None else stream_ms
        estimates.streamed(streamed_ms, streamed_ms)
    for index in range(1, 401):
        overrides = int(index * risk) - int((index - 1) * risk)
        estimates.risks.drafted(risk)
        estimates.risks.judged(risk, agreed=not overrides)
    return estimates


class PlannerHarness:
    """A generation at some moment; risks of drafted tokens are taken as chances unchanged."""

    def __init__(
        self,
        estimates: Estimates | None = None,
        *,
        rows: int = 0,
        hit: float = 0.9,
        limit: int = 200,
        on_deviation: OnDeviation = OnDeviation.KEEP,
    ) -> None:
        opening = Open(SessionId("s"), "", SamplingParams(), limit - 3, (EOS,), PROMPT)
        self.session = DeviceSession(opening, limit=limit, on_deviation=on_deviation)
        self.pipeline = Pipeline(estimates or known())
        self.tree = DraftTree(
            rows, self.session.proposal, limit=limit, eos_token_ids=(EOS,), risk=lambda raw: raw, hit=lambda: hit
        )
        self.now_ms = 1000.0
        self.read = len(PROMPT) - 1
        self.pipeline.opened(0.0)
        self.receive(Opened(prefilled=True, context_tokens=512))

    def drafted(self, *risks: float, token_id: int = 5, fires: bool = True) -> PlannerHarness:
        for risk in risks:
            signal = Signal(1.0, 0.5, 0.1, 1.0, risk)
            position = len(self.session.text)
            proposal = Proposal(token_id, signal, RUNNER_UP)
            self.session.draft(proposal, fires=fires)
            if position >= self.session.final_length:
                self.tree.add(position)
            self.tree.settle(self.session.final_length)
        self.read = len(self.session.text) - 1
        return self

    def sent(self, *, max_tokens: int | None = None, continuation_tokens: int = 0) -> PlannerHarness:
        frame = self.session.send(continuation_tokens=continuation_tokens, max_tokens=max_tokens)
        self.pipeline.sent(len(frame.token_ids), self.now_ms)
        return self

    def taken_over(self, *, continuation_tokens: int = 100) -> PlannerHarness:
        """Let the cloud override a first token and write on."""
        self.drafted(0.5).sent(continuation_tokens=continuation_tokens)
        self.now_ms += 160
        self.receive(Verdict(1, len(PROMPT), 77, compute_us=100_000))
        assert self.session.following
        return self

    def written(self, tokens: int, *, each_ms: float) -> PlannerHarness:
        """Receive tokens of a takeover, one every `each_ms`."""
        for _ in range(tokens):
            self.now_ms += each_ms
            start, compute_us = self.session.final_length, round(each_ms * 1e3)
            self.receive(Continuation(start, (78,), handed_back=False, compute_us=compute_us))
        return self

    def later(self, elapsed_ms: float) -> PlannerHarness:
        self.now_ms += elapsed_ms
        return self

    def decide(self, mode: Mode = Mode.EXACT, *, price_ms: float | None = None) -> Decision:
        return AdaptivePlanner(mode, price_ms).decide(self.situation)

    @property
    def situation(self) -> Situation:
        return Situation(self.session, self.tree, self.pipeline, self.now_ms, self.read)

    def receive(self, frame: Opened | Verdict | Continuation) -> PlannerHarness:
        """Receive a frame from the cloud now."""
        self.pipeline.answered(frame, self.now_ms)
        self.session.apply(frame)
        self.pipeline.keep(len(self.session.spans))
        self.tree.settle(self.session.final_length)
        self.tree.cut(len(self.session.text))
        return self


def until_sent(harness: PlannerHarness, *, risk: float = 0.02) -> int:
    """Draft as long as the planner wants, 10 ms a token; return the number of tokens that it then sends."""
    for _ in range(200):
        match harness.decide().action:
            case DraftToken(text=True):
                harness.drafted(risk).later(10)
            case Send(tokens):
                return len(harness.session.text) - harness.session.sent_length if tokens is None else tokens
            case action:
                raise AssertionError(action)
    raise AssertionError("nothing was sent")
