"""The tokenizer of a model, from its `tokenizer.json`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from chaperone_common.errors import InvalidRequest, ModelCorrupt, ModelMissing, PromptTooLong
from edge_client.text.control_text import ControlText
from edge_client.text.token_bytes import ByteLevelTokens, FallbackTokens, TokenBytes

if TYPE_CHECKING:
    from chaperone_common.artefacts.manifest import ModelManifest

_LONG_TEXT = 4096  # characters; reading them takes some milliseconds
FETCH = "fetch the model again: `chaperone models pull --pair NAME --cloud HOST:PORT`"


class Tokenizer:
    """The tokenizer of one model artefact. Any thread may use it at any time."""

    def __init__(self, tokenizer: Any, *, eos_token_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # Settings of a training run that some files carry: they would cut or fill every text.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.eos_token_ids = tuple(eos_token_ids)
        added = tokenizer.get_added_tokens_decoder()
        self.control_tokens: Mapping[int, str] = {
            token_id: token.content for token_id, token in added.items() if token.special
        }
        # Some read `<S>` or fullwidth characters as the control token `<s>`.
        self._reads_controls_loosely = tokenizer.normalizer is not None and any(
            token.special and token.normalized for token in added.values()
        )
        self.token_bytes = _token_bytes(tokenizer, self.control_tokens.keys())
        self._token_texts: dict[int, str] = {}

    @classmethod
    def load(cls, folder: Path | str, manifest: ModelManifest) -> Tokenizer:
        """Load `tokenizer.json`; raises ModelMissing, or ModelCorrupt if it is not the one of the manifest."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ModelMissing(f"{path}: there is no such file; {FETCH}")
        try:
            loaded = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelCorrupt(f"{path}: not a tokenizer: {error}; {FETCH}") from error
        tokenizer = cls(loaded, eos_token_ids=manifest.eos_token_ids)
        if tokenizer.vocabulary_size != manifest.vocabulary_size:
            raise ModelCorrupt(
                f"{path}: it has {tokenizer.vocabulary_size} tokens, its manifest says {manifest.vocabulary_size}; "
                f"{FETCH}"
            )
        return tokenizer

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest token id, special tokens included."""
        return 1 + max(self._vocabulary.values())

    @property
    def eos_token(self) -> str | None:
        """The text of the first end-of-text token."""
        return self._tokenizer.id_to_token(self.eos_token_ids[0]) if self.eos_token_ids else None

    def encode(self, text: str, *, max_tokens: int | None = None) -> tuple[int, ...]:
        """Turn text into token ids; the text of a control token becomes that token, and none is added.

        A text that certainly has more than `max_tokens` is refused unread, as PromptTooLong.
        """
        self._check_length(text, max_tokens)
        return tuple(_encoded(self._tokenizer, text).ids)

    def encode_marked(self, text: str, marks: Mapping[int, str], *, max_tokens: int | None = None) -> tuple[int, ...]:
        """Read as control tokens only those of `text`; then each mark becomes its character and is read as text.

        Raises PromptTooLong, or InvalidRequest where this tokenizer can read the text of a control token in one way
        only.
        """
        if not marks and not self._reads_controls_loosely:
            return self.encode(text, max_tokens=max_tokens)
        self._check_length(text, max_tokens)
        unmarked = text.translate(marks)
        wanted, (token_ids, found) = self._read(text)[1], self._read(unmarked)
        if found == wanted and not self._reads_controls_loosely:
            return tuple(token_ids)
        names, literal = self._literal
        parts, end = [], 0
        for token_id, start in wanted:
            parts += [unmarked[end:start], names[token_id]]
            end = start + len(self.control_tokens[token_id])
        return tuple(_encoded(literal, "".join((*parts, unmarked[end:]))).ids)

    def _read(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of a text, and the (id, offset) of each control token written in it."""
        encoding = _encoded(self._tokenizer, text)
        found = []
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            # Neighbouring white space may belong to the token, and an unknown character may have a control token's id.
            control = self.control_tokens.get(token_id)
            at = text.find(control, start, end) if control is not None else -1
            if at >= 0:
                found.append((token_id, at))
        return encoding.ids, found

    def decode(self, token_ids: Sequence[int]) -> str:
        """Turn token ids into text without control tokens; bytes that are not UTF-8 become U+FFFD."""
        pieces, started = [], False
        for token_id in token_ids:
            piece, started = self.token_bytes.piece(token_id, started)
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "replace")

    def token_text(self, token_id: int) -> str:
        """Return the text of one token alone; bytes that are no whole character become U+FFFD."""
        if token_id not in self._token_texts:
            self._token_texts[token_id] = self.decode([token_id])
        return self._token_texts[token_id]

    @cached_property
    def control_text(self) -> ControlText:
        """The texts of control tokens, to be found in messages."""
        return ControlText(self.control_tokens.values())

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return {text: int(token_id) for text, token_id in self._tokenizer.get_vocab(with_added_tokens=True).items()}

    @cached_property
    def _longest_token(self) -> int:
        return max(len(text) for text in self._vocabulary)

    def _check_length(self, text: str, max_tokens: int | None) -> None:
        """Raise PromptTooLong for a text longer than `max_tokens` times the longest token."""
        if max_tokens is None or not self.token_bytes.complete or len(text) <= max_tokens * self._longest_token:
            return
        raise PromptTooLong(
            f"prompt: {len(text)} characters are more than {max_tokens} tokens, the context, can hold; shorten it"
        )

    @cached_property
    def _literal(self) -> tuple[dict[int, str], Any]:
        """Names for the control tokens that no text can hold, and a copy of this tokenizer that knows only these.

        Ids and everything else stay, so that the text of a control token is text to it, whatever the vocabulary says.
        """
        nonce = secrets.token_hex(16)
        names = {token_id: f"\ufdd0{nonce}{token_id}\ufdd1" for token_id in self.control_tokens}
        try:
            literal = _renamed(self._tokenizer, {self.control_tokens[token_id]: names[token_id] for token_id in names})
        except Exception as error:  # the library raises bare Exception
            raise InvalidRequest(f"{_ONE_WAY} ({error})") from error
        for token_id, name in names.items():
            if _encoded(literal, name).ids != _encoded(self._tokenizer, self.control_tokens[token_id]).ids:
                raise InvalidRequest(_ONE_WAY)
        return names, literal


_ONE_WAY = (
    "messages: they hold the text of a control token, which this model's tokenizer cannot read as text; "
    "remove it, or give parse_special=True to have it read as the control token"
)


def _encoded(tokenizer: Any, text: str) -> Any:
    """Encode a text; while it encodes a long one, other threads can run."""
    if len(text) < _LONG_TEXT:
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode_batch([text], add_special_tokens=False)[0]  # `encode` holds Python's lock


def _renamed(tokenizer: Any, names: Mapping[str, str]) -> Any:
    """Return a copy in which tokens have other names and the same ids; no merge leads to them."""
    data = json.loads(tokenizer.to_str())
    for token in data["added_tokens"]:
        if token["special"]:
            token["content"] = names[token["content"]]
    model = data["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): token_id for text, token_id in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if "merges" in model:
        model["merges"] = [
            (left, right)
            for left, right in model["merges"]
            if not (left in names or right in names or left + right in names)
        ]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    data["post_processor"] = None  # it adds tokens, which are never wanted here, by their old names
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def _token_bytes(tokenizer: Any, control_ids: Sequence[int] | Any) -> TokenBytes:
    decoder = tokenizer.decoder
    described = json.loads(decoder.__getstate__()) if decoder is not None else {}
    kinds = {part["type"] for part in described.get("decoders", [described]) if "type" in part}
    skipped = frozenset(control_ids)
    if kinds == {"ByteLevel"}:
        return ByteLevelTokens(tokenizer.id_to_token, skipped)
    return FallbackTokens(
        tokenizer.id_to_token,
        lambda token_ids: str(tokenizer.decode(token_ids, skip_special_tokens=False)),
        skipped,
        with_bytes="ByteFallback" in kinds,
    )
