"""The encoding of one generation's prompt: from the cloud's frames to the device's model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b

from chaperone_common.conditioning import DIGEST_BYTES, Encoding
from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import Encoded, EncodingRequest, Open

_REMEDY = "use another cloud"


@dataclass(frozen=True, slots=True)
class Wish:
    """The wish of a generation for its prompt's encoding."""

    prompt_length: int
    held: Encoding  # the rows that the device has already
    request: EncodingRequest | None  # for the others; None: there are none, or no cloud is asked
    needed: bool = True  # the text cannot do without it: the device writes alone
    gain: float = math.inf  # overrides that the encoding saves for each token
    keep: Callable[[Encoding], None] = lambda encoding: None  # called with the whole encoding


class Conditioning:
    """Collects the rows of the prompt, and gives them to the model once."""

    def __init__(self, wish: Wish | None, apply: Callable[[Encoding], None]) -> None:
        """`apply` lets the model read its text with an encoding from now on. Without a wish nothing is collected."""
        self._wish = wish
        self._apply = apply
        self._parts: list[Encoding] = []  # that this stream has brought
        self._digest = blake2b(digest_size=DIGEST_BYTES)  # of them
        self._whole: Encoding | None = None  # held and brought, once the digest was right
        self._verified = wish is None or wish.request is None
        self.used_tokens = len(wish.held) if wish is not None else 0  # of the prompt, that are read with an encoding

    @property
    def request(self) -> EncodingRequest | None:
        """The wish for the rows that are missing; None if there are none."""
        return None if self._verified or self._wish is None else self._wish.request

    def opening(self, frame: Open) -> Open:
        """Return the Open of a stream with the wish for the missing rows.

        A device that writes alone sends the prompt and nothing of its text, and the cloud needs no room for that.
        """
        asked = replace(frame, encoding=self.request)
        if self._wish is None or not self._wish.needed:
            return asked
        return replace(asked, committed_token_ids=(), max_new_tokens=1, top_logprobs=None)

    @property
    def gain(self) -> float:
        """Overrides that the encoding saves for each token."""
        return self._wish.gain if self._wish is not None else 0.0

    @property
    def arrived(self) -> bool:
        """True if the encoding is whole, and the model does not use all of it yet."""
        return self._wish is not None and self._verified and self.used_tokens < self._length

    def restart(self, *, lost: bool = False) -> None:
        """Forget the rows of a stream that has ended; the next one brings all of them.

        A text that can do without asks no more after a loss: the cloud that comes back may refuse the projector.
        """
        if lost and self._wish is not None and not self._wish.needed:
            self._verified = True
        self._parts = []
        self._digest = blake2b(digest_size=DIGEST_BYTES)

    def receive(self, frame: Encoded) -> None:
        """Take the next rows; raises ProtocolViolation for others."""
        request = self.request
        rows = frame.rows
        if request is None or self._wish is None:
            raise ProtocolViolation(f"encoded: rows from {rows.start} on that were not asked for; {_REMEDY}")
        expected = self._parts[-1].end if self._parts else request.start
        if rows.start != expected or rows.end > self._wish.prompt_length or rows.width != self._wish.held.width:
            raise ProtocolViolation(
                f"encoded: rows [{rows.start}, {rows.end}) of width {rows.width}, not from {expected} to at most "
                f"{self._wish.prompt_length} of width {self._wish.held.width}; {_REMEDY}"
            )
        # Digested as they come, and joined once: a long prompt must not hold up the event loop.
        self._parts.append(rows)
        self._digest.update(rows.packed())
        if rows.end < self._wish.prompt_length:
            return
        if frame.digest != self._digest.digest():
            raise ProtocolViolation(f"encoded: digest {frame.digest.hex()!r} is not that of the rows; {_REMEDY}")
        self._verified = True
        self._whole = Encoding.joined([self._wish.held, *self._parts])
        self._parts = []
        self._wish.keep(self._whole)

    def check_whole(self) -> None:
        """Raise ProtocolViolation unless all rows have arrived: the cloud says that it has read the prompt."""
        if self.request is not None:
            raise ProtocolViolation(f"encoded: the prompt is read, and rows of its encoding are missing; {_REMEDY}")

    def take_up(self) -> None:
        """Let the model read the text with the whole encoding from now on."""
        encoding = self._whole
        assert encoding is not None, "only an encoding that has arrived can be taken up"
        self.used_tokens = len(encoding)
        self._apply(encoding)

    @property
    def _length(self) -> int:
        return self._whole.end if self._whole is not None else 0
