"""A forest by the device's model: each layer reads the texts of the one before, once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from chaperone_common.beams.frames import BeamSettings, RunningBeam
from chaperone_common.beams.progress import BeamProgress
from chaperone_common.sampling import warp
from chaperone_common.types import SamplingParams
from edge_client.beams.drafting import ForestDrafter
from edge_client.beams.shape import Shape
from tests.support.fakes.beam_model import FakeBeamModel

PROMPT = (5, 6, 7)
RUNNING = (RunningBeam((1,), -1.0, -1.0), RunningBeam((2,), -1.2, -1.2), RunningBeam((1,), -1.0, -1.0))


def _progress(eos: Sequence[int] = ()) -> BeamProgress:
    return BeamProgress(BeamSettings(3, running=RUNNING), 40, frozenset(eos))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_each_layer_reads_the_texts_of_the_one_before(temperature: float) -> None:
    model = FakeBeamModel()
    sampling = SamplingParams(temperature=temperature, seed=3)
    drafter = ForestDrafter(model, PROMPT, sampling, row_tokens=5)
    found = asyncio.run(drafter.draft(_progress(), Shape(4, 3)))
    assert model.read[0] == [(*PROMPT, 1), (*PROMPT, 2)]
    assert [len(layer) for layer in found.forest().layers] == [4, 4, 4]
    law = sampling if temperature else SamplingParams(temperature=1.0)
    for node, row in found.numbering.rows.items():
        start, tokens = found.numbering.path(node)
        expected = warp(model.model.logits((*PROMPT, *((1,), (2,))[start], *tokens)), law)
        assert expected[row.token_ids[0]] == expected.max()
        assert len(row) <= 5
    drafter.close()
    assert model.closed


def test_a_forest_ends_with_its_texts() -> None:
    drafter = ForestDrafter(FakeBeamModel(), PROMPT, SamplingParams(temperature=1.0, seed=1))
    found = asyncio.run(drafter.draft(_progress(eos=range(64)), Shape(4, 3)))
    assert found.forest().depth == 1


def test_no_depth_reads_nothing() -> None:
    model = FakeBeamModel()
    found = asyncio.run(ForestDrafter(model, PROMPT, SamplingParams()).draft(_progress(), Shape(0, 0)))
    assert found.forest().depth == 0
    assert model.read == []


def test_search_takes_the_likeliest_beams_once() -> None:
    found = asyncio.run(ForestDrafter(FakeBeamModel(), PROMPT, SamplingParams()).draft(_progress(), Shape(4, 2)))
    for layer in range(1, 3):
        assert len(set(found.numbering.slots[layer])) == 4, "no text is there twice"
