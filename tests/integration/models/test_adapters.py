"""Adapters of a device's model: merged into its weights before they are quantised, and a part of its identity."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from chaperone_common.artefacts.folders import ROLES
from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.artefacts.registry import load_registry, own_registry
from chaperone_common.conditioning import Encoding
from chaperone_common.settings.packaged import packaged_path
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.cli import main
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.export.adapter import Adapter, LowRank
from cloud_supervisor.export.tiny import VOCABULARY
from cloud_supervisor.hosting.loading import Weights
from cloud_supervisor.model.projector import PROJECTOR_NAME, ProjectorWeights
from cloud_supervisor.observation import Observers
from edge_client.model.onnx_model import OnnxModel
from tests.support.models.onnx_builder import builder_in_process
from tests.support.models.projectors import random_projector

pytestmark = pytest.mark.timeout(300)

PLACE = "model.layers.1.mlp.down_proj"
TEXT = [5, 80, 33, 200, 41, 7]


def adapter(seed: int, model: str = "small") -> Adapter:
    draws = torch.Generator().manual_seed(seed)
    rows, columns = 128, 256
    change = LowRank(torch.randn(2, columns, generator=draws) * 0.2, torch.randn(rows, 2, generator=draws) * 0.2)
    return Adapter(model, None, 2.0, {PLACE: change}, {"seed": seed})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path))
    with builder_in_process():
        yield tmp_path


def device_logits(manifest: ModelManifest, folder: Path) -> np.ndarray:
    async def read() -> np.ndarray:
        model = OnnxModel.load(
            folder,
            threads=1,
            allow_spinning=False,
            vocabulary_size=manifest.vocabulary_size,
            context_tokens=manifest.context_tokens,
        )
        try:
            sequence = model.new_sequence()
            rows = [step.logits.copy() async for step in sequence.read(TEXT)]
            sequence.close()
            return np.array(rows)
        finally:
            model.close()

    return asyncio.run(read())


def test_an_adapter_changes_the_devices_model_and_its_digest(
    home: Path, tiny_pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(tiny_pair / "cloud")
    added = ["models", "add", "mine", "--edge", source, "--cloud", source, "--adapter", "better"]
    assert main(added) == 1
    err = capsys.readouterr().err
    assert f"adapter: 'better' is neither packaged nor in {home / 'adapters'}; put its file there" in err
    assert not own_registry().exists()

    file, folder = home / "adapters" / "better.safetensors", home / "models" / "mine" / "edge"
    adapter(1, model="cloud").save(file)  # the name of the folder
    assert main(added) == 0
    assert main(["models", "pull", "--pair", "mine"]) == 0
    first = load_manifest(folder, role="edge", verify=True)
    assert first.recipe["adapter"]["name"] == "better"

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.inference_mode():
        plain = model(torch.tensor([TEXT])).logits[0, :, :VOCABULARY].numpy()
        Adapter.load(file).merge_into(model, "cloud")
        merged = model(torch.tensor([TEXT])).logits[0, :, :VOCABULARY].numpy()
    found = device_logits(first, folder)
    assert np.abs(found - merged).mean() < 0.3 * np.abs(found - plain).mean(), "int4 is nearer to what was merged"

    capsys.readouterr()
    assert main(["models", "list"]) == 0
    assert "mine" in capsys.readouterr().out
    assert main(["models", "check", "mine", "--max-new-tokens", "8"]) == 0
    checked = capsys.readouterr()
    assert ", with adapter better" in checked.out
    agreed = float(checked.out.partition("agreement  ")[2].split()[0])
    assert agreed < 1.0, "the large model agrees with itself, and the adapter changes the small one"
    assert main(["models", "pull", "--pair", "mine"]) == 0
    assert "mine: already there" in capsys.readouterr().out
    adapter(2, model="cloud").save(file)
    assert main(["models", "pull", "--pair", "mine"]) == 0
    assert "already there" not in capsys.readouterr().out
    assert load_manifest(folder, role="edge").digest != first.digest


def test_the_models_of_another_pair_get_an_adapter(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(1, model="tiny-draft").save(home / "adapters" / "better.safetensors")
    assert main(["models", "add", "mine", "--like", "tiny", "--adapter", "better"]) == 0
    tiny, mine = (load_registry().pair(name) for name in ("tiny", "mine"))
    assert mine.cloud == tiny.cloud
    assert (mine.edge.weights, mine.edge.adapter, mine.edge.conditioning_gain) == (tiny.edge.weights, "better", 0.0)
    adapter(1, model="tiny-draft").save(home / "adapters" / "best.safetensors")
    again = ["models", "add", "mine", "--like", "mine", "--adapter", "best"]
    assert main(again) == 2
    assert "replace it with --replace" in capsys.readouterr().err
    assert main([*again, "--replace"]) == 0
    assert load_registry().pair("mine").edge.adapter == "best"
    assert main(["models", "pull", "--pair", "mine"]) == 0
    capsys.readouterr()
    assert main(["models", "list"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mine") and " edge " in line]
    assert "here        tiny-draft with adapter best" in line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--like", "tiny", "--edge", "a", "--dtype", "float32"), "leave out --edge, --dtype, or --like"),
        (("--edge", "a"), "--edge, --cloud: give both, or --like PAIR"),
        (("--like", "tyni"), "tyni"),
    ],
)
def test_models_of_two_sources_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], complaint: str
) -> None:
    assert main(["models", "add", "mine", *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not own_registry().exists()


def test_an_adapter_of_another_model_builds_nothing(
    home: Path, tiny_pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter(1, model="another").save(home / "adapters" / "better.safetensors")
    source = str(tiny_pair / "cloud")
    assert main(["models", "add", "mine", "--edge", source, "--cloud", source, "--adapter", "better"]) == 0
    assert main(["models", "pull", "--pair", "mine"]) == 1
    assert "the adapter is for another, not for cloud" in capsys.readouterr().err
    assert not (home / "models" / "mine").exists()


def test_a_name_that_is_a_path_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", "add", "mine", "--edge", "a", "--cloud", "b", "--adapter", "../x"])
    assert "'../x'" in capsys.readouterr().err


def test_a_projector_is_named_in_both_manifests_and_lies_in_the_cloud(
    home: Path, tiny_pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(tiny_pair / "cloud")
    assert main(["models", "add", "mine", "--edge", source, "--cloud", source]) == 0
    assert main(["models", "pull", "--pair", "mine"]) == 0
    plain = {role: load_manifest(home / "models" / "mine" / role, role=role) for role in ROLES}
    assert all(manifest.projector is None for manifest in plain.values())
    assert b"projector" not in (home / "models" / "mine" / "cloud" / "manifest.json").read_bytes()

    projector = random_projector()
    Adapter("cloud", None, 2.0, {}, {}, projector).save(home / "adapters" / "better.safetensors")
    assert main(["models", "add", "mine", "--replace", "--edge", source, "--cloud", source, "--adapter", "better"]) == 0
    assert main(["models", "pull", "--pair", "mine"]) == 0
    found = {role: load_manifest(home / "models" / "mine" / role, role=role, verify=True) for role in ROLES}
    assert found["edge"].projector == found["cloud"].projector == projector.spec
    assert found["cloud"].digest == plain["cloud"].digest, "the large model is the same"
    assert found["edge"].digest != plain["edge"].digest
    assert PROJECTOR_NAME in found["cloud"].files
    assert PROJECTOR_NAME not in found["edge"].files

    weights = Weights.of_pair("mine")
    config = CloudConfig(pair="mine", dtype="float32", threads=1, kv_budget_mib=8)
    cloud = weights.load(config, Observers())
    assert cloud.supervisor.capabilities.projector_digest == projector.spec.digest

    async def encode() -> Encoding | None:
        result = await cloud.runner.forward("a", TokenTree(tuple(TEXT)), 6, SamplingParams(), encoded=True)
        await cloud.close()
        return result.encoding

    encoding = asyncio.run(encode())
    assert encoding is not None
    assert (len(encoding), encoding.width) == (6, projector.width)
    capsys.readouterr()
    assert main(["models", "pull", "--pair", "mine"]) == 0
    assert "mine: already there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("projector", "message"),
    [
        (random_projector((1, 3)), "it reads layer 3, cloud has layers 0 to 2"),
        (random_projector(source=7), "it reads 14 numbers of a token, 2 layers of cloud have 256"),
        (random_projector(width=24), "its rows have 24 numbers, the embeddings of cloud 128"),
    ],
)
def test_a_projector_of_other_models_builds_nothing(
    home: Path, tiny_pair: Path, capsys: pytest.CaptureFixture[str], projector: ProjectorWeights, message: str
) -> None:
    Adapter("cloud", None, 2.0, {}, {}, projector).save(home / "adapters" / "better.safetensors")
    source = str(tiny_pair / "cloud")
    assert main(["models", "add", "mine", "--edge", source, "--cloud", source, "--adapter", "better"]) == 0
    assert main(["models", "pull", "--pair", "mine"]) == 1
    assert message in capsys.readouterr().err
    assert not (home / "models" / "mine").exists()


def test_the_packaged_projector_of_the_tiny_pair_is_made_from_its_seed() -> None:
    packaged = Adapter.load(packaged_path("adapters/tiny.safetensors"))
    assert packaged.model == "tiny-draft"
    assert packaged.matrices == {}
    assert packaged.projector is not None
    assert packaged.projector.spec == random_projector(seed=0).spec
