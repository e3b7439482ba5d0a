"""What is measured of one generation."""

from __future__ import annotations

from dataclasses import dataclass, fields

from chaperone_common.types import FinishReason, Origin


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """A declared model, not a measurement; replace the constants by those of your hardware.

    Compute is power times time: 5 W for a phone's big cores and 60 W for a share of a server are assumptions. So are
    the radio's constants: a base power while awake and energy per byte, the form that Huang et al. use for LTE
    ("A close examination of performance and power characteristics of 4G LTE networks", MobiSys 2012), of that order.
    """

    device_watts: float = 5.0
    cloud_watts: float = 60.0
    radio_watts: float = 1.288
    joules_per_byte_up: float = 3.5e-6
    joules_per_byte_down: float = 4.2e-7

    def joules(self, *, device_ms: float, cloud_ms: float, radio_ms: float, bytes_up: int, bytes_down: int) -> float:
        """Energy of one generation: compute on both ends, time that the radio is awake, and bytes on it."""
        return (
            (self.device_watts * device_ms + self.cloud_watts * cloud_ms + self.radio_watts * radio_ms) / 1e3
            + self.joules_per_byte_up * bytes_up
            + self.joules_per_byte_down * bytes_down
        )


@dataclass(slots=True)
class Tally:
    """Counters that a device session keeps while it runs."""

    fired: int = 0
    requests: int = 0
    verified_tokens: int = 0
    skipped_tokens: int = 0
    risk_spent: float = 0.0
    overridden_tokens: int = 0
    caught: int = 0  # draft tokens that gave way to the cloud's, by override or takeover
    bonus_tokens: int = 0
    takeover_tokens: int = 0
    retracted_tokens: int = 0
    unverified_tokens: int = 0
    audited_tokens: int = 0
    deviations: int = 0
    reconnects: int = 0
    cloud_queue_us: int = 0
    cloud_compute_us: int = 0

    def forget_committed(self) -> None:
        """Count no token as final, to count those again that are."""
        self.skipped_tokens = self.verified_tokens = self.overridden_tokens = 0
        self.bonus_tokens = self.takeover_tokens = self.unverified_tokens = self.caught = 0
        self.risk_spent = 0.0

    def committed(self, origin: Origin, risk: float, *, caught: bool) -> None:
        """Count a token that became final; `caught` if it took the place of the device's."""
        self.caught += caught
        match origin:
            case Origin.DRAFT:
                self.skipped_tokens += 1
                self.risk_spent += risk
            case Origin.VERIFIED:
                self.verified_tokens += 1
            case Origin.OVERRIDE:
                self.overridden_tokens += 1
            case Origin.BONUS:
                self.bonus_tokens += 1
            case Origin.TAKEOVER:
                self.takeover_tokens += 1
            case Origin.UNVERIFIED:
                self.unverified_tokens += 1


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """One generation, measured; times are in milliseconds on the device's clock unless the name says cloud.

    `round_trips` are requests that the device waited for, `hidden_round_trips` all others. `verified_tokens` are
    draft tokens that the cloud confirmed before they were final. `risk_spent` is the risk of all skipped tokens, added
    up: the deviations that were to be expected. `deviation_bound` counts every unread skipped token as a deviation. A
    draft token is `caught` if one of the cloud's took its place before it was final. `catch` is caught / (caught +
    deviations), absent where nothing was to be caught, or skipped tokens are still unread. `reconnects` counts the
    streams after the first on which the cloud answered; a request whose answer was lost with its stream counts once, as
    it was asked again. `prefill_ms` is the cloud's compute on the prompt, of all streams together, a part of
    `cloud_compute_ms`. `decode_ms` runs from the moment when both ends held the prompt's KV, where the generation
    waited for that. `seed` keyed the noise, and `model_digest` names the large model that the text was begun with, ""
    where no cloud was asked: a generation is resumed with both. `energy_j` follows the declared `EnergyModel`.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: FinishReason | None = None
    ttft_ms: float | None = None
    ttft_committed_ms: float | None = None
    prefill_ms: float = 0.0
    total_ms: float = 0.0
    decode_ms: float | None = None
    round_trips: int = 0
    hidden_round_trips: int = 0
    fired: int = 0
    verified_tokens: int = 0
    skipped_tokens: int = 0
    risk_spent: float = 0.0
    overridden_tokens: int = 0
    caught: int = 0
    bonus_tokens: int = 0
    takeover_tokens: int = 0
    retracted_tokens: int = 0
    unverified_tokens: int = 0
    audited_tokens: int = 0
    deviations: int = 0
    deviation_bound: float = 0.0
    catch: float | None = None
    reconnects: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    edge_compute_ms: float = 0.0
    cloud_compute_ms: float = 0.0
    cloud_queue_ms: float = 0.0
    energy_j: float = 0.0
    seed: int = 0
    model_digest: str = ""

    def to_json(self) -> dict[str, int | float | str | None]:
        """The fields by name, as `chaperone generate` writes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
