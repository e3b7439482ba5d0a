"""Values of options that several commands have."""

from __future__ import annotations

import argparse


def layers(text: str) -> tuple[int, ...]:
    """Return the numbers of some layers, for `type=`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: not numbers of layers, separated by commas") from None
