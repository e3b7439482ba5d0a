"""Text to train on: Python sources and documentation of installed packages with permissive licences, as tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.prompts.functions import permissive_packages

END = "<|endoftext|>"
_SUFFIXES = (".py", ".pyi", ".md", ".rst", ".txt")
_SIZES = (400, 100_000)  # bytes of a file; longer ones are mostly tables
_HELD_OUT = 0.05  # share of the files, by their names

Tokens = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Document:
    """A file of a package."""

    name: str  # package and path
    text: str

    @property
    def held_out(self) -> bool:
        """True if training never sees it. It depends on the name alone."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4]) < _HELD_OUT * 2**32


def documents() -> Iterator[Document]:
    """Yield the files of all installed packages with permissive licences, by package and path; each text once."""
    seen: set[bytes] = set()
    for distribution in permissive_packages():
        package = distribution.metadata["Name"]
        for file in sorted(distribution.files or ()):
            path = Path(str(distribution.locate_file(file)))
            if file.suffix not in _SUFFIXES or ".dist-info" in str(file):
                continue
            try:
                if not _SIZES[0] <= path.stat().st_size <= _SIZES[1]:
                    continue
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            digest = hashlib.sha256(text.encode()).digest()
            if digest not in seen:
                seen.add(digest)
                yield Document(f"{package}/{file}", text)


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer with this number of tokens, `END` included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokens_of(found: Iterator[Document], tokenizer: Tokenizer, most: int) -> tuple[Tokens, Tokens]:
    """Return the tokens of the files to learn from, up to about `most`, and those that are held out; joined by `END`.

    Files are taken in the order of a digest of their names, so that fewer tokens are a fair share of all packages.
    """
    end = tokenizer.token_to_id(END)
    learned: list[list[int]] = []
    held_out: list[list[int]] = []
    count = 0
    for document in sorted(found, key=lambda document: hashlib.sha256(document.name.encode()).digest()):
        if count >= most:
            break
        ids = [*tokenizer.encode(document.text, add_special_tokens=False).ids, end]
        (held_out if document.held_out else learned).append(ids)
        count += len(ids)
    return _joined(learned), _joined(held_out)


def _joined(parts: list[list[int]]) -> Tokens:
    return np.array([token_id for part in parts for token_id in part], np.uint16)


def windows(tokens: Tokens, length: int) -> NDArray[np.int64]:
    """Return consecutive windows [windows, length] of tokens; a rest at the end is left out."""
    count = len(tokens) // length
    return tokens[: count * length].reshape(count, length).astype(np.int64)
