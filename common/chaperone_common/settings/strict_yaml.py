"""YAML files as plain values, with the line of each value.

The values are those of JSON: tables, lists, texts, numbers, true, false and null. Errors name file, line and key.
PyYAML alone is not enough: its constructor keeps the last of two equal keys, and forgets the lines.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from chaperone_common.errors import ConfigError
from chaperone_common.settings.packaged import packaged_configs

Location = tuple[int | str, ...]  # keys and indices from the top of a file to a value

MAX_BYTES = 1024 * 1024  # of a file
_MAX_VALUES = 100_000  # aliases can make a short file large
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two changes: a date is text, and `1e-3` is a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own name for it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(f"{_TAG}float", re.compile(r"[-+]?[0-9]{1,3}[eE][-+]?[0-9]{1,2}$"), list("-+0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader` would not read as text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True  # equal values are written out


def yaml_text(value: Any) -> str:
    """Return plain values as the text of a YAML file. Control characters may be lost: compare with `parse_yaml`."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def read_yaml(path: Path) -> tuple[Any, dict[Location, int]]:
    """Return the content of a file, and the line of each value in it; raises ConfigError.

    An empty file is an empty table.
    """
    return parse_yaml(_read_text(path), path)


def parse_yaml(text: str, path: Path) -> tuple[Any, dict[Location, int]]:
    """Return what `read_yaml` does, of the text of a file; `path` is for messages."""
    lines: dict[Location, int] = {}
    try:
        node = _compose(path, text)
        return ({} if node is None else _construct(path, node, (), lines)), lines
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None


def dotted(location: Location) -> str:
    """Return a location as users write it, such as `gate.policy`."""
    return ".".join(str(part) for part in location) or "the file"


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: more than {MAX_BYTES} bytes, this is no configuration file")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; packaged files: {', '.join(packaged_configs())}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def _compose(path: Path, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def _construct(path: Path, node: yaml.Node, location: Location, lines: dict[Location, int]) -> Any:
    """Turn a node into plain values, and record the line of each."""
    lines[location] = node.start_mark.line + 1
    if len(lines) > _MAX_VALUES:
        raise ConfigError(f"{path}: more than {_MAX_VALUES} values, this is no configuration file")
    if isinstance(node, yaml.SequenceNode):
        return [_construct(path, item, (*location, index), lines) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _construct_table(path, node, location, lines)
    return _construct_scalar(path, node, location)


def _construct_table(
    path: Path, node: yaml.MappingNode, location: Location, lines: dict[Location, int]
) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == f"{_TAG}merge":
            raise ConfigError(f"{path}:{line}: {dotted(location)}: keys must be plain names")
        key = str(key_node.value)
        if key in table:
            raise ConfigError(f"{path}:{line}: {dotted((*location, key))}: given twice; remove one")
        table[key] = _construct(path, value_node, (*location, key), lines)
        lines[(*location, key)] = line
    return table


def _construct_scalar(path: Path, node: yaml.Node, location: Location) -> Any:
    where = f"{path}:{node.start_mark.line + 1}: {dotted(location)}"
    constructor = _Loader("")
    try:
        value = constructor.construct_document(node)
        json.dumps(value, allow_nan=False)
    except yaml.YAMLError:
        raise ConfigError(f"{where}: {node.value!r} has a tag that is not allowed here") from None
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: {node.value!r} is not a plain value") from None
    finally:
        constructor.dispose()
    return value
