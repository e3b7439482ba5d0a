"""Extended traces of the tiny pair: new columns, unchanged ones, and refusals."""

from __future__ import annotations

import argparse
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulation.scenario import Scenario, simulate
from benchmarks.simulation.trace import ExtendedProposal, TraceFile, load_traces, save_traces
from benchmarks.strategies.families import strategy_named
from benchmarks.traces.extend import add_arguments, run
from chaperone_common.errors import ConfigError


def extend(path: Path) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(path), "--prompt-sets", str(path.parent)]))


def test_columns_are_added_and_nothing_else_changes(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [json.loads(line) for line in gzip.decompress(recorded.read_bytes()).splitlines()]
    counts = extend(recorded)["summary"]["some.jsonl.gz"]
    assert counts["tokens"] == 8
    signals = counts.pop("signals")
    after = [json.loads(line) for line in gzip.decompress(recorded.read_bytes()).splitlines()]
    assert after[0].pop("extended")["read"] == counts
    assert after[0].pop("signals")["read"] == signals
    assert (signals["proposals"], signals["astray"]) == (8, 2 * (2 + 0))
    for row in after[1:]:
        assert row.pop("cross_entropies").keys() == {"1", "3"}
        assert all(0 < value <= 1 for value in row["proposals"].pop("disagreement"))
        assert row.pop("device").keys() == {"pair", "model", "digest", "token_texts"}
        for columns in (row["proposals"], *row["astray"].values()):
            assert all(value > 0 for value in columns.pop("varentropy"))
    assert after == before

    trace = load_traces(recorded).traces[0]
    assert all(isinstance(proposal, ExtendedProposal) for proposal in trace.proposals)
    for name in ("bild-0.6-2", "uhlm-0.1"):
        assert simulate(trace, Scenario(), strategy_named(name)).error is None

    capsys.readouterr()
    whole = recorded.read_bytes()
    extend(recorded)
    assert recorded.read_bytes() == whole
    assert capsys.readouterr().out == "", "no trace is read twice"


def test_other_prompts_or_models_are_refused(recorded: Path) -> None:
    file = load_traces(recorded)
    longer = replace(file.traces[0], prompt_tokens=99)
    save_traces(recorded, TraceFile(file.header, (longer,)))
    with pytest.raises(ConfigError, match="trace one has a prompt of 99 tokens, which are"):
        extend(recorded)
    save_traces(recorded, TraceFile({**file.header, "models": {}}, file.traces))
    with pytest.raises(ConfigError, match="models are others than those of pair 'tiny' here"):
        extend(recorded)
    save_traces(recorded, file)
    (recorded.parent / "some.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="it is not the prompt set that .* was recorded with; give --prompt-sets"):
        extend(recorded)


def test_a_file_is_finished_on_its_machine_and_then_never_changed(recorded: Path) -> None:
    extend(recorded)
    whole = load_traces(recorded)
    begun = {**whole.header, "extended": {**whole.header["extended"], "dtype": "bfloat16"}}
    save_traces(recorded, TraceFile(begun, whole.traces))
    extend(recorded)
    assert load_traces(recorded).header["extended"] == begun["extended"], "a finished file stays unchanged"
    save_traces(recorded, TraceFile(begun, (whole.traces[0], replace(whole.traces[1], cross_entropies=None))))
    with pytest.raises(ConfigError, match="begun in bfloat16"):
        extend(recorded)
