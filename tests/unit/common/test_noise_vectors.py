"""The code draws the noise that `proto/noise_vectors.json` publishes for all languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chaperone_common.sampling import CHOICE_DOMAIN, choose, noise, noise_at, philox4x64, softmax, warp
from chaperone_common.types import SamplingParams

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "proto" / "noise_vectors.json").read_text(encoding="utf-8")
)
PHILOX: list[dict[str, Any]] = VECTORS["philox4x64_10"]
UNIFORMS: list[dict[str, Any]] = VECTORS["uniforms"]
CHOICES: list[dict[str, Any]] = VECTORS["choices"]
# Random123 1.14, tests/kat_vectors: all zeros, all ones, the digits of pi.
PUBLISHED = [
    "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b",
    "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
    "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
]


def numbers(words: list[str]) -> list[int]:
    return [int(word, 16) for word in words]


def test_the_file_holds_the_published_numbers() -> None:
    assert VECTORS["format"] == 1
    assert [numbers(vector["words"]) for vector in PHILOX] == [
        [int(word, 16) for word in line.split()] for line in PUBLISHED
    ]


@pytest.mark.parametrize("vector", PHILOX)
def test_philox_equals_the_published_vectors(vector: dict[str, Any]) -> None:
    counter, key = numbers(vector["counter"]), numbers(vector["key"])
    words = philox4x64(np.array(counter, np.uint64)[:, None], (key[0], key[1]))
    assert words[:, 0].tolist() == numbers(vector["words"])


@pytest.mark.parametrize("vector", PHILOX)
def test_numpys_philox_is_the_same_one_block_later(vector: dict[str, Any]) -> None:
    before = (sum(word << 64 * place for place, word in enumerate(numbers(vector["counter"]))) - 1) % 2**256
    counter = np.array([before >> 64 * place & 2**64 - 1 for place in range(4)], np.uint64)
    generator = np.random.Philox(key=np.array(numbers(vector["key"]), np.uint64), counter=counter)
    assert np.asarray(generator.random_raw(4)).tolist() == numbers(vector["words"])


@pytest.mark.parametrize("vector", UNIFORMS)
def test_words_and_uniforms(vector: dict[str, Any]) -> None:
    seed, position, stream, domain = int(vector["seed"], 16), vector["position"], vector["stream"], vector["domain"]
    ids = np.array(vector["token_ids"], np.intp)
    counters = np.array([[1 + token_id // 4, position, stream, domain] for token_id in vector["token_ids"]], np.uint64)
    words = philox4x64(counters.T, (seed, 0))[ids % 4, np.arange(len(ids))]
    assert words.tolist() == numbers(vector["raw"])
    uniforms = [float.fromhex(text) for text in vector["u"]]
    assert [((word >> 11) + 0.5) * 2.0**-53 for word in numbers(vector["raw"])] == uniforms
    if domain == CHOICE_DOMAIN:
        assert noise_at(seed, position, ids, stream=stream).tolist() == uniforms
        assert noise(seed, position, int(ids.max()) + 1, stream=stream)[ids].tolist() == uniforms


@pytest.mark.parametrize("vector", CHOICES)
def test_choices(vector: dict[str, Any]) -> None:
    logits = np.array(vector["logits"], np.float32)
    params = SamplingParams(
        temperature=vector["temperature"],
        top_k=vector["top_k"],
        top_p=vector["top_p"],
        min_p=vector["min_p"],
        seed=int(vector["seed"], 16),
    )
    assert np.flatnonzero(warp(logits, params)).tolist() == vector["support"]
    assert choose(softmax(logits, params.temperature), params, vector["position"]).token_id == vector["token_id"]


def test_the_file_covers_the_difficult_cases() -> None:
    """It has seeds above 2**53 and 2**63, large positions, the last id, streams and domains, and no equal rows."""
    seeds = {int(vector["seed"], 16) for vector in UNIFORMS}
    assert {0, 2**53 + 1, 2**63, 2**64 - 1} <= seeds
    assert max(vector["position"] for vector in UNIFORMS) == 2**32 - 1
    assert all(vector["token_ids"] == [0, 1, 2, 3, 4, 5, 151_664] for vector in UNIFORMS)
    assert {1} <= {vector["domain"] for vector in UNIFORMS}
    words = [word for vector in UNIFORMS for word in vector["raw"]]
    assert len(set(words)) == len(words)
    assert len({vector["token_id"] for vector in CHOICES}) >= 4
