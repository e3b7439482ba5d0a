"""The text of an Open, before the first Draft: it is read into the cache, and encoded if the device wants that."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import pairwise

from chaperone_common.conditioning import DIGEST_BYTES
from chaperone_common.errors import InvalidRequest, PeerMismatch
from chaperone_common.frames import Capabilities, Encoded, EncodingRequest, Open
from chaperone_common.token_tree import TokenTree
from cloud_supervisor.admission import Admission, SessionKey
from cloud_supervisor.inbox import Inbox
from cloud_supervisor.model.ports import ForwardQueue, ForwardResult, Urgency

# Tokens of a prompt that cost as much as one position. A prompt is read in long chunks.
_READ_FOR_ONE = 16
_FRAME_ROWS = 64
_FRAME_BYTES = 1 << 16
_ROW_BYTES = 8  # of a row on the wire, next to its values: its scale, and its share of the frame's other fields
# A stretch is at least this share of the text before it. Its cache may be lost between two stretches, and is then read
# again: a prompt costs at most nine times its length, however many others want the memory.
_LEAST_SHARE = 8
_DIGEST_SHOWN = 80  # characters of a device's text that a message quotes


def check_projector(asked: EncodingRequest, capabilities: Capabilities) -> None:
    """Raise PeerMismatch unless this cloud encodes with the projector that the device's model was trained with."""
    own, theirs = capabilities.projector_digest, asked.projector_digest[:_DIGEST_SHOWN]
    if not own:
        raise PeerMismatch(
            f"projector_digest: the device's model was trained with {theirs!r}, this cloud encodes no prompts; use a "
            "cloud with this pair, get its model with `chaperone models pull --cloud HOST:PORT`, or choose another mode"
        )
    if asked.projector_digest != own:
        raise PeerMismatch(
            f"projector_digest: the device's model was trained with {theirs!r}, this cloud encodes prompts with "
            f"{own!r}; run `chaperone models pull --cloud HOST:PORT` on the device, or choose another mode"
        )


def check_encoding(opening: Open, capabilities: Capabilities) -> None:
    """Raise InvalidRequest for an encoding that cannot be made; the Open must hold its whole prompt."""
    asked, tokens = opening.encoding, len(opening.prompt_token_ids)
    if asked is None:
        return
    if tokens > capabilities.max_encoded_tokens:
        raise InvalidRequest(
            f"encoding: the prompt has {tokens} tokens, this cloud encodes up to {capabilities.max_encoded_tokens} "
            "(limits.max_encoded_tokens); shorten it, or choose another mode"
        )
    if not 0 <= asked.start < tokens:
        raise InvalidRequest(
            f"encoding.start: {asked.start} is outside [0, {tokens}), the prompt; ask for rows that it has, or for none"
        )


class Reading:
    """Reads the text of one Open. It stops as soon as the stream closes: the queue drops the rest."""

    def __init__(
        self,
        key: SessionKey,
        opening: Open,
        inbox: Inbox,
        queue: ForwardQueue,
        admission: Admission,
        *,
        chunk_tokens: int,
    ) -> None:
        """Read in stretches of at least `chunk_tokens` where an encoding is wanted, so that a forward is not cut."""
        self._key = key
        self._opening = opening
        self._inbox = inbox
        self._queue = queue
        self._admission = admission
        self._chunk_tokens = max(chunk_tokens, _FRAME_ROWS)
        self.tokens = 0  # that were read
        self.encoded = 0  # of them, tokens whose rows were made
        self.cached_tokens = 0  # of them, tokens that were not computed
        self.queue_us = 0
        self.compute_us = 0
        self.lacks_rows = False  # the stream closed before the encoding was complete

    async def encode(self) -> AsyncGenerator[Encoded, None]:
        """Read the prompt, and yield the rows that the device wants as soon as they are ready.

        The next stretch is read while the rows of the one before are sent.
        """
        asked, prompt = self._opening.encoding, self._opening.prompt_token_ids
        if asked is None:
            return
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        ends = [asked.start, *_stretches(asked.start, len(prompt), self._chunk_tokens)]
        spans = [*pairwise(ends)]
        reading = self._read(prompt[: spans[0][1]], ends[1] - ends[0])
        try:
            for index, (start, end) in enumerate(spans):
                result = await self._outcome(reading)
                if result is None:
                    self.lacks_rows = True
                    return
                rows = result.encoding
                assert rows is not None, "a request for an encoding is answered with one"
                self._note(result, end)
                self.encoded += end - start
                if index + 1 < len(spans):
                    following = spans[index + 1]
                    reading = self._read(prompt[: following[1]], following[1] - following[0])
                digest.update(rows.packed())
                for part in rows.split(max(1, min(_FRAME_ROWS, _FRAME_BYTES // (rows.width + _ROW_BYTES)))):
                    yield Encoded(part, digest.digest() if part.end == len(prompt) else b"")
        finally:
            await _ended(reading)

    async def rest(self, text: Sequence[int]) -> None:
        """Read what was not read of the text, except its last token.

        The first span's forward reads that token, and chooses the next one.
        """
        if len(text) - 1 <= self.tokens or self._inbox.closing:
            return
        reading = self._read(text[:-1], 0)
        try:
            result = await self._outcome(reading)
        finally:
            await _ended(reading)  # before the session is freed
        if result is not None:
            self._note(result, len(text) - 1)

    def _read(self, text: Sequence[int], rows: int) -> asyncio.Future[ForwardResult]:
        """Begin to read a text, and to encode its last tokens."""
        return asyncio.ensure_future(
            self._queue.forward(
                self._key,
                TokenTree(tuple(text)),
                rows,
                self._opening.sampling,
                tenant=self._key.tenant,
                urgency=Urgency.READ,
                encoded=rows > 0,
            )
        )

    async def _outcome(self, reading: asyncio.Future[ForwardResult]) -> ForwardResult | None:
        """Wait for what was begun; return None if the stream closes before."""
        if self._inbox.closing:
            return None
        closing = asyncio.ensure_future(self._inbox.until_closing())
        try:
            await asyncio.wait((reading, closing), return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else None
        finally:
            await _ended(closing)

    def _note(self, result: ForwardResult, end: int) -> None:
        """Count, and charge the tenant for, the tokens up to `end`."""
        if not self.tokens:
            self.cached_tokens = result.cached_tokens
        cost = math.ceil(end / _READ_FOR_ONE) - math.ceil(self.tokens / _READ_FOR_ONE)
        self._admission.charge(self._key.tenant, cost)
        self.tokens = end
        self.queue_us += result.queue_us
        self.compute_us += result.compute_us


def _stretches(start: int, end: int, least: int) -> Iterator[int]:
    """Yield the ends of the stretches of a text from `start` to `end`."""
    while start < end:
        start = min(end, start + max(least, start // _LEAST_SHARE))
        yield start


async def _ended(task: asyncio.Future[ForwardResult] | asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
