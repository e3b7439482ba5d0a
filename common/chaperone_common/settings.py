"""YAML files, read strictly into frozen models.

Every complaint names the file, the line, the key, the value and what was expected, because the reader of it has the
file open in an editor and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails

from chaperone_common.errors import ConfigError
from chaperone_common.resources import found_config, packaged_configs
from chaperone_common.suggestion import did_you_mean

_MAX_YAML_BYTES = 1024 * 1024
_FOLDER = "folder"  # key of what validators are told: where the file lies


class FrozenModel(BaseModel):
    """A configuration value: no unknown keys, no guessing of types, no change after loading.

    Made in Python, it raises ConfigError with field and value, as `load_yaml` does.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            lines = dict.fromkeys(_locations(values, ()), 0)
            complaints = [_complaint(details, type(self), lines).in_python for details in error.errors()]
            raise ConfigError("\n".join(dict.fromkeys(complaints))) from None

    # Pydantic then leaves nested models to its own validation, which knows where in the whole a mistake is.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


ModelT = TypeVar("ModelT", bound=BaseModel)
Location = tuple[int | str, ...]


def load_yaml(path: Path | str, model: type[ModelT]) -> ModelT:
    """Read a YAML file into `model`; raises ConfigError, which lists every mistake, one a line.

    If there is no such file, use the packaged file of that name, such as `edge.yaml`.
    """
    path = found_config(path)
    lines: dict[Location, int] = {}
    try:
        node = _compose(path, _read_text(path))
        data = {} if node is None else _construct(path, node, (), lines)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    try:
        # JSON mode: strict, yet lists may become tuples.
        return model.model_validate_json(json.dumps(data), context={_FOLDER: path.parent})
    except ValidationError as error:
        complaints = sorted({_complaint(details, model, lines) for details in error.errors()})
        raise ConfigError("\n".join(complaint.in_file(path) for complaint in complaints)) from None


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    if path == Path():
        raise ValueError("no file is named; give a path")
    return info.context[_FOLDER] / path if info.context else path


# A path in a YAML file is relative to that file; one that is given in Python, to the working directory.
PathBesideFile = Annotated[Path, AfterValidator(_beside_the_file)]


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_YAML_BYTES + 1)
        if len(content) > _MAX_YAML_BYTES:
            raise ConfigError(f"{path}: more than {_MAX_YAML_BYTES} bytes, this is no configuration file")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; those that come along: {', '.join(packaged_configs())}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def _compose(path: Path, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{mark.line + 1}" if mark else "1"
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def _construct(path: Path, node: yaml.Node, location: Location, lines: dict[Location, int]) -> Any:
    """Turn a node into plain values, and note each value's line; YAML's own constructor keeps the last duplicate."""
    lines[location] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise ConfigError(f"{path}:{line}: {_dotted(location)}: keys must be plain names")
            key = str(key_node.value)
            if key in mapping:
                raise ConfigError(f"{path}:{line}: {_dotted((*location, key))}: given twice; remove one")
            mapping[key] = _construct(path, value_node, (*location, key), lines)
            lines[(*location, key)] = line
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(path, item, (*location, index), lines) for index, item in enumerate(node.value)]
    return _construct_scalar(path, node, location)


def _construct_scalar(path: Path, node: yaml.Node, location: Location) -> Any:
    where = f"{path}:{node.start_mark.line + 1}: {_dotted(location)}"
    if node.tag == "tag:yaml.org,2002:timestamp":
        return node.value  # a date is text here: no setting is one
    if node.tag == "tag:yaml.org,2002:str" and _EXPONENT.fullmatch(node.value) and getattr(node, "style", None) is None:
        return float(node.value)  # YAML 1.1 takes 1e-3 for text
    constructor = yaml.SafeLoader("")
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


_EXPONENT = re.compile(r"[-+]?[0-9]{1,3}[eE][-+]?[0-9]{1,2}")

_EXPECTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table of keys",
    "model_type": "a table of keys",
    "model_attributes_type": "a table of keys",
    "path_type": "a path",
    "none_required": "empty",
}


class _Complaint(NamedTuple):
    """One mistake."""

    line: int
    location: Location
    problem: str

    def in_file(self, path: Path) -> str:
        return f"{path}:{self.line}: {_dotted(self.location)}: {self.problem}"

    @property
    def in_python(self) -> str:
        return f"{_dotted(self.location)}: {self.problem}" if self.location else self.problem


def _complaint(details: ErrorDetails, model: type[BaseModel], lines: Mapping[Location, int]) -> _Complaint:
    location = details["loc"]
    known = _known_prefix(location, lines)
    named = known
    line = lines.get(known, 1)
    value = details["input"]
    match details["type"]:
        case "extra_forbidden":
            siblings = _field_names(model, location[:-1])
            problem = f"unknown key{did_you_mean(str(location[-1]), siblings)}"
        case "missing":
            named = (*known, location[-1])
            problem = "this key is required"
        case "union_tag_not_found":
            named = (*known, str(details["ctx"]["discriminator"]).strip("'"))
            problem = "this key is required"
        case "union_tag_invalid":
            named = (*known, str(details["ctx"]["discriminator"]).strip("'"))
            line = lines.get(named, line)
            problem = f"{details['ctx']['tag']!r} is not {details['ctx']['expected_tags'].replace(', ', ' or ')}"
        case "string_type" if isinstance(value, (bool, int, float)):
            problem = f"{_shown(value)} is not text; put it in quotes"
        case "float_type" if isinstance(value, int) and not isinstance(value, bool):
            problem = f"{_shown(value)} is too large a number"
        case "literal_error" | "enum":
            expected = str(details.get("ctx", {}).get("expected", "an allowed value"))
            problem = f"{_shown(value)} is not {expected}"
        case "parameter":
            problem = details["msg"]  # it names the value
        case kind if kind in _EXPECTED:
            problem = f"{_shown(value)} is not {_EXPECTED[kind]}"
        case _:
            message = details["msg"].removeprefix("Value error, ")
            problem = f"{_shown(value)}: {message[:1].lower()}{message[1:]}"
    return _Complaint(line, named, problem)


def _locations(value: Any, location: Location) -> Iterator[Location]:
    """Where all plain values of nested tables and lists stand."""
    yield location
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from _locations(item, (*location, key))


def _known_prefix(location: Location, lines: Mapping[Location, int]) -> Location:
    """Drop what pydantic adds to a location (names of union members), and what the file does not hold."""
    known: Location = ()
    for part in location:
        if (*known, part) in lines:
            known = (*known, part)
    return known


def _field_names(model: type[BaseModel], location: Location) -> list[str]:
    """The keys allowed at `location`; empty where they cannot be told."""
    candidates: list[type[BaseModel]] = [model]
    for part in location:
        annotations: list[Any] = []
        for candidate in candidates:
            if part in candidate.model_fields:
                annotations.append(candidate.model_fields[str(part)].annotation)
        if annotations:
            candidates = [found for annotation in annotations for found in _models_in(annotation)]
    return sorted({field.alias or name for found in candidates for name, field in found.model_fields.items()})


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location) or "the file"
