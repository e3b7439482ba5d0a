"""`chaperone`: generate text on this device, supervised by the cloud; or emulate the link between them.

Exit codes: 0 done; 1 the generation failed, or a line of a batch did; 2 wrong usage, configuration or parameters;
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, aclosing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.errors import ChaperoneError, InvalidRequest
from common.session import Committed, Failed
from common.stats import GenerationStats
from common.types import Mode
from edge_client.batch import PARAMETERS, failure_json, read_lines, run_batch
from edge_client.client import EdgeClient
from edge_client.config import EdgeConfig
from edge_client.explanation import Explainer
from edge_client.generation import Collector
from edge_client.terminal import colours_wanted, painted

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        exit_code: int = arguments.run(arguments)
        return exit_code
    except InvalidRequest as error:
        return _complain(error, EXIT_USAGE)
    except ChaperoneError as error:
        return _complain(error, EXIT_ERROR)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; let the exit be quiet
        return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaperone", description=__doc__.partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('chaperone-llm')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    generate = commands.add_parser(
        "generate", help="write a text", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=__doc__
    )
    generate.add_argument("prompt", nargs="?", help="one user message; read from standard input if absent")
    generate.add_argument("--config", type=Path, help="YAML file; flags override it")
    generate.add_argument("--cloud", metavar="HOST:PORT", help="address of chaperone-cloud")
    generate.add_argument("--pair", metavar="NAME", help="model pair: tiny, default, or another that was pulled")
    generate.add_argument("--mode", choices=tuple(Mode), help="exact unless configured otherwise; see the README")
    generate.add_argument("--catch", type=float, help="gated: share of the large model's corrections to be caught")
    generate.add_argument(
        "--max-deviation", type=float, help="gated: share of tokens that may not be the large model's"
    )
    generate.add_argument("--temperature", type=float, help="0 is greedy")
    generate.add_argument("--top-p", type=float, help="keep the likeliest tokens of this probability together")
    generate.add_argument("--top-k", type=int, help="keep so many tokens; 0 keeps all")
    generate.add_argument("--min-p", type=float, help="keep tokens of this share of the likeliest's probability")
    generate.add_argument("--seed", type=int, help="of the noise; 0 by default")
    generate.add_argument("--max-new-tokens", type=int, help="256 by default")
    generate.add_argument("--stop", action="append", metavar="TEXT", help="stop before this text; may be repeated")
    generate.add_argument("--raw", action="store_true", default=None, help="read the prompt without a chat template")
    generate.add_argument("--prompts", type=Path, metavar="IN.jsonl", help="one object a line: id, prompt or messages")
    generate.add_argument("--out", type=Path, metavar="OUT.jsonl", help="results, one object a line")
    generate.add_argument("--json", action="store_true", help="print the result with its statistics as JSON")
    generate.add_argument("--closing-audit", action="store_true", help="wait for the audit of the last tokens")
    generate.add_argument("--explain", action="store_true", help="tell each decision of the planner on standard error")
    generate.set_defaults(run=_run_generate, wrong_usage=generate.error)
    _add_calibrate(commands)
    _add_link(commands)
    return parser


def _add_calibrate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = "make a gate for this pair of models, with a running cloud"
    calibrate = commands.add_parser("calibrate", help=what, description=f"{what}; needs the extra `calibrate`")
    calibrate.add_argument("--prompts", type=Path, metavar="IN.jsonl", required=True, help="as for `generate`")
    calibrate.add_argument("--out", type=Path, metavar="GATE.onnx", required=True, help="for gate.file")
    calibrate.add_argument("--config", type=Path, help="YAML file; flags override it")
    calibrate.add_argument("--cloud", metavar="HOST:PORT", help="address of chaperone-cloud")
    calibrate.add_argument("--pair", metavar="NAME", help="model pair")
    calibrate.add_argument("--temperature", type=float, help="0 is greedy")
    calibrate.add_argument("--seed", type=int, help="of the noise")
    calibrate.add_argument("--max-new-tokens", type=int, help="of each text")
    calibrate.set_defaults(run=_run_calibrate, closing_audit=False)


def _add_link(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    link = commands.add_parser("link", help="emulate a network link on this machine")
    link_commands = link.add_subparsers(required=True, metavar="COMMAND")
    run = link_commands.add_parser("run", help="carry connections across an emulated link, until Ctrl-C or SIGTERM")
    kind = run.add_mutually_exclusive_group(required=True)
    kind.add_argument("--profile", metavar="NAME|PATH", help="see `chaperone link profiles`, or a YAML file")
    kind.add_argument("--rtt-ms", type=float, help="a plain link of this round trip")
    run.add_argument(
        "--listen", metavar="HOST:PORT", default="127.0.0.1:0", help="port 0, as by default, takes a free one"
    )
    run.add_argument("--to", metavar="HOST:PORT", required=True, help="the server, on this machine too")
    run.add_argument("--seed", type=int, default=0, help="of jitter, loss, outages and resets")
    run.set_defaults(run=_run_link)
    profiles = link_commands.add_parser("profiles", help="list the profiles that come along")
    profiles.set_defaults(run=_list_profiles)


def _run_calibrate(arguments: argparse.Namespace) -> int:
    from edge_client.calibrate import calibrate

    named = ("temperature", "seed", "max_new_tokens")
    parameters = {name: getattr(arguments, name) for name in named if getattr(arguments, name) is not None}
    calibrate(_config(arguments), arguments.prompts, arguments.out, parameters, print)
    return EXIT_OK


def _run_link(arguments: argparse.Namespace) -> int:
    from link_emulator.command import chosen_profile, run_link

    profile = chosen_profile(arguments.profile, arguments.rtt_ms)
    run_link(profile, listen=arguments.listen, to=arguments.to, seed=arguments.seed)
    return EXIT_OK


def _list_profiles(arguments: argparse.Namespace) -> int:
    from link_emulator.command import list_profiles

    list_profiles()
    return EXIT_OK


def _run_generate(arguments: argparse.Namespace) -> int:
    if (arguments.prompts is None) != (arguments.out is None):
        arguments.wrong_usage("--prompts and --out belong together")
    if arguments.prompts is not None and arguments.prompt is not None:
        arguments.wrong_usage("give a prompt or --prompts, not both")
    if arguments.prompts is not None and arguments.json:
        arguments.wrong_usage("--json is for a single prompt; --out is JSON anyway")
    if arguments.prompts is None and arguments.prompt is None:
        arguments.prompt = _standard_input()  # not inside the event loop, which would not hear Ctrl-C meanwhile
    return asyncio.run(_generate(arguments))


async def _generate(arguments: argparse.Namespace) -> int:
    parameters = {name: getattr(arguments, name) for name in PARAMETERS if getattr(arguments, name) is not None}
    explainer = Explainer() if arguments.explain else None
    async with EdgeClient(_config(arguments), explain=explainer) as client:
        if arguments.prompts is not None:
            return await _batch(client, arguments, parameters, explainer)
        return await _one(client, arguments.prompt, parameters, as_json=arguments.json)


async def _one(client: EdgeClient, prompt: str, parameters: dict[str, Any], *, as_json: bool) -> int:
    request = client.request(prompt, **parameters)
    collected = Collector(request)
    coloured = colours_wanted(sys.stdout)
    async with aclosing(client.stream(request)) as events:
        async for event in events:
            collected.add(event)
            text = getattr(event, "text", "")
            if text and not as_json:
                origin = event.origin if isinstance(event, Committed) else None
                print(painted(text, origin) if coloured and origin else text, end="", flush=True)
    if as_json:
        print(json.dumps(_json_of(collected), ensure_ascii=False))
    elif collected.token_ids:
        print()
    result = collected.result()  # raises what went wrong
    if not as_json and sys.stderr.isatty():
        print(_summary(result.stats), file=sys.stderr)
    return EXIT_OK


def _json_of(collected: Collector) -> dict[str, Any]:
    match collected.ending:
        case Failed(error):
            return failure_json(collected, error)
        case _:
            return collected.result().to_json()


async def _batch(
    client: EdgeClient, arguments: argparse.Namespace, parameters: dict[str, Any], explainer: Explainer | None
) -> int:
    failed = 0
    with ExitStack() as files:
        try:
            source = files.enter_context(arguments.prompts.open("rb"))
        except OSError as error:
            raise InvalidRequest(f"--prompts: {arguments.prompts}: {error.strerror}") from None
        if arguments.out.exists() and arguments.out.samefile(arguments.prompts):
            raise InvalidRequest(f"--out: {arguments.out} is the file that --prompts reads; name another one")
        try:
            target = files.enter_context(arguments.out.open("w", encoding="utf-8"))
        except OSError as error:
            raise InvalidRequest(f"--out: {arguments.out}: {error.strerror}") from None
        lines = read_lines(source)
        async for result in run_batch(client, explainer.following(lines) if explainer else lines, parameters):
            target.write(json.dumps(result, ensure_ascii=False) + "\n")
            target.flush()
            if "error" in result:
                failed += 1
                print(f"chaperone: {result['error']['message']}", file=sys.stderr)
    return EXIT_ERROR if failed else EXIT_OK


def _config(arguments: argparse.Namespace) -> EdgeConfig:
    config = EdgeConfig.load(arguments.config) if arguments.config else EdgeConfig()
    updates: dict[str, Any] = {}
    if arguments.pair:
        updates["pair"] = arguments.pair
    if arguments.closing_audit:
        updates["closing_audit"] = True
    if arguments.cloud:
        updates["cloud"] = config.cloud.model_copy(update={"address": arguments.cloud})
    return config.model_copy(update=updates)


def _standard_input() -> str:
    if sys.stdin.isatty():
        print("chaperone: reading the prompt from standard input; end it with Ctrl-D", file=sys.stderr)
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"prompt: byte {error.start} of standard input is not UTF-8") from None


def _summary(stats: GenerationStats) -> str:
    rate = stats.completion_tokens / stats.total_ms * 1e3 if stats.total_ms else 0.0
    return (
        f"[{stats.completion_tokens} tokens, {rate:.1f} tokens/s, {stats.round_trips} round trips waited for, "
        f"{stats.hidden_round_trips} hidden, {stats.overridden_tokens} overrides]"
    )


def _complain(error: ChaperoneError, code: int) -> int:
    print(f"chaperone: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
