"""Values of options that several commands have."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

from chaperone_common.errors import ConfigError


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


def check_layers(chosen: Sequence[int], layers_of_model: int) -> None:
    """Raise ConfigError for a layer that the large model does not have."""
    for layer in chosen:
        if layer > layers_of_model:
            raise ConfigError(f"--layers: {layer}; the large model has layers up to {layers_of_model}, its last")
