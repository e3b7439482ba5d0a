"""Options that several commands have."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from chaperone_common.errors import ConfigError
from chaperone_common.files import PART


def layers(text: str) -> tuple[int, ...]:
    """Return the numbers of some layers, for `type=`."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: not numbers of layers, separated by commas") from None
    if min(found) < 0 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: give different numbers of layers, from 0, the embeddings, on")
    return found


def at_least(least: int) -> Callable[[str], int]:
    """Return a converter of whole numbers, for `type=`, that refuses those below `least`."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: not a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from {least} on")
        return number

    return convert


def positive(text: str) -> float:
    """Return a number above 0, for `type=`."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: not a number") from None
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")
    return number


def share(text: str) -> float:
    """Return a number between 0 and 1, for `type=`."""
    number = positive(text)
    if number >= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number below 1")
    return number


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Declare `--dtype` of the large model."""
    parser.add_argument(
        "--dtype", choices=("auto", "int8", "bfloat16", "float32"), default="auto", help="auto: as it is served here"
    )


def add_max_seconds(parser: argparse.ArgumentParser) -> None:
    """Declare `--max-seconds`."""
    parser.add_argument(
        "--max-seconds",
        type=positive,
        default=math.inf,
        help="stop after about this time, to go on later (exit code 75)",
    )


def check_output(path: Path, ending: str) -> None:
    """Raise ConfigError unless a file with this ending can be written: before the work, not after it."""
    if path.suffix != ending:
        raise ConfigError(f"--out: {path}; give a name that ends with {ending}")
    part = path.with_name(path.name + PART)
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise ConfigError(f"--out: {path}: cannot be written: {error.strerror or error}; name another file") from None


def check_layers(chosen: Sequence[int], layers_of_model: int) -> None:
    """Raise ConfigError for a layer that the large model does not have."""
    for layer in chosen:
        if layer > layers_of_model:
            raise ConfigError(f"--layers: {layer}; the large model has layers up to {layers_of_model}, its last")
