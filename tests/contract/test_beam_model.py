"""The contract of `BeamModel`: whatever texts are read in whatever order, each has the logits that it has alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from chaperone_common.errors import InvalidRequest, PromptTooLong
from chaperone_common.token_tree import common_prefix
from edge_client.model.onnx_beams import OnnxBeams, plan
from edge_client.model.onnx_model import OnnxModel
from edge_client.ports import BeamModel
from tests.support.models.contract_drafts import CONTEXT_TOKENS, close_to, tokens

NewBeams = Callable[[int], BeamModel]
PROMPT = tuple(tokens(1, 20))


@pytest.fixture
def new_beams(onnx_model: OnnxModel) -> NewBeams:
    return lambda rows: OnnxBeams(onnx_model, rows=rows)


async def alone(model: OnnxModel, text: tuple[int, ...]) -> NDArray[np.float32]:
    return (await model.new_sequence().step(text)).logits.copy()


async def assert_as_alone(model: OnnxModel, beams: BeamModel, texts: list[tuple[int, ...]]) -> None:
    for text, logits in zip(texts, await beams.logits(texts), strict=True):
        assert close_to(logits, await alone(model, text))


def test_beams_have_the_logits_of_their_texts_alone(onnx_model: OnnxModel, new_beams: NewBeams) -> None:
    async def scenario() -> None:
        beams = new_beams(3)
        await assert_as_alone(onnx_model, beams, [PROMPT])
        await assert_as_alone(onnx_model, beams, [(*PROMPT, 1), (*PROMPT, 2), (*PROMPT, 3)])
        one_died = [(*PROMPT, 2, 5), (*PROMPT, 2, 6), (*PROMPT, 1, 7)]
        await assert_as_alone(onnx_model, beams, one_died)
        await assert_as_alone(onnx_model, beams, [(*PROMPT, 2, 6, 4, 4, 4, 9, 1)])
        await assert_as_alone(onnx_model, beams, [(*PROMPT[:5], 9), (*PROMPT, 2, 6, 4)])
        beams.close()

    asyncio.run(scenario())


def test_random_beams_have_the_logits_of_their_texts_alone(onnx_model: OnnxModel, new_beams: NewBeams) -> None:
    async def scenario() -> None:
        dice = random.Random(3)
        beams = new_beams(4)
        texts = [PROMPT]
        for _ in range(12):
            parents = [dice.choice(texts) for _ in range(dice.randint(1, 4))]
            grown = [(*text, *tokens(dice.randrange(10**6), dice.choice([1, 1, 2, 6]))) for text in parents]
            texts = list(dict.fromkeys(text if dice.random() < 0.8 else text[:-2] for text in grown))
            await assert_as_alone(onnx_model, beams, texts)
        beams.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("rows", [8, 16])
def test_many_beams_of_different_lengths_have_the_logits_of_their_texts_alone(
    onnx_model: OnnxModel, new_beams: NewBeams, rows: int
) -> None:
    async def scenario() -> None:
        beams = new_beams(rows)
        texts = [(*PROMPT[: 4 + number], number) for number in range(rows)]
        await assert_as_alone(onnx_model, beams, texts)
        texts = [(*text, 40 + number) for number, text in enumerate(texts[::-1])]
        await assert_as_alone(onnx_model, beams, texts)
        await assert_as_alone(onnx_model, beams, [(*texts[3], 7, number) for number in range(rows)])
        await assert_as_alone(onnx_model, beams, [(*texts[3], 7, 1, 8), (*texts[3], 7, rows - 1, 9)])
        beams.close()

    asyncio.run(scenario())


def test_a_cancelled_call_costs_only_what_it_has_read(onnx_model: OnnxModel, new_beams: NewBeams) -> None:
    async def scenario() -> None:
        beams = new_beams(2)
        await beams.logits([PROMPT])
        reading = asyncio.ensure_future(beams.logits([(*PROMPT, *tokens(5, 90)), (*PROMPT, 4)]))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await assert_as_alone(onnx_model, beams, [(*PROMPT, 3), (*PROMPT, 4, 5)])

    asyncio.run(scenario())


def test_impossible_texts_are_refused(new_beams: NewBeams) -> None:
    async def scenario() -> None:
        beams = new_beams(2)
        for texts in ([], [PROMPT, PROMPT], [()], [(1,), (2,), (3,)]):
            with pytest.raises(ValueError, match="give 1 to 2 different ones, none empty"):
                await beams.logits(texts)
        with pytest.raises(PromptTooLong, match=f"the device's model holds {CONTEXT_TOKENS}"):
            await beams.logits([tuple(tokens(2, CONTEXT_TOKENS + 1))])
        with pytest.raises(InvalidRequest, match="a token id is outside"):
            await beams.logits([(-1,)])
        beams.close()
        with pytest.raises(RuntimeError, match="the beams are closed"):
            await beams.logits([PROMPT])

    asyncio.run(scenario())


def test_two_calls_at_once_are_refused(new_beams: NewBeams) -> None:
    async def scenario() -> None:
        beams = new_beams(2)
        reading = asyncio.ensure_future(beams.logits([PROMPT]))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="the beams are being read"):
            await beams.logits([PROMPT])
        await reading

    asyncio.run(scenario())


def test_no_rows_are_refused(new_beams: NewBeams) -> None:
    with pytest.raises(ValueError, match="rows: 0; at least one text must fit"):
        new_beams(0)


# The plan alone.


def test_a_text_stays_in_its_row_and_others_are_copied_from_it() -> None:
    found = plan([(1, 2, 3), (), (9,)], [(1, 2, 4), (1, 2, 3, 5)])
    assert found.rows == (1, 0)
    assert found.held == (2, 3)
    [copy] = found.copies
    assert (copy.source, copy.start, copy.end) == (0, 0, 2)


def test_the_last_token_is_always_read() -> None:
    assert plan([(1, 2, 3)], [(1, 2, 3)]).held == (2,)


def test_a_copy_never_reads_what_another_text_overwrites() -> None:
    dice = random.Random(8)
    for _ in range(300):
        held = [tuple(dice.choices(range(2), k=dice.randint(0, 6))) for _ in range(4)]
        texts = list({tuple(dice.choices(range(2), k=dice.randint(1, 7))) for _ in range(dice.randint(1, 4))})
        found = plan(held, texts)
        assert len(set(found.rows)) == len(texts)
        kept = dict(zip(found.rows, found.kept, strict=True))
        for copy in found.copies:
            assert copy.end <= kept.get(copy.source, len(held[copy.source]))
        for text, row, count in zip(texts, found.rows, found.held, strict=True):
            rows = [held[row], *(held[copy.source] for copy in found.copies if copy.target == row)]
            assert any(other[:count] == text[:count] for other in rows)
            assert count == max(common_prefix(other, text[:-1]) for other in held)
