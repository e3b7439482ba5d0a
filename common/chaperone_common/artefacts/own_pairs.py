"""Writing the registry of the user's own pairs."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from chaperone_common.artefacts.registry import (
    Pair,
    Registry,
    default_registry,
    load_own_pairs,
    load_registry,
    own_registry,
)
from chaperone_common.errors import ConfigError, OutputLost
from chaperone_common.files import replace_file
from chaperone_common.settings.strict_yaml import MAX_BYTES, parse_yaml, yaml_text
from chaperone_common.suggestion import did_you_mean

_HEADER = """\
# Your own pairs. `chaperone-cloud models add` and `remove` write this file again: all values stay, and no comments.
# The form is that of the packaged models.yaml.

"""


def refuse_taken(name: str, pair: Pair, *, replace: bool) -> bool:
    """Return whether the user's registry holds this very pair. Raise ConfigError if another pair has its name."""
    own = load_own_pairs()
    if name in own:
        if own[name] == pair:
            return True
        if not replace:
            raise ConfigError(
                f"NAME: {name!r} is another pair in {own_registry()}; choose another name, or replace it with --replace"
            )
    elif name in load_registry(default_registry()).pairs:
        raise ConfigError(f"NAME: {name!r} is a pair that comes with Chaperone; choose another name")
    return False


def add_pair(name: str, pair: Pair, *, replace: bool = False) -> bool:
    """Write a pair into the user's registry, whole or not at all. Return False if it is there already.

    Raises ConfigError for a name that another pair has, and for a file that cannot be written.
    """
    path = own_registry()
    with _locked(path):
        if refuse_taken(name, pair, replace=replace):
            return False
        _write(path, {**load_own_pairs(), name: pair}, name)
    return True


def refuse_foreign(name: str) -> None:
    """Raise ConfigError for a pair that is not in the user's registry."""
    if name in (own := load_own_pairs()):
        return
    if name in load_registry(default_registry()).pairs:
        raise ConfigError(
            f"NAME: {name!r} is a pair that comes with Chaperone, so its entry stays; leave --forget out to remove its "
            "models alone"
        )
    raise ConfigError(f"NAME: {name!r} is no pair of yours in {own_registry()}{did_you_mean(name, sorted(own))}")


def forget_pair(name: str) -> None:
    """Remove a pair from the user's registry.

    Raises ConfigError as `refuse_foreign` does, and for a file that cannot be written.
    """
    path = own_registry()
    with _locked(path):
        refuse_foreign(name)
        pairs = load_own_pairs()
        del pairs[name]
        _write(path, pairs, name)


def _write(path: Path, pairs: dict[str, Pair], name: str) -> None:
    """Write the registry; `name` is of the pair that changes. Raises ConfigError, and then writes nothing."""
    values = {each: spec.model_dump(mode="json", exclude_defaults=True) for each, spec in pairs.items()}
    text = _HEADER + yaml_text({"pairs": values})
    if not _reads_as(pairs, text, path):  # nobody could load any pair any more
        raise ConfigError(
            f"{path}: {name!r} would be read back as another pair, so nothing was written; use plain text in its fields"
        )
    content = text.encode()
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES} bytes with {name!r}; remove pairs that you do not need")
    try:
        replace_file(path, [content])
    except OutputLost as error:
        raise ConfigError(error.message) from None


def _reads_as(pairs: dict[str, Pair], text: str, path: Path) -> bool:
    """Return whether the text of a registry holds these pairs."""
    try:
        return Registry.model_validate_json(json.dumps(parse_yaml(text, path)[0])).pairs == pairs
    except (ConfigError, ValidationError):
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of the registry; two commands at once would lose an entry. Make its folder if it is absent."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("wb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be locked: {error.strerror or error}; set CHAPERONE_HOME to a folder on a local disk"
            ) from None
        yield
