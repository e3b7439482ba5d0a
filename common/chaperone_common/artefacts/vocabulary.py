"""The identity of a vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


def vocabulary_digest(id_to_bytes: Mapping[int, bytes], special_ids: Iterable[int]) -> str:
    """Name a vocabulary by what its ids mean: equal digests make token ids interchangeable.

    SHA-256 over one record per id in rising order: id and length as 8-byte little-endian numbers, one byte that is 1
    for special ids, then the token's bytes. Files and chat templates stay out: they differ inside one family.
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
