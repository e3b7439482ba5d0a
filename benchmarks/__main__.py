"""Run a measurement: `python -m benchmarks NAME [options]`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import COMMANDS
from benchmarks.kit.processes import ServerFailed
from chaperone_common.errors import ChaperoneError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; with --out, write its JSON."""
    names = "\n".join(f"  {name:13} {command.purpose}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog=names, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=COMMANDS, metavar="NAME")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="see `python -m benchmarks NAME --help`")
    args = parser.parse_args(argv)
    try:
        return _run(args.name, args.options)
    except (ChaperoneError, ServerFailed) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of a benchmark's options."""
    module = importlib.import_module(COMMANDS[name].module)
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="write the result here: a JSON file, or a folder for figures")
    module.add_arguments(parser)
    return parser


def _run(name: str, options: Sequence[str]) -> int:
    args = parser_of(name).parse_args(options)
    result = importlib.import_module(COMMANDS[name].module).run(args)
    if result is None:  # it has written its own files
        return 0
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if "summary" in result:
        print(json.dumps(result["summary"], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
