"""A chat to the tokens of its prompt: the template's control tokens are read as such, a user's text is text."""

from __future__ import annotations

from functools import partial
from typing import Any

from chaperone_common.errors import InvalidRequest
from edge_client.text.chat_template import ChatTemplate
from edge_client.text.control_text import Marks
from edge_client.text.tokenizer import Tokenizer


def chat_tokens(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Any,
    *,
    tools: Any = None,
    parse_special: bool = False,
    max_tokens: int | None = None,
) -> tuple[int, ...]:
    """Return the ids that transformers' `apply_chat_template` gives, but for control tokens in strings of the chat.

    A control token, such as `<|im_end|>`, in a message or tool is read as text, unless `parse_special`. Added tokens
    that are not special, such as Qwen's `<tool_call>`, are read as tokens wherever they stand.
    Raises InvalidRequest, or PromptTooLong if there are certainly more than `max_tokens`.
    """
    chat = template.checked(messages, tools)
    rendered = template.render_chat(chat)
    if not parse_special:
        # With parts of control tokens first, since two strings may make up one; some template may mind that.
        for parts in (True, False):
            marks = Marks(rendered)
            marked_chat = chat.with_strings(marks.put(partial(tokenizer.control_text.places, parts=parts)))
            if not marks.characters:
                return tokenizer.encode_marked(rendered, {}, max_tokens=max_tokens)
            marked = template.attempt(marked_chat)
            if marked is not None and marks.taken_out(marked) == rendered:
                return tokenizer.encode_marked(marked, marks.characters, max_tokens=max_tokens)
        raise InvalidRequest(
            "messages: they hold the text of a control token that the model's chat template looks at, so that it "
            "cannot be read as text; remove it, or give parse_special=True to have it read as the control token"
        )
    return tokenizer.encode(rendered, max_tokens=max_tokens)
