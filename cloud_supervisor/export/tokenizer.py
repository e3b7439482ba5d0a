"""The vocabulary of a `tokenizer.json`: the bytes of each id. In the cloud, only this module reads that file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chaperone_common.artefacts.vocabulary import byte_of_character, byte_of_token, vocabulary_digest
from chaperone_common.errors import ModelCorrupt, ModelError


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer."""

    id_to_bytes: Mapping[int, bytes]
    special_ids: frozenset[int]  # ids that are never text

    @property
    def size(self) -> int:
        """The highest id plus one. A model's logits from this index on are padding."""
        return max(self.id_to_bytes) + 1

    @property
    def digest(self) -> str:
        """The identity of the vocabulary. Two models with equal digests can exchange ids."""
        return vocabulary_digest(self.id_to_bytes, self.special_ids)

    def id_of(self, text: str) -> int:
        """Return the id of the token that stands for `text`; raises ModelCorrupt if there is none."""
        wanted = text.encode()
        for token_id, content in self.id_to_bytes.items():
            if content == wanted:
                return token_id
        raise ModelCorrupt(f"tokenizer: {text!r} is not one of its tokens")


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the vocabulary of a `tokenizer.json`.

    Its tokens are byte-level, or have `▁` and `<0x0A>` as in SentencePiece. Raises ModelError for other tokens.
    """
    tokenizer = Tokenizer.from_file(str(path))
    added = tokenizer.get_added_tokens_decoder()
    byte_level = _is_byte_level(json.loads(tokenizer.to_str()))
    table = byte_of_character()
    id_to_bytes: dict[int, bytes] = {}
    for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        if token_id in added:
            id_to_bytes[token_id] = added[token_id].content.encode()
        elif byte_level:
            if not table.keys() >= set(token):
                raise ModelError(f"tokenizer: its tokens stand for bytes, but {token!r} does not; it is not supported")
            id_to_bytes[token_id] = bytes(table[character] for character in token)
        else:
            id_to_bytes[token_id] = _sentencepiece_bytes(token)
    return Vocabulary(id_to_bytes, frozenset(token_id for token_id, token in added.items() if token.special))


def strip_padding(path: Path) -> None:
    """Remove the entries such as `[PAD151665]` that pad the vocabulary of a GGUF file to the size of the matrix.

    The models were never trained on them, and the sizes of one family pad differently.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = data["model"]["vocab"]
    if not isinstance(vocabulary, dict):
        return  # a unigram model: a list of scored pieces, never padded this way
    padding = {token for token, token_id in vocabulary.items() if token == f"[PAD{token_id}]"}
    padding |= {entry["content"] for entry in data["added_tokens"] if entry["content"] == f"[PAD{entry['id']}]"}
    if not padding:
        return
    data["model"]["vocab"] = {token: token_id for token, token_id in vocabulary.items() if token not in padding}
    data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["content"] not in padding]
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def _is_byte_level(part: Any) -> bool:
    """Return whether the decoder, or a member of it, maps printable stand-ins back to bytes."""
    decoder = part.get("decoder") or {}
    members = decoder.get("decoders", [decoder])
    return any(member.get("type") == "ByteLevel" for member in members)


def _sentencepiece_bytes(token: str) -> bytes:
    byte = byte_of_token(token)
    return bytes([byte]) if byte is not None else token.replace("▁", " ").encode()
