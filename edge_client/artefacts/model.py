"""The device's model of a pair: fetched from any source, verified, removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chaperone_common.artefacts.folders import pair_folder, pairs_on_disk
from chaperone_common.artefacts.manifest import MANIFEST_NAME, ModelManifest, load_manifest, pull_remedy
from edge_client.artefacts.from_cloud import CloudSource
from edge_client.artefacts.from_folder import FolderSource
from edge_client.artefacts.from_url import UrlSource
from edge_client.artefacts.pull import MAX_MODEL_BYTES, PulledModel, PullProgress, pull
from edge_client.artefacts.source import Source
from edge_client.artefacts.workplace import Workplace
from edge_client.config import EdgeConfig
from edge_client.link.credentials import read_addresses


async def pull_model(
    config: EdgeConfig | None = None,
    *,
    source: Path | str | None = None,
    sha256: str | None = None,
    max_bytes: int = MAX_MODEL_BYTES,
    progress: Callable[[PullProgress], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> PulledModel:
    """Fetch the device's model of the configured pair, unless it is here and whole. Clients then load it offline.

    Args:
        config: The pair, and the cloud with its credentials; the defaults if None.
        source: A folder, or an address that begins with `https://` or `http://`. The cloud if None.
        sha256: The SHA-256 of the manifest, in hexadecimal digits. Then any source may send it.
        max_bytes: The largest model that is taken.
        progress: Receives the number of bytes that have arrived.
        say: Receives lines for the user, such as the reason why a pull waits.

    An interrupted pull goes on where it ended. Raises ModelError, ModelMissing, ModelCorrupt, ConfigError, or an error
    of the cloud.
    """
    config = config or EdgeConfig()
    opened = _source(config, source, pinned=sha256 is not None)
    try:
        return await pull(
            config.pair,
            opened,
            sha256=sha256,
            max_bytes=max_bytes,
            progress=progress or _nothing,
            say=say or _nothing,
        )
    finally:
        await opened.close()


def pulled_pairs() -> list[str]:
    """Return the pairs whose device's model is here, whole or not; raises ConfigError or ModelError."""
    return pairs_on_disk("edge")


def check_model(config: EdgeConfig, *, folder: Path | None = None, verify: bool = False) -> ModelManifest:
    """Return the manifest of the configured pair's model, or of the one in `folder`.

    Raises as `load_manifest` does, with the remedy.
    """
    folder = folder or pair_folder(config.pair, "edge")
    remedy = pull_remedy(folder, "edge", cloud=read_addresses(config.cloud)[0])
    return load_manifest(folder, role="edge", verify=verify, remedy=remedy)


def has_model(pair: str) -> bool:
    """Return whether there is a model of this pair, whole or not; raises ConfigError."""
    try:
        return (pair_folder(pair, "edge") / MANIFEST_NAME).exists()
    except OSError:
        return True  # loading it reports the problem


async def remove_model(pair: str, *, say: Callable[[str], None] | None = None) -> bool:
    """Remove the device's model of a pair, also one that is half here; return whether there was any.

    `say` receives the reason why it waits: a pull that is at work.
    """
    place = Workplace(pair)
    if not place.has_any():  # and no folder is made for a lock
        return False
    async with place.locked(say or _nothing):
        return place.remove_all()


def _source(config: EdgeConfig, place: Path | str | None, *, pinned: bool) -> Source:
    if place is None:
        return CloudSource(config.pair, config.cloud)
    if isinstance(place, str) and "://" in place:
        return UrlSource(place, insecure=config.cloud.insecure or pinned)
    return FolderSource(Path(place).expanduser())


def _nothing(_: object) -> None:
    pass
