"""The tokens of a reply stay as they were written, with the chat templates of many families."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Library

from edge_client.text import Tokenizer, chat_tokens
from edge_client.text.continued import ChatTokens, continued
from tests.support.device.text import KINDS, SPECIAL_TOKENS, library_tokenizer, template_of, tokenizer_of

USER, OTHER = {"role": "user", "content": "Hello there"}, {"role": "user", "content": "And <|im_end|> now?"}
REPLY = "some words, and more"
TRIMMED = "  some words "
# The one writes a space before a reply, and the other no control token after it.
CHANGES_REPLIES = ("mistral", "bos_list")


def said(text: str) -> list[dict[str, str]]:
    return [USER, {"role": "assistant", "content": text}, OTHER]


def begun(kind: str, family: str) -> ChatTokens:
    token_ids = chat_tokens(tokenizer_of(kind), template_of(family), [USER])
    return ChatTokens(token_ids, token_ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", SPECIAL_TOKENS)
def test_a_reply_keeps_its_tokens(kind: str, family: str) -> None:
    tokenizer, before = tokenizer_of(kind), begun(kind, family)
    reply = tuple(token_id for character in REPLY for token_id in tokenizer.encode(character))
    text = tokenizer.decode(reply)
    rendered = chat_tokens(tokenizer, template_of(family), said(text))
    chat = continued(before, reply, text, rendered, tokenizer)
    assert chat.rendered == rendered
    keeps = chat.token_ids[: len(before.token_ids) + len(reply)] == (*before.token_ids, *reply)
    assert keeps or chat.token_ids == rendered
    assert keeps or kind != "byte-level" or family in CHANGES_REPLIES


def test_the_end_of_a_reply_is_the_templates() -> None:
    plain = tokenizer_of("byte-level")
    (end,) = plain.encode("<|im_end|>")
    tokenizer = Tokenizer(Library.from_str(library_tokenizer("byte-level")), eos_token_ids=[end])
    before = begun("byte-level", "qwen2")
    rendered = chat_tokens(tokenizer, template_of("qwen2"), said(REPLY))
    reply = tokenizer.encode(REPLY)
    chat = continued(before, reply, REPLY, rendered, tokenizer)
    assert chat.token_ids.count(end) == rendered.count(end)
    assert continued(before, (*reply, end), REPLY, rendered, tokenizer) == chat


def test_a_reply_that_is_cut_or_trimmed_is_tokenized_again() -> None:
    """A stop string cuts the text inside a token, and some templates trim it."""
    for family in SPECIAL_TOKENS:
        tokenizer, before = tokenizer_of("byte-level"), begun("byte-level", family)
        for text, reply in ((REPLY, REPLY + " and the stop"), (TRIMMED, TRIMMED)):
            rendered = chat_tokens(tokenizer, template_of(family), said(text))
            chat = continued(before, tokenizer.encode(reply), text, rendered, tokenizer)
            assert tokenizer.decode(chat.token_ids) == tokenizer.decode(rendered)


def test_a_chat_that_begins_otherwise_is_tokenized_again() -> None:
    tokenizer, before = tokenizer_of("byte-level"), begun("byte-level", "qwen2")
    rendered = chat_tokens(tokenizer, template_of("qwen2"), [OTHER, *said(REPLY)[1:]])
    chat = continued(before, tokenizer.encode(REPLY), REPLY, rendered, tokenizer)
    assert chat == ChatTokens(rendered, rendered)
