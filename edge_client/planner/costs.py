"""Estimates of the costs of drafting, link and cloud, learned while they work."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chaperone_common.planning.costs import Costs
from edge_client.planner.learning import ReadingTime, Recent, Share

# Forwards of several rows to forget for each forward of a single row (an assumption).
_UNTRIED = 0.2
# Share of drafted tokens that a gate asks about before any is known: between code and prose (an assumption).
_FIRES_PRIOR = 0.1
# The least time of any step: clocks are coarse, and a cloud may report any time.
_LEAST_MS = 0.01


class Risks:
    """Corrects risks by a factor, learned from the cloud's verdicts; it differs from task to task."""

    def __init__(self) -> None:
        self._factor = Share(prior=1.0, weight=5.0, memory=25.0)  # overrides over the sum of the risks
        self._level = Share(prior=Costs().risk, weight=16.0, memory=160.0)  # the risk of the tokens to come

    def corrected(self, risk: float) -> float:
        """Return the chance that the cloud chooses another token."""
        return min(max(self._factor.value * risk, 1e-4), 0.98)

    @property
    def typical(self) -> float:
        """The chance for a token that is not drafted yet."""
        return self._level.value

    def drafted(self, risk: float, *, tokens: int = 1) -> None:
        """Count a drafted token of this risk, or one that stands for `tokens`; the next ones will be like it."""
        self._level.add(self.corrected(risk) * tokens, tokens)

    def judged(self, risk: float, *, agreed: bool) -> None:
        """Learn from the cloud's verdict on a token of this risk."""
        self._factor.add(0.0 if agreed else 1.0, risk)


class Estimates:
    """All costs, learned across the generations of one client."""

    def __init__(self) -> None:
        prior = Costs()
        self.risks = Risks()
        self._draft = Recent(prior.draft_ms)
        # The cost of a further row in the same forward, as a share of a draft's time. While it seems high, no branch is
        # drafted with the text, so old samples fade: the first such forward allocates memory and takes long.
        self._row = Share(prior.row_ms / prior.draft_ms, weight=4.0, memory=40.0)
        # A low quantile: a delay that happens now and then, such as a lost segment, is no part of every round trip.
        self._rtt = Recent(prior.rtt_ms, quantile=0.25)
        # The cloud's own time for a token, and the time between arrivals. A link that delays tokens and then delivers
        # several at once lowers the lower quartile. A link that is too slow for them raises all quantiles.
        self._stream = Recent(prior.stream_ms)
        self._arrivals = Recent(0.0, quantile=0.25)
        self._reading = ReadingTime(prior.read_base_ms, prior.read_token_ms)
        self._prompts = ReadingTime(0.0, 0.0)
        self._hit = Share(0.5, weight=10.0)
        # It takes about 20 tokens to doubt the promised rate, and 100 without a trial to trust it again.
        self._delivery = Share(prior=1.0, weight=20.0, memory=100.0)
        self._foresight = Share(prior.foresight, weight=2.0, memory=50.0)
        self._fires = Share(_FIRES_PRIOR, weight=16.0, memory=160.0)
        self._observers: list[Callable[[int, float], None]] = []
        self._branch_tokens = Share(4.0, weight=2.0, memory=20.0)

    def drafted(self, rows: int, elapsed_ms: float) -> None:
        """Record the time of a forward of one token in each of `rows` rows."""
        if rows == 1:
            self._draft.add(elapsed_ms)
            self._row.fade(_UNTRIED)
        else:
            share = (elapsed_ms / max(self._draft.value, _LEAST_MS) - 1) / (rows - 1)
            self._row.add(min(max(share, 0.0), 1.0))  # at most 1: a forward of its own would take no longer

    def gated(self, *, fires: bool) -> None:
        """Record whether the gate asks about a drafted token of a gated generation."""
        self._fires.add(fires)

    def travelled(self, elapsed_ms: float) -> None:
        """Record the round trip of a request, without the cloud's own time."""
        self._rtt.add(max(elapsed_ms, 0.0))

    def prefilled(self, tokens: int, elapsed_ms: float) -> None:
        """Record the time of the cloud's prefill of a prompt, with its wait for other devices."""
        self._prompts.add(tokens, elapsed_ms)

    def observe(self, on_read: Callable[[int, float], None]) -> None:
        """Call `on_read` from now on with the tokens of each span that the cloud read, and the milliseconds it took.

        Studies use it, because the estimates keep no single samples.
        """
        self._observers.append(on_read)

    def read(self, tokens: int, elapsed_ms: float) -> None:
        """Record the time in which the cloud read a span, with its wait for other devices."""
        self._reading.add(tokens, elapsed_ms)
        for observer in self._observers:
            observer(tokens, elapsed_ms)

    def streamed(self, elapsed_ms: float, cloud_ms: float) -> None:
        """Record the time since the takeover's last token, and the cloud's own time for this one."""
        self._arrivals.add(elapsed_ms)
        self._stream.add(cloud_ms)
        self._delivery.fade()  # only spans teach the rate of spans: fade, so that they are tried again

    def delivered(self, tokens: int, promised: float) -> None:
        """Record the tokens that became final in a time for which the schedule had promised this many."""
        self._delivery.add(tokens, promised)

    def overridden(self, *, by_runner_up: bool, foreseen_tokens: int | None) -> None:
        """Record an override; a branch that begins with its token had `foreseen_tokens` drafted, None without one."""
        self._hit.add(by_runner_up)
        self._foresight.add(foreseen_tokens is not None)
        if foreseen_tokens is not None:
            self._branch_tokens.add(foreseen_tokens)

    def prefill_ms(self, tokens: int) -> float:
        """Return the time that the cloud needs for a prompt; 0 before the first one."""
        return self._prompts.base_ms + self._prompts.token_ms * tokens

    @property
    def reading_known(self) -> bool:
        """True if the cloud has ever reported how long it read."""
        return self._reading.known

    @property
    def hit(self) -> float:
        """The chance that an override is the draft's runner-up."""
        return self._hit.value

    @property
    def delivery(self) -> float:
        """The share of the promised rate that is reached: at most 1, because costs outside the model only add time."""
        return min(self._delivery.value, 1.0)

    @property
    def _stream_ms(self) -> float:
        return max(self._stream.value, self._arrivals.value, _LEAST_MS)

    def costs(self) -> Costs:
        """Return the current estimates."""
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
            fires=self._fires.value,
        )


def survival(risks: Iterable[float]) -> float:
    """Return the chance that all tokens of these risks stand."""
    product = 1.0
    for risk in risks:
        product *= 1.0 - risk
    return product
