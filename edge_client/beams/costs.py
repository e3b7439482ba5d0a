"""The costs of forests, learned while they work."""

from __future__ import annotations

from dataclasses import dataclass

from edge_client.planner.learning import ReadingTime, Recent

_LEAST_MS = 0.01  # of any step: clocks are coarse, and a cloud may report any time
_ROW_PRIOR = 1 / 4  # of the time of a forward: another row of a small model on a CPU (an assumption)
_OUTLIER = 4.0  # times the expected time: a forward that has allocated memory, or met other work


@dataclass(frozen=True, slots=True)
class ForestCosts:
    """The times in milliseconds that forests are planned by."""

    draft_ms: float = 20.0  # the device reads one token of one text
    row_ms: float = 5.0  # and one of a further text in the same forward
    rtt_ms: float = 50.0  # the link there and back, without the cloud
    read_base_ms: float = 100.0  # the cloud reads the texts of a forest
    read_text_ms: float = 3.0  # for each of them
    gap_ms: float = 0.0  # from one layer that the cloud draws alone to the next, without the reading
    known: bool = True  # False: nothing was measured yet

    def drafting_ms(self, texts: float) -> float:
        """Return the time in which the device reads a token of each of some texts."""
        return self.draft_ms + self.row_ms * (texts - 1)

    def reading_ms(self, texts: float) -> float:
        """Return the time in which the cloud reads some texts."""
        return self.read_base_ms + self.read_text_ms * texts


class ForestEstimates:
    """All costs of forests, learned across the generations of one client."""

    def __init__(self) -> None:
        prior = ForestCosts()
        self._drafting = ReadingTime(prior.draft_ms, prior.row_ms, slope_prior=_ROW_PRIOR)  # by rows after the first
        self._reading = ReadingTime(prior.read_base_ms, prior.read_text_ms)
        # A low quantile: a delay that happens now and then, such as a lost segment, is no part of every round trip.
        self._rtt = Recent(prior.rtt_ms, quantile=0.25)
        self._gap = Recent(prior.gap_ms)

    def drafted(self, texts: int, elapsed_ms: float) -> None:
        """Record the time of a forward of one token in each of some texts, with the choice of their continuations."""
        _add(self._drafting, texts - 1, elapsed_ms)

    def read(self, texts: int, elapsed_ms: float) -> None:
        """Record the time in which the cloud read the texts of a forest, with its wait for other devices."""
        _add(self._reading, texts, elapsed_ms)

    def travelled(self, elapsed_ms: float) -> None:
        """Record the round trip of a request, without the cloud's own time."""
        self._rtt.add(max(elapsed_ms, 0.0))

    def streamed(self, elapsed_ms: float, cloud_ms: float) -> None:
        """Record the time from one layer that the cloud drew alone to the next, and the cloud's own time in it."""
        self._gap.add(max(elapsed_ms - cloud_ms, 0.0))

    def costs(self) -> ForestCosts:
        """Return the current estimates."""
        return ForestCosts(
            draft_ms=max(self._drafting.base_ms, _LEAST_MS),
            row_ms=self._drafting.token_ms,
            rtt_ms=self._rtt.value,
            read_base_ms=max(self._reading.base_ms, _LEAST_MS),
            read_text_ms=self._reading.token_ms,
            gap_ms=self._gap.value,
            known=self._reading.known or self._rtt.known,
        )


def _add(times: ReadingTime, tokens: int, elapsed_ms: float) -> None:
    """Add a sample; one that is far above the others counts as a slow one."""
    if times.known:
        expected_ms = times.base_ms + times.token_ms * tokens
        elapsed_ms = min(elapsed_ms, _OUTLIER * max(expected_ms, _LEAST_MS))
    times.add(tokens, elapsed_ms)
