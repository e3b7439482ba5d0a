"""From a prompt to its tokens: the template's control tokens are read as such, a user's text is text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from chaperone_common.errors import InvalidRequest
from chaperone_common.types import PromptInput
from edge_client.generation import Prompt
from edge_client.text.chat_template import ChatTemplate
from edge_client.text.control_text import Marks
from edge_client.text.tokenizer import Tokenizer

_SOME_MESSAGES = ({"role": "user", "content": "-"},)


class PromptReader:
    """Turns the prompts of one model into tokens. Any thread may use it."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, *, context_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._context_tokens = context_tokens

    def tokens(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        parse_special: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        contexts: int = 1,
    ) -> PromptInput:
        """Return the prompt as tokens; see `EdgeClient.prepare`.

        One that certainly fills more than that many `contexts` is refused unread.
        """
        if tools is not None and (raw or isinstance(prompt, PromptInput)):
            raise InvalidRequest("tools: the chat template writes them; give messages, or one message that is not raw")
        if isinstance(prompt, PromptInput):
            if raw or parse_special:
                raise InvalidRequest("raw, parse_special: they say how text is read, and the prompt is tokens already")
            return prompt
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InvalidRequest("prompt: it is empty; give some text")
            if raw:
                return self._raw(prompt)
            prompt = [{"role": "user", "content": prompt}]
        elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
            raise InvalidRequest(
                f"prompt: {type(prompt).__name__} is not text, a list of messages, a PromptInput or an error's partial"
            )
        elif raw:
            raise InvalidRequest("raw: messages always go through the chat template; give the prompt as one string")
        token_ids = chat_tokens(
            self._tokenizer,
            self._template,
            prompt,
            tools=tools,
            parse_special=parse_special,
            max_tokens=contexts * self._context_tokens,
        )
        return PromptInput(token_ids)

    def check(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Check the beginning of a chat, which may be empty; raises InvalidRequest as `tokens` does."""
        if messages or tools is not None:
            self._template.checked(messages or _SOME_MESSAGES, tools)

    def _raw(self, text: str) -> PromptInput:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"prompt: character {error.start} is a lone surrogate; give valid Unicode") from None
        return PromptInput(self._tokenizer.encode(text, max_tokens=self._context_tokens))


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
