"""What drafting, the link and the cloud cost, estimated while they work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edge_client.planner.learning import OverrideClusters, ReadingTime, Recent, Share

_UNTRIED = 0.2  # forwards of several rows that are forgotten for each one of a single row (an assumption)
_LEAST_MS = 0.01  # that anything takes: clocks are coarse, and a cloud may tell what it likes


@dataclass(frozen=True, slots=True)
class Costs:
    """Times in milliseconds, and chances, as a planner reckons with them.

    The cloud reads a span of k tokens in `read_base_ms + k * read_token_ms`.
    """

    draft_ms: float = 20.0  # one token of the text
    row_ms: float = 5.0  # one token of a branch, in the same forward
    rtt_ms: float = 50.0  # the link there and back, without the cloud
    read_base_ms: float = 100.0
    read_token_ms: float = 3.0
    stream_ms: float = 100.0  # one token that the cloud writes by itself
    risk: float = 0.05  # of the draft's next token, not yet drafted
    foresight: float = 0.0  # share of overrides that found a branch ready
    branch_tokens: float = 0.0  # tokens in such a branch

    def read_ms(self, tokens: float) -> float:
        """The time that the cloud needs for a span."""
        return self.read_base_ms + self.read_token_ms * tokens


class Risks:
    """Corrects risk by what the cloud has said so far: by a factor, which differs from task to task."""

    def __init__(self) -> None:
        self._factor = Share(prior=1.0, weight=5.0, memory=25.0)  # overrides against the risks that foretold them
        self._level = Share(prior=Costs().risk, weight=16.0, memory=160.0)  # of the risk of tokens to come

    def corrected(self, risk: float) -> float:
        """The chance that the cloud chooses another token."""
        return min(max(self._factor.value * risk, 1e-4), 0.98)

    @property
    def typical(self) -> float:
        """The chance for a token that is not drafted yet."""
        return self._level.value

    def drafted(self, risk: float, *, tokens: int = 1) -> None:
        """A token of this risk was drafted, or one that stands for some tokens: those to come will be like it."""
        self._level.add(self.corrected(risk) * tokens, tokens)

    def judged(self, risk: float, *, agreed: bool) -> None:
        """Learn from the cloud's choice where the draft's had this risk."""
        self._factor.add(0.0 if agreed else 1.0, risk)


class Estimates:
    """All costs, learned across the generations of one client."""

    def __init__(self) -> None:
        prior = Costs()
        self.risks = Risks()
        self.override_clusters = OverrideClusters()
        self._draft = Recent(prior.draft_ms)
        # A further row in the same forward, as a share of a draft's time. While it seems dear, no branch is drafted
        # beside the text, so what was seen fades: the first such forward takes memory and, once, long.
        self._row = Share(prior.row_ms / prior.draft_ms, weight=4.0, memory=40.0)
        # Low, since what a link holds back now and then, by a lost segment say, is no part of every round trip.
        self._rtt = Recent(prior.rtt_ms, quantile=0.25)
        # The cloud's own time for a token, and the pace at which they arrive. A link that holds tokens back and then
        # brings several at once moves the lower quartile down, never up; one that is too slow for them moves all.
        self._stream = Recent(prior.stream_ms)
        self._arrivals = Recent(0.0, quantile=0.25)
        self._reading = ReadingTime(prior.read_base_ms, prior.read_token_ms)
        self._prompts = ReadingTime(0.0, 0.0)
        self._hit = Share(0.5, weight=10.0)
        # A promise holds until some twenty tokens speak against it, and again when it was not tried for a hundred.
        self._delivery = Share(prior=1.0, weight=20.0, memory=100.0)
        self._foresight = Share(prior.foresight, weight=2.0, memory=50.0)
        self._observers: list[Callable[[int, float], None]] = []
        self._branch_tokens = Share(4.0, weight=2.0, memory=20.0)

    def drafted(self, rows: int, elapsed_ms: float) -> None:
        """A forward of one token in each of some rows took this long."""
        if rows == 1:
            self._draft.add(elapsed_ms)
            self._row.fade(_UNTRIED)
        else:
            share = (elapsed_ms / max(self._draft.value, _LEAST_MS) - 1) / (rows - 1)
            self._row.add(min(max(share, 0.0), 1.0))  # at most 1: a forward of its own would take no longer

    def travelled(self, elapsed_ms: float) -> None:
        """A request went there and back, the cloud's own time apart."""
        self._rtt.add(max(elapsed_ms, 0.0))

    def prefilled(self, tokens: int, elapsed_ms: float) -> None:
        """The cloud read a prompt, its wait for other devices included."""
        self._prompts.add(tokens, elapsed_ms)

    def observe(self, verified: Callable[[int, float], None]) -> None:
        """Call `verified` from now on with the tokens of each span that the cloud has verified, and the milliseconds.

        For studies: the estimates themselves keep no single samples.
        """
        self._observers.append(verified)

    def read(self, tokens: int, elapsed_ms: float) -> None:
        """The cloud read a span, its wait for other devices included."""
        self._reading.add(tokens, elapsed_ms)
        for observer in self._observers:
            observer(tokens, elapsed_ms)

    def streamed(self, elapsed_ms: float, cloud_ms: float) -> None:
        """A token of a takeover came this long after the one before it; the cloud says what it took for it."""
        self._arrivals.add(elapsed_ms)
        self._stream.add(cloud_ms)
        self._delivery.fade()  # what spans have come to is learned from spans alone, so they get another chance

    def delivered(self, tokens: int, promised: float) -> None:
        """So many tokens were settled in a time for which the long view had promised some."""
        self._delivery.add(tokens, promised)

    def overridden(self, *, by_runner_up: bool, foreseen_tokens: int | None) -> None:
        """The cloud chose another token; `foreseen_tokens` had been drafted in a branch that begins with it."""
        self._hit.add(by_runner_up)
        self._foresight.add(foreseen_tokens is not None)
        if foreseen_tokens is not None:
            self._branch_tokens.add(foreseen_tokens)

    def prefill_ms(self, tokens: int) -> float:
        """The time that the cloud needs for a prompt; nothing while it has not read any."""
        return self._prompts.base_ms + self._prompts.token_ms * tokens

    @property
    def reading_known(self) -> bool:
        """Whether the cloud has ever told how long it read."""
        return self._reading.known

    @property
    def hit(self) -> float:
        """The chance that an override is the draft's runner-up."""
        return self._hit.value

    @property
    def delivery(self) -> float:
        """The share of the promised rate that comes true. What is not modelled only ever costs time, so at most 1."""
        return min(self._delivery.value, 1.0)

    @property
    def _stream_ms(self) -> float:
        return max(self._stream.value, self._arrivals.value, _LEAST_MS)

    def costs(self) -> Costs:
        """What is known now."""
        reading = self._reading
        draft_ms = max(self._draft.value, _LEAST_MS)
        base_ms = max(reading.base_ms, _LEAST_MS)
        return Costs(
            draft_ms=draft_ms,
            row_ms=draft_ms * self._row.value,
            rtt_ms=self._rtt.value,
            read_base_ms=base_ms,
            read_token_ms=reading.token_ms,
            stream_ms=self._stream_ms if self._stream.known else base_ms + reading.token_ms,
            risk=self.risks.typical,
            foresight=self._foresight.value,
            branch_tokens=self._branch_tokens.value,
        )


def survival(risks: Iterable[float]) -> float:
    """The chance that all of some tokens stand."""
    product = 1.0
    for risk in risks:
        product *= 1.0 - risk
    return product
