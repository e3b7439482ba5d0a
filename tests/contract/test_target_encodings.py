"""The contract of every `TargetModel` that encodes prompts: the rows do not depend on how a text is read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from chaperone_common.conditioning import Encoding
from chaperone_common.token_tree import BranchToken
from cloud_supervisor.kv.slots import SlotCache
from cloud_supervisor.model.ports import ForwardRequest, Found, TargetModel
from tests.support.cloud.forward import feeding
from tests.support.models.contract_targets import GREEDY, SAMPLED, USED_IDS


def prompt(seed: int, length: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(USED_IDS) for _ in range(length)]


def encoding(cache: SlotCache, token_ids: Sequence[int], rows: int) -> ForwardRequest:
    return replace(feeding(cache, token_ids, rows, GREEDY), encoded=True)


def rows_of(found: Found) -> Encoding:
    assert isinstance(found, Encoding)
    return found


def close(found: Encoding, expected: Encoding) -> bool:
    """Return whether two encodings are the same, up to the last step of a number."""
    if (found.start, len(found)) != (expected.start, len(expected)):
        return False
    steps = expected.scales[:, np.newaxis] * 1.5 + 1e-6
    return bool((np.abs(found.rows() - expected.rows()) <= steps).all())


def whole(target: TargetModel, text: Sequence[int]) -> Encoding:
    [found] = target.step([encoding(target.kv_pool.new_cache(), text, len(text))])
    return rows_of(found)


def test_rows_do_not_depend_on_how_a_text_is_cut(target: TargetModel) -> None:
    text = prompt(1, 40)
    expected = whole(target, text)
    assert (expected.start, len(expected)) == (0, 40)
    dice = random.Random(2)
    for _ in range(8):
        cache, at = target.kv_pool.new_cache(), 0
        while at < len(text):
            chunk = text[at : at + dice.randint(1, 9)]
            wanted = dice.randint(0, len(chunk))
            at += len(chunk)
            [found] = target.step([encoding(cache, chunk, wanted)])
            assert close(rows_of(found), expected.between(at - wanted, at))
            assert cache.length == at


def test_a_forward_may_mix_encodings_with_choices_and_reading(target: TargetModel) -> None:
    texts = [prompt(seed, 6 + 5 * seed) for seed in range(5)]
    chosen = target.forward([feeding(target.kv_pool.new_cache(), text, 3, SAMPLED) for text in texts])
    expected = [whole(target, text) for text in texts]
    caches = [target.kv_pool.new_cache() for _ in texts]
    requests = [
        encoding(cache, text, 4) if number % 2 else feeding(cache, text, 3 if number else 0, SAMPLED)
        for number, (cache, text) in enumerate(zip(caches, texts, strict=True))
    ]
    first, second, third, fourth, fifth = target.step(requests)
    assert first == []
    for found, number in ((second, 1), (fourth, 3)):
        assert close(rows_of(found), expected[number].between(len(texts[number]) - 4, len(texts[number])))
    for found, number in ((third, 2), (fifth, 4)):
        assert isinstance(found, list)
        assert [choice.token_id for choice in found] == [choice.token_id for choice in chosen[number]]


def test_an_encoded_text_chooses_as_one_that_was_only_read(target: TargetModel) -> None:
    text = prompt(3, 20)
    cache = target.kv_pool.new_cache()
    target.step([encoding(cache, text, 20)])
    [found] = target.forward([feeding(cache, [7], 1, SAMPLED)])
    [expected] = target.forward([feeding(target.kv_pool.new_cache(), [*text, 7], 1, SAMPLED)])
    assert [choice.token_id for choice in found] == [choice.token_id for choice in expected]


def test_no_rows_are_an_empty_encoding(target: TargetModel) -> None:
    [found] = target.step([encoding(target.kv_pool.new_cache(), prompt(4, 5), 0)])
    assert len(rows_of(found)) == 0
    assert rows_of(found).width == whole(target, prompt(4, 5)).width


def test_branches_are_not_encoded_and_forward_returns_only_choices(target: TargetModel) -> None:
    cache = target.kv_pool.new_cache()
    with pytest.raises(ValueError, match="encoded: "):
        target.step([replace(feeding(cache, [1, 2], 1, GREEDY, [BranchToken(0, 3)]), encoded=True)])
    assert cache.length == 0
    with pytest.raises(ValueError, match="`forward` returns choices"):
        target.forward([encoding(cache, [1, 2], 1)])
