"""`chaperone-cloud models add`, `check` and `remove`."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from chaperone_common.artefacts.registry import ADAPTER_NAME, CloudRecipe, Pair, load_registry, own_registry
from chaperone_common.command.completion import names_files
from chaperone_common.command.console import Console
from chaperone_common.command.pair_name import add_pair_name, required_pair
from chaperone_common.command.parser import checked, refuse
from chaperone_common.command.sizes import shown_bytes
from chaperone_common.errors import ConfigError, ModelError
from cloud_supervisor.cli.values import Commands, path, yaml_file
from cloud_supervisor.config import check_pair_name

if TYPE_CHECKING:
    from cloud_supervisor.pairs.inspection import Measuring

_MOST_PROMPTS, _MOST_PROMPT_BYTES = 256, 256 * 1024
_MOST_NEW_TOKENS = 1024
_LONGEST_S = 24 * 3600.0
_LONGEST_MS = 3600e3
_LONGEST_TEXT = 200  # of a licence, and of a token


def add_own_pairs(commands: Commands) -> None:
    """Add the commands."""
    add = commands.add_parser("add", help="register a pair of your own")
    add.add_argument("name", metavar="NAME", type=checked(check_pair_name), help="name of the pair, for --pair")
    source = "a folder that `from_pretrained` takes, or the name of a model on a hub"
    names_files(add.add_argument("--edge", metavar="PATH_OR_HUB", help=f"the device's model: {source}"))
    names_files(add.add_argument("--cloud", metavar="PATH_OR_HUB", help="the cloud's model: a folder or a name, too"))
    add.add_argument(
        "--like",
        metavar="PAIR",
        type=checked(check_pair_name),
        help="in place of --edge and --cloud: the models of another pair, to give them an --adapter",
    )
    add.add_argument("--licence", type=_short, help="licence of the models, for your records (default: not stated)")
    add.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="storage of the cloud's model (default: bfloat16)"
    )
    add.add_argument(
        "--end-of-text",
        action="append",
        default=[],
        metavar="TOKEN",
        type=_short,
        help="a token that ends a text; repeat it for several (default: those that the weights name)",
    )
    add.add_argument(
        "--portable", action="store_true", help="a device model of standard ONNX operators; needs the extra `portable`"
    )
    add.add_argument(
        "--adapter",
        metavar="NAME",
        type=_adapter,
        help="of `python -m training`: a file $CHAPERONE_HOME/adapters/NAME.safetensors",
    )
    add.add_argument("--replace", action="store_true", help="replace another pair of yours that has this name")
    add.set_defaults(run=_add, extras="cloud,build")

    remove = commands.add_parser("remove", help="delete the models of a pair from this machine")
    add_pair_name(remove, checked(check_pair_name), what="name of the pair")
    remove.add_argument("--forget", action="store_true", help="remove a pair of yours from your models.yaml, too")
    remove.set_defaults(run=_remove)

    check = commands.add_parser("check", help="whether two models are a pair, and whether it is worth it")
    names_files(
        check.add_argument(
            "models",
            nargs="+",
            metavar="PAIR",
            help="a pair of the registry; or two sources, the device's and the cloud's",
        )
    )
    names_files(
        check.add_argument(
            "--registry", type=yaml_file, help="a file in place of the packaged models.yaml and of your own"
        )
    )
    check.add_argument("--json", action="store_true", help="write the report as one line of JSON")
    check.add_argument("--skip-agreement", action="store_true", help="load no weights")
    names_files(check.add_argument("--prompts", metavar="FILE", type=path, help="prompts to measure with, one a line"))
    check.add_argument(
        "--max-new-tokens", type=_count, default=32, metavar="N", help="tokens for each prompt (default: %(default)s)"
    )
    check.add_argument(
        "--max-seconds",
        type=_number(_LONGEST_S),
        default=300.0,
        metavar="S",
        help="begin no further prompt after this time (default: %(default)s)",
    )
    check.add_argument("--draft-ms", type=_number(_LONGEST_MS), metavar="MS", help="time of a token on the device")
    check.add_argument("--cloud-ms", type=_number(_LONGEST_MS), metavar="MS", help="time of a token in the cloud")
    check.add_argument("--rtt-ms", type=_number(_LONGEST_MS), metavar="MS", help="round trip of the link")
    check.set_defaults(run=_check, extras="cloud,build")


def _add(console: Console, arguments: argparse.Namespace) -> None:
    from cloud_supervisor.pairs.entry import add

    name, pair = arguments.name, _described(arguments)
    if not add(name, pair, replace=arguments.replace):
        console.line(f"{name}: already there, in {own_registry()}")
        return
    console.line(f"{name}: added to {own_registry()}")
    console.line(f"next: chaperone-cloud models check {name}; chaperone-cloud models pull {name}")


def _described(arguments: argparse.Namespace) -> Pair:
    """Return the pair that the flags describe; raises ConfigError."""
    from cloud_supervisor.pairs.entry import own_pair, with_adapter

    if arguments.like is not None:
        names = ("edge", "cloud", "licence", "dtype", "end_of_text", "portable")
        if given := [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name)]:
            raise ConfigError(f"--like: the pair has all that it needs; leave out {', '.join(given)}, or --like")
        return with_adapter(load_registry().pair(arguments.like), arguments.adapter)
    if arguments.edge is None or arguments.cloud is None:
        raise ConfigError("--edge, --cloud: give both, or --like PAIR for the models of another pair")
    return own_pair(
        arguments.edge,
        arguments.cloud,
        licence=arguments.licence,
        recipe=None if arguments.dtype is None else CloudRecipe(dtype=arguments.dtype),
        portable=arguments.portable,
        adapter=arguments.adapter,
        end_of_text=tuple(arguments.end_of_text),
    )


def _remove(console: Console, arguments: argparse.Namespace) -> None:
    from cloud_supervisor.pairs.removal import remove

    name = required_pair(arguments)
    removed = remove(name, forget=arguments.forget, say=console.line)
    if removed.model_bytes:
        models = (f"the {role} model ({shown_bytes(size)})" for role, size in removed.model_bytes.items())
        console.line(f"{name}: removed {' and '.join(models)}")
    elif not removed.forgotten:
        console.line(f"{name}: removed what a pull had left")
    if removed.forgotten:
        console.line(f"{name}: removed from {own_registry()}")
    elif removed.has_entry:
        console.line(f"{name}: its entry stays in {own_registry()}; --forget removes it, too")
    if removed.downloads:
        files, size = map(str, removed.downloads), sum(file.stat().st_size for file in removed.downloads)
        console.line(
            f"{name}: its downloads stay ({shown_bytes(size)}); delete them to free their room: {' '.join(files)}"
        )


def _check(console: Console, arguments: argparse.Namespace) -> None:
    from cloud_supervisor.pairs.inspection import GivenTimes, inspect

    name, pair = _pair_of(arguments.models, arguments.registry)
    report = inspect(
        name,
        pair,
        measuring=None if arguments.skip_agreement else _measuring(arguments),
        given=GivenTimes(arguments.draft_ms, arguments.cloud_ms, arguments.rtt_ms),
        say=console.note,
    )
    if arguments.json:
        console.result(report.as_json())
    else:
        for line in report.lines():
            console.line(line)
    if report.verdict.answer == "impossible":
        raise ModelError(f"{name or 'these models'}: no pair: {report.verdict.reason}")


def _pair_of(models: list[str], registry: Path | None) -> tuple[str | None, Pair]:
    """Return a pair of the registry with its name, or two sources as a pair; raises ConfigError."""
    from cloud_supervisor.pairs.entry import own_pair

    if len(models) == 1:
        return models[0], load_registry(registry).pair(models[0])
    if len(models) > 2:
        raise ConfigError(f"PAIR: {len(models)} are given; name one pair, or the device's and the cloud's model")
    return None, own_pair(models[0], models[1])


def _measuring(arguments: argparse.Namespace) -> Measuring:
    from cloud_supervisor.pairs.inspection import Measuring

    prompts = _read_prompts(arguments.prompts) if arguments.prompts else ()
    return Measuring(prompts, arguments.max_new_tokens, arguments.max_seconds)


def _read_prompts(file: Path) -> tuple[str, ...]:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_PROMPT_BYTES + 1)
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompts: {file}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"--prompts: {file}: cannot be read: {error.strerror or error}") from None
    prompts = tuple(line for line in map(str.strip, text.splitlines()) if line)
    if not prompts:
        raise ConfigError(f"--prompts: {file}: it holds no prompt; write one on each line")
    if len(prompts) > _MOST_PROMPTS or len(content) > _MOST_PROMPT_BYTES:
        raise ConfigError(
            f"--prompts: {file}: more than {_MOST_PROMPTS} prompts or {_MOST_PROMPT_BYTES} bytes; take fewer"
        )
    return prompts


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= _MOST_NEW_TOKENS:
        refuse(text, f"not a whole number from 1 to {_MOST_NEW_TOKENS}")
    return int(text)


def _number(most: float) -> Callable[[str], float]:
    """Return the `type=` of a positive number up to `most`."""

    def convert(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 < number <= most:
            refuse(text, f"not a number above 0, up to {most:g}")
        return number

    return convert


def _adapter(text: str) -> str:
    if re.fullmatch(ADAPTER_NAME, text) is None:
        refuse(text, "not a name of letters, digits, '.', '_' and '-'")
    return text


def _short(text: str) -> str:
    if not 0 < len(text) <= _LONGEST_TEXT:
        refuse(text[:_LONGEST_TEXT], f"it is empty or longer than {_LONGEST_TEXT} characters")
    return text
