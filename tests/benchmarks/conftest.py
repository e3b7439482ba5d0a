"""A small file of traces that the tiny pair can read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.kit.pair_models import models_of
from benchmarks.simulation.trace import TraceFile, save_traces
from benchmarks.traces.record import sha256_of
from edge_client import EdgeClient, EdgeConfig
from tests.support.benchmarks.traces import trace_of


@pytest.fixture
def recorded(tmp_path: Path, tiny_pair: Path) -> Path:
    """Write a file of two traces, whose tokens are the first of the vocabulary."""
    prompts = tmp_path / "some.jsonl"
    rows = [{"id": name, "class": "general", "prompt": f"write {name}"} for name in ("one", "two")]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    client = EdgeClient(EdgeConfig(pair="tiny"))
    traces = []
    for row in rows:
        trace = trace_of("+-+-")
        proposals = tuple(replace(proposal, token_id=proposal.token_id % 100) for proposal in trace.proposals)
        traces.append(
            replace(
                trace,
                id=row["id"],
                prompt_tokens=len(client.prepare(row["prompt"]).token_ids),
                token_ids=(0, 50, 2, 60),
                proposals=proposals,
            )
        )
    header = {
        "pair": "tiny",
        "prompts": prompts.name,
        "prompts_sha256": sha256_of(prompts),
        "models": models_of("tiny"),
    }
    path = tmp_path / "some.jsonl.gz"
    save_traces(path, TraceFile(header, tuple(traces)))
    return path
