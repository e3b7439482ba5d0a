"""The use of encodings by a client: for which texts, and which rows it asks the cloud for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.errors import InvalidRequest, PeerMismatch
from chaperone_common.frames import Capabilities, EncodingRequest
from chaperone_common.types import Mode
from edge_client.config import DeviceSettings
from edge_client.engine.conditioning import Wish
from edge_client.model.encodings import Encodings


class PromptEncodings:
    """The encodings of one client."""

    def __init__(self, manifest: ModelManifest, settings: DeviceSettings) -> None:
        self._pair = manifest.pair
        self._projector = manifest.projector
        self._setting = settings.conditioning
        width = manifest.projector.width if manifest.projector is not None else 0
        self._kept = Encodings(width, int(settings.encodings_mib * 2**20))

    def check(self, mode: Mode) -> None:
        """Raise InvalidRequest if the mode needs a model that reads encodings, and there is none."""
        if mode is Mode.CONDITIONED and self._projector is None:
            raise InvalidRequest(
                f"mode: conditioned needs a device's model that was trained to read encodings, and {self._pair!r} has "
                "none; use another mode, or pull a pair whose adapter has a projector"
            )

    def complete(self, mode: Mode, prompt: Sequence[int]) -> bool:
        """Return whether mode `conditioned` needs no cloud: the encoding of the whole prompt is kept here."""
        return mode is Mode.CONDITIONED and len(self._kept.longest(prompt)) == len(prompt)

    def wish(self, mode: Mode, prompt: Sequence[int], capabilities: Capabilities | None) -> Wish | None:
        """Return what a generation wants of its prompt's encoding; None if it is read without one.

        `capabilities` are of the cloud that was reached, if any. In `conditioned`, raises PeerMismatch if that encodes
        for another model, and InvalidRequest if it encodes no prompt of this length.
        """
        projector = self._projector
        if projector is None or not self._takes_part(mode):
            return None
        held, length = self._kept.longest(prompt), len(prompt)
        request = None
        if capabilities is not None and len(held) < length:
            fits = capabilities.projector_digest == projector.digest and length <= capabilities.max_encoded_tokens
            if not fits and mode is Mode.CONDITIONED:
                raise self._refusal(capabilities, length)
            request = EncodingRequest(projector.digest, len(held)) if fits else None
        gain = projector.gain if self._setting == "auto" and mode is not Mode.CONDITIONED else math.inf
        needed = mode is Mode.CONDITIONED
        return Wish(length, held, request, needed, gain, partial(self._kept.keep, tuple(prompt)))

    def _takes_part(self, mode: Mode) -> bool:
        match mode, self._setting:
            case Mode.CONDITIONED, _:
                return True
            case ((Mode.EXACT | Mode.GATED), "on"):
                return True
            case Mode.EXACT, "auto":
                return self._projector is not None and self._projector.gain > 0
            case _:
                return False

    def _refusal(self, capabilities: Capabilities, length: int) -> PeerMismatch | InvalidRequest:
        assert self._projector is not None
        if not capabilities.projector_digest:
            return PeerMismatch(
                "projector: the cloud encodes no prompts, and mode conditioned needs that; serve the pair "
                f"{self._pair!r} with its projector and limits.max_encoded_tokens, or use another mode"
            )
        if capabilities.projector_digest != self._projector.digest:
            return PeerMismatch(
                f"projector: this device's model reads encodings of {self._projector.digest}, the cloud makes those of "
                f"{capabilities.projector_digest}; run `chaperone models pull --pair {self._pair}`"
            )
        return InvalidRequest(
            f"prompt: {length} tokens, the cloud encodes at most {capabilities.max_encoded_tokens}; shorten it, or use "
            "another mode"
        )
