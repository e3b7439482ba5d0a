"""The encoder, compared with the hidden states that transformers itself reports, and the projector's file."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from chaperone_common.conditioning import Encoding
from chaperone_common.errors import ModelCorrupt, ModelError
from cloud_supervisor.export.tiny import HIDDEN, VOCABULARY
from cloud_supervisor.model.encoder import Encoder
from cloud_supervisor.model.projector import PROJECTOR_NAME, ProjectorWeights
from cloud_supervisor.model.torch_model import Dtype, TorchModel
from tests.support.cloud.forward import feeding
from tests.support.models import families
from tests.support.models.contract_targets import GREEDY
from tests.support.models.families import FAMILIES
from tests.support.models.projectors import random_projector

CONTEXT_TOKENS = 128
# Parts of the largest number of a row by which numbers are off on average: rounding to eight bits, and that of the
# weights. Those of another token are off by a third.
TOLERANCES: dict[Dtype, float] = {"float32": 0.003, "bfloat16": 0.02, "int8": 0.05}


def load(folder: Path, dtype: Dtype, projector: ProjectorWeights | None) -> TorchModel:
    return TorchModel.load(
        folder,
        dtype=dtype,
        threads=1,
        vocabulary_size=VOCABULARY,
        context_tokens=CONTEXT_TOKENS,
        projector=projector,
    )


def oracle(folder: Path, weights: ProjectorWeights, text: list[int]) -> NDArray[np.float32]:
    """Return the rows of a text, by `output_hidden_states` of a full forward in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        states = model(torch.tensor([text]), use_cache=False, output_hidden_states=True).hidden_states
        joined = torch.cat([states[layer][0] for layer in weights.layers], dim=1)
        rows: NDArray[np.float32] = weights.module(torch.device("cpu"))(joined).numpy()
    return rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("layers", [(0,), (1, 2), (2, 0)], ids=str)
def test_rows_equal_those_of_the_hidden_states(tiny_pair: Path, dtype: Dtype, layers: tuple[int, ...]) -> None:
    weights = random_projector(layers, width=24)
    model = load(tiny_pair / "cloud", dtype, weights)
    dice = random.Random(sum(layers))
    text = [dice.randrange(VOCABULARY) for _ in range(60)]
    other = [dice.randrange(VOCABULARY) for _ in range(60)]
    expected = oracle(tiny_pair / "cloud", weights, text)
    most = np.abs(expected).max(axis=1, keepdims=True)
    cache, second, at, off = model.kv_pool.new_cache(), model.kv_pool.new_cache(), 0, []
    while at < len(text):
        length = min(len(text) - at, dice.choice([1, 3, 17]))
        wanted = dice.randint(1, length)
        chunks = text[at : at + length], other[at : at + length]
        at += length
        company = feeding(second, chunks[1], 1, GREEDY)
        found, _ = model.step([replace(feeding(cache, chunks[0], wanted, GREEDY), encoded=True), company])
        assert isinstance(found, Encoding)
        assert (found.start, found.end, found.width) == (at - wanted, at, 24)
        off.append(np.abs(found.rows() - expected[at - wanted : at]) / most[at - wanted : at])
    assert np.concatenate(off).mean() < TOLERANCES[dtype]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_every_architecture_are_those_of_transformers(family: str) -> None:
    model = families.build(family)
    layers = tuple(range(model.config.num_hidden_layers + 1))
    encoder = Encoder(model, random_projector(layers, source=model.config.hidden_size))
    text = torch.tensor([[5, 80, 33, 200, 41, 7]])
    with encoder.watching([1, 4]) as states, torch.inference_mode():
        reported = model(text, use_cache=False, output_hidden_states=True).hidden_states
    assert len(reported) == len(layers)
    for layer in layers:
        torch.testing.assert_close(states.joined((layer,)), reported[layer][0, [1, 4]])


def test_a_forward_removes_its_hooks(tiny_pair: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_pair / "cloud", dtype=torch.float32)
    encoder = Encoder(model, random_projector((1, 2)))
    with encoder.watching([0, 1]) as states, torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]))
    before = states.joined((1, 2)).clone()
    with torch.inference_mode():
        model(torch.tensor([[4, 5, 6]]))
    assert torch.equal(states.joined((1, 2)), before)
    with pytest.raises(RuntimeError, match="in a forward"), encoder.watching([0]):
        raise RuntimeError("in a forward")
    assert not model.base_model._forward_hooks
    assert not any(layer._forward_pre_hooks for layer in model.base_model.layers)


def test_a_model_without_a_projector_encodes_nothing(tiny_pair: Path) -> None:
    model = load(tiny_pair / "cloud", "float32", None)
    with pytest.raises(ValueError, match="encoded: this model has no projector"):
        model.step([replace(feeding(model.kv_pool.new_cache(), [1, 2], 1, GREEDY), encoded=True)])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (random_projector((1, 3)), "it reads layer 3, qwen2 has layers 0 to 2"),
        (random_projector((1, 2), source=7), f"it reads 14 numbers of a token, 2 layers of qwen2 have {2 * HIDDEN}"),
    ],
)
def test_a_projector_of_another_model_is_refused(tiny_pair: Path, weights: ProjectorWeights, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(tiny_pair / "cloud", "float32", weights)


def test_the_rows_must_have_the_width_of_the_devices_embeddings() -> None:
    random_projector(width=24).check_edge(24, "Small")
    with pytest.raises(ModelError, match="its rows have 24 numbers, the embeddings of Small 32; train one for this"):
        random_projector(width=24).check_edge(32, "Small")


def test_a_file_has_the_projector_that_the_manifest_names(tmp_path: Path) -> None:
    weights = random_projector((2, 1))
    weights.save(tmp_path)
    back = ProjectorWeights.load(tmp_path, weights.spec)
    assert back.layers == (2, 1)
    assert all(torch.equal(tensor, back.tensors[name]) for name, tensor in weights.tensors.items())
    assert back.spec == weights.spec
    for other in (random_projector((1, 2)), random_projector((2, 1), seed=1)):
        assert other.spec.digest != weights.spec.digest
        with pytest.raises(ModelCorrupt, match=r"the projector is sha256:.*, the manifest says sha256:"):
            ProjectorWeights.load(tmp_path, other.spec)
    (tmp_path / PROJECTOR_NAME).write_bytes(b"nothing")
    with pytest.raises(ModelCorrupt, match="it is no projector"):
        ProjectorWeights.load(tmp_path, weights.spec)


def test_tensors_that_do_not_fit_together_are_no_projector() -> None:
    tensors = random_projector().tensors
    with pytest.raises(ValueError, match="layers: "):
        ProjectorWeights((), tensors)
    with pytest.raises(ValueError, match="do not fit together"):
        ProjectorWeights((1,), {**tensors, "first.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="tensors: "):
        ProjectorWeights((1,), {"first.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="no finite numbers"):
        ProjectorWeights((1,), {**tensors, "last.bias": torch.full_like(tensors["last.bias"], torch.nan)})
