"""The values of flags: each function parses one, and refuses it with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chaperone_common.artefacts.folders import is_pair_name
from chaperone_common.command.parser import refuse
from edge_client.cancellation import MAX_TIMEOUT_S

MAX_CONCURRENCY = 256


def file_name(text: str) -> str:
    """Return the name of a file, or `-`."""
    if not text:
        refuse(text, "it is empty; give the name of a file")
    return text


def path(text: str) -> Path:
    """Return the path of a file."""
    return Path(file_name(text))


def pair(text: str) -> str:
    """Return the name of a model pair."""
    if not is_pair_name(text):
        refuse(text, "not a name of lower-case letters, digits, '-' and '_', such as tiny or default")
    return text


def tools(text: str) -> list[Any]:
    """Return the tools that a JSON file lists."""
    try:
        listed = json.loads(Path(file_name(text)).read_bytes())
    except OSError as error:
        refuse(text, f"cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        refuse(text, f"not JSON: {error}")
    if not isinstance(listed, list):
        refuse(text, "not a list of JSON schemas")
    return listed


def seconds(text: str) -> float:
    """Return a number of seconds above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_TIMEOUT_S:
        refuse(text, "not a number of seconds above 0, up to a year")
    return value


def width(text: str) -> int | str:
    """Return the number of texts that the device drafts at once, or `dynamic`."""
    if text != "dynamic" and not (text.isascii() and text.isdecimal() and len(text) < 5):
        refuse(text, "neither dynamic nor a whole number")
    return text if text == "dynamic" else int(text)


def concurrency(text: str) -> int:
    """Return the number of lines of a batch that may run at once."""
    if not (text.isascii() and text.isdecimal() and len(text) < 5 and 1 <= int(text) <= MAX_CONCURRENCY):
        refuse(text, f"not a whole number from 1 to {MAX_CONCURRENCY}")
    return int(text)
