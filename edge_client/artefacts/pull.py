"""The transfer of a model to this device. Afterwards it is whole, or what was here before is unchanged."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from random import Random

from chaperone_common.artefacts.manifest import (
    MAX_MANIFEST_BYTES,
    ManifestFile,
    ModelManifest,
    is_file_name,
    load_manifest,
    parse_manifest,
)
from chaperone_common.errors import ModelCorrupt, ModelError
from edge_client.artefacts.patience import PATIENCE_S, Patience
from edge_client.artefacts.source import Source, SourceLost
from edge_client.artefacts.workplace import Workplace, in_thread, megabytes

MAX_MODEL_BYTES = 16 << 30  # that a manifest may name, unless the user allows more
MAX_FILES = 64


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
        return self.manifest.total_bytes


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
    random: Random | None = None,
) -> PulledModel:
    """Fetch the device's model of a pair, unless it is here and whole.

    `sha256` is that of the manifest, if the user knows it: then nothing that the source sends is trusted. A source that
    is lost after its manifest is asked again until it has sent nothing for `patience_s`, and one that is busy for ten
    times as long. `say` gets lines for the user. `random` spreads the attempts of many devices. Raises ModelError,
    ModelCorrupt for content that differs from the manifest, or the error of the source.
    """
    workplace = Workplace(pair)
    patience = Patience(patience_s, say, random or Random())  # noqa: S311 # nosec B311
    content = await patience.kept(source.manifest)
    manifest = _checked(content, pair, source.place, sha256, max_bytes)
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
        await in_thread(lambda: workplace.finish(manifest, content))
    return PulledModel(workplace.final, manifest, digest, meter.fetched_bytes)


def _checked(content: bytes, pair: str, place: str, sha256: str | None, max_bytes: int) -> ModelManifest:
    """Return the manifest that a source sent, if this device can take its model; raises ModelCorrupt or ModelError."""
    if len(content) > MAX_MANIFEST_BYTES:
        raise ModelCorrupt(f"{place}: manifest.json: more than {MAX_MANIFEST_BYTES} bytes; use another source")
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ModelCorrupt(
            f"{place}: manifest.json: its SHA-256 is {found}, not {sha256}; correct --sha256, or use another source"
        )
    manifest = parse_manifest(content, role="edge", place=f"{place}: manifest.json", remedy="use another source")
    if manifest.pair != pair:
        raise ModelError(
            f"{place}: manifest.json: pair: it is a model of {manifest.pair[:100]!r}, not of {pair!r}; give --pair "
            "that name, or use another source"
        )
    strange = next((name for name in manifest.files if not is_file_name(name)), None)
    if strange is not None:
        raise ModelCorrupt(
            f"{place}: manifest.json: files: {strange[:100]!r} is no plain name of a file; use another source"
        )
    if len(manifest.files) > MAX_FILES:
        raise ModelCorrupt(
            f"{place}: manifest.json: files: {len(manifest.files)}, at most {MAX_FILES} are taken; use another source"
        )
    if (total := manifest.total_bytes) > max_bytes:
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
        self._total_bytes = manifest.total_bytes
        self._progress = progress
        self._done_bytes = 0
        self.fetched_bytes = 0

    def fetched(self, name: str, count: int) -> None:
        self.fetched_bytes += count
        self.held(name, count)

    def held(self, name: str, count: int) -> None:
        self._done_bytes += count
        self._progress(PullProgress(name, self._done_bytes, self._total_bytes))


class _Arrival:
    """One file on its way."""

    def __init__(
        self,
        workplace: Workplace,
        source: Source,
        name: str,
        expected: ManifestFile,
        patience: Patience,
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
        self._patience.renew()  # the source had no part in the time of the lock, and of the checksums
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
        async with (
            self._workplace.appending(self._expected) as append,
            aclosing(self._source.read(self._name, self._expected, offset)) as blocks,
        ):
            async for block in blocks:
                if len(block) > left:
                    raise ModelCorrupt(
                        f"{self._source.place}: {self._name}: it has more than {self._expected.bytes} bytes, which "
                        "the manifest says; use another source"
                    )
                if block:
                    await append(block)
                    left -= len(block)
                    self._patience.renew()
                    self._meter.fetched(self._name, len(block))
        if left:
            raise SourceLost(f"{self._source.place}: {self._name}: it ended {left} bytes early")
