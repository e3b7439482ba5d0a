"""The spans in flight, and the times when their answers are expected."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from chaperone_common.frames import Continuation, Opened, ServerFrame, Verdict
from chaperone_common.planning.schedule import schedule_for
from chaperone_common.types import Mode
from edge_client.planner.costs import Estimates


@dataclass(slots=True)
class _Sent:
    at_ms: float
    tokens: int
    alone: bool  # nothing was on its way before it
    answer_ms: float  # when the answer is expected


class Pipeline:
    """The spans of one generation in flight. Their answers teach the estimates about link and cloud.

    The cloud reads one span after the other, while the link carries others. So a span sent at t is answered at

        max(time of the previous answer, t + round trip) + time to read it
    """

    def __init__(self, estimates: Estimates, mode: Mode = Mode.EXACT) -> None:
        self.estimates = estimates
        self._mode = mode
        self._spans: deque[_Sent] = deque()
        self._opened_ms: float | None = None
        self._prompt_tokens = 0  # of the prompt that the cloud reads after the Open
        self._prefilled = False
        self._last_answer_ms = 0.0
        self._last_token_ms: float | None = None  # of a takeover
        self._settled: int | None = None  # length of the text up to the last answer

    def opened(self, now_ms: float, prompt_tokens: int = 0, known_tokens: int = 0) -> None:
        """Record that an Open was sent, and nothing else is in flight. Later spans wait for the prefill.

        The cloud probably holds `known_tokens` of the prompt.
        """
        self._spans.clear()
        self._opened_ms = now_ms
        self._prompt_tokens = prompt_tokens
        if prompt_tokens:
            reading_ms = self.estimates.prefill_ms(prompt_tokens - known_tokens)
            self._last_answer_ms = now_ms + self.estimates.costs().rtt_ms + reading_ms
        self._prefilled = False
        self._last_token_ms = None
        self._settled = None

    def sent(self, tokens: int, now_ms: float) -> None:
        """Record that a span was sent, with `tokens` draft and branch tokens."""
        costs = self.estimates.costs()
        before = self._spans[-1].answer_ms if self._spans else self._last_answer_ms
        answer_ms = max(before, now_ms + costs.rtt_ms) + costs.read_ms(tokens)
        if not tokens:  # the cloud begins to write when this arrives
            self._last_token_ms = now_ms + costs.rtt_ms
        self._spans.append(_Sent(now_ms, tokens, not self._spans and self._prefilled, answer_ms))

    def drafted(self, *, fires: bool) -> None:
        """Record whether the gate asks about a drafted token. In other modes than `gated` this says nothing."""
        if self._mode is Mode.GATED:
            self.estimates.gated(fires=fires)

    def answered(self, frame: ServerFrame, now_ms: float) -> None:
        """Record a frame that arrived at `now_ms`."""
        match frame:
            case Opened(prefilled=False) if self._opened_ms is not None:
                self.estimates.travelled(now_ms - self._opened_ms)
            case Opened(prefilled=True):
                self._prefilled = True
                self._last_answer_ms = now_ms
                if (computed := self._prompt_tokens - frame.cached_tokens) > 0:
                    self.estimates.prefilled(computed, (frame.queue_us + frame.compute_us) / 1e3)
                self._expect_again(now_ms)
            case Verdict():
                self._judged(frame, now_ms)
            case Continuation():
                self._written(frame, now_ms)
            case _:
                pass

    def keep(self, spans: int, *, begins_takeover: bool = False) -> None:
        """Keep the oldest `spans` spans; an override has voided the others.

        With `begins_takeover` the cloud writes on when the first of the void spans arrives, not at once.
        """
        while len(self._spans) > spans:
            voided = self._spans.pop()
            if begins_takeover and self._last_token_ms is not None and len(self._spans) == spans:
                self._last_token_ms = max(self._last_token_ms, voided.at_ms + self.estimates.costs().rtt_ms)

    def wait_ms(self, now_ms: float) -> float:
        """Return how long a span sent now would wait in the cloud for the spans before it.

        Before the cloud has reported any time, a late answer is expected to be late by the same time again.
        """
        before = self._spans[-1].answer_ms if self._spans else self._last_answer_ms
        if self._spans and not self.estimates.reading_known:
            before += 2 * max(now_ms - self._spans[0].answer_ms, 0.0)
        return max(before - self.estimates.costs().rtt_ms - now_ms, 0.0)

    def written_by(self, now_ms: float) -> int:
        """Return the tokens of a takeover that the cloud writes after the received ones, until a span arrives."""
        costs = self.estimates.costs()
        since_ms = 0.0 if self._last_token_ms is None else now_ms - self._last_token_ms
        return max(int((since_ms + costs.rtt_ms) / costs.stream_ms), 0)

    def _judged(self, frame: Verdict, now_ms: float) -> None:
        cloud_ms = (frame.queue_us + frame.compute_us) / 1e3
        settled = frame.position + 1 + len(frame.further_token_ids)
        if self._spans:
            span = self._spans.popleft()
            if span.alone:
                self.estimates.travelled(now_ms - span.at_ms - cloud_ms)
            if cloud_ms:
                self.estimates.read(span.tokens, cloud_ms)
            if span.tokens:
                self._compare(settled, now_ms)
        self._settled = settled
        self._last_answer_ms = self._last_token_ms = now_ms
        self._expect_again(now_ms)

    def _compare(self, settled: int, now_ms: float) -> None:
        """Compare the tokens that became final since the previous answer with the schedule's promise for that time.

        The schedule promises nothing in a mode that commits tokens without the cloud.
        """
        schedule = schedule_for(self.estimates.costs())
        if self._settled is not None and self._mode is Mode.EXACT and not schedule.streams:
            promised = schedule.rate * (now_ms - self._last_answer_ms)
            self.estimates.delivered(max(settled - self._settled, 0), promised)

    def _expect_again(self, now_ms: float) -> None:
        """Expect later answers again, after one that came early or late."""
        costs, before = self.estimates.costs(), now_ms
        for span in self._spans:
            span.answer_ms = before = max(before, span.at_ms + costs.rtt_ms) + costs.read_ms(span.tokens)

    def _written(self, frame: Continuation, now_ms: float) -> None:
        if not frame.token_ids:
            return
        if self._last_token_ms is not None:
            tokens, cloud_ms = len(frame.token_ids), (frame.queue_us + frame.compute_us) / 1e3
            self.estimates.streamed((now_ms - self._last_token_ms) / tokens, cloud_ms / tokens)
        self._last_token_ms = now_ms
        self._last_answer_ms = now_ms
        self._settled = frame.start + len(frame.token_ids)
