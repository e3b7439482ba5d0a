"""The measurements of one generation."""

from __future__ import annotations

from dataclasses import dataclass, fields

from chaperone_common.types import FinishReason, Mode, Origin


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """An assumed model of energy, not a measurement. Replace the constants with those of your hardware.

    The radio constants have the form and the order of magnitude of Huang et al., "A close examination of performance
    and power characteristics of 4G LTE networks", MobiSys 2012.
    """

    device_watts: float = 5.0  # the big cores of a phone
    cloud_watts: float = 60.0  # a share of a server
    radio_watts: float = 1.288  # while the radio is awake
    joules_per_byte_up: float = 3.5e-6
    joules_per_byte_down: float = 4.2e-7

    def joules(self, *, device_ms: float, cloud_ms: float, radio_ms: float, bytes_up: int, bytes_down: int) -> float:
        """Return the energy of one generation: compute on both ends, the radio while it is awake, and its bytes."""
        return (
            (self.device_watts * device_ms + self.cloud_watts * cloud_ms + self.radio_watts * radio_ms) / 1e3
            + self.joules_per_byte_up * bytes_up
            + self.joules_per_byte_down * bytes_down
        )


@dataclass(slots=True)
class Tally:
    """Counters of a running device session; `GenerationStats` describes the fields."""

    fired: int = 0
    requests: int = 0
    verified_tokens: int = 0
    skipped_tokens: int = 0
    risk_spent: float = 0.0
    overridden_tokens: int = 0
    caught: int = 0
    bonus_tokens: int = 0
    takeover_tokens: int = 0
    retracted_tokens: int = 0
    unverified_tokens: int = 0
    cloud_tokens: int = 0
    audited_tokens: int = 0
    deviations: int = 0
    reconnects: int = 0
    cloud_queue_us: int = 0
    cloud_compute_us: int = 0

    def forget_committed(self) -> None:
        """Reset the counts of committed tokens, before the caller counts them all again."""
        self.skipped_tokens = self.verified_tokens = self.overridden_tokens = 0
        self.bonus_tokens = self.takeover_tokens = self.unverified_tokens = self.caught = self.cloud_tokens = 0
        self.risk_spent = 0.0

    def committed(self, origin: Origin, risk: float, *, caught: bool) -> None:
        """Count a token that became final; `caught` if it replaced a token of the device."""
        self.caught += caught
        self.cloud_tokens += origin.of_cloud
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


def promises_hold(mode: Mode, *, unverified: bool, earlier: bool | None, resumed: bool) -> bool | None:
    """Return whether the promises of a mode cover all of a text; None if nothing was ever promised.

    Args:
        mode: The mode of the new tokens; `edge` and `conditioned` promise nothing.
        unverified: Some of the new tokens are unverified.
        earlier: The same of the tokens that a resumed text begins with.
        resumed: There are such tokens.
    """
    now = None if mode.writes_alone else not unverified
    return now if not resumed or earlier is now else False


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """The measurements of one generation. Times are on the device's clock, except those named cloud or prefill."""

    prompt_tokens: int = 0
    completion_tokens: int = 0  # committed tokens after the prompt
    finish_reason: FinishReason | None = None  # None if the generation failed
    ttft_ms: float | None = None  # time to the first token, provisional or final
    ttft_committed_ms: float | None = None  # time to the first final token
    edge_cached_tokens: int = 0  # of the prompt, that the device's model held from the turn before
    conditioned_tokens: int = 0  # of the prompt, that the device's model read with the cloud's encoding
    cloud_cached_tokens: int = 0  # of the prompt, that the cloud held already
    prefill_ms: float = 0.0  # the cloud's compute on the prompt, over all streams; a part of cloud_compute_ms
    total_ms: float = 0.0  # time from the request to the end
    decode_ms: float | None = None  # time since both ends held the prompt's KV; None if the device did not wait for it
    round_trips: int = 0  # requests that the device waited for; a request that is sent again counts once
    hidden_round_trips: int = 0  # all other requests
    fired: int = 0  # tokens at which the gate fired, retracted ones included
    verified_tokens: int = 0  # draft tokens that the cloud confirmed before they were final
    skipped_tokens: int = 0  # draft tokens that were final without asking the cloud
    risk_spent: float = 0.0  # sum of the risk of all skipped tokens: the expected number of deviations
    overridden_tokens: int = 0  # tokens of the cloud that replaced a draft token
    caught: int = 0  # draft tokens that a token of the cloud replaced before they were final
    bonus_tokens: int = 0  # tokens of the cloud after a span that it confirmed whole
    takeover_tokens: int = 0  # tokens that the cloud wrote by itself
    retracted_tokens: int = 0  # tokens that were shown and taken back
    unverified_tokens: int = 0  # tokens written while the cloud was lost, or not asked because of `max_cloud_share`
    audited_tokens: int = 0  # skipped and unverified tokens that the cloud has judged since
    deviations: int = 0  # audited tokens that the cloud would have chosen otherwise
    deviation_bound: float = 0.0  # share of deviations, if all unread tokens count as deviations
    catch: float | None = None  # caught / (caught + deviations); None if both are 0, or tokens are unread
    cloud_share: float = 0.0  # share of all new tokens that the cloud chose itself, those of a resumed text included
    max_cloud_share: float | None = None  # the ceiling of the share, over at least 32 tokens; None: none
    promises_hold: bool | None = None  # of the whole text, see `promises_hold`; None: mode `edge` promises nothing
    guard: str | None = None  # "max_cloud_share" if this ceiling was reached; None if no guard has stopped a question
    reconnects: int = 0  # later streams of the session on which the cloud answered
    bytes_up: int = 0  # payload sent to the cloud
    bytes_down: int = 0  # payload received from the cloud
    edge_compute_ms: float = 0.0  # time that the small model computed
    cloud_compute_ms: float = 0.0  # time that the large model computed, as reported by the cloud
    cloud_queue_ms: float = 0.0  # time that requests waited in the cloud's queue, as reported by the cloud
    energy_j: float = 0.0  # by the declared EnergyModel
    generation_id: str = ""  # random; `Planned` events have it, too; "" in a simulation
    seed: int = 0  # key of the noise; needed to resume
    model_digest: str = ""  # the large model that began the text, needed to resume; "" if no cloud was asked

    def to_json(self) -> dict[str, int | float | str | None]:
        """Return the fields by name, as `chaperone generate` prints them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
