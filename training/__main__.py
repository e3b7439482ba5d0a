"""Make a better drafter: `python -m training COMMAND [options]`. README.md in this folder shows the whole way."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from chaperone_common.errors import ChaperoneError

COMMANDS = {
    "prompts": "training.prompts.run",
    "answers": "training.answers.run",
    "collect": "training.answers.collect",
    "encode": "training.answers.encode",
    "distil": "training.distillation.run",
    "part": "training.distillation.part",
}

EXIT_UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code: 75 if it stopped in time and the same command goes on."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module_name in COMMANDS.items():
        module = importlib.import_module(module_name)
        purpose = str(module.__doc__)
        command = commands.add_parser(
            name,
            help=purpose.partition(":")[0],
            description=purpose,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        return EXIT_UNFINISHED if args.run(args) is False else 0
    except ChaperoneError as error:
        print(f"training: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
