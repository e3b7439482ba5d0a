"""An answer, and files of answers.

One file holds the answers of one batch, as arrays that are joined end to end:

author         text [2]         the large model's name, and the digest of its tokenizer
ids, kinds     text [texts]     of the prompts
tokens         int32 [N]        prompt and answer of each text
lengths        int32 [texts, 2] tokens of the prompt, and of the answer
top_ids        int32 [M, K]     for each token of an answer, the K likeliest at its place, the likeliest first
top_logprobs   float16 [M, K]   their natural log-probabilities at temperature 1; -inf for one that was left out
encoding_L     int8 [P, width]  for each token of a prompt, the hidden state after layer L, in steps of its scale
scale_L        float32 [P]      the step of each row
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chaperone_common.errors import ConfigError
from chaperone_common.files import replace_file

_LARGEST = 127  # of int8
_NO_ANSWERS = "write them with `python -m training answers`"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of numbers in int8, each with a scale of its own."""

    values: NDArray[np.int8]  # [rows, width]
    scales: NDArray[np.float32]  # [rows]

    @classmethod
    def of(cls, rows: NDArray[np.float32]) -> Rows:
        """Round rows to int8; the largest number of each becomes 127."""
        scales = (np.abs(rows).max(axis=1, initial=0.0) / _LARGEST).astype(np.float32)
        steps = np.where(scales > 0, scales, 1.0)
        return cls(np.rint(rows / steps[:, None]).astype(np.int8), scales)

    def restored(self) -> NDArray[np.float32]:
        """Return the rounded numbers."""
        return self.values.astype(np.float32) * self.scales[:, None]

    def __getitem__(self, place: slice) -> Rows:
        return Rows(self.values[place], self.scales[place])


@dataclass(frozen=True, slots=True)
class Author:
    """The large model that wrote an answer."""

    model: str  # its name
    tokenizer: str  # digest of its vocabulary


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt and what the large model wrote after it."""

    author: Author
    id: str
    kind: str
    prompt: NDArray[np.int32]  # [p] token ids, with the chat template around the message
    tokens: NDArray[np.int32]  # [m] token ids; the last one ends the text, unless the text was cut
    top_ids: NDArray[np.int32]  # [m, K]
    top_logprobs: NDArray[np.float16]  # [m, K]
    encodings: Mapping[int, Rows]  # by layer: [p, width]


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Write a file of one batch; it is there as a whole or not at all."""
    author = answers[0].author
    arrays: dict[str, Any] = {
        "author": np.array([author.model, author.tokenizer]),
        "ids": np.array([answer.id for answer in answers]),
        "kinds": np.array([answer.kind for answer in answers]),
        "lengths": np.array([(len(answer.prompt), len(answer.tokens)) for answer in answers], np.int32),
        "tokens": np.concatenate([part for answer in answers for part in (answer.prompt, answer.tokens)]),
        "top_ids": np.concatenate([answer.top_ids for answer in answers]),
        "top_logprobs": np.concatenate([answer.top_logprobs for answer in answers]),
    }
    for layer in answers[0].encodings:
        arrays[f"encoding_{layer}"] = np.concatenate([answer.encodings[layer].values for answer in answers])
        arrays[f"scale_{layer}"] = np.concatenate([answer.encodings[layer].scales for answer in answers])
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    replace_file(path, [content.getvalue()])


def read_answers(*sources: Path) -> list[Answer]:
    """Return the answers of files, and of folders in the order of their files, each answer once.

    Raises ConfigError for a source without answers, and for answers of several large models.
    """
    answers: dict[tuple[object, ...], Answer] = {}
    for source in sources:
        paths = [source] if source.is_file() else sorted(source.glob("*.npz"))
        found = [answer for path in paths for answer in _read(path)]
        if not found:
            raise ConfigError(f"{source}: no answers; {_NO_ANSWERS}")
        answers |= {
            (answer.author, answer.id, answer.prompt.tobytes(), answer.tokens.tobytes()): answer for answer in found
        }
    authors = sorted({answer.author.model for answer in answers.values()})
    if len({answer.author for answer in answers.values()}) > 1:
        raise ConfigError(
            f"{', '.join(map(str, sources))}: answers of several models, {', '.join(authors)}; give one's"
        )
    return [*answers.values()]


def data_digest(answers: Sequence[Answer]) -> str:
    """Return a digest of prompts and answers, without the likeliest tokens and the hidden states."""
    digest = hashlib.sha256()
    for answer in answers:
        digest.update(answer.prompt.tobytes())
        digest.update(answer.tokens.tobytes())
    return digest.hexdigest()[:16]


def whole_digest(answers: Sequence[Answer], layers: Sequence[int]) -> str:
    """Return a digest of all that training with the hidden states of `layers` reads."""
    digest = hashlib.sha256(data_digest(answers).encode())
    for answer in answers:
        digest.update(answer.top_ids.tobytes())
        digest.update(answer.top_logprobs.tobytes())
        for layer in layers:
            digest.update(answer.encodings[layer].values.tobytes())
            digest.update(answer.encodings[layer].scales.tobytes())
    return digest.hexdigest()[:16]


def refuse_others(folder: Path, names: Collection[str]) -> None:
    """Raise ConfigError if a folder has answers in files with other names: a reader would mix them."""
    others = sorted({path.name for path in folder.glob("*.npz")}.difference(names))
    if others:
        raise ConfigError(
            f"{folder}: {len(others)} files, such as {others[0]}, answer other prompts or have other settings; name "
            "another folder, or delete them"
        )


def _read(path: Path) -> Iterator[Answer]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
        author = Author(*map(str, arrays["author"]))
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: it is no whole file of answers ({error}); {_NO_ANSWERS}") from None
    layers = [int(name.removeprefix("encoding_")) for name in arrays if name.startswith("encoding_")]
    token = top = row = 0
    for text, (prompt, written) in enumerate(arrays["lengths"].tolist()):
        tops, rows = slice(top, top + written), slice(row, row + prompt)
        yield Answer(
            author=author,
            id=str(arrays["ids"][text]),
            kind=str(arrays["kinds"][text]),
            prompt=arrays["tokens"][token : token + prompt],
            tokens=arrays["tokens"][token + prompt : token + prompt + written],
            top_ids=arrays["top_ids"][tops],
            top_logprobs=arrays["top_logprobs"][tops],
            encodings={layer: Rows(arrays[f"encoding_{layer}"], arrays[f"scale_{layer}"])[rows] for layer in layers},
        )
        token, top, row = token + prompt + written, top + written, row + prompt


def spread(answers: Sequence[Answer], most: int) -> list[Answer]:
    """Return at most that many answers, spread evenly: files of answers have one kind of prompt after the other."""
    count = min(most, len(answers))
    return [answers[index * len(answers) // count] for index in range(count)]
