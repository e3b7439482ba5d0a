"""Beams by the device SDK against a real server with the tiny pair."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import InvalidRequest
from chaperone_common.session import Committed, Finished
from chaperone_common.types import BeamParams, FinishReason, Origin
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import Beams, EdgeClient, EdgeConfig, Generation, SyncEdgeClient
from edge_client.events import Event
from tests.support.processes.clients import config_for
from tests.support.processes.servers import serving_in_thread

PROMPTS = ("the list of a number is", "return a value", "what is a word")
TOKENS = 24


@pytest.fixture(scope="module")
def large(tiny_pair: Path) -> Any:
    """Return the large model as transformers loads it, without the ids that are no tokens."""
    model = AutoModelForCausalLM.from_pretrained(tiny_pair / "cloud", dtype=torch.float32).eval()
    model.resize_token_embeddings(load_manifest(tiny_pair / "cloud", role="cloud").vocabulary_size)
    return model


def best_of(
    large: Any, pair: Path, prompt: Sequence[int], stop: Sequence[str] = (), **options: Any
) -> list[tuple[int, ...]]:
    """Return the texts of transformers' own beam search, without padding."""
    manifest = load_manifest(pair / "cloud", role="cloud")
    tokenizer = AutoTokenizer.from_pretrained(pair / "cloud")
    if stop:
        options |= {"stop_strings": list(stop), "tokenizer": tokenizer}
    found = large.generate(
        torch.tensor([prompt]),
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=list(manifest.eos_token_ids),
        pad_token_id=manifest.eos_token_ids[0],
        **options,
    )
    texts = []
    for row in found[:, len(prompt) :].tolist():
        ends = [
            place
            for place, token_id in enumerate(row)
            if token_id in manifest.eos_token_ids or any(each in tokenizer.decode(row[: place + 1]) for each in stop)
        ]
        texts.append(tuple(row[: ends[0] + 1] if ends else row))
    return texts


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 4, "num_return_sequences": 4},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0},
        {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["exact", "cloud"])
def test_beam_search_is_that_of_transformers(
    tiny_pair: Path, target: TorchModel, large: Any, options: dict[str, Any], mode: str
) -> None:
    with serving_in_thread(target, tiny_pair) as (_, address), SyncEdgeClient(config_for(address)) as client:
        for prompt in PROMPTS:
            found = client.generate(prompt, mode=mode, max_new_tokens=TOKENS, temperature=0, **options)
            assert found.sequences is not None
            expected = best_of(large, tiny_pair, found.prompt_token_ids, **options)
            assert [sequence.token_ids for sequence in found.sequences] == expected
            assert found.token_ids == expected[0]
            assert found.text == found.sequences[0].text
            scores = [sequence.score for sequence in found.sequences]
            assert scores == sorted(scores, reverse=True)


def test_drafted_texts_stand_often(tiny_pair: Path, target: TorchModel) -> None:
    with serving_in_thread(target, tiny_pair) as (_, address), SyncEdgeClient(config_for(address)) as client:
        found = client.generate(PROMPTS[0], num_beams=2, beam_width=4, max_new_tokens=TOKENS)
    origins = set(found.origins)
    assert Origin.VERIFIED in origins
    assert origins <= {Origin.VERIFIED, Origin.OVERRIDE, Origin.BONUS, Origin.TAKEOVER}
    assert found.stats.round_trips < TOKENS
    assert found.stats.promises_hold
    assert found.stats.edge_compute_ms > 0
    assert found.stats.cloud_compute_ms > 0
    assert found.stats.completion_tokens == len(found.token_ids)


@pytest.mark.parametrize("mode", ["exact", "cloud"])
@pytest.mark.parametrize("one_cache", [False, True])
def test_beam_sampling_commits_what_all_beams_share(
    tiny_pair: Path, target: TorchModel, mode: str, one_cache: bool
) -> None:
    async def collect(address: str) -> list[Event]:
        async with EdgeClient(config_for(address)) as client:
            return [
                event
                async for event in client.stream(
                    PROMPTS[0],
                    mode=mode,
                    temperature=0.9,
                    seed=5,
                    num_beams=3,
                    num_return_sequences=3,
                    one_cache=one_cache,
                    max_new_tokens=TOKENS,
                )
            ]

    with serving_in_thread(target, tiny_pair) as (_, address):
        events = asyncio.run(collect(address))
    final: list[int] = []
    for event in events:
        match event:
            case Committed():
                final.append(event.token_id)
            case Beams():
                for beam in (*event.running, *event.finished):
                    assert list(beam.token_ids[: len(final)]) == final
            case _:
                assert event is events[-1]
                assert isinstance(event, Finished)
    last = next(event for event in reversed(events) if isinstance(event, Beams))
    assert list(last.finished[0].token_ids) == final
    assert "".join(event.text for event in events) == last.finished[0].text
    assert not last.running
    texts = [beam.token_ids for beam in last.finished]
    assert len(set(texts)) == len(texts)


def test_sampling_by_the_cloud_alone_is_the_same_each_time(tiny_pair: Path, target: TorchModel) -> None:
    with serving_in_thread(target, tiny_pair) as (_, address), SyncEdgeClient(config_for(address)) as client:

        def written(seed: int) -> Generation:
            return client.generate(
                PROMPTS[0], mode="cloud", temperature=0.9, seed=seed, num_beams=3, max_new_tokens=TOKENS
            )

        assert written(3).sequences == written(3).sequences
        assert written(3).sequences != written(4).sequences


@pytest.mark.parametrize("mode", ["exact", "cloud"])
def test_a_stop_string_ends_each_text_before_it(tiny_pair: Path, target: TorchModel, mode: str) -> None:
    with serving_in_thread(target, tiny_pair) as (_, address), SyncEdgeClient(config_for(address)) as client:
        options: dict[str, Any] = {"mode": mode, "num_beams": 2, "num_return_sequences": 2, "max_new_tokens": TOKENS}
        whole = client.generate(PROMPTS[0], **options)
        stop = whole.text[6:9]
        found = client.generate(PROMPTS[0], **options, stop=stop)
    assert found.finish_reason is FinishReason.STOP
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.sequences is not None
    assert found.sequences[0].text == found.text
    assert all(stop not in sequence.text for sequence in found.sequences)
    assert found.token_ids == found.sequences[0].token_ids


@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize("mode", ["exact", "cloud"])
def test_beam_search_with_stop_strings_is_that_of_transformers_without_copies(
    tiny_pair: Path, target: TorchModel, large: Any, num_beams: int, mode: str
) -> None:
    """Each text ends where the stop string is complete. Those that end at other tokens of one are the same text."""
    options: dict[str, Any] = {"num_beams": num_beams, "num_return_sequences": num_beams}
    stopped = without_copies = 0
    with serving_in_thread(target, tiny_pair) as (_, address), SyncEdgeClient(config_for(address)) as client:
        for prompt in PROMPTS:
            for stop in ([" "], ["a"], ["e", "t"], ["c", "d", " t"]):
                found = client.generate(prompt, mode=mode, max_new_tokens=TOKENS, stop=stop, **options)
                assert found.sequences is not None
                texts = [sequence.text for sequence in found.sequences]
                assert len(set(texts)) == len(texts)
                assert not any(each in text for each in stop for text in texts)
                expected = best_of(large, tiny_pair, found.prompt_token_ids, stop, **options)
                read = {re.split("|".join(stop), client.tokenizer.decode(each))[0] for each in expected}
                if len(read) < num_beams:
                    expected = expected[:1]
                else:
                    without_copies += 1
                assert [sequence.token_ids for sequence in found.sequences][: len(expected)] == expected
                stopped += sum(sequence.finish_reason is FinishReason.STOP for sequence in found.sequences)
    assert stopped
    assert without_copies


@pytest.mark.parametrize("mode", ["exact", "cloud"])
def test_texts_that_end_at_different_tokens_of_a_stop_string_are_returned_once(
    tiny_pair: Path, target: TorchModel, mode: str
) -> None:
    """The first tokens of many texts begin with a space: without a rule all would be the empty text."""
    with serving_in_thread(target, tiny_pair) as (_, address), SyncEdgeClient(config_for(address)) as client:
        for prompt in PROMPTS:
            found = client.generate(
                prompt, mode=mode, num_beams=4, num_return_sequences=4, max_new_tokens=TOKENS, stop=[" ", "�"]
            )
            assert found.sequences is not None
            texts = [sequence.text for sequence in found.sequences]
            assert len(set(texts)) == len(texts) > 1


def test_a_stop_string_in_the_last_token_is_the_reason_of_the_end(tiny_pair: Path, target: TorchModel) -> None:
    options: dict[str, Any] = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 6}
    with serving_in_thread(target, tiny_pair) as (_, address), SyncEdgeClient(config_for(address)) as client:
        whole = client.generate(PROMPTS[1], **options)
        stop = client.tokenizer.decode(whole.token_ids[-1:])
        assert stop not in client.tokenizer.decode(whole.token_ids[:-1])
        found = client.generate(PROMPTS[1], **options, stop=stop)
    assert found.sequences is not None
    assert found.token_ids == whole.token_ids
    assert found.finish_reason is found.sequences[0].finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_beams": 9}, r"num_beams: 9 is outside \[1, 8\]"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences: 3, and num_beams is 2"),
        ({"num_return_sequences": 2}, "num_return_sequences: num_beams is 1, and only beams have it"),
        ({"length_penalty": 0.5}, "length_penalty: num_beams is 1, and only beams have it"),
        ({"num_beams": 2, "mode": "gated"}, "num_beams: 2, and mode is gated; the cloud verifies all beams"),
        ({"num_beams": 2, "mode": "edge"}, "ask for exact or cloud, or for one text"),
        ({"num_beams": 2, "logprobs": True}, "logprobs: texts with beams have scores alone"),
        ({"num_beams": 2, "beam_width": "wide"}, "beam_width"),
        ({"num_beams": 2, "beam_width": 17}, "beam_width"),
        ({"num_beams": 2, "beam_threshold": 0.0}, r"beam_threshold: 0.0 is outside \(0, 1\]"),
        ({"num_beams": 2, "best_of": 3}, "best_of: it is another name of num_beams"),
        ({"num_beams": 2, "committed_token_ids": [5]}, "committed_token_ids: tokens alone say nothing of the beams"),
        ({"num_beam_groups": 2}, "num_beam_groups: there are no groups of beams"),
    ],
)
def test_parameters_that_beams_do_not_take_are_refused(
    tiny_pair: Path, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        EdgeClient(EdgeConfig(pair="tiny")).request(PROMPTS[0], **parameters)


def test_many_thresholds_share_few_planners(tiny_pair: Path) -> None:
    """Each of them learns, and is kept for the life of the client."""
    assembly = EdgeClient(EdgeConfig(pair="tiny"))._assembly
    planners = {
        id(assembly._forests(BeamParams(2, beam_threshold=number / 1000), searches=False)) for number in range(1, 1001)
    }
    assert len(planners) <= 11
    assert assembly._forests(BeamParams(2), searches=False) is assembly._forests(BeamParams(2), searches=False)
    assert assembly._forests(BeamParams(2), searches=True) is not assembly._forests(BeamParams(2), searches=False)


def test_another_name_asks_for_beams(tiny_pair: Path) -> None:
    beams = EdgeClient(EdgeConfig(pair="tiny")).request(PROMPTS[0], best_of=3).params.beams
    assert beams is not None
    assert (beams.num_beams, beams.beam_width) == (3, None)
