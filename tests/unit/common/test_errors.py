"""The tree of errors matches its drawing, and each error has a gRPC status."""

from __future__ import annotations

import re

import pytest

from chaperone_common import errors
from chaperone_common.errors import (
    ERROR_OF,
    ERROR_OF_FIELD,
    STATUS_OF,
    ChaperoneError,
    InternalError,
    error_from_status,
    status_of,
)

KNOWN_STATUSES = {
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}  # fmt: skip


def tree(root: type[ChaperoneError] = ChaperoneError) -> list[type[ChaperoneError]]:
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    return [root, *(found for child in children for found in tree(child))]


ALL = tree()


def drawn() -> dict[str, str | None]:
    """Return the class names in the module's drawing, each with its parent."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        del path[depth:]
        parents[match[2]] = path[-1] if path else None
        path.append(match[2])
    return parents


def test_the_drawing_equals_the_tree() -> None:
    actual = {cls.__name__: None if cls is ChaperoneError else cls.__bases__[0].__name__ for cls in ALL}
    assert drawn() == actual


def test_every_error_has_one_parent_and_a_docstring() -> None:
    for cls in ALL:
        assert len(cls.__bases__) == 1
        assert cls.__doc__


@pytest.mark.parametrize("cls", ALL)
def test_every_error_has_a_known_status(cls: type[ChaperoneError]) -> None:
    assert status_of(cls("why")) in KNOWN_STATUSES


@pytest.mark.parametrize("status", sorted(ERROR_OF))
def test_a_status_survives_the_round_trip(status: str) -> None:
    error = error_from_status(status, "why", retry_after_ms=20)
    assert type(error) is ERROR_OF[status]
    assert (str(error), error.message, error.retry_after_ms) == ("why", "why", 20)
    assert status_of(error) == status


@pytest.mark.parametrize("cls", ALL)
def test_an_error_survives_the_wire_up_to_its_line_of_descent(cls: type[ChaperoneError]) -> None:
    fields = [field for (_, field), kind in ERROR_OF_FIELD.items() if kind is cls]
    back = error_from_status(status_of(cls("why")), f"{fields[0]}: why" if fields else "why")
    assert status_of(back) == status_of(cls("why"))
    if not issubclass(
        cls, errors.ModelError | errors.OutputLost
    ):  # OutputLost never crosses the wire; a device reports a cloud without its model as a mismatch
        assert isinstance(back, cls) or issubclass(cls, type(back))


@pytest.mark.parametrize("status", ["UNKNOWN", "DATA_LOSS", "NOT_FOUND", "OK", "", "no such status", "INTERNAL"])
def test_an_unknown_status_is_the_other_end_s_bug(status: str) -> None:
    assert type(error_from_status(status, "why")) is InternalError


def test_the_nearest_class_decides_the_status() -> None:
    assert status_of(errors.PromptTooLong("")) == "INVALID_ARGUMENT"
    assert status_of(errors.ModelCorrupt("")) == "FAILED_PRECONDITION"
    assert status_of(errors.CloudTimeout("")) == "DEADLINE_EXCEEDED"  # not its parent's UNAVAILABLE
    assert status_of(errors.CloudUnavailable("")) == "UNAVAILABLE"

    class OfAUser(errors.VersionMismatch):
        """An error class of a user."""

    assert status_of(OfAUser("")) == "UNIMPLEMENTED"


def test_losing_the_cloud_is_distinguished_from_a_refusal() -> None:
    lost = {status for status, cls in ERROR_OF.items() if issubclass(cls, errors.CloudLost)}
    assert lost == {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


def test_the_tables_name_real_statuses() -> None:
    assert set(ERROR_OF) <= KNOWN_STATUSES
    assert set(STATUS_OF.values()) <= KNOWN_STATUSES
