"""The committed configuration files load, and state the defaults of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaperone_common.artefacts.registry import Registry
from chaperone_common.errors import ConfigError
from chaperone_common.settings import FrozenModel, load_yaml
from cloud_supervisor.config import CloudConfig
from edge_client.config import EdgeConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DEFAULTS: dict[str, type[FrozenModel]] = {"edge.yaml": EdgeConfig, "cloud.yaml": CloudConfig}
MODELS: dict[str, type[FrozenModel]] = {**DEFAULTS, "models.yaml": Registry}


def test_every_file_is_known() -> None:
    assert {path.name for path in CONFIGS.glob("*.yaml")} == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_every_configuration_file_loads(name: str) -> None:
    load_yaml(CONFIGS / name, MODELS[name])


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_file_states_the_defaults(name: str) -> None:
    model = DEFAULTS[name]
    assert load_yaml(CONFIGS / name, model) == model()


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_file_states_every_setting(name: str) -> None:
    assert _keys(load_yaml(CONFIGS / name, DEFAULTS[name]), given=True) == _keys(DEFAULTS[name](), given=False)


@pytest.mark.parametrize(
    ("model", "text", "complaint"),
    [
        (EdgeConfig, "mode: exact\nplaner:\n  span_tokens: 4\n", ":2: planer: unknown key (did you mean 'planner'?)"),
        (EdgeConfig, "gate:\n  polcy: always\n", ":2: gate.polcy: unknown key (did you mean 'policy'?)"),
        (EdgeConfig, "device:\n  threads: two\n", ":2: device.threads: 'two' is not a whole number"),
        (EdgeConfig, "mode: fast\n", ":1: mode: 'fast' is not 'exact', 'gated', 'edge', 'cloud' or 'conditioned'"),
        (CloudConfig, "limits:\n  max_sessions: 0\n", ":2: limits.max_sessions: 0: input should be greater than"),
        (CloudConfig, "dtype: float16\n", ":1: dtype: 'float16' is not 'auto', 'float32', 'bfloat16' or 'int8'"),
    ],
)
def test_a_mistake_is_reported_with_its_line(
    tmp_path: Path, model: type[FrozenModel], text: str, complaint: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path, model)
    assert f"{path}{complaint}" in str(caught.value)


def _keys(model: FrozenModel, *, given: bool, prefix: str = "") -> set[str]:
    """Return the dotted names of all settings, or of the given ones."""
    found = set()
    for name in model.model_fields_set if given else type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, FrozenModel):
            found |= _keys(value, given=given, prefix=f"{prefix}{name}.")
        else:
            found.add(f"{prefix}{name}")
    return found
