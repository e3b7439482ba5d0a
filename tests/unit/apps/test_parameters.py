"""Request parameters: names, seeds, promises, and texts that are resumed."""

from __future__ import annotations

from typing import Any

import pytest

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.errors import InvalidRequest
from chaperone_common.types import GenerationParams, Mode, Origin, Promises, PromptInput, SamplingParams
from edge_client import PartialGeneration, RequestParameters
from edge_client.config import GenerationSettings
from edge_client.generation import GenerationRequest
from edge_client.parameters import check_names, check_promised, parse_params, resumed, text_limit


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


PARTIAL = PartialGeneration(
    (5, 6),
    (7, 8, 9),
    "abc",
    (Origin.VERIFIED,) * 3,
    GenerationParams(SamplingParams(0.7, top_p=0.9, seed=3), max_new_tokens=40, stop=("x",)),
    Mode.GATED,
    Promises(0.9, 0.1),
    "sha256:1",
)


def test_a_resumed_text_keeps_its_parameters() -> None:
    parameters = resumed(PARTIAL, RequestParameters())
    assert parse_params(parameters, GenerationSettings()) == PARTIAL.params
    assert parameters["committed_token_ids"] == (7, 8, 9)
    assert (parameters["mode"], parameters["catch"], parameters["max_deviation"]) == (Mode.GATED, 0.9, 0.1)


def test_a_resumed_text_may_change_mode_promises_and_length() -> None:
    parameters = resumed(PARTIAL, RequestParameters(mode="exact", max_new_tokens=80))
    check_promised(parameters, Mode.EXACT)
    assert (parameters["mode"], parameters["max_new_tokens"]) == ("exact", 80)
    assert resumed(PARTIAL, RequestParameters(catch=0.99))["catch"] == 0.99


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
