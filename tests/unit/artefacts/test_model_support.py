"""Models that are refused by their configuration, and the messages of the refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from chaperone_common.artefacts.folders import Role
from chaperone_common.errors import ModelError
from cloud_supervisor.model.architectures import (
    CLOUD_MODEL_TYPES,
    EDGE_MODEL_TYPES,
    context_tokens,
    layer_windows,
    refuse_unsupported,
)

FULL, SLIDING = "full_attention", "sliding_attention"
PHI3 = {"model_type": "phi3", "original_max_position_embeddings": 128, "max_position_embeddings": 512}


def config(**fields: Any) -> Any:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 6, "max_position_embeddings": 512}
    return SimpleNamespace(**{**sizes, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **fields})


def gemma3(*kinds: str, **fields: Any) -> Any:
    return config(model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], layer_types=list(kinds), **fields)


@pytest.mark.parametrize("role", ["edge", "cloud"])
@pytest.mark.parametrize(
    "fine",
    [
        config(),
        config(architectures=None, rope_scaling=None),
        config(layer_types=[SLIDING, FULL], rope_scaling={"rope_type": "llama3"}),
        config(rope_scaling={"type": "linear", "factor": 2.0}),
        gemma3(*[SLIDING] * 5, FULL, SLIDING),
    ],
)
def test_tested_architectures_are_accepted(role: Role, fine: Any) -> None:
    refuse_unsupported(fine, role, "mine")


@pytest.mark.parametrize(
    "model_type", ["lfm2", "mamba", "jamba", "qwen3_next", "gemma3n_text", "t5", "bloom", "gpt_oss", "deepseek_v3"]
)
@pytest.mark.parametrize(
    ("role", "known", "place"),
    [("edge", EDGE_MODEL_TYPES, "on the device"), ("cloud", CLOUD_MODEL_TYPES, "in the cloud")],
)
def test_an_untested_architecture_is_refused_with_the_tested_ones(
    model_type: str, role: Role, known: frozenset[str], place: str
) -> None:
    with pytest.raises(ModelError) as caught:
        refuse_unsupported(config(model_type=model_type), role, "mine")
    assert caught.value.message == (
        f"mine: architecture {model_type!r} is not supported {place}; tested are {', '.join(sorted(known))}"
    )


@pytest.mark.parametrize(
    ("role", "refused", "message"),
    [
        ("cloud", config(model_type="gemma3", text_config=config(model_type="gemma3_text")), "it wraps 'gemma3_text'"),
        ("cloud", config(architectures=["Qwen2ForTokenClassification"]), "Qwen2ForTokenClassification, which writes"),
        ("cloud", config(architectures=["Qwen2Model"]), "class Qwen2Model, which writes no text"),
        ("cloud", config(quantization_config={"quant_method": "gptq"}), "quantised weights"),
        ("cloud", gemma3(FULL, use_bidirectional_attention=True), "use_bidirectional_attention"),
        ("cloud", config(layer_types=[FULL, "linear_attention"]), "layer_types linear_attention; tested are full_att"),
        ("cloud", config(rope_scaling={"rope_type": "new"}), "rope_scaling 'new'; tested are default, linear,"),
        ("edge", config(rope_scaling={"type": "yarn", "factor": 4.0}), "rope_scaling 'yarn'; tested are default,"),
        ("edge", config(head_dim=100), "rotary embeddings of 100 numbers; a multiple of 16"),
        ("edge", config(head_dim=64, partial_rotary_factor=0.4), "rotary embeddings of 25 numbers"),
        ("edge", gemma3(SLIDING, FULL), "full attention in layers [2]; every layer number 6"),
        ("edge", gemma3(*[SLIDING] * 5, FULL, rope_scaling={"rope_type": "linear"}), "'linear'; tested are default"),
    ],
)
def test_wrongly_computed_settings_are_reported(role: Role, refused: Any, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        refuse_unsupported(refused, role, "mine")
    assert caught.value.message.startswith(f"mine: architecture {refused.model_type!r} is not supported ")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 512),
        ({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 128}}, 512),
        (PHI3 | {"rope_scaling": None}, 512),
        (PHI3 | {"rope_scaling": {"type": "longrope"}}, 128),
        ({"rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 64}}, 64),
    ],
)
def test_the_context_ends_where_earlier_keys_would_change(fields: dict[str, Any], tokens: int) -> None:
    assert context_tokens(config(**fields)) == tokens


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({}, [None] * 6),
        ({"sliding_window": None}, [None] * 6),
        ({"sliding_window": 32}, [32] * 6),
        ({"sliding_window": 32, "layer_types": [SLIDING, FULL, SLIDING]}, [32, None, 32]),
        ({"sliding_window": None, "layer_types": [FULL, FULL]}, [None, None]),
    ],
)
def test_each_layer_has_its_own_window(fields: dict[str, Any], windows: list[int | None]) -> None:
    assert layer_windows(config(**fields)) == windows
