"""Take a part of an adapter: `python -m training part --adapter A.safetensors --keep projector --out B.safetensors`.

A study needs the projector without the low-rank changes that it was trained with, or the changes without it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from chaperone_common.errors import ConfigError
from training.options import check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--adapter", type=Path, required=True, help="an adapter with both parts")
    parser.add_argument("--keep", choices=("projector", "low-rank"), required=True, help="the part")
    parser.add_argument("--out", type=Path, required=True, help="the file, with the ending .safetensors")


def run(args: argparse.Namespace) -> None:
    """Write the part. Raises ConfigError for an adapter without it, and ModelError for a file that is no adapter."""
    check_output(args.out, ".safetensors")
    from cloud_supervisor.export.adapter import Adapter

    whole = Adapter.load(args.adapter)
    part = replace(whole, matrices={}) if args.keep == "projector" else replace(whole, projector=None)
    if part.projector is None and not part.matrices:
        raise ConfigError(f"--keep: {args.adapter} has no {args.keep} part; name another adapter, or the other part")
    provenance = {"part": args.keep, "of": dict(whole.provenance)}
    replace(part, provenance=provenance).save(args.out)
    print(f"{args.out}: written, {args.out.stat().st_size / 2**20:.1f} MiB")
