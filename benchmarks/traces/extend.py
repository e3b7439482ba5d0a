"""Add values to traces that only some strategies decide by: `python -m benchmarks extend FILE...`.

The models read the recorded texts again, and the recorded values do not change. Only the missing values are added:

- the varentropy of each proposal and the texts of all tokens, for a calibrated gate (device's model);
- the `disagreement` of each proposal along the text, for U-HLM's gate (device's model). U-HLM never drafts on after a
  token that it asks about, so proposals astray need none;
- the cross-entropy of the device's token wherever the two models differ, for BiLD (cloud's model).

A file is written after each trace; run the same command again to continue an interrupted one. The models must be the
recorded ones, but kernels differ between processors and dtypes: the file's header says for how many tokens each model
still gave the recorded answer.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from benchmarks.kit.pair_models import check_models, models_of
from benchmarks.kit.prompts import read_prompts
from benchmarks.kit.provenance import provenance
from benchmarks.simulation.trace import Trace, TraceFile, extended, load_traces, save_traces
from benchmarks.traces.record import device_model, sha256_of, traced_device
from benchmarks.traces.signals import Repeats, with_varentropies
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.errors import ConfigError
from chaperone_common.sampling import choose, softmax
from chaperone_common.token_tree import TokenTree
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.model.torch_model import Dtype, TorchModel
from edge_client import EdgeClient, EdgeConfig
from edge_client.model.uncertainty import cross_entropy, disagreement
from edge_client.ports import DraftModel

PROMPT_SETS = Path(__file__).parents[1] / "prompt_sets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("traces", type=Path, nargs="+", help="files of `python -m benchmarks record`; all of one pair")
    parser.add_argument("--prompt-sets", type=Path, default=PROMPT_SETS, help="the folder of the recorded prompts")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "int8"), default="auto", help="of the cloud's model"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    pairs = {load_traces(path).header["pair"] for path in args.traces}
    if len(pairs) > 1:
        raise ConfigError(f"traces: they are of the pairs {', '.join(sorted(pairs))}; extend those of one at a time")
    with _Readers(pairs.pop(), args.dtype) as readers:
        summary = {path.name: readers.extend(path, args.prompt_sets) for path in args.traces}
    return {"benchmark": "extend", **provenance(), "summary": summary}


class _Readers:
    """Both models of a pair. The cloud's is loaded when a trace needs it."""

    def __init__(self, pair: str, dtype: Dtype | Literal["auto"]) -> None:
        self._pair = pair
        self._dtype = dtype
        self._client = EdgeClient(EdgeConfig(pair=pair))
        self._device = device_model(pair, self._client.manifest)

    def __enter__(self) -> _Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self._device.close()
        asyncio.run(self._client.aclose())

    @cached_property
    def _cloud(self) -> TorchModel:
        return _cloud_model(self._pair, load_manifest(pair_folder(self._pair, "cloud"), role="cloud"), self._dtype)

    def extend(self, path: Path, prompt_sets: Path) -> dict[str, Any]:
        """Extend one file; return the numbers of tokens read, and of repeated answers of each model."""
        file = load_traces(path)
        self._check(path, file, prompt_sets)
        texts = {prompt.id: prompt.text for prompt in read_prompts(prompt_sets / file.header["prompts"])}
        traces, header = list(file.traces), dict(file.header)
        for place, trace in enumerate(traces):
            if trace.cross_entropies is not None and trace.device is not None:
                continue
            prompt = prompt_of(self._client, path, trace, texts[trace.id])
            if trace.cross_entropies is None:
                trace, header["extended"] = self._with_disagreements(trace, prompt, header.get("extended", {}))
            if trace.device is None:
                trace, header["signals"] = self._with_signals(trace, prompt, header.get("signals", {}))
            traces[place] = trace
            save_traces(path, TraceFile(header, tuple(traces)))
            print(f"{path.name}: {place + 1:3} of {len(traces)}: {trace.id}", flush=True)
        read = {**_NOTHING_READ, **header.get("extended", {}).get("read", {})}
        return read | {"signals": {**Repeats()._asdict(), **header.get("signals", {}).get("read", {})}}

    def _check(self, path: Path, file: TraceFile, prompt_sets: Path) -> None:
        check_models(path, file.header["models"], self._pair, remedy="record it again")
        machine = provenance()["machine"]
        judged_by, measured_by = file.header.get("extended", {}), file.header.get("signals", {})
        unjudged = any(trace.cross_entropies is None for trace in file.traces)
        unmeasured = any(trace.device is None for trace in file.traces)
        if judged_by and unjudged and (judged_by["dtype"], judged_by["machine"]) != (self._cloud.dtype, machine):
            raise _begun_elsewhere(path, f"in {judged_by['dtype']} on another machine or in another dtype")
        if measured_by and unmeasured and measured_by["machine"] != machine:
            raise _begun_elsewhere(path, "on another machine")
        prompts = prompt_sets / file.header["prompts"]
        if not prompts.is_file() or sha256_of(prompts) != file.header["prompts_sha256"]:
            raise ConfigError(f"{prompts}: it is not the prompt set that {path} was recorded with; give --prompt-sets")

    def _with_disagreements(
        self, trace: Trace, prompt: Sequence[int], made_by: Mapping[str, Any]
    ) -> tuple[Trace, dict[str, Any]]:
        """Return the trace with the values that U-HLM and BiLD decide by, and the file's record of how it was read."""
        disagreements, same_proposals = asyncio.run(read_disagreements(self._device.new_sequence(), trace, prompt))
        cross_entropies, same_tokens = read_cross_entropies(self._cloud, trace, prompt)
        read = {"tokens": len(trace.token_ids), "same_proposals": same_proposals, "same_tokens": same_tokens}
        proposals = tuple(map(extended, trace.proposals, disagreements))
        record = {**_reader(), "dtype": self._cloud.dtype, "read": _sum(made_by.get("read", {}), read)}
        return replace(trace, proposals=proposals, cross_entropies=cross_entropies), record

    def _with_signals(
        self, trace: Trace, prompt: Sequence[int], made_by: Mapping[str, Any]
    ) -> tuple[Trace, dict[str, Any]]:
        """Return the trace with the values that a calibrated gate reads, and the file's record of how it was read."""
        measured, repeats = asyncio.run(with_varentropies(self._device.new_sequence(), trace, prompt))
        record = {
            **_reader(),
            "model": models_of(self._pair)["edge"],
            "read": _sum(made_by.get("read", {}), repeats._asdict()),
        }
        return replace(measured, device=traced_device(measured, self._client)), record


def prompt_of(client: EdgeClient, path: Path, trace: Trace, text: str) -> tuple[int, ...]:
    """Return the token ids of a trace's prompt. Raises ConfigError if they are others than were recorded."""
    token_ids = client.prepare(text).token_ids
    if len(token_ids) != trace.prompt_tokens:
        raise ConfigError(
            f"{path}: trace {trace.id} has a prompt of {trace.prompt_tokens} tokens, which are {len(token_ids)} by "
            "the chat template that is here; record it again"
        )
    return token_ids


_NOTHING_READ = {"tokens": 0, "same_proposals": 0, "same_tokens": 0}


def _begun_elsewhere(path: Path, how: str) -> ConfigError:
    return ConfigError(f"{path}: it was begun {how}; finish it there, or begin again with the file as it was recorded")


def _reader() -> dict[str, Any]:
    return {key: value for key, value in provenance().items() if key != "commit"}


def _sum(before: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {name: before.get(name, 0) + count for name, count in more.items()}


async def read_disagreements(model: DraftModel, trace: Trace, prompt: Sequence[int]) -> tuple[list[float], int]:
    """Return the disagreements of the proposals along the text, and the number that the model would repeat."""
    found, same = [], 0
    feed: Sequence[int] = prompt
    for token_id, proposal in zip(trace.token_ids, trace.proposals, strict=True):
        logits = (await model.step(feed)).logits
        choice = choose(softmax(logits, trace.sampling.temperature), trace.sampling, model.length)
        same += choice.token_id == proposal.token_id
        found.append(disagreement(logits, proposal.token_id))
        feed = (token_id,)
    model.close()
    return found, same


def read_cross_entropies(model: TorchModel, trace: Trace, prompt: Sequence[int]) -> tuple[dict[int, float], int]:
    """Return the cross-entropies of the device's tokens that differ, and the number of tokens the cloud would repeat.

    It takes one forward, since the cloud's own text is known.
    """
    tokens = len(trace.token_ids)
    text = TokenTree((*prompt, *trace.token_ids[:-1]))
    request = ForwardRequest(model.kv_pool.new_cache(), text, tokens, trace.sampling)
    cross_entropies, same = {}, 0
    for index, row in enumerate(model.scores(request)):
        soft = softmax(row, trace.sampling.temperature)
        choice = choose(soft, trace.sampling, len(prompt) + index)
        same += choice.token_id == trace.token_ids[index]
        if not trace.matches[index]:
            cross_entropies[index] = cross_entropy(soft, trace.proposals[index].token_id)
    return cross_entropies, same


def _cloud_model(pair: str, manifest: ModelManifest, dtype: Dtype | Literal["auto"]) -> TorchModel:
    return TorchModel.of_manifest(pair_folder(pair, "cloud"), manifest, dtype=dtype, threads=1)
