"""Every supported architecture in int8: logits have the same bits in every cut and on a branch."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SamplingParams
from cloud_supervisor.model import int8_linear
from cloud_supervisor.model.architectures import context_tokens
from cloud_supervisor.model.torch_model import TorchModel
from tests.support.cloud.forward import feeding, logits_of
from tests.support.models import families
from tests.support.models.families import FAMILIES, VOCABULARY

TEXT_TOKENS = 90
GREEDY = SamplingParams()

pytestmark = pytest.mark.skipif(not int8_linear.available(), reason="this build of torch has no FBGEMM")


@dataclass(frozen=True)
class Subject:
    """A model, a text, and the logits [TEXT_TOKENS, VOCABULARY] of its single steps."""

    model: TorchModel
    text: list[int]
    alone: NDArray[np.float32]


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    plain = families.build(request.param)
    folder = tmp_path_factory.mktemp("model")
    plain.save_pretrained(folder)
    model = TorchModel.load(
        folder, dtype="int8", threads=1, vocabulary_size=VOCABULARY, context_tokens=context_tokens(plain.config)
    )
    dice = random.Random(1)
    text = [dice.randrange(VOCABULARY) for _ in range(TEXT_TOKENS)]
    return Subject(model, text, logits_of(model, text, [1] * TEXT_TOKENS))


def test_cuts(subject: Subject) -> None:
    for cuts in ([90], [41, 7, 1, 2, 39], [17] * 5 + [5]):
        assert np.array_equal(logits_of(subject.model, subject.text, cuts), subject.alone)


def test_a_branch(subject: Subject) -> None:
    text, start, wrong = subject.text, 60, [5, 6, 7, 8]
    cache = subject.model.kv_pool.new_cache()
    subject.model.forward([feeding(cache, text[:start], 0, GREEDY)])
    branches = [BranchToken(start - 1, text[start])] + [
        BranchToken(start + len(wrong) + depth, text[start + 1 + depth]) for depth in range(3)
    ]
    rows = subject.model.scores(feeding(cache, wrong, 1, GREEDY, branches))
    assert np.array_equal(rows[1:], subject.alone[start : start + 4])
    cache.select(start, [start + len(wrong) + depth for depth in range(4)])
    assert np.array_equal(
        subject.model.scores(feeding(cache, text[start + 4 : start + 9], 5, GREEDY)),
        subject.alone[start + 4 : start + 9],
    )


def test_nothing_but_embeddings_is_left_in_floating_point(subject: Subject) -> None:
    """A product of floating-point numbers that is left could depend on its number of rows, on some processor."""
    model = subject.model._model
    embeddings = {id(each.weight) for each in model.modules() if isinstance(each, torch.nn.Embedding)}
    left = {name for name, each in model.named_parameters() if each.ndim > 1 and id(each) not in embeddings}
    assert not left
