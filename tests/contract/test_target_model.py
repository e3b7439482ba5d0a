"""The contract of every `TargetModel`, for the fake and for torch with the tiny pair."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from chaperone_common.errors import PromptTooLong
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import Choice, SamplingParams
from cloud_supervisor.model.ports import TargetModel
from tests.support.cloud.forward import bytes_held, feeding
from tests.support.models.contract_targets import CONTEXT_TOKENS, GREEDY, SAMPLED, TRUNCATED, USED_IDS

BRANCHES = [BranchToken(10, 3), BranchToken(12, 4)]  # the second one follows the first
ALL_SAMPLINGS = [GREEDY, SAMPLED, TRUNCATED]


def prompt(seed: int, length: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(USED_IDS) for _ in range(length)]


def whole(target: TargetModel, tokens: list[int], choices: int, sampling: SamplingParams) -> list[Choice]:
    """Feed everything at once to a fresh cache."""
    return target.forward([feeding(target.kv_pool.new_cache(), tokens, choices, sampling)])[0]


def ids(choices: list[Choice]) -> list[int]:
    return [choice.token_id for choice in choices]


@pytest.mark.parametrize("sampling", ALL_SAMPLINGS)
def test_chunks_crops_and_rebuilds_choose_the_same(target: TargetModel, sampling: SamplingParams) -> None:
    tokens = prompt(1, 40)
    expected = ids(whole(target, tokens, 40, sampling))
    dice = random.Random(2)
    for _ in range(10):
        cache, at = target.kv_pool.new_cache(), 0
        while at < len(tokens):
            if dice.random() < 0.3:
                at = dice.randint(0, at)
                cache.crop(at)
            chunk = tokens[at : at + dice.randint(1, 9)]
            wanted = dice.randint(0, len(chunk))
            at += len(chunk)
            got = target.forward([feeding(cache, chunk, wanted, sampling)])[0]
            assert ids(got) == expected[at - wanted : at]
            assert cache.length == at


def test_cropped_tokens_leave_no_trace(target: TargetModel) -> None:
    cache = target.kv_pool.new_cache()
    target.forward([feeding(cache, prompt(3, 20), 0, GREEDY)])
    target.forward([feeding(cache, prompt(4, 10), 1, GREEDY)])
    cache.crop(20)
    tail = prompt(5, 6)
    assert ids(target.forward([feeding(cache, tail, 6, SAMPLED)])[0]) == ids(
        whole(target, prompt(3, 20) + tail, 6, SAMPLED)
    )


def test_requests_of_one_call_do_not_affect_each_other(target: TargetModel) -> None:
    prompts = [prompt(seed, 5 + 3 * seed) for seed in range(5)]
    alone = [ids(whole(target, tokens, 4, SAMPLED)) for tokens in prompts]
    together = target.forward([feeding(target.kv_pool.new_cache(), tokens, 4, SAMPLED) for tokens in prompts])
    assert [ids(choices) for choices in together] == alone
    assert target.forward([]) == []


def test_sequences_of_any_length_continue_together_as_they_do_alone(target: TargetModel) -> None:
    """The batches mix new and cached texts, one and many tokens, with and without choices, chains and trees."""
    dice = random.Random(9)
    branches = ((0, 3), (1, 4), (3, 5))  # parents count from the first token with a choice
    for _ in range(10):
        texts = [prompt(dice.randrange(1000), dice.randint(2, 40)) for _ in range(6)]
        held = [dice.choice((0, len(text) - 1, dice.randrange(len(text)))) for text in texts]
        wanted = [dice.randint(0, len(text) - length) for text, length in zip(texts, held, strict=True)]
        trees = [
            [BranchToken(len(text) - choices + parent, token_id) for parent, token_id in branches]
            if choices >= 2 and dice.random() < 0.5
            else []
            for text, choices in zip(texts, wanted, strict=True)
        ]
        answered = []
        for together in (False, True):
            caches = [target.kv_pool.new_cache() for _ in texts]
            for cache, text, length in zip(caches, texts, held, strict=True):
                if length:
                    target.forward([feeding(cache, text[:length], 0, SAMPLED)])
            readings = [
                feeding(cache, text[length:], choices, SAMPLED, tree)
                for cache, text, length, choices, tree in zip(caches, texts, held, wanted, trees, strict=True)
            ]
            answers = target.forward(readings) if together else [target.forward([reading])[0] for reading in readings]
            for cache, text in zip(caches, texts, strict=True):
                cache.crop(len(text))
            answers += [target.forward([feeding(cache, [7], 1, SAMPLED)])[0] for cache in caches]
            answered.append([ids(choices) for choices in answers])
        assert answered[0] == answered[1]


def test_two_requests_with_one_cache_are_refused(target: TargetModel) -> None:
    cache = target.kv_pool.new_cache()
    with pytest.raises(ValueError, match="two requests with one cache"):
        target.forward([feeding(cache, [1], 1, GREEDY), feeding(cache, [2], 1, GREEDY)])
    assert cache.length == 0


def test_the_noise_depends_on_the_chosen_tokens_position(target: TargetModel) -> None:
    """The same text after a prefix of another length must not get the same noise."""
    tokens = prompt(6, 30)
    first = whole(target, tokens, 30, SAMPLED)
    assert ids(first) != ids(whole(target, tokens, 30, SamplingParams(temperature=0.9, seed=8)))
    assert ids(first) == ids(whole(target, tokens, 30, SAMPLED))
    assert all(choice.coupled_margin >= 0 for choice in first)


def test_reading_ahead_gives_no_choices_but_fills_the_cache(target: TargetModel) -> None:
    cache = target.kv_pool.new_cache()
    assert cache.length == 0
    assert target.forward([feeding(cache, prompt(1, 12), 0, GREEDY)]) == [[]]
    assert cache.length == 12
    assert bytes_held(cache) == 12 * target.kv_bytes_per_token
    cache.crop(12)
    assert cache.length == 12
    cache.crop(0)
    assert cache.length == 0
    assert ids(target.forward([feeding(cache, prompt(2, 3), 1, GREEDY)])[0]) == ids(
        whole(target, prompt(2, 3), 1, GREEDY)
    )


@pytest.mark.parametrize("length", [-1, 6])
def test_a_crop_must_lie_within_the_cache(target: TargetModel, length: int) -> None:
    cache = target.kv_pool.new_cache()
    target.forward([feeding(cache, prompt(1, 5), 0, GREEDY)])
    with pytest.raises(ValueError, match="crop"):
        cache.crop(length)


def test_an_impossible_request_is_refused_and_nothing_is_fed(target: TargetModel) -> None:
    good, bad = target.kv_pool.new_cache(), target.kv_pool.new_cache()
    fine = feeding(good, prompt(1, 5), 1, GREEDY)
    with pytest.raises(ValueError, match="token"):
        target.forward([fine, feeding(bad, [], 0, GREEDY)])
    for choices in (-1, 4):
        with pytest.raises(ValueError, match="choices"):
            target.forward([fine, feeding(bad, [1, 2, 3], choices, GREEDY)])
    with pytest.raises(PromptTooLong, match=f"the context holds {CONTEXT_TOKENS}"):
        target.forward([fine, feeding(bad, prompt(1, CONTEXT_TOKENS + 1), 1, GREEDY)])
    assert good.length == bad.length == 0


def test_the_context_can_be_filled_to_the_last_token(target: TargetModel) -> None:
    cache = target.kv_pool.new_cache()
    target.forward([feeding(cache, prompt(1, CONTEXT_TOKENS - 1), 0, GREEDY)])
    assert len(target.forward([feeding(cache, [1], 1, GREEDY)])[0]) == 1
    with pytest.raises(PromptTooLong):
        target.forward([feeding(cache, [1], 1, GREEDY)])


@pytest.mark.parametrize("first", [0, 2, 5])
def test_log_probabilities_are_left_out_before_the_first_choice_that_is_reported(
    target: TargetModel, first: int
) -> None:
    tokens = prompt(8, 12)
    whole = replace(feeding(target.kv_pool.new_cache(), tokens, 5, TRUNCATED, BRANCHES), top_logprobs=3)
    part = replace(whole, cache=target.kv_pool.new_cache(), first_reported=first)
    every, some = target.forward([whole, part])
    assert ids(some) == ids(every)
    assert [choice.logprobs is None for choice in some] == [True] * first + [False] * (len(every) - first)
    for choice, expected in zip(some[first:], every[first:], strict=True):
        assert choice.logprobs is not None
        assert expected.logprobs is not None
        assert choice.logprobs.logprob == pytest.approx(expected.logprobs.logprob, abs=1e-4)


def test_log_probabilities_are_measured_only_where_they_are_wanted(target: TargetModel) -> None:
    """They change no choice, and do not depend on temperature and filters, or on the other requests of the forward."""
    tokens = prompt(8, 12)
    wanted = replace(feeding(target.kv_pool.new_cache(), tokens, 5, TRUNCATED, BRANCHES), top_logprobs=3)
    plain = feeding(target.kv_pool.new_cache(), tokens, 5, TRUNCATED, BRANCHES)
    greedy = replace(feeding(target.kv_pool.new_cache(), tokens, 5, GREEDY, BRANCHES), top_logprobs=0)
    measured, unmeasured, alone = target.forward([wanted, plain, greedy])
    assert ids(measured) == ids(unmeasured)
    assert all(choice.logprobs is None for choice in unmeasured)
    for choice, likeliest in zip(measured, alone, strict=True):
        assert choice.logprobs is not None
        assert likeliest.logprobs is not None
        assert likeliest.logprobs.top == ()
        (first, value), *_ = choice.logprobs.top
        assert first == likeliest.token_id
        assert value == pytest.approx(likeliest.logprobs.logprob, abs=1e-4)
        values = [value for _, value in choice.logprobs.top]
        assert values == sorted(values, reverse=True)
        assert len(values) == 3
        assert dict(choice.logprobs.top).get(choice.token_id, choice.logprobs.logprob) == choice.logprobs.logprob
