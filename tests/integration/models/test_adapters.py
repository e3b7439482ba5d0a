"""Adapters of a device's model: merged into its weights before they are quantised, and a part of its identity."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.artefacts.registry import own_registry
from cloud_supervisor.cli import main
from cloud_supervisor.export.adapter import Adapter, LowRank
from cloud_supervisor.export.tiny import VOCABULARY
from edge_client.model.onnx_model import OnnxModel
from tests.support.models.onnx_builder import builder_in_process

pytestmark = pytest.mark.timeout(300)

PLACE = "model.layers.1.mlp.down_proj"
TEXT = [5, 80, 33, 200, 41, 7]


def adapter(seed: int, model: str = "small") -> Adapter:
    draws = torch.Generator().manual_seed(seed)
    rows, columns = 128, 256
    change = LowRank(torch.randn(2, columns, generator=draws) * 0.2, torch.randn(rows, 2, generator=draws) * 0.2)
    return Adapter(model, 2.0, {PLACE: change}, {"seed": seed})


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
    assert main(["models", "pull", "--pair", "mine"]) == 0
    assert "mine: already there" in capsys.readouterr().out
    adapter(2, model="cloud").save(file)
    assert main(["models", "pull", "--pair", "mine"]) == 0
    assert "already there" not in capsys.readouterr().out
    assert load_manifest(folder, role="edge").digest != first.digest


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
