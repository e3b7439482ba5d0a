"""Configuration files, read strictly into frozen models.

Each error names the file, the line, the key, the value and the expectation. A reader has the file open in an editor,
and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails

from chaperone_common.errors import ConfigError
from chaperone_common.settings.packaged import found_config
from chaperone_common.settings.strict_yaml import Location, dotted, read_yaml
from chaperone_common.suggestion import did_you_mean, shown

_FOLDER = "folder"  # key of pydantic's validation context; its value is the folder of the file that is being read


class FrozenModel(BaseModel):
    """A configuration value without unknown keys, guessed types, or changes after loading.

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

    # Pydantic calls an overridden `__init__` for each nested model, and an error in it would lose its location in the
    # whole. This mark makes pydantic validate nested models itself, as it does where `__init__` is not overridden.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


ModelT = TypeVar("ModelT", bound=BaseModel)


def load_yaml(path: Path | str, model: type[ModelT]) -> ModelT:
    """Read a YAML file into `model`; raises ConfigError, which lists each mistake on its own line.

    If `path` does not exist, use the packaged file of that name, such as `edge.yaml`.
    """
    path = found_config(path)
    data, lines = read_yaml(path)
    try:
        # JSON mode: strict, yet lists may become tuples.
        return model.model_validate_json(json.dumps(data), context={_FOLDER: path.parent})
    except ValidationError as error:
        complaints = sorted({_complaint(details, model, lines) for details in error.errors()})
        raise ConfigError("\n".join(complaint.in_file(path) for complaint in complaints)) from None


def _from_its_folder(path: Path, info: ValidationInfo) -> Path:
    if path == Path():
        raise ValueError("no file is named; give a path")
    return info.context[_FOLDER] / path if info.context else path


# A path that is relative to the YAML file that holds it. Made in Python, it is relative to the working directory.
RelativePath = Annotated[Path, AfterValidator(_from_its_folder)]


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
    """One mistake in a configuration."""

    line: int
    location: Location
    problem: str

    def in_file(self, path: Path) -> str:
        return f"{path}:{self.line}: {dotted(self.location)}: {self.problem}"

    @property
    def in_python(self) -> str:
        return f"{dotted(self.location)}: {self.problem}" if self.location else self.problem


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
            problem = f"{shown(details['ctx']['tag'])} is not {details['ctx']['expected_tags'].replace(', ', ' or ')}"
        case "string_type" if isinstance(value, (bool, int, float)):
            problem = f"{_shown(value)} is not text; put it in quotes"
        case "float_type" if isinstance(value, int) and not isinstance(value, bool):
            problem = f"{_shown(value)} is too large a number"
        case "literal_error" | "enum":
            expected = str(details.get("ctx", {}).get("expected", "an allowed value"))
            problem = f"{_shown(value)} is not {expected}"
        case "parameter":
            problem = details["msg"]  # it names the value
        case "field":  # a check of a whole table, whose message begins with the name of one field
            field, _, problem = details["msg"].partition(": ")
            named = (*known, *field.split("."))
            line = lines.get(_known_prefix(named, lines), 1)
        case kind if kind in _EXPECTED:
            problem = f"{_shown(value)} is not {_EXPECTED[kind]}"
        case _:
            message = details["msg"].removeprefix("Value error, ")
            problem = f"{_shown(value)}: {message[:1].lower()}{message[1:]}"
    return _Complaint(line, named, problem)


def _locations(value: Any, location: Location) -> Iterator[Location]:
    """Yield the location of every value in nested tables and lists."""
    yield location
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from _locations(item, (*location, key))


def _known_prefix(location: Location, lines: Mapping[Location, int]) -> Location:
    """Return the part of pydantic's location that the file holds: pydantic adds the names of union members."""
    known: Location = ()
    for part in location:
        if (*known, part) in lines:
            known = (*known, part)
    return known


def _field_names(model: type[BaseModel], location: Location) -> list[str]:
    """Return the keys allowed at `location`; empty if they are unknown."""
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
    return str(value).lower() if isinstance(value, bool) else shown(value)
