"""A study of drafters and of encodings: `python -m benchmarks conditioning --pairs default,NAME,... --out F.json`.

The pairs share their large model, and differ in the adapter of the device's: none, trained on answers, with a
projector, or both. The first one is compared with all others. The large model answers the prompts, greedily and drawn
at temperature 0.8. Each small model reads the answers, quantised as it is on a device, and counts the tokens that it
would have chosen itself. One that reads encodings does so with the prompt's own, and with controls in its place: none,
zeros, the mean of all rows, and those of another prompt.

With `--scored N`, modes `edge` and `conditioned` also write N answers of each suite that has right answers.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.conditioning.encodings import CONTROLS, Controls, Made, encode_all
from benchmarks.conditioning.reading import agreement
from benchmarks.conditioning.scores import score
from benchmarks.conditioning.summary import gain, summarise
from benchmarks.conditioning.texts import SUITES, Answered, answers, asked
from benchmarks.kit.digests import digest_of, digest_of_source
from benchmarks.kit.processes import cloud_server
from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import rounded
from benchmarks.kit.work_file import WorkFile
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.errors import ConfigError
from edge_client.model.onnx_model import OnnxModel

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Drafter:
    """A pair of the study."""

    pair: str
    edge: ModelManifest
    cloud: ModelManifest

    @property
    def variants(self) -> tuple[str, ...]:
        """The ways in which its small model reads, by the names of controls."""
        return CONTROLS if self.edge.projector is not None else ("none",)

    def name(self, control: str) -> str:
        """Return the name of a variant."""
        return self.pair if self.edge.projector is None else f"{self.pair}, encoding: {control}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", default="default", help="separated by commas; the first is compared with the others")
    parser.add_argument("--suites", default=",".join(SUITES), help="separated by commas")
    parser.add_argument("--tasks", type=int, help="prompts of each suite, spread evenly; default: all")
    parser.add_argument("--tokens", type=int, default=200, help="of an answer, at most")
    parser.add_argument("--scored", type=int, default=0, help="answers of each suite to write and score in each mode")
    parser.add_argument("--scored-tokens", type=int, default=400, help="of such an answer, at most")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2, help="of the small model")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "int8"),
        default="int8",
        help="of the large model; bfloat16 is the fastest for many answers on processors that compute in it",
    )
    parser.add_argument("--at-once", type=int, default=24, help="answers that the large model writes at once")
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".cache" / "benchmarks", help="the folder of unfinished runs"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write, encode, read and count; raises ConfigError if an option is wrong."""
    measured = provenance()
    suites = args.suites.split(",")
    if unknown := [suite for suite in suites if suite not in SUITES]:
        raise ConfigError(f"--suites: {', '.join(unknown)}: unknown; there are {', '.join(SUITES)}")
    drafters = _drafters(args.pairs.split(","))
    prompts = asked(suites, args.tasks)
    identity = {
        "cloud": drafters[0].cloud.digest,
        "prompts": [[each.id, each.task.message] for each in prompts],
        "asked": [args.tokens, args.scored_tokens, args.seed, args.dtype],
        "source": digest_of_source(ROOT, __name__),
        "versions": measured["versions"],
    }
    work = WorkFile(args.work / f"conditioning-{digest_of(identity)}.jsonl")
    made: dict[str, dict[str, Made]] = {}
    scores: dict[str, Any] = {}
    dtype = ("--dtype", args.dtype)
    with cloud_server(drafters[0].pair, arguments=dtype) as service:
        texts = answers(
            drafters[0].pair,
            prompts,
            tokens=args.tokens,
            seed=args.seed,
            at_once=args.at_once,
            service=service,
            work=work,
        )
    by_id = {text.id: text.prompt for text in texts}
    for drafter in drafters:
        if drafter.edge.projector is not None:
            with cloud_server(drafter.pair, arguments=(*dtype, "--no-kv-sharing")) as service:
                made[drafter.pair] = encode_all(service.address, drafter.edge, by_id)
    scored = asked(suites, args.scored) if args.scored else []
    for drafter in drafters if scored else ():
        with cloud_server(drafter.pair, arguments=dtype) as service:
            scores[drafter.pair] = score(
                drafter.edge, scored, tokens=args.scored_tokens, threads=args.threads, service=service, work=work
            )
    agreed = {
        drafter.name(control): found
        for drafter in drafters
        for control, found in _read_all(drafter, texts, made.get(drafter.pair, {}), args.threads, work)
    }
    summary = {
        "agreement": summarise(texts, agreed),
        "encodings": {
            drafter.pair: _costs(made[drafter.pair]) | {"conditioning_gain": _gain(drafter, agreed)}
            for drafter in drafters
            if drafter.pair in made
        },
        "scores": scores,
    }
    settings: dict[str, Any] = {
        name: getattr(args, name) for name in ("tasks", "tokens", "scored", "scored_tokens", "seed", "threads", "dtype")
    }
    settings |= {"pairs": {drafter.pair: _described(drafter) for drafter in drafters}, "suites": suites}
    return {"benchmark": "conditioning", **measured, "settings": settings, "summary": summary}


def _drafters(pairs: Sequence[str]) -> list[Drafter]:
    """Return the pairs; raises ConfigError if one is named twice, or has another large model."""
    if len(set(pairs)) < len(pairs):
        raise ConfigError(f"--pairs: {','.join(pairs)!r} names one twice; give each once")
    found = [
        Drafter(
            pair,
            load_manifest(pair_folder(pair, "edge"), role="edge"),
            load_manifest(pair_folder(pair, "cloud"), role="cloud"),
        )
        for pair in pairs
    ]
    for drafter in found:
        if drafter.cloud.digest != found[0].cloud.digest:
            raise ConfigError(
                f"--pairs: {drafter.pair} has another large model than {found[0].pair}; give pairs that share it"
            )
    return found


def _read_all(
    drafter: Drafter, texts: Sequence[Answered], made: Mapping[str, Made], threads: int, work: WorkFile
) -> Iterator[tuple[str, dict[tuple[str, str], NDArray[np.bool_]]]]:
    """Yield the agreement of each variant of a drafter, by prompt and way; what is in `work` is not read again."""
    model = OnnxModel.load(
        pair_folder(drafter.pair, "edge"),
        threads=threads,
        allow_spinning=False,
        vocabulary_size=drafter.edge.vocabulary_size,
        context_tokens=drafter.edge.context_tokens,
    )
    controls = Controls({name: each.encoding for name, each in made.items()})
    try:
        for control in drafter.variants:
            print(drafter.name(control), flush=True)
            found = {}
            for text in texts:
                if not text.answer:
                    continue
                reads = f"{text.way}, {drafter.edge.digest}, {drafter.edge.projector}, {control}"
                if work.missing([(text.id, reads, 0)]):
                    agreed = agreement(model, text, controls.encoding(control, text.id))
                    work.add({"id": text.id, "strategy": reads, "repeat": 0, "agreed": agreed.astype(int).tolist()})
                found[text.id, text.way] = np.array(work.rows[text.id, reads, 0]["agreed"], np.bool_)
            yield control, found
    finally:
        model.close()


def _costs(made: Mapping[str, Made]) -> dict[str, Any]:
    """Return the bytes and the time of encodings, for prompts of all lengths."""
    tokens = [len(each.encoding) for each in made.values()]
    return {
        "prompt_tokens": rounded(statistics.median(tokens), 1),
        "bytes_per_token": rounded(sum(each.bytes_down for each in made.values()) / sum(tokens), 1),
        "seconds": rounded(statistics.median(each.seconds for each in made.values()), 3),
    }


def _gain(drafter: Drafter, agreed: Mapping[str, Mapping[tuple[str, str], NDArray[np.bool_]]]) -> float:
    return round(gain(agreed[drafter.name("own")], agreed[drafter.name("none")]), 4)


def _described(drafter: Drafter) -> dict[str, Any]:
    projector = drafter.edge.projector
    return {
        "edge": drafter.edge.digest,
        "adapter": drafter.edge.recipe.get("adapter"),
        "projector": None if projector is None else projector.model_dump(mode="json"),
    }
