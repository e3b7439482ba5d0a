"""Encodings of prompts by the service itself, and the controls that a gain has to beat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from benchmarks.kit.processes import ServerFailed
from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.conditioning import Encoding
from chaperone_common.frames import Close, Encoded, EncodingRequest, Failure, Open, Opened
from chaperone_common.types import SamplingParams, SessionId
from chaperone_common.wire import SERVICE, SUPERVISE, decode_server, encode_client

CONTROLS = ("own", "none", "zero", "constant", "mismatched")


@dataclass(frozen=True, slots=True)
class Made:
    """The encoding of a prompt, and what it took."""

    encoding: Encoding
    seconds: float  # from the Open to the last row, on loopback, with the reading of the prompt
    bytes_down: int


def encode_all(address: str, manifest: ModelManifest, prompts: Mapping[str, Sequence[int]]) -> dict[str, Made]:
    """Return the encoding of each prompt, one after the other; raises ServerFailed if one fails."""
    return asyncio.run(_encode_all(address, manifest, prompts))


async def _encode_all(address: str, manifest: ModelManifest, prompts: Mapping[str, Sequence[int]]) -> dict[str, Made]:
    async with grpc.aio.insecure_channel(address) as channel:
        return {
            name: await _encode(channel, manifest, f"encode-{number}", tuple(prompt))
            for number, (name, prompt) in enumerate(prompts.items())
        }


async def _encode(channel: grpc.aio.Channel, manifest: ModelManifest, name: str, prompt: tuple[int, ...]) -> Made:
    assert manifest.projector is not None, "the caller has checked it"
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/{SUPERVISE}")
    began, call = time.perf_counter(), method()
    request = EncodingRequest(manifest.projector.digest)
    opening = Open(
        SessionId(name),
        manifest.tokenizer_digest,
        SamplingParams(),
        1,
        (),
        prompt,
        encoding=request,
    )
    await call.write(encode_client(opening))
    encoding, size = Encoding.empty(manifest.projector.width), 0
    while isinstance(data := await call.read(), bytes):
        match decode_server(data):
            case Encoded(rows):
                encoding, size = encoding.followed_by(rows), size + len(data)
            case Opened(prefilled=True):
                break
            case Failure(_, message):
                raise ServerFailed(f"encoding of {name}: {message}")
            case _:
                pass
    taken = time.perf_counter() - began
    await call.write(encode_client(Close(len(prompt), ())))
    await call.done_writing()
    if len(encoding) != len(prompt):
        raise ServerFailed(f"encoding of {name}: {len(encoding)} rows for {len(prompt)} tokens")
    return Made(encoding, taken, size)


class Controls:
    """The encodings that are read in place of a prompt's own.

    `none` reads none. `zero` has rows of zeros, and `constant` the mean row of all prompts at each token. `mismatched`
    has the rows of the next prompt, repeated or cut to this one's length.
    """

    def __init__(self, encodings: Mapping[str, Encoding]) -> None:
        """Take the encodings of all prompts, by name."""
        self._encodings = encodings
        names = list(encodings)
        self._next = dict(zip(names, [*names[1:], *names[:1]], strict=True))

    def encoding(self, control: str, name: str) -> Encoding | None:
        """Return what a control reads at the prompt of a name."""
        if not self._encodings or control == "none":
            return None
        own = self._encodings[name]
        match control:
            case "own":
                return own
            case "zero":
                return Encoding.of(np.zeros((len(own), own.width), np.float32))
            case "constant":
                return Encoding.of(np.tile(self._mean_row, (len(own), 1)))
            case "mismatched":
                return Encoding.of(np.resize(self._encodings[self._next[name]].rows(), (len(own), own.width)))
            case _:
                raise ValueError(f"control: {control!r} is none of {', '.join(CONTROLS)}")

    @cached_property
    def _mean_row(self) -> NDArray[np.float32]:
        rows = [encoding.rows().sum(axis=0, dtype=np.float64) for encoding in self._encodings.values()]
        count = sum(len(encoding) for encoding in self._encodings.values())
        mean: NDArray[np.float32] = (np.sum(rows, axis=0) / count).astype(np.float32)
        return mean
