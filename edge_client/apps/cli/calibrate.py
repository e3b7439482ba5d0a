"""`chaperone calibrate`: a gate for a pair of models."""

from __future__ import annotations

import argparse

from chaperone_common.command.completion import names_files
from chaperone_common.command.console import Console
from chaperone_common.command.program import EXIT_OK
from edge_client.apps.cli.models import pull_if_missing
from edge_client.apps.cli.options import Commands, add_settings, config_of, parameters_of
from edge_client.apps.cli.values import file_name, path


def add_calibrate(commands: Commands) -> None:
    """Add the command."""
    what = "make a gate for this pair of models, with a running cloud"
    calibrate = commands.add_parser("calibrate", help=what, description=f"{what}; needs the extra `calibrate`")
    names_files(
        calibrate.add_argument(
            "--prompts",
            type=file_name,
            metavar="IN.jsonl",
            required=True,
            help="as for `generate`; - is standard input",
        )
    )
    names_files(calibrate.add_argument("--out", type=path, metavar="GATE.onnx", required=True, help="for gate.file"))
    add_settings(calibrate)
    calibrate.add_argument("--temperature", type=float, help="0 is greedy")
    calibrate.add_argument("--seed", type=int, help="of the noise; 0 unless configured otherwise")
    calibrate.add_argument("--max-new-tokens", type=int, help="of each text")
    calibrate.set_defaults(run=_run, closing_audit=False)


def _run(console: Console, arguments: argparse.Namespace) -> int:
    from edge_client.apps.calibration.calibrate import calibrate  # it loads what generating does not need

    config = config_of(arguments)
    parameters = parameters_of(arguments, config, ("temperature", "seed", "max_new_tokens"))
    pull_if_missing(console, config, config.mode)
    calibrate(config, arguments.prompts, arguments.out, parameters, console.line)
    return EXIT_OK
