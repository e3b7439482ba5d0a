"""`chaperone generate`: one text, or a batch of them."""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import aclosing, closing
from typing import Any

from chaperone_common.clock import MonotonicClock
from chaperone_common.command.completion import names_files
from chaperone_common.command.console import Console
from chaperone_common.command.program import EXIT_ERROR, EXIT_OK
from chaperone_common.errors import GenerationTimeout, InvalidRequest
from chaperone_common.session import CloudShareReached, Committed, Failed, Finished, Unverified
from chaperone_common.stats import GenerationStats
from chaperone_common.suggestion import counted
from chaperone_common.types import FinishReason, Mode
from edge_client.apps.batch.explanation import explainer
from edge_client.apps.batch.lines import PARAMETERS, failure_json, in_commands
from edge_client.apps.batch.prompt_file import STANDARD, PromptFile, read_prompt
from edge_client.apps.batch.results import open_results
from edge_client.apps.batch.run import Batch, Tally
from edge_client.apps.cli.models import pull_if_missing
from edge_client.apps.cli.options import (
    Commands,
    add_settings,
    as_flags,
    check_characters,
    config_of,
    instead_of_flag,
    parameters_of,
)
from edge_client.apps.cli.terminal import Progress, colour_of, legend
from edge_client.apps.cli.values import concurrency, file_name, seconds, tools, width
from edge_client.client import EdgeClient
from edge_client.config import EdgeConfig
from edge_client.events import Planned
from edge_client.generation import Collector, Generation, cloud_share_warning, unverified_warning
from edge_client.parameters import check_promised, parse_mode

BATCHES = """
batches:
  IN.jsonl has one JSON object per line: `id`, `prompt` or `messages`, and the parameters of that line, named as the
  flags with `_` in place of `-`. OUT.jsonl gets one line for each: the `id` and the result, or an `error` and the final
  tokens. `-` is standard input or output.

  Results are added as they finish. After an interruption, run the same command again. It keeps finished lines of
  OUT.jsonl, runs new lines and lines with an `error`, and at the end puts all results in the order of the input. It
  recognises a finished line by its `id` and prompt. For other parameters name another file, or give --overwrite.
"""


def add_generate(commands: Commands, exit_codes: str) -> None:
    """Add the command; `exit_codes` is a paragraph for its help."""
    generate = commands.add_parser(
        "generate",
        help="generate one text, or a batch",
        instead=instead_of_flag,
        text="prompt",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{BATCHES}\n{exit_codes}",
    )
    generate.add_argument("prompt", nargs="?", help="one user message; read from standard input if absent")
    add_settings(generate)
    generate.add_argument(
        "--mode", choices=[str(mode) for mode in Mode], help="see the README; exact unless configured"
    )
    generate.add_argument("--catch", type=float, help="gated: least share of the large model's corrections to catch")
    generate.add_argument(
        "--max-deviation", type=float, help="gated: largest share of tokens that differ from the large model's"
    )
    generate.add_argument(
        "--max-cloud-share", type=float, help="gated: largest share of tokens that the large model may write; 1 is any"
    )
    generate.add_argument("--temperature", type=float, help="0 is greedy")
    generate.add_argument("--top-p", type=float, help="keep the likeliest tokens whose probabilities add up to this")
    generate.add_argument("--top-k", type=int, help="keep this number of the likeliest tokens; 0 keeps all")
    generate.add_argument("--min-p", type=float, help="keep tokens with at least this share of the top probability")
    generate.add_argument("--seed", type=int, help="random seed; by default a new one if temperature is above 0")
    generate.add_argument("--max-new-tokens", type=int, help="256 by default")
    generate.add_argument("--stop", action="append", metavar="TEXT", help="stop before this text; may be repeated")
    generate.add_argument(
        "--logprobs",
        type=int,
        metavar="K",
        dest="top_logprobs",
        help="report the log-probability of each token, and of the K likeliest ones, 0 to 20; needs --json or --out",
    )
    generate.add_argument(
        "--num-beams", type=int, metavar="K", help="write K texts at once and return the best; exact and cloud only"
    )
    generate.add_argument(
        "--num-return-sequences", type=int, metavar="N", help="return the best N of them; needs --json or --out"
    )
    generate.add_argument(
        "--beam-width", type=width, metavar="W", help="texts that the device drafts at once; dynamic by default"
    )
    generate.add_argument(
        "--beam-threshold", type=float, metavar="T", help="let the number of texts fall where drafts would not stand"
    )
    generate.add_argument(
        "--length-penalty", type=float, metavar="P", help="exponent of the length in a score; 1 by default"
    )
    generate.add_argument(
        "--early-stopping", action="store_true", default=None, help="end as soon as K texts are whole"
    )
    generate.add_argument(
        "--one-cache", action="store_true", default=None, help="go on from the best text alone after each round: faster"
    )
    generate.add_argument("--raw", action="store_true", default=None, help="read the prompt without a chat template")
    generate.add_argument(
        "--parse-special", action="store_true", default=None, help="read text such as <|im_end|> in messages as a token"
    )
    names_files(
        generate.add_argument(
            "--tools", type=tools, metavar="FILE.json", help="a list of JSON schemas for the template"
        )
    )
    generate.add_argument("--timeout", type=seconds, metavar="SECONDS", help="largest time for each text")
    names_files(
        generate.add_argument("--prompts", type=file_name, metavar="IN.jsonl", help="prompts of a batch; see below")
    )
    names_files(generate.add_argument("--out", type=file_name, metavar="OUT.jsonl", help="results of the batch"))
    generate.add_argument("--overwrite", action="store_true", help="discard the results in OUT.jsonl")
    generate.add_argument("--concurrency", type=concurrency, metavar="N", help="lines that run at a time; 1 by default")
    generate.add_argument("--json", action="store_true", help="print the result with its statistics as JSON")
    generate.add_argument("--closing-audit", action="store_true", help="wait for the audit of the last tokens")
    generate.add_argument("--explain", action="store_true", help="print each decision of the planner to standard error")
    generate.set_defaults(run=_run, wrong_usage=generate.error, logprobs=None, best_of=None)


def _run(console: Console, arguments: argparse.Namespace) -> int:
    _check_usage(arguments)
    arguments.logprobs = True if arguments.top_logprobs is not None else None
    config = config_of(arguments)
    parameters = parameters_of(arguments, config, PARAMETERS)
    if arguments.prompts is not None:
        return _run_batch(console, arguments, config, parameters)
    console.out.check()
    try:
        check_promised(parameters, parse_mode(parameters.get("mode"), config.mode))
    except InvalidRequest as error:
        raise as_flags(error, parameters) from None
    prompt = arguments.prompt
    if prompt is None:  # read outside the event loop, which would delay Ctrl-C
        _hint(console, "the prompt")
        prompt = read_prompt()
    check_characters("prompt", prompt)
    pull_if_missing(console, config, parse_mode(parameters.get("mode"), config.mode))
    return asyncio.run(_one(console, config, prompt, parameters, arguments))


def _check_usage(arguments: argparse.Namespace) -> None:
    if (arguments.prompts is None) != (arguments.out is None):
        arguments.wrong_usage("--prompts and --out belong together")
    if arguments.prompts is not None and arguments.prompt is not None:
        arguments.wrong_usage("give a prompt or --prompts, not both")
    if arguments.prompts is not None and arguments.json:
        arguments.wrong_usage("--json is for a single prompt; --out is JSON anyway")
    if arguments.top_logprobs is not None and arguments.prompts is None and not arguments.json:
        arguments.wrong_usage("--logprobs is printed as JSON; give --json, or --prompts and --out")
    if arguments.num_return_sequences is not None and arguments.prompts is None and not arguments.json:
        arguments.wrong_usage("--num-return-sequences is printed as JSON; give --json, or --prompts and --out")
    if arguments.prompts is None and (arguments.overwrite or arguments.concurrency is not None):
        arguments.wrong_usage("--overwrite and --concurrency are for batches; give --prompts and --out")


async def _one(
    console: Console, config: EdgeConfig, prompt: str, parameters: dict[str, Any], arguments: argparse.Namespace
) -> int:
    explain = explainer(console.explain)
    async with EdgeClient(config) as client:
        request = client.request(prompt, **parameters)
        collected = Collector(request)
        async with aclosing(client.stream(request, timeout=arguments.timeout, explain=arguments.explain)) as events:
            async for event in events:
                collected.add(in_commands(event, config.cloud.on_loss))
                match event:
                    case Unverified(error=error):
                        console.warn(unverified_warning(error))
                    case CloudShareReached() if event is collected.cloud_share_reached:  # once is enough
                        console.warn(cloud_share_warning(event))
                    case Planned(decision=decision):
                        explain(decision)
                    case Committed(text=text, origin=origin) if not arguments.json:
                        console.text(text, colour_of(origin))
                    case Finished(text=text) if not arguments.json:
                        console.text(text)
                    case _:
                        pass
        if arguments.json:
            console.result(_json_of(collected))
        elif collected.token_ids:
            console.text("\n")
    try:
        result = collected.result()
    except GenerationTimeout as error:
        raise GenerationTimeout(f"--{error.problem}", remedy="give it more time") from None
    if not arguments.json:
        _summarise(console, collected, result)
    return EXIT_OK


def _json_of(collected: Collector) -> dict[str, Any]:
    match collected.ending:
        case Failed(error):
            return failure_json(collected, error)
        case _:
            return collected.result().to_json()


def _run_batch(console: Console, arguments: argparse.Namespace, config: EdgeConfig, parameters: dict[str, Any]) -> int:
    """Check the files, then run. They are opened here, since the event loop would delay Ctrl-C."""
    if arguments.prompts == STANDARD:
        _hint(console, "a batch")
    with PromptFile(arguments.prompts) as prompts:
        pull_if_missing(console, config, parse_mode(parameters.get("mode"), config.mode))
        client = EdgeClient(config)
        total = prompts.count() if console.err.is_smart else None
        with closing(open_results(arguments.out, console, prompts.status, overwrite=arguments.overwrite)) as results:
            progress = Progress(console, MonotonicClock(), total)
            batch = Batch(
                client,
                parameters,
                results,
                console.complain,
                console.warn,
                progress,
                (lambda line_id: explainer(console.explain, id=line_id)) if arguments.explain else None,
                timeout_s=arguments.timeout,
            )
            tally = asyncio.run(_batch(batch, prompts, arguments.concurrency or 1))
        console.progress("")
        console.note(progress.line(tally))
    return EXIT_ERROR if tally.failed else EXIT_OK


async def _batch(batch: Batch, prompts: PromptFile, concurrency: int) -> Tally:
    async with batch.client, aclosing(prompts.lines()) as lines:
        return await batch.run(lines, concurrency=concurrency)


def _hint(console: Console, what: str) -> None:
    if sys.stdin is not None and sys.stdin.isatty():
        console.complain(f"reading {what} from standard input; end it with Ctrl-D")


def summary(stats: GenerationStats, cut: str = "") -> list[str]:
    """Return lines about a finished text, for a terminal; `cut` says why it has no end of its own."""
    rate = stats.completion_tokens / stats.total_ms * 1e3 if stats.total_ms else 0.0
    lines = [
        f"[{counted(stats.completion_tokens, 'token')}, {rate:.1f} tokens/s, "
        f"{counted(stats.round_trips, 'round trip')} waited for, {stats.hidden_round_trips} hidden, "
        f"{counted(stats.overridden_tokens, 'override')}{f'; {cut}' if cut else ''}]"
    ]
    if stats.guard is not None:
        outcome = "the promises hold" if stats.promises_hold else "the promises do not hold"
        lines.append(
            f"[{stats.guard} {stats.max_cloud_share} was reached: the cloud's share is {stats.cloud_share:.2f}, "
            f"{stats.unverified_tokens} tokens are unverified, and {outcome}]"
        )
    return lines


def cut_of(result: Generation, max_new_tokens: int) -> str:
    """Return why a text was cut, "" if it ended by itself."""
    if result.finish_reason is not FinishReason.LENGTH:
        return ""
    reason = "--max-new-tokens" if len(result.token_ids) >= max_new_tokens else "the context is full"
    return f"cut at {counted(len(result.token_ids), 'token')} ({reason})"


def _summarise(console: Console, collected: Collector, result: Generation) -> None:
    for line in summary(result.stats, cut_of(result, collected.request.params.max_new_tokens)):
        console.note(line)
    if console.out.is_coloured and console.err.is_coloured:
        console.note(f"colours: {legend(collected.origins)}")
