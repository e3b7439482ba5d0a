"""The oracle of other tests: one forward over a text proves that the oracle generates it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from chaperone_common.artefacts.manifest import load_manifest
from tests.support.models import oracle

PROMPT = "the list of a number is sorted and"
GREEDY: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0}
SETTINGS: tuple[dict[str, Any], ...] = (
    {**GREEDY, "max_new_tokens": 24},
    {**GREEDY, "temperature": 1.0, "seed": 3, "max_new_tokens": 48},
    {**GREEDY, "temperature": 0.7, "top_p": 0.8, "top_k": 40, "min_p": 0.02, "seed": 2**64 - 1, "max_new_tokens": 24},
    {**GREEDY, "temperature": 1.0, "seed": 5, "max_new_tokens": 48, "stop": ("e",)},
)


class Oracle:
    """The oracle of the tiny pair, with the prompt and the vocabulary bound."""

    def __init__(self, folder: Path) -> None:
        manifest = load_manifest(folder, role="cloud")
        self._model = oracle.load(folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._prompt = tokenizer.encode(PROMPT).ids
        self._vocabulary_size = manifest.vocabulary_size
        self._ending = {"eos_token_ids": manifest.eos_token_ids, "decode": tokenizer.decode}

    def generate(self, settings: dict[str, Any]) -> tuple[list[int], str, str]:
        return oracle.generate(
            self._model, self._prompt, vocabulary_size=self._vocabulary_size, **self._ending, **settings
        )

    def confirm(self, claimed: list[int], settings: dict[str, Any]) -> tuple[list[int], str, str]:
        return oracle.confirm(
            self._model, self._prompt, claimed, vocabulary_size=self._vocabulary_size, **self._ending, **settings
        )

    def choices(self, text: list[int], settings: dict[str, Any]) -> list[int]:
        sampling = {name: value for name, value in settings.items() if name not in ("max_new_tokens", "stop")}
        return oracle.choices(self._model, self._prompt, text, vocabulary_size=self._vocabulary_size, **sampling)


@pytest.fixture(scope="module")
def judge(tiny_pair: Path) -> Oracle:
    return Oracle(tiny_pair / "cloud")


@pytest.mark.parametrize("settings", SETTINGS)
def test_one_forward_confirms_the_text_of_a_forward_for_each_token(judge: Oracle, settings: dict[str, Any]) -> None:
    written = judge.generate(settings)
    assert judge.confirm(written[0], settings) == written
    assert judge.choices(written[0], settings) == written[0]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_wrong_token_anywhere_is_found(judge: Oracle, settings: dict[str, Any]) -> None:
    right = judge.generate(settings)[0]
    for index, token_id in enumerate(right):
        wrong = [*right[:index], token_id ^ 1, *right[index + 1 :]]
        assert judge.confirm(wrong, settings)[0] == right[: index + 1]
        assert judge.choices(wrong, settings)[: index + 1] == right[: index + 1]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_text_that_ends_too_early_or_too_late_is_found(judge: Oracle, settings: dict[str, Any]) -> None:
    right = judge.generate(settings)[0]
    for length in range(len(right)):
        assert judge.confirm(right[:length], settings)[0] == right[: length + 1]
    assert judge.confirm([*right, right[-1]], settings)[0] == right
