"""`chaperone`: generate text on this device, supervised by the cloud.

Exit codes: 0 done; 1 the generation failed, or a line of a batch did, or results could not be written; 2 wrong usage,
configuration or parameters; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import aclosing, closing
from typing import Any

from chaperone_common.clock import MonotonicClock
from chaperone_common.command.console import Console
from chaperone_common.command.program import EXIT_ERROR, EXIT_OK, run_program
from chaperone_common.errors import InvalidRequest
from chaperone_common.session import Committed, Failed, Finished, Unverified
from chaperone_common.stats import GenerationStats
from edge_client.apps.batch.lines import PARAMETERS, failure_json
from edge_client.apps.batch.prompt_file import STANDARD, PromptFile, read_prompt
from edge_client.apps.batch.results import open_results
from edge_client.apps.batch.run import Batch, Tally
from edge_client.apps.cli.flags import as_flags, parser
from edge_client.apps.cli.terminal import Progress, colour_of, legend
from edge_client.apps.explanation import explainer
from edge_client.client import EdgeClient
from edge_client.config import EdgeConfig
from edge_client.generation import Collector, unverified_warning
from edge_client.model.onnx_model import check_providers
from edge_client.parameters import PROMISES, check_promised, parse_mode, parse_params, parse_promises


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    console = Console.standard("chaperone")
    return run_program(console, lambda: _run(argv, console))


def _run(argv: Sequence[str] | None, console: Console) -> int:
    arguments = _parser().parse_args(argv)
    exit_code: int = arguments.run(console, arguments)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    description, _, exit_codes = (__doc__ or "").partition("\n")
    commands = {
        "generate": _run_generate,
        "calibrate": _run_calibrate,
    }
    return parser(description, exit_codes, commands)


def _run_calibrate(console: Console, arguments: argparse.Namespace) -> int:
    from edge_client.apps.calibrate import calibrate

    config = _config(arguments)
    parameters = _parameters(arguments, config, ("temperature", "seed", "max_new_tokens"))
    calibrate(config, arguments.prompts, arguments.out, parameters, console.line)
    return EXIT_OK


def _run_generate(console: Console, arguments: argparse.Namespace) -> int:
    _check_usage(arguments)
    config = _config(arguments)
    parameters = _parameters(arguments, config, PARAMETERS)
    if arguments.prompts is not None:
        return _run_batch(console, arguments, config, parameters)
    console.out.check()
    try:
        check_promised(parameters, parse_mode(parameters.get("mode"), config.mode))
    except InvalidRequest as error:
        raise as_flags(error, parameters) from None
    prompt = arguments.prompt
    if prompt is None:  # read outside the event loop, which would not hear Ctrl-C meanwhile
        _hint(console, "the prompt")
        prompt = read_prompt()
    _check_characters("prompt", prompt)
    return asyncio.run(_one(console, config, prompt, parameters, arguments))


def _check_usage(arguments: argparse.Namespace) -> None:
    if (arguments.prompts is None) != (arguments.out is None):
        arguments.wrong_usage("--prompts and --out belong together")
    if arguments.prompts is not None and arguments.prompt is not None:
        arguments.wrong_usage("give a prompt or --prompts, not both")
    if arguments.prompts is not None and arguments.json:
        arguments.wrong_usage("--json is for a single prompt; --out is JSON anyway")
    if arguments.prompts is None and (arguments.overwrite or arguments.concurrency is not None):
        arguments.wrong_usage("--overwrite and --concurrency are for batches; give --prompts and --out")


async def _one(
    console: Console, config: EdgeConfig, prompt: str, parameters: dict[str, Any], arguments: argparse.Namespace
) -> int:
    explain = explainer(console.explain) if arguments.explain else None
    async with EdgeClient(config, explain=explain) as client:
        request = client.request(prompt, **parameters)
        collected = Collector(request)
        async with aclosing(client.stream(request, timeout=arguments.timeout)) as events:
            async for event in events:
                collected.add(event)
                match event:
                    case Unverified(error=error):
                        console.warn(unverified_warning(error))
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
    result = collected.result()  # raises what went wrong
    if not arguments.json:
        _summarise(console, collected, result.stats)
    return EXIT_OK


def _json_of(collected: Collector) -> dict[str, Any]:
    match collected.ending:
        case Failed(error):
            return failure_json(collected, error)
        case _:
            return collected.result().to_json()


def _run_batch(console: Console, arguments: argparse.Namespace, config: EdgeConfig, parameters: dict[str, Any]) -> int:
    """Check all that can be checked, then work. Files are opened here, since the event loop would not hear Ctrl-C."""
    if arguments.prompts == STANDARD:
        _hint(console, "a batch")
    with PromptFile(arguments.prompts) as prompts:
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
        console.note(progress.told(tally))
    return EXIT_ERROR if tally.failed else EXIT_OK


async def _batch(batch: Batch, prompts: PromptFile, concurrency: int) -> Tally:
    async with batch.client, aclosing(prompts.lines()) as lines:
        return await batch.run(lines, concurrency=concurrency)


def _config(arguments: argparse.Namespace) -> EdgeConfig:
    config = EdgeConfig.load(arguments.config) if arguments.config is not None else EdgeConfig()
    updates: dict[str, Any] = {}
    if arguments.pair is not None:
        updates["pair"] = arguments.pair
    if arguments.closing_audit:
        updates["closing_audit"] = True
    if arguments.cloud is not None:
        updates["cloud"] = config.cloud.model_copy(update={"address": arguments.cloud})
    check_providers(config.device.providers)
    return config.model_copy(update=updates)


def _parameters(arguments: argparse.Namespace, config: EdgeConfig, names: Sequence[str]) -> dict[str, Any]:
    """The parameters that flags gave, checked before any work is done for them."""
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    try:
        for text in given.get("stop", ()):
            _check_characters("stop", text)
        parse_params(given, config.generation)
        parse_promises({name: given.get(name) for name in PROMISES}, config.gate)
    except InvalidRequest as error:
        raise as_flags(error, given) from None
    return given


def _check_characters(name: str, text: str) -> None:
    """Refuse bytes of an argument that are not UTF-8; Python keeps them as halves of characters."""
    for position, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise InvalidRequest(f"{name}: character {position} is a lone surrogate, from bytes that are not UTF-8")


def _hint(console: Console, what: str) -> None:
    if sys.stdin is not None and sys.stdin.isatty():
        console.complain(f"reading {what} from standard input; end it with Ctrl-D")


def _summarise(console: Console, collected: Collector, stats: GenerationStats) -> None:
    rate = stats.completion_tokens / stats.total_ms * 1e3 if stats.total_ms else 0.0
    console.note(
        f"[{stats.completion_tokens} tokens, {rate:.1f} tokens/s, {stats.round_trips} round trips waited for, "
        f"{stats.hidden_round_trips} hidden, {stats.overridden_tokens} overrides]"
    )
    if console.out.is_coloured and console.err.is_coloured:
        console.note(f"colours: {legend(collected.origins)}")


if __name__ == "__main__":
    sys.exit(main())
