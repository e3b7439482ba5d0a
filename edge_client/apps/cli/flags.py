"""The flags of `chaperone`, and what is wrong with their values."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chaperone_common.address import check_address
from chaperone_common.artefacts.folders import PAIR_NAME
from chaperone_common.command.console import Console
from chaperone_common.command.parser import CommandParser, checked, refuse
from chaperone_common.errors import InvalidRequest
from chaperone_common.types import Mode
from edge_client.cancellation import MAX_TIMEOUT_S

Run = Callable[[Console, argparse.Namespace], int]
MAX_CONCURRENCY = 256

BATCHES = """
batches:
  IN.jsonl has one JSON object a line: `id`, `prompt` or `messages`, and the parameters of that line, named as the flags
  with `_` in place of `-`. OUT.jsonl gets one a line: the `id` and the result, or an `error` with what was final. `-`
  is standard input or output.

  Results are added as they finish. Run a batch again to go on with it: lines that are finished in OUT.jsonl are kept,
  those with an `error` and new ones are done, and at the end all stand in the order of the input. A finished line is
  known by its `id` and its prompt; for other parameters name another file, or give --overwrite.
"""


def parser(description: str, exit_codes: str, runs: Mapping[str, Run]) -> argparse.ArgumentParser:
    """The command line; `runs` has what each command does."""
    top = CommandParser(prog="chaperone", description=description)
    top.add_argument("--version", action="version", version=f"%(prog)s {version('chaperone-llm')}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands, f"{BATCHES}\n{exit_codes}", runs["generate"])
    _add_calibrate(commands, runs["calibrate"])
    _add_link(commands, top)
    return top


Commands = argparse._SubParsersAction  # argparse has no public name for it


def _add_generate(commands: Commands[CommandParser], epilog: str, run: Run) -> None:
    generate = commands.add_parser(
        "generate", help="write a text", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=epilog
    )
    generate.add_argument("prompt", nargs="?", help="one user message; read from standard input if absent")
    _add_settings(generate)
    generate.add_argument(
        "--mode", choices=[str(mode) for mode in Mode], help="exact unless configured otherwise; see the README"
    )
    generate.add_argument("--catch", type=float, help="gated: share of the large model's corrections to be caught")
    generate.add_argument(
        "--max-deviation", type=float, help="gated: share of tokens that may not be the large model's"
    )
    generate.add_argument("--temperature", type=float, help="0 is greedy")
    generate.add_argument("--top-p", type=float, help="keep the likeliest tokens of this probability together")
    generate.add_argument("--top-k", type=int, help="keep this number of the likeliest tokens; 0 keeps all")
    generate.add_argument("--min-p", type=float, help="keep tokens of this share of the likeliest's probability")
    generate.add_argument("--seed", type=int, help="of the noise; a fresh one by default where temperature is above 0")
    generate.add_argument("--max-new-tokens", type=int, help="256 by default")
    generate.add_argument("--stop", action="append", metavar="TEXT", help="stop before this text; may be repeated")
    generate.add_argument("--raw", action="store_true", default=None, help="read the prompt without a chat template")
    generate.add_argument(
        "--parse-special", action="store_true", default=None, help="read control tokens in messages as such"
    )
    generate.add_argument("--tools", type=tools, metavar="FILE.json", help="a list of JSON schemas for the template")
    generate.add_argument("--timeout", type=seconds, metavar="SECONDS", help="that each text may take")
    generate.add_argument("--prompts", type=file_name, metavar="IN.jsonl", help="a batch; see below")
    generate.add_argument("--out", type=file_name, metavar="OUT.jsonl", help="results of the batch")
    generate.add_argument("--overwrite", action="store_true", help="lose the results that OUT.jsonl holds")
    generate.add_argument("--concurrency", type=concurrency, metavar="N", help="lines at once; 1 by default")
    generate.add_argument("--json", action="store_true", help="print the result with its statistics as JSON")
    generate.add_argument("--closing-audit", action="store_true", help="wait for the audit of the last tokens")
    generate.add_argument("--explain", action="store_true", help="tell each decision of the planner on standard error")
    generate.set_defaults(run=run, wrong_usage=generate.error)


def _add_calibrate(commands: Commands[CommandParser], run: Run) -> None:
    what = "make a gate for this pair of models, with a running cloud"
    calibrate = commands.add_parser("calibrate", help=what, description=f"{what}; needs the extra `calibrate`")
    calibrate.add_argument(
        "--prompts", type=file_name, metavar="IN.jsonl", required=True, help="as for `generate`; - is standard input"
    )
    calibrate.add_argument("--out", type=path, metavar="GATE.onnx", required=True, help="for gate.file")
    _add_settings(calibrate)
    calibrate.add_argument("--temperature", type=float, help="0 is greedy")
    calibrate.add_argument("--seed", type=int, help="of the noise; 0 unless configured otherwise")
    calibrate.add_argument("--max-new-tokens", type=int, help="of each text")
    calibrate.set_defaults(run=run, closing_audit=False)


def _add_settings(command: argparse.ArgumentParser) -> None:
    """Whose flags `generate` and `calibrate` share."""
    command.add_argument("--config", type=path, help="YAML file; flags override it")
    command.add_argument("--cloud", type=checked(check_address), metavar="HOST:PORT", help="address of chaperone-cloud")
    command.add_argument(
        "--pair", type=pair, metavar="NAME", help="model pair: tiny, default, or another that was pulled"
    )


def _add_link(commands: Commands[CommandParser], top: CommandParser) -> None:
    """Answer `chaperone link` with the name of the script that replaced it."""
    link = commands.add_parser("link", add_help=False, prefix_chars="\0")  # no argument is a flag to this parser
    link.add_argument("rest", nargs=argparse.REMAINDER)

    def refuse_link(console: Console, arguments: argparse.Namespace) -> int:
        top.error(f"`chaperone link` is now `{shlex.join(['chaperone-link', *arguments.rest])}`")

    link.set_defaults(run=refuse_link)


# --- Values ----------------------------------------------------------------------------------------------------------


def file_name(text: str) -> str:
    """The name of a file, or `-`."""
    if not text:
        refuse(text, "it is empty; give the name of a file")
    return text


def path(text: str) -> Path:
    """The path of a file."""
    return Path(file_name(text))


def pair(text: str) -> str:
    """The name of a model pair."""
    if not re.fullmatch(PAIR_NAME, text):
        refuse(text, "not a name of lower-case letters, digits, '-' and '_', such as tiny or default")
    return text


def tools(text: str) -> list[Any]:
    """The tools that a file of JSON lists."""
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
    """A time above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_TIMEOUT_S:
        refuse(text, "not a number of seconds above 0, up to a year")
    return value


def concurrency(text: str) -> int:
    """How many lines of a batch may be worked on at once."""
    if not (text.isascii() and text.isdecimal() and len(text) < 5 and 1 <= int(text) <= MAX_CONCURRENCY):
        refuse(text, f"not a whole number from 1 to {MAX_CONCURRENCY}")
    return int(text)


def as_flags(error: InvalidRequest, given: Mapping[str, object]) -> InvalidRequest:
    """The same complaint about the flag that a parameter was given by, if it was."""
    name, colon, rest = error.message.partition(":")
    return type(error)(f"--{name.replace('_', '-')}{colon}{rest}") if name in given else error
