"""The device of the large model is checked before the model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from chaperone_common.errors import ConfigError, ModelError
from chaperone_common.settings import load_yaml
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.model.devices import available_devices, check_device
from cloud_supervisor.model.torch_model import TorchModel

TWO_GPUS = ("cpu", "cuda:0", "cuda:1")


@pytest.mark.parametrize(
    ("name", "here"),
    [("cpu", ("cpu",)), ("cpu:0", ("cpu",)), ("cuda", TWO_GPUS), ("cuda:1", TWO_GPUS), ("mps", ("cpu", "mps:0"))],
)
def test_an_available_device_is_chosen(name: str, here: tuple[str, ...]) -> None:
    assert str(check_device(name, here)) == name


@pytest.mark.parametrize(
    ("name", "here"),
    [
        *((name, ("cpu",)) for name in ("", "cuda", "cuda:0", "mps", "xpu", "cpu:3", "meta", "foo", "CPU", "cpu ")),
        *(
            (name, TWO_GPUS)
            for name in ("cuda:2", "cuda:7", "cuda:-1", "cuda:x", "cuda:", "mps", "xpu:0", "gpu", "meta")
        ),
    ],
)
def test_an_unavailable_device_is_reported_with_the_available_ones(name: str, here: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_device(name, here)
    assert caught.value.message == f"device: {name!r} is not on this machine; there is {', '.join(here)}"


def test_every_available_device_works() -> None:
    assert [str(check_device(name)) for name in available_devices()] == available_devices()


def load(folder: Path, device: str = "cpu") -> TorchModel:
    return TorchModel.load(folder, dtype="auto", threads=None, vocabulary_size=1, context_tokens=1, device=device)


@pytest.mark.parametrize("device", ["", "foo", "meta", "cuda:77"])
def test_the_device_is_checked_before_the_model(tmp_path: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device: '{device}' is not on this machine"):
        load(tmp_path / "no model", device)


def test_a_served_architecture_that_cannot_be_supervised_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    transformers.Lfm2Config(layer_types=["conv", "full_attention"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="architecture 'lfm2' is not supported in the cloud; tested are"):
        load(tmp_path)


@pytest.mark.parametrize("threads", [0, -1, 1025, 10_000])
def test_an_excessive_number_of_threads_is_refused(tmp_path: Path, threads: int) -> None:
    path = tmp_path / "cloud.yaml"
    path.write_text(f"threads: {threads}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"cloud.yaml:1: threads: {threads}: "):
        load_yaml(path, CloudConfig)
