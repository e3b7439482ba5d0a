"""The tokens of a chat that goes on: those that were written stay as they are."""

from __future__ import annotations

from dataclasses import dataclass

from edge_client.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """The tokens of a chat up to where a reply begins."""

    token_ids: tuple[int, ...]  # with the replies as the models wrote them
    rendered: tuple[int, ...]  # with the replies tokenized again from their text


def continued(
    before: ChatTokens, reply: tuple[int, ...], text: str, rendered: tuple[int, ...], tokenizer: Tokenizer
) -> ChatTokens:
    """Return the tokens of a chat after one more reply and one more message.

    `reply` was written after `before`, and `text` is its text. `rendered` are the tokens of the whole chat, all from
    their text. With another tokenization of the reply both models would have to read the chat again, so it is used only
    if the template changes the reply, or what came before.
    """
    start, written = len(before.rendered), _without_end(reply, tokenizer)
    # The template ends a reply by a control token, and text holds none.
    end = next((index for index in range(start, len(rendered)) if rendered[index] in tokenizer.control_tokens), None)
    same = (
        end is not None
        and rendered[:start] == before.rendered
        and tokenizer.decode(rendered[start:end]) == tokenizer.decode(written) == text
    )
    return (
        ChatTokens((*before.token_ids, *written, *rendered[end:]), rendered) if same else ChatTokens(rendered, rendered)
    )


def _without_end(reply: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return a reply without the token that ends it, which the template writes again."""
    return reply[:-1] if reply and reply[-1] in tokenizer.eos_token_ids else reply
