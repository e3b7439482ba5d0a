"""The transfer of a model to this device. Afterwards it is whole, or what was here before is unchanged."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from chaperone_common.artefacts.manifest import (
    MAX_MANIFEST_BYTES,
    ManifestFile,
    ModelManifest,
    is_file_name,
    load_manifest,
    parse_manifest,
)
from chaperone_common.errors import ChaperoneError, CloudLost, ModelCorrupt, ModelError, Overloaded
from edge_client.artefacts.source import Source, SourceLost
from edge_client.artefacts.workplace import Workplace, megabytes

MAX_MODEL_BYTES = 16 << 30  # that a manifest may name, unless the user allows more
MAX_FILES = 64
PATIENCE_S = 120.0  # without new bytes

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_TURNS = 10
_LOSSES = (CloudLost, Overloaded, SourceLost)
_KEPT = "what has arrived is kept, run the same command again to go on"


@dataclass(frozen=True, slots=True)
class PullProgress:
    """The state of a pull."""

    file: str
    done_bytes: int  # of all files
    total_bytes: int


@dataclass(frozen=True, slots=True)
class PulledModel:
    """The model that is here after a pull."""

    folder: Path
    manifest: ModelManifest
    manifest_sha256: str
    fetched_bytes: int  # 0 if it was here already

    @property
    def total_bytes(self) -> int:
        """The size of all its files."""
        return sum(file.bytes for file in self.manifest.files.values())


def _nothing(_: object) -> None:
    pass


async def pull(
    pair: str,
    source: Source,
    *,
    sha256: str | None = None,
    max_bytes: int = MAX_MODEL_BYTES,
    progress: Callable[[PullProgress], None] = _nothing,
    say: Callable[[str], None] = _nothing,
    patience_s: float = PATIENCE_S,
) -> PulledModel:
    """Fetch the device's model of a pair, unless it is here and whole.

    `sha256` is that of the manifest, if the user knows it: then nothing that the source sends is trusted. A source that
    is lost after its manifest is asked again until it has sent nothing for `patience_s`, and one that is busy for ten
    times as long. `say` gets lines for the user. Raises ModelError,
    ModelCorrupt for content that differs from the manifest, or the error of the source.
    """
    workplace, patience = Workplace(pair), _Patience(patience_s, say)
    content = await patience.kept(source.manifest)
    manifest = _checked(content, source.place, sha256, max_bytes)
    digest = hashlib.sha256(content).hexdigest()
    if await asyncio.to_thread(_is_here, workplace.final, manifest):
        return PulledModel(workplace.final, manifest, digest, 0)
    async with workplace.locked(say):
        if await asyncio.to_thread(_is_here, workplace.final, manifest):
            return PulledModel(workplace.final, manifest, digest, 0)  # another pull made it while this one waited
        workplace.begin(manifest)
        meter = _Meter(manifest, progress)
        for name, expected in manifest.files.items():
            await _Arrival(workplace, source, name, expected, patience, meter).complete()
        await asyncio.to_thread(workplace.finish, manifest, content)
    return PulledModel(workplace.final, manifest, digest, meter.fetched_bytes)


def _checked(content: bytes, place: str, sha256: str | None, max_bytes: int) -> ModelManifest:
    """Return the manifest that a source sent, if this device can take its model; raises ModelCorrupt or ModelError."""
    if len(content) > MAX_MANIFEST_BYTES:
        raise ModelCorrupt(f"{place}: manifest.json: more than {MAX_MANIFEST_BYTES} bytes; use another source")
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ModelCorrupt(
            f"{place}: manifest.json: its SHA-256 is {found}, not {sha256}; correct --sha256, or use another source"
        )
    manifest = parse_manifest(content, role="edge", place=f"{place}: manifest.json", remedy="use another source")
    strange = next((name for name in manifest.files if not is_file_name(name)), None)
    if strange is not None:
        raise ModelCorrupt(
            f"{place}: manifest.json: files: {strange[:100]!r} is no plain name of a file; use another source"
        )
    if len(manifest.files) > MAX_FILES:
        raise ModelCorrupt(
            f"{place}: manifest.json: files: {len(manifest.files)}, at most {MAX_FILES} are taken; use another source"
        )
    if (total := sum(file.bytes for file in manifest.files.values())) > max_bytes:
        raise ModelError(
            f"{place}: the model has {megabytes(total)}, and at most {megabytes(max_bytes)} are taken; raise --max-gib "
            "if that is right"
        )
    return manifest


def _is_here(folder: Path, manifest: ModelManifest) -> bool:
    """Return whether this model is in the folder, with the right checksum of each file."""
    try:
        return load_manifest(folder, role="edge", verify=True) == manifest
    except ModelError:
        return False


class _Meter:
    """Counts the bytes of a pull."""

    def __init__(self, manifest: ModelManifest, progress: Callable[[PullProgress], None]) -> None:
        self._total_bytes = sum(file.bytes for file in manifest.files.values())
        self._progress = progress
        self._done_bytes = 0
        self.fetched_bytes = 0

    def fetched(self, name: str, count: int) -> None:
        self.fetched_bytes += count
        self.held(name, count)

    def held(self, name: str, count: int) -> None:
        self._done_bytes += count
        self._progress(PullProgress(name, self._done_bytes, self._total_bytes))


class _Patience:
    """Asks a source again after a loss, until it has sent nothing for a time."""

    def __init__(self, patience_s: float, say: Callable[[str], None]) -> None:
        self._patience_s = patience_s
        self._say = say
        self._pause_s = _FIRST_PAUSE_S
        self._since_s = asyncio.get_running_loop().time()

    def reward(self) -> None:
        """Note that bytes have arrived."""
        self._pause_s = _FIRST_PAUSE_S
        self._since_s = asyncio.get_running_loop().time()

    async def kept(self, ask: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the first answer of a source. Wait if it says how long; raise any other error at once."""
        while True:
            try:
                return await ask()
            except _LOSSES as error:
                if error.retry_after_ms is None:
                    raise
                await self._pause(error)

    @asynccontextmanager
    async def losses(self) -> AsyncIterator[None]:
        """Wait after a loss within the block, or raise it when patience ends."""
        try:
            yield
        except _LOSSES as error:
            await self._pause(error)

    async def _pause(self, error: ChaperoneError) -> None:
        pause_s = max(self._pause_s, (error.retry_after_ms or 0) / 1e3)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        # Other devices get their model during this time, so it may be long.
        patience_s = self._patience_s * (_TURNS if isinstance(error, Overloaded) else 1)
        if asyncio.get_running_loop().time() + pause_s - self._since_s > patience_s:
            raise type(error)(f"{error.message}; {_KEPT}", retry_after_ms=error.retry_after_ms) from None
        self._say(f"{error.message}; trying again in {pause_s:.1f} s")
        await asyncio.sleep(pause_s)


class _Arrival:
    """One file on its way."""

    def __init__(
        self,
        workplace: Workplace,
        source: Source,
        name: str,
        expected: ManifestFile,
        patience: _Patience,
        meter: _Meter,
    ) -> None:
        self._workplace = workplace
        self._source = source
        self._name = name
        self._expected = expected
        self._patience = patience
        self._meter = meter

    async def complete(self) -> None:
        """Return when the file has arrived with the right checksum; raises ModelCorrupt for any other content."""
        workplace, expected = self._workplace, self._expected
        if workplace.arrived(expected) < expected.bytes and await asyncio.to_thread(
            workplace.take, self._name, expected
        ):
            self._meter.held(self._name, expected.bytes)
            return
        self._meter.held(self._name, workplace.arrived(expected))
        while (offset := workplace.arrived(expected)) < expected.bytes or not workplace.part(expected).exists():
            async with self._patience.losses():
                await self._fetch(offset)
        if not await asyncio.to_thread(workplace.holds, expected):
            raise ModelCorrupt(
                f"{self._source.place}: {self._name}: its SHA-256 is not the manifest's; it was deleted. Run the same "
                "command again, or use another source"
            )

    async def _fetch(self, offset: int) -> None:
        """Append what the source sends; raises SourceLost if it ends early, and ModelCorrupt if it sends too much."""
        left = self._expected.bytes - offset
        with self._workplace.appending(self._expected) as append:
            async with aclosing(self._source.read(self._name, self._expected, offset)) as blocks:
                async for block in blocks:
                    if len(block) > left:
                        raise ModelCorrupt(
                            f"{self._source.place}: {self._name}: it has more than {self._expected.bytes} bytes, which "
                            "the manifest says; use another source"
                        )
                    if block:
                        append(block)
                        left -= len(block)
                        self._patience.reward()
                        self._meter.fetched(self._name, len(block))
        if left:
            raise SourceLost(f"{self._source.place}: {self._name}: it ended {left} bytes early")
