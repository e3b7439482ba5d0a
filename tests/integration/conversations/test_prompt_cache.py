"""A sequence that begins with a kept text equals a fresh one that was fed the same tokens."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from edge_client.model.onnx_model import OnnxModel
from edge_client.model.onnx_sequence import OnnxSequence
from edge_client.model.prompt_cache import PromptCache
from tests.support.models.contract_drafts import CONTEXT_TOKENS, USED_IDS, close_to, logits_after, tokens

BRANCHES = 3


@pytest.fixture(scope="module")
def model(tiny_pair: Path) -> Iterator[OnnxModel]:
    loaded = load(tiny_pair)
    yield loaded
    loaded.close()


def load(pair: Path) -> OnnxModel:
    return OnnxModel.load(
        pair / "edge",
        threads=1,
        allow_spinning=False,
        vocabulary_size=load_manifest(pair / "edge", role="edge").vocabulary_size,
        context_tokens=CONTEXT_TOKENS,
    )


async def write(sequence: OnnxSequence, dice: random.Random) -> None:
    """Feed, fork, adopt and rewind at random, as an engine does."""
    forked: set[int] = set()
    for _ in range(dice.randrange(1, 30)):
        branch = dice.randrange(1, BRANCHES + 1)
        match dice.choice(["step", "step", "fork", "grow", "adopt", "rewind", "cancel"]):
            case "step":
                await sequence.step(tokens(dice.randrange(1000), dice.choice([1, 1, 2, 5])))
            case "fork" if sequence.length:
                sequence.fork(branch, dice.randrange(sequence.length + 1))
                forked.add(branch)
            case "grow" if forked:
                await sequence.step_rows({row: dice.randrange(USED_IDS) for row in forked})
            case "adopt" if branch in forked:
                sequence.adopt(branch)
                forked.discard(branch)
            case "rewind":
                sequence.rewind(dice.randrange(sequence.length + 1))
            case "cancel":
                step = asyncio.ensure_future(sequence.step(tokens(dice.randrange(1000), 3)))
                await asyncio.sleep(0)
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
            case _:
                pass


@pytest.mark.parametrize("seed", range(40))
def test_a_kept_text_equals_one_that_is_fed_again(model: OnnxModel, seed: int) -> None:
    async def run() -> None:
        dice, cache = random.Random(seed), PromptCache()
        for branches in (BRANCHES, BRANCHES, 0, BRANCHES):
            sequence = model.new_sequence(branches=branches, prompt_cache=cache)
            if branches:
                await write(sequence, dice)
            else:
                await sequence.step(tokens(seed, 2))
            kept = sequence.token_ids
            sequence.close()
            again = model.new_sequence(branches=branches, prompt_cache=cache)
            assert again.token_ids == kept
            assert again.length == len(kept)
            further = tokens(seed + 1, 2)
            logits = await logits_after(again, further)
            assert close_to(logits, await logits_after(model.new_sequence(), [*kept, *further]))
            again.close()

    asyncio.run(run())


def test_one_sequence_at_a_time_has_the_kept_text(model: OnnxModel) -> None:
    async def run() -> None:
        cache = PromptCache()
        first = model.new_sequence(prompt_cache=cache)
        await first.step([1, 2, 3])
        first.close()
        first.close()
        second, third = (model.new_sequence(prompt_cache=cache) for _ in range(2))
        assert (second.token_ids, third.token_ids) == ((1, 2, 3), ())
        await third.step([4])
        second.close()
        third.close()
        assert model.new_sequence(prompt_cache=cache).token_ids == (4,)

    asyncio.run(run())


def test_an_empty_or_cleared_cache_has_none(model: OnnxModel) -> None:
    async def run() -> None:
        cache = PromptCache()
        model.new_sequence(prompt_cache=cache).close()
        sequence = model.new_sequence(prompt_cache=cache)
        assert sequence.token_ids == ()
        await sequence.step([1, 2])
        sequence.close()
        cache.clear()
        assert model.new_sequence(prompt_cache=cache).token_ids == ()

    asyncio.run(run())


def test_another_model_does_not_take_it(tiny_pair: Path, model: OnnxModel) -> None:
    async def run() -> None:
        cache, other = PromptCache(), load(tiny_pair)
        sequence = other.new_sequence(prompt_cache=cache)
        await sequence.step([1, 2])
        late = other.new_sequence(prompt_cache=PromptCache())
        await late.step([1])
        sequence.close()
        other.close()
        late.close()
        assert model.new_sequence(prompt_cache=cache).token_ids == ()

    asyncio.run(run())
