"""The encoding of a prompt: what the large model makes of it, in the width of the small model's embeddings.

Source: LLM-to-SLM (Bergner et al. 2024, arXiv 2402.16844), where it is called Z. It crosses the link in eight bits,
with one scale for each row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16
_LARGEST = 127  # of a signed byte, so that the scales are symmetric


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """The rows of consecutive tokens; `start` is the position of the first one."""

    scales: NDArray[np.float32]  # [tokens]
    values: NDArray[np.int8]  # [tokens, width]
    start: int = 0

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.scales.shape != self.values.shape[:1]:
            raise ValueError(f"scales, values: {self.scales.shape} and {self.values.shape}; give [tokens, width]")

    @classmethod
    def of(cls, rows: NDArray[np.float32], start: int = 0) -> Encoding:
        """Round rows [tokens, width] to eight bits."""
        scales = (np.abs(rows).max(axis=1, initial=0.0) / _LARGEST).astype(np.float32)
        steps = rows / np.where(scales > 0, scales, 1)[:, np.newaxis]
        return cls(scales, np.rint(steps).astype(np.int8), start)

    @classmethod
    def empty(cls, width: int) -> Encoding:
        """Return an encoding of no token."""
        return cls(np.empty(0, np.float32), np.empty((0, width), np.int8))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Encoding):
            return NotImplemented
        same = self.start == other.start and np.array_equal(self.scales, other.scales)
        return same and np.array_equal(self.values, other.values)

    def __len__(self) -> int:
        return len(self.scales)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return int(self.values.shape[1])

    @property
    def end(self) -> int:
        """The position after the last row."""
        return self.start + len(self)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.scales.nbytes + self.values.nbytes

    def rows(self) -> NDArray[np.float32]:
        """Return the rows [tokens, width]."""
        return self.values.astype(np.float32) * self.scales[:, np.newaxis]

    def between(self, start: int, end: int) -> Encoding:
        """Return the rows of the positions from `start` to before `end`; all must be there."""
        if not self.start <= start <= end <= self.end:
            raise ValueError(f"[{start}, {end}) is outside the encoding's [{self.start}, {self.end})")
        part = slice(start - self.start, end - self.start)
        return Encoding(self.scales[part], self.values[part], start)

    @classmethod
    def joined(cls, parts: Sequence[Encoding]) -> Encoding:
        """Return at least one part, and those that follow, as one; each begins where the one before it ends."""
        for before, part in pairwise(parts):
            if part.start != before.end or part.width != before.width:
                raise ValueError(
                    f"rows of width {part.width} from {part.start} on follow {before.width} up to {before.end}"
                )
        scales = np.concatenate([part.scales for part in parts])
        return cls(scales, np.concatenate([part.values for part in parts]), parts[0].start)

    def followed_by(self, other: Encoding) -> Encoding:
        """Return both together; `other` must begin where this one ends, with the same width."""
        return Encoding.joined([self, other])

    def split(self, tokens: int) -> Iterator[Encoding]:
        """Yield parts of at most this number of tokens."""
        for start in range(self.start, self.end, tokens):
            yield self.between(start, min(start + tokens, self.end))

    def packed(self) -> bytes:
        """Return all rows as the digest covers them: each as its scale and then its values, the lowest byte first."""
        packed = np.empty((len(self), 4 + self.width), np.uint8)
        packed[:, :4] = self.scales.astype("<f4").view(np.uint8).reshape(len(self), 4)
        packed[:, 4:] = self.values.view(np.uint8)
        return packed.tobytes()

    def digest(self) -> bytes:
        """Return BLAKE2b of all rows."""
        return hashlib.blake2b(self.packed(), digest_size=DIGEST_BYTES).digest()
