"""Times and counts of one generation, measured on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from chaperone_common.clock import Clock
from chaperone_common.session import Committed, DeviceSession, Drafted, SessionEvent
from chaperone_common.stats import EnergyModel, GenerationStats
from edge_client.gate import CloudShareGuard
from edge_client.link.connection import Connection


class Stopwatch:
    """Measures the times that the session does not know, and counts the answers that the device waited for."""

    def __init__(self, clock: Clock, energy: EnergyModel | None = None) -> None:
        self._clock = clock
        self._energy = energy or EnergyModel()
        self._started = self._now_ms()
        self._warm: float | None = None
        self._stopped: float | None = None
        self._first_shown: float | None = None
        self._first_committed: float | None = None
        self._edge_compute_ms = 0.0
        self._waited = False
        self._round_trips = 0
        self._encodings = 0  # that the device waited for

    def start(self) -> None:
        """Note that the generation begins."""
        self._started = self._now_ms()

    def warm(self) -> None:
        """Note that both ends hold the prompt's KV."""
        self._warm = self._now_ms()

    def stop(self) -> None:
        """Note that the last token is committed."""
        self._stopped = self._now_ms()

    def follow(self, event: SessionEvent) -> None:
        """Note when the first token is shown, and when the first one is final."""
        if self._first_shown is None and isinstance(event, Drafted | Committed):
            self._first_shown = self._now_ms()
        if self._first_committed is None and isinstance(event, Committed):
            self._first_committed = self._now_ms()

    def waiting(self, *, for_verdict: bool) -> None:
        """Note that the device has nothing to do but wait."""
        self._waited = self._waited or for_verdict

    def answered(self) -> None:
        """Note that a verdict arrived."""
        self._round_trips += self._waited
        self._waited = False

    def encoded(self) -> None:
        """Note that the device has waited for the encoding of its prompt."""
        self._encodings += 1

    @contextmanager
    def edge_compute(self) -> Iterator[None]:
        """Count the time inside the context as the device's compute."""
        began = self._now_ms()
        try:
            yield
        finally:
            self._edge_compute_ms += self._now_ms() - began

    def stats(
        self, session: DeviceSession, cloud: Connection, guard: CloudShareGuard, edge_cached_tokens: int = 0
    ) -> GenerationStats:
        """Return the statistics of the generation up to now."""
        end = self._now_ms() if self._stopped is None else self._stopped
        total_ms = end - self._started
        tally = session.tally
        up, down = cloud.bytes_up, cloud.bytes_down
        completion = session.final_length - session.first_new
        unread = max(0, tally.skipped_tokens + tally.unverified_tokens - tally.audited_tokens)
        caught = tally.caught
        missed = tally.deviations
        cloud_ms = tally.cloud_compute_us / 1e3
        return GenerationStats(
            prompt_tokens=session.prompt_length,
            completion_tokens=completion,
            finish_reason=session.finish_reason,
            ttft_ms=self._since_start(self._first_shown),
            ttft_committed_ms=self._since_start(self._first_committed),
            edge_cached_tokens=edge_cached_tokens,
            cloud_cached_tokens=session.cached_tokens or 0,
            prefill_ms=session.prefill_us / 1e3,
            total_ms=total_ms,
            decode_ms=None if self._warm is None else end - self._warm,
            round_trips=self._round_trips + self._encodings,
            hidden_round_trips=tally.requests - self._round_trips,
            fired=tally.fired,
            verified_tokens=tally.verified_tokens,
            skipped_tokens=tally.skipped_tokens,
            risk_spent=tally.risk_spent,
            overridden_tokens=tally.overridden_tokens,
            caught=caught,
            bonus_tokens=tally.bonus_tokens,
            takeover_tokens=tally.takeover_tokens,
            retracted_tokens=tally.retracted_tokens,
            unverified_tokens=tally.unverified_tokens,
            audited_tokens=tally.audited_tokens,
            deviations=missed,
            deviation_bound=(missed + unread) / completion if completion else 0.0,
            catch=caught / (caught + missed) if caught + missed and not unread else None,
            cloud_share=guard.share,
            max_cloud_share=guard.limit,
            guard="max_cloud_share" if guard.reached else None,
            reconnects=tally.reconnects,
            bytes_up=up,
            bytes_down=down,
            edge_compute_ms=self._edge_compute_ms,
            cloud_compute_ms=cloud_ms,
            cloud_queue_ms=tally.cloud_queue_us / 1e3,
            seed=session.opening.sampling.seed,
            model_digest=session.opening.model_digest,
            energy_j=self._energy.joules(
                device_ms=self._edge_compute_ms,
                cloud_ms=cloud_ms,
                radio_ms=total_ms if up else 0.0,
                bytes_up=up,
                bytes_down=down,
            ),
        )

    def _since_start(self, moment: float | None) -> float | None:
        return None if moment is None else moment - self._started

    def _now_ms(self) -> float:
        return self._clock.now() * 1e3
