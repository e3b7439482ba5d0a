"""The texts and bytes of tokens whose log-probabilities are reported."""

from __future__ import annotations

from dataclasses import replace

from chaperone_common.logprobs import Logprob, TokenLogprobs
from edge_client.text.tokenizer import Tokenizer


def named(found: TokenLogprobs, tokenizer: Tokenizer, *, started: bool) -> TokenLogprobs:
    """Return log-probabilities with the texts of their tokens; `started` if the text before them is not empty."""

    def with_text(logprob: Logprob) -> Logprob:
        token_bytes, _ = tokenizer.token_bytes.piece(logprob.token_id, started)
        token = token_bytes.decode("utf-8", "replace") or tokenizer.control_tokens.get(logprob.token_id, "")
        return replace(logprob, token=token, token_bytes=token_bytes)

    top = tuple(with_text(logprob) for logprob in found.top_logprobs)
    return replace(found, chosen=with_text(found.chosen), top_logprobs=top)
