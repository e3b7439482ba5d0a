"""The chat templates of many families give the ids that transformers gives."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest

from chaperone_common.errors import InvalidRequest
from edge_client.text import chat_tokens
from tests.support.device.text import (
    CONVERSATIONS,
    KINDS,
    SPECIAL_TOKENS,
    TEMPLATES,
    reference,
    template_of,
    tokenizer_of,
)

# transformers writes these prompts without the tools, calls or results.
WITH_TOOLS = ("tools", "a call", "system and a call", "a call without content", "calls")
LEFT_OUT = {
    ("gemma3", "tools"),
    ("smollm", "tools"),
    ("smollm", "calls"),
    ("smollm", "system and a call"),
    *(("phi3", name) for name in WITH_TOOLS),
    *(("bos_list", name) for name in WITH_TOOLS),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", SPECIAL_TOKENS)
def test_ids_equal_those_of_transformers(kind: str, family: str) -> None:
    for name, chat in CONVERSATIONS.items():
        theirs = ids_of_transformers(kind, family, chat)
        if theirs is None or (family, name) in LEFT_OUT:
            with pytest.raises(InvalidRequest, match="template" if theirs is None else "no place for them"):
                chat_tokens(tokenizer_of(kind), template_of(family), **chat)
        else:
            assert list(chat_tokens(tokenizer_of(kind), template_of(family), **chat)) == theirs, name


def ids_of_transformers(kind: str, family: str, chat: dict[str, Any]) -> list[int] | None:
    try:
        ids: list[int] = reference(kind, family).apply_chat_template(
            chat["messages"], tools=chat.get("tools"), add_generation_prompt=True
        )
    except (jinja2.TemplateError, TypeError):
        return None
    return ids


def test_every_template_is_tried() -> None:
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == SPECIAL_TOKENS.keys()
