"""Gates of measured devices: the product's own as users have it, and U-HLM's with the disagreement as the risk."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.measured.runners import DisagreementDrafter, configured
from benchmarks.strategies.families import strategy_named
from benchmarks.strategies.lenient_server import lenient_model
from benchmarks.traces.extend import read_cross_entropies, read_disagreements
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.sampling import softmax
from chaperone_common.types import Mode, SamplingParams
from cloud_supervisor.config import CloudConfig
from edge_client.config import EdgeConfig
from edge_client.model.drafter import ChoosingDrafter
from edge_client.model.uncertainty import cross_entropy, disagreement
from tests.support.benchmarks.traces import trace_of
from tests.support.cloud.forward import feeding
from tests.support.fakes.draft import FakeDraft
from tests.support.fakes.target import FakeTarget

PROMPT = (3, 1, 4, 1)
SAMPLED = SamplingParams(temperature=0.8, seed=11)


def test_the_products_own_gate_is_calibrated_and_keeps_the_promise_of_its_name() -> None:
    config = EdgeConfig(pair="tiny")
    assert configured(strategy_named("exact"), config) == config.model_copy(update={"mode": Mode.EXACT})
    gated = configured(strategy_named("gated-0.9"), config)
    assert (gated.mode, gated.gate.catch, gated.gate.max_deviation) == (Mode.GATED, 0.9, 1.0)
    assert gated.gate.file == "auto"
    assert configured(strategy_named("uhlm-0.1"), config).gate.file is None


def test_the_drafter_proposes_as_usual_with_the_disagreement_as_risk() -> None:
    async def scenario() -> None:
        plain, measuring = (kind(FakeDraft(), SAMPLED) for kind in (ChoosingDrafter, DisagreementDrafter))
        for text in (PROMPT, (5,), (6,)):
            expected, proposal = await plain.step(text), await measuring.step(text)
            fed = (*PROMPT, 5, 6)[: plain.length]
            risk = disagreement(FakeTarget().logits(fed), expected.token_id)
            assert proposal == replace(expected, signal=replace(expected.signal, risk=risk))

    asyncio.run(scenario())


def test_disagreements_are_recomputed_along_the_text() -> None:
    trace = replace(trace_of("+-+"), token_ids=(5, 6, 7), sampling=SAMPLED)
    proposals = tuple(replace(proposal, token_id=9) for proposal in trace.proposals)
    found, same = asyncio.run(read_disagreements(FakeDraft(), replace(trace, proposals=proposals), PROMPT))
    texts = [(*PROMPT, *trace.token_ids[:index]) for index in range(3)]
    assert found == [disagreement(FakeTarget().logits(text), 9) for text in texts]
    drafter = ChoosingDrafter(FakeDraft(), SAMPLED)
    fed = (PROMPT, (5,), (6,))
    assert same == sum([asyncio.run(drafter.step(tokens)).token_id == 9 for tokens in fed])


def test_cross_entropies_are_computed_where_the_models_differ(tiny_pair: Path) -> None:
    manifest = load_manifest(tiny_pair / "cloud", role="cloud")
    model = lenient_model(CloudConfig(pair="tiny", dtype="float32", threads=1), manifest, within_nats=0.0)
    [choices] = model.forward([feeding(model.kv_pool.new_cache(), PROMPT, 1, SAMPLED)])
    trace = replace(trace_of("-+-"), token_ids=(choices[0].token_id, 6, 7), sampling=SAMPLED)
    trace = replace(
        trace,
        proposals=tuple(replace(trace.proposals[0], token_id=token_id) for token_id in (9, 6, 11)),
    )
    found, same = read_cross_entropies(model, trace, PROMPT)
    assert found.keys() == {0, 2}
    assert same >= 1
    row = model.scores(feeding(model.kv_pool.new_cache(), [*PROMPT, *trace.token_ids[:2]], 1, SAMPLED))[0]
    assert found[2] == pytest.approx(cross_entropy(softmax(row, 0.8), 11), abs=1e-4)
