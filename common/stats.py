"""What is measured of one generation."""

from __future__ import annotations

from dataclasses import dataclass, fields

from common.types import FinishReason


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """A declared model, not a measurement; replace the constants by those of your hardware.

    Defaults: a phone's big cores at about 5 W for 20 ms a token; a server accelerator's share of about 60 W; a
    cellular radio at about 1 W while it is awake, and 10 nJ a bit (both after Huang et al., MobiSys 2012).
    """

    joules_per_device_second: float = 5.0
    joules_per_cloud_second: float = 60.0
    joules_per_radio_byte: float = 8e-8
    joules_per_radio_second: float = 1.0

    def joules(self, *, device_ms: float, cloud_ms: float, radio_bytes: int, radio_ms: float) -> float:
        """Energy of one generation: device and cloud compute, bytes on the radio, and time that it is awake."""
        return (
            self.joules_per_device_second * device_ms / 1e3
            + self.joules_per_cloud_second * cloud_ms / 1e3
            + self.joules_per_radio_byte * radio_bytes
            + self.joules_per_radio_second * radio_ms / 1e3
        )


@dataclass(slots=True)
class Tally:
    """Counters that a device session keeps while it runs."""

    fired: int = 0
    requests: int = 0
    verified_tokens: int = 0
    skipped_tokens: int = 0
    overridden_tokens: int = 0
    bonus_tokens: int = 0
    takeover_tokens: int = 0
    retracted_tokens: int = 0
    unverified_tokens: int = 0
    audited_tokens: int = 0
    deviations: int = 0
    cloud_queue_us: int = 0
    cloud_compute_us: int = 0


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """One generation, measured; times are in milliseconds on the device's clock unless the name says cloud.

    `round_trips` are requests that the device waited for, `hidden_round_trips` all others. `verified_tokens` are
    draft tokens that the cloud confirmed before they were final. `deviation_bound` counts every unread skipped token
    as a deviation, `catch` is caught / (caught + deviations) and absent where nothing was to be caught.
    `decode_ms` runs from the moment when both ends held the prompt's KV, where the generation waited for that.
    `energy_j` follows the declared `EnergyModel`.
    """

    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason | None
    ttft_ms: float | None
    ttft_committed_ms: float | None
    prefill_ms: float
    total_ms: float
    decode_ms: float | None
    round_trips: int
    hidden_round_trips: int
    fired: int
    verified_tokens: int
    skipped_tokens: int
    overridden_tokens: int
    bonus_tokens: int
    takeover_tokens: int
    retracted_tokens: int
    unverified_tokens: int
    audited_tokens: int
    deviations: int
    deviation_bound: float
    catch: float | None
    bytes_up: int
    bytes_down: int
    edge_compute_ms: float
    cloud_compute_ms: float
    cloud_queue_ms: float
    energy_j: float

    def to_json(self) -> dict[str, int | float | str | None]:
        """The fields by name, as `chaperone generate` writes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
