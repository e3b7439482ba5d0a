"""Every architecture supported on the device: exported as by `models pull`, run, and compared with torch.

The texts are longer than the windows are wide, and the prompts, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ModelError
from chaperone_common.types import Origin
from cloud_supervisor.export.pull import pull
from cloud_supervisor.export.tiny import train_tokenizer
from cloud_supervisor.model.architectures import EDGE_MODEL_TYPES, refuse_unsupported
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings, PlannerSettings
from edge_client.model.onnx_model import OnnxModel
from tests.support.models import families, oracle
from tests.support.models.families import VOCABULARY, WINDOW
from tests.support.models.onnx_builder import builder_in_process
from tests.support.models.onnx_scores import scores_along
from tests.support.processes.servers import serving

FAMILIES = (
    *("ernie4_5", "gemma", "gemma2", "gemma3", "granite", "llama with rope of llama3", "mistral with a window"),
    *("llama with linear rope", "phi3 with a window", "phi3 with longrope", "qwen2 with a window in half", "qwen3"),
)
REFUSED = (
    *("exaone4", "glm4", "gpt2", "mixtral with a window", "olmo", "olmo2", "olmo3", "phi", "qwen2 with yarn"),
    *("qwen3_moe", "smollm3", "starcoder2"),
)
NOISE = 0.02  # share of the device's weights that are moved by a step of int4
TEXT_TOKENS, REWOUND = 160, 3 * WINDOW
NEW_TOKENS = 32
SEEDS = (5, 6)
PROMPT = " ".join(["the list of a number is sorted and returned by def class import value in python"] * 3)


@dataclass(frozen=True)
class PulledPair:
    """A pair that was pulled from folders, and the source weights of its device's half."""

    name: str
    folder: Path
    drafter: Any


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PulledPair]:
    home = tmp_path_factory.mktemp("home")
    sides: dict[str, dict[str, Any]] = {}
    for role, noise in (("edge", NOISE), ("cloud", 0.0)):
        families.build(request.param, noise=noise).save_pretrained(home / role)
        train_tokenizer().save_pretrained(home / role)
        weights = {"source": "pretrained", "name": str(home / role)}
        sides[role] = {"model": f"random-{role}", "licence": "none", "weights": weights}
    # With 32-bit activations, only an embedding that is also the output matrix is rounded.
    sides["edge"]["recipe"] = {"algorithm": "k_quant_last", "accuracy_level": 1}
    sides["cloud"]["recipe"] = {"dtype": "float32"}
    registry = home / "models.yaml"
    registry.write_text(yaml.safe_dump({"pairs": {"random": sides}}), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, builder_in_process():
        patch.setenv("CHAPERONE_HOME", str(home))
        pull("random", registry_path=registry, progress=False)
        yield PulledPair("random", home / "models" / "random", families.build(request.param, noise=NOISE))


def test_every_supported_architecture_is_here() -> None:
    assert {families.config_of(family).model_type for family in FAMILIES} | {"qwen2", "mistral"} == EDGE_MODEL_TYPES


def test_the_device_computes_as_torch_with_the_same_weights(pair: PulledPair) -> None:
    """The text is read whole, token by token, after rewinding, and as a branch."""
    text = np.random.default_rng(1).integers(VOCABULARY, size=TEXT_TOKENS).tolist()
    with torch.inference_mode():
        expected = pair.drafter(torch.tensor([text]), use_cache=False).logits[0, :, :VOCABULARY].numpy()
    manifest = load_manifest(pair.folder / "edge", role="edge")
    model = OnnxModel.load(
        pair.folder / "edge",
        threads=1,
        allow_spinning=False,
        vocabulary_size=VOCABULARY,
        context_tokens=manifest.context_tokens,
    )
    try:
        whole, rewound, branch = asyncio.run(scores_along(model.new_sequence(branches=1), text, REWOUND))
    finally:
        model.close()
    spread = expected.std()
    assert np.sqrt(((whole - expected) ** 2).mean()) < 0.05 * spread
    assert (whole.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9
    np.testing.assert_allclose(rewound, whole[REWOUND:], atol=0.02 * spread)
    np.testing.assert_allclose(branch, whole[REWOUND:], atol=0.02 * spread)


def test_exact_equals_the_oracle(pair: PulledPair) -> None:
    """All texts run at once, so that the cloud batches sessions."""

    async def write() -> None:
        manifest = load_manifest(pair.folder / "cloud", role="cloud")
        model = TorchModel.of_manifest(pair.folder / "cloud", manifest, dtype="float32", threads=1)
        reference = oracle.load(pair.folder / "cloud", attention="eager")
        async with serving(model, pair.folder) as (_, address), EdgeClient(_config(pair, address)) as client:
            requests = [
                client.request(PROMPT, mode=mode, seed=seed, temperature=0.8, max_new_tokens=NEW_TOKENS)
                for seed in SEEDS
                for mode in ("exact", "cloud")
            ]
            results = await asyncio.gather(*(client.generate(request) for request in requests))
            for request, result in zip(requests, results, strict=True):
                prompt = request.prompt.token_ids
                assert len(prompt) > 2 * WINDOW
                expected = oracle.confirm(
                    reference,
                    prompt,
                    result.token_ids,
                    vocabulary_size=VOCABULARY,
                    eos_token_ids=manifest.eos_token_ids,
                    decode=client.tokenizer.decode,
                    max_new_tokens=NEW_TOKENS,
                    temperature=0.8,
                    top_p=1.0,
                    top_k=0,
                    min_p=0.0,
                    seed=request.params.sampling.seed,
                )
                assert (list(result.token_ids), result.text, str(result.finish_reason)) == expected
            stood = [origin is Origin.VERIFIED for result in results[::2] for origin in result.origins]
            assert sum(stood) > len(stood) / 4, "too few accepted drafts: the device computes another model"

    asyncio.run(write())


def _config(pair: PulledPair, address: str) -> EdgeConfig:
    return EdgeConfig(
        pair=pair.name,
        cloud=CloudSettings(address=address),
        device=DeviceSettings(threads=1, allow_spinning=False),
        planner=PlannerSettings(policy="fixed", span_tokens=8),  # the adaptive planner may leave a slow device out
    )


@pytest.mark.parametrize("family", REFUSED)
def test_architectures_that_the_builder_exports_wrongly_are_refused(family: str) -> None:
    with pytest.raises(ModelError, match="^random: architecture .* is not supported on the device"):
        refuse_unsupported(families.config_of(family), "edge", "random")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_architectures_are_accepted(family: str) -> None:
    refuse_unsupported(families.config_of(family), "edge", "random")
