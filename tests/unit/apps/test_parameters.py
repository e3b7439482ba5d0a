"""Request parameters: names, seeds, promises, and texts that are resumed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.errors import ConfigError, InvalidRequest
from chaperone_common.session import Committed
from chaperone_common.types import (
    GenerationParams,
    Mode,
    OnDeviation,
    Origin,
    Promises,
    PromptInput,
    SamplingParams,
)
from edge_client import PartialGeneration, RequestParameters
from edge_client.assembly import engine_settings
from edge_client.config import EdgeConfig, GateSettings, GenerationSettings
from edge_client.gate import CloudShareLimit
from edge_client.generation import Collector, GenerationRequest
from edge_client.parameters import (
    check_names,
    check_promised,
    parse_max_cloud_share,
    parse_params,
    parse_request,
    resumed,
    text_limit,
)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("temprature", "did you mean 'temperature'"),
        ("max_tokens", "did you mean 'max_new_tokens'"),
        ("zzz", "known: mode, catch"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name}: unknown parameter .*{words}"):
        check_names({name: 1})


def seed_of(configured: int | None = None, **given: Any) -> int:
    return parse_params(given, GenerationSettings(seed=configured)).sampling.seed


def test_a_missing_seed_is_drawn_where_it_matters() -> None:
    drawn = {seed_of(temperature=0.7) for _ in range(20)}
    assert len(drawn) == 20
    assert all(0 <= seed < 2**32 for seed in drawn), "every JSON reader represents it exactly"
    assert seed_of(temperature=0.0) == 0
    assert seed_of() == 0


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_given_or_configured_seed_is_kept(temperature: float) -> None:
    assert seed_of(temperature=temperature, seed=0) == 0
    assert seed_of(temperature=temperature, seed=2**64 - 1) == 2**64 - 1
    assert seed_of(7, temperature=temperature) == 7
    assert seed_of(7, temperature=temperature, seed=9) == 9


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.EDGE, Mode.CLOUD])
@pytest.mark.parametrize("name", ["catch", "max_deviation"])
def test_a_promise_without_a_fitting_mode_is_refused(mode: Mode, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}: mode is {mode}, and only gated keeps promises"):
        check_promised({name: 0.9}, mode)
    check_promised({name: 0.9}, Mode.GATED)
    check_promised({name: None}, mode)


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.EDGE, Mode.CLOUD])
def test_a_ceiling_of_the_cloud_share_is_for_gated(mode: Mode) -> None:
    with pytest.raises(InvalidRequest, match=f"max_cloud_share: mode is {mode}, and only gated keeps this ceiling"):
        check_promised({"max_cloud_share": 0.3}, mode)
    check_promised({"max_cloud_share": 0.3}, Mode.GATED)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_ceiling_out_of_range_is_refused(share: float) -> None:
    words = re.escape(f"max_cloud_share: {share} is outside (0, 1]; use 1 to switch it off")
    with pytest.raises(InvalidRequest, match=f"^{words}$"):
        parse_max_cloud_share({"max_cloud_share": share}, GateSettings())
    with pytest.raises(ConfigError, match=f"^{words}$"):
        GateSettings(max_cloud_share=share)


def test_a_ceiling_is_taken_from_the_request_or_the_settings() -> None:
    assert parse_max_cloud_share({}, GateSettings()) is None
    assert parse_max_cloud_share({}, GateSettings(max_cloud_share=0.2)) == 0.2
    assert parse_max_cloud_share({"max_cloud_share": 0.4}, GateSettings(max_cloud_share=0.2)) == 0.4
    assert parse_max_cloud_share({"max_cloud_share": 1.0}, GateSettings(max_cloud_share=0.2)) == 1.0


NOT_KEPT = "^max_cloud_share: 0.3 cannot be kept with on_deviation: retract; use keep, or 1 to switch the ceiling off$"


def test_a_ceiling_needs_skipped_tokens_that_are_final() -> None:
    with pytest.raises(ConfigError, match=NOT_KEPT):
        GateSettings(on_deviation=OnDeviation.RETRACT, max_cloud_share=0.3)
    retract = GateSettings(on_deviation=OnDeviation.RETRACT)
    with pytest.raises(InvalidRequest, match=NOT_KEPT):
        parse_max_cloud_share({"max_cloud_share": 0.3}, retract)
    assert parse_max_cloud_share({"max_cloud_share": 1.0}, retract) == 1.0
    assert GateSettings(on_deviation=OnDeviation.RETRACT, max_cloud_share=1.0).max_cloud_share == 1.0


def test_what_happens_at_the_ceiling_is_one_of_two() -> None:
    values: dict[str, Any] = {"on_cloud_share": "stop"}
    with pytest.raises(ConfigError, match=r"^on_cloud_share: 'stop' is not 'continue' or 'fail'$"):
        GateSettings(**values)


def test_the_settings_of_a_generation_keep_the_ceiling_in_gated_alone() -> None:
    config = EdgeConfig(gate=GateSettings(on_cloud_share="fail"))
    for mode in Mode:
        settings = engine_settings(config, mode, max_span_tokens=8, max_cloud_share=0.3, resumed_cloud_tokens=2)
        assert settings.cloud_share == CloudShareLimit(
            0.3 if mode is Mode.GATED else None, fails=True, resumed_cloud_tokens=2
        )


def test_a_request_made_by_hand_is_checked_too() -> None:
    prompt = PromptInput((1, 2))
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(InvalidRequest, match=r"^max_cloud_share: .* is outside \(0, 1\]; use 1 to switch it off$"):
            GenerationRequest(prompt, max_cloud_share=share)
    retract = EdgeConfig(gate=GateSettings(on_deviation=OnDeviation.RETRACT))
    with pytest.raises(InvalidRequest, match=NOT_KEPT):
        engine_settings(retract, Mode.GATED, max_span_tokens=8, max_cloud_share=0.3)
    assert engine_settings(retract, Mode.EXACT, max_span_tokens=8, max_cloud_share=0.3).cloud_share.share is None


PARTIAL = PartialGeneration(
    (5, 6),
    (7, 8, 9),
    "abc",
    (Origin.VERIFIED,) * 3,
    GenerationParams(SamplingParams(0.7, top_p=0.9, seed=3), max_new_tokens=40, stop=("x",)),
    Mode.GATED,
    Promises(0.9, 0.1),
    "sha256:1",
    0.3,
    cloud_tokens=2,
)


def test_a_resumed_text_keeps_its_parameters() -> None:
    parameters = resumed(PARTIAL, RequestParameters())
    assert parse_params(parameters, GenerationSettings()) == PARTIAL.params
    assert parameters["committed_token_ids"] == (7, 8, 9)
    assert (parameters["mode"], parameters["catch"], parameters["max_deviation"]) == (Mode.GATED, 0.9, 0.1)
    assert parameters["max_cloud_share"] == 0.3


def test_a_resumed_text_may_change_mode_promises_and_length() -> None:
    parameters = resumed(PARTIAL, RequestParameters(mode="exact", max_new_tokens=80))
    check_promised(parameters, Mode.EXACT)
    assert (parameters["mode"], parameters["max_new_tokens"]) == ("exact", 80)
    assert resumed(PARTIAL, RequestParameters(catch=0.99))["catch"] == 0.99
    assert resumed(PARTIAL, RequestParameters(max_cloud_share=0.6))["max_cloud_share"] == 0.6


def test_a_resumed_text_counts_the_cloud_tokens_of_all_its_parts() -> None:
    request = parse_request(PARTIAL, RequestParameters(), EdgeConfig(), lambda prompt, **_: prompt)
    assert (request.max_cloud_share, request.committed_cloud_tokens) == (0.3, 2)
    collected = Collector(request)
    for position, origin in enumerate([Origin.OVERRIDE, Origin.VERIFIED, Origin.TAKEOVER], start=5):
        collected.add(Committed(position, 9, origin))
    partial = collected.partial()
    assert (partial.max_cloud_share, partial.cloud_tokens, len(partial.token_ids)) == (0.3, 4, 6)


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "min_p", "seed", "committed_token_ids"])
def test_parameters_that_would_change_a_resumed_text_are_refused(name: str) -> None:
    given: Any = {name: (1,) if name == "committed_token_ids" else 1}
    with pytest.raises(InvalidRequest, match=f"^{name}: a resumed text keeps"):
        resumed(PARTIAL, given)


MANIFEST = ModelManifest(
    pair="tiny",
    role="edge",
    model="m",
    source={},
    recipe={},
    versions={},
    tokenizer_digest="sha256:" + "0" * 64,
    vocabulary_size=100,
    eos_token_ids=(2, 3),
    context_tokens=64,
    files={},
)


@pytest.mark.parametrize(("committed", "index"), [((60, 2, 60), 1), ((3,), 0), ((60, 61, 3), 2)])
def test_an_ended_text_cannot_be_resumed(committed: tuple[int, ...], index: int) -> None:
    request = GenerationRequest(PromptInput((5,)), committed_token_ids=committed)
    with pytest.raises(InvalidRequest, match=rf"committed_token_ids\[{index}\]: {committed[index]} is end-of-text"):
        text_limit(request, MANIFEST, 64)
