"""The projector in a manifest: no part of the large model's identity, and absent where there is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chaperone_common.artefacts.manifest import ModelManifest, ProjectorSpec, parse_manifest
from chaperone_common.errors import ModelCorrupt

SPEC = ProjectorSpec(digest="sha256:" + "4" * 64, width=896, layers=(18, 28))
FIELDS: dict[str, Any] = {
    "pair": "tiny",
    "role": "cloud",
    "model": "m",
    "source": {},
    "recipe": {},
    "versions": {},
    "tokenizer_digest": "sha256:" + "0" * 64,
    "vocabulary_size": 5,
    "eos_token_ids": (1,),
    "context_tokens": 8,
    "files": {},
}


def parse(text: str) -> ModelManifest:
    return parse_manifest(text.encode(), role="cloud", place="manifest.json", remedy="pull it")


def test_a_manifest_without_a_projector_is_written_as_before() -> None:
    plain = ModelManifest(**FIELDS)
    written = plain.model_dump_json(indent=2)
    assert [*json.loads(written)] == ["format", *FIELDS, "content"]
    assert parse(written) == plain


def test_a_projector_survives_and_changes_no_digest() -> None:
    manifest = ModelManifest(**FIELDS, projector=SPEC)
    back = parse(manifest.model_dump_json(indent=2))
    assert back == manifest
    assert back.projector == SPEC
    assert back.digest == ModelManifest(**FIELDS).digest


@pytest.mark.parametrize(("field", "value"), [("digest", "md5:1"), ("width", 0), ("layers", [])])
def test_a_damaged_entry_is_refused_by_name(field: str, value: object) -> None:
    content = json.loads(ModelManifest(**FIELDS, projector=SPEC).model_dump_json())
    content["projector"][field] = value
    with pytest.raises(ModelCorrupt, match=rf"manifest.json: projector.{field}: .*; pull it"):
        parse(json.dumps(content))
