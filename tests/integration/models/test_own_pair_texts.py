"""Pairs of each architecture, from `models add` to texts: `exact` is the cloud model alone, in float32 and in int8."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.types import Origin
from cloud_supervisor.cli import main
from cloud_supervisor.export.tiny import train_tokenizer
from cloud_supervisor.model import int8_linear
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings, PlannerSettings
from tests.support.cloud.forward import logits_of
from tests.support.models import families, oracle
from tests.support.models.families import VOCABULARY
from tests.support.models.onnx_builder import builder_in_process
from tests.support.processes.servers import serving

FAMILIES = ("gemma", "llama", "mistral", "phi3", "qwen2", "qwen3")
PORTABLE = "portable"
NOISE = 0.02  # share of the device's weights that are moved by a step of int4
NEW_TOKENS = 24
SEEDS = (5, 6)
PROMPT = "write a function that returns the largest number of a list"

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Alone:
    """The cloud's model in int8, which reads a text token by token; in the place of a model of transformers."""

    model: TorchModel

    def __call__(self, token_ids: torch.Tensor, *, use_cache: bool) -> Any:
        assert not use_cache
        ids = token_ids[0].tolist()
        return SimpleNamespace(logits=torch.from_numpy(logits_of(self.model, ids, [1] * len(ids)))[None])


@pytest.fixture(scope="module", params=[*FAMILIES, PORTABLE])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    flags: tuple[str, ...] = ()
    family = request.param
    if family == PORTABLE:
        pytest.importorskip("optimum.exporters.onnx", reason="the extra `portable` is not installed")
        family, flags = "qwen2", ("--portable",)
    for role, noise in (("edge", NOISE), ("cloud", 0.0)):
        families.build(family, noise=noise).save_pretrained(home / "weights" / role)
        train_tokenizer().save_pretrained(home / "weights" / role)
    sources = ("--edge", str(home / "weights" / "edge"), "--cloud", str(home / "weights" / "cloud"))
    with pytest.MonkeyPatch.context() as patch, builder_in_process():
        patch.setenv("CHAPERONE_HOME", str(home))
        assert main(["models", "add", "mine", *sources, *flags, "--dtype", "float32"]) == 0
        assert main(["models", "pull", "--pair", "mine"]) == 0
        yield home / "models" / "mine"


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        pytest.param(
            "int8",
            marks=pytest.mark.skipif(not int8_linear.available(), reason="this build of torch has no FBGEMM"),
        ),
    ],
)
def test_exact_is_the_text_of_the_cloud_model_alone(pair: Path, dtype: str) -> None:
    async def write() -> None:
        manifest = load_manifest(pair / "cloud", role="cloud")
        model, twin = (
            TorchModel.of_manifest(pair / "cloud", manifest, dtype=dtype, threads=1)  # type: ignore[arg-type]
            for _ in range(2)
        )
        reference = Alone(twin) if dtype == "int8" else oracle.load(pair / "cloud", attention="eager")
        async with serving(model, pair) as (_, address), EdgeClient(_config(address)) as client:
            requests = [
                client.request(PROMPT, mode=mode, seed=seed, temperature=0.8, max_new_tokens=NEW_TOKENS)
                for seed in SEEDS
                for mode in ("exact", "cloud")
            ]
            results = await asyncio.gather(*(client.generate(request) for request in requests))
            for request, exact, streamed in zip(requests[::2], results[::2], results[1::2], strict=True):
                text = (list(exact.token_ids), exact.text, str(exact.finish_reason))
                assert text == (list(streamed.token_ids), streamed.text, str(streamed.finish_reason))
                assert text == oracle.confirm(  # of both modes at once, since it takes long
                    reference,
                    request.prompt.token_ids,
                    exact.token_ids,
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
            stood = [origin is Origin.VERIFIED for result in results[::2] for origin in result.origins]
            assert sum(stood) > len(stood) / 8, "too few accepted drafts: the device computes another model"

    asyncio.run(write())


def _config(address: str) -> EdgeConfig:
    return EdgeConfig(
        pair="mine",
        cloud=CloudSettings(address=address),
        device=DeviceSettings(threads=1, allow_spinning=False),
        planner=PlannerSettings(policy="fixed", span_tokens=8),  # the adaptive planner may leave a slow device out
    )
