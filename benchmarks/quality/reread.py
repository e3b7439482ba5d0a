"""Let another device's model read recorded texts: `python -m benchmarks reread --pair NAME FILE --to NEW`.

For pairs with the same large model, such as a pair and itself with an adapter. The cloud's texts stay as they were
recorded, and need no large model. FILE is one of `python -m benchmarks record`, whose values for U-HLM and BiLD
`extend` adds again, or of `python -m benchmarks quality --read-along`, of which the cloud's own texts are kept.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.kit.pair_models import differences, models_of
from benchmarks.kit.prompts import Prompt, read_prompts
from benchmarks.kit.provenance import provenance
from benchmarks.quality.exploration.device_texts import DeviceTexts
from benchmarks.quality.exploration.explorer import proposal_after
from benchmarks.quality.exploration.text_tree import ROOT, TextTree, load_trees, save_trees
from benchmarks.simulation.trace import Trace, TraceFile, load_traces, save_traces
from benchmarks.traces.extend import PROMPT_SETS, prompt_of
from benchmarks.traces.record import TracingReader, device_model, sha256_of, traced_device
from chaperone_common.errors import ConfigError
from chaperone_common.stats import GenerationStats
from chaperone_common.types import FinishReason, SamplingParams
from edge_client import EdgeClient, EdgeConfig
from edge_client.generation import Generation
from edge_client.model.onnx_model import OnnxModel

_REPLACED = ("extended", "signals")  # records of the values that are not read again


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="recorded or explored texts: *.jsonl.gz")
    parser.add_argument("--pair", required=True, help="the pair whose device's model reads")
    parser.add_argument("--to", type=Path, required=True, help="the file to write: *.jsonl.gz")
    parser.add_argument("--prompt-sets", type=Path, default=PROMPT_SETS, help="the folder of the recorded prompts")


def run(args: argparse.Namespace) -> dict[str, Any]:
    client = EdgeClient(EdgeConfig(pair=args.pair))
    model = device_model(args.pair, client.manifest, threads=2)
    try:
        reader = _Reader(args.pair, client, model)
        summary = reader.reread(args.file, args.to, args.prompt_sets)
    finally:
        model.close()
        asyncio.run(client.aclose())
    return {"benchmark": "reread", **provenance(), "settings": {"pair": args.pair}, "summary": summary}


class _Reader:
    """The device's model of a pair, reading texts of its cloud's model."""

    def __init__(self, pair: str, client: EdgeClient, model: OnnxModel) -> None:
        self._pair = pair
        self._client = client
        self._model = model

    def reread(self, source: Path, to: Path, prompt_sets: Path) -> dict[str, Any]:
        """Write the file, and return the numbers of texts, tokens and overrides."""
        try:
            header, trees = load_trees(source)
        except ConfigError:
            file = load_traces(source)  # its error names what it expects
            traces = tuple(self._traces(source, file, prompt_sets))
            save_traces(to, TraceFile(self._header(source, file.header), traces))
            return _counts([trace.matches for trace in traces])
        header = self._header(source, header)
        read = {name: self._tree(tree, int(header["max_new_tokens"])) for name, tree in trees.items()}
        save_trees(to, header, read.values())
        return _counts([_matches(tree) for tree in read.values()])

    def _header(self, source: Path, header: Mapping[str, Any]) -> dict[str, Any]:
        """Return the header of the new file. Raises ConfigError for texts of another large model."""
        here = models_of(self._pair)
        if others := differences({"cloud": header["models"].get("cloud", {})}, {"cloud": here["cloud"]}):
            raise ConfigError(
                f"{source}: another large model than that of pair {self._pair!r} here wrote its texts "
                f"({', '.join(others)}); record them again"
            )
        kept = {name: value for name, value in header.items() if name not in _REPLACED}
        pair = {"pair": self._pair} if "pair" in header else {}
        return {**kept, **pair, "models": here, "reread": {**provenance(), "edge": header["models"].get("edge")}}

    # --- Traces ----------------------------------------------------------------------------------------------------

    def _traces(self, source: Path, file: TraceFile, prompt_sets: Path) -> Iterator[Trace]:
        path = prompt_sets / file.header["prompts"]
        if not path.is_file() or sha256_of(path) != file.header["prompts_sha256"]:
            raise ConfigError(f"{path}: it is not the prompt set that {source} was recorded with; give --prompt-sets")
        prompts = {prompt.id: prompt for prompt in read_prompts(path)}
        for trace in file.traces:
            yield asyncio.run(self._trace(source, trace, prompts[trace.id]))

    async def _trace(self, source: Path, trace: Trace, prompt: Prompt) -> Trace:
        token_ids = prompt_of(self._client, source, trace, prompt.text)
        ended = FinishReason.STOP if trace.ended else FinishReason.LENGTH
        written = Generation(token_ids, trace.token_ids, "", (), ended, GenerationStats())
        reader = TracingReader(self._model.new_sequence(), trace.sampling, trace.eos_token_ids, trace.max_new_tokens)
        read = await reader.read(prompt, written)
        return replace(read, device=traced_device(read, self._client))

    # --- Explored texts --------------------------------------------------------------------------------------------

    def _tree(self, tree: TextTree, max_new_tokens: int) -> TextTree:
        """Return a tree with the cloud's own text alone, and this model's proposals along it."""
        read = TextTree(tree.id, tree.prompt)
        nodes, old = [ROOT], ROOT
        ends = self._client.manifest.eos_token_ids
        while len(nodes) <= max_new_tokens and (len(nodes) == 1 or read.tokens[nodes[-1]] not in ends):
            if old not in tree.choices:
                raise ConfigError(f"{tree.id}: the cloud's text has no end; explore it again with --strategies cloud")
            choice = read.choices[nodes[-1]] = tree.choices[old]
            nodes.append(read.child(nodes[-1], choice))
            old = tree.child(old, choice)
        self._model.worker.submit(self._propose, read, nodes[:-1]).result()
        return read

    def _propose(self, tree: TextTree, nodes: list[int]) -> None:
        texts, text = DeviceTexts(self._model), tree.text(nodes[-1])
        for place, (node, logits) in enumerate(zip(nodes, texts.along(tree.id, text, len(nodes)), strict=True)):
            tree.propose(node, proposal_after(logits, SamplingParams(), len(tree.prompt) + place))


def _matches(tree: TextTree) -> list[bool]:
    return [proposal.token_id == tree.choices[node] for node, proposal in tree.proposals.items()]


def _counts(matches: list[Any]) -> dict[str, Any]:
    tokens, agreed = sum(map(len, matches)), sum(map(sum, matches))
    return {"texts": len(matches), "tokens": tokens, "overrides": tokens - agreed}
