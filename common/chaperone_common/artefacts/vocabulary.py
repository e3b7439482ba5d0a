"""The bytes of tokens, and the identity of a vocabulary."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


def byte_of_character() -> dict[str, int]:
    """Return GPT-2's printable stand-ins for the 256 bytes: printable ones are themselves, the rest follow 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def byte_of_token(text: str) -> int | None:
    """Return the byte of a SentencePiece byte token, such as `<0x0A>`, or None for another token."""
    return int(text[3:5], 16) if _BYTE_TOKEN.fullmatch(text) else None


def vocabulary_digest(id_to_bytes: Mapping[int, bytes], special_ids: Iterable[int]) -> str:
    """Return a digest of the meaning of token ids. Two models with equal digests can exchange ids.

    The digest is SHA-256 over one record per id, in rising order: id and length as 8-byte little-endian numbers, one
    byte that is 1 for special ids, then the token's bytes. It ignores files and chat templates, which differ inside one
    family of models. Raises ValueError for a special id that is not in the vocabulary.
    """
    special = frozenset(special_ids)
    unknown = sorted(special - id_to_bytes.keys())
    if unknown:
        raise ValueError(f"special_ids: {unknown[:5]} are not in the vocabulary")
    digest = hashlib.sha256()
    for token_id in sorted(id_to_bytes):
        content = id_to_bytes[token_id]
        digest.update(token_id.to_bytes(8, "little") + len(content).to_bytes(8, "little"))
        digest.update((b"\x01" if token_id in special else b"\x00") + content)
    return f"sha256:{digest.hexdigest()}"
